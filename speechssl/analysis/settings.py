"""What an analysis looks at, and how much of it."""

from dataclasses import dataclass
from typing import Literal

from speechssl.errors import ConfigError

GROUPS = ("rank", "similarity", "information", "probe", "abx", "units")
"""What is measured; each is a section of the page."""
ON_DEMAND = ("fungi",)
"""What else can be: gradients need the model, and eleven passes of each utterance."""


@dataclass(frozen=True)
class AnalysisSettings:
    """Sizes are such that a model of base size takes minutes on two cores once its features are cached."""

    measures: tuple[str, ...] = GROUPS
    utterances: int | None = None
    """Drawn at random from the splits; None = all."""
    frames: int = 8_000
    """Frames that are kept of all layers, once of any utterances and once of those with labels."""
    rank_frames: int = 25_600
    """Frames that ranks are of, as many as RankMe's authors take rows; they are not kept."""
    gap: float = 0.1
    """Seconds from one of these frames to the next in its utterance, at least: about the length of a phone, after
    which neighbours say something else."""
    acoustic_utterances: int = 300
    """Of which spectra, pitch and energy are computed."""
    probe_samples: int = 3_000
    """That a probe learns from, and as many that it is tested on."""
    trials: int = 3
    """Of each correlation, with other utterances held out."""
    clusters: int = 100
    """Of the k-means whose clusters are compared with labels, and whose units are measured."""
    words: int = 200
    """The most frequent words that are looked at."""
    abx_items: int = 4_000
    """Tokens that ABX takes, whole utterances of them."""
    fungi_utterances: int = 120
    """Of which gradients are made."""
    fungi_losses: tuple[Literal["kl", "dino", "simclr"], ...] = ("kl", "dino", "simclr")
    examples: int = 2
    """Utterances whose attention and units are drawn."""
    held_gb: float = 2.0
    """Most memory, 10^9 bytes, for what is kept of one model; else fewer frames are."""
    folds: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        known = (*GROUPS, *ON_DEMAND)
        unknown = [m for m in self.measures if m not in known]
        if unknown or not self.measures:
            raise ConfigError(f"`measures` must be of {', '.join(known)}, but has '{', '.join(unknown)}'.")
        for name in ("frames", "rank_frames", "acoustic_utterances", "clusters", "words", "abx_items"):
            if getattr(self, name) < 2:
                raise ConfigError(f"`{name}` must be >= 2, but is {getattr(self, name)}.")
        if self.gap <= 0 or self.held_gb <= 0:
            raise ConfigError(f"`gap` and `held_gb` must be positive, but are {self.gap:g} and {self.held_gb:g}.")
