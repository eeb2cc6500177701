"""Emotion recognition: one of four emotions, by five folds over sessions."""

from collections.abc import Mapping, Sequence

from typing_extensions import override

from speechssl.classification.data import SPLITS, read_splits
from speechssl.classification.task import Classification
from speechssl.data.corpus import Corpus
from speechssl.types import Utterance

from .config import EmotionRecognitionConfig


class EmotionRecognition(Classification):
    """SUPERB's emotion recognition."""

    name = "emotion_recognition"
    config: EmotionRecognitionConfig

    @override
    def read(self, corpus: Corpus) -> Mapping[str, Sequence[Utterance]]:
        names = {split: f"fold{self.config.fold}_{split}" for split in SPLITS}
        return read_splits(corpus, self.config, names)


TASK = EmotionRecognition
