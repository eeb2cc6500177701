"""Runs a task on top of frozen upstreams: features once, then one head per upstream and seed.

<out>/<task>/<label>[/head_<head>][/fold<n>]/seed<k>/
                            /result.json        `speechssl.result.RunResult`
                            /task.json          what `speechssl infer` needs
                            /head.safetensors   layer weights and head, best on dev
                            /log.jsonl          loss and metrics per step
                            /...                the task's artifacts
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from speechssl.abilities import ChecksUpstream
from speechssl.config import from_dict, load_config
from speechssl.data.corpus import Corpus, open_corpus
from speechssl.devices import resolve_devices
from speechssl.errors import ConfigError, ManifestError, UnknownNameError
from speechssl.jobs import (
    Job,
    RunOptions,
    Work,
    build_task,
    compute_features,
    plain,
    prepare_data,
    run_all,
    with_cost,
    without_bad_files,
)
from speechssl.registry import list_tasks, task_module
from speechssl.result import RunResult, load_result
from speechssl.sweep import Sweep, choose, parse_sweep, tidy
from speechssl.task import TrainConfig
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
    sweep: Sweep | str | None = None,
    subset: float | None = None,
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
        sweep: values of a setting, such as 'lr=1e-2,1e-3', of which dev chooses (`speechssl.sweep`).
        subset: share of the utterances, and of the steps, for a quick look (`shrink`).
        out: results go to <out>/<task>/<label>/seed<k>, below the upstream's folder those of heads and folds apart.
        random_weights: seed; gives every upstream random weights.

    Returns:
        One result per head, fold, upstream and seed, in that order. What was finished before is read, not run again.
    """
    options = options or RunOptions()
    device = resolve_devices(options.devices)[0]
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"`seeds` must be distinct and at least one, but is {list(seeds)}.")
    name, config = resolve_config(
        task_name, config=config, preset=preset, yaml=yaml, overrides=overrides, subset=subset
    )
    tried = parse_sweep(sweep) if isinstance(sweep, str) else sweep
    if tried is not None and config.train.steps == 0:
        raise ConfigError(f"`--sweep` has nothing to choose: '{name}' trains nothing with these settings.")
    opened = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
    if options.skip_bad:
        opened = without_bad_files(opened)
    opened = opened.needing_audio()  # looks once for all heads, folds and seeds
    specs = resolve_upstreams(upstream, random_weights=random_weights)
    options = replace(options, upstreams=len(specs))
    results: dict[Path, RunResult | None] = {}
    work: list[Work] = []
    for variant in make_variants(name, config, heads=heads, folds=folds):
        task = build_task(name, load_config(config, overrides=variant.overrides))
        data = prepare_data(task, opened)
        for spec, loaded in specs:
            model = load(spec, device=str(device)) if loaded is None else loaded
            if isinstance(task, ChecksUpstream):
                task.check_upstream(model)
            folder = Path(out, f"{name}_{task.about}" if task.about else name, spec.folder, *variant.folders)
            card = make_card(spec, model)
            jobs = [
                Job(name, task.config, opened, card, seed, variant, folder / f"seed{seed}", options) for seed in seeds
            ]
            found = {job.folder: None if options.force else _finished(job, tried) for job in jobs}
            results.update(found)
            missing = [job for job in jobs if found[job.folder] is None]
            if missing:
                new = missing if tried is None else jobs  # dev chooses for all seeds together
                store = compute_features(model, task, data, options)
                work += [Work(job, task, data, store) for job in with_cost(new, store)]
            del model
    if tried is not None:
        work = choose(work, tried)
    results.update(run_all(work))
    tidy(work)
    return [result for result in results.values() if result is not None]


def resolve_config(
    task_name: str,
    *,
    config: Any | None = None,
    preset: str | None = None,
    yaml: str | Path | None = None,
    overrides: Sequence[str] = (),
    subset: float | None = None,
) -> tuple[str, Any]:
    """Returns the task's folder name and its config.

    Args:
        subset: as `shrink` takes it; overrides are applied after it.

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
        return name, shrink(config, subset)
    presets: Mapping[str, Any] = task_module(name, "config").PRESETS
    wanted = preset or task_name
    if wanted not in presets:
        raise UnknownNameError(f"preset of '{name}'", wanted, presets)
    return name, load_config(shrink(load_config(presets[wanted], yaml=yaml), subset), overrides=overrides)


def shrink(config: Any, share: float | None) -> Any:
    """A config for a quick look: a share of the utterances of each split, and of the steps, so that each utterance that
    is left is heard as often."""
    if share is None:
        return config
    train: TrainConfig = config.train
    fewer = replace(
        train,
        steps=math.ceil(train.steps * share),
        warmup_steps=math.ceil(train.warmup_steps * share),
        evaluate_every=max(1, math.ceil(train.evaluate_every * share)),
    )
    return replace(config, train=fewer, subset=share)


def _finished(job: Job, sweep: Sweep | None) -> RunResult | None:
    """The result that is there already, if it is of the same config, corpus and upstream."""
    try:
        found = load_result(job.folder)
    except ManifestError:
        return None
    configs = {"": job.config} if sweep is None else sweep.candidates(job.config)
    same_sweep = sweep is None or (set(found.sweep) <= set(configs) and bool(found.sweep))
    changed = [
        what
        for what, same in (
            ("config", same_sweep and any(_same_settings(found.config, config) for config in configs.values())),
            ("corpus", found.corpus.get("fingerprint") == job.corpus.fingerprint),
            ("upstream", found.upstream.fingerprint == job.card.info.fingerprint),
        )
        if not same
    ]
    if changed:
        logger.info("%s was made with another %s: it is run again.", job.folder, " and ".join(changed))
        return None
    logger.info("%s is finished and not run again; --force would.", job.folder)
    return replace(found, upstream=job.card.info)


def _same_settings(saved: Mapping[str, Any], config: Any) -> bool:
    """Whether a run's saved settings are these; what did not exist when it was saved had its default."""
    try:
        whole = from_dict(type(config)(), saved, origin="result.json")
    except (ConfigError, TypeError):
        return False
    return bool(plain(whole) == plain(config))
