"""BEST-RQ's pre-training: predict the codes of hidden frames that a quantizer gives the log-mel itself.

B batch, T frames, S mel frames per frame, M mel bands, N scored frames, G codebooks, V entries per codebook.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from speechssl.data.batching import make_generator
from speechssl.encoder.transformer import draw_skipped_blocks
from speechssl.errors import ConfigError
from speechssl.lengths import lengths_to_padding_mask
from speechssl.loss.masked_prediction import PREDICTION_LIMITS, LinearPrediction
from speechssl.objective import Labelling, Objective, PretrainInputs
from speechssl.quantizer.base import Quantizer
from speechssl.quantizer.mel_rvq import MelRvqConfig, MelRvqQuantizer
from speechssl.quantizer.random_projection import RandomProjectionConfig, RandomProjectionQuantizer
from speechssl.train.config import PretrainConfig
from speechssl.types import LossOutput
from upstreams.best_rq.mask import sample_starts_mask
from upstreams.best_rq.model import BestRqUpstream

EPS = 1e-5
"""Added to the deviation of a mel band over the corpus."""


@dataclass(frozen=True)
class BestRqPretrainConfig:
    """The objective; the defaults are those of the paper.

    Paper: Chiu et al. 2022, sec. 3 and 4.1, arXiv:2202.01855.
    """

    mask_prob: float = 0.01
    """Of a hidden span beginning at a mel frame."""
    mask_length: int = 40
    """Mel frames of 10 ms."""
    mask_grid: int = 1
    """Spans begin at multiples of so many mel frames, with a probability so many times as large. SpeechBrain hides
    single encoder frames, 60 % of them: 0.15, 4 and 4 (there an exact share, the same frames for a whole batch)."""
    noise_deviation: float = 0.1
    """Of the normal noise that stands in for hidden frames."""
    coverage: float = 1.0
    """Share of an encoder frame's mel frames that must be hidden for it to be scored; NeMo has 0.8."""
    targets: Literal["random_projection", "mel_rvq"] = "random_projection"
    """What gives codes: a projection and codebooks that are random for ever, or MuQ's residual quantizer, trained on
    the run's first micro-batches before its first step (with 8 codebooks of 1024 there)."""
    entries: int = 8192
    code_width: int = 16
    codebooks: int = 1
    """The loss is the mean over them."""
    normalization: Literal["utterance", "corpus"] = "utterance"
    """Over what each mel band of the targets has mean 0 and deviation 1: an utterance's valid frames, as SpeechBrain,
    or the run's first micro-batches, as MuQ. Without it, nearly all frames get the same few codes."""
    seed: int = 0
    """Of the projection and codebooks: with their shape it defines the targets."""
    fit_steps: int = 2000
    """Of the residual quantizer's training."""


PRETRAIN_PRESETS: dict[str, BestRqPretrainConfig] = {
    "best_rq_tiny": BestRqPretrainConfig(entries=1024, mask_prob=0.15, mask_length=4, mask_grid=4),
    "best_rq_tiny_conformer": BestRqPretrainConfig(entries=1024, mask_prob=0.15, mask_length=4, mask_grid=4),
    "best_rq_base": BestRqPretrainConfig(mask_prob=0.15, mask_length=4, mask_grid=4),
    "best_rq_large": BestRqPretrainConfig(),
}
"""tiny predicts fewer codes, since a short run sees each of them too seldom, and has SpeechBrain's short masks, from
which it learns sooner: after 1800 s of audio the tiny model predicts 21 % of the codes, and 15 %, the share of the most
frequent one, with the paper's long ones."""

BASE = PretrainConfig(
    steps=300_000,
    batch_seconds=400.0,
    batches_per_step=18,
    max_seconds=60.0,
    learning_rate=8e-4,
    eps=1e-9,
    schedule="inverse_sqrt",
    warmup=25_000 / 300_000,
)
"""SpeechBrain's, whose batch of two hours is so many GPUs times accumulation."""
LARGE = PretrainConfig(
    steps=800_000,
    batch_seconds=512.0,
    batches_per_step=64,
    max_seconds=32.0,
    learning_rate=4e-3,
    schedule="inverse_sqrt",
    warmup=25_000 / 800_000,
)
"""The paper's learning rate, warm-up and 2048 utterances; the number of steps is not said there."""

TRAIN_PRESETS: dict[str, PretrainConfig] = {"best_rq_base": BASE, "best_rq_large": LARGE}


