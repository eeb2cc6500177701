"""`speechssl score deepfake_detection SCORES... PROTOCOL`: what scores of anybody's countermeasures are worth.

Files of one or several systems are joined to a protocol, calibrated and fused on dev where it is given, and measured
over all trials and in groups. Higher scores mean bona fide. Folders of finished runs stand for their score files, which
say themselves what is true.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from downstreams.deepfake_detection.score_asv import Asv, load_asv, usable_rates
from downstreams.deepfake_detection.score_fusion import CALIBRATIONS, FUSIONS, Conditions, combine
from downstreams.deepfake_detection.score_measures import (
    GROUPED,
    MEASURES,
    TANDEM,
    Costs,
    Found,
    measure_sides,
    measure_tandem,
    measure_verification,
)
from downstreams.deepfake_detection.score_report import det_points, render_report
from downstreams.deepfake_detection.score_settings import (
    SETTINGS,
    choice,
    columns_apart,
    number,
    read_costs,
    units_of,
)
from downstreams.deepfake_detection.score_table import has_scores_and_keys
from downstreams.deepfake_detection.score_trials import Floats, Mask, Trials, load_trials
from downstreams.deepfake_detection.score_writing import FORMATS, format_scores
from speechssl.errors import ConfigError, ManifestError
from speechssl.result import MetricValue
from speechssl.scoring import ScoreOptions, Scores

__all__ = ["FILES", "MEASURES", "SETTINGS", "USES_DEV", "score"]

FILES = "SCORES... PROTOCOL"
USES_DEV = True
RUN_SCORES, RUN_DEV_SCORES = "scores.tsv", "dev_scores.tsv"
SWAPPED = 0.5  # above this equal error rate, scores the other way round would do better


def score(files: Sequence[Path], options: ScoreOptions) -> Scores:
    """Scores the files of one or several systems.

    Raises:
        SpeechsslError: anything wrong with a file or a setting; a sentence with counts, file and first line.
    """
    settings = options.settings
    trials, dev = _load(files, options)
    costs = read_costs(settings)
    asv = load_asv(settings, trials)
    conditions = _conditions(trials, dev, settings)
    wanted = _wanted(options.measures, trials, asv)
    units = units_of(trials, settings, (trials.bona_fide, ~trials.bona_fide))
    notes = [*trials.notes, *(dev.notes if dev is not None else ())]
    rates = None if asv is None else asv.pooled()
    whole = np.ones(len(trials), dtype=bool)
    found: dict[str, dict[str, MetricValue]] = {name: {} for name in wanted}
    for name, scores in conditions.scores.items():
        measured = measure_sides(*_sides(trials, scores, whole), wanted, costs=costs, rates=rates, units=units)
        for measure, value in measured.values.items():
            found[measure][name] = value
        if asv is not None and "t_eer" in wanted:
            found["t_eer"][name] = measure_tandem(asv.sides(), _sides(trials, scores, whole))
        learned = name in conditions.calibrated
        if learned or not conditions.calibrated:  # where they are calibrated too, nothing more need be said
            notes += _doubts(name, measured, wanted, learned=learned)
    for place, name in enumerate(trials.systems if "a_dcf" in wanted else ()):
        sides = [side[:, place] for side in trials.three_sides("sasv")]
        found["a_dcf"][name] = measure_verification(
            sides, costs=costs, units=units_of(trials, settings, trials.kinds())
        )
    breakdown = {
        column: _measure_groups(trials, conditions, column, wanted, costs, asv, notes)
        for column in columns_apart(trials, settings)
    }
    metrics = {measure: values for measure, values in found.items() if values}
    facts = _facts(trials, dev, conditions, costs, rates, settings)
    what = f"{len(trials)} trials, {int(trials.bona_fide.sum())} of them bona fide"
    curves = {name: det_points(*_sides(trials, scores, whole)) for name, scores in conditions.scores.items()}
    written = _written(trials, conditions, settings)
    result = Scores(what, metrics, (), facts, tuple(notes), breakdown)
    return replace(result, files={**written, "report.html": render_report(result, MEASURES, curves)})


def _load(files: Sequence[Path], options: ScoreOptions) -> tuple[Trials, Trials | None]:
    """The trials that are measured, and those of dev."""
    runs = [path.is_dir() for path in files]
    if any(runs):
        if not all(runs):
            raise ConfigError("Give either folders of finished runs, or SCORES... and a PROTOCOL, but not both.")
        scores, protocol = [_of_run(path, RUN_SCORES) for path in files], None
    else:
        scores, protocol = _parted(files)
    trials = load_trials(scores, protocol, options.settings)
    alike = {name: options.settings[name] for name in ("unmatched",) if name in options.settings}
    negate = options.settings.get("negate", "no")
    if options.dev:
        dev = load_trials(*_parted(options.dev), alike)
    elif any(runs) and all((path / RUN_DEV_SCORES).is_file() for path in files):
        dev = load_trials([path / RUN_DEV_SCORES for path in files], None, alike)
    else:
        return trials, None
    signs = np.array([-1.0 if negate == "yes" or system in negate.split(",") else 1.0 for system in trials.systems])
    if len(signs) == len(dev.systems):
        dev = dev.times(signs)
    return trials, dev


def _parted(files: Sequence[Path]) -> tuple[list[Path], Path | None]:
    """Score files, and the protocol, which score files with keys of their own don't need."""
    if len(files) == 1 or has_scores_and_keys(files[-1]):
        return list(files), None
    return list(files[:-1]), files[-1]


