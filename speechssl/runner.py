"""Runs a task on top of frozen upstreams: features once, then one head per upstream and seed.

<out>/<task>/<label>[/head_<head>][/fold<n>]/seed<k>/
                            /result.json        `speechssl.result.RunResult`
                            /task.json          what `speechssl infer` needs
                            /head.safetensors   layer weights and head, best on dev
                            /log.jsonl          loss and metrics per step
                            /...                the task's artifacts
"""

import hashlib
import json
import logging
import multiprocessing
import queue
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch

from speechssl.cache import FeatureCache
from speechssl.config import load_config, to_dict
from speechssl.crops import MARK, training_crops
from speechssl.data.corpus import Corpus, open_corpus
from speechssl.errors import ConfigError, ManifestError, SpeechsslError, UnknownNameError
from speechssl.extraction import find_bad
from speechssl.feature_store import FeatureStore
from speechssl.fitting import Fit, Fitted
from speechssl.inference import save_task
from speechssl.progress import progress
from speechssl.registry import list_tasks, task_module
from speechssl.result import RunResult, hardware, load_result, versions
from speechssl.task import Task, TaskData
from speechssl.types import Utterance
from speechssl.upstream import Upstream
from speechssl.upstream_spec import (
    CachedUpstream,
    UpstreamCard,
    UpstreamLike,
    load,
    make_card,
    resolve_upstreams,
)
from speechssl.variants import Variant, make_variants

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """What does not decide the numbers, only where and how they are computed."""

    cache_folder: str | None = None
    """None = `speechssl.files.default_folder()`."""
    cache_gb: float = 20.0
    jobs: int = 1
    """Processes; each trains one head at a time."""
    threads: int = 1
    """Of each training on the CPU. Small heads gain nothing from more, and one gives the same numbers everywhere."""
    device: str = "cpu"
    precision: Literal["float32", "bf16"] = "float32"
    """Of the upstream; 'bf16' is autocast."""
    skip_bad: bool = False
    force: bool = False
    """Run again what is finished."""


@dataclass(frozen=True)
class _Job:
    """One run, as it is sent to a process."""

    task: str
    config: Any
    corpus: Corpus
    card: UpstreamCard
    seed: int
    variant: Variant
    folder: Path
    options: RunOptions
    features: Mapping[str, float]
    seconds: float

    def identity(self) -> str:
        """A hash of all that decides the numbers."""
        parts = [self.task, plain(self.config), self.corpus.fingerprint, self.card.info.fingerprint, self.seed]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Work:
    """One run with what it needs in this process."""

    job: _Job
    task: Task
    data: TaskData
    store: FeatureStore


def run(
    task_name: str,
    *,
    upstream: UpstreamLike | Sequence[UpstreamLike] | Mapping[str, UpstreamLike],
    corpus: str | Path | Corpus,
    seeds: Sequence[int] = (0,),
    config: Any | None = None,
    preset: str | None = None,
    yaml: str | Path | None = None,
    overrides: Sequence[str] = (),
    heads: Sequence[str] = (),
    folds: Sequence[int | str] = (),
    out: str | Path = "exp",
    random_weights: int | None = None,
    options: RunOptions | None = None,
) -> list[RunResult]:
    """Trains and measures a task on frozen upstreams.

    Args:
        task_name: 'asr', ...; or the name of one of its presets, such as 'asr_demo'.
        upstream: a name, a folder, a loaded upstream, several of them, or label -> upstream. Strings may be
            'label=name' and end in ':random' or ':random:SEED'.
        corpus: folder of a prepared corpus.
        seeds: one run per upstream and seed.
        config: the whole config of the task; None = the preset with `yaml` and then `overrides` applied.
        preset: of the task; None = its default, named like the task.
        heads: of the task, to be run side by side; 'all' = each of them, none = the one of the config.
        folds: of the corpus, such as those of emotion recognition; 'all' = each, none = the one of the config.
        out: results go to <out>/<task>/<label>/seed<k>, below the upstream's folder those of heads and folds apart.
        random_weights: seed; gives every upstream random weights.

    Returns:
        One result per head, fold, upstream and seed, in that order. What was finished before is read, not run again.
    """
    options = options or RunOptions()
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"`seeds` must be distinct and at least one, but is {list(seeds)}.")
    name, config = resolve_config(task_name, config=config, preset=preset, yaml=yaml, overrides=overrides)
    opened = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
    if options.skip_bad:
        opened = _without_bad_files(opened)
    specs = resolve_upstreams(upstream, random_weights=random_weights)
    results: dict[Path, RunResult] = {}
    work: list[_Work] = []
    order: list[Path] = []
    for variant in make_variants(name, heads=heads, folds=folds):
        task = build_task(name, load_config(config, overrides=variant.overrides))
        data = task.prepare(opened)
        for spec, loaded in specs:
            model = load(spec, device=options.device) if loaded is None else loaded
            new: list[_Job] = []
            for seed in seeds:
                job = _Job(
                    task=name,
                    config=task.config,
                    corpus=opened,
                    card=make_card(spec, model),
                    seed=seed,
                    variant=variant,
                    folder=Path(out, name, spec.folder, *variant.folders, f"seed{seed}"),
                    options=options,
                    features={},
                    seconds=0.0,
                )
                order.append(job.folder)
                finished = None if options.force else _finished(job, opened)
                if finished is None:
                    new.append(job)
                else:
                    results[job.folder] = finished
            if new:
                store = compute_features(model, task, data, options)
                work += [_Work(job, task, data, store) for job in _with_cost(new, store)]
            del model
    results.update(_run_all(work))
    return [results[folder] for folder in order]


