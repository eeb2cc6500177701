"""Puts the report together and writes it: one HTML file with everything inside."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from speechssl.files import replacing
from speechssl.report import provenance
from speechssl.report.blocks import Block, Code, Figure, Listen, Section, Table
from speechssl.report.collect import Collection, collect
from speechssl.report.cues import cues_table
from speechssl.report.detection import confusion_table, det_block, group_scores
from speechssl.report.figures import curve_figures, layer_figure, pretraining_figures, pretraining_table
from speechssl.report.judges import judges_table, scored_tables
from speechssl.report.listen import Budget, listen_block
from speechssl.report.robustness import robustness_tables
from speechssl.report.summary import Group, by_task, group_runs, heads_agree, labels_of, verdict
from speechssl.report.table import breakdown_tables, cost_table, details_table, main_table
from speechssl.report.trained import what_is_trained
from speechssl.report.words import better_words, metric_title, task_title
from speechssl.result import RunResult

logger = logging.getLogger(__name__)
SCORED = "What `speechssl score` measured on audio that anybody made, beside what it was measured against."


@dataclass(frozen=True)
class Written:
    """What `write_report` left behind."""

    path: Path
    results: Sequence[RunResult]
    problems: Sequence[str]


def write_report(
    folders: Sequence[Path], output: Path, *, title: str = "speechssl report", examples: int = 6
) -> Written:
    """Writes `index.html` about all finished runs and pre-training logs below some folders.

    Args:
        folders: searched recursively for `result.json`, `scores.json` and `log.jsonl`.
        output: folder for `index.html`; made where missing.
        title: heading of the page.
        examples: listening examples per task.

    Raises:
        ManifestError: a folder is missing, or nothing was found.
    """
    collection = collect(folders)
    html, problems = render_page(collection, title=title, examples=examples)
    for problem in problems:
        logger.warning("%s", problem)
    output.mkdir(parents=True, exist_ok=True)
    path = output / "index.html"
    with replacing(path) as partial:
        partial.write_text(html, encoding="utf-8")
    return Written(path, [run.result for run in collection.runs], problems)


def render_page(collection: Collection, *, title: str, examples: int) -> tuple[str, list[str]]:
    """Returns the page, and the sentences about what is left out of it."""
    results = [run.result for run in collection.runs]
    groups = group_runs(results)
    problems = [*collection.problems, *provenance.mixed_configs(groups)]
    sections = _sections(collection, groups, problems, examples)
    return _fill(title=title, sections=sections, problems=problems, **_facts(results, groups)), problems


def write_sections(sections: Sequence[Section], path: Path, *, title: str) -> None:
    """Writes a page of sections that are about no runs, such as what `speechssl infer` found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(render_sections(sections, title=title), encoding="utf-8")


def render_sections(
    sections: Sequence[Section], *, title: str, problems: Sequence[str] = (), facts: Mapping[str, Any] | None = None
) -> str:
    """Returns a page of sections that are about no runs.

    Args:
        problems: sentences about what is doubtful.
        facts: of what stands at the top, such as 'verdict', 'date' and 'corpora', what is known.
    """
    return _fill(title=title, sections=sections, problems=problems, **{**_facts([], []), **(facts or {})})


def _fill(**content: Any) -> str:
    """The template with what it is to show."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_resource), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.tests["figure"] = lambda b: isinstance(b, Figure)
    environment.tests["table"] = lambda b: isinstance(b, Table)
    environment.tests["listen"] = lambda b: isinstance(b, Listen)
    environment.tests["code"] = lambda b: isinstance(b, Code)
    return environment.get_template("page.html").render(css=_resource("page.css"), **content)


def _resource(name: str) -> str:
    return files("speechssl.report").joinpath(name).read_text(encoding="utf-8")


def _facts(results: Sequence[RunResult], groups: Sequence[Group]) -> dict[str, Any]:
    return {
        "date": provenance.dates(results),
        "machines": provenance.machines(results),
        "corpora": provenance.corpora(results),
        "synthetic": provenance.synthetic(results),
        "verdict": f"{verdict(groups)} {heads_agree(results)}".strip() if groups else "",
        "main": main_table(groups) if groups else None,
    }


def _sections(collection: Collection, groups: Sequence[Group], problems: list[str], examples: int) -> list[Section]:
    colours = {label: index for index, label in enumerate(labels_of(groups))}
    budget = Budget()
    sections = [_pretraining(collection)] if collection.pretraining else []
    for task, found in by_task(groups).items():
        blocks = _task_blocks(found, collection, colours, problems)
        listen = listen_block(found, collection.runs, budget, limit=examples)
        sections.append(Section(f"task-{len(sections)}", task_title(task), _intro(found), [*blocks, *_present(listen)]))
    sections += [
        Section(f"scores-{number}", f"{task_title(task)}: finished files", SCORED, [table])
        for number, (task, table) in enumerate(scored_tables(collection.scored))
    ]
    problems.extend(budget.problems)
    if budget.refused:
        problems.append(f"{budget.refused} audio examples are left out, to keep the page small: see the run folders.")
    if budget.plain:
        problems.append(f"{budget.plain} audio examples are shown without spectrograms, to keep the page small.")
    return sections + (_closing(groups) if groups else [])


def _present(*blocks: Block | None) -> list[Block]:
    return [b for b in blocks if b is not None]


def _pretraining(collection: Collection) -> Section:
    logs = collection.pretraining
    intro = "How the upstream learned from speech without labels, by predicting the clusters of hidden frames."
    return Section("pre-training", "Pre-training", intro, [*pretraining_figures(logs), pretraining_table(logs)])


def _intro(groups: Sequence[Group]) -> str:
    way = better_words("up" if groups[0].higher_is_better else "down")
    return f"Primary metric: {metric_title(groups[0].metric)}; {way}. {what_is_trained(groups)}"


def _task_blocks(
    groups: Sequence[Group], collection: Collection, colours: Mapping[str, int], problems: list[str]
) -> list[Block]:
    scores = group_scores(groups, collection.runs, problems)
    blocks: list[Block] = [*curve_figures(groups, colours), *_present(layer_figure(groups, colours))]
    if scores:
        blocks += _present(det_block(scores, colours), confusion_table(scores))
    blocks += [*robustness_tables(groups, collection.runs, problems), *_present(cues_table(groups))]
    return [*blocks, *_present(judges_table(groups)), *breakdown_tables(groups), details_table(groups)]


def _closing(groups: Sequence[Group]) -> list[Section]:
    results = [r for g in groups for r in g.results]
    packages = "\n".join(f"{name} {version}" for name, version in provenance.versions(results))
    blocks = provenance.reproduce_blocks(groups) + ([Code("Versions", packages)] if packages else [])
    intro = (
        "CORPUS stands for the folder that `speechssl prepare` wrote. Equal seeds, configuration, corpus and versions "
        "give equal numbers on the same hardware."
    )
    return [
        Section("cost", "Cost", "What each run took on the hardware named above.", [cost_table(groups)]),
        Section("reproduce", "How to reproduce", intro, blocks),
    ]
