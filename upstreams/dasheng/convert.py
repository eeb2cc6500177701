"""The formats that Dasheng comes in: the authors' .pt, and their folders of transformers' form."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.formats import ForeignModel, Formats, TransformersFolder
from speechssl.patches.names import count_blocks, rename_vit, require
from upstreams.dasheng.config import PRESETS, DashengConfig

UNUSED = ("front_end.", "outputlayer.", "decoder.", "unfold.")
"""Beginnings of names that are tables, or of pre-training or a task."""
NORM = {
    "init_bn.1.weight": "spectrogram.weight",
    "init_bn.1.bias": "spectrogram.bias",
    "init_bn.1.running_mean": "spectrogram.mean",
    "init_bn.1.running_var": "spectrogram.variance",
}
SHAPES = (
    "time_pos_embed",
    "freq_pos_embed",
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    "blocks.0.mlp.fc1.weight",
)
"""Names of weights without which a model's shapes are not known."""
NEEDED = {"center": True, "qkv_bias": True, "init_bn": True, "init_values": False}
"""Whether settings are on in the published models; the others would need parts that are not built."""
HEADS = {config.width: config.heads for config in PRESETS.values()}
NAMES = {"dasheng-base": "dasheng_base", "dasheng-0.6B": "dasheng_06b", "dasheng-1.2B": "dasheng_12b"}


class DashengFormats(Formats):
    """Dasheng's checkpoints."""

    model_types = ("dasheng",)

    def read_file(self, content: Any, *, origin: str) -> ForeignModel | None:
        """Reads {'model': weights, 'config': settings}; the settings may say nothing, the weights tell most of it."""
        weights = content.get("model", content) if isinstance(content, Mapping) else None
        if not isinstance(weights, Mapping):
            return None
        weights = _plain(weights)
        if not _is_own(weights):
            return None
        require(weights, (*SHAPES, *NORM), origin=origin)
        settings = content.get("config")
        settings = dict(settings) if isinstance(settings, Mapping) else {}
        return ForeignModel(_config_of(weights, settings, origin), _rename(weights))

    def read_transformers(self, folder: TransformersFolder) -> ForeignModel:
        """Reads a folder of the authors."""
        config = _config_from_transformers(folder)
        weights = _plain(folder.state)
        if not weights:
            return ForeignModel(config, {})
        require(weights, (*SHAPES, *NORM), origin=folder.origin)
        return ForeignModel(config, _rename(weights))


FORMATS = DashengFormats()


def _plain(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder's weights without its prefix; of a whole masked autoencoder too."""
    plain = {str(key).removeprefix("encoder."): value for key, value in weights.items()}
    return {k: v for k, v in plain.items() if not k.startswith(UNUSED) and not k.endswith("num_batches_tracked")}


def _is_own(weights: Mapping[str, Any]) -> bool:
    """Whether patches are strips of all frequencies: models of the same names (CED) have squares."""
    rows = weights.get("freq_pos_embed")
    return "time_pos_embed" in weights and isinstance(rows, Tensor) and rows.dim() == 4 and rows.size(2) == 1


def _config_of(weights: Mapping[str, Tensor], settings: Mapping[str, Any], origin: str) -> DashengConfig:
    """Reads the shapes off the weights, and the rest off the settings; what is absent is as published."""
    width, _, bands, frames = weights["patch_embed.proj.weight"].shape
    heads = settings.get("num_heads", HEADS.get(width))
    if heads is None:
        raise SpeechsslError(f"{origin} has neither a published width ({width}) nor 'num_heads' in 'config': add it.")
    _check(settings, origin)
    return DashengConfig(
        num_mel_bins=bands,
        patch_frames=frames,
        patch_bands=bands,
        stride_frames=frames,
        stride_bands=bands,
        columns=weights["time_pos_embed"].size(3),
        width=width,
        depth=count_blocks(weights),
        heads=int(heads),
        ffn_width=weights["blocks.0.mlp.fc1.weight"].size(0),
        **_sound(settings, origin),
    )


def _config_from_transformers(folder: TransformersFolder) -> DashengConfig:
    """Reads preprocessor_config.json and config.json, whose settings are in 'encoder_kwargs' or follow from 'name'."""
    settings = {**folder.description, **(folder.description.get("encoder_kwargs") or {})}
    preset = PRESETS[NAMES.get(str(folder.description.get("name")), "dasheng_base")]
    _check({**settings, **folder.preprocessor}, folder.origin)
    bands, frames = settings.get("patch_size", (preset.num_mel_bins, preset.patch_frames))
    if list(settings.get("patch_stride", (bands, frames))) != [bands, frames]:
        raise ConfigError(f"`patch_stride` of {folder.origin} must be `patch_size`, but is {settings['patch_stride']}.")
    width = int(settings.get("embed_dim", preset.width))
    return DashengConfig(
        sample_rate=int(folder.preprocessor.get("sampling_rate", preset.sample_rate)),
        num_mel_bins=int(folder.preprocessor.get("feature_size", settings.get("n_mels", preset.num_mel_bins))),
        patch_frames=frames,
        patch_bands=bands,
        stride_frames=frames,
        stride_bands=bands,
        columns=int(settings.get("target_length", 1008)) // frames,
        width=width,
        depth=int(settings.get("depth", preset.depth)),
        heads=int(settings.get("num_heads", preset.heads)),
        ffn_width=int(width * settings.get("mlp_ratio", 4)),
        **_sound({**settings, **folder.preprocessor}, folder.origin),
    )


def _check(settings: Mapping[str, Any], origin: str) -> None:
    for key, needed in NEEDED.items():
        if bool(settings.get(key, needed)) != needed:
            raise ConfigError(f"`{key}` of {origin} is {settings[key]!r}; only {needed} is supported.")
    if settings.get("pooling") == "token":
        raise ConfigError(f"`pooling` of {origin} is 'token', but models with a token for the clip are not supported.")


def _sound(settings: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The spectrogram's settings in our terms."""
    size = int(settings.get("n_fft", DashengConfig.window))
    if settings.get("win_size", size) != size:
        raise ConfigError(f"`win_size` of {origin} must be `n_fft` = {size}, but is {settings['win_size']}.")
    high = settings.get("f_max")
    return {
        "window": size,
        "hop": int(settings.get("hop_size", DashengConfig.hop)),
        "low_freq": float(settings.get("f_min", DashengConfig.low_freq)),
        "high_freq": DashengConfig.high_freq if high is None else float(high),
        "top_db": float(settings.get("top_db", DashengConfig.top_db)),
    }


def _rename(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives weights our names; the positions of time and of frequencies, of which there is one, become one table."""
    state = {NORM.get(key, rename_vit(key)): value for key, value in weights.items()}
    table = state.pop("time_pos_embed") + state.pop("freq_pos_embed")  # (1, D, 1, columns)
    return {
        "position": table[0].permute(2, 1, 0).contiguous(),
        "patches.conv.weight": state.pop("patch_embed.proj.weight").transpose(2, 3).contiguous(),
        "patches.conv.bias": state.pop("patch_embed.proj.bias"),
        **state,
    }
