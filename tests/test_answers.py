"""What `infer` says of stretches of one file: each its own answer, as if it were a file of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import speechssl
from speechssl import inference
from speechssl.answers import answer_each, tabulate
from speechssl.errors import AudioError
from speechssl.inference import LoadedRun, infer_with
from speechssl.jobs import build_task
from speechssl.probe import build_probe
from speechssl.runner import resolve_config
from speechssl.types import Utterance

RATE = 16_000
STRETCHES = {"x": (0.0, 0.8), "y": (1.0, 0.9), "z": (0.5, 1.5)}
"""Id -> start and duration, seconds; the third reaches to the end of the file."""
OF_PARTS = ("fields=[tone]", "features.pooling=none", "train.max_duration=null")
TASKS: Mapping[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {
    "keyword_spotting": ((), {"classes": {"word": ["no", "yes"]}}),
    "phoneme_recognition": (("project_size=8",), {"words": ["a", "b", "c"]}),
    "slot_filling": (("project_size=8", "hidden_size=8"), {"characters": "AB ", "slots": ["city"]}),
    "probe": (("level=segment", *OF_PARTS), {"classes": {"tone": ["1", "2"]}}),
    "probe of frames": (("level=frame", *OF_PARTS), {"classes": {"tone": ["1", "2"]}}),
    "diarization": (("hidden_size=8", "simulate=null"), {}),
    "speech_enhancement": (("hidden_size=8", "simulate=null"), {}),
    "query_by_example": ((), {"layer": 0}),
    "speaker_verification": (("project_size=8", "pooled_size=8", "embedding_size=8"), {"speakers": ["a", "b"]}),
}
"""Name -> settings, and what `Task.state` kept."""
COMPARE = ("query_by_example", "speaker_verification")


def untrained(name: str) -> LoadedRun:
    """As `load_run` makes it of a run."""
    settings, state = TASKS[name]
    folder, config = resolve_config(name.split(" ", maxsplit=1)[0], overrides=settings)
    task = build_task(folder, config)
    data = task.restore(state)
    upstream = speechssl.load_upstream("fbank")
    probe = build_probe(task, data, num_layers=1, size=upstream.hidden_sizes[0], frame_rate=upstream.frame_rate, seed=0)
    return LoadedRun(task, data, probe.eval(), upstream, (0,), "cpu")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.wav"
    samples = 0.1 * torch.randn(2 * RATE, generator=torch.Generator().manual_seed(0)).cumsum(0).sin()
    soundfile.write(path, samples.numpy(), RATE, subtype="FLOAT")
    return path


@pytest.fixture
def stretches(recording: Path) -> list[Utterance]:
    return [
        Utterance(name, str(recording), start, None if name == "z" else duration)
        for name, (start, duration) in STRETCHES.items()
    ]


@pytest.fixture
def files(recording: Path, tmp_path: Path) -> list[Path]:
    """The same stretches, each cut into a file."""
    samples, _ = soundfile.read(recording, dtype="float32")
    for name, (start, duration) in STRETCHES.items():
        first = round(start * RATE)
        soundfile.write(
            tmp_path / f"{name}.wav", samples[first : first + round(duration * RATE)], RATE, subtype="FLOAT"
        )
    return [tmp_path / f"{name}.wav" for name in STRETCHES]


def shifted(answer: Any, seconds: float) -> Any:
    """An answer whose times begin so much later."""
    if isinstance(answer, list):
        return [shifted(one, seconds) for one in answer]
    if isinstance(answer, dict):
        return {k: v + seconds if k in ("start", "end") else shifted(v, seconds) for k, v in answer.items()}
    return answer


def near(answer: Any, tolerance: float = 1e-4) -> Any:
    """The answer, with numbers up to rounding, and times up to what is left of the last frame."""
    if isinstance(answer, list):
        return [near(one) for one in answer]
    if isinstance(answer, dict):
        return {key: near(value, 0.025 if key in ("start", "end") else 1e-4) for key, value in answer.items()}
    return pytest.approx(answer, abs=tolerance) if isinstance(answer, float) else answer


@pytest.mark.parametrize("name", [name for name in TASKS if name not in COMPARE])
def test_a_stretch_has_the_answer_of_a_file_that_holds_nothing_else(
    name: str, stretches: list[Utterance], files: list[Path], tmp_path: Path
) -> None:
    run = untrained(name)
    found, alone = (infer_with(run, items, folder=tmp_path / "out") for items in (stretches, files))
    assert list(alone) == [str(file) for file in files]
    for utterance, file in zip(stretches, files, strict=True):
        own = found[f"{utterance.path} ({utterance.id})"]
        start, duration = STRETCHES[utterance.id]
        assert (own["id"], own["start"], own["end"]) == (utterance.id, start, start + duration)
        answer, expected = own["answer"], alone[str(file)]
        if name == "speech_enhancement":
            answer, expected = ([list(soundfile.read(path)[0]) for path in paths] for paths in (answer, expected))
        assert answer == near(shifted(expected, start))
    header, rows = run.task.table(found)
    assert header[:2] == ["file", "stretch"] and {row[1] for row in rows} == {
        "0.00–0.80 s", "1.00–1.90 s", "0.50–2.00 s"
    }  # fmt: skip


def test_stretches_are_compared_as_files_are(
    recording: Path, stretches: list[Utterance], files: list[Path], tmp_path: Path
) -> None:
    names = [f"{recording} ({utterance.id})" for utterance in stretches]
    run = untrained("speaker_verification")
    found, alone = (infer_with(run, items, folder=tmp_path) for items in (stretches, files))
    assert found["files"] == names
    np.testing.assert_allclose(found["cosine"], alone["cosine"], atol=1e-4)
    header, rows = run.task.table(found)
    assert header == ["file", "other file", "cosine"]
    assert rows == [
        [names[a], names[b], f"{found['cosine'][a][b]:.4f}"] for a, b in ((0, 1), (0, 2), (1, 2))
    ]  # fmt: skip


def test_a_search_says_where_in_the_file_a_stretch_of_it_fits(
    recording: Path, stretches: list[Utterance], files: list[Path], tmp_path: Path
) -> None:
    run = untrained("query_by_example")
    found, alone = (infer_with(run, items, folder=tmp_path) for items in (stretches, files))
    assert found["query"] == f"{recording} (x)"
    starts = {str(file): (f"{recording} ({name})", STRETCHES[name][0]) for name, file in zip("xyz", files, strict=True)}
    expected = [{**shifted(one, starts[one["path"]][1]), "path": starts[one["path"]][0]} for one in alone["documents"]]
    assert found["documents"] == near(expected)
    best = found["documents"][0]  # z holds the last 0.3 s of x
    assert run.task.table(found)[1][0] == [best["path"], str(best["score"]), str(best["start"]), str(best["end"])]


def test_features_of_a_few_files_at_a_time_are_held(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "GROUP", 2)
    run = untrained("keyword_spotting")
    many = [Utterance(f"{k}", str(recording), 0.1 * k, 0.5) for k in range(5)]
    heard: list[list[str]] = []
    features = LoadedRun.features

    def watched(self: LoadedRun, part: Sequence[Utterance]) -> dict[str, torch.Tensor]:
        heard.append([u.id for u in part])
        return features(self, part)

    monkeypatch.setattr(LoadedRun, "features", watched)
    found = infer_with(run, many, folder=tmp_path)
    assert heard == [["0", "1"], ["2", "3"], ["4"]]
    assert [one["id"] for one in found.values()] == ["0", "1", "2", "3", "4"]


def test_a_missing_file_is_told_before_anything_is_heard(recording: Path, tmp_path: Path) -> None:
    items: list[Utterance | Path] = [*(Utterance(f"{k}", str(recording)) for k in range(3)), tmp_path / "gone.wav"]
    run = untrained("keyword_spotting")
    object.__setattr__(run, "upstream", None)  # nothing could be computed
    with pytest.raises(AudioError, match=r"gone\.wav"):
        infer_with(run, items, folder=tmp_path)


def test_a_table_has_a_row_for_each_part_of_an_answer() -> None:
    word = {"word": {"label": "yes", "probability": 0.25}}
    assert tabulate({"a": word}) == (["file", "word", "word probability"], [["a", "yes", "0.250"]])
    spans = [{"speaker": "A", "start": 0.0, "end": 1.5}, {"speaker": "B", "start": 1.0, "end": 2.0}]
    assert tabulate({"a": spans, "b": []}) == (
        ["file", "speaker", "start", "end", "answer"],
        [["a", "A", "0.000", "1.500", ""], ["a", "B", "1.000", "2.000", ""], ["b", "", "", "", "nothing"]],
    )
    slots = {"text": "TO ROME", "slots": [{"slot": "city", "value": "ROME"}]}
    assert tabulate({"a": slots})[1] == [["a", "TO ROME", "city ROME"]]
    assert tabulate({"a": "said", "b": "too"}) == (["file", "answer"], [["a", "said"], ["b", "too"]])


def test_files_without_stretches_are_answered_as_ever() -> None:
    files = [Utterance("a", "a.wav"), Utterance("b", "b.wav", 1.0, 2.0)]
    assert answer_each(files, lambda u: u.id.upper()) == {"a.wav": "A", "b.wav": "B"}
