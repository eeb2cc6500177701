"""WavLM's pre-training: HuBERT's on utterances that others or noise were mixed into, with the clean ones' labels."""

from dataclasses import dataclass, field, replace

from speechssl.augment.utterance_mixing import MixingConfig
from speechssl.masked_objective import MaskedPredictionConfig, MaskedPredictionObjective
from speechssl.objective import Labelling
from speechssl.train.config import PretrainConfig
from upstreams.wavlm.model import WavLMUpstream


def _mixing() -> MixingConfig:
    return MixingConfig(prob=0.2, noise_prob=0.1)


@dataclass(frozen=True)
class WavLMPretrainConfig(MaskedPredictionConfig):
    """The objective; the defaults are those of base+, and of large but for `final_dim`.

    A fifth of the utterances is mixed, as UniSpeech's `utterance_mixing_dataset.py` has it, at its energy ratios. A
    tenth of that is noise, where noise is given; for the base model, none.

    Paper: Chen et al. 2022, sec. IV-B and V-A, arXiv:2110.13900.
    """

    mixing: MixingConfig = field(default_factory=_mixing)
    """What is mixed into the utterances whose labels are predicted."""


PRETRAIN_PRESETS: dict[str, WavLMPretrainConfig] = {
    "wavlm_tiny": WavLMPretrainConfig(label_init="unit"),
    "wavlm_base": WavLMPretrainConfig(mixing=MixingConfig(prob=0.2)),
    "wavlm_base_plus": WavLMPretrainConfig(),
    "wavlm_large": WavLMPretrainConfig(final_dim=768),
}

BASE = PretrainConfig(steps=400_000, batch_seconds=350.0, warmup=0.08)

TRAIN_PRESETS: dict[str, PretrainConfig] = {
    "wavlm_base": BASE,
    "wavlm_base_plus": replace(BASE, steps=1_000_000, warmup=0.032),
    "wavlm_large": replace(
        BASE,
        steps=700_000,
        batch_seconds=112.5,
        batches_per_step=64,
        warmup=32 / 700,
        learning_rate=1.5e-3,
        clip_norm=1.0,
    ),
}
"""Of the second iteration of each, with HuBERT's learning rates; the rate rises for 32,000 steps. Base: 350 s on each
of 32 GPUs, or 187 minutes, as DinoSR's authors count it. Large's batch is from memory of the paper."""


class WavLMPretraining(MaskedPredictionObjective):
    """A WavLM upstream with its prediction head."""


def build_pretraining(upstream: WavLMUpstream, config: WavLMPretrainConfig, labelling: Labelling) -> WavLMPretraining:
    """Makes the objective around an upstream."""
    return WavLMPretraining(upstream, config, labelling)
