"""Masked prediction of cluster labels: by cosine similarity to learned label embeddings, or by a plain linear layer.

B batch, T frames, N scored frames, D width, E prediction width, K labels, C channels of the front-end.
Reference: fairseq `models/hubert/hubert.py` and `criterions/hubert_criterion.py`. There the logits are those of the
true label followed by all labels with its duplicate masked: the same numbers as a plain softmax over all labels.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import SpeechsslError
from speechssl.metric.tallies import USAGE, usage
from speechssl.types import LossOutput

PREDICTION_LIMITS = {"prediction_perplexity": 1.5}
"""Of a healthy run: below, all frames are predicted alike; at the beginning that is normal for a while."""


def cosine_logits(projected: Tensor, embeddings: Tensor, *, temperature: float) -> Tensor:
    """Cosine similarities divided by the temperature, in float32 whatever the precision of the model.

    Args:
        projected: (N, E).
        embeddings: (K, E).

    Returns:
        (N, K) float32.

    Paper: Hsu et al. 2021, eq. 3, arXiv:2106.07447.
    """
    with torch.autocast(projected.device.type, enabled=False):
        left = F.normalize(projected.float(), dim=1, eps=1e-8) / temperature
        right = F.normalize(embeddings.float(), dim=1, eps=1e-8)
        return left @ right.T


def features_penalty(features: Tensor, frames: Tensor) -> Tensor:
    """Mean square of the front-end's output over the valid frames, scalar float32.

    fairseq averages over padded frames too, which would make the penalty depend on the batch.

    Args:
        features: (B, T, C), before normalisation.
        frames: valid frames, (B,) int64.
    """
    inside = torch.arange(features.size(1), device=features.device)[None, :] < frames[:, None]  # (B, T)
    square = features.float().square().mean(dim=2)  # (B, T)
    return torch.where(inside, square, 0.0).sum() / frames.sum()


class LabelPrediction(nn.Module, ABC):
    """Scores hidden states against the labels of one or more sets."""

    def __init__(self, num_labels: Sequence[int]) -> None:
        """
        Args:
            num_labels: K of each label set.
        """
        super().__init__()
        self.num_labels = tuple(num_labels)

    @abstractmethod
    def logits(self, hidden: Tensor) -> Iterable[Tensor]:
        """(N, D) -> (N, K) float32 for each label set."""

    def forward(
        self,
        hidden: Tensor,
        codes: Sequence[Tensor],
        *,
        masked: Tensor | None = None,
        unmasked_weight: float = 0.0,
    ) -> LossOutput:
        """Sums the cross-entropy of every label set over the frames.

        Args:
            hidden: (N, D) hidden states.
            codes: (N,) int64 true labels of each label set.
            masked: (N,) bool, the frames that count in the sample size and in the metrics; None = all.
            unmasked_weight: of the other frames' loss. One product for both kinds costs less than two of shapes that
                change with every mask.

        Returns:
            the loss; the number of masked frames; the sums over them 'masked_loss' and 'accuracy' (mean over label
            sets), and for each label set the (K,) counts 'code_usage' and 'prediction_usage' (suffixed with its number
            from the second on).
        """
        sets = len(self.num_labels)
        if len(codes) != sets:
            raise SpeechsslError(f"This model predicts {sets} label sets, but was given {len(codes)}.")
        counted = torch.ones(hidden.size(0), device=hidden.device) if masked is None else masked.float()  # (N,)
        weight = counted + unmasked_weight * (1.0 - counted)
        loss = torch.zeros((), device=hidden.device)
        masked_loss, correct = torch.zeros_like(loss), torch.zeros_like(loss)
        metrics: dict[str, Tensor] = {}
        for number, (logits, target) in enumerate(zip(self.logits(hidden), codes, strict=True)):
            entropy = F.cross_entropy(logits, target, reduction="none")  # (N,)
            loss = loss + (weight * entropy).sum()
            with torch.no_grad():
                predicted = logits.argmax(dim=1)
                masked_loss += (counted * entropy).sum()
                correct += (counted * (predicted == target)).sum()
                suffix = USAGE if number == 0 else f"_{number + 1}{USAGE}"
                metrics["code" + suffix] = usage(target, logits.size(1), weight=counted)
                metrics["prediction" + suffix] = usage(predicted, logits.size(1), weight=counted)
        metrics |= {"masked_loss": masked_loss, "accuracy": correct / sets}
        return LossOutput(loss, counted.sum(), metrics)


class MaskedPrediction(LabelPrediction):
    """Projects hidden states and compares them with label embeddings, one set per kind of labels."""

    def __init__(
        self,
        size: int,
        *,
        num_labels: Sequence[int],
        final_dim: int,
        temperature: float,
        untie_final_proj: bool,
        label_init: Literal["uniform", "unit"] = "uniform",
    ) -> None:
        """
        Args:
            size: D of the hidden states.
            num_labels: K of each label set.
            final_dim: E.
            untie_final_proj: whether each label set has its own projection.
            label_init: 'uniform': U[0, 1), as fairseq: embeddings that begin alike; 'unit': normal, of length about 1,
                which point apart and turn faster under Adam: for short runs.
        """
        super().__init__(num_labels)
        self.temperature = temperature
        self.untie_final_proj = untie_final_proj
        self.final_proj = nn.Linear(size, final_dim * (len(num_labels) if untie_final_proj else 1))
        self.label_embeddings = nn.ParameterList(nn.Parameter(torch.empty(k, final_dim)) for k in num_labels)
        for embeddings in self.label_embeddings:
            if label_init == "uniform":
                nn.init.uniform_(embeddings)
            else:
                nn.init.normal_(embeddings, std=final_dim**-0.5)

    def logits(self, hidden: Tensor) -> Iterable[Tensor]:
        """See `LabelPrediction.logits`."""
        sets = len(self.num_labels)
        projected = self.final_proj(hidden)
        parts = projected.chunk(sets, dim=-1) if self.untie_final_proj else [projected] * sets
        for part, embeddings in zip(parts, self.label_embeddings, strict=True):
            yield cosine_logits(part, embeddings, temperature=self.temperature)


class LinearPrediction(LabelPrediction):
    """A linear layer with a row per label: one product instead of a projection, two norms and a product.

    Paper: Yang et al. 2023 (Fast-HuBERT), sec. 3, arXiv:2309.13860.
    """

    def __init__(self, size: int, *, num_labels: Sequence[int], temperature: float) -> None:
        """
        Args:
            size: D of the hidden states.
            num_labels: K of each label set.
            temperature: divides the logits.
        """
        super().__init__(num_labels)
        self.temperature = temperature
        self.final_proj = nn.Linear(size, sum(num_labels))

    def logits(self, hidden: Tensor) -> Iterable[Tensor]:
        """See `LabelPrediction.logits`."""
        scores: Tensor = self.final_proj(hidden)
        return torch.split(scores.float() / self.temperature, list(self.num_labels), dim=1)
