"""Telling the features that follow a context from others of the utterance, some steps ahead at once.

B batch, T frames, D width of the context, C channels of the features, K steps, N distractors.
Reference: fairseq `models/wav2vec/wav2vec.py` (`Wav2VecPredictionsModel`) and `criterions/wav2vec_criterion.py`, with
two differences. There a distractor avoids the frame that stands at another place than the one it is compared with, so
that one in T is the true one; here none is. And there the padding of a batch is predicted and drawn from; here not.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.lengths import lengths_to_padding_mask
from speechssl.metric.tallies import MOMENTS, moments
from speechssl.types import LossOutput


def receptive_frames(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Frames that a stack of convolutions hears at once, rounded up.

    A context that ends with frame t and the features of frame t + this many share no sample of the waveform.
    """
    field, hop = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    return math.ceil(field / hop)


def sample_other_frames(frames: Tensor, size: int, number: int, *, generator: torch.Generator) -> Tensor:
    """Draws other valid frames of the same utterance for each frame, uniformly and with replacement.

    Args:
        frames: valid ones, (B,) int64.
        size: T.
        number: N.
        generator: on the CPU or the device of `frames`.

    Returns:
        (B, T, N) int64 within the valid frames, never the frame itself if that is valid and not the only one.
    """
    draw = torch.rand(len(frames), size, number, generator=generator, device=generator.device).to(frames.device)
    others = (frames - 1)[:, None, None]  # (B, 1, 1)
    rank = torch.minimum((draw * others).long(), (others - 1).clamp(min=0))
    rank += (rank >= torch.arange(size, device=frames.device)[None, :, None]).long()
    return torch.minimum(rank, others.clamp(min=0))


class FuturePrediction(nn.Module):
    """Predicts features from contexts, `offset` to `offset + steps - 1` frames ahead, each step by its own projection.

    Paper: Schneider et al. 2019, sec. 2.2 and eq. 2, arXiv:1904.05862. With weight 1 for each distractor the sum over
    them is the paper's expectation times lambda = N.
    """

    def __init__(
        self,
        context_width: int,
        feature_width: int,
        *,
        steps: int = 12,
        offset: int = 3,
        distractors: int = 10,
        balanced: bool = False,
        dropout: float = 0.0,
    ) -> None:
        """
        Args:
            context_width: D.
            feature_width: C.
            steps: K.
            offset: frames from a context to the first features that it predicts, see `receptive_frames`.
            distractors: N, per frame that is predicted.
            balanced: whether all distractors of a frame weigh as much as the true features, rather than each.
            dropout: on the predictions.
        """
        super().__init__()
        if steps < 1 or offset < 1 or distractors < 1:
            raise ConfigError(
                "Predicting the future needs at least 1 step, 1 frame of offset and 1 distractor, but got "
                f"{steps}, {offset}, {distractors}."
            )
        self.steps, self.offset, self.distractors = steps, offset, distractors
        self.weight = 1.0 / distractors if balanced else 1.0
        self.projection = nn.Linear(context_width, steps * feature_width, bias=False)
        self.bias = nn.Parameter(torch.empty(feature_width))  # one for all steps
        bound = 1.0 / math.sqrt(steps * feature_width)  # as torch's transposed convolution, which fairseq has here
        nn.init.uniform_(self.projection.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)
        self.dropout = nn.Dropout(dropout)

    def forward(self, context: Tensor, features: Tensor, frames: Tensor, *, generator: torch.Generator) -> LossOutput:
        """Sums the binary cross-entropy of true features and distractors over all pairs of a context and a step.

        Args:
            context: (B, T, D).
            features: (B, T, C); gradients reach them as truth and as distractors.
            frames: valid ones, (B,) int64; what lies beyond is neither predicted nor drawn.
            generator: draws the distractors.

        Returns:
            the loss; the number of pairs; the sums over pairs 'positive_loss', 'negative_loss' and 'accuracy' (the true
            features score higher than each distractor); the moments 'target' (of valid features) and 'prediction' (of
            the first step).
        """
        others = sample_other_frames(frames, features.size(1), self.distractors, generator=generator)
        predicted = self.predict(context)  # (B, T, K, C)
        truth, false = self.score(predicted, features.float(), others)
        scored = self.scored(frames, features.size(1))  # (B, T, K)
        positive = torch.where(scored, F.softplus(-truth), 0.0).sum()
        negative = torch.where(scored[..., None], F.softplus(false), 0.0).sum() * self.weight
        size = scored.sum().float()
        with torch.no_grad():
            inside = ~lengths_to_padding_mask(frames, features.size(1))
            metrics = {
                "positive_loss": positive.detach(),
                "negative_loss": negative.detach(),
                "accuracy": (scored & (truth > false.amax(dim=3))).sum().float(),
                "target" + MOMENTS: moments(features[inside]),
                "prediction" + MOMENTS: moments(predicted[:, :, 0][inside]),
            }
        return LossOutput(positive + negative, size, metrics)

    def predict(self, context: Tensor) -> Tensor:
        """What each context says of each step: (B, T, D) -> (B, T, K, C) float32."""
        steps = self.projection(context).float().unflatten(2, (self.steps, -1))
        predicted: Tensor = self.dropout(steps + self.bias.float())
        return predicted

    def scored(self, frames: Tensor, size: int) -> Tensor:
        """Which frames are predicted by which step: (B, T, K) bool, from the valid frames (B,) and T."""
        time = torch.arange(size, device=frames.device)
        ahead = self.offset + torch.arange(self.steps, device=frames.device)
        return (time[:, None] >= ahead)[None] & (time[None, :, None] < frames[:, None, None])

    def score(self, predicted: Tensor, features: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Products of predictions with the features of the frame that is predicted, and with its distractors.

        Each frame and its distractors are fetched once for all steps: the steps are moved to the frame instead.

        Args:
            predicted: (B, T, K, C) float32.
            features: (B, T, C) float32.
            others: (B, T, N), frames of the same utterance.

        Returns:
            (B, T, K) and (B, T, K, N) float32 by the frame that is predicted; arbitrary where no context precedes it.
        """
        B, T, C = features.shape
        moved = []
        for step, part in enumerate(predicted.unbind(dim=2)):
            ahead = min(self.offset + step, T)
            moved.append(F.pad(part[:, : T - ahead], (0, 0, ahead, 0)))  # (B, T, C)
        aligned = torch.stack(moved, dim=2)  # (B, T, K, C)
        row = torch.arange(B, device=others.device)[:, None, None] * T
        drawn = F.embedding((others + row).flatten(1), features.flatten(0, 1))  # (B, T * N, C)
        with torch.autocast(features.device.type, enabled=False):
            truth = aligned @ features[..., None]  # (B, T, K, 1)
            false = aligned @ drawn.view(B, T, -1, C).transpose(2, 3)  # (B, T, K, N)
        return truth[..., 0], false
