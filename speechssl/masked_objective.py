"""The objective that HuBERT and its kin share: predict the cluster labels of hidden frames.

B batch, S samples, T frames, C channels of the frontend, D width, N scored frames, L blocks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from speechssl.augment.utterance_mixing import MixingConfig, mix_utterances
from speechssl.contextual.model import ContextualUpstream
from speechssl.encoder.transformer import draw_skipped_blocks
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.lengths import lengths_to_padding_mask
from speechssl.loss.masked_prediction import (
    PREDICTION_LIMITS,
    LabelPrediction,
    LinearPrediction,
    MaskedPrediction,
    features_penalty,
)
from speechssl.masking.span import draw_span_mask
from speechssl.objective import Labelling, Objective, PretrainInputs
from speechssl.targets.alignment import align_codes
from speechssl.types import LossOutput
from speechssl.upstream import normalize_waveform


@dataclass(frozen=True)
class MaskedPredictionConfig:
    """Masked prediction of labels; the defaults are those of HuBERT base.

    Paper: Hsu et al. 2021, sec. 2 and 4, arXiv:2106.07447, and fairseq's hubert_base_librispeech.yaml.
    """

    mask_prob: float = 0.80
    """Expected fraction of hidden frames if spans did not overlap."""
    mask_length: int = 10
    """Frames."""
    min_masks: int = 2
    """Spans per utterance."""
    require_same_masks: bool = False
    layers: tuple[int, ...] = (-1,)
    """Hidden states that predict, each with a head of its own, the last one among them; (4, 12) is intermediate-layer
    supervision (Wang et al. 2022, sec. 3, arXiv:2112.08778). Negative ones count from the end."""
    average_layers: bool = False
    """Whether the loss is the mean over `layers` and not their sum."""
    head: Literal["cosine", "linear"] = "cosine"
    """What scores labels: cosines to their embeddings, or a linear layer."""
    final_dim: int = 256
    """Width of the embeddings of labels."""
    logit_temperature: float = 0.1
    untie_final_proj: bool = True
    """One projection per label set."""
    label_init: Literal["uniform", "unit"] = "uniform"
    """Of the label embeddings: 'uniform' as fairseq, 'unit' for short runs; see `MaskedPrediction`."""
    unmasked_weight: float = 0.0
    """Weight of the loss on frames that were not hidden."""
    features_penalty: float = 10.0
    """Weight of the mean square of the convolutional frontend's output."""
    mixing: MixingConfig = field(default_factory=MixingConfig)
    """What is mixed into the utterances whose labels are predicted."""


