"""UniSpeech's pre-training objective: spell what is said, and tell the quantized speech of a hidden frame from others.

B batch, S samples, T frames, N hidden frames, V valid frames, C channels of the frontend, D width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from speechssl.encoder.transformer import draw_skipped_blocks
from speechssl.errors import ConfigError
from speechssl.lengths import lengths_to_padding_mask
from speechssl.loss.contrastive import HiddenFrames, diversity_loss
from speechssl.loss.ctc import ctc_loss
from speechssl.loss.future_prediction import sample_other_frames
from speechssl.loss.masked_prediction import features_penalty
from speechssl.masking.span import draw_span_mask, sample_span_mask
from speechssl.metric.tallies import MOMENTS, USAGE, moments
from speechssl.objective import Labelling, Objective, PretrainInputs
from speechssl.quantizer.gumbel import GumbelQuantizer
from speechssl.train.config import PretrainConfig
from speechssl.types import LossOutput
from speechssl.upstream import normalize_waveform
from upstreams.unispeech.contrast import contrast_everywhere
from upstreams.unispeech.model import UniSpeechUpstream

FEWEST_CODES = 1.5
"""Per codebook, of a healthy run: below, all frames are quantized alike."""


@dataclass(frozen=True)
class UniSpeechPretrainConfig:
    """The objective; the defaults are those of the published large model.

    Paper: Wang et al. 2021, sec. 3 and 4.2, arXiv:2101.07597, and one2one_large_pretrain_en1350.sh in the official
    repository.
    """

    ctc_weight: float = 0.5
    """Alpha: of the spelling, the rest being the contrast's."""
    replace_prob: float = 0.5
    """Share of frames in which the spelling hears quantized speech instead of the encoder."""
    mask_prob: float = 0.5
    """Expected fraction of hidden frames if spans did not overlap."""
    mask_length: int = 10
    """Frames."""
    min_masks: int = 2
    """Spans per utterance."""
    require_same_masks: bool = False
    """Whether all utterances of a batch have as many hidden frames as the one with the fewest."""
    mask_channel_prob: float = 0.5
    """The same of channels of the encoder's input, which are 0 in the whole utterance. No paper speaks of it, but it is
    the default of the official architecture, and the official command leaves it there."""
    mask_channel_length: int = 10
    feature_dropout: float = 0.1
    """On the normalised features that are quantized."""
    spelling_dropout: float = 0.0
    codebooks: int = 2
    codebook_entries: int = 320
    """Per codebook."""
    temperature: tuple[float, float, float] = (2.0, 0.1, 0.999995)
    """Of the Gumbel softmax: at the beginning, the least, and its factor per update."""
    final_dim: int = 768
    """Width of a quantized frame."""
    distractors: int = 100
    """Per hidden frame, from all frames of the utterance."""
    logit_temperature: float = 0.1
    diversity_weight: float = 0.1
    features_penalty: float = 0.0
    """Weight of the mean square of the convolutional frontend's output."""

    def __post_init__(self) -> None:
        for name in ("ctc_weight", "replace_prob", "mask_channel_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"`{name}` must be >= 0 and <= 1, but is {getattr(self, name)}.")


_LARGE = UniSpeechPretrainConfig()

PRETRAIN_PRESETS: dict[str, UniSpeechPretrainConfig] = {
    "unispeech_tiny": replace(
        _LARGE, final_dim=256, feature_dropout=0.0, mask_channel_prob=0.0, temperature=(2.0, 0.5, 0.999995)
    ),
    "unispeech_large": _LARGE,
    "unispeech_large_multilingual": _LARGE,
}

_TRAIN_LARGE = PretrainConfig(
    steps=200_000,
    batch_seconds=75.0,  # 1.2 M samples on each of 64 GPUs
    batches_per_step=64,
    max_seconds=20.0,
    learning_rate=1e-3,
    warmup=25_000 / 200_000,
    clip_norm=25.0,
)
TRAIN_PRESETS: dict[str, PretrainConfig] = {
    "unispeech_large": _TRAIN_LARGE,
    "unispeech_large_multilingual": _TRAIN_LARGE,
}
"""The command goes on to 250 000 updates, but its rate is 0 from 200 000 on."""


class UniSpeechPretraining(Objective):
    """A UniSpeech upstream with its quantizer, projections and the layer that spells.

    The sample size is the number of hidden frames, as in the official code: there too the sum of the utterances' CTC
    losses, times alpha, is divided by it. Positives and candidates are quantized with noise of their own, as there.

    Paper: Wang et al. 2021, sec. 3, arXiv:2101.07597.
    """

    uses_tokens = True
    upstream: UniSpeechUpstream

    def __init__(self, upstream: UniSpeechUpstream, config: UniSpeechPretrainConfig, labelling: Labelling) -> None:
        super().__init__(upstream, labelling)
        self.config = config
        self.limits = {"code_perplexity": FEWEST_CODES * config.codebooks}
        self.skips_blocks = upstream.config.layerdrop > 0
        width = upstream.hidden_sizes[-1]
        self.quantizer = GumbelQuantizer(
            upstream.feature_width,
            output_width=config.final_dim,
            groups=config.codebooks,
            entries=config.codebook_entries,
            temperature=config.temperature,
        )
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        self.project_q = nn.Linear(config.final_dim, config.final_dim)
        self.target_proj = nn.Linear(config.final_dim, width)  # to the context's width, the official `--transpose`
        self.spelling_dropout = nn.Dropout(config.spelling_dropout)
        self.spelling = nn.Linear(width, labelling.num_tokens or 0)
        nn.init.xavier_uniform_(self.spelling.weight)
        nn.init.zeros_(self.spelling.bias)

    def begin_step(self, step: int) -> None:
        """Sets the quantizer's temperature."""
        self.quantizer.begin_step(step)

    def forward(self, inputs: PretrainInputs, generator: torch.Generator) -> LossOutput:
        """See `Objective.forward`; the generator draws masks, skipped blocks, noise, distractors and replacements."""
        config = self.config
        waveform, lengths = inputs.waveform, inputs.lengths
        if self.upstream.normalize:
            waveform = normalize_waveform(waveform, lengths)
        features, frames = self.upstream.extract_features(waveform, lengths)  # (B, T, C)
        mask = draw_span_mask(self.config, frames, features.size(1), generator)  # (B, T)
        context = self._context(features, frames, mask, generator)  # (B, T, D)
        loss, metrics, quantized, size = self._contrast(features, frames, mask, context, generator)
        spelled, too_short = self.spell(context, quantized, frames, inputs, generator)
        metrics |= {"ctc_loss": spelled.detach(), "too_short": too_short}
        loss = config.ctc_weight * spelled + (1.0 - config.ctc_weight) * loss
        if config.features_penalty > 0 and features.requires_grad:
            penalty = features_penalty(features, frames) * size
            metrics["features_penalty"] = penalty.detach()
            loss = loss + (1.0 - config.ctc_weight) * config.features_penalty * penalty
        return LossOutput(loss, size, metrics)

    def _context(self, features: Tensor, frames: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        """What the encoder makes of the frames and channels that are not hidden, (B, T, D)."""
        upstream, config = self.upstream, self.config
        depth = len(upstream.hidden_sizes) - 1
        channels = None
        if config.mask_channel_prob > 0:
            channels = sample_span_mask(
                torch.full((len(frames),), upstream.hidden_sizes[0], device=generator.device),
                prob=config.mask_channel_prob,
                span=config.mask_channel_length,
                min_spans=0,
                generator=generator,
                max_length=upstream.hidden_sizes[0],
            ).to(features.device)  # (B, D)
        skipped: frozenset[int] = frozenset()
        if self.training and self.skips_blocks:
            skipped = draw_skipped_blocks(depth, upstream.config.layerdrop, generator=generator)
        return upstream.encode_projected(
            upstream.project(features),
            upstream.padding_mask(frames, features.size(1)),
            layers=frozenset({depth}),
            mask=mask,
            channel_mask=channels,
            skipped_blocks=skipped,
        )[depth]

    def _contrast(
        self, features: Tensor, frames: Tensor, mask: Tensor, context: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """Loss, metrics, the quantized speech of all frames in the context's width (B, T, D), and N."""
        config, size = self.config, features.size(1)
        hidden = HiddenFrames.of(mask)
        valid = HiddenFrames.of(~lengths_to_padding_mask(frames, size))
        heard = self.feature_dropout(self.upstream.feature_norm(features))  # (B, T, C)
        positive = self.quantizer(hidden.select(heard), generator=generator)
        everywhere = self.quantizer(valid.select(heard), generator=generator)
        targets = self.target_proj(self.project_q(positive.quantized))  # (N, D)
        candidates = valid.spread(self.target_proj(self.project_q(everywhere.quantized)))  # (B, T, D)
        predicted = hidden.select(context)
        contrast, correct = contrast_everywhere(
            predicted,
            targets,
            positive.codes,
            candidates,
            valid.spread(everywhere.codes),
            hidden=hidden,
            distractors=hidden.select(sample_other_frames(frames, size, config.distractors, generator=generator)),
            temperature=config.logit_temperature,
        )
        count = torch.full((), float(len(hidden.index)), device=features.device)
        diversity = diversity_loss(positive.probability, count) * count
        metrics = {
            "contrastive_loss": contrast.detach(),
            "diversity_loss": diversity.detach(),
            "accuracy": correct,
            "temperature": count * self.quantizer.temperature,
            "probability" + USAGE: positive.probability.detach(),
            "code" + USAGE: positive.usage,
            "target" + MOMENTS: moments(targets),
            "prediction" + MOMENTS: moments(predicted),
        }
        return contrast + config.diversity_weight * diversity, metrics, candidates, count

    def spell(
        self, context: Tensor, quantized: Tensor, frames: Tensor, inputs: PretrainInputs, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The CTC loss, summed over the utterances, of frames some of which are replaced by quantized speech, (B, T, D)
        both; and how many utterances are too short for their transcripts."""
        draw = torch.rand(context.shape[:2], generator=generator, device=generator.device).to(context.device)
        replaced = (draw < self.config.replace_prob)[:, :, None]  # (B, T, 1)
        mixed = torch.where(replaced, quantized.to(context.dtype), context)
        logits = self.spelling(self.spelling_dropout(mixed))
        if inputs.tokens is None or inputs.token_lengths is None:
            raise ConfigError("Spelling needs transcripts, but the batch holds none: give them with train.transcripts.")
        return ctc_loss(logits, frames, inputs.tokens, inputs.token_lengths)


def build_pretraining(
    upstream: UniSpeechUpstream, config: UniSpeechPretrainConfig, labelling: Labelling
) -> UniSpeechPretraining:
    """Makes the objective around an upstream."""
    return UniSpeechPretraining(upstream, config, labelling)
