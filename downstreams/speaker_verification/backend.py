"""From embeddings to scores: cosines, centred and normalised by a cohort of other speakers where that is asked for.

E embedding, N speakers of the cohort.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from speechssl.errors import SpeechsslError
from speechssl.types import Utterance

from .config import SpeakerVerificationConfig
from .data import Trial

LEAST = 1e-6
"""Least deviation of the scores of a cohort."""


@dataclass(frozen=True)
class Cohort:
    """Speakers that no trial is about."""

    speakers: Tensor
    """The mean embedding of each, (N, E)."""

    @property
    def mean(self) -> Tensor:
        """Of all of them, each speaker once, (E,)."""
        return self.speakers.mean(dim=0)


def make_cohort(utterances: Sequence[Utterance], embeddings: Mapping[str, Tensor]) -> Cohort:
    """The mean of each speaker's embeddings, in the order of the speakers' names."""
    of_speaker: dict[str, list[Tensor]] = defaultdict(list)
    for utterance in utterances:
        of_speaker[str(utterance.labels["speaker"])].append(embeddings[utterance.id])
    if len(of_speaker) < 2:
        raise SpeechsslError(
            f"Scores are normalised by the training speakers, but there are {len(of_speaker)}: set `scoring=cosine` "
            "and `centre=false`."
        )
    return Cohort(torch.stack([torch.stack(of_speaker[name]).mean(dim=0) for name in sorted(of_speaker)]))


def score_trials(
    trials: Sequence[Trial],
    embeddings: Mapping[str, Tensor],
    cohort: Cohort | None = None,
    config: SpeakerVerificationConfig | None = None,
) -> list[float]:
    """The score of each trial, higher = more likely one speaker.

    Args:
        trials: pairs of utterances.
        embeddings: utterance id -> (E,), of unit length.
        cohort: of the training speakers, where `config` asks for it.
        config: None = plain cosines.
    """
    rows = {name: row for row, name in enumerate(embeddings)}
    vectors = torch.stack(list(embeddings.values()))
    first = torch.tensor([rows[t.first.id] for t in trials], dtype=torch.int64)
    second = torch.tensor([rows[t.second.id] for t in trials], dtype=torch.int64)
    if cohort is None or config is None:
        cosines = (vectors[first] * vectors[second]).sum(dim=1)
        plain: list[float] = cosines.double().tolist()
        return plain
    found: list[float] = score_pairs(vectors, first, second, cohort, config).tolist()
    return found


def score_pairs(
    vectors: Tensor, first: Tensor, second: Tensor, cohort: Cohort, config: SpeakerVerificationConfig
) -> Tensor:
    """The scores of pairs of rows of (U, E) embeddings, (P,) float64."""
    vectors, others = vectors.double(), cohort.speakers.double()
    if config.centre:
        vectors, others = vectors - cohort.mean.double(), others - cohort.mean.double()
    vectors, others = F.normalize(vectors, dim=1), F.normalize(others, dim=1)
    cosines = (vectors[first] * vectors[second]).sum(dim=1)
    if config.scoring == "cosine":
        return cosines
    mean, deviation = cohort_statistics(vectors, others, top=config.cohort_top)
    return normalise_scores(cosines, (mean[first], deviation[first]), (mean[second], deviation[second]))


def cohort_statistics(vectors: Tensor, others: Tensor, *, top: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the cosines of each embedding with those of the cohort that are most like it.

    Args:
        vectors: (U, E), of unit length.
        others: (N, E), of unit length.
        top: how many of the N are taken; all, where there are fewer.

    Returns:
        (U,) each; the deviation is that of the numbers themselves, divided by their count.
    """
    nearest = (vectors @ others.T).topk(min(top, len(others)), dim=1).values
    return nearest.mean(dim=1), nearest.std(dim=1, correction=0).clamp(min=LEAST)


def normalise_scores(scores: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Adaptive symmetric normalisation: the mean of what a score is in deviations of either side's cohort scores.

    Args:
        scores: (P,).
        first: mean and deviation of the cohort scores of the first utterances, (P,) each.
        second: those of the second.

    Paper: Matejka et al. 2017, "Analysis of score normalization in multilingual speaker recognition", Interspeech, sec.
    2 ('adaptive s-norm 1'); the deviation as `wespeaker/bin/score_norm.py`.
    """
    return 0.5 * ((scores - first[0]) / first[1] + (scores - second[0]) / second[1])
