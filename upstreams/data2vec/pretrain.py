"""data2vec's pre-training objective: regress what a moving average of the model makes of the unmasked speech.

B batch, T frames, N hidden frames, D width.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from speechssl.loss.regression import REGRESSION_LIMITS, regression_loss
from speechssl.masking.span import draw_span_mask
from speechssl.objective import Labelling, PretrainInputs
from speechssl.targets.ema_teacher import average_results
from speechssl.targets.self_distillation import SelfDistillation
from speechssl.train.config import PretrainConfig, tiny
from speechssl.types import LossOutput
from upstreams.data2vec.model import Data2VecUpstream

SHARED = ("position.",)
"""Of the encoder, what the teacher takes from the student as it is."""


@dataclass(frozen=True)
class Data2VecPretrainConfig:
    """The objective; the defaults are those of the published base model.

    Paper: Baevski et al. 2022, sec. 3 and 4.2, arXiv:2202.03555, and fairseq's base_librispeech.yaml.
    """

    mask_prob: float = 0.65
    """Expected fraction of hidden frames if spans did not overlap."""
    mask_length: int = 10
    """Frames."""
    min_masks: int = 1
    """Spans per utterance."""
    require_same_masks: bool = True
    """Whether hidden frames are uncovered until all utterances of a micro-batch have equally many."""
    target_layers: int = 8
    """How many of the last blocks are averaged."""
    loss_beta: float = 0.0
    """Error below which smooth L1 is squared; 0 = the squared error everywhere."""
    loss_scale: float | None = None
    """None = 1 / sqrt(width)."""
    ema_decay: float = 0.999
    """The teacher's, at the beginning."""
    ema_end_decay: float = 0.9999
    ema_ramp_steps: int = 30_000
    """Updates in which the decay rises linearly; short runs need a short ramp and lower decays."""


PRETRAIN_PRESETS: dict[str, Data2VecPretrainConfig] = {
    "data2vec_tiny": Data2VecPretrainConfig(target_layers=3, ema_ramp_steps=2_000),
    "data2vec_base": Data2VecPretrainConfig(),
    "data2vec_large": Data2VecPretrainConfig(),
}
"""fairseq has no settings of its own for the large model: those of base."""

_BASE = PretrainConfig(
    steps=400_000,
    batch_seconds=237.5,
    batches_per_step=16,
    max_seconds=20.0,
    grid_seconds=0.02,
    learning_rate=5e-4,
    schedule="tri_stage",
    warmup=0.03,
    hold=0.9,
    final_scale=0.01,
    clip_norm=math.inf,
)

TRAIN_PRESETS: dict[str, PretrainConfig] = {
    "data2vec_tiny": tiny(_BASE, hold=0.8),
    "data2vec_base": _BASE,
    "data2vec_large": _BASE,
}
"""Base: 16 GPUs with 63 minutes of audio together, crops as long as the shortest of a batch, gradients not clipped."""


class Data2VecPretraining(SelfDistillation):
    """A data2vec upstream with its teacher and regression head.

    The teacher is an average of the transformer's blocks (and of the norm before them); the positional convolutions are
    the student's. It hears the features before dropout and masking.

    Deviation: targets are normed over valid frames, see `instance_norm`.
    """

    limits = REGRESSION_LIMITS
    upstream: Data2VecUpstream

    def __init__(self, upstream: Data2VecUpstream, config: Data2VecPretrainConfig, labelling: Labelling) -> None:
        super().__init__(upstream, config, labelling, copied=SHARED)
        self.config = config
        self.final_proj = nn.Linear(upstream.config.width, upstream.config.width)

    def forward(self, inputs: PretrainInputs, generator: torch.Generator) -> LossOutput:
        """See `Objective.forward`; the generator draws the mask and the blocks to skip."""
        heard, config = self.hear(inputs), self.config
        mask = draw_span_mask(config, heard.frames, heard.projected.size(1), generator)  # (B, T)
        hidden = self.upstream.encode_projected(
            heard.projected,
            heard.padding_mask,
            layers=frozenset({self.depth}),
            mask=mask,
            skipped_blocks=self.skipped_blocks(generator),
        )[self.depth]
        with torch.no_grad():
            target = average_results(self.teacher_results(heard), heard.padding_mask)  # (B, T, D)
        return regression_loss(
            self.final_proj(hidden[mask]), target[mask], beta=config.loss_beta, scale=config.loss_scale
        )


def build_pretraining(
    upstream: Data2VecUpstream, config: Data2VecPretrainConfig, labelling: Labelling
) -> Data2VecPretraining:
    """Makes the objective around an upstream."""
    return Data2VecPretraining(upstream, config, labelling)