def _of_run(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise ManifestError(f"{folder} holds no {name}, so it is no finished run of deepfake_detection.")
    return folder / name


def _conditions(trials: Trials, dev: Trials | None, settings: Mapping[str, str]) -> Conditions:
    if "cm" not in trials.scores:
        if dev is not None:
            raise ConfigError(
                "--dev calibrates scores of countermeasures, but these files have only those of verification."
            )
        return Conditions({})
    return combine(
        trials,
        dev,
        calibrate=choice(settings, "calibrate", CALIBRATIONS, "affine"),
        fuse=choice(settings, "fuse", FUSIONS, "mean" if dev is None else "logistic"),
        prior=number(settings, "prior", 0.5, below=1.0),
    )


def _wanted(asked: Sequence[str], trials: Trials, asv: Asv | None) -> list[str]:
    """What is measured, in the order of MEASURES."""
    sasv = "sasv" in trials.scores and trials.target is not None
    lacking = {} if "cm" in trials.scores else dict.fromkeys(set(MEASURES) - {"a_dcf"}, "scores of a countermeasure")
    if asv is None:
        lacking |= dict.fromkeys(TANDEM, "errors of a verification: `--set asv=...`")
    if asv is None or not asv.has_scores:
        lacking.setdefault("t_eer", "scores of a verification: `--set asv=own`, or a file of them")
    if not sasv:
        lacking["a_dcf"] = "scores of countermeasure and verification as one ('sasv-score'), and labels of targets"
    for name in asked:
        if name in lacking:
            raise ConfigError(f"`{name}` needs {lacking[name]}.")
    return [name for name in MEASURES if name in (asked or MEASURES) and name not in lacking]


def _measure_groups(  # noqa: PLR0917  what is measured, how, and where doubts go
    trials: Trials,
    conditions: Conditions,
    column: str,
    wanted: Sequence[str],
    costs: Costs,
    asv: Asv | None,
    notes: list[str],
) -> dict[str, dict[str, dict[str, MetricValue]]]:
    """Value of the column -> measure -> condition -> value."""
    found: dict[str, dict[str, dict[str, MetricValue]]] = {}
    rates, doubt = usable_rates({} if asv is None else asv.by(column), [TANDEM[n] for n in wanted if n in TANDEM])
    notes += [f"By {column}: {doubt}"] if doubt else []
    names = [name for name in wanted if name in GROUPED]
    one_sided = []
    for value, mask in trials.groups(column):
        if not (mask & trials.bona_fide).any() or not (mask & ~trials.bona_fide).any():
            one_sided.append(value)
            continue
        group: dict[str, dict[str, MetricValue]] = {name: {} for name in names}
        own = rates.get(value)
        for name, scores in conditions.scores.items():
            measured = measure_sides(*_sides(trials, scores, mask), names, costs=costs, rates=own, units=None)
            for measure, result in measured.values.items():
                group[measure][name] = result
        for place, name in enumerate(trials.systems if "a_dcf" in names else ()):
            sides = [side[:, place] for side in trials.three_sides("sasv", mask)]
            if all(side.size for side in sides):
                group["a_dcf"][name] = measure_verification(sides, costs=costs)
        found[value] = {measure: values for measure, values in group.items() if values}
    if one_sided:
        notes.append(
            f"By {column}: {len(one_sided)} values have only bona fide or only spoofed trials, first '{one_sided[0]}'."
        )
    return found


def _sides(trials: Trials, scores: Floats, mask: Mask) -> tuple[Floats, Floats]:
    return scores[mask & trials.bona_fide], scores[mask & ~trials.bona_fide]


def _doubts(name: str, found: Found, wanted: Sequence[str], *, learned: bool) -> list[str]:
    doubts = []
    if "eer" in found.values and found.values["eer"].value > SWAPPED:
        doubts.append(
            f"The equal error rate of {name} is {100 * found.values['eer'].value:.1f} %: higher scores must mean bona "
            "fide; where lower ones do, use `--set negate=yes`."
        )
    if found.calibrated is False and ("act_dcf" in wanted or "cllr" in wanted):
        cost, least = found.values["cllr"].value, found.values["min_cllr"].value
        why = "although dev calibrated them, so dev is unlike these trials" if learned else "calibrate them with --dev"
        doubts.append(
            f"The scores of {name} are no log-likelihood ratios (Cllr {cost:.3g} where {least:.3g} could be), so "
            f"act_dcf and cllr say little: {why}."
        )
    return doubts


def _written(trials: Trials, conditions: Conditions, settings: Mapping[str, str]) -> dict[str, str]:
    """The last scores, in a format of a challenge."""
    chosen = choice(settings, "format", (*FORMATS, "none"), "asvspoof5" if conditions.made else "none")
    if chosen == "none":
        return {}
    scores = list(conditions.scores.values())[-1] if conditions.scores else None
    name, text = format_scores(chosen, trials, scores)
    return {name: text}


def _facts(  # noqa: PLR0917  what the numbers depend on
    trials: Trials,
    dev: Trials | None,
    conditions: Conditions,
    costs: Costs,
    rates: Any,
    settings: Mapping[str, str],
) -> dict[str, Any]:
    facts: dict[str, Any] = {"protocol": trials.table.path.name, "systems": list(trials.systems), **vars(costs)}
    facts |= {name: settings[name] for name in ("where", "unmatched", "negate", "units") if name in settings}
    if dev is not None:
        facts["dev"] = {"protocol": dev.table.path.name, "trials": len(dev)}
    if rates is not None:
        facts["asv"] = vars(rates)
    return facts | dict(conditions.learned)
