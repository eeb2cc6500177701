"""The report: one self-contained page, whose numbers are those of the results."""

import base64
import html as html_module
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from chromium import CHROMIUM, look_at
from report_runs import PRIMARY, RATE, UPSTREAMS, Outline, make_result, make_runs, write_pretraining
from scipy import stats

from speechssl.errors import ManifestError, SpeechsslError
from speechssl.metric.detection import equal_error_rate
from speechssl.report import console_table, write_report
from speechssl.report.audio import fundamental_frequency
from speechssl.report.collect import Pretraining, collect
from speechssl.report.detection import confusion_table, read_scores
from speechssl.report.figures import pretraining_figures, pretraining_table
from speechssl.report.listen import Budget
from speechssl.report.plots import band
from speechssl.report.summary import group_runs, heads_agree, summarise, verdict
from speechssl.report.table import main_table
from speechssl.report.words import format_number, format_seconds, format_value
from speechssl.result import Evaluation, MetricValue, RunResult, UpstreamInfo
from speechssl.scoring import Scores, write_scores


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def page(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([runs], tmp_path_factory.mktemp("report")).path


@pytest.fixture(scope="module")
def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def outline(text: str) -> Outline:
    parsed = Outline()
    parsed.feed(text)
    return parsed


def student(values: list[float]) -> tuple[float, float]:
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    return float(low), float(high)


def raw_values(runs: Path, task: str, label: str, metric: str) -> list[float]:
    folders = sorted((runs / task / label.replace(" ", "_")).iterdir())
    return [json.loads((f / "result.json").read_text())["test"]["metrics"][metric]["value"] for f in folders]


def test_the_page_loads_nothing_from_elsewhere(text: str) -> None:
    found = outline(text)
    assert found.loads
    assert all(load.startswith(("data:", "#")) for load in found.loads)
    assert "@import" not in text
    assert not re.search(r"url\(\s*['\"]?(?!#)", text)
    assert not re.search(r"https?://", text)
    assert len(text) < 15e6
    assert found.scripts == 0


def test_every_plot_has_a_text_and_every_id_is_its_own(text: str) -> None:
    assert outline(text).images_without_text == 0
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r'(?:href="|url\(|aria-\w+by=")#?([\w-]+)', text)) - {"data"}
    assert wanted <= set(ids)


def test_the_main_table_holds_means_and_student_intervals(text: str, runs: Path) -> None:
    rows = outline(text).tables["Each upstream on each task"]
    assert [row[0] for row in rows[1:]] == list(UPSTREAMS)
    tasks = sorted(PRIMARY)
    for row in rows[1:]:
        for task, cell in zip(tasks, row[1:], strict=True):
            metric = PRIMARY[task][0]
            values = raw_values(runs, task, row[0], metric)
            low, high = student(values)
            mean = float(np.mean(values))
            if metric == "speaker_similarity":
                expected = f"{mean:.3f}", f"[{low:.3f}, {high:.3f}]"
            else:
                expected = f"{100 * mean:.1f} %", f"[{100 * low:.1f}, {100 * high:.1f}]"
            best = row[0] == "hubert_tiny (pre-trained)"
            assert cell == f"{expected[0]}{' (best)' if best else ''}|{expected[1]}\n3 seeds"


def test_secondary_metrics_and_languages_are_those_of_the_results(text: str, runs: Path) -> None:
    tables = outline(text).tables
    values = raw_values(runs, "asr", "fbank", "wer")
    german, russian, ukrainian = tables["CER by language"][1:]
    assert (german[0].split("|")[0], russian[0].split("|")[0]) == ("de", "ru")
    for row, factor in ((german, 0.9), (russian, 1.0), (ukrainian, 1.1)):
        assert row[1].split("|")[0] == f"{100 * factor * np.mean(values):.1f} %"
    assert tables["EER of trivial cues"][0] == ["Trivial cue", "On train", "Every upstream"]


