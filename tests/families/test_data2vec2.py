"""data2vec 2.0 for speech against a slow reference on plain functions, written from what fairseq's code does.

transformers and torchaudio have no such model. The reference keeps the weights by fairseq's names in one mapping, hears
one utterance at a time and computes each head and each bias on its own.
"""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from speechssl.encoder.alibi import LinearBias, linear_slopes
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.export import export_upstream
from speechssl.loading import build_upstream, load_upstream
from upstreams.data2vec2.config import PRESETS, Data2Vec2Config
from upstreams.data2vec2.model import build

WIDTH, HEADS, PRENET, DEPTH, CHANNELS, HIDDEN = 48, 6, 2, 3, 24, 64
CONVS = [(10, 5)] + [(3, 2)] * 4 + [(2, 2)] * 2
AUDIO = "modality_encoders.AUDIO."


def settings(**audio: Any) -> dict[str, Any]:
    return {
        "_name": "data2vec_multi", "depth": DEPTH, "num_heads": HEADS, "embed_dim": WIDTH, "norm_eps": 1e-5,
        "mlp_ratio": HIDDEN / WIDTH, "layer_norm_first": False, "supported_modality": 1, "clone_batch": 8,
        "modalities": {
            "audio": {
                "feature_encoder_spec": f"[({CHANNELS}, 10, 5)] + [({CHANNELS}, 3, 2)] * 4 + [({CHANNELS},2,2)] * 2",
                "extractor_mode": "layer_norm", "conv_pos_width": 95, "conv_pos_groups": 4, "conv_pos_depth": 5,
                "prenet_depth": PRENET, "use_alibi_encoder": True, "learned_alibi_scale": True,
                "learned_alibi_scale_per_head": True, "num_extra_tokens": 0, "num_alibi_heads": "${model.num_heads}",
                "model_depth": "${model.depth}", "decoder": {"decoder_dim": 16}, **audio,
            }
        },
    }  # fmt: skip


