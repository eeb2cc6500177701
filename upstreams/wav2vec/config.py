"""Shape of wav2vec.

Paper: Schneider et al. 2019, sec. 3.3 (the large model), arXiv:1904.05862.
"""

from dataclasses import dataclass

from speechssl.conv_context.config import ConvContextConfig, tiny


@dataclass(frozen=True)
class Wav2VecConfig(ConvContextConfig):
    """A wav2vec model; the defaults are the published large one."""


PRESETS: dict[str, Wav2VecConfig] = {
    "wav2vec_tiny": tiny(Wav2VecConfig()),
    "wav2vec_large": Wav2VecConfig(),
}
"""tiny is our own; the weights of large are published, as fairseq's wav2vec_large.pt."""

REPOSITORIES: dict[str, str] = {
    "wav2vec_large": "s3prl/converted_ckpts/wav2vec_large.pt",
}
"""Where the published weights are, in the form that S3PRL gives them."""