def resolve_config(
    task_name: str,
    *,
    config: Any | None = None,
    preset: str | None = None,
    yaml: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> tuple[str, Any]:
    """Returns the task's folder name and its config.

    Raises:
        UnknownNameError: no such task or preset; near matches are named.
        ConfigError: a key or value that does not fit.
    """
    tasks = list_tasks()
    owners = [t for t in tasks if task_name == t or task_name.startswith(t + "_")]
    if not owners:
        raise UnknownNameError("task", task_name, tasks)
    name = max(owners, key=len)
    if config is not None:
        if preset is not None or yaml is not None or overrides:
            raise ConfigError("Give either `config`, or `preset`, `yaml` and `overrides`, not both.")
        return name, config
    presets: Mapping[str, Any] = task_module(name, "config").PRESETS
    wanted = preset or task_name
    if wanted not in presets:
        raise UnknownNameError(f"preset of '{name}'", wanted, presets)
    return name, load_config(presets[wanted], yaml=yaml, overrides=overrides)


def build_task(name: str, config: Any) -> Task:
    """Makes the task of a folder below `downstreams` (or of an entry point)."""
    task: Task = task_module(name, "task").TASK(config)
    return task


def plain(config: Any) -> Any:
    """A config as JSON gives it back, to compare with a saved one."""
    return json.loads(json.dumps(to_dict(config)))


def compute_features(upstream: Upstream, task: Task, data: TaskData, options: RunOptions) -> FeatureStore:
    """The features of every utterance of every split; only what is not cached goes through the upstream."""
    wanted = task.config.features
    layers = sorted(upstream.resolve_layers(wanted.layers))
    unique: dict[str, Utterance] = {}
    for split, utterances in data.splits.items():
        if not utterances:
            raise ManifestError(
                f"The task '{task.name}' has no utterance in '{split}': check the corpus and the config."
            )
        crops = training_crops(utterances, task.config) if split == "train" else {}
        unique.update((heard.id, heard) for u in utterances for heard in crops.get(u.id, [u]))
    return FeatureCache(options.cache_folder, options.cache_gb).features(
        upstream,
        list(unique.values()),
        layers=layers,
        pooling=wanted.pooling,
        precision=options.precision,
        skip_bad=options.skip_bad,
    )


def _finished(job: _Job, corpus: Corpus) -> RunResult | None:
    """The result that is there already, if it is of the same config, corpus and upstream."""
    try:
        found = load_result(job.folder)
    except ManifestError:
        return None
    changed = [
        what
        for what, same in (
            ("config", found.config == plain(job.config)),
            ("corpus", found.corpus.get("fingerprint") == corpus.fingerprint),
            ("upstream", found.upstream.fingerprint == job.card.info.fingerprint),
        )
        if not same
    ]
    if changed:
        logger.info("%s was made with another %s: it is run again.", job.folder, " and ".join(changed))
        return None
    logger.info("%s is finished and not run again; --force would.", job.folder)
    return replace(found, upstream=job.card.info)


def _with_cost(jobs: Sequence[_Job], store: FeatureStore) -> list[_Job]:
    """The first run of an upstream bears the cost of its features."""
    audio = {"audio_seconds": store.audio_seconds}
    first = {**audio, "computed": float(store.computed), "from_cache": float(store.from_cache)}
    later = {**audio, "computed": 0.0, "from_cache": float(len(store))}
    return [
        replace(jobs[0], features=first, seconds=store.seconds),
        *(replace(job, features=later, seconds=0.0) for job in jobs[1:]),
    ]


def _run_all(work: Sequence[_Work]) -> dict[Path, RunResult]:
    if not work:
        return {}
    jobs = [one.job for one in work]
    total = sum(max(1, job.config.train.steps) for job in jobs)
    workers = min(jobs[0].options.jobs, len(jobs))
    with progress(f"Training {len(jobs)} runs of {jobs[0].task}", total, unit="steps") as advance:
        if workers > 1:
            return _run_in_pool(jobs, workers, advance)
        return {
            one.job.folder: _execute(one.job, one.task, data=one.data, store=one.store, advance=advance) for one in work
        }


def _run_in_pool(jobs: Sequence[_Job], workers: int, advance: Any) -> dict[Path, RunResult]:
    # Forked children of a process whose torch has started threads can hang; fresh ones can't.
    context = multiprocessing.get_context("spawn")
    steps: Any = context.Queue()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(steps,)) as pool:
        futures: dict[Future[RunResult], Path] = {pool.submit(_execute_alone, job): job.folder for job in jobs}
        pending = set(futures)
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


