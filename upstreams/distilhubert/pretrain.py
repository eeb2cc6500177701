"""DistilHuBERT's pre-training: the first blocks of a teacher learn to predict its deeper hidden states.

B batch, S samples, T frames, N valid frames, L predicted layers, E width of the teacher.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from speechssl.encoder.transformer import draw_skipped_blocks
from speechssl.errors import ConfigError
from speechssl.lengths import lengths_to_padding_mask
from speechssl.loading import build_upstream, load_upstream
from speechssl.loss.distillation import DISTILLATION_LIMITS, LayerPrediction, distillation
from speechssl.metric.tallies import moments
from speechssl.objective import Labelling, Objective, PretrainInputs
from speechssl.train.config import PretrainConfig
from speechssl.types import LossOutput
from speechssl.upstream import Upstream, normalize_waveform
from speechssl.upstream_spec import parse_spec
from upstreams.distilhubert.model import DistilHubertUpstream

RANDOM = "random"


@dataclass(frozen=True)
class DistilHubertPretrainConfig:
    """The objective; the defaults are those of the paper's model.

    Paper: Chang et al. 2022, sec. 3 and 4.1, arXiv:2110.01900, and S3PRL's pretrain/distiller (whose own default
    predicts layers 4 and 12).
    """

    teacher: str | None = None
    """As runs name upstreams: a preset, folder, checkpoint or repository, ':random' after it for random weights;
    'random' alone is one of the student's shape, as deep as `layers` asks for. Its frame rate must be the student's."""
    layers: tuple[int, ...] = (4, 8, 12)
    """Hidden states of the teacher that are predicted."""
    initialize: bool = True
    """Whether the student starts with the teacher's frontend, projection, positions and first blocks."""
    cosine_weight: float = 1.0
    """Of the cosine loss beside the L1 loss."""


PRETRAIN_PRESETS: dict[str, DistilHubertPretrainConfig] = {
    "distilhubert_tiny": DistilHubertPretrainConfig(teacher=RANDOM, layers=(2, 4, 6)),
    "distilhubert": DistilHubertPretrainConfig(teacher="hubert_base"),
}

TRAIN_PRESETS: dict[str, PretrainConfig] = {
    "distilhubert": PretrainConfig(
        steps=200_000,
        batch_seconds=375.0,
        batches_per_step=1,
        max_batch=24,
        learning_rate=2e-4,
        weight_decay=1e-6,
        warmup=0.07,
        clip_norm=5.0,
    )
}
"""24 utterances of at most 15.6 seconds per step, on one GPU. The weight decay is S3PRL's setting; its optimiser
(`get_AdamW_with_schedule`) overrides it with 0.01 for all but biases."""


