"""Conversion of a user's files: kNN-VC against a slow reference, kept voices, long files, and bad ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
import torchaudio
from test_vocoder_networks import SMALL_FEATURES, _public, _slow_forward
from torch import Tensor

from downstreams.voice_conversion.converter import FrameConverter
from downstreams.voice_conversion.encoder import Encoder
from downstreams.voice_conversion.loudness import PEAK
from downstreams.voice_conversion.method import match_pieces
from speechssl.checkpoint import save_upstream
from speechssl.conversion import load_converter
from speechssl.errors import SpeechsslError
from speechssl.jobs import RunOptions
from speechssl.loading import build_upstream, load_upstream
from speechssl.registry import find_preset
from speechssl.runner import run
from speechssl.vocoder import MelConfig
from speechssl.vocoder.chunks import context_frames, synthesise_pieces
from speechssl.vocoder.folder import build_generator
from speechssl.vocoder.griffin_lim import GriffinLim
from speechssl.vocoder.hifigan import HifiGan, HifiGanConfig
from speechssl.vocoder.istft import IstftConfig, IstftVocoder

RATE = 16_000
WIDTH, LAYER = 24, 6


def _speech(path: Path, *, seconds: float = 2.0, pitch: float = 120.0, rate: int = RATE, channels: int = 1) -> Path:
    """Syllables of harmonics whose colour changes, with silence before and behind."""
    time = np.arange(round(seconds * rate)) / rate
    colour = 1.5 + np.sin(2 * np.pi * 1.3 * time)
    tones = sum(np.sin(2 * np.pi * pitch * n * time) * np.exp(-np.abs(n / 4 - colour)) for n in range(1, 20))
    waveform = 0.05 * tones * np.clip(np.sin(2 * np.pi * 2 * time), 0.05, 1.0)
    waveform = waveform + 1e-3 * np.random.default_rng(0).standard_normal(len(time))
    quiet = 1e-4 * np.random.default_rng(1).standard_normal(round(0.6 * rate))
    samples = np.concatenate([quiet, waveform, quiet])
    soundfile.write(
        path, np.stack([samples] * channels, axis=1), rate, subtype="FLOAT" if path.suffix == ".wav" else None
    )
    return path


def _weights() -> dict[str, Tensor]:
    """In the public format; its last convolution is soft, since torchaudio cuts what is loud when it measures."""
    return {k: 0.1 * v if k in ("conv_post.weight_g", "conv_post.bias") else v for k, v in _public(WIDTH).items()}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an upstream like WavLM-Large, a vocoder in the public format, and some speech."""
    folder = tmp_path_factory.mktemp("knn_vc")
    family, config = find_preset("wavlm_tiny")
    shape = replace(
        config, frontend="conv_waveform", conv_channels=16, conv_norm="layer", pre_norm=True, normalize=True,
        width=WIDTH, depth=LAYER + 1, heads=4, ffn_width=48, pos_groups=4,
    )  # fmt: skip
    upstream = build_upstream(family, shape, seed=0)
    upstream.name = "wavlm_tiny"
    save_upstream(upstream, folder / "wavlm")
    other = build_upstream(family, shape, seed=1)
    other.name = "wavlm_tiny"
    save_upstream(other, folder / "other")
    torch.save({"generator": _weights()}, folder / "prematch_g_02500000.pt")
    _speech(folder / "a.wav")
    _speech(folder / "b.wav", pitch=190.0, seconds=3.0)
    _speech(folder / "c.wav", pitch=200.0)
    return folder


@pytest.fixture
def knn_vc(parts: Path, monkeypatch: pytest.MonkeyPatch) -> FrameConverter:
    monkeypatch.setattr("speechssl.vocoder.hifigan.KNNVC", SMALL_FEATURES)
    converter = load_converter(upstream=parts / "wavlm", vocoder=parts / "prematch_g_02500000.pt")
    assert isinstance(converter, FrameConverter)
    return converter


def _trim(waveform: Tensor) -> Tensor:
    vad = torchaudio.transforms.Vad(sample_rate=RATE, trigger_level=7)
    front = vad(waveform[None])
    return vad(front.flip(1)).flip(1)[0]


def _slow_knn_vc(parts: Path, source: str, target: list[str], *, level: float | None, matching: int = LAYER) -> Tensor:
    """As matcher.py of the official code reads: cosine from cdist, the four nearest, their mean, the generator."""
    upstream = load_upstream(parts / "wavlm", normalize=False)

    def frames(name: str, *, trim: bool, layer: int = matching) -> Tensor:
        waveform = torch.from_numpy(soundfile.read(parts / name, dtype="float32")[0])
        with torch.inference_mode():
            return upstream((_trim(waveform) if trim else waveform)[None]).hidden_states[layer][0].double()

    query = frames(source, trim=False)
    pool = torch.cat([frames(name, trim=True) for name in target])
    values = torch.cat([frames(name, trim=True, layer=LAYER) for name in target])
    product = (query.norm(dim=1)[:, None] ** 2 + pool.norm(dim=1)[None] ** 2 - torch.cdist(query, pool) ** 2) / 2
    distance = 1 - product / (query.norm(dim=1)[:, None] * pool.norm(dim=1)[None])
    matched = values[distance.topk(4, dim=1, largest=False).indices].mean(dim=1)
    waveform = _slow_forward(_weights(), matched[None])[0]
    if level is None:
        return waveform
    gain = level - float(torchaudio.functional.loudness(waveform[None].float(), RATE))
    return waveform * 10 ** (gain / 20)


