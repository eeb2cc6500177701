"""Voice conversion: nearest neighbours in the space of an upstream, a small network to log-mel, a ready vocoder.

The head is trained to give back the log-mel of natural speech from its features. To convert, each source frame is
replaced by the mean of the target's k nearest frames, and the head and the vocoder turn the result into speech.

Shapes: B batch, T frames, D width, M mel bands.
Paper: Baas et al. 2023, Voice Conversion With Just Nearest Neighbors, arXiv:2305.18975.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from downstreams.voice_conversion import scoring
from downstreams.voice_conversion.artifacts import Judged, report
from downstreams.voice_conversion.bounds import load_bounds, read, resample
from downstreams.voice_conversion.config import VoiceConversionConfig
from downstreams.voice_conversion.data import Plan, Target, make_data
from downstreams.voice_conversion.head import MelHead
from downstreams.voice_conversion.judges import SAMPLE_RATE
from downstreams.voice_conversion.knn import convert, prematch
from downstreams.voice_conversion.loudness import match_loudness, reference_loudness
from downstreams.voice_conversion.scoring import give_verdict, mean_value, score_metrics
from speechssl.data.corpus import Corpus
from speechssl.data.flac import write_flac
from speechssl.errors import SpeechsslError
from speechssl.result import Evaluation, MetricValue
from speechssl.task import Task, TaskData
from speechssl.types import LossOutput, Utterance
from speechssl.vocoder import MelConfig, Vocoder, load_vocoder, log_mel, synthesise

MEL = MelConfig()


class VoiceConversion(Task):
    """Nearest-neighbour voice conversion."""

    name = "voice_conversion"
    metric = "score"
    higher_is_better = True

    def __init__(self, config: VoiceConversionConfig) -> None:
        super().__init__(config)
        self.config: VoiceConversionConfig = config
        self._mels: dict[str, Tensor] = {}
        self._levels: dict[str, float | None] = {}
        if config.judges == "none":
            # Without judges the one measure left is how well held-out speech of the targets is given back.
            self.metric = "mel_distance"
            self.higher_is_better = False

    @override
    def prepare(self, corpus: Corpus) -> TaskData:
        return make_data(corpus, self.config)

    @override
    def build_head(self, size: int, frame_rate: float, data: TaskData) -> nn.Module:
        return MelHead(size, frame_rate, n_mels=MEL.n_mels, mel_rate=MEL.frame_rate, config=self.config.head)

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
        """Mean absolute error of the log-mel, summed over frames; on a share of the batches after prematching."""
        network = cast(MelHead, head)
        if float(torch.rand((), generator=generator)) < self.config.prematch:
            speakers = [str(u.labels.get("speaker", u.id)) for u in utterances]
            space = self._space(network, features)
            features = prematch(features, lengths, speakers, k=self.config.k, space=space)
        predicted = network(features, lengths)  # (B, T', M)
        errors = []
        for row, utterance in enumerate(utterances):
            target = self._mel(utterance).to(predicted.device)
            size = min(int(network.mel_lengths(lengths[row : row + 1])), target.size(0))
            errors.append((predicted[row, :size] - target[:size]).abs().mean(dim=1))
        per_frame = torch.cat(errors)
        return LossOutput(per_frame.sum(), torch.tensor(per_frame.numel(), device=per_frame.device))

    @override
    def predict(
        self, head: nn.Module, features: Tensor, lengths: Tensor, utterances: Sequence[Utterance], data: TaskData
    ) -> list[Any]:
        """The features of each utterance, (T, D): conversion needs those of a source and of its target's reference."""
        return [features[row, : int(lengths[row])].float().cpu() for row in range(len(utterances))]

    @override
    def evaluate(
        self, head: nn.Module, predictions: Mapping[str, Any], data: TaskData, split: str, folder: Path
    ) -> Evaluation:
        """Converts the pairs of a split and has them judged, beside the bounds."""
        network, plan = cast(MelHead, head).cpu(), cast(Plan, data.extra["plan"])
        metrics = {"mel_distance": self._mel_distance(network, predictions, plan, split)}
        if self.config.judges == "none":
            return Evaluation(metrics)
        waveforms = [self._speak(network, predictions, p.source, plan.targets[p.target]) for p in plan.pairs[split]]
        judges = scoring.load_judges()
        kept = self._bounds_folder(data)
        bounds = load_bounds(plan, judges, self.vocoder, kept)
        voices = bounds.voices()
        verdicts = [
            give_verdict(
                resample(waveform, MEL.sample_rate),
                pair.target,
                voices,
                str(pair.source.labels["text"]),
                judges,
                quality=split == "test",
            )
            for pair, waveform in zip(plan.pairs[split], waveforms, strict=True)
        ]
        metrics = {**score_metrics(verdicts, bounds.threshold), **metrics}
        if split != "test":
            return Evaluation(metrics)
        return report(metrics, Judged(plan, verdicts, waveforms, bounds, kept, self.vocoder), self.config, folder)

    @override
    def infer(
        self,
        head: nn.Module,
        features: Mapping[str, Tensor],
        utterances: Sequence[Utterance],
        data: TaskData,
        folder: Path,
    ) -> Any:
        """Says what the first file says in the voice of the others, as loud as these; writes `converted.flac`.

        Returns:
            source, voice (paths), converted (path), vocoder.
        """
        if len(utterances) < 2:
            raise SpeechsslError("Conversion needs two files or more: first the source, then speech of the target.")
        source, *voice = utterances
        reference = torch.cat([features[u.id].float().cpu() for u in voice])
        mel = self.convert(cast(MelHead, head).cpu(), features[source.id].float().cpu(), reference)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "converted.flac"
        waveform = match_loudness(synthesise(self.vocoder, mel), MEL.sample_rate, _level(voice))
        write_flac(path, waveform.numpy(), sample_rate=MEL.sample_rate)
        voices = [u.path for u in voice]
        return {"source": source.path, "voice": voices, "converted": str(path), "vocoder": self.vocoder.name}

    def _speak(self, head: MelHead, predictions: Mapping[str, Any], source: Utterance, target: Target) -> Tensor:
        """Converts an utterance to a waveform as loud as the target's reference, (S,) at the vocoder's rate."""
        mel = self.convert(head, predictions[source.id], _reference(predictions, target))
        if target.speaker not in self._levels:
            self._levels[target.speaker] = _level(target.reference)
        return match_loudness(synthesise(self.vocoder, mel), MEL.sample_rate, self._levels[target.speaker])

    @torch.inference_mode()
    def convert(self, head: MelHead, source: Tensor, reference: Tensor) -> Tensor:
        """Converts one utterance.

        Args:
            source: features of what is said, (T, D).
            reference: features of the target's speech, (N, D).

        Returns:
            (T', M) log-mel of the converted speech.
        """
        head.eval()
        matched = convert(self._space(head, source), self._space(head, reference), k=self.config.k, values=reference)
        mel: Tensor = head(matched[None], torch.tensor([len(matched)]))[0]
        return mel

    @cached_property
    def vocoder(self) -> Vocoder:
        """Loaded at the first synthesis."""
        return load_vocoder(self.config.vocoder, precision=self.config.vocoder_precision)

    def _space(self, head: MelHead, features: Tensor) -> Tensor:
        """The frames as they are compared."""
        return head.directions(features) if self.config.matching == "standardised" else features.detach()

    def _mel(self, utterance: Utterance) -> Tensor:
        """(T', M) log-mel of natural speech, kept from then on."""
        if utterance.id not in self._mels:
            mel = log_mel(read(utterance, MEL.sample_rate)[None], MEL.sample_rate, MEL)[0]
            self._mels[utterance.id] = mel.half()
        return self._mels[utterance.id].float()

    def _mel_distance(self, head: MelHead, predictions: Mapping[str, Any], plan: Plan, split: str) -> MetricValue:
        """Mean absolute log-mel error of held-out speech of the targets, given back from their own references."""
        distances = []
        for name in sorted({p.target for p in plan.pairs[split]}):
            target = plan.targets[name]
            mel = self.convert(head, predictions[target.held_out[0].id], _reference(predictions, target))
            natural = self._mel(target.held_out[0])
            size = min(len(mel), len(natural))
            distances.append(float((mel[:size] - natural[:size]).abs().mean()))
        return mean_value(distances, unit="targets")

    def _bounds_folder(self, data: TaskData) -> Path:
        plan, root = cast(Plan, data.extra["plan"]), cast(Path, data.extra["corpus_root"])
        vocoder = self.vocoder.name.split()[0].lower()
        return root / "voice_conversion" / f"{plan.fingerprint()}-{vocoder}-{self.config.vocoder_precision}"


def _reference(predictions: Mapping[str, Any], target: Target) -> Tensor:
    """All reference frames of a target, (N, D)."""
    return torch.cat([predictions[u.id] for u in target.reference])


def _level(utterances: Sequence[Utterance]) -> float | None:
    """Loudness of recorded speech, LUFS."""
    return reference_loudness([read(u) for u in utterances], SAMPLE_RATE)


TASK = VoiceConversion
