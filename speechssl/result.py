"""What a finished run leaves behind: `result.json` beside its artifacts, read again by the report.

A result carries metric, n, seed, config, corpus and upstream fingerprints, seconds and hardware, so that a number can
always be traced to what produced it.
"""

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechssl.errors import ManifestError
from speechssl.files import replacing

FORMAT = 1


@dataclass(frozen=True)
class MetricValue:
    """One measured number with its sample count and 95 % confidence interval."""

    value: float
    n: int
    """What was counted: utterances, words, trials or pairs, as `unit` says."""
    unit: str = "utterances"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What a task measured on one split."""

    metrics: Mapping[str, MetricValue]
    """Name -> value; rates are fractions (0.05 = 5 %)."""
    breakdown: Mapping[str, Mapping[str, MetricValue]] = field(default_factory=dict)
    """Group -> name -> value, such as 'wer by language' -> 'ru' or 'eer by attack' -> 'espeak'."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Artifacts written for this split: kind -> path relative to the run folder (scores: 'scores.tsv', ...)."""
    examples: Sequence[Mapping[str, str]] = ()
    """Things to look at or hear: flat mappings such as {'title', 'source', 'target', 'converted'}, paths relative."""


@dataclass(frozen=True)
class UpstreamInfo:
    """Which upstream a result is about."""

    name: str
    label: str
    """What tables call it, such as 'hubert_tiny (pre-trained)'."""
    fingerprint: str
    weights: str
    parameters: int
    frame_rate: float
    num_layers: int


@dataclass(frozen=True)
class RunResult:
    """One task on one upstream with one seed."""

    task: str
    upstream: UpstreamInfo
    corpus: Mapping[str, Any]
    """name, source ('debian' or 'synthetic'), fingerprint."""
    seed: int
    config: Mapping[str, Any]
    metric: str
    """The primary metric's name; the best checkpoint was chosen by it on dev."""
    higher_is_better: bool
    dev: Evaluation
    test: Evaluation
    layer_weights: Sequence[float]
    """Softmax weights of the layers (sums to 1); a single 1.0 where one layer was used, none where `features.interface`
    joins them without such weights."""
    curves: Mapping[str, Sequence[tuple[int, float]]]
    """Name ('train loss', 'dev <metric>') -> (step, value)."""
    trained_parameters: int
    seconds: Mapping[str, float]
    """Stage ('features', 'train', 'evaluate') -> wall seconds."""
    features: Mapping[str, float]
    """'audio_seconds', and how many utterances were 'computed' by the upstream or came 'from_cache'."""
    best_step: int
    date: str
    """ISO 8601, UTC."""
    hardware: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT
    head: str = ""
    """Which of the task's heads, where they were compared (`speechssl run --heads`); '' = the one of the config."""
    fold: int = 0
    """Which fold, where there are several (`speechssl run --folds`); their mean is the score."""
    sweep: Mapping[str, float | None] = field(default_factory=dict)
    """Where dev chose between settings (`speechssl run --sweep`): 'setting=value' -> its score on dev, a mean over
    seeds; null where it diverged."""

    trained: Mapping[str, int] = field(default_factory=dict)
    """Trained numbers of each part: 'head', 'featurizer', 'upstream'."""
    about: str = ""
    """What it predicts, where the task may predict anything (`probe`)."""

    @property
    def column(self) -> str:
        """What tables put side by side: the task, what it is about, and its head where heads are compared."""
        name = f"{self.task} of {self.about}" if self.about else self.task
        return f"{name}, {self.head} head" if self.head else name

    def save(self, folder: Path) -> Path:
        """Writes `result.json` into the run folder, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "result.json"
        with replacing(path) as partial:
            partial.write_text(json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False), encoding="utf-8")
        return path


def load_result(path: Path) -> RunResult:
    """Reads `result.json` (or a folder that holds one).

    Raises:
        ManifestError: missing, not JSON, or of another format.
    """
    path = path / "result.json" if path.is_dir() else path
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise ManifestError(f"The result {path} has format {raw['format']}, not {FORMAT}: run the task again.")
        raw["upstream"] = UpstreamInfo(**raw["upstream"])
        raw["dev"], raw["test"] = _evaluation(raw["dev"]), _evaluation(raw["test"])
        return RunResult(**raw)
    except FileNotFoundError as error:
        raise ManifestError(f"There is no result at {path}: has the run finished?") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ManifestError(f"The result {path} can't be read ({error}): run the task again.") from error


def _evaluation(raw: Mapping[str, Any]) -> Evaluation:
    metrics = {k: MetricValue(**v) for k, v in raw["metrics"].items()}
    breakdown = {g: {k: MetricValue(**v) for k, v in m.items()} for g, m in raw["breakdown"].items()}
    return Evaluation(metrics, breakdown, raw["files"], raw["examples"])


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and accelerator of this machine."""
    import torch

    info: dict[str, Any] = {"cores": os.cpu_count(), "machine": platform.machine(), "system": platform.system()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        info["processor"] = names[0] if names else platform.processor()
    if hasattr(os, "sysconf"):
        info["memory_gb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    if torch.cuda.is_available():
        info["accelerator"] = torch.cuda.get_device_name()
    return info


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    from importlib.metadata import version

    names = ("speechssl", "torch", "torchaudio", "numpy", "librosa", "lhotse")
    return {"python": platform.python_version(), **{n: version(n) for n in names}}
