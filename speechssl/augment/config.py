"""Settings of disturbances; torch-free."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CorruptConfig:
    """How likely each disturbance is, per utterance; what is drawn is uniform over its range.

    Ranges: Kharitonov et al. 2021, sec. 4 (pitch, noise), arXiv:2007.00991; white noise as ccc-wav2vec 2.0's code.
    """

    pitch_prob: float = 0.0
    pitch_cents: float = 300.0
    """Largest shift up or down, hundredths of a semitone."""
    reverb_prob: float = 0.0
    reverb_seconds: tuple[float, float] = (0.1, 0.8)
    """RT60."""
    reverb_wet: tuple[float, float] = (0.05, 0.5)
    """Power of the echo over that of the direct sound."""
    white_prob: float = 0.0
    white_snr_db: tuple[float, float] = (3.1, 60.0)
    noise_prob: float = 0.0
    """Of the recorded noise where the run gives one, else of coloured noise."""
    noise_snr_db: tuple[float, float] = (5.0, 15.0)
