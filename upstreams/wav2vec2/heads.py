"""What a checkpoint of wav2vec 2.0 holds of its pre-training: quantizer and projections, in three formats."""

import logging
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

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
    own = {name: value for name, value in objective.state_dict().items() if not name.startswith("upstream.")}
    found = {_our_name(name): value for name, value in weights.items()}
    fitting = {}
    for name, value in own.items():
        theirs = found.get(name)
        if theirs is not None and theirs.numel() == value.numel() and theirs.squeeze(0).shape[-1:] == value.shape[-1:]:
            fitting[name] = theirs.reshape(value.shape)
    with torch.no_grad():
        for name, value in fitting.items():
            own[name].copy_(value)
    new = sorted(own.keys() - fitting.keys())
    if new:
        logger.warning("%s has none of these weights that fit, which begin anew: %s.", origin, ", ".join(new))
    else:
        logger.info("Quantizer and projections go on from %s.", origin)
    return sorted(fitting)


def _our_name(name: str) -> str:
    for pattern, ours in PLACES:
        if re.search(pattern, name):
            return re.sub(pattern, ours, name)
    return name
