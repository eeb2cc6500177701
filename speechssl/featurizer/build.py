"""Makes the interface between layers and head that a config names."""

from speechssl.errors import ConfigError
from speechssl.featurizer.attention import LayerAttention
from speechssl.featurizer.concat import Concat
from speechssl.featurizer.config import FeatureConfig
from speechssl.featurizer.gated_sum import GatedSum
from speechssl.featurizer.hierarchical_conv import HierarchicalConv
from speechssl.featurizer.interface import Interface
from speechssl.featurizer.two_sums import TwoSums
from speechssl.featurizer.weighted_sum import WeightedSum


def build_featurizer(config: FeatureConfig, num_layers: int, size: int) -> Interface:
    """Makes the interface, initialised by torch's (seeded) generator.

    Args:
        num_layers: K, how many layers there are.
        size: D, the width of each.

    Raises:
        ConfigError: one layer is asked for and there are more, or the other way round.
    """
    if config.interface == "single" and num_layers != 1:
        raise ConfigError(
            f"`features.interface=single` takes one layer, but there are {num_layers}: name it, as in "
            "`features.layers=[6]`."
        )
    if config.interface == "two_sums":
        return TwoSums(num_layers, size, normalize=config.normalize)
    if config.interface == "concat":
        return Concat(num_layers, size, width=config.interface_size, normalize=config.normalize)
    if config.interface == "hierarchical_conv":
        return HierarchicalConv(num_layers, size, normalize=config.normalize)
    if config.interface == "attention":
        return LayerAttention(num_layers, size, normalize=config.normalize)
    if config.interface == "gated_sum":
        return GatedSum(num_layers, size, normalize=config.normalize)
    return WeightedSum(num_layers, size, normalize=config.normalize)
