"""The recognition-synthesis models of S3PRL-VC: `simple`, `simple_ar` and `taco2_ar`, any-to-one or any-to-any.

B batch, T feature frames, T' mel frames, D width of the features, M mel bands, S width of the speaker embedding.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstreams.voice_conversion.synthesis.config import NetworkConfig, SynthesisConfig
from downstreams.voice_conversion.synthesis.decoder import AutoregressiveDecoder, ParallelDecoder
from downstreams.voice_conversion.synthesis.discretise import Discretiser
from downstreams.voice_conversion.synthesis.encoder import FeedForwardEncoder, Taco2Encoder, resampled_lengths
from downstreams.voice_conversion.synthesis.speakers import SpeakerJoin
from speechssl.errors import ConfigError, SpeechsslError


class SynthesisModel(nn.Module):
    """Features at their own rate to log-mel: encoder, speaker, decoder.

    Paper: Huang et al. 2022, S3PRL-VC, arXiv:2110.06280; Huang et al. 2022, arXiv:2207.04356.
    Reference: S3PRL `downstream/a2o-vc-vcc2020/model.py` and `downstream/a2a-vc-vctk/model.py`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        size: int,
        rate_scale: float,
        config: NetworkConfig,
        *,
        mean: Tensor,
        scale: Tensor,
        speaker_size: int | None = None,
        discretiser: Discretiser | None = None,
    ) -> None:
        """
        Args:
            size: D.
            rate_scale: mel frames per feature frame.
            mean: of each band of the log-mel over the training data, (M,).
            scale: its standard deviation, (M,).
            speaker_size: S; None where `config.speaker` is 'none'.
            discretiser: what the features go through first.
        """
        super().__init__()
        if (config.speaker == "none") != (speaker_size is None):
            raise ConfigError(
                f"`network.speaker` is '{config.speaker}', which goes with a speaker encoder unless it is 'none', "
                f"but the width of the embedding is {speaker_size}."
            )
        self.config = config
        self.rate_scale = rate_scale
        self.discretiser = discretiser
        width = size if discretiser is None else discretiser.width
        self.encoder = (Taco2Encoder if config.encoder == "taco2" else FeedForwardEncoder)(width, config)
        self.join: SpeakerJoin | None = None
        if config.speaker != "none" and speaker_size is not None:
            self.join = SpeakerJoin(config.hidden, speaker_size, config.speaker)
        self.decoder = (AutoregressiveDecoder if config.autoregressive else ParallelDecoder)(len(mean), config)
        self.register_buffer("mean", mean.detach().clone().float())
        self.register_buffer("scale", scale.detach().clone().float())

    def normalise(self, mel: Tensor) -> Tensor:
        """Log-mel (..., M) to mean 0 and deviation 1 over the training data."""
        return (mel - self.mean) / self.scale

    def mel_lengths(self, lengths: Tensor) -> Tensor:
        """Mel frames for `lengths` feature frames, (B,) int64."""
        return resampled_lengths(lengths, self.rate_scale)

    def encode(self, features: Tensor, lengths: Tensor) -> Tensor:
        """The content embeddings: (B, T, D) and valid frames (B,) -> (B, T', H)."""
        if int(self.mel_lengths(lengths).min()) < 1:
            raise SpeechsslError("An utterance is too short for a single frame of log-mel: give longer speech.")
        if self.discretiser is not None:
            features = self.discretiser(features)
        return self.encoder(features, lengths, self.rate_scale)  # type: ignore[no-any-return]  # nn.Module returns Any

    def decode(
        self,
        content: Tensor,
        speaker: Tensor | None = None,
        *,
        targets: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Says content in a voice.

        Args:
            content: (B, T', H).
            speaker: (B, S); None where there is one target.
            targets: the true log-mel, (B, any, M), which an autoregressive decoder then sees in place of its own
                frames; None = it sees its own.
            generator: of the prenet's dropout where there are no `targets`; None = that of `config.seed`.

        Returns:
            (B, T', M) log-mel, of no more frames than `targets` has.
        """
        if (speaker is None) != (self.join is None):
            raise ConfigError("An any-to-any model needs an embedding of the target, and an any-to-one model none.")
        if self.join is not None:
            content = self.join(content, speaker)
        if targets is not None:
            content = content[:, : targets.size(1)]
        if not self.config.autoregressive:
            return self.decoder(content)  # type: ignore[no-any-return]  # nn.Module returns Any
        decoder = cast(AutoregressiveDecoder, self.decoder)
        if targets is not None:
            previous = F.pad(self.normalise(targets[:, : content.size(1) - 1]), (0, 0, 1, 0))
            return decoder(content, previous)  # type: ignore[no-any-return]  # nn.Module returns Any
        draws = generator or torch.Generator().manual_seed(self.config.seed)
        return decoder.generate(content, self.mean, self.scale, draws)

    def forward(
        self, features: Tensor, lengths: Tensor, speaker: Tensor | None = None, *, targets: Tensor | None = None
    ) -> Tensor:
        """(B, T, D), valid frames (B,), (B, S) -> log-mel (B, T', M); see `decode`."""
        return self.decode(self.encode(features, lengths), speaker, targets=targets)

    @torch.inference_mode()
    def convert(self, features: Tensor, speaker: Tensor | None = None) -> Tensor:
        """Converts one utterance, in evaluation mode.

        Args:
            features: (T, D).
            speaker: embedding of the target, (S,).

        Returns:
            (T', M) log-mel, not normalised.
        """
        self.eval()
        lengths = torch.tensor([len(features)], device=features.device)
        return self(features[None], lengths, None if speaker is None else speaker[None])[0].clone()  # type: ignore[no-any-return]  # nn.Module returns Any


def build(
    config: SynthesisConfig,
    feature_size: int,
    frame_rate: float,
    *,
    mel_rate: float,
    mean: Tensor,
    scale: Tensor,
    speaker_size: int | None = None,
) -> SynthesisModel:
    """Builds a model with new weights; a discretiser still has to be fitted.

    Args:
        feature_size: D.
        frame_rate: of the features, Hz.
        mel_rate: of the log-mel, Hz.
        mean: of each band of the log-mel over the training data, (M,).
        scale: its standard deviation, (M,).
        speaker_size: width of the speaker embeddings; None = any-to-one.
    """
    discretiser = Discretiser(feature_size, config.discretise) if config.discretise.clusters else None
    return SynthesisModel(
        feature_size,
        mel_rate / frame_rate,
        config.network,
        mean=mean,
        scale=scale,
        speaker_size=speaker_size,
        discretiser=discretiser,
    )
