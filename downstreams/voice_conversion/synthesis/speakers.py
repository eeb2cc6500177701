"""Embeddings of speakers for any-to-any conversion, and how they join what the encoder says.

The model's encoder must not be the judge's: a system that was trained to please the judge's ear would be judged by how
well it flatters it. S3PRL-VC takes the d-vectors of Resemblyzer, which are what this task judges voices by; so it is
handed another encoder through the protocol below, or takes `PooledStatistics`, which needs no labels.

B batch, T frames, D width of the features, T' mel frames, H hidden, S width of the embedding.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.lengths import lengths_to_padding_mask
from speechssl.types import Utterance


class SpeakerEncoder(Protocol):
    """What says who speaks; one that listens reads the utterances' audio, one that does not takes their features."""

    name: str
    """Of its weights, as `judge` names its own."""
    size: int
    """S."""

    def __call__(self, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance], /) -> Tensor:
        """(B, T, D), valid frames (B,) and the B utterances -> (B, S)."""


class PooledStatistics(nn.Module):
    """Mean and standard deviation of an utterance's features, each standardised over what training has heard.

    The statistics of the standardisation are added up while it trains, and stay in evaluation.

    A choice of ours: it needs no labels and no other model.

    Paper: Snyder et al. 2018, X-vectors, for the pooling of statistics.
    """

    name = "pooled_statistics"
    count: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, width: int) -> None:
        """
        Args:
            width: D.
        """
        super().__init__()
        self.size = 2 * width
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(self.size, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(self.size, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance] = ()) -> Tensor:  # noqa: ARG002
        """See `SpeakerEncoder`; S = 2 D."""
        valid = (~lengths_to_padding_mask(lengths, features.size(1)))[:, :, None]  # (B, T, 1)
        x = torch.where(valid, features, 0.0).double()
        count = lengths[:, None].double()
        mean = x.sum(dim=1) / count  # (B, D)
        centred = torch.where(valid, x - mean[:, None], 0.0)
        pooled = torch.cat((mean, (centred.square().sum(dim=1) / count).sqrt()), dim=1)  # (B, 2 D)
        if self.training:
            self.count += len(pooled)
            shift = pooled - self.mean
            self.mean += shift.sum(dim=0) / self.count
            self.square += (shift * (pooled - self.mean)).sum(dim=0)
        scale = (self.square / self.count.clamp(min=1)).sqrt()
        return ((pooled - self.mean) / torch.where(scale > 1e-8, scale, 1.0)).to(features.dtype)


class SpeakerJoin(nn.Module):
    """Adds an embedding to each state, or projects both side by side; embeddings are brought to unit length first.

    Paper: Huang et al. 2022, arXiv:2110.06280; as `_integrate_with_spk_emb` in S3PRL `downstream/a2a-vc-vctk/model.py`.
    """

    def __init__(self, hidden: int, size: int, how: Literal["add", "concat"]) -> None:
        super().__init__()
        self.hidden, self.size, self.how = hidden, size, how
        self.project = nn.Linear(size if how == "add" else hidden + size, hidden)

    def forward(self, states: Tensor, speaker: Tensor) -> Tensor:
        """(B, T', H) and (B, S) -> (B, T', H)."""
        if speaker.dim() != 2 or speaker.size(1) != self.size:
            raise ConfigError(
                f"Embeddings must be (B, {self.size}) as the model was built, but are {tuple(speaker.shape)}."
            )
        unit = F.normalize(speaker.to(states.dtype))
        if self.how == "add":
            return states + self.project(unit)[:, None]  # type: ignore[no-any-return]  # nn.Module returns Any
        weight = self.project.weight
        # The embedding's part is the same for all frames.
        constant = F.linear(unit, weight[:, self.hidden :], self.project.bias)
        return F.linear(states, weight[:, : self.hidden]) + constant[:, None]


def mean_embedding(embeddings: Iterable[Tensor]) -> Tensor:
    """One embedding of several utterances of a speaker: their mean, as S3PRL-VC takes it; (S,) each -> (S,)."""
    return torch.stack(list(embeddings)).mean(dim=0)


def check_independent(encoder: SpeakerEncoder, judges: Iterable[str]) -> None:
    """Refuses an encoder that is among the judges of voices.

    Raises:
        ConfigError: it is one of them.
    """
    if encoder.name in set(judges):
        raise ConfigError(
            f"The speaker encoder '{encoder.name}' judges the conversions, so the model must not hear through it: "
            "take another encoder for one of the two."
        )
