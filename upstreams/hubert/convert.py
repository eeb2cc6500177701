"""Between our names of HuBERT's settings and weights and those of transformers and fairseq.

The query, key and value projections, three matrices there, are one here.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from speechssl.errors import ConfigError
from speechssl.fairseq_format import FairseqCheckpoint, parse_conv_layers, rename_weights
from upstreams.hubert.config import HubertConfig

BLOCK = {
    "attention.out_proj": "attention.output",
    "layer_norm": "attention_norm",
    "feed_forward.intermediate_dense": "fc1",
    "feed_forward.output_dense": "fc2",
    "final_layer_norm": "ffn_norm",
}
REST = {
    "masked_spec_embed": "mask_embedding",
    "feature_projection.layer_norm": "feature_norm",
    "feature_projection.projection": "projection",
    "encoder.layer_norm": "encoder.norm",
    "encoder.pos_conv_embed.conv": "encoder.position.conv",
}
WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
"""Names before and since torch 2.0; converting normalises to the latter."""
HEADS = ("lm_head.", "projector.", "classifier.", "layer_weights")
"""Of models fine-tuned for recognition or classification: not part of the upstream."""
FAIRSEQ_NAMES = ("hubert",)
"""The model's names in fairseq."""
FAIRSEQ_HEADS = ("label_embs_concat", "final_proj.", "target_glu.", "proj.", "num_updates")
OPTIONAL = frozenset({"mask_embedding"})
"""Absent from models that were trained without masking, and of no use outside of training."""


def config_from_transformers(config: Mapping[str, Any], *, normalize: bool) -> HubertConfig:
    """Reads transformers' config.json.

    Args:
        config: its content.
        normalize: `do_normalize` of preprocessor_config.json.

    Raises:
        ConfigError: the model has a part that HuBERT as published has not.
    """
    for key, needed in (("hidden_act", "gelu"), ("feat_extract_activation", "gelu"), ("conv_pos_batch_norm", False)):
        if config.get(key, needed) != needed:
            raise ConfigError(f"`{key}` of a HuBERT model must be {needed!r}, but is {config[key]!r}: not supported.")
    if not config.get("feat_proj_layer_norm", True):
        raise ConfigError("`feat_proj_layer_norm` of a HuBERT model must be true, but is false: not supported.")
    channels = set(config["conv_dim"])
    if len(channels) != 1:
        raise ConfigError(f"`conv_dim` must have one width for all layers, but is {config['conv_dim']}: not supported.")
    return HubertConfig(
        conv_channels=channels.pop(),
        conv_kernels=tuple(config["conv_kernel"]),
        conv_strides=tuple(config["conv_stride"]),
        conv_norm=config["feat_extract_norm"],
        conv_bias=config["conv_bias"],
        normalize=normalize,
        feature_grad_mult=0.1 if config["feat_extract_norm"] == "group" else 1.0,
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        ffn_width=config["intermediate_size"],
        pre_norm=config["do_stable_layer_norm"],
        pos_kernel=config["num_conv_pos_embeddings"],
        pos_groups=config["num_conv_pos_embedding_groups"],
        dropout=config["hidden_dropout"],
        attention_dropout=config["attention_dropout"],
        activation_dropout=config["activation_dropout"],
        input_dropout=config["feat_proj_dropout"],
        layerdrop=config["layerdrop"],
    )


def config_to_transformers(config: HubertConfig) -> dict[str, Any]:
    """Writes the content of transformers' config.json.

    Raises:
        ConfigError: transformers' HuBERT can't hear log-mel frames.
    """
    if config.frontend != "conv_waveform":
        raise ConfigError(
            f"transformers has no HuBERT with frontend '{config.frontend}', only 'conv_waveform': "
            "export to 'speechssl' instead."
        )
    layers = len(config.conv_kernels)
    return {
        "architectures": ["HubertModel"],
        "model_type": "hubert",
        "conv_dim": [config.conv_channels] * layers,
        "conv_kernel": list(config.conv_kernels),
        "conv_stride": list(config.conv_strides),
        "num_feat_extract_layers": layers,
        "feat_extract_norm": config.conv_norm,
        "feat_extract_activation": "gelu",
        "conv_bias": config.conv_bias,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ffn_width,
        "hidden_act": "gelu",
        "do_stable_layer_norm": config.pre_norm,
        "num_conv_pos_embeddings": config.pos_kernel,
        "num_conv_pos_embedding_groups": config.pos_groups,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "feat_proj_dropout": config.input_dropout,
        "layerdrop": config.layerdrop,
        "mask_time_prob": 0.05,
    }


