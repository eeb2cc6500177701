"""The format that data2vec 2.0 comes in: fairseq's.

fairseq names its parts by what they are to several modalities. Here they are first given the names and settings that
fairseq has for wav2vec 2.0, and then go the way of those.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from speechssl.contextual import fairseq_names
from speechssl.contextual.fairseq_names import config_from_fairseq, rename_weights
from speechssl.contextual.names import inverse, replace_prefix
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.fairseq_format import FairseqCheckpoint, is_fairseq, open_fairseq
from speechssl.formats import ForeignModel, Formats
from upstreams.data2vec2.config import Data2Vec2Config

AUDIO = "modality_encoders.AUDIO."
HEADS = ("decoder.", "encoder_mask")
"""Of the audio modality, of no use outside of training."""
PLACES = {
    "local_encoder": "feature_extractor",
    "project_features.1": "layer_norm",
    "project_features.2": "post_extract_proj",
    "context_encoder.norm": "encoder.layer_norm",
}
BLOCK = {
    "norm1": "self_attn_layer_norm",
    "attn.qkv": "attention.qkv",
    "attn.proj": "self_attn.out_proj",
    "norm2": "final_layer_norm",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
SCALE = "encoder.relative_bias.scale"
NEEDED: dict[str, tuple[Any, Any]] = {
    "layer_norm_first": (False, False),
    "norm_eps": (1e-5, 1e-6),
    "norm_affine": (True, True),
}
NEEDED_OF_AUDIO: dict[str, tuple[Any, Any]] = {
    "use_alibi_encoder": (True, False),
    "learned_alibi": (False, False),
    "learned_alibi_scale_per_layer": (False, False),
    "conv_pos_pre_ln": (False, False),
    "num_extra_tokens": (0, 0),
}
"""Settings of the published models, and what fairseq takes where nothing is said; others would need other parts."""


class Data2Vec2Formats(Formats):
    """Checkpoints of fairseq, pre-trained or fine-tuned; transformers has no data2vec 2.0."""

    def read_file(self, content: Any, *, origin: str) -> ForeignModel | None:
        """Reads the student's audio modality; the teacher, decoders and other modalities are left out."""
        if not is_fairseq(content):
            return None
        checkpoint = open_fairseq(content, origin=origin)
        if checkpoint.architecture != "data2vec_multi":
            return None
        modalities = checkpoint.model.get("modalities")
        audio = modalities.get("audio") if isinstance(modalities, Mapping) else None
        if not isinstance(audio, Mapping) or not any(key.startswith(AUDIO) for key in checkpoint.state):
            raise SpeechsslError(f"{origin} is a data2vec 2.0 model that does not hear: name one for audio.")
        _check(checkpoint.model, NEEDED, origin)
        _check(audio, NEEDED_OF_AUDIO, origin)
        if int(audio.get("conv_pos_depth", 5)) < 2:
            raise ConfigError(f"`conv_pos_depth` of {origin} must be at least 2, but is 1: not supported.")
        prenet_depth = int(audio.get("prenet_depth", 4))
        settings = _settings(checkpoint.model, audio, prenet_depth)
        config = config_from_fairseq(replace(checkpoint, model=settings), Data2Vec2Config, origin=origin)
        state = _rename(checkpoint, prenet_depth, config.heads, origin)
        return ForeignModel(config, state, their_name=partial(_their_name, prenet_depth=prenet_depth))


def _check(settings: Mapping[str, Any], needed: Mapping[str, tuple[Any, Any]], origin: str) -> None:
    for key, (value, default) in needed.items():
        if settings.get(key, default) != value:
            raise ConfigError(f"`{key}` of {origin} is {settings.get(key, default)!r}; only {value!r} is supported.")


def _settings(model: Mapping[str, Any], audio: Mapping[str, Any], prenet_depth: int) -> dict[str, Any]:
    """By the names of fairseq's wav2vec 2.0."""
    width = int(model.get("embed_dim", 768))
    return {
        "conv_feature_layers": audio.get("feature_encoder_spec"),
        "extractor_mode": audio.get("extractor_mode", "layer_norm"),
        "feature_grad_mult": audio.get("local_grad_mult", 1.0),
        "conv_pos": audio.get("conv_pos_width", 95),
        "conv_pos_groups": audio.get("conv_pos_groups", 16),
        "pos_conv_depth": audio.get("conv_pos_depth", 5),
        "encoder_embed_dim": width,
        "encoder_layers": prenet_depth + int(model.get("depth", 8)),
        "encoder_attention_heads": model.get("num_heads", 12),
        "encoder_ffn_embed_dim": int(width * float(model.get("mlp_ratio", 4))),
        "encoder_layerdrop": model.get("layerdrop", 0.0),
        "dropout": model.get("encoder_dropout", 0.1),
        "attention_dropout": model.get("attention_dropout", 0.1),
        "activation_dropout": model.get("activation_dropout", 0.0),
        "dropout_input": model.get("dropout_input", 0.0),
    }


def _rename(checkpoint: FairseqCheckpoint, prenet_depth: int, heads: int, origin: str) -> dict[str, Tensor]:
    state = {}
    for key, value in checkpoint.state.items():
        if key.startswith(AUDIO):
            state[_name(key.removeprefix(AUDIO))] = value
        elif match := re.fullmatch(r"blocks\.(\d+)\.(.+)\.(\w+)", key):
            state[_block(prenet_depth + int(match[1]), match[2], match[3])] = value
    scale = state.pop("alibi_scale", None)
    if scale is None or scale.numel() not in (1, heads):
        raise ConfigError(f"`alibi_scale` of {origin} must hold one number, or one for each of {heads} heads.")
    return {**rename_weights(state, heads=HEADS), SCALE: scale.float().flatten().expand(heads).clone()}


def _name(key: str) -> str:
    if match := re.fullmatch(r"context_encoder\.blocks\.(\d+)\.(.+)\.(\w+)", key):
        return _block(int(match[1]), match[2], match[3])
    if match := re.fullmatch(r"relative_positional_encoder\.(\d+)\.0\.(\w+)", key):
        return f"encoder.pos_conv.{int(match[1]) - 1}.0.{match[2]}"  # the first part swaps axes
    return replace_prefix(key, PLACES)


def _their_name(key: str, *, prenet_depth: int) -> str:
    """fairseq's name of a weight, from ours."""
    if key == SCALE:
        return f"{AUDIO}alibi_scale"
    if match := re.fullmatch(r"encoder\.position\.convs\.(\d+)\.(\w+)", key):
        return f"{AUDIO}relative_positional_encoder.{int(match[1]) + 1}.0.{match[2]}"
    key = fairseq_names.their_name(key).replace("self_attn.{q,k,v}_proj", "attention.qkv")
    if match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", key):
        index, part = int(match[1]), replace_prefix(match[2], inverse(BLOCK))
        place = f"{AUDIO}context_encoder.blocks.{index}" if index < prenet_depth else f"blocks.{index - prenet_depth}"
        return f"{place}.{part}"
    return AUDIO + replace_prefix(key, inverse(PLACES))


def _block(index: int, part: str, rest: str) -> str:
    return f"encoder.layers.{index}.{BLOCK.get(part, part)}.{rest}"


FORMATS = Data2Vec2Formats()
