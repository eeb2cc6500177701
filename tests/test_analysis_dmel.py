"""dMel against its formula, by torch's own STFT and librosa's filters."""

import librosa
import pytest
import torch

from speechssl.analysis.dmel import DMelConfig, discretize, log_mel, output_lengths, paper_entries, undiscretize
from speechssl.errors import SpeechsslError


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.2 * torch.randn(1, samples, generator=generator) * torch.linspace(0, 1, samples)


def reference(waveform: torch.Tensor) -> torch.Tensor:
    """As the authors' package computes it: (1, S) -> (T, 80)."""
    spectrum = torch.stft(
        waveform, 1024, hop_length=400, win_length=800, window=torch.hann_window(800), return_complex=True
    )
    magnitude = spectrum.abs().square().clamp(min=1e-10).sqrt()[0].T
    filters = torch.from_numpy(librosa.filters.mel(sr=16_000, n_fft=1024, n_mels=80, fmin=80, fmax=7600)).float()
    return (magnitude @ filters.T).clamp(min=1e-10).log10()


def test_energies_are_those_of_the_formula_whatever_an_utterance_is_padded_with() -> None:
    first, second = noise(9_000), noise(5_321, seed=1)
    batch = torch.full((2, 9_000), 0.7)
    batch[0], batch[1, :5_321] = first[0], second[0]
    lengths = torch.tensor([9_000, 5_321])
    found = log_mel(batch, lengths)
    for row, alone in enumerate((first, second)):
        expected = reference(alone)
        assert int(output_lengths(lengths)[row]) == len(expected)
        torch.testing.assert_close(found[row, : len(expected)], expected, atol=2e-4, rtol=0)


def test_codes_are_the_nearest_entries_and_lie_within_half_a_step() -> None:
    config = DMelConfig()
    features = log_mel(noise(16_000))[0]
    codes = discretize(features, config.entries)
    distances = (features[:, :, None] - config.entries).abs()
    chosen = distances.gather(2, codes[:, :, None])[:, :, 0]
    torch.testing.assert_close(chosen, distances.amin(dim=2), atol=1e-5, rtol=0)
    assert float(config.entries[1] - config.entries[0]) == pytest.approx(0.6, abs=1e-6)
    error = (undiscretize(codes, config.entries) - features).abs()
    assert float(error.max()) <= 0.3 + 1e-5
    assert torch.equal(discretize(torch.tensor([-99.0, 99.0]), config.entries), torch.tensor([0, 15]))


def test_the_papers_grid_begins_at_the_least_energy_and_ends_a_step_before_the_largest() -> None:
    grid = paper_entries([torch.tensor([[-3.0, 1.0]]), torch.tensor([[0.5, 5.0]])], bits=3)
    torch.testing.assert_close(grid, torch.arange(-3.0, 5.0))
    with pytest.raises(SpeechsslError, match="energies that differ"):
        paper_entries([torch.zeros(3, 3)])


def test_utterances_too_short_to_be_reflected_are_told() -> None:
    with pytest.raises(SpeechsslError, match="more than 512 samples, but an utterance has 400"):
        log_mel(noise(400))
