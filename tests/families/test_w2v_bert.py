"""w2v-BERT against transformers, from the waveform through its feature extractor, and from fairseq2's files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertForCTC, Wav2Vec2BertModel
from transformers import Wav2Vec2BertConfig as TheirConfig

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.export import export_upstream
from speechssl.loading import build_upstream, load_upstream
from upstreams.w2v_bert.config import PRESETS, W2vBertConfig
from upstreams.w2v_bert.convert import FORMATS
from upstreams.w2v_bert.model import build

SMALL: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96,
    "conv_depthwise_kernel_size": 7, "left_max_position_embeddings": 20, "right_max_position_embeddings": 3,
}  # fmt: skip


def perturbed(model: Wav2Vec2BertModel) -> Wav2Vec2BertModel:
    """Biases, gains and the vectors of distances, which a fresh model has at 0, 1 or close to it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def theirs(kind: Any = Wav2Vec2BertModel, **changes: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return perturbed(kind(TheirConfig(**(SMALL | changes))))


def save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    SeamlessM4TFeatureExtractor(padding_value=1).save_pretrained(folder)


def speechlike(samples: int, seed: int = 0) -> Tensor:
    """Noise with level and tilt that change, and an offset."""
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    return 0.2 * torch.cumsum(noise, 0).sub(torch.cumsum(noise, 0).mean()).div(samples**0.5) + 0.05 * noise + 0.01


def reference(model: Wav2Vec2BertModel, waveforms: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """transformers' hidden states of a batch, and its valid frames."""
    extractor = SeamlessM4TFeatureExtractor(padding_value=1)
    inputs = extractor([w.numpy() for w in waveforms], sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        return list(model(**inputs, output_hidden_states=True).hidden_states), inputs["attention_mask"].sum(1)


@pytest.mark.parity("transformers, padded batch", "transformers")
@pytest.mark.parametrize("positions", ["relative_key", "relative"])
def test_padded_batches_equal_transformers_from_the_waveform_on(positions: str, tmp_path: Path) -> None:
    model = theirs(position_embeddings_type=positions)
    save(model, tmp_path)
    upstream = load_upstream(tmp_path)
    waveforms = [speechlike(16_000), speechlike(9_700, 1), speechlike(720, 2), speechlike(880, 3)]
    lengths = torch.tensor([len(w) for w in waveforms])  # even and odd numbers of mel frames
    with torch.no_grad():
        out = upstream(torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), lengths)
    expected, frames = reference(model, waveforms)
    assert torch.equal(out.lengths, frames)
    assert frames.tolist() == [49, 29, 1, 2]
    assert len(out.hidden_states) == len(expected) == 4
    for a, b in zip(out.hidden_states, expected, strict=True):
        for row, count in enumerate(frames.tolist()):
            torch.testing.assert_close(a[row, :count], b[row, :count], rtol=0, atol=1e-4)


def test_weights_go_to_transformers_and_back_bit_for_bit(tmp_path: Path) -> None:
    model = theirs(Wav2Vec2BertForCTC, vocab_size=5)  # with a head, which is no part of the upstream
    save(model, tmp_path / "theirs")
    upstream = export_upstream(tmp_path / "theirs", tmp_path / "back", to="transformers")
    again, info = Wav2Vec2BertModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in model.wav2vec2_bert.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    once_more = load_upstream(tmp_path / "back")
    assert once_more.config == upstream.config
    for name, value in upstream.state_dict().items():
        assert torch.equal(value, once_more.state_dict()[name]), name
    saved = SeamlessM4TFeatureExtractor.from_pretrained(tmp_path / "back")
    assert (saved.num_mel_bins, saved.stride, saved.sampling_rate) == (80, 2, 16_000)


@pytest.mark.parity("transformers, with adapter", "transformers")
def test_an_adapter_after_the_last_block_changes_no_hidden_state(tmp_path: Path) -> None:
    model = theirs(add_adapter=True, use_intermediate_ffn_before_adapter=True)
    save(model, tmp_path)
    with torch.no_grad():
        ours = load_upstream(tmp_path)(speechlike(6_000)[None]).hidden_states
    for a, b in zip(ours, reference(model, [speechlike(6_000)])[0], strict=True):
        torch.testing.assert_close(a, b[:, : a.size(1)], rtol=0, atol=1e-4)


def test_silence_and_a_constant_give_finite_frames() -> None:
    upstream = build_upstream("w2v_bert", W2vBertConfig(width=32, depth=1, heads=4, ffn_width=32), seed=0)
    for waveform in (torch.zeros(1, 8_000), torch.full((1, 8_000), 0.5)):
        assert all(state.isfinite().all() for state in upstream(waveform).hidden_states)


def fairseq2_state(model: Wav2Vec2BertModel) -> dict[str, Tensor]:
    """The names of fairseq2, as transformers' own converter of these models lists them."""
    pairs = (
        ("feature_projection.projection", "encoder_frontend.model_dim_proj"),
        ("feature_projection.layer_norm", "encoder_frontend.post_extract_layer_norm"),
        ("masked_spec_embed", "masker.temporal_mask_embed"),
        ("conv_module.layer_norm", "conv_layer_norm"),
        ("conv_module.depthwise_layer_norm", "conv.layer_norm"),
        ("conv_module.", "conv."),
        ("final_layer_norm", "layer_norm"),
        ("intermediate_dense", "inner_proj"),
        ("output_dense", "output_proj"),
        ("self_attn.linear_out", "self_attn.output_proj"),
        ("self_attn.linear_pos", "self_attn.sdpa.r_proj"),
        ("self_attn.linear_", "self_attn.@_proj"),
        ("self_attn.pos_bias_u", "self_attn.sdpa.u_bias"),
        ("self_attn.pos_bias_v", "self_attn.sdpa.v_bias"),
        ("self_attn.distance_embedding", "self_attn.sdpa.rel_k_embed"),
    )
    state = {}
    for key, value in model.state_dict().items():
        name = key
        for old, new in pairs:
            if old in name and "@" in new:
                letter = name.split(old)[1][0]
                name = name.replace(old + letter, new.replace("@", letter))
            else:
                name = name.replace(old, new)
        state[name] = value
    return state


@pytest.mark.parity("fairseq2's names", "transformers")
@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_of_fairseq2_give_the_numbers_of_transformers(wrapped: bool, tmp_path: Path) -> None:
    model = theirs(left_max_position_embeddings=64, right_max_position_embeddings=8)
    state = fairseq2_state(model) | {"quantizer.entries": torch.zeros(2), "final_proj.weight": torch.zeros(2, 64)}
    torch.save({"model": {f"w2v2_model.{k}": v for k, v in state.items()}} if wrapped else state, tmp_path / "x.pt")
    upstream = load_upstream(tmp_path / "x.pt")
    assert (upstream.family, upstream.config.heads, upstream.config.causal) == ("w2v_bert", 4, True)
    with torch.no_grad():
        ours = upstream(speechlike(8_000)[None]).hidden_states
    for a, b in zip(ours, reference(model, [speechlike(8_000)])[0], strict=True):
        torch.testing.assert_close(a, b[:, : a.size(1)], rtol=0, atol=1e-4)


def test_the_published_model_has_the_shape_of_transformers() -> None:
    with torch.device("meta"):
        ours, model = build(PRESETS["w2v_bert_2_0"]), Wav2Vec2BertModel(TheirConfig())
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in model.parameters()) == 580_493_120


def test_what_is_not_built_is_refused_by_name(tmp_path: Path) -> None:
    for changes, message in (
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"layer_norm_eps": 1e-3}, "layer_norm_eps"),
        ({"position_embeddings_type": "rotary"}, "position_embeddings_type"),
    ):
        TheirConfig(**(SMALL | changes)).save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=message):
            load_upstream(tmp_path)
    with pytest.raises(ConfigError, match="block_norm"):
        FORMATS.write_transformers(PRESETS["w2v_bert_300m"], {})
    state = fairseq2_state(theirs(left_max_position_embeddings=64, right_max_position_embeddings=8))
    for name, message in (
        ("encoder_frontend.model_dim_proj.weight", "model_dim_proj"),
        ("encoder.layers.2.ffn1.inner_proj.bias", "lack"),
    ):
        torch.save({k: v for k, v in state.items() if k != name}, tmp_path / "x.pt")
        with pytest.raises(SpeechsslError, match=message):
            load_upstream(tmp_path / "x.pt")
