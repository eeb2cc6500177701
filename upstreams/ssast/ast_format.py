"""Settings and names of weights of transformers' audio spectrogram transformer, which SSAST is pre-training for."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from speechssl.errors import ConfigError
from speechssl.formats import TransformersFolder
from upstreams.ssast.config import SsastConfig

MODEL_TYPE = "audio-spectrogram-transformer"
NEEDED = {"hidden_act": "gelu", "qkv_bias": True}
"""Settings that are built here."""
EMBEDDINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
"""Theirs and timm's."""
BLOCK = {
    "layernorm_before": ("norm1", "attention_norm"),
    "attention.output.dense": ("attn.proj", "attention.output"),
    "layernorm_after": ("norm2", "ffn_norm"),
    "intermediate.dense": ("mlp.fc1", "fc1"),
    "output.dense": ("mlp.fc2", "fc2"),
}
"""Theirs; timm's and ours."""
PARTS = ("query", "key", "value")
"""Of a projection that is one matrix elsewhere."""


def read_config(folder: TransformersFolder) -> SsastConfig:
    """Reads config.json and preprocessor_config.json.

    Raises:
        ConfigError: the model has a part that the published ones have not.
    """
    content, sound = folder.description, folder.preprocessor
    for key, needed in NEEDED.items():
        if content.get(key, needed) != needed:
            raise ConfigError(f"`{key}` of {folder.origin} is {content[key]!r}; only {needed!r} is supported.")
    if not sound.get("do_normalize", True):
        raise ConfigError(f"`do_normalize` of {folder.origin} is false, but features must be scaled: set it to true.")
    patch = int(content.get("patch_size", 16))
    stride = int(content.get("time_stride", 10))
    return SsastConfig(
        sample_rate=int(sound.get("sampling_rate", 16_000)),
        num_mel_bins=int(content.get("num_mel_bins", 128)),
        patch_frames=patch,
        patch_bands=patch,
        stride_frames=stride,
        stride_bands=int(content.get("frequency_stride", 10)),
        columns=(int(content.get("max_length", 1024)) - patch) // stride + 1,
        width=int(content.get("hidden_size", 768)),
        depth=int(content.get("num_hidden_layers", 12)),
        heads=int(content.get("num_attention_heads", 12)),
        ffn_width=int(content.get("intermediate_size", 3072)),
        norm_eps=float(content.get("layer_norm_eps", 1e-12)),
        mean=float(sound.get("mean", SsastConfig.mean)),
        deviation=float(sound.get("std", SsastConfig.deviation)),
    )


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives their weights timm's names; a task's head is left out, names that nobody knows are kept."""
    plain = {key.removeprefix("audio_spectrogram_transformer."): value for key, value in state.items()}
    result = {_timm_name(key): value for key, value in plain.items() if not key.startswith("classifier.")}
    for key in [k for k in result if ".attn.query." in k]:
        names = [key.replace("query", part) for part in PARTS]
        if all(name in result for name in names):
            result[key.replace("query", "qkv")] = torch.cat([result.pop(name) for name in names])
    return result


def _timm_name(key: str) -> str:
    if match := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(\w+)", key):
        index, part, rest = match.groups()
        part = part.replace("attention.attention.", "attn.")
        return f"blocks.{index}.{BLOCK[part][0] if part in BLOCK else part}.{rest}"
    return EMBEDDINGS.get(key, key)


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives embeddings by timm's names and blocks by ours their names."""
    embeddings = {timm: theirs for theirs, timm in EMBEDDINGS.items()}
    blocks = {ours: theirs for theirs, (_, ours) in BLOCK.items()}
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        match = re.fullmatch(r"encoder\.blocks\.(\d+)\.(.+)\.(\w+)", key)
        if match is None:
            result[embeddings[key.removeprefix("encoder.")]] = value
            continue
        index, part, kind = match.groups()
        if part == "attention.qkv":
            for name, piece in zip(PARTS, value.chunk(3), strict=True):
                result[f"encoder.layer.{index}.attention.attention.{name}.{kind}"] = piece.clone()
        else:
            result[f"encoder.layer.{index}.{blocks[part]}.{kind}"] = value
    return result


def write_config(config: SsastConfig) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "architectures": ["ASTModel"],
        "model_type": MODEL_TYPE,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ffn_width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": config.norm_eps,
        "patch_size": config.patch_frames,
        "qkv_bias": True,
        "frequency_stride": config.stride_bands,
        "time_stride": config.stride_frames,
        "max_length": _frames(config),
        "num_mel_bins": config.num_mel_bins,
    }


def write_preprocessor(config: SsastConfig) -> dict[str, Any]:
    """The content of preprocessor_config.json."""
    return {
        "feature_extractor_type": "ASTFeatureExtractor",
        "do_normalize": True,
        "feature_size": 1,
        "max_length": _frames(config),
        "mean": config.mean,
        "std": config.deviation,
        "num_mel_bins": config.num_mel_bins,
        "padding_value": 0.0,
        "return_attention_mask": False,
        "sampling_rate": config.sample_rate,
    }


def _frames(config: SsastConfig) -> int:
    """What the positions cover."""
    return (config.columns - 1) * config.stride_frames + config.patch_frames
