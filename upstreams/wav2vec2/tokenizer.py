"""The units that a wav2vec 2.0 model was pre-trained with: what its quantizer makes of the frames that it hides.

B batch, S samples, T frames, C channels of the frontend, G codebooks, V entries, E width of an entry.
Paper: Baevski et al. 2020, sec. 2, arXiv:2006.11477; in evaluation the choice is the entry with the largest logit.
"""

import torch
from torch import Tensor

from speechssl.codes_upstream import CodesUpstream
from speechssl.errors import SpeechsslError
from speechssl.heads import read_heads
from speechssl.quantizer.gumbel import GumbelQuantizer
from upstreams.wav2vec2.heads import our_name
from upstreams.wav2vec2.model import Wav2Vec2Upstream

PUBLISHED_GROUPS = 2
"""Codebooks of all published models; fairseq and transformers keep their entries in one table, one after the other."""


class Wav2Vec2Codes(CodesUpstream):
    """Codes (B, T, G) of the normalised frames of the frontend."""

    def __init__(self, upstream: Wav2Vec2Upstream, quantizer: GumbelQuantizer) -> None:
        super().__init__(
            sample_rate=upstream.sample_rate,
            frame_rate=upstream.frame_rate,
            groups=quantizer.groups,
            entries=quantizer.entries,
            normalize=upstream.normalize,
        )
        self.name, self.family, self.weights = upstream.name, upstream.family, upstream.weights
        self.upstream, self.quantizer = upstream, quantizer

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Those of the model."""
        return self.upstream.output_lengths(lengths)

    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        """See `Upstream.compute`."""
        features, _ = self.upstream.extract_features(waveform, lengths)  # (B, T, C)
        B, T, _ = features.shape
        codes = self.quantizer.encode(self.upstream.feature_norm(features).flatten(0, 1))  # (B * T, G)
        return dict.fromkeys(layers, codes.view(B, T, -1).float())

    def fingerprint_config(self) -> str:
        """That of the model."""
        return f"codes of {self.upstream.fingerprint_config()}"


def build_tokenizer(upstream: Wav2Vec2Upstream, reference: str | None) -> Wav2Vec2Codes:
    """The quantizer of a checkpoint, around its upstream.

    Args:
        upstream: loaded from the same checkpoint.
        reference: as `load_upstream` takes it; None = the weights are random.

    Raises:
        SpeechsslError: the checkpoint holds no quantizer.
    """
    found = {} if reference is None else read_heads(reference)
    named = {our_name(name): value for name, value in found.items()}
    weights = {name.removeprefix("quantizer."): x for name, x in named.items() if name.startswith("quantizer.")}
    depth = sum(name.startswith("projection.") and name.endswith("weight") for name in weights)
    if "codebook" not in weights or depth == 0:
        raise SpeechsslError(
            f"'{upstream.name}' comes without the quantizer of its pre-training: name a checkpoint that has it, or "
            "give the folder of a `speechssl cluster` to `--units`."
        )
    quantizer = make_quantizer(weights, depth)
    if quantizer.width != upstream.feature_width:
        raise SpeechsslError(
            f"The quantizer of '{upstream.name}' takes frames of width {quantizer.width}, not {upstream.feature_width}."
        )
    return Wav2Vec2Codes(upstream, quantizer)


def make_quantizer(weights: dict[str, Tensor], depth: int) -> GumbelQuantizer:
    """A quantizer of the shape of its weights, by our names without 'quantizer.'."""
    codebook = weights["codebook"]
    logits, inner = weights[f"projection.{depth - 1}.weight"].size(0), weights["projection.0.weight"]
    groups = codebook.size(0) if codebook.dim() == 3 and codebook.size(0) > 1 else PUBLISHED_GROUPS
    quantizer = GumbelQuantizer(
        inner.size(1),
        output_width=groups * codebook.size(-1),
        groups=groups,
        entries=logits // groups,
        depth=depth,
        factor=inner.size(0) // inner.size(1) if depth > 1 else 1,
    )
    with torch.no_grad():
        for name, value in quantizer.state_dict().items():
            value.copy_(weights[name].reshape(value.shape))
    return quantizer.eval()
