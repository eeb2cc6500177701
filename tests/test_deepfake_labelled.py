"""Deepfake detection on corpora with labels of their own: used as they are, measured by condition, across corpora."""

import csv
import json
import logging
from pathlib import Path

import pytest
import soundfile
import spoof_trees as trees
from corpus_trees import put_audio, put_list
from safetensors.torch import load_file
from torch import nn

import speechssl
from downstreams.deepfake_detection import labelled
from downstreams.deepfake_detection.conditions import by_condition, evaluate_test
from downstreams.deepfake_detection.config import PRESETS, DeepfakeConfig
from downstreams.deepfake_detection.inference import calibrate
from downstreams.deepfake_detection.task import DeepfakeDetection
from speechssl.config import load_config
from speechssl.data.corpora.prepare import prepare_corpus
from speechssl.data.corpus import Corpus, open_corpus
from speechssl.errors import ConfigError, ManifestError, SpeechsslError
from speechssl.metric.calibration import Calibration, actual_dcf, llr_cost, min_llr_cost
from speechssl.metric.detection import equal_error_rate
from speechssl.result import RunResult, load_result
from speechssl.task import TaskData
from speechssl.types import Utterance

CORPORA = ("asvspoof2019_la", "asvspoof2021_la", "in_the_wild")
PARTS = ("", ":progress")
LIGHT = ("train.steps=2", "train.evaluate_every=1", "head.width=4", "head.attention=4", "head.window=0.1")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("spoofed")
    for name in CORPORA:
        prepare_corpus(name, trees.SPOOF_TREES[name](root / "source"), root / name)
    return {name: root / name for name in CORPORA}


@pytest.fixture(scope="module")
def result(corpora: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Path]:
    out = tmp_path_factory.mktemp("exp")
    others = f"{corpora['asvspoof2021_la']},{corpora['asvspoof2021_la']}:progress,{corpora['in_the_wild']}"
    (found,) = speechssl.run(
        "deepfake_detection_labelled",
        upstream="fbank",
        corpus=corpora["asvspoof2019_la"],
        overrides=[*LIGHT, f"test_corpora=[{others}]"],
        out=out,
    )
    return found, out / "deepfake_detection" / "fbank" / "seed0"


def _config(**changes: object) -> DeepfakeConfig:
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    return load_config(PRESETS["deepfake_detection_labelled"], overrides=overrides)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def _sides(rows: list[dict[str, str]]) -> tuple[list[float], list[float]]:
    real, fake = ([float(r["score"]) for r in rows if (r["label"] == "bonafide") == side] for side in (True, False))
    return real, fake


def _rate(rows: list[dict[str, str]]) -> float:
    return equal_error_rate(*_sides(rows))[0]


def test_one_run_measures_every_corpus_in_its_own_ids(result: tuple[RunResult, Path]) -> None:
    found, folder = result
    files = {"asvspoof2019_la": "scores.tsv", "in_the_wild": "scores_in_the_wild.tsv"}
    files |= {
        f"asvspoof2021_la{split}": f"scores_asvspoof2021_la{split.replace(':', '_')}.tsv" for split in ("", ":progress")
    }
    rates = {name: _rate(_rows(folder / file)) for name, file in files.items()}
    told = found.test.breakdown["eer by corpus"]
    assert {name: value.value for name, value in told.items()} == pytest.approx(rates, abs=1e-6)
    assert found.test.metrics["eer"].value == pytest.approx(rates["asvspoof2019_la"], abs=1e-6)
    assert {name: value.n for name, value in told.items()} == {
        "asvspoof2019_la": 7, "asvspoof2021_la": 4, "asvspoof2021_la:progress": 2, "in_the_wild": 5,
    }  # fmt: skip
    ids = [row["utterance"] for row in _rows(folder / "scores_asvspoof2021_la.tsv")]
    assert ids == [line.split()[1] for line in trees.LA_2021 if line.endswith("eval")]
    assert [row["utterance"] for row in _rows(folder / "dev_scores.tsv")] == [f"LA_D_10000{k:02d}" for k in range(7)]


