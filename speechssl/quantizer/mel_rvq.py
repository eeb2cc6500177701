"""Mel-RVQ: residual quantization of mel frames through small linear layers, trained first and then frozen as targets.

N frames, D width, E code width, G stages, V entries per stage.
Reference: the residual quantizer of DAC (Kumar et al. 2023, sec. 3.2, arXiv:2306.06546), on which MuQ builds.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.objective import Reduce
from speechssl.quantizer.base import Quantizer, QuantizerOutput
from speechssl.quantizer.codebook import (
    check_codes,
    check_frames,
    check_positive,
    nearest_codes,
    straight_through,
    summed_error,
)
from speechssl.quantizer.restart import Candidates


@dataclass(frozen=True)
class MelRvqConfig:
    """Shape and training; the defaults are those of MuQ, whose frames are four of 128 mel bands at 100 Hz."""

    width: int = 512
    stages: int = 8
    entries: int = 1024
    code_width: int = 16
    codebook: float = 1.0
    """Weight of the pull of entries towards frames."""
    commitment: float = 0.25
    """Weight of the pull of frames towards entries."""
    restart_after: int = 1000
    """Updates without a frame after which an entry restarts at a random one; 0 = never."""
    steps: int = 2000
    """Of `fit`."""
    batch_frames: int = 4096
    """Frames per step of `fit`, or as many as there are."""
    learning_rate: float = 3e-3
    """Of `fit`, falling to 0 as a cosine."""


class MelRvqStage(nn.Module):
    """Projects, takes the entry of the most similar direction, and projects back."""

    codebook: nn.Parameter
    unused: Tensor

    def __init__(self, config: MelRvqConfig) -> None:
        super().__init__()
        self.project_in = nn.Linear(config.width, config.code_width)
        self.project_out = nn.Linear(config.code_width, config.width)
        self.codebook = nn.Parameter(torch.randn(config.entries, config.code_width))
        self.register_buffer("unused", torch.zeros(config.entries))  # updates without a frame

    def encode(self, projected: Tensor) -> Tensor:
        """(N, E) -> (N,) int64."""
        return nearest_codes(F.normalize(projected, dim=1), F.normalize(self.codebook, dim=1))

    def decode(self, codes: Tensor) -> Tensor:
        """(N,) int64 -> (N, D)."""
        return self.project_out(self.codebook[codes])  # type: ignore[no-any-return]  # nn.Module returns Any


class MelRvqQuantizer(Quantizer):
    """Residual stages with linear layers around low-dimensional codebooks.

    In training the loss is the mean square error of the reconstruction, and the pulls of frames and entries on each
    other, all trained by gradients. `freeze` ends it.

    Paper: Zhu et al. 2025 (MuQ), sec. 3.2, arXiv:2501.01108.
    """

    def __init__(self, config: MelRvqConfig) -> None:
        super().__init__()
        check_positive(
            width=config.width, stages=config.stages, entries=config.entries, code_width=config.code_width,
            steps=config.steps, batch_frames=config.batch_frames,
        )  # fmt: skip
        self.config = config
        self.width, self.groups, self.entries = config.width, config.stages, config.entries
        self.stages = nn.ModuleList(MelRvqStage(config) for _ in range(config.stages))
        self._used: Tensor | None = None
        self._candidates = [Candidates() for _ in range(config.stages)]

    def forward(self, frames: Tensor, *, generator: torch.Generator | None = None) -> QuantizerOutput:
        """See `Quantizer.forward`; draws only where entries may restart."""
        with torch.autocast(frames.device.type, enabled=False):
            x = check_frames(frames, self.width)
            quantized, loss = torch.zeros_like(x), x.new_zeros(())
            codes, projections = [], []
            for stage in self._stages():
                projected = stage.project_in(x - quantized)  # (N, E)
                code = stage.encode(projected)
                entry = stage.codebook[code]
                loss = loss + self.config.codebook * summed_error(entry, projected.detach())
                loss = loss + self.config.commitment * summed_error(projected, entry.detach())
                quantized = quantized + stage.project_out(straight_through(projected, entry))
                codes.append(code)
                projections.append(projected.detach())
            loss = loss + summed_error(quantized, x)
            every = torch.stack(codes, dim=1)  # (N, G)
            offset = torch.arange(self.groups, device=x.device) * self.entries
            usage = torch.bincount((every + offset).flatten(), minlength=self.groups * self.entries)
            usage = usage.view(self.groups, self.entries).float()
            if self.training and self.config.restart_after > 0:
                self._used = usage if self._used is None else self._used + usage
                for seen, projected in zip(self._candidates, projections, strict=True):
                    seen.offer(projected, self.entries, generator)
        return QuantizerOutput(quantized, every, loss, usage, usage)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """See `Quantizer.encode`."""
        with torch.autocast(frames.device.type, enabled=False):
            x = check_frames(frames, self.width)
            quantized = torch.zeros_like(x)
            codes = []
            for stage in self._stages():
                codes.append(stage.encode(stage.project_in(x - quantized)))
                quantized = quantized + stage.decode(codes[-1])
            return torch.stack(codes, dim=1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """See `Quantizer.decode`."""
        columns = check_codes(codes, self.groups, self.entries).unbind(1)
        with torch.autocast(codes.device.type, enabled=False):
            total = self._stages()[0].codebook.new_zeros(len(codes), self.width)
            for stage, code in zip(self._stages(), columns, strict=True):
                total = total + stage.decode(code)
            return total

    @torch.no_grad()
    def end_step(self, reduce: Reduce, *, generator: torch.Generator | None = None) -> None:  # noqa: ARG002
        """See `Quantizer.end_step`: restarts entries. The draws were made in `forward`."""
        if self.config.restart_after <= 0:
            return
        stages = self._stages()
        used = torch.zeros(self.groups, self.entries, device=stages[0].codebook.device)
        used = reduce({"used": used if self._used is None else self._used})["used"]  # (G, V)
        self._used = None
        for stage, count, seen in zip(stages, used, self._candidates, strict=True):
            stage.unused.copy_(torch.where(count > 0, 0.0, stage.unused + (used.sum() > 0)))
            stale = (stage.unused >= self.config.restart_after).nonzero()[:, 0]
            if len(stale):
                stage.codebook[stale] = seen.draw(stale, stage.codebook[stale], reduce)
                stage.unused[stale] = 0.0
            seen.clear()

    def freeze(self) -> None:
        """Ends the training: what it makes are targets from now on."""
        self.requires_grad_(requires_grad=False).eval()

    def fit(self, frames: Tensor, *, generator: torch.Generator) -> float:
        """Trains on normalised mel frames (N, D), and freezes; in every process alike, if all see the same frames.

        Args:
            generator: on the device of the frames; draws batches, first entries and restarts.

        Returns:
            the mean square error of the reconstruction over the mean square of the frames.
        """
        x = check_frames(frames.detach(), self.width).to(self._stages()[0].codebook.device)
        self.requires_grad_(requires_grad=True).train()
        self._spread(x, generator)
        optimizer = torch.optim.Adam(self.parameters(), lr=self.config.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.config.steps)
        size = min(self.config.batch_frames, len(x))
        for _ in range(self.config.steps):
            rows = torch.randint(len(x), (size,), generator=generator, device=generator.device)
            with torch.enable_grad():  # type: ignore[no-untyped-call]  # untyped in torch
                loss = self(x[rows.to(x.device)], generator=generator).loss / size
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            self.end_step(dict)
            schedule.step()
        self.freeze()
        with torch.no_grad():
            return float((self.decode(self.encode(x)) - x).square().mean() / x.square().mean())

    @torch.no_grad()
    def _spread(self, x: Tensor, generator: torch.Generator) -> None:
        """Puts the entries of each stage at random frames, as they come to it."""
        quantized = torch.zeros_like(x)
        for stage in self._stages():
            seen = Candidates()
            projected = stage.project_in(x - quantized)
            seen.offer(projected, self.entries, generator)
            every = torch.arange(self.entries, device=x.device)
            stage.codebook.copy_(seen.draw(every, stage.codebook, dict))
            quantized = quantized + stage.decode(stage.encode(projected))

    def _stages(self) -> list[MelRvqStage]:
        return [stage for stage in self.stages if isinstance(stage, MelRvqStage)]
