"""Vocoders: the mel recipe and the generator against independent implementations, and what comes out."""

import librosa
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrizations

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.vocoder import MelConfig, hifigan, load_vocoder, log_mel, synthesise
from speechssl.vocoder.griffin_lim import GriffinLim
from speechssl.vocoder.hifigan import HifiGan, HifiGanConfig, fold_weight_norm
from speechssl.vocoder.losses import mel_loss

RATE = 22_050


def _vowel(seconds: float = 1.0, pitch: float = 130.0) -> Tensor:
    time = torch.arange(int(seconds * RATE)) / RATE
    tones = [torch.sin(2 * torch.pi * pitch * n * time) / n for n in range(1, 20)]
    return 0.2 * torch.stack(tones).sum(dim=0) * (0.6 + 0.4 * torch.sin(2 * torch.pi * 3 * time))


def test_log_mel_is_that_of_librosa() -> None:
    waveform = _vowel()
    padded = np.pad(waveform.numpy(), 384, mode="reflect")
    power = librosa.stft(padded, n_fft=1024, hop_length=256, center=False)
    filters = librosa.filters.mel(sr=RATE, n_fft=1024, n_mels=80, fmin=0, fmax=8000)
    expected = np.log(np.maximum(filters @ np.sqrt(np.abs(power) ** 2 + 1e-9), 1e-5)).T
    found = log_mel(waveform[None], RATE, MelConfig())[0]
    assert found.shape == expected.shape == (len(waveform) // 256, 80)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-3)


def test_the_mel_loss_is_the_mean_distance_of_log_mel_frames() -> None:
    mel = MelConfig(sample_rate=16_000, n_fft=512, hop=128, n_mels=20, high=8000.0)
    waveforms = 0.1 * torch.randn(2, 2048, generator=torch.Generator().manual_seed(0))
    frames = []
    for row in waveforms.double().numpy():
        padded = np.pad(row, (512 - 128) // 2, mode="reflect")
        power = np.abs(librosa.stft(padded, n_fft=512, hop_length=128, center=False)) ** 2
        filters = librosa.filters.mel(sr=16_000, n_fft=512, n_mels=20, fmin=0, fmax=8000)
        frames.append(np.log(np.maximum(filters @ np.sqrt(power + 1e-9), 1e-5)))
    expected = float(np.abs(frames[0] - frames[1]).mean())
    assert float(mel_loss(waveforms[:1], waveforms[1:], mel)) == pytest.approx(expected, abs=1e-5)


def test_generator_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.SpeechT5HifiGanConfig(
        model_in_dim=80, upsample_initial_channel=64, upsample_rates=[8, 8, 2, 2], upsample_kernel_sizes=[16, 16, 4, 4],
        normalize_before=False,
    )  # fmt: skip
    theirs = transformers.SpeechT5HifiGan(config).eval()
    ours = HifiGan(HifiGanConfig(channels=64)).eval()
    weights = {k.replace("upsampler", "ups"): v for k, v in theirs.state_dict().items()}
    ours.load_state_dict({k: v for k, v in weights.items() if k in ours.state_dict()})
    frames = torch.randn(1, 12, 80, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        # Weights as initialised give a whisper of a signal: compare it at its own scale.
        expected, found = theirs(frames), ours(frames)
    assert found.shape == (1, 12 * 256)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_folding_weight_norm_gives_the_same_convolution() -> None:
    torch.manual_seed(0)
    plain = torch.nn.ConvTranspose1d(6, 4, 4, 2)
    normed = parametrizations.weight_norm(torch.nn.ConvTranspose1d(6, 4, 4, 2))
    state = normed.state_dict()
    stored = {
        "bias": state["bias"],
        "weight_g": state["parametrizations.weight.original0"] * 1.7,
        "weight_v": state["parametrizations.weight.original1"],
    }
    normed.parametrizations.weight.original0.data *= 1.7
    plain.load_state_dict(fold_weight_norm(stored))
    signal = torch.randn(1, 6, 9)
    torch.testing.assert_close(plain(signal), normed(signal), atol=1e-6, rtol=0)


def test_griffin_lim_gives_back_the_mel_and_the_length() -> None:
    vocoder = GriffinLim()
    mel = log_mel(_vowel()[None], RATE, vocoder.mel)[0]
    waveform = synthesise(vocoder, mel)
    again = log_mel(waveform[None], RATE, vocoder.mel)[0]
    loud = mel > -6
    assert waveform.shape == (len(mel) * 256,)
    assert float((again - mel)[loud].abs().mean()) < 0.35
    assert torch.equal(waveform, synthesise(vocoder, mel))


def test_griffin_lim_stands_in_where_hifigan_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise SpeechsslError("can't be fetched")

    monkeypatch.setattr(hifigan, "fetch_package", offline)
    assert load_vocoder("auto").name == "Griffin-Lim"
    with pytest.raises(SpeechsslError, match="can't be fetched"):
        load_vocoder("hifigan")


def test_unknown_vocoder_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'hifigan', 'griffin_lim', 'speechssl_tiny' or 'auto'"):
        load_vocoder("wavenet")


@pytest.mark.network
def test_ready_hifigan_gives_back_a_vowel_with_its_pitch() -> None:
    vocoder = load_vocoder("hifigan")
    mel = log_mel(_vowel()[None], RATE, vocoder.mel)[0]
    waveform = synthesise(vocoder, mel)
    f0 = librosa.yin(waveform.numpy(), fmin=80, fmax=300, sr=RATE)
    assert float(np.median(f0)) == pytest.approx(130.0, rel=0.03)
    again = log_mel(waveform[None], RATE, vocoder.mel)[0]
    assert float((again - mel)[mel > -6].abs().mean()) < 0.5
