"""vq-wav2vec's pre-training objective: that of wav2vec, of features that were quantised.

B batch, T frames, N valid frames, C channels of the features, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from speechssl.lengths import lengths_to_padding_mask
from speechssl.loss.contrastive import diversity_loss
from speechssl.loss.future_prediction import FuturePrediction, receptive_frames
from speechssl.metric.tallies import USAGE
from speechssl.objective import Labelling, Objective, PretrainInputs
from speechssl.quantizer.base import QuantizerOutput
from speechssl.quantizer.gumbel import GumbelQuantizer
from speechssl.train.config import PretrainConfig
from speechssl.types import LossOutput
from upstreams.vq_wav2vec.model import VqWav2VecUpstream

FEWEST_CODES = 1.5
"""Per group, of a healthy run: below, all frames are quantised alike."""


@dataclass(frozen=True)
class VqWav2VecPretrainConfig:
    """The objective; the defaults are those of the command in fairseq's examples/wav2vec.

    Paper: Baevski et al. 2019, sec. 3 and 5.2, arXiv:1910.05453, which predicts 8 steps where the command has 12. The
    quantizer's own settings are in the model's config.
    """

    prediction_steps: int = 12
    offset: int | None = None
    """Frames from a context to the first features that it predicts; None = so many that they share no sample."""
    num_negatives: int = 10
    """Per frame that is predicted, from the same utterance."""
    balanced_classes: bool = False
    """Whether the negatives of a frame together weigh as much as its true features, rather than each of them."""
    prediction_dropout: float = 0.0
    context_dropout: float = 0.0
    quantizer_weight: float = 1.0
    """Of k-means' own loss: codewords towards features, and features towards codewords."""
    diversity_weight: float = 0.0
    """Of the share of codewords that the Gumbel softmax leaves unused; fairseq can add their number, but did not."""


PRETRAIN_PRESETS: dict[str, VqWav2VecPretrainConfig] = {
    "vq_wav2vec_tiny": VqWav2VecPretrainConfig(prediction_steps=6),
    "vq_wav2vec_tiny_kmeans": VqWav2VecPretrainConfig(prediction_steps=6),
    "vq_wav2vec_gumbel": VqWav2VecPretrainConfig(),
    "vq_wav2vec_kmeans": VqWav2VecPretrainConfig(),
}
"""At 50 Hz, the 6 steps of the tiny ones reach as far ahead as 12 at 100 Hz."""

_PUBLISHED = PretrainConfig(
    steps=400_000,
    batch_seconds=18.75,  # 300 k samples on each of 16 GPUs
    batches_per_step=16,
    max_seconds=9.375,  # crops of 150 k samples
    learning_rate=1e-5,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    schedule="cosine",
    warmup=1000 / 400_000,
    clip_norm=25.0,  # fairseq's default then
)
TRAIN_PRESETS: dict[str, PretrainConfig] = {"vq_wav2vec_gumbel": _PUBLISHED, "vq_wav2vec_kmeans": _PUBLISHED}
"""fairseq's command; the paper has 8 GPUs, 500 updates of warm-up and wav2vec's rate of 5e-3."""


class VqWav2VecPretraining(Objective):
    """A vq-wav2vec upstream with its predictions."""

    upstream: VqWav2VecUpstream

    def __init__(self, upstream: VqWav2VecUpstream, config: VqWav2VecPretrainConfig, labelling: Labelling) -> None:
        super().__init__(upstream, labelling)
        model = upstream.config
        self.config = config
        self.limits = {"code_perplexity": FEWEST_CODES * model.groups}
        self.context_dropout = torch.nn.Dropout(config.context_dropout)
        self.prediction = FuturePrediction(
            model.width,
            upstream.hidden_sizes[0],
            steps=config.prediction_steps,
            offset=config.offset or receptive_frames(model.conv_kernels, model.conv_strides),
            distractors=config.num_negatives,
            balanced=config.balanced_classes,
            dropout=config.prediction_dropout,
        )

    def begin_step(self, step: int) -> None:
        """Sets the temperature of the Gumbel softmax."""
        if isinstance(self.upstream.quantizer, GumbelQuantizer):
            self.upstream.quantizer.begin_step(step)

    def forward(self, inputs: PretrainInputs, generator: torch.Generator) -> LossOutput:
        """See `Objective.forward`; the generator draws the quantizer's noise and the negatives."""
        features, frames = self.upstream.extract_features(inputs.waveform, inputs.lengths)  # (B, C, T)
        quantized, output = self.quantize(features, frames, generator)  # (B, T, codebook width)
        heard = quantized.transpose(1, 2)
        context = self.context_dropout(self.upstream.contextualize(heard, frames))  # (B, T, D)
        predicted = self.prediction(context, quantized, frames, generator=generator)
        loss, metrics = self._own_loss(output, frames.sum(), predicted.sample_size)
        metrics |= predicted.metrics
        metrics["code" + USAGE] = output.usage
        return LossOutput(predicted.loss_sum + loss, predicted.sample_size, metrics)

    def quantize(self, features: Tensor, frames: Tensor, generator: torch.Generator) -> tuple[Tensor, QuantizerOutput]:
        """Quantises the valid frames: (B, C, T) -> (B, T, codebook width), 0 beyond them, and what became of them."""
        with torch.autocast(features.device.type, enabled=False):
            comparable = self.upstream.comparable(features, frames).transpose(1, 2)  # (B, T, C)
            inside = ~lengths_to_padding_mask(frames, comparable.size(1))  # (B, T)
            index = inside.flatten().nonzero().squeeze(1)  # (N,)
            output = self.upstream.quantizer(comparable.flatten(0, 1).index_select(0, index), generator=generator)
            size = (inside.numel(), self.upstream.hidden_sizes[0])
            placed = output.quantized.new_zeros(size).index_copy(0, index, output.quantized)
        return placed.view(*inside.shape, -1), output

    def _own_loss(self, output: QuantizerOutput, count: Tensor, size: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The quantizer's terms: means over the `count` valid frames, times the sample size as in fairseq."""
        config = self.config
        if isinstance(self.upstream.quantizer, GumbelQuantizer):
            unused = diversity_loss(output.probability, count) * size
            temperature = size * self.upstream.quantizer.temperature
            metrics = {"probability" + USAGE: output.probability.detach(), "temperature": temperature}
            return config.diversity_weight * unused, metrics | {"diversity_loss": unused.detach()}
        error = output.loss / count * size
        return config.quantizer_weight * error, {"quantizer_loss": error.detach()}


def build_pretraining(
    upstream: VqWav2VecUpstream, config: VqWav2VecPretrainConfig, labelling: Labelling
) -> VqWav2VecPretraining:
    """Makes the objective around an upstream."""
    return VqWav2VecPretraining(upstream, config, labelling)
