"""Puts the page together and writes it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechssl.analysis.gather import Gathered
from speechssl.analysis.models import Model
from speechssl.analysis.page.curves import COLOURS, colours_of, curve_figures, series_blocks, values_table
from speechssl.analysis.page.examples import choose_examples, example_blocks
from speechssl.analysis.page.literature import contradictions, findings, literature_table
from speechssl.analysis.page.maps import map_figures
from speechssl.analysis.page.tables import about_blocks, best_table, labels_sentence, models_table, sentence_of
from speechssl.analysis.page.words import SECTIONS, random
from speechssl.analysis.result import Analysis, ModelAnalysis
from speechssl.analysis.run import Analysed
from speechssl.files import replacing
from speechssl.report.blocks import Block, Section
from speechssl.report.collect import collect
from speechssl.report.figures import layer_figure
from speechssl.report.page import render_sections
from speechssl.report.provenance import describe_machine
from speechssl.report.summary import group_runs, labels_of


def write_page(analysed: Analysed, models: Sequence[Model], output: Path, *, runs: Sequence[Path] = ()) -> Path:
    """Writes `index.html`.

    Args:
        models: what was analysed, to draw its attention.
        runs: folders of finished runs, whose heads have learned weights of the layers.

    Raises:
        ManifestError: a folder that holds no run.
    """
    blocks, problems = _pictures(analysed, models)
    weights, more = weights_blocks(runs, colours_of(analysed.analysis.models))
    html = render_page(analysed.analysis, pictures=blocks, weights=weights, problems=[*problems, *more])
    output.mkdir(parents=True, exist_ok=True)
    path = output / "index.html"
    with replacing(path) as partial:
        partial.write_text(html, encoding="utf-8")
    return path


def render_page(
    analysis: Analysis,
    *,
    pictures: Sequence[Section] = (),
    weights: Sequence[Block] = (),
    problems: Sequence[str] = (),
) -> str:
    """The page of an analysis, which may have been read from its file.

    Args:
        pictures: maps and examples, which the file does not hold.
        weights: of SUPERB's heads, to stand beside the probes.
        problems: further sentences about what is doubtful.
    """
    models = analysis.models
    colours = colours_of(models)
    found = findings(models)
    curves, collapsed = series_blocks(models)
    shown = [m for m in models if not m.series] or list(models)
    tables = [t for t in (best_table(shown), literature_table(found)) if t is not None]
    intro = "The layer of each model that tells most, by each measure; and where that is not what others have found."
    sections = [Section("layers", "Which layer for what", intro, tables)]
    for name, (title, words) in SECTIONS.items():
        drawn = [] if name == "fungi" else curve_figures(shown, name, colours)  # it is of one layer alone
        blocks: list[Block] = [*(curves if name == "rank" else ()), *drawn]
        if name == "probe":
            blocks += weights
        table = values_table(models, name)
        if table is not None:
            sections.append(Section(name, title, words, [*blocks, table]))
    about = [models_table(models), *about_blocks(analysis)]
    sections += [*pictures, Section("about", "About", labels_sentence(analysis), about)]
    if len(shown) > COLOURS:
        problems = [*problems, f"Curves show the first {COLOURS} of {len(shown)} models; the tables show all."]
    doubtful = [*contradictions(found), *collapsed, *analysis.warnings, *_of_models(models), *problems]
    facts = {**_facts(analysis), "verdict": sentence_of(shown, found)}
    return render_sections(sections, title="speechssl analysis", problems=list(dict.fromkeys(doubtful)), facts=facts)


def weights_blocks(folders: Sequence[Path], known: Mapping[str, int]) -> tuple[list[Block], list[str]]:
    """The weights of layers that the heads of each task have learned, a figure for each task.

    Args:
        known: label of an upstream -> index of its colour elsewhere on the page.
    """
    if not folders:
        return [], []
    collection = collect(folders)
    groups = group_runs([run.result for run in collection.runs])
    colours = {label: known.get(label, k + 1) for k, label in enumerate(labels_of(groups))}
    blocks: list[Block] = []
    for task in dict.fromkeys(g.task for g in groups):
        figure = layer_figure([g for g in groups if g.task == task], colours)
        if figure is not None:
            title = f"Layer weights that heads learned: {task}"
            blocks.append(type(figure)(title, figure.caption, figure.svg, figure.alt))
    problems = [] if blocks else ["None of the runs has learned weights of layers: name runs with a weighted sum."]
    return blocks, problems


def _pictures(analysed: Analysed, models: Sequence[Model]) -> tuple[list[Section], list[str]]:
    analysis = analysed.analysis
    colours = colours_of(analysis.models)
    held: list[tuple[Model, ModelAnalysis, Gathered]] = [
        (model, one, analysed.gathered[one.model])
        for model, one in zip(models, analysis.models, strict=True)
        if one.model in analysed.gathered
    ]
    seed, count = int(analysis.settings["seed"]), int(analysis.settings["examples"])
    maps = [f for _, one, kept in held for f in map_figures(one, kept, analysed.material, seed=seed)]
    sections = []
    if maps:
        words = "Each point is a frame of 10 to 40 ms. Where classes form heaps of their own, a layer tells them apart."
        sections.append(Section("maps", "Maps of frames", words, maps))
    chosen = choose_examples(analysed.material, count)
    if not chosen:
        return sections, ["No utterance lasts between 1.2 and 5 seconds: none is drawn."] if count else []
    blocks, problems = example_blocks(
        chosen, held, analysed.material, colours, clusters=int(analysis.settings["clusters"]), seed=seed
    )
    words = "What models make of single utterances: units of the layer that tells phones best, and attention."
    return [*sections, Section("examples", "Chosen utterances", words, blocks)], problems


def _of_models(models: Sequence[ModelAnalysis]) -> list[str]:
    found = [f"{m.model}: {text}" for m in models for text in m.warnings]
    if all(random(m) for m in models):
        found.append("No model here was trained: predictions of the literature are about trained ones.")
    return found


def _facts(analysis: Analysis) -> dict[str, Any]:
    corpus = analysis.corpus
    minutes = f"{float(corpus.get('seconds', 0)) / 60:.1f} minutes"
    words = f"{corpus.get('utterances')} utterances of {', '.join(corpus.get('splits', []))}, {minutes}, "
    return {
        "date": analysis.date[:10],
        "machines": [describe_machine(analysis.hardware)] if analysis.hardware else [],
        "corpora": [(str(corpus.get("name")), f"{words}{corpus.get('speakers')} known speakers")],
        "synthetic": [str(corpus.get("name"))] if "synth" in str(corpus.get("source", "")) else [],
    }
