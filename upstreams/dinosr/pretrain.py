"""DinoSR's pre-training objective: predict which entries of online codebooks the teacher's layers are nearest to.

B batch, T frames, N hidden frames, D width, K codebooks, V entries.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.data.batching import make_generator
from speechssl.errors import ConfigError
from speechssl.lengths import lengths_to_padding_mask
from speechssl.masking.span import draw_span_mask
from speechssl.metric.tallies import USAGE, usage
from speechssl.objective import Labelling, PretrainInputs, Reduce
from speechssl.targets.ema_teacher import normed_results
from speechssl.targets.self_distillation import Heard, SelfDistillation
from speechssl.train.config import PretrainConfig, tiny
from speechssl.types import LossOutput
from upstreams.dinosr.codebooks import OnlineCodebooks
from upstreams.dinosr.model import DinoSRUpstream

SHARED = ("position.",)
"""Of the encoder, what the teacher takes from the student as it is."""
LEAST_PERPLEXITY = 1.5
"""Of each codebook in a healthy run: below, all frames are alike."""


@dataclass(frozen=True)
class DinoSRPretrainConfig:
    """The objective; the defaults are those of the published base model.

    Paper: Liu et al. 2023, sec. 3 and 4.1, arXiv:2305.10005, and the official code's config/base.yaml.
    """

    mask_prob: float = 0.80
    """Expected fraction of hidden frames if spans did not overlap."""
    mask_length: int = 10
    """Frames."""
    min_masks: int = 1
    """Spans per utterance."""
    require_same_masks: bool = True
    """Whether hidden frames are uncovered until all utterances of a micro-batch have equally many."""
    target_layers: int = 8
    """K: how many of the last blocks have a codebook."""
    codebook_entries: int = 256
    codebook_decay: float = 0.9
    codebook_init: Literal["normal", "frames"] = "normal"
    """What codebooks begin with: 'normal': random points, as published, of which in small batches most are never the
    nearest; 'frames': what the first teacher makes of random frames, for short runs."""
    ema_decay: float = 0.999
    """The teacher's, at the beginning."""
    ema_end_decay: float = 0.9999
    ema_ramp_steps: int = 30_000
    """Updates in which the decay rises linearly; short runs need a short ramp and lower decays."""
    freeze_step: int | None = 200_000
    """Updates after which the teacher no longer changes; None = it always does."""
    freeze_frontend: bool = True
    """Whether what makes the features, which student and teacher share, does not change from then on either."""


PRETRAIN_PRESETS: dict[str, DinoSRPretrainConfig] = {
    "dinosr_tiny": DinoSRPretrainConfig(
        target_layers=3,
        codebook_init="frames",
        ema_ramp_steps=2_000,
        freeze_step=None,
    ),
    "dinosr_base": DinoSRPretrainConfig(),
}
"""tiny: codebooks lose their entries where the teacher moves faster than they can follow."""

_BASE = PretrainConfig(
    steps=400_000,
    batch_seconds=237.5,
    batches_per_step=16,
    max_seconds=20.0,
    grid_seconds=0.02,
    learning_rate=5e-4,
    schedule="tri_stage",
    warmup=0.03,
    hold=0.47,
    final_scale=0.01,
    clip_norm=math.inf,
)

TRAIN_PRESETS: dict[str, PretrainConfig] = {
    "dinosr_tiny": tiny(_BASE),
    "dinosr_base": _BASE,
}
"""Base: 16 GPUs with 63 minutes of audio together, crops as long as the shortest of a batch, gradients not clipped. The
last rate is that of the code's settings, a hundredth of the highest; the paper has a tenth."""


