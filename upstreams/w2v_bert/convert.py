"""The formats that w2v-BERT comes in: transformers' folders, and fairseq2's files of weights."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from speechssl.encoder import conformer_names
from speechssl.errors import ConfigError
from speechssl.formats import ForeignModel, Formats, TransformersFolder
from upstreams.w2v_bert.config import W2vBertConfig

MODEL_TYPE = "wav2vec2-bert"
PREFIX = "wav2vec2_bert."
"""Of the upstream's weights in models with a head."""
HEADS = (
    "adapter.",
    "intermediate_ffn.",
    "lm_head.",
    "projector.",
    "classifier.",
    "layer_weights",
    "tdnn.",
    "objective.",
)
"""Beginnings of names of what follows the last hidden state."""
REST = {
    "masked_spec_embed": "mask_embedding",
    "feature_projection.layer_norm": "feature_norm",
    "feature_projection.projection": "projection",
}
FAIRSEQ2_REST = {
    "masker.temporal_mask_embed": "mask_embedding",
    "encoder_frontend.post_extract_layer_norm": "feature_norm",
    "encoder_frontend.model_dim_proj": "projection",
}
FAIRSEQ2_HEADS = ("quantizer.", "final_proj.", "final_target_proj.", "final_bert_proj.")
OPTIONAL = frozenset({"mask_embedding"})
"""Absent from models that were fine-tuned without masking."""
LIMITS = {73: (64, 8)}
"""Number of distances -> the largest to the left and to the right, of the published models."""


class W2vBertFormats(Formats):
    """Settings and weights of w2v-BERT in the formats of transformers and fairseq2."""

    model_types = (MODEL_TYPE,)

    def read_file(self, content: Any, *, origin: str) -> ForeignModel | None:
        """Reads a file of fairseq2 (or of Seamless Communication); its settings are told by the weights' shapes."""
        state = content.get("model", content) if isinstance(content, Mapping) else None
        if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
            return None
        state = {str(k).removeprefix("module.").removeprefix("w2v2_model."): v for k, v in state.items()}
        convolutions = any(k.startswith("encoder_frontend.feature_extractor.") for k in state)
        if "encoder.layers.0.ffn1_layer_norm.weight" not in state or convolutions:
            return None
        config = _config_from_fairseq2(state, origin)
        used = {_renamed(k, FAIRSEQ2_REST): v for k, v in state.items() if not k.startswith(FAIRSEQ2_HEADS)}
        return ForeignModel(config, conformer_names.from_fairseq(used, conformer_names.FAIRSEQ2), OPTIONAL)

    def read_transformers(self, folder: TransformersFolder) -> ForeignModel:
        """Reads a folder of transformers' format; an adapter after the last block makes no hidden state."""
        theirs = folder.description
        for key, needed in (("hidden_act", ("swish", "silu")), ("layer_norm_eps", (1e-5,))):
            if theirs.get(key) not in needed:
                raise ConfigError(
                    f"`{key}` of {folder.origin} is {theirs.get(key)!r}; only {needed[0]!r} is supported."
                )
        positions = theirs.get("position_embeddings_type")
        if positions not in ("relative", "relative_key"):
            raise ConfigError(f"`position_embeddings_type` of {folder.origin} is {positions!r}: not supported.")
        num_mel_bins = int(folder.preprocessor.get("num_mel_bins", 80))
        config = W2vBertConfig(
            sample_rate=int(folder.preprocessor.get("sampling_rate", 16_000)),
            num_mel_bins=num_mel_bins,
            stack=int(theirs["feature_projection_input_dim"]) // num_mel_bins,
            width=theirs["hidden_size"],
            depth=theirs["num_hidden_layers"],
            heads=theirs["num_attention_heads"],
            ffn_width=theirs["intermediate_size"],
            positions=positions,
            left_limit=theirs["left_max_position_embeddings"],
            right_limit=theirs["right_max_position_embeddings"],
            block_kernel=theirs["conv_depthwise_kernel_size"],
            dropout=theirs["hidden_dropout"],
            attention_dropout=theirs["attention_dropout"],
            activation_dropout=theirs["activation_dropout"],
            conv_dropout=theirs["conformer_conv_dropout"],
            input_dropout=theirs["feat_proj_dropout"],
            layerdrop=theirs["layerdrop"],
        )
        plain = {k.removeprefix(PREFIX): v for k, v in folder.state.items()}
        used = {_renamed(k, REST): v for k, v in plain.items() if not k.startswith(HEADS)}
        return ForeignModel(config, conformer_names.from_transformers(used), OPTIONAL)

    def write_transformers(self, config: W2vBertConfig, state: Mapping[str, Tensor]) -> TransformersFolder:
        """Writes a folder of transformers' format.

        Raises:
            ConfigError: transformers has only causal convolutions with layer norms.
        """
        if not config.causal or config.block_norm != "layer":
            raise ConfigError(
                "transformers has w2v-BERT with causal convolutions and layer norms only, but `causal` is "
                f"{config.causal} and `block_norm` '{config.block_norm}': export to 'speechssl' instead."
            )
        description = {
            "architectures": ["Wav2Vec2BertModel"],
            "model_type": MODEL_TYPE,
            "feature_projection_input_dim": config.num_mel_bins * config.stack,
            "hidden_size": config.width,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.heads,
            "intermediate_size": config.ffn_width,
            "hidden_act": "swish",
            "layer_norm_eps": 1e-5,
            "position_embeddings_type": config.positions,
            "left_max_position_embeddings": config.left_limit,
            "right_max_position_embeddings": config.right_limit,
            "conv_depthwise_kernel_size": config.block_kernel,
            "hidden_dropout": config.dropout,
            "attention_dropout": config.attention_dropout,
            "activation_dropout": config.activation_dropout,
            "conformer_conv_dropout": config.conv_dropout,
            "feat_proj_dropout": config.input_dropout,
            "layerdrop": config.layerdrop,
            "mask_time_prob": 0.05,
        }
        preprocessor = {
            "feature_extractor_type": "SeamlessM4TFeatureExtractor",
            "feature_size": config.num_mel_bins,
            "num_mel_bins": config.num_mel_bins,
            "padding_side": "right",
            "padding_value": 1.0,
            "return_attention_mask": True,
            "sampling_rate": config.sample_rate,
            "stride": config.stack,
        }
        theirs = {ours: name for name, ours in REST.items()}
        weights = conformer_names.to_transformers(state, conv_norm="depthwise_layer_norm")
        return TransformersFolder(description, {_renamed(k, theirs): v for k, v in weights.items()}, preprocessor)


