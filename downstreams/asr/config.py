"""Settings of speech recognition; see README.md for where each comes from."""

from dataclasses import dataclass, field, replace
from typing import Literal

from speechssl.ctc.config import CtcConfig
from speechssl.ctc.vocabulary import PieceModel
from speechssl.decode.beam import DecodeConfig
from speechssl.task import FeatureConfig, TrainConfig


@dataclass(frozen=True)
class AsrConfig(CtcConfig):
    """SUPERB's speech recognition."""

    units: Literal["characters", "pieces"] = "characters"
    """What is spelled: the characters of the training texts, or pieces of words that sentencepiece learns of them."""
    num_pieces: int = 1000
    """Classes with `units=pieces`, the blank included."""
    piece_model: PieceModel = "bpe"
    """How pieces are learned; S3PRL's subwords are byte pair encoding (`downstream/ctc/text.py`)."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    metric: Literal["wer", "cer"] = "wer"
    """What the best checkpoint is chosen by, and the weights of a beam search; both are always measured. Checkpoints
    are compared as decoded greedily."""


SUPERB = AsrConfig(
    train=TrainConfig(steps=200_000, batch_seconds=1200.0, max_batch_size=32, learning_rate=1e-4, evaluate_every=2_000)
)
# Out of domain: conversations, and other languages (SUPERB-SG).
SUPERB_OOD = replace(
    SUPERB,
    train=replace(SUPERB.train, steps=500_000, max_batch_size=16),
    label_rate=50.0,
    subsample="drop",
    layer_projection=True,
)
# Many small steps, so that a head leaves the all-blank plateau of CTC within a minute of one core.
DEMO = AsrConfig(
    train=TrainConfig(
        steps=900,
        batch_seconds=20.0,
        learning_rate=3e-3,
        warmup_steps=50,
        schedule="linear",
        evaluate_every=100,
    ),
    features=FeatureConfig(normalize=True),
    label_rate=25.0,
    standardise=True,
    project_size=128,
    hidden_size=128,
    augment=None,
    metric="cer",
)
PRESETS = {"asr": SUPERB, "asr_ood": SUPERB_OOD, "asr_demo": DEMO}
HEADS = {"recurrent": ("num_layers=2",), "linear": ("num_layers=0",)}