class MaskedPredictionObjective(Objective):
    """An upstream with the heads that predict labels; families name it, and may add to its loss."""

    uses_labels = True
    limits = PREDICTION_LIMITS
    upstream: ContextualUpstream

    def __init__(self, upstream: ContextualUpstream, config: MaskedPredictionConfig, labelling: Labelling) -> None:
        """
        Args:
            labelling: rates are at least the upstream's frame rate.

        Raises:
            SpeechsslError: labels that are too coarse, or layers that are not there or lack the last one.
        """
        super().__init__(upstream, labelling)
        if any(rate < upstream.frame_rate for rate in labelling.label_rates):
            raise SpeechsslError(
                f"Labels need at least {upstream.frame_rate} Hz, but their rates are {list(labelling.label_rates)}."
            )
        self.config = config
        self.ratios = [rate / upstream.frame_rate for rate in labelling.label_rates]
        self.skips_blocks = upstream.config.layerdrop > 0
        self.uses_noise = config.mixing.prob > 0 and config.mixing.noise_prob > 0
        self.depth = len(upstream.hidden_sizes) - 1
        self.layers = sorted(upstream.resolve_layers(config.layers))
        if self.depth not in self.layers:
            raise ConfigError(f"`objective.layers` must name the last layer, {self.depth}, but is {config.layers}.")
        self.heads = nn.ModuleDict(
            {str(layer): _make_head(upstream.hidden_sizes[layer], config, labelling) for layer in self.layers}
        )
        self.norms = make_norms(upstream, self.layers)

    @property
    def prediction(self) -> LabelPrediction:
        """The head of the last layer."""
        return self.heads[str(self.depth)]  # type: ignore[return-value]  # ModuleDict forgets its types

    @property
    def needed_layers(self) -> frozenset[int]:
        """The hidden states that `forward` computes."""
        return frozenset(self.layers)

    def forward(self, inputs: PretrainInputs, generator: torch.Generator) -> LossOutput:
        """See `Objective.forward`; the generator draws what is mixed, the mask and the blocks to skip."""
        upstream, config = self.upstream, self.config
        waveform, lengths = inputs.waveform, inputs.lengths
        if config.mixing.prob > 0:
            waveform = mix_utterances(waveform, lengths, config.mixing, generator=generator, noise=inputs.noise)
        if upstream.normalize:
            waveform = normalize_waveform(waveform, lengths)
        features, frames = upstream.extract_features(waveform, lengths)
        mask = draw_span_mask(config, frames, features.size(1), generator)  # (B, T)
        skipped = self._skipped(generator)
        states = upstream.encode(features, frames, layers=self.needed_layers, mask=mask, skipped_blocks=skipped)
        output = self._predict(states, inputs.codes, mask, frames)
        return self.further_loss(self._penalize(output, features, frames), states, mask, generator)

    def normalized(self, states: Mapping[int, Tensor], layer: int) -> Tensor:
        """The hidden state of a layer, through its norm where it has one: (B, T, D)."""
        name = str(layer)
        return self.norms[name](states[layer]) if name in self.norms else states[layer]  # type: ignore[no-any-return]

    def further_loss(
        self,
        output: LossOutput,
        states: Mapping[int, Tensor],  # noqa: ARG002  # for families
        mask: Tensor,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> LossOutput:
        """What a family adds to the loss.

        Args:
            output: of masked prediction.
            states: layer -> (B, T, D), those of `needed_layers`.
            mask: the hidden frames, (B, T) bool.
            generator: of the draws that are made for it.
        """
        return output

    def _predict(
        self, states: Mapping[int, Tensor], codes: Sequence[Tensor], mask: Tensor, frames: Tensor
    ) -> LossOutput:
        """The loss of all heads; the metrics are those of the last layer, with the others' loss and accuracy."""
        weight = self.config.unmasked_weight
        scored = mask if weight == 0 else ~lengths_to_padding_mask(frames, mask.size(1))
        index = scored.flatten().nonzero().squeeze(1)  # (N,)
        masked = None if weight == 0 else mask.flatten()[index]
        targets = [
            align_codes(c, ratio, mask.size(1)).flatten()[index] for c, ratio in zip(codes, self.ratios, strict=True)
        ]
        outputs = {
            layer: self.heads[str(layer)](
                self.normalized(states, layer).flatten(0, 1).index_select(0, index),
                targets,
                masked=masked,
                unmasked_weight=weight,
            )
            for layer in self.layers
        }
        last = outputs.pop(self.depth)
        loss, metrics = last.loss_sum, dict(last.metrics)
        for layer, output in outputs.items():
            loss = loss + output.loss_sum
            metrics |= {f"layer_{layer}_{name}": output.metrics[name] for name in ("masked_loss", "accuracy")}
        if self.config.average_layers:
            loss = loss / len(self.layers)
        return LossOutput(loss, last.sample_size, metrics)

    def _penalize(self, output: LossOutput, features: Tensor, frames: Tensor) -> LossOutput:
        if self.config.features_penalty == 0 or not features.requires_grad:
            return output
        # fairseq multiplies by the sample size, so that after the division by it the mean square remains.
        penalty = features_penalty(features, frames) * output.sample_size
        loss = output.loss_sum + self.config.features_penalty * penalty
        return LossOutput(loss, output.sample_size, {**output.metrics, "features_penalty": penalty.detach()})

    def _skipped(self, generator: torch.Generator) -> frozenset[int]:
        if not (self.training and self.skips_blocks):
            return frozenset()
        return draw_skipped_blocks(self.depth, self.upstream.config.layerdrop, generator=generator)


def make_norms(upstream: ContextualUpstream, layers: Iterable[int]) -> nn.ModuleDict:
    """A layer norm for each layer between the blocks of an upstream with norms before: its residuals have seen none.

    fairseq's UniSpeech-SAT has it so (`layer_norm_for_extract`).
    """
    last = len(upstream.hidden_sizes) - 1
    inner = [layer for layer in layers if upstream.config.pre_norm and layer < last]
    return nn.ModuleDict({str(layer): nn.LayerNorm(upstream.hidden_sizes[layer]) for layer in inner})


def _make_head(size: int, config: MaskedPredictionConfig, labelling: Labelling) -> LabelPrediction:
    if config.head == "linear":
        return LinearPrediction(size, num_labels=labelling.num_labels, temperature=config.logit_temperature)
    return MaskedPrediction(
        size,
        num_labels=labelling.num_labels,
        final_dim=config.final_dim,
        temperature=config.logit_temperature,
        untie_final_proj=config.untie_final_proj,
        label_init=config.label_init,
    )
