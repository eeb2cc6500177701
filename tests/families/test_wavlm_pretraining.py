"""What WavLM's pre-training mixes into utterances, against the paper's algorithm one utterance at a time."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from speechssl.augment.utterance_mixing import MixingConfig, mix_utterances
from speechssl.data.batching import make_generator
from speechssl.errors import ConfigError
from speechssl.loading import build_upstream
from speechssl.objective import Labelling, PretrainInputs
from speechssl.train.run import pretrain_config
from upstreams.wavlm.config import PRESETS
from upstreams.wavlm.pretrain import WavLMPretrainConfig, WavLMPretraining

ALWAYS = MixingConfig(prob=1.0)
LENGTHS = torch.tensor([4_000, 2_500, 3_100, 900])


def waveforms(seed: int = 0, *, garbage: float = 0.0) -> Tensor:
    """(4, 4000) of different loudness; beyond LENGTHS is `garbage`."""
    level = torch.tensor([[0.5], [0.05], [0.2], [0.1]])
    waveform = level * torch.randn(4, 4_000, generator=make_generator(seed))
    return torch.where(torch.arange(4_000) < LENGTHS[:, None], waveform, garbage)


def slowly(waveform: Tensor, lengths: Tensor, config: MixingConfig, draws: Tensor, noise: Tensor | None) -> Tensor:
    """Chen et al. 2022, algorithm 1, from the draws (7, B) of U[0, 1)."""
    mixed = waveform.clone()
    size = len(lengths)
    for row in range(size):
        chosen, noisy, partner, share, place, other_place, ratio = draws[:, row].tolist()
        if chosen >= config.prob:
            continue
        if noise is not None and noisy < config.noise_prob:
            other, low, high = noise[row, : lengths[row]], config.low_noise_snr, config.high_noise_snr
        elif size > 1:
            index = (row + 1 + math.floor(partner * (size - 1))) % size
            other, low, high = waveform[index, : lengths[index]], config.low_snr, config.high_snr
        else:
            continue
        primary = waveform[row, : lengths[row]]
        length = math.floor(share * (min(int(config.max_share * len(primary)), len(other)) + 1))
        start = math.floor(place * (len(primary) - length + 1))
        other_start = math.floor(other_place * (len(other) - length + 1))
        energy, other_energy = primary.square().mean().item(), other.square().mean().item()
        snr = low + ratio * (high - low)
        gain = math.sqrt(energy / (10 ** (snr / 10) * other_energy)) if other_energy else 0.0
        mixed[row, start : start + length] += gain * other[other_start : other_start + length]
    return mixed


@pytest.mark.parametrize("with_noise", [False, True])
@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
def test_mixing_is_the_papers_algorithm(prob: float, with_noise: bool) -> None:
    config = MixingConfig(prob=prob, noise_prob=0.5)
    waveform = waveforms(garbage=9.0)
    noise = None
    if with_noise:  # as long as its utterance
        inside = torch.arange(4_000) < LENGTHS[:, None]
        noise = torch.where(inside, 0.3 * torch.randn(4, 4_000, generator=make_generator(7)), 0.0)
    for seed in range(20):
        draws = torch.rand(7, 4, generator=make_generator(seed), dtype=torch.float64)
        mixed = mix_utterances(waveform, LENGTHS, config, generator=make_generator(seed), noise=noise)
        torch.testing.assert_close(mixed, slowly(waveform, LENGTHS, config, draws, noise), rtol=0, atol=1e-5)


def test_at_most_half_of_a_utterance_is_mixed_and_its_padding_never() -> None:
    waveform = waveforms(garbage=9.0)
    shares = []
    for seed in range(100):
        changed = mix_utterances(waveform, LENGTHS, ALWAYS, generator=make_generator(seed)) != waveform
        assert not (changed & (torch.arange(4_000) >= LENGTHS[:, None])).any()
        shares.append(changed.sum(dim=1) / LENGTHS)
    share = torch.stack(shares)
    assert share.max() <= 0.5
    # The mean of U{0..n/2}: a quarter; the second and third have the short fourth as partner at times.
    assert share[:, 0].mean().item() == pytest.approx(0.21, abs=0.04)


def test_the_energy_ratio_lies_in_its_range() -> None:
    waveform = waveforms()
    for low, high in ((-5.0, -5.0), (12.0, 12.0)):
        config = MixingConfig(prob=1.0, low_snr=low, high_snr=high, max_share=1.0)
        two, lengths = waveform[:2, :2_500], torch.tensor([2_500, 2_500])
        for seed in range(5):
            added = mix_utterances(two, lengths, config, generator=make_generator(seed)) - two
            length = int((added[0] != 0).sum())
            if length > 1_000:  # long enough for its energy to be about that of the whole
                ratio = 10 * math.log10(two[0].square().mean() / (added[0].square().sum() / length))
                assert ratio == pytest.approx(low, abs=1.0)


def test_the_share_of_mixed_utterances_is_the_probability() -> None:
    waveform, lengths = torch.randn(2_000, 20, generator=make_generator(0)), torch.full((2_000,), 20)
    config = MixingConfig(prob=0.2, max_share=1.0)
    mixed = mix_utterances(waveform, lengths, config, generator=make_generator(1))
    # A stretch of length 0 (1 of 21) leaves an utterance as it was.
    assert (mixed != waveform).any(dim=1).float().mean().item() == pytest.approx(0.2 * 20 / 21, abs=0.03)


def test_one_utterance_alone_is_mixed_with_noise_only() -> None:
    waveform, lengths = waveforms()[:1], LENGTHS[:1]
    config = MixingConfig(prob=1.0, noise_prob=1.0)
    assert torch.equal(mix_utterances(waveform, lengths, config, generator=make_generator(3)), waveform)
    noise = torch.randn(1, 4_000, generator=make_generator(9))
    assert not torch.equal(
        mix_utterances(waveform, lengths, config, generator=make_generator(3), noise=noise), waveform
    )


def test_silence_mixes_in_nothing_and_gives_no_infinities() -> None:
    silent = torch.zeros(2, 100)
    assert torch.equal(mix_utterances(silent, torch.tensor([100, 60]), ALWAYS, generator=make_generator(0)), silent)


@pytest.mark.parametrize("change", [{"prob": 1.1}, {"noise_prob": -0.1}, {"max_share": 2.0}, {"low_snr": 6.0}])
def test_settings_that_make_no_sense_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"`{next(iter(change))}`"):
        MixingConfig(**change)


def objective(**changes: object) -> WavLMPretraining:
    config = replace(PRESETS["wavlm_tiny"], width=32, heads=4, ffn_width=48, depth=2, pos_kernel=7)
    settings = replace(WavLMPretrainConfig(final_dim=16), **changes)  # type: ignore[arg-type]  # a test's shorthand
    with torch.random.fork_rng():
        torch.manual_seed(1)
        upstream = build_upstream("wavlm", config, seed=0)
        return WavLMPretraining(upstream, settings, Labelling((7,), (50.0,))).eval()  # type: ignore[arg-type]


def inputs() -> PretrainInputs:
    waveform = 0.1 * torch.randn(3, 16_000, generator=make_generator(0))
    codes = torch.randint(7, (3, 50), generator=make_generator(1))
    return PretrainInputs(waveform, torch.tensor([16_000, 12_000, 9_000]), (codes,))


def test_the_labels_stay_those_of_the_clean_utterance() -> None:
    """The loss is HuBERT's of the mixed waveform with the labels that were given."""
    mixing = objective(mixing=ALWAYS)
    plain = objective(mixing=MixingConfig())
    plain.load_state_dict(mixing.state_dict())
    given = inputs()
    generator, same = make_generator(5), make_generator(5)
    mixed = mix_utterances(given.waveform, given.lengths, ALWAYS, generator=same)
    expected = plain(replace(given, waveform=mixed), same)
    output = mixing(given, generator)
    torch.testing.assert_close(output.loss_sum, expected.loss_sum, rtol=1e-6, atol=1e-4)
    clean = plain(given, make_generator(5))
    assert (output.loss_sum - clean.loss_sum).abs() > 1e-2


def test_noise_is_mixed_in_where_it_is_given() -> None:
    noisy = objective(mixing=MixingConfig(prob=1.0, noise_prob=1.0))
    given = inputs()
    noise = torch.randn(3, 16_000, generator=make_generator(2))
    one, two = (noisy(replace(given, noise=n), make_generator(5)).loss_sum for n in (noise, 0.5 * noise.flip(1)))
    assert (one - two).abs() > 1e-3


def test_the_presets_mix_a_fifth_of_the_utterances() -> None:
    for name, dim in (("wavlm_tiny", 256), ("wavlm_base", 256), ("wavlm_base_plus", 256), ("wavlm_large", 768)):
        config = pretrain_config(name)[1].objective
        assert (config.mixing.prob, config.mixing.max_share, config.final_dim) == (0.2, 0.5, dim)
        assert (config.mixing.low_snr, config.mixing.high_snr) == (-5.0, 5.0)
        assert (config.mixing.low_noise_snr, config.mixing.high_noise_snr) == (-5.0, 20.0)
    assert PRESETS["wavlm_tiny"].relative_buckets == 320
