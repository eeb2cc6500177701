"""Diarization heads on voices that are easy to tell: what went wrong would be an error between labels and segments."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from downstreams.diarization.config import DiarizationConfig, HeadKind
from downstreams.diarization.decision import Decision, measure
from downstreams.diarization.task import TASK
from speechssl.fitting import schedule
from speechssl.task import TaskData, TrainConfig
from speechssl.types import Utterance

RATE, FRAMES, STEPS = 10.0, 60, 240
CONFIG = DiarizationConfig(
    train=TrainConfig(steps=STEPS, learning_rate=1e-2, warmup_steps=10, schedule="linear"), hidden_size=32
)
NOTHING = TaskData({})


def conversation(number: int, voices: Tensor, generator: torch.Generator) -> tuple[Utterance, Tensor]:
    """Turns of two of the voices, with pauses and overlaps; which name comes first says nothing of the voice."""
    pair = torch.randperm(len(voices), generator=generator)[:2].tolist()
    names = [f"v{k}" for k in torch.randperm(2, generator=generator).tolist()]
    features = 0.3 * torch.randn(FRAMES, voices.size(1), generator=generator)
    begin, turn = int(torch.randint(0, 4, (), generator=generator)), 0
    segments: list[list[object]] = []
    while begin < FRAMES:
        end = min(FRAMES, begin + int(torch.randint(5, 16, (), generator=generator)))
        features[begin:end] += voices[pair[turn % 2]]
        segments.append([names[turn % 2], begin / RATE, end / RATE])
        begin, turn = end + int(torch.randint(-2, 4, (), generator=generator)), turn + 1
    return Utterance(f"r{number}", "", 0.0, FRAMES / RATE, {"segments": segments}), features


@pytest.mark.parametrize("kind", ["lstm", "blstm"])
def test_a_head_tells_voices_apart_in_conversations_that_it_was_not_trained_on(kind: HeadKind) -> None:
    generator = torch.Generator().manual_seed(0)
    voices = 3.0 * torch.eye(8)[:4]
    task = TASK(replace(CONFIG, head=kind))
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        head = task.build_head(8, RATE, NOTHING)
    held_out = [conversation(k, voices, generator) for k in range(40)]
    optimizer = torch.optim.Adam(head.parameters())
    for step in range(1, STEPS + 1):
        optimizer.param_groups[0]["lr"] = CONFIG.train.learning_rate * schedule(CONFIG.train, step)
        batch = [conversation(k, voices, generator) for k in range(16)]
        features, utterances = torch.stack([x for _, x in batch]), [u for u, _ in batch]
        out = task.loss(head, features, torch.full((16,), FRAMES), utterances, NOTHING, generator)
        optimizer.zero_grad()
        (out.loss_sum / out.sample_size).backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
    features, utterances = torch.stack([x for _, x in held_out]), [u for u, _ in held_out]
    with torch.no_grad():
        found = task.predict(head.eval(), features, torch.full((40,), FRAMES), utterances, NOTHING)
    activities = dict(zip([u.id for u in utterances], found, strict=True))
    errors, _ = measure(utterances, activities, Decision(0.5, 1), frame_rate=RATE)
    somebody = {name: np.stack((a.max(axis=1), np.zeros(len(a))), axis=1) for name, a in activities.items()}
    of_one, _ = measure(utterances, somebody, Decision(0.5, 1), frame_rate=RATE)
    assert errors.rate().value < 0.05
    assert of_one.rate().value > 0.3  # what is reached by hearing when somebody speaks, and not who
