"""`speechssl infer voice_conversion`: any recording in, tagged and never clipped files out, and one sentence else."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from command_line import run, the_sentence
from test_voice_conversion_converter import _speech

import speechssl
from downstreams.voice_conversion.config import PRESETS, HeadConfig
from downstreams.voice_conversion.loudness import PEAK, loudness
from downstreams.voice_conversion.output import COMMENT, read_tags, write_speech
from speechssl.audio import read_audio
from speechssl.commands.infer import spread
from speechssl.conversion import load_converter
from speechssl.data.corpus import open_corpus
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.featurizer.config import FeatureConfig
from speechssl.jobs import RunOptions
from speechssl.loading import load_upstream
from speechssl.vocoder import MelConfig
from speechssl.vocoder.folder import save_vocoder
from speechssl.vocoder.inputs import FeatureSource
from speechssl.vocoder.istft import IstftConfig, IstftVocoder

RATE = 16_000
UPSTREAM = "fbank_no_cmvn"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Speech of a source and a target, and a vocoder on features of fbank."""
    made = tmp_path_factory.mktemp("conversion")
    torch.manual_seed(0)
    shape = IstftConfig(MelConfig(RATE, hop=160, n_fft=512), features=240, width=16, inner=24, blocks=2)
    source = FeatureSource(UPSTREAM, 0, load_upstream(UPSTREAM).fingerprint(), prematched=True)
    save_vocoder(IstftVocoder(shape, source=source), made / "vocoder", weights="random")
    save_vocoder(IstftVocoder(replace(shape, features=None)), made / "on_mel", weights="random")
    save_vocoder(IstftVocoder(shape, source=replace(source, upstream="mfcc")), made / "elsewhere", weights="random")
    _speech(made / "a.wav")
    _speech(made / "b.wav", pitch=190.0)
    _speech(made / "c.flac", pitch=200.0)
    return made


