"""The names that fairseq gives the weights of transformers' models of the wav2vec 2.0 architecture.

Written from fairseq's side once more, so that what reads them is not tested against itself.
"""

from collections.abc import Mapping

from torch import Tensor

NAMES = {
    "feature_projection.layer_norm": "layer_norm",
    "feature_projection.projection": "post_extract_proj",
    "masked_spec_embed": "mask_emb",
    "attention.": "self_attn.",
    "feed_forward.intermediate_dense": "fc1",
    "feed_forward.output_dense": "fc2",
    "pos_conv_embed.conv": "pos_conv.0",
    "pos_conv_embed.layers": "pos_conv",
}
WEIGHT_NORM = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
ADAPTER = {
    "linear_1.weight": "W_a",
    "linear_1.bias": "b_a",
    "linear_2.weight": "W_b",
    "linear_2.bias": "b_b",
    "norm.weight": "ln_W",
    "norm.bias": "ln_b",
}


def fairseq_weights(state: Mapping[str, Tensor], *, norm: str) -> dict[str, Tensor]:
    """Renames weights; the `norm` of convolutions is "group" or "layer". Adapters, one per block, are stacked."""
    result = {}
    for key, value in old_weight_norm(state).items():
        if ".adapter_layer." in key:
            block, inside = key.split(".adapter_layer.")
            result[f"{block}.adapter_layer.{ADAPTER[inside]}"] = value[None]
        else:
            result[_name(key, norm)] = value
    return result


def old_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives the parts of weight norm the names that they had before torch 2.0."""
    renamed = dict(state)
    for new, old in WEIGHT_NORM.items():
        renamed = {key.replace(new, old): value for key, value in renamed.items()}
    return renamed


def _name(key: str, norm: str) -> str:
    if "conv_layers" in key:
        key = key.replace(".conv.", ".0.").replace(".layer_norm.", ".2.1." if norm == "layer" else ".2.")
    elif "encoder.layers" in key:
        key = key.replace(".layer_norm.", ".self_attn_layer_norm.")
    elif "pos_conv_embed.layers" in key:
        key = key.replace(".conv.", ".0.")
    for old, new in NAMES.items():
        key = key.replace(old, new)
    return key
