"""The formats that vq-wav2vec comes in."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from speechssl.conv_context.formats import ConvContextFormats, quantizer_type
from speechssl.fairseq_format import FairseqCheckpoint
from upstreams.vq_wav2vec.config import VqWav2VecConfig


class VqWav2VecFormats(ConvContextFormats):
    """fairseq's checkpoints with a quantizer."""

    def more_settings(self, checkpoint: FairseqCheckpoint) -> dict[str, Any]:
        """Those of the quantizer."""
        model = checkpoint.model
        return {
            "quantizer": quantizer_type(checkpoint),
            "groups": int(model.get("vq_groups", 2)),
            "codewords": int(model.get("vq_vars", 320)),
            "shared_codebook": bool(model.get("combine_groups", False)),
            "codebook_width": int(model.get("vq_dim", 0)),
            "projection_depth": int(model.get("vq_depth", 1)),
        }

    def rename(self, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:
        """Codebooks become (groups or 1, codewords, channels), whichever the quantizer."""
        codewords = settings["codewords"]
        return dict(_renamed(key, value, codewords) for key, value in super().rename(state, settings).items())

    def their_name(self, key: str, settings: Mapping[str, Any]) -> str:
        """fairseq's name of a weight by ours."""
        gumbel = settings["quantizer"] == "gumbel"
        if key == "quantizer.codebook":
            return f"vector_quantizer.{'vars' if gumbel else 'embedding'}"
        if match := re.fullmatch(r"quantizer\.projection\.(\d+)\.(weight|bias)", key):
            last = settings["projection_depth"] - 1
            place = "" if last == 0 else f".{match[1]}" if int(match[1]) == last else f".{match[1]}.0"
            return f"vector_quantizer.weight_proj{place}.{match[2]}"
        if match := re.fullmatch(r"quantizer\.(projection|norm)\.(weight|bias)", key):
            return f"vector_quantizer.projection.{'0' if match[1] == 'projection' else '1'}.{match[2]}"
        return super().their_name(key, settings)


def _renamed(key: str, value: Tensor, codewords: int) -> tuple[str, Tensor]:
    if key == "vector_quantizer.vars":  # (1, groups x codewords, channels)
        return "quantizer.codebook", value.view(-1, codewords, value.size(-1))
    if key == "vector_quantizer.embedding":  # (codewords, groups or 1, channels)
        return "quantizer.codebook", value.transpose(0, 1).contiguous()
    if match := re.fullmatch(r"vector_quantizer\.weight_proj(?:\.(\d+)(?:\.0)?)?\.(weight|bias)", key):
        return f"quantizer.projection.{match[1] or 0}.{match[2]}", value
    if match := re.fullmatch(r"vector_quantizer\.projection\.([01])\.(weight|bias)", key):
        return f"quantizer.{'projection' if match[1] == '0' else 'norm'}.{match[2]}", value
    return key, value


FORMATS = VqWav2VecFormats(config=VqWav2VecConfig, quantizers=("gumbel", "kmeans"))
