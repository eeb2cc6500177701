"""`speechssl score deepfake_detection`: score files as challenges write them, joined to protocols and measured."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run, the_sentence
from numpy.typing import NDArray

from downstreams.deepfake_detection import measure
from downstreams.deepfake_detection import score as scoring
from downstreams.deepfake_detection.score_report import det_points
from downstreams.deepfake_detection.score_table import LAYOUTS, read_protocol, read_scores
from downstreams.deepfake_detection.score_trials import load_trials
from speechssl.errors import SpeechsslError
from speechssl.metric.calibration import Calibration, actual_dcf, fit_calibration, fit_fusion, llr_cost
from speechssl.metric.detection import detection_error_tradeoff, equal_error_rate, min_dcf
from speechssl.metric.tandem import AsvErrorRates, asv_error_rates, min_agnostic_dcf, min_tandem_dcf
from speechssl.metric.tandem_eer import concurrent_tandem_eer
from speechssl.scoring import ScoreOptions, Scores
from speechssl.types import Utterance

Floats = NDArray[np.float64]
COSTS = {"p_target": 0.95, "cost_miss": 1.0, "cost_false_alarm": 10.0}
FAST = {"replicates": "0"}


class Made:
    """Trials of four attacks and two codecs, and the scores of two systems, which are no log-likelihood ratios."""

    def __init__(self, seed: int = 0, number: int = 600) -> None:
        rng = np.random.default_rng(seed)
        self.ids = [f"LA_E_{i:05d}" for i in range(number)]
        self.attacks = ["-" if i % 3 == 0 else f"A{7 + i % 4:02d}" for i in range(number)]
        self.labels = ["bonafide" if a == "-" else "spoof" for a in self.attacks]
        self.codecs = ["alaw" if i % 2 else "none" for i in range(number)]
        self.bona_fide = np.array([label == "bonafide" for label in self.labels])
        signal = np.where(self.bona_fide, 1.0, -1.0) + rng.normal(0, 0.8, number)
        self.systems = np.stack(
            [20 + 5 * (signal + rng.normal(0, 0.9, number)), signal + rng.normal(0, 1.3, number)], 1
        )

    def write(self, folder: Path, name: str, lines: Sequence[str]) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return folder / name

    def scores(self, folder: Path, system: int = 0, name: str = "") -> Path:
        lines = [f"{i} {s!r}" for i, s in zip(self.ids, self.systems[:, system].tolist(), strict=True)]
        rng = np.random.default_rng(9)
        return self.write(folder, name or f"system{system}.txt", [lines[k] for k in rng.permutation(len(lines))])

    def protocol(self, folder: Path, name: str = "keys.txt") -> Path:
        """Of ASVspoof 2021 LA."""
        rows = zip(self.ids, self.codecs, self.attacks, self.labels, strict=True)
        lines = [f"LA_{k % 20:04d} {i} {c} x {a} {key} notrim eval" for k, (i, c, a, key) in enumerate(rows)]
        return self.write(folder, name, lines)

    def sides(self, system: int = 0, mask: Any = True) -> tuple[Floats, Floats]:
        scores = self.systems[:, system]
        return scores[self.bona_fide & mask], scores[~self.bona_fide & mask]


def score(*files: Path, dev: Sequence[Path] = (), measures: Sequence[str] = (), **settings: str) -> Scores:
    return scoring.score(files, ScoreOptions(tuple(measures), settings={**FAST, **settings}, dev=tuple(dev)))


def value(found: Scores, measure: str, condition: str) -> float:
    return found.metrics[measure][condition].value


def test_scores_of_anybody_are_measured_pooled_and_in_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, out = Made(), tmp_path / "out"
    argv = ["score", "deepfake", made.scores(tmp_path), made.protocol(tmp_path), "-o", out]  # one task begins so
    assert run(*argv, "-s", "by=attack,codec,attack+codec") == 0
    shown = capsys.readouterr()
    assert "600 trials, 200 of them bona fide" in shown.out and "by attack+codec" in shown.out
    assert "no log-likelihood ratios" in shown.err and "--dev" in shown.err
    found = json.loads((out / "scores.json").read_text())
    assert found["task"] == "deepfake_detection"
    pooled = {name: values["system0"] for name, values in found["metrics"].items()}
    assert list(pooled) == ["eer", "eer_interpolated", "min_dcf", "act_dcf", "cllr", "min_cllr"]
    sides = made.sides()
    assert pooled["eer"]["value"] == equal_error_rate(*sides)[0]
    assert pooled["min_dcf"]["value"] == min_dcf(*sides, **COSTS)
    assert pooled["act_dcf"]["value"] == actual_dcf(*sides, **COSTS)
    assert pooled["cllr"]["value"] == llr_cost(*sides)
    for name in pooled:
        assert pooled[name]["low"] <= pooled[name]["value"] <= pooled[name]["high"]
    # An attack is one of spoofs: it meets all bona fide speech. A codec is one of both.
    attack, codec = (np.array(x) for x in (made.attacks, made.codecs))
    masks = {"attack": (attack == "A08") | made.bona_fide, "codec": codec == "alaw"}
    masks["attack+codec"] = masks["attack"] & masks["codec"]
    names = {"attack": "A08", "codec": "alaw", "attack+codec": "A08 alaw"}
    for column, mask in masks.items():
        group = found["breakdown"][column][names[column]]["eer"]["system0"]
        assert group["value"] == equal_error_rate(*made.sides(mask=mask))[0] and group["n"] == mask.sum()
    assert set(found["breakdown"]["attack"]) == {"A07", "A08", "A09", "A10"}
    page = (out / "report.html").read_text()
    assert "By attack+codec" in page and "<svg" in page and "no log-likelihood ratios" in page
    assert sorted(p.name for p in out.iterdir()) == ["report.html", "scores.json"]


@pytest.mark.parametrize("kind", ["2021", "2019", "5", "header", "commas", "files"])
def test_scores_and_protocols_of_all_challenges_say_the_same(kind: str, tmp_path: Path) -> None:
    made = Made(number=120)
    scores, rows = made.systems[:, 0].tolist(), list(zip(made.ids, made.attacks, made.labels, strict=True))
    layouts: dict[str, tuple[list[str], list[str]]] = {
        "2021": (
            [f"{i} {s!r}" for i, s in zip(made.ids, scores, strict=True)],
            [f"LA_1 {i} alaw x {a} {k} notrim eval" for i, a, k in rows],
        ),
        "2019": (
            [f"{i} {a} {k} {s!r}" for (i, a, k), s in zip(rows, scores, strict=True)],
            [f"LA_1 {i} - {a} {k}" for i, a, k in rows],
        ),
        "5": (
            ["filename\tcm-score", *(f"{i}\t{s!r}" for i, s in zip(made.ids, scores, strict=True))],
            [f"E_1 {i} F - - - AC1 {'bonafide' if a == '-' else a} {k} -" for i, a, k in rows],
        ),
        "header": (
            ["utterance\tattack\tlabel\tscore"]
            + [f"{i}\t{a}\t{k}\t{s!r}" for (i, a, k), s in zip(rows, scores, strict=True)],
            ["filename\tcm-label\tattack", *(f"{i}\t{k}\t{a}" for i, a, k in rows)],
        ),
        "commas": (
            ["file,score", *(f"{i}.wav,{s!r}" for i, s in zip(made.ids, scores, strict=True))],
            ["file,attack,label", *(f'"{i}.wav",{a},{"bona-fide" if k == "bonafide" else k}' for i, a, k in rows)],
        ),
        "files": (
            [f"audio/{i}.flac {s!r}" for i, s in zip(made.ids, scores, strict=True)],
            [f"{k} {a} {i}" for i, a, k in rows],
        ),
    }  # fmt: skip
    files = [made.write(tmp_path, name, lines) for name, lines in zip(("s.txt", "p.txt"), layouts[kind], strict=True)]
    found = score(*files, measures=["eer"], by="none" if kind == "files" else "attack")
    assert value(found, "eer", "s") == equal_error_rate(*made.sides())[0]
    assert ("attack" in found.breakdown) == (kind != "files")


def test_layouts_of_protocols_are_told_apart() -> None:
    assert len({len(names) for names in LAYOUTS}) == len(LAYOUTS)
    assert all({"id", "label"} <= set(names) and len(set(names)) == len(names) for names in LAYOUTS)


@pytest.mark.parametrize("kind", ["asvspoof5", "asvspoof2021", "asvspoof2019", "table"])
def test_written_scores_are_read_again_bit_for_bit(kind: str, tmp_path: Path) -> None:
    made = Made(number=90)
    found = score(made.scores(tmp_path), made.protocol(tmp_path), measures=["eer"], format=kind)
    name = next(name for name in found.files if name.startswith("scores"))
    path = made.write(tmp_path / "again", name, found.files[name].splitlines())
    table = read_scores(path)
    assert dict(zip(table.columns["id"], table.numbers("score"), strict=True)) == dict(
        zip(made.ids, made.systems[:, 0], strict=True)
    )
    if kind in {"asvspoof2019", "table"}:  # they say themselves what is true, several of them too
        assert value(score(path, measures=["eer"]), "eer", "scores") == equal_error_rate(*made.sides())[0]
        copy = made.write(tmp_path / "copy", name, found.files[name].splitlines())
        assert list(score(path, copy, measures=["eer"]).metrics["eer"]) == ["again", "copy", "fusion"]


def test_calibration_is_learned_on_dev_and_measured_on_test(tmp_path: Path) -> None:
    made, other = Made(0), Made(1)
    dev = [other.scores(tmp_path / "dev"), other.protocol(tmp_path / "dev")]
    found = score(made.scores(tmp_path), made.protocol(tmp_path), dev=dev)
    fitted = fit_calibration(*other.sides())
    ratios = [fitted.apply(side) for side in made.sides()]
    assert value(found, "cllr", "calibrated") == pytest.approx(llr_cost(*ratios), rel=1e-9)
    assert value(found, "act_dcf", "calibrated") == pytest.approx(actual_dcf(*ratios, **COSTS), rel=1e-9)
    assert value(found, "act_dcf", "calibrated") < 1.2 * value(found, "min_dcf", "calibrated")
    assert value(found, "cllr", "system0") > 3 and value(found, "cllr", "calibrated") < 1
    assert not any("no log-likelihood ratios" in note for note in found.notes)
    lines = found.files["scores.tsv"].splitlines()
    assert lines[0] == "filename\tcm-score" and len(lines) == 601
    isotonic = score(made.scores(tmp_path), made.protocol(tmp_path), dev=dev, calibrate="isotonic")
    assert value(isotonic, "cllr", "calibrated") == pytest.approx(value(found, "cllr", "calibrated"), abs=0.03)


def test_calibration_on_another_world_is_doubted(tmp_path: Path) -> None:
    made, other = Made(0), Made(1)
    other.systems = other.systems + 12.0
    dev = [other.scores(tmp_path / "dev"), other.protocol(tmp_path / "dev")]
    notes = score(made.scores(tmp_path), made.protocol(tmp_path), dev=dev).notes
    assert any("calibrated" in note and "dev is unlike these trials" in note for note in notes)


def test_several_systems_are_fused(tmp_path: Path) -> None:
    made, other = Made(0), Made(1)
    files = [made.scores(tmp_path, 0), made.scores(tmp_path, 1), made.protocol(tmp_path)]
    dev = [other.scores(tmp_path / "dev", 0), other.scores(tmp_path / "dev", 1), other.protocol(tmp_path / "dev")]
    alone = score(*files)
    z = (made.systems - made.systems.mean(axis=0)) / made.systems.std(axis=0)
    mean = z.mean(axis=1)
    assert value(alone, "eer", "fusion") == equal_error_rate(mean[made.bona_fide], mean[~made.bona_fide])[0]
    learned = score(*files, dev=dev)
    fusion = fit_fusion(*(other.systems[side] for side in (other.bona_fide, ~other.bona_fide)))
    sides = [fusion.apply(made.systems[side]) for side in (made.bona_fide, ~made.bona_fide)]
    assert value(learned, "cllr", "fusion") == pytest.approx(llr_cost(*sides), rel=1e-9)
    assert value(learned, "eer", "fusion") < min(value(learned, "eer", s) for s in ("system0", "system1"))
    assert learned.settings["weights"]["system1"] == pytest.approx(fusion.weights[1])
    assert list(learned.metrics["eer"]) == ["system0", "system1", "fusion"]
    averaged = score(*files, dev=dev, fuse="mean")
    maps = [fit_calibration(*other.sides(k)) for k in range(2)]
    both = np.mean([m.apply(column) for m, column in zip(maps, made.systems.T, strict=True)], axis=0)
    assert value(averaged, "eer", "fusion") == equal_error_rate(both[made.bona_fide], both[~made.bona_fide])[0]
    assert value(averaged, "cllr", "fusion") == pytest.approx(value(learned, "cllr", "fusion"), abs=0.05)
    with pytest.raises(SpeechsslError, match="needs --dev"):
        score(*files, fuse="logistic")
    with pytest.raises(SpeechsslError, match="same 2 systems"):
        score(*files, dev=dev[1:])


def test_finished_runs_are_fused_by_their_folders(tmp_path: Path) -> None:
    made, other, folders = Made(0), Made(1), [tmp_path / "a" / "seed0", tmp_path / "b" / "seed0"]
    for system, folder in enumerate(folders):
        for source, name in ((made, "scores.tsv"), (other, "dev_scores.tsv")):
            rows = zip(source.ids, source.attacks, source.labels, source.systems[:, system].tolist(), strict=True)
            source.write(folder, name, ["utterance\tattack\tlabel\tscore", *("\t".join(map(str, r)) for r in rows)])
    found = score(*folders)
    assert list(found.metrics["eer"]) == ["a/seed0", "b/seed0", "fusion"]
    assert found.settings["fusion"] == "logistic" and found.settings["dev"]["trials"] == 600
    with pytest.raises(SpeechsslError, match=r"holds no scores\.tsv"):
        score(tmp_path)


def test_tandem_costs_take_rates_or_scores_of_verification(tmp_path: Path) -> None:
    made, rng = Made(), np.random.default_rng(3)
    files = [made.scores(tmp_path), made.protocol(tmp_path)]
    rates = AsvErrorRates(0.02, 0.03, 0.5)
    given = score(*files, asv="0.02,0.03,0.5")
    assert value(given, "t_dcf_2019", "system0") == min_tandem_dcf(*made.sides(), rates, form="2019")
    assert value(given, "t_dcf_2021", "system0") == min_tandem_dcf(*made.sides(), rates)
    # ASVspoof 2019 names what each score is of; rates of an attack are those of its own spoofs.
    target, nontarget = rng.normal(3, 1, 100), rng.normal(0, 1, 300)
    spoof = {attack: rng.normal(1 + k, 1, 80) for k, attack in enumerate(sorted(set(made.attacks) - {"-"}))}
    lines = [f"bonafide target {s!r}" for s in target.tolist()] + [
        f"bonafide nontarget {s!r}" for s in nontarget.tolist()
    ]
    lines += [f"{attack} spoof {s!r}" for attack, some in spoof.items() for s in some.tolist()]
    asv = made.write(tmp_path, "asv.txt", lines)
    found = score(*files, asv=str(asv), by="attack")
    pooled = asv_error_rates(target, nontarget, np.concatenate(list(spoof.values())))
    assert value(found, "t_dcf_2021", "system0") == min_tandem_dcf(*made.sides(), pooled)
    sides = [target, nontarget, np.concatenate(list(spoof.values())), *made.sides()]
    assert value(found, "t_eer", "system0") == concurrent_tandem_eer(*sides)
    mask = (np.array(made.attacks) == "A09") | made.bona_fide
    own = min_tandem_dcf(*made.sides(mask=mask), asv_error_rates(target, nontarget, spoof["A09"]))
    assert found.breakdown["attack"]["A09"]["t_dcf_2021"]["system0"].value == own
    # An attack that never fools the ASV has no t-DCF, which keeps nothing else from being measured.
    lines = [f"A09 spoof {-9 - k}" if line.startswith("A09") else line for k, line in enumerate(lines)]
    harmless = score(*files, asv=str(made.write(tmp_path, "asv.txt", lines)), by="attack")
    less, whole = ({a: set(of) for a, of in one.breakdown["attack"].items()} for one in (harmless, found))
    assert less["A09"] == whole["A09"] - {"t_dcf_2019", "t_dcf_2021"} and less["A08"] == whole["A08"]
    assert any("1 values have no t-DCF, first 'A09'" in note for note in harmless.notes)
    with pytest.raises(SpeechsslError, match="MISS,FALSE_ALARM"):
        score(*files, asv="0.1,x,0.3")
    with pytest.raises(SpeechsslError, match="`t_eer` needs scores of a verification"):
        score(*files, measures=["t_eer"], asv="0.02,0.03,0.5")
    with pytest.raises(SpeechsslError, match="`t_dcf_2019` needs errors of a verification"):
        score(*files, measures=["t_dcf_2019"])


def test_trials_of_track_2_are_pairs_of_speaker_and_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    keys = ["target", "nontarget", "spoof"] * 60
    pairs = [(f"E_{k % 9:04d}", f"E_{k // 2:010d}") for k in range(180)]  # each file against two speakers
    shift = np.array([{"target": 2.0, "nontarget": 0.0, "spoof": 0.5}[key] for key in keys])
    cm, asv, sasv = (shift * w + rng.normal(0, 1, 180) for w in (0.5, 1.0, 1.5))
    made = Made()
    lines = ["spk\tfilename\tcm-score\tasv-score\tsasv-score"]
    lines += [
        "\t".join([*p, *map(repr, s)])
        for p, s in zip(pairs, zip(*(x.tolist() for x in (cm, asv, sasv)), strict=True), strict=True)
    ]
    protocol = [f"{speaker} {name} F A17 {key}" for (speaker, name), key in zip(pairs, keys, strict=True)]
    files = [made.write(tmp_path, "s.tsv", lines), made.write(tmp_path, "p.tsv", protocol[::-1])]
    found = score(*files, asv="own", format="asvspoof5_track2")
    sides = [np.array([k == key for k in keys]) for key in ("target", "nontarget", "spoof")]
    assert value(found, "a_dcf", "s") == min_agnostic_dcf(*(sasv[side] for side in sides))[0]
    assert value(found, "eer", "s") == equal_error_rate(cm[~sides[2]], cm[sides[2]])[0]
    rates = asv_error_rates(*(asv[side] for side in sides))
    assert value(found, "t_dcf_2019", "s") == min_tandem_dcf(cm[~sides[2]], cm[sides[2]], rates, form="2019")
    assert found.files["scores.tsv"].splitlines()[1:] == lines[:0:-1]
    # A table that names its own keys, and one whose countermeasure means the contrary.
    own = [f"{line}\t{key}" for line, key in zip(lines, ["key", *keys], strict=True)]
    assert score(made.write(tmp_path, "s.tsv", own), asv="own").metrics == found.metrics
    cells = [line.split() for line in lines[1:]]
    turned = ["\t".join([*row[:2], f"-{row[2]}".replace("--", ""), *row[3:]]) for row in cells]
    made.write(tmp_path, "s.tsv", [lines[0], *turned])
    assert score(*files, asv="own", negate="yes").metrics == found.metrics
    # The file of the package a_dcf, which names its own keys.
    own = [f"{s} {n} {x!r} {key}" for (s, n), x, key in zip(pairs, sasv.tolist(), keys, strict=True)]
    alone = score(made.write(tmp_path, "own.txt", own))
    assert list(alone.metrics) == ["a_dcf"] and value(alone, "a_dcf", "own") == value(found, "a_dcf", "s")


def _without(lines: list[str], row: int) -> list[str]:
    return [*lines[:row], *lines[row + 1 :]]


def _with_key(line: str, key: str) -> str:
    name, number = line.split()
    return f"{name} - {key} {number}"


Harm = Callable[[list[str], list[str]], tuple[list[str], list[str]]]
HARMS: dict[str, tuple[Harm, tuple[str, ...]]] = {
    "no score": (
        lambda s, p: (_without(s, 3), p),
        ("1 of 600 trials have no score, first LA_E_00003 (line 4 of", "unmatched=drop"),
    ),
    "no trial": (lambda s, p: (s, p[:-2]), ("2 of 600 scores are of no trial, first LA_E_00598 (line 599)", "drop")),
    "both": (lambda s, p: (s[1:], p[:-1]), ("1 of 599 trials", "1 of 599 scores")),
    "twice": (lambda s, p: ([*s, s[4]], p), ("line 601, names LA_E_00004 again, which line 5 has", "1 duplicates")),
    "trial twice": (lambda s, p: (s, [p[0], *p]), ("keys.txt, line 2, names LA_E_00000 again",)),
    "nan": (lambda s, p: ([*s[:7], "LA_E_00007 nan", *s[8:]], p), ("line 8, has the score 'nan', the first of 1",)),
    "infinite": (
        lambda s, p: (["LA_E_00000 1.0", "LA_E_00001 -inf", "LA_E_00002 inf", *s[3:]], p),
        ("line 2, has the score '-inf', the first of 2",),
    ),
    "no number": (lambda s, p: ([*s[:-1], "LA_E_00599 much"], p), ("line 600, has the score 'much'",)),
    "one class": (lambda s, p: (s, [x.replace("bonafide", "spoof") for x in p]), ("All 600 trials", "are spoofed")),
    "no key": (lambda s, p: (s, [*p[:-1], p[-1].replace("spoof", "maybe")]), ("line 600, has the label 'maybe'",)),
    "ragged": (lambda s, p: (s, [*p[:5], p[5] + " x", *p[6:]]), ("keys.txt, line 6, has 9 columns, the first of 1",)),
    "contradiction": (
        lambda s, p: ([_with_key(x, "spoof" if k < 2 else p[k].split()[5]) for k, x in enumerate(s)], p),
        ("line 1, calls LA_E_00000 'spoof', but line 1 of", "the first of 1 contradictions"),
    ),
    "empty": (lambda s, p: ([], p), ("system0.txt is empty",)),
    "swapped": (lambda s, p: (p, s), ("system0.txt", "no number")),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMS)
def test_what_is_wrong_is_one_sentence_with_counts_file_and_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harm, words = HARMS[name]
    made = Made()
    plain = [f"{i} {s!r}" for i, s in zip(made.ids, made.systems[:, 0].tolist(), strict=True)]
    scores, keys = harm(plain, made.protocol(tmp_path).read_text().splitlines())
    files = made.write(tmp_path, "system0.txt", scores), made.write(tmp_path, "keys.txt", keys)
    sentence = the_sentence(capsys, "score", "deepfake_detection", *files, "-o", tmp_path / "out")
    assert all(word in sentence for word in words), sentence
    assert not (tmp_path / "out" / "scores.json").exists()


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    made = Made()
    scores = made.scores(tmp_path).read_text().splitlines()
    missing = {"LA_E_00000", "LA_E_00002", "LA_E_00003"}
    left = [line for line in scores if line.split()[0] not in missing]
    files = made.write(tmp_path, "system0.txt", left), made.protocol(tmp_path)
    found = score(*files, unmatched="drop", where="codec=none", measures=["eer"])
    mask = np.array([c == "none" and i not in missing for i, c in zip(made.ids, made.codecs, strict=True)])
    assert found.metrics["eer"]["system0"].n == mask.sum()
    assert value(found, "eer", "system0") == equal_error_rate(*made.sides(mask=mask))[0]
    assert any(note.startswith("300 of 600 trials are those where codec=none") for note in found.notes)
    assert any("2 of 300 trials have no score" in note and note.endswith("left out.") for note in found.notes)


def test_scores_the_wrong_way_round_are_noticed_and_can_be_turned(tmp_path: Path) -> None:
    made = Made()
    made.systems = -made.systems
    files = made.scores(tmp_path), made.protocol(tmp_path)
    assert any("higher scores must mean bona fide" in note for note in score(*files).notes)
    turned = score(*files, negate="yes")
    assert value(turned, "eer", "system0") == equal_error_rate(*(-side for side in made.sides()))[0]
    assert not any("must mean" in note for note in turned.notes)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("by=attak", "Did you mean 'attack'?"),
        ("where=codec=allaw", "Did you mean 'alaw'?"),
        ("calibrate=best", "affine, isotonic, none"),
        ("p_spoof=1.5", "above 0 and below 1"),
        ("replicates=-3", "whole number"),
        ("units=room", "speaker"),
        ("negate=system7", "system0"),
        ("bye=attack", "Did you mean 'by'?"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    setting: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Made(number=60)
    argv = ("score", "deepfake_detection", made.scores(tmp_path), made.protocol(tmp_path), "-s", setting)
    assert words in the_sentence(capsys, *argv)


def test_a_run_reports_costs_with_the_calibration_of_dev(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(0)
    fitted = fit_calibration(*Made(1).sides())
    attacks = [attack.replace("-", "bonafide") for attack in made.attacks]
    scored = [
        (Utterance(name, "x.wav", labels={"attack": attack, "seen": attack == "A07", "original": name}), s)
        for name, attack, s in zip(made.ids, attacks, made.systems[:, 0].tolist(), strict=True)
    ]
    real, spoofed = measure.headline(scored, unseen=True)
    mask = np.array(made.attacks) != "A07"
    ratios = [fitted.apply(side) for side in made.sides(mask=mask)]
    found = measure.calibrated_costs(real, spoofed, fitted)
    assert found["act_dcf"].value == actual_dcf(*ratios, **COSTS) and found["cllr"].value == llr_cost(*ratios)
    for name in ("act_dcf", "cllr"):
        low, high = found[name].low, found[name].high
        assert low is not None and high is not None and low < found[name].value < high
    by = measure.act_dcf_by("attack", real, spoofed, fitted)
    own = made.sides(mask=(np.array(made.attacks) == "A09") | made.bona_fide)
    assert by["A09"].value == actual_dcf(*(fitted.apply(side) for side in own), **COSTS)
    assert set(by) == {"A08", "A09", "A10"}
    assert not caplog.records
    measure.calibrated_costs(real, spoofed, Calibration(fitted.scale, fitted.offset + 3))
    assert "dev is unlike test" in caplog.text
    assert measure.calibrated_costs(real, spoofed, Calibration(math.nan, math.nan)) == {}
    # Each original has one trial here, so that intervals which take trials as independent are no others.
    some = {name: found[name] for name in ("act_dcf", "cllr")}
    some |= {"eer": measure.eer(real, spoofed), **measure.errors_at(20.0, real, spoofed)}
    monkeypatch.setattr(measure, "LARGE", 10)
    many = {**measure.calibrated_costs(real, spoofed, fitted), "eer": measure.eer(real, spoofed)}
    many |= measure.errors_at(20.0, real, spoofed)
    for name, one in some.items():
        low, high = one.low, one.high
        assert low is not None and high is not None and many[name].value == one.value
        assert (many[name].low, many[name].high) == pytest.approx((low, high), abs=0.25 * (high - low))


def test_a_drawn_curve_keeps_its_shape() -> None:
    made = Made(number=6000)
    sides = made.sides()
    miss, alarm = det_points(*sides)
    whole = detection_error_tradeoff(*sides)
    assert miss.size < 1500 and (np.diff(miss) >= 0).all() and (np.diff(alarm) <= 0).all()
    at = np.interp(alarm[::-1], whole.false_alarm[::-1], whole.miss[::-1])[::-1]
    inside = (alarm > 0.01) & (alarm < 0.9)
    np.testing.assert_allclose(miss[inside], at[inside], atol=0.02)
    assert math.isclose(miss[0], 0.5 / sides[0].size)


def test_a_protocol_without_names_is_read_by_what_it_holds(tmp_path: Path) -> None:
    made = Made(number=30)
    lines = [f"x{k} {label} {name} y" for k, (name, label) in enumerate(zip(made.ids, made.labels, strict=True))]
    table = read_protocol(made.write(tmp_path, "p.txt", lines), made.ids)
    assert list(table.columns) == ["column_1", "column_4", "id", "label"] and list(table.columns["id"]) == made.ids
    trials = load_trials([made.scores(tmp_path)], tmp_path / "p.txt", {})
    np.testing.assert_array_equal(trials.scores["cm"][:, 0], made.systems[:, 0])