def fairseq_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return shift + scale * torch.randn(*shape, generator=generator)

    def norm(name: str, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": normal(width, scale=0.3, shift=1.0), f"{name}.bias": normal(width, scale=0.3)}

    def linear(name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
        weight = normal(outputs, inputs, scale=inputs**-0.5)
        return {f"{name}.weight": weight, f"{name}.bias": normal(outputs, scale=0.3)}

    state: dict[str, Tensor] = {}
    for i, (kernel, _) in enumerate(CONVS):
        inputs = CHANNELS if i else 1
        name = f"{AUDIO}local_encoder.conv_layers.{i}"
        state[f"{name}.0.weight"] = normal(CHANNELS, inputs, kernel, scale=(2 / (inputs * kernel)) ** 0.5)
        state |= norm(f"{name}.2.1", CHANNELS)
    state |= norm(f"{AUDIO}project_features.1", CHANNELS) | linear(f"{AUDIO}project_features.2", CHANNELS, WIDTH)
    for i in range(1, 6):
        name = f"{AUDIO}relative_positional_encoder.{i}.0"
        state |= {f"{name}.weight": normal(WIDTH, WIDTH // 4, 19, scale=0.1), f"{name}.bias": normal(WIDTH)}
    state |= norm(f"{AUDIO}context_encoder.norm", WIDTH)
    # One of the learned scales below 0: fairseq takes it for 0.
    state[f"{AUDIO}alibi_scale"] = normal(1, 1, HEADS, 1, 1, scale=0.3, shift=1.0)
    state[f"{AUDIO}alibi_scale"][0, 0, 2] = -0.5
    blocks = [f"{AUDIO}context_encoder.blocks.{i}" for i in range(PRENET)] + [f"blocks.{i}" for i in range(DEPTH)]
    for block in blocks:
        state |= norm(f"{block}.norm1", WIDTH) | norm(f"{block}.norm2", WIDTH)
        state |= linear(f"{block}.attn.qkv", WIDTH, 3 * WIDTH) | linear(f"{block}.attn.proj", WIDTH, WIDTH)
        state |= linear(f"{block}.mlp.fc1", WIDTH, HIDDEN) | linear(f"{block}.mlp.fc2", HIDDEN, WIDTH)
    return state


def heads_of_no_use(state: dict[str, Tensor]) -> dict[str, Any]:
    """The student with what pre-training keeps beside it."""
    decoder = {f"{AUDIO}decoder.blocks.0.0.weight": torch.ones(16, 3, 7), f"{AUDIO}decoder.proj.bias": torch.ones(48)}
    return {**state, **decoder, "_ema": {k: v + 1.0 for k, v in state.items()}}


def reference(state: dict[str, Tensor], waveform: Tensor) -> list[Tensor]:
    """The hidden states of one utterance (S,), each (T, D): what enters the first block, and what leaves each."""
    normed = (waveform - waveform.mean()) / (waveform.var(unbiased=False) + 1e-5).sqrt()
    x = normed[None]  # (C, frames)
    for i, (_, stride) in enumerate(CONVS):
        name = f"{AUDIO}local_encoder.conv_layers.{i}"
        x = F.conv1d(x, state[f"{name}.0.weight"], stride=stride)
        x = F.gelu(layer_norm(state, f"{name}.2.1", x.t()).t())
    x = layer_norm(state, f"{AUDIO}project_features.1", x.t())  # (T, C)
    x = linear(state, f"{AUDIO}project_features.2", x)
    position = x.t()
    for i in range(1, 6):
        name = f"{AUDIO}relative_positional_encoder.{i}.0"
        position = F.conv1d(F.pad(position, (9, 9)), state[f"{name}.weight"], state[f"{name}.bias"], groups=4)
        position = (position - position.mean(dim=0)) / (position.var(dim=0, unbiased=False) + 1e-5).sqrt()
        position = F.gelu(position)
    x = layer_norm(state, f"{AUDIO}context_encoder.norm", x + position.t())
    states = [x]
    for block in [f"{AUDIO}context_encoder.blocks.{i}." for i in range(PRENET)] + [
        f"blocks.{i}." for i in range(DEPTH)
    ]:
        x = layer_norm(state, f"{block}norm1", x + attention(state, block, x))
        x = layer_norm(state, f"{block}norm2", x + linear(
            state, f"{block}mlp.fc2", F.gelu(linear(state, f"{block}mlp.fc1", x))
        ))  # fmt: skip
        states.append(x)
    return states


def attention(state: dict[str, Tensor], block: str, x: Tensor) -> Tensor:
    query, key, value = linear(state, f"{block}attn.qkv", x).split(WIDTH, dim=1)
    size = WIDTH // HEADS
    frames = range(x.size(0))
    outputs = []
    # Six heads: the slopes of four, then the first and the third of eight.
    slopes = [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]
    for head, slope in enumerate(slopes):
        part = slice(head * size, (head + 1) * size)
        scale = max(0.0, float(state[f"{AUDIO}alibi_scale"].flatten()[head]))
        bias = torch.tensor([[-slope * scale * abs(i - j) for j in frames] for i in frames])
        scores = query[:, part] @ key[:, part].t() / math.sqrt(size) + bias
        outputs.append(scores.softmax(dim=1) @ value[:, part])
    return linear(state, f"{block}attn.proj", torch.cat(outputs, dim=1))


def layer_norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].t() + state[f"{name}.bias"]


def save(path: Path, state: dict[str, Any], model: dict[str, Any], *, fine_tuned: bool = False) -> Path:
    inner = OmegaConf.create({"model": model, "task": {"_name": "audio_pretraining", "normalize": True}})
    content: dict[str, Any] = {"cfg": inner, "model": state}
    if fine_tuned:
        state = {f"w2v_encoder.w2v_model.{k}": v for k, v in state.items()}
        state["w2v_encoder.proj.weight"] = torch.zeros(9, WIDTH)
        content = {"cfg": {"model": {"_name": "wav2vec_ctc", "w2v_args": inner}, "task": {}}, "model": state}
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def waveform() -> Tensor:
    return 0.3 * torch.randn(2, 9_000, generator=torch.Generator().manual_seed(0)) + 0.05


@pytest.mark.parity("fairseq .pt", "a slow reference")
@pytest.mark.parametrize("fine_tuned", [False, True], ids=["pre-trained", "fine-tuned"])
@torch.no_grad()
def test_hidden_states_equal_the_reference_in_a_padded_batch(
    fine_tuned: bool, waveform: Tensor, tmp_path: Path
) -> None:
    state = fairseq_state()
    upstream = load_upstream(
        save(tmp_path / "base_libri.pt", heads_of_no_use(state), settings(), fine_tuned=fine_tuned)
    )
    assert (upstream.family, upstream.normalize, upstream.frame_rate) == ("data2vec2", True, 50.0)
    lengths = torch.tensor([9_000, 6_500])
    out = upstream(waveform, lengths)
    for row, length in enumerate(lengths.tolist()):
        expected = reference(state, waveform[row, :length])
        assert len(out.hidden_states) == len(expected) == 1 + PRENET + DEPTH
        assert int(out.lengths[row]) == expected[0].size(0)
        for ours, theirs in zip(out.hidden_states, expected, strict=True):
            torch.testing.assert_close(ours[row, : theirs.size(0)], theirs, rtol=0, atol=1e-4)


@torch.no_grad()
def test_one_scale_for_all_heads_and_the_older_shape_of_it_are_read(waveform: Tensor, tmp_path: Path) -> None:
    state = fairseq_state()
    state[f"{AUDIO}alibi_scale"] = torch.full((1, 1, 1, 1), 0.7)
    upstream = load_upstream(save(tmp_path / "x.pt", state, settings(learned_alibi_scale_per_head=False)))
    state[f"{AUDIO}alibi_scale"] = torch.full((1, 1, HEADS, 1, 1), 0.7)
    ours = upstream(waveform[:1]).hidden_states[-1][0]
    torch.testing.assert_close(ours, reference(state, waveform[0])[-1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("heads", [12, 16])
def test_biases_fade_as_in_the_papers(heads: int) -> None:
    slopes = linear_slopes(heads)
    assert len(slopes) == heads
    if heads == 16:
        assert slopes == pytest.approx([2.0 ** (-(h + 1) / 2) for h in range(16)])
    else:
        assert slopes == pytest.approx(
            [2.0 ** -(h + 1) for h in range(8)] + [2.0 ** (-(2 * h + 1) / 2) for h in range(4)]
        )
    module = LinearBias(heads)
    with torch.no_grad():
        module.scale.copy_(torch.linspace(0.5, 2.0, heads))
    bias = module(5)[:, :, :5].flip(2)  # keys run backwards in it
    distances = torch.tensor([[float(abs(i - j)) for j in range(5)] for i in range(5)])
    expected = -distances * (torch.tensor(slopes) * module.scale)[:, None, None]
    torch.testing.assert_close(bias, expected)


@pytest.mark.parametrize(
    ("name", "sizes", "count"),
    [("data2vec2_base", (768, 12, 3072, 12), 93_163_532), ("data2vec2_large", (1024, 24, 4096, 16), 313_275_408)],
)
def test_presets_have_the_published_shapes(name: str, sizes: tuple[int, int, int, int], count: int) -> None:
    width, blocks, ffn, heads = sizes
    with torch.device("meta"):
        ours = build(PRESETS[name])
    stem = 512 * 10 + 4 * 512 * 512 * 3 + 2 * 512 * 512 * 2 + 7 * 2 * 512
    projection = 2 * 512 + 512 * width + width
    positions = 5 * (width * (width // 16) * 19 + width) + 2 * width
    block = 4 * width * width + 4 * width + 2 * width * ffn + ffn + width + 4 * width
    expected = stem + projection + positions + blocks * block + heads
    assert sum(p.numel() for p in ours.parameters()) == expected == count
    assert "mask_embedding" not in ours.state_dict()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"learned_alibi_scale_per_layer": True}, "learned_alibi_scale_per_layer"),
        ({"use_alibi_encoder": False}, "use_alibi_encoder"),
        ({"num_extra_tokens": 10}, "num_extra_tokens"),
        ({"conv_pos_depth": 1}, "conv_pos_depth"),
    ],
)
def test_parts_that_the_published_models_have_not_are_named(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", fairseq_state(), settings(**change))
    with pytest.raises(ConfigError, match=f"`{says}` of .*x.pt"):
        load_upstream(path)


def test_other_norms_models_that_only_see_and_missing_weights_are_one_sentence(tmp_path: Path) -> None:
    state = fairseq_state()
    for key, value in (("norm_eps", 1e-6), ("layer_norm_first", True)):
        with pytest.raises(ConfigError, match=f"`{key}`"):
            load_upstream(save(tmp_path / "x.pt", state, {**settings(), key: value}))
    image = {"_name": "data2vec_multi", "modalities": {"image": {}}}
    with pytest.raises(SpeechsslError, match="does not hear"):
        load_upstream(save(tmp_path / "x.pt", {"modality_encoders.IMAGE.extra_tokens": torch.ones(1)}, image))
    with pytest.raises(ConfigError, match="alibi_scale"):
        load_upstream(save(tmp_path / "x.pt", {k: v for k, v in state.items() if "alibi" not in k}, settings()))


@pytest.mark.parametrize(
    "name",
    [
        "blocks.1.attn.qkv.weight",
        f"{AUDIO}context_encoder.blocks.1.norm2.bias",
        f"{AUDIO}context_encoder.norm.weight",
        f"{AUDIO}relative_positional_encoder.5.0.bias",
        f"{AUDIO}project_features.2.weight",
        f"{AUDIO}local_encoder.conv_layers.3.0.weight",
    ],
)
def test_a_missing_weight_is_named_as_fairseq_names_it(name: str, tmp_path: Path) -> None:
    lacking = {key: value for key, value in fairseq_state().items() if key != name}
    with pytest.raises(SpeechsslError, match=f"lack '{re.escape(name)}'"):
        load_upstream(save(tmp_path / "x.pt", lacking, settings()))


def test_transformers_has_no_such_model(tmp_path: Path) -> None:
    save(tmp_path / "x.pt", fairseq_state(), settings())
    with pytest.raises(SpeechsslError, match="transformers has no such model"):
        export_upstream(tmp_path / "x.pt", tmp_path / "out", to="transformers")
    assert not (tmp_path / "out").exists()


def test_training_reaches_the_scales_of_the_biases() -> None:
    config = Data2Vec2Config(conv_channels=16, width=32, heads=2, depth=1, ffn_width=32, pos_groups=4)
    upstream = build_upstream("data2vec2", config, seed=0)
    upstream(torch.randn(1, 4_000, generator=torch.Generator().manual_seed(0))).hidden_states[
        1
    ].square().sum().backward()
    gradient = dict(upstream.named_parameters())["encoder.relative_bias.scale"].grad
    assert gradient is not None
    assert (gradient != 0).all()
