"""Decoders of recognition-synthesis: LSTM layers with projections, over all frames at once or one frame at a time.

With the true frames given, a layer's inputs are projected for all frames together and only what is recurrent is done
step by step. Without them, what does not depend on the frame before is still projected for many frames together.

Reference: S3PRL `downstream/a2o-vc-vcc2020/model.py`. Its `lstmp_proj_dim` is read by nothing: projections are H wide.

B batch, T' mel frames, M mel bands, H hidden, P width of the prenet.
"""

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstreams.voice_conversion.synthesis.config import NetworkConfig
from downstreams.voice_conversion.synthesis.scan import lstmp_scan

CHUNK = 1024
"""Frames whose inputs are projected together."""


class ParallelDecoder(nn.Module):
    """LSTM layers in one direction, each followed by dropout, a linear layer and tanh; then a linear layer to M."""

    def __init__(self, bands: int, config: NetworkConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.layers = nn.ModuleList(nn.LSTM(hidden, hidden, batch_first=True) for _ in range(config.lstmp_layers))
        self.projections = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(config.lstmp_layers))
        self.dropout = nn.Dropout(config.lstmp_dropout)
        self.out = nn.Linear(hidden, bands)

    def forward(self, states: Tensor) -> Tensor:
        """(B, T', H) -> log-mel (B, T', M)."""
        for layer, projection in zip(self.layers, self.projections, strict=True):
            states = projection(self.dropout(layer(states)[0])).tanh()
        return self.out(states)  # type: ignore[no-any-return]  # nn.Module returns Any


class LstmpCell(nn.Module):
    """An LSTM whose output goes through dropout, a linear layer and tanh before it is fed back."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(size, hidden)
        self.project = nn.Linear(hidden, hidden)

    def bias(self) -> Tensor:
        """Of the gates, (4 H,)."""
        bias: Tensor = self.cell.bias_ih + self.cell.bias_hh
        return bias

    def step(self, gates: Tensor, memory: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """One frame.

        Args:
            gates: before their activations, (B, 4 H).
            memory: (B, H).
            kept: what dropout multiplies by, (B, H); None = nothing is dropped.

        Returns:
            output and memory, (B, H) each.
        """
        admit, forget, new, show = gates.chunk(4, dim=1)
        memory = torch.addcmul(forget.sigmoid() * memory, admit.sigmoid(), new.tanh())
        output = show.sigmoid() * memory.tanh()
        if kept is not None:
            output = output * kept
        return self.project(output).tanh(), memory

    def scan(self, inputs: Tensor, dropout: float) -> Tensor:
        """All frames of known inputs, (B, T', size) -> (B, T', H)."""
        gates = F.linear(inputs, self.cell.weight_ih, self.bias()).transpose(0, 1)  # (T', B, 4 H)
        kept = None
        if self.training and dropout > 0:
            kept = F.dropout(gates.new_ones(*gates.shape[:2], self.cell.hidden_size), dropout)
        states = lstmp_scan(gates, self.cell.weight_hh, self.project.weight, self.project.bias, kept)
        return states.transpose(0, 1)


class AutoregressiveDecoder(nn.Module):
    """Each frame is made from the encoder's state and the frame before, which goes through a prenet with dropout."""

    def __init__(self, bands: int, config: NetworkConfig) -> None:
        super().__init__()
        widths = [bands] + [config.prenet_width] * config.prenet_layers
        self.config = config
        self.prenet = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        sizes = [config.hidden + widths[-1]] + [config.hidden] * (config.lstmp_layers - 1)
        self.layers = nn.ModuleList(LstmpCell(size, config.hidden) for size in sizes)
        self.out = nn.Linear(config.hidden, bands)

    def forward(self, states: Tensor, previous: Tensor) -> Tensor:
        """Makes frames with the true ones before them.

        Args:
            states: (B, T', H).
            previous: the normalised frame before each, (B, T', M); 0 before the first.

        Returns:
            log-mel, (B, T', M).
        """
        dropout = self.config.prenet_dropout
        x = previous if self.prenet else F.dropout(previous, dropout)
        for layer in self.prenet:
            x = F.dropout(F.relu(layer(x)), dropout)  # in evaluation too
        x = torch.cat((states, x), dim=2)
        for layer in self.layers:
            x = cast(LstmpCell, layer).scan(x, self.config.lstmp_dropout)
        return self.out(x)  # type: ignore[no-any-return]  # nn.Module returns Any

    def generate(self, states: Tensor, mean: Tensor, scale: Tensor, generator: torch.Generator) -> Tensor:
        """Makes frames with those before them that it made itself.

        Args:
            states: (B, T', H).
            mean: of the log-mel, (M,); with `scale` (M,) it normalises a frame before the prenet sees it.
            generator: of the prenet's dropout, on the CPU; all rows share its draws.

        Returns:
            log-mel, (B, T', M).
        """
        with torch.autocast(states.device.type, enabled=False):
            return self._generate(states.float(), mean, scale, self._kept(states.float(), generator))

    def _generate(self, states: Tensor, mean: Tensor, scale: Tensor, kept: Tensor) -> Tensor:
        cells = [cast(LstmpCell, layer) for layer in self.layers]
        # The encoder's states are projected ahead; all else that a layer's gates take is one product.
        inner = self.config.hidden
        known_weight = cells[0].cell.weight_ih[:, :inner]
        inputs = [cells[0].cell.weight_ih[:, inner:], *(c.cell.weight_ih for c in cells[1:])]
        weights = [torch.cat((w, c.cell.weight_hh), dim=1).t() for w, c in zip(inputs, cells, strict=True)]
        biases = [c.bias() for c in cells]
        zero = states.new_zeros(len(states), self.config.hidden)
        outputs, memories = [zero] * len(cells), [zero] * len(cells)
        # Normalised as they are made.
        weight_out, bias_out = self.out.weight / scale[:, None], (self.out.bias - mean) / scale
        frame, found = states.new_zeros(len(states), self.out.out_features), []
        drop = self.config.lstmp_dropout if self.training else 0.0
        ones = torch.ones_like(zero)
        for start in range(0, states.size(1), CHUNK):
            known = F.linear(states[:, start : start + CHUNK], known_weight, biases[0]).unbind(1)  # (B, 4 H) each
            for number, gate in enumerate(known, start):
                x = self._before(frame, kept[number])
                for k, cell in enumerate(cells):
                    bias = gate if k == 0 else biases[k]
                    gates = torch.addmm(bias, torch.cat((x, outputs[k]), dim=1), weights[k])
                    keep = F.dropout(ones, drop) if drop > 0 else None
                    outputs[k], memories[k] = cell.step(gates, memories[k], keep)
                    x = outputs[k]
                frame = F.linear(x, weight_out, bias_out)
                found.append(frame)
        return torch.stack(found, dim=1) * scale + mean

    def _before(self, frame: Tensor, kept: Tensor) -> Tensor:
        """(B, M), and what dropout multiplies by (layers, P) -> (B, P)."""
        if not self.prenet:
            return frame * kept[0]
        for layer, keep in zip(self.prenet, kept, strict=True):
            frame = F.relu(layer(frame)) * keep
        return frame

    def _kept(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """What the prenet's dropout multiplies by, (T', layers, P)."""
        config = self.config
        width = config.prenet_width if config.prenet_layers else self.out.out_features
        draws = torch.rand(states.size(1), max(config.prenet_layers, 1), width, generator=generator)
        return ((draws >= config.prenet_dropout) / (1.0 - config.prenet_dropout)).to(states)