def _config_from_fairseq2(state: Mapping[str, Tensor], origin: str) -> W2vBertConfig:
    """Reads the settings off the shapes; fairseq2 notes them elsewhere."""
    try:
        width, inputs = state["encoder_frontend.model_dim_proj.weight"].shape
        block = "encoder.layers.0."
        learned = state.get(f"{block}self_attn.sdpa.rel_k_embed.weight")
        head = (state[f"{block}self_attn.sdpa.u_bias"] if learned is None else learned).size(1)
        ffn_width = state[f"{block}ffn1.inner_proj.weight"].size(0)
        kernel = state[f"{block}conv.depthwise_conv.weight"].size(2)
    except KeyError as error:
        raise ConfigError(f"{origin} lacks {error}, so it is no whole w2v-BERT of fairseq2: check the file.") from error
    if learned is not None and learned.size(0) not in LIMITS:
        raise ConfigError(f"{origin} tells {learned.size(0)} distances apart; only {list(LIMITS)} are known.")
    left, right = (64, 8) if learned is None else LIMITS[learned.size(0)]
    causal = f"{block}conv.batch_norm.weight" not in state
    return W2vBertConfig(
        stack=inputs // W2vBertConfig.num_mel_bins,
        width=width,
        depth=len({match[0] for key in state if (match := re.match(r"encoder\.layers\.\d+", key))}),
        heads=width // head,
        ffn_width=ffn_width,
        positions="relative" if learned is None else "relative_key",
        left_limit=left,
        right_limit=right,
        block_kernel=kernel,
        causal=causal,
        block_norm="layer" if causal else "batch",
        conv_dropout=0.0,
        layerdrop=0.0,
    )


def _renamed(key: str, names: Mapping[str, str]) -> str:
    part = next((p for p in names if key == p or key.startswith(p + ".")), None)
    return key if part is None else names[part] + key[len(part) :]


FORMATS = W2vBertFormats()
