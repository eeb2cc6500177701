"""Settings of recognition-synthesis; the defaults are those that S3PRL-VC published.

Paper: Huang et al. 2022, S3PRL-VC, arXiv:2110.06280; the values are those of its code, `downstream/a2o-vc-vcc2020` and
`downstream/a2a-vc-vctk` of S3PRL (`config*.yaml`).
"""

from dataclasses import dataclass, field
from typing import Literal

from speechssl.errors import ConfigError
from speechssl.task import TrainConfig


@dataclass(frozen=True)
class NetworkConfig:
    """The network from features to log-mel; the defaults are those of Taco2-AR."""

    encoder: Literal["feedforward", "taco2"] = "taco2"
    """A linear layer and ReLU; or a linear layer, convolutions and an LSTM in both directions."""
    autoregressive: bool = True
    """Whether each frame is made with the one before it in view."""
    hidden: int = 1024
    """Width of what the encoder gives and of the LSTM layers."""
    conv_layers: int = 3
    conv_channels: int = 512
    conv_kernel: int = 5
    """Mel frames."""
    conv_dropout: float = 0.5
    prenet_layers: int = 2
    """Layers that the frame before goes through; 0 = dropout alone."""
    prenet_width: int = 256
    prenet_dropout: float = 0.5
    """On in conversion too, as published: the draws are those of `seed`."""
    lstmp_layers: int = 2
    """LSTM layers, each with a linear layer and tanh behind it."""
    lstmp_dropout: float = 0.2
    speaker: Literal["none", "add", "concat"] = "none"
    """How an embedding of the target joins what the encoder gives; 'none' = there is one target."""
    seed: int = 0
    """Of the dropout in conversion."""

    def __post_init__(self) -> None:
        for name in ("hidden", "conv_channels", "prenet_width", "lstmp_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`network.{name}` must be 1 or more, but is {getattr(self, name)}.")
        for name in ("conv_dropout", "prenet_dropout", "lstmp_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"`network.{name}` must be at least 0 and below 1, but is {getattr(self, name)}.")
        if self.encoder == "taco2" and (self.hidden % 2 or self.conv_kernel % 2 == 0):
            raise ConfigError(
                f"The taco2 encoder needs an even `network.hidden` and an odd `network.conv_kernel`, but they are "
                f"{self.hidden} and {self.conv_kernel}."
            )


@dataclass(frozen=True)
class DiscretiseConfig:
    """k-means of the features before the network, which leaves out much of who speaks.

    Several entries of `clusters` are an ensemble: what each of them says of a frame stands side by side.

    Paper: Huang et al. 2022, arXiv:2207.04356, which finds that it helps any-to-any conversion; the numbers here are
    choices of ours.
    """

    clusters: tuple[int, ...] = ()
    """Of each k-means; () = the features stay as they are."""
    partitions: int = 1
    """Parts that the features are cut into, each with a codebook of its own: product quantization."""
    folders: tuple[str, ...] = ()
    """Where a run has the centroids from: one folder of `speechssl cluster` for each of `clusters`; () = it fits them
    to what it trains on, and keeps them with its head."""
    frames: int = 200_000
    """Of the training data that the centroids are fitted to, at most, drawn at random."""

    def __post_init__(self) -> None:
        if any(count < 2 for count in self.clusters) or self.partitions < 1:
            raise ConfigError(
                f"`discretise.clusters` must be 2 or more each and `discretise.partitions` 1 or more, but they are "
                f"{self.clusters} and {self.partitions}."
            )


@dataclass(frozen=True)
class AdversarialConfig:
    """Two discriminators that hear speech of anybody beside the target's, and what they are worth.

    Paper: Zhao et al. 2023, arXiv:2305.09167. Sizes, weights and the length of the segments are choices of ours.
    """

    content_weight: float = 0.0
    """Of the reversed gradient that the encoder gets from telling external content from the target's."""
    mel_weight: float = 0.0
    """Of passing converted external speech off as log-mel of the target."""
    width: int = 256
    layers: int = 3
    """Convolutions of each discriminator, over `kernel` frames."""
    kernel: int = 5
    segment: int = 96
    """Mel frames of an external utterance that are converted per step, about a second."""

    def __post_init__(self) -> None:
        if min(self.content_weight, self.mel_weight) < 0:
            raise ConfigError(
                f"`adversarial.content_weight` and `adversarial.mel_weight` must be 0 or more, but are "
                f"{self.content_weight} and {self.mel_weight}."
            )
        if self.kernel % 2 == 0 or min(self.width, self.layers, self.segment) < 1:
            raise ConfigError(
                "`adversarial.kernel` must be odd, and `width`, `layers` and `segment` 1 or more, but they are "
                f"{self.kernel}, {self.width}, {self.layers} and {self.segment}."
            )

    @property
    def enabled(self) -> bool:
        """Whether there are discriminators."""
        return self.content_weight > 0 or self.mel_weight > 0


@dataclass(frozen=True)
class SynthesisConfig:
    """A network, and what is done to its features and to its training."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    discretise: DiscretiseConfig = field(default_factory=DiscretiseConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)


NETWORKS: dict[str, NetworkConfig] = {
    "simple": NetworkConfig(encoder="feedforward", autoregressive=False, hidden=512, prenet_layers=0),
    "simple_ar": NetworkConfig(encoder="feedforward", hidden=512, prenet_layers=0),
    "taco2_ar": NetworkConfig(),
}

# S3PRL's AdamW has no weight decay unless it is told to.
ANY_TO_ONE = TrainConfig(
    steps=10_000, batch_seconds=1e4, max_batch_size=6, optimizer="adamw", learning_rate=1e-4, warmup_steps=4_000,
    schedule="linear", clip_norm=1.0, evaluate_every=1_000,
)  # fmt: skip
ANY_TO_ANY = TrainConfig(
    steps=50_000, batch_seconds=1e4, max_batch_size=6, optimizer="adamw", learning_rate=1e-4, warmup_steps=4_000,
    schedule="linear", clip_norm=1.0, evaluate_every=1_000,
)  # fmt: skip
