"""Applies a finished run to a user's own files: `speechssl infer`."""

import copy
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from speechssl.adapt.methods import adapt, merge
from speechssl.config import from_dict, to_dict
from speechssl.errors import ManifestError, SpeechsslError
from speechssl.extraction import extract, resolve_items
from speechssl.files import replacing
from speechssl.probe import Probe, build_probe, load_probe
from speechssl.registry import task_module
from speechssl.task import Task, TaskData
from speechssl.types import Utterance
from speechssl.upstream import Upstream
from speechssl.upstream_spec import UpstreamCard, UpstreamSpec, load

logger = logging.getLogger(__name__)
FORMAT = 1
FILE = "task.json"


@runtime_checkable
class PreparesFiles(Protocol):
    """A task whose training audio went through more than reading, which a user's files must go through too."""

    def prepare_files(self, utterances: Sequence[Utterance], folder: Path) -> list[Utterance]:
        """Writes the prepared audio into `folder` and returns the utterances to score, one or more per file."""


def save_task(
    folder: Path, task: Task, data: TaskData, *, card: UpstreamCard, layers: Sequence[int], size: int
) -> None:
    """Writes task.json: all that `infer` needs besides the weights of head and upstream."""
    name = card.spec.name
    content = {
        "format": FORMAT,
        "task": task.name,
        "config": to_dict(task.config),
        "state": dict(task.state(data)),
        "upstream": {
            **asdict(card.spec),
            "name": str(Path(name).resolve()) if Path(name).is_dir() else name,
            "fingerprint": card.info.fingerprint,
        },
        "layers": list(layers),
        "size": size,
        "frame_rate": card.info.frame_rate,
    }
    with replacing(folder / FILE) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def infer(
    run_folder: str | Path,
    files: Sequence[str | Path],
    *,
    upstream: str | Path | Upstream | None = None,
    out: str | Path | None = None,
    device: str = "cpu",
) -> Any:
    """Applies a trained task to audio files.

    Args:
        run_folder: what `speechssl run` wrote, with task.json and head.safetensors.
        files: audio files, folders or globs.
        upstream: where the upstream is now; None = where it was when the head was trained.
        out: folder for what the task writes (audio, ...); None = `infer` below the run folder.

    Returns:
        What the task's `infer` returns: for ASR path -> text, for speaker verification the similarities, ...

    Raises:
        ManifestError: no finished run there.
        SpeechsslError: another upstream than the one that the head was trained on.
        AudioError: a file that can't be read.
    """
    run = load_run(run_folder, upstream=upstream, device=device)
    task = run.task
    utterances = resolve_items(files)
    features = {}
    with TemporaryDirectory(prefix="speechssl-") as prepared, torch.no_grad():
        if isinstance(task, PreparesFiles):
            utterances = task.prepare_files(utterances, Path(prepared))
        for utterance, states in extract(run.upstream, utterances, layers=run.layers):
            pooled = task.config.features.pooling == "mean"
            features[utterance.id] = run.join([s.mean(dim=0) if pooled else s for s in states])
        target = Path(run_folder) / "infer" if out is None else Path(out)
        return task.infer(run.probe.head, features, utterances, run.data, target)


@dataclass(frozen=True)
class LoadedRun:
    """A finished run, ready to be applied."""

    task: Task
    data: TaskData
    """What `Task.restore` made."""
    probe: Probe
    """With the trained weights, on the device."""
    upstream: Upstream
    """Adapted, where the run adapted it."""
    layers: tuple[int, ...]
    device: str

    def join(self, states: Sequence[Tensor]) -> Tensor:
        """The layers of an utterance, (T, D) or (D,) each, as the head hears them, (T, E) or (E,)."""
        joined: Tensor = self.probe.featurizer([s.to(self.device) for s in states])
        return joined


def load_run(
    run_folder: str | Path, *, upstream: str | Path | Upstream | None = None, device: str = "cpu"
) -> LoadedRun:
    """Loads what `speechssl run` wrote; arguments and errors are those of `infer`."""
    folder = Path(run_folder)
    saved = _read(folder)
    task, data, probe = _rebuild(saved)
    model = _adapt(probe, _upstream(saved, upstream, device), task, saved["layers"])
    load_probe(probe, folder)
    probe.eval().to(device)
    return LoadedRun(task, data, probe, model, tuple(saved["layers"]), device)


def is_run(folder: str | Path) -> bool:
    """Whether a folder holds a finished run."""
    return (Path(folder).expanduser() / FILE).is_file()


def load_adapted(
    run_folder: str | Path, *, upstream: str | Path | Upstream | None = None, device: str = "cpu"
) -> Upstream:
    """The upstream of a run that fine-tuned it, as one of its family again: low-rank updates are in its weights.

    Args:
        run_folder: what `speechssl run` wrote.
        upstream: as in `infer`.

    Raises:
        ManifestError: no finished run there.
        SpeechsslError: the run did not adapt its upstream, or added what no weights of the family can stand for.
    """
    folder = Path(run_folder)
    saved = _read(folder)
    task, _, probe = _rebuild(saved)
    method = task.config.adapt.method
    if method == "frozen":
        raise SpeechsslError(
            f"The run {folder} left its upstream as it was: name that ('{saved['upstream']['name']}')."
        )
    model = _adapt(probe, _upstream(saved, upstream, device), task, saved["layers"])
    load_probe(probe, folder)
    merge(model)
    model.weights = f"{model.weights}, adapted to {task.name} ({method})"
    return model.requires_grad_(True).eval()


def _adapt(probe: Probe, upstream: Upstream, task: Task, layers: Sequence[int]) -> Upstream:
    """A copy of an upstream, ready for the trained weights that `load_probe` brings; a frozen one is no copy."""
    if task.config.adapt.method == "frozen":
        return upstream
    probe.adapted = adapt(copy.deepcopy(upstream), task.config.adapt, seed=0, deepest=max(layers))
    return probe.adapted.upstream


def _read(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    try:
        saved: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if saved["format"] != FORMAT:
            raise ManifestError(f"{path} has format {saved['format']}, not {FORMAT}: run the task again.")
        return saved
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ManifestError(f"{folder} holds no finished run (it has no {FILE}): run the task first.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ManifestError(f"{path} can't be read ({error}): run the task again.") from error


def _rebuild(saved: dict[str, Any]) -> tuple[Task, TaskData, Probe]:
    presets = task_module(saved["task"], "config").PRESETS
    config = from_dict(next(iter(presets.values())), saved["config"], origin=FILE)
    task: Task = task_module(saved["task"], "task").TASK(config)
    data = task.restore(saved["state"])
    probe = build_probe(
        task,
        data,
        num_layers=len(saved["layers"]),
        size=saved["size"],
        frame_rate=saved["frame_rate"],
        seed=0,
    )
    return task, data, probe


def _upstream(saved: dict[str, Any], upstream: str | Path | Upstream | None, device: str) -> Upstream:
    about = saved["upstream"]
    if isinstance(upstream, Upstream):
        model = upstream
    else:
        name = about["name"] if upstream is None else str(upstream)
        model = load(UpstreamSpec(about["label"], name, about["random_weights"]), device=device)
    if model.fingerprint() != about["fingerprint"]:
        raise SpeechsslError(
            f"The head was trained on another upstream than '{model.name}': give the one that was used "
            f"('{about['name']}', fingerprint {about['fingerprint']})."
        )
    return model
