"""A light convolutional network: of two halves of the channels the larger, then two recurrent layers and their mean.

Frames beyond an utterance are 0 before every convolution, and take no part in norms, recurrence and mean: batch =
single.

B batch, T frames, F bands (the D dimensions of the features), C channels.
Papers: Lavrentyeva et al. 2019, arXiv:1904.05576 (the network); Wang and Yamagishi 2021, arXiv:2103.11326 (with LSTM
layers and mean); sizes and order as `asvspoof-challenge/2021`, LA/Baseline-LFCC-LCNN.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from downstreams.deepfake_detection.backends.config import LcnnConfig
from downstreams.deepfake_detection.backends.norm import inside_maps, map_norm
from downstreams.deepfake_detection.backends.window import fit_frames
from downstreams.deepfake_detection.head import Detector
from speechssl.head.recurrent import BidirectionalLSTM

LAYERS = (
    (32, 5, True, False), (32, 1, False, True), (48, 3, True, True), (48, 1, False, True), (64, 3, True, False),
    (64, 1, False, True), (32, 3, False, True), (32, 1, False, True), (32, 3, True, False),
)  # fmt: skip
"""Channels of the larger half, width of the kernel, whether pooled by 2 x 2 after it, and normed after that."""
SHRINK = 16
"""Frames, and bands, that pooling makes one of."""


class Lcnn(Detector):
    """Features, as an image, to one logit: that of bona fide over spoofed."""

    def __init__(self, size: int, *, config: LcnnConfig, window: int | None = None) -> None:
        """
        Args:
            size: D; zeros fill up what is below 16.
            window: frames that utterances are cut or repeated to; None = as they are.
        """
        super().__init__()
        self.window = window
        self.project = None if config.projected is None else nn.Linear(size, config.projected)
        bands = max(SHRINK, config.projected or size)
        before = (1, *(channels for channels, *_ in LAYERS))
        self.convs = nn.ModuleList(
            nn.Conv2d(size, 2 * channels, kernel, padding=kernel // 2)
            for size, (channels, kernel, *_) in zip(before, LAYERS, strict=False)
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(channels, affine=False) if normed else nn.Identity() for channels, _, _, normed in LAYERS
        )
        self.dropout = nn.Dropout(config.dropout)
        width = LAYERS[-1][0] * (bands // SHRINK)
        self.recurrent = nn.ModuleList(BidirectionalLSTM(width, width // 2) for _ in range(2))
        self.output = nn.Linear(width, 1)

    @override
    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        features, lengths = fit_frames(features, lengths, least=SHRINK, window=self.window)
        states = features if self.project is None else self.project(features)
        states = F.pad(states, (0, max(0, SHRINK - states.size(2))))
        maps = states.transpose(1, 2)[:, None]  # (B, 1, F, T)
        inside = inside_maps(lengths, maps)
        maps = maps * inside
        for conv, norm, (_, _, pools, normed) in zip(self.convs, self.norms, LAYERS, strict=True):
            maps = torch.maximum(*conv(maps).chunk(2, dim=1))
            if pools:
                maps, lengths = F.max_pool2d(maps, 2), lengths // 2
                inside = inside_maps(lengths, maps)
            maps = map_norm(norm, maps, inside) if normed else maps * inside
        states = self.dropout(maps).permute(0, 3, 1, 2).flatten(2)  # (B, T/16, C F/16)
        found = states
        for layer in self.recurrent:
            found = layer(found, lengths)
        inside = inside[:, 0, 0, :, None]  # (B, T/16, 1)
        mean = ((found + states) * inside).sum(dim=1) / lengths[:, None]
        return F.pad(self.output(mean), (1, 0))  # (B, 2), of which the first is 0: cross-entropy is then binary
