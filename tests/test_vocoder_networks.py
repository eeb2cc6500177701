"""Generators and their folders: public checkpoints against a slow forward, shapes, counts and the inverse STFT."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.vocoder import MelConfig, load_vocoder, log_mel, synthesise
from speechssl.vocoder.folder import build_generator, save_vocoder
from speechssl.vocoder.hifigan import KNNVC, V1, HifiGan, HifiGanConfig
from speechssl.vocoder.inputs import FeatureSource
from speechssl.vocoder.istft import IstftConfig, IstftVocoder, inverse_stft

SMALL = HifiGanConfig(channels=32)
SMALL_FEATURES = replace(KNNVC, features=24, projection=20, channels=32)
TINY = IstftConfig(mel=MelConfig(sample_rate=16_000, hop=320), width=16, inner=24, blocks=2)
STRIDES = {80: (8, 8, 2, 2), 24: (10, 8, 2, 2)}
KERNELS = {80: (16, 16, 4, 4), 24: (20, 16, 4, 4)}


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _public(width: int) -> dict[str, Tensor]:
    """Random weights under the names and in the shapes of the public checkpoints, 32 channels wide."""
    generator = torch.Generator().manual_seed(1)
    state: dict[str, Tensor] = {}

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / max(torch.Size(shape[1:]).numel(), 1) ** 0.5

    def conv(name: str, *shape: int, transposed: bool = False) -> None:
        state[f"{name}.weight_g"] = 0.9 * draw(shape[0], 1, 1).abs() + 0.5
        state[f"{name}.weight_v"] = draw(*shape)
        state[f"{name}.bias"] = 0.1 * draw(shape[1] if transposed else shape[0])

    if width != 80:
        state["lin_pre.weight"], state["lin_pre.bias"] = draw(20, width), draw(20)
    conv("conv_pre", 32, 80 if width == 80 else 20, 7)
    for i, kernel in enumerate(KERNELS[width]):
        channels = 32 >> i
        conv(f"ups.{i}", channels, channels // 2, kernel, transposed=True)
        for j, size in enumerate((3, 7, 11)):
            for part in ("convs1", "convs2"):
                for k in range(3):
                    conv(f"resblocks.{3 * i + j}.{part}.{k}", channels // 2, channels // 2, size)
    conv("conv_post", 1, 2, 7)
    return state


def _slow_forward(state: dict[str, Tensor], frames: Tensor) -> Tensor:
    """As the official models.py reads, in float64, one operation after the other."""
    state = {k: v.double() for k, v in state.items()}

    def weight(name: str) -> Tensor:
        g, v = state[f"{name}.weight_g"], state[f"{name}.weight_v"]
        return torch.stack([g[i] * v[i] / v[i].square().sum().sqrt() for i in range(len(v))])

    def conv(x: Tensor, name: str, dilation: int = 1) -> Tensor:
        w = weight(name)
        return F.conv1d(x, w, state[f"{name}.bias"], dilation=dilation, padding=(w.size(2) * dilation - dilation) // 2)

    x = frames.double()
    width = x.size(2)
    if "lin_pre.weight" in state:
        x = x @ state["lin_pre.weight"].T + state["lin_pre.bias"]
    x = conv(x.transpose(1, 2), "conv_pre")
    for i, (stride, kernel) in enumerate(zip(STRIDES[width], KERNELS[width], strict=True)):
        x = torch.where(x > 0, x, 0.1 * x)
        x = F.conv_transpose1d(x, weight(f"ups.{i}"), state[f"ups.{i}.bias"], stride, (kernel - stride) // 2)
        total = torch.zeros_like(x)
        for j in range(3):
            y = x
            for k, dilation in enumerate((1, 3, 5)):
                name = f"resblocks.{3 * i + j}"
                z = conv(torch.where(y > 0, y, 0.1 * y), f"{name}.convs1.{k}", dilation)
                y = conv(torch.where(z > 0, z, 0.1 * z), f"{name}.convs2.{k}") + y
            total = total + y
        x = total / 3
    return torch.tanh(conv(torch.where(x > 0, x, 0.01 * x), "conv_post"))[:, 0]


def _modern(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that PyTorch gives since version 2."""
    new = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    return {".".join(new.get(part, part) for part in k.split(".")): v for k, v in state.items()}


