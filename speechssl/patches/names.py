"""Names of weights in timm's vision transformers, which most checkpoints of audio encoders use, and ours."""

import re

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
