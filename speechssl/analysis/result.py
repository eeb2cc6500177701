"""What an analysis found: numbers by layer, for several models, kept as `analysis.json` and drawn by the page.

A measure is computed by a pure function elsewhere, which knows none of this; here its numbers get a name, a unit, a
direction and the paper that they are by.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from speechssl.errors import ManifestError
from speechssl.files import replacing

FORMAT = 1
FILE = "analysis.json"
Better = Literal["up", "down"] | None


@dataclass(frozen=True)
class LayerValue:
    """One number of one layer."""

    layer: int
    """0 = what enters the first block."""
    value: float
    """In the measure's unit."""
    low: float | None = None
    """Where the 95 % interval begins; None = none was made."""
    high: float | None = None
    n: int = 0
    """What was counted: frames, segments, utterances or pairs."""
    note: str = ""
    """What is doubtful about it, one sentence."""


@dataclass(frozen=True)
class Measure:
    """One quantity of a model, layer by layer."""

    name: str
    """Such as 'rankme' or 'probe/phone': what stands before '/' is the section of the page."""
    title: str
    unit: str
    """'' = a plain number; 'share' = a fraction, written in %."""
    better: Better
    source: str
    """The paper, and what the labels are by."""
    values: Sequence[LayerValue]

    def best(self) -> LayerValue | None:
        """The best layer; None where neither direction is better, or there is no value."""
        finite = [v for v in self.values if math.isfinite(v.value)]
        if self.better is None or not finite:
            return None
        return (max if self.better == "up" else min)(finite, key=lambda v: v.value)


@dataclass(frozen=True)
class ModelAnalysis:
    """Everything measured of one model."""

    model: str
    """What tables call it."""
    measures: Sequence[Measure]
    num_layers: int = 0
    """Hidden states, with the one that enters the first block."""
    frame_rate: float = 0.0
    """Hz."""
    parameters: int = 0
    fingerprint: str = ""
    weights: str = ""
    """Where they are from; 'random (seed 0)'."""
    step: int | None = None
    """The step of the run that this checkpoint is of; None = it is no checkpoint of a series."""
    series: str = ""
    """Which run it is a checkpoint of."""
    warnings: Sequence[str] = ()

    def measure(self, name: str) -> Measure | None:
        """The measure of this name, or None."""
        return next((m for m in self.measures if m.name == name), None)


@dataclass(frozen=True)
class Analysis:
    """Several models on one corpus."""

    models: Sequence[ModelAnalysis]
    corpus: Mapping[str, Any]
    """name, split, utterances, seconds, fingerprint."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """'phone', 'word', ... -> what they are by, and how many there are."""
    warnings: Sequence[str] = ()
    """What is doubtful or was left out, one sentence each."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Stage -> wall seconds."""
    date: str = ""
    """ISO 8601, UTC."""
    hardware: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def save(self, folder: Path) -> Path:
        """Writes `analysis.json` into the folder, whole or not at all; what is not finite is written as null."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        text = json.dumps(_finite(dataclasses.asdict(self)), indent=1, ensure_ascii=False, allow_nan=False)
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
        return path


def load_analysis(path: Path) -> Analysis:
    """Reads `analysis.json` (or a folder that holds one).

    Raises:
        ManifestError: missing, not JSON, or of another format.
    """
    path = path / FILE if path.is_dir() else path
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise ManifestError(f"The analysis {path} has format {raw['format']}, not {FORMAT}: make it again.")
        raw["models"] = [_model(m) for m in raw["models"]]
        return Analysis(**raw)
    except FileNotFoundError as error:
        raise ManifestError(f"There is no analysis at {path}: has `speechssl analyse` finished?") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ManifestError(f"The analysis {path} can't be read ({error}): make it again.") from error


def _model(raw: dict[str, Any]) -> ModelAnalysis:
    measures = [Measure(**{**m, "values": [_value(v) for v in m["values"]]}) for m in raw["measures"]]
    return ModelAnalysis(**{**raw, "measures": measures})


def _value(raw: dict[str, Any]) -> LayerValue:
    return LayerValue(**{**raw, "value": math.nan if raw["value"] is None else raw["value"]})


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value
