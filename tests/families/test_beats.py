"""BEATs against a plain reference, written from the paper and Microsoft's code: one query, one head at a time."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchaudio
from plain_vit import linear, norm_weights, normal
from torch import Tensor
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.loading import load_upstream
from upstreams.beats.config import PRESETS
from upstreams.beats.model import build

WIDTH, EMBED, HEADS, BLOCKS, FFN, BUCKETS, FARTHEST = 32, 24, 4, 3, 48, 16, 30
SETTINGS = {
    "encoder_layers": BLOCKS, "encoder_embed_dim": WIDTH, "encoder_ffn_embed_dim": FFN,
    "encoder_attention_heads": HEADS, "activation_fn": "gelu", "dropout": 0.0, "attention_dropout": 0.0,
    "activation_dropout": 0.0, "encoder_layerdrop": 0.05, "dropout_input": 0.0, "layer_norm_first": False,
    "conv_bias": False, "conv_pos": 8, "conv_pos_groups": 4, "relative_position_embedding": True,
    "num_buckets": BUCKETS, "max_distance": FARTHEST, "gru_rel_pos": True, "deep_norm": True, "input_patch_size": 16,
    "layer_wise_gradient_decay_ratio": 0.6, "embed_dim": EMBED, "finetuned_model": False,
}  # fmt: skip


def microsofts_state(changes: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """Random weights by the names of Microsoft's code (BEATs.py, backbone.py)."""
    settings = {**SETTINGS, **(changes or {})}
    generator = torch.Generator().manual_seed(0)
    embed = settings["embed_dim"]

    def layer(name: str, out: int, into: int) -> dict[str, Tensor]:
        weight = normal(generator, out, into, std=into**-0.5)
        return {f"{name}.weight": weight, f"{name}.bias": normal(generator, out, std=0.2)}

    state = {
        "patch_embedding.weight": normal(generator, embed, 1, 16, 16),
        "encoder.pos_conv.0.weight_g": 1 + normal(generator, 1, 1, 8, std=0.2),
        "encoder.pos_conv.0.weight_v": normal(generator, WIDTH, WIDTH // 4, 8),
        "encoder.pos_conv.0.bias": normal(generator, WIDTH, std=0.2),
        **norm_weights(generator, "layer_norm", embed),
        **norm_weights(generator, "encoder.layer_norm", WIDTH),
    }
    if embed != WIDTH:
        state |= layer("post_extract_proj", WIDTH, embed)
    if settings["conv_bias"]:
        state["patch_embedding.bias"] = normal(generator, embed, std=0.2)
    shared = normal(generator, BUCKETS, HEADS, std=0.5)
    for block in range(BLOCKS):
        at = f"encoder.layers.{block}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            state |= layer(f"{at}self_attn.{name}", WIDTH, WIDTH)
        state |= layer(f"{at}fc1", FFN, WIDTH) | layer(f"{at}fc2", WIDTH, FFN)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            state |= norm_weights(generator, f"{at}{name}", WIDTH)
        if settings["relative_position_embedding"]:
            state[f"{at}self_attn.relative_attention_bias.weight"] = shared
        if settings["gru_rel_pos"]:
            state |= layer(f"{at}self_attn.grep_linear", 8, WIDTH // HEADS)
            state[f"{at}self_attn.grep_a"] = 1 + normal(generator, 1, HEADS, 1, 1, std=0.3)
    return state


def norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def patch_tokens(state: dict[str, Tensor], waveform: Tensor) -> Tensor:
    """(patches, width) of one utterance: column by column, low frequencies first."""
    fbank = torchaudio.compliance.kaldi.fbank(
        waveform * 2**15, num_mel_bins=128, sample_frequency=16_000, frame_length=25, frame_shift=10
    )
    fbank = (fbank - 15.41663) / (2 * 6.55582)
    tokens = []
    for t in range(fbank.size(0) // 16):
        for f in range(8):
            patch = fbank[16 * t : 16 * t + 16, 16 * f : 16 * f + 16].reshape(-1)
            tokens.append(state["patch_embedding.weight"].flatten(1) @ patch + state.get("patch_embedding.bias", 0.0))
    x = norm(torch.stack(tokens), state, "layer_norm")
    return linear(x, state, "post_extract_proj") if "post_extract_proj.weight" in state else x


def with_positions(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    direction = state["encoder.pos_conv.0.weight_v"]
    length = direction.square().sum(dim=(0, 1), keepdim=True).sqrt()
    weight = state["encoder.pos_conv.0.weight_g"] * direction / length
    y = F.conv1d(x.T[None], weight, state["encoder.pos_conv.0.bias"], padding=4, groups=4)[0, :, :-1]
    return norm(x + F.gelu(y.T), state, "encoder.layer_norm")


def position_bias(state: dict[str, Tensor], size: int) -> Tensor | None:
    """(heads, size, size), by the buckets of transformers' WavLM."""
    weight = state.get("encoder.layers.0.self_attn.relative_attention_bias.weight")
    if weight is None:
        return None
    theirs = WavLMAttention(WIDTH, HEADS, num_buckets=BUCKETS, max_distance=FARTHEST)
    theirs.rel_attn_embed.weight.data = weight
    return theirs.compute_bias(size, size).detach()


def attention(x: Tensor, state: dict[str, Tensor], at: str, bias: Tensor | None) -> Tensor:
    query, key, value = (linear(x, state, f"{at}{name}_proj") for name in "qkv")
    size, rows = WIDTH // HEADS, []
    for i in range(x.size(0)):
        heads = []
        for h in range(HEADS):
            part = slice(h * size, (h + 1) * size)
            scores = key[:, part] @ query[i, part] / math.sqrt(size)
            if bias is not None:
                scores = scores + gate(query[i, part], state, at, h) * bias[h, i]
            heads.append(torch.softmax(scores, dim=0) @ value[:, part])
        rows.append(torch.cat(heads))
    return linear(torch.stack(rows), state, f"{at}out_proj")


def gate(query: Tensor, state: dict[str, Tensor], at: str, head: int) -> Tensor | float:
    if f"{at}grep_linear.weight" not in state:
        return 1.0
    eight = linear(query, state, f"{at}grep_linear")
    first, second = torch.sigmoid(eight[:4].sum()), torch.sigmoid(eight[4:].sum())
    return first * (second * state[f"{at}grep_a"][0, head, 0, 0] - 1.0) + 2.0


def reference(state: dict[str, Tensor], waveform: Tensor, *, deep_norm: bool = True) -> list[Tensor]:
    """Hidden states (columns, 8 x width) of one utterance."""
    x = with_positions(patch_tokens(state, waveform), state)
    bias = position_bias(state, x.size(0))
    scale = (2 * BLOCKS) ** 0.25 if deep_norm else 1.0
    states = [x]
    for block in range(BLOCKS):
        at = f"encoder.layers.{block}."
        x = norm(x * scale + attention(x, state, f"{at}self_attn.", bias), state, f"{at}self_attn_layer_norm")
        hidden = F.gelu(linear(x, state, f"{at}fc1"))
        x = norm(x * scale + linear(hidden, state, f"{at}fc2"), state, f"{at}final_layer_norm")
        states.append(x)
    return [torch.stack([s[8 * t : 8 * t + 8].reshape(-1) for t in range(len(s) // 8)]) for s in states]


def noise(samples: int) -> Tensor:
    waveform = torch.randn(1, samples, generator=torch.Generator().manual_seed(1))
    return 0.01 + waveform * torch.linspace(0.02, 0.4, samples)


VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "one width": {"embed_dim": WIDTH, "conv_bias": True},
    "no gate": {"gru_rel_pos": False},
    "no bias": {"relative_position_embedding": False, "gru_rel_pos": False, "deep_norm": False},
}


@pytest.mark.parity("Microsoft's .pt ({variant})", "a slow reference")
@pytest.mark.parametrize(("variant", "frames"), [("published", 96), *((variant, 45) for variant in VARIANTS)])
def test_checkpoints_give_the_numbers_of_the_reference(variant: str, frames: int, tmp_path: Path) -> None:
    changes = VARIANTS[variant]
    state = microsofts_state(changes)
    torch.save({"cfg": {**SETTINGS, **changes}, "model": state}, tmp_path / "BEATs_iter3.pt")
    upstream = load_upstream(tmp_path / "BEATs_iter3.pt")
    assert (upstream.family, upstream.frame_rate) == ("beats", 6.25)
    waveform = noise(400 + 160 * (frames - 1) + 99)
    with torch.no_grad():
        ours = upstream(waveform).hidden_states
    theirs = reference(state, waveform, deep_norm=changes.get("deep_norm", True))
    assert len(ours) == len(theirs) == BLOCKS + 1
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a[0], b, rtol=0, atol=1e-4)


@pytest.mark.parity("Microsoft's .pt, padded batch", "a slow reference")
def test_padded_batches_give_the_numbers_of_the_reference(tmp_path: Path) -> None:
    state = microsofts_state()
    torch.save({"cfg": SETTINGS, "model": state}, tmp_path / "beats.pt")
    upstream = load_upstream(tmp_path / "beats.pt")
    waveform, lengths = noise(14_000), [14_000, 9_001, 2_800]
    with torch.no_grad():
        batch = upstream(waveform.expand(3, -1), torch.tensor(lengths))
    assert batch.lengths.tolist() == [5, 3, 1]
    for row, length in enumerate(lengths):
        for a, b in zip(batch.hidden_states, reference(state, waveform[:, :length]), strict=True):
            torch.testing.assert_close(a[row, : b.size(0)], b, rtol=0, atol=1e-4)


def test_fine_tuned_models_load_without_their_head(tmp_path: Path) -> None:
    state = microsofts_state()
    head = {"predictor.weight": torch.zeros(527, WIDTH), "predictor.bias": torch.zeros(527)}
    settings = {**SETTINGS, "finetuned_model": True, "predictor_class": 527}
    content = {"cfg": settings, "model": {**state, **head}, "label_dict": {0: "/m/09x0r"}}
    torch.save(content, tmp_path / "finetuned.pt")
    torch.save({"cfg": SETTINGS, "model": state}, tmp_path / "pretrained.pt")
    one, other = (load_upstream(tmp_path / f"{name}.pt") for name in ("finetuned", "pretrained"))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


def test_presets_have_the_published_size() -> None:
    with torch.device("meta"):
        model = build(PRESETS["beats_iter3_plus_as2m"])
        block = torch.nn.TransformerEncoderLayer(768, 12, 3072)  # as many weights, in another order
    patches = 512 * 256 + 2 * 512 + 512 * 768 + 768
    positions = 768 * 48 * 128 + 128 + 768 + 2 * 768
    gates = 12 * (64 * 8 + 8 + 12) + 320 * 12
    expected = patches + positions + gates + 12 * sum(p.numel() for p in block.parameters())
    assert sum(p.numel() for p in model.parameters()) == expected
    assert expected // 1_000_000 == 90


def test_what_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    path, state = tmp_path / "bad.pt", microsofts_state()
    torch.save({"cfg": {**SETTINGS, "layer_norm_first": True}, "model": state}, path)
    with pytest.raises(ConfigError, match=r"layer_norm_first.*bad\.pt"):
        load_upstream(path)
    torch.save({"cfg": SETTINGS, "model": {**state, "quantize.embedding.weight": torch.zeros(4, 2)}}, path)
    with pytest.raises(SpeechsslError, match=r"bad\.pt is a tokenizer"):
        load_upstream(path)
    del state["encoder.layers.1.fc1.weight"]
    torch.save({"cfg": SETTINGS, "model": state}, path)
    with pytest.raises(SpeechsslError, match=r"bad\.pt.*lack 'encoder\.blocks\.1\.fc1\.weight'"):
        load_upstream(path)
