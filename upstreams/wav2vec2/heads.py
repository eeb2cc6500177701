"""What a checkpoint of wav2vec 2.0 holds of its pre-training: quantizer and projections, in three formats."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from speechssl.heads import adopt_heads

PLACES = (
    (r"^quantizer\.(vars|codevectors)$", "quantizer.codebook"),
    (r"^quantizer\.weight_proj\.(weight|bias)$", r"quantizer.projection.0.\1"),
    # Of several layers, all but the last are followed by an activation.
    (r"^quantizer\.weight_proj\.(\d+)\.(?:0\.)?(weight|bias)$", r"quantizer.projection.\1.\2"),
    (r"^project_hid\.", "final_proj."),
    (r"^target_glu\.", "target_mlp."),
)
"""Names of fairseq and of transformers, and ours; ours and what is called alike in all stand for themselves."""


def load_heads(objective: nn.Module, weights: Mapping[str, Tensor], *, origin: str) -> list[str]:
    """Puts a checkpoint's heads into an objective, and logs what is new.

    Args:
        objective: of which everything but `upstream` is a head.
        weights: of the checkpoint, by the names of fairseq, of transformers or of our own runs.
        origin: the checkpoint, named in the log.

    Returns:
        Our names of those that were found and fit.
    """
    return adopt_heads(objective, {our_name(name): value for name, value in weights.items()}, origin=origin)


def our_name(name: str) -> str:
    """Our name of a weight of pre-training."""
    for pattern, ours in PLACES:
        if re.search(pattern, name):
            return re.sub(pattern, ours, name)
    return name
