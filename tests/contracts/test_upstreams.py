"""The laws that hold for every registered upstream; a new family is tested here for nothing.

Models with weights are shrunk in depth and width; their structure (frontend, norms, order) stays.
"""

import dataclasses

import pytest
import torch

from speechssl.checkpoint import save_upstream
from speechssl.errors import AudioError, SpeechsslError
from speechssl.loading import build_upstream, load_upstream
from speechssl.registry import find_preset, list_shipped, list_upstreams

SHRINK = {"width": 64, "ffn_width": 96, "heads": 4, "depth": 3, "conv_channels": 32, "embed_width": 32}
"""What families call the sizes that don't change a model's structure."""


def shrunk(name, **changes):
    family, config = find_preset(name)
    fields = {f.name for f in dataclasses.fields(config)}
    return family, dataclasses.replace(config, **{k: v for k, v in (SHRINK | changes).items() if k in fields})


def small(name, **changes):
    family, config = shrunk(name, **changes)
    upstream = build_upstream(family, config, seed=0).eval()
    upstream.name = name
    # Fresh biases are 0 and fresh gains 1, which would hide a mistake in how they are used.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in upstream.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return upstream


STRUCTURES = {shrunk(name): name for name in sorted(list_upstreams(), reverse=True)}
"""One preset for each structure: those that differ in size alone, or in how they were trained, are one here."""


@pytest.fixture(scope="module", params=sorted(STRUCTURES.values()))
def upstream(request):
    return small(request.param)


@pytest.fixture(scope="module")
def shortest(upstream):
    """Samples of one frame."""
    return next(n for n in range(1, upstream.sample_rate) if int(upstream.output_lengths(torch.tensor([n]))) == 1)


@pytest.fixture(scope="module")
def lengths(shortest):
    return torch.tensor([12_000, 5_037, max(803, shortest)])