def test_costs_of_log_likelihood_ratios_are_of_the_map_that_dev_gave(result: tuple[RunResult, Path]) -> None:
    folder = result[1]
    dev, test = (_sides(_rows(folder / name)) for name in ("dev_scores.tsv", "scores.tsv"))
    fitted = calibrate(*dev)
    kept = load_file(folder / "head.safetensors")["head.calibration"].tolist()
    assert kept == pytest.approx([fitted.scale, fitted.offset], rel=1e-3)
    found = load_result(folder).test.metrics
    ratios = [Calibration(*kept).apply(side) for side in test]
    assert found["cllr"].value == pytest.approx(llr_cost(*ratios), abs=1e-4)
    assert found["min_cllr"].value == pytest.approx(min_llr_cost(*ratios), abs=1e-9)
    costs = {"p_target": 0.95, "cost_miss": 1.0, "cost_false_alarm": 10.0}
    assert found["act_dcf"].value == pytest.approx(actual_dcf(*ratios, **costs))


def test_the_attacks_and_conditions_of_each_corpus_are_told(result: tuple[RunResult, Path]) -> None:
    found, folder = result
    assert set(found.test.breakdown["eer by attack"]) == {"A07", "A16"}
    assert "eer_unseen" not in found.test.metrics  # none of both is in train
    rows = [row for row in _rows(folder / "scores.tsv") if row["attack"] in {"A07", "bonafide"}]
    assert found.test.breakdown["eer by attack"]["A07"].value == pytest.approx(_rate(rows), abs=1e-6)
    assert set(found.test.breakdown["asvspoof2021_la: eer by transmission"]) == {"loc_tx"}


def test_what_was_measured_is_kept_with_its_fingerprint(
    result: tuple[RunResult, Path], corpora: dict[str, Path]
) -> None:
    found, folder = result
    told = {one["name"]: one for one in json.loads((folder / found.test.files["corpora"]).read_text())}
    for name in CORPORA:
        assert told[name]["fingerprint"] == open_corpus(corpora[name]).fingerprint
    assert (told["in_the_wild"]["utterances"], told["in_the_wild"]["bonafide"]) == (5, 3)
    assert told["asvspoof2021_la:progress"]["split"] == "progress"


def _scored(corpus: str, attack: str, score: float, **labels: str) -> tuple[Utterance, float]:
    name = f"{corpus}-{attack}-{score}"
    seen = attack in {"A1", "bonafide"}
    return Utterance(
        name, "", labels={"corpus": corpus, "attack": attack, "seen": seen, "original": name, **labels}
    ), score


def test_attacks_face_all_real_speech_and_codecs_their_own(tmp_path: Path) -> None:
    scored = [
        *(_scored("main", "bonafide", score, codec="none") for score in (3.0, 4.0)),
        *(_scored("main", "bonafide", score, codec="mp3") for score in (1.0, 0.0)),
        *(_scored("main", "A1", score, codec="none", vocoder="old") for score in (2.0, 2.5)),
        *(_scored("main", "A2", score, codec="mp3", vocoder="new") for score in (-1.0, -2.0)),
        *(_scored("main", "A2", score, codec="opus", vocoder="new") for score in (5.0, 6.0)),
    ]
    found = by_condition(scored)
    by_attack = {name: value.value for name, value in found["eer by attack"].items()}
    assert by_attack == pytest.approx({"A1": 0.5, "A2": 0.5})
    assert {name: value.n for name, value in found["eer by vocoder"].items()} == {"old": 6, "new": 8}
    assert {name: value.value for name, value in found["eer by codec"].items()} == {"none": 0.0, "mp3": 0.0}
    metrics = evaluate_test(scored, 0.0, tmp_path).metrics
    assert (metrics["eer"].n, metrics["eer_unseen"].n) == (10, 8)
    # A share of the test may hold one class alone of another corpus.
    few = [
        *scored,
        *(_scored("small", a, 0.5) for a in ("A1", "A2")),
        _scored("both", "A1", 0.5),
        _scored("both", "bonafide", 1.5),
    ]
    rates = evaluate_test(few, 0.0, tmp_path).breakdown["eer by corpus"]
    assert {name: value.n for name, value in rates.items()} == {"main": 10, "both": 2}
    others = [one for one in few if one[0].labels["corpus"] != "main"]
    data = TaskData({"test": [u for u, _ in others]}, {"tested": [labelled.Tested("main", "", "test", "", 10, 4)]})
    with pytest.raises(SpeechsslError, match="None of the 4 utterances heard is of the test of 'main'"):
        task = DeepfakeDetection(_config())
        task.evaluate(nn.Identity(), {u.id: score for u, score in others}, data, "test", tmp_path)


