"""A vocoder that comes with the package, in a folder beside the upstream whose features it reads."""

from pathlib import Path

import pytest
import torch
from command_line import run, the_sentence
from test_shipped import NAME, small
from test_voice_conversion_converter import _speech

import speechssl
import speechssl.loading
import speechssl.registry
from speechssl.checkpoint import CONFIG_FILE, read_json, save_upstream
from speechssl.registry import list_upstreams, shipped_vocoders
from speechssl.vocoder import FeatureSource, MelConfig, load_vocoder
from speechssl.vocoder.folder import read_vocoder, save_vocoder
from speechssl.vocoder.istft import IstftConfig, IstftVocoder

LAYER = 1


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shipped upstream, a vocoder of full precision on one of its layers, which is returned, and speech."""
    save_upstream(small(seed=3).half(), tmp_path / "upstreams" / NAME)
    for module in (speechssl.loading, speechssl.registry):
        monkeypatch.setattr(module, "list_shipped", lambda: {NAME: tmp_path / "upstreams" / NAME})
    upstream = speechssl.load_upstream(NAME)
    shape = IstftConfig(MelConfig(16_000, hop=320), features=32, width=16, inner=24, blocks=2)
    source = FeatureSource(NAME, LAYER, upstream.fingerprint(), prematched=True)
    torch.manual_seed(0)
    save_vocoder(IstftVocoder(shape, source=source), tmp_path / "trained", weights="trained on demo, 3 of 3 steps")
    for name, pitch in (("a.wav", 120.0), ("b.wav", 190.0), ("c.wav", 200.0)):
        _speech(tmp_path / name, pitch=pitch)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "trained"


def _ship(trained: Path) -> Path:
    """As the card of a shipped upstream says it is done."""
    folder = trained.parent / "upstreams" / NAME / "vocoder"
    assert run("export", str(trained), "--half", "-o", str(folder)) == 0
    return folder


def test_a_vocoder_is_exported_in_half_the_space_and_loads_in_full_precision(trained: Path) -> None:
    folder = _ship(trained)
    sizes = [(path / "model.safetensors").stat().st_size for path in (trained, folder)]
    assert sizes[1] < 0.6 * sizes[0]
    assert read_json(folder / CONFIG_FILE) == read_json(trained / CONFIG_FILE)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, "model.safetensors"]
    whole, shipped = read_vocoder(trained), load_vocoder(NAME)
    assert shipped.name == f"istft ({NAME})" and shipped_vocoders() == {NAME: folder}
    assert list_upstreams().count(NAME) == 1  # the vocoder is no upstream of its own
    assert isinstance(shipped, IstftVocoder) and shipped.source == whole.source
    for name, weight in whole.named_parameters():
        assert shipped.get_parameter(name).dtype == torch.float32
        torch.testing.assert_close(shipped.get_parameter(name), weight, atol=1e-6, rtol=2**-11)


def test_a_vocoder_has_one_format(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = the_sentence(capsys, "export", str(trained), "--to", "onnx", "-o", "out")
    assert "holds a vocoder, which has one format" in said and not Path("out").exists()


def test_without_run_and_vocoder_what_comes_with_the_package_converts(
    trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _ship(trained)
    caplog.set_level("INFO")
    files = ["--source", "a.wav", "--voice", "b.wav", "c.wav"]
    assert run("infer", "voice_conversion", *files, "--out", "d.wav") == 0
    said = [record.getMessage() for record in caplog.records if NAME in record.getMessage()]
    assert said == [f"The upstream and vocoder '{NAME}' convert, small ones that come with the package."]
    named = ["--upstream", NAME, "--layer", str(LAYER), "--vocoder", NAME]
    assert run("infer", "voice_conversion", *named, *files, "--out", "e.wav") == 0
    assert Path("d.wav").read_bytes() == Path("e.wav").read_bytes()
    converter = speechssl.load_converter()
    converter.convert("a.wav", converter.voice(["b.wav", "c.wav"]), out="f.wav")
    assert Path("d.wav").read_bytes() == Path("f.wav").read_bytes()


def test_a_shipped_vocoder_is_not_given_features_of_another_upstream(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _ship(trained)
    files = ["--source", "a.wav", "--voice", "b.wav", "--out", "d.wav"]
    said = the_sentence(capsys, "infer", "voice_conversion", "--upstream", "mfcc", *files)
    assert "Say what converts" in said and "reads features of 'mfcc'" in said
    save_upstream(small(seed=4), trained.parent / "upstreams" / NAME)  # other weights than those it was trained on
    assert "was trained on another upstream" in the_sentence(capsys, "infer", "voice_conversion", *files)
    assert not Path("d.wav").exists()


def test_the_vocoder_of_speechssl_tiny_reads_its_features_and_comes_with_its_card() -> None:
    folder = shipped_vocoders()["speechssl_tiny"]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 20e6
    card = (folder / "README.md").read_text()
    for part in ("## Data", "## Licence", "## Cost", "## Scores", "recipes/vocoder/istft_speechssl_tiny"):
        assert part in card
    vocoder, upstream = load_vocoder("speechssl_tiny"), speechssl.load_upstream("speechssl_tiny")
    assert isinstance(vocoder, IstftVocoder) and vocoder.source is not None
    assert (vocoder.source.upstream, vocoder.source.fingerprint) == ("speechssl_tiny", upstream.fingerprint())
    assert {parameter.dtype for parameter in vocoder.parameters()} == {torch.float32}
