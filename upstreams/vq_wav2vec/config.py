"""Shapes of the vq-wav2vec models.

Paper: Baevski et al. 2019, sec. 3 and 5.2, arXiv:1910.05453.
"""

from dataclasses import dataclass, replace
from typing import Literal

from speechssl.conv_context.config import ConvContextConfig, tiny


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
    temperature: tuple[float, float, float] = (2.0, 0.5, 0.999995)
    """Of the Gumbel softmax in training: at the beginning, the least, and its factor per update."""
    commitment: float = 0.25
    """Of k-means in training: weight of the pull of the features towards their codewords, beside that of codewords
    towards their features."""


_TINY = replace(tiny(VqWav2VecConfig()), activation="gelu", shared_codebook=True, temperature=(2.0, 0.5, 0.9995))

PRESETS: dict[str, VqWav2VecConfig] = {
    "vq_wav2vec_tiny": _TINY,
    "vq_wav2vec_tiny_kmeans": replace(_TINY, quantizer="kmeans"),
    "vq_wav2vec_gumbel": VqWav2VecConfig(),
    "vq_wav2vec_kmeans": replace(VqWav2VecConfig(), quantizer="kmeans"),
}
"""The tiny ones are our own, with the shared codebook and the activation of fairseq's command, and a temperature that
falls within a short run; the others are published as fairseq's vq-wav2vec.pt and vq-wav2vec_kmeans.pt."""

REPOSITORIES: dict[str, str] = {
    "vq_wav2vec_gumbel": "s3prl/converted_ckpts/vq-wav2vec.pt",
    "vq_wav2vec_kmeans": "s3prl/converted_ckpts/vq-wav2vec_kmeans.pt",
}
"""Where the published weights are, in the form that S3PRL gives them."""
