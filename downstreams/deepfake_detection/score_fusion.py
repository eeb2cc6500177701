"""Calibration and late fusion of the scores of several countermeasures, learned on dev.

N trials, K systems.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from downstreams.deepfake_detection.score_trials import Trials
from speechssl.errors import ConfigError
from speechssl.metric.calibration import fit_calibration, fit_fusion, fit_isotonic

Floats = NDArray[np.float64]
CALIBRATIONS = ("affine", "isotonic", "none")
FUSIONS = ("mean", "logistic", "none")


class Map(Protocol):
    """Scores -> log-likelihood ratios."""

    def apply(self, scores: ArrayLike) -> Floats:
        """Of any shape."""


@dataclass(frozen=True, eq=False)
class Conditions:
    """The scores that are measured."""

    scores: Mapping[str, Floats]
    """Name -> (N,) scores of the countermeasure; what was made of them by dev and fusion comes last."""
    learned: Mapping[str, Any] = field(default_factory=dict)
    """What dev chose, for the record."""
    calibrated: frozenset[str] = frozenset()
    """The names of those that are log-likelihood ratios, as far as dev tells."""
    made: bool = False
    """Whether the last are scores that no file had."""


def combine(trials: Trials, dev: Trials | None, *, calibrate: str, fuse: str, prior: float) -> Conditions:
    """The scores as they come, calibrated, and fused.

    With dev, one system is measured as it comes and calibrated, several calibrated and fused. Without, several are
    measured as they come, and their mean after each has mean 0 and standard deviation 1 over the trials themselves.

    Args:
        trials: with scores 'cm'.
        dev: of the same systems, in the same order; None = nothing is learned.
        calibrate: of CALIBRATIONS.
        fuse: of FUSIONS.
        prior: of bona fide speech, where the maps are to be best.

    Raises:
        ConfigError: a choice that needs dev, or dev of other systems.
    """
    raw = trials.scores["cm"]  # (N, K)
    if dev is not None:
        if "cm" not in dev.scores or dev.scores["cm"].shape[1] != raw.shape[1]:
            raise ConfigError(
                f"--dev must give the scores of the same {raw.shape[1]} systems in the same order, and then a protocol."
            )
        return _learn(trials, dev, calibrate, fuse, prior)
    if fuse == "logistic":
        raise ConfigError("`fuse=logistic` needs --dev: its weights may not be learned on what is measured.")
    scores = dict(zip(trials.systems, raw.T, strict=True))
    if len(scores) == 1 or fuse == "none":
        return Conditions(scores)
    return Conditions(scores | {"fusion": _standardise(raw, raw).mean(axis=1)}, {"fusion": "mean"}, made=True)


def _learn(trials: Trials, dev: Trials, calibrate: str, fuse: str, prior: float) -> Conditions:
    raw, systems = trials.scores["cm"], trials.systems
    bona_fide, spoof = dev.sides("cm")
    learned: dict[str, Any] = {"calibration": calibrate, "prior": prior}
    maps = [_fit(calibrate, a, b, prior) for a, b in zip(bona_fide.T, spoof.T, strict=True)]
    if calibrate == "affine":
        learned["maps"] = {name: vars(fitted) for name, fitted in zip(systems, maps, strict=True)}
    calibrated = dict(zip(systems, _apply(maps, raw).T, strict=True))
    known: frozenset[str] = frozenset() if calibrate == "none" else frozenset(systems)
    if len(maps) == 1 and known:
        scores = {systems[0]: raw[:, 0], "calibrated": calibrated[systems[0]]}
        return Conditions(scores, learned, frozenset({"calibrated"}), made=True)
    if len(maps) == 1 or fuse == "none":
        return Conditions(calibrated, learned, known, made=bool(known))
    learned["fusion"] = fuse
    every, last = [raw, bona_fide, spoof], calibrate  # (n, K) each
    if fuse == "logistic":
        fusion = fit_fusion(bona_fide, spoof, prior=prior)
        learned["weights"] = dict(zip(systems, fusion.weights, strict=True)) | {"offset": fusion.offset}
        fused = [fusion.apply(part) for part in every]
        last = "isotonic" if calibrate == "isotonic" else "none"  # it is calibrated already
    else:
        like = dev.scores["cm"]
        fused = [(_apply(maps, part) if known else _standardise(part, like)).mean(axis=1) for part in every]
    if known or fuse == "logistic":
        known |= {"fusion"}
    final = _fit(last, fused[1], fused[2], prior).apply(fused[0])
    return Conditions(calibrated | {"fusion": final}, learned, known, made=True)


def _apply(maps: Sequence[Map], scores: Floats) -> Floats:
    """(N, K) scores, each system's through its map."""
    return np.stack([fitted.apply(column) for fitted, column in zip(maps, scores.T, strict=True)], axis=1)


class _Nothing:
    """Scores as they come."""

    def apply(self, scores: ArrayLike) -> Floats:
        return np.asarray(scores, dtype=np.float64)


def _fit(kind: str, bona_fide: Floats, spoof: Floats, prior: float) -> Map:
    if kind == "affine":
        return fit_calibration(bona_fide, spoof, prior=prior)
    return fit_isotonic(bona_fide, spoof) if kind == "isotonic" else _Nothing()


def _standardise(scores: Floats, like: Floats) -> Floats:
    """(N, K) scores as if those of `like`, (M, K), had mean 0 and standard deviation 1."""
    found: Floats = (scores - like.mean(axis=0)) / np.maximum(like.std(axis=0), 1e-300)
    return found
