"""The page of an analysis: what stands there is what was found, and where that contradicts others it says so."""

import math
import re
from pathlib import Path

import pytest
from report_runs import UPSTREAMS, Outline, make_result

from speechssl.analysis.page import render_page
from speechssl.analysis.page.curves import series_blocks
from speechssl.analysis.page.literature import findings
from speechssl.analysis.page.words import written
from speechssl.analysis.page.write import weights_blocks
from speechssl.analysis.result import Analysis, Better, LayerValue, Measure, ModelAnalysis
from speechssl.analysis.summary import console_table

LAYERS = 13


def peak(name: str, layer: int, *, better: Better = "up", unit: str = "share", best: float = 0.8) -> Measure:
    """A measure whose best layer is `layer`."""
    sign = -1 if better == "up" else 1
    values = [LayerValue(k, best + sign * 0.01 * abs(k - layer), n=100) for k in range(LAYERS)]
    values[layer] = LayerValue(layer, best, best - 0.02, best + 0.03, 100, "One thing is doubtful.")
    return Measure(name, f"Title of {name}", unit, better, "a source", values)


def model(
    label: str, *measures: Measure, weights: str = "org/name", rank: float = 50.0, step: int | None = None
) -> ModelAnalysis:
    ranks = Measure("rank/rankme", "RankMe", "dimensions", "up", "", [LayerValue(k, rank) for k in range(LAYERS)])
    series = "" if step is None else "run"
    return ModelAnalysis(label, [ranks, *measures], LAYERS, 50.0, 94_000_000, "abc", weights, step, series)


def analysis(*models: ModelAnalysis, **settings: object) -> Analysis:
    corpus = {"name": "demo", "splits": ["test"], "utterances": 150, "seconds": 90.0, "speakers": 4, "source": "debian"}
    return Analysis(models, corpus, {"phone": "an aligner"}, ["A warning <of> the corpus."], settings)


@pytest.fixture(scope="module")
def text() -> str:
    expected = model("good", peak("probe/phone", 9), peak("probe/speaker", 3), peak("abx/within", 8, better="down"))
    other = model("odd", peak("probe/phone", 0), peak("probe/speaker", 12), rank=20.0)
    untrained = model("noise", peak("probe/phone", 1), weights="random (seed 0)", rank=30.0)
    return render_page(analysis(expected, other, untrained))


def outline(text: str) -> Outline:
    parsed = Outline()
    parsed.feed(text)
    return parsed


def test_contradictions_of_the_literature_are_said_of_trained_models_alone(text: str) -> None:
    rows = outline(text).tables["What the literature predicts"]
    verdicts = {(row[2], row[0].split("|")[1].split("\n")[0]): row[1] for row in rows[1:]}
    assert "CONTRADICTS" in verdicts["odd", "Title of probe/phone"]
    assert "CONTRADICTS" in verdicts["odd", "Title of probe/speaker"]
    assert "CONTRADICTS" in verdicts["odd", "RankMe"]
    for measure in ("Title of probe/phone", "Title of probe/speaker", "Title of abx/within", "RankMe"):
        assert verdicts["good", measure] == "as predicted"
    assert not any(name == "noise" for name, _ in verdicts)
    assert "odd contradicts the literature: phones are told best in the upper middle layers" in text
    assert "Of 7 predictions of the literature 3 are contradicted here, see below." in text


def test_the_table_names_the_best_layer_and_its_interval(text: str) -> None:
    rows = outline(text).tables["Which layer for which task"]
    assert rows[0][1:] == ["good", "odd", "noise"]
    (phones,) = [row for row in rows if row[0].startswith("telling phones apart")]
    assert phones[1] == "layer 9|80.0 % [78.0 %, 83.0 %]"
    assert phones[2].startswith("layer 0")


def test_the_page_is_whole_and_says_what_is_doubtful(text: str) -> None:
    found = outline(text)
    assert all(load.startswith(("data:", "#")) for load in found.loads)
    assert found.images_without_text == 0 and found.scripts == 0
    assert not re.search(r"https?://", text)
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert "A warning &lt;of&gt; the corpus." in text
    assert "One thing is doubtful." in text
    assert "an aligner" in text


def test_what_is_not_finite_is_left_out_of_curves_and_of_best_layers() -> None:
    values = [LayerValue(0, math.nan), LayerValue(1, 0.5), LayerValue(2, 0.4)]
    measure = Measure("probe/phone", "Phones", "share", "up", "", values)
    assert measure.best() == values[1]
    text = render_page(analysis(ModelAnalysis("m", [measure], 3)))
    assert "layer 1" in text
    assert not re.search(r"\bnan\b", text)
    assert written(math.nan, "share") == "–"


def test_a_falling_rank_over_the_steps_of_a_run_is_called_a_collapse() -> None:
    steps = [model(f"run @ {k}", rank=rank, step=k) for k, rank in ((100, 60.0), (200, 80.0), (300, 12.0))]
    figures, problems = series_blocks(steps)
    assert [f.title for f in figures] == ["RankMe over the steps of run"]
    assert (
        problems[0] == "RankMe of layer 0 of run has fallen from 80.0 to 12.0 at step 300: the run may be collapsing."
    )
    assert not series_blocks(steps[:2])[1]
    assert problems[0] in render_page(analysis(*steps))


def test_layers_that_are_as_good_are_judged_by_where_the_best_one_stands() -> None:
    for layer, agrees, undecided in ((1, False, False), (4, False, True), (6, True, False), (12, False, True)):
        (found,) = findings([model("m", peak("information/phone share", layer))])
        assert (found.agrees, found.undecided) == (agrees, undecided)  # neighbours are within the interval


def test_the_terminal_shows_the_same_best_layers() -> None:
    table = console_table(analysis(model("good", peak("probe/phone", 9))))
    assert [row[1] for row in table.rows if "phones" in row[0]] == ["layer 9 (80.0 % [78.0 %, 83.0 %])"]


def test_weights_that_heads_learned_stand_beside_the_probes(tmp_path: Path) -> None:
    results = {}
    for label in list(UPSTREAMS)[1:]:
        results[label] = make_result("asr", label, 0, tmp_path / label)
        results[label].save(tmp_path / label)
    (figure,), problems = weights_blocks([tmp_path], {})
    assert not problems
    for label, result in results.items():
        best = max(range(len(result.layer_weights)), key=lambda k: result.layer_weights[k])
        assert f"{label} weighs layer {best} most" in figure.alt  # type: ignore[union-attr]  # a figure it is
    text = render_page(analysis(model("good", peak("probe/phone", 9))), weights=[figure])
    assert text.index("Layer weights that heads learned: asr") > text.index('id="probe"')
