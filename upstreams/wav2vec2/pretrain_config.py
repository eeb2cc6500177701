"""Settings of wav2vec 2.0's objective and of its published runs; free of torch where the shared configs are."""

import math
from dataclasses import dataclass, field, replace

from speechssl.augment.config import CorruptConfig
from speechssl.errors import ConfigError
from speechssl.train.config import PretrainConfig
from upstreams.wav2vec2.config import PRESETS


@dataclass(frozen=True)
class Wav2Vec2PretrainConfig:
    """The objective; the defaults are those of the published base model.

    Papers: Baevski et al. 2020, sec. 3 and 4.2, arXiv:2006.11477, and fairseq's wav2vec2_base_librispeech.yaml; Sriram
    et al. 2022 (wav2vec-Aug), arXiv:2206.13654; Lodagala et al. 2022 (ccc-wav2vec 2.0), arXiv:2210.02592.
    """

    mask_prob: float = 0.65
    """Expected fraction of hidden frames if spans did not overlap: fairseq's, 10 times the paper's p = 0.065."""
    mask_length: int = 10
    """Frames."""
    min_masks: int = 2
    """Spans per utterance."""
    require_same_masks: bool = False
    """Whether all utterances of a batch have as many hidden frames as the one with the fewest. fairseq needs that to
    draw distractors; here it only lessens what a batch of unequal lengths teaches."""
    feature_dropout: float = 0.1
    """On the normalised features that are quantized."""
    codebooks: int = 2
    codebook_entries: int = 320
    """Per codebook."""
    quantized_dim: int = 0
    """Width of a quantized frame; 0 = `final_dim`."""
    quantizer_depth: int = 1
    """Layers that make the logits (wav2vec-Aug's larger quantizer has more)."""
    quantizer_factor: int = 3
    """Width of those between them, over that of the features."""
    temperature: tuple[float, float, float] = (2.0, 0.5, 0.999995)
    """Of the Gumbel softmax: at the beginning, the least, and its factor per update."""
    final_dim: int = 256
    """Width in which context and targets are compared."""
    context_mlp: bool = False
    """Whether a gated layer follows the projection of the context."""
    target_mlp: bool = False
    """Whether one follows that of the targets."""
    distractors: int = 100
    logit_temperature: float = 0.1
    diversity_weight: float = 0.1
    features_penalty: float = 10.0
    """Weight of the mean square of the convolutional frontend's output, before its layer norm."""
    clean_weight: float = 1.0
    """Of the contrast of clean targets by what is made of clean speech."""
    disturbed_context_weight: float = 0.0
    """Of clean targets by what is made of disturbed speech."""
    disturbed_target_weight: float = 0.0
    """Of disturbed targets by what is made of clean speech."""
    corruption: CorruptConfig = field(default_factory=CorruptConfig)
    """How speech is disturbed."""
    cluster_factor: int = 0
    """Hidden frames per utterance and cluster; 0 = targets are not clustered."""
    cluster_scale: float = 0.3
    """On the scores of distractors in the target's cluster."""

    def __post_init__(self) -> None:
        weights = (self.clean_weight, self.disturbed_context_weight, self.disturbed_target_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise ConfigError(f"The contrasts' weights must be >= 0 and not all 0, but are {weights}.")

    @property
    def hears_disturbed(self) -> bool:
        """Whether there is a disturbed view."""
        return self.disturbed_context_weight > 0 or self.disturbed_target_weight > 0


BASE = Wav2Vec2PretrainConfig()
LARGE = replace(BASE, final_dim=768, feature_dropout=0.0, features_penalty=0.0, temperature=(2.0, 0.1, 0.999995))
"""fairseq's wav2vec2_large_librivox.yaml. On LibriSpeech alone the large model is regularised as base (sec. 4.2); those
of 1 B and more drop features again (the settings that stopes and AntiDeepfake keep of their checkpoints)."""
_BILLION = replace(LARGE, feature_dropout=0.1, final_dim=1024)
CCC = replace(
    BASE,
    disturbed_context_weight=0.5,
    disturbed_target_weight=0.5,
    corruption=CorruptConfig(white_prob=0.6, reverb_prob=0.7, noise_prob=0.8, noise_snr_db=(0.0, 15.0)),
    cluster_factor=16,
)
AUG = replace(
    BASE,
    clean_weight=0.0,
    disturbed_context_weight=1.0,
    corruption=CorruptConfig(pitch_prob=0.5, reverb_prob=0.5, noise_prob=0.5),
    quantizer_depth=2,
    context_mlp=True,
    target_mlp=True,
)
"""The paper's parts; how likely its disturbances are is our choice."""

TINY_PRESETS = ("wav2vec2_tiny",)
BASE_PRESETS = ("wav2vec2_base", "wav2vec2_voxpopuli_base_10k", "wav2vec2_voxpopuli_base_100k")
LARGE_PRESETS = tuple(
    name
    for name, config in PRESETS.items()
    if config.width >= 1024 and config.adapter_width is None  # adapters are of fine-tuning
)

PRETRAIN_PRESETS: dict[str, Wav2Vec2PretrainConfig] = {
    **dict.fromkeys(TINY_PRESETS, replace(BASE, feature_dropout=0.0)),
    **dict.fromkeys(BASE_PRESETS, BASE),
    "wav2vec2_ccc_base": CCC,
    "wav2vec2_aug_base": AUG,
    **dict.fromkeys(LARGE_PRESETS, LARGE),
    "wav2vec2_large": replace(LARGE, feature_dropout=0.1, features_penalty=10.0),
    **dict.fromkeys(("wav2vec2_xls_r_1b", "wav2vec2_xls_r_2b", "wav2vec2_mms_1b"), _BILLION),
}

TRAIN_BASE = PretrainConfig(steps=400_000, batches_per_step=64, clip_norm=math.inf)
"""64 GPUs with 87.5 s each, 1.6 h per step; warm-up 8 %, rate 5e-4; gradients are not clipped, as in fairseq's yaml."""
TRAIN_LARGE = PretrainConfig(
    steps=600_000, batch_seconds=75.0, batches_per_step=128, max_seconds=20.0, learning_rate=3e-4, clip_norm=math.inf
)
"""128 GPUs with 75 s each, 2.7 h per step. Rate, steps (LibriVox) and warm-up are the paper's, sec. 4.2, whose model
has its norms after. The published one has them before; its author speaks of 1 000 000 updates at a higher rate
(fairseq's issue 3520), which fairseq's yaml puts at 0.005, warmed up for 32 000."""

TRAIN_PRESETS: dict[str, PretrainConfig] = {
    **dict.fromkeys((*BASE_PRESETS, "wav2vec2_ccc_base", "wav2vec2_aug_base"), TRAIN_BASE),
    **dict.fromkeys(LARGE_PRESETS, TRAIN_LARGE),
    "wav2vec2_large": replace(TRAIN_LARGE, steps=250_000),
    "wav2vec2_xlsr_53": replace(TRAIN_LARGE, steps=250_000),
    "wav2vec2_xls_r_300m": replace(TRAIN_LARGE, steps=1_000_000),
    "wav2vec2_xls_r_1b": replace(TRAIN_LARGE, steps=1_000_000, learning_rate=1e-4),
    "wav2vec2_xls_r_2b": replace(
        TRAIN_LARGE, steps=1_000_000, batch_seconds=64.0, batches_per_step=200, learning_rate=8e-5, warmup=0.032
    ),
    "wav2vec2_mms_300m": replace(TRAIN_LARGE, steps=1_000_000),
    "wav2vec2_mms_1b": replace(TRAIN_LARGE, steps=1_000_000, learning_rate=1e-4),
}
"""XLS-R 2b is as the settings of its checkpoint say, which stopes keeps (200 GPUs with 64 s each). The rates and the
batches of the other multilingual ones are guessed from LARGE."""
