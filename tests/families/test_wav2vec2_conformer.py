"""wav2vec 2.0 conformer against transformers, from its format and from fairseq's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Wav2Vec2ConformerConfig as TheirConfig
from transformers import Wav2Vec2ConformerForPreTraining, Wav2Vec2ConformerModel

from speechssl.encoder.conformer import ConformerConfig, ConvolutionModule
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.export import export_upstream
from speechssl.loading import build_upstream, load_upstream
from upstreams.wav2vec2_conformer.config import PRESETS, Wav2Vec2ConformerConfig
from upstreams.wav2vec2_conformer.model import build

SMALL: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96, "conv_dim": [32] * 7,
    "num_codevectors_per_group": 8, "codevector_dim": 16, "proj_codevector_dim": 16, "hidden_act": "swish",
    "feat_extract_norm": "layer", "conv_bias": True,
    "conv_depthwise_kernel_size": 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
UNUSED = "encoder.pos_conv_embed."
"""Weights that transformers holds and does not use."""
LAYERS = "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2"


def theirs(positions: str, **changes: Any) -> Wav2Vec2ConformerForPreTraining:
    """A model whose biases, gains and running statistics are not those of a fresh one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = TheirConfig(**(SMALL | {"position_embeddings_type": positions} | changes))
        model = Wav2Vec2ConformerForPreTraining(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for name, buffer in model.named_buffers():
                if "running" in name:
                    buffer.add_(0.3 * torch.rand_like(buffer))
    return model


def noise(samples: int = 9_000) -> Tensor:
    """Loud: transformers divides by sqrt(variance + 1e-7), and we, as fairseq does, by sqrt(variance + 1e-5)."""
    return torch.randn(1, samples, generator=torch.Generator().manual_seed(0))


def hidden_states(model: Wav2Vec2ConformerForPreTraining | Wav2Vec2ConformerModel, waveform: Tensor) -> list[Tensor]:
    inner = getattr(model, "wav2vec2_conformer", model)
    with torch.no_grad():
        normal = torch.nn.functional.layer_norm(waveform, waveform.shape[-1:])
        out = inner(normal, output_hidden_states=True)
    return [*out.hidden_states[:-1], out.last_hidden_state]  # transformers 5 leaves out the closing norm


@pytest.mark.parity("transformers ({positions})", "transformers")
@pytest.mark.parametrize("positions", ["relative", "rotary"])
def test_hidden_states_equal_transformers_and_go_back_bit_for_bit(positions: str, tmp_path: Path) -> None:
    model = theirs(positions)
    model.save_pretrained(tmp_path / "theirs")
    upstream = load_upstream(tmp_path / "theirs")
    assert (upstream.family, upstream.normalize, upstream.config.positions) == ("wav2vec2_conformer", True, positions)
    for samples in (400, 9_000):  # one frame and many
        waveform = noise(samples)
        with torch.no_grad():
            ours = upstream(waveform).hidden_states
        expected = hidden_states(model, waveform)
        assert len(ours) == len(expected) == 4
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    export_upstream(tmp_path / "theirs", tmp_path / "back", to="transformers")
    again, info = Wav2Vec2ConformerModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in model.wav2vec2_conformer.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]) or name.startswith(UNUSED), name
    for a, b in zip(hidden_states(again.eval(), noise()), hidden_states(model, noise()), strict=True):
        assert torch.equal(a, b)
    once_more = load_upstream(tmp_path / "back")
    for name, value in upstream.state_dict().items():
        assert torch.equal(value, once_more.state_dict()[name]), name


@pytest.mark.parity("transformers, padded batch", "transformers")
def test_padded_batches_equal_transformers_on_each_utterance_alone(tmp_path: Path) -> None:
    for positions in ("relative", "rotary"):
        model = theirs(positions)
        model.save_pretrained(tmp_path)
        waveform, lengths = torch.zeros(2, 9_000), torch.tensor([9_000, 5_000])
        waveform[0], waveform[1, :5_000] = noise()[0], noise(5_000)[0]
        with torch.no_grad():
            out = load_upstream(tmp_path)(waveform, lengths)
        for row, length in enumerate(lengths.tolist()):
            frames = int(out.lengths[row])
            for a, b in zip(out.hidden_states, hidden_states(model, waveform[row : row + 1, :length]), strict=True):
                torch.testing.assert_close(a[row, :frames], b[0], rtol=0, atol=1e-4)


def fairseq_state(model: Wav2Vec2ConformerForPreTraining) -> dict[str, Tensor]:
    """The names that fairseq gives these weights, as transformers' own converter lists them."""
    state: dict[str, Tensor] = {}
    parts = {"ffn1_layer_norm": "ffn1.layer_norm", "ffn2_layer_norm": "ffn2.layer_norm"}
    for theirs_name, value in model.wav2vec2_conformer.state_dict().items():
        name = theirs_name
        for old, new in (
            ("feature_projection.projection", "post_extract_proj"),
            ("feature_projection.layer_norm", "layer_norm"),
            ("masked_spec_embed", "mask_emb"),
            ("encoder.pos_conv_embed.conv.parametrizations.weight.original0", "encoder.pos_conv.0.weight_g"),
            ("encoder.pos_conv_embed.conv.parametrizations.weight.original1", "encoder.pos_conv.0.weight_v"),
            ("encoder.pos_conv_embed.conv", "encoder.pos_conv.0"),
            ("intermediate_dense", "w_1"),
            ("output_dense", "w_2"),
            *parts.items(),
        ):
            name = name.replace(old, new)
        if name.startswith("feature_extractor"):
            name = name.replace(".conv.", ".0.").replace(".layer_norm.", ".2.1.")
        if name == "encoder.embed_positions.inv_freq":
            for layer in range(3):
                state[f"encoder.layers.{layer}.self_attn.rotary_emb.inv_freq"] = value
        else:
            state[name] = value
    return state | {"quantizer.vars": torch.zeros(1, 4, 4), "final_proj.weight": torch.zeros(4, 64)}