def test_knn_vc_with_public_weights_gives_the_audio_of_the_reference(parts: Path, knn_vc: FrameConverter) -> None:
    voice = knn_vc.voice([parts / "b.wav", parts / "c.wav"])
    assert not knn_vc.encoder.upstream.normalize  # though its checkpoint says so: the vocoder knows no such features
    assert 4.0 < voice.seconds < 6.0  # of 7.4, whose ends are cut off
    for level in (None, -16.0):
        expected = _slow_knn_vc(parts, "a.wav", ["b.wav", "c.wav"], level=level)
        assert 0.02 < float(expected.abs().max()) < PEAK  # beyond it the reference would have no limiter
        found = knn_vc.convert(parts / "a.wav", voice, loudness="vocoder" if level is None else level)
        assert (found.sample_rate, found.path) == (RATE, None)
        torch.testing.assert_close(found.waveform.double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("matching", [2, 7])
def test_nearest_frames_may_be_looked_for_in_another_layer(
    matching: int, parts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("speechssl.vocoder.hifigan.KNNVC", SMALL_FEATURES)
    vocoder = parts / "prematch_g_02500000.pt"
    converter = load_converter(upstream=parts / "wavlm", vocoder=vocoder, match_layer=matching)
    converter.voice(parts / "b.wav").save(tmp_path / "b.voice")
    found = converter.convert(parts / "a.wav", tmp_path / "b.voice", loudness="vocoder").waveform
    expected = _slow_knn_vc(parts, "a.wav", ["b.wav"], level=None, matching=matching)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)
    same = _slow_knn_vc(parts, "a.wav", ["b.wav"], level=None)
    assert float((expected - same).abs().max()) > 1e-3
    with pytest.raises(SpeechsslError, match=r"b\.voice is of layers .* and not layer 6"):
        load_converter(upstream=parts / "wavlm", vocoder=vocoder).voice(tmp_path / "b.voice")


def test_a_kept_voice_gives_the_same_audio_and_only_where_it_fits(
    parts: Path, knn_vc: FrameConverter, tmp_path: Path
) -> None:
    voice = knn_vc.voice(parts / "b.wav")
    voice.save(tmp_path / "b.voice")
    again = knn_vc.voice(tmp_path / "b.voice")
    assert (again.seconds, again.loudness, again.source) == (voice.seconds, voice.loudness, voice.source)
    one, two = (knn_vc.convert(parts / "a.wav", v).waveform for v in (voice, tmp_path / "b.voice"))
    assert torch.equal(one, two)
    other = load_converter(upstream=parts / "other", vocoder=parts / "prematch_g_02500000.pt")
    with pytest.raises(SpeechsslError, match=r"b\.voice is of the upstream .*wavlm.* and not .*other"):
        other.voice(tmp_path / "b.voice")
    replace(voice, source=replace(voice.source, layers=(3,))).save(tmp_path / "three.voice")
    with pytest.raises(SpeechsslError, match=r"of layer 3 of .* and not layer 6"):
        knn_vc.convert(parts / "a.wav", tmp_path / "three.voice")
    (tmp_path / "text.voice").write_text("no voice")
    with pytest.raises(SpeechsslError, match="no voice that speechssl saved"):
        knn_vc.voice(tmp_path / "text.voice")


VOCODERS = {
    "hifigan": HifiGanConfig(
        MelConfig(RATE, hop=160), features=240, projection=32, channels=64, rates=(5, 4, 4, 2), kernels=(11, 8, 8, 4)
    ),
    "istft": IstftConfig(MelConfig(RATE, hop=160, n_fft=512), features=240, width=32, inner=48, blocks=3),
}


def _lively(network: HifiGan | IstftVocoder) -> HifiGan | IstftVocoder:
    """With weights large enough that what is far away would be heard."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        fan = max(parameter[0].numel() if parameter.dim() > 1 else 100, 1)
        parameter.data = torch.randn(parameter.shape, generator=generator) / fan**0.5
    return network.eval()


@pytest.mark.parametrize("kind", VOCODERS)
def test_long_input_in_chunks_is_the_whole_without_joins(kind: str, tmp_path: Path) -> None:
    upstream = load_upstream("fbank_no_cmvn")  # no frame sees beyond its window, so that chunks are exact
    vocoder = _lively(build_generator(VOCODERS[kind], name=kind))
    _speech(tmp_path / "long.wav", seconds=7.0, rate=44_100, channels=2)
    _speech(tmp_path / "b.wav", pitch=190.0)

    def convert(chunk: float | None) -> Tensor:
        encoder = Encoder(upstream, [0], chunk=chunk, precision="float32")
        converter = FrameConverter(encoder, lambda s, v: match_pieces(s, v, k=4), vocoder, trim=False)
        return converter.convert(tmp_path / "long.wav", tmp_path / "b.wav", loudness="source").waveform

    whole, joined = convert(None), convert(1.0)
    assert float(whole.std()) > 0.01 and len(whole) / RATE == pytest.approx(8.2, abs=0.05)
    torch.testing.assert_close(joined, whole, atol=1e-4, rtol=0)
    phases = [np.unwrap(np.angle(scipy.signal.hilbert(w.numpy()))) for w in (whole, joined)]
    for join in range(RATE, len(whole) - 400, RATE):
        for side in (slice(join - 80, join), slice(join, join + 80)):  # 5 ms
            levels = [float(w[side].square().mean().clamp(min=1e-12).log10()) * 10 for w in (whole, joined)]
            assert levels[0] == pytest.approx(levels[1], abs=0.05)  # dB
        steps = [phase[join] - phase[join - 1] for phase in phases]
        if float(whole[join - 1 : join + 1].abs().min()) > 0.01:
            assert steps[0] == pytest.approx(steps[1], abs=0.05)


@pytest.mark.parametrize("kind", [*VOCODERS, "griffin_lim"])
def test_a_window_sees_just_what_its_samples_depend_on(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    if kind == "griffin_lim":
        vocoder, width = GriffinLim(iterations=6), 80
        frames = torch.rand(300, width) - 4.0
    else:
        vocoder, width = _lively(build_generator(VOCODERS[kind], name=kind)), 240
        frames = torch.randn(300, width)
    context = context_frames(vocoder)
    assert context is not None and context < 60
    window = 20 / vocoder.mel.frame_rate
    whole = torch.cat(list(synthesise_pieces(vocoder, [frames], window=None)))
    joined = torch.cat(list(synthesise_pieces(vocoder, frames.split(13), window=window)))
    torch.testing.assert_close(joined, whole, atol=2e-5, rtol=0)
    monkeypatch.setattr("speechssl.vocoder.chunks.context_frames", lambda _: context // 4)
    joined = torch.cat(list(synthesise_pieces(vocoder, frames.split(13), window=window)))
    assert float((joined - whole).abs().max()) > 1e-4


def test_trimming_is_that_of_the_reference_and_can_be_left_out(parts: Path, knn_vc: FrameConverter) -> None:
    waveform = torch.from_numpy(soundfile.read(parts / "b.wav", dtype="float32")[0])
    knn_vc.trim = True
    assert knn_vc.voice(parts / "b.wav").seconds == len(_trim(waveform)) / RATE
    knn_vc.trim = False
    assert knn_vc.voice(parts / "b.wav").seconds == len(waveform) / RATE


def test_a_run_gives_a_public_vocoder_features_of_waveforms_as_they_are(
    parts: Path, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechssl.vocoder.hifigan.KNNVC", SMALL_FEATURES)
    settings = (
        f"vocoder={parts / 'prematch_g_02500000.pt'}", "matching=raw", f"features.layers=[{LAYER}]", "train.steps=0",
        "language=aa", "source_seconds=[0.8,3.0]", "targets=2", "reference_seconds=3", "profile_utterances=2",
        "dev_pairs=2", "test_pairs=2", "judges=none",
    )  # fmt: skip

    def measure(upstream: str, *more: str) -> None:
        options = RunOptions(str(tmp_path / "cache"))
        run(
            "voice_conversion", upstream=upstream, corpus=tiny_corpus, out=tmp_path, overrides=[*settings, *more],
            options=options,
        )  # fmt: skip

    with pytest.raises(SpeechsslError, match=r"normalises its input, which the vocoder .* name it '.*wavlm:raw'"):
        measure(str(parts / "wavlm"))
    measure(f"{parts / 'wavlm'}:raw")
    made = load_converter(tmp_path / "voice_conversion" / "wavlm_raw" / "seed0", trim=True)
    alone = load_converter(upstream=parts / "wavlm", vocoder=parts / "prematch_g_02500000.pt")
    found, expected = (c.convert(parts / "a.wav", parts / "b.wav").waveform for c in (made, alone))
    assert torch.equal(found, expected)
    measure(f"two={parts / 'wavlm'}:raw", f"features.layers=[{LAYER},3]", "features.interface=concat")
    made = load_converter(tmp_path / "voice_conversion" / "two" / "seed0", trim=True)
    alone = load_converter(upstream=parts / "wavlm", vocoder=parts / "prematch_g_02500000.pt", match_layer=3)
    found, other = (c.convert(parts / "a.wav", parts / "b.wav").waveform for c in (made, alone))
    torch.testing.assert_close(found, other, atol=1e-5, rtol=0)
    assert float((found - expected).abs().max()) > 1e-3
