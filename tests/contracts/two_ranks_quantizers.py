"""Updates every quantizer in two processes under torchrun, and writes the state of each."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_quantizers import CASES, adam, frames, make, update


def reduce(tensors):
    return {name: _summed(tensors[name].clone()) for name in sorted(tensors)}


def _summed(tensor):
    dist.all_reduce(tensor)
    return tensor


def main(folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {}
    for name in CASES:
        quantizer = make(name)
        optimizer = adam(quantizer)
        for step in range(5):
            update(quantizer, optimizer, (2 * step + rank,), reduce=reduce, reduce_gradient=dist.all_reduce)
        found[name] = {**quantizer.state_dict(), "codes": quantizer.eval().encode(frames(0))}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]))