def test_costs_are_summed_over_the_seeds(text: str) -> None:
    header, row = outline(text).tables["Cost of the runs"][:2]
    found = dict(zip(header, row, strict=True))
    assert found["Task, upstream"] == "ASR|fbank"
    assert (found["Features"], found["Total"]) == ("12.7 s", "5 min 19 s")
    assert (found["Utterances computed"], found["From cache"]) == ("900", "1\u202f800")
    assert found["Times real time"] == "400"  # 5000 s of audio in the 12.5 s of the run that computed
    assert found["Best step"] == "700"


def test_an_interval_over_seeds_equals_scipy() -> None:
    values = [0.31, 0.29, 0.335, 0.30]
    found = summarise([MetricValue(v, 10) for v in values])
    assert found is not None
    assert (found.low, found.high) == pytest.approx(student(values), abs=1e-12)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-15)
    assert (found.seeds, found.over) == (4, "seeds")


def test_one_seed_keeps_its_own_interval_and_nan_is_left_out() -> None:
    found = summarise([MetricValue(0.5, 10, "words", 0.4, 0.6), MetricValue(math.nan, 10)])
    assert found is not None
    assert (found.mean, found.low, found.high, found.over, found.seeds) == (0.5, 0.4, 0.6, "test", 1)
    assert summarise([MetricValue(math.nan, 3)]) is None
    bare = summarise([MetricValue(0.5, 10, "words", math.nan, math.nan)])
    assert bare is not None
    assert bare.low is None


def simple(
    label: str, weights: str, values: list[float], *, task: str = "asr", higher: bool = False
) -> list[RunResult]:
    info = UpstreamInfo(label, label, "f", weights, 1, 50.0, 6)
    return [
        RunResult(
            task, info, {"name": "c"}, seed, {}, "m", higher, Evaluation({"m": MetricValue(v, 5)}),
            Evaluation({"m": MetricValue(v, 5)}), [1.0], {}, 1, {}, {}, 1, "2026-01-01",
        )
        for seed, v in enumerate(values)
    ]  # fmt: skip


def test_the_verdict_says_who_wins_and_whether_intervals_overlap() -> None:
    clear = simple("ours", "folder", [0.1, 0.11, 0.1]) + simple("base", "none", [0.5, 0.51, 0.5])
    assert verdict(group_runs(clear)) == (
        "“ours” has the best mean on 1 of 1 task (ASR). Its 95 % interval lies apart from that of every other upstream "
        "on ASR."
    )
    near = simple("ours", "folder", [0.1, 0.4], task="vc") + simple("base", "random (seed 0)", [0.2, 0.5], task="vc")
    assert "On VC the intervals overlap" in verdict(group_runs(near))
    lost = [replace(r, higher_is_better=True) for r in clear]
    assert verdict(group_runs(lost)) == "“ours” has the best mean on 0 of 1 task."
    both = verdict(group_runs(clear + [replace(r, task="vc") for r in lost]))
    assert both.startswith("“ours” has the best mean on 1 of 2 tasks (ASR), and not on VC.")
    single = simple("ours", "folder", [0.1]) + simple("base", "none", [0.5])
    assert "too few seeds for an interval" in verdict(group_runs(single))
    assert verdict(group_runs(simple("a", "none", [0.3]) + simple("b", "none", [0.2]))) == (
        "Best mean: “b” on ASR (m)."
    )


def test_a_tie_is_no_win() -> None:
    tie = simple("ours", "folder", [0.5, 0.5]) + simple("base", "none", [0.5, 0.5])
    assert "0 of 1" in verdict(group_runs(tie))


def test_labels_are_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>$a_b$ & co'
    result = make_result("asr", "fbank", 0, tmp_path / "a")
    info = replace(result.upstream, label=evil, name=evil)
    curves = {"train loss": [(0, 2.0), (10, 1.0)], "<img src=x>": [(0, 2.0), (10, 1.0)]}
    named = Evaluation(
        {"wer": MetricValue(0.2, 3, "<b>")},
        {"wer by <i>": {"<u>": MetricValue(0.1, 1)}},
        examples=[{"title": "</h4><script>", "text": "</dd><script>"}],
    )
    corpus = {"name": "<script>", "source": "synthetic <b>", "fingerprint": "&"}
    replace(result, upstream=info, curves=curves, test=named, corpus=corpus, layer_weights=[0.4, 0.6]).save(
        tmp_path / "a"
    )
    text = write_report([tmp_path], tmp_path / "out", title="<script>").path.read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert "<b>" not in text
    assert html_module.escape('alert("x")', quote=False) in text or "alert(&#34;x&#34;)" in text


