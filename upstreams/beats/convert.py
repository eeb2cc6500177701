"""Microsoft's checkpoints of BEATs: {'cfg': settings, 'model': weights}, pre-trained or fine-tuned on AudioSet."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from speechssl.contextual.fairseq_names import rename_weights
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.formats import ForeignModel, Formats
from upstreams.beats.config import BeatsConfig

UNUSED = ("predictor.",)
"""Beginnings of names that are of a task."""
TOKENIZER = "quantize."
"""The beginning of names that only BEATs' tokenizers have."""
SHARED_BIAS = re.compile(r"encoder\.layers\.[1-9]\d*\.self_attn\.relative_attention_bias\.weight")
"""The first block's, under the name of each other block that uses it."""
NEEDED = {"activation_fn": "gelu", "layer_norm_first": False}
"""Settings that the published models have; others would need parts that are not built."""


class BeatsFormats(Formats):
    """BEATs' checkpoints."""

    def read_file(self, content: Any, *, origin: str) -> ForeignModel | None:
        """Reads a checkpoint of Microsoft's."""
        if not isinstance(content, Mapping):
            return None
        settings, weights = content.get("cfg"), content.get("model")
        if not isinstance(settings, Mapping) or not isinstance(weights, Mapping) or "input_patch_size" not in settings:
            return None
        if any(str(name).startswith(TOKENIZER) for name in weights):
            raise SpeechsslError(f"{origin} is a tokenizer of BEATs, not a model: name a model's checkpoint.")
        return ForeignModel(_config_of(settings, origin), _rename(weights))


FORMATS = BeatsFormats()


def _config_of(settings: Mapping[str, Any], origin: str) -> BeatsConfig:
    """Reads the settings; what is absent has the default of Microsoft's code, which is not always the published one."""
    for key, needed in NEEDED.items():
        if settings.get(key, needed) != needed:
            raise ConfigError(f"`{key}` of {origin} is {settings[key]!r}; only {needed!r} is supported.")
    relative = bool(settings.get("relative_position_embedding", False))
    return BeatsConfig(
        patch_size=int(settings["input_patch_size"]),
        patch_bias=bool(settings.get("conv_bias", False)),
        embed_width=int(settings.get("embed_dim", 512)),
        width=int(settings.get("encoder_embed_dim", 768)),
        depth=int(settings.get("encoder_layers", 12)),
        heads=int(settings.get("encoder_attention_heads", 12)),
        ffn_width=int(settings.get("encoder_ffn_embed_dim", 3072)),
        deep_norm=bool(settings.get("deep_norm", False)),
        pos_kernel=int(settings.get("conv_pos", 128)),
        pos_groups=int(settings.get("conv_pos_groups", 16)),
        relative_buckets=int(settings.get("num_buckets", 320)) if relative else 0,
        relative_distance=int(settings.get("max_distance", 1280)),
        relative_gate=bool(settings.get("gru_rel_pos", False)),
        dropout=float(settings.get("dropout", 0.1)),
        attention_dropout=float(settings.get("attention_dropout", 0.1)),
        activation_dropout=float(settings.get("activation_dropout", 0.0)),
    )


def _rename(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kept = {key: value for key, value in weights.items() if not SHARED_BIAS.fullmatch(key)}
    state = rename_weights(kept, heads=UNUSED)
    return {re.sub(r"^patch_embedding\.", "patches.conv.", key): value for key, value in state.items()}
