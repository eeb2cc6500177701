"""Applies a finished run to a user's own files: `speechssl infer`."""

import copy
import json
import logging
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from typing_extensions import override

from speechssl.adapt.methods import adapt, merge
from speechssl.answers import name_stretches
from speechssl.config import from_dict, to_dict
from speechssl.errors import AudioError, ConfigError, ManifestError, SpeechsslError
from speechssl.extraction import Items, extract, measure, resolve_items
from speechssl.files import replacing
from speechssl.probe import Probe, build_probe, load_probe
from speechssl.progress import Advance, progress
from speechssl.registry import task_module
from speechssl.task import Task, TaskData
from speechssl.types import Utterance
from speechssl.upstream import Upstream
from speechssl.upstream_spec import UpstreamCard, UpstreamSpec, load

logger = logging.getLogger(__name__)
FORMAT = 1
FILE = "task.json"


GROUP = 16
"""Files that are heard before their features are given up."""


@dataclass(frozen=True)
class Prepared:
    """What a task hears of a user's files."""

    utterances: Sequence[Utterance]
    """One or more per file, which the label `file` names."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Path of a file that can't be judged -> why, a sentence."""


@runtime_checkable
class JudgesFiles(Protocol):
    """A task that cuts or changes a user's files before it hears them, and says of each something of its own."""

    def change_listening(self, settings: Mapping[str, str]) -> None:
        """Takes what the user set; raises UnknownNameError or ConfigError."""

    def prepare_files(self, utterances: Sequence[Utterance], folder: Path) -> Prepared:
        """Cuts files into what is heard; audio that is changed is written into `folder`."""

    def table(self, found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
        """What `infer` found as a table for a terminal: its header and its rows."""

    def page(self, found: Mapping[str, Any]) -> Sequence[Any]:
        """What `infer` found as sections of a page, see `speechssl.report.blocks`."""


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
    files: Items,
    *,
    upstream: str | Path | Upstream | None = None,
    out: str | Path | None = None,
    device: str = "cpu",
    settings: Mapping[str, str] | None = None,
) -> Any:
    """Applies a trained task to audio files.

    Args:
        run_folder: what `speechssl run` wrote, with task.json and head.safetensors.
        files: audio files, folders, globs, lists, manifests or utterances, see `Items`.
        upstream: where the upstream is now; None = where it was when the head was trained.
        out: folder for what the task writes (audio, ...); None = `infer` below the run folder.
        settings: of the task's own, such as {'hop': '0.25'} of deepfake detection.

    Returns:
        What the task's `infer` returns: for ASR path -> text, for speaker verification the similarities, ... Of
        several utterances in one file each has a key of its own, see `speechssl.answers`. A task that cuts or changes
        files before it hears them gives {'error': sentence} for one that it can't judge, unless that is all.

    Raises:
        ManifestError: no finished run there.
        SpeechsslError: another upstream than the one that the head was trained on.
        AudioError: a file that can't be read.
        ConfigError: a setting that the task doesn't have.
    """
    run = load_run(run_folder, upstream=upstream, device=device)
    folder = Path(run_folder) / "infer" if out is None else Path(out)
    return infer_with(run, files, folder=folder, settings=settings)


def infer_with(run: "LoadedRun", files: Items, *, folder: Path, settings: Mapping[str, str] | None = None) -> Any:
    """`infer` with a run that is loaded; `folder` gets what the task writes."""
    task = run.task
    utterances = resolve_items(files)
    if isinstance(task, JudgesFiles):
        task.change_listening(settings or {})
        return _judge(run, task, utterances, folder, name_stretches(utterances))
    if settings:
        raise ConfigError(f"The task '{task.name}' has no settings for files: leave out '{next(iter(settings))}'.")
    measure(utterances)  # what can't be read is told before anything is computed
    with progress(f"Applying {task.name}", len(utterances), unit="files") as advance, torch.no_grad():
        return task.infer(run.probe.head, _Heard(run, utterances, advance), utterances, run.data, folder)


