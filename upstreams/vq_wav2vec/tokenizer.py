"""The units of vq-wav2vec: the codewords between its two stacks."""

from upstreams.vq_wav2vec.model import VqWav2VecCodes, VqWav2VecUpstream


def build_tokenizer(upstream: VqWav2VecUpstream, reference: str | None) -> VqWav2VecCodes:  # noqa: ARG001  # it has all
    """The model's codes; its codewords are part of it."""
    return VqWav2VecCodes(upstream)
