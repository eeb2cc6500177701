"""BYOL-A against a plain stack of torch's own layers and torchaudio's and librosa's spectrograms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import librosa
import pytest
import torch
import torchaudio
from torch import Tensor, nn

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.frontend.centred_mel import CentredMel, CentredMelConfig
from speechssl.loading import load_upstream
from upstreams.byol_a.config import PRESETS
from upstreams.byol_a.model import ByolAUpstream, build

CHANNELS, HIDDEN, WIDTH = 6, 20, 24


class Plain(nn.Module):
    """The network of the paper as torch's layers in a row, for one utterance at a time, with the names of the files."""

    def __init__(self, convolutions: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in [1] + [CHANNELS] * (convolutions - 1):
            layers += [nn.Conv2d(inputs, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS), nn.ReLU(), nn.MaxPool2d(2)]
        features = CHANNELS * 64 // 2**convolutions
        self.convolutions = convolutions
        self.features = nn.Sequential(*layers)
        self.fc = nn.Sequential(
            nn.Linear(features, HIDDEN), nn.ReLU(), nn.Dropout(0.3), nn.Linear(HIDDEN, WIDTH), nn.ReLU()
        )

    def states(self, spectrum: Tensor) -> list[Tensor]:
        """(M, T) scaled log-mel energies -> [(T', ...)] of one utterance."""
        maps = self.features(spectrum[None, None])[0]  # (C, M', T')
        frames = torch.stack([maps[:, :, t].T.reshape(-1) for t in range(maps.size(2))])
        hidden, out = self.fc[:2](frames), self.fc(frames)
        return [frames, hidden, torch.cat([frames, out], dim=1) if self.convolutions == 2 else out]


def plain(convolutions: int) -> Plain:
    with torch.random.fork_rng():
        torch.manual_seed(convolutions)
        model = Plain(convolutions).eval()
        for layer in model.features:
            if isinstance(layer, nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                for tensor in (layer.weight, layer.bias, layer.running_mean):
                    nn.init.normal_(tensor, mean=0.3, std=0.3)
                nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return model


def spectrum(convolutions: int, waveform: Tensor) -> Tensor:
    """(S,) -> (64, T), scaled as the authors' README does."""
    if convolutions == 3:
        mel = torchaudio.transforms.MelSpectrogram(
            16_000, n_fft=1024, win_length=1024, hop_length=160, n_mels=64, f_min=60, f_max=7800
        )(waveform)
        mean, deviation = -5.4919195, 5.0389895
    else:
        mel = torch.from_numpy(
            librosa.feature.melspectrogram(
                y=waveform.numpy(), sr=16_000, n_fft=1024, hop_length=160, n_mels=64, fmin=60, fmax=7800,
                center=True, pad_mode="reflect",
            )
        )  # fmt: skip
        mean, deviation = -9.660292, 4.7219563
    scaled: Tensor = ((mel + torch.finfo(torch.float32).eps).log() - mean) / deviation
    return scaled


@pytest.fixture(scope="module")
def waveform() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    level = torch.tensor([[0.1], [0.02]])
    return level * torch.randn(2, 12_345, generator=generator) * torch.linspace(0.1, 1.0, 12_345) + 0.01


FORMS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}, "epoch": 3},
    "model": lambda state: {"model": {f"body.{k}": v for k, v in state.items()}},
    "half": lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
}


