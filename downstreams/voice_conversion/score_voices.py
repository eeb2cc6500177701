"""Voices of a list of conversions: who is who, profiles of targets, and the threshold of acceptance."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from downstreams.voice_conversion.score_list import Conversion
from downstreams.voice_conversion.score_speech import Part, Speech
from speechssl.metric.detection import equal_error_rate


class Voices:
    """Embeds each recording once."""

    def __init__(self, conversions: Sequence[Conversion], speech: Speech, judge: Any) -> None:
        self.conversions = conversions
        self.speech = speech
        self.judge = judge
        self._embedded: dict[tuple[Path, Part], Tensor] = {}

    def embed(self, path: Path, part: Part = "all") -> Tensor:
        """(E,) of unit length."""
        if (path, part) not in self._embedded:
            self._embedded[path, part] = self.judge.embed(self.speech.read(path, part=part))
        return self._embedded[path, part]

    def profile(self, paths: Sequence[Path]) -> Tensor:
        """(E,) of a speaker: the normalised mean."""
        return F.normalize(torch.stack([self.embed(path) for path in paths]).mean(dim=0), dim=0)

    def held_out(self, conversion: Conversion) -> tuple[Tensor, Tensor] | None:
        """The target's speech through the vocoder, and a profile that it has no part in; None = there is too little."""
        if self.speech.vocoder is None:
            return None
        path, part = conversion.parallel or conversion.targets[0], "all"
        others = tuple(t for t in conversion.targets if t != path)
        if others:
            profile = self.profile(others)
        elif self.speech.has_halves(path):
            profile, part = self.embed(path, "first half"), "second half"
        else:
            return None
        return self.judge.embed(self.speech.copy(path, part=part)), profile

    def calibrate(self) -> tuple[float, float, int] | None:
        """(equal error rate, threshold, trials) on the list's real speech; None where one kind of trial is missing."""
        trials = list(self._trials())
        same, other = ([score for score, target in trials if target is kind] for kind in (True, False))
        return (*equal_error_rate(same, other), len(trials)) if same and other else None

    def _trials(self) -> Iterator[tuple[float, bool]]:
        """(similarity, whether it is the same speaker) of recordings and profiles of targets."""
        speakers = find_speakers(self.conversions)
        targets = {path for conversion in self.conversions for path in conversion.targets}
        spoken = {path: speakers[path] for c in self.conversions for path in (*c.targets, c.parallel, c.source) if path}
        for speaker in dict.fromkeys(speakers[path] for path in sorted(targets)):
            own = sorted(path for path in targets if speakers[path] == speaker)
            profile = self.profile(own)
            for path, who in spoken.items():
                if who != speaker:
                    yield float(self.embed(path) @ profile), False
                elif path not in targets:
                    yield float(self.embed(path) @ profile), True
            yield from ((score, True) for score in self._own_trials(own))

    def _own_trials(self, own: Sequence[Path]) -> Iterator[float]:
        """Each file against the others; of an only file one half against the other."""
        if len(own) > 1:
            for path in own:
                yield float(self.embed(path) @ self.profile([other for other in own if other != path]))
        elif self.speech.has_halves(own[0]):
            yield float(self.embed(own[0], "second half") @ self.embed(own[0], "first half"))


def find_speakers(conversions: Sequence[Conversion]) -> dict[Path, int]:
    """Number of the speaker of each real recording.

    The files of a target are one speaker's, and so are files that share a name in the list or any file.
    """
    parents: dict[Any, Any] = {}

    def find(node: Any) -> Any:
        parents.setdefault(node, node)
        while parents[node] != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    for c in conversions:
        for group in ((*c.targets, c.parallel, c.target_speaker), (c.source, c.source_speaker)):
            present = [node for node in group if node is not None]
            for node in present:
                parents[find(node)] = find(present[0])
    roots = list(dict.fromkeys(find(node) for node in parents))
    return {node: roots.index(find(node)) for node in parents if isinstance(node, Path)}
