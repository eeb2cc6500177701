"""The format that ATST comes in: checkpoints of PyTorch Lightning with a teacher, which is the model, and a student."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.formats import ForeignModel, Formats
from speechssl.patches.names import BLOCK, count_blocks, rename_vit
from upstreams.atst.config import PRESETS, AtstConfig

POSITION = "pos_embed"
LINEAR, CONVOLUTION = "patch_embed.patch_embed.weight", "patch_embed.proj.weight"
"""The two forms that the patch embedding is published in."""
KINDS = {"norm_frame.weight": PRESETS["atst_frame_base"], "cls_token": PRESETS["atst_clip_base"]}
"""A weight that only one of the two has."""
UNUSED = ("mask_embed", "final_to_melsp.")
"""Of pre-training."""
HEAD_WIDTH = 64
NEEDED = {"pos_type": "cut", "nprompt": 0, "n_mels": 64, "win_length": 1024, "patch_h": 64}
"""Settings that all published models have."""


class AtstFormats(Formats):
    """Checkpoints of audiossl."""

    def read_file(self, content: Any, *, origin: str) -> ForeignModel | None:
        """Reads a checkpoint of Lightning, of plain torch ('teacher', 'args'), or the weights of an encoder alone."""
        for weights in _candidates(content):
            prefix = _encoder(weights, origin)
            if prefix is None:
                continue
            own = {k.removeprefix(prefix): v.float() for k, v in weights.items() if k.startswith(prefix)}
            own = {k: v for k, v in own.items() if not k.startswith(UNUSED)}
            config = _config(own, _settings(content), origin)
            return ForeignModel(config, dict(_renamed(own, config)), their_name=_their_name)
        return None


def _candidates(content: Any) -> Iterator[Mapping[str, Tensor]]:
    if not isinstance(content, Mapping):
        return
    for found in (content.get("state_dict"), content.get("teacher"), content):
        if isinstance(found, Mapping):
            yield {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _encoder(weights: Mapping[str, Tensor], origin: str) -> str | None:
    """How the names of the encoder begin, of a teacher's where there are several; None = there is no encoder."""
    found = []
    for prefix in [k.removesuffix(POSITION) for k in weights if k.endswith(POSITION)]:
        patches = prefix + LINEAR in weights or prefix + CONVOLUTION in weights
        if patches and prefix + "mask_embed" in weights and any(prefix + k in weights for k in KINDS):
            found.append(prefix)
    teachers = [p for p in found if "teacher." in p]
    chosen = teachers or found
    if len(chosen) > 1:
        raise SpeechsslError(f"{origin} holds several ATST encoders ({', '.join(chosen)}): keep one of them.")
    return chosen[0] if chosen else None


def _settings(content: Mapping[str, Any]) -> dict[str, Any]:
    settings = content.get("hyper_parameters") or content.get("args")
    if not isinstance(settings, Mapping):
        return {}
    made = dict(settings)
    if "hyper_parameters" not in content and isinstance(made.get("anchor_len"), list | tuple):
        made.setdefault("train_len", made["anchor_len"][0])  # older checkpoints have no other
    return made


def _config(weights: Mapping[str, Tensor], settings: Mapping[str, Any], origin: str) -> AtstConfig:
    for key, needed in NEEDED.items():
        if settings.get(key, needed) != needed:
            raise ConfigError(f"`{key}` of {origin} is {settings[key]!r}; only {needed!r} is supported.")
    base = next(config for key, config in KINDS.items() if key in weights)
    patches = weights[LINEAR if LINEAR in weights else CONVOLUTION]
    width = len(patches)
    frames, rest = divmod(patches[0].numel(), base.patch_bands)
    if rest:
        raise ConfigError(
            f"The patches of {origin} must be {base.patch_bands} mel bands high: others are not supported."
        )
    positions = weights[POSITION].size(1) - 1
    window = positions * frames + 1  # the authors' 10.01 s have one frame to spare
    if base.prefix_tokens and "train_len" in settings:
        window = min(window, _frames(settings["train_len"], base))
    elif base.prefix_tokens:
        window = min(window, base.window_frames)
    hidden = weights.get("blocks.0.mlp.fc1.weight")
    return replace(
        base,
        patch_frames=frames,
        stride_frames=frames,
        columns=window // frames,
        window_frames=window,
        width=width,
        depth=count_blocks(weights),
        heads=max(1, width // HEAD_WIDTH),
        ffn_width=4 * width if hidden is None else len(hidden),
    )


def _frames(seconds: Any, config: AtstConfig) -> int:
    """Of the window in which the authors read clips: the length of those in training."""
    return int(float(seconds) * config.sample_rate / 160) + 1


def _renamed(weights: Mapping[str, Tensor], config: AtstConfig) -> Iterator[tuple[str, Tensor]]:
    for key, value in weights.items():
        if key == POSITION:
            yield "position", value[0, 1 : config.columns + 1, None]
            if config.prefix_tokens:
                yield "prefix_position", value[0, :1]
        elif key == "cls_token":
            yield "prefix", value[0]
        elif key in (LINEAR, CONVOLUTION):  # mel bands by frames; ours are frames by mel bands
            patches = value.view(len(value), 1, config.patch_bands, config.patch_frames)
            yield "patches.conv.weight", patches.transpose(2, 3).contiguous()
        elif re.fullmatch(r"patch_embed\.(patch_embed|proj)\.bias", key):
            yield "patches.conv.bias", value
        else:
            yield rename_vit(key.replace("norm_frame.", "norm.")), value


def _their_name(key: str) -> str:
    if match := re.fullmatch(r"encoder\.blocks\.(\d+)\.(.+)\.(weight|bias)", key):
        theirs = {ours: name for name, ours in BLOCK.items()}
        return f"blocks.{match[1]}.{theirs.get(match[2], match[2])}.{match[3]}"
    names = {"position": POSITION, "prefix_position": POSITION, "prefix": "cls_token"}
    return names.get(key, key.replace("patches.conv.", "patch_embed.patch_embed."))


FORMATS = AtstFormats()
