"""Finished runs that never ran: results, scores and audio of three upstreams on four tasks, for the report's tests."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from speechssl.result import Evaluation, MetricValue, RunResult, UpstreamInfo

RATE = 16_000
SEEDS = (0, 1, 2)
UPSTREAMS = {
    "fbank": ("fbank", "none", 0, 1, 0.0),
    "hubert_tiny (random)": ("hubert_tiny", "random (seed 0)", 4_900_000, 7, 0.4),
    "hubert_tiny (pre-trained)": ("hubert_tiny", "exp/pretrain2/upstream", 4_900_000, 7, 1.0),
}
PRIMARY = {  # task -> metric, higher is better, value at quality 0, gain of quality 1
    "asr": ("wer", False, 0.62, -0.2),
    "speaker_verification": ("eer", False, 0.18, -0.06),
    "deepfake_detection": ("eer", False, 0.3, -0.12),
    "voice_conversion": ("speaker_similarity", True, 0.52, 0.2),
}


def tone(path: Path, *, hertz: float, seconds: float = 0.7) -> None:
    time = np.arange(int(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 20)) * 0.2 * np.minimum(1, 8 * time)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave.astype(np.float32), RATE)


def write_scores(folder: Path, task: str, quality: float, rng: np.random.Generator) -> None:
    target, other = rng.normal(1.5 + quality, 1, 150), rng.normal(0, 1, 300)
    lines = []
    if task == "deepfake_detection":
        lines.append("utterance\tattack\tlabel\tscore")
        lines += [f"r{i}\t-\tbonafide\t{s:.6f}" for i, s in enumerate(target)]
        lines += [f"f{i}\t{('espeak', 'griffin_lim', 'world')[i % 3]}\tspoof\t{s:.6f}" for i, s in enumerate(other)]
    else:
        lines.append("label\tscore\tenrol\ttest\tkind")
        lines += [f"1\t{s:.6f}\ta{i}\tb{i}\twithin" for i, s in enumerate(target)]
        lines += [f"0\t{s:.6f}\ta{i}\tc{i}\twithin" for i, s in enumerate(other)]
    (folder / "scores.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def vc_examples(folder: Path, index: int) -> list[dict[str, str]]:
    found = []
    for number in range(2):
        tone(folder / f"s{number}.wav", hertz=110 + 20 * number)
        tone(folder / f"t{number}.wav", hertz=210 + 20 * number)
        tone(folder / f"c{number}.wav", hertz=205 + 20 * number + index)
        tone(folder / f"y{number}.wav", hertz=210 + 20 * number)
        names = {"source": f"s{number}.wav", "target": f"t{number}.wav", "converted": f"c{number}.wav"}
        names["copy_synthesis"] = f"y{number}.wav"
        said = {"text": "съешь ещё этих мягких булок", "converted_synthetic": f"0.9{index}"}
        found.append({"title": f"Pair {number} <a&b>", **names, **said})
    return found


def measure(task: str, quality: float, rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    metric, _, base, gain = PRIMARY[task]
    value = base + gain * quality + rng.normal(0, 0.01)
    metrics = {metric: MetricValue(value, 1204, "words" if task == "asr" else "trials", value - 0.02, value + 0.02)}
    breakdown: dict[str, Any] = {}
    if task == "asr":
        metrics["cer"] = MetricValue(value / 3, 6410, "characters")
        for name in ("wer", "cer"):
            parts = {
                lang: MetricValue(value * (0.9 + 0.1 * i), 400, "words") for i, lang in enumerate(("de", "ru", "uk"))
            }
            breakdown[f"{name} by language"] = parts
    if task == "deepfake_detection":
        breakdown["eer by attack"] = {a: MetricValue(value, 100, "trials") for a in ("espeak", "griffin_lim", "world")}
        breakdown["eer of trivial cues"] = {c: MetricValue(0.49, 450, "trials") for c in ("duration", "level")}
    if task == "voice_conversion":
        metrics["wer"] = MetricValue(0.3 - value / 10, 96, "words", 0.1, 0.4)
        metrics["mcd"] = MetricValue(7.5, 8, "pairs", 7.0, 8.0)  # of anchors it is not measured
        anchors = {"unconverted": (0.11, 0.05), "copy synthesis": (0.93, 0.12)}
        for place, name in enumerate((metric, "wer")):
            given = {
                c: MetricValue(v[place], 24, "pairs", v[place] - 0.01, v[place] + 0.01) for c, v in anchors.items()
            }
            conditions = {"unconverted": given["unconverted"], "converted": metrics[name]}
            breakdown[f"{name} by condition"] = {**conditions, "copy synthesis": given["copy synthesis"]}
    if task == "speaker_verification":
        metrics["min_dcf"] = MetricValue(0.81234, 1204, "trials")
    return metrics, breakdown


def make_result(task: str, label: str, seed: int, folder: Path) -> RunResult:
    name, weights, parameters, layers, quality = UPSTREAMS[label]
    rng = np.random.default_rng([seed, len(label), len(task)])
    metric, higher, _, _ = PRIMARY[task]
    metrics, breakdown = measure(task, quality, rng)
    folder.mkdir(parents=True, exist_ok=True)
    files, examples = {}, []
    if task in ("deepfake_detection", "speaker_verification"):
        write_scores(folder, task, quality, rng)
        files["scores"] = "scores.tsv"
    if task == "voice_conversion":
        examples = vc_examples(folder, list(UPSTREAMS).index(label))
    decay = [(s, 3 * math.exp(-s / 300) + 0.3 * rng.random()) for s in range(0, 1000, 5)]
    dev = [
        (s, metrics[metric].value * (1 + math.exp(-s / 200) * (-0.5 if higher else 0.5))) for s in range(0, 1001, 100)
    ]
    return RunResult(
        task=task,
        upstream=UpstreamInfo(name, label, f"f{len(label)}", weights, parameters, 50.0, layers - 1),
        corpus={"name": "demo", "source": "debian", "fingerprint": "0123abcd", "hours": 9.7},
        seed=seed,
        config={"train": {"steps": 1000, "learning_rate": 1e-3}, "width": 256},
        metric=metric,
        higher_is_better=higher,
        dev=Evaluation({metric: MetricValue(metrics[metric].value * 0.98, 800)}),
        test=Evaluation(metrics, breakdown, files, examples),
        layer_weights=list(rng.dirichlet(np.ones(layers) * 5)) if layers > 1 else [1.0],
        curves={"train loss": decay, f"dev {metric}": dev},
        trained_parameters=1_234_567,
        seconds={"features": 12.5 if seed == 0 else 0.1, "train": 95.0, "evaluate": 7.0},
        features={"audio_seconds": 5000.0, "computed": 900 if seed == 0 else 0, "from_cache": 0 if seed == 0 else 900},
        best_step=600 + seed * 100,
        date=f"2026-11-2{seed}T10:00:00+00:00",
        hardware={"processor": "Some CPU", "cores": 2, "memory_gb": 8.4, "machine": "x86_64", "system": "Linux"},
        versions={"python": "3.11.2", "speechssl": "0.1", "torch": "2.9.1"},
    )


def write_pretraining(folder: Path, scale: float) -> None:
    folder.mkdir(parents=True)
    lines = []
    for step in range(20, 4001, 20):
        share = 1 - math.exp(-step / 900)
        entry = {"step": step, "loss": scale * (5 - 2 * share), "accuracy": 0.4 * share, "learning_rate": 1e-4}
        lines.append(json.dumps({**entry, "seconds": 3.6, "audio_per_second": 157.0, "note": "x"}))
    (folder / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 40', encoding="utf-8")
    (folder / "config.json").write_text("{}", encoding="utf-8")


def make_runs(root: Path) -> Path:
    for task in PRIMARY:
        for label in UPSTREAMS:
            for seed in SEEDS:
                folder = root / task / label.replace(" ", "_") / f"seed{seed}"
                make_result(task, label, seed, folder).save(folder)
    write_pretraining(root / "pretrain1", 1.0)
    write_pretraining(root / "pretrain2", 0.9)
    return root


class Outline(HTMLParser):
    """Collects attributes that can load something, and the cells of every table by its title."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.images_without_text = 0
        self.scripts = 0
        self._title, self._text, self._cell = "", "", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.loads += [found[k] or "" for k in ("src", "href", "xlink:href", "srcset", "data", "poster") if k in found]
        self.images_without_text += found.get("role") == "img" and not found.get("aria-label")
        self.scripts += tag == "script"
        if tag == "h3":
            self._text = ""
        elif tag == "table":
            self.tables[self._title] = []
        elif tag == "tr":
            self.tables[self._title].append([])
        elif tag in ("td", "th"):
            self._text, self._cell = "", True
        elif tag == "small" and self._cell:
            self._text += "|"

    def handle_endtag(self, tag: str) -> None:
        if tag == "h3":
            self._title = self._text.strip()
        elif tag in ("td", "th"):
            self.tables[self._title][-1].append(self._text.strip())
            self._cell = False

    def handle_data(self, data: str) -> None:
        self._text += data
