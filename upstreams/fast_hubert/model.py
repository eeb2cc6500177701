"""Fast-HuBERT: the architecture of HuBERT behind log-mel frames at 25 Hz."""

from speechssl.contextual.config import ContextualConfig
from speechssl.contextual.model import ContextualUpstream, Frontend
from speechssl.errors import ConfigError
from upstreams.fast_hubert.config import FastHubertConfig
from upstreams.fast_hubert.frontend import SubsampledLogMel


class FastHubertUpstream(ContextualUpstream):
    """A Fast-HuBERT model.

    Paper: Yang et al. 2023, sec. 3, arXiv:2309.13860.
    """

    name = "fast_hubert"
    family = "fast_hubert"
    frontend: SubsampledLogMel

    @staticmethod
    def make_frontend(config: ContextualConfig) -> tuple[Frontend, int, int]:
        """See `ContextualUpstream.make_frontend`."""
        if not isinstance(config, FastHubertConfig):
            raise ConfigError(f"Fast-HuBERT needs a `FastHubertConfig`, but was given a `{type(config).__name__}`.")
        frontend = SubsampledLogMel(
            config.num_mel_bins,
            channels=config.conv_channels,
            inner=config.subsample_channels,
            kernels=config.subsample_kernels,
        )
        return frontend, frontend.hop, config.conv_channels


def build(config: FastHubertConfig) -> FastHubertUpstream:
    """Makes the model with random weights."""
    return FastHubertUpstream(config)
