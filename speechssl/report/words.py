"""How the report writes names and numbers: rates in %, sensible digits, units, directions."""

import math
import re
from collections.abc import Sequence
from typing import Literal


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


ACRONYMS = _set(
    "asr wer cer per eer der jer dcf mcd f0 rmse mse mae ccc lcc srcc pesq stoi estoi mos auc uar abx snr ctc vc sid "
    "ks tts rtf cpu gpu twv mtwv atwv si sdr sdri r2 ecapa ddur"
)
RATES = _set(
    "wer cer per eer der jer ter missed confusion accuracy acc rate f1 uar precision recall error errors abx share "
    "unseen acceptance rejection identification nearer"
)
LOWER = _set(
    "wer cer per eer der jer ter missed confusion dcf mindcf mcd rmse mse mae loss error errors distance distortion "
    "abx cllr cnxe ddur"
)
HIGHER = _set(
    "accuracy acc uar ccc lcc srcc ktau similarity pesq stoi estoi mos auc correlation corr f1 precision recall bleu "
    "quality acceptance identification nearer twv mtwv atwv sdr sdri r2"
)
UNITS = {"mcd": "dB", "snr": "dB", "sdr": "dB", "sdri": "dB", "distortion": "dB", "ddur": "s", "f0_rmse": "Hz"}
CONDITION = " by condition"
"""How the names of breakdowns end that compare what a system made with anchors; see `judges`."""
CUES = "eer of trivial cues"
"""The breakdown of what trivial cues alone would score as detectors; see `cues`."""
Direction = Literal["up", "down"] | None


def words_of(name: str) -> list[str]:
    """Splits 'min_dcf' or 'dev/wer by language' into lower-case words."""
    return [w for w in re.split(r"[^0-9a-zA-Z]+", name.lower()) if w]


def _telling(name: str) -> list[str]:
    """The words that tell what is measured: without the preposition 'per', which is also the phone error rate."""
    words = words_of(name)
    return words if len(words) < 3 else [w for w in words if w != "per"]


def metric_title(name: str) -> str:
    """'eer_trivial' -> 'EER trivial'; acronyms in capitals, underscores as spaces."""
    return re.sub(r"[0-9A-Za-z]+", lambda m: m[0].upper() if m[0].lower() in ACRONYMS else m[0], name.replace("_", " "))


def task_title(name: str) -> str:
    """'speaker_verification' -> 'Speaker verification', 'asr' -> 'ASR'."""
    return capital(metric_title(name))


def metric_of_group(group: str) -> str:
    """The metric that a breakdown is about: 'wer by language' -> 'wer', 'eer of trivial cues' -> 'eer'."""
    return re.split(r" (?:by|of|per|within|for) ", group, maxsplit=1)[0]


def direction(metric: str) -> Direction:
    """Which way is better, judged by the metric's name; None where the name does not tell."""
    found = _telling(metric)
    if "false" in found or any(w in LOWER for w in found) or {"source", "similarity"} <= set(found):
        return "down"
    return "up" if any(w in HIGHER for w in found) else None


def arrow(better: Direction) -> str:
    """↑ or ↓ or nothing."""
    return {"up": "↑", "down": "↓", None: ""}[better]


def better_words(better: Direction) -> str:
    """A clause for captions."""
    return {"up": "higher is better", "down": "lower is better", None: "neither direction is better in itself"}[better]


def is_rate(metric: str) -> bool:
    """Whether the metric is a fraction that is written in %."""
    found = _telling(metric)
    return any(w in RATES for w in found) and not any(w in ("dcf", "rmse", "mcd", "loss", "learning") for w in found)


def format_value(value: float | None, metric: str, *, unit: bool = True, like: float | None = None) -> str:
    """Writes a metric's value: '12.3 %' for rates (two decimals below 10 %), three significant digits else.

    Args:
        unit: whether to write the unit.
        like: a value whose number of decimals is taken, for the ends of its interval.
    """
    if value is None or not math.isfinite(value):
        return "–"
    like = value if like is None else like
    if is_rate(metric):
        digits = 2 if abs(100 * like) < 9.995 else 1
        return f"{100 * value:.{digits}f}".replace("-", "−") + (" %" if unit else "")
    suffix = next((UNITS[w] for w in (metric, *words_of(metric)) if w in UNITS), "")
    return format_number(value, like=like) + (f" {suffix}" if suffix and unit else "")


def format_interval(mean: float, low: float | None, high: float | None, metric: str) -> str:
    """'[11.9, 12.7]' in the metric's unit and with the decimals of the mean, or nothing."""
    if low is None or high is None:
        return ""
    ends = (format_value(end, metric, unit=False, like=mean) for end in (low, high))
    return f"[{', '.join(ends)}]"


def format_number(value: float, *, like: float | None = None) -> str:
    """Three significant digits (of `like` where given), no exponent between 0.0001 and a million, thousands grouped."""
    like = value if like is None else like
    if like != 0 and not 1e-4 <= abs(like) < 1e6:
        return f"{value:.2e}".replace("-", "−")
    size = math.floor(math.log10(abs(like))) if like else 0
    return f"{value:,.{max(0, 2 - size)}f}".replace(",", "\u202f").replace("-", "−")


def format_count(value: float) -> str:
    """Whole numbers with thousands grouped by a narrow space."""
    return f"{value:,.0f}".replace(",", "\u202f")


def format_seconds(value: float) -> str:
    """'4.2 s', '3 min 20 s', '1 h 05 min'."""
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_parameters(value: float) -> str:
    """'4.9 M', '37 k', '0'."""
    if value >= 1e6:
        return f"{value / 1e6:.1f} M"
    return f"{value / 1e3:.0f} k" if value >= 1e3 else f"{value:.0f}"


def capital(text: str) -> str:
    """The text with a capital first letter and the rest as it is."""
    return text[:1].upper() + text[1:]


def join_words(parts: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
