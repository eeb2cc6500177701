"""What an evaluated run leaves behind: the conversions beside their bounds, a table of the pairs, and audio.

Beside each example stands whether a detector of deepfakes would have found it out, where the config names one.
"""

import csv
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from downstreams.voice_conversion import scoring
from downstreams.voice_conversion.bounds import CONDITIONS, Bounds, copy_path, read
from downstreams.voice_conversion.config import VoiceConversionConfig
from downstreams.voice_conversion.data import Pair, Plan
from downstreams.voice_conversion.output import write_speech
from downstreams.voice_conversion.scoring import Verdict
from speechssl.data.flac import write_flac
from speechssl.errors import ConfigError
from speechssl.files import replacing
from speechssl.inference import infer, load_run
from speechssl.result import Evaluation, MetricValue
from speechssl.vocoder import Vocoder

DETECTOR = "deepfake_detection"
CLIPS = ("source", "target", "converted", "copy_synthesis")


@dataclass(frozen=True)
class Judged:
    """The conversions of the test split, in the order of the plan's pairs."""

    plan: Plan
    verdicts: Sequence[Verdict]
    waveforms: Sequence[Tensor]
    """(S,) each, at the vocoder's rate."""
    bounds: Bounds
    kept: Path
    """Where the copy syntheses of the bounds are."""
    vocoder: Vocoder

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """What was converted."""
        return self.plan.pairs["test"]


def report(
    metrics: Mapping[str, MetricValue], judged: Judged, config: VoiceConversionConfig, folder: Path
) -> Evaluation:
    """Puts the numbers together, and writes `pairs.tsv` and `audio/` into the run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    bounds, targets = judged.bounds, [p.target for p in judged.pairs]
    lower, upper = ([bounds.verdicts[name][p.id] for p in judged.pairs] for name in CONDITIONS)
    conditions = {CONDITIONS[0]: lower, "converted": judged.verdicts, CONDITIONS[1]: upper}
    breakdown = {
        **scoring.by_condition(conditions, bounds.threshold),
        "score by target": scoring.by_target(targets, judged.verdicts, bounds.threshold),
        "judge of voices": {"eer": MetricValue(bounds.error_rate, bounds.trials, "trials")},
    }
    examples = [_write_example(i, judged, folder) for i in range(min(config.examples, len(judged.pairs)))]
    if config.detector is not None and examples:
        examples = detect(examples, config.detector, folder)
    return Evaluation(metrics, breakdown, {"pairs": _write_pairs(judged, folder)}, examples)


def _write_pairs(judged: Judged, folder: Path) -> str:
    """One line per conversion; returns the name of the file."""
    with replacing(folder / "pairs.tsv") as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        head = ("source", "target", "similarity", "identified", "accepted", "cer", "quality", "text", "heard")
        writer.writerow(head)
        for pair, v in zip(judged.pairs, judged.verdicts, strict=True):
            voice = (f"{v.similarity:.4f}", int(v.identified), int(v.similarity > judged.bounds.threshold))
            numbers = (*voice, f"{v.cer:.4f}", f"{v.quality or 0:.2f}")
            writer.writerow((pair.source.id, pair.target, *numbers, v.reference, v.hypothesis))
    return "pairs.tsv"


def _write_example(row: int, judged: Judged, folder: Path) -> dict[str, str]:
    """Writes the source, a held-out utterance of the target, its copy synthesis and the conversion as FLAC."""
    pair = judged.pairs[row]
    target = judged.plan.targets[pair.target]
    spoken = target.held_out[0]
    (folder / "audio").mkdir(exist_ok=True)
    names = {kind: f"audio/{pair.id}-{kind}.flac" for kind in CLIPS}
    write_flac(folder / names["source"], read(pair.source).numpy())
    write_flac(folder / names["target"], read(spoken).numpy())
    rate = judged.vocoder.mel.sample_rate
    write_speech(folder / names["converted"], judged.waveforms[row], sample_rate=rate)
    shutil.copyfile(copy_path(judged.kept, spoken), folder / names["copy_synthesis"])
    title = f"{pair.source.labels['text']} ({pair.source.labels['language']} → {pair.target}, {target.language})"
    return {"title": title, "vocoder": judged.vocoder.name, **names}


def check_detector(detector: str) -> None:
    """Raises a SpeechsslError unless the folder holds a finished run of `deepfake_detection`."""
    task = load_run(detector).task.name
    if task != DETECTOR:
        raise ConfigError(f"`detector` must be a run of {DETECTOR}, but {detector} is one of {task}: name another run.")


def detect(examples: Sequence[Mapping[str, str]], detector: str, folder: Path) -> list[dict[str, str]]:
    """The examples with what the detector says of each of their clips, under '<clip>_detector'."""
    paths = sorted({str(folder / example[clip]) for example in examples for clip in CLIPS})
    found = infer(detector, paths)
    said = {
        path: one["error"]
        if "error" in one
        else f"{one['verdict']}: {one['score']:.2f}, where more than {one['threshold']:.2f} is real"
        for path, one in found.items()
    }
    return [{**e, **{f"{clip}_detector": said[str(folder / e[clip])] for clip in CLIPS}} for e in examples]
