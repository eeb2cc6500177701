"""Recognition-synthesis as a method of the voice conversion task: runs, their data, and a user's files."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence

from downstreams.voice_conversion.config import PRESETS
from downstreams.voice_conversion.synthesis.discretise import Discretiser, draw_frames, load_discretiser
from downstreams.voice_conversion.synthesis.method import RecognitionSynthesis
from downstreams.voice_conversion.task import TASK
from speechssl.config import load_config
from speechssl.data.corpus import open_corpus
from speechssl.data.pairs import LISTS, list_conversions
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.fitting import Fit
from speechssl.inference import infer
from speechssl.jobs import RunOptions
from speechssl.runner import run
from speechssl.targets.kmeans import KMeans
from speechssl.types import Utterance
from speechssl.vocoder import MelConfig

WIDTH = 5
RUN = (
    "language=aa", "dev_pairs=2", "test_pairs=2", "judges=none", "source_seconds=[0.5,3.0]", "reference_seconds=2",
    "profile_utterances=1", "vocoder=griffin_lim", "train.learning_rate=5e-3", "train.steps=40",
    "train.warmup_steps=0", "train.evaluate_every=20", "synthesis.network.hidden=24",
    "synthesis.network.conv_channels=16", "synthesis.network.prenet_width=12", "features.layers=[0]",
)  # fmt: skip
SMALL_GAME = ("synthesis.adversarial={content_weight: 0.1, mel_weight: 0.1, width: 8, layers: 1, segment: 12}",)


@pytest.mark.parametrize(
    ("preset", "more"),
    [
        ("a2o_simple", ("target=bb1",)), ("a2o_disentangled", ("target=bb1", *SMALL_GAME)),
        ("a2a_taco2_ar", ("targets=2",)),
    ],
    ids=["one_voice", "disentangled", "any_voice"],
)  # fmt: skip
def test_runs_learn_and_convert_files(
    preset: str, more: tuple[str, ...], tiny_corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (result,) = run(
        f"voice_conversion_{preset}", upstream="fbank", corpus=tiny_corpus, out=tmp_path, overrides=[*RUN, *more],
        options=RunOptions(str(tiny_corpus.parent / "cache")),
    )  # fmt: skip
    folder = tmp_path / "voice_conversion" / "fbank" / "seed0"
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [row["mel_error" if SMALL_GAME[0] in more else "loss"] for row in rows if "loss" in row]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert 0 < result.test.metrics["mel_distance"].value < 5
    files = [str(tiny_corpus / "audio" / f"{name}.flac") for name in ("aa1-00", "bb2-01", "bb2-02")]
    found = infer(folder, files, out=tmp_path / "said")
    converted, rate = soundfile.read(found["converted"])
    assert len(converted) / rate == pytest.approx(soundfile.info(files[0]).duration, abs=0.05)
    assert np.isfinite(converted).all()
    warned = [r.getMessage() for r in caplog.records if "everything in the voice of" in r.getMessage()]
    assert len(warned) == (0 if "targets=2" in more else 1) and all("bb1" in line for line in warned)


def test_one_voice_is_learned_without_what_the_judge_knows_it_by(tiny_corpus: Path) -> None:
    corpus = open_corpus(tiny_corpus)
    for preset, others in (("a2o_simple", False), ("a2o_disentangled", True)):
        config = load_config(
            PRESETS[f"voice_conversion_{preset}"], overrides=[*RUN, "target=bb1", "profile_utterances=2"]
        )
        task = TASK(config)
        data = task.prepare(corpus)
        (target,) = data.extra["plan"].targets.values()
        train = data.splits["train"]
        own = [u for u in train if not u.labels.get("external")]
        assert {u.labels["speaker"] for u in own} == {"bb1"} and not {u.id for u in own} & {
            u.id for u in target.profile
        }
        strangers = {u.labels["speaker"] for u in train} - {"bb1"}
        assert bool(strangers) == others and (task.groups(data) is not None) == others
        assert {p.target for pairs in data.extra["plan"].pairs.values() for p in pairs} == {"bb1"}
    with pytest.raises(SpeechsslError, match="'nobody' can't be the `target`"):
        TASK(replace(config, target="nobody")).prepare(corpus)
    with pytest.raises(ConfigError, match="learns one voice"):
        replace(config, targets=3)


def test_of_the_conversions_of_a_corpus_those_to_the_one_voice_are_made(tiny_corpus: Path, tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, root)
    for split, name in LISTS.items():
        told = [(u.id, u.labels["speaker"]) for u in open_corpus(root).utterances(split) if u.id.startswith("aa")]
        (root / f"{name}.txt").write_text("\n".join(list_conversions(told, ("bb0", "bb1"))) + "\n")
    info = json.loads((root / "corpus.json").read_text())
    info["files"] = {name: f"{name}.txt" for name in LISTS.values()}
    (root / "corpus.json").write_text(json.dumps(info))
    for target, expected in ((None, "bb0"), ("bb1", "bb1")):
        config = replace(load_config(PRESETS["voice_conversion_a2o_simple"], overrides=[*RUN]), target=target)
        data = TASK(config).prepare(open_corpus(root))
        assert {p.target for pairs in data.extra["plan"].pairs.values() for p in pairs} == {expected}
        assert {u.labels["speaker"] for u in data.splits["train"]} == {expected}
        assert len(data.extra["plan"].pairs["test"]) == 2
    with pytest.raises(SpeechsslError, match="name one of bb0, bb1"):
        TASK(replace(config, target="aa1")).prepare(open_corpus(root))


def test_run_takes_its_centroids_from_folders(tmp_path: Path) -> None:
    KMeans(torch.randn(7, WIDTH)).save(tmp_path)
    overrides = [*RUN, "synthesis.discretise.clusters=[7]", f"synthesis.discretise.folders=['{tmp_path}']"]
    method = RecognitionSynthesis(load_config(PRESETS["voice_conversion_a2o_simple"], overrides=overrides), MelConfig())
    head = method.build_head(WIDTH, 50.0)
    method.start(head, [Utterance("a", "a.wav")], lambda _: torch.randn(30, 80))
    assert torch.equal(
        head.model.discretiser.quantizers[0].centroids, load_discretiser([tmp_path]).quantizers[0].centroids
    )
    overrides[-2] = "synthesis.discretise.clusters=[8]"
    method = RecognitionSynthesis(load_config(PRESETS["voice_conversion_a2o_simple"], overrides=overrides), MelConfig())
    with pytest.raises(ConfigError, match=r"asks for centroids of \[\(8, 5\)\]"):
        method.start(method.build_head(WIDTH, 50.0), [Utterance("a", "a.wav")], lambda _: torch.randn(30, 80))


def test_frames_are_drawn_alike_from_all_utterances_however_they_are_batched() -> None:
    numbers = torch.arange(300.0)
    parts = [numbers[:90, None], numbers[90:110, None], numbers[110:, None]]

    def batches(size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for begin in range(0, len(parts), size):
            some = parts[begin : begin + size]
            yield pad_sequence(some, batch_first=True, padding_value=-1.0), torch.tensor([len(p) for p in some])

    counts = torch.zeros(300)
    for seed in range(400):
        drawn, again = (draw_frames(batches(n), 30, generator=torch.Generator().manual_seed(seed)) for n in (1, 3))
        assert drawn.shape == (30, 1) and len(drawn.unique()) == 30 and torch.equal(drawn, again)
        counts[drawn[:, 0].long()] += 1  # an index of -1 would be padding
        assert float(drawn.min()) >= 0
    assert float((counts - 40).square().sum() / 40 / 0.9) < 380  # chi-square of 299 degrees: 0.999 of draws lie below
    assert len(draw_frames(batches(2), 1_000, generator=torch.Generator())) == 300


def test_a_run_fits_its_own_centroids_and_goes_on_with_them(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[torch.Tensor] = []
    fit = Discretiser.fit

    def watched(self: Discretiser, frames: torch.Tensor, *, generator: torch.Generator) -> None:
        fitted.append(frames)
        fit(self, frames, generator=generator)

    monkeypatch.setattr(Discretiser, "fit", watched)

    def train(out: str, *, until: int | None = None) -> dict[str, torch.Tensor]:
        step = Fit._step

        def stopping(self: Fit, utterances: Sequence[Utterance]) -> float:
            if self.progress.step == until:
                raise KeyboardInterrupt
            return step(self, utterances)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) if until else nullcontext():
            patch.setattr(Fit, "_step", stopping)
            run(
                "voice_conversion_a2a_taco2_ar", upstream="fbank", corpus=tiny_corpus, out=tmp_path / out,
                overrides=[*RUN, "targets=2", "synthesis.discretise.clusters=[7,4]",
                           "synthesis.discretise.partitions=2", "synthesis.discretise.frames=300"],
                options=RunOptions(str(tiny_corpus.parent / "cache")),
            )  # fmt: skip
        return load_file(tmp_path / out / "voice_conversion" / "fbank" / "seed0" / "head.safetensors")

    whole = train("whole")
    train("halved", until=30)  # dev was looked at after step 20
    resumed = train("halved")
    assert [len(frames) for frames in fitted] == [300, 300]  # and not once more by what went on
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    names = [f"head.model.discretiser.quantizers.{n}.centroids" for n in range(4)]
    assert [len(whole[name]) for name in names] == [7, 7, 4, 4]
    for number, name in enumerate(names):  # k-means ends where each centroid is the mean of what is nearest to it
        part, centroids = fitted[0].chunk(2, dim=1)[number % 2], whole[name]
        nearest = torch.cdist(part, centroids).argmin(dim=1)
        means = torch.stack([part[nearest == row].mean(dim=0) for row in range(len(centroids))])
        assert float((means - centroids).norm() / (part - part.mean(dim=0)).norm(dim=1).mean()) < 0.2
    files = [str(tiny_corpus / "audio" / f"{name}.flac") for name in ("aa1-00", "bb2-01")]
    found = infer(tmp_path / "whole" / "voice_conversion" / "fbank" / "seed0", files, out=tmp_path / "said")
    assert np.isfinite(soundfile.read(found["converted"])[0]).all()


def test_discretised_features_leave_an_upstream_nothing_to_learn_from() -> None:
    overrides = [*RUN, "synthesis.discretise.clusters=[7]", "adapt.method=full"]
    with pytest.raises(ConfigError, match="so that nothing of the upstream would be trained"):
        RecognitionSynthesis(load_config(PRESETS["voice_conversion_a2o_simple"], overrides=overrides), MelConfig())
