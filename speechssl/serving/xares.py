"""Any upstream as an audio encoder of the X-ARES benchmark, which takes a file that defines one class:

    from speechssl.serving import xares

    class HubertEncoder(xares.UpstreamEncoder):
        def __init__(self) -> None:
            super().__init__("hubert_base#layers=6")

B batch, S samples, T frames, D width.
Paper: Zhang et al. 2025, X-ARES: A Comprehensive Framework for Assessing Audio Encoder Performance, arXiv:2505.16369.
"""

from torch import Tensor, nn

from speechssl.serving.embedding import FrameEmbedder


class UpstreamEncoder(nn.Module):
    """An upstream with what X-ARES asks of an encoder.

    Attributes:
        sampling_rate: of its input, Hz.
        output_dim: D.
        hop_size_in_ms: from one frame to the next.
    """

    def __init__(self, reference: str) -> None:
        """
        Args:
            reference: an upstream and its layers, see `speechssl.serving.embedding.FrameEmbedder`.
        """
        super().__init__()
        self.embedder = FrameEmbedder(reference)
        self.sampling_rate = self.embedder.upstream.sample_rate
        self.output_dim = self.embedder.width
        self.hop_size_in_ms = 1000.0 / self.embedder.upstream.frame_rate
        self.eval()

    def forward(self, audio: Tensor) -> Tensor:
        """(B, S) in [-1, 1] at `sampling_rate`, or (S,) -> (B, T, D) float32; X-ARES tells no lengths."""
        return self.embedder(audio if audio.dim() == 2 else audio[None, :])  # type: ignore[no-any-return]
