"""The formats that DistilHuBERT comes in: S3PRL's `.ckpt`; in transformers' it is a HuBERT model, read by `hubert`."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from speechssl.contextual.config import ContextualConfig
from speechssl.contextual.fairseq_names import config_from_fairseq, rename_weights, their_name
from speechssl.contextual.formats import OPTIONAL, ContextualFormats
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.fairseq_format import FairseqCheckpoint
from speechssl.formats import ForeignModel, Formats, TransformersFolder
from upstreams.distilhubert.config import DistilHubertConfig

HEADS = ("output_layer.", "task_embedding.")
"""Predict the teacher's hidden states."""
NEEDED = {"attention_type": ("original",), "task_emb_type": ("expand-last", "concat-last", "self-hidden", "none")}
"""Others change what enters the encoder, or how it attends."""
DEFAULTS = {"encoder_layers": 1, "activation_dropout": 0.1, "activation_fn": "gelu"}
"""Where S3PRL's differ from fairseq's."""
TRANSFORMERS = ContextualFormats(
    config=DistilHubertConfig,
    model_types=("hubert",),
    architecture="HubertModel",
    heads=(),
    fairseq_names=(),
    fairseq_heads=(),
)


class DistilHubertFormats(Formats):
    """S3PRL's checkpoints, and writing transformers' HuBERT."""

    def read_file(self, content: Any, *, origin: str) -> ForeignModel | None:
        """Reads a checkpoint of S3PRL's distiller: settings under 'Config', weights under 'Distiller'."""
        if not isinstance(content, Mapping) or "Distiller" not in content:
            return None
        everything, state = content.get("Config"), content["Distiller"]
        settings = everything.get("distiller") if isinstance(everything, Mapping) else None
        if not isinstance(settings, Mapping) or not isinstance(state, Mapping):
            raise SpeechsslError(f"{origin} must hold 'Config' with 'distiller', and weights in 'Distiller': check it.")
        for key, possible in NEEDED.items():
            if settings.get(key, possible[0]) not in possible:
                raise ConfigError(f"`{key}` of {origin} is {settings[key]!r}; only {', '.join(possible)} is supported.")
        model = {**DEFAULTS, **settings, "conv_feature_layers": settings.get("extractor_conv_feature_layers")}
        config = config_from_fairseq(FairseqCheckpoint(model, {}, state), DistilHubertConfig, origin=origin)
        return ForeignModel(config, rename_weights(state, heads=HEADS), OPTIONAL, their_name)

    def write_transformers(self, config: ContextualConfig, state: Mapping[str, Tensor]) -> TransformersFolder:
        """Writes a HuBERT model without `feat_proj_layer_norm`."""
        return TRANSFORMERS.write_transformers(config, state)


FORMATS = DistilHubertFormats()
