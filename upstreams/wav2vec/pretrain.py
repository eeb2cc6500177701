"""wav2vec's pre-training objective: tell the features of the next frames from others of the utterance.

B batch, T frames, C channels of the features, D width.
"""

from dataclasses import dataclass

import torch

from speechssl.loss.future_prediction import FuturePrediction, receptive_frames
from speechssl.objective import Labelling, Objective, PretrainInputs
from speechssl.train.config import PretrainConfig
from speechssl.types import LossOutput
from upstreams.wav2vec.model import Wav2VecUpstream

LIMITS = {"target_std": 0.003}
"""Below, all frames have the same features, which no prediction can tell apart."""


@dataclass(frozen=True)
class Wav2VecPretrainConfig:
    """The objective; the defaults are those of the published large model.

    Paper: Schneider et al. 2019, sec. 2.2 and 3.3, arXiv:1904.05862, and the command in fairseq's examples/wav2vec.
    """

    prediction_steps: int = 12
    offset: int | None = None
    """Frames from a context to the first features that it predicts; None = so many that they share no sample."""
    num_negatives: int = 10
    """Per frame that is predicted, from the same utterance."""
    balanced_classes: bool = False
    """Whether the negatives of a frame together weigh as much as its true features, rather than each of them (the
    paper's lambda is their number)."""
    prediction_dropout: float = 0.0
    context_dropout: float = 0.0
    """Of what the context network gives; its own dropout and that of the features are in the model's config."""


PRETRAIN_PRESETS: dict[str, Wav2VecPretrainConfig] = {
    "wav2vec_tiny": Wav2VecPretrainConfig(prediction_steps=6),
    "wav2vec_large": Wav2VecPretrainConfig(),
}
"""At 50 Hz, the 6 steps of tiny reach as far ahead as the 12 of large at 100 Hz."""

TRAIN_PRESETS: dict[str, PretrainConfig] = {
    "wav2vec_large": PretrainConfig(
        steps=400_000,
        batch_seconds=93.75,  # 1.5 M samples on each of 8 GPUs
        batches_per_step=8,
        max_seconds=9.375,  # crops of 150 k samples
        learning_rate=5e-3,
        beta2=0.999,
        eps=1e-8,
        weight_decay=0.0,
        schedule="cosine",
        warmup=500 / 400_000,
        clip_norm=25.0,  # fairseq's default then
    ),
}
"""Schneider et al. 2019, sec. 3.3: 1e-7 to 5e-3 in 500 updates, then a cosine to 1e-6 (here 0)."""


class Wav2VecPretraining(Objective):
    """A wav2vec upstream with its predictions."""

    limits = LIMITS
    upstream: Wav2VecUpstream

    def __init__(self, upstream: Wav2VecUpstream, config: Wav2VecPretrainConfig, labelling: Labelling) -> None:
        super().__init__(upstream, labelling)
        model = upstream.config
        self.context_dropout = torch.nn.Dropout(config.context_dropout)
        self.prediction = FuturePrediction(
            model.width,
            model.conv_channels,
            steps=config.prediction_steps,
            offset=config.offset or receptive_frames(model.conv_kernels, model.conv_strides),
            distractors=config.num_negatives,
            balanced=config.balanced_classes,
            dropout=config.prediction_dropout,
        )

    def forward(self, inputs: PretrainInputs, generator: torch.Generator) -> LossOutput:
        """See `Objective.forward`; the generator draws the negatives."""
        features, frames = self.upstream.extract_features(inputs.waveform, inputs.lengths)  # (B, C, T)
        context = self.context_dropout(self.upstream.contextualize(features, frames))  # (B, T, D)
        output: LossOutput = self.prediction(context, features.transpose(1, 2), frames, generator=generator)
        return output


def build_pretraining(
    upstream: Wav2VecUpstream, config: Wav2VecPretrainConfig, labelling: Labelling
) -> Wav2VecPretraining:
    """Makes the objective around an upstream."""
    return Wav2VecPretraining(upstream, config, labelling)
