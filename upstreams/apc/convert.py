"""The format that APC and VQ-APC come in: S3PRL's checkpoints."""

import re
from collections.abc import Mapping
from typing import Any

from speechssl.errors import SpeechsslError
from speechssl.formats import ForeignModel, Formats
from speechssl.s3prl_format import read_mel_bins, section
from upstreams.apc.config import ApcConfig

HEADS = ("postnet.", "vq_layers.")
"""Predict frames; of no use to hidden states."""


class ApcFormats(Formats):
    """S3PRL's checkpoints: settings under 'config', weights under 'model'."""

    def read_file(self, content: Any, *, origin: str) -> ForeignModel | None:
        """Reads a checkpoint; what predicts frames is left out."""
        state = content.get("model") if isinstance(content, Mapping) else None
        if not isinstance(state, Mapping) or "rnn_layers.0.weight_ih_l0" not in state:
            return None
        settings = content.get("config")
        model = section(section(settings, "model", origin), "paras", origin)
        try:
            config = ApcConfig(
                num_mel_bins=read_mel_bins(settings, origin),
                width=int(model["hidden_size"]),
                depth=int(model["num_layers"]),
                residual=bool(model["residual"]),
                dropout=float(model["dropout"]),
            )
        except KeyError as error:
            raise SpeechsslError(f"The settings of {origin} lack {error}: check that it is S3PRL's.") from error
        weights = {_our_name(k): v for k, v in state.items() if not k.startswith(HEADS)}
        return ForeignModel(config, weights, their_name=_their_name)


def _our_name(key: str) -> str:
    return re.sub(r"^rnn_layers\.(\d+)\.", r"encoder.blocks.\1.gru.", key)


def _their_name(key: str) -> str:
    return re.sub(r"^encoder\.blocks\.(\d+)\.gru\.", r"rnn_layers.\1.", key)


FORMATS = ApcFormats()
