"""Between our names of a conformer block's weights and those of transformers and fairseq.

Pointwise convolutions are linear layers here; query, key and value projections are one.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

TRANSFORMERS = {
    "ffn1_layer_norm": "ffn1_norm",
    "ffn1.intermediate_dense": "ffn1.fc1",
    "ffn1.output_dense": "ffn1.fc2",
    "self_attn_layer_norm": "attention_norm",
    "self_attn.linear_q": "attention.q",
    "self_attn.linear_k": "attention.k",
    "self_attn.linear_v": "attention.v",
    "self_attn.linear_out": "attention.output",
    "self_attn.linear_pos": "attention.position",
    "self_attn.pos_bias_u": "attention.content_bias",
    "self_attn.pos_bias_v": "attention.position_bias",
    "self_attn.distance_embedding": "attention.distance",
    "conv_module.layer_norm": "conv_norm",
    "conv_module.pointwise_conv1": "conv.pointwise1",
    "conv_module.depthwise_conv": "conv.depthwise",
    "conv_module.batch_norm": "conv.norm",
    "conv_module.depthwise_layer_norm": "conv.norm",
    "conv_module.pointwise_conv2": "conv.pointwise2",
    "ffn2_layer_norm": "ffn2_norm",
    "ffn2.intermediate_dense": "ffn2.fc1",
    "ffn2.output_dense": "ffn2.fc2",
    "final_layer_norm": "norm",
}
"""Names of a block's parts in transformers -> ours."""
FAIRSEQ = {
    "ffn1.layer_norm": "ffn1_layer_norm",
    "ffn1.w_1": "ffn1.intermediate_dense",
    "ffn1.w_2": "ffn1.output_dense",
    "ffn2.layer_norm": "ffn2_layer_norm",
    "ffn2.w_1": "ffn2.intermediate_dense",
    "ffn2.w_2": "ffn2.output_dense",
}
"""Names of a block's parts in fairseq -> in transformers, where they differ."""
FAIRSEQ2 = {
    "ffn1.inner_proj": "ffn1.intermediate_dense",
    "ffn1.output_proj": "ffn1.output_dense",
    "self_attn.q_proj": "self_attn.linear_q",
    "self_attn.k_proj": "self_attn.linear_k",
    "self_attn.v_proj": "self_attn.linear_v",
    "self_attn.output_proj": "self_attn.linear_out",
    "self_attn.sdpa.r_proj": "self_attn.linear_pos",
    "self_attn.sdpa.u_bias": "self_attn.pos_bias_u",
    "self_attn.sdpa.v_bias": "self_attn.pos_bias_v",
    "self_attn.sdpa.rel_k_embed": "self_attn.distance_embedding",
    "conv_layer_norm": "conv_module.layer_norm",
    "conv.pointwise_conv1": "conv_module.pointwise_conv1",
    "conv.depthwise_conv": "conv_module.depthwise_conv",
    "conv.batch_norm": "conv_module.batch_norm",
    "conv.layer_norm": "conv_module.depthwise_layer_norm",
    "conv.pointwise_conv2": "conv_module.pointwise_conv2",
    "ffn2.inner_proj": "ffn2.intermediate_dense",
    "ffn2.output_proj": "ffn2.output_dense",
    "layer_norm": "final_layer_norm",
}
"""Names of a block's parts in fairseq2 -> in transformers, where they differ."""
POINTWISE = (".conv.pointwise1.weight", ".conv.pointwise2.weight")
LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
BLOCK = re.compile(r"encoder\.blocks\.(\d+)\.(.+)")


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames 'encoder.layers.*' to 'encoder.blocks.*' and their parts to ours; other names are kept."""
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        match = LAYER.fullmatch(key)
        name = f"encoder.blocks.{match[1]}.{_renamed(match[2], TRANSFORMERS)}" if match else key
        result[name] = value.squeeze(2) if name.endswith(POINTWISE) and value.dim() == 3 else value
    return _join(result)


def from_fairseq(state: Mapping[str, Tensor], names: Mapping[str, str] = FAIRSEQ) -> dict[str, Tensor]:
    """As `from_transformers`, from the names of fairseq or (`names`) fairseq2; weights become float32."""
    matches = {key: LAYER.fullmatch(key) for key in state}
    renamed = {
        f"encoder.layers.{match[1]}.{_renamed(match[2], names)}" if match else key: state[key]
        for key, match in matches.items()
    }
    return from_transformers({key: v.float() if v.is_floating_point() else v for key, v in renamed.items()})


def to_transformers(state: Mapping[str, Tensor], *, conv_norm: str) -> dict[str, Tensor]:
    """Renames our blocks' weights to those of transformers; other names are kept.

    Args:
        state: by our names.
        conv_norm: 'batch_norm' or 'depthwise_layer_norm', what transformers calls the norm of this model.
    """
    theirs = {ours: name for name, ours in TRANSFORMERS.items()} | {"conv.norm": f"conv_module.{conv_norm}"}
    result: dict[str, Tensor] = {}
    for key, value in _split(state).items():
        match = BLOCK.fullmatch(key)
        name = f"encoder.layers.{match[1]}.{_renamed(match[2], theirs)}" if match else key
        result[name] = value[:, :, None] if key.endswith(POINTWISE) else value
    return result


def _renamed(name: str, names: Mapping[str, str]) -> str:
    part = next((p for p in names if name == p or name.startswith(p + ".")), None)
    return name if part is None else names[part] + name[len(part) :]


def _join(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Makes 'attention.qkv' of each 'attention.q', 'k' and 'v', in place."""
    for key in [k for k in state if ".attention.q." in k]:
        names = [key.replace(".attention.q.", f".attention.{part}.") for part in "qkv"]
        if all(name in state for name in names):
            joined = torch.cat([state.pop(name) for name in names])
            state[key.replace(".attention.q.", ".attention.qkv.")] = joined
    return state


def _split(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        if ".attention.qkv." in key:
            names = (key.replace(".attention.qkv.", f".attention.{part}.") for part in "qkv")
            result.update(zip(names, (part.clone() for part in value.chunk(3)), strict=True))
        else:
            result[key] = value
    return result