@pytest.mark.parametrize("width", [80, 24])
@pytest.mark.parametrize("modern", [False, True])
def test_a_public_checkpoint_gives_the_audio_of_the_official_forward(
    width: int, modern: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechssl.vocoder.hifigan.V1", SMALL)
    monkeypatch.setattr("speechssl.vocoder.hifigan.KNNVC", SMALL_FEATURES)
    state = _public(width)
    torch.save({"generator": _modern(state) if modern else state}, tmp_path / "prematch_g_02500000.pt")
    vocoder = load_vocoder(tmp_path / "prematch_g_02500000.pt")
    frames = _noise(2, 9, width)
    expected = _slow_forward(state, frames)
    with torch.inference_mode():
        found = vocoder(frames)
    assert float(expected.std(dim=1).mean()) > 0.1 and float(expected.abs().mean()) < 0.9  # no whisper, not saturated
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    assert (vocoder.source is None) == (width == 80)
    if vocoder.source is not None:
        assert (vocoder.source.upstream, vocoder.source.layer, vocoder.mel.sample_rate) == ("wavlm_large", 6, 16_000)


def test_parameters_are_as_many_as_published() -> None:
    with torch.device("meta"):
        counts = [sum(p.numel() for p in model.parameters()) for model in (HifiGan(V1), IstftVocoder(IstftConfig()))]
        on_features = sum(p.numel() for p in HifiGan(KNNVC).parameters())
    assert round(counts[0] / 1e6, 2) == 13.93  # 13.92 M in table 1 of the paper
    assert round(counts[1] / 1e6, 1) == 13.5  # as the paper says
    more = 1024 * 512 + 512 + 512 * (512 - 80) * 7 + (20 - 16) * 512 * 256  # linear, first convolution, longer kernel
    assert on_features == counts[0] + more


@pytest.mark.parametrize("config", [SMALL, SMALL_FEATURES, TINY], ids=["mel", "features", "istft"])
def test_frames_stand_for_a_hop_each_and_a_batch_gives_what_each_gives(config: HifiGanConfig | IstftConfig) -> None:
    torch.manual_seed(0)
    vocoder = build_generator(config, name="x").eval()
    width = config.features or config.mel.n_mels
    frames = _noise(3, 11, width)
    with torch.inference_mode():
        together = vocoder(frames)
    assert together.shape == (3, 11 * config.mel.hop)
    for row in range(3):
        torch.testing.assert_close(synthesise(vocoder, frames[row]), together[row], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("n_fft", "hop"), [(1024, 256), (1024, 320), (640, 320), (511, 101)])
def test_the_inverse_of_a_short_time_spectrum_is_the_waveform(n_fft: int, hop: int) -> None:
    waveform = 0.3 * _noise(2, 30 * hop)
    pad = (n_fft - hop) // 2
    padded = F.pad(waveform[:, None], (pad, pad), mode="reflect")[:, 0]
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(padded, n_fft, hop, window=window, center=False, return_complex=True).transpose(1, 2)
    found = inverse_stft(torch.polar(spectrum.abs(), spectrum.angle()), n_fft, hop)
    assert found.shape == waveform.shape
    torch.testing.assert_close(found, waveform, atol=1e-4, rtol=0)


def test_frames_of_the_inverse_stand_where_those_of_the_mel_do() -> None:
    mel = MelConfig(sample_rate=16_000, hop=320)
    click = torch.zeros(1, 20 * mel.hop)
    click[0, 10 * mel.hop + mel.hop // 2] = 0.9
    loudest = int(log_mel(click, mel.sample_rate, mel)[0].mean(dim=1).argmax())
    spectrum = torch.zeros(1, 20, mel.n_fft // 2 + 1, dtype=torch.complex64)
    spectrum[0, loudest] = 1.0 - 2.0 * (torch.arange(mel.n_fft // 2 + 1) % 2)  # a click in the middle of the frame
    found = int(inverse_stft(spectrum, mel.n_fft, mel.hop)[0].abs().argmax())
    assert abs(found - int(click.argmax())) <= 1


@pytest.mark.parametrize("config", [SMALL, SMALL_FEATURES, TINY], ids=["mel", "features", "istft"])
def test_a_folder_holds_all_that_is_needed(config: HifiGanConfig | IstftConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = FeatureSource("hubert_tiny", 4, "abc", prematched=True) if config.features else None
    vocoder = build_generator(config, name="x", source=source).eval()
    save_vocoder(vocoder, tmp_path / "mine", weights="random")
    again = load_vocoder(tmp_path / "mine")
    frames = _noise(1, 7, config.features or config.mel.n_mels)
    assert torch.equal(again(frames), vocoder(frames))
    assert (again.mel, again.source) == (config.mel, source)
    assert "mine" in again.name
    half = load_vocoder(str(tmp_path / "mine"), precision="bf16")
    assert half(frames).dtype == torch.float32
    torch.testing.assert_close(half(frames), again(frames), atol=0.05, rtol=0)


MISTAKES = {
    "rates": (lambda: HifiGanConfig(rates=(8, 8, 2)), "mel.hop = 256"),
    "kernels": (lambda: HifiGanConfig(kernels=(16, 16, 4, 3)), "`kernels`"),
    "channels": (lambda: HifiGanConfig(channels=40), "multiple of 16"),
    "even blocks": (lambda: HifiGanConfig(block_kernels=(3, 8)), "must be odd"),
    "gaps between frames": (lambda: IstftConfig(mel=MelConfig(hop=600)), "twice mel.hop = 600"),
    "even kernel": (lambda: IstftConfig(kernel=4), "must be odd"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_shape_that_cannot_be_is_told(case: str) -> None:
    make, says = MISTAKES[case]
    with pytest.raises(ConfigError, match=says):
        make()


def test_what_is_no_vocoder_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpeechsslError, match="no vocoder folder"):
        load_vocoder(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"format": 1, "family": "hubert"}')
    with pytest.raises(SpeechsslError, match="not of a vocoder"):
        load_vocoder(tmp_path / "other")
    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / "do_00000001")
    with pytest.raises(SpeechsslError, match="no 'generator'"):
        load_vocoder(tmp_path / "do_00000001")
    torch.save({"generator": _public(80)}, tmp_path / "generator_v2")
    with pytest.raises(SpeechsslError, match="must have shape"):
        load_vocoder(tmp_path / "generator_v2")
