"""Settings of what a head sees of an upstream."""

from dataclasses import dataclass
from typing import Literal

from speechssl.errors import ConfigError
from speechssl.featurizer.interface import LEARNS_WEIGHTS, NEEDS_FRAMES, Kind


@dataclass(frozen=True)
class FeatureConfig:
    """What the head sees of the upstream."""

    layers: tuple[int, ...] | None = None
    """Which hidden states; None = all L+1, as SUPERB, or, where widths differ, those as wide as the last one."""
    normalize: bool = False
    """Whether each layer is layer-normalised (no affine) before they are joined, as S3PRL's
    `--upstream_feature_normalize`; with pooling 'mean' it is the means that are."""
    interface: Kind = "weighted_sum"
    """How the layers are joined, as in `speechssl run asr_demo -s features.interface=hierarchical_conv`; 'single' takes
    the one layer in `layers`."""
    interface_size: int | None = None
    """Width to which a linear layer brings what 'concat' puts side by side; None = as wide as all layers together."""
    pooling: Literal["none", "mean"] = "none"
    """'mean': the mean over valid frames, cached as one (L+1, D) array; exact for heads linear before pooling."""
    crops: int = 0
    """Crops of `train.max_duration` seconds that are drawn of each longer training utterance and go through the
    upstream by themselves, one of which is heard at each visit; 0 = frames are cut out of those of the whole one."""
    weight_rate_scale: float = 1.0
    """Learning rate of the layers' weights over that of the head. Adam moves a weight by about its rate at each step:
    1, as in SUPERB, leaves the weights of a run of a few hundred steps where they began."""

    def __post_init__(self) -> None:
        if self.interface in NEEDS_FRAMES and self.pooling == "mean":
            raise ConfigError(
                f"`features.interface={self.interface}` is not linear, so that the mean over time can't come "
                "before it: set `features.pooling=none`."
            )
        if self.interface == "single" and (self.layers is None or len(self.layers) != 1):
            raise ConfigError(
                f"`features.interface=single` takes one layer, but `features.layers` is "
                f"{'null' if self.layers is None else list(self.layers)}: name one, as in `features.layers=[6]`."
            )
        if self.interface_size is not None and (self.interface != "concat" or self.interface_size < 1):
            raise ConfigError(
                f"`features.interface_size` is the width (1 or more) that `features.interface=concat` is projected to, "
                f"but is {self.interface_size} with `features.interface={self.interface}`."
            )
        if self.interface not in LEARNS_WEIGHTS and self.weight_rate_scale != 1.0:
            raise ConfigError(
                f"`features.weight_rate_scale` is of the weights of layers, which `features.interface="
                f"{self.interface}` does not have by themselves: leave it at 1."
            )
