"""How a finished run bears what happens to recordings: its test set under one disturbance after the other.

    <run folder>/robustness.json          condition -> metrics, beside those of the test set as it is
    <run folder>/robustness/<condition>/  what the task writes for a test: scores, ...

Nothing is trained and no threshold is moved: decisions are those of the checkpoint. Features of disturbed audio go
through the cache like any other, so that a second run on the same upstream finds them.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from speechssl.audio import read_audio
from speechssl.augment.disturbances import CLEAN, DISTURBANCES, disturb
from speechssl.cache import FeatureCache
from speechssl.data.corpus import Corpus
from speechssl.data.flac import SAMPLE_RATE, write_flac
from speechssl.data.seeds import derive_seed, make_generator
from speechssl.devices import resolve_devices
from speechssl.errors import ConfigError, ManifestError, UnknownNameError
from speechssl.files import replacing
from speechssl.inference import LoadedRun, load_run
from speechssl.jobs import RunOptions, prepare_data
from speechssl.predicting import predict
from speechssl.progress import Advance, progress
from speechssl.result import MetricValue, RunResult, load_result
from speechssl.task import TaskData
from speechssl.types import Utterance

logger = logging.getLogger(__name__)
FILE = "robustness.json"
FORMAT = 1
CHUNK = 512
"""Utterances whose disturbed audio is on disk at once."""
CHANGE = "score_change"
"""Mean absolute change of a score, where the task predicts one number for each utterance."""

Metrics = Mapping[str, MetricValue]


@dataclass(frozen=True)
class Robustness:
    """What was measured of one run."""

    conditions: Mapping[str, Metrics]
    """Condition -> metric -> value; 'clean' is the test set as it is."""
    seconds: float


def measure_robustness(
    folder: Path,
    corpus: Corpus,
    *,
    conditions: Sequence[str] = (),
    limit: int | None = None,
    upstream: str | None = None,
    options: RunOptions | None = None,
) -> Robustness:
    """Tests a finished run under disturbances, and writes robustness.json into its folder.

    Args:
        folder: of the run.
        corpus: that it was made on; where it was made with `--skip-bad`, what `without_bad_files` makes of that.
        conditions: of `DISTURBANCES`; none = all. 'clean' is always among them.
        limit: test utterances that are heard, chosen by a hash of their ids; None = all.
        upstream: where it is now, if it was moved.
        options: with `skip_bad` what is too short for the upstream is left out, of all conditions.

    Raises:
        UnknownNameError: a condition that there is not.
        ConfigError: a task whose labels would not fit disturbed audio.
        ManifestError: no finished run, or of another corpus.
    """
    for name in conditions:
        if name not in DISTURBANCES:
            raise UnknownNameError("condition", name, DISTURBANCES)
    wanted = [name for name in DISTURBANCES if name == CLEAN or not conditions or name in conditions]
    options = options or RunOptions()
    begin = time.perf_counter()
    result = load_result(folder)
    check_corpus(folder, result, corpus)
    run = load_run(folder, upstream=upstream, device=str(resolve_devices(options.devices)[0]))
    if not run.task.labels_whole:
        raise ConfigError(
            f"The labels of '{run.task.name}' would not fit audio that was delayed or cut: name other runs."
        )
    data = prepare_data(run.task, corpus)
    tested = replace(data, splits={**data.splits, "test": _chosen(data.splits["test"], limit)})
    total = len(wanted) * len(tested.splits["test"])
    found: dict[str, Metrics] = {}
    clean: Mapping[str, Any] = {}
    with progress(f"Disturbing {run.task.name}", total, unit="utterances") as advance:
        for name in wanted:
            predictions = _predict(run, tested, name, options, advance)
            if name == CLEAN:
                clean, tested = predictions, _heard(tested, predictions)
            measured = run.task.evaluate(run.probe.head, predictions, tested, "test", folder / "robustness" / name)
            found[name] = {**measured.metrics, **_change(clean, predictions)}
    robustness = Robustness(found, time.perf_counter() - begin)
    _write(robustness, folder, result)
    return robustness


def check_corpus(folder: Path, result: RunResult, corpus: Corpus) -> None:
    """Sees that a run was made on a corpus.

    Raises:
        ManifestError: it was made on another one.
    """
    if result.corpus.get("fingerprint") != corpus.fingerprint:
        raise ManifestError(
            f"{folder} was made on another corpus than {corpus.root}, or with `--skip-bad`: give `--set corpus=` the "
            f"folder of '{result.corpus.get('name')}', fingerprint {result.corpus.get('fingerprint')}, or say "
            "`--set skip_bad=true`."
        )


def _chosen(test: Sequence[Utterance], limit: int | None) -> Sequence[Utterance]:
    if limit is None or limit >= len(test):
        return test
    kept = {u.id for u in sorted(test, key=lambda u: derive_seed("robustness", u.id))[:limit]}
    return [u for u in test if u.id in kept]


def _heard(data: TaskData, predictions: Mapping[str, Any]) -> TaskData:
    """Without what could not be heard."""
    heard = [u for u in data.splits["test"] if u.id in predictions]
    if not heard:
        raise ManifestError("Every utterance of 'test' is too short for the upstream: mend the corpus.")
    return replace(data, splits={**data.splits, "test": heard})


def _predict(run: LoadedRun, data: TaskData, condition: str, options: RunOptions, advance: Advance) -> dict[str, Any]:
    """Utterance id -> what the task predicts of the disturbed audio of the test set."""
    found: dict[str, Any] = {}
    test = data.splits["test"]
    for first in range(0, len(test), CHUNK):
        part = test[first : first + CHUNK]
        with TemporaryDirectory(prefix="speechssl-") as folder:
            heard = part if condition == CLEAN else list(_disturbed(part, condition, Path(folder)))
            skip_bad = options.skip_bad and condition == CLEAN  # what the others lack would not compare
            found.update(_hear(run, replace(data, splits={"test": heard}), options, skip_bad=skip_bad))
        advance(len(part), condition)
    return found


def _disturbed(utterances: Sequence[Utterance], condition: str, folder: Path) -> Iterator[Utterance]:
    """Writes disturbed audio; equal utterances are disturbed alike in every run."""
    for number, utterance in enumerate(utterances):
        waveform = read_audio(
            utterance.path, sample_rate=SAMPLE_RATE, start=utterance.start, duration=utterance.duration
        )
        generator = make_generator(0, condition, utterance.id)
        disturbed = disturb(waveform, condition, sample_rate=SAMPLE_RATE, generator=generator)
        path = folder / f"{number}.flac"
        write_flac(path, disturbed.numpy())
        yield replace(utterance, path=str(path), start=0.0, duration=disturbed.numel() / SAMPLE_RATE)


def _hear(run: LoadedRun, data: TaskData, options: RunOptions, *, skip_bad: bool) -> dict[str, Any]:
    task, utterances = run.task, data.splits["test"]
    devices = resolve_devices(options.devices)
    if task.config.adapt.method == "frozen":
        cache = FeatureCache(options.cache_folder, options.cache_gb)
        pooling = task.config.features.pooling
        store = cache.features(
            run.upstream, utterances, layers=run.layers, pooling=pooling, precision=options.precision,
            skip_bad=skip_bad, devices=devices,
        )  # fmt: skip
        heard = [u for u in utterances if u.id not in store.bad]
        return predict(run.probe, task, replace(data, splits={"test": heard}), "test", store, devices=devices[:1])
    found: dict[str, Any] = {}
    features = run.features(utterances, bad={} if skip_bad else None)
    for utterance in utterances:
        if utterance.id not in features:
            continue
        own = features[utterance.id]
        lengths = torch.tensor([len(own) if own.dim() == 2 else 1], device=own.device)
        with torch.no_grad():
            found[utterance.id] = task.predict(run.probe.head, own[None], lengths, [utterance], data)[0]
    return found


def _change(clean: Mapping[str, Any], predictions: Mapping[str, Any]) -> Metrics:
    """How much scores moved; nothing where predictions are no numbers."""
    if not all(isinstance(value, float) for value in predictions.values()):
        return {}
    moved = [abs(predictions[name] - clean[name]) for name in predictions]
    return {CHANGE: MetricValue(sum(moved) / len(moved), len(moved))}


def _write(robustness: Robustness, folder: Path, result: RunResult) -> None:
    conditions = {
        name: {"about": DISTURBANCES[name].about, "metrics": {m: asdict(v) for m, v in metrics.items()}}
        for name, metrics in robustness.conditions.items()
    }
    content = {"format": FORMAT, "run": result.date, "conditions": conditions, "seconds": robustness.seconds}
    with replacing(folder / FILE) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_robustness(folder: Path) -> Robustness | None:
    """What `measure_robustness` wrote; None where nothing was measured.

    Raises:
        ManifestError: the file can't be read, or is about a run that another one has replaced.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        conditions = {
            str(name): {str(m): MetricValue(**v) for m, v in one["metrics"].items()}
            for name, one in raw["conditions"].items()
        }
        found, made = Robustness(conditions, float(raw["seconds"])), raw["run"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ManifestError(f"{path} can't be read ({error}): run `speechssl score robustness` again.") from error
    if made != load_result(folder).date:
        raise ManifestError(f"{path} is about an earlier run than {folder}: run `speechssl score robustness` again.")
    return found