class DinoSRPretraining(SelfDistillation):
    """A DinoSR upstream with its teacher, codebooks and prediction heads.

    Deviations from the official code: codebooks move once per update, by the frames of all micro-batches; layers are
    normed over valid frames; and the frontend does stop when the teacher does (there its saved state is a view of the
    very weights that it is to restore, so that they go on learning).
    """

    fit_batches = 4
    upstream: DinoSRUpstream

    def __init__(self, upstream: DinoSRUpstream, config: DinoSRPretrainConfig, labelling: Labelling) -> None:
        super().__init__(upstream, config, labelling, copied=SHARED)
        if not 0 <= config.codebook_decay <= 1 or config.codebook_entries < 1:
            raise ConfigError(
                "`codebook_decay` must lie in 0..1 and `codebook_entries` be positive, but they are "
                f"{config.codebook_decay} and {config.codebook_entries}."
            )
        self.config = config
        self.skips_blocks |= config.freeze_step is not None and config.freeze_frontend
        self.frozen = False
        width, count = upstream.config.width, config.target_layers
        self.codebooks = OnlineCodebooks(
            count, entries=config.codebook_entries, width=width, decay=config.codebook_decay
        )
        self.heads = nn.Linear(width, count * config.codebook_entries)
        self.limits = dict.fromkeys(("target_perplexity", "prediction_perplexity"), LEAST_PERPLEXITY * count)

    def forward(self, inputs: PretrainInputs, generator: torch.Generator) -> LossOutput:
        """See `Objective.forward`; the generator draws the mask and the blocks to skip."""
        config = self.config
        with torch.set_grad_enabled(torch.is_grad_enabled() and not (self.frozen and config.freeze_frontend)):
            heard = self.hear(inputs)
        mask = draw_span_mask(config, heard.frames, heard.projected.size(1), generator)  # (B, T)
        hidden = self.upstream.encode_projected(
            heard.projected,
            heard.padding_mask,
            layers=frozenset({self.depth}),
            mask=mask,
            skipped_blocks=self.skipped_blocks(generator),
        )[self.depth]
        logits = self.heads(hidden[mask]).view(-1, config.target_layers, config.codebook_entries)  # (N, K, V)
        return _score(logits.float(), self.targets(heard, mask))

    @torch.no_grad()
    def targets(self, heard: Heard, mask: Tensor) -> Tensor:
        """The codes of the hidden frames, (N, K) int64, for the mask (B, T)."""
        normed = normed_results(self.teacher_results(heard), heard.padding_mask)
        return self.codebooks.assign(layer[mask] for layer in normed)

    @torch.no_grad()
    def begin_run(self, batches: Iterable[PretrainInputs]) -> None:
        """See `Objective`: first codebooks, where they are made of frames."""
        if self.config.codebook_init != "frames":
            return
        parts: list[list[Tensor]] = []
        for inputs in batches:
            heard = self.hear(inputs)
            inside = ~lengths_to_padding_mask(heard.frames, heard.projected.size(1))
            results = normed_results(self.teacher_results(heard), heard.padding_mask)
            parts.append([layer[inside] for layer in results])
        layers = [torch.cat(layer) for layer in zip(*parts, strict=True)]
        self.codebooks.begin_with(layers, generator=make_generator("codebooks"))

    def begin_step(self, step: int) -> None:
        """See `Objective`."""
        super().begin_step(step)
        freeze = self.config.freeze_step
        self.frozen = freeze is not None and step >= freeze

    def end_step(self, step: int, reduce: Reduce) -> None:
        """See `Objective`: the codebooks move, and the teacher follows."""
        self.codebooks.end_step(reduce)
        if not self.frozen:
            super().end_step(step, reduce)


def _score(logits: Tensor, codes: Tensor) -> LossOutput:
    """Cross-entropy averaged over the codebooks.

    Args:
        logits: (N, K, V) float32.
        codes: (N, K) int64.

    Returns:
        the loss, summed over the frames; N; the sums of 'accuracy', and the (K, V) counts 'target_usage' and summed
        probabilities 'prediction_usage', whose perplexities are summed over the codebooks.

    Paper: Liu et al. 2023, eq. 5, arXiv:2305.10005, divided by K as in the official code.
    """
    N, K, V = logits.shape
    log_prob = logits.log_softmax(dim=2)
    loss = F.nll_loss(log_prob.view(N * K, V), codes.flatten(), reduction="sum") / K
    with torch.no_grad():
        correct = (logits.argmax(dim=2) == codes).sum() / K
        metrics = {
            "accuracy": correct,
            f"target{USAGE}": usage(codes, V),
            f"prediction{USAGE}": log_prob.exp().sum(dim=0),
        }
    return LossOutput(loss, torch.tensor(float(N), device=codes.device), metrics)


def build_pretraining(
    upstream: DinoSRUpstream, config: DinoSRPretrainConfig, labelling: Labelling
) -> DinoSRPretraining:
    """Makes the objective around an upstream."""
    return DinoSRPretraining(upstream, config, labelling)
