"""Reads weights of S3PRL-VC, of S3PRL's own two recipes and of the toolkit of that name alike.

Reference: https://github.com/unilight/s3prl-vc (`models/Taco2_AR.py`), S3PRL `downstream/a2o-vc-vcc2020/model.py`.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from speechssl.errors import SpeechsslError

_NAMES = (
    (r"encoder\.input_layer\.(\w+)", r"encoder.project.\1"),
    (r"encoder\.convs\.(\d+)\.0\.(\w+)", r"encoder.convs.\1.\2"),
    (r"encoder\.convs\.(\d+)\.1\.(\w+)", r"encoder.norms.\1.\2"),
    (r"encoder\.blstm\.(\w+_l0)_reverse", r"encoder.lstm.back.\1"),
    (r"encoder\.blstm\.(\w+_l0)", r"encoder.lstm.ahead.\1"),
    (r"encoder\.0\.(\w+)", r"encoder.project.\1"),
    (r"prenet\.prenet\.(\d+)\.0\.(\w+)", r"decoder.prenet.\1.\2"),
    (r"lstmps\.(\d+)\.cell\.(\w+)", r"decoder.layers.\1.cell.\2"),
    (r"lstmps\.(\d+)\.layer\.(\w+)", r"decoder.layers.\1.\2"),
    (r"proj\.(\w+)", r"decoder.out.\1"),
    (r"spk_emb_projection\.(\w+)", r"join.project.\1"),
    (r"target_mean", r"mean"),
    (r"target_scale", r"scale"),
)


def from_s3prl_vc(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of S3PRL-VC to those of `SynthesisModel`.

    Args:
        weights: the model's state dict, with or without the 'model.' of S3PRL's downstream before each name.

    Raises:
        SpeechsslError: a name that no published model has.
    """
    parallel = any(re.search(r"lstmps\.\d+\.layer\.", name) for name in weights)
    renamed = {}
    for name, tensor in weights.items():
        short = name.removeprefix("model.")
        if short.startswith("objective."):
            continue  # the loss keeps a copy of the statistics
        renamed[_rename(short, parallel=parallel)] = tensor
    return renamed


def _rename(name: str, *, parallel: bool) -> str:
    projection = r"decoder.projections.\1.\2" if parallel else r"decoder.layers.\1.project.\2"
    for pattern, replacement in (*_NAMES, (r"lstmps\.(\d+)\.pj\.(\w+)", projection)):
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    raise SpeechsslError(f"'{name}' is no weight of a model of S3PRL-VC: give the state dict of one.")
