"""Between our names of settings and weights of the wav2vec 2.0 architecture and those of transformers.

The query, key and value projections, three matrices there, are one here.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor

from speechssl.contextual.config import ContextualConfig
from speechssl.contextual.names import inverse, join_projections, rename_weight_norm, replace_prefix
from speechssl.errors import ConfigError
from speechssl.formats import TransformersFolder

C = TypeVar("C", bound=ContextualConfig)
BLOCK = {
    "attention.out_proj": "attention.output",
    "layer_norm": "attention_norm",
    "feed_forward.intermediate_dense": "fc1",
    "feed_forward.output_dense": "fc2",
    "final_layer_norm": "ffn_norm",
    "adapter_layer.norm": "adapter.norm",
    "adapter_layer.linear_1": "adapter.down",
    "adapter_layer.linear_2": "adapter.up",
    "attention.gru_rel_pos_linear": "attention.gate.projection",
    "attention.gru_rel_pos_const": "attention.gate.scale",
}
REST = {
    "masked_spec_embed": "mask_embedding",
    "feature_projection.layer_norm": "feature_norm",
    "feature_projection.projection": "projection",
    "encoder.layer_norm": "encoder.norm",
    "encoder.pos_conv_embed.conv": "encoder.position.conv",
    "encoder.layers.0.attention.rel_attn_embed": "encoder.relative_bias.bias",
}
NEEDED = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "conv_pos_batch_norm": False,
}
"""Settings that the published models have; others would need parts that are not built."""
HEAD = "adapter."
"""Convolutions after the last block (`add_adapter`), which make no hidden state."""


def config_from_transformers(folder: TransformersFolder, kind: type[C]) -> C:
    """Reads transformers' config.json and preprocessor_config.json.

    Args:
        folder: with both; without the latter, waveforms are normalised where the convolutions have layer norms.
        kind: the family's config.

    Raises:
        ConfigError: the model has a part that the published ones have not.
    """
    config, name = folder.description, folder.model_type
    for key, needed in NEEDED.items():
        if config.get(key, needed) != needed:
            raise ConfigError(f"`{key}` of a {name} model must be {needed!r}, but is {config[key]!r}: not supported.")
    channels = set(config["conv_dim"])
    if len(channels) != 1:
        raise ConfigError(f"`conv_dim` must have one width for all layers, but is {config['conv_dim']}: not supported.")
    return kind(
        conv_channels=channels.pop(),
        conv_kernels=tuple(config["conv_kernel"]),
        conv_strides=tuple(config["conv_stride"]),
        conv_norm=config["feat_extract_norm"],
        conv_bias=config["conv_bias"],
        normalize=bool(folder.preprocessor.get("do_normalize", config["feat_extract_norm"] == "layer")),
        sample_rate=int(folder.preprocessor.get("sampling_rate", kind.sample_rate)),
        feature_grad_mult=0.1 if config["feat_extract_norm"] == "group" else 1.0,
        feature_norm=config.get("feat_proj_layer_norm", True),
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        ffn_width=config["intermediate_size"],
        pre_norm=config["do_stable_layer_norm"],
        pos_kernel=config["num_conv_pos_embeddings"],
        pos_groups=config["num_conv_pos_embedding_groups"],
        # Where the norms come after, transformers builds no adapters whatever the config says.
        adapter_width=config.get("adapter_attn_dim") if config["do_stable_layer_norm"] else None,
        relative_buckets=config.get("num_buckets", 320) if name == "wavlm" else 0,
        relative_distance=config.get("max_bucket_distance", 800) if name == "wavlm" else kind.relative_distance,
        dropout=config["hidden_dropout"],
        attention_dropout=config["attention_dropout"],
        activation_dropout=config["activation_dropout"],
        input_dropout=config["feat_proj_dropout"],
        layerdrop=config["layerdrop"],
    )


def config_to_transformers(config: ContextualConfig, *, model_type: str, architecture: str) -> dict[str, Any]:
    """Writes the content of transformers' config.json.

    Raises:
        ConfigError: transformers' models of this type have no such parts.
    """
    _check_counterpart(config, model_type, architecture)
    layers = len(config.conv_kernels)
    optional: dict[str, Any] = {} if config.feature_norm else {"feat_proj_layer_norm": False}
    if config.adapter_width is not None:
        optional["adapter_attn_dim"] = config.adapter_width
    if config.relative_buckets > 0:
        optional |= {"num_buckets": config.relative_buckets, "max_bucket_distance": config.relative_distance}
    return {
        "architectures": [architecture],
        "model_type": model_type,
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
        **optional,
    }


def _check_counterpart(config: ContextualConfig, model_type: str, architecture: str) -> None:
    has_adapters = model_type == "wav2vec2" and config.pre_norm
    for key, possible in (
        ("frontend", config.frontend == "conv_waveform"),
        ("pos_depth", config.pos_depth == 1),
        ("alibi", not config.alibi),
        ("relative_buckets", (config.relative_buckets > 0) == (model_type == "wavlm")),
        ("relative_gate", config.relative_gate),
        ("feature_norm", config.feature_norm or model_type == "hubert"),
        ("adapter_width", config.adapter_width is None or has_adapters),
    ):
        if not possible:
            value = getattr(config, key)
            raise ConfigError(
                f"transformers has no {architecture} with {key} {value!r}: export to 'speechssl' instead."
            )


def from_transformers(state: Mapping[str, Tensor], *, prefix: str, heads: tuple[str, ...]) -> dict[str, Tensor]:
    """Renames transformers' weights to ours; heads are dropped, names that nobody knows are kept as they are.

    Args:
        state: with either name of weight norm.
        prefix: such as 'hubert.', which models with a head have before the upstream's names, and only before those.
        heads: beginnings of names that are no part of the upstream, in models without the prefix.
    """
    plain = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not plain:
        plain = {key: value for key, value in state.items() if not key.startswith(heads)}
    return join_projections({_our_name(key): value for key, value in plain.items() if not key.startswith(HEAD)})


def their_name(key: str) -> str:
    """transformers' name of a weight, from ours; {q,k,v}_proj stands for the three that are one here."""
    return _their_name(key.replace(".attention.qkv.", ".attention.{q,k,v}_proj."))


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames our weights to those of transformers."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        if ".attention.qkv." in key:
            parts = (_their_name(key.replace("qkv", part)) for part in ("q_proj", "k_proj", "v_proj"))
            result.update(zip(parts, (p.clone() for p in value.chunk(3)), strict=True))
        else:
            result[_their_name(key)] = value
    return result


def _our_name(key: str) -> str:
    key = rename_weight_norm(key)
    if match := re.fullmatch(r"feature_extractor\.conv_layers\.(\d+)\.(conv|layer_norm)\.(\w+)", key):
        index, part, rest = match.groups()
        return f"frontend.{'convs' if part == 'conv' else 'norms'}.{index}.{rest}"
    renamed = replace_prefix(key, REST)
    if match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", renamed):
        return f"encoder.blocks.{match[1]}.{replace_prefix(match[2], BLOCK)}"
    return renamed


def _their_name(key: str) -> str:
    if match := re.fullmatch(r"frontend\.(convs|norms)\.(\d+)\.(\w+)", key):
        part, index, rest = match.groups()
        return f"feature_extractor.conv_layers.{index}.{'conv' if part == 'convs' else 'layer_norm'}.{rest}"
    if match := re.fullmatch(r"encoder\.blocks\.(\d+)\.(.+)", key):
        return f"encoder.layers.{match[1]}.{replace_prefix(match[2], inverse(BLOCK))}"
    return replace_prefix(key, inverse(REST))
