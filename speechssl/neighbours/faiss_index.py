"""The nearest frames by faiss's exact index of inner products, on the CPU.

Reference: https://github.com/facebookresearch/faiss (IndexFlatIP; selectors of what may be found).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.errors import SpeechsslError
from speechssl.neighbours.exclusion import row_runs


class FaissIndex:
    """Directions of reference frames, as faiss keeps them."""

    def __init__(self, directions: Iterable[Tensor]) -> None:
        """
        Args:
            directions: (R, D) float32 of length 1, one after the other.

        Raises:
            SpeechsslError: faiss is not installed.
        """
        try:
            import faiss
        except ImportError as error:
            raise SpeechsslError("backend='faiss' needs faiss: pip install 'speechssl[faiss]'.") from error
        self._faiss: Any = faiss
        self._index: Any = None
        for some in directions:
            if self._index is None:
                self._index = faiss.IndexFlatIP(some.size(1))
            self._index.add(np.ascontiguousarray(some.cpu().numpy()))

    def search(self, source: Tensor, *, k: int, exclude: Tensor | None, rows: int) -> Tensor:
        """As `ReferencePool.search`, `rows` source frames at once; (T, k) int64 on the CPU."""
        found = torch.empty(len(source), k, dtype=torch.int64)
        for begin, end, allowed in self._turns(len(source), exclude, rows):
            directions = F.normalize(source[begin:end].float(), dim=1).cpu().numpy()
            parameters = None if allowed is None else self._faiss.SearchParameters(sel=allowed)
            found[begin:end] = torch.from_numpy(self._index.search(directions, k, params=parameters)[1])
        return found

    def _turns(self, count: int, exclude: Tensor | None, rows: int) -> Iterable[tuple[int, int, Any]]:
        """Source frames from where to where, and which reference frames they may find."""
        runs: list[tuple[int, int, Any]] = [(0, count, None)]
        if exclude is not None and exclude.dim() == 1:
            allowed = (~exclude).nonzero()[:, 0].cpu().numpy()
            runs = [(0, count, self._faiss.IDSelectorBatch(allowed))]
        elif exclude is not None:
            runs = [
                (row, end, self._faiss.IDSelectorNot(self._faiss.IDSelectorRange(begin, stop)))
                for row, end, begin, stop in row_runs(exclude)
            ]
        for row, end, allowed in runs:
            for begin in range(row, end, rows):
                yield begin, min(begin + rows, end), allowed
