"""Multi-head factorised attentive pooling: the layers that say where to listen are weighed apart from those heard.

B batch, T frames, D width, H heads, C compressed width, E embedding.
Paper: Peng et al. 2022, arXiv:2210.01273, sec. 3; sizes as `MHFA` of its code (`JunyiPeng00/
SLT22_MultiHead-Factorized-Attentive-Pooling`).
"""

import torch
from torch import Tensor, nn
from typing_extensions import override

from speechssl.errors import ConfigError
from speechssl.head.standardise import Standardise
from speechssl.lengths import lengths_to_padding_mask

from .config import SpeakerVerificationConfig
from .head import SpeakerHead


class FactorisedPooling(SpeakerHead):
    """Attention of several heads, whose keys and values are two weighted sums of all layers."""

    def __init__(self, size: int, speakers: int, *, config: SpeakerVerificationConfig) -> None:
        """
        Args:
            size: 2 D: the keys' and the values' sum side by side, as `features.interface=two_sums` hands them over.
            speakers: N of the training set.
        """
        super().__init__(config)
        if config.features.interface != "two_sums":
            raise ConfigError("`head=mhfa` weighs the layers twice: set `features.interface=two_sums`.")
        own = config.mhfa
        self.standardise = Standardise(size) if config.standardise else None
        self.keys = nn.Linear(size // 2, own.compressed)
        self.values = nn.Linear(size // 2, own.compressed)
        self.attention = nn.Linear(own.compressed, own.heads)
        self.project = nn.Linear(own.heads * own.compressed, own.embedding)
        self.classes = nn.Parameter(torch.empty(own.embedding, speakers))
        nn.init.xavier_normal_(self.classes)

    @override
    def embed(self, features: Tensor, lengths: Tensor) -> Tensor:
        if self.standardise is not None:
            features = self.standardise(features, lengths)
        keys, values = features.chunk(2, dim=2)  # (B, T, D) each
        padding = lengths_to_padding_mask(lengths, features.size(1))[:, :, None]  # (B, T, 1)
        weights = self.attention(self.keys(keys)).masked_fill(padding, -torch.inf).softmax(dim=1)  # (B, T, H)
        pooled = weights.transpose(1, 2) @ self.values(values)  # (B, H, C)
        return self.project(pooled.flatten(1))  # type: ignore[no-any-return]  # nn.Module returns Any
