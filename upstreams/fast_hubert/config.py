"""Shapes of the Fast-HuBERT models.

Paper: Yang et al. 2023, sec. 3, arXiv:2309.13860, and fasthubert_base_lirbispeech.yaml of its code.
"""

from dataclasses import dataclass

from speechssl.contextual.config import ContextualConfig, tiny


@dataclass(frozen=True)
class FastHubertConfig(ContextualConfig):
    """A Fast-HuBERT model; the defaults are the published base model.

    `frontend` and the `conv_` fields of the waveform frontend have no meaning here, but for `conv_channels`.
    """

    num_mel_bins: int = 80
    conv_channels: int = 512
    """Of what the frontend makes."""
    subsample_channels: int = 1024
    """Of each convolution but the last, before the gate that halves them."""
    subsample_kernels: tuple[int, ...] = (5, 5)
    """Frames that each convolution sees; each halves the frame rate, from 100 Hz."""
    feature_grad_mult: float = 1.0
    """Scale of the gradient that reaches the frontend; the published code reads a setting, and does not use it."""


PRESETS: dict[str, FastHubertConfig] = {
    "fast_hubert_tiny": tiny(FastHubertConfig(conv_channels=256, subsample_channels=256)),
    "fast_hubert_base": FastHubertConfig(),
}
"""tiny is our own, with the transformer of the other tiny models."""
