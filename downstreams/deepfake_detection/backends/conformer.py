"""A conformer with a class token, whose state after the last block is judged: made for utterances of any length.

Frames beyond an utterance get no attention, are 0 before every convolution, and take no part in norms: batch = single.

B batch, T frames, D width of the features, H width of the conformer.
Paper: Rosello et al. 2023, sec. 3, doi 10.21437/Interspeech.2023-1820; sizes and order as
`ErosRos/conformer-based-classifier-for-anti-spoofing`, which takes its blocks from the package `conformer`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from downstreams.deepfake_detection.backends.config import ConformerHeadConfig
from downstreams.deepfake_detection.backends.norm import frame_norm
from downstreams.deepfake_detection.backends.window import fit_frames
from downstreams.deepfake_detection.head import Detector
from speechssl.encoder.conformer import ConformerConfig, ConformerEncoder
from speechssl.lengths import lengths_to_padding_mask


class ConformerDetector(Detector):
    """Projection, batch norm of all numbers alike, SELU, class token, blocks, a linear layer on the token."""

    def __init__(self, size: int, *, config: ConformerHeadConfig, window: int | None = None) -> None:
        """
        Args:
            size: D.
            window: frames that utterances are cut or repeated to; None = as they are.
        """
        super().__init__()
        self.window = window
        self.project = nn.Linear(size, config.width)
        self.first_norm = nn.BatchNorm1d(1)
        self.token = nn.Parameter(torch.rand(1, 1, config.width))
        self.encoder = ConformerEncoder(
            ConformerConfig(
                width=config.width,
                depth=config.blocks,
                heads=config.heads,
                ffn_width=config.ffn_multiple * config.width,
                positions="relative_key",
                limits=(config.distance, config.distance),
                kernel=config.kernel,
                conv_expansion=config.conv_expansion,
                closing_norm=False,
                dropout=config.dropout,
            )
        )
        self.output = nn.Linear(config.width, 2)

    @override
    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        features, lengths = fit_frames(features, lengths, least=1, window=self.window)
        inside = ~lengths_to_padding_mask(lengths, features.size(1))[:, None]  # (B, 1, T)
        states = self.project(features)  # (B, T, H)
        flat = states.flatten(1)[:, None]  # (B, 1, T H): one norm for all
        flat = frame_norm(self.first_norm, flat, inside.repeat_interleave(states.size(2), dim=2))
        states = F.selu(flat).view_as(states)
        states = torch.cat((self.token.expand(len(states), -1, -1).to(states.dtype), states), dim=1)  # (B, 1 + T, H)
        padding = lengths_to_padding_mask(lengths + 1, states.size(1))
        depth = len(self.encoder.blocks)
        states = self.encoder(states, padding, layers=[depth])[depth]
        return self.output(states[:, 0])  # type: ignore[no-any-return]  # nn.Module returns Any
