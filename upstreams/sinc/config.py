"""The filters that AASIST begins with.

Paper: Jung et al. 2022, sec. 3, arXiv:2110.01200.
"""

from dataclasses import dataclass

from speechssl.errors import ConfigError

POOL = 3


@dataclass(frozen=True)
class SincConfig:
    """Rectified filters, the largest of 3 filters x 3 samples; by default those of AASIST, 23 bands at 5333 Hz."""

    conv_channels: int = 70
    """Filters, next to each other in mel."""
    kernel: int = 129
    """Samples of each, an odd number."""

    def __post_init__(self) -> None:
        if self.conv_channels < POOL or self.kernel % 2 == 0:
            raise ConfigError(
                f"`conv_channels` must be {POOL} or more and `kernel` odd, but they are {self.conv_channels} and "
                f"{self.kernel}."
            )


PRESETS: dict[str, SincConfig] = {"sinc": SincConfig()}
