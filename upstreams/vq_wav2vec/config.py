"""Shapes of the vq-wav2vec models.

Paper: Baevski et al. 2019, sec. 3 and 5.1, arXiv:1910.05453.
"""

from dataclasses import dataclass, replace
from typing import Literal

from speechssl.conv_context.config import ConvContextConfig


@dataclass(frozen=True)
class VqWav2VecConfig(ConvContextConfig):
    """A vq-wav2vec model; the defaults are the published one with the Gumbel softmax."""

    conv_kernels: tuple[int, ...] = (10, 8, 4, 4, 4, 1, 1, 1)
    conv_strides: tuple[int, ...] = (5, 4, 2, 2, 2, 1, 1, 1)
    log_compression: bool = False
    quantizer: Literal["gumbel", "kmeans"] = "gumbel"
    """How a codeword is chosen: the highest logit, or the least distance."""
    groups: int = 2
    """Codewords that make up one frame."""
    codewords: int = 320
    """Per group."""
    shared_codebook: bool = False
    """Whether all groups choose from the same codewords."""
    codebook_width: int = 0
    """Channels of all groups' codewords together; 0 = `conv_channels`."""
    projection_depth: int = 2
    """Layers that make the logits of the Gumbel softmax."""


PRESETS: dict[str, VqWav2VecConfig] = {
    "vq_wav2vec_gumbel": VqWav2VecConfig(),
    "vq_wav2vec_kmeans": replace(VqWav2VecConfig(), quantizer="kmeans"),
}
"""Published as fairseq's vq-wav2vec.pt and vq-wav2vec_kmeans.pt."""

REPOSITORIES: dict[str, str] = {
    "vq_wav2vec_gumbel": "s3prl/converted_ckpts/vq-wav2vec.pt",
    "vq_wav2vec_kmeans": "s3prl/converted_ckpts/vq-wav2vec_kmeans.pt",
}
"""Where the published weights are, in the form that S3PRL gives them."""
