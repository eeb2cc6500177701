"""What converting from any format has in common: weight norm's two names, and projections that are one here."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
"""Names before and since torch 2.0; converting normalises to the latter."""


def rename_weight_norm(key: str) -> str:
    """Gives a weight of before torch 2.0 its name since then."""
    for old, new in WEIGHT_NORM.items():
        key = re.sub(rf"\.{old}$", f".{new}", key)
    return key


def replace_prefix(key: str, names: Mapping[str, str]) -> str:
    """Replaces the beginning of a dotted name, or all of it, by the first of `names` (old -> new) that fits."""
    for old, new in names.items():
        if key == old or key.startswith(old + "."):
            return new + key[len(old) :]
    return key


def inverse(names: Mapping[str, str]) -> dict[str, str]:
    """new -> old."""
    return {new: old for old, new in names.items()}


def join_projections(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Joins '...attention.q_proj', 'k_proj' and 'v_proj' to '...attention.qkv', where all three are there; in place."""
    for key in [k for k in weights if ".attention.q_proj." in k]:
        names = [key.replace("q_proj", part) for part in ("q_proj", "k_proj", "v_proj")]
        if all(name in weights for name in names):
            weights[key.replace("q_proj", "qkv")] = torch.cat([weights.pop(name) for name in names])
    return weights
