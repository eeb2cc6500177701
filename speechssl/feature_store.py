"""The cached features of a set of utterances, read without a copy.

K layers, T frames, D width, B batch.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from speechssl.errors import SpeechsslError


class FeatureStore:
    """The cached features of a set of utterances, as views of memory maps.

    Holds a lease on its packs until `close` (or until it is collected), so that they are not evicted meanwhile.
    """

    def __init__(
        self,
        arrays: Mapping[str, Tensor],
        lengths: Mapping[str, int],
        *,
        frame_rate: float,
        layers: tuple[int, ...],
        rows: Mapping[str, list[int]] | None = None,
    ) -> None:
        """
        Args:
            arrays: utterance id -> (K, T, D), or (K, D).
            lengths: utterance id -> valid frames, before pooling.
            rows: utterance id -> which rows of its array are wanted, where the array holds more and no view fits.
        """
        self._arrays = arrays
        self._lengths = lengths
        self._rows = rows or {}
        self.frame_rate = frame_rate
        """Hz; of the frames that were pooled, where they were."""
        self.layers = layers
        """Which hidden states, ascending; row k of every array is layer `layers[k]`."""
        self.computed = 0
        """Utterances that went through the upstream."""
        self.from_cache = 0
        """Utterances that did not."""
        self.audio_seconds = 0.0
        """Of all utterances."""
        self.seconds = 0.0
        """Wall time that it took to have them."""
        self.bad: dict[str, str] = {}
        """Utterance id -> what is wrong, for those that `skip_bad` left out."""
        self._release: Callable[[], object] | None = None

    @property
    def num_layers(self) -> int:
        """K."""
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        """D."""
        return next(iter(self._arrays.values())).size(-1) if self._arrays else 0

    def on(self, device: torch.device) -> "FeatureStore":
        """What is to be read beside this one for a device: itself, unless it computes."""
        del device
        return self

    @property
    def ids(self) -> list[str]:
        """The utterances that are held."""
        return list(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __contains__(self, utterance_id: object) -> bool:
        return utterance_id in self._arrays

    def get(self, utterance_id: str) -> Tensor:
        """The features of an utterance: (K, T, D), or (K, D) where pooled.

        No copy is made, unless some layers with uneven gaps between them come from an entry that holds more.
        """
        try:
            array = self._arrays[utterance_id]
            return array[self._rows[utterance_id]] if utterance_id in self._rows else array
        except KeyError:
            reason = self.bad.get(utterance_id, "it was not among the utterances asked for")
            raise SpeechsslError(f"There are no features of utterance '{utterance_id}': {reason}.") from None

    def get_all(self, utterance_ids: Sequence[str]) -> list[Tensor]:
        """`get` of each."""
        return [self.get(i) for i in utterance_ids]

    def length(self, utterance_id: str) -> int:
        """Valid frames of an utterance (before pooling)."""
        self.get(utterance_id)
        return self._lengths[utterance_id]

    def batch(self, utterance_ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Pads the features of a batch.

        Returns:
            (K, B, T, D), 0 beyond the valid frames, or (K, B, D) where pooled; and the lengths, (B,) int64.
        """
        arrays = self.get_all(utterance_ids)
        if arrays[0].dim() == 2:
            return torch.stack(arrays, dim=1), torch.tensor([self._lengths[i] for i in utterance_ids])  # (K, B, D)
        lengths = torch.tensor([array.size(1) for array in arrays])
        layers, _, size = arrays[0].shape
        out = arrays[0].new_empty(layers, len(arrays), int(lengths.max()), size)  # (K, B, T, D)
        for row, array in enumerate(arrays):
            frames = array.size(1)
            out[:, row, :frames] = array
            out[:, row, frames:] = 0
        return out, lengths

    def on_close(self, release: Callable[[], object]) -> None:
        """Calls `release` at `close`, or when the store is collected, once."""
        self._release = weakref.finalize(self, release)

    def close(self) -> None:
        """Gives the packs free for eviction; arrays that were handed out stay valid."""
        if self._release is not None:
            self._release()
