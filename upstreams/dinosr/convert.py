"""The format that DinoSR comes in: fairseq's, with the state of its training beside the weights."""

from typing import Any

from speechssl.contextual import fairseq_names
from speechssl.contextual.formats import OPTIONAL
from speechssl.fairseq_format import has_settings, is_fairseq, open_fairseq
from speechssl.formats import ForeignModel, Formats
from upstreams.dinosr.config import DinoSRConfig

HEADS = ("heads.", "final_proj.", "_codebook", "num_updates")
"""Beginnings of names that are no part of the upstream: prediction heads, and the sums and counts of the codebooks."""


class DinoSRFormats(Formats):
    """Checkpoints of the official code, pre-trained or fine-tuned; transformers has no DinoSR."""

    def read_file(self, content: Any, *, origin: str) -> ForeignModel | None:
        """Reads the student, as the official code does for features; teacher and codebooks are left out."""
        if not is_fairseq(content) or not has_settings(content):
            return None
        checkpoint = open_fairseq(content, origin=origin)
        if checkpoint.architecture != "dinosr":
            return None
        config = fairseq_names.config_from_fairseq(checkpoint, DinoSRConfig, origin=origin)
        state = fairseq_names.rename_weights(checkpoint.state, heads=HEADS)
        return ForeignModel(config, state, OPTIONAL, fairseq_names.their_name)


FORMATS = DinoSRFormats()
