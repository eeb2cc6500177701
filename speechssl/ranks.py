"""Several processes that share the work of a command under `torchrun`, or the one that there is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from speechssl.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """This process among `size`; alone, nothing is exchanged."""

    rank: int = 0
    size: int = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in each of them; `tensor` is left as it is."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def gather(self, rows: Tensor) -> Tensor:
        """The rows (N_r, ...) of all processes, in the order of the ranks, in each of them."""
        if self.size == 1:
            return rows
        counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
        parts = [torch.empty(int(n), *rows.shape[1:], dtype=rows.dtype, device=rows.device) for n in counts]
        for source, part in enumerate(parts):
            if source == self.rank:
                part.copy_(rows)
            dist.broadcast(part, source)
        return torch.cat(parts)

    def barrier(self) -> None:
        """Waits for all."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def open_ranks(device: torch.device) -> Iterator[Ranks]:
    """Joins the processes that `torchrun` started, and leaves them at the end.

    Args:
        device: what they compute on; decides the backend.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    if not dist.is_available():  # type: ignore[no-untyped-call]  # untyped in torch
        raise ConfigError("This torch can't run several processes: start the command without torchrun.")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
