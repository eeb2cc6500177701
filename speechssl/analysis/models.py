"""Which models are analysed: upstreams by name, and the checkpoints of a pre-training run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from speechssl.checkpoint import load_weights
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.loading import load_upstream
from speechssl.train.checkpoint import TENSORS, list_checkpoints
from speechssl.upstream import Upstream
from speechssl.upstream_spec import parse_spec

PREFIX = "model.upstream."
"""How a checkpoint names the weights of the upstream that is trained."""


@dataclass(frozen=True)
class Model:
    """A model to be loaded when its turn comes."""

    label: str
    """What tables call it."""
    load: Callable[[], Upstream]
    step: int | None = None
    """Of a checkpoint."""
    series: str = ""
    """Label of the run whose checkpoint it is."""


def resolve_models(names: Sequence[str], *, device: str = "cpu", checkpoints: bool = False) -> list[Model]:
    """The models that a user names.

    Args:
        names: '[label=]name[:random[:SEED]]', as `speechssl run` takes them.
        device: where they compute.
        checkpoints: whether folders of pre-training runs stand for all checkpoints that they still hold.

    Raises:
        ConfigError: none, or two with one label.
        SpeechsslError: checkpoints are asked for where there are none.
    """
    models: list[Model] = []
    found = False
    for text in names:
        spec = parse_spec(text)
        load = partial(load_upstream, spec.name, device=device, random_weights=spec.random_weights)
        folder = Path(spec.name).expanduser()
        paths = list_checkpoints(folder / "checkpoints") if checkpoints and folder.is_dir() else []
        found |= bool(paths)
        for path in paths:
            step = int(path.name.rpartition("-")[2])
            one = partial(_load_checkpoint, spec.name, path, device)
            models.append(Model(f"{spec.label} @ {step}", one, step, spec.label))
        if not paths:
            models.append(Model(spec.label, load))
    if checkpoints and not found:
        raise SpeechsslError(
            f"None of {', '.join(names)} holds checkpoints: name the folder that `speechssl pretrain` wrote, or leave "
            "out `--checkpoints`."
        )
    labels = [m.label for m in models]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if not models or twice is not None:
        raise ConfigError(
            "There is no upstream: name at least one, such as `speechssl_tiny`."
            if twice is None
            else f"Two upstreams have the label '{twice}': give each its own, as in label=name."
        )
    return models


def _load_checkpoint(name: str, path: Path, device: str) -> Upstream:
    """The upstream of a run, with the weights that it had at a checkpoint."""
    from safetensors.torch import load_file

    upstream = load_upstream(name, device=device)
    tensors = load_file(path / TENSORS)
    state = {k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)}
    expected = upstream.state_dict()
    load_weights(upstream, {k: v for k, v in state.items() if k in expected}, origin=str(path))
    upstream.weights = f"{path.name} of {name}"
    return upstream.eval()