def test_synthetic_speech_is_announced(tmp_path: Path, text: str) -> None:
    result = make_result("asr", "fbank", 0, tmp_path / "a")
    replace(result, corpus={**result.corpus, "source": "synthetic"}).save(tmp_path / "a")
    assert "Synthetic speech." in write_report([tmp_path], tmp_path / "out").path.read_text()
    assert "Synthetic speech." not in text


def test_missing_and_broken_pieces_are_named_and_not_fatal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = tmp_path / "runs" / "bad"
    bad.mkdir(parents=True)
    (bad / "result.json").write_text("{ not json")
    (tmp_path / "runs" / "log.jsonl").write_bytes(b"\xff\xfe\n")
    folder = tmp_path / "runs" / "vc"
    make_result("voice_conversion", "fbank", 0, folder).save(folder)
    (folder / "c0.wav").unlink()
    (folder / "s1.wav").write_text("this is no audio")
    folder = tmp_path / "runs" / "sv"
    make_result("speaker_verification", "fbank", 0, folder).save(folder)
    (folder / "scores.tsv").unlink()
    written = write_report([tmp_path / "runs"], tmp_path / "out")
    text = html_module.unescape(written.path.read_text())
    for piece in (bad / "result.json", tmp_path / "runs" / "log.jsonl", "c0.wav", "s1.wav", folder / "scores.tsv"):
        assert sum(str(piece) in problem for problem in written.problems) == 1
        assert str(piece) in text
    assert all(problem in caplog.text for problem in written.problems)
    assert "DET curves" not in text
    assert "Voice conversion" in text


def test_a_result_without_extras_gives_a_page(tmp_path: Path) -> None:
    for result in simple("only", "none", [0.3], task="some_new_task"):
        result.save(tmp_path / "run")
    text = write_report([tmp_path], tmp_path / "out").path.read_text()
    assert "Some new task" in text
    assert "0.300" in text


def test_pretraining_alone_gives_a_page(tmp_path: Path) -> None:
    write_pretraining(tmp_path / "runs" / "one", 1.0)
    written = write_report([tmp_path / "runs"], tmp_path / "out")
    assert written.results == []
    text = written.path.read_text()
    assert "Masked accuracy" in text
    assert "12 min 00 s" in text
    assert 'id="results"' not in text


def test_the_log_of_a_task_is_no_pretraining(tmp_path: Path) -> None:
    for name, mark in (("task", "task.json"), ("one", "config.json")):
        write_pretraining(tmp_path / name, 1.0)
        (tmp_path / name / mark).write_text("{}")
    assert [log.name for log in collect([tmp_path]).pretraining] == ["one"]


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no readable result"):
        collect([tmp_path])
    with pytest.raises(ManifestError, match="does not exist"):
        collect([tmp_path / "nowhere"])


def test_of_two_runs_with_one_seed_the_newer_counts(tmp_path: Path) -> None:
    result = make_result("asr", "fbank", 0, tmp_path / "old")
    result.save(tmp_path / "old")
    replace(result, date="2026-12-01T00:00:00+00:00", best_step=7).save(tmp_path / "new")
    collection = collect([tmp_path])
    assert [run.result.best_step for run in collection.runs] == [7]
    assert str(tmp_path / "old") in collection.problems[0]


def test_audio_decodes_to_what_was_converted(text: str, runs: Path) -> None:
    found = re.search(r'Pair 0 &lt;a&amp;b&gt;, Converted: fbank" src="data:audio/mpeg;base64,([^"]+)"', text)
    assert found
    decoded, rate = soundfile.read(io.BytesIO(base64.b64decode(found[1])))
    original, _ = soundfile.read(runs / "voice_conversion" / "fbank" / "seed0" / "c0.wav")
    assert rate == RATE
    assert len(decoded) == pytest.approx(len(original), abs=2500)  # MP3 pads to whole frames
    spectra = [np.abs(np.fft.rfft(x[2000:10000])) for x in (original, decoded)]
    assert np.corrcoef(spectra[0], spectra[1])[0, 1] > 0.9


