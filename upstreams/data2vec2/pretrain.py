"""data2vec 2.0's pre-training objective: data2vec's targets, each predicted from several masked views.

B batch, M views of each utterance, T frames, V visible frames, H hidden frames, N hidden frames of all, D width.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from speechssl.encoder.dropout import Dropout
from speechssl.encoder.subset import FrameSubset, frame_subset
from speechssl.errors import ConfigError
from speechssl.loss.regression import REGRESSION_LIMITS, regression_loss
from speechssl.masking.block import sample_block_mask
from speechssl.objective import Labelling, PretrainInputs
from speechssl.targets.ema_teacher import average_results
from speechssl.targets.self_distillation import Heard, SelfDistillation
from speechssl.train.config import PretrainConfig, tiny
from speechssl.types import LossOutput
from upstreams.data2vec2.decoder import ConvDecoder
from upstreams.data2vec2.model import Data2Vec2Upstream


@dataclass(frozen=True)
class Data2Vec2PretrainConfig:
    """The objective; the defaults are those of the published base model.

    Paper: Baevski et al. 2022, sec. 3 and 4, arXiv:2212.07525, and fairseq's v2/base_audio_only_task.yaml.
    """

    views: int = 8
    """M, fairseq's `clone_batch`: masks per utterance, for which features and targets are computed once."""
    mask_prob: float = 0.5
    """Fraction of frames that is hidden, exactly."""
    mask_prob_adjust: float = 0.05
    """Added to it for the number of blocks, since they overlap."""
    mask_length: int = 5
    """Frames of a block."""
    mask_noise_std: float = 0.01
    """Of the normal noise that stands for hidden frames in the decoder."""
    zero_hidden: bool = True
    """What stands for hidden frames in the positional convolutions: nothing, as in the published models (fairseq's
    `encoder_zero_mask`), or the same kind of noise as in the decoder."""
    decoder_width: int = 384
    decoder_kernel: int = 7
    """Frames."""
    decoder_groups: int = 16
    decoder_depth: int = 4
    decoder_dropout: float = 0.1
    """Of what enters the decoder."""
    target_layers: int = 8
    """How many of the last blocks are averaged."""
    loss_beta: float = 0.0
    """Error below which smooth L1 is squared; 0 = the squared error everywhere."""
    loss_scale: float | None = None
    """None = 1 / sqrt(width)."""
    ema_decay: float = 0.999
    """The teacher's, at the beginning."""
    ema_end_decay: float = 0.99999
    ema_ramp_steps: int = 75_000
    """Updates in which the decay rises linearly; short runs need a short ramp and lower decays."""


PRETRAIN_PRESETS: dict[str, Data2Vec2PretrainConfig] = {
    "data2vec2_tiny": Data2Vec2PretrainConfig(
        views=4,
        decoder_width=128,
        decoder_dropout=0.0,
        target_layers=3,
        ema_end_decay=0.9999,
        ema_ramp_steps=2_000,
    ),
    "data2vec2_base": Data2Vec2PretrainConfig(),
    "data2vec2_large": Data2Vec2PretrainConfig(
        views=12,
        mask_prob=0.55,
        mask_prob_adjust=0.1,
        decoder_width=768,
        target_layers=16,
        ema_decay=0.9997,
        ema_end_decay=1.0,
        ema_ramp_steps=300_000,
    ),
}

_BASE = PretrainConfig(
    steps=400_000,
    batch_seconds=62.5,
    batches_per_step=8,
    max_seconds=20.0,
    grid_seconds=0.02,
    learning_rate=7.5e-4,
    decay_vectors=False,
    schedule="cosine",
    warmup=0.02,
    clip_norm=math.inf,
)

TRAIN_PRESETS: dict[str, PretrainConfig] = {
    "data2vec2_tiny": tiny(_BASE, batch_seconds=10.0),
    "data2vec2_base": _BASE,
    "data2vec2_large": replace(
        _BASE,
        steps=600_000,
        batch_seconds=20.0,
        batches_per_step=48,
        learning_rate=4e-4,
        warmup=1 / 60,
        clip_norm=1.0,
    ),
}
"""Base: 8 GPUs with 8.3 minutes of audio together; vectors, and so the learned scales of attention, do not decay."""