@pytest.mark.parity("weights ({form})", "torch's layers on torchaudio and librosa")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("convolutions", [3, 2], ids=["first", "second version"])
def test_hidden_states_equal_the_plain_network(convolutions: int, form: str, waveform: Tensor, tmp_path: Path) -> None:
    model = plain(convolutions)
    if form == "half":
        model.load_state_dict({k: v.half().to(v.dtype) for k, v in model.state_dict().items()})
    torch.save(FORMS[form](model.state_dict()), tmp_path / "weights.pth")
    upstream = load_upstream(tmp_path / "weights.pth")
    assert (upstream.family, upstream.frame_rate) == ("byol_a", 100 / 2**convolutions)
    with torch.no_grad():
        expected = model.states(spectrum(convolutions, waveform[0]))
        out = upstream(waveform[:1])
    assert int(out.lengths) == (12_345 // 160 + 1) // 2**convolutions
    for ours, theirs in zip(out.hidden_states, expected, strict=True):
        torch.testing.assert_close(ours[0], theirs, rtol=0, atol=1e-4)


@pytest.mark.parity("weights (plain)", "torch's layers on torchaudio and librosa")
@pytest.mark.parametrize("convolutions", [3, 2], ids=["first", "second version"])
def test_padded_utterances_and_scenes_equal_the_plain_network_one_by_one(
    convolutions: int, waveform: Tensor, tmp_path: Path
) -> None:
    model = plain(convolutions)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    upstream = load_upstream(tmp_path / "weights.pth")
    assert isinstance(upstream, ByolAUpstream)
    lengths = torch.tensor([12_345, 4_700])
    with torch.no_grad():
        out = upstream(waveform, lengths)
        scenes = upstream.scene_embeddings(waveform, lengths)
        for row, length in enumerate(lengths.tolist()):
            expected = model.states(spectrum(convolutions, waveform[row, :length]))
            for ours, theirs in zip(out.hidden_states, expected, strict=True):
                torch.testing.assert_close(ours[row, : int(out.lengths[row])], theirs, rtol=0, atol=1e-4)
            last = expected[-1]
            torch.testing.assert_close(scenes[row], last.mean(dim=0) + last.amax(dim=0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_energies_equal_torchaudio_for_each_utterance_of_a_batch(scale: Any, waveform: Tensor) -> None:
    theirs = torchaudio.transforms.MelSpectrogram(
        16_000, n_fft=512, hop_length=100, n_mels=20, f_min=60, f_max=7800, mel_scale=scale,
        norm="slaney" if scale == "slaney" else None,
    )  # fmt: skip
    ours = CentredMel(CentredMelConfig(num_mel_bins=20, window=512, hop=100, scale=scale))
    lengths = torch.tensor([12_345, 257])
    energies = ours(waveform, lengths)
    assert ours.output_lengths(torch.tensor([256, 257, 300])).tolist() == [0, 3, 4]
    for row, frames in enumerate(ours.output_lengths(lengths).tolist()):
        alone = theirs(waveform[row, : lengths[row]]).T
        assert alone.shape == energies[row, :frames].shape
        torch.testing.assert_close(energies[row, :frames], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "count"),
    [("byol_a_512", 600_192), ("byol_a_1024", 1_649_792), ("byol_a_2048", 5_321_856), ("byol_a_v2", 6_333_376)],
)
def test_presets_have_the_published_shapes(name: str, count: int) -> None:
    with torch.device("meta"):
        upstream = build(PRESETS[name])
    assert sum(p.numel() for p in upstream.parameters()) == count
    assert upstream.hidden_sizes[-1] == {"byol_a_v2": 3072}.get(name, PRESETS[name].width)


def test_training_does_not_change_the_statistics() -> None:
    upstream = build(PRESETS["byol_a_512"]).train()
    before = {k: v.clone() for k, v in upstream.named_buffers()}
    upstream(torch.ones(1, 2_000))
    assert before
    assert all(torch.equal(value, before[name]) for name, value in upstream.named_buffers())


def test_what_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    state = plain(3).state_dict()
    path = tmp_path / "weights.pth"
    torch.save({**{f"a.{k}": v for k, v in state.items()}, **{f"b.{k}": v for k, v in state.items()}}, path)
    with pytest.raises(SpeechsslError, match=r"several BYOL-A models \(a\., b\.\)"):
        load_upstream(path)
    torch.save(
        {k: v for k, v in state.items() if not k.startswith(("features.4", "features.5", "features.8", "features.9"))},
        path,
    )
    with pytest.raises(ConfigError, match="has 1 convolutions, but BYOL-A has 3 or 2"):
        load_upstream(path)
    torch.save({k: v for k, v in state.items() if k != "features.5.running_var"}, path)
    with pytest.raises(SpeechsslError, match=r"lack 'features\.5\.running_var'"):
        load_upstream(path)
    torch.save({k: v for k, v in state.items() if k != "fc.3.bias"}, path)
    with pytest.raises(SpeechsslError, match=r"lack 'fc\.3\.bias'"):
        load_upstream(path)
    torch.save({k: v for k, v in state.items() if not k.startswith("fc.")}, path)
    with pytest.raises(SpeechsslError, match="no checkpoint of a known family"):
        load_upstream(path)
