"""Configuration of the voice conversion task.

Paper: Baas et al. 2023, Voice Conversion With Just Nearest Neighbors, arXiv:2305.18975; Huang et al. 2022, S3PRL-VC,
arXiv:2110.06280.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from downstreams.voice_conversion.synthesis.config import (
    ANY_TO_ANY,
    ANY_TO_ONE,
    NETWORKS,
    AdversarialConfig,
    SynthesisConfig,
)
from speechssl.errors import ConfigError
from speechssl.task import FeatureConfig, TaskConfig, TrainConfig

EXTERNAL = "external"
"""Label of training utterances that discriminators alone hear."""


@dataclass(frozen=True)
class HeadConfig:
    """The network from features to log-mel."""

    width: int = 256
    blocks: int = 3
    """Residual blocks at the rate of the features."""
    refining_blocks: int = 2
    """Residual blocks at the rate of the log-mel."""
    kernel: int = 5
    """Frames that each convolution sees."""


@dataclass(frozen=True)
class VoiceConversionConfig(TaskConfig):
    """Conversion, its training data and its evaluation."""

    method: Literal["knn", "synthesis"] = "knn"
    """'knn' takes the frames of a target whom it need not know; 'synthesis' says the features in the one voice that it
    was trained on, or in that of an embedding."""
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    """Of 'synthesis'."""
    target: str | None = None
    """The one speaker that is converted to; None = those with the most train-split speech, or of the corpus's lists."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=20_000, batch_seconds=120.0, optimizer="adamw", learning_rate=5e-4, warmup_steps=500,
            schedule="cosine", evaluate_every=5_000,
        )
    )  # fmt: skip
    features: FeatureConfig = field(default_factory=FeatureConfig)
    """`layers: [k]` matches and synthesises on one layer, as the paper does with layer 6 of WavLM-Large."""
    head: HeadConfig = field(default_factory=HeadConfig)
    k: int = 4
    """Nearest reference frames that are averaged."""
    matching: Literal["raw", "standardised"] = "standardised"
    """Space of the cosine: the features as they are (the paper), or each dimension at mean 0 and deviation 1."""
    prematch: float = 0.5
    """Share of the training batches whose frames are replaced by the mean of the k nearest frames of the same speaker's
    other utterances in the batch; 0 trains on the frames as they are."""
    train_minutes: float | None = None
    """Of train-split speech for the head; None = all."""
    language: str = "en"
    """Of the sources; the judge of words reads English only."""
    source_seconds: tuple[float, float] = (2.0, 5.0)
    """Shortest and longest source."""
    targets: int = 10
    """Target speakers, those with the most speech in `target_splits`."""
    target_splits: tuple[str, ...] = ("train",)
    """Where the targets' speech comes from. Splits other than `train` give targets that say nothing in `train`, so that
    neither the head nor a vocoder trained there has heard them."""
    reference_seconds: float = 60.0
    """Of each target's speech that frames are taken from."""
    profile_utterances: int = 8
    """Of each target, outside the reference: what the judge of voices compares with."""
    dev_pairs: int = 20
    test_pairs: int = 200
    vocoder: str = "auto"
    """'hifigan', 'griffin_lim', 'auto' (the first where it can be had, or else the second), or a folder of
    `speechssl vocoder` or a checkpoint of HiFi-GAN or kNN-VC. On log-mel of any recipe, the head is built for it; on
    features, as in the paper, nothing is trained (`matching: raw`, `features.layers` the one layer that it reads)."""
    vocoder_precision: Literal["float32", "bf16"] = "float32"
    judges: Literal["packages", "none"] = "packages"
    """'none' measures only `mel_distance`, which needs no download."""
    examples: int = 8
    """Conversions of the test split that are kept as audio."""
    detector: str | None = None
    """Folder of a finished run of `deepfake_detection`, which is asked about each example; None = none is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.any_to_one and self.targets != 1:
            raise ConfigError(
                f"`method=synthesis` without `synthesis.network.speaker` learns one voice, but `targets` is "
                f"{self.targets}: set it to 1, and name the speaker in `target` if you like."
            )
        if not self.target_splits:
            raise ConfigError("`target_splits` names no split: name one, such as 'train'.")
        if self.any_to_one and self.target_splits != ("train",):
            raise ConfigError("`target_splits` must be [train] for any-to-one conversion, which learns one voice.")
        if self.synthesis.adversarial.enabled and not self.any_to_one:
            raise ConfigError("`synthesis.adversarial` is of any-to-one conversion: set its weights to 0.")
        layers = self.features.layers
        if self.synthesis.discretise.clusters and (layers is None or len(layers) != 1):
            raise ConfigError("`synthesis.discretise` is of one layer: name it, as in `features.layers=[6]`.")

    @property
    def any_to_one(self) -> bool:
        """Whether one voice is learned."""
        return self.method == "synthesis" and self.synthesis.network.speaker == "none"


def _one_voice(network: str, **changes: Any) -> VoiceConversionConfig:
    """S3PRL-VC's any-to-one conversion."""
    synthesis = SynthesisConfig(NETWORKS[network], **changes)
    return VoiceConversionConfig(train=ANY_TO_ONE, method="synthesis", synthesis=synthesis, targets=1)


PRESETS: dict[str, VoiceConversionConfig] = {
    "voice_conversion": VoiceConversionConfig(),
    "voice_conversion_demo": VoiceConversionConfig(
        train=TrainConfig(
            steps=600, batch_seconds=20.0, optimizer="adamw", learning_rate=2e-3, warmup_steps=20,
            schedule="cosine", evaluate_every=300, precision="bf16",
        ),
        head=HeadConfig(width=192, blocks=2, refining_blocks=1, kernel=3),
        train_minutes=20.0,
        source_seconds=(2.0, 4.0),
        targets=6,
        dev_pairs=6,
        test_pairs=18,
        profile_utterances=6,
        vocoder_precision="bf16",
        examples=6,
    ),
    "voice_conversion_a2o_simple": _one_voice("simple"),
    "voice_conversion_a2o_simple_ar": _one_voice("simple_ar"),
    "voice_conversion_a2o_taco2_ar": _one_voice("taco2_ar"),
    # Twice the batch, since half of it is external speech.
    "voice_conversion_a2o_disentangled": replace(
        _one_voice("taco2_ar", adversarial=AdversarialConfig(content_weight=0.1, mel_weight=0.1)),
        train=replace(ANY_TO_ONE, max_batch_size=12),
    ),
    "voice_conversion_a2a_taco2_ar": VoiceConversionConfig(
        train=ANY_TO_ANY,
        method="synthesis",
        synthesis=SynthesisConfig(replace(NETWORKS["taco2_ar"], speaker="concat")),
    ),
}  # fmt: skip
