"""HuBERT's pre-training objective: predict the cluster labels of hidden frames.

B batch, S samples, T frames, N scored frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from speechssl.encoder.transformer import sample_skipped_blocks
from speechssl.errors import SpeechsslError
from speechssl.lengths import lengths_to_padding_mask
from speechssl.loss.masked_prediction import PREDICTION_LIMITS, MaskedPrediction, features_penalty
from speechssl.masking.span import sample_span_mask
from speechssl.objective import Labelling, Objective, PretrainInputs
from speechssl.types import LossOutput
from speechssl.upstream import normalize_waveform
from upstreams.hubert.model import HubertUpstream


@dataclass(frozen=True)
class HubertPretrainConfig:
    """The objective; the defaults are those of the published base model.

    Paper: Hsu et al. 2021, sec. 2 and 4, arXiv:2106.07447, and fairseq's hubert_base_librispeech.yaml.
    """

    mask_prob: float = 0.80
    """Expected fraction of hidden frames if spans did not overlap."""
    mask_length: int = 10
    """Frames."""
    min_masks: int = 2
    """Spans per utterance."""
    require_same_masks: bool = False
    final_dim: int = 256
    logit_temperature: float = 0.1
    untie_final_proj: bool = True
    """One projection per label set."""
    label_init: Literal["uniform", "unit"] = "uniform"
    """Of the label embeddings: 'uniform' as fairseq, 'unit' for short runs; see `MaskedPrediction`."""
    unmasked_weight: float = 0.0
    """Weight of the loss on frames that were not hidden."""
    features_penalty: float = 10.0
    """Weight of the mean square of the convolutional frontend's output."""


PRETRAIN_PRESETS: dict[str, HubertPretrainConfig] = {
    "hubert_tiny": HubertPretrainConfig(label_init="unit"),
    "hubert_base": HubertPretrainConfig(),
    "hubert_large": HubertPretrainConfig(final_dim=768),
    "hubert_xlarge": HubertPretrainConfig(final_dim=1024),
}


class HubertPretraining(Objective):
    """A HuBERT upstream with its prediction head."""

    uses_labels = True
    limits = PREDICTION_LIMITS
    upstream: HubertUpstream

    def __init__(self, upstream: HubertUpstream, config: HubertPretrainConfig, labelling: Labelling) -> None:
        """
        Args:
            labelling: rates are at least the upstream's frame rate.
        """
        super().__init__(upstream, labelling)
        if any(rate < upstream.frame_rate for rate in labelling.label_rates):
            raise SpeechsslError(
                f"Labels need at least {upstream.frame_rate} Hz, but their rates are {list(labelling.label_rates)}."
            )
        self.config = config
        self.ratios = [rate / upstream.frame_rate for rate in labelling.label_rates]
        self.skips_blocks = upstream.config.layerdrop > 0
        self.prediction = MaskedPrediction(
            upstream.hidden_sizes[-1],
            num_labels=labelling.num_labels,
            final_dim=config.final_dim,
            temperature=config.logit_temperature,
            untie_final_proj=config.untie_final_proj,
            label_init=config.label_init,
        )

    def forward(self, inputs: PretrainInputs, generator: torch.Generator) -> LossOutput:
        """See `Objective.forward`; the generator draws the mask and the blocks to skip."""
        waveform, lengths = inputs.waveform, inputs.lengths
        if self.upstream.normalize:
            waveform = normalize_waveform(waveform, lengths)
        features, frames = self.upstream.extract_features(waveform, lengths)
        config = self.config
        mask = sample_span_mask(
            frames.to(generator.device),
            prob=config.mask_prob,
            span=config.mask_length,
            min_spans=config.min_masks,
            generator=generator,
            max_length=features.size(1),
            require_same_masks=config.require_same_masks,
        ).to(features.device)  # (B, T)
        depth = len(self.upstream.hidden_sizes) - 1
        skipped = self._skipped(depth, generator)
        hidden = self.upstream.encode(features, frames, layers=frozenset({depth}), mask=mask, skipped_blocks=skipped)[
            depth
        ]
        aligned = [align_codes(c, ratio, features.size(1)) for c, ratio in zip(inputs.codes, self.ratios, strict=True)]
        if config.unmasked_weight > 0:
            inside = ~lengths_to_padding_mask(frames, features.size(1))
            output = self.prediction(
                *_select(hidden, aligned, inside), masked=mask[inside], unmasked_weight=config.unmasked_weight
            )
        else:
            output = self.prediction(*_select(hidden, aligned, mask))
        loss, metrics = output.loss_sum, dict(output.metrics)
        if config.features_penalty > 0 and features.requires_grad:
            # fairseq multiplies by the sample size, so that after the division by it the mean square remains.
            penalty = features_penalty(features, frames) * output.sample_size
            metrics["features_penalty"] = penalty.detach()
            loss = loss + config.features_penalty * penalty
        return LossOutput(loss, output.sample_size, metrics)

    def _skipped(self, depth: int, generator: torch.Generator) -> frozenset[int]:
        if not (self.training and self.skips_blocks):
            return frozenset()
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        cpu = torch.Generator().manual_seed(seed)
        return sample_skipped_blocks(depth, self.upstream.config.layerdrop, generator=cpu)


def _select(hidden: Tensor, codes: Sequence[Tensor], chosen: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The chosen frames: (N, D) and codes (N,); from (B, T, D), (B, T) and the choice (B, T) bool."""
    return hidden[chosen], [c[chosen] for c in codes]


def align_codes(codes: Tensor, ratio: float, frames: int) -> Tensor:
    """Picks the label at the beginning of each frame, as fairseq's feat2tar_ratio.

    Args:
        codes: (B, T_label) at `ratio` labels per frame.
        ratio: label rate over frame rate, at least 1.
        frames: T.

    Returns:
        (B, T).
    """
    index = (torch.arange(frames, device=codes.device) * ratio).long().clamp(max=codes.size(1) - 1)
    return codes[:, index]


def build_pretraining(
    upstream: HubertUpstream, config: HubertPretrainConfig, labelling: Labelling
) -> HubertPretraining:
    """Makes the objective around an upstream."""
    return HubertPretraining(upstream, config, labelling)
