"""The format that NPC comes in: S3PRL's checkpoints, whose names of weights are the authors'."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from speechssl.errors import SpeechsslError
from speechssl.formats import ForeignModel, Formats
from speechssl.s3prl_format import read_mel_bins, require, section
from upstreams.npc.config import NpcConfig

HEADS = ("postnet.", "vq_layers.")
"""Predict frames; of no use to hidden states."""
NORMS = {"bn1": "conv_norm", "bn2": "linear_norm"}
STATISTICS = {"running_mean": "mean", "running_var": "variance"}


class NpcFormats(Formats):
    """S3PRL's checkpoints: settings under 'config', weights under 'model'."""

    def read_file(self, content: Any, *, origin: str) -> ForeignModel | None:
        """Reads a checkpoint; what predicts frames is left out, and biases before a batch norm become a part of it."""
        state = content.get("model") if isinstance(content, Mapping) else None
        if not isinstance(state, Mapping) or not any(str(k).startswith("masked_convs.") for k in state):
            return None
        settings = content.get("config")
        model = section(section(settings, "model", origin), "paras", origin)
        require(model, {"dim_bottleneck": None}, origin)
        try:
            config = NpcConfig(
                num_mel_bins=read_mel_bins(settings, origin),
                width=int(model["hidden_size"]),
                depth=int(model["n_blocks"]),
                kernel=int(model["kernel_size"]),
                mask_size=int(model["mask_size"]),
                dropout=float(model["dropout"]),
                residual=bool(model["residual"]),
                batch_norm=bool(model.get("batch_norm", True)),
                activation=model.get("activate", "relu"),
                cross_layer=not model.get("disable_cross_layer", False),
            )
        except KeyError as error:
            raise SpeechsslError(f"The settings of {origin} lack {error}: check that it is S3PRL's.") from error
        weights = dict(_renamed(state, config))
        return ForeignModel(config, weights, their_name=lambda key: _their_name(key, config))


def _renamed(state: Mapping[str, Tensor], config: NpcConfig) -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        if match := re.fullmatch(r"masked_convs\.(\d+)\.conv\.(\w+)", key):
            index = int(match[1])
            place = f"encoder.blocks.{config.depth}.convs.{index if config.cross_layer else 0}"
            yield f"{place}.{match[2]}", _seen(value, index, config) if match[2] == "weight" else value
        elif match := re.fullmatch(r"blocks\.(\d+)\.(conv|linear)\.(\w+)", key):
            if match[3] == "weight" or not config.batch_norm:
                yield f"encoder.{key}", value
        elif match := re.fullmatch(r"blocks\.(\d+)\.(bn[12])\.(\w+)", key):
            name, kind = NORMS[match[2]], match[3]
            bias = state.get(f"blocks.{match[1]}.{name.removesuffix('_norm')}.bias")
            place = f"encoder.blocks.{match[1]}.{name}"
            if kind == "running_mean" and bias is not None:
                yield f"{place}.mean", value - bias
            elif kind != "num_batches_tracked":
                yield f"{place}.{STATISTICS.get(kind, kind)}", value
        elif not key.startswith(HEADS) and not key.endswith(".conv_mask"):
            yield key, value


def _seen(weight: Tensor, index: int, config: NpcConfig) -> Tensor:
    """The taps before and after the mask: (D, D, kernel) -> (D, D, 2 side)."""
    side = (config.kernel - config.mask_size) // 2 - (index + 1)
    return torch.cat((weight[:, :, :side], weight[:, :, weight.size(2) - side :]), dim=2)


def _their_name(key: str, config: NpcConfig) -> str:
    if match := re.fullmatch(rf"encoder\.blocks\.{config.depth}\.convs\.(\d+)\.(\w+)", key):
        return f"masked_convs.{int(match[1]) if config.cross_layer else config.depth - 1}.conv.{match[2]}"
    if match := re.fullmatch(r"encoder\.blocks\.(\d+)\.(\w+_norm)\.(\w+)", key):
        norms = {ours: theirs for theirs, ours in NORMS.items()}
        statistics = {ours: theirs for theirs, ours in STATISTICS.items()}
        return f"blocks.{match[1]}.{norms[match[2]]}.{statistics.get(match[3], match[3])}"
    return key.removeprefix("encoder.")


FORMATS = NpcFormats()
