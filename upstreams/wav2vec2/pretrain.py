"""wav2vec 2.0's pre-training objective: tell the quantized speech of a hidden frame from that of others.

With weights of their own for the disturbed view of the speech, wav2vec-Aug (disturbed speech is heard, clean speech is
the target) and ccc-wav2vec 2.0 (both are heard and both are targets) are settings of it.
B batch, S samples, T frames, N hidden frames, C channels of the frontend, E width of what is compared.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from speechssl.augment.corrupt import corrupt
from speechssl.encoder.dropout import Dropout
from speechssl.encoder.transformer import draw_skipped_blocks
from speechssl.loss.contrastive import HiddenFrames, contrastive_loss, diversity_loss, sample_distractors
from speechssl.loss.masked_prediction import features_penalty
from speechssl.masking.span import draw_span_mask
from speechssl.metric.tallies import MOMENTS, USAGE, moments
from speechssl.objective import Labelling, Objective, PretrainInputs
from speechssl.quantizer.base import QuantizerOutput
from speechssl.quantizer.gumbel import GumbelQuantizer
from speechssl.types import LossOutput
from speechssl.upstream import normalize_waveform
from upstreams.wav2vec2.clusters import cluster_directions
from upstreams.wav2vec2.heads import load_heads
from upstreams.wav2vec2.model import Wav2Vec2Upstream
from upstreams.wav2vec2.pretrain_config import PRETRAIN_PRESETS, TRAIN_PRESETS, Wav2Vec2PretrainConfig

__all__ = [
    "PRETRAIN_PRESETS",
    "TRAIN_PRESETS",
    "Wav2Vec2PretrainConfig",
    "Wav2Vec2Pretraining",
    "build_pretraining",
    "load_heads",
]

FEWEST_CODES = 1.5
"""Per codebook, of a healthy run: below, all frames are quantized alike."""


@dataclass(frozen=True)
class _View:
    """Targets that were made of one view of the speech, clean or disturbed."""

    quantized: QuantizerOutput
    vectors: Tensor
    """(N, E)."""
    distractors: Tensor
    """(N, K)."""
    clusters: Tensor | None = None
    """(N,)."""


class Wav2Vec2Pretraining(Objective):
    """A wav2vec 2.0 upstream with its quantizer and the projections in which both sides are compared.

    Paper: Baevski et al. 2020, sec. 2 and 3, arXiv:2006.11477.
    """

    upstream: Wav2Vec2Upstream

    def __init__(self, upstream: Wav2Vec2Upstream, config: Wav2Vec2PretrainConfig, labelling: Labelling) -> None:
        super().__init__(upstream, labelling)
        self.config = config
        self.limits = {"code_perplexity": FEWEST_CODES * config.codebooks}
        self.skips_blocks = upstream.config.layerdrop > 0
        self.uses_noise = config.hears_disturbed and config.corruption.noise_prob > 0
        quantized = config.quantized_dim or config.final_dim
        self.quantizer = GumbelQuantizer(
            upstream.feature_width,
            output_width=quantized,
            groups=config.codebooks,
            entries=config.codebook_entries,
            temperature=config.temperature,
            depth=config.quantizer_depth,
            factor=config.quantizer_factor,
        )
        self.feature_dropout = Dropout(config.feature_dropout)
        self.project_q = nn.Linear(quantized, config.final_dim)
        self.final_proj = nn.Linear(upstream.hidden_sizes[-1], config.final_dim)
        self.target_mlp = _gated(config.final_dim) if config.target_mlp else nn.Identity()
        self.context_mlp = _gated(config.final_dim) if config.context_mlp else nn.Identity()

    def begin_step(self, step: int) -> None:
        """Sets the quantizer's temperature."""
        self.quantizer.begin_step(step)

    def forward(self, inputs: PretrainInputs, generator: torch.Generator) -> LossOutput:
        """See `Objective.forward`; the generator draws disturbances, mask, distractors, noise and blocks to skip."""
        config = self.config
        features, lengths = self._features(inputs.waveform, inputs.lengths)
        disturbed = self._disturb(inputs, generator) if config.hears_disturbed else features
        mask = draw_span_mask(config, lengths, features.size(1), generator)  # (B, T)
        frames = HiddenFrames.of(mask)
        kinds = [features, disturbed] if config.disturbed_target_weight > 0 else [features]
        views = self._cluster([self._view(kind, frames, generator) for kind in kinds], frames, generator)
        terms: dict[str, tuple[float, Tensor, _View]] = {}
        if config.clean_weight > 0 or config.disturbed_target_weight > 0:
            context = self._context(features, lengths, mask, frames, generator)
            terms["clean_loss"] = (config.clean_weight, context, views[0])
            terms["disturbed_target_loss"] = (config.disturbed_target_weight, context, views[-1])
        if config.disturbed_context_weight > 0:
            context = self._context(disturbed, lengths, mask, frames, generator)
            terms["disturbed_context_loss"] = (config.disturbed_context_weight, context, views[0])
        loss, metrics = self._contrast({name: term for name, term in terms.items() if term[0] > 0}, frames)
        size = torch.full((), float(len(frames.index)), device=features.device)
        further, more = self._further(features, lengths, views[0].quantized, size)
        return LossOutput(loss + further, size, metrics | more)

    def _features(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.upstream.normalize:
            waveform = normalize_waveform(waveform, lengths)
        return self.upstream.extract_features(waveform, lengths)

    def _disturb(self, inputs: PretrainInputs, generator: torch.Generator) -> Tensor:
        """Features (B, T, C) of the disturbed view."""
        waveform = corrupt(
            inputs.waveform,
            inputs.lengths,
            inputs.noise,
            config=self.config.corruption,
            sample_rate=round(self.upstream.sample_rate),
            generator=generator,
        )
        return self._features(waveform, inputs.lengths)[0]

    def _view(self, features: Tensor, frames: HiddenFrames, generator: torch.Generator) -> _View:
        """Quantizes what was hidden, normalised but otherwise as the frontend made it."""
        heard = self.feature_dropout(self.upstream.feature_norm(frames.select(features)))  # (N, C)
        quantized = self.quantizer(heard, generator=generator)
        vectors = self.target_mlp(self.project_q(quantized.quantized))
        return _View(quantized, vectors, sample_distractors(frames, self.config.distractors, generator=generator))

    def _cluster(self, views: list[_View], frames: HiddenFrames, generator: torch.Generator) -> list[_View]:
        """Clusters the targets of all views together, where the loss is to know their clusters."""
        if self.config.cluster_factor == 0:
            return views
        size = len(frames.index)
        clusters = max(2, size // len(frames.counts) // self.config.cluster_factor)
        joined = torch.cat([view.vectors for view in views])
        found = cluster_directions(joined, min(clusters, len(joined)), generator=generator)
        return [replace(view, clusters=part) for view, part in zip(views, found.chunk(len(views)), strict=True)]

    def _context(
        self, features: Tensor, lengths: Tensor, mask: Tensor, frames: HiddenFrames, generator: torch.Generator
    ) -> Tensor:
        """What the encoder makes of the hidden frames from the others; (N, E)."""
        depth = len(self.upstream.hidden_sizes) - 1
        skipped: frozenset[int] = frozenset()
        if self.training and self.skips_blocks:
            skipped = draw_skipped_blocks(depth, self.upstream.config.layerdrop, generator=generator)
        states = self.upstream.encode(features, lengths, layers=frozenset({depth}), mask=mask, skipped_blocks=skipped)
        context: Tensor = self.context_mlp(self.final_proj(frames.select(states[depth])))
        return context

    def _contrast(
        self, terms: dict[str, tuple[float, Tensor, _View]], frames: HiddenFrames
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sums the contrastive losses of name -> (weight, context, targets); the first one's metrics speak for all."""
        loss = torch.zeros((), device=frames.index.device)
        metrics: dict[str, Tensor] = {}
        for name, (weight, context, view) in terms.items():
            part, correct = contrastive_loss(
                context,
                view.vectors,
                view.quantized.codes,
                frames,
                view.distractors,
                temperature=self.config.logit_temperature,
                clusters=view.clusters,
                cluster_scale=self.config.cluster_scale,
            )
            loss = loss + weight * part
            if "accuracy" not in metrics:
                seen = {"target" + MOMENTS: moments(view.vectors), "prediction" + MOMENTS: moments(context)}
                metrics |= {"accuracy": correct, **seen}
            metrics[name] = part.detach()
        return loss, metrics

    def _further(
        self, features: Tensor, lengths: Tensor, quantized: QuantizerOutput, size: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The terms that are means, of the clean view: times the sample size, so that the mean is what remains."""
        config = self.config
        diversity = diversity_loss(quantized.probability, size) * size
        loss = config.diversity_weight * diversity
        metrics = {
            "diversity_loss": diversity.detach(),
            "temperature": size * self.quantizer.temperature,
            "probability" + USAGE: quantized.probability.detach(),
            "code" + USAGE: quantized.usage,
        }
        if config.features_penalty > 0 and features.requires_grad:
            penalty = features_penalty(features, lengths) * size
            metrics["features_penalty"] = penalty.detach()
            loss = loss + config.features_penalty * penalty
        return loss, metrics


def _gated(width: int) -> nn.Sequential:
    """A linear layer and a gated linear unit, as fairseq's `target_glu`."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GLU())


def build_pretraining(
    upstream: Wav2Vec2Upstream, config: Wav2Vec2PretrainConfig, labelling: Labelling
) -> Wav2Vec2Pretraining:
    """Makes the objective around an upstream."""
    return Wav2Vec2Pretraining(upstream, config, labelling)
