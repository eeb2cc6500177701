"""FUNGI: what a frozen model's gradients say of an utterance, appended to its embedding.

A self-supervised loss of the utterance is differentiated with respect to one linear layer, by default what joins the
heads of the last attention. The gradient is projected by a random matrix of -1 and 1, brought to unit length, and
appended to the embedding, brought to unit length too. Nothing is trained; nearest neighbours and linear probes
(`probes.py`) take the result.

Losses, each by a random linear layer on the embedding
------------------------------------------------------
* 'kl': KL divergence between the softmax of the outputs and the uniform distribution. One view: the utterance itself.
* 'dino': cross-entropy between a teacher (another random layer) on the global views and the student on all views.
* 'simclr': each view is told from those of other utterances (`set_negatives`) by the other views of its own.

Paper: Simoncini et al. 2024, arXiv:2407.10964; settings of its library fungivision and of its code for audio,
`fungi-ssast`. Choices of ours: the embedding is the mean of the valid frames of the last layer, for there is no class
token; a view is shifted in time by up to 0.1 s and has white noise 10 to 30 dB below it (there log-mel frames are
shifted by up to 10 and have uniform noise); DINO's local views are half of the utterance; the outputs' temperature
divides all cosines (the library divides those of the positives alone). The random views are the same for an utterance
in any batch.

A view costs a forward pass, and there are 1 + 6 + 4 of them; 'kl' alone costs one.
B utterances, V views of each, S samples, T frames, D width, O outputs, P parameters of the layer.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.augment.additive import add_noise
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.upstream import Upstream

Loss = Literal["kl", "dino", "simclr"]
LOSSES: tuple[Loss, ...] = ("kl", "dino", "simclr")
SHIFT = 0.1  # seconds
NOISE = (10.0, 30.0)  # dB below the speech
LOCAL = 0.5  # of the utterance
BLOCK = 16
"""Rows of the projection held at once: 38 MB for a layer of 768 by 768."""


@dataclass(frozen=True)
class FungiConfig:
    """Which gradients, and how they are made."""

    losses: tuple[Loss, ...] = LOSSES
    layer: str | None = None
    """Name of a linear layer; None = what joins the heads of the last attention."""
    width: int | None = None
    """Of each projected gradient; None = the embedding's."""
    kl_outputs: int = 768
    kl_temperature: float = 1.0
    dino_outputs: int = 2048
    dino_global: int = 2
    dino_local: int = 4
    teacher_temperature: float = 0.07
    student_temperature: float = 0.1
    simclr_outputs: int = 768
    simclr_views: int = 4
    simclr_temperature: float = 0.07
    seed: int = 0
    """Of the random layers, the views and the projection."""

    def __post_init__(self) -> None:
        if not self.losses or any(loss not in LOSSES for loss in self.losses):
            raise ConfigError(f"`losses` must be some of {', '.join(LOSSES)}, but are {', '.join(self.losses)}.")
        if self.dino_global < 1 or self.dino_local < 0 or self.simclr_views < 2:
            raise ConfigError("`dino_global` must be >= 1, `dino_local` >= 0 and `simclr_views` >= 2.")


