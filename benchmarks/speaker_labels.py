"""Checks a corpus's speaker labels with an encoder that nothing here trains: its equal error rate within each language.

    python benchmarks/speaker_labels.py data/demo

At most 40 utterances of each speaker and language in dev and test, 12 in train. GE2E is fetched on the first run.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from downstreams.speaker_verification.config import SpeakerVerificationConfig
from downstreams.speaker_verification.data import WITHIN, Trial, make_trials, read_splits
from downstreams.voice_conversion.judges import load_speaker_judge
from speechssl.audio import read_audio
from speechssl.data.corpus import open_corpus
from speechssl.data.flac import SAMPLE_RATE
from speechssl.metric.detection import equal_error_rate
from speechssl.progress import progress


def rate(trials: Sequence[Trial], embeddings: dict[str, Tensor]) -> float | None:
    """None where there are not both kinds of trials."""
    scores = {True: [], False: []}  # type: dict[bool, list[float]]
    for trial in trials:
        scores[trial.target].append(float(embeddings[trial.first.id] @ embeddings[trial.second.id]))
    return equal_error_rate(scores[True], scores[False])[0] if all(scores.values()) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    judge = load_speaker_judge()
    config = SpeakerVerificationConfig(max_train_utterances=12, max_eval_utterances=40)
    for split, utterances in read_splits(open_corpus(arguments.corpus), config).items():
        embeddings: dict[str, Tensor] = {}
        with progress(f"Embedding {split}", len(utterances), unit="utterances") as advance:
            for u in utterances:
                waveform = read_audio(u.path, sample_rate=SAMPLE_RATE, start=u.start, duration=u.duration)
                embeddings[u.id] = judge.embed(waveform)
                advance(1.0)
        trials = [t for t in make_trials(utterances, max_trials=20_000) if t.kind == WITHIN]
        languages = sorted({str(t.first.labels["language"]) for t in trials})
        found = {k: rate([t for t in trials if t.first.labels["language"] == k], embeddings) for k in languages}
        found["all, one threshold"] = rate(trials, embeddings)
        print(split, ", ".join(f"{k} {100 * v:.1f} %" for k, v in found.items() if v is not None))


if __name__ == "__main__":
    main()
