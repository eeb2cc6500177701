"""Decoding of connectionist temporal classification.

B batch, T frames, V classes; class 0 is the blank.
"""

from torch import Tensor

BLANK = 0


def greedy_decode(log_probs: Tensor, lengths: Tensor) -> list[list[int]]:
    """The most probable path: best class per frame, repeats merged, blanks removed.

    Args:
        log_probs: (B, T, V), any monotone scores will do.
        lengths: valid frames, (B,) int64.

    Returns:
        Per utterance the classes, none of them the blank.

    Paper: Graves et al. 2006, sec. 3.2 (best path decoding).
    """
    paths = log_probs.argmax(dim=-1).tolist()
    return [_collapse(path[:length]) for path, length in zip(paths, lengths.tolist(), strict=True)]


def _collapse(path: list[int]) -> list[int]:
    return [label for label, last in zip(path, [BLANK, *path], strict=False) if label not in (last, BLANK)]
