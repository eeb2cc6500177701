"""The formats that SSAST comes in: the authors' .pth, and transformers' audio spectrogram transformer.

Both keep a table of positions with the class and distillation token first, then the patches row by row (frequencies),
and patches with frequencies before time; here a column follows a column, and time comes before frequencies.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.formats import ForeignModel, Formats, TransformersFolder
from speechssl.patches.names import count_blocks, rename_vit, require
from upstreams.ssast import ast_format
from upstreams.ssast.config import SsastConfig

HEAD_WIDTH = 64
"""Of all of DeiT's sizes: 3, 6 and 12 heads at 192, 384 and 768."""
TOKENS = 2
UNUSED = ("cpredlayer.", "gpredlayer.", "mask_embed", "p_input_", "v.head", "mlp_head.")
"""Beginnings of names that are of pre-training or of a task."""
SHAPES = (
    "cls_token",
    "dist_token",
    "pos_embed",
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    "blocks.0.mlp.fc1.weight",
)
"""Names of weights without which a model's shapes are not known."""


class SsastFormats(Formats):
    """SSAST's own checkpoints and transformers' folders."""

    model_types = (ast_format.MODEL_TYPE,)

    def read_file(self, content: Any, *, origin: str) -> ForeignModel | None:
        """Reads a checkpoint of the authors: the weights alone, with or without DataParallel's 'module.'."""
        if not isinstance(content, Mapping):
            return None
        weights = {str(key).removeprefix("module."): value for key, value in content.items()}
        if "v.dist_token" not in weights:
            return None
        vit = {key.removeprefix("v."): value for key, value in weights.items() if not key.startswith(UNUSED)}
        require(vit, SHAPES, origin=origin)
        config = _config_of(vit, int(weights.get("p_input_fdim", torch.tensor(128))), origin)
        return ForeignModel(config, _from_timm(vit, config))

    def read_transformers(self, folder: TransformersFolder) -> ForeignModel:
        """Reads an audio spectrogram transformer of transformers."""
        config = ast_format.read_config(folder)
        vit = ast_format.to_timm(folder.state)
        if not vit:
            return ForeignModel(config, {})
        require(vit, SHAPES, origin=folder.origin)
        return ForeignModel(config, _from_timm(vit, config))

    def write_transformers(self, config: SsastConfig, state: Mapping[str, Tensor]) -> TransformersFolder:
        """Writes an audio spectrogram transformer, which transformers has for square patches only."""
        if config.patch_frames != config.patch_bands:
            raise ConfigError(
                f"transformers has no patches of {config.patch_frames} frames by {config.patch_bands} bands, only "
                "square ones: export to 'speechssl' instead."
            )
        weights = ast_format.from_timm(_to_timm(state))
        return TransformersFolder(ast_format.write_config(config), weights, ast_format.write_preprocessor(config))


FORMATS = SsastFormats()


def _config_of(vit: Mapping[str, Tensor], num_mel_bins: int, origin: str) -> SsastConfig:
    """Reads the shapes off the weights."""
    width, _, bands, frames = vit["patch_embed.proj.weight"].shape
    patches = vit["pos_embed"].size(1) - TOKENS
    rows = num_mel_bins // bands
    if width % HEAD_WIDTH or rows == 0 or patches % rows:
        raise SpeechsslError(
            f"{origin} has {patches} positions of width {width} for patches of {bands} of {num_mel_bins} mel bands, "
            "which no SSAST model has: download it again."
        )
    return SsastConfig(
        num_mel_bins=num_mel_bins,
        patch_frames=frames,
        patch_bands=bands,
        stride_frames=frames,
        stride_bands=bands,
        columns=patches // rows,
        width=width,
        depth=count_blocks(vit),
        heads=width // HEAD_WIDTH,
        ffn_width=vit["blocks.0.mlp.fc1.weight"].size(0),
    )


def _from_timm(vit: Mapping[str, Tensor], config: SsastConfig) -> dict[str, Tensor]:
    """Gives weights by timm's names ours, and brings the positions into columns."""
    state = {rename_vit(key): value for key, value in vit.items()}
    table = state.pop("pos_embed")[0]  # (2 + rows columns, D)
    position = table[TOKENS:]
    if position.size(0) % config.columns == 0:  # otherwise its shape is refused where the weights are loaded
        position = position.view(-1, config.columns, position.size(1)).transpose(0, 1).contiguous()
    return {
        "prefix": torch.cat([state.pop("cls_token")[0], state.pop("dist_token")[0]]),
        "prefix_position": table[:TOKENS].clone(),
        "position": position,
        "patches.conv.weight": state.pop("patch_embed.proj.weight").transpose(2, 3).contiguous(),
        "patches.conv.bias": state.pop("patch_embed.proj.bias"),
        **state,
    }


def _to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The embeddings by timm's names; the rest by ours."""
    rest = dict(state)
    first, second = rest.pop("prefix")
    rows = rest.pop("position").transpose(0, 1).flatten(0, 1)  # (rows columns, D)
    return {
        "cls_token": first[None, None],
        "dist_token": second[None, None],
        "pos_embed": torch.cat((rest.pop("prefix_position"), rows))[None],
        "patch_embed.proj.weight": rest.pop("patches.conv.weight").transpose(2, 3),
        "patch_embed.proj.bias": rest.pop("patches.conv.bias"),
        **rest,
    }