def test_what_upstreams_share_is_shown_once(text: str) -> None:
    assert len(re.findall(r'aria-label="Pair 0 [^"]*, Source"', text)) == 1
    assert len(re.findall(r'aria-label="Pair 0 [^"]*, Converted: ', text)) == len(UPSTREAMS)


def test_every_clip_has_a_player_a_spectrogram_and_its_pitch(text: str) -> None:
    example = text[text.index("<h4>Pair 0") : text.index("<h4>Pair 1")]
    labels = ["Source", "Target", *(f"Converted: {label}" for label in UPSTREAMS), "Copy synthesis"]
    captions = re.findall(r"<figcaption>(.*?) \(0\.7 s, median pitch (\d+) Hz\)</figcaption>", example)
    assert [name for name, _ in captions] == labels
    expected = [110, 210, *(205 + i for i in range(len(UPSTREAMS))), 210]
    assert [int(hertz) for _, hertz in captions] == pytest.approx(expected, abs=1.5)
    assert re.findall(r'<audio [^>]*aria-label="Pair 0 [^"]*, ([^"]+)"', example) == labels
    assert re.findall(r'role="img" aria-label="Log-mel spectrogram of ([^"]*?), Pair 0', example) == labels
    assert example.count("<image") == example.count("#00e5ff") == len(labels)
    # What is said of one clip alone stands under it.
    assert re.findall(r'<dl class="notes"><dt>([^<]*)</dt><dd>([^<]*)</dd></dl>', example) == [
        ("Synthetic", f"0.9{i}") for i in range(len(UPSTREAMS))
    ]


def test_pitch_is_that_of_a_voice_and_none_of_noise_or_silence() -> None:
    rng = np.random.default_rng(0)
    seconds = np.arange(RATE) / RATE
    hertz = 120 + 60 * seconds  # glides up
    voice = sum(np.cos(2 * np.pi * k * np.cumsum(hertz) / RATE) / k for k in range(1, 12))
    noise = 0.3 * rng.standard_normal(RATE)
    f0 = fundamental_frequency(0.1 * np.concatenate([voice, noise, np.zeros(RATE)]).astype(np.float32))
    frames = np.arange(5, 95)
    np.testing.assert_allclose(f0[frames], 120 + 60 * frames * 0.01, rtol=0.01)
    assert np.isnan(f0[105:]).mean() > 0.95
    assert np.isnan(f0[205:]).all()
    assert np.isnan(fundamental_frequency(np.zeros(50, np.float32))).all()  # shorter than a frame


def test_systems_stand_between_the_anchors_that_they_share(text: str, runs: Path) -> None:
    header, *rows = outline(text).tables["What the judges say of each system"]
    assert header == ["System", "Speaker similarity ↑", "WER ↓", "MCD ↓"]
    assert [row[0].split("|")[0] for row in rows] == ["Unconverted", *UPSTREAMS, "Copy synthesis"]
    assert rows[0] == ["Unconverted|n = 24 pairs", "0.110|[0.100, 0.120]", "5.00 %|[4.00, 6.00]", "–"]
    assert rows[-1][1:] == ["0.930|[0.920, 0.940]", "12.0 %|[11.0, 13.0]", "–"]
    for label, row in zip(UPSTREAMS, rows[1:-1], strict=True):
        values = raw_values(runs, "voice_conversion", label, "speaker_similarity")
        low, high = student(values)
        best = " (best)" if label == "hubert_tiny (pre-trained)" else ""  # no anchor is ever the best
        assert row[1] == f"{np.mean(values):.3f}{best}|[{low:.3f}, {high:.3f}]\n3 seeds"
        assert row[3] == "7.50 dB|[7.50, 7.50]\n3 seeds"  # as good for each, so none is the best
    assert not [name for name in outline(text).tables if "by condition" in name]