class _Heard(Mapping[str, Tensor]):
    """Features by utterance id, of a few files at a time, so that memory does not grow with their number."""

    def __init__(self, run: "LoadedRun", utterances: Sequence[Utterance], advance: Advance) -> None:
        self._run, self._advance = run, advance
        groups = [utterances[k : k + GROUP] for k in range(0, len(utterances), GROUP)]
        self._group_of = {u.id: group for group in groups for u in group}
        self._held: Mapping[str, Tensor] = {}

    @override
    def __getitem__(self, name: str) -> Tensor:
        if name not in self._held:
            group = self._group_of[name]
            self._held = self._run.features(group)
            self._advance(len(group))
        return self._held[name]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._group_of)

    @override
    def __len__(self) -> int:
        return len(self._group_of)


def _judge(
    run: "LoadedRun", task: JudgesFiles, utterances: Sequence[Utterance], folder: Path, names: Mapping[str, str]
) -> dict[str, Any]:
    """A few files after the other, so that memory does not grow with their number.

    Args:
        names: id of an utterance -> what its result is called.
    """
    found: dict[str, Any] = {}
    refused: dict[str, str] = {}
    with progress(f"Applying {run.task.name}", len(utterances), unit="files") as advance, torch.no_grad():
        for group in _groups(utterances):
            called = {u.path: names[u.id] for u in group}
            with TemporaryDirectory(prefix="speechssl-") as prepared_audio:
                prepared = task.prepare_files(group, Path(prepared_audio))
                bad: dict[str, str] = {}
                features = run.features(prepared.utterances, bad=bad)
            left_out = {**prepared.refused, **{u.labels["file"]: bad[u.id] for u in prepared.utterances if u.id in bad}}
            heard = [u for u in prepared.utterances if u.labels["file"] not in left_out]
            told = run.task.infer(run.probe.head, features, heard, run.data, folder) if heard else {}
            found |= {called[path]: one for path, one in told.items()}
            refused |= {called[path]: sentence for path, sentence in left_out.items()}
            advance(len(group))
    if refused and not found:
        more = f" {len(refused) - 1} more files can't be judged either." if len(refused) > 1 else ""
        raise AudioError(f"{next(iter(refused.values()))}{more}")
    for sentence in refused.values():
        logger.warning("Not judged: %s", sentence)
    return {name: found[name] if name in found else {"error": refused[name]} for name in names.values()}


def _groups(utterances: Sequence[Utterance]) -> Iterator[list[Utterance]]:
    """Some at a time, each of another file: what is found is told by file."""
    group: dict[str, Utterance] = {}
    for utterance in utterances:
        if len(group) == GROUP or utterance.path in group:
            yield list(group.values())
            group = {}
        group[utterance.path] = utterance
    if group:
        yield list(group.values())


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

    def features(
        self, utterances: Sequence[Utterance], *, bad: MutableMapping[str, str] | None = None
    ) -> dict[str, Tensor]:
        """What the head hears of each utterance by its id, (T, E) or (E,).

        Args:
            bad: receives id -> sentence of each that can't be heard; None = such a one is an error.
        """
        pooled = self.task.config.features.pooling == "mean"
        heard = extract(self.upstream, utterances, layers=self.layers, skip_bad=bad is not None, bad=bad)
        return {u.id: self.join([s.mean(dim=0) if pooled else s for s in states]) for u, states in heard}

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


def rebuild_task(name: str, settings: Mapping[str, Any]) -> Task:
    """The task of a run, with the settings that were saved."""
    presets = task_module(name, "config").PRESETS
    config = from_dict(next(iter(presets.values())), settings, origin=FILE)
    task: Task = task_module(name, "task").TASK(config)
    return task


def _rebuild(saved: dict[str, Any]) -> tuple[Task, TaskData, Probe]:
    task = rebuild_task(saved["task"], saved["config"])
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
        model = load(UpstreamSpec(about["label"], name, about["random_weights"], about.get("normalize")), device=device)
    if model.fingerprint() != about["fingerprint"]:
        raise SpeechsslError(
            f"The head was trained on another upstream than '{model.name}': give the one that was used "
            f"('{about['name']}', fingerprint {about['fingerprint']})."
        )
    return model
