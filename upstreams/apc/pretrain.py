"""Pre-training of APC and VQ-APC: the frame some steps ahead is predicted.

B batch, T frames, N scored frames, M mel bands, D width.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from speechssl.encoder.linear import Linear
from speechssl.errors import ConfigError
from speechssl.loss.reconstruction import RECONSTRUCTION_LIMITS, reconstruction_loss
from speechssl.objective import Labelling, Objective, PretrainInputs
from speechssl.quantizer.sliced import SlicedGumbelQuantizer
from speechssl.train.config import PretrainConfig
from speechssl.types import LossOutput
from upstreams.apc.config import PRESETS
from upstreams.apc.model import ApcUpstream


@dataclass(frozen=True)
class ApcPretrainConfig:
    """The objective; the defaults are those of APC.

    Papers: Chung et al. 2019, sec. 2, arXiv:1904.03240; Chung et al. 2020, sec. 2, arXiv:2005.08392; S3PRL's
    pretrain/{apc,vq_apc}.
    """

    steps_ahead: int = 5
    """Frames between what was heard last and what is predicted."""
    groups: int = 0
    """Codebooks that quantize the last layer before the prediction; 0 = none, which is APC."""
    entries: int = 512
    """Of each codebook."""
    temperature: float = 0.5
    """Of the softmax that the quantizer's gradients go through."""

    def __post_init__(self) -> None:
        if self.steps_ahead < 1:
            raise ConfigError(f"`steps_ahead` must be positive, but is {self.steps_ahead}.")


PRETRAIN_PRESETS: dict[str, ApcPretrainConfig] = {
    name: ApcPretrainConfig(groups=1 if name.startswith("apc_vq_") else 0) for name in PRESETS
}

_TRAIN = PretrainConfig(
    steps=879_000,
    batch_seconds=121.0,
    max_batch=8,
    batches_per_step=4,
    min_seconds=2.0,
    max_seconds=15.015,
    learning_rate=1e-4,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    schedule="tri_stage",
    warmup=0.0,
    hold=1.0,
    clip_norm=5.0,
)
"""100 epochs of LibriSpeech at 32 utterances per step, crops of 1500 frames, one rate all through. S3PRL's
config_runner, which leaves out utterances below 200 frames, of APC below 320; the authors clip at 1."""
_APC = replace(_TRAIN, min_seconds=3.2)

TRAIN_PRESETS: dict[str, PretrainConfig] = {
    **dict.fromkeys(PRESETS, _TRAIN),
    "apc_base": _APC,
    "apc_360h": replace(_APC, steps=325_000),
    "apc_vq_360h": replace(_TRAIN, steps=325_000),
}


class ApcPretraining(Objective):
    """An APC upstream with the layer that predicts frames, and for VQ-APC the quantizer before it.

    Frames without one `steps_ahead` of them within the utterance are not scored; S3PRL scores padding, too.
    """

    upstream: ApcUpstream

    def __init__(self, upstream: ApcUpstream, config: ApcPretrainConfig, labelling: Labelling) -> None:
        super().__init__(upstream, labelling)
        self.config = config
        width = upstream.hidden_sizes[-1]
        self.quantizer: SlicedGumbelQuantizer | None = None
        self.limits = dict(RECONSTRUCTION_LIMITS)
        if config.groups:
            self.quantizer = SlicedGumbelQuantizer(
                width, groups=config.groups, entries=config.entries, temperature=config.temperature
            )
            self.limits["code_perplexity"] = 1.2 * config.groups
        self.prediction: nn.Module = Linear(width, upstream.hidden_sizes[0])

    def forward(self, inputs: PretrainInputs, generator: torch.Generator) -> LossOutput:
        """See `Objective.forward`; the generator draws the quantizer's noise."""
        features, frames = self.upstream.extract_features(inputs.waveform, inputs.lengths)
        ahead, depth = self.config.steps_ahead, len(self.upstream.hidden_sizes) - 1
        size = max(features.size(1) - ahead, 1)  # one, of which nothing is scored, where all are too short
        hidden = self.upstream.encode(features[:, :size], layers=frozenset({depth}))[depth]  # (B, T - ahead, D)
        scored = torch.arange(size, device=frames.device) + ahead < frames[:, None]
        heard, target = hidden[scored], features[:, -size:][scored]  # (N, D), (N, M)
        if self.quantizer is None:
            return reconstruction_loss(self.prediction(heard), target)
        made = self.quantizer(heard, generator=generator)
        output = reconstruction_loss(self.prediction(made.quantized), target)
        usage = {"code_usage": made.usage.detach(), "probability_usage": made.probability.detach()}
        return replace(output, metrics={**output.metrics, **usage})


def build_pretraining(upstream: ApcUpstream, config: ApcPretrainConfig, labelling: Labelling) -> ApcPretraining:
    """Makes the objective around an upstream."""
    return ApcPretraining(upstream, config, labelling)
