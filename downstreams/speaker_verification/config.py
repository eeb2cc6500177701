"""Settings of speaker verification; see README.md for where each comes from."""

from dataclasses import dataclass

from speechssl.task import FeatureConfig, TaskConfig, TrainConfig


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
    scale: float = 30.0
    margin: float = 0.4


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
    margin=0.2,
)
PRESETS = {"speaker_verification": SUPERB, "speaker_verification_demo": DEMO}
