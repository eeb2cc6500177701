"""One run of a task on one upstream with one seed, and many of them side by side in processes."""

import hashlib
import json
import logging
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import torch

from speechssl.abilities import Disturbs
from speechssl.adapt.adaptable import Adaptable, heard_layers
from speechssl.adapt.live import Wanted
from speechssl.cache import FeatureCache
from speechssl.config import to_dict
from speechssl.crops import MARK, training_crops
from speechssl.data.corpus import Corpus
from speechssl.devices import resolve_devices, share
from speechssl.errors import DivergedError, ManifestError, SpeechsslError
from speechssl.extraction import find_bad
from speechssl.feature_store import FeatureStore
from speechssl.fitting import Fit, Fitted
from speechssl.inference import save_task
from speechssl.progress import progress
from speechssl.registry import task_module
from speechssl.result import RunResult, hardware, versions
from speechssl.streaming import FrameKeeper
from speechssl.task import Task, TaskData, take_share
from speechssl.types import Utterance
from speechssl.upstream import Upstream
from speechssl.upstream_spec import CachedUpstream, UpstreamCard
from speechssl.variants import Variant

logger = logging.getLogger(__name__)
T = TypeVar("T")
Source: TypeAlias = FeatureStore | Adaptable
"""Features, or an upstream that each run adapts for itself."""
Advance: TypeAlias = Callable[[float, str], None]
"""advance(steps done since the last call, note)."""


@dataclass(frozen=True)
class RunOptions:
    """What does not decide the numbers, only where and how they are computed."""

    cache_folder: str | None = None
    """None = `speechssl.files.default_folder()`."""
    cache_gb: float = 20.0
    """Budget of the folder, 10^9 bytes, of which the frames of each upstream of a call may take an equal part."""
    upstreams: int = 1
    """How many these are; `speechssl.runner.run` sets it."""
    jobs: int = 1
    """Processes; each trains one head at a time."""
    threads: int = 1
    """Of each training on the CPU. Small heads gain nothing from more, and one gives the same numbers everywhere."""
    devices: str = "cpu"
    """As `resolve_devices` takes them: each run trains on the first of its own, and evaluates on all of them."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of the upstream; 'bf16' is autocast."""
    skip_bad: bool = False
    force: bool = False
    """Run again what is finished."""


@dataclass(frozen=True)
class Job:
    """One run, as it is sent to a process."""

    task: str
    config: Any
    corpus: Corpus
    card: UpstreamCard
    seed: int
    variant: Variant
    folder: Path
    options: RunOptions
    features: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    """Wall time that its features took."""
    sweep: Mapping[str, float | None] = field(default_factory=dict)
    """Where dev chose between settings: 'setting=value' -> its score."""

    def identity(self) -> str:
        """A hash of all that decides the numbers."""
        parts = [self.task, plain(self.config), self.corpus.fingerprint, self.card.info.fingerprint, self.seed]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Work:
    """One run with what it needs in this process."""

    job: Job
    task: Task
    data: TaskData
    store: Source


_Execute: TypeAlias = Callable[[Work, Advance], T]


def build_task(name: str, config: Any) -> Task:
    """Makes the task of a folder below `downstreams` (or of an entry point)."""
    task: Task = task_module(name, "task").TASK(config)
    return task


def prepare_data(task: Task, corpus: Corpus) -> TaskData:
    """The task's data, or the share of it that is asked for.

    Raises:
        ManifestError: among others a manifest that names a missing audio file, before anything is computed.
    """
    return take_share(task.prepare(corpus.needing_audio()), task.config.subset)


def plain(config: Any) -> Any:
    """A config as JSON gives it back, to compare with a saved one."""
    return json.loads(json.dumps(to_dict(config)))


