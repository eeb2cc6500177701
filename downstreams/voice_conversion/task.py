"""Voice conversion: what stands between features and vocoder is trained, and conversions are judged.

It asks a `Method` for the head, its loss and the conversion; the rest is the same for each.

Shapes: B batch, T frames, D width, T' mel frames, M mel bands, S samples.
Paper: Baas et al. 2023, Voice Conversion With Just Nearest Neighbors, arXiv:2305.18975.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from downstreams.voice_conversion import scoring
from downstreams.voice_conversion.artifacts import Judged, check_detector, report
from downstreams.voice_conversion.bounds import load_bounds, read, resample
from downstreams.voice_conversion.config import EXTERNAL, VoiceConversionConfig
from downstreams.voice_conversion.data import Plan, Target, make_data
from downstreams.voice_conversion.judges import SAMPLE_RATE
from downstreams.voice_conversion.loudness import match_loudness, reference_loudness
from downstreams.voice_conversion.method import FeatureNeighbours, Method, NearestNeighbours
from downstreams.voice_conversion.output import write_speech
from downstreams.voice_conversion.scoring import give_verdict, mean_value, score_metrics
from downstreams.voice_conversion.synthesis.method import RecognitionSynthesis, warn_of_one_voice
from downstreams.voice_conversion.vocoders import NAMED, check_upstream, load_for_run, resolve_vocoder, vocoder_key
from speechssl.abilities import Passes
from speechssl.data.corpus import Corpus
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.result import Evaluation, MetricValue
from speechssl.task import Task, TaskData
from speechssl.types import LossOutput, Utterance
from speechssl.upstream import Upstream
from speechssl.vocoder import MelConfig, Vocoder, log_mel
from speechssl.vocoder.chunks import synthesise_pieces


class VoiceConversion(Task):
    """Voice conversion."""

    name = "voice_conversion"
    metric = "score"
    higher_is_better = True

    def __init__(self, config: VoiceConversionConfig) -> None:
        config = replace(config, vocoder=resolve_vocoder(config.vocoder))
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
        self.method  # noqa: B018  a vocoder that can't be used is told before anything is computed
        if self.config.detector is not None:
            check_detector(self.config.detector)
        return make_data(corpus, self.config)

    @override
    def build_head(self, size: int, frame_rate: float, data: TaskData) -> nn.Module:
        head = self.method.build_head(size, frame_rate)
        if heard := data.splits.get("train"):
            self.method.start(head, heard, self._mel)
        return head

    def check_upstream(self, upstream: Upstream) -> None:
        """See `speechssl.abilities.ChecksUpstream`: a vocoder on features knows those of one upstream."""
        if isinstance(self.method, FeatureNeighbours):
            check_upstream(self.vocoder, upstream)

    def start_head(self, head: nn.Module, passes: Passes, data: TaskData, *, generator: torch.Generator) -> None:
        """See `speechssl.abilities.StartsFromFeatures`."""
        del data
        self.method.start_from_features(head, lambda: (batch[:2] for batch in passes()), generator=generator)

    @override
    def groups(self, data: TaskData) -> Sequence[str] | None:
        """The target, and with discriminators everybody else, are heard equally often."""
        kinds = [EXTERNAL if u.labels.get(EXTERNAL) else "target" for u in data.splits["train"]]
        return kinds if EXTERNAL in kinds else None

    @override
    def state(self, data: TaskData) -> Mapping[str, Any]:
        """The name of the one voice that was learned."""
        return {"target": next(iter(cast(Plan, data.extra["plan"]).targets))} if self.config.any_to_one else {}

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
        return self.method.loss(head, features, lengths, utterances, self._mel, generator)

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
        head, plan = head.cpu(), cast(Plan, data.extra["plan"])
        metrics = {"mel_distance": self._mel_distance(head, predictions, plan, split)}
        if self.config.judges == "none":
            return Evaluation(metrics)
        waveforms = [self._speak(head, predictions, p.source, plan.targets[p.target]) for p in plan.pairs[split]]
        judges = scoring.load_judges()
        # Copy synthesis of features needs those of the test split, which dev does without.
        frames = predictions if self.on_features and split == "test" else None
        kept, neighbours = self._bounds_folder(data, frames), cast(FeatureNeighbours, self.method)
        bounds = load_bounds(
            plan,
            judges,
            self.vocoder,
            kept,
            frames=None if frames is None else lambda utterance: neighbours.said(frames[utterance.id]),
            judged=not self.on_features or split == "test",
        )
        voices = bounds.voices()
        verdicts = [
            give_verdict(
                resample(waveform, self.mel.sample_rate),
                pair.target,
                voices,
                str(pair.source.labels["text"]),
                judges,
                quality=split == "test",
                source=str(pair.source.labels["speaker"]),
            )
            for pair, waveform in zip(plan.pairs[split], waveforms, strict=True)
        ]
        metrics = {**score_metrics(verdicts, bounds.threshold), **metrics}
        if split != "test":
            return Evaluation(metrics)
        metrics |= scoring.parallel_metrics(plan, split, waveforms, self.mel.sample_rate)
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
        warn_of_one_voice(self.config, data.extra.get("target"))
        kept = self.method.voice(head.cpu(), voice, features)
        spoken = self.speak(head, features[source.id].float().cpu(), kept)
        path = folder / "converted.flac"
        waveform = match_loudness(spoken, self.mel.sample_rate, _level(voice))
        write_speech(path, waveform, sample_rate=self.mel.sample_rate)
        voices = [u.path for u in voice]
        return {"source": source.path, "voice": voices, "converted": str(path), "vocoder": self.vocoder.name}

    def _speak(self, head: nn.Module, predictions: Mapping[str, Any], source: Utterance, target: Target) -> Tensor:
        """Converts an utterance to a waveform as loud as the target's reference, (S,) at the vocoder's rate."""
        waveform = self.speak(head, predictions[source.id], self.method.voice(head, target.reference, predictions))
        if target.speaker not in self._levels:
            self._levels[target.speaker] = _level(target.reference)
        return match_loudness(waveform, self.mel.sample_rate, self._levels[target.speaker])

    def speak(self, head: nn.Module, source: Tensor, voice: Tensor) -> Tensor:
        """Converts one utterance to a waveform, (S,) at the vocoder's rate.

        Args:
            source: features of what is said, (T, D).
            voice: what the method keeps of the target.
        """
        return torch.cat(list(synthesise_pieces(self.vocoder, self.method.pieces(head, [source], voice))))

    def convert(self, head: nn.Module, source: Tensor, voice: Tensor) -> Tensor:
        """The same, as the frames that the vocoder reads, (T', M)."""
        return torch.cat(list(self.method.pieces(head, [source], voice)))

    @cached_property
    def method(self) -> Method:
        """What converts."""
        if self.config.method == "synthesis":
            if self.on_features:
                raise ConfigError(f"`method=synthesis` makes log-mel, which {self.config.vocoder} does not read.")
            return RecognitionSynthesis(self.config, self.mel)
        if self.on_features:
            return FeatureNeighbours(self.config, self.vocoder)
        return NearestNeighbours(self.config, self.mel)

    @property
    def on_features(self) -> bool:
        """Whether the vocoder reads features and not log-mel; those with names read log-mel."""
        return self.config.vocoder not in NAMED and self.vocoder.source is not None

    @cached_property
    def vocoder(self) -> Vocoder:
        """Loaded at the first synthesis."""
        return load_for_run(self.config.vocoder, precision=self.config.vocoder_precision)

    @cached_property
    def mel(self) -> MelConfig:
        """What the vocoder reads; those with names read one recipe, and need not be had to know it."""
        return MelConfig() if self.config.vocoder in NAMED else self.vocoder.mel

    def _mel(self, utterance: Utterance) -> Tensor:
        """(T', M) log-mel of natural speech, kept from then on."""
        if utterance.id not in self._mels:
            mel = log_mel(read(utterance, self.mel.sample_rate)[None], self.mel.sample_rate, self.mel)[0]
            self._mels[utterance.id] = mel.half()
        return self._mels[utterance.id].float()

    def _mel_distance(self, head: nn.Module, predictions: Mapping[str, Any], plan: Plan, split: str) -> MetricValue:
        """Mean absolute log-mel error of held-out speech of the targets, given back from their own references."""
        distances = []
        for name in sorted({p.target for p in plan.pairs[split]}):
            target = plan.targets[name]
            voice = self.method.voice(head, target.reference, predictions)
            mel = self._mel_of(head, predictions[target.held_out[0].id], voice)
            natural = self._mel(target.held_out[0])
            size = min(len(mel), len(natural))
            distances.append(float((mel[:size] - natural[:size]).abs().mean()))
        return mean_value(distances, unit="targets")

    def _mel_of(self, head: nn.Module, source: Tensor, voice: Tensor) -> Tensor:
        """(T', M) log-mel of a conversion: what the vocoder is given, or, where that is features, what it makes."""
        if not self.on_features:
            return self.convert(head, source, voice)
        return log_mel(self.speak(head, source, voice)[None], self.mel.sample_rate, self.mel)[0]

    def _bounds_folder(self, data: TaskData, frames: Mapping[str, Tensor] | None) -> Path:
        """Where the bounds are kept: of this plan and vocoder, and of what it reads where nothing else says that."""
        plan, root = cast(Plan, data.extra["plan"]), cast(Path, data.extra["corpus_root"])
        parts = [plan.fingerprint(), vocoder_key(self.config.vocoder, self.vocoder)]
        if frames is not None:
            heard = frames[plan.pairs["test"][0].source.id].contiguous().numpy().tobytes()
            parts.append(hashlib.sha256(heard).hexdigest()[:12])
        return root / "voice_conversion" / "-".join([*parts, self.config.vocoder_precision])


def _level(utterances: Sequence[Utterance]) -> float | None:
    """Loudness of recorded speech, LUFS."""
    return reference_loudness([read(u) for u in utterances], SAMPLE_RATE)


TASK = VoiceConversion
