"""Files are there whole or not at all, readable as the umask says, and a full disk is named with the file."""

import errno
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from speechssl.checkpoint import WEIGHTS_FILE, save_tensors, save_upstream
from speechssl.data.flac import write_flac
from speechssl.files import FULL, replacing
from speechssl.loading import load_upstream
from speechssl.targets.kmeans import KMeans
from speechssl.targets.labels import make_label_set


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_every_file_has_the_permissions_that_the_umask_leaves(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        save_upstream(load_upstream("hubert_tiny", random_weights=0), tmp_path / "upstream")
        KMeans(torch.zeros(2, 3)).save(tmp_path / "kmeans")
        labels = make_label_set({"a": torch.tensor([0, 1])}, num_labels=2, label_rate=50.0, corpus="x", origin="y")
        labels.save(tmp_path / "labels.safetensors")
        write_flac(tmp_path / "a.flac", torch.zeros(160).numpy())
        with replacing(tmp_path / "own") as partial:
            partial.unlink()
            partial.touch(mode=0o600)
    finally:
        os.umask(before)
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {p.name for p in written} >= {WEIGHTS_FILE, "kmeans.safetensors", "labels.safetensors", "a.flac", "own"}
    assert {p.name: oct(mode(p)) for p in written} == {p.name: oct(0o666 & ~umask) for p in written}


def test_an_error_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")
    with pytest.raises(ValueError, match="broken"), replacing(path) as partial:
        partial.write_text("half")
        raise ValueError("broken")
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_names_the_file_whoever_writes(
    tmp_path: Path, files_no_larger_than: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = tmp_path / "weights.safetensors"
    save_tensors({"x": torch.ones(3)}, path)
    with files_no_larger_than(10_000), pytest.raises(OSError) as stop:
        save_tensors({"x": torch.zeros(100_000)}, path)
    assert stop.value.errno in FULL and stop.value.filename == str(path)
    with files_no_larger_than(10_000), pytest.raises(OSError) as stop, replacing(path) as partial:
        partial.write_bytes(bytes(100_000))
    assert stop.value.errno == errno.EFBIG and stop.value.filename == str(path)
    with files_no_larger_than(10_000), pytest.raises(OSError) as stop, replacing(path) as partial:
        torch.save({"x": torch.zeros(100_000)}, partial)
    assert stop.value.errno in FULL and stop.value.filename == str(path)
    assert load_file(path)["x"].tolist() == [1.0, 1.0, 1.0]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
