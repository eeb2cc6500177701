"""Adversarial speaker disentanglement: two discriminators that hear speech of anybody beside the target's.

One tells content embeddings of external speech from those of the target, and the encoder is trained against it through
a reversed gradient. The other tells log-mel of the target from what the model makes of external speech, and the model
is trained to pass. External speech needs no annotation; nobody knows what it should sound like in the target's voice,
and nobody has to.

Paper: Zhao et al. 2023, arXiv:2305.09167, of which the abstract is what this follows. Choices of ours are the networks,
binary cross-entropy of whole utterances for the first, least squares of frames for the second (Mao et al. 2017,
arXiv:1611.04076), and one update of everything at a time.

B batch, T frames, C channels, H hidden, M mel bands.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from downstreams.voice_conversion.synthesis.config import AdversarialConfig
from speechssl.lengths import lengths_to_padding_mask
from speechssl.vocoder.losses import adversarial_loss, discriminator_loss

SLOPE = 0.2


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]  # torch leaves it open
        return -ctx.weight * gradient, None


def reverse_gradient(x: Tensor, weight: float) -> Tensor:
    """The same numbers, whose gradient comes back times `-weight`.

    Paper: Ganin and Lempitsky 2015, sec. 3.1, arXiv:1409.7495.
    """
    return _Reversed.apply(x, weight)  # type: ignore[no-any-return,no-untyped-call]  # torch does not annotate it


class FrameDiscriminator(nn.Module):
    """Convolutions over frames with leaky ReLU, and one score per frame; padding is 0 before every convolution."""

    def __init__(self, size: int, config: AdversarialConfig) -> None:
        super().__init__()
        widths = [size] + [config.width] * config.layers
        self.convs = nn.ModuleList(
            nn.Conv1d(a, b, config.kernel, padding=config.kernel // 2) for a, b in pairwise(widths)
        )
        self.out = nn.Conv1d(config.width, 1, 1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, C) and valid frames (B,) -> scores (B, T); those of padding have no meaning."""
        valid = ~lengths_to_padding_mask(lengths, x.size(1))[:, None]  # (B, 1, T)
        x = x.transpose(1, 2)
        for conv in self.convs:
            x = F.leaky_relu(conv(torch.where(valid, x, 0.0)), SLOPE)
        return self.out(x)[:, 0]  # type: ignore[no-any-return]  # nn.Module returns Any


class Disentanglement(nn.Module):
    """The two discriminators and what they add to the loss."""

    def __init__(self, hidden: int, bands: int, config: AdversarialConfig) -> None:
        """
        Args:
            hidden: H, width of the content embeddings.
            bands: M.
        """
        super().__init__()
        self.config = config
        self.content = FrameDiscriminator(hidden, config)
        self.mel = FrameDiscriminator(bands, config)

    def content_loss(self, content: Tensor, lengths: Tensor, external: Tensor) -> Tensor:
        """How badly external content is told from the target's; the encoder learns to make it worse.

        Args:
            content: (B, T, H).
            lengths: valid frames, (B,) int64.
            external: (B,) bool.

        Returns:
            scalar: the mean cross-entropy of each of the two kinds, averaged over those that are there.
        """
        scores = self.content(reverse_gradient(content, self.config.content_weight), lengths)
        padding = lengths_to_padding_mask(lengths, scores.size(1))
        logits = scores.masked_fill(padding, 0.0).sum(dim=1) / lengths  # (B,)
        errors = F.binary_cross_entropy_with_logits(logits, external.to(logits), reduction="none")
        return torch.stack([errors[kind].mean() for kind in (external, ~external) if bool(kind.any())]).mean()

    def mel_losses(self, real: "Segments", fake: "Segments") -> tuple[Tensor, Tensor]:
        """What the discriminator of log-mel minimises, and what the model does; scalars.

        The first sends no gradient to the model, and the second none to the discriminator.

        Args:
            real: normalised log-mel of the target.
            fake: what the model made of external speech, normalised too.
        """
        judged = [valid_scores(self.mel(x.detach(), lengths), lengths) for x, lengths in (real.pair, fake.pair)]
        frozen = {name: parameter.detach() for name, parameter in self.mel.named_parameters()}
        passed = valid_scores(functional_call(self.mel, frozen, fake.pair), fake.lengths)
        return discriminator_loss(judged[:1], judged[1:]), adversarial_loss([passed])


@dataclass(frozen=True)
class Segments:
    """Stretches of frames."""

    frames: Tensor
    """(B, T, C)."""
    lengths: Tensor
    """Valid ones, (B,) int64."""

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Both."""
        return self.frames, self.lengths


def valid_scores(scores: Tensor, lengths: Tensor) -> Tensor:
    """(B, T) -> those of valid frames, (N,)."""
    return scores[~lengths_to_padding_mask(lengths, scores.size(1))]


def cut(frames: Tensor, lengths: Tensor, size: int, generator: torch.Generator) -> Segments:
    """A stretch of at most `size` frames of each utterance, wherever the generator (on the CPU) says.

    Args:
        frames: (B, T, C).
        lengths: (B,) int64.
    """
    spare = (lengths - size).clamp(min=0)  # (B,)
    draws = torch.rand(len(lengths), generator=generator, dtype=torch.float64).to(lengths.device)
    first = (draws * (spare + 1)).long()  # (B,)
    places = first[:, None] + torch.arange(min(size, frames.size(1)), device=frames.device)  # (B, size)
    places = places.clamp(max=frames.size(1) - 1)
    return Segments(frames.gather(1, places[:, :, None].expand(-1, -1, frames.size(2))), lengths.clamp(max=size))
