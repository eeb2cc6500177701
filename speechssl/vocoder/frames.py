"""Frames of features for a vocoder to train on: as an upstream gives them, or each the mean of its nearest frames.

Shapes: U utterances, N frames of all of them, T frames, D width, K neighbours.
Reference: https://github.com/bshall/knn-vc (prematch_dataset.py), which writes the means; here their numbers are kept.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from speechssl.checkpoint import save_tensors
from speechssl.errors import SpeechsslError
from speechssl.feature_batches import Features
from speechssl.neighbours import ReferencePool
from speechssl.progress import progress
from speechssl.types import Utterance

logger = logging.getLogger(__name__)
MOST_NAMES = 8
"""Speakers that a warning lists."""


class FrameReader:
    """Reads stretches of the frames of utterances, from features that stay where they are."""

    def __init__(self, features: Features, ids: Sequence[str], neighbours: Tensor | None = None) -> None:
        """
        Args:
            features: of one layer.
            neighbours: (N, K) as `find_neighbours` gives them; None = frames as they are.
        """
        self.features = features
        self.ids = list(ids)
        self.bounds = frame_bounds(features, ids)
        self.neighbours = neighbours

    def length(self, number: int) -> int:
        """Frames of an utterance."""
        return int(self.bounds[number + 1] - self.bounds[number])

    def read(self, number: int, first: int, count: int) -> Tensor:
        """Frames `first` to `first + count` of utterance `number`, (T, D) float32."""
        if self.neighbours is None:
            return self.features.get(self.ids[number])[0, first : first + count].float()
        begin = int(self.bounds[number]) + first
        chosen = self.neighbours[begin : begin + count].long()  # (T, K)
        flat = chosen.flatten()
        owners = torch.searchsorted(self.bounds, flat, right=True) - 1
        found = torch.empty(len(flat), self.features.hidden_size)
        for owner in set(owners.tolist()):
            mine = owners == owner
            found[mine] = self.features.get(self.ids[owner])[0, flat[mine] - self.bounds[owner]].float()
        return found.view(*chosen.shape, -1).mean(dim=1)  # (T, D)


def frame_bounds(features: Features, ids: Sequence[str]) -> Tensor:
    """Where the frames of each utterance begin among those of all, and their end, (U + 1,) int64."""
    return torch.tensor([0, *(features.get(name).size(1) for name in ids)]).cumsum(dim=0)


def find_neighbours(
    features: Features, utterances: Sequence[Utterance], *, k: int, least: int, device: torch.device
) -> Tensor:
    """The k nearest frames (cosine) of each frame among those of the same speaker's other utterances.

    An utterance whose speaker says fewer than `least` other frames keeps its own; a warning names those speakers.

    Args:
        utterances: with the label 'speaker'.

    Returns:
        (N, K) int32, numbers among the frames of all utterances, best first.

    Raises:
        SpeechsslError: an utterance without a speaker, or no utterance that can be matched.

    Paper: Baas et al. 2023, Voice Conversion With Just Nearest Neighbors, sec. 2.3, arXiv:2305.18975.
    """
    bounds = frame_bounds(features, [u.id for u in utterances])
    speakers: dict[str, list[int]] = defaultdict(list)
    for number, utterance in enumerate(utterances):
        speaker = utterance.labels.get("speaker")
        if speaker is None:
            raise SpeechsslError(f"Utterance '{utterance.id}' has no 'speaker', which prematching needs: label it.")
        speakers[str(speaker)].append(number)
    own = torch.arange(int(bounds[-1]), dtype=torch.int32)
    found = own[:, None].repeat(1, k)  # (N, K)
    poor: dict[str, int] = defaultdict(int)
    with progress("Prematching", len(utterances), unit="utterances") as advance:
        for speaker, numbers in speakers.items():
            places = torch.cat([own[bounds[n] : bounds[n + 1]] for n in numbers])  # (N',)
            frames = torch.cat([features.get(utterances[n].id)[0] for n in numbers]).to(device)  # (N', D)
            pool = ReferencePool(frames)
            end = 0
            for n in numbers:
                begin, end = end, end + int(bounds[n + 1] - bounds[n])
                if len(pool) - (end - begin) < max(least, k):
                    poor[speaker] += 1
                else:
                    itself = torch.tensor([[begin, end]]).expand(end - begin, 2)
                    nearest = pool.search(frames[begin:end], k=k, exclude=itself)
                    found[bounds[n] : bounds[n + 1]] = places[nearest.cpu()]
                advance()
    _warn_of_poor(poor, len(utterances))
    return found


def keep_neighbours(path: Path, neighbours: Tensor, *, key: str) -> None:
    """Writes them, so that a run that goes on need not look for them again; `key` says what they depend on."""
    save_tensors({"neighbours": neighbours}, path, metadata={"key": key})


def kept_neighbours(path: Path, *, key: str) -> Tensor | None:
    """What `keep_neighbours` wrote under the same key, or None."""
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            found: Tensor = file.get_tensor("neighbours")
            return found
    except (OSError, SafetensorError):
        return None


def neighbours_key(*parts: object) -> str:
    """A key for `keep_neighbours`."""
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def _warn_of_poor(poor: dict[str, int], total: int) -> None:
    if not poor:
        return
    count = sum(poor.values())
    if count == total:
        raise SpeechsslError(
            "No speaker says enough in other utterances for any to be prematched: lower `train.least_pool`, or leave "
            "out `--prematch`."
        )
    names = ", ".join(f"'{name}'" for name in list(poor)[:MOST_NAMES])
    more = f" and {len(poor) - MOST_NAMES} more" if len(poor) > MOST_NAMES else ""
    logger.warning(
        "%d of %d utterances keep their own frames, since their speakers say too little else: %s%s.",
        count, total, names, more,
    )  # fmt: skip