def test_no_fakes_are_made_of_a_corpus_that_has_its_own(corpora: dict[str, Path], tmp_path: Path) -> None:
    put_audio(tmp_path / "source" / "a.wav")
    put_list(tmp_path / "source" / "mine.csv", ["path,split,attack", "a.wav,train,tts"])  # that is enough to tell
    prepare_corpus("table", tmp_path / "source", tmp_path / "out")
    for root in (corpora["asvspoof2019_la"], tmp_path / "out"):
        with pytest.raises(ConfigError, match=r"has spoofed speech of its own: run deepfake_detection_labelled"):
            DeepfakeDetection(PRESETS["deepfake_detection"]).prepare(open_corpus(root))


def test_a_corpus_without_training_is_for_test_corpora(corpora: dict[str, Path]) -> None:
    with pytest.raises(ManifestError, match=r"has no split 'train', but has test: train on another, .*test_corpora=\["):
        DeepfakeDetection(_config()).prepare(open_corpus(corpora["in_the_wild"]))
    twice = _config(test_corpora=[str(corpora["in_the_wild"])] * 2)
    with pytest.raises(ConfigError, match=r"has 'in_the_wild' twice"):
        DeepfakeDetection(twice).prepare(open_corpus(corpora["asvspoof2019_la"]))


def _table(root: Path, rows: list[str], *, samples: int = 1600) -> Corpus:
    for name in (row.split(",")[0] for row in rows):
        if not (root / "source" / name).exists():
            put_audio(root / "source" / name, samples)
    put_list(root / "source" / "mine.csv", ["path,split,key,attack", *rows])
    prepare_corpus("table", root / "source", root / "out")
    return open_corpus(root / "out")


GOOD = [
    f"{split}{k}.wav,{split},{'bonafide,' if k % 2 else 'spoof,tts'}"
    for split in ("train", "dev", "test")
    for k in range(4)
]


def test_a_table_of_anybody_s_files_is_enough(tmp_path: Path) -> None:
    data = DeepfakeDetection(_config()).prepare(_table(tmp_path, GOOD))
    assert [u.labels["attack"] for u in data.splits["test"]] == ["tts", "bonafide"] * 2
    assert all(u.labels["seen"] for u in data.splits["test"])


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([*GOOD, "x.wav,dev,,", "y.wav,dev,maybe,tts"], r"\(manifests/dev.*line 5\) is the first of 2 in 'dev' whose"),
        (
            [row.replace("spoof,tts", "bonafide,") if "test" in row else row for row in GOOD],
            r"'test' of .* has 4 utterances, and all of them are bona fide",
        ),
    ],
)
def test_utterances_that_do_not_tell_are_refused_with_their_count(rows: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=says):
        DeepfakeDetection(_config()).prepare(_table(tmp_path, rows))


def test_conditioning_is_done_where_it_is_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_audio(tmp_path / "source" / "train1.wav", 3200)  # too short
    corpus = _table(tmp_path, GOOD, samples=16_000)
    config = _config(condition=True, **{"spoof.conditioning.seconds": 0.5, "spoof.processes": 1})
    plain = DeepfakeDetection(_config()).prepare(corpus)
    assert all("conditioned" not in u.path for u in plain.splits["train"])
    with caplog.at_level(logging.WARNING):
        data = DeepfakeDetection(config).prepare(corpus)
    assert "1 bona fide and 0 spoofed utterances of 'train'" in caplog.text
    assert {split: len(found) for split, found in data.splits.items()} == {"train": 3, "dev": 4, "test": 4}
    assert {soundfile.info(u.path).frames for found in data.splits.values() for u in found} == {8000}
    # Prepared anew, the same ids are of other audio.
    names = [row.partition(".")[0] for row in GOOD]
    swapped = [f"{row},{name[:-1]}{int(name[-1]) ^ 2}" for row, name in zip(GOOD, names, strict=True)]
    put_list(tmp_path / "source" / "mine.csv", ["path,split,key,attack,id", *swapped])
    prepare_corpus("table", tmp_path / "source", tmp_path / "out")
    again = DeepfakeDetection(config).prepare(open_corpus(tmp_path / "out"))
    paths = {u.id: u.path for u in data.splits["test"]}
    assert set(paths) == {u.id for u in again.splits["test"]} == set(names[-4:])
    assert all(paths[u.id] != u.path for u in again.splits["test"])