def compute_features(upstream: Upstream, task: Task, data: TaskData, options: RunOptions) -> Source:
    """The features of every utterance of every split; only what is not cached goes through the upstream.

    Where the upstream is adapted, only those that stay as they are.
    """
    wanted, adaptation = task.config.features, task.config.adapt
    cache = FeatureCache(options.cache_folder, options.cache_gb)
    layers = heard_layers(upstream, adaptation, wanted.layers)
    unique: dict[str, Utterance] = {}
    for split, utterances in sorted(data.splits.items(), key=lambda item: item[0] == "train"):
        if not utterances:
            raise ManifestError(
                f"The task '{task.name}' has no utterance in '{split}': check the corpus and the config."
            )
        crops = training_crops(utterances, task.config) if split == "train" else {}
        unique.update((heard.id, heard) for u in utterances for heard in crops.get(u.id, [u]))
    items, devices = list(unique.values()), resolve_devices(options.devices)
    if adaptation.method == "frozen" and wanted.pooling == "mean":
        return cache.features(
            upstream,
            items,
            layers=layers,
            pooling="mean",
            precision=options.precision,
            skip_bad=options.skip_bad,
            devices=devices,
        )
    keeper = FrameKeeper(
        cache, items, precision=options.precision, skip_bad=options.skip_bad, devices=devices,
        share=1.0 / options.upstreams,
    )  # fmt: skip
    if adaptation.method == "frozen":
        return keeper.keep(upstream, layers, load=upstream.load if isinstance(upstream, CachedUpstream) else None)
    return Adaptable(
        upstream,
        adaptation,
        Wanted(tuple(layers), wanted.pooling == "mean", options.precision, task.config.train.max_duration),
        unique,
        keep=partial(keeper.keep, dtype="float32"),
        skip_bad=options.skip_bad,
        disturbed=isinstance(task, Disturbs) and task.disturbance() is not None,
    )


def with_cost(jobs: Sequence[Job], store: Source) -> list[Job]:
    """The first run of an upstream bears the cost of its features."""
    audio = {"audio_seconds": store.audio_seconds}
    first = {**audio, "computed": float(store.computed), "from_cache": float(store.from_cache)}
    later = {**audio, "computed": 0.0, "from_cache": float(len(store))}
    return [
        replace(jobs[0], features=first, seconds=store.seconds),
        *(replace(job, features=later, seconds=0.0) for job in jobs[1:]),
    ]


def run_all(work: Sequence[Work]) -> dict[Path, RunResult]:
    """Runs all, in `options.jobs` processes; returns folder -> result."""
    return _each(work, _execute, f"Training {len(work)} runs")


def run_candidates(work: Sequence[Work]) -> dict[Path, float | None]:
    """Trains all likewise, without a look at test, and leaves their checkpoints.

    Returns:
        folder -> the best value of the task's metric on dev; None where the loss diverged.
    """
    return _each(work, _try, f"Trying {len(work)} settings")


def _each(work: Sequence[Work], execute: _Execute[T], title: str) -> dict[Path, T]:
    if not work:
        return {}
    jobs = [one.job for one in work]
    total = sum(max(1, job.config.train.steps) for job in jobs)
    workers = min(jobs[0].options.jobs, len(jobs))
    with progress(f"{title} of {jobs[0].task}", total, unit="steps") as advance:
        if workers > 1:
            return _run_in_pool(jobs, execute, workers, advance)
        return {one.job.folder: execute(one, advance) for one in work}


def _run_in_pool(jobs: Sequence[Job], execute: _Execute[T], workers: int, advance: Any) -> dict[Path, T]:
    # Forked children of a process whose torch has started threads can hang; fresh ones can't.
    context = multiprocessing.get_context("spawn")
    steps, devices = context.Queue(), context.Queue()
    for own in share(jobs[0].options.devices, workers):
        devices.put(own)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(steps, devices)) as pool:
        futures = {pool.submit(_execute_alone, job, execute): job.folder for job in jobs}
        pending: set[Future[T]] = set(futures)
        try:
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                _drain(steps, advance)
                for future in done:
                    future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        _drain(steps, advance)
        return {folder: future.result() for future, folder in futures.items()}


def _drain(steps: Any, advance: Any) -> None:
    while True:
        try:
            advance(*steps.get_nowait())
        except queue.Empty:
            return


_steps: Any = None
"""In a worker process: the queue that its progress goes to."""
_devices = ""
"""In a worker process: those that it has for itself."""


def _start_worker(steps: Any, devices: Any) -> None:
    global _steps, _devices
    _steps, _devices = steps, devices.get()
    # Ctrl-C reaches the whole group: the parent says so, workers just end.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, name="speechssl-parent", daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")


