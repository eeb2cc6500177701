"""The interface of what hears speech as codes.

B batch, T frames, G codebooks, V entries of each.
"""

from speechssl.upstream import Upstream


class CodesUpstream(Upstream):
    """An upstream whose only hidden state holds the codes of each frame, (B, T, G) as float32, which is exact."""

    def __init__(
        self, *, sample_rate: int, frame_rate: float, groups: int, entries: int, normalize: bool = False
    ) -> None:
        """
        Args:
            groups: G.
            entries: V.
        """
        super().__init__(sample_rate=sample_rate, frame_rate=frame_rate, hidden_sizes=(groups,), normalize=normalize)
        self.groups, self.entries = groups, entries
