"""The upstream interface: what every self-supervised model and baseline looks like from outside.

B batch, S samples, T frames, D width, L blocks.
"""

import hashlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from speechssl.data.batching import bucket_batches
from speechssl.errors import AudioError, SpeechsslError
from speechssl.types import HiddenStates, UpstreamOutput

GROUP_SECONDS = 4.0
"""Of audio, padding included, that a CPU computes at once; a longer utterance is computed alone."""


class Upstream(nn.Module, ABC):
    """A feature extractor: waveforms in, one hidden state per layer out.

    A family implements `output_lengths` and `compute`; this class checks the input and zeroes what lies beyond the
    valid frames, so that the laws (batch = single, clear errors) hold for every family.
    """

    name: str
    """Public name, such as 'hubert_base', or the folder it was loaded from."""
    family: str
    """The folder of the family, such as 'hubert': with `config`, all that rebuilds the upstream without its weights."""
    config: Any
    """The family's frozen config."""
    weights: str = "none"
    """Where the weights come from: 'none' (no parameters), 'random (seed 0)', a folder, a repository."""

    def __init__(
        self, *, sample_rate: int, frame_rate: float, hidden_sizes: tuple[int, ...], normalize: bool = False
    ) -> None:
        """
        Args:
            sample_rate: of the input, Hz.
            frame_rate: of the hidden states, Hz.
            hidden_sizes: width of each of the L+1 hidden states.
            normalize: whether each utterance is brought to zero mean and unit variance over its valid samples first.
        """
        super().__init__()
        self.sample_rate = sample_rate
        self.frame_rate = frame_rate
        self.hidden_sizes = hidden_sizes
        self.normalize = normalize

    def resolve_layers(self, layers: Sequence[int] | None) -> frozenset[int]:
        """Returns which of the hidden states 0..L are meant.

        Args:
            layers: indices, of which negative ones count from the end; None = all.

        Raises:
            SpeechsslError: an index out of range, or none at all.
        """
        count = len(self.hidden_sizes)
        if layers is None:
            return frozenset(range(count))
        if not layers:
            raise SpeechsslError("`layers` must name at least one layer, or be left out for all.")
        for layer in layers:
            if not -count <= layer < count:
                raise SpeechsslError(f"`layers` of '{self.name}' must lie in 0..{count - 1}, but holds {layer}.")
        return frozenset(layer % count for layer in layers)

    @abstractmethod
    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for `lengths` valid samples, both (B,) int64."""

    @abstractmethod
    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        """Computes the hidden states of `layers` and nothing above the highest of them.

        Args:
            waveform: (B, S) float32, already normalised if `normalize`, 0 beyond `lengths`.
            lengths: valid samples, (B,) int64.
            layers: wanted indices within 0..L.

        Returns:
            layer -> (B, T, D) with T >= output_lengths(lengths).max().
        """

    def forward(
        self, waveform: Tensor, lengths: Tensor | None = None, *, layers: Sequence[int] | None = None
    ) -> UpstreamOutput:
        """Extracts hidden states.

        Args:
            waveform: (B, S) float in [-1, 1] at `sample_rate`.
            lengths: valid samples per utterance, (B,) int64; None = all of S.
            layers: which of the L+1 hidden states (negative counts from the end); None = all.

        Raises:
            AudioError: an utterance is shorter than one frame.
            SpeechsslError: shapes or layers that don't fit.

        Shape:
            hidden_states: one (B, T, D) per layer, 0 beyond the valid frames.
        """
        if waveform.dim() != 2:
            raise SpeechsslError(f"`waveform` must be (batch, samples), but has shape {tuple(waveform.shape)}.")
        if lengths is None:
            lengths = torch.full((waveform.size(0),), waveform.size(1), device=waveform.device)
        self._check_lengths(waveform, lengths)
        frames = self.output_lengths(lengths)
        if int(frames.min()) < 1:
            row = int(frames.argmin())
            raise AudioError(
                f"Utterance {row} of the batch has {int(lengths[row])} samples, shorter than one frame of "
                f"'{self.name}': leave out clips this short."
            )
        wanted = self.resolve_layers(layers)
        inside = torch.arange(waveform.size(1), device=waveform.device)[None, :] < lengths[:, None]  # (B, S)
        waveform = torch.where(inside, waveform, 0.0)
        if self.normalize:
            waveform = normalize_waveform(waveform, lengths)
        if waveform.device.type == "cpu" and not torch.is_grad_enabled():
            states = self._compute_in_groups(waveform, lengths, frames, wanted)
        else:
            states = self.compute(waveform, lengths, wanted)
            size = int(frames.max())
            valid = torch.arange(size, device=frames.device)[None, :] < frames[:, None]  # (B, T)
            states = {k: torch.where(valid[:, :, None], states[k][:, :size], 0.0) for k in wanted}
        return UpstreamOutput(HiddenStates(states, len(self.hidden_sizes)), frames, self.frame_rate)

    def _compute_in_groups(
        self, waveform: Tensor, lengths: Tensor, frames: Tensor, wanted: frozenset[int]
    ) -> dict[int, Tensor]:
        """`compute` for a CPU without gradients, in groups of utterances of like length; 0 beyond the valid frames.

        Hardly any padding is computed then, and what lies between the layers stays small; a CPU gains nothing from
        large batches.
        """
        counts = frames.tolist()
        if len(counts) == 1:
            return {k: x[:, : counts[0]] for k, x in self.compute(waveform, lengths, wanted).items() if k in wanted}
        states: dict[int, Tensor] = {}
        for rows in bucket_batches(lengths.tolist(), batch_seconds=GROUP_SECONDS * self.sample_rate):
            part = self.compute(waveform[rows, : int(lengths[rows].max())], lengths[rows], wanted)
            for layer in wanted:
                if layer not in states:
                    states[layer] = part[layer].new_zeros(len(counts), max(counts), part[layer].size(2))
                for place, row in enumerate(rows):
                    states[layer][row, : counts[row]] = part[layer][place, : counts[row]]
        return states

    def to_transformers(self) -> Any:
        """Makes the model of transformers with the same weights, see `speechssl.export.to_transformers`."""
        # By name, since whatever exports knows how families are built, of which this is the base.
        return importlib.import_module("speechssl.export").to_transformers(self)

    def fingerprint(self) -> str:
        """A short hash of architecture and weights: equal numbers out, equal fingerprint."""
        digest = hashlib.sha256(f"{type(self).__qualname__} {self.fingerprint_config()}".encode())
        for key, tensor in sorted(self.state_dict().items()):
            digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @abstractmethod
    def fingerprint_config(self) -> str:
        """Everything but the weights that decides the numbers: usually repr() of the family's frozen config."""

    @staticmethod
    def _check_lengths(waveform: Tensor, lengths: Tensor) -> None:
        if lengths.shape != (waveform.size(0),):
            raise SpeechsslError(
                f"`lengths` must have shape ({waveform.size(0)},), but has {tuple(lengths.shape)}: one per utterance."
            )
        if int(lengths.max()) > waveform.size(1):
            row = int(lengths.argmax())
            raise SpeechsslError(
                f"`lengths` must be <= waveform.size(1) = {waveform.size(1)}, "
                f"but lengths[{row}] = {int(lengths[row])}. It counts samples, not seconds."
            )


def normalize_waveform(waveform: Tensor, lengths: Tensor, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit variance per utterance over the valid samples, as F.layer_norm on the unpadded waveform.

    Args:
        waveform: (B, S), 0 beyond `lengths`.
        lengths: valid samples, (B,) int64.

    Returns:
        (B, S), 0 beyond `lengths`.
    """
    inside = torch.arange(waveform.size(1), device=waveform.device)[None, :] < lengths[:, None]  # (B, S)
    count = lengths[:, None].double()
    # In float64: how float32 sums round depends on the padding and the threads, and quiet bands of a log-mel spectrum
    # show a thousandfold of it.
    mean = waveform.sum(dim=1, keepdim=True, dtype=torch.float64) / count
    centred = torch.where(inside, waveform - mean.to(waveform.dtype), 0.0)
    variance = centred.square().sum(dim=1, keepdim=True, dtype=torch.float64) / count
    return centred * torch.rsqrt(variance + eps).to(waveform.dtype)
