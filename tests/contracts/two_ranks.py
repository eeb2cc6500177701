"""Trains every family's shrunk objective in two processes under torchrun, and writes the weights of rank 0."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_objectives import FAMILIES, batch, begin, make
from torch.nn.parallel import DistributedDataParallel

from speechssl.data.batching import make_generator
from speechssl.objective import PretrainInputs
from speechssl.train.optim import make_optimizer, scale_gradients


class _Wrapped(torch.nn.Module):
    def __init__(self, objective):
        super().__init__()
        self.objective = objective

    def forward(self, waveform, lengths, codes, tokens, token_lengths, generator):  # noqa: PLR0917
        return self.objective(PretrainInputs(waveform, lengths, codes, tokens, token_lengths), generator)


def reduce(tensors):
    done = {}
    for name in sorted(tensors):
        done[name] = tensors[name].clone()
        dist.all_reduce(done[name])
    return done


def main(folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for family in FAMILIES:
        objective, config = make(family)
        begin(objective)
        model = DistributedDataParallel(
            _Wrapped(objective), broadcast_buffers=False, find_unused_parameters=objective.skips_blocks
        )
        optimizer = make_optimizer(objective.trained_parameters(), config.train)
        for step in range(3):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
            objective.begin_step(step)
            number = 2 * step + rank
            torch.manual_seed(number)
            inputs = batch(number, objective)
            output = model(
                inputs.waveform, inputs.lengths, inputs.codes, inputs.tokens, inputs.token_lengths,
                make_generator("mask", number),
            )  # fmt: skip
            output.loss_sum.backward()
            size = reduce({"size": output.sample_size.float()})["size"]
            scale_gradients(objective, 2 / size, 1e9)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                objective.end_step(step + 1, reduce)
        if rank == 0:
            torch.save(objective.state_dict(), folder / f"{family}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]))