@pytest.fixture(scope="module")
def waveform():
    """Noise whose level and tilt change, so that statistics over padding or neighbours would be far off."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 12_000, generator=generator)
    level = torch.tensor([[0.3], [0.01], [0.1]])
    return level * noise * torch.linspace(0.2, 1.0, 12_000) + 0.02


@torch.no_grad()
def test_an_utterance_does_not_depend_on_its_batch(upstream, waveform, lengths):
    batch = upstream(waveform, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = upstream(waveform[row : row + 1, :length])
        assert batch.lengths[row] == alone.lengths[0]
        for together, single in zip(batch.hidden_states, alone.hidden_states, strict=True):
            difference = (together[row, : alone.lengths[0]] - single[0]).abs().max()
            assert difference <= 1e-5, f"utterance {row}"


@torch.no_grad()
def test_from_one_frame_to_thirty_seconds_the_batch_does_not_matter(upstream, shortest, monkeypatch):
    monkeypatch.setattr("speechssl.upstream.GROUP_SECONDS", 1_000.0)  # one batch, whatever the padding costs
    rate, ends = upstream.sample_rate, [0, -1]
    lengths = torch.tensor([30 * rate, int(7.3 * rate), rate, shortest])
    waveform = 0.1 * torch.randn(4, 30 * rate, generator=torch.Generator().manual_seed(0)) + 0.01
    batch = upstream(waveform, lengths, layers=ends)
    for row, length in enumerate(lengths.tolist()):
        alone = upstream(waveform[row : row + 1, :length], layers=ends)
        for together, single in zip(batch.hidden_states, alone.hidden_states, strict=True):
            assert (together[row, : single.size(1)] - single[0]).abs().max() <= 1e-5, f"utterance {row}"


@torch.no_grad()
def test_what_lies_in_the_padding_does_not_matter(upstream, waveform, lengths):
    inside = torch.arange(waveform.size(1)) < lengths[:, None]
    garbage = torch.where(inside, waveform, 7.0)
    for clean, dirty in zip(
        upstream(waveform * inside, lengths).hidden_states, upstream(garbage, lengths).hidden_states, strict=True
    ):
        assert torch.equal(clean, dirty)


@torch.no_grad()
def test_frames_beyond_the_lengths_are_zero(upstream, waveform, lengths):
    out = upstream(waveform, lengths)
    for state in out.hidden_states:
        assert state.shape[:2] == (3, int(out.lengths.max()))
        for row, frames in enumerate(out.lengths.tolist()):
            assert (state[row, frames:] == 0).all()


@torch.no_grad()
def test_lengths_are_the_frames_that_come_out(upstream, shortest):
    generator = torch.Generator().manual_seed(0)
    for samples in (shortest, shortest + 1, 3_201 + shortest, 4_005 + shortest, 8_000 + shortest):
        out = upstream(0.1 * torch.randn(1, samples, generator=generator))
        assert out.lengths.dtype == torch.int64
        assert out.hidden_states[0].size(1) == int(out.lengths)
        assert abs(int(out.lengths) - samples / upstream.sample_rate * out.frame_rate) <= 2.5
    assert [s.size(2) for s in out.hidden_states] == list(upstream.hidden_sizes)


def test_shorter_than_one_frame_is_an_error_that_says_which(upstream, shortest):
    assert upstream(torch.ones(1, shortest)).lengths.tolist() == [1]
    with pytest.raises(AudioError, match=r"Utterance 1 .*shorter than one frame"):
        upstream(torch.ones(2, shortest), torch.tensor([shortest, shortest - 1]))


@torch.no_grad()
def test_asking_for_a_layer_computes_nothing_above_it(upstream, waveform, lengths):
    every = upstream(waveform, lengths)
    blocks = list(getattr(getattr(upstream, "encoder", None), "blocks", []))
    calls = []
    hooks = [block.register_forward_hook(lambda *_, i=i: calls.append(i)) for i, block in enumerate(blocks)]
    for layer in range(len(upstream.hidden_sizes)):
        calls.clear()
        out = upstream(waveform, lengths, layers=[layer])
        assert calls == list(range(layer))
        assert out.hidden_states.layers == (layer,)
        assert torch.equal(out.hidden_states[layer], every.hidden_states[layer])
    for hook in hooks:
        hook.remove()
    negative = upstream(waveform, lengths, layers=[-1]).hidden_states
    assert torch.equal(negative[-1], every.hidden_states[len(upstream.hidden_sizes) - 1])


def test_unknown_layers_are_an_error(upstream, shortest):
    with pytest.raises(SpeechsslError, match="must lie in"):
        upstream(torch.ones(1, shortest), layers=[len(upstream.hidden_sizes)])


@torch.no_grad()
def test_evaluation_is_deterministic_and_leaves_the_random_state_alone(upstream, waveform, lengths):
    before = torch.random.get_rng_state()
    first, second = (upstream(waveform, lengths).hidden_states for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(before, torch.random.get_rng_state())


@torch.no_grad()
def test_saved_and_loaded_is_the_same_bit_for_bit(upstream, waveform, tmp_path, lengths):
    save_upstream(upstream, tmp_path)
    before = torch.random.get_rng_state()
    loaded = load_upstream(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    assert loaded.fingerprint() == upstream.fingerprint()
    assert loaded.config == upstream.config
    for key, value in upstream.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    for a, b in zip(upstream(waveform, lengths).hidden_states, loaded(waveform, lengths).hidden_states, strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_half_the_precision_is_close_to_full(upstream, waveform, tmp_path, lengths):
    save_upstream(upstream, tmp_path)
    half = load_upstream(tmp_path, dtype=torch.bfloat16)
    for a, b in zip(upstream(waveform, lengths).hidden_states, half(waveform, lengths).hidden_states, strict=True):
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.float().flatten(), dim=0) > 0.99


def test_gradients_reach_every_parameter_that_evaluation_uses(upstream, waveform, lengths):
    out = upstream(waveform, lengths)
    weights = dict(upstream.named_parameters())
    if not weights:
        assert not out.hidden_states[-1].requires_grad
        return
    grads = torch.autograd.grad(out.hidden_states[-1].square().sum(), list(weights.values()), allow_unused=True)
    unused = [name for name, grad in zip(weights, grads, strict=True) if grad is None or not grad.isfinite().all()]
    assert unused in ([], ["mask_embedding"]), "only training with masks uses the latter"


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("pre_norm", [False, True])
@torch.no_grad()
def test_every_mix_of_norms_keeps_the_first_law(norm, pre_norm, waveform):
    lengths = torch.tensor([12_000, 5_037, 803])
    upstream = small("hubert_base", conv_norm=norm, pre_norm=pre_norm, normalize=pre_norm)
    batch = upstream(waveform, lengths).hidden_states
    for row, length in enumerate(lengths.tolist()):
        alone = upstream(waveform[row : row + 1, :length]).hidden_states
        assert max((a[row, : b.size(1)] - b[0]).abs().max() for a, b in zip(batch, alone, strict=True)) <= 1e-5


def test_preset_names_begin_with_their_family():
    for name in set(list_upstreams()) - set(list_shipped()):
        family, _ = find_preset(name)
        assert name == family or name.startswith(f"{family}_")


def test_layers_count_from_either_end_and_must_exist(upstream):
    last = len(upstream.hidden_sizes) - 1
    assert upstream.resolve_layers(None) == frozenset(range(last + 1))
    assert upstream.resolve_layers([-1, 0, last]) == {0, last}
    with pytest.raises(SpeechsslError, match=rf"0\.\.{last}, but holds {last + 1}"):
        upstream.resolve_layers([last + 1])
    with pytest.raises(SpeechsslError, match="at least one"):
        upstream.resolve_layers([])
