"""vq-wav2vec: the architecture of wav2vec with a quantizer between its two stacks.

B batch, S samples, T frames, C channels of the features, G groups.
"""

import torch
from torch import Tensor

from speechssl.codes_upstream import CodesUpstream
from speechssl.conv_context.model import ConvContextUpstream
from speechssl.lengths import lengths_to_padding_mask
from speechssl.types import UpstreamOutput
from upstreams.vq_wav2vec.config import VqWav2VecConfig
from upstreams.vq_wav2vec.quantizer import KmeansQuantizer, make_quantizer

NO_CODE = -1
"""Stands in codes beyond an utterance's frames."""


class VqWav2VecUpstream(ConvContextUpstream):
    """A vq-wav2vec model; hidden state 0 is the quantised features.

    Paper: Baevski et al. 2019, sec. 3, arXiv:1910.05453.
    """

    name = "vq_wav2vec"
    family = "vq_wav2vec"
    config: VqWav2VecConfig

    def __init__(self, config: VqWav2VecConfig) -> None:
        super().__init__(config, feature_width=config.codebook_width or config.conv_channels)
        self.quantizer = make_quantizer(config)

    def extract_features(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the frontend, in float32 under autocast too: see `_apply`."""
        with torch.autocast(waveform.device.type, enabled=False):
            return super().extract_features(waveform, lengths)

    def quantize(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, T) -> quantised features (B, codebook width, T) and codes (B, T, G) int64, in float32 likewise."""
        B, _, T = features.shape
        with torch.autocast(features.device.type, enabled=False):
            flat = self.comparable(features, frames).transpose(1, 2).flatten(0, 1)  # (B * T, C)
            if torch.is_grad_enabled():
                output = self.quantizer(flat)
                quantized, codes = output.quantized, output.codes
            else:
                codes = self.quantizer.encode(flat)
                quantized = self.quantizer.decode(codes)
        return quantized.view(B, T, -1).transpose(1, 2), codes.view(B, T, -1)

    def comparable(self, features: Tensor, frames: Tensor) -> Tensor:
        """What the quantizer chooses by, (B, C, T); `frames` are the valid ones, (B,) int64."""
        return self.quantizer.prepare(features, frames) if isinstance(self.quantizer, KmeansQuantizer) else features

    def represent(self, features: Tensor, frames: Tensor) -> Tensor:
        """Quantises: (B, C, T) -> (B, codebook width, T)."""
        return self.quantize(features, frames)[0].to(next(self.encoder.parameters()).dtype)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]  # torch's own hook is untyped
        """Keeps what decides on the codes in float32: rounded weights choose other codewords, which are far away."""

        def keep_type(tensor: Tensor) -> Tensor:
            made: Tensor = fn(tensor)
            return made if made.dtype == tensor.dtype else tensor.to(made.device)

        if recurse:
            for module in self.children():
                exact = module in (self.frontend, self.quantizer)
                module._apply(keep_type if exact else fn)  # type: ignore[no-untyped-call]  # untyped in torch
        return super()._apply(fn, recurse=False)  # type: ignore[no-untyped-call]  # untyped in torch

    @torch.no_grad()
    def codes(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The codewords chosen for each frame, as fairseq's `forward_idx` gives them.

        Args:
            waveform: (B, S) float in [-1, 1] at `sample_rate`.
            lengths: valid samples per utterance, (B,) int64; None = all of S.

        Returns:
            (B, T, G) int64, within 0..codewords - 1; -1 beyond the valid frames, of which there are
            `output_lengths(lengths)`.
        """
        out: UpstreamOutput = VqWav2VecCodes(self)(
            waveform, lengths
        )  # which checks the input and hides what lies beyond `lengths`
        codes: Tensor = out.hidden_states[0].long()
        padding = lengths_to_padding_mask(out.lengths, codes.size(1))  # (B, T)
        return codes.masked_fill(padding[:, :, None], NO_CODE)


class VqWav2VecCodes(CodesUpstream):
    """A model's codes as an upstream's only hidden state, so that all that holds for one holds for them."""

    def __init__(self, model: VqWav2VecUpstream) -> None:
        super().__init__(
            sample_rate=model.sample_rate,
            frame_rate=model.frame_rate,
            groups=model.config.groups,
            entries=model.config.codewords,
        )
        self.name, self.family, self.weights, self.model = model.name, model.family, model.weights, model

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Those of the model."""
        return self.model.output_lengths(lengths)

    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        """Codes (B, T, G) as float32, which holds them exactly."""
        _, codes = self.model.quantize(*self.model.extract_features(waveform, lengths))
        return dict.fromkeys(layers, codes.float())

    def fingerprint_config(self) -> str:
        """That of the model."""
        return self.model.fingerprint_config()


def build(config: VqWav2VecConfig) -> VqWav2VecUpstream:
    """Makes the model with random weights."""
    return VqWav2VecUpstream(config)