def settings(positions: str, **changes: Any) -> dict[str, Any]:
    return {
        "_name": "wav2vec2", "layer_type": "conformer", "attn_type": "espnet", "pos_enc_type": positions,
        "extractor_mode": "layer_norm", "conv_bias": True, "layer_norm_first": True, "encoder_layers": 3,
        "encoder_embed_dim": 64, "encoder_ffn_embed_dim": 96, "encoder_attention_heads": 4,
        "conv_feature_layers": LAYERS, "depthwise_conv_kernel_size": 7, "dropout": 0.0, "activation_fn": "gelu",
    } | changes  # fmt: skip


@pytest.mark.parity("fairseq .pt ({positions})", "transformers")
@pytest.mark.parametrize(("fairseq", "positions"), [("rel_pos", "relative"), ("rope", "rotary")])
@pytest.mark.parametrize("fine_tuned", [False, True])
def test_fairseq_checkpoints_give_the_numbers_of_transformers(
    fairseq: str, positions: str, fine_tuned: bool, tmp_path: Path
) -> None:
    model, state = theirs(positions), fairseq_state(theirs(positions))
    inner: dict[str, Any] = {"model": settings(fairseq), "task": {"normalize": True}}
    content: dict[str, Any] = {"cfg": inner, "model": state}
    if fine_tuned:
        state = {f"w2v_encoder.w2v_model.{k}": v for k, v in state.items()} | {"w2v_encoder.proj.bias": torch.zeros(3)}
        content = {"cfg": {"model": {"_name": "wav2vec_ctc", "w2v_args": inner}, "task": {}}, "model": state}
    torch.save(content, tmp_path / "model.pt")
    upstream = load_upstream(tmp_path / "model.pt")
    assert (upstream.family, upstream.normalize) == ("wav2vec2_conformer", True)
    with torch.no_grad():
        ours = upstream(noise()).hidden_states
    for a, b in zip(ours, hidden_states(model, noise()), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_have_the_shapes_of_transformers(name: str) -> None:
    preset = PRESETS[name]
    with torch.device("meta"):
        ours = build(preset)
        large = TheirConfig(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, conv_bias=True,
            feat_extract_norm="layer", position_embeddings_type=preset.positions,
        )  # fmt: skip
        model = Wav2Vec2ConformerModel(large)
    unused = sum(p.numel() for n, p in model.named_parameters() if n.startswith(UNUSED))
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in model.parameters()) - unused
    assert count == {"relative": 610_169_344, "rotary": 584_954_368}[preset.positions]


def test_statistics_of_a_batch_in_training_are_those_of_its_valid_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    module = ConvolutionModule(ConformerConfig(width=8, kernel=3)).train()
    padding_mask = torch.tensor([[False] * 6, [False] * 2 + [True] * 4])
    x = torch.randn(2, 6, 8, generator=generator)
    module(x, padding_mask)
    mean = module.norm.running_mean.clone()
    module.norm.reset_running_stats()
    module(torch.where(padding_mask[:, :, None], 100.0, x), padding_mask)
    torch.testing.assert_close(module.norm.running_mean, mean)
    depthwise = torch.nn.functional.conv1d(
        torch.nn.functional.glu(module.pointwise1(x.masked_fill(padding_mask[:, :, None], 0.0)), 2).transpose(1, 2),
        module.depthwise.weight, padding=1, groups=8,
    ).transpose(1, 2)  # fmt: skip
    torch.testing.assert_close(mean, 0.1 * depthwise[~padding_mask].mean(0))


def test_what_is_not_built_is_refused_by_name(tmp_path: Path) -> None:
    for changes, message in (
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"position_embeddings_type": None}, "position_embeddings_type"),
    ):
        TheirConfig(**(SMALL | changes)).save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=message):
            load_upstream(tmp_path)
    for changes, message in (
        ({"pos_enc_type": "abs"}, "pos_enc_type"),
        ({"attn_type": ""}, "attn_type"),
        ({"layer_norm_first": False}, "layer_norm_first"),
    ):
        torch.save({"cfg": {"model": settings("rel_pos", **changes), "task": {}}, "model": {}}, tmp_path / "x.pt")
        with pytest.raises(ConfigError, match=message):
            load_upstream(tmp_path / "x.pt")
    torch.save({"cfg": {"model": settings("rope"), "task": {}}, "model": {}}, tmp_path / "x.pt")
    with pytest.raises(SpeechsslError, match="lack"):
        load_upstream(tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="pre_norm"):
        build_upstream("wav2vec2_conformer", Wav2Vec2ConformerConfig(pre_norm=False), seed=0)
