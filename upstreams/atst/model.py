"""ATST: patches as high as the spectrogram and 40 ms wide, and a vision transformer.

B batch, S samples, T frames, N windows, K frames in a window, D width, L blocks.
"""

import torch
from torch import Tensor

from speechssl.encoder.vit import Windows
from speechssl.errors import ConfigError
from speechssl.lengths import lengths_to_padding_mask
from speechssl.patches.model import PatchUpstream
from speechssl.types import UpstreamOutput
from speechssl.upstream import Upstream
from upstreams.atst.config import AtstConfig
from upstreams.atst.spectrogram import ScaledDecibels


class AtstUpstream(PatchUpstream):
    """An ATST model, for clips or for frames.

    Paper: Li and Li 2022, sec. 2, arXiv:2204.12076; Li et al. 2023, sec. III, arXiv:2306.04186.
    """

    name = "atst"
    family = "atst"
    config: AtstConfig
    spectrogram: ScaledDecibels

    def __init__(self, config: AtstConfig) -> None:
        needed = config.columns * config.patch_frames
        if not needed <= config.window_frames < needed + config.patch_frames:
            raise ConfigError(
                f"`window_frames` must hold `columns` = {config.columns} patches of {config.patch_frames} frames and "
                f"no more, but is {config.window_frames}."
            )
        super().__init__(config, ScaledDecibels(config))
        for name, module in self.encoder.named_modules():
            if name.endswith("attention.qkv"):
                module.register_parameter("bias", None)

    @torch.no_grad()
    def timestamp_embeddings(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The authors' embedding of frames: the outputs of all blocks, each through the closing norm, side by side.

        Args:
            waveform: (B, S) float in [-1, 1] at `sample_rate`.
            lengths: valid samples per utterance, (B,) int64; None = all of S.

        Returns:
            (B, T, L D), 0 beyond the valid frames.
        """
        depth = self.config.depth
        out = self(waveform, lengths, layers=range(1, depth + 1))
        inner = [self.encoder.norm(out.hidden_states[layer]) for layer in range(1, depth)]
        embeddings: Tensor = torch.cat([*inner, out.hidden_states[depth]], dim=2)
        padding = lengths_to_padding_mask(out.lengths, embeddings.size(1))  # (B, T)
        return embeddings.masked_fill(padding[:, :, None], 0.0)

    @torch.no_grad()
    def scene_embeddings(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The authors' embedding of clips: of all blocks, after the closing norm, the token of the clip and the mean.

        Windows of an utterance are averaged; of ATST-Clip, the first one and those that are more than half full.

        Args:
            waveform: (B, S) float in [-1, 1] at `sample_rate`.
            lengths: valid samples per utterance, (B,) int64; None = all of S.

        Returns:
            (B, 2 L D): tokens of all blocks, then means; of ATST-Frame, which has no such token, (B, L D).
        """
        out: UpstreamOutput = _Scenes(self)(waveform, lengths)
        return out.hidden_states[0][:, 0]


class _Scenes(Upstream):
    """A model's clip embeddings as an upstream's only hidden state of one frame, so that input is checked as always."""

    def __init__(self, model: AtstUpstream) -> None:
        parts = model.config.depth * (1 + model.config.prefix_tokens)
        super().__init__(
            sample_rate=model.sample_rate, frame_rate=model.frame_rate, hidden_sizes=(parts * model.config.width,)
        )
        self.name, self.model = model.name, model

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """One frame, where the model has any."""
        return self.model.output_lengths(lengths).clamp(max=1)

    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        """(B, 1, L D or 2 L D)."""
        config = self.model.config
        states, windows = self.model.encode(waveform, lengths, frozenset(range(1, config.depth + 1)))
        norm = self.model.encoder.norm
        normed = [norm(state) if layer < config.depth else state for layer, state in sorted(states.items())]
        tokens = [state[:, token] for token in range(config.prefix_tokens) for state in normed]
        valid = ~lengths_to_padding_mask(windows.lengths, windows.x.size(1))[:, :, None]  # (N, K, 1)
        sums = [(state[:, config.prefix_tokens :] * valid).sum(dim=1) for state in normed]
        means = [total / windows.lengths[:, None] for total in sums]
        parts = torch.cat([*tokens, *means], dim=1)  # (N, L D or 2 L D)
        owner, counted = self._counted(lengths, windows)
        weight = counted.to(parts.dtype)[:, None]
        total = parts.new_zeros(len(lengths), parts.size(1)).index_add(0, owner, parts * weight)
        count = weight.new_zeros(len(lengths), 1).index_add(0, owner, weight)
        return dict.fromkeys(layers, (total / count)[:, None])

    def _counted(self, lengths: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
        """Which utterance each window is of, (N,), and whether it counts, (N,) bool."""
        config = self.model.config
        if windows.kept is None:
            return torch.arange(len(lengths), device=lengths.device), torch.ones_like(lengths, dtype=torch.bool)
        owner, place = windows.kept.nonzero(as_tuple=True)
        if config.prefix_tokens == 0:
            return owner, torch.ones_like(owner, dtype=torch.bool)
        spectrogram = self.model.spectrogram
        left = spectrogram.mel.output_lengths(lengths)[owner] - place * config.window_frames
        return owner, (place == 0) | (left > config.window_frames // 2)

    def fingerprint_config(self) -> str:
        """That of the model."""
        return self.model.fingerprint_config()


def build(config: AtstConfig) -> AtstUpstream:
    """Makes the model with random weights."""
    return AtstUpstream(config)
