"""The spectrogram baseline against torchaudio's port of Kaldi and S3PRL's recipe."""

import math

import pytest
import torch
from torch import Tensor
from torchaudio.compliance import kaldi

from speechssl.frontend.log_mel import LogMelConfig, LogSpectrum
from speechssl.loading import load_upstream


@pytest.fixture(scope="module")
def waveform() -> Tensor:
    """A tone and noise whose level rises from silence: frame energies on both sides of 1."""
    time = torch.arange(24_000) / 16_000
    noise = torch.randn(24_000, generator=torch.Generator().manual_seed(0))
    rise = torch.linspace(0, 1, 24_000) ** 2
    return (rise * (0.3 * torch.sin(2 * math.pi * 440 * time) + 0.05 * noise) + 0.01)[None]


@pytest.mark.parity("none", "torchaudio.compliance.kaldi")
def test_the_log_spectrum_equals_kaldi(waveform: Tensor) -> None:
    theirs = kaldi.spectrogram(waveform)
    ours = load_upstream("spectrogram_no_cmvn")(waveform).hidden_states[0][0]
    assert ours.shape == theirs.shape == (148, 257)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert (theirs[:, 0] == 0).any()
    assert (theirs[:, 0] > 1).any()


@pytest.mark.parity("none", "S3PRL's recipe")
def test_normalised_it_equals_s3prls_recipe_in_a_padded_batch(waveform: Tensor) -> None:
    batch = waveform.repeat(2, 1)
    lengths = torch.tensor([24_000, 20_000])
    out = load_upstream("spectrogram")(batch, lengths)
    assert out.lengths.tolist() == [148, 123]
    for row, (length, frames) in enumerate(zip(lengths.tolist(), out.lengths.tolist(), strict=True)):
        plain = kaldi.spectrogram(batch[row : row + 1, :length])
        theirs = (plain - plain.mean(dim=0)) / (1e-10 + plain.std(dim=0))
        torch.testing.assert_close(out.hidden_states[0][row, :frames], theirs, rtol=0, atol=1e-4)


def test_it_stays_float32_under_autocast_and_in_a_bfloat16_model(waveform: Tensor) -> None:
    expected = LogSpectrum(LogMelConfig())(waveform)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(LogSpectrum(LogMelConfig())(waveform), expected)
    assert torch.equal(LogSpectrum(LogMelConfig()).bfloat16()(waveform), expected)
