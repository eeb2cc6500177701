"""Where the numbers come from: corpus, hardware, versions, and the commands that give them again."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from speechssl.report.blocks import Block, Cell, Code, Table
from speechssl.report.summary import Group, by_task
from speechssl.report.words import format_parameters, join_words, task_title
from speechssl.result import RunResult


def corpora(results: Iterable[RunResult]) -> list[tuple[str, str]]:
    """(name, description) of each corpus that the results are about."""
    found: dict[str, tuple[str, str]] = {}
    for result in results:
        corpus = dict(result.corpus)
        name = str(corpus.pop("name", "unnamed"))
        description = "; ".join(f"{k.replace('_', ' ')} {_plain(v)}" for k, v in corpus.items())
        found.setdefault(f"{name} {description}", (name, description))
    return list(found.values())


def synthetic(results: Iterable[RunResult]) -> list[str]:
    """The names of the corpora that hold synthetic speech."""
    return sorted({str(r.corpus.get("name", "?")) for r in results if "synth" in str(r.corpus.get("source", ""))})


def machines(results: Iterable[RunResult]) -> list[str]:
    """Each machine in words, once."""
    return list(dict.fromkeys(describe_machine(r.hardware) for r in results if r.hardware))


def describe_machine(hardware: Mapping[str, Any]) -> str:
    """Processor, accelerator, cores and memory in words."""
    known = {
        "processor": "{}",
        "accelerator": "{}",
        "cores": "{} cores",
        "memory_gb": "{} GB memory",
        "machine": "{}",
        "system": "{}",
    }
    parts = [text.format(hardware[k]) for k, text in known.items() if hardware.get(k)]
    parts += [f"{k.replace('_', ' ')} {_plain(v)}" for k, v in hardware.items() if k not in known]
    return ", ".join(parts)


def dates(results: Iterable[RunResult]) -> str:
    """The day of the runs, or the first and the last."""
    days = sorted({r.date[:10] for r in results})
    return "" if not days else days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def versions(results: Iterable[RunResult]) -> list[tuple[str, str]]:
    """(package, version or versions)."""
    found: dict[str, set[str]] = {}
    for result in results:
        for name, version in result.versions.items():
            found.setdefault(name, set()).add(str(version))
    return [(name, ", ".join(sorted(v))) for name, v in found.items()]


def reproduce_blocks(groups: Sequence[Group]) -> list[Block]:
    """For each task the command with its seeds, and the configuration that differs from the preset."""
    blocks: list[Block] = [upstream_table(groups)]
    for task, found in by_task(groups).items():
        config, name = found[0].results[0].config, found[0].results[0].task
        differences = config_differences(config, preset_config(name))
        file = f"{re.sub('[^a-z0-9_]+', '_', task.lower())}.yaml"
        text = f"{_command(name, found, file if differences else None)}\n"
        if differences:
            text += f"\n# {file}: what differs from the preset\n" + "\n".join(_yaml(differences))
        blocks.append(Code(task_title(task), text.rstrip(), open=True))
        blocks.append(
            Code(f"{task_title(task)}: whole configuration", json.dumps(config, indent=1, ensure_ascii=False))
        )
    return blocks


def _command(task: str, groups: Sequence[Group], config: str | None) -> str:
    parts = ["speechssl run", shlex.quote(task), "--corpus CORPUS"]
    parts += [f"--config {shlex.quote(config)}"] if config else []
    parts += [f"--seed {seed}" for seed in sorted({r.seed for g in groups for r in g.results})]
    parts += [f"--upstream {shlex.quote(_upstream(g))}" for g in groups]
    return " \\\n  ".join([" ".join(parts[: -len(groups)]), *parts[-len(groups) :], "-o exp"])


def _upstream(group: Group) -> str:
    """LABEL=NAME[:random:SEED] or LABEL=FOLDER, as `speechssl run --upstream` takes it."""
    info = group.results[0].upstream
    source = info.name
    if group.kind == "random":
        seed = re.search(r"seed (\d+)", info.weights)
        source += f":random:{seed[1]}" if seed else ":random"
    elif group.kind == "pre-trained" and "/" not in info.name and "/" in info.weights and " " not in info.weights:
        source = info.weights
    return source if source == info.label else f"{info.label}={source}"


def upstream_table(groups: Sequence[Group]) -> Table:
    """What each label stands for."""
    found = {g.label: g.results[0].upstream for g in groups}
    names = ("Upstream", "Name", "Weights", "Fingerprint", "Parameters", "Layers", "Frames per second")
    rows = [
        [
            Cell(label),
            Cell(info.name),
            Cell(info.weights),
            Cell(str(info.fingerprint)[:12]),
            Cell(format_parameters(info.parameters)),
            Cell(str(info.num_layers)),
            Cell(f"{info.frame_rate:g}"),
        ]
        for label, info in found.items()
    ]
    caption = "Equal fingerprints mean equal architecture and weights, so equal features."
    return Table("Upstreams", caption, [Cell(n) for n in names], rows)


def preset_config(task: str) -> Mapping[str, Any] | None:
    """The configuration of the task's own preset; None where the task is not installed."""
    from speechssl.config import to_dict
    from speechssl.registry import task_module

    try:
        return to_dict(task_module(task, "config").PRESETS[task])
    except Exception:  # a broken or foreign task only costs the shorter form of its configuration
        return None


def config_differences(config: Mapping[str, Any], preset: Mapping[str, Any] | None) -> dict[str, Any]:
    """The (nested) keys whose values are not the preset's; everything where there is no preset."""
    if preset is None:
        return dict(config)
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and isinstance(preset.get(key), Mapping):
            if nested := config_differences(value, preset[key]):
                found[key] = nested
        elif key not in preset or _plain(value) != _plain(preset[key]):
            found[key] = value
    return found


def mixed_configs(groups: Iterable[Group]) -> list[str]:
    """One sentence for each group whose seeds differ in configuration or upstream weights."""
    found = []
    for group in groups:
        if len({_plain({k: v for k, v in r.config.items() if not r.fold or k != "fold"}) for r in group.results}) > 1:
            seeds = join_words([str(r.seed) for r in group.results])
            found.append(
                f"The seeds {seeds} of {group.task}, {group.label} differ in configuration: their mean mixes them."
            )
        if group.kind == "pre-trained" and len({r.upstream.fingerprint for r in group.results}) > 1:
            found.append(f"The seeds of {group.task}, {group.label} used different weights: run the older ones again.")
    return found


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _yaml(value: Mapping[str, Any], indent: str = "") -> list[str]:
    """Nested mappings as YAML; leaves as JSON, which is YAML."""
    lines = []
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            lines += [f"{indent}{key}:", *_yaml(item, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {json.dumps(item, ensure_ascii=False, default=str)}")
    return lines
