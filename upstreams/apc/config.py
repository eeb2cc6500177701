"""Shapes of APC and VQ-APC.

Papers: Chung et al. 2019 (APC), sec. 3.1, arXiv:1904.03240; Chung et al. 2020 (VQ-APC), sec. 3.1, arXiv:2005.08392; and
S3PRL's pretrain/{apc,vq_apc}.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ApcConfig:
    """Recurrent layers over normalised log-mel frames; the defaults are the published model."""

    num_mel_bins: int = 80
    width: int = 512
    depth: int = 3
    residual: bool = True
    """Whether each layer but the first adds to what it hears."""
    dropout: float = 0.1


_BASE = ApcConfig()

PRESETS: dict[str, ApcConfig] = {
    "apc_tiny": replace(_BASE, width=384, dropout=0.0),
    "apc_base": _BASE,
    "apc_360h": _BASE,
    "apc_vq_tiny": replace(_BASE, width=384, dropout=0.0),
    "apc_vq_base": _BASE,
    "apc_vq_360h": _BASE,
}
"""VQ-APC quantizes above its last layer, for the prediction alone: its hidden states are made as those of APC."""

_PUBLISHED = "leo19941227/apc_series"

REPOSITORIES: dict[str, str] = {
    "apc_base": f"{_PUBLISHED}/apc_960hr.ckpt",
    "apc_360h": f"{_PUBLISHED}/apc_360hr.ckpt",
    "apc_vq_base": f"{_PUBLISHED}/vq_apc_960hr.ckpt",
    "apc_vq_360h": f"{_PUBLISHED}/vq_apc_360hr.ckpt",
}
"""Where the published weights are, in S3PRL's format."""
