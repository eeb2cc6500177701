"""The verification behind a countermeasure, for t-DCF: its errors as numbers, or its scores."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from downstreams.deepfake_detection.score_table import NONTARGET, TARGET, Table, read_protocol, read_scores
from downstreams.deepfake_detection.score_trials import Floats, Mask, Trials, load_trials
from speechssl.errors import ConfigError, ManifestError, SpeechsslError
from speechssl.metric.tandem import ASVSPOOF5_RATES, AsvErrorRates, Form, asv_error_rates, tandem_weights


@dataclass(frozen=True, eq=False)
class Asv:
    """Where error rates come from."""

    source: AsvErrorRates | Trials
    """Fixed rates, or trials with scores 'asv' and targets."""

    def pooled(self) -> AsvErrorRates:
        """Over all trials.

        Raises:
            ManifestError: no targets, non-targets or spoofs among them.
        """
        if isinstance(self.source, AsvErrorRates):
            return self.source
        return _rates(self.source, np.ones(len(self.source), dtype=bool))

    @property
    def has_scores(self) -> bool:
        """Whether more is known than fixed rates."""
        return isinstance(self.source, Trials)

    def sides(self) -> list[Floats]:
        """Scores of targets, non-targets and spoofs.

        Raises:
            ConfigError: there are none, but fixed rates.
        """
        if isinstance(self.source, AsvErrorRates):
            raise ConfigError("t-EER needs scores of a verification, but `asv` gives its rates alone.")
        return [side[:, 0] for side in self.source.three_sides("asv")]

    def by(self, name: str) -> Mapping[str, AsvErrorRates]:
        """In each group of a column (see `Trials.groups`), with the threshold of the group's own equal errors, as the
        package of ASVspoof 2021 has it; none where the scores say nothing of that column."""
        trials = self.source
        if isinstance(trials, AsvErrorRates) or set(name.split("+")) - set(trials.facts):
            return {}
        groups = dict(trials.groups(name))
        whole = {value: mask for value, mask in groups.items() if all(len(s) for s in trials.three_sides("asv", mask))}
        return {value: _rates(trials, mask) for value, mask in whole.items()}


def usable_rates(rates: Mapping[str, AsvErrorRates], forms: Iterable[Form]) -> tuple[dict[str, AsvErrorRates], str]:
    """The groups whose rates give t-DCF a meaning, and of the others how many and why: no spoof of an attack may fool
    the ASV, say."""
    usable, why, wanted = {}, [], tuple(forms)
    for value, own in rates.items():
        try:
            for form in wanted:
                tandem_weights(own, form=form)
            usable[value] = own
        except SpeechsslError as error:
            why.append(f"first '{value}': {error}")
    return usable, f"{len(why)} values have no t-DCF, {why[0]}" if why else ""


def load_asv(settings: Mapping[str, str], trials: Trials) -> Asv | None:
    """What the settings 'asv' and 'asv_protocol' name; None where they name nothing.

    Args:
        trials: of the countermeasure; their own 'asv' scores serve for `asv=own`.

    Raises:
        ConfigError: rates that are none, or scores without targets.
        ManifestError: files that can't be read or don't belong together.
    """
    text = settings.get("asv", "")
    if not text:
        return None
    if text == "asvspoof5":
        return Asv(ASVSPOOF5_RATES)
    if text == "own":
        if "asv" not in trials.scores or trials.target is None:
            raise ConfigError(
                "`asv=own` needs scores of verification ('asv-score') and labels of targets ('asv-label')."
            )
        return Asv(trials)
    if not Path(text).exists() and "," in text:
        try:
            miss, false_alarm, spoof = map(float, text.split(","))
        except ValueError as error:
            raise ConfigError(
                "`asv` must be asvspoof5, own, a file of scores, or the rates MISS,FALSE_ALARM,SPOOF_FALSE_ALARM, but "
                f"is '{text}'."
            ) from error
        return Asv(AsvErrorRates(miss, false_alarm, spoof))
    protocol = settings.get("asv_protocol")
    return Asv(_own_keys(Path(text)) if protocol is None else _with_protocol(Path(text), Path(protocol), settings))


def _own_keys(path: Path) -> Trials:
    """Scores that name targets themselves: 'attack key score', as ASVspoof 2019 has them, or with a header."""
    table = read_scores(path)
    if "asv_label" not in table.columns:
        raise ConfigError(f"{path} does not say who is a target: give the keys too, `--set asv_protocol=FILE`.")
    column = next(name for name in ("asv_score", "sasv_score", "score") if name in table.columns)
    names = {"id": "attack", **{n: n for n in table.columns if n not in {"id", column}}}
    if len(table.columns["id"].counted[0]) > 0.5 * len(table):
        names["id"] = "id"
    found = {names[n]: values for n, values in table.columns.items() if n in names}
    return _trials(Table(path, found, table.lines), table.numbers(column))


def _with_protocol(path: Path, protocol: Path, settings: Mapping[str, str]) -> Trials:
    """Scores of speakers and files, as ASVspoof 2021 has them, whose keys are in another file."""
    truth = read_protocol(protocol, read_scores(path).columns["id"])
    if "asv_label" not in truth.columns:
        raise ConfigError(f"`asv_protocol` must say who is a target, but {protocol} has only bona fide and spoofed.")
    trials = load_trials([path], protocol, {k: v for k, v in settings.items() if k in {"where", "unmatched"}})
    scores = next(trials.scores[kind] for kind in ("asv", "sasv", "cm") if kind in trials.scores)
    return replace(trials, scores={"asv": scores})


def _trials(table: Table, scores: Floats) -> Trials:
    target, nontarget = (table.marked("asv_label", kind) for kind in (TARGET, NONTARGET))
    rows = np.arange(len(table))
    return Trials(table, rows, True, target | nontarget, target, {"asv": scores[:, None]}, [table.path.stem])


def _rates(trials: Trials, mask: Mask) -> AsvErrorRates:
    sides = [side[:, 0] for side in trials.three_sides("asv", mask)]
    empty = [name for name, side in zip(("targets", "non-targets", "spoofs"), sides, strict=True) if not side.size]
    if empty:
        raise ManifestError(
            f"The verification scores of {trials.table.path} have no {empty[0]}: t-DCF needs all three."
        )
    return asv_error_rates(*sides)
