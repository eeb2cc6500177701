"""Long audio in chunks: the frames of the whole file, exactly where no frame sees beyond the context."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

import speechssl.extraction
import speechssl.long_audio
from speechssl.audio import read_audio
from speechssl.errors import AudioError, ConfigError
from speechssl.extraction import extract
from speechssl.loading import build_upstream, load_upstream
from speechssl.long_audio import Audio, count_frames, extract_long, plan_windows
from speechssl.moments import Moments
from speechssl.registry import find_preset
from speechssl.types import HiddenStates, Utterance
from speechssl.upstream import Upstream

REACH = 6
"""Frames that the second layer of `Local` sees on each side."""


class Local(Upstream):
    """Two layers of bounded context: products of 25 ms every 10 ms, and a smoothing of them over 13 frames."""

    def __init__(self, *, normalize: bool = False) -> None:
        super().__init__(sample_rate=16_000, frame_rate=100.0, hidden_sizes=(5, 5), normalize=normalize)
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("first", torch.randn(400, 5, generator=generator) / 20)
        self.name = "local"
        self.seen: list[tuple[int, frozenset[int]]] = []

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return (torch.div(lengths - 400, 160, rounding_mode="floor") + 1).clamp(min=0)

    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        self.seen.append((waveform.size(1), layers))
        states = {0: waveform.unfold(1, 400, 160) @ self.first}
        padded = torch.nn.functional.pad(states[0].square().transpose(1, 2), (REACH, REACH))
        states[1] = padded.unfold(2, 2 * REACH + 1, 1).mean(dim=3).transpose(1, 2)
        return {k: states[k] for k in layers}

    def fingerprint_config(self) -> str:
        return "local"


@pytest.fixture(scope="module")
def long_files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Rate -> a file of 13 s with an offset and a level that rises, at 44.1 kHz in stereo."""
    folder, rng, files = tmp_path_factory.mktemp("long"), np.random.default_rng(0), {}
    for rate, channels in ((16_000, 1), (44_100, 2), (8_000, 1)):
        samples = 13 * rate + 137
        noise = 0.2 * rng.standard_normal((samples, channels)) * np.linspace(0.1, 1.0, samples)[:, None]
        files[rate] = folder / f"{rate}.wav"
        soundfile.write(files[rate], 0.03 + noise, rate, subtype="FLOAT")
    return files


def join(pieces: Iterator[HiddenStates]) -> dict[int, Tensor]:
    held = list(pieces)
    assert len(held) > 1
    return {k: torch.cat([piece[k] for piece in held]) for k in held[0].layers}


def whole(upstream: Upstream, utterance: Utterance) -> HiddenStates:
    waveform = read_audio(
        utterance.path, sample_rate=upstream.sample_rate, start=utterance.start, duration=utterance.duration
    )
    with torch.inference_mode():
        states = upstream.eval()(waveform[None]).hidden_states
    return HiddenStates({k: states[k][0] for k in states.layers}, len(upstream.hidden_sizes))


@pytest.mark.parametrize("rate", [16_000, 44_100, 8_000])
@pytest.mark.parametrize(("chunk", "context"), [(3.0, 0.06), (0.5, 1.0), (5.0, 2.0), (12.99, 0.1)])
@pytest.mark.parametrize("normalize", [False, True])
def test_chunks_join_to_the_whole_where_context_is_bounded(
    long_files: dict[int, Path], rate: int, chunk: float, context: float, normalize: bool
) -> None:
    upstream, utterance = Local(normalize=normalize), Utterance("x", str(long_files[rate]))
    exact = whole(upstream, utterance)
    found = join(extract_long(upstream, utterance, chunk=chunk, context=context))
    for layer in (0, 1):
        assert found[layer].shape == exact[layer].shape
        torch.testing.assert_close(found[layer], exact[layer], atol=1e-5, rtol=0)


def test_too_little_context_shows(long_files: dict[int, Path]) -> None:
    upstream, utterance = Local(), Utterance("x", str(long_files[16_000]))
    exact, found = whole(upstream, utterance), join(extract_long(upstream, utterance, chunk=3.0, context=0.0))
    assert torch.equal(found[0], exact[0])
    wrong = (found[1] - exact[1]).abs().amax(dim=1) > 1e-5
    near = torch.zeros_like(wrong)
    for boundary in range(296, len(near), 296):  # 3 s are 300 frames, taken down to a multiple of 8
        near[boundary - REACH : boundary + REACH] = True
    assert wrong.any() and not (wrong & ~near).any()


