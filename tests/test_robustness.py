"""Finished runs of any task under disturbances, where some of the corpus was left out."""

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from speechssl.augment.disturbances import CLEAN
from speechssl.commands.robustness import score_robustness
from speechssl.data.corpus import open_corpus
from speechssl.errors import AudioError, ConfigError, ManifestError
from speechssl.jobs import RunOptions, without_bad_files
from speechssl.result import load_result
from speechssl.robustness import measure_robustness, read_robustness
from speechssl.runner import run


def test_a_run_without_bad_files_is_tested_without_them(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("speechssl.classification.task.Classification.labels_whole", True, raising=False)
    root = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, root)
    broken, short = open_corpus(root).utterances("test")[:2]
    Path(broken.path).write_text("no audio")
    manifest = root / "manifests/test.jsonl.gz"
    cuts = [json.loads(line) for line in gzip.decompress(manifest.read_bytes()).splitlines()]
    cuts[1]["duration"] = cuts[1]["supervisions"][0]["duration"] = 0.005
    assert cuts[1]["id"] == short.id
    manifest.write_bytes(gzip.compress("".join(json.dumps(cut) + "\n" for cut in cuts).encode()))
    options = RunOptions(cache_folder=str(tmp_path / "cache"), skip_bad=True)
    settings = ["train.steps=2", "train.evaluate_every=2", "train.batch_seconds=6"]
    (result,) = run(
        "language_identification", upstream="fbank", corpus=root, overrides=settings, out=tmp_path / "exp",
        options=options,
    )  # fmt: skip
    everything = len(open_corpus(root).utterances("test"))
    assert result.test.metrics["accuracy"].n == everything - 2
    folder = tmp_path / "exp/language_identification/fbank/seed0"
    with pytest.raises(ManifestError, match="say `--set skip_bad=true`"):
        measure_robustness(folder, open_corpus(root), conditions=["delayed"], options=options)
    with pytest.raises(AudioError, match="shorter than one frame"):
        measure_robustness(
            folder,
            without_bad_files(open_corpus(root)),
            conditions=["delayed"],
            options=replace(options, skip_bad=False),
        )
    with pytest.raises(ConfigError, match="`skip_bad` must be true or false"):
        score_robustness([folder], conditions=["padded"], settings=["skip_bad=yes"], device="cpu")
    given = [f"corpus={root}", "skip_bad=true", f"cache={tmp_path / 'cache'}"]
    score_robustness([folder], conditions=["delayed"], settings=given, device="cpu")
    assert "Delayed" in capsys.readouterr().out
    found = read_robustness(folder)
    assert found is not None and list(found.conditions) == [CLEAN, "delayed"]
    # The one that is too short would be long enough where it is delayed, and is not counted there either.
    assert {condition["accuracy"].n for condition in found.conditions.values()} == {everything - 2}
    assert found.conditions[CLEAN]["accuracy"].value == load_result(folder).test.metrics["accuracy"].value
    assert json.loads((folder / "result.json").read_text())["corpus"]["fingerprint"] != open_corpus(root).fingerprint
