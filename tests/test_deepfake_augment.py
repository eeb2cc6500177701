"""Disturbed training speech: codecs, copies that are kept, and what is drawn anew at each visit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from downstreams.deepfake_detection.augment import disturb, with_views
from downstreams.deepfake_detection.config import PRESETS, AugmentConfig
from downstreams.deepfake_detection.task import DeepfakeDetection
from speechssl.adapt.reading import SEED, Reader
from speechssl.audio import read_audio
from speechssl.augment.codec import CODECS
from speechssl.augment.config import CorruptConfig
from speechssl.config import load_config
from speechssl.data.corpus import open_corpus
from speechssl.data.seeds import make_generator
from speechssl.errors import SpeechsslError
from speechssl.jobs import RunOptions
from speechssl.runner import run
from speechssl.types import Utterance

RATE = 16_000
EVERYTHING = AugmentConfig(
    views=2,
    rawboost=tuple(range(1, 9)),
    room=CorruptConfig(reverb_prob=0.5, noise_prob=0.5),
    codecs=tuple(CODECS),
    codec_prob=0.7,
)


def speech() -> Tensor:
    """Harmonics up to 7 kHz whose level swells, (S,)."""
    time = torch.arange(RATE) / RATE
    buzz = torch.stack([torch.sin(6.2832 * 200 * k * time + k * k) for k in range(1, 36)]).sum(dim=0)
    return 0.02 * buzz * (1.2 + torch.sin(6.2832 * 3 * time))


def test_a_disturbed_utterance_is_decided_by_its_generator_and_stays_within_the_scale() -> None:
    given = speech()
    found = [disturb(EVERYTHING, given, RATE, make_generator("test", k)) for k in (*range(12), 0)]
    assert torch.equal(found[0], found[-1])
    for k, one in enumerate(found[:-1]):
        assert one.shape == given.shape and bool(one.isfinite().all()) and float(one.abs().max()) <= 1.0
        assert all(not torch.equal(one, other) for other in (given, *found[:k]))


def test_copies_are_drawn_once_from_the_seed_and_the_name(tiny_corpus: Path, tmp_path: Path) -> None:
    utterances = open_corpus(tiny_corpus).utterances("train")[:3]
    found = with_views(utterances, EVERYTHING, tmp_path / "a")
    assert [u.id for u in found[3:5]] == [f"{utterances[0].id}#view0", f"{utterances[0].id}#view1"]
    assert found[:3] == list(utterances) and len(found) == 9 and len({u.id for u in found}) == 9
    for given, copy in zip(utterances, found[3::2], strict=True):
        assert (copy.labels, copy.duration) == (given.labels, given.duration)
        heard = read_audio(copy.path)
        clean = read_audio(given.path, start=given.start, duration=given.duration)
        assert len(heard) == len(clean) and not torch.allclose(heard, clean, atol=1e-3)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.flac")}
    more = AugmentConfig(**{**vars(EVERYTHING), "views": 1, "clean": False})
    assert with_views(utterances, more, tmp_path / "a") == found[3::2]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.flac")} == written
    elsewhere = with_views(utterances[::-1], EVERYTHING, tmp_path / "b")
    ours, theirs = ({u.id: Path(u.path).read_bytes() for u in part} for part in (found, elsewhere))
    assert ours == theirs
    other = with_views(utterances, AugmentConfig(**{**vars(EVERYTHING), "seed": 1}), tmp_path / "a")
    assert all(
        Path(a.path).read_bytes() != Path(b.path).read_bytes() for a, b in zip(found[3:], other[3:], strict=True)
    )


def test_what_is_read_is_disturbed_anew_with_each_seed_and_only_where_it_has_one(tiny_corpus: Path) -> None:
    settings = ["augment.anew=true", "augment.rawboost=[5]", "adapt.method=full", "adapt.train_frontend=true"]
    disturbance = DeepfakeDetection(load_config(PRESETS["deepfake_detection"], overrides=settings)).disturbance()
    (given,) = open_corpus(tiny_corpus).utterances("train")[:1]

    def marked(seed: int) -> Utterance:
        return Utterance(given.id, given.path, given.start, given.duration, {SEED: seed})

    reader = Reader(RATE)
    reader.disturb = disturbance
    reader.prefetch([marked(1)])
    heard, _ = reader.read([given, marked(1), marked(2), marked(1)])
    assert torch.equal(heard[1], heard[3])
    assert torch.equal(heard[0], read_audio(given.path, start=given.start, duration=given.duration, sample_rate=RATE))
    assert not torch.equal(heard[0], heard[1]) and not torch.equal(heard[1], heard[2])


SMALL = (
    "train.steps=2", "train.evaluate_every=2", "train.batch_seconds=6", "spoof.seen=[griffin_lim]",
    "spoof.unseen=[lpc]", "spoof.processes=1", "spoof.conditioning.seconds=0.5", "spoof.train={real: 6, per_attack: 4}",
    "spoof.dev={real: 4, per_attack: 4}", "spoof.test={real: 4, per_attack: 4}", "head.width=8", "head.attention=4",
    "head.gmm.components=8",
)  # fmt: skip


def test_runs_hear_the_copies_once_and_fit_mixtures_to_all_of_them(tiny_corpus: Path, tmp_path: Path) -> None:
    options = RunOptions(str(tmp_path / "cache"))
    counts = []
    for settings in ((), ("augment.views=2", "augment.rawboost=[5]")):
        (result,) = run(
            "deepfake_detection_demo", upstream="lfcc", corpus=tiny_corpus, out=tmp_path / f"exp{len(settings)}",
            heads=["gmm"], overrides=[*SMALL, *settings], options=options,
        )  # fmt: skip
        counts.append(result.features["computed"])
        assert result.trained["head"] == 2 * 8 * 121 and 0.0 <= result.test.metrics["eer"].value <= 1.0
    clean, more = counts
    assert clean == 30 and more == 2 * 10  # 10 of them are for training


def test_an_upstream_that_learns_from_the_waveform_hears_it_otherwise_at_each_visit(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    read = Reader._read

    def reading(self: Reader, stretch: tuple[str, float, float | None, int | None]) -> Tensor:
        drawn.append((stretch[0], stretch[3]))
        return read(self, stretch)

    monkeypatch.setattr(Reader, "_read", reading)

    def train(*more: str) -> None:
        run(
            "deepfake_detection_demo", upstream="hubert_tiny:random", corpus=tiny_corpus, out=tmp_path / "exp",
            overrides=[*SMALL, "adapt.method=full", "augment.anew=true", "augment.rawboost=[5]", *more],
            options=RunOptions(str(tmp_path)),
        )  # fmt: skip

    with pytest.raises(SpeechsslError, match="is computed once, so that audio"):
        train()
    assert not list(tmp_path.rglob("*.bin"))  # before anything is computed to be kept
    train("adapt.cache=false")
    seeds = [seed for _, seed in drawn if seed is not None]
    assert len(seeds) >= 10 and len(set(seeds)) == len(seeds)
    assert not {path for path, seed in drawn if seed is not None} & {path for path, seed in drawn if seed is None}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["augment.anew=true", "augment.rawboost=[5]"], "a frozen upstream hears an utterance once"),
        (["augment.views=2"], "nothing to disturb with"),
        (["augment.room.noise_prob=0.5"], "disturbs nothing"),
        (["augment.views=2", "augment.anew=true", "augment.rawboost=[5]"], "0 where `augment.anew`"),
        (["augment.rawboost=[5,9]"], "but also 9"),
        (["augment.compression=[0.5,2]"], "a range within 0 and 1"),
        (["augment.codecs=[speex]"], "'speex'"),
    ],
)
def test_settings_that_disturb_nothing_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(SpeechsslError, match=message):
        load_config(PRESETS["deepfake_detection"], overrides=settings)