def test_scores_of_finished_files_are_tables_too(tmp_path: Path) -> None:
    conditions = {"converted": 0.8, "unconverted": 0.2}
    scales = {"source_similarity": 1.0, "nearer_target": 1.0, "mcd": 10.0, "f0_rmse": 30.0}
    metrics = {
        name: {c: MetricValue(x * v, 12, "conversions", x * v - 0.1, x * v + 0.1) for c, v in conditions.items()}
        for name, x in scales.items()
    }
    scores = Scores("12 conversions", metrics, [{"converted": "a.wav"}], {}, ("2 lines have no 'parallel'.",))
    write_scores(scores, "voice_conversion", tmp_path / "in" / "theirs")
    (tmp_path / "in" / "ours").mkdir()
    (tmp_path / "in" / "ours" / "scores.json").write_text('{"task": "voice_conversion"}')
    written = write_report([tmp_path / "in"], tmp_path / "out")
    assert len(written.problems) == 1 and "ours/scores.json" in written.problems[0]
    text = html_module.unescape(written.path.read_text())
    header, first, second = outline(text).tables["Scores of finished files"]
    assert header == ["Files", "Source similarity ↓", "Nearer target ↑", "MCD ↓", "F0 RMSE ↓"]
    assert first[0] == "theirs: converted|n = 12 conversions"
    assert first[1:] == ["0.800|[0.700, 0.900]", "80.0 %|[70.0, 90.0]", "8.00 dB|[7.90, 8.10]", "24.0 Hz|[23.9, 24.1]"]
    assert second[1] == "0.200|[0.100, 0.300]"
    assert "theirs: 2 lines have no 'parallel'." in text


def test_a_page_that_is_full_shows_clips_without_spectrograms(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechssl.report.page.Budget", lambda: Budget(spectrograms=1))
    written = write_report([runs / "voice_conversion"], tmp_path)
    assert written.path.read_text().count("Log-mel spectrogram of") == 1
    assert f"{2 * 6 - 1} audio examples are shown without spectrograms, to keep the page small." in written.problems


def test_scores_are_read_by_header_and_attacks_confused_at_the_threshold(runs: Path) -> None:
    path = runs / "deepfake_detection" / "fbank" / "seed0" / "scores.tsv"
    scores = read_scores(path)
    target = [float(x.split("\t")[3]) for x in path.read_text().splitlines() if "bonafide" in x]
    spoof: dict[str, list[float]] = {"espeak": [], "griffin_lim": [], "world": []}
    for line in path.read_text().splitlines()[1:]:
        _, attack, label, score = line.split("\t")
        if label == "spoof":
            spoof[attack].append(float(score))
    threshold = equal_error_rate(target, [x for values in spoof.values() for x in values])[1]
    table = confusion_table({"fbank": [scores]})
    assert table is not None
    cells = {row[0].text: row[1].text for row in table.rows}
    for attack, values in spoof.items():
        share = 100 * np.mean(np.array(values) > threshold)
        assert float(cells[attack].split()[0]) == pytest.approx(share, abs=0.05)
    assert float(cells["real speech"].split()[0]) == pytest.approx(
        100 * np.mean(np.array(target) <= threshold), abs=0.05
    )


@pytest.mark.parametrize("content", ["", "a\tb\n1\t2\n", "label\tscore\nperhaps\t1\n", "label\tscore\n1\tx\n"])
def test_a_strange_score_file_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "scores.tsv").write_text(content)
    with pytest.raises(SpeechsslError, match=r"scores\.tsv"):
        read_scores(tmp_path / "scores.tsv")


def test_a_band_averages_the_seeds_where_all_have_values() -> None:
    found = band([[(0, 1.0), (10, 3.0), (20, 5.0)], [(0, 3.0), (10, 5.0)]])
    assert found is not None
    assert found.steps.tolist() == [0, 10]
    assert found.mean.tolist() == [2.0, 4.0]
    assert found.low.tolist() == [1.0, 3.0]
    assert found.high.tolist() == [3.0, 5.0]
    long = band([[(i, float(i % 2)) for i in range(1000)]])
    assert long is not None
    assert long.steps.size <= 300
    assert long.mean == pytest.approx(0.5, abs=1e-12)


