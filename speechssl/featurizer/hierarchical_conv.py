"""Convolutions over the layers of an upstream, each of which leaves about a third of them.

K layers, N frames of a batch, D width of a layer, E width of the result.
Paper: Shih and Harwath 2024, sec. 2.3 ('Hierarchical Conv.'), arXiv:2406.12209.
Reference code: `atosystem/SSL_Interface`, `interfaces/hconvInterface.py` and `configs/interfaceConfig.py`: kernel 5,
stride 3, padding 2, floor(log3 K) convolutions of D channels with ReLU after each; the last has D // K' channels for
the K' layers that are left, which are put side by side. Fewer than three layers get one convolution here and are
refused there.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from speechssl.errors import ConfigError
from speechssl.featurizer.interface import Interface, silence_padding

KERNEL, STRIDE = 5, 3  # layers


class HierarchicalConv(Interface):
    """A few convolutions over the layer axis; parameters are named and shaped as those of the reference."""

    def __init__(self, num_layers: int, size: int, *, normalize: bool = False) -> None:
        super().__init__(num_layers, size, normalize=normalize)
        if num_layers < 2:
            raise ConfigError(
                "`features.interface=hierarchical_conv` joins layers, but there is one: choose more with "
                "`features.layers`, or `features.interface=single`."
            )
        counts = layer_counts(num_layers)
        width = max(1, size // counts[-1])
        self.transforms = nn.Sequential()
        for number in range(1, len(counts)):
            channels = width if number == len(counts) - 1 else size
            self.transforms.append(nn.Conv1d(size, channels, KERNEL, STRIDE, KERNEL // 2))
            self.transforms.append(nn.ReLU())
        self.width = width * counts[-1]

    @property
    @override
    def hidden_size(self) -> int:
        return self.width

    @override
    def _join(self, layers: list[Tensor], lengths: Tensor | None) -> Tensor:
        states = [self._prepare(layer) for layer in layers]
        for conv in self.transforms:
            if isinstance(conv, nn.Conv1d):
                states = [F.relu(state) for state in convolve_layers(states, conv)]
        joined = torch.stack(states, dim=-1).flatten(-2)  # (..., D // K', K') -> (..., E)
        return silence_padding(joined, lengths)


def layer_counts(num_layers: int) -> list[int]:
    """How many layers there are at first and after each convolution, such as [13, 5, 2]."""
    depth = 1
    while STRIDE ** (depth + 1) <= num_layers:
        depth += 1
    counts = [num_layers]
    for _ in range(depth):
        counts.append((counts[-1] + 2 * (KERNEL // 2) - KERNEL) // STRIDE + 1)
    return counts


def convolve_layers(states: list[Tensor], conv: nn.Conv1d) -> list[Tensor]:
    """A convolution over K layers (..., D), each a tensor of its own.

    One product per layer and tap that is there: layers are not moved next to each other, frames are not moved apart,
    and nothing is spent on the zeros of the padding.

    Returns:
        (K - 1) // 3 + 1 layers (..., channels).
    """
    taps = conv.weight.permute(2, 0, 1).contiguous()  # (5, channels, D)
    results = []
    for centre in range(0, len(states), STRIDE):
        total = F.linear(states[centre], taps[KERNEL // 2], conv.bias)
        for tap in range(KERNEL):
            place = centre + tap - KERNEL // 2
            if place != centre and 0 <= place < len(states):
                total = total + F.linear(states[place], taps[tap])
        results.append(total)
    return results
