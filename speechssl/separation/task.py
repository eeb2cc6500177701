"""Tasks that mask a short-time Fourier transform: separation and enhancement.

B batch, N sources, S samples, T frames, F bins, D width.
"""

import logging
import multiprocessing
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from speechssl.answers import answer_each
from speechssl.audio import read_audio
from speechssl.data.corpus import Corpus, where_is
from speechssl.data.flac import write_flac
from speechssl.errors import ManifestError
from speechssl.head.mask import MaskHead
from speechssl.metric.perceptual import check_installed
from speechssl.mixing.simulate import Kind, simulate
from speechssl.result import Evaluation
from speechssl.separation.config import MaskingConfig
from speechssl.separation.measuring import Estimate, measure, summarise, write_scores
from speechssl.separation.stft import choose_hop, count_frames, istft, stft
from speechssl.separation.targets import align_frames, apply_masks, compress, mask_loss, target_magnitudes
from speechssl.separation.waveforms import SAMPLE_RATE, WaveformReader
from speechssl.separation.writing import write_like
from speechssl.task import Task, TaskData
from speechssl.types import LossOutput, Utterance

logger = logging.getLogger(__name__)
MANY = 256
"""Utterances of a split, about half a minute of PESQ and STOI, that are worth the seconds in which processes start."""


