"""Pre-training of NPC: each frame is predicted from its surroundings.

B batch, T frames, N valid frames, M mel bands, D width.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from speechssl.encoder.batch_norm import batch_norms, set_learning, update_batch_norms
from speechssl.encoder.linear import Linear
from speechssl.loss.reconstruction import RECONSTRUCTION_LIMITS, reconstruction_loss
from speechssl.objective import Labelling, Objective, PretrainInputs, Reduce
from speechssl.quantizer.sliced import SlicedGumbelQuantizer
from speechssl.train.config import PretrainConfig
from speechssl.types import LossOutput
from upstreams.npc.config import PRESETS
from upstreams.npc.model import NpcUpstream


@dataclass(frozen=True)
class NpcPretrainConfig:
    """The objective; the defaults are those of the published model.

    Paper: Liu et al. 2021, sec. 2 and 3.1, arXiv:2011.00406, and the authors' npc_example.yml.
    """

    groups: int = 4
    """Codebooks that quantize what the frame is predicted from; 0 = none."""
    entries: int = 64
    """Of each codebook."""
    temperature: float = 1.0
    """Of the softmax that the quantizer's gradients go through."""


PRETRAIN_PRESETS: dict[str, NpcPretrainConfig] = dict.fromkeys(PRESETS, NpcPretrainConfig())

_TRAIN = PretrainConfig(
    steps=879_000,
    batch_seconds=481.0,
    max_batch=32,
    batches_per_step=1,
    min_seconds=2.0,
    max_seconds=15.015,
    learning_rate=1e-3,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    schedule="tri_stage",
    warmup=0.0,
    hold=1.0,
    clip_norm=5.0,
)
"""100 epochs of LibriSpeech at 32 utterances per step, crops of 1500 frames, one rate all through. S3PRL's
config_runner."""

TRAIN_PRESETS: dict[str, PretrainConfig] = {
    "npc_tiny": replace(_TRAIN, min_seconds=0.5),
    "npc_base": _TRAIN,
    "npc_360h": replace(_TRAIN, steps=325_000),
}


class NpcPretraining(Objective):
    """An NPC upstream with its quantizer and the layer that predicts frames.

    Batch norms take their statistics from the valid frames of each micro-batch, as the authors' do from all frames of
    each batch; the running ones follow those of all micro-batches of a step, whatever process they were in.
    """

    upstream: NpcUpstream

    def __init__(self, upstream: NpcUpstream, config: NpcPretrainConfig, labelling: Labelling) -> None:
        super().__init__(upstream, labelling)
        self.config = config
        width = upstream.hidden_sizes[-1]
        self.limits = dict(RECONSTRUCTION_LIMITS)
        self.quantizer: SlicedGumbelQuantizer | None = None
        if config.groups:
            self.quantizer = SlicedGumbelQuantizer(
                width, groups=config.groups, entries=config.entries, temperature=config.temperature
            )
            self.limits["code_perplexity"] = 1.2 * config.groups
        self.prediction: nn.Module = Linear(width, upstream.hidden_sizes[0])
        set_learning(batch_norms(upstream).values())

    def forward(self, inputs: PretrainInputs, generator: torch.Generator) -> LossOutput:
        """See `Objective.forward`; the generator draws the quantizer's noise."""
        features, frames = self.upstream.extract_features(inputs.waveform, inputs.lengths)
        depth = len(self.upstream.hidden_sizes) - 1
        hidden = self.upstream.encode(features, frames, layers=frozenset({depth}))[depth]  # (B, T, D)
        inside = torch.arange(features.size(1), device=frames.device) < frames[:, None]
        seen, target = hidden[inside], features[inside]  # (N, D), (N, M)
        if self.quantizer is None:
            return reconstruction_loss(self.prediction(seen), target)
        made = self.quantizer(seen, generator=generator)
        output = reconstruction_loss(self.prediction(made.quantized), target)
        usage = {"code_usage": made.usage.detach(), "probability_usage": made.probability.detach()}
        return replace(output, metrics={**output.metrics, **usage})

    def end_step(self, step: int, reduce: Reduce) -> None:  # noqa: ARG002  # the same at every step
        """Moves the running statistics of the batch norms."""
        update_batch_norms(batch_norms(self.upstream), reduce)


def build_pretraining(upstream: NpcUpstream, config: NpcPretrainConfig, labelling: Labelling) -> NpcPretraining:
    """Makes the objective around an upstream."""
    return NpcPretraining(upstream, config, labelling)