def test_numbers_are_written_with_sensible_digits() -> None:
    assert format_value(0.1234, "wer") == "12.3 %"
    assert format_value(0.01234, "eer") == "1.23 %"
    assert format_value(0.81234, "min_dcf") == "0.812"
    assert format_value(6.543, "mcd") == "6.54 dB"
    assert format_value(math.nan, "wer") == "–"
    assert format_number(12345.6) == "12\u202f346"
    assert format_number(0.00001) == "1.00e−05"
    assert format_seconds(3723) == "1 h 02 min"


def test_the_console_table_marks_the_best(runs: Path) -> None:
    from rich.console import Console

    console = Console(width=200, file=io.StringIO())
    console.print(console_table([run.result for run in collect([runs]).runs]))
    text = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    wer = np.mean(raw_values(runs, "asr", "hubert_tiny (pre-trained)", "wer"))
    assert f"{100 * wer:.1f} %*" in text
    assert text.count("*") == len(PRIMARY)


def test_the_command_writes_the_page(runs: Path, tmp_path: Path) -> None:
    from speechssl.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["report", str(runs / "asr"), "-o", str(tmp_path / "out")])
    assert stop.value.code == 0
    assert (tmp_path / "out" / "index.html").stat().st_size > 10_000


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_does_not_scroll_sideways_and_plays(page: Path, tmp_path: Path, width: int) -> None:
    scroll, inner, playable, players = look_at(page, tmp_path, width)
    assert inner == width
    assert scroll <= width
    assert playable == players > 0


def test_the_pretraining_loss_is_that_of_masked_frames_where_it_is_logged() -> None:
    steps = [(1, 5.0), (2, 4.0)]
    both = Pretraining(Path("new"), "new", {"loss": [(1, 9.0), (2, 8.0)], "masked_loss": steps}, {})
    old = Pretraining(Path("old"), "old", {"loss": [(1, 7.0), (2, 6.0)]}, {})
    captions: dict[int, str] = {}
    for logs in ((both,), (old,), (both, old)):
        (figure,) = pretraining_figures(logs)
        captions[len(captions)] = figure.caption
        assert ("new goes from 5" in figure.alt) == (both in logs)
        assert ("old goes from 7" in figure.alt) == (old in logs)
    assert captions[0].startswith("Mean cross-entropy over the masked frames, over the steps")
    assert captions[1].startswith("The training loss, which may count unmasked frames too, over the steps")
    assert "masked frames (of old: the training loss" in captions[2]
    assert pretraining_table([both]).rows[0][4].text == "4.00"


def test_the_report_says_how_alike_heads_rank_upstreams(tmp_path: Path) -> None:
    orders = {"linear": (0.1, 0.2, 0.3), "mlp": (0.1, 0.3, 0.2), "attentive": (0.3, 0.2, 0.1)}
    results = []
    for head, values in orders.items():
        for label, value in zip(UPSTREAMS, values, strict=False):
            one = make_result("asr", label, 0, tmp_path / head / label)
            metrics = {one.metric: replace(one.test.metrics[one.metric], value=value)}
            results.append(replace(one, head=head, test=replace(one.test, metrics=metrics)))
    said = heads_agree(results)
    assert "linear and mlp 0.50" in said and "linear and attentive -1.00" in said and "mlp and attentive -0.50" in said
    assert heads_agree(results[:4]) == ""  # one upstream says nothing about an order


def test_each_task_of_a_suite_has_its_own_corpus_and_upstreams_keep_one_row(tmp_path: Path) -> None:
    results = [
        replace(make_result(task, label, 0, tmp_path / task / label), corpus={"name": task})
        for task in ("asr", "speaker_verification")
        for label in list(UPSTREAMS)[:2]
    ]
    assert len(main_table(group_runs(results)).rows) == 2
    again = replace(results[0], corpus={"name": "another"})
    assert len(main_table(group_runs([*results, again])).rows) == 2 + 3  # each now says on which


def test_candidates_of_a_sweep_are_no_pretraining(tmp_path: Path) -> None:
    run = tmp_path / "asr/fbank/seed0"
    make_result("asr", next(iter(UPSTREAMS)), 0, run).save(run)
    candidate = run / "sweep/learning_rate=1e-3"
    candidate.mkdir(parents=True)
    (candidate / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert collect([tmp_path]).pretraining == []
