"""Frames for entries that are not used to restart at: drawn evenly from all that a step has seen, in every process.

N frames, D width, V entries, R entries that restart.
"""

import math

import torch
from torch import Tensor

from speechssl.errors import SpeechsslError
from speechssl.objective import Reduce

DIGITS = 3
BASE = 256
LOWEST, RANGE = -4.0, 40.0
"""Where Gumbel keys lie, but for one in 10^20, up to 10^13 frames."""


class Candidates:
    """One frame per entry.

    Of every micro-batch each entry gets a frame with a random key, and the frame with the largest key stays: the keys
    are those of the largest of N Gumbel variables, so each frame of a step is as likely as any other however they were
    divided. What the processes hold is compared digit by digit, since sums are all that they exchange.
    """

    def __init__(self) -> None:
        self._frames: Tensor | None = None
        self._keys: Tensor | None = None

    def offer(self, frames: Tensor, entries: int, generator: torch.Generator | None) -> None:
        """Takes part of a micro-batch's frames (N, D) into account."""
        if generator is None:
            raise SpeechsslError("Entries that are not used restart at random frames: give `generator` in training.")
        if len(frames) == 0:
            return
        order = torch.randperm(len(frames), generator=generator, device=generator.device)
        index = order.repeat(-(-entries // len(frames)))[:entries].to(frames.device)  # (V,)
        draw = torch.rand(entries, generator=generator, device=generator.device, dtype=torch.float64)
        keys = math.log(len(frames)) - (-draw.clamp(min=1e-300).log()).log()
        scale = (BASE**DIGITS - 1) / RANGE
        keys = ((keys - LOWEST) * scale).long().clamp(0, BASE**DIGITS - 1).to(frames.device)  # (V,)
        chosen = frames.detach().float()[index]  # (V, D)
        if self._frames is None or self._keys is None:
            self._frames, self._keys = chosen, keys
            return
        better = keys > self._keys
        self._keys = torch.where(better, keys, self._keys)
        self._frames = torch.where(better[:, None], chosen, self._frames)

    def draw(self, restarting: Tensor, old: Tensor, reduce: Reduce) -> Tensor:
        """The frames of some entries, the same ones in every process.

        Args:
            restarting: (R,) int64, the same in every process.
            old: (R, D), which stay where no process has seen a frame.

        Returns:
            (R, D) float32.
        """
        if self._keys is None or self._frames is None:
            alive = torch.zeros(len(restarting), dtype=torch.bool, device=old.device)
            keys, frames = torch.zeros_like(restarting), torch.zeros_like(old)
        else:
            alive = torch.ones(len(restarting), dtype=torch.bool, device=old.device)
            keys, frames = self._keys[restarting], self._frames[restarting]
        for place in reversed(range(DIGITS)):
            digit = keys // BASE**place % BASE  # (R,)
            shown = torch.zeros(len(keys), BASE, device=old.device)
            shown.scatter_(1, digit[:, None], alive[:, None].float())
            held = reduce({"digits": shown})["digits"] > 0  # (R, BASE)
            largest = BASE - 1 - held.flip(1).float().argmax(dim=1)
            alive = alive & (digit == largest)
        total = reduce({"frames": frames * alive[:, None], "holders": alive.float()})
        holders = total["holders"][:, None]
        return torch.where(holders > 0, total["frames"] / holders.clamp(min=1), old)

    def clear(self) -> None:
        """Forgets all frames."""
        self._frames = self._keys = None
