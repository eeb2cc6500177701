"""Residual vector quantization: each stage quantizes what the stages before it have left over.

N frames, D width, G stages, V entries per stage.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechssl.objective import Reduce
from speechssl.quantizer.base import Quantizer, QuantizerOutput
from speechssl.quantizer.codebook import check_codes, check_frames, check_positive, check_share, straight_through
from speechssl.quantizer.ema import EmaConfig, EmaQuantizer

NONE = -1
"""The code of a stage that quantizer dropout left out."""


@dataclass(frozen=True)
class ResidualConfig:
    """Shape and loss; see `EmaConfig` for the settings of a stage."""

    width: int = 256
    stages: int = 8
    entries: int = 1024
    decay: float = 0.99
    commitment: float = 0.25
    restart_below: float = 2.0
    """SoundStream's and lucidrains' least average count of an entry."""
    dropout: float = 0.0
    """Probability that a micro-batch, in training, uses only so many of the first stages as is drawn evenly."""


class ResidualQuantizer(Quantizer):
    """A chain of `EmaQuantizer`.

    Papers: Zeghidour et al. 2021 (SoundStream), sec. III-C, arXiv:2107.03312; Défossez et al. 2022 (EnCodec), sec. 3.2,
    arXiv:2210.13438, whose entries restart likewise.
    """

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__()
        check_positive(stages=config.stages)
        check_share(dropout=config.dropout)
        self.config = config
        self.width, self.groups, self.entries = config.width, config.stages, config.entries
        stage = EmaConfig(
            width=config.width,
            entries=config.entries,
            decay=config.decay,
            commitment=config.commitment,
            restart_below=config.restart_below,
        )
        self.stages = nn.ModuleList(EmaQuantizer(stage) for _ in range(config.stages))

    def forward(self, frames: Tensor, *, generator: torch.Generator | None = None) -> QuantizerOutput:
        """See `Quantizer.forward`; stages that dropout leaves out have code -1 and count nowhere."""
        with torch.autocast(frames.device.type, enabled=False):
            x = check_frames(frames, self.width)
            rest, quantized = x, torch.zeros_like(x)
            usage = x.new_zeros(self.groups, self.entries)
            codes = torch.full((len(x), self.groups), NONE, dtype=torch.int64, device=x.device)
            loss = x.new_zeros(())
            for index in range(self._used(generator)):
                stage = self.stages[index](rest, generator=generator)
                chosen = stage.quantized.detach()
                rest, quantized, loss = rest - chosen, quantized + chosen, loss + stage.loss
                codes[:, index], usage[index] = stage.codes[:, 0], stage.usage[0]
        return QuantizerOutput(straight_through(x, quantized), codes, loss, usage, usage)

    def _used(self, generator: torch.Generator | None) -> int:
        """How many stages this micro-batch uses."""
        if not self.training or self.config.dropout == 0:
            return self.groups
        device = "cpu" if generator is None else generator.device
        draw, share = torch.rand(2, generator=generator, device=device).tolist()
        return 1 + int(share * self.groups) if draw < self.config.dropout else self.groups

    def encode(self, frames: Tensor) -> Tensor:
        """See `Quantizer.encode`."""
        rest = check_frames(frames, self.width)
        codes = []
        for stage in self._stages():
            codes.append(stage.encode(rest))
            rest = rest - stage.decode(codes[-1])
        return torch.cat(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """See `Quantizer.decode`; code -1 adds nothing."""
        check_codes(codes.clamp(min=0), self.groups, self.entries)
        total = self._stages()[0].codebook.new_zeros(len(codes), self.width)
        for stage, code in zip(self._stages(), codes.unbind(1), strict=True):
            total = total + torch.where((code == NONE)[:, None], 0.0, stage.codebook[code.clamp(min=0)])
        return total

    def end_step(self, reduce: Reduce, *, generator: torch.Generator | None = None) -> None:
        """See `Quantizer.end_step`."""
        for stage in self._stages():
            stage.end_step(reduce, generator=generator)

    @torch.no_grad()
    def fit(self, frames: Tensor, *, generator: torch.Generator) -> None:
        """Puts the entries of each stage at the k-means centroids of what is left of frames (N, D), N >= V."""
        rest = check_frames(frames, self.width)
        for stage in self._stages():
            stage.fit(rest, generator=generator)
            rest = rest - stage.decode(stage.encode(rest))

    def _stages(self) -> list[EmaQuantizer]:
        return [stage for stage in self.stages if isinstance(stage, EmaQuantizer)]