def _end_with_parent() -> None:
    """A worker whose parent was killed would train on for hours, beside the run that resumes its own."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _execute_alone(job: Job, execute: _Execute[T]) -> T:
    """In a worker process: opens the corpus and the cached features anew."""
    job = replace(job, options=replace(job.options, devices=_devices))
    task = build_task(job.task, job.config)
    data = prepare_data(task, job.corpus)
    store = compute_features(upstream_of(job), task, data, job.options)
    return execute(Work(job, task, data, store), lambda amount, note: _steps.put((amount, note)))


def upstream_of(job: Job) -> Upstream:
    """In a worker process: the upstream that is adapted, or one that stands for its cached features."""
    cached = CachedUpstream(job.card, device=str(resolve_devices(job.options.devices)[0]))
    return cached if job.config.adapt.method == "frozen" else cached.load()


def _execute(work: Work, advance: Advance) -> RunResult:
    job, fit = work.job, _make_fit(work, advance)
    with _threads(job.options.threads):
        fitted = fit.run()
    result = _result(job, work.task, fit, fitted)
    save_task(job.folder, work.task, fit.data, card=job.card, layers=work.store.layers, size=work.store.hidden_size)
    result.save(job.folder)
    return result


def _try(work: Work, advance: Advance) -> float | None:
    fit = _make_fit(work, advance)
    try:
        with _threads(work.job.options.threads):
            fit.fit()
    except DivergedError as error:
        logger.warning("%s is out of the choice: %s", work.job.folder, error)
        return None
    return fit.progress.best


def _make_fit(work: Work, advance: Advance) -> Fit:
    job, store = work.job, work.store
    data = _without_bad(work.data, store)
    # `Fit` tells the two apart.
    features: Any = store.adapt(job.config.adapt, seed=job.seed) if isinstance(store, Adaptable) else store
    title = " ".join((job.card.info.label, *job.variant.folders, f"seed {job.seed}"))
    return Fit(
        work.task,
        data,
        dict.fromkeys(data.splits, features),
        seed=job.seed,
        folder=job.folder,
        identity=job.identity(),
        devices=resolve_devices(job.options.devices),
        report=lambda amount, note: advance(amount, f"{title} {note}"),
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def without_bad_files(corpus: Corpus) -> Corpus:
    """For `--skip-bad`: tasks read audio while they prepare, so it has to be known before."""
    everything = {u.id: u for split in corpus.splits() for u in corpus.utterances(split)}
    bad = find_bad(list(everything.values()))
    if bad:
        logger.warning("%d of %d utterances of %s are bad and left out", len(bad), len(everything), corpus.root)
    return corpus.without(bad)


def _without_bad(data: TaskData, store: Source) -> TaskData:
    """Leaves out the utterances that `--skip-bad` did; they are listed in the log."""
    if not store.bad:
        return data
    for name, reason in store.bad.items():
        logger.warning("Left out of every split: %s (%s)", name, reason)
    bad = {name.partition(MARK)[0] for name in store.bad}
    splits = {split: [u for u in part if u.id not in bad] for split, part in data.splits.items()}
    for split, part in splits.items():
        if not part:
            raise SpeechsslError(f"Every utterance of '{split}' was bad: mend the corpus.")
    return replace(data, splits=splits)


def _result(job: Job, task: Task, fit: Fit, fitted: Fitted) -> RunResult:
    state = fitted.progress
    weights = fit.probe.featurizer.weights()
    several = {"devices": len(fit.devices)} if len(fit.devices) > 1 else {}
    return RunResult(
        task=job.task,
        about=task.about,
        upstream=job.card.info,
        corpus={"name": job.corpus.name, "source": job.corpus.source, "fingerprint": job.corpus.fingerprint},
        seed=job.seed,
        config=plain(job.config),
        metric=task.metric,
        higher_is_better=task.higher_is_better,
        dev=fitted.dev,
        test=fitted.test,
        layer_weights=[] if weights is None else weights.tolist(),
        curves=state.curves,
        trained_parameters=fit.probe.trained_parameters(),
        trained=fit.probe.counts(),
        seconds={"features": job.seconds, **state.seconds},
        features=job.features,
        best_step=state.best_step,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        hardware=hardware() | several,
        versions=versions(),
        head=job.variant.head,
        fold=job.variant.fold,
        sweep=job.sweep,
    )
