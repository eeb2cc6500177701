"""How vocoders are trained, and the presets."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from speechssl.errors import ConfigError
from speechssl.vocoder.hifigan import KNNVC, V1
from speechssl.vocoder.istft import IstftConfig
from speechssl.vocoder.mel import MelConfig


@dataclass(frozen=True)
class VocoderTrainConfig:
    """The optimisation; the defaults are those of HiFi-GAN V1.

    Paper: Kong et al. 2020, sec. 3, arXiv:2010.05646, with config_v1.json and train.py of its code.
    """

    seed: int = 1234
    steps: int = 2_500_000
    """Updates of the generator, and of the discriminators."""
    batch_size: int = 16
    """Segments per update."""
    segment: int = 8192
    """Samples of a segment; a multiple of the hop. Utterances shorter than it are left out, and counted in the log."""
    learning_rate: float = 2e-4
    beta1: float = 0.8
    beta2: float = 0.99
    weight_decay: float = 0.01
    """Decoupled; what PyTorch's AdamW has where nothing is said, as in the code of the paper."""
    schedule: Literal["epochs", "cosine"] = "epochs"
    """'epochs' multiplies the rate by `decay` after each; 'cosine' lets it fall to 0 at the last step."""
    decay: float = 0.999
    clip_norm: float | None = None
    """Largest norm of the generator's gradient, and of the discriminators'; None = any, as published."""
    mel_weight: float = 45.0
    matching_weight: float = 2.0
    """Of the feature matching loss; the adversarial loss has weight 1."""
    stft_weight: float = 0.0
    """Of the multi-resolution spectral loss; 0 = it is not computed."""
    adversarial_from: int | None = 0
    """Updates before discriminators take part; None = they never do."""
    discriminator_divisor: int = 1
    """The discriminators' channels are the published ones over this: 1, 2, 4 or 8."""
    peak: float | None = 0.95
    """Largest sample that each utterance is scaled to; None = as it is, which features of an upstream ask for."""
    neighbours: int = 4
    """Nearest frames that prematching averages: Baas et al. 2023, arXiv:2305.18975."""
    least_pool: float = 4.0
    """Seconds of the same speaker's other utterances, below which an utterance is not prematched."""
    precision: Literal["float32", "bf16"] = "float32"
    """Mixed, where it is bf16; losses are computed in float32."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    """CPU threads of the computation; None = torch's own choice. Bit-exact resumption needs the same number."""
    log_every: int = 100
    save_every: int = 5_000
    keep: int = 2
    """Checkpoints that are kept."""
    num_workers: int = 2
    """Processes that read audio where the corpus does not fit `cache_gb`; 0 = one thread."""
    cache_gb: float = 4.0
    """A corpus up to this size (16-bit samples) is kept in memory once read."""
    max_bad: float = 0.001
    """Share of the utterances that may be unreadable: each is replaced by another one and named in the log."""

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "segment", "learning_rate", "log_every", "save_every", "keep", "neighbours")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ConfigError(f"`{name}` must be positive, but is {getattr(self, name)}.")
        for name in ("mel_weight", "matching_weight", "stft_weight", "least_pool", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"`{name}` must not be negative, but is {getattr(self, name)}.")
        if self.discriminator_divisor not in (1, 2, 4, 8):
            raise ConfigError(f"`discriminator_divisor` must be 1, 2, 4 or 8, but is {self.discriminator_divisor}.")
        for name in ("peak", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"`{name}` must be positive or null, but is {value}.")
        if self.adversarial_from is None and not self.mel_weight + self.stft_weight > 0:
            raise ConfigError("Without discriminators `mel_weight` or `stft_weight` must be positive.")


RUN_KEYS = frozenset({"accelerator", "log_every", "save_every", "keep", "num_workers", "max_bad", "threads", "steps"})
"""Keys that may differ when a run goes on, since they don't change what is computed; `steps` only where the schedule
does not end with them."""


@dataclass(frozen=True)
class VocoderConfig:
    """All settings of a run."""

    model: Any
    """`HifiGanConfig` or `IstftConfig`."""
    train: VocoderTrainConfig = field(default_factory=VocoderTrainConfig)


PRESETS: dict[str, VocoderConfig] = {
    "hifigan_v1": VocoderConfig(V1),
    # config_v1_wavlm.json: 7040 samples are 22 frames; the audio is not scaled, since the features are of it as it is.
    "knnvc": VocoderConfig(KNNVC, VocoderTrainConfig(segment=7040, peak=None)),
    # configs/vocos.yaml and experiment.py, but for the discriminators, which are HiFi-GAN's here, with their losses.
    "istft": VocoderConfig(
        IstftConfig(),
        VocoderTrainConfig(
            seed=4444, steps=1_000_000, segment=16_384, learning_rate=5e-4, beta2=0.9, schedule="cosine"
        ),
    ),
    # Without discriminators: spectral losses alone say within minutes what speech sounds like, if a little dull.
    "istft_demo": VocoderConfig(
        IstftConfig(mel=MelConfig(sample_rate=16_000, hop=320), width=256, inner=768, blocks=4),
        VocoderTrainConfig(
            seed=0, steps=3_000, segment=16_000, learning_rate=1e-3, beta2=0.99, schedule="cosine", clip_norm=10.0,
            stft_weight=10.0, adversarial_from=None, save_every=500,
        ),
    ),
}  # fmt: skip


def with_features(config: VocoderConfig, width: int) -> VocoderConfig:
    """The same on features of an upstream, `width` wide, with the audio as it is."""
    return VocoderConfig(replace(config.model, features=width), replace(config.train, peak=None))