@pytest.mark.parametrize("name", ["fbank_no_cmvn", "fbank", "mfcc"])
def test_spectral_baselines_are_exact_with_the_statistics_of_the_whole_file(
    long_files: dict[int, Path], name: str
) -> None:
    upstream, utterance = load_upstream(name), Utterance("x", str(long_files[16_000]))
    exact = whole(upstream, utterance)
    found = join(extract_long(upstream, utterance, chunk=2.0, context=0.5))
    assert found[0].shape == exact[0].shape
    torch.testing.assert_close(found[0], exact[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_group_norm_of_the_convolutions_is_that_of_the_whole_file(
    long_files: dict[int, Path], normalize: bool, bias: bool
) -> None:
    family, base = find_preset("wav2vec2_base")
    small = replace(
        base, width=64, ffn_width=96, heads=4, depth=1, conv_channels=32, normalize=normalize, conv_bias=bias
    )
    upstream = build_upstream(family, small, seed=0)
    upstream.name = "small"
    with torch.no_grad():
        for index, parameter in enumerate(p for p in upstream.parameters() if p.dim() == 1):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    utterance = Utterance("x", str(long_files[16_000]))
    exact = whole(upstream, utterance)
    found = join(extract_long(upstream, utterance, chunk=3.0, context=1.5))  # the positions see 1.28 s on each side
    assert found[1].shape == exact[1].shape
    torch.testing.assert_close(found[0], exact[0], atol=1e-5, rtol=1e-5)
    modules = [m for m in upstream.modules() if hasattr(m, "known_norm")]
    assert len(modules) == 1 and modules[0].known_norm is None and upstream.normalize is normalize


def test_stacked_log_mel_frames_are_normalised_over_the_whole_file(long_files: dict[int, Path]) -> None:
    upstream, utterance = load_upstream("hubert_tiny", random_weights=0), Utterance("x", str(long_files[16_000]))
    exact = whole(upstream, utterance)
    found = join(extract_long(upstream, utterance, chunk=3.0, context=2.0))
    torch.testing.assert_close(found[0], exact[0], atol=2e-5, rtol=0)
    nearer = join(extract_long(upstream, utterance, chunk=3.0, context=13.0))
    assert (nearer[6] - exact[6]).norm() < 1e-4 * exact[6].norm() < (found[6] - exact[6]).norm()


@pytest.mark.parametrize("name", ["fbank", "wav2vec2_base"])
def test_windows_cover_every_frame_once_whatever_the_length(name: str) -> None:
    family, config = find_preset(name)
    with torch.device("meta"):
        upstream = build_upstream(family, config, seed=0)
    upstream.name = name
    hop = round(upstream.sample_rate / upstream.frame_rate)
    for samples in [*range(160_000, 160_000 + 2 * hop, 7), 3 * 3600 * upstream.sample_rate + 1]:
        windows = plan_windows(upstream, samples, chunk=4.0, context=1.1)
        frames = [t for w in windows for t in range(w.first, w.last)]
        assert frames == list(range(int(upstream.output_lengths(torch.tensor([samples])))))
        assert all(w.start == (w.first - w.skipped) * hop and w.stop <= samples for w in windows)


def test_a_stretch_of_a_long_file_is_that_stretch(long_files: dict[int, Path]) -> None:
    for rate, path in long_files.items():
        upstream, utterance = Local(normalize=True), Utterance("x", str(path), 1.2345, 9.87)
        exact = whole(upstream, utterance)
        found = join(extract_long(upstream, utterance, chunk=2.0, context=0.5))
        assert count_frames(upstream, utterance) == exact[0].size(0) == found[0].size(0), rate
        torch.testing.assert_close(found[1], exact[1], atol=1e-5, rtol=0)


def test_resampled_stretches_equal_the_resampled_file(long_files: dict[int, Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for rate in (44_100, 8_000, 11_025, 48_000, 22_050):
        path = tmp_path / f"{rate}.wav"
        soundfile.write(path, rng.uniform(-1, 1, 3 * rate + 11), rate, subtype="FLOAT")
        exact = read_audio(path, sample_rate=16_000)
        audio = Audio(Utterance("x", str(path)), 16_000)
        assert audio.samples == exact.numel()
        for start, stop in ((0, 100), (16_001, 30_333), (40_000, audio.samples)):
            torch.testing.assert_close(audio.read(start, stop), exact[start:stop], atol=1e-6, rtol=0)


def test_no_window_is_longer_than_chunk_and_context_and_only_the_layers_asked_for_are_computed(
    long_files: dict[int, Path],
) -> None:
    upstream = Local()
    found = join(extract_long(upstream, Utterance("x", str(long_files[16_000])), chunk=1.0, context=0.5, layers=[-1]))
    assert set(found) == {1} and found[1].dtype == torch.float32
    assert max(samples for samples, _ in upstream.seen) <= 16_000 * (1.0 + 2 * 0.56) + 400
    assert {layers for _, layers in upstream.seen} == {frozenset({1})}


def test_extract_takes_chunks_for_what_is_longer_and_the_ordinary_path_for_the_rest(
    long_files: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "short.wav", np.random.default_rng(0).uniform(-0.3, 0.3, 16_000), 16_000)
    items = [tmp_path / "short.wav", long_files[16_000], long_files[8_000]]
    chunked: list[str] = []

    def watched(upstream: Upstream, utterance: Utterance, **settings: object) -> Iterator[HiddenStates]:
        chunked.append(utterance.id)
        return extract_long(upstream, utterance, **settings)

    monkeypatch.setattr(speechssl.extraction, "extract_long", watched)
    upstream = Local()
    exact = {u.id: f for u, f in extract(upstream, items)}
    for in_order in (True, False):
        chunked.clear()
        found = {u.id: f for u, f in extract(upstream, items, chunk=3.0, context=0.5, in_order=in_order)}
        assert sorted(chunked) == ["16000", "8000"] and set(found) == {"short", "16000", "8000"}
        assert list(found) == ["short", "16000", "8000"] or not in_order
        for name in found:
            torch.testing.assert_close(found[name][1], exact[name][1], atol=1e-5, rtol=0)
        assert torch.equal(found["short"][1], exact["short"][1])


def test_an_upstream_stays_as_it_was_when_the_pieces_are_left_early(long_files: dict[int, Path]) -> None:
    upstream = load_upstream("fbank")
    upstream.train()
    pieces = extract_long(upstream, Utterance("x", str(long_files[16_000])), chunk=1.0, context=0.5)
    next(pieces)
    assert upstream.cmvn  # also between the pieces, where the caller may use it
    pieces.close()
    assert upstream.training and upstream.cmvn and not upstream.normalize


class Uneven(Local):
    """Its frames don't lie on a grid: there is one more wherever there is much to see."""

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return lengths // 160 + (lengths > 100_000)


def test_frames_off_a_grid_of_samples_are_refused() -> None:
    fractional = Local()
    fractional.frame_rate = 30.0
    for upstream in (fractional, Uneven()):
        with pytest.raises(ConfigError, match="can't be extracted in chunks"):
            plan_windows(upstream, 160_001, chunk=1.0, context=0.0)


@pytest.mark.parametrize(("chunk", "context"), [(0.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (0.07, 1.0)])
def test_settings_that_are_not_possible_are_refused(chunk: float, context: float) -> None:
    with pytest.raises(ConfigError, match="`chunk` must be"):
        plan_windows(Local(), 160_000, chunk=chunk, context=context)


def test_a_format_that_can_only_be_decoded_as_a_whole_is_refused(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 64_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(AudioError, match="can only be decoded as a whole"):
        next(extract_long(Local(), Utterance("a", str(path)), chunk=1.0))


def test_moments_gathered_in_parts_are_those_of_the_whole() -> None:
    rows = 5 + torch.randn(1000, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(dim=1)
    moments = Moments()
    for part in rows.split([1, 0, 300, 699]):
        moments.add(part)
    torch.testing.assert_close(moments.mean, rows.mean(dim=0), atol=1e-12, rtol=0)
    torch.testing.assert_close(moments.covariance(), torch.cov(rows.T, correction=0), atol=1e-10, rtol=0)
    torch.testing.assert_close(moments.variance(correction=1), rows.var(dim=0), atol=1e-10, rtol=0)
