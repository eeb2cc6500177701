"""What `--set` may change about scoring, and what it says.

A value that does not fit is a ConfigError that names the setting.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from downstreams.deepfake_detection.score_measures import Costs
from downstreams.deepfake_detection.score_trials import Mask, Trials
from downstreams.deepfake_detection.score_writing import FORMATS
from speechssl.errors import ConfigError

SETTINGS = {
    "by": "columns of the protocol whose values are measured apart, such as attack,codec,attack+codec; all, or none",
    "where": "the trials that are measured, such as subset=eval",
    "unmatched": "of trials without score and scores without trial: error, or drop",
    "negate": "whether lower scores mean bona fide: no, yes, or names of systems",
    "calibrate": "how scores become log-likelihood ratios on dev: affine, isotonic or none",
    "fuse": "how several systems become one: mean, logistic (needs dev) or none",
    "prior": "of bona fide speech, where calibration and fusion are to be best",
    "p_spoof": "prior of spoofs in the detection costs",
    "cost_miss": "of bona fide speech that is refused",
    "cost_false_alarm": "of a spoof that passes",
    "asv": "verification for t-DCF: asvspoof5, own, MISS,FALSE_ALARM,SPOOF_FALSE_ALARM, or a file of scores",
    "asv_protocol": "keys of that file, where it has none",
    "units": "column whose values are resampled together, such as speaker",
    "replicates": "of the bootstrap; 0 = no intervals",
    "format": f"of the scores that are written: {', '.join(FORMATS)} or none",
}
BY = ("attack", "codec", "compression", "vocoder", "condition")
"""What is measured apart where nothing else is asked for, as far as the protocol has it."""
MOST = 200
"""Values of a column that `by=all` measures apart at most."""


def read_costs(settings: Mapping[str, str]) -> Costs:
    """The costs, and how intervals are drawn."""
    default = Costs()
    return Costs(
        number(settings, "p_spoof", default.p_spoof, below=1.0),
        number(settings, "cost_miss", default.cost_miss),
        number(settings, "cost_false_alarm", default.cost_false_alarm),
        count(settings, "replicates", default.replicates),
    )


def number(settings: Mapping[str, str], name: str, default: float, *, below: float = math.inf) -> float:
    """A number above 0."""
    try:
        value = float(settings.get(name, default))
    except ValueError:
        value = math.nan
    if not 0.0 < value < below:
        limit = "" if math.isinf(below) else f" and below {below:g}"
        raise ConfigError(f"`{name}` must be a number above 0{limit}, but is '{settings[name]}'.")
    return value


def count(settings: Mapping[str, str], name: str, default: int) -> int:
    """A whole number."""
    text = settings.get(name, str(default))
    if not text.isdigit() or int(text) > 100_000:
        raise ConfigError(f"`{name}` must be a whole number up to 100000, but is '{text}'.")
    return int(text)


def choice(settings: Mapping[str, str], name: str, known: Sequence[str], default: str) -> str:
    """One of several words."""
    value = settings.get(name, default)
    if value not in known:
        raise ConfigError(f"`{name}` must be one of {', '.join(known)}, but is '{value}'.")
    return value


def columns_apart(trials: Trials, settings: Mapping[str, str]) -> list[str]:
    """The columns, and columns joined by '+', whose values are measured apart."""
    text = settings.get("by", "")
    if text == "none":
        return []
    if text == "all":
        return [name for name in trials.facts if 2 <= len(trials.column(name).names) <= MOST]
    if text:
        return text.split(",")
    return [name for name in BY if name in trials.facts and 2 <= len(trials.column(name).names) <= MOST]


def units_of(trials: Trials, settings: Mapping[str, str], sides: Sequence[Mask]) -> list[NDArray[np.intp]] | None:
    """What is resampled together, of the trials of each side; None = each trial by itself."""
    name = settings.get("units")
    if name is None:
        return None
    if name not in trials.facts:
        raise ConfigError(
            f"`units` must be a column of {trials.table.path} ({', '.join(trials.facts)}), but is '{name}'."
        )
    return [trials.column(name).codes[side] for side in sides]
