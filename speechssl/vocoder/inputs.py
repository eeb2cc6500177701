"""Which features a vocoder reads."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FeatureSource:
    """The hidden states of an upstream that a vocoder was trained on: those of another sound like nothing."""

    upstream: str
    """Name or folder."""
    layer: int
    """Which hidden state; 0 enters the first block."""
    fingerprint: str | None = None
    """Of the upstream's weights; None = not known."""
    prematched: bool | None = None
    """Whether it was trained on means of nearest frames, as conversion gives it; None = not known."""
    matching: int | None = None
    """Which hidden state is compared to find the nearest frames; None = `layer`."""
