"""Where an adapted upstream begins to be computed anew at each step: what lies below is computed once and kept.

B batch, S samples, T frames, C channels of the frontend, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from speechssl.adapt.config import AdaptConfig
from speechssl.adapt.methods import FRONTEND, Adapted
from speechssl.adapt.perturb import has_frames, takes
from speechssl.errors import SpeechsslError
from speechssl.lengths import lengths_to_padding_mask
from speechssl.upstream import Upstream


@dataclass(frozen=True)
class Start:
    """What is kept of each utterance."""

    kind: Literal["waveform", "frontend", "layer"]
    """'waveform': nothing; 'frontend': what its frontend makes; 'layer': a hidden state."""
    layer: int = -1
    """Which hidden state."""

    def kept_layers(self, wanted: Sequence[int]) -> list[int]:
        """Of the hidden states that a head wants, and of the start, those that are kept."""
        return sorted({layer for layer in wanted if layer <= self.layer} | {self.layer})


def find_start(adapted: Adapted, config: AdaptConfig, wanted: Sequence[int]) -> Start:
    """The highest start below which nothing is trained, dropped or hidden.

    Args:
        wanted: the hidden states that a head wants, which may all lie below what could be the start.
    """
    upstream = adapted.upstream
    if not config.cache or not has_frames(upstream):
        return Start("waveform")
    if adapted.frozen >= 0 and not config.hides and takes(upstream, "entered"):
        return Start("layer", min(adapted.frozen, max(wanted)))
    if any(name.startswith(FRONTEND) for name in adapted.trained):
        return Start("waveform")
    return Start("frontend")


def run_from_frontend(
    upstream: Upstream, features: Tensor, frames: Tensor, *, layers: frozenset[int]
) -> dict[int, Tensor]:
    """Hidden states from what the frontend made, 0 beyond the valid frames.

    Args:
        features: (B, T, C).
        frames: valid frames, (B,) int64.
        layers: wanted.

    Returns:
        layer -> (B, T, D).
    """
    encoder: Any = upstream  # one that `has_frames`
    states = encoder.encode(features, frames, layers=layers)
    return _silenced({k: states[k] for k in layers}, frames)


def run_from_layer(
    upstream: Upstream,
    states: Mapping[int, Tensor],
    frames: Tensor,
    *,
    entered: int,
    layers: frozenset[int],
    skipped_blocks: frozenset[int] = frozenset(),
) -> dict[int, Tensor]:
    """Hidden states from those up to `entered`, 0 beyond the valid frames.

    Args:
        states: layer -> (B, T, D), among them `entered`.
        frames: valid frames, (B,) int64.
        layers: wanted.
        skipped_blocks: see `TransformerEncoder.forward`.

    Returns:
        layer -> (B, T, D).
    """
    found = {k: states[k] for k in layers if k <= entered}
    above = frozenset(k for k in layers if k > entered)
    if above:
        encoder: Any = upstream.encoder
        x = states[entered]
        padding_mask = lengths_to_padding_mask(frames, x.size(1)) if int(frames.min()) < x.size(1) else None
        made = encoder(x, padding_mask, layers=above, entered=entered, skipped_blocks=skipped_blocks)
        found |= _silenced({k: made[k] for k in above}, frames)
    return found


def _silenced(states: Mapping[int, Tensor], frames: Tensor) -> dict[int, Tensor]:
    size = int(frames.max())
    padding = lengths_to_padding_mask(frames, size)[:, :, None]
    return {layer: state[:, :size].masked_fill(padding, 0.0) for layer, state in states.items()}


class FrontendUpstream(Upstream):
    """The frontend of an upstream alone, as one of a single hidden state, so that its features can be cached."""

    def __init__(self, upstream: Upstream) -> None:
        if not has_frames(upstream):
            raise SpeechsslError(f"'{upstream.name}' has no frontend that can be computed by itself.")
        whole: Any = upstream
        super().__init__(
            sample_rate=upstream.sample_rate,
            frame_rate=upstream.frame_rate,
            hidden_sizes=(whole.projection.in_features,),
            normalize=upstream.normalize,
        )
        self.name = upstream.name
        self.whole = (upstream,)  # in a tuple, since a module would count as this one's own
        self.frontend: nn.Module = whole.frontend

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""
        return self.whole[0].output_lengths(lengths)

    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        """See `Upstream.compute`."""
        del layers  # there is one
        upstream: Any = self.whole[0]
        return {0: upstream.extract_features(waveform, lengths)[0]}

    def fingerprint_config(self) -> str:
        """That of the whole."""
        return self.whole[0].fingerprint_config()
