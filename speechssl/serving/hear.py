"""Any upstream as a module of the HEAR benchmark: `heareval` and `hear-validator` take `speechssl.serving.hear`.

    hear-validator speechssl.serving.hear --model 'hubert_base#layers=6'

The model's "file" is an upstream and its layers, see `speechssl.serving.embedding.FrameEmbedder`.
Conventions: audio is (n_sounds, n_samples) in [-1, 1], timestamps are in milliseconds.
Paper: Turian et al. 2022, HEAR: Holistic Evaluation of Audio Representations, arXiv:2203.03022; its common API.
"""

import torch
from torch import Tensor, nn
from torchaudio.functional import resample

from speechssl.errors import SpeechsslError
from speechssl.serving.embedding import FrameEmbedder

SAMPLE_RATES = (16_000, 22_050, 32_000, 44_100, 48_000)
"""Hz, in which HEAR's data come."""


class HearModel(nn.Module):
    """An upstream with what HEAR asks of a model: `sample_rate` (Hz) and the widths of its two embeddings."""

    def __init__(self, embedder: FrameEmbedder) -> None:
        super().__init__()
        self.embedder = embedder
        self.sample_rate = next(r for r in SAMPLE_RATES if r >= embedder.upstream.sample_rate)
        self.scene_embedding_size = embedder.width
        self.timestamp_embedding_size = embedder.width

    def forward(self, audio: Tensor) -> Tensor:
        """(n_sounds, n_samples) -> (n_sounds, n_timestamps, timestamp_embedding_size)."""
        rate = self.embedder.upstream.sample_rate
        if self.sample_rate != rate:
            audio = resample(audio, self.sample_rate, rate)
        return self.embedder(audio)  # type: ignore[no-any-return]  # nn.Module returns Any


def load_model(model_file_path: str) -> HearModel:
    """Loads an upstream.

    Args:
        model_file_path: such as 'hubert_base', 'exp/upstream' or 'facebook/hubert-base-ls960', each with layers if
            wanted ('hubert_base#layers=6'); without, the mean over all layers.
    """
    if not model_file_path:
        raise SpeechsslError("HEAR's model must name an upstream: give it as the model file, such as 'hubert_base'.")
    return HearModel(FrameEmbedder(model_file_path)).eval()


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Embeds each frame.

    Args:
        audio: (n_sounds, n_samples) at the model's sample rate.
        model: from `load_model`.

    Returns:
        Embeddings (n_sounds, n_timestamps, D) float32, and the middle of each frame (n_sounds, n_timestamps) in
        milliseconds.
    """
    embeddings = model(audio)
    frames = torch.arange(embeddings.size(1), device=embeddings.device, dtype=torch.float64)
    centres = model.embedder.first_centre() + frames / model.embedder.upstream.frame_rate
    return embeddings, (1000.0 * centres).float().expand(audio.size(0), -1)


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """Embeds each sound as the mean over its frames.

    Args:
        audio: (n_sounds, n_samples) at the model's sample rate.
        model: from `load_model`.

    Returns:
        (n_sounds, D) float32.
    """
    return model(audio).mean(dim=1)  # type: ignore[no-any-return]  # nn.Module returns Any
