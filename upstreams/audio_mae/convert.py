"""The authors' checkpoints of Audio-MAE, pre-trained or fine-tuned, and weights alone by timm's names."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from speechssl.errors import SpeechsslError
from speechssl.formats import ForeignModel, Formats
from speechssl.patches.names import count_blocks, rename_vit, require
from upstreams.audio_mae.config import AudioMaeConfig

HEAD_WIDTH = 64
PATCH = 16
UNUSED = ("decoder_", "mask_token", "head.", "fc_norm.")
"""Beginnings of names that are of pre-training or of a task."""
SHAPES = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "blocks.0.mlp.fc1.weight")
"""Names of weights without which a model's shapes are not known."""


class AudioMaeFormats(Formats):
    """Audio-MAE's checkpoints."""

    def read_file(self, content: Any, *, origin: str) -> ForeignModel | None:
        """Reads {'model': weights, ...} of the authors, or the weights alone."""
        weights = content.get("model", content) if isinstance(content, Mapping) else None
        if not isinstance(weights, Mapping) or not _is_own(weights):
            return None
        require(weights, SHAPES, origin=origin)
        config = _config_of(weights, origin)
        return ForeignModel(config, _rename(weights, config))


FORMATS = AudioMaeFormats()


def _is_own(weights: Mapping[str, Any]) -> bool:
    """Whether this is timm's vision transformer on patches of one channel: images have three."""
    projection = weights.get("patch_embed.proj.weight")
    return (
        isinstance(projection, Tensor)
        and projection.shape[1:] == (1, PATCH, PATCH)
        and "blocks.0.attn.qkv.weight" in weights
        and "dist_token" not in weights
    )


def _config_of(weights: Mapping[str, Tensor], origin: str) -> AudioMaeConfig:
    """Reads the shapes off the weights."""
    width = weights["patch_embed.proj.weight"].size(0)
    patches = weights["pos_embed"].size(1) - 1
    rows = AudioMaeConfig.num_mel_bins // PATCH
    if width % HEAD_WIDTH or patches <= 0 or patches % rows:
        raise SpeechsslError(
            f"{origin} has {patches} positions of width {width}, but Audio-MAE has {rows} for each column of patches, "
            f"and a width that is a multiple of {HEAD_WIDTH}: is it another model's?"
        )
    return AudioMaeConfig(
        columns=patches // rows,
        width=width,
        depth=count_blocks(weights),
        heads=width // HEAD_WIDTH,
        ffn_width=weights["blocks.0.mlp.fc1.weight"].size(0),
        closing_norm="norm.weight" in weights,
    )


def _rename(weights: Mapping[str, Tensor], config: AudioMaeConfig) -> dict[str, Tensor]:
    state = {rename_vit(key): value for key, value in weights.items() if not key.startswith(UNUSED)}
    table = state.pop("pos_embed")[0]  # (1 + columns rows, D)
    return {
        "prefix": state.pop("cls_token")[0],
        "prefix_position": table[:1].clone(),
        "position": table[1:].reshape(config.columns, -1, table.size(1)).clone(),
        "patches.conv.weight": state.pop("patch_embed.proj.weight"),
        "patches.conv.bias": state.pop("patch_embed.proj.bias"),
        **state,
    }
