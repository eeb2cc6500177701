"""Names of weights in timm's vision transformers, which most checkpoints of audio encoders use, and ours."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from speechssl.errors import SpeechsslError

BLOCK = {
    "norm1": "attention_norm",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.output",
    "norm2": "ffn_norm",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}


def rename_vit(key: str) -> str:
    """Gives a weight of timm's blocks or closing norm our name; any other name is kept as it is."""
    if match := re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", key):
        index, part, rest = match.groups()
        return f"encoder.blocks.{index}.{BLOCK.get(part, part)}.{rest}"
    return f"encoder.{key}" if key.startswith("norm.") else key


def require(weights: Mapping[str, Tensor], names: Iterable[str], *, origin: str) -> None:
    """Checks that the weights that tell a model's shapes are there.

    Raises:
        SpeechsslError: one is missing.
    """
    for name in names:
        if name not in weights:
            raise SpeechsslError(f"{origin} lacks '{name}': it is cut off or incomplete, download it again.")


def count_blocks(weights: Iterable[str]) -> int:
    """The depth of a model, from timm's names of its weights."""
    return 1 + max((int(name.split(".")[1]) for name in weights if name.startswith("blocks.")), default=-1)
