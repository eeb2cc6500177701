"""The classifier of SLS, behind layers that each utterance gates (`features.interface=gated_sum`).

B batch, T frames, D width.
Paper: Zhang, Wen and Hu 2024, doi 10.1145/3664647.3681345; sizes and order as `QiShanZhang/SLSforASVspoof-2021-DF`.
"""

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from downstreams.deepfake_detection.backends.config import SlsConfig
from downstreams.deepfake_detection.backends.window import fit_frames
from downstreams.deepfake_detection.head import Detector

POOL = 3


class Sls(Detector):
    """Norm, SELU, the largest of 3 frames x 3 dimensions, two layers over all that is left: the window is its size."""

    def __init__(self, size: int, *, config: SlsConfig, window: int) -> None:
        """
        Args:
            size: D, 3 or more.
            window: frames, 3 or more.
        """
        super().__init__()
        self.window = window
        self.norm = nn.BatchNorm1d(1)
        self.hidden = nn.Linear((window // POOL) * (size // POOL), config.hidden)
        self.output = nn.Linear(config.hidden, 2)

    @override
    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        features, _ = fit_frames(features, lengths, least=self.window, window=self.window)
        maps = F.selu(self.norm(features.flatten(1)[:, None])).view_as(features)  # (B, T, D)
        pooled = F.max_pool2d(maps[:, None], POOL)  # (B, 1, T/3, D/3)
        # The published code has this last SELU: a score below -1.76 on either side comes out of it hardly changed.
        return F.selu(self.output(F.selu(self.hidden(pooled.flatten(1)))))
