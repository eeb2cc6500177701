"""Pre-training of TERA, Mockingjay and Audio ALBERT: frames are rebuilt from altered ones.

B batch, T frames, C channels, D width.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.encoder.linear import Linear
from speechssl.errors import ConfigError
from speechssl.frontend.normalized_mel import NormalizedCentredMel
from speechssl.loss.reconstruction import RECONSTRUCTION_LIMITS, reconstruction_loss
from speechssl.masking.alteration import AlterationConfig, alter
from speechssl.objective import Labelling, Objective, PretrainInputs
from speechssl.train.config import PretrainConfig
from speechssl.types import LossOutput
from upstreams.tera.config import PRESETS
from upstreams.tera.model import TeraUpstream, init_bert


@dataclass(frozen=True)
class TeraPretrainConfig:
    """The objective; the defaults are those of TERA along time, frequency and magnitude.

    Paper: Liu et al. 2021, sec. III, arXiv:2007.06028, and S3PRL's pretrain/tera.
    """

    alteration: AlterationConfig = field(default_factory=AlterationConfig)
    target: Literal["features", "spectrum"] = "features"
    """What is rebuilt: the unaltered features, or the log power spectrum, normalised like them (Mockingjay large)."""


_TIME = TeraPretrainConfig(AlterationConfig(channel_proportion=0.0, noise_prob=0.0))
_TIME_FREQUENCY = TeraPretrainConfig(AlterationConfig(noise_prob=0.0))

PRETRAIN_PRESETS: dict[str, TeraPretrainConfig] = {
    **dict.fromkeys(("tera_tiny", "tera_base", "tera_base_100h", "tera_medium", "tera_large"), TeraPretrainConfig()),
    "tera_fbank_base": _TIME_FREQUENCY,
    "tera_mockingjay_base": _TIME,
    "tera_mockingjay_large": replace(_TIME, target="spectrum"),
    "tera_audio_albert": _TIME,
}

_TRAIN = PretrainConfig(
    steps=1_000_000,
    batch_seconds=121.0,
    max_batch=8,
    batches_per_step=4,
    min_seconds=2.0,
    max_seconds=14.99,
    learning_rate=2e-4,
    beta2=0.999,
    eps=1e-8,
    decay_vectors=False,
    warmup=0.07,
    clip_norm=5.0,
)
"""32 utterances per step, crops of 1500 frames. S3PRL's runner_config; its AdamW spares biases and gains."""

TRAIN_PRESETS: dict[str, PretrainConfig] = {
    **dict.fromkeys(PRESETS, _TRAIN),
    "tera_base_100h": replace(_TRAIN, steps=200_000),
    "tera_fbank_base": replace(_TRAIN, steps=200_000, max_seconds=15.015),
    "tera_mockingjay_large": replace(_TRAIN, steps=500_000, max_seconds=4.99, batch_seconds=40.0),
}


class SpectrumHead(nn.Module):
    """Dense layer, GELU, layer norm, and a dense layer to frames."""

    def __init__(self, width: int, outputs: int, *, eps: float) -> None:
        super().__init__()
        self.dense = Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.output = Linear(width, outputs)
        self.apply(lambda module: init_bert(module, eps=eps))

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, C)."""
        return self.output(self.norm(F.gelu(self.dense(hidden))))  # type: ignore[no-any-return]  # nn.Module returns Any


class TeraPretraining(Objective):
    """A TERA upstream with the head that rebuilds frames.

    The loss is taken over what was altered along time or frequency, valid frames only: whole frames of the spans, and
    the band's channels in all frames.
    """

    limits = RECONSTRUCTION_LIMITS
    upstream: TeraUpstream

    def __init__(self, upstream: TeraUpstream, config: TeraPretrainConfig, labelling: Labelling) -> None:
        super().__init__(upstream, labelling)
        self.config = config
        frontend = upstream.frontend
        self.spectral: NormalizedCentredMel | None = None
        outputs = frontend.width
        if config.target == "spectrum":
            if not isinstance(frontend, NormalizedCentredMel):
                raise ConfigError("`target` must be 'features' with the frontend 'fbank', but is 'spectrum'.")
            if config.alteration.channel_proportion > 0:
                raise ConfigError(
                    "`channel_proportion` must be 0 with the target 'spectrum', whose channels are others."
                )
            self.spectral, outputs = frontend, frontend.spectrum_width
        self.head = SpectrumHead(upstream.hidden_sizes[-1], outputs, eps=upstream.config.norm_eps)

    def forward(self, inputs: PretrainInputs, generator: torch.Generator) -> LossOutput:
        """See `Objective.forward`; the generator draws the alteration."""
        inside = torch.arange(inputs.waveform.size(1), device=inputs.waveform.device) < inputs.lengths[:, None]
        waveform = torch.where(inside, inputs.waveform, 0.0)
        features, frames = self.upstream.extract_features(waveform, inputs.lengths)
        altered = alter(features, frames, self.config.alteration, generator=generator)
        depth = len(self.upstream.hidden_sizes) - 1
        hidden = self.upstream.encoder(altered.features, frames, layers=frozenset({depth}))[depth]
        predicted = self.head(hidden)  # (B, T, C)
        if self.spectral is None:
            return reconstruction_loss(predicted, features, scored=altered.mask)
        target = self.spectral.spectrum(waveform, inputs.lengths)[:, : features.size(1)]
        return reconstruction_loss(predicted, target, scored=altered.mask[:, :, :1])


def build_pretraining(upstream: TeraUpstream, config: TeraPretrainConfig, labelling: Labelling) -> TeraPretraining:
    """Makes the objective around an upstream."""
    return TeraPretraining(upstream, config, labelling)
