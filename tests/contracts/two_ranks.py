"""Trains every family's shrunk objective in two processes under torchrun, and writes the weights of rank 0."""

import dataclasses
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_objectives import FAMILIES, STRATEGIES, VARIANTS, batch, begin, make

from speechssl.data.batching import make_generator
from speechssl.train.fabric import Given, make_fabric, set_up
from speechssl.train.optim import make_optimizer, scale_gradients


def reduce(tensors):
    done = {}
    for name in sorted(tensors):
        done[name] = tensors[name].clone()
        dist.all_reduce(done[name])
    return done


def train(family, strategy):
    """Returns the weights after two updates of two micro-batches in each process, whole."""
    objective, config = make(family)
    settings = dataclasses.replace(config.train, strategy=strategy, accelerator="cpu", precision="float32")
    fabric = make_fabric(settings, objective)
    begin(objective)
    model = set_up(fabric, objective, settings)
    assert (strategy == "fsdp") == any(hasattr(p, "full_tensor") for p in objective.parameters())
    optimizer = fabric.setup_optimizers(make_optimizer(objective.trained_parameters(), settings))
    for step in range(2):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        objective.begin_step(step)
        total = torch.zeros(())
        for part in range(2):
            number = 4 * step + 2 * part + fabric.global_rank
            torch.manual_seed(number)
            with fabric.no_backward_sync(model, enabled=part == 0 and strategy == "ddp"):
                output = model(Given(batch(number, objective), make_generator("mask", number)))
                fabric.backward(output["loss_sum"])
            total += output["sample_size"].detach().float()
        size = reduce({"size": total})["size"]
        scale_gradients(objective, 2 / size, 1e9)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            objective.end_step(step + 1, reduce)
    state = objective.state_dict()
    return {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in state.items()}


def main(folder):
    torch.set_num_threads(1)
    for family in (*FAMILIES, *VARIANTS):
        for strategy in STRATEGIES:
            state = train(family, strategy)
            if dist.get_rank() == 0:
                torch.save(state, folder / f"{family}_{strategy}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]))
