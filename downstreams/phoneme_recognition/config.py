"""Settings of phoneme recognition; see README.md for where each comes from."""

from dataclasses import dataclass
from typing import Literal

from speechssl.ctc.config import CtcConfig
from speechssl.errors import ConfigError
from speechssl.task import FeatureConfig, TrainConfig

VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
CONSONANTS = (
    "B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH", "T", "TH", "V", "W",
    "Y", "Z", "ZH",
)  # fmt: skip
INVENTORY = ("SIL", "SPN", *sorted([*CONSONANTS, *(vowel + stress for vowel in VOWELS for stress in "012")]))
"""The 71 of S3PRL's `downstream/ctc/vocab/phoneme.txt`: SIL and SPN, 24 consonants, 15 vowels with three stresses."""


@dataclass(frozen=True)
class PhonemeConfig(CtcConfig):
    """SUPERB's phoneme recognition."""

    phones: Literal["lexicon", "labels", "espeak"] = "lexicon"
    """Where the phonemes of an utterance come from: each word of its `text` in a lexicon; its label `phones`; or its
    `text` as eSpeak NG reads it in its `language`."""
    lexicon: tuple[str, ...] = ()
    """Files of lines 'WORD  PH ON EM ES'; of several pronunciations the first counts, also over files."""
    inventory: tuple[str, ...] | None = None
    """The phonemes that there are; None = those of the training utterances."""
    leave_out_unknown: bool = False
    """Whether utterances with a word that the lexicon lacks, or in a language that eSpeak NG lacks, are left out, and
    counted in the log; they are an error otherwise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.inventory or ())) != len(self.inventory or ()):
            raise ConfigError("`inventory` must have distinct phonemes.")
        if self.phones != "lexicon" and self.lexicon:
            raise ConfigError(f"`lexicon` is for `phones=lexicon`, but `phones` is {self.phones}: leave one out.")


SUPERB = PhonemeConfig(
    # Two batches of 16 make a step in S3PRL.
    train=TrainConfig(steps=100_000, batch_seconds=1200.0, max_batch_size=32, learning_rate=1e-2, evaluate_every=1_000),
    project_size=256,
    num_layers=0,
    augment=None,
    inventory=INVENTORY,
)
DEMO = PhonemeConfig(
    train=TrainConfig(
        steps=600,
        batch_seconds=40.0,
        learning_rate=1e-2,
        warmup_steps=50,
        schedule="linear",
        evaluate_every=100,
    ),
    features=FeatureConfig(normalize=True),
    languages=("en", "es", "fr", "it", "ru"),
    phones="espeak",
    label_rate=50.0,
    standardise=True,
    project_size=256,
    hidden_size=128,
    num_layers=0,
    augment=None,
)
PRESETS = {"phoneme_recognition": SUPERB, "phoneme_recognition_demo": DEMO}
HEADS = {
    "linear": ("num_layers=0",),
    # LSTM layers do not bear the rate of a linear head.
    "recurrent": ("num_layers=2", "train.learning_rate=1e-3"),
}
