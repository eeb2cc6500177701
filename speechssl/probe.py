"""What a run trains: what joins the layers of an upstream, a head, and what of the upstream is adapted.

K layers, D width.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from speechssl.adapt.methods import Adapted
from speechssl.checkpoint import save_tensors
from speechssl.data.seeds import derive_seed
from speechssl.errors import SpeechsslError
from speechssl.featurizer.build import build_featurizer
from speechssl.featurizer.interface import Interface
from speechssl.task import Task, TaskConfig, TaskData

HEAD = "head.safetensors"
UPSTREAM = "upstream."
"""Begins the names of the upstream's trained weights in it."""


class Probe(nn.Module):
    """What joins the layers and a head; the upstream itself is no part of it, only what of it is trained."""

    def __init__(self, featurizer: Interface, head: nn.Module) -> None:
        super().__init__()
        self.featurizer = featurizer
        self.head = head
        self.adapted: Adapted | None = None
        """None = the upstream is frozen."""

    def counts(self) -> dict[str, int]:
        """How many numbers are trained of which part."""
        parts = {"head": self.head, "featurizer": self.featurizer}
        found = {name: sum(p.numel() for p in part.parameters() if p.requires_grad) for name, part in parts.items()}
        return {**found, "upstream": 0 if self.adapted is None else self.adapted.parameters()}

    def trained_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(self.counts().values())

    def learned(self) -> list[nn.Parameter]:
        """The parameters, and those of the upstream that are trained."""
        return [*self.parameters(), *(() if self.adapted is None else self.adapted.trained.values())]

    def state(self) -> dict[str, Tensor]:
        """What is to be saved: the state of the probe, and the trained weights of the upstream."""
        adapted = {} if self.adapted is None else self.adapted.state()
        return {**self.state_dict(), **{UPSTREAM + name: weight for name, weight in adapted.items()}}

    def load_state(self, state: Mapping[str, Tensor], *, origin: str) -> None:
        """Sets all that `state` returned; `origin` is named in errors."""
        self.load_state_dict({k: v for k, v in state.items() if not k.startswith(UPSTREAM)})
        if self.adapted is not None:
            own = {k.removeprefix(UPSTREAM): v for k, v in state.items() if k.startswith(UPSTREAM)}
            self.adapted.load(own, origin=origin)


def build_probe(task: Task, data: TaskData, *, num_layers: int, size: int, frame_rate: float, seed: int) -> Probe:
    """Makes what joins the layers, and the head; equal seeds give equal weights, and no global state is touched."""
    with seeded(derive_seed(seed, "featurizer")):
        featurizer = build_featurizer(task.config.features, num_layers, size)
    with seeded(derive_seed(seed, "head")):
        head = task.build_head(featurizer.hidden_size, frame_rate, data)
    return Probe(featurizer, head)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Dropout and initialisation draw from torch's default generators, which are seeded here and put back after."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # unnamed, several GPUs give a warning
        torch.random.manual_seed(seed)
        yield


def save_probe(probe: Probe, folder: Path) -> None:
    """Writes head.safetensors (with the layer weights, and what of the upstream is trained), whole or not at all."""
    save_tensors(probe.state(), folder / HEAD)


def load_probe(probe: Probe, folder: Path) -> None:
    """Reads head.safetensors into a probe of the same shape."""
    path = folder / HEAD
    if not path.is_file():
        raise SpeechsslError(f"There is no trained head at {path}: run the task first.")
    try:
        probe.load_state(load_file(path), origin=str(path))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise SpeechsslError(f"The head {path} does not fit its config ({error}): run the task again.") from error


def make_optimizer(probe: Probe, config: TaskConfig) -> torch.optim.Optimizer | None:
    """None where there is nothing to train; 'rate_scale' of a group multiplies the learning rate of every step."""
    train = config.train
    groups = [
        {"params": [p for p in module.parameters() if p.requires_grad], "rate_scale": scale}
        for module, scale in ((probe.featurizer, config.features.weight_rate_scale), (probe.head, 1.0))
    ]
    if probe.adapted is not None:
        base = config.adapt.learning_rate / train.learning_rate
        by_rate: dict[float, list[nn.Parameter]] = {}
        for name, parameter in probe.adapted.trained.items():
            by_rate.setdefault(probe.adapted.rates[name], []).append(parameter)
        groups += [{"params": by_rate[rate], "rate_scale": base * rate} for rate in sorted(by_rate)]
    groups = [group for group in groups if group["params"]]
    if train.steps == 0 or not groups:
        return None
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "nadam": torch.optim.NAdam,
    }  # fmt: skip
    return kinds[train.optimizer](groups, lr=train.learning_rate, weight_decay=train.weight_decay)
