"""The format that BYOL-A comes in: plain weights, whose names and shapes tell which model they are of."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.formats import ForeignModel, Formats
from upstreams.byol_a.config import PRESETS, ByolAConfig

FIRST = "features.0.weight"
STAGE = 4
"""Layers that make up one stage: convolution, norm, ReLU, maximum."""
DENSE = {"0": "0", "3": "1"}
"""Places of the dense layers, theirs and ours."""
NORM = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "variance"}


class ByolAFormats(Formats):
    """Weights of AudioNTT2020 and AudioNTT2022, by themselves or inside of something larger."""

    def read_file(self, content: Any, *, origin: str) -> ForeignModel | None:
        """Reads a file of weights, also one that keeps them under 'state_dict' or 'model', or behind a prefix."""
        for weights in _candidates(content):
            prefixes = sorted(k.removesuffix(FIRST) for k in weights if _is_first(k, weights))
            if len(prefixes) > 1:
                raise SpeechsslError(f"{origin} holds several BYOL-A models ({', '.join(prefixes)}): keep one of them.")
            if prefixes:
                parts = (f"{prefixes[0]}features.", f"{prefixes[0]}fc.")
                own = {k.removeprefix(prefixes[0]): v.float() for k, v in weights.items() if k.startswith(parts)}
                return ForeignModel(_config(own, origin), dict(_renamed(own)), their_name=_their_name)
        return None


def _candidates(content: Any) -> Iterator[Mapping[str, Tensor]]:
    if not isinstance(content, Mapping):
        return
    for found in (content, content.get("state_dict"), content.get("model")):
        if isinstance(found, Mapping):
            yield {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _is_first(key: str, weights: Mapping[str, Tensor]) -> bool:
    """Whether this is the first convolution of such a model: one channel in, a batch norm and dense layers after."""
    prefix = key.removesuffix(FIRST)
    if not key.endswith(FIRST) or (prefix and not prefix.endswith(".")) or weights[key].shape[1:] != (1, 3, 3):
        return False
    return all(prefix + name in weights for name in ("features.1.running_mean", "fc.0.weight", "fc.3.weight"))


def _config(weights: Mapping[str, Tensor], origin: str) -> ByolAConfig:
    layers = sum(bool(re.fullmatch(r"features\.\d+\.running_mean", key)) for key in weights)
    presets = {config.conv_layers: config for config in PRESETS.values()}
    if layers not in presets:
        raise ConfigError(f"{origin} has {layers} convolutions, but BYOL-A has {' or '.join(map(str, presets))}.")
    channels = len(weights[FIRST])
    hidden, features = weights["fc.0.weight"].shape
    return replace(
        presets[layers],
        num_mel_bins=features // channels * 2**layers,
        conv_channels=channels,
        ffn_width=hidden,
        width=len(weights["fc.3.weight"]),
    )


def _renamed(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for key, value in weights.items():
        if match := re.fullmatch(r"features\.(\d+)\.(\w+)", key):
            stage, place = divmod(int(match[1]), STAGE)
            if match[2] == "num_batches_tracked":
                continue
            yield (
                f"stages.{stage}.{f'norm.{NORM.get(match[2], match[2])}' if place == 1 else f'conv.{match[2]}'}",
                value,
            )
        elif (match := re.fullmatch(r"fc\.(\d+)\.(\w+)", key)) and match[1] in DENSE:
            yield f"encoder.blocks.{DENSE[match[1]]}.linear.{match[2]}", value
        else:
            yield key, value


def _their_name(key: str) -> str:
    if match := re.fullmatch(r"stages\.(\d+)\.conv\.(\w+)", key):
        return f"features.{STAGE * int(match[1])}.{match[2]}"
    if match := re.fullmatch(r"stages\.(\d+)\.norm\.(\w+)", key):
        names = {ours: theirs for theirs, ours in NORM.items()}
        return f"features.{STAGE * int(match[1]) + 1}.{names.get(match[2], match[2])}"
    if match := re.fullmatch(r"encoder\.blocks\.(\d+)\.linear\.(\w+)", key):
        places = {ours: theirs for theirs, ours in DENSE.items()}
        return f"fc.{places[match[1]]}.{match[2]}"
    return key


FORMATS = ByolAFormats()
