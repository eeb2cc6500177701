"""Score files as the challenges take them."""

from collections.abc import Sequence

from downstreams.deepfake_detection.score_trials import Floats, Trials
from speechssl.errors import ConfigError

FORMATS = ("asvspoof5", "asvspoof5_track2", "asvspoof2021", "asvspoof2019", "table")
"""'table' has a header, labels and all, and is read by `speechssl report` and by ourselves without a protocol."""


def format_scores(kind: str, trials: Trials, scores: Floats | None, *, system: int = 0) -> tuple[str, str]:
    """Name and text of a score file, one line for each trial.

    Args:
        kind: of FORMATS.
        scores: (N,) of the countermeasure; None = there are none.
        system: whose scores of verification are written, in track 2 of ASVspoof 5.

    Raises:
        ConfigError: a format that needs scores which the trials don't have.
    """
    ids = trials.values("id")
    if scores is None:
        raise ConfigError(f"`format={kind}` needs scores of a countermeasure, but the files have none.")
    numbers = list(map(repr, scores.tolist()))  # as many digits as tell them apart
    if kind == "asvspoof2021":
        return "scores.txt", _text("", " ", ids, numbers)
    if kind == "asvspoof5":
        return "scores.tsv", _text("filename\tcm-score", "\t", ids, numbers)
    if kind == "asvspoof5_track2":
        if not trials.paired or not {"asv", "sasv"} <= set(trials.scores):
            raise ConfigError(
                f"`format={kind}` needs columns of speakers, asv-score and sasv-score in the score files."
            )
        others = [list(map(repr, trials.scores[other][:, system].tolist())) for other in ("asv", "sasv")]
        header = "spk\tfilename\tcm-score\tasv-score\tsasv-score"
        return "scores.tsv", _text(header, "\t", trials.values("speaker"), ids, numbers, *others)
    attacks = trials.values("attack") if "attack" in trials.facts else ["-"] * len(trials)
    labels = ["bonafide" if real else "spoof" for real in trials.bona_fide.tolist()]
    if kind == "asvspoof2019":
        return "scores.txt", _text("", " ", ids, attacks, labels, numbers)
    return "scores.tsv", _text("utterance\tattack\tlabel\tscore", "\t", ids, attacks, labels, numbers)


def _text(header: str, between: str, *columns: Sequence[str]) -> str:
    lines = [header] if header else []
    lines += map(between.join, zip(*columns, strict=True))
    return "\n".join(lines) + "\n"
