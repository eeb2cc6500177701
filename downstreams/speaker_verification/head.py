"""What all heads share, and the x-vector of SUPERB.

B batch, T frames, D width, E embedding, N speakers.
Papers: Snyder et al. 2018 (x-vectors); Wang et al. 2018 (AM-softmax), arXiv:1801.05599; Yang et al. 2021 (SUPERB),
arXiv:2105.01051. Sizes, contexts and dilations as S3PRL `downstream/sv_voxceleb1/model.py`.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from speechssl.featurizer.stack import stack_factor, stack_frames
from speechssl.head.standardise import Standardise, batch_norm
from speechssl.lengths import lengths_to_padding_mask
from speechssl.loss.margin import margin_softmax
from speechssl.types import LossOutput

from .config import SpeakerVerificationConfig

CONTEXTS = ((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))
"""(frames, dilation) of each time-delay layer."""
LOST = sum((context - 1) * dilation for context, dilation in CONTEXTS)
"""Frames that the time-delay layers use up."""


class SpeakerHead(nn.Module, ABC):
    """Makes embeddings, and trains them to tell the training speakers apart."""

    classes: nn.Parameter
    """One direction a speaker, (E, N)."""

    def __init__(self, config: SpeakerVerificationConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def embed(self, features: Tensor, lengths: Tensor) -> Tensor:
        """The speaker embedding.

        Args:
            features: (B, T, D), 0 beyond `lengths`.
            lengths: valid frames, (B,) int64.

        Returns:
            (B, E).
        """

    def trained_embedding(self, features: Tensor, lengths: Tensor) -> Tensor:
        """What is compared with the directions of the speakers in training: the embedding, unless a head says else."""
        return self.embed(features, lengths)

    def loss(self, features: Tensor, lengths: Tensor, speakers: Tensor) -> LossOutput:
        """Margin softmax over the training speakers, summed over the batch.

        Args:
            speakers: (B,) int64.
        """
        states = self.trained_embedding(features, lengths)
        cosine = F.normalize(states, dim=1) @ F.normalize(self.classes, dim=0)  # (B, N)
        settings = self.config
        total = margin_softmax(cosine, speakers, kind=settings.loss, scale=settings.scale, margin=settings.margin)
        right = (cosine.argmax(dim=1) == speakers).sum()
        return LossOutput(total, torch.tensor(len(speakers)), {"accuracy": right.detach()})


class XVector(SpeakerHead):
    """Linear, five time-delay layers with ReLU, mean and standard deviation over time, two linear layers."""

    def __init__(self, size: int, speakers: int, *, frame_rate: float, config: SpeakerVerificationConfig) -> None:
        """
        Args:
            size: D of the features.
            speakers: N of the training set.
            frame_rate: of the features, Hz; with `config.frame_rate` it decides how many frames are stacked.
        """
        super().__init__(config)
        self.factor = 1 if config.frame_rate is None else stack_factor(frame_rate, config.frame_rate)
        self.standardise = Standardise(size) if config.standardise else None
        width = config.project_size
        self.project = nn.Linear(size * self.factor, width)
        widths = [width] * len(CONTEXTS) + [config.pooled_size]
        self.delays = nn.ModuleList(
            nn.Conv1d(i, o, context, dilation=dilation)
            for i, o, (context, dilation) in zip(widths, widths[1:], CONTEXTS, strict=False)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(o) if config.layer_norm else nn.Identity() for o in widths[1:])
        self.pool_norm = nn.BatchNorm1d(2 * config.pooled_size, affine=False) if config.pool_norm else None
        self.first = nn.Linear(2 * config.pooled_size, config.embedding_size)
        self.second = nn.Linear(config.embedding_size, config.embedding_size)
        self.classes = nn.Parameter(torch.empty(config.embedding_size, speakers))
        nn.init.xavier_normal_(self.classes)

    @override
    def embed(self, features: Tensor, lengths: Tensor) -> Tensor:
        """The output of the first utterance layer, with ReLU unless `pool_norm`."""
        if self.standardise is not None:
            features = self.standardise(features, lengths)
        features, lengths = stack_frames(features, lengths, self.factor)
        features, lengths = lengthen(features, lengths, LOST + 2)
        states = self.project(features).transpose(1, 2)  # (B, C, T)
        for layer, norm in zip(self.delays, self.norms, strict=True):
            states = norm(F.relu(layer(states)).transpose(1, 2)).transpose(1, 2)
        inside = ~lengths_to_padding_mask(lengths - LOST, states.size(2))[:, None]  # (B, 1, T - LOST)
        count = (lengths - LOST)[:, None].to(states.dtype)
        mean = (states * inside).sum(dim=2) / count
        # Unbiased, as torch.std in S3PRL.
        variance = ((states - mean[:, :, None]).square() * inside).sum(dim=2) / (count - 1)
        pooled = torch.cat((mean, (variance + 1e-8).sqrt()), dim=1)  # (B, 2 C)
        if self.pool_norm is None:
            return F.relu(self.first(pooled))
        return self.first(batch_norm(self.pool_norm, pooled))  # type: ignore[no-any-return]  # nn.Module returns Any

    @override
    def trained_embedding(self, features: Tensor, lengths: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.embed(features, lengths))))


def lengthen(features: Tensor, lengths: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Repeats utterances that are shorter than `least` frames from their beginning until they are not.

    Args:
        features: (B, T, D), 0 beyond `lengths`.

    Returns:
        (B, max(T, least), D) and the lengths.
    """
    if int(lengths.min()) >= least:
        return features, lengths
    features = F.pad(features, (0, 0, 0, max(0, least - features.size(1))))
    at = torch.arange(features.size(1), device=features.device)[None].repeat(len(lengths), 1)  # (B, T)
    short = lengths < least
    source = torch.where(short[:, None] & (at < least), at % lengths[:, None], at)
    return features.gather(1, source[:, :, None].expand_as(features)), lengths.clamp(min=least)