@pytest.fixture
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what `folder` holds."""
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


CONVERT = ["infer", "voice_conversion", "--vocoder", "vocoder"]


def test_a_command_converts_to_the_voice_of_several_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voice = ["--voice", "b.wav", "c.flac"]
    assert run(*CONVERT, "--source", "a.wav", *voice, "--out", "d.wav", "--save-voice", "b.voice") == 0
    assert "d.wav" in capsys.readouterr().out
    waveform, rate = soundfile.read("d.wav", dtype="float32")
    assert rate == RATE and len(waveform) / rate == pytest.approx(3.2, abs=0.05)
    source = loudness(read_audio("a.wav"), RATE)
    assert source is not None
    assert loudness(torch.from_numpy(waveform), rate) == pytest.approx(source, abs=0.2)
    assert run(*CONVERT, *voice[:2], *voice[2:], "--out", "e.flac", "--source", "a.wav", "--loudness", "-16") == 0
    quiet, _ = soundfile.read("e.flac", dtype="float32")
    assert loudness(torch.from_numpy(quiet), RATE) == pytest.approx(-16.0, abs=0.2)
    assert run(*CONVERT, "--voice", "b.voice", "--source", "a.wav", "--out", "f.wav", "--sample-rate", "8000") == 0
    assert soundfile.info("f.wav").samplerate == 8_000
    assert run(*CONVERT, "--voice", "b.voice", "--source", "a.wav", "--out", "g.wav") == 0
    assert np.array_equal(soundfile.read("g.wav")[0], soundfile.read("d.wav")[0])


def test_three_lines_of_python_do_the_same(here: Path) -> None:
    converter = speechssl.load_converter(vocoder="vocoder")
    voice = converter.voice(["b.wav", "c.flac"])
    made = converter.convert("a.wav", voice, out="d.wav")
    assert run(*CONVERT, "--source", "a.wav", "--voice=b.wav", "c.flac", "--out", "e.wav") == 0
    assert Path("d.wav").read_bytes() == Path("e.wav").read_bytes()
    assert made.path == Path("d.wav") and made.sample_rate == RATE


def test_one_option_takes_many_files_up_to_the_next() -> None:
    given = ["--source", "a", "--voice", "b", "c", "--out", "d", "--voice=e", "f", "-o", "g"]
    expected = ["--source", "a", "--voice", "b", "--voice", "c", "--out", "d", "--voice=e", "--voice", "f", "-o", "g"]
    assert spread(given) == expected
    assert spread(["run", "a.wav", "b.wav"]) == ["run", "a.wav", "b.wav"]


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_files_say_that_they_are_synthetic(here: Path, suffix: str) -> None:
    load_converter(vocoder="vocoder").convert("a.wav", "b.wav", out=f"d{suffix}")
    tags = read_tags(f"d{suffix}")
    assert tags["comment"] == COMMENT and "Synthetic" in tags["title"] and "speechssl" in tags["software"]


@pytest.mark.parametrize(("rate", "channels", "suffix"), [(8_000, 1, "wav"), (44_100, 2, "wav"), (48_000, 1, "flac")])
def test_any_sampling_rate_and_stereo_are_converted(here: Path, rate: int, channels: int, suffix: str) -> None:
    _speech(here / f"x.{suffix}", rate=rate, channels=channels)
    converter = load_converter(vocoder="vocoder")
    made = converter.convert(f"x.{suffix}", "b.wav", sample_rate=rate)
    assert made.sample_rate == rate
    assert len(made.waveform) / rate == pytest.approx(3.2, abs=0.05)
    _speech(here / "one.wav", rate=rate)
    alone = converter.convert("one.wav", "b.wav", sample_rate=rate)
    difference = (made.waveform - alone.waveform).abs().max()
    assert float(difference) < (1e-6 if suffix == "wav" else 1e-2)  # FLAC has 16 bits


@pytest.mark.parametrize("level", ["source", "voice", "vocoder", 0.0, -60.0])
def test_nothing_is_clipped_and_nothing_is_nan(here: Path, level: float | str) -> None:
    loud = np.clip(40 * soundfile.read("a.wav")[0], -1.0, 1.0)
    soundfile.write("clipped.wav", loud, RATE, subtype="FLOAT")
    soundfile.write("beyond.wav", 3 * loud, RATE, subtype="FLOAT")
    for name in ("clipped.wav", "beyond.wav"):
        made = load_converter(vocoder="vocoder").convert(name, "b.wav", loudness=level)  # type: ignore[arg-type]
        assert torch.isfinite(made.waveform).all()
        assert 0.0 < float(made.waveform.abs().max()) <= PEAK


def test_what_would_be_clipped_or_is_no_number_is_not_written(tmp_path: Path) -> None:
    for value, says in ((1.5, "clipped"), (float("nan"), "no numbers")):
        with pytest.raises(SpeechsslError, match=says):
            write_speech(tmp_path / "x.wav", torch.full((100,), value), sample_rate=RATE)
    assert not list(tmp_path.iterdir())


def _files(folder: Path) -> None:
    """Bad recordings under names that say what is wrong."""
    soundfile.write(folder / "silent.wav", np.zeros(2 * RATE), RATE)
    soundfile.write(folder / "hum.wav", 2e-5 * np.ones(2 * RATE), RATE, subtype="FLOAT")
    soundfile.write(folder / "click.wav", 0.1 * np.ones(200), RATE)
    soundfile.write(folder / "short.wav", soundfile.read(folder / "b.wav")[0][RATE : RATE + 8_000], RATE)
    soundfile.write(folder / "none.wav", np.zeros(0), RATE)
    soundfile.write(folder / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("these are words")


TARGET = ["--voice", "b.wav", "--out", "d.wav"]
REFUSED = {
    "silent source": ([*CONVERT, "--source", "silent.wav", *TARGET], "silent.wav is silent (all its samples are 0)"),
    "whispered source": (
        [*CONVERT, "--source", "hum.wav", *TARGET],
        "its loudest sample is -94 dB",
    ),
    "source below a frame": ([*CONVERT, "--source", "click.wav", *TARGET], "shorter than one frame"),
    "source without samples": ([*CONVERT, "--source", "none.wav", *TARGET], "none.wav holds no samples"),
    "source that is NaN": ([*CONVERT, "--source", "nan.wav", *TARGET], "NaN or infinite"),
    "empty source": ([*CONVERT, "--source", "empty.wav", *TARGET], "empty file of 0 bytes"),
    "text": ([*CONVERT, "--source", "text.wav", *TARGET], "text file, not audio"),
    "missing source": ([*CONVERT, "--source", "gone.wav", *TARGET], "gone.wav does not exist"),
    "missing voice": ([*CONVERT, "--source", "a.wav", "--voice", "b.wav", "gone.wav", "--out", "d.wav"], "gone.wav"),
    "two sources": ([*CONVERT, "--source", "*.wav", *TARGET], "name one file"),
    "short reference": (
        [*CONVERT, "--no-trim", "--source", "a.wav", "--voice", "short.wav", "--out", "d.wav"],
        "short.wav of the target hold 0.50 s",
    ),
    "silent reference": ([*CONVERT, "--source", "a.wav", "--voice", "silent.wav", "--out", "d.wav"], "is silent"),
    "format": ([*CONVERT, "--source", "a.wav", "--voice", "b.wav", "--out", "d.mp3"], "end in .wav or .flac"),
    "over the source": ([*CONVERT, "--source", "a.wav", "--voice", "b.wav", "--out", "a.wav"], "the source itself"),
    "loudness": ([*CONVERT, "--source", "a.wav", *TARGET, "--loudness", "loud"], "`loudness` must be"),
    "rate": ([*CONVERT, "--source", "a.wav", *TARGET, "--sample-rate", "3"], "`sample_rate` must"),
    "k": ([*CONVERT, "--source", "a.wav", *TARGET, "--k", "0"], "`k` must be 1 or more"),
    "k above frames": ([*CONVERT, "--source", "a.wav", *TARGET, "--k", "100000"], "k = 100000"),
    "layer": ([*CONVERT, "--source", "a.wav", *TARGET, "--layer", "-1", "--upstream", "mfcc"], "another upstream"),
    "no voice": ([*CONVERT, "--source", "a.wav", "--out", "d.wav"], "`--voice b.wav c.wav`"),
    "no source": ([*CONVERT, "--voice", "b.wav"], "`--source a.wav --out d.wav`"),
    "no output": ([*CONVERT, "--source", "a.wav", "--voice", "b.wav"], "`--out d.wav`"),
    "settings of files": ([*CONVERT, "--source", "a.wav", *TARGET, "--table"], "no `--set`, `--table` and `--plot`"),
    "stray file": ([*CONVERT, "x.wav", "--source", "a.wav", *TARGET], "x.wav has no place"),
    "nothing that converts": (
        ["infer", "voice_conversion", "--upstream", "mfcc", "--source", "a.wav", *TARGET],
        "reads features of 'mfcc' (`--vocoder VOCODER`",
    ),
    "log-mel": ([*CONVERT[:3], "on_mel", "--source", "a.wav", *TARGET], "reads log-mel"),
    "vocoder by name": ([*CONVERT[:3], "hifigan", "--source", "a.wav", *TARGET], "hifigan reads log-mel"),
    "another upstream": ([*CONVERT[:3], "elsewhere", "--source", "a.wav", *TARGET], "another upstream than 'mfcc'"),
    "no run": (["infer", "gone", "--source", "a.wav", *TARGET], "gone holds no finished run"),
    "two runs": (["infer", "gone", "--run", "b", "--source", "a.wav", *TARGET], "Two runs"),
    "no files": (["infer", "gone"], "Name audio files"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused_with_a_sentence(
    case: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _files(here)
    command, says = REFUSED[case]
    assert says in the_sentence(capsys, *command)
    assert not Path("d.wav").exists()


def _run(upstream: str, corpus: Path, out: Path, **changes: Any) -> Path:
    demo = PRESETS["voice_conversion_demo"]
    config = replace(
        demo,
        train=replace(demo.train, steps=0, warmup_steps=0, precision="float32"),
        language="aa", source_seconds=(0.8, 3.0), targets=2, reference_seconds=3.0, profile_utterances=2, dev_pairs=2,
        test_pairs=2, vocoder="griffin_lim", judges="none", vocoder_precision="float32",
        head=HeadConfig(width=16, blocks=1, refining_blocks=1, kernel=3),
    )  # fmt: skip
    config, options = replace(config, **changes), RunOptions(cache_folder=str(out / "cache"))
    speechssl.run("voice_conversion", upstream=upstream, corpus=corpus, config=config, out=out, options=options)
    return out / "voice_conversion" / upstream / "seed0"


@pytest.fixture(scope="module")
def trained(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run("mfcc", tiny_corpus, tmp_path_factory.mktemp("trained"))


def test_a_run_converts_as_infer_does_and_across_languages(
    trained: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {u.id: u.path for u in open_corpus(tiny_corpus).utterances("train")}
    source = files["aa0-00"]
    voice = [path for name, path in files.items() if name.startswith("bb1")]
    converter = load_converter(trained)
    made = converter.convert(source, voice, loudness="voice", out=tmp_path / "d.flac")
    capsys.readouterr()
    assert run("infer", trained, source, *voice, "-o", tmp_path / "old.json") == 0
    old = json.loads((tmp_path / "old.json").read_text())
    before, rate = soundfile.read(old["converted"], dtype="float32")
    after, _ = soundfile.read(tmp_path / "d.flac", dtype="float32")
    assert rate == made.sample_rate == 22_050
    np.testing.assert_allclose(after, before, atol=2e-3)
    assert run("infer", trained, "--source", source, "--voice", *voice, "--out", tmp_path / "e.flac") == 0
    assert "e.flac" in capsys.readouterr().out
    converter.voice(voice).save(tmp_path / "bb1.voice")
    again = load_converter(trained, chunk=0.5).convert(source, tmp_path / "bb1.voice", loudness="voice")
    np.testing.assert_allclose(again.waveform.numpy(), made.waveform.numpy(), atol=2e-3)


def test_a_run_takes_another_vocoder_of_its_recipe_alone(trained: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match="was not trained for the log-mel"):
        load_converter(trained, vocoder=folder / "on_mel")
    with pytest.raises(ConfigError, match="a run has its own layers"):
        load_converter(trained, layer=3)


def test_a_run_with_a_vocoder_on_features_is_knn_vc(folder: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    features = FeatureConfig(layers=(0,))
    made = _run(UPSTREAM, tiny_corpus, tmp_path, vocoder=str(folder / "vocoder"), matching="raw", features=features)
    result = json.loads((made / "result.json").read_text())
    assert result["trained_parameters"] == 0
    found = load_converter(made, trim=True).convert(folder / "a.wav", folder / "b.wav")
    expected = load_converter(vocoder=folder / "vocoder").convert(folder / "a.wav", folder / "b.wav")
    assert torch.equal(found.waveform, expected.waveform)
    with pytest.raises(SpeechsslError, match="another upstream than 'fbank'"):  # of the same width and rate
        _run("fbank", tiny_corpus, tmp_path, vocoder=str(folder / "vocoder"), matching="raw", features=features)
