"""Sizes of the published networks; torch-free, as all settings."""

from dataclasses import dataclass
from typing import Literal

from speechssl.errors import ConfigError


@dataclass(frozen=True)
class AasistConfig:
    """AASIST; the defaults are those of SSL-AASIST on wav2vec 2.0 (447 thousand numbers from 1024 dimensions)."""

    front: Literal["projected", "sinc"] = "projected"
    """'projected': any features, brought to `projected` bands. 'sinc': rectified and pooled sinc filters, as the raw
    AASIST has them, which are bands already."""
    official: bool = True
    """Whether it computes as the published code and its public weights do. That code drops the norm and SELU that begin
    a residual block, and never reads the last of the four ratios. False = both count, as the paper draws them."""
    projected: int = 128
    """Bands; three become one node of frequency."""
    channels: tuple[int, int] = (32, 64)
    """Of the first two residual blocks, and of the other four."""
    widths: tuple[int, int] = (64, 32)
    """Of the nodes in the first graphs, and in the stacked ones."""
    ratios: tuple[float, float, float, float] = (0.5, 0.5, 0.5, 0.5)
    """Share of the nodes that are kept: of frequency, of time, and of both in the stacked graphs. Where `official` is
    false, the last one is that of time there: which of the two it was meant for is not said, so this is our choice."""
    temperatures: tuple[float, float, float] = (2.0, 2.0, 100.0)
    """Of the attention among nodes of frequency, of time, and in the stacked graphs."""
    dropout: float = 0.5
    """Before the last layer."""

    def __post_init__(self) -> None:
        if not all(0 < ratio <= 1 for ratio in self.ratios):
            raise ConfigError(f"`aasist.ratios` must lie in (0, 1], but are {list(self.ratios)}.")
        if self.projected < 3:
            raise ConfigError(f"`aasist.projected` must be 3 or more, but is {self.projected}.")


RAW_AASIST = AasistConfig(front="sinc", ratios=(0.5, 0.7, 0.5, 0.5))
"""`config/AASIST.conf` of the official code: 297,866 numbers."""
RAW_AASIST_L = AasistConfig(front="sinc", channels=(32, 24), widths=(24, 32), ratios=(0.4, 0.5, 0.7, 0.5))
"""`config/AASIST-L.conf`: 85,306 numbers."""


@dataclass(frozen=True)
class SlsConfig:
    """The classifier of SLS; with 1024 dimensions and a window of 201 frames it has 23.4 million numbers."""

    hidden: int = 1024


@dataclass(frozen=True)
class Nes2NetConfig:
    """Nes2Net; the defaults are those of its code for ASVspoof (511,794 numbers from 1024 dimensions)."""

    extended: bool = False
    """Nes2Net-X; 245 numbers more."""
    groups: tuple[int, int] = (8, 8)
    """Outer and inner ones."""
    kernel: int = 3
    """Frames; odd."""
    dilation: int = 2
    squeeze: int = 1
    """How many times narrower excitation is inside."""

    def __post_init__(self) -> None:
        if min(self.groups) < 2 or self.kernel % 2 == 0 or self.dilation < 1 or self.squeeze < 1:
            raise ConfigError(
                f"`nes2net` must have 2 groups or more, an odd kernel, and dilation and squeeze of 1 or more, but has "
                f"{list(self.groups)}, {self.kernel}, {self.dilation} and {self.squeeze}."
            )
