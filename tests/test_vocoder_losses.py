"""Losses and discriminators of vocoders against loops and layers written out from the papers."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.vocoder.discriminators import Discriminators, PeriodDiscriminator, ScaleDiscriminator, add_weight_norm
from speechssl.vocoder.folder import folded_state
from speechssl.vocoder.hifigan import HifiGan, HifiGanConfig
from speechssl.vocoder.losses import adversarial_loss, discriminator_loss, feature_matching_loss, stft_loss


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _spectra(row: np.ndarray, n_fft: int, hop: int, window: int) -> list[np.ndarray]:
    """Magnitudes of centred frames, one after the other, in float64."""
    shape = np.zeros(n_fft)
    begin = (n_fft - window) // 2
    shape[begin : begin + window] = [0.5 - 0.5 * math.cos(2 * math.pi * n / window) for n in range(window)]
    padded = np.pad(row, n_fft // 2, mode="reflect")
    frames = [padded[t * hop : t * hop + n_fft] * shape for t in range(1 + len(row) // hop)]
    return [np.sqrt(np.maximum(np.abs(np.fft.rfft(frame)) ** 2, 1e-7)) for frame in frames]


def test_the_spectral_loss_is_that_of_a_loop_over_frames() -> None:
    found, target = 0.1 * _noise(2, 1500), 0.1 * _noise(2, 1500, seed=1)
    resolutions = ((256, 60, 150), (128, 25, 100))
    total = 0.0
    for resolution in resolutions:
        pairs = [
            (a, b)
            for ours, theirs in zip(found.double().numpy(), target.double().numpy(), strict=True)
            for a, b in zip(_spectra(ours, *resolution), _spectra(theirs, *resolution), strict=True)
        ]
        squares = sum(float(((b - a) ** 2).sum()) for a, b in pairs)
        norm = sum(float((b**2).sum()) for _, b in pairs)
        logs = [float(abs(np.log(b) - np.log(a)).mean()) for a, b in pairs]
        total += math.sqrt(squares / norm) + sum(logs) / len(logs)
    assert float(stft_loss(found, target, resolutions)) == pytest.approx(total / 2, abs=1e-5)


def test_the_spectral_loss_of_silence_is_finite_and_has_a_gradient() -> None:
    silence, noise = torch.zeros(1, 4096), (0.01 * _noise(1, 4096)).requires_grad_()
    loss = stft_loss(noise, silence)
    loss.backward()
    assert 0 < float(loss.detach()) < 100
    assert noise.grad is not None and bool(torch.isfinite(noise.grad).all()) and float(noise.grad.abs().sum()) > 0
    zero = torch.zeros(1, 4096, requires_grad=True)
    stft_loss(zero, silence).backward()
    assert zero.grad is not None and float(zero.grad.abs().sum()) == 0.0


def test_the_games_are_those_of_the_paper() -> None:
    real, fake = [_noise(2, 7), _noise(2, 4, seed=1)], [_noise(2, 7, seed=2), _noise(2, 4, seed=3)]
    taught = played = 0.0
    for r, f in zip(real, fake, strict=True):
        taught += sum((1 - x) ** 2 for x in r.flatten().tolist()) / r.numel()
        taught += sum(x**2 for x in f.flatten().tolist()) / f.numel()
        played += sum((1 - x) ** 2 for x in f.flatten().tolist()) / f.numel()
    assert float(discriminator_loss(real, fake)) == pytest.approx(taught, abs=1e-5)
    assert float(adversarial_loss(fake)) == pytest.approx(played, abs=1e-5)


def test_feature_matching_sums_the_mean_distance_of_each_map() -> None:
    real = [[_noise(2, 3, 5), _noise(2, 4, 2, seed=1)], [_noise(2, 1, seed=2)]]
    fake = [[_noise(2, 3, 5, seed=3), _noise(2, 4, 2, seed=4)], [_noise(2, 1, seed=5)]]
    expected = 0.0
    for one, two in zip([m for ms in real for m in ms], [m for ms in fake for m in ms], strict=True):
        pairs = zip(one.flatten().tolist(), two.flatten().tolist(), strict=True)
        expected += sum(abs(a - b) for a, b in pairs) / one.numel()
    assert float(feature_matching_loss(real, fake)) == pytest.approx(expected, abs=1e-5)


def test_discriminators_have_as_many_parameters_as_the_official_ones() -> None:
    with torch.device("meta"):
        judges = Discriminators()
    plain = [sum(v.numel() for v in folded_state(part).values()) for part in (judges.periods, judges.scales)]
    widths = [1, 32, 128, 512, 1024, 1024]
    one = sum(a * b * 5 + b for a, b in pairwise(widths)) + 1024 * 3 + 1
    layers = [
        (1, 128, 15, 1), (128, 128, 41, 4), (128, 256, 41, 16), (256, 512, 41, 16), (512, 1024, 41, 16),
        (1024, 1024, 41, 16), (1024, 1024, 5, 1), (1024, 1, 3, 1),
    ]  # fmt: skip
    scale = sum(a // groups * b * kernel + b for a, b, kernel, groups in layers)
    assert plain == [5 * one, 3 * scale]
    assert [round(count / 1e6, 1) for count in plain] == [41.1, 29.6]


def test_a_period_discriminator_convolves_down_columns_of_every_pth_sample() -> None:
    torch.manual_seed(0)
    judge = PeriodDiscriminator(3, divisor=8).eval()
    state = folded_state(judge)
    waveform = _noise(2, 50)
    score, maps = judge(waveform)
    padded = F.pad(waveform[:, None], (0, 1), mode="reflect")[:, 0]  # 51 = 17 * 3
    columns = []
    for column in range(3):
        x = padded[:, column::3][:, None]
        for layer in range(5):
            stride = 3 if layer < 4 else 1
            x = F.conv1d(x, state[f"convs.{layer}.weight"][..., 0], state[f"convs.{layer}.bias"], stride, 2)
            x = torch.where(x > 0, x, 0.1 * x)
        columns.append(F.conv1d(x, state["conv_post.weight"][..., 0], state["conv_post.bias"], 1, 1))
    torch.testing.assert_close(score, torch.stack(columns, dim=3).flatten(1), atol=1e-5, rtol=0)
    assert len(maps) == 6 and [m.size(1) for m in maps] == [4, 16, 64, 128, 128, 1]


def test_scales_are_means_of_four_samples_at_every_second() -> None:
    torch.manual_seed(0)
    judges = Discriminators(divisor=8).eval()
    waveform = _noise(1, 400)
    scores, maps = judges(waveform)
    assert (len(scores), len(maps)) == (8, 8)
    padded = F.pad(waveform, (2, 2))
    half = torch.stack([padded[:, 2 * t : 2 * t + 4].mean(dim=1) for t in range(201)], dim=1)
    torch.testing.assert_close(scores[6], judges.scales[1](half)[0], atol=1e-5, rtol=0)
    weight = folded_state(ScaleDiscriminator(spectral=True, divisor=8))["convs.6.weight"]
    singular = torch.linalg.svdvals(weight.flatten(1))
    assert float(singular.max()) == pytest.approx(1.0, abs=0.05)


def test_weight_normalisation_changes_no_number_and_folds_away() -> None:
    torch.manual_seed(0)
    generator = HifiGan(HifiGanConfig(channels=16)).eval()
    frames = _noise(1, 4, 80)
    before, names = generator(frames), set(generator.state_dict())
    add_weight_norm(generator)
    assert set(generator.state_dict()) != names
    torch.testing.assert_close(generator(frames), before, atol=1e-6, rtol=0)
    plain = HifiGan(HifiGanConfig(channels=16)).eval()
    plain.load_state_dict(folded_state(generator))
    torch.testing.assert_close(plain(frames), generator(frames), atol=1e-7, rtol=0)
