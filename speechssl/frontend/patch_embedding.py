"""Spectrograms as grids of patches.

A column of the grid holds the patches of one stretch of time, a row those of one stretch of frequency.
B batch, T frames, M mel bands, C columns, R rows, D width.
"""

from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.lengths import conv_output_lengths


class PatchEmbedding(nn.Module):
    """One linear map for each patch of a spectrogram.

    Paper: Dosovitskiy et al. 2021 (ViT), sec. 3.1, arXiv:2010.11929; Gong et al. 2021 (AST), arXiv:2104.01778.
    """

    def __init__(
        self, width: int, *, patch: tuple[int, int], stride: tuple[int, int] | None = None, bias: bool = True
    ) -> None:
        """
        Args:
            width: D.
            patch: frames and mel bands of a patch.
            stride: frames and mel bands from one patch to the next; None = as large as a patch.
        """
        super().__init__()
        self.patch, self.stride = patch, stride or patch
        self.conv = nn.Conv2d(1, width, self.patch, self.stride, bias=bias)

    def output_lengths(self, frames: Tensor) -> Tensor:
        """Whole columns within valid frames, both (B,) int64; frames left over at the end are dropped."""
        return conv_output_lengths(frames, [(self.patch[0], self.stride[0])])

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, M) -> (B, C, R, D)."""
        return self.conv(features[:, None]).permute(0, 2, 3, 1)  # type: ignore[no-any-return]  # nn.Module returns Any


def patch_rows(num_mel_bins: int, *, patch: int, stride: int) -> int:
    """The rows of a grid: patches that fit over the mel bands.

    Raises:
        ConfigError: not even one does.
    """
    if not 0 < patch <= num_mel_bins or stride < 1:
        raise ConfigError(f"`patch_bands` must be within 1..{num_mel_bins}, the mel bands, but is {patch}.")
    return (num_mel_bins - patch) // stride + 1