class MaskingTask(Task):
    """Masks for the sources of a mixture, on the transform of the mixture."""

    higher_is_better = True
    config: MaskingConfig
    kind: ClassVar[Kind]
    """Of the mixtures that are made where the corpus has none."""
    outputs: ClassVar[tuple[str, ...]]
    """What each of the N estimates is called in the names of files."""

    def __init__(self, config: MaskingConfig) -> None:
        super().__init__(config)
        self.metric = config.metric
        self._reader = WaveformReader(self.sources_of, max_bytes=int(config.audio_gb * 1e9))

    @abstractmethod
    def sources_of(self, utterance: Utterance) -> tuple[str, ...]:
        """The files of an utterance's N sources; nothing where its labels have none."""

    @override
    def prepare(self, corpus: Corpus) -> TaskData:
        check_installed((self.config.metric, *self.config.metrics))
        made = None if self.config.simulate is None else simulate(corpus, self.kind, self.config.simulate)
        splits = {s: corpus.utterances(s) if made is None else made[s] for s in ("train", "dev", "test")}
        for split, utterances in splits.items():
            if not utterances:
                raise ManifestError(f"The corpus {corpus.root} has no utterance in '{split}': prepare it again.")
            for utterance in utterances:
                self._check(utterance, split, corpus.root)
        return TaskData(splits=splits)

    def _check(self, utterance: Utterance, split: str, root: Path) -> None:
        sources = self.sources_of(utterance)
        if len(sources) != len(self.outputs):
            raise ManifestError(
                f"{where_is(root, split, utterance.id)} has {len(sources)} of {len(self.outputs)} sources in the "
                f"labels of '{utterance.id}': prepare a corpus for {self.name.replace('_', ' ')}, or set `simulate`."
            )
        for source in sources:
            if not Path(source).is_file():
                raise ManifestError(
                    f"{where_is(root, split, utterance.id)} names {source}, a source of '{utterance.id}' in '{split}', "
                    "which does not exist: fetch it, or make the corpus again."
                )

    @override
    def build_head(self, size: int, frame_rate: float, data: TaskData) -> nn.Module:
        c = self.config
        return MaskHead(
            size,
            c.n_fft // 2 + 1,
            sources=len(self.outputs),
            kind=c.head,
            num_layers=c.num_layers,
            hidden_size=c.hidden_size,
            dropout=c.dropout,
            activation=c.activation,
            frame_rate=frame_rate,
        )

    @override
    def loss(
        self,
        head: nn.Module,
        features: Tensor,
        lengths: Tensor,
        utterances: Sequence[Utterance],
        data: TaskData,
        generator: torch.Generator,
    ) -> LossOutput:
        batch = self._reader.batch(utterances).to(features.device)
        transform = self._transform(head)
        mixture = stft(batch.mixture, batch.lengths, **transform)  # (B, T, F)
        sources = stft(batch.sources, batch.lengths, **transform)  # (B, N, T, F)
        masks, frames = self._masks(head, features, lengths, batch.lengths)
        targets = compress(target_magnitudes(sources, mixture, self.config.target), self.config.compression)
        seen = compress(mixture.abs(), self.config.compression)
        losses = mask_loss(masks, seen, targets, frames, distance=self.config.distance)
        return LossOutput(losses.sum(), torch.tensor(len(utterances)))

    @override
    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance], data: TaskData
    ) -> list[Any]:
        """Measures each utterance at once: the estimates of a whole split would take gigabytes."""
        batch = self._reader.batch(utterances)
        estimates = self._estimate(head, features, lengths, batch.mixture, batch.lengths).cpu()
        test = {u.id for u in data.splits["test"]}
        shown = set(sorted(test)[: self.config.examples])
        everything = tuple(dict.fromkeys((self.config.metric, *self.config.metrics)))
        wanted = [everything if u.id in test else (self.config.metric,) for u in utterances]
        many = min(len(data.splits[split]) for split in ("dev", "test")) >= MANY
        kept = [u.id in shown for u in utterances]
        return list(measure(estimates, batch, wanted, kept=kept, processes=_cores() if many else 1))

    @override
    def evaluate(
        self, head: nn.Module, predictions: Mapping[str, Any], data: TaskData, split: str, folder: Path
    ) -> Evaluation:
        utterances = data.splits[split]
        rows = [cast(Estimate, predictions[u.id]) for u in utterances]
        metrics = summarise([row.values for row in rows], name=split)
        if split != "test":
            return Evaluation(metrics=metrics)
        before = [row.before for row in rows]
        files = {"scores": write_scores(folder / "scores.tsv", [u.id for u in utterances], [r.values for r in rows])}
        examples = [
            self._write_example(u, row.waveforms, folder)
            for u, row in zip(utterances, rows, strict=True)
            if row.waveforms is not None
        ]
        breakdown = {"of the mixture": summarise(before, name=split)} if before[0] else {}
        return Evaluation(metrics=metrics, breakdown=breakdown, files=files, examples=examples)

    @override
    def infer(
        self,
        head: nn.Module,
        features: Mapping[str, Tensor],
        utterances: Sequence[Utterance],
        data: TaskData,
        folder: Path,
    ) -> Any:
        """Writes the estimates beside one another: path -> the files, of the rate and length of the input."""
        taken: set[str] = set()

        def write(utterance: Utterance) -> list[str]:
            one = features[utterance.id]
            waveform = read_audio(
                utterance.path, sample_rate=SAMPLE_RATE, start=utterance.start, duration=utterance.duration
            )
            sizes = torch.tensor([len(one)], device=one.device), torch.tensor([len(waveform)])
            estimates = self._estimate(head, one[None], sizes[0], waveform[None], sizes[1])[0].cpu()
            return write_like(utterance, estimates, self.outputs, folder=folder, taken=taken)

        return answer_each(utterances, write)

    def _estimate(self, head: nn.Module, features: Tensor, lengths: Tensor, mixture: Tensor, samples: Tensor) -> Tensor:
        """Estimates of the sources, (B, N, S), on the device of the features."""
        mixture, samples = mixture.to(features.device), samples.to(features.device)
        transform = self._transform(head)
        masks, _ = self._masks(head, features, lengths, samples)
        masked = apply_masks(masks, stft(mixture, samples, **transform), self.config.compression)
        return istft(masked, samples, **transform)

    def _masks(self, head: nn.Module, features: Tensor, lengths: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Masks (B, N, T, F) and valid frames (B,) of mixtures of `samples` samples."""
        hop = self._transform(head)["hop"]
        frames = count_frames(samples, hop)
        rate = float(head.frame_rate)  # type: ignore[arg-type]  # a plain float on MaskHead
        aligned = align_frames(features, lengths, frame_rate=rate, hop=hop, sample_rate=SAMPLE_RATE, frames=frames)
        return head(aligned, frames), frames

    def _transform(self, head: nn.Module) -> dict[str, int]:
        config, hop = self.config, self.config.hop_length
        if hop is None:
            stride = SAMPLE_RATE / float(head.frame_rate)  # type: ignore[arg-type]  # as above
            hop = choose_hop(stride=stride, win_length=config.win_length)
        return {"n_fft": config.n_fft, "win_length": config.win_length, "hop": hop}

    def _write_example(self, utterance: Utterance, estimates: Tensor, folder: Path) -> dict[str, str]:
        """Mixture, estimates and references as FLAC, all scaled alike where one would be clipped."""
        truth = self._reader.batch([utterance])
        named = {"mixture": truth.mixture[0]}
        for k, name in enumerate(self.outputs):
            named |= {f"{name} estimated": estimates[k], f"{name} reference": truth.sources[0, k]}
        loudest = max(1.0, float(pad_sequence(list(named.values())).abs().max()))
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        example = {"title": utterance.id}
        for name, waveform in named.items():
            example[name] = f"audio/{utterance.id.replace('/', '_')}-{name.replace(' ', '-')}.flac"
            write_flac(folder / example[name], (waveform / loudest).numpy())
        return example


def _cores() -> int:
    """Of this machine; a process of several that run side by side has its own one alone."""
    from joblib import cpu_count

    return 1 if multiprocessing.parent_process() is not None else int(cpu_count())