def config_from_fairseq(checkpoint: FairseqCheckpoint, *, origin: str) -> HubertConfig:
    """Reads the settings of a fairseq checkpoint; what is absent has fairseq's default.

    Raises:
        ConfigError: the model has a part that HuBERT as published has not.
    """
    model = checkpoint.model
    for key, needed in (("activation_fn", "gelu"), ("conv_pos_batch_norm", False), ("pos_conv_depth", 1)):
        if model.get(key, needed) != needed:
            raise ConfigError(f"`{key}` of {origin} is {model[key]!r}; only {needed!r} is supported.")
    text = str(model.get("conv_feature_layers") or "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2")
    layers = parse_conv_layers(text, origin=origin)
    if len({channels for channels, _, _ in layers}) != 1:
        raise ConfigError(f"`conv_feature_layers` of {origin} must have one width, but is '{text}': not supported.")
    return HubertConfig(
        conv_channels=layers[0][0],
        conv_kernels=tuple(kernel for _, kernel, _ in layers),
        conv_strides=tuple(stride for _, _, stride in layers),
        conv_norm="layer" if model.get("extractor_mode") == "layer_norm" else "group",
        conv_bias=bool(model.get("conv_bias", False)),
        normalize=bool(checkpoint.task.get("normalize", False)),
        feature_grad_mult=float(model.get("feature_grad_mult", 1.0)),
        width=int(model.get("encoder_embed_dim", 768)),
        depth=int(model.get("encoder_layers", 12)),
        heads=int(model.get("encoder_attention_heads", 12)),
        ffn_width=int(model.get("encoder_ffn_embed_dim", 3072)),
        pre_norm=bool(model.get("layer_norm_first", False)),
        pos_kernel=int(model.get("conv_pos", 128)),
        pos_groups=int(model.get("conv_pos_groups", 16)),
        dropout=float(model.get("dropout", 0.1)),
        attention_dropout=float(model.get("attention_dropout", 0.1)),
        activation_dropout=float(model.get("activation_dropout", 0.0)),
        input_dropout=float(model.get("dropout_input", 0.0)),
        layerdrop=float(model.get("encoder_layerdrop", 0.0)),
    )


def from_fairseq(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames fairseq's weights to ours; heads are dropped, names that nobody knows are kept as they are."""
    return rename_weights(state, heads=FAIRSEQ_HEADS)


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames transformers' weights to ours; heads are dropped, names that nobody knows are kept as they are.

    Args:
        state: with or without the 'hubert.' of models with a head, and with either name of weight norm.
    """
    plain = {key.removeprefix("hubert."): value for key, value in state.items() if not key.startswith(HEADS)}
    renamed = {_our_name(key): value for key, value in plain.items()}
    for key in [k for k in renamed if ".attention.q_proj." in k]:
        names = [key.replace("q_proj", part) for part in ("q_proj", "k_proj", "v_proj")]
        if all(name in renamed for name in names):
            renamed[key.replace("q_proj", "qkv")] = torch.cat([renamed.pop(name) for name in names])
    return renamed


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames our weights to those of transformers' HubertModel."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        if ".attention.qkv." in key:
            parts = (_their_name(key.replace("qkv", part)) for part in ("q_proj", "k_proj", "v_proj"))
            result.update(zip(parts, (p.clone() for p in value.chunk(3)), strict=True))
        else:
            result[_their_name(key)] = value
    return result


def _our_name(key: str) -> str:
    for old, new in WEIGHT_NORM.items():
        key = re.sub(rf"\.{old}$", f".{new}", key)
    if match := re.fullmatch(r"feature_extractor\.conv_layers\.(\d+)\.(conv|layer_norm)\.(\w+)", key):
        index, part, rest = match.groups()
        return f"frontend.{'convs' if part == 'conv' else 'norms'}.{index}.{rest}"
    if match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(\w+)", key):
        index, part, rest = match.groups()
        return f"encoder.blocks.{index}.{BLOCK.get(part, part)}.{rest}"
    return _replace_prefix(key, REST)


def _their_name(key: str) -> str:
    if match := re.fullmatch(r"frontend\.(convs|norms)\.(\d+)\.(\w+)", key):
        part, index, rest = match.groups()
        return f"feature_extractor.conv_layers.{index}.{'conv' if part == 'convs' else 'layer_norm'}.{rest}"
    if match := re.fullmatch(r"encoder\.blocks\.(\d+)\.(.+)\.(\w+)", key):
        index, part, rest = match.groups()
        return f"encoder.layers.{index}.{_inverse(BLOCK).get(part, part)}.{rest}"
    return _replace_prefix(key, _inverse(REST))


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {new: old for old, new in names.items()}


def _replace_prefix(key: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        if key == old or key.startswith(old + "."):
            return new + key[len(old) :]
    return key
