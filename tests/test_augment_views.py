"""Disturbed views of waveforms: noise, rooms and pitch."""

import math

import pytest
import torch
import torchaudio.functional as AF
from torch import Tensor

from speechssl.augment.additive import add_noise, coloured_noise
from speechssl.augment.config import CorruptConfig
from speechssl.augment.corrupt import corrupt
from speechssl.augment.pitch import shift_pitch
from speechssl.augment.reverb import reverberate
from speechssl.data.batching import make_generator

RATE = 16_000
LENGTHS = torch.tensor([16_000, 12_000, 9_000])


def speech() -> Tensor:
    """Chords of different pitch, 0 beyond their lengths."""
    time = torch.arange(16_000) / RATE
    rows = [sum(torch.sin(2 * math.pi * f * k * time) / k for k in (1, 2, 3)) for f in (110.0, 180.0, 250.0)]
    return 0.1 * torch.stack(rows) * (torch.arange(16_000) < LENGTHS[:, None])  # type: ignore[arg-type]


def test_noise_has_the_power_that_was_asked_for_over_the_valid_samples() -> None:
    clean, snr = speech(), torch.tensor([0.0, 10.0, 20.0])
    mixed = add_noise(clean, LENGTHS, coloured_noise(clean, generator=make_generator(0)), snr_db=snr)
    found = 10 * torch.log10(clean.square().sum(dim=1) / (mixed - clean).square().sum(dim=1))
    torch.testing.assert_close(found, snr, rtol=0, atol=1e-3)
    assert not bool(mixed[1, 12_000:].any())


def test_rooms_keep_power_and_timing_and_ring_after_a_sound() -> None:
    click = torch.zeros(2, 8000)
    click[:, 1000] = 1.0
    lengths = torch.tensor([8000, 8000])
    rt60, wet = torch.tensor([0.2, 0.6]), torch.tensor([0.2, 0.5])
    heard = reverberate(click, lengths, sample_rate=RATE, rt60=rt60, wet=wet, generator=make_generator(0))
    assert torch.equal(heard.abs().argmax(dim=1), torch.tensor([1000, 1000]))
    assert float(heard[:, :1000].abs().max()) < 1e-5
    torch.testing.assert_close(heard.square().sum(dim=1), torch.ones(2), rtol=1e-4, atol=1e-4)
    tail = heard[:, 1001:].square()
    torch.testing.assert_close(tail.sum(dim=1) / heard[:, 1000].square(), wet, rtol=0.02, atol=0)
    early, late = tail[:, :800].sum(dim=1), tail[:, 800:1600].sum(dim=1)  # 50 ms each
    expected = 60 * 0.05 / rt60
    torch.testing.assert_close(10 * torch.log10(early / late), expected, rtol=0, atol=1.5)


@pytest.mark.parametrize("semitones", [-2, 3])
def test_pitch_shifts_as_torchaudio_does(semitones: int) -> None:
    waveform = speech()[:1]
    ours = shift_pitch(waveform, LENGTHS[:1], cents=torch.tensor([100.0 * semitones]), most=300.0)
    theirs = AF.pitch_shift(waveform, RATE, semitones)
    theirs = theirs * torch.sqrt(waveform.square().sum() / theirs.square().sum())
    for inside in (slice(2000, 8000), slice(8000, 14_000)):
        cosine = torch.nn.functional.cosine_similarity(ours[:, inside], theirs[:, inside])
        assert float(cosine) > 0.99


def test_pitch_moves_by_each_utterances_own_amount_and_nothing_else_does() -> None:
    cents = torch.tensor([0.0, 250.0, -300.0])
    shifted = shift_pitch(speech(), LENGTHS, cents=cents, most=300.0)
    assert not bool(shifted[2, 9000:].any())
    torch.testing.assert_close(shifted[0, :-200], speech()[0, :-200], rtol=0, atol=2e-3)  # its end is cut off hard
    for row, size, pitch, shift in zip(shifted, LENGTHS.tolist(), (110.0, 180.0, 250.0), cents.tolist(), strict=True):
        bins = torch.fft.rfft(row[:size] * torch.hann_window(size)).abs()
        found = float(bins.argmax()) * RATE / size
        assert found == pytest.approx(pitch * 2 ** (shift / 1200), abs=2.0)
    torch.testing.assert_close(shifted.square().sum(dim=1), speech().square().sum(dim=1))


def test_a_view_depends_on_its_generator_and_is_as_often_disturbed_as_asked() -> None:
    config = CorruptConfig(pitch_prob=0.3, reverb_prob=0.3, white_prob=0.3, noise_prob=0.3)
    clean = speech()[:1].expand(200, -1)[:, :3200].contiguous()
    lengths = torch.full((200,), 3200)
    views = [
        corrupt(clean, lengths, None, config=config, sample_rate=RATE, generator=make_generator(s)) for s in (1, 1)
    ]
    assert torch.equal(*views)
    untouched = (views[0] == clean).all(dim=1).float().mean()
    assert float(untouched) == pytest.approx(0.7**4, abs=0.1)
    only = CorruptConfig(noise_prob=1.0, noise_snr_db=(6.0, 6.0))
    given = torch.randn(200, 3200, generator=make_generator(3))
    noisy = corrupt(clean, lengths, given, config=only, sample_rate=RATE, generator=make_generator(1))
    cosine = torch.nn.functional.cosine_similarity(noisy - clean, given)
    torch.testing.assert_close(cosine, torch.ones(200), rtol=0, atol=1e-4)