class GradientFeatures:
    """Embeddings with gradients of a frozen upstream."""

    def __init__(self, upstream: Upstream, config: FungiConfig | None = None) -> None:
        """
        Args:
            upstream: in evaluation mode; its weights stay as they are.

        Raises:
            SpeechsslError: there is no such linear layer.
        """
        self.config = config or FungiConfig()
        self.upstream = upstream
        self.layer = _find_layer(upstream, self.config.layer)
        self.embedding_width = upstream.hidden_sizes[-1]
        outputs = {"kl": self.config.kl_outputs, "dino": self.config.dino_outputs, "simclr": self.config.simclr_outputs}
        self._heads = {name: self._head(outputs[name], place) for place, name in enumerate(LOSSES)}
        self._teacher = self._head(self.config.dino_outputs, len(LOSSES))
        self._negatives: Tensor | None = None  # (M, O)

    @property
    def width(self) -> int:
        """Of what is returned for an utterance."""
        each = self.embedding_width if self.config.width is None else self.config.width
        return self.embedding_width + each * len(self.config.losses)

    @torch.no_grad()
    def set_negatives(self, waveform: Tensor, lengths: Tensor) -> None:
        """Keeps what 'simclr' tells utterances from: 64 or so of the training part, (M, S) and (M,) int64."""
        views, sizes = self._views(waveform, lengths, 2, 0)
        self._negatives = _apply(self._heads["simclr"], self._embed(views, sizes))

    def __call__(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Returns (B, `width`): the embedding and each projected gradient, all of unit length.

        Args:
            waveform: (B, S) at the upstream's rate.
            lengths: valid samples, (B,) int64.

        Raises:
            SpeechsslError: 'simclr' without negatives, or a layer that doesn't see (batch, frames, width).
        """
        with torch.no_grad():
            parts = [F.normalize(self._embed(waveform, lengths), dim=1)]
        width = self.embedding_width if self.config.width is None else self.config.width
        for name in self.config.losses:
            gradients = self.gradients(name, waveform, lengths)
            parts.append(F.normalize(project(gradients, width, seed=self.config.seed), dim=1))
        return torch.cat(parts, dim=1)

    def gradients(self, loss: Loss, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, P) the gradient of each utterance's loss, weights row by row with the bias at the end of each."""
        config = self.config
        if loss == "kl":
            return self._differentiate(waveform, lengths, 1, lambda x: kl_loss(self._latents(loss, x)[:, 0], config))
        if loss == "dino":
            views, sizes = self._views(waveform, lengths, config.dino_global, config.dino_local)
            number = config.dino_global + config.dino_local

            def dino(x: Tensor) -> Tensor:
                unit = F.normalize(x, dim=2)
                teacher = _apply(self._teacher, unit[:, : config.dino_global]).detach()
                return dino_loss(_apply(self._heads["dino"], unit), teacher, config)

            return self._differentiate(views, sizes, number, dino)
        negatives = self._negatives
        if negatives is None:
            raise SpeechsslError("'simclr' tells utterances from others: call `set_negatives` first.")
        views, sizes = self._views(waveform, lengths, config.simclr_views, 0)
        return self._differentiate(
            views,
            sizes,
            config.simclr_views,
            lambda x: simclr_loss(_apply(self._heads["simclr"], x), negatives, config.simclr_temperature),
        )

    def _latents(self, loss: Loss, embeddings: Tensor) -> Tensor:
        return _apply(self._heads[loss], F.normalize(embeddings, dim=-1))

    def _embed(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, D) the mean over the valid frames of the last layer."""
        out = self.upstream(waveform, lengths, layers=[-1])
        return out.hidden_states[-1].float().sum(dim=1) / out.lengths[:, None]  # type: ignore[no-any-return]

    def _differentiate(self, waveform: Tensor, lengths: Tensor, views: int, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """(B V, S) with the views of an utterance together -> (B, P); `loss` is (B, V, D) -> (B,)."""
        heard: list[tuple[Tensor, Tensor]] = []

        def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            # The graph begins here: nothing before it is kept for a backward pass.
            leaf = output.detach().requires_grad_()
            heard.append((inputs[0].detach(), leaf))
            return leaf * 1  # what follows may change it in place

        handle = self.layer.register_forward_hook(keep)
        try:
            with torch.set_grad_enabled(True), _frozen(self.upstream):
                embeddings = self._embed(waveform, lengths).view(-1, views, self.embedding_width)
                total = loss(embeddings).sum()
                deltas = torch.autograd.grad(total, [leaf for _, leaf in heard])
        finally:
            handle.remove()
        gradients = torch.zeros(len(embeddings), self.layer.out_features, self.layer.in_features + 1)
        for (x, _), delta in zip(heard, deltas, strict=True):
            if x.dim() != 3 or len(x) != len(waveform):
                raise SpeechsslError(
                    f"The layer must see (batch, frames, width), but saw {tuple(x.shape)}: name another as `layer`."
                )
            seen = F.pad(x.float(), (0, 1), value=1.0).reshape(len(embeddings), -1, x.size(2) + 1)  # (B, V T, in + 1)
            gradients += torch.einsum("bto,bti->boi", delta.float().reshape(*seen.shape[:2], -1), seen).cpu()
        if self.layer.bias is None:
            gradients = gradients[:, :, :-1]
        return gradients.flatten(1)

    def _views(self, waveform: Tensor, lengths: Tensor, whole: int, local: int) -> tuple[Tensor, Tensor]:
        """(B, S) -> (B (whole + local), S) and their lengths; an utterance's do not depend on the batch."""
        rows, sizes = [], []
        most = int(SHIFT * self.upstream.sample_rate)
        for row, length in zip(waveform, lengths.tolist(), strict=True):
            generator = torch.Generator().manual_seed(self.config.seed)
            for number in range(whole + local):
                size = length if number < whole else max(int(length * LOCAL), 1)
                first = int(torch.rand((), generator=generator) * (length - size + 1))
                shift = int((2 * torch.rand((), generator=generator) - 1) * most)
                view = row[first : first + size].roll(shift)[None]
                snr = NOISE[0] + torch.rand(1, generator=generator) * (NOISE[1] - NOISE[0])
                noise = torch.randn(1, size, generator=generator).to(view)
                rows.append(add_noise(view, torch.tensor([size], device=view.device), noise, snr_db=snr.to(view))[0])
                sizes.append(size)
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return padded, torch.tensor(sizes, device=lengths.device)

    def _head(self, outputs: int, place: int) -> tuple[Tensor, Tensor]:
        """A random linear layer as torch begins one: (O, D) and (O,)."""
        generator = torch.Generator().manual_seed(self.config.seed * 8 + place)
        bound = 1 / math.sqrt(self.embedding_width)
        weight = (2 * torch.rand(outputs, self.embedding_width, generator=generator) - 1) * bound
        bias = (2 * torch.rand(outputs, generator=generator) - 1) * bound
        device = self.layer.weight.device
        return weight.to(device), bias.to(device)


def kl_loss(latents: Tensor, config: FungiConfig) -> Tensor:
    """(B, O) -> (B,): KL divergence of the softmax from the uniform distribution."""
    outputs = latents.size(1)
    return -F.log_softmax(latents / config.kl_temperature, dim=1).mean(dim=1) - math.log(outputs)


def dino_loss(student: Tensor, teacher: Tensor, config: FungiConfig) -> Tensor:
    """(B, V, O) and (B, G, O) -> (B,): cross-entropy summed over all pairs, a view with itself too, as in the paper."""
    target = F.softmax(teacher / config.teacher_temperature, dim=2)
    given = F.log_softmax(student / config.student_temperature, dim=2)
    return -torch.einsum("bgo,bvo->b", target, given)


def simclr_loss(latents: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """(B, V, O) views and (M, O) others -> (B,): mean over views of the InfoNCE with each other view as positive."""
    views = latents.size(1)
    unit = F.normalize(latents, dim=2)
    own = unit @ unit.transpose(1, 2) / temperature  # (B, V, V)
    other = unit @ F.normalize(negatives, dim=1).T / temperature  # (B, V, M)
    itself = torch.eye(views, dtype=torch.bool, device=own.device)
    among = torch.cat((own.masked_fill(itself, -math.inf), other), dim=2).logsumexp(dim=2)  # (B, V)
    positive = own.masked_fill(itself, 0.0).sum(dim=2) / (views - 1)
    return (among - positive).mean(dim=1)


def project(gradients: Tensor, width: int, *, seed: int = 0) -> Tensor:
    """Random projection by a matrix of -1 and 1, made again in blocks each time, so that it is never held as a whole.

    Args:
        gradients: (B, P).
        width: of the result.
        seed: equal seeds give the same matrix.

    Returns:
        (B, width) float32; scalar products are kept on average.

    Paper: Achlioptas 2001, "Database-friendly random projections".
    """
    batch, size = gradients.shape
    projected = torch.empty(batch, width)
    for first in range(0, width, BLOCK):
        rows = min(BLOCK, width - first)
        bits = np.frombuffer(np.random.default_rng((seed, first)).bytes(rows * ((size + 7) // 8)), dtype=np.uint8)
        signs = torch.from_numpy(np.unpackbits(bits.reshape(rows, -1), axis=1)[:, :size]).float().mul_(2).sub_(1)
        projected[:, first : first + rows] = gradients.float().cpu() @ signs.T
    return projected / math.sqrt(width)


def _apply(head: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    return F.linear(x, *head)


def _find_layer(upstream: Upstream, name: str | None) -> nn.Linear:
    layers = {key: module for key, module in upstream.named_modules() if isinstance(module, nn.Linear)}
    if name is None:
        name = next((key for key in reversed(layers) if key.endswith("attention.output")), "")
    if name not in layers:
        few = ", ".join(list(layers)[-5:]) or "none"
        raise SpeechsslError(f"'{upstream.name}' has no linear layer '{name}': name one as `layer`, such as {few}.")
    return layers[name]


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No gradients of the weights, so that no graph is kept of what comes before the layer."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