class DistilHubertPretraining(Objective):
    """A student, the heads that predict, and the frozen teacher, which hears in float32 whatever autocast says."""

    limits = DISTILLATION_LIMITS
    upstream: DistilHubertUpstream

    def __init__(
        self, upstream: DistilHubertUpstream, config: DistilHubertPretrainConfig, labelling: Labelling
    ) -> None:
        """
        Raises:
            SpeechsslError: a teacher that is not named, can't be loaded, or has another rate, shape or too few layers.
        """
        super().__init__(upstream, labelling)
        self.config = config
        self.teacher = _load_teacher(upstream, config).requires_grad_(requires_grad=False).eval()
        _check_rates(upstream, self.teacher)
        self.layers = sorted(self.teacher.resolve_layers(config.layers))
        widths = {self.teacher.hidden_sizes[layer] for layer in self.layers}
        if len(widths) > 1:
            raise ConfigError(f"`objective.layers` must be equally wide, but are {sorted(widths)} wide: choose others.")
        if config.initialize:
            _initialize(upstream, self.teacher)
        upstream.mask_embedding.requires_grad = False  # nothing is hidden
        self.depth = len(upstream.hidden_sizes) - 1
        self.skips_blocks = upstream.config.layerdrop > 0
        self.heads = LayerPrediction(upstream.hidden_sizes[-1], layers=len(self.layers), output_width=widths.pop())

    def train(self, mode: bool = True) -> "DistilHubertPretraining":
        """Leaves the teacher in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, inputs: PretrainInputs, generator: torch.Generator) -> LossOutput:
        """See `Objective.forward`; nothing is hidden, the generator draws the blocks to skip."""
        upstream, waveform, lengths = self.upstream, inputs.waveform, inputs.lengths
        with torch.no_grad(), torch.autocast(waveform.device.type, enabled=False):
            taught = self.teacher(waveform, lengths, layers=self.layers)
        if upstream.normalize:
            waveform = normalize_waveform(waveform, lengths)
        features, frames = upstream.extract_features(waveform, lengths)
        skipped: frozenset[int] = frozenset()
        if self.training:
            skipped = draw_skipped_blocks(self.depth, upstream.config.layerdrop, generator=generator)
        states = upstream.encode(features, frames, layers=frozenset({self.depth}), skipped_blocks=skipped)
        frames = frames.minimum(taught.lengths)
        predicted = self.heads(_valid(states[self.depth], frames))  # (L, N, E)
        target = torch.stack([_valid(state, frames) for state in taught.hidden_states])
        return self._loss(predicted, target)

    def _loss(self, predicted: Tensor, target: Tensor) -> LossOutput:
        found = distillation(predicted, target)
        size = torch.tensor(float(target.size(1)), device=target.device)
        metrics = {
            "l1_loss": found.l1.detach().mean(),
            "cosine_loss": found.cosine.detach().mean(),
            "prediction_moments": moments(predicted[-1]),
            "target_moments": moments(target[-1]),
        }
        metrics |= {f"similarity_{layer}": s for layer, s in zip(self.layers, found.similarity, strict=True)}
        loss = found.l1.mean() + self.config.cosine_weight * found.cosine.mean()
        return LossOutput(loss, size, metrics)


def _valid(x: Tensor, frames: Tensor) -> Tensor:
    """The valid frames: (B, T, D), (B,) -> (N, D)."""
    index = (~lengths_to_padding_mask(frames, x.size(1))).flatten().nonzero().squeeze(1)
    return x.flatten(0, 1).index_select(0, index)


def _load_teacher(upstream: DistilHubertUpstream, config: DistilHubertPretrainConfig) -> Upstream:
    if config.teacher is None:
        raise ConfigError("DistilHuBERT needs a teacher: name an upstream with `objective.teacher`.")
    if config.teacher == RANDOM:
        return build_upstream(upstream.family, replace(upstream.config, depth=max(config.layers)), seed=0)
    spec = parse_spec(config.teacher)
    return load_upstream(spec.name, random_weights=spec.random_weights)


def _check_rates(student: Upstream, teacher: Upstream) -> None:
    for name, unit in (("sample_rate", "samples"), ("frame_rate", "frames")):
        ours, theirs = getattr(student, name), getattr(teacher, name)
        if ours != theirs:
            raise ConfigError(
                f"The teacher must have the student's {ours} {unit} a second, but '{teacher.name}' has {theirs}."
            )


def _initialize(student: Upstream, teacher: Upstream) -> None:
    """Copies what S3PRL copies; the teacher's layer norms before the projection and after the positions stay behind."""
    blocks = tuple(f"encoder.blocks.{index}." for index in range(len(student.hidden_sizes) - 1))
    parts = ("frontend.", "projection.", "encoder.position.", *blocks)
    given = teacher.state_dict()
    state = {}
    for name, value in student.state_dict().items():
        if name.startswith(parts):
            if name not in given or given[name].shape != value.shape:
                found = "is absent" if name not in given else f"has shape {tuple(given[name].shape)}"
                raise ConfigError(
                    f"The student starts with weights of its teacher, but '{name}' {found} in '{teacher.name}', and "
                    f"{tuple(value.shape)} in the student: make the shapes equal, or set `objective.initialize=false`."
                )
            state[name] = given[name]
    student.load_state_dict(state, strict=False)


def build_pretraining(
    upstream: DistilHubertUpstream, config: DistilHubertPretrainConfig, labelling: Labelling
) -> DistilHubertPretraining:
    """Makes the objective around an upstream."""
    return DistilHubertPretraining(upstream, config, labelling)
