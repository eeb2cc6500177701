"""Product quantization by a straight-through Gumbel softmax.

N frames, D width, G codebooks, V entries, E width of an entry.
Reference: fairseq `modules/gumbel_vector_quantizer.py`. Here the choice is looked up rather than multiplied by a vector
of zeros and a one, so what comes out is an entry to the last bit, in training too.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.errors import ConfigError
from speechssl.metric.tallies import usage
from speechssl.quantizer.base import Quantizer, QuantizerOutput


class GumbelQuantizer(Quantizer):
    """Chooses an entry of each codebook by its logit, in training with Gumbel noise added.

    Logits, noise and choice are in float32 whatever autocast says: with weights of N(0, 1) the logits are so large that
    bfloat16 would choose for itself. `begin_step` sets the temperature.

    Papers: Jang et al. 2017, arXiv:1611.01144; Baevski et al. 2020, sec. 2 and eq. 1, arXiv:2006.11477; for the shared
    codebook and the deeper projection Baevski et al. 2019, sec. 3.1 and 5.1, arXiv:1910.05453.
    """

    def __init__(
        self,
        width: int,
        *,
        output_width: int,
        groups: int = 2,
        entries: int = 320,
        temperature: tuple[float, float, float] = (2.0, 0.5, 0.999995),
        depth: int = 1,
        factor: int = 1,
        combine_groups: bool = False,
        activation: Callable[[Tensor], Tensor] = F.gelu,
    ) -> None:
        """
        Args:
            width: D of the frames.
            output_width: G * E.
            temperature: at the beginning, the least, and its factor per update.
            depth: linear layers that make the logits.
            factor: width of those between them, over `width`.
            combine_groups: whether all groups choose from one codebook.
            activation: between those layers.
        """
        super().__init__()
        if output_width % groups:
            raise ConfigError(
                f"The width of what is quantized must be a multiple of the groups, but is {output_width} with {groups}."
            )
        self.width, self.groups, self.entries = width, groups, entries
        self.schedule = temperature
        self.temperature = temperature[0]
        self.activation = activation
        self.codebook = nn.Parameter(torch.rand(1 if combine_groups else groups, entries, output_width // groups))
        sizes = [width] + [factor * width] * (depth - 1) + [groups * entries]
        self.projection = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        if depth == 1:  # as fairseq, which leaves a deeper one as torch makes it
            nn.init.normal_(self.projection[0].weight)  # type: ignore[arg-type]  # ModuleList forgets its types
            nn.init.zeros_(self.projection[0].bias)  # type: ignore[arg-type]

    def begin_step(self, step: int) -> None:
        """Sets the temperature after `step` updates."""
        start, least, factor = self.schedule
        self.temperature = max(start * factor**step, least)

    def logits(self, frames: Tensor) -> Tensor:
        """(N, D) -> (N, G, V) float32."""
        with torch.autocast(frames.device.type, enabled=False):
            x = frames.float()
            for index, layer in enumerate(self.projection):
                x = layer(x if index == 0 else self.activation(x))
        return x.float().view(-1, self.groups, self.entries)

    def forward(self, frames: Tensor, *, generator: torch.Generator | None = None) -> QuantizerOutput:
        """Quantizes.

        Args:
            frames: (N, D).
            generator: of the noise, on the CPU or the device of `frames`.

        Returns:
            `probability` is that of the logits without noise and temperature, and `usage` counts the largest of them:
            fairseq's perplexities are of these. `codes` are what was chosen, with noise in training.
        """
        logits = self.logits(frames)  # (N, G, V)
        probability = logits.softmax(dim=2)
        likeliest = logits.argmax(dim=2)
        used = usage(likeliest, self.entries)
        if not self.training:
            return QuantizerOutput(
                self._look_up(likeliest, probability), likeliest, logits.new_zeros(()), used, probability.sum(dim=0)
            )
        device = logits.device if generator is None else generator.device
        noise = torch.empty(logits.shape, device=device).exponential_(generator=generator).log().neg()
        noisy = logits + noise.to(logits.device)
        codes = noisy.argmax(dim=2)
        quantized = self._look_up(codes, (noisy / self.temperature).softmax(dim=2))
        return QuantizerOutput(quantized, codes, logits.new_zeros(()), used, probability.sum(dim=0))

    def encode(self, frames: Tensor) -> Tensor:
        """The entries with the largest logits: (N, D) -> (N, G) int64."""
        return self.logits(frames).argmax(dim=2)

    def decode(self, codes: Tensor) -> Tensor:
        """The entries, joined: (N, G) int64 -> (N, G * E) float32."""
        group = torch.arange(self.groups, device=codes.device) % self.codebook.size(0)
        return self.codebook[group, codes].flatten(1)

    def _look_up(self, codes: Tensor, soft: Tensor) -> Tensor:
        """`decode`, with the gradient of a sum of entries weighted by `soft` (N, G, V)."""
        book = self.codebook.expand(self.groups, -1, -1)
        result: Tensor = _StraightThrough.apply(soft, book, codes)  # type: ignore[no-untyped-call]  # untyped in torch
        return result


class _StraightThrough(torch.autograd.Function):
    """Looks entries up; weights get the gradient of a weighted sum, and entries that of having been chosen."""

    @staticmethod
    def forward(ctx: Any, soft: Tensor, codebook: Tensor, codes: Tensor) -> Tensor:  # noqa: ARG004  # for its gradient
        ctx.save_for_backward(codebook, codes)
        return codebook[torch.arange(codebook.size(0), device=codes.device), codes].flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        codebook, codes = ctx.saved_tensors
        G, V, E = codebook.shape
        with torch.autocast(codebook.device.type, enabled=False):
            grad = grads[0].float().view(-1, G, E)  # (N, G, E)
            weights = torch.einsum("nge,gve->ngv", grad, codebook.float())
        entries = codes + torch.arange(G, device=codes.device) * V  # (N, G)
        chosen = grad.new_zeros(G * V, E).index_add_(0, entries.flatten(), grad.flatten(0, 1))
        return weights, chosen.view(G, V, E).to(codebook.dtype), None
