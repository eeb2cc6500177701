"""UniSpeech-SAT's pre-training: HuBERT's on mixed utterances, and telling utterances apart by a layer in the middle.

B batch, T frames, D width, N hidden frames, G codebooks, V entries.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from speechssl.augment.utterance_mixing import MixingConfig
from speechssl.errors import ConfigError
from speechssl.loss.contrastive import diversity_loss
from speechssl.loss.utterance_contrast import utterance_contrast
from speechssl.masked_objective import MaskedPredictionConfig, MaskedPredictionObjective, make_norms
from speechssl.objective import Labelling
from speechssl.quantizer.gumbel import GumbelQuantizer
from speechssl.train.config import PretrainConfig
from speechssl.types import LossOutput
from upstreams.unispeech_sat.model import UniSpeechSatUpstream


def _mixing() -> MixingConfig:
    return MixingConfig(prob=0.2)


@dataclass(frozen=True)
class UniSpeechSatPretrainConfig(MaskedPredictionConfig):
    """The objective; the defaults are those of UniSpeech's `unispeech_sat.py` and its data set.

    Two are choices: that code quantizes only where it is told to, as the paper does, and its task mixes half of the
    utterances unless told otherwise, its data set a fifth. The weights of the terms are not in the published code; they
    are 1, as the paper's sum of both losses, and for the diversity that of wav2vec 2.0.

    Paper: Chen et al. 2022, sec. 3, arXiv:2110.05752.
    """

    mixing: MixingConfig = field(default_factory=_mixing)
    """What is mixed into the utterances whose labels are predicted."""
    contrast_layer: int = 6
    """Hidden state that tells utterances apart."""
    contrast_weight: float = 1.0
    contrast_others: int = 100
    """Hidden frames of the batch that each hidden frame is compared with."""
    quantize: bool = True
    """Whether what frames are compared with is quantized."""
    groups: int = 2
    """G."""
    entries: int = 320
    """V."""
    temperature: tuple[float, float, float] = (2.0, 0.5, 0.999995)
    """Of the Gumbel softmax: at the beginning, the least, and its factor per update."""
    diversity_weight: float = 0.1
    """Of the share of entries that are not in use."""


PRETRAIN_PRESETS: dict[str, UniSpeechSatPretrainConfig] = {
    "unispeech_sat_tiny": UniSpeechSatPretrainConfig(label_init="unit", contrast_layer=3),
    "unispeech_sat_base": UniSpeechSatPretrainConfig(),
    "unispeech_sat_base_plus": UniSpeechSatPretrainConfig(),
    "unispeech_sat_large": UniSpeechSatPretrainConfig(final_dim=768, contrast_layer=12),
}

BASE = PretrainConfig(steps=400_000)

TRAIN_PRESETS: dict[str, PretrainConfig] = {
    "unispeech_sat_base": BASE,
    "unispeech_sat_base_plus": BASE,
    "unispeech_sat_large": replace(
        BASE, batch_seconds=56.25, batches_per_step=128, learning_rate=1.5e-3, clip_norm=1.0
    ),
}
"""HuBERT's, which it is built upon."""


class UniSpeechSatPretraining(MaskedPredictionObjective):
    """A UniSpeech-SAT upstream with its heads: of labels, and of utterances."""

    upstream: UniSpeechSatUpstream
    config: UniSpeechSatPretrainConfig

    def __init__(
        self, upstream: UniSpeechSatUpstream, config: UniSpeechSatPretrainConfig, labelling: Labelling
    ) -> None:
        """See `MaskedPredictionObjective`."""
        super().__init__(upstream, config, labelling)
        if not 0 < config.contrast_layer <= self.depth:
            raise ConfigError(
                f"`objective.contrast_layer` must lie in 1..{self.depth}, but is {config.contrast_layer}."
            )
        width, dim = upstream.hidden_sizes[config.contrast_layer], config.final_dim
        self.contrast_norm = make_norms(upstream, [config.contrast_layer])
        self.utterance_projection = nn.Linear(width, dim)
        self.quantizer: GumbelQuantizer | None = None
        if config.quantize:
            self.quantizer = GumbelQuantizer(
                width, output_width=dim, groups=config.groups, entries=config.entries, temperature=config.temperature
            )
            self.quantized_projection = nn.Linear(dim, dim)

    @property
    def needed_layers(self) -> frozenset[int]:
        """See `MaskedPredictionObjective.needed_layers`."""
        return frozenset(self.layers) | {self.config.contrast_layer}

    def begin_step(self, step: int) -> None:
        """Sets the temperature of the quantizer."""
        if self.quantizer is not None:
            self.quantizer.begin_step(step)

    def further_loss(
        self, output: LossOutput, states: Mapping[int, Tensor], mask: Tensor, generator: torch.Generator
    ) -> LossOutput:
        """Adds that hidden frames are told from those of other utterances, and that all codes are in use."""
        config = self.config
        index = mask.flatten().nonzero().squeeze(1)  # (N,)
        frames = states[config.contrast_layer].flatten(0, 1).index_select(0, index)  # (N, D)
        for norm in self.contrast_norm.values():
            frames = norm(frames)
        context = self.utterance_projection(frames)  # (N, E)
        targets, loss, metrics = context, output.loss_sum, dict(output.metrics)
        if self.quantizer is not None:
            quantized = self.quantizer(frames, generator=generator)
            targets = self.quantized_projection(quantized.quantized)
            diversity = diversity_loss(quantized.probability, output.sample_size) * output.sample_size
            loss = loss + config.diversity_weight * diversity
            metrics |= {
                "diversity_loss": diversity.detach(),
                "contrast_code_usage": quantized.usage,
                "contrast_probability_usage": quantized.probability.detach(),
            }
        found = utterance_contrast(
            context,
            targets,
            index // mask.size(1),
            number=config.contrast_others,
            temperature=config.logit_temperature,
            generator=generator,
        )
        metrics |= {
            "contrast_loss": found.loss_sum.detach(),
            "contrast_accuracy": found.accuracy,
            "contrast_same": found.same,
        }
        return LossOutput(loss + config.contrast_weight * found.loss_sum, output.sample_size, metrics)


def build_pretraining(
    upstream: UniSpeechSatUpstream, config: UniSpeechSatPretrainConfig, labelling: Labelling
) -> UniSpeechSatPretraining:
    """Makes the objective around an upstream."""
    return UniSpeechSatPretraining(upstream, config, labelling)
