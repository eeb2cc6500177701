"""Runs a task on top of frozen upstreams: features once, then one head per upstream and seed.

<out>/<task>/<label>[/head_<head>][/fold<n>]/seed<k>/
                            /result.json        `speechssl.result.RunResult`
                            /task.json          what `speechssl infer` needs
                            /head.safetensors   layer weights and head, best on dev
                            /log.jsonl          loss and metrics per step
                            /...                the task's artifacts
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from speechssl.config import load_config
from speechssl.data.corpus import Corpus, open_corpus
from speechssl.errors import ConfigError, ManifestError, UnknownNameError
from speechssl.extraction import find_bad
from speechssl.jobs import Job, RunOptions, Work, build_task, compute_features, plain, run_all, with_cost
from speechssl.registry import list_tasks, task_module
from speechssl.result import RunResult, load_result
from speechssl.upstream_spec import (
    UpstreamLike,
    load,
    make_card,
    resolve_upstreams,
)
from speechssl.variants import make_variants

logger = logging.getLogger(__name__)


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
    work: list[Work] = []
    order: list[Path] = []
    for variant in make_variants(name, heads=heads, folds=folds):
        task = build_task(name, load_config(config, overrides=variant.overrides))
        data = task.prepare(opened)
        for spec, loaded in specs:
            model = load(spec, device=options.device) if loaded is None else loaded
            new: list[Job] = []
            for seed in seeds:
                job = Job(
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
                work += [Work(job, task, data, store) for job in with_cost(new, store)]
            del model
    results.update(run_all(work))
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


def _finished(job: Job, corpus: Corpus) -> RunResult | None:
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


def _without_bad_files(corpus: Corpus) -> Corpus:
    """For `--skip-bad`: tasks read audio while they prepare, so it has to be known before."""
    everything = {u.id: u for split in corpus.splits() for u in corpus.utterances(split)}
    bad = find_bad(list(everything.values()))
    if bad:
        logger.warning("%d of %d utterances of %s are bad and left out", len(bad), len(everything), corpus.root)
    return corpus.without(bad)
