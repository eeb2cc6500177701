"""wav2vec 2.0 with a conformer in place of the transformer."""

from torch import nn

from speechssl.contextual.config import ContextualConfig
from speechssl.contextual.model import ContextualUpstream
from speechssl.encoder.conformer import ConformerConfig, ConformerEncoder
from speechssl.errors import ConfigError
from upstreams.wav2vec2_conformer.config import Wav2Vec2ConformerConfig


class Wav2Vec2ConformerUpstream(ContextualUpstream):
    """A wav2vec 2.0 conformer model.

    Papers: Baevski et al. 2020, sec. 2, arXiv:2006.11477; Gulati et al. 2020, sec. 2, arXiv:2005.08100.
    """

    name = "wav2vec2_conformer"
    family = "wav2vec2_conformer"

    def make_encoder(self, config: ContextualConfig) -> nn.Module:
        """See `ContextualUpstream.make_encoder`.

        Raises:
            ConfigError: settings that no such model has.
        """
        if not isinstance(config, Wav2Vec2ConformerConfig) or not config.pre_norm:
            raise ConfigError("`pre_norm` of a wav2vec2_conformer must be true: leave it out.")
        return ConformerEncoder(
            ConformerConfig(
                width=config.width,
                depth=config.depth,
                heads=config.heads,
                ffn_width=config.ffn_width,
                positions=config.positions,
                rotary_base=config.rotary_base,
                kernel=config.block_kernel,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                activation_dropout=config.activation_dropout,
                conv_dropout=config.conv_dropout,
            )
        )


def build(config: Wav2Vec2ConformerConfig) -> Wav2Vec2ConformerUpstream:
    """Makes the model with random weights."""
    return Wav2Vec2ConformerUpstream(config)
