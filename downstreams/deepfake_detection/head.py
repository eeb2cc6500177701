"""What all heads share, and the light one: attentive statistics over time, then a small network.

B batch, T frames, D width of the features, H width of the head.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from typing_extensions import override

from downstreams.deepfake_detection.backends.window import fit_frames
from speechssl.head.standardise import Standardise
from speechssl.lengths import lengths_to_padding_mask

FOUND_ON_DEV = ("threshold", "calibration")
"""Buffers of a detector that no training sets."""


class Detector(nn.Module, ABC):
    """Tells spoofed speech from bona fide."""

    threshold: Tensor
    """Scores above it count as real speech: the equal-error threshold on dev, which travels with the checkpoint."""

    calibration: Tensor
    """(2,) scale and offset of the map from scores to natural log-likelihood ratios of real over spoofed speech, fitted
    on dev; NaN = not known, as of heads that were saved before there was one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("calibration", torch.full((2,), torch.nan))
        self.register_load_state_dict_pre_hook(_without_calibration)  # type: ignore[no-untyped-call]  # torch has none

    @abstractmethod
    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Logits of spoofed (0) and bona fide (1).

        Args:
            features: (B, T, D), 0 beyond `lengths`.
            lengths: valid frames, (B,) int64, 1 or more.

        Returns:
            (B, 2).
        """


def _without_calibration(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Lets weights in that know no calibration."""
    del module
    state.setdefault(f"{prefix}calibration", torch.full((2,), torch.nan))


class AttentiveStatistics(nn.Module):
    """Weighted mean and standard deviation over the valid frames, the weights learned.

    Paper: Okabe et al. 2018, eq. 1 to 6, arXiv:1803.10963.
    """

    def __init__(self, width: int, attention: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(width, attention), nn.Tanh(), nn.Linear(attention, 1))

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, H), (B,) -> (B, 2 H)."""
        padding = lengths_to_padding_mask(lengths, features.size(1))[:, :, None]  # (B, T, 1)
        weights = self.score(features).masked_fill(padding, -torch.inf).softmax(dim=1)  # (B, T, 1)
        mean = (weights * features).sum(dim=1)
        variance = (weights * (features - mean[:, None]).square()).sum(dim=1)
        return torch.cat([mean, variance.clamp(min=1e-6).sqrt()], dim=1)  # (B, 2 H)


class DetectionHead(Detector):
    """Convolution, attentive statistics, two-layer classifier; class 1 is bona fide.

    The convolution lets the statistics be those of movements between frames: vocoders smooth them, or make them jump.
    """

    def __init__(
        self,
        size: int,
        *,
        width: int,
        kernel: int,
        attention: int,
        dropout: float,
        center: bool = False,
        standardise: bool = False,
        window: int | None = None,
    ) -> None:
        """
        Args:
            size: D.
            width: H.
            kernel: frames that the convolution spans; odd.
            attention: width of the network that weighs the frames.
            center: whether each utterance's mean over time is taken away first.
            standardise: whether each dimension is brought to one scale, see `speechssl.head.standardise`.
            window: frames that utterances are cut or repeated to; None = as they are.
        """
        super().__init__()
        self.window = window
        self.center = center
        self.standardise = Standardise(size) if standardise else None
        self.project = nn.Sequential(nn.Conv1d(size, width, kernel, padding=kernel // 2), nn.ReLU())
        self.pool = AttentiveStatistics(width, attention)
        self.classify = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(2 * width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 2)
        )

    @override
    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        features, lengths = fit_frames(features, lengths, least=1, window=self.window)
        # Frames beyond `lengths` are 0, as the convolution's own padding is: batch = single.
        padding = lengths_to_padding_mask(lengths, features.size(1))[:, :, None]  # (B, T, 1)
        if self.center:
            features = features - features.masked_fill(padding, 0.0).sum(dim=1, keepdim=True) / lengths[:, None, None]
        if self.standardise is not None:
            features = self.standardise(features, lengths)
        frames = self.project(features.masked_fill(padding, 0.0).transpose(1, 2)).transpose(1, 2)  # (B, T, H)
        logits: Tensor = self.classify(self.pool(frames, lengths))
        return logits