class Data2Vec2Pretraining(SelfDistillation):
    """A data2vec 2.0 upstream with its teacher and decoder.

    The teacher is an average of the whole encoder: positional convolutions, norms, blocks and the scales of attention.
    The frontend and its projection it shares with the student.

    Deviations: targets are normed over valid frames; padded frames are zeroed between convolutions; utterances of
    unequal lengths each have their exact fraction hidden (fairseq's crops are all equally long).
    """

    limits = REGRESSION_LIMITS
    upstream: Data2Vec2Upstream

    def __init__(self, upstream: Data2Vec2Upstream, config: Data2Vec2PretrainConfig, labelling: Labelling) -> None:
        super().__init__(upstream, config, labelling)
        if config.views < 1:
            raise ConfigError(f"`views` must be at least 1, but is {config.views}.")
        self.config = config
        self.decoder_dropout = Dropout(config.decoder_dropout)
        self.decoder = ConvDecoder(
            upstream.config.width,
            inner=config.decoder_width,
            kernel=config.decoder_kernel,
            groups=config.decoder_groups,
            depth=config.decoder_depth,
        )

    def forward(self, inputs: PretrainInputs, generator: torch.Generator) -> LossOutput:
        """See `Objective.forward`; the generator draws masks, noise and the blocks to skip."""
        heard, config = self.hear(inputs), self.config
        size = heard.projected.size(1)
        mask = sample_block_mask(
            heard.frames.repeat_interleave(config.views).to(generator.device),
            prob=config.mask_prob,
            block=config.mask_length,
            adjust=config.mask_prob_adjust,
            generator=generator,
            max_length=size,
        ).to(heard.projected.device)  # (B * M, T)
        # The longest utterance has the most hidden frames, and so many: no value need come back from a GPU.
        hidden = frame_subset(mask, int(size * config.mask_prob), equal=heard.padding_mask is None)
        prediction = self.predict(heard, hidden, generator)  # (N, D)
        with torch.no_grad():
            target = average_results(self.teacher_results(heard), heard.padding_mask)  # (B, T, D)
            target = hidden.rows(_take_of_views(target, hidden.frames))
        return regression_loss(prediction, target, beta=config.loss_beta, scale=config.loss_scale)

    def predict(self, heard: Heard, hidden: FrameSubset, generator: torch.Generator) -> Tensor:
        """Encodes the visible frames of every view, and decodes the hidden ones.

        Args:
            heard: B utterances.
            hidden: of B * M views, those of an utterance together.

        Returns:
            (N, D).
        """
        config, mask, padding = self.config, hidden.chosen, heard.padding_mask
        views = mask.size(0) // len(heard.frames)
        padding = None if padding is None else padding.repeat_interleave(views, dim=0)  # (B * M, T)
        visible = ~mask if padding is None else ~(mask | padding)
        kept = frame_subset(visible, mask.size(1) - int(mask.size(1) * config.mask_prob), equal=padding is None)
        x = self.upstream.input_dropout(heard.projected)
        x = (x[:, None] * visible.view(len(heard.frames), views, -1, 1)).flatten(0, 1)  # (B * M, T, D)
        if not config.zero_hidden:
            x = x + self._noise(x, mask, generator)
        encoded = self.upstream.encoder(
            x, padding, layers=frozenset({self.depth}), skipped_blocks=self.skipped_blocks(generator), kept=kept
        )[self.depth]  # (B * M, V, D)
        encoded = self.decoder_dropout(encoded)
        decoded = self.decoder(kept.put(encoded, self._noise(encoded, mask, generator)), padding)
        return self.decoder.projection(hidden.rows(hidden.take(decoded)))  # type: ignore[no-any-return]  # Any

    def _noise(self, like: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        """What stands for hidden frames, 0 elsewhere: (B * M, T, D) for (B * M, T)."""
        drawn = torch.randn(*mask.shape, like.size(2), generator=generator, device=generator.device)
        return (drawn.to(like.device) * (self.config.mask_noise_std * mask[:, :, None])).to(like.dtype)


def _take_of_views(x: Tensor, frames: Tensor) -> Tensor:
    """Frames of B utterances for B * M views: (B, T, D) and (B * M, H) int64 -> (B * M, H, D)."""
    index = frames.view(x.size(0), -1, 1).expand(-1, -1, x.size(2))  # (B, M * H, D)
    return x.gather(1, index).view(*frames.shape, x.size(2))


def build_pretraining(
    upstream: Data2Vec2Upstream, config: Data2Vec2PretrainConfig, labelling: Labelling
) -> Data2Vec2Pretraining:
    """Makes the objective around an upstream."""
    return Data2Vec2Pretraining(upstream, config, labelling)
