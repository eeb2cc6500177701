"""Fast-HuBERT's pre-training: masked prediction at 25 Hz by linear layers on blocks 4 and 12."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor

from speechssl.checkpoint import read_file
from speechssl.errors import ConfigError
from speechssl.masked_objective import MaskedPredictionConfig, MaskedPredictionObjective
from speechssl.objective import Labelling, PretrainInputs
from speechssl.train.config import PretrainConfig
from upstreams.fast_hubert.model import FastHubertUpstream


@dataclass(frozen=True)
class FastHubertPretrainConfig(MaskedPredictionConfig):
    """The objective; the defaults are those of the published base model.

    Labels are HuBERT's, or phoneme-like units (MonoBERT, Ma et al. 2023, arXiv:2306.08920), at 50 Hz, every second of
    which is predicted. The published code divides the logits of the linear layers by 0.1 as if they were cosines, takes
    the mean over layers, and of several label sets predicts the first; here all are predicted.

    Paper: Yang et al. 2023, sec. 3, arXiv:2309.13860, and fasthubert_base_lirbispeech.yaml of its code.
    """

    layers: tuple[int, ...] = (4, 12)
    """Hidden states that predict, each with a head of its own, the last one among them."""
    average_layers: bool = True
    """Whether the loss is the mean over `layers` and not their sum."""
    head: Literal["cosine", "linear"] = "linear"
    """What scores labels: cosines to their embeddings, or a linear layer."""
    features_penalty: float = 0.0
    """Weight of the mean square of the convolutional frontend's output."""
    statistics: str | None = None
    """A safetensors file with `mean` and `deviation` of the corpus's log-mel energies, of waveforms in 16-bit integers;
    None = of the run's first micro-batches, or those of the upstream that the run starts from."""


PRETRAIN_PRESETS: dict[str, FastHubertPretrainConfig] = {
    "fast_hubert_tiny": FastHubertPretrainConfig(layers=(2, -1)),
    "fast_hubert_base": FastHubertPretrainConfig(),
}

BASE = PretrainConfig(steps=400_000, batch_seconds=350.0, batches_per_step=8, max_seconds=15.62)

TRAIN_PRESETS: dict[str, PretrainConfig] = {"fast_hubert_base": BASE}
"""HuBERT's batch of 2800 seconds, on 8 GPUs; crops of 1562 frames."""


class FastHubertPretraining(MaskedPredictionObjective):
    """A Fast-HuBERT upstream with its prediction heads."""

    upstream: FastHubertUpstream
    config: FastHubertPretrainConfig
    fit_batches: ClassVar[int] = 16

    def begin_run(self, batches: Iterable[PretrainInputs]) -> None:
        """Takes the statistics of the corpus from the file or the batches, unless the upstream has come with some."""
        norm = self.upstream.frontend.norm
        if self.config.statistics is not None:
            mean, deviation = _read_statistics(Path(self.config.statistics), norm.mean)
            norm.mean.copy_(mean)
            norm.deviation.copy_(deviation)
            norm.frames.fill_(1)
        elif not norm.fitted:
            self.upstream.frontend.fit((inputs.waveform, inputs.lengths) for inputs in batches)


def _read_statistics(path: Path, like: Tensor) -> tuple[Tensor, Tensor]:
    content = read_file(path) if path.is_file() else {}
    found = [v for v in map(content.get, ("mean", "deviation")) if isinstance(v, Tensor) and v.shape == like.shape]
    if len(found) < 2:
        raise ConfigError(
            f"`objective.statistics` must name a file with `mean` and `deviation`, {len(like)} numbers each, but "
            f"{path} is not such a file."
        )
    return found[0], found[1]


def build_pretraining(
    upstream: FastHubertUpstream, config: FastHubertPretrainConfig, labelling: Labelling
) -> FastHubertPretraining:
    """Makes the objective around an upstream."""
    return FastHubertPretraining(upstream, config, labelling)