def _start_worker(steps: Any) -> None:
    global _steps  # noqa: PLW0603  a pool hands queues over in no other way
    _steps = steps
    # Ctrl-C reaches the whole group: the parent says so, workers just end.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")


def _execute_alone(job: _Job) -> RunResult:
    """In a worker process: opens the corpus and the cached features anew."""
    task = build_task(job.task, job.config)
    data = task.prepare(job.corpus)
    store = compute_features(CachedUpstream(job.card), task, data, job.options)
    return _execute(job, task, data=data, store=store, advance=lambda amount, note: _steps.put((amount, note)))


def _execute(job: _Job, task: Task, *, data: TaskData, store: FeatureStore, advance: Any) -> RunResult:
    data = _without_bad(data, store)
    title = " ".join((job.card.info.label, *job.variant.folders, f"seed {job.seed}"))
    fit = Fit(
        task,
        data,
        dict.fromkeys(data.splits, store),
        seed=job.seed,
        folder=job.folder,
        identity=job.identity(),
        device=job.options.device,
        report=lambda amount, note: advance(amount, f"{title} {note}"),
    )
    with _threads(job.options.threads):
        fitted = fit.run()
    result = _result(job, task, fit, fitted)
    save_task(job.folder, task, data, card=job.card, layers=store.layers, size=store.hidden_size)
    result.save(job.folder)
    return result


def _without_bad_files(corpus: Corpus) -> Corpus:
    """For `--skip-bad`: tasks read audio while they prepare, so it has to be known before."""
    everything = {u.id: u for split in corpus.splits() for u in corpus.utterances(split)}
    bad = find_bad(list(everything.values()))
    if bad:
        logger.warning("%d of %d utterances of %s are bad and left out", len(bad), len(everything), corpus.root)
    return corpus.without(bad)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _without_bad(data: TaskData, store: FeatureStore) -> TaskData:
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


def _result(job: _Job, task: Task, fit: Fit, fitted: Fitted) -> RunResult:
    state = fitted.progress
    return RunResult(
        task=job.task,
        upstream=job.card.info,
        corpus={"name": job.corpus.name, "source": job.corpus.source, "fingerprint": job.corpus.fingerprint},
        seed=job.seed,
        config=plain(job.config),
        metric=task.metric,
        higher_is_better=task.higher_is_better,
        dev=fitted.dev,
        test=fitted.test,
        layer_weights=fit.probe.featurizer.weights().tolist(),
        curves=state.curves,
        trained_parameters=fit.probe.trained_parameters(),
        seconds={"features": job.seconds, **state.seconds},
        features=job.features,
        best_step=state.best_step,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        hardware=hardware(),
        versions=versions(),
        head=job.variant.head,
        fold=job.variant.fold,
    )
