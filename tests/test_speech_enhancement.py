"""Speech enhancement: settings, noisy mixtures, perceptual metrics and a run."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.nn.utils.rnn import pad_sequence

from downstreams.speech_enhancement.config import PRESETS, SpeechEnhancementConfig
from downstreams.speech_enhancement.task import TASK
from speechssl.audio import read_audio
from speechssl.config import load_config
from speechssl.data.corpus import open_corpus
from speechssl.errors import ConfigError, ManifestError
from speechssl.inference import infer
from speechssl.jobs import RunOptions
from speechssl.metric import perceptual
from speechssl.metric.perceptual import LEAST_PESQ, stoi, wideband_pesq
from speechssl.mixing.simulate import SimulationConfig, simulate
from speechssl.runner import run
from speechssl.separation.measuring import measure
from speechssl.separation.targets import compress
from speechssl.separation.waveforms import Mixtures
from speechssl.task import TrainConfig
from speechssl.types import Utterance

MIXED = SimulationConfig(train=6, dev=3, test=3, duration=1.2, snr_db=(3.0, 9.0))
SMALL = SpeechEnhancementConfig(
    train=TrainConfig(steps=4, batch_seconds=20.0, learning_rate=1e-2, evaluate_every=2),
    num_layers=1,
    hidden_size=8,
    n_fft=256,
    win_length=256,
    hop_length=128,
    metric="si_sdri",
    metrics=("si_sdri",),
    examples=1,
    simulate=MIXED,
)


def power(waveform: torch.Tensor) -> float:
    return float(waveform.double().square().mean())


def test_the_presets_are_s3prls_two_versions() -> None:
    second, first = PRESETS["speech_enhancement"], PRESETS["speech_enhancement_first"]
    for config, hidden, win, steps, rate in ((second, 256, 400, 100_000, 1e-3), (first, 896, 512, 150_000, 1e-4)):
        head = TASK(config).build_head(768, 50.0, None)  # type: ignore[arg-type]
        lstm = sum(2 * 4 * hidden * (width + hidden + 2) for width in (768, 2 * hidden, 2 * hidden))
        assert sum(p.numel() for p in head.parameters()) == lstm + (2 * hidden + 1) * 257
        assert (config.win_length, config.train.steps, config.train.learning_rate) == (win, steps, rate)
        assert config.metric == "pesq"
    assert (second.target, second.distance, second.hop_length, second.compression) == ("am", "l1", 160, "log1p")
    assert (first.target, first.distance, first.hop_length, first.compression) == ("npsm", "mse", None, "none")


def test_noise_is_added_at_the_ratio_that_was_drawn(tiny_corpus: Path) -> None:
    made = simulate(open_corpus(tiny_corpus), "noise", MIXED)
    kinds = set()
    for utterance in [u for part in made.values() for u in part]:
        noisy, clean = read_audio(utterance.path), read_audio(utterance.labels["clean"])
        ratio = 10 * math.log10(power(clean) / power(noisy - clean))
        assert 3.0 - 0.1 <= ratio <= 9.0 + 0.1
        kinds.add(utterance.labels["noise"])
    assert kinds == {"babble", "coloured"}


def test_a_phase_sensitive_target_is_not_compressed() -> None:
    with pytest.raises(ConfigError, match="log1p is undefined"):
        load_config(SMALL, overrides=["target=psm"])
    assert load_config(SMALL, overrides=["target=psm", "compression=none"]).target == "psm"
    assert bool(compress(torch.tensor(-2.0), "log1p").isnan())


def test_a_run_is_measured_and_cleans_a_users_file(tiny_corpus: Path, tmp_path: Path) -> None:
    options = RunOptions(cache_folder=str(tmp_path / "cache"))
    task = "speech_enhancement"
    (result,) = run(task, upstream="fbank", corpus=tiny_corpus, config=SMALL, out=tmp_path, options=options)
    assert result.test.metrics["si_sdri"].n == MIXED.test
    own = tmp_path / "own.wav"
    soundfile.write(own, torch.randn(8_001, generator=torch.Generator().manual_seed(0)).numpy() * 0.1, 8_000)
    answer = infer(tmp_path / task / "fbank" / "seed0", [own], out=tmp_path / "answer")
    (written,) = answer[str(own)]
    samples, rate = soundfile.read(written)
    assert (Path(written).name, rate, samples.shape) == ("own-speech.wav", 8_000, (8_001,))


def test_a_clean_file_that_is_not_there_is_named(tiny_corpus: Path) -> None:
    class Odd:
        root = tiny_corpus

        def utterances(self, split: str) -> list[Utterance]:
            return [Utterance("odd", "odd.wav", labels={"clean": "gone.wav"})]

    task = TASK(load_config(SMALL, overrides=["simulate=null"]))
    with pytest.raises(ManifestError, match=r"gone.wav, a source of 'odd' in 'train'"):
        task.prepare(Odd())  # type: ignore[arg-type]


def test_opinion_scores_fall_with_noise_and_have_bounds(tiny_corpus: Path) -> None:
    pytest.importorskip("pesq")
    clean = read_audio(next(iter(open_corpus(tiny_corpus).utterances("train"))).path)
    noise = torch.randn(len(clean), generator=torch.Generator().manual_seed(0))
    scores = [wideband_pesq(clean, clean + level * noise) for level in (0.0, 0.003, 0.03)]
    assert scores[0] == pytest.approx(4.644, abs=1e-3)  # the most that the mapping of P.862.2 gives
    assert scores[0] > scores[1] > scores[2] >= LEAST_PESQ
    assert wideband_pesq(clean, torch.zeros_like(clean)) == LEAST_PESQ == pytest.approx(1.0427, abs=1e-4)
    assert math.isnan(wideband_pesq(torch.zeros(16_000), noise[:16_000]))
    assert math.isnan(wideband_pesq(clean[:2000], clean[:2000]))


def test_intelligibility_falls_with_noise_and_needs_speech(tiny_corpus: Path) -> None:
    pytest.importorskip("pystoi")
    clean = read_audio(next(iter(open_corpus(tiny_corpus).utterances("train"))).path)
    noise = torch.randn(len(clean), generator=torch.Generator().manual_seed(0))
    scores = [stoi(clean, clean + level * noise) for level in (0.0, 0.03, 1.0)]
    assert scores[0] == pytest.approx(1.0, abs=1e-6)
    assert scores[0] > scores[1] > scores[2]
    assert math.isnan(stoi(clean[:3000], clean[:3000]))


@pytest.mark.parametrize("package", [True, False], ids=["PESQ and STOI", "stand-ins"])
def test_processes_hear_what_one_process_hears(
    package: bool, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package:
        pytest.importorskip("pesq")
        pytest.importorskip("pystoi")
    else:
        monkeypatch.setattr(perceptual, "METRICS", {"pesq": math.dist, "stoi": math.dist})
    generator = torch.Generator().manual_seed(0)
    clean = [read_audio(u.path) for u in open_corpus(tiny_corpus).utterances("train")[:3]]
    both = [torch.stack((one, one.flip(0)), dim=1) for one in clean]
    sources = pad_sequence(both, batch_first=True).transpose(1, 2)  # (B, 2, S)
    truth = Mixtures(sources.sum(dim=1), sources, torch.tensor([len(one) for one in clean]))
    estimates = sources + 0.01 * torch.randn(sources.shape, generator=generator)
    wanted = [("pesq",), ("si_sdri", "si_sdr", "stoi", "pesq"), ("stoi", "si_sdr")]
    found = []
    for processes in (1, 2):
        rows = measure(estimates, truth, wanted, kept=[False] * len(wanted), processes=processes)
        assert [list(row.values) for row in rows] == [list(names) for names in wanted]
        assert [sorted(row.before) for row in rows] == [[], ["pesq", "si_sdr", "stoi"], ["si_sdr", "stoi"]]
        found.append([value for row in rows for value in (*row.values.values(), *row.before.values())])
    assert found[0] == found[1]
    size = len(clean[0])
    heard = [perceptual.METRICS["pesq"](*(w[0, k, :size].numpy() for w in (sources, estimates))) for k in (0, 1)]
    assert found[0][0] == pytest.approx(np.mean(heard), rel=1e-12)
