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
class ScalableAasistConfig:
    """Scalable AASIST; the defaults are those of its code (576,202 numbers from 1024 dimensions)."""

    projected: int = 128
    """Bands; three become one node of frequency."""
    channels: tuple[int, int] = (32, 64)
    """As those of AASIST."""
    widths: tuple[int, int] = (64, 32)
    """As those of AASIST."""
    ratios: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Share of the nodes that are kept: of frequency, of time, and of both in the stacked graphs."""
    heads: int = 4
    """Of every attention."""
    dropout: float = 0.5
    """Before the last layer."""

    def __post_init__(self) -> None:
        if not all(0 < ratio <= 1 for ratio in self.ratios):
            raise ConfigError(f"`scalable_aasist.ratios` must lie in (0, 1], but are {list(self.ratios)}.")
        if self.projected < 3:
            raise ConfigError(f"`scalable_aasist.projected` must be 3 or more, but is {self.projected}.")
        if any(width % self.heads for width in (self.channels[1], *self.widths)):
            raise ConfigError(
                f"`scalable_aasist.heads` must divide the last of `channels` and both `widths`, but is {self.heads} "
                f"with {self.channels[1]} and {list(self.widths)}."
            )


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


@dataclass(frozen=True)
class ConformerHeadConfig:
    """The conformer with a class token; the defaults are those of its code (2.5 million numbers on 1024 dimensions)."""

    width: int = 144
    blocks: int = 4
    heads: int = 4
    kernel: int = 31
    """Frames that a convolution sees; odd."""
    ffn_multiple: int = 4
    """Of the width, inside a feed-forward."""
    conv_expansion: int = 2
    """Of the width, inside a convolution."""
    distance: int = 512
    """Frames up to which distances to either side have vectors of their own."""
    dropout: float = 0.0


@dataclass(frozen=True)
class LcnnConfig:
    """The light convolutional network of ASVspoof 2021's baseline (269,729 numbers from 60 dimensions)."""

    projected: int | None = None
    """Dimensions to which a linear layer brings the features first: recurrent layers grow with the square of theirs.
    None = there is no such layer, as in the baseline, whose features have 60."""
    dropout: float = 0.7
    """After the last convolution."""

    def __post_init__(self) -> None:
        if self.projected is not None and self.projected < 16:
            raise ConfigError(f"`lcnn.projected` must be 16 or more, or null, but is {self.projected}.")


@dataclass(frozen=True)
class GmmConfig:
    """Two Gaussian mixtures; the defaults are those of ASVspoof's baselines, and of scikit-learn, where they use it."""

    components: int = 512
    """Of each mixture."""
    iterations: int = 10
    """Of expectation maximisation, at most."""
    tolerance: float = 1e-3
    """A mixture is finished where its log-likelihood of a frame changes by less."""
    floor: float = 1e-6
    """Added to variances."""
    sample: int = 100
    """Frames per component, at most, that k-means sees; our choice."""

    def __post_init__(self) -> None:
        if min(self.components, self.iterations, self.sample) < 1 or not self.floor > 0:
            raise ConfigError(
                "`gmm` must have 1 component, iteration and frame of its sample or more, and a `floor` above 0, but "
                f"has {self.components}, {self.iterations}, {self.sample} and {self.floor}."
            )
