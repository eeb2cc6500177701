"""How patches of a spectrogram and a vision transformer are wired into an upstream.

A hidden state is a sequence of frames in time, one for each column of patches: the tokens of a column side by side,
from low to high frequencies, as the authors of SSAST have it in S3PRL, or their mean. Tokens that stand for the whole
clip take part in attention, but are no frames.
B batch, S samples, T frames, M mel bands, N windows, K columns in a window, R rows, P prefix tokens, D width, L blocks.
"""

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from speechssl.encoder.vit import VisionTransformer, VitConfig, Windows, cut_windows
from speechssl.frontend.patch_embedding import PatchEmbedding, patch_rows
from speechssl.lengths import lengths_to_padding_mask
from speechssl.patches.config import PatchConfig
from speechssl.upstream import Upstream


class Spectrogram(Protocol):
    """What computes the spectrogram: a module."""

    hop: int
    """Samples from one frame to the next."""

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames for valid samples, both (B,) int64."""

    def __call__(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) -> (B, T, M), float32."""


class PatchUpstream(Upstream):
    """Spectrogram, patch embedding, learned positions and vision transformer; families name it.

    Attention sees the valid columns of an utterance only, so that its batch does not matter. Audio that is longer than
    the positions is read in windows of their length.

    Paper: Gong et al. 2021 (AST), sec. 2.1, arXiv:2104.01778.
    """

    def __init__(self, config: PatchConfig, spectrogram: Spectrogram) -> None:
        rows = patch_rows(config.num_mel_bins, patch=config.patch_bands, stride=config.stride_bands)
        size = config.width * rows if config.frequency == "join" else config.width
        super().__init__(
            sample_rate=config.sample_rate,
            frame_rate=config.sample_rate / (spectrogram.hop * config.stride_frames),
            hidden_sizes=(size,) * (config.depth + 1),
        )
        self.config = config
        self.spectrogram = spectrogram
        self.patches = PatchEmbedding(
            config.width,
            patch=(config.patch_frames, config.patch_bands),
            stride=(config.stride_frames, config.stride_bands),
        )
        self.position = nn.Parameter(torch.empty(config.columns, rows, config.width))
        self.prefix = self.prefix_position = None
        if config.prefix_tokens > 0:
            self.prefix = nn.Parameter(torch.empty(config.prefix_tokens, config.width))
            self.prefix_position = nn.Parameter(torch.empty(config.prefix_tokens, config.width))
        for parameter in self.parameters(recurse=False):
            nn.init.trunc_normal_(parameter, std=0.02)
        self.encoder = VisionTransformer(
            VitConfig(
                width=config.width,
                depth=config.depth,
                heads=config.heads,
                ffn_width=config.ffn_width,
                norm_eps=config.norm_eps,
                closing_norm=config.closing_norm,
            )
        )

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Valid columns for valid samples, both (B,) int64."""
        return self.patches.output_lengths(self.spectrogram.output_lengths(lengths))

    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        """See `Upstream.compute`; each (B, columns, R D) or (B, columns, D)."""
        states, windows = self.encode(waveform, lengths, layers)
        rows, how = self.position.size(1), self.config.frequency
        frames = {k: join_rows(state[:, self.config.prefix_tokens :], rows, how) for k, state in states.items()}
        return {layer: windows.join(state) for layer, state in frames.items()}

    def encode(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> tuple[dict[int, Tensor], Windows]:
        """Encodes window by window: layer -> all tokens (N, P + K R, D), and the windows."""
        features = self.spectrogram(waveform, lengths).to(self.position.dtype)  # (B, T, M)
        columns = self.output_lengths(lengths)
        grid = self.patches(features)[:, : int(columns.max())]  # (B, columns, R, D)
        windows = cut_windows(grid, columns, self.config.columns)
        tokens, padding_mask = self._tokens(windows)
        return self.encoder(tokens, padding_mask, layers=layers), windows

    def _tokens(self, windows: Windows) -> tuple[Tensor, Tensor | None]:
        """Adds positions and prefix: tokens (N, P + K R, D) and their padding mask, None = none is padding."""
        grid = windows.x  # (N, K, R, D)
        N, K, R, _ = grid.shape
        first = torch.zeros_like(windows.lengths)
        if self.config.position_cut == "centre":
            first = self.config.columns // 2 - windows.lengths // 2
        place = first[:, None] + torch.arange(K, device=grid.device)  # (N, K)
        grid = grid + self.position[place.clamp(max=self.config.columns - 1)]
        tokens = grid.flatten(1, 2)  # (N, K R, D)
        if self.prefix is not None and self.prefix_position is not None:
            tokens = torch.cat(((self.prefix + self.prefix_position).expand(N, -1, -1), tokens), dim=1)
        if int(windows.lengths.min()) == K:
            return tokens, None
        return tokens, lengths_to_padding_mask(self.config.prefix_tokens + R * windows.lengths, tokens.size(1))

    def fingerprint_config(self) -> str:
        """The whole config."""
        return repr(self.config)


def join_rows(tokens: Tensor, rows: int, how: Literal["join", "mean"]) -> Tensor:
    """Makes frames of the patches of a column: (N, K R, D) -> (N, K, R D), or (N, K, D) for their mean."""
    N, _, D = tokens.shape
    grid = tokens.reshape(N, -1, rows, D)
    return grid.flatten(2) if how == "join" else grid.mean(dim=2)
