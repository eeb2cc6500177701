"""How frames of a source become frames for a vocoder in another voice: the one interface that task and converter know.

Shapes: B batch, T frames of the source, N frames of the target, D width, T' mel frames, M mel bands.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from downstreams.voice_conversion.config import VoiceConversionConfig
from downstreams.voice_conversion.head import MelHead
from downstreams.voice_conversion.knn import convert, prematch
from downstreams.voice_conversion.vocoders import check_features
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.neighbours import ReferencePool
from speechssl.types import LossOutput, Utterance
from speechssl.vocoder import FeatureSource, Vocoder
from speechssl.vocoder.chunks import WINDOW, stretches
from speechssl.vocoder.mel import MelConfig

Mels = Callable[[Utterance], Tensor]
"""Gives the (T', M) log-mel of an utterance's natural speech."""
Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]
"""Each call goes once through the features of the training data: (B, T, D) and valid frames (B,)."""


class Columns(NamedTuple):
    """What of a frame is compared, and what is said, where two layers stand side by side."""

    compared: slice = slice(None)
    said: slice = slice(None)


EVERYTHING = Columns()


def side_by_side(said: int, compared: int, width: int) -> Columns:
    """The columns of two layers, of which the lower one is first, and `width` wide."""
    halves = slice(0, width), slice(width, None)
    return Columns(halves[compared > said], halves[said > compared])


class Method(Protocol):
    """What differs between kinds of conversion; plans, judges, vocoders, files and loudness are the same for all."""

    def build_head(self, size: int, frame_rate: float) -> nn.Module:
        """The network that is trained, for (B, T, size) features at `frame_rate` Hz."""

    def start(self, head: nn.Module, utterances: Sequence[Utterance], mels: Mels) -> None:
        """Puts into a new head what is computed from the training data and not learned; by default nothing."""
        del head, utterances, mels

    def start_from_features(self, head: nn.Module, batches: Batches, *, generator: torch.Generator) -> None:
        """Puts into a new head what is computed from the features of the training data; by default nothing."""
        del head, batches, generator

    def loss(  # noqa: PLR0917  a batch is that much
        self,
        head: nn.Module,
        features: Tensor,
        lengths: Tensor,
        utterances: Sequence[Utterance],
        mels: Mels,
        generator: torch.Generator,
    ) -> LossOutput:
        """The loss of a batch, see `speechssl.task.Task.loss`."""

    def voice(self, head: nn.Module, reference: Sequence[Utterance], features: Mapping[str, Tensor]) -> Tensor:
        """What is kept of a target: all frames of its reference, (N, D).

        Args:
            reference: of the target's speech.
            features: utterance id -> (T, D).
        """
        del head
        return torch.cat([features[u.id].float().cpu() for u in reference])

    def pieces(self, head: nn.Module, source: Iterable[Tensor], voice: Tensor) -> Iterator[Tensor]:
        """Converts one utterance piece by piece, under inference_mode.

        Args:
            source: (T of the piece, D) each.
            voice: as `voice` made it.

        Yields:
            (T' of the piece, M) frames for the vocoder; joined, they don't depend on how the source was cut.
        """


class NearestNeighbours(Method):
    """kNN-VC with a small network to log-mel in front of a ready vocoder.

    Each source frame is replaced by the mean of the target's k nearest frames, and the head, which has learned to give
    back the log-mel of natural speech from its features, makes the log-mel of the result.

    Paper: Baas et al. 2023, arXiv:2305.18975.
    """

    def __init__(self, config: VoiceConversionConfig, mel: MelConfig) -> None:
        """
        Args:
            mel: what the vocoder reads.
        """
        self.config = config
        self.mel = mel

    @override
    def build_head(self, size: int, frame_rate: float) -> nn.Module:
        """A `MelHead`."""
        rate = self.mel.frame_rate
        return MelHead(size, frame_rate, n_mels=self.mel.n_mels, mel_rate=rate, config=self.config.head)

    @override
    def loss(
        self,
        head: nn.Module,
        features: Tensor,
        lengths: Tensor,
        utterances: Sequence[Utterance],
        mels: Mels,
        generator: torch.Generator,
    ) -> LossOutput:
        """Mean absolute error of the log-mel, summed over frames; on a share of the batches after prematching."""
        network = cast(MelHead, head)
        if float(torch.rand((), generator=generator)) < self.config.prematch:
            speakers = [str(u.labels.get("speaker", u.id)) for u in utterances]
            features = prematch(features, lengths, speakers, k=self.config.k, space=self._space(network, features))
        predicted = network(features, lengths)  # (B, T', M)
        errors = []
        for row, utterance in enumerate(utterances):
            target = mels(utterance).to(predicted.device)
            size = min(int(network.mel_lengths(lengths[row : row + 1])), target.size(0))
            errors.append((predicted[row, :size] - target[:size]).abs().mean(dim=1))
        per_frame = torch.cat(errors)
        return LossOutput(per_frame.sum(), torch.tensor(per_frame.numel(), device=per_frame.device))

    @override
    @torch.inference_mode()
    def pieces(self, head: nn.Module, source: Iterable[Tensor], voice: Tensor) -> Iterator[Tensor]:
        """Matches frame by frame, and makes the log-mel in windows."""
        network = cast(MelHead, head.eval())
        device = network.out.weight.device
        voice = voice.to(device)
        compared = ReferencePool(self._space(network, voice))
        matched = (
            convert(self._space(network, piece), compared, k=self.config.k, values=voice)
            for piece in (p.to(device) for p in source)
        )
        size = max(round(WINDOW * self.mel.frame_rate / network.scale), 1)
        for part in stretches(matched, size=size, context=network.context):
            yield network.stretch(part.frames, begin=part.begin, first=part.first, last=part.last)

    def _space(self, head: MelHead, features: Tensor) -> Tensor:
        """The frames as they are compared."""
        return head.directions(features) if self.config.matching == "standardised" else features.detach()


class FeatureNeighbours(Method):
    """kNN-VC itself: what is matched goes to a vocoder on features as it is, and nothing is trained.

    Paper: Baas et al. 2023, arXiv:2305.18975.
    """

    def __init__(self, config: VoiceConversionConfig, vocoder: Vocoder) -> None:
        """
        Raises:
            ConfigError: settings that the vocoder can't go with.
        """
        self.config = config
        self.vocoder = vocoder
        source, features = cast(FeatureSource, vocoder.source), config.features
        layers = set(features.layers or ())
        self.matching: int | None = None
        beside = features.interface == "concat" and features.interface_size is None
        if len(layers) == 2 and source.layer in layers and beside:
            self.matching = next(iter(layers - {source.layer}))
        elif features.layers != (source.layer,):
            raise ConfigError(
                f"The vocoder {vocoder.name} reads layer {source.layer} of '{source.upstream}': set "
                f"`features.layers=[{source.layer}]`, or name another layer beside it, which is then compared, with "
                "`features.interface=concat`."
            )
        if config.matching != "raw" or config.features.normalize:
            raise ConfigError(
                f"The vocoder {vocoder.name} reads features as they are: set `matching=raw` and "
                "`features.normalize=false`."
            )

    @override
    def build_head(self, size: int, frame_rate: float) -> nn.Module:
        """Nothing."""
        layer = cast(FeatureSource, self.vocoder.source).layer
        width = size if self.matching is None else size // 2
        check_features(self.vocoder, layer=layer, width=width, frame_rate=frame_rate)
        return nn.Identity()

    @override
    def loss(
        self,
        head: nn.Module,
        features: Tensor,
        lengths: Tensor,
        utterances: Sequence[Utterance],
        mels: Mels,
        generator: torch.Generator,
    ) -> LossOutput:
        """Is never asked for, where nothing is trained."""
        del head, features, lengths, utterances, mels, generator
        raise SpeechsslError("A vocoder on features leaves nothing to train: set `train.steps=0`.")

    @override
    def pieces(self, head: nn.Module, source: Iterable[Tensor], voice: Tensor) -> Iterator[Tensor]:
        """Matches frame by frame."""
        del head
        return match_pieces(source, voice, k=self.config.k, columns=self._columns(voice))

    def said(self, frames: Tensor) -> Tensor:
        """What the vocoder reads of frames: (T, D) -> (T, M)."""
        return frames[:, self._columns(frames).said]

    def _columns(self, frames: Tensor) -> Columns:
        if self.matching is None:
            return Columns()
        return side_by_side(cast(FeatureSource, self.vocoder.source).layer, self.matching, frames.size(1) // 2)


@torch.inference_mode()
def match_pieces(source: Iterable[Tensor], voice: Tensor, *, k: int, columns: Columns = EVERYTHING) -> Iterator[Tensor]:
    """kNN-VC itself: raw features, cosine, uniform mean; the result is what a vocoder on features reads.

    Args:
        source: (T of the piece, D) each.
        voice: (N, D).
        columns: of both, where not all are compared and said.

    Yields:
        (T of the piece, M).

    Paper: Baas et al. 2023, sec. 2, arXiv:2305.18975.
    """
    pool, values = ReferencePool(voice[:, columns.compared].contiguous()), voice[:, columns.said].contiguous()
    for piece in source:
        yield convert(piece.to(voice.device)[:, columns.compared].contiguous(), pool, k=k, values=values)
