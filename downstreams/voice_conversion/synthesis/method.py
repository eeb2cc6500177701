"""Recognition-synthesis as a `Method` of the task: any-to-one, or any-to-any by statistics of the target's features.

It learns the log-mel that the task's vocoder reads, as decimal logarithm and normalised by statistics of the training
data: with a vocoder of `mel.RECIPE` this is the log-mel of S3PRL-VC but for its floor (1e-5) and half a hop.

Shapes: B batch, T frames of the source, N frames of the target, D width, T' mel frames, M mel bands.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from downstreams.voice_conversion import ecapa, judges
from downstreams.voice_conversion.config import EXTERNAL, VoiceConversionConfig
from downstreams.voice_conversion.method import Batches, Mels, Method
from downstreams.voice_conversion.synthesis.adversarial import Disentanglement
from downstreams.voice_conversion.synthesis.discretise import draw_frames, load_discretiser
from downstreams.voice_conversion.synthesis.loss import SynthesisBatch, synthesis_loss
from downstreams.voice_conversion.synthesis.mel import fit_statistics
from downstreams.voice_conversion.synthesis.model import build
from downstreams.voice_conversion.synthesis.speakers import PooledStatistics, check_independent
from speechssl.errors import ConfigError
from speechssl.types import LossOutput, Utterance
from speechssl.vocoder.mel import MelConfig

logger = logging.getLogger(__name__)
HEARD = 2_000
"""Utterances that the statistics of the log-mel are taken of, at most."""
BASE = math.log(10.0)
"""Vocoders read natural logarithms; the network makes decimal ones, as its learning rate was chosen for."""


class SynthesisHead(nn.Module):
    """All that is trained: the model, and where there are any, the encoder of voices and the discriminators."""

    def __init__(self, size: int, frame_rate: float, mel: MelConfig, config: VoiceConversionConfig) -> None:
        super().__init__()
        settings = config.synthesis
        self.speakers = None if config.any_to_one else PooledStatistics(size)
        if self.speakers is not None:
            check_independent(self.speakers, (judges.SPEAKER_PACKAGE[0], ecapa.PACKAGE[0]))
        self.model = build(
            settings,
            size,
            frame_rate,
            mel_rate=mel.frame_rate,
            mean=torch.zeros(mel.n_mels),
            scale=torch.ones(mel.n_mels),
            speaker_size=None if self.speakers is None else self.speakers.size,
        )
        self.disentanglement: Disentanglement | None = None
        if settings.adversarial.enabled:
            self.disentanglement = Disentanglement(settings.network.hidden, mel.n_mels, settings.adversarial)

    def embed(self, features: Tensor, lengths: Tensor) -> Tensor | None:
        """(B, T, D), valid frames (B,) -> (B, S); None where there is one voice."""
        return None if self.speakers is None else self.speakers(features, lengths)


class RecognitionSynthesis(Method):
    """S3PRL-VC: features are said in the one voice that was learned, or in that of an embedding.

    Paper: Huang et al. 2022, arXiv:2110.06280.
    """

    def __init__(self, config: VoiceConversionConfig, mel: MelConfig) -> None:
        """
        Args:
            mel: what the vocoder reads.
        """
        if config.synthesis.discretise.clusters and config.adapt.method != "frozen":
            raise ConfigError(
                "No gradient passes `synthesis.discretise`, so that nothing of the upstream would be trained: set "
                "`adapt.method=frozen`."
            )
        self.config = config
        self.mel = mel

    @override
    def build_head(self, size: int, frame_rate: float) -> nn.Module:
        """A `SynthesisHead`."""
        return SynthesisHead(size, frame_rate, self.mel, self.config)

    @override
    def start(self, head: nn.Module, utterances: Sequence[Utterance], mels: Mels) -> None:
        """Takes the statistics of the log-mel, and the centroids that `speechssl cluster` found."""
        model = cast(SynthesisHead, head).model
        own = [u for u in utterances if not u.labels.get(EXTERNAL)]
        mean, scale = fit_statistics(mels(u) / BASE for u in own[:HEARD])
        model.mean.copy_(mean)
        model.scale.copy_(scale)
        if model.discretiser is None:
            return
        folders = self.config.synthesis.discretise.folders
        if not folders:
            return  # they are fitted to the features
        found = load_discretiser(folders)
        sizes = [[tuple(b.shape) for b in d.buffers()] for d in (found, model.discretiser)]
        if sizes[0] != sizes[1]:
            raise ConfigError(
                f"`synthesis.discretise` asks for centroids of {sizes[1]} (clusters, width), but {list(folders)} hold "
                f"{sizes[0]}: set `clusters` to theirs, and cluster the layer that the run takes."
            )
        model.discretiser.load_state_dict(found.state_dict())

    @override
    def start_from_features(self, head: nn.Module, batches: Batches, *, generator: torch.Generator) -> None:
        """Fits the centroids, where no folders hold them."""
        discretiser, settings = cast(SynthesisHead, head).model.discretiser, self.config.synthesis.discretise
        if discretiser is None or settings.folders:
            return
        frames = draw_frames(batches(), settings.frames, generator=generator)
        told = ", ".join(map(str, settings.clusters))
        logger.info("Fitting %s clusters to %d frames of width %d.", told, *frames.shape)
        discretiser.fit(frames, generator=generator)

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
        """See `synthesis_loss`; in any-to-any training each utterance is its own reference, as in S3PRL-VC."""
        network = cast(SynthesisHead, head)
        external = [bool(u.labels.get(EXTERNAL)) for u in utterances]
        silent = torch.zeros(1, self.mel.n_mels)  # what external speech should become is never asked
        wanted = [silent if e else mels(u) / BASE for e, u in zip(external, utterances, strict=True)]
        device = features.device
        batch = SynthesisBatch(
            features,
            lengths,
            pad_sequence(wanted, batch_first=True).to(device),
            torch.tensor([len(m) for m in wanted], device=device),
            network.embed(features, lengths),
            torch.tensor(external, device=device),
        )
        return synthesis_loss(network.model, batch, disentanglement=network.disentanglement, generator=generator)

    @override
    @torch.inference_mode()
    def pieces(self, head: nn.Module, source: Iterable[Tensor], voice: Tensor) -> Iterator[Tensor]:
        """Converts the utterance as a whole, since its encoder hears it in both directions."""
        network = cast(SynthesisHead, head.eval())
        device = network.model.mean.device
        embedding = network.embed(voice[None].to(device), torch.tensor([len(voice)], device=device))
        whole = torch.cat([piece.to(device) for piece in source])
        yield BASE * network.model.convert(whole, None if embedding is None else embedding[0])


def warn_of_one_voice(config: VoiceConversionConfig, target: object) -> None:
    """Says that a voice that was given is not the one to be heard, where the run has learned one voice alone."""
    if config.any_to_one:
        logger.warning(
            "This run says everything in the voice of %s: the voice given decides its loudness alone.", target
        )
