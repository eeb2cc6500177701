"""The training loss of recognition-synthesis, with or without discriminators.

Reference: `Loss` in S3PRL `downstream/a2o-vc-vcc2020/expert.py`. There the frames of a batch are cut to the shorter of
the two tensors and masked by the lengths of one side; here each utterance counts the frames that both sides have.

B batch, T feature frames, T' mel frames, D width of the features, M mel bands, S width of the speaker embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from downstreams.voice_conversion.synthesis.adversarial import Disentanglement, Segments, cut
from downstreams.voice_conversion.synthesis.model import SynthesisModel
from speechssl.errors import SpeechsslError
from speechssl.lengths import lengths_to_padding_mask
from speechssl.types import LossOutput


@dataclass(frozen=True)
class SynthesisBatch:
    """Features of utterances and the log-mel that they shall become."""

    features: Tensor
    """(B, T, D)."""
    lengths: Tensor
    """Valid frames, (B,) int64."""
    mel: Tensor
    """Log-mel, not normalised, (B, any, M); that of external speech is never read."""
    mel_lengths: Tensor
    """(B,) int64."""
    speaker: Tensor | None = None
    """(B, S) for any-to-any."""
    external: Tensor | None = None
    """(B,) bool, True = speech of anybody, of which the discriminators alone hear; None = there is none."""


def synthesis_loss(
    model: SynthesisModel,
    batch: SynthesisBatch,
    *,
    disentanglement: Disentanglement | None = None,
    generator: torch.Generator | None = None,
) -> LossOutput:
    """Mean absolute error of the normalised log-mel per frame, and what the discriminators add.

    Args:
        disentanglement: the discriminators; None = external speech is an error.
        generator: cuts the segments that the discriminators hear and draws the dropout of converted ones; on the CPU.

    Returns:
        the sum over the target's frames that both sides have; what discriminators say is a mean, and counts once for
        each of these frames.
    """
    external = torch.zeros_like(batch.lengths, dtype=torch.bool) if batch.external is None else batch.external
    if disentanglement is None and bool(external.any()):
        raise SpeechsslError("External speech has no log-mel to learn: give it together with discriminators.")
    content = model.encode(batch.features, batch.lengths)  # (B, T', H)
    lengths = model.mel_lengths(batch.lengths)
    own = ~external
    reconstruction, size = _reconstruction(model, batch, content, lengths, own)
    count = size.clamp(min=1)
    if disentanglement is None:
        return LossOutput(reconstruction, count)
    total, metrics = reconstruction, {"mel_error": reconstruction.detach()}
    for name, value in _adversarial(model, batch, content, lengths, external, disentanglement, generator).items():
        weight = disentanglement.config.mel_weight if name == "mel_adversarial" else 1.0
        total = total + weight * count * value
        metrics[name] = (count * value).detach()
    return LossOutput(total, count, metrics)


def _reconstruction(
    model: SynthesisModel, batch: SynthesisBatch, content: Tensor, lengths: Tensor, own: Tensor
) -> tuple[Tensor, Tensor]:
    """Summed error and number of the target's frames, scalars."""
    if not bool(own.any()):
        return content.new_zeros(()), lengths.new_zeros(())
    speaker = None if batch.speaker is None else batch.speaker[own]
    mel = batch.mel[own]
    predicted = model.decode(content[own], speaker, targets=mel)  # (B', T', M)
    both = torch.minimum(lengths, batch.mel_lengths)[own].clamp(max=predicted.size(1))
    valid = ~lengths_to_padding_mask(both, predicted.size(1))
    errors = (model.normalise(predicted) - model.normalise(mel[:, : predicted.size(1)]))[valid]  # (N, M)
    return errors.abs().mean(dim=1).sum(), both.sum()


def _adversarial(  # noqa: PLR0917  what one step knows
    model: SynthesisModel,
    batch: SynthesisBatch,
    content: Tensor,
    lengths: Tensor,
    external: Tensor,
    disentanglement: Disentanglement,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """Each term, scalars; the one of log-mel needs both kinds of speech."""
    config = disentanglement.config
    found = {}
    if config.content_weight > 0:
        found["content_discriminator"] = disentanglement.content_loss(content, lengths, external)
    if config.mel_weight > 0 and bool(external.any()) and bool((~external).any()):
        draws = torch.Generator().manual_seed(model.config.seed) if generator is None else generator
        heard = cut(content[external], lengths[external], config.segment, draws)
        speaker = None if batch.speaker is None else batch.speaker[external]
        fake = model.normalise(model.decode(heard.frames, speaker, generator=draws))
        own = cut(model.normalise(batch.mel[~external]), batch.mel_lengths[~external], config.segment, draws)
        judged, passed = disentanglement.mel_losses(own, Segments(fake, heard.lengths))
        found |= {"mel_discriminator": judged, "mel_adversarial": passed}
    return found
