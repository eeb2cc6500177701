"""A user's own files: what is heard of them, and what is said of them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from downstreams.deepfake_detection.conditioning import SAMPLE_RATE, windows
from downstreams.deepfake_detection.config import ConditioningConfig
from speechssl.audio import read_audio
from speechssl.data.flac import write_flac
from speechssl.errors import AudioError
from speechssl.types import Utterance


def prepare_files(utterances: Sequence[Utterance], folder: Path, conditioning: ConditioningConfig) -> list[Utterance]:
    """Puts files through the conditioning of the set, or their scores would not compare with its threshold.

    Args:
        folder: receives the conditioned audio.

    Returns:
        One utterance per stretch of `conditioning.seconds`, with labels `file` and `start` (seconds).

    Raises:
        AudioError: a file that can't be read or holds too little speech.
    """
    found: list[Utterance] = []
    for number, utterance in enumerate(utterances):
        waveform = read_audio(
            utterance.path, sample_rate=SAMPLE_RATE, start=utterance.start, duration=utterance.duration
        )
        stretches = windows(waveform, conditioning)
        if not stretches:
            raise AudioError(
                f"{utterance.path} holds no {conditioning.seconds} s of speech between silences, which is what "
                "this detector was trained on: give a longer recording."
            )
        for start, stretch in stretches:
            path = folder / f"{number}-{len(found)}.flac"
            write_flac(path, stretch.numpy())
            found.append(Utterance(path.stem, str(path), labels={"file": utterance.path, "start": start}))
    return found


def judge_files(scores: Mapping[str, float], utterances: Sequence[Utterance], threshold: float) -> dict[str, Any]:
    """Path -> mean score (higher = more likely a person), the threshold found on dev, verdict, score per stretch.

    Args:
        scores: path of what was prepared -> score.
        utterances: from `prepare_files`.
    """
    stretches: dict[str, list[dict[str, float]]] = defaultdict(list)
    for utterance in utterances:
        scored = {"start": round(utterance.labels["start"], 2), "score": scores[utterance.path]}
        stretches[utterance.labels["file"]].append(scored)
    means = {path: mean(one["score"] for one in found) for path, found in stretches.items()}
    return {
        path: {
            "score": score,
            "threshold": threshold,
            "verdict": "real" if score > threshold else "spoofed",
            "stretches": stretches[path],
        }
        for path, score in means.items()
    }