class BestRqPretraining(Objective):
    """A BEST-RQ upstream with its quantizer and prediction head."""

    limits: Mapping[str, float] = {**PREDICTION_LIMITS, "code_perplexity": 4.0}
    fit_batches: ClassVar[int] = 32
    upstream: BestRqUpstream
    mean: Tensor
    deviation: Tensor

    def __init__(self, upstream: BestRqUpstream, config: BestRqPretrainConfig, labelling: Labelling) -> None:
        super().__init__(upstream, labelling)
        if config.normalization not in ("utterance", "corpus"):
            raise ConfigError(f"`normalization` must be 'utterance' or 'corpus', but is '{config.normalization}'.")
        if not 0 < config.coverage <= 1:
            raise ConfigError(f"`coverage` must be > 0 and <= 1, but is {config.coverage}.")
        self.config = config
        self.depth = len(upstream.hidden_sizes) - 1
        self.skips_blocks = upstream.config.layerdrop > 0
        self.quantizer = _make_quantizer(upstream.feature_width, config)
        self.prediction = LinearPrediction(
            upstream.hidden_sizes[-1], num_labels=(config.entries,) * config.codebooks, temperature=1.0
        )
        bands = upstream.config.num_mel_bins
        self.register_buffer("mean", torch.zeros(bands))
        self.register_buffer("deviation", torch.ones(bands))

    def begin_run(self, batches: Iterable[PretrainInputs]) -> None:
        """Takes the statistics of the corpus and trains the residual quantizer, where the targets need them."""
        fits = isinstance(self.quantizer, MelRvqQuantizer)
        if self.config.normalization == "utterance" and not fits:
            return
        with torch.no_grad():
            frames = torch.cat([self._target_frames(inputs) for inputs in batches])  # (N, S M)
            if self.config.normalization == "corpus":
                mel = frames.view(-1, len(self.mean))
                self.mean.copy_(mel.mean(dim=0))
                self.deviation.copy_(mel.std(dim=0) + EPS)
                frames = self._normalize(frames)
        if isinstance(self.quantizer, MelRvqQuantizer):
            self.quantizer.fit(frames, generator=make_generator(self.config.seed, "mel_rvq"))

    def forward(self, inputs: PretrainInputs, generator: torch.Generator) -> LossOutput:
        """See `Objective.forward`; the generator draws the mask, the noise and the blocks to skip."""
        upstream, config = self.upstream, self.config
        features, frames = upstream.extract_features(inputs.waveform, inputs.lengths)  # (B, T, S M)
        B, T, _ = features.shape
        S, M = upstream.config.stack, upstream.config.num_mel_bins
        mask = sample_starts_mask(
            (frames * S).to(generator.device),
            T * S,
            prob=config.mask_prob,
            span=config.mask_length,
            grid=config.mask_grid,
            generator=generator,
        )  # (B, T S)
        noise = torch.randn(B, T * S, M, generator=generator, device=generator.device) * config.noise_deviation
        mask = mask.to(features.device)
        mel = features.reshape(B, T * S, M)
        hidden = torch.where(mask[:, :, None], noise.to(mel), mel).view(B, T, S * M)
        skipped = self._skipped(generator)
        state = upstream.encode(hidden, frames, layers=frozenset({self.depth}), skipped_blocks=skipped)[self.depth]
        scored = mask.view(B, T, S).float().mean(dim=2) >= config.coverage  # (B, T)
        index = scored.flatten().nonzero().squeeze(1)  # (N,)
        if config.normalization == "corpus":
            features = self._normalize(self._stacked_mel(inputs.waveform, T))
        codes = self.quantizer.encode(features.float().flatten(0, 1).index_select(0, index))  # (N, G)
        output = self.prediction(state.flatten(0, 1).index_select(0, index), codes.unbind(1))
        return LossOutput(output.loss_sum / config.codebooks, output.sample_size, output.metrics)

    def train(self, mode: bool = True) -> "BestRqPretraining":
        """See `nn.Module.train`; the quantizer gives targets, and explores nothing."""
        super().train(mode)
        self.quantizer.eval()
        return self

    def _skipped(self, generator: torch.Generator) -> frozenset[int]:
        if not (self.training and self.skips_blocks):
            return frozenset()
        return draw_skipped_blocks(self.depth, self.upstream.config.layerdrop, generator=generator)

    def _stacked_mel(self, waveform: Tensor, frames: int) -> Tensor:
        """Log-mel frames as they are, (B, T, S M)."""
        mel: Tensor = self.upstream.log_mel(waveform)[:, : frames * self.upstream.config.stack]
        return mel.reshape(len(mel), frames, -1)

    def _normalize(self, frames: Tensor) -> Tensor:
        """By the statistics of the corpus: (..., S M) -> (..., S M)."""
        mel = frames.view(*frames.shape[:-1], -1, len(self.mean))  # (..., S, M)
        return ((mel - self.mean) / self.deviation).view(frames.shape)

    def _target_frames(self, inputs: PretrainInputs) -> Tensor:
        """The stacked frames of all utterances, (N, S M), but for the corpus's normalisation."""
        features, frames = self.upstream.extract_features(inputs.waveform, inputs.lengths)
        if self.config.normalization == "corpus":
            features = self._stacked_mel(inputs.waveform, features.size(1))
        return features.float()[~lengths_to_padding_mask(frames, features.size(1))]


def _make_quantizer(width: int, config: BestRqPretrainConfig) -> Quantizer:
    if config.targets == "random_projection":
        return RandomProjectionQuantizer(
            RandomProjectionConfig(
                width=width, entries=config.entries, code_width=config.code_width, codebooks=config.codebooks
            ),
            generator=torch.Generator().manual_seed(config.seed),
        )
    if config.targets == "mel_rvq":
        quantizer = MelRvqQuantizer(
            MelRvqConfig(
                width=width, stages=config.codebooks, entries=config.entries, code_width=config.code_width,
                steps=config.fit_steps, restart_after=max(config.fit_steps // 20, 1),
            )
        )  # fmt: skip
        quantizer.freeze()
        return quantizer
    raise ConfigError(f"`targets` must be 'random_projection' or 'mel_rvq', but is '{config.targets}'.")


def build_pretraining(
    upstream: BestRqUpstream, config: BestRqPretrainConfig, labelling: Labelling
) -> BestRqPretraining:
    """Makes the objective around an upstream."""
    return BestRqPretraining(upstream, config, labelling)
