"""Random crops of long utterances that go through the upstream by themselves, and are cached.

A frozen feature is computed once; a protocol that hears another stretch of an utterance at each visit would rule that
out. Here a few stretches are drawn once per utterance, and each visit hears one of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from speechssl.data.seeds import make_generator
from speechssl.task import TaskConfig
from speechssl.types import Utterance

MARK = "#crop"
"""Ends the id of the utterance in that of a crop."""
Crops = Mapping[str, Sequence[Utterance]]
"""Utterance id -> its crops; utterances that are short enough are not in it."""


def draw_crops(utterance: Utterance, *, seconds: float, count: int) -> list[Utterance]:
    """Stretches of `seconds` that begin at random, the same on every machine; ids end in '#crop<k>'."""
    if utterance.duration is None or utterance.duration <= seconds:
        return []
    room = utterance.duration - seconds
    places = torch.rand(count, generator=make_generator("crop", utterance.id), dtype=torch.float64) * room
    return [
        replace(utterance, id=f"{utterance.id}{MARK}{k}", start=round(utterance.start + place, 4), duration=seconds)
        for k, place in enumerate(places.tolist())
    ]


def training_crops(utterances: Sequence[Utterance], config: TaskConfig) -> Crops:
    """The crops of `features.crops` and `train.max_duration`, of every longer training utterance."""
    seconds, count = config.train.max_duration, config.features.crops
    if seconds is None or count == 0:
        return {}
    drawn = {u.id: draw_crops(u, seconds=seconds, count=count) for u in utterances}
    return {name: crops for name, crops in drawn.items() if crops}


def choose_crops(utterances: Sequence[Utterance], crops: Crops, generator: torch.Generator) -> list[Utterance]:
    """Each utterance, or one of its crops at random."""
    chosen = []
    for utterance in utterances:
        found = crops.get(utterance.id)
        place = 0 if found is None else int(torch.randint(len(found), (), generator=generator))
        chosen.append(utterance if found is None else found[place])
    return chosen
