"""Between our settings and weights of the wav2vec 2.0 architecture and those of torchaudio, which saves weights alone.

The settings are read off the weights' names and shapes. What shapes don't tell is taken from torchaudio's builders and
bundles: the strides and heads that go with the published kernels and widths; and that models with a layer norm after
each convolution, and only those, have the norms before attention and normalise the waveform (`wav2vec2_large` has a
group norm, norms after and no normalisation, unlike `wav2vec2_large_lv60k`).

The weights of a plain HuBERT model have the names and shapes of a wav2vec 2.0 model, and are read as one: the numbers
are the same.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor

from speechssl.contextual import transformers_format
from speechssl.contextual.config import ContextualConfig
from speechssl.contextual.names import WEIGHT_NORM
from speechssl.errors import ConfigError

C = TypeVar("C", bound=ContextualConfig)
HEADS = {768: 12, 1024: 16, 1280: 16, 1920: 16}
"""Attention heads of the published widths."""
GATE = "encoder.transformer.layers.0.attention.gru_rel_pos_const"
MASK = "mask_generator.mask_embedding"
POSITION = "encoder.transformer.pos_conv_embed.conv."
VALUES = WEIGHT_NORM["weight_v"]
HEAD_NAMES = ("aux.", "logit_generator.")
"""Of the head of a model that was fine-tuned with CTC, and of pre-training."""
PLACES = (
    (r"^encoder\.transformer\.", "encoder."),
    (r"^encoder\.feature_projection\.", "feature_projection."),
    (r"\.attention\.attention\.in_proj_(weight|bias)$", r".attention.qkv.\1"),
    (r"\.attention\.attention\.out_proj\.", ".attention.out_proj."),
    (rf"^{re.escape(MASK)}$", "masked_spec_embed"),
)
"""From torchaudio's names to those of transformers, which are alike."""
BACK = (
    (r"^encoder\.", "encoder.transformer."),
    (r"^feature_projection\.", "encoder.feature_projection."),
    (r"^masked_spec_embed$", MASK),
)


def weights_of(content: Any) -> dict[str, Tensor]:
    """The weights in a file of torchaudio, without the prefixes of what wraps the model; empty where it is none.

    The prefixes are 'model.' of the bundles and of training, and 'wav2vec2.' of `HuBERTPretrainModel`.
    """
    if not isinstance(content, Mapping):
        return {}
    state = content.get("state_dict", content)  # where training saved more than weights
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        return {}
    plain = {re.sub(r"^(model\.)?(wav2vec2\.)?", "", str(key)): value for key, value in state.items()}
    return plain if any(key.startswith("encoder.transformer.layers.") for key in plain) else {}


def model_type(weights: Mapping[str, Tensor]) -> str:
    """transformers' name of the architecture: 'wavlm', 'hubert' (of pre-training) or 'wav2vec2'; '' for no weights."""
    if not weights:
        return ""
    if GATE in weights:
        return "wavlm"
    return "hubert" if MASK in weights else "wav2vec2"


def config_from_weights(weights: Mapping[str, Tensor], kind: type[C], *, origin: str) -> C:
    """Reads the settings off names and shapes.

    Args:
        weights: from `weights_of`.
        kind: the family's config.
        origin: named in errors.

    Raises:
        ConfigError: a shape that no published model has, so that the rest of the settings can't be told.
    """
    convs = [_shape(weights, f"feature_extractor.conv_layers.{i}.conv.weight", origin) for i in _indices(weights)]
    kernels = tuple(kernel for _, _, kernel in convs)
    if kernels != kind.conv_kernels or len({channels for channels, _, _ in convs}) != 1:
        raise ConfigError(
            f"The convolutions of {origin} have kernels {kernels}, but torchaudio's published models have "
            f"{kind.conv_kernels}: the strides can't be told from the weights."
        )
    width, _ = _shape(weights, "encoder.feature_projection.projection.weight", origin)
    layer_norm = "feature_extractor.conv_layers.1.layer_norm.weight" in weights
    _, group, pos_kernel = _shape(weights, _positional(weights), origin)
    ffn = _shape(weights, "encoder.transformer.layers.0.feed_forward.intermediate_dense.weight", origin)
    buckets = weights.get("encoder.transformer.layers.0.attention.rel_attn_embed.weight")
    return kind(
        conv_channels=convs[0][0],
        conv_norm="layer" if layer_norm else "group",
        conv_bias="feature_extractor.conv_layers.0.conv.bias" in weights,
        normalize=layer_norm,
        feature_grad_mult=1.0 if layer_norm else 0.1,
        width=width,
        depth=1 + max(int(k.split(".")[3]) for k in weights if k.startswith("encoder.transformer.layers.")),
        heads=_heads(weights, width, origin),
        ffn_width=ffn[0],
        pre_norm=layer_norm,
        pos_kernel=pos_kernel,
        pos_groups=width // group,
        relative_buckets=0 if buckets is None else buckets.size(0),
    )


def rename_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames torchaudio's weights to ours; heads are dropped, names that nobody knows are kept as they are."""
    renamed = {}
    for key, value in weights.items():
        if not key.startswith(HEAD_NAMES):
            new = key
            for pattern, name in PLACES:
                new = re.sub(pattern, name, new)
            renamed[new] = value
    return transformers_format.from_transformers(renamed, prefix="\0", heads=())


def their_name(key: str) -> str:
    """torchaudio's name of a weight, from ours; of attention's projections, that of models other than WavLM."""
    name = transformers_format.their_name(key)
    for pattern, new in BACK:
        name = re.sub(pattern, new, name)
    return name


def _indices(weights: Mapping[str, Tensor]) -> range:
    pattern = re.compile(r"feature_extractor\.conv_layers\.(\d+)\.conv\.weight")
    return range(len([key for key in weights if pattern.fullmatch(key)]))


def _positional(weights: Mapping[str, Tensor]) -> str:
    return next((POSITION + name for name in ("weight_v", "weight") if POSITION + name in weights), POSITION + VALUES)


def _heads(weights: Mapping[str, Tensor], width: int, origin: str) -> int:
    if GATE in weights:
        return weights[GATE].size(1)
    if width not in HEADS:
        raise ConfigError(
            f"{origin} holds weights of torchaudio of width {width}, which don't tell the number of heads (known are "
            f"{', '.join(map(str, HEADS))}): load a format that has settings, such as transformers'."
        )
    return HEADS[width]


def _shape(weights: Mapping[str, Tensor], key: str, origin: str) -> tuple[int, ...]:
    if key not in weights:
        raise ConfigError(f"{origin} looks like a model of torchaudio, but lacks '{key}': download it again.")
    return tuple(weights[key].shape)
