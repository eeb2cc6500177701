"""The formats that models of the wav2vec architecture come in: fairseq's checkpoints, and what S3PRL makes of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from speechssl.conv_context.config import ConvContextConfig
from speechssl.errors import ConfigError
from speechssl.fairseq_format import FairseqCheckpoint, is_fairseq, open_fairseq, parse_conv_layers
from speechssl.formats import ForeignModel, Formats

HEADS = ("wav2vec_predictions.", "project_features.")
"""Beginnings of names that only pre-training needs."""
FEATURE_LAYERS = "[(512, 10, 5), (512, 8, 4), (512, 4, 2), (512, 4, 2), (512, 4, 2)]"
CONTEXT_LAYERS = "[(512, 3, 1)] * 9"
"""fairseq's defaults, where a checkpoint says nothing."""


@dataclass(frozen=True, kw_only=True)
class ConvContextFormats(Formats):
    """Settings and weights of one family in the format of fairseq, where all of them are called 'wav2vec'."""

    config: type[ConvContextConfig]
    quantizers: tuple[str, ...]
    """Which `vq_type` are the family's."""

    def read_file(self, content: Any, *, origin: str) -> ForeignModel | None:
        """Reads a checkpoint of fairseq, or of S3PRL's converter."""
        if not is_fairseq(content):
            return None
        checkpoint = open_fairseq(content, origin=origin)
        if checkpoint.architecture != "wav2vec" or quantizer_type(checkpoint) not in self.quantizers:
            return None
        settings = context_settings(checkpoint, origin=origin) | self.more_settings(checkpoint)
        state = {k: v.float() for k, v in checkpoint.state.items() if not k.startswith(HEADS)}
        return ForeignModel(
            self.config(**settings),
            self.rename(state, settings),
            their_name=lambda key: self.their_name(key, settings),
        )

    def more_settings(self, checkpoint: FairseqCheckpoint) -> dict[str, Any]:  # noqa: ARG002  # families override it
        """Settings that only this family has."""
        return {}

    def rename(self, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:  # noqa: ARG002
        """Weights by our names; names that nobody knows are kept as they are."""
        return {_our_name(key): value for key, value in state.items()}

    def their_name(self, key: str, settings: Mapping[str, Any]) -> str:  # noqa: ARG002
        """fairseq's name of a weight by ours."""
        if match := re.fullmatch(r"frontend\.(convs|norms)\.(\d+)\.(\w+)", key):
            return f"feature_extractor.conv_layers.{match[2]}.{'0' if match[1] == 'convs' else '2'}.{match[3]}"
        if match := re.fullmatch(r"encoder\.blocks\.(\d+)\.(conv|norm)\.(\w+)", key):
            return f"feature_aggregator.conv_layers.{match[1]}.{'1' if match[2] == 'conv' else '3'}.{match[3]}"
        if match := re.fullmatch(r"encoder\.blocks\.(\d+)\.residual\.weight", key):
            return f"feature_aggregator.residual_proj.{match[1]}.weight"
        return key


def quantizer_type(checkpoint: FairseqCheckpoint) -> str:
    """'none', 'gumbel' or 'kmeans'."""
    return str(checkpoint.model.get("vq_type") or "none")


def context_settings(checkpoint: FairseqCheckpoint, *, origin: str) -> dict[str, Any]:
    """The fields of `ConvContextConfig`; what is absent has fairseq's default.

    Raises:
        ConfigError: the model has a part that the published ones have not.
    """
    model = checkpoint.model
    for key, needed in (("aggregator", "cnn"), ("encoder", "cnn"), ("skip_connections_feat", False)):
        if str(model.get(key, needed)) != str(needed):
            raise ConfigError(f"`{key}` of {origin} is {model[key]!r}; only {needed!r} is supported.")
    channels, kernels, strides = _layers(model, "conv_feature_layers", FEATURE_LAYERS, origin)
    width, context_kernels, context_strides = _layers(model, "conv_aggregator_layers", CONTEXT_LAYERS, origin)
    if set(context_strides) != {1}:
        raise ConfigError(f"`conv_aggregator_layers` of {origin} must have stride 1, but have {context_strides}.")
    newer = "_name" in model  # whose defaults for these two are the other way round
    return {
        "conv_channels": channels,
        "conv_kernels": kernels,
        "conv_strides": strides,
        "log_compression": bool(model.get("log_compression", newer)),
        "width": width,
        "context_kernels": context_kernels,
        "residual": bool(model.get("skip_connections_agg", newer)),
        "residual_scale": float(model.get("residual_scale", 0.5)),
        "zero_pad": bool(model.get("agg_zero_pad", False)),
        "bias": not model.get("no_conv_bias", False),
        "norm_affine": not model.get("non_affine_group_norm", False),
        "activation": str(model.get("activation", "relu")),
        "dropout": float(model.get("dropout", 0.0)),
        "feature_dropout": float(model.get("dropout_features", 0.0)),
    }


def _layers(
    model: Mapping[str, Any], key: str, default: str, origin: str
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Returns width, kernels and strides of a stack of convolutions."""
    text = str(model.get(key) or default)
    layers = parse_conv_layers(text, origin=origin)
    if len({width for width, _, _ in layers}) != 1:
        raise ConfigError(f"`{key}` of {origin} must have one width, but is '{text}': not supported.")
    return layers[0][0], tuple(kernel for _, kernel, _ in layers), tuple(stride for _, _, stride in layers)


def _our_name(key: str) -> str:
    # A layer is (convolution, dropout, norm, activation), in the context network with the padding before them.
    if match := re.fullmatch(r"feature_extractor\.conv_layers\.(\d+)\.(0|2)\.(\w+)", key):
        return f"frontend.{'convs' if match[2] == '0' else 'norms'}.{match[1]}.{match[3]}"
    if match := re.fullmatch(r"feature_aggregator\.conv_layers\.(\d+)\.(1|3)\.(\w+)", key):
        return f"encoder.blocks.{match[1]}.{'conv' if match[2] == '1' else 'norm'}.{match[3]}"
    if match := re.fullmatch(r"feature_aggregator\.residual_proj\.(\d+)\.weight", key):
        return f"encoder.blocks.{match[1]}.residual.weight"
    return key
