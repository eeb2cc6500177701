"""How a task that judges each file for itself is given a user's files, with a task that only says what it heard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from speechssl import inference
from speechssl.errors import AudioError
from speechssl.inference import Prepared, infer_with
from speechssl.types import Utterance


class Hears:
    """Says from where to where it heard a file; what begins at 2 s can't be judged, what begins at 3 s not be heard."""

    name = "hears"

    def change_listening(self, settings: Mapping[str, str]) -> None:
        assert not settings

    def prepare_files(self, utterances: Sequence[Utterance], folder: Path) -> Prepared:
        assert folder.is_dir() and len(utterances) <= inference.GROUP
        kept = [
            Utterance(f"{n}", u.path, u.start, u.duration, {"file": u.path})
            for n, u in enumerate(utterances)
            if u.start != 2.0
        ]
        return Prepared(kept, {u.path: f"{u.path} is two." for u in utterances if u.start == 2.0})

    def infer(self, _: Any, features: Mapping[str, Any], utterances: Sequence[Utterance], *__: Any) -> dict[str, Any]:
        assert all(u.id in features for u in utterances)
        return {u.labels["file"]: (u.start, u.duration) for u in utterances}

    def table(self, found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
        raise NotImplementedError

    def page(self, found: Mapping[str, Any]) -> Sequence[Any]:
        raise NotImplementedError


def judged(items: Any, folder: Path) -> Any:
    def features(utterances: Sequence[Utterance], *, bad: dict[str, str]) -> dict[str, torch.Tensor]:
        bad.update({u.id: f"{u.path} is three." for u in utterances if u.start == 3.0})
        return {u.id: torch.zeros(1, 1) for u in utterances if u.start != 3.0}

    run: Any = SimpleNamespace(task=Hears(), features=features, probe=SimpleNamespace(head=None), data=None)
    return infer_with(run, items, folder=folder)


def test_stretches_of_one_file_are_judged_apart_and_none_is_lost(tmp_path: Path) -> None:
    stretches = [Utterance(f"s{k}", "long.wav", float(k), 1.0) for k in range(5)]
    files = [Utterance(f"f{k}", f"{k}.wav", 0.0, 7.0) for k in range(inference.GROUP + 3)]
    found = judged([*stretches, *files], tmp_path)
    assert list(found) == [*(f"long.wav (s{k})" for k in range(5)), *(u.path for u in files)]
    assert [found[f"long.wav (s{k})"] for k in (0, 1, 4)] == [(0.0, 1.0), (1.0, 1.0), (4.0, 1.0)]
    assert found["long.wav (s2)"] == {"error": "long.wav is two."}
    assert found["long.wav (s3)"] == {"error": "long.wav is three."}
    assert all(found[u.path] == (0.0, 7.0) for u in files)


def test_where_nothing_can_be_judged_this_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"is two\. 1 more files can't be judged either"):
        judged([Utterance("a", "a.wav", 2.0), Utterance("b", "b.wav", 3.0)], tmp_path)
