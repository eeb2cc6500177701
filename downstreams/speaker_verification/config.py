"""Settings of speaker verification; see README.md for where each comes from."""

from dataclasses import dataclass, field
from typing import Literal

from speechssl.errors import ConfigError
from speechssl.loss.margin import MarginKind
from speechssl.task import FeatureConfig, TaskConfig, TrainConfig

Head = Literal["xvector", "ecapa", "mhfa"]


@dataclass(frozen=True)
class EcapaConfig:
    """Sizes of ECAPA-TDNN; the defaults are the smaller ones of the paper (6.2 million numbers from 80 dimensions)."""

    channels: int = 512
    """Of the convolutions; 1024 in the larger model of the paper (14.7 million)."""
    pooled: int = 1536
    """Of what is pooled."""
    groups: int = 8
    """Into which the channels of a block are parted."""
    squeezed: int = 128
    """Width of the bottlenecks of excitation and attention."""
    embedding: int = 192

    def __post_init__(self) -> None:
        if self.groups < 2 or self.channels % self.groups:
            raise ConfigError(
                f"`ecapa.channels` must be a multiple of `ecapa.groups` (2 or more), but they are {self.channels} and "
                f"{self.groups}."
            )


@dataclass(frozen=True)
class MhfaConfig:
    """Sizes of multi-head factorised attentive pooling; the defaults are those of its code."""

    heads: int = 8
    compressed: int = 128
    """Width that keys and values are brought to."""
    embedding: int = 256


@dataclass(frozen=True)
class SpeakerVerificationConfig(TaskConfig):
    """SUPERB's speaker verification."""

    languages: tuple[str, ...] | None = None
    """Languages to train and test on; None = all."""
    max_train_utterances: int | None = None
    """Most training utterances per speaker, chosen by a hash of their ids; None = all."""
    max_eval_utterances: int | None = 60
    """Most dev, and most test, utterances per speaker and language: trials grow with its square. None = all."""
    max_trials: int = 20_000
    """Most trials of each kind and label, drawn evenly; what is beyond is counted in the log."""
    speeds: tuple[float, ...] = ()
    """Speeds at which each training utterance is heard too, as another speaker's (see perturb.py); SUPERB has none."""
    frame_rate: float | None = None
    """Hz; frames are stacked to about this rate first, unless they are coarser. None = the upstream's own."""
    standardise: bool = False
    """Whether the features go through `speechssl.head.standardise` first; SUPERB does not."""
    project_size: int = 512
    """Width after the first linear layer, and of the first four time-delay layers."""
    pooled_size: int = 1500
    """Width of the last time-delay layer, whose mean and standard deviation are taken."""
    embedding_size: int = 512
    layer_norm: bool = False
    """Normalise over channels after each time-delay layer; SUPERB does not."""
    pool_norm: bool = False
    """Standardise the pooled statistics (as the batch norm of ECAPA-TDNN does), and take the embedding before its ReLU
    (as Kaldi's x-vectors): what all voices share then doesn't rule the cosines. SUPERB does neither."""
    head: Head = "xvector"
    """'xvector' is SUPERB's, with the sizes above; the sizes of the others are in the next two."""
    ecapa: EcapaConfig = field(default_factory=EcapaConfig)
    mhfa: MhfaConfig = field(default_factory=MhfaConfig)
    loss: MarginKind = "am_softmax"
    """SUPERB's; 'aam_softmax' is that of ECAPA-TDNN, with a margin of 0.2."""
    scale: float = 30.0
    margin: float = 0.4
    trials: str | None = None
    """List of the corpus that test is measured with. None = 'veri_test2' or 'voxceleb1_test_v2', SUPERB's list under
    its two names, where the corpus has it, and else 'pairs': made of the utterances of test, as always on dev."""
    scoring: Literal["cosine", "as_norm"] = "cosine"
    """'as_norm': adaptive symmetric normalisation of the cosines, by the mean embeddings of the training speakers."""
    cohort_top: int = 300
    """How many of these speakers, the most alike, give the mean and the deviation."""
    cohort_utterances: int = 10
    """Most utterances of each training speaker and language that its mean embedding is of."""
    centre: bool = False
    """Whether the mean embedding of the training speakers is taken from every embedding first."""
    calibrate: bool = False
    """Whether scores are also mapped to log-likelihood ratios, by a logistic regression on the trials of dev."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cohort_top < 2 or self.cohort_utterances < 1:
            raise ConfigError(
                f"`cohort_top` must be 2 or more and `cohort_utterances` 1 or more, but they are {self.cohort_top} and "
                f"{self.cohort_utterances}."
            )

    @property
    def needs_cohort(self) -> bool:
        """Whether scores depend on the training speakers."""
        return self.centre or self.scoring == "as_norm"


SUPERB = SpeakerVerificationConfig(
    train=TrainConfig(
        steps=200_000,
        # S3PRL accumulates 5 batches of 10; one of 50 has the same gradient.
        batch_seconds=400.0,
        max_batch_size=50,
        max_duration=8.0,
        optimizer="adamw",
        weight_decay=0.01,
        learning_rate=1e-4,
        clip_norm=1e3,
        evaluate_every=10_000,
    )
)
DEMO = SpeakerVerificationConfig(
    train=TrainConfig(
        steps=400,
        batch_seconds=32.0,
        max_batch_size=16,
        max_duration=2.0,
        optimizer="adamw",
        learning_rate=1e-3,
        warmup_steps=20,
        schedule="linear",
        evaluate_every=100,
    ),
    features=FeatureConfig(normalize=True),
    max_train_utterances=60,
    max_eval_utterances=40,
    frame_rate=50.0,
    project_size=128,
    pooled_size=384,
    embedding_size=128,
    standardise=True,
    layer_norm=True,
    pool_norm=True,
    ecapa=EcapaConfig(channels=128, pooled=384, squeezed=64, embedding=128),
    mhfa=MhfaConfig(heads=8, compressed=64, embedding=128),
    margin=0.2,
)
PRESETS = {"speaker_verification": SUPERB, "speaker_verification_demo": DEMO}
HEADS = {
    "xvector": ("head=xvector",),
    "ecapa": ("head=ecapa", "loss=aam_softmax", "margin=0.2"),
    "mhfa": ("head=mhfa", "features.interface=two_sums", "loss=aam_softmax", "margin=0.2"),
}
