"""How the report writes names and numbers: rates in %, sensible digits, units, directions."""

import math
import re
from collections.abc import Sequence
from typing import Literal


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


ACRONYMS = _set("asr wer cer per eer dcf mcd f0 rmse pesq stoi estoi mos auc abx snr ctc vc sid ks tts rtf cpu gpu")
RATES = _set("wer cer per eer der ter accuracy acc rate f1 precision recall error errors abx share")
LOWER = _set("wer cer per eer der ter dcf mindcf mcd rmse loss error errors distance distortion abx perplexity")
HIGHER = _set("accuracy acc similarity pesq stoi estoi mos auc correlation corr f1 precision recall bleu throughput")
UNITS = {"mcd": "dB", "snr": "dB", "distortion": "dB"}
Direction = Literal["up", "down"] | None


def words_of(name: str) -> list[str]:
    """Splits 'min_dcf' or 'dev/wer by language' into lower-case words."""
    return [w for w in re.split(r"[^0-9a-zA-Z]+", name.lower()) if w]


def metric_title(name: str) -> str:
    """'eer_trivial' -> 'EER trivial'; acronyms in capitals, underscores as spaces."""
    return re.sub(r"[0-9A-Za-z]+", lambda m: m[0].upper() if m[0].lower() in ACRONYMS else m[0], name.replace("_", " "))


def task_title(name: str) -> str:
    """'speaker_verification' -> 'Speaker verification', 'asr' -> 'ASR'."""
    title = metric_title(name)
    return title[:1].upper() + title[1:]


def metric_of_group(group: str) -> str:
    """The metric that a breakdown is about: 'wer by language' -> 'wer', 'eer of trivial cues' -> 'eer'."""
    return re.split(r" (?:by|of|per|within|for) ", group, maxsplit=1)[0]


def direction(metric: str) -> Direction:
    """Which way is better, judged by the metric's name; None where the name does not tell."""
    found = words_of(metric)
    if any(w in LOWER for w in found):
        return "down"
    return "up" if any(w in HIGHER for w in found) else None


def arrow(better: Direction) -> str:
    """↑ or ↓ or nothing."""
    return {"up": "↑", "down": "↓", None: ""}[better]


def better_words(better: Direction) -> str:
    """A clause for captions."""
    return {"up": "higher is better", "down": "lower is better", None: "neither direction is better as such"}[better]


def is_rate(metric: str) -> bool:
    """Whether the metric is a fraction that is written in %."""
    found = words_of(metric)
    return any(w in RATES for w in found) and not any(w in ("dcf", "rmse", "mcd", "loss", "learning") for w in found)


def format_value(value: float | None, metric: str, *, unit: bool = True) -> str:
    """Writes a metric's value: '12.3 %' for rates (two decimals below 10 %), three significant digits else."""
    if value is None or not math.isfinite(value):
        return "–"
    if is_rate(metric):
        percent = 100 * value
        return f"{percent:.{2 if abs(percent) < 9.995 else 1}f}".replace("-", "−") + (" %" if unit else "")
    suffix = next((UNITS[w] for w in words_of(metric) if w in UNITS), "")
    return format_number(value) + (f" {suffix}" if suffix and unit else "")


def format_interval(low: float | None, high: float | None, metric: str) -> str:
    """'[11.9, 12.7]' in the metric's unit, or nothing."""
    if low is None or high is None:
        return ""
    return f"[{format_value(low, metric, unit=False)}, {format_value(high, metric, unit=False)}]"


def format_number(value: float) -> str:
    """Three significant digits, no exponent between 0.0001 and a million, thousands grouped."""
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}".replace("-", "−")
    size = math.floor(math.log10(abs(value))) if value else 0
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


def join_words(parts: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
