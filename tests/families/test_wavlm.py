"""WavLM against transformers and torchaudio, and its gated relative position bias against a slow reference."""

import math
from pathlib import Path

import pytest
import torch
import torchaudio
from contextual_parity import LARGE, SMALL, check_padded_parity, check_parity, check_round_trip, noise, their_model
from torch import Tensor
from torchaudio.models.wav2vec2.wavlm_attention import WavLMSelfAttention
from transformers import WavLMConfig, WavLMForAudioFrameClassification, WavLMForCTC, WavLMForXVector, WavLMModel

from speechssl.encoder import attention
from speechssl.encoder.attention import SelfAttention
from speechssl.encoder.relative_bias import RelativePositionBias, distance_buckets
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.loading import build_upstream, load_upstream
from upstreams.wavlm.config import PRESETS
from upstreams.wavlm.config import WavLMConfig as OurConfig
from upstreams.wavlm.convert import FORMATS
from upstreams.wavlm.model import build

NEAR = {"num_buckets": 32, "max_bucket_distance": 60}
"""So that a few seconds reach every bucket."""


@pytest.mark.parity("transformers", "transformers")
@pytest.mark.parametrize("changes", [{}, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("near", [{}, NEAR], ids=["published buckets", "few buckets"])
def test_hidden_states_equal_transformers(changes: dict[str, object], near: dict[str, int], tmp_path: Path) -> None:
    model = their_model(WavLMModel, WavLMConfig, **changes | near)
    model.save_pretrained(tmp_path)
    upstream = load_upstream(tmp_path)
    assert (upstream.family, upstream.normalize) == ("wavlm", bool(changes))
    check_parity(model, upstream, noise(60_000))


def test_frames_beyond_the_farthest_bucket_equal_transformers(tmp_path: Path) -> None:
    model = their_model(WavLMModel, WavLMConfig, num_hidden_layers=1)
    model.save_pretrained(tmp_path)
    check_parity(model, load_upstream(tmp_path), noise(320 * 850))


@pytest.mark.parity("transformers, padded batch", "transformers")
def test_padded_batches_equal_transformers(tmp_path: Path) -> None:
    model = their_model(WavLMModel, WavLMConfig, **LARGE)
    model.save_pretrained(tmp_path)
    check_padded_parity(model, load_upstream(tmp_path))


@pytest.mark.parametrize("changes", [{}, LARGE], ids=["base", "large"])
def test_export_gives_transformers_its_own_model_back(changes: dict[str, object], tmp_path: Path) -> None:
    again = check_round_trip(their_model(WavLMModel, WavLMConfig, **changes | NEAR), tmp_path)
    assert (again.config.num_buckets, again.config.max_bucket_distance) == (32, 60)


@pytest.mark.parametrize("kind", [WavLMForCTC, WavLMForXVector, WavLMForAudioFrameClassification])
def test_models_with_heads_are_read(kind: type[WavLMForCTC], tmp_path: Path) -> None:
    model = their_model(kind, WavLMConfig, vocab_size=12, tdnn_dim=(16, 16), tdnn_kernel=(3, 1), tdnn_dilation=(1, 1))
    model.save_pretrained(tmp_path)
    check_parity(model.wavlm, load_upstream(tmp_path))


@pytest.mark.parametrize(
    ("name", "builder", "count"),
    [
        ("wavlm_base", torchaudio.models.wavlm_base, 94_381_168),
        ("wavlm_base_plus", torchaudio.models.wavlm_base, 94_381_168),
        ("wavlm_large", torchaudio.models.wavlm_large, 315_452_096),
    ],
)
def test_presets_have_the_published_shapes(name: str, builder: object, count: int) -> None:
    with torch.device("meta"):
        ours, theirs = build(PRESETS[name]), builder()  # type: ignore[operator]  # a builder of torchaudio
    parameters = sum(p.numel() for p in ours.parameters()) - ours.mask_embedding.numel()
    assert parameters == sum(p.numel() for p in theirs.parameters()) == count


@pytest.mark.parametrize(("buckets", "farthest"), [(320, 800), (320, 1280), (32, 128)])
def test_distances_fall_into_the_buckets_of_torchaudio(buckets: int, farthest: int) -> None:
    reference = WavLMSelfAttention(8, 1, num_buckets=buckets, max_distance=farthest)
    distances = torch.arange(-5_000, 5_001)
    assert torch.equal(distance_buckets(distances, buckets, farthest), reference._relative_positions_bucket(distances))


def test_the_bias_is_that_of_key_minus_query_with_keys_running_backwards() -> None:
    bias = RelativePositionBias(3, num_buckets=32, max_distance=20)
    with torch.no_grad():
        positions = bias(27)
        for query, back in ((0, 0), (26, 0), (3, 20), (13, 13)):
            bucket = distance_buckets(torch.tensor(26 - back - query), 32, 20)
            assert torch.equal(positions[:, query, back], bias.bias.weight[bucket])


def slow_attention(module: SelfAttention, bias: RelativePositionBias, x: Tensor, attended: Tensor | None) -> Tensor:
    """Chen et al. 2022, eq. 4-8, one query at a time."""
    B, T, D = x.shape
    H, width = module.heads, D // module.heads
    query, key, value = module.qkv(x).view(B, T, 3, H, width).unbind(2)
    out = torch.empty(B, T, H, width, dtype=x.dtype)
    for b in range(B):
        for i in range(T):
            for h in range(H):
                raw = x[b, i, h * width : (h + 1) * width]
                assert module.gate is not None
                sums = module.gate.projection(raw).view(2, 4).sum(1)
                update, reset = torch.sigmoid(sums)
                gate = update * (reset * module.gate.scale[0, h, 0, 0] - 1) + 2
                scores = key[b, :, h] @ query[b, i, h] / math.sqrt(width)
                for j in range(T):
                    bucket = distance_buckets(torch.tensor(j - i), bias.bias.num_embeddings, bias.max_distance)
                    scores[j] += gate * bias.bias.weight[bucket, h]
                if attended is not None:
                    scores = scores.masked_fill(~attended[b, 0, 0], -torch.inf)
                out[b, i, h] = scores.softmax(0) @ value[b, :, h]
    return module.output(out.reshape(B, T, D))  # type: ignore[no-any-return]  # nn.Module returns Any


def gated(dtype: torch.dtype = torch.float64) -> tuple[SelfAttention, RelativePositionBias, Tensor, Tensor]:
    """An attention, its bias, an input (3, 11, 16) and the frames that may be attended to."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = SelfAttention(16, heads=2, gated=True).to(dtype)
        bias = RelativePositionBias(2, num_buckets=16, max_distance=8).to(dtype)
        assert module.gate is not None
        torch.nn.init.normal_(module.gate.scale, mean=1.0)
        torch.nn.init.normal_(module.gate.projection.weight)
        x = torch.randn(3, 11, 16, dtype=dtype)
    attended = torch.arange(11)[None, :] < torch.tensor([11, 5, 8])[:, None]
    return module, bias, x, attended[:, None, None, :]


@pytest.mark.parametrize("chunk", [1, 30, 11 * 11, 2 * 11 * 11 + 5, 11 * 11 * 4, 1 << 20])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_and_its_gradients_are_those_of_a_slow_reference_in_pieces_of_any_size(
    chunk: int, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, bias, x, attended = gated()
    wanted = attended if padded else None
    slow = slow_attention(module, bias, x, wanted)
    parameters = [*module.parameters(), *bias.parameters()]
    slow_grads = torch.autograd.grad(slow.square().sum(), parameters)
    monkeypatch.setattr(attention, "CHUNK", chunk)
    fast = module(x, wanted, bias(11))
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
    grads = torch.autograd.grad(fast.square().sum(), parameters)
    for a, b in zip(grads, slow_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("with_gate", [True, False])
def test_attention_equals_that_of_torchaudio_with_a_gate_and_without(with_gate: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        theirs = WavLMSelfAttention(
            16, 2, has_relative_attention_bias=True, num_buckets=32, max_distance=128, gru_rel_pos=with_gate
        ).double()
        x = torch.randn(2, 300, 16, dtype=torch.float64)
    ours = SelfAttention(16, heads=2, gated=with_gate).double()
    bias = RelativePositionBias(2, num_buckets=32, max_distance=128).double()
    assert theirs.rel_attn_embed is not None
    bias.bias.load_state_dict(theirs.rel_attn_embed.state_dict())
    ours.qkv.weight.copy_(theirs.attention.in_proj_weight)
    ours.qkv.bias.copy_(theirs.attention.in_proj_bias)
    ours.output.load_state_dict(theirs.attention.out_proj.state_dict())
    if ours.gate is not None:
        ours.gate.projection.load_state_dict(theirs.gru_rel_pos_linear.state_dict())
        ours.gate.scale.copy_(theirs.gru_rel_pos_const)
    torch.testing.assert_close(ours(x, None, bias(300)), theirs(x)[0], rtol=0, atol=1e-10)


def test_checkpointed_activations_give_the_same_gradients() -> None:
    small = {"width": 16, "heads": 2, "depth": 2, "ffn_width": 16, "conv_channels": 8, "pos_groups": 4}
    still = {"dropout": 0.0, "attention_dropout": 0.0, "input_dropout": 0.0}
    upstream = build_upstream("wavlm", OurConfig(**small, **still), seed=0)
    grads = []
    for checkpointed in (False, True):
        upstream.encoder.checkpoint_activations = checkpointed
        loss = upstream(noise(4_000)).hidden_states[-1].square().sum()
        used = [upstream.encoder.relative_bias.bias.weight, upstream.encoder.blocks[0].attention.gate.scale]
        grads.append(torch.autograd.grad(loss, used))
    for a, b in zip(*grads, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_fused_attention_with_the_whole_bias_gives_the_same(padded: bool) -> None:
    module, bias, x, attended = gated()
    assert module.gate is not None
    positions, wanted = bias(11), attended.flip(3) if padded else None
    whole = attention.dense_bias(module.gate(x), positions, wanted)
    assert whole.shape == (3, 2, 11, 11)
    assert whole.stride(2) % 16 == 0
    query, key, value = module.qkv(x).view(3, 11, 3, 2, 8).permute(2, 0, 3, 1, 4)
    fused = torch.nn.functional.scaled_dot_product_attention(query, key.flip(2), value.flip(2), attn_mask=whole)
    expected = module(x, attended if padded else None, positions)
    torch.testing.assert_close(module.output(fused.transpose(1, 2).reshape(3, 11, 16)), expected, rtol=0, atol=1e-10)


def test_no_bias_as_large_as_all_attention_weights_exists_on_a_cpu() -> None:
    module, bias, _, _ = gated(torch.float32)
    x = torch.randn(2, 1_500, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        module.eval()(x, None, bias(1_500))
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < 0.3 * (2 * 2 * 1_500 * 1_500 * 4)


def test_weights_without_a_gate_are_refused_by_the_name_in_the_file(tmp_path: Path) -> None:
    model = their_model(WavLMModel, WavLMConfig)
    model.config.save_pretrained(tmp_path)
    state = model.state_dict()
    del state["encoder.layers.1.attention.gru_rel_pos_const"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(SpeechsslError, match=r"lack 'encoder\.layers\.1\.attention\.gru_rel_pos_const'"):
        load_upstream(tmp_path)


def test_what_transformers_has_no_counterpart_of_is_refused() -> None:
    for changes, word in (({"relative_gate": False}, "relative_gate"), ({"relative_buckets": 0}, "relative_buckets")):
        with pytest.raises(ConfigError, match=word):
            FORMATS.write_transformers(OurConfig(**changes), {})


def test_the_gate_can_be_left_out() -> None:
    small = {"width": 16, "heads": 2, "depth": 1, "ffn_width": 16, "conv_channels": 8}
    upstream = build_upstream("wavlm", OurConfig(**small, relative_gate=False), seed=0).eval()
    assert not any("gate" in name for name in upstream.state_dict())
    with torch.no_grad():
        before = upstream(noise()).hidden_states[1]
        upstream.encoder.relative_bias.bias.weight.add_(torch.linspace(0, 5, 320)[:, None])
        assert not torch.allclose(before, upstream(noise()).hidden_states[1], atol=1e-3)


def test_small_models_of_the_tests_have_a_bias_that_matters(tmp_path: Path) -> None:
    model = their_model(WavLMModel, WavLMConfig)
    model.save_pretrained(tmp_path)
    upstream = load_upstream(tmp_path)
    with torch.no_grad():
        before = upstream(noise()).hidden_states[-1]
        upstream.encoder.relative_bias.bias.weight.zero_()
        assert (before - upstream(noise()).hidden_states[-1]).abs().max() > 0.02
    assert SMALL["num_hidden_layers"] == len(upstream.encoder.blocks)
