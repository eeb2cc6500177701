"""Objectives that the tests of the pre-training engine train, and a program that trains one of them under torchrun."""

import hashlib
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from pretraining_runs import arguments
from torch import nn

from speechssl.encoder import linear
from speechssl.objective import Objective
from speechssl.targets.ema_teacher import EmaTeacher
from speechssl.train import run
from speechssl.types import LossOutput


class Following(Objective):
    """A student whose features are drawn to those of its own average; notes what it is called with."""

    uses_labels = True
    fit_batches = 3

    def __init__(self, upstream, labelling):
        super().__init__(upstream, labelling)
        self.skips_blocks = upstream.config.layerdrop > 0
        self.teacher = EmaTeacher(upstream.encoder)
        self.head = nn.Linear(upstream.config.width, upstream.config.width)
        self.register_buffer("offset", torch.zeros(upstream.config.width))
        self.register_buffer("frames_seen", torch.zeros(()))
        self._frames = torch.zeros(())
        self.calls = []

    def begin_run(self, batches):
        seen = [batch.waveform for batch in batches]
        with torch.no_grad():
            hidden = [self.upstream(w, layers=[1]).hidden_states[1].mean(dim=(0, 1)) for w in seen]
        self.offset.copy_(torch.stack(hidden).mean(dim=0))
        if "NOTES" in os.environ:
            note = " ".join(hashlib.sha1(w.numpy().tobytes()).hexdigest() for w in seen)
            Path(os.environ["NOTES"], f"{os.getpid()}").write_text(note)
        self.calls.append(("begin_run", len(seen)))

    def begin_step(self, step):
        self.calls.append(("begin_step", step))

    def forward(self, inputs, generator):
        depth = len(self.upstream.hidden_sizes) - 1
        features, frames = self.upstream.extract_features(inputs.waveform, inputs.lengths)
        mask = torch.rand(features.shape[:2], generator=generator) < 0.5
        skipped = frozenset({0}) if self.skips_blocks and torch.rand((), generator=generator) < 0.5 else frozenset()
        hidden = self.upstream.encode(features, frames, layers=frozenset({depth}), mask=mask, skipped_blocks=skipped)
        with torch.no_grad():
            x = self.upstream.projection(self.upstream.feature_norm(features))
            *_, target = self.teacher.module.feed_forward_results(x, None, blocks=frozenset({depth - 1}))
        loss = F.mse_loss(self.head(hidden[depth][mask]).float(), target[mask].float() + self.offset, reduction="sum")
        self._frames = self._frames + mask.sum()
        return LossOutput(loss, mask.sum(), {"distance": loss.detach()})

    def end_step(self, step, reduce):
        self.calls.append(("end_step", step))
        self.frames_seen += reduce({"frames": self._frames})["frames"]
        self._frames = torch.zeros(())
        self.teacher.update(self.upstream.encoder, 0.9)


def install():
    """Makes `pretrain` train `Following`, whatever its preset."""
    # Sharded weights are not packed, and Adam makes much of the rounding by which the other kernel differs.
    linear.MOST_PACKED = 0
    made = []

    def build(upstream, _config, labelling):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made.append(Following(upstream, labelling))
        return made[-1]

    run.build_objective = build
    return made


if __name__ == "__main__":
    from speechssl.cli import main

    install()
    corpus, labels, output = map(Path, sys.argv[1:4])
    main(arguments(corpus, labels, output, *sys.argv[4:]))
