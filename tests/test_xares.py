"""The X-ARES encoder against the benchmark's own checker where it is installed, and against what it states anyway."""

import importlib
from pathlib import Path

import pytest
import torch

from speechssl.checkpoint import save_upstream
from speechssl.loading import build_upstream, load_upstream
from speechssl.serving import xares
from upstreams.hubert.config import HubertConfig

CONFIG = HubertConfig(conv_channels=32, width=64, depth=3, heads=4, ffn_width=96)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("xares") / "upstream"
    save_upstream(build_upstream("hubert", CONFIG, seed=0), path)
    return path


@pytest.mark.parametrize("reference", ["", "#layers=2", "mfcc"])
def test_the_benchmarks_own_checker_agrees(reference: str, folder: Path) -> None:
    checker = pytest.importorskip("xares.audio_encoder_checker")
    name = reference if reference == "mfcc" else f"{folder}{reference}"
    assert checker.check_audio_encoder(xares.UpstreamEncoder(name))


def test_the_encoder_has_what_the_benchmark_states(folder: Path) -> None:
    encoder = xares.UpstreamEncoder(f"{folder}#layers=2")
    assert isinstance(encoder, torch.nn.Module) and type(encoder).__name__.endswith("Encoder")
    assert encoder.sampling_rate == 16_000 and encoder.output_dim == 64
    audio = torch.randn(2, 50_000, generator=torch.Generator().manual_seed(0))
    encoded = encoder(audio)
    assert encoded.shape == (2, 156, 64) and encoded.dtype == torch.float32 and not encoded.requires_grad
    # Frames are spaced by the hop: all but the window's overhang of the 3125 ms is covered.
    assert encoded.size(1) == int((3_125.0 - 25.0) / encoder.hop_size_in_ms) + 1
    with torch.no_grad():
        assert torch.equal(encoded, load_upstream(folder)(audio).hidden_states[2])


def test_one_waveform_alone_is_a_batch_of_one(folder: Path) -> None:
    encoder = xares.UpstreamEncoder(str(folder))
    audio = torch.randn(9_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encoder(audio), encoder(audio[None, :]))


def test_a_file_as_the_benchmark_takes_it_holds_one_encoder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ("from speechssl.serving import xares", "class TinyEncoder(xares.UpstreamEncoder):")
    (tmp_path / "tiny_encoder.py").write_text(
        f"{lines[0]}\n\n\n{lines[1]}\n    def __init__(self):\n        super().__init__({str(folder)!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("tiny_encoder")
    (name,) = [name for name in dir(module) if name.endswith("Encoder")]
    assert getattr(module, name)().output_dim == 64


def test_nothing_is_trained_by_the_benchmark(folder: Path) -> None:
    encoder = xares.UpstreamEncoder(str(folder))
    assert not encoder.training
    assert not [p for p in encoder.parameters() if p.requires_grad]
