"""Public weights of AASIST and SSL-AASIST: their names, and files of them as networks of ours."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from downstreams.deepfake_detection.backends.aasist import Aasist, RawAasist
from downstreams.deepfake_detection.backends.config import RAW_AASIST, RAW_AASIST_L, AasistConfig
from downstreams.deepfake_detection.head import FOUND_ON_DEV
from speechssl.checkpoint import load_weights, read_file
from speechssl.errors import SpeechsslError

_NAMES = (
    (r"^detector\.", ""),
    (r"^project\.", "LL."),
    (r"^first_norm\.", "first_bn."),
    (r"^reader\.norm\.", "first_bn1."),
    (r"^reader\.enter\.", "attention.0."),
    (r"^reader\.hidden_norm\.", "attention.2."),
    (r"^reader\.leave\.", "attention.3."),
    (r"^blocks\.(\d)\.norm(\d)\.", r"encoder.\1.0.bn\2."),
    (r"^blocks\.(\d)\.shortcut\.", r"encoder.\1.0.conv_downsample."),
    (r"^blocks\.(\d)\.", r"encoder.\1.0."),
    (r"^graphs\.output\.", "out_layer."),
    (r"^graphs\.positions$", "pos_S"),
    (r"^graphs\.pool_spectral\.score\.", "pool_S.proj."),
    (r"^graphs\.pool_temporal\.score\.", "pool_T.proj."),
    (r"^graphs\.spectral\.", "GAT_layer_S."),
    (r"^graphs\.temporal\.", "GAT_layer_T."),
    (r"^graphs\.branches\.0\.", "1|"),
    (r"^graphs\.branches\.1\.", "2|"),
    (r"^(\d)\|master$", r"master\1"),
    (r"^(\d)\|pool_spectral\.score\.", r"pool_hS\1.proj."),
    (r"^(\d)\|pool_temporal\.score\.", r"pool_hT\1.proj."),
    (r"^(\d)\|first\.", r"HtrgGAT_layer_ST\g<1>1."),
    (r"^(\d)\|second\.", r"HtrgGAT_layer_ST\g<1>2."),
    (r"\.enter_temporal\.", ".proj_type1."),
    (r"\.enter_spectral\.", ".proj_type2."),
    (r"\.edge\.", ".att_proj."),
    (r"\.master_edge\.", ".att_projM."),
    (r"\.edge_weight$", ".att_weight"),
    (r"\.weight_temporal$", ".att_weight11"),
    (r"\.weight_spectral$", ".att_weight22"),
    (r"\.weight_across$", ".att_weight12"),
    (r"\.weight_master$", ".att_weightM"),
    (r"\.gathered\.", ".proj_with_att."),
    (r"\.own\.", ".proj_without_att."),
    (r"\.master_gathered\.", ".proj_with_attM."),
    (r"\.master_own\.", ".proj_without_attM."),
    (r"^((?:GAT|Htrg).*)\.norm\.", r"\1.bn."),
)
"""What is replaced, one after the other, in our names."""
UPSTREAM = "ssl_model."
"""Begins the names of the pre-trained model in files of SSL-AASIST."""
PARALLEL = "module."
"""Begins all names where torch's DataParallel was saved, as by the code for ASVspoof 2021 DF."""


def official_name(name: str) -> str:
    """The name in the published code of a weight of `Aasist` or `RawAasist`."""
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def load_official(network: Aasist | RawAasist, weights: Mapping[str, Tensor], *, origin: str) -> None:
    """Copies published weights into a network; those of the model before it, if they are there, are left out.

    Args:
        network: with `official=True`, or the numbers mean something else.
        weights: by the names of the published code.
        origin: named in errors.

    Raises:
        SpeechsslError: names or shapes differ.
    """
    theirs = {official_name(name): name for name in network.state_dict()}
    plain = {name.removeprefix(PARALLEL): value for name, value in weights.items()}
    ours = {theirs.get(name, name): value for name, value in plain.items() if not name.startswith(UPSTREAM)}
    found_on_dev = frozenset(name for name in network.state_dict() if name.split(".")[-1] in FOUND_ON_DEV)
    load_weights(network, ours, origin=origin, optional=found_on_dev, their_name=official_name)


def read_official(path: Path) -> RawAasist:
    """Opens `AASIST.pth` or `AASIST-L.pth`, or weights trained by that code in either size.

    Raises:
        SpeechsslError: it is no such file.
    """
    weights = read_file(path)
    last = weights.get("encoder.5.0.conv2.weight") if isinstance(weights, Mapping) else None
    if last is None:
        raise SpeechsslError(f"{path} holds no weights of AASIST: give a file such as `AASIST.pth` of its code.")
    sizes: dict[int, AasistConfig] = {config.channels[1]: config for config in (RAW_AASIST, RAW_AASIST_L)}
    if len(last) not in sizes:
        raise SpeechsslError(
            f"{path} holds an AASIST of {len(last)} channels, but there are {' and '.join(map(str, sizes))}: make a "
            "`RawAasist` of its sizes and call `load_official`."
        )
    network = RawAasist(replace(sizes[len(last)], official=True))
    load_official(network, weights, origin=str(path))
    return network.eval()
