"""Between our names of settings and weights of the wav2vec 2.0 architecture and those of fairseq."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor

from speechssl.contextual.config import ContextualConfig
from speechssl.contextual.names import inverse, join_projections, rename_weight_norm, replace_prefix
from speechssl.errors import ConfigError
from speechssl.fairseq_format import FairseqCheckpoint, parse_conv_layers

C = TypeVar("C", bound=ContextualConfig)
PLACES = {"post_extract_proj": "projection", "layer_norm": "feature_norm", "mask_emb": "mask_embedding"}
BLOCK = {
    "self_attn.out_proj": "attention.output",
    "self_attn_layer_norm": "attention_norm",
    "fc1": "fc1",
    "fc2": "fc2",
    "final_layer_norm": "ffn_norm",
    "self_attn.grep_linear": "attention.gate.projection",
    "self_attn.grep_a": "attention.gate.scale",
}
RELATIVE_BIAS = "encoder.layers.0.self_attn.relative_attention_bias.weight"
"""All blocks use that of the first."""
POSITIONS = (
    (r"^encoder\.pos_conv\.(\d+)\.0\.(weight|bias)$", r"encoder.position.convs.\1.\2"),
    (r"^encoder\.pos_conv\.0\.", "encoder.position.conv."),
    (r"^encoder\.layer_norm\.", "encoder.norm."),
)
"""Several convolutions, or one and its weight norm; and the norm that follows."""
ADAPTER = {
    "ln_W": "norm.weight",
    "ln_b": "norm.bias",
    "W_a": "down.weight",
    "b_a": "down.bias",
    "W_b": "up.weight",
    "b_b": "up.bias",
}
"""Each holds all adapters of a block; only models with one can be read."""


def config_from_fairseq(checkpoint: FairseqCheckpoint, kind: type[C], *, origin: str) -> C:
    """Reads the settings of a fairseq checkpoint; what is absent has fairseq's default.

    Raises:
        ConfigError: the model has a part that the published ones have not.
    """
    model = checkpoint.model
    for key, needed in (("activation_fn", "gelu"), ("conv_pos_batch_norm", False)):
        if model.get(key, needed) != needed:
            raise ConfigError(f"`{key}` of {origin} is {model[key]!r}; only {needed!r} is supported.")
    layers = _conv_layers(model, origin)
    depth = int(model.get("pos_conv_depth", 1))
    kernel = int(model.get("conv_pos", 128))
    relative = bool(model.get("relative_position_embedding", False))
    return kind(
        sample_rate=int(checkpoint.task.get("sample_rate") or kind.sample_rate),
        label_rate=_label_rate(checkpoint),
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
        pos_kernel=kernel if depth == 1 else max(3, kernel // depth),
        pos_groups=int(model.get("conv_pos_groups", 16)),
        pos_depth=depth,
        relative_buckets=int(model.get("num_buckets", 320)) if relative else 0,
        relative_distance=int(model.get("max_distance", 1280)) if relative else kind.relative_distance,
        relative_gate=bool(model.get("gru_rel_pos", False)) or not relative,
        adapter_width=_adapter_width(checkpoint.state, origin),
        dropout=float(model.get("dropout", 0.1)),
        attention_dropout=float(model.get("attention_dropout", 0.1)),
        activation_dropout=float(model.get("activation_dropout", 0.0)),
        input_dropout=float(model.get("dropout_input", 0.0)),
        layerdrop=float(model.get("encoder_layerdrop", 0.0)),
    )


def _conv_layers(model: Mapping[str, Any], origin: str) -> list[tuple[int, int, int]]:
    text = str(model.get("conv_feature_layers") or "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2")
    layers = parse_conv_layers(text, origin=origin)
    if len({channels for channels, _, _ in layers}) != 1:
        raise ConfigError(f"`conv_feature_layers` of {origin} must have one width, but is '{text}': not supported.")
    return layers


def _label_rate(checkpoint: FairseqCheckpoint) -> float | None:
    for settings in (checkpoint.task, checkpoint.model):  # the model's may be a reference to the task's
        rate = settings.get("label_rate")
        if isinstance(rate, int | float) and rate > 0:  # -1: of a sequence, not of frames
            return float(rate)
    return None


def rename_weights(state: Mapping[str, Tensor], *, heads: tuple[str, ...]) -> dict[str, Tensor]:
    """Renames fairseq's weights to those of our shared parts; names that nobody knows are kept as they are.

    Args:
        state: by fairseq's names; query, key and value projections become one.
        heads: beginnings of names that are no part of the upstream.
    """
    kept = {k: v[0] if ".adapter_layer." in k else v for k, v in state.items() if not k.startswith(heads)}
    return join_projections({_our_name(k): v.float() for k, v in kept.items()})


def their_name(key: str) -> str:
    """fairseq's name of a weight, from ours; {q,k,v}_proj stands for the three that are one here."""
    if key == "encoder.relative_bias.bias.weight":
        return RELATIVE_BIAS
    if match := re.fullmatch(r"frontend\.(convs|norms)\.(\d+)\.(\w+)", key):
        part, index, rest = match.groups()
        return f"feature_extractor.conv_layers.{index}.{'0' if part == 'convs' else '2'}.{rest}"
    key = re.sub(r"^encoder\.position\.convs\.(\d+)\.", r"encoder.pos_conv.\1.0.", key)
    key = replace_prefix(key, {"encoder.position.conv": "encoder.pos_conv.0", "encoder.norm": "encoder.layer_norm"})
    if match := re.fullmatch(r"encoder\.blocks\.(\d+)\.(.+)", key):
        part = match[2].replace("attention.qkv.", "self_attn.{q,k,v}_proj.")
        part = re.sub(r"^attention\.([qkv]_proj)", r"self_attn.\1", part)
        if part.startswith("adapter."):
            inside = part.removeprefix("adapter.")
            return f"encoder.layers.{match[1]}.adapter_layer.{inverse(ADAPTER).get(inside, inside)}"
        return f"encoder.layers.{match[1]}.{replace_prefix(part, inverse(BLOCK))}"
    return replace_prefix(key, inverse(PLACES))


def _adapter_width(state: Mapping[str, Tensor], origin: str) -> int | None:
    """From the weights, since the settings of pre-training, which are what is read, have none."""
    shapes = {tuple(v.shape) for k, v in state.items() if k.endswith(".adapter_layer.W_a")}
    if not shapes:
        return None
    count, width, _ = shapes.pop()
    if shapes or count != 1:
        raise ConfigError(f"{origin} must hold one adapter of one width per block, but holds {count} or of several.")
    return int(width)


def _our_name(key: str) -> str:
    key = rename_weight_norm(key)
    # A layer is (convolution, dropout, norm, GELU), the norm in large models (transpose, norm, transpose).
    if match := re.fullmatch(r"feature_extractor\.conv_layers\.(\d+)\.(0|2|2\.1)\.(weight|bias)", key):
        index, place, rest = match.groups()
        return f"frontend.{'convs' if place == '0' else 'norms'}.{index}.{rest}"
    if key == RELATIVE_BIAS:
        return "encoder.relative_bias.bias.weight"
    for pattern, name in POSITIONS:
        key = re.sub(pattern, name, key)
    if match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(\w+)", key):
        index, part, rest = match.groups()
        if part == "adapter_layer":
            return f"encoder.blocks.{index}.adapter.{ADAPTER.get(rest, rest)}"
        if part.endswith(("q_proj", "k_proj", "v_proj")):
            return f"encoder.blocks.{index}.{part.replace('self_attn.', 'attention.')}.{rest}"
        return f"encoder.blocks.{index}.{replace_prefix(f'{part}.{rest}', BLOCK)}"
    head, dot, rest = key.partition(".")
    return PLACES.get(head, head) + dot + rest
