"""Where pre-training's audio comes from: corpora, manifests and Shar folders, indexed, joined, labelled; bad input."""

import gzip
import json
import pickle
import shutil
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import CutSet
from pretrain_corpora import rewrite

from speechssl.audio import audio_info, content_hash, read_audio
from speechssl.data import sources
from speechssl.data.batching import OPEN_SHARDS, BatchStream, make_generator
from speechssl.data.corpus import open_corpus
from speechssl.data.indexed import JoinedIndex, ListedIndex, MappedIndex
from speechssl.data.shar import iterate_shar
from speechssl.data.sources import TrainingCorpus, open_source, open_sources
from speechssl.data.strings import StringTable, find_all
from speechssl.errors import ManifestError, SpeechsslError
from speechssl.files import member_path
from speechssl.loading import load_upstream
from speechssl.targets.cluster import ClusterConfig, cluster
from speechssl.targets.labels import UtteranceLabels, load_labels, make_label_set
from speechssl.targets.lloyd import KMeansConfig
from speechssl.train.config import PretrainConfig
from speechssl.train.data import PretrainDataset
from speechssl.train.selection import CropConfig
from speechssl.types import Utterance

CROP = CropConfig(16_000, 50.0, min_seconds=0.5, max_seconds=1.0, seed=3)


# Sources


def test_a_manifest_and_shar_give_what_the_prepared_corpus_gives(
    tiny_corpus: Path, manifest: Path, shar: Path, index_folder: Path
) -> None:
    prepared = open_source(tiny_corpus, "train")
    others = [open_source(manifest, "train"), open_source(shar, "train")]
    assert isinstance(prepared.index, MappedIndex)
    assert others[1].index.shards is not None
    expected = open_corpus(tiny_corpus).utterances("train")
    assert list(prepared.index) == expected
    for source in others:
        assert source.index.ids == [u.id for u in expected]
        for found, wanted in zip(source.index, expected, strict=True):
            assert (found.labels, found.duration) == (wanted.labels, wanted.duration)
            assert torch.equal(read_audio(found.path), read_audio(wanted.path))
    assert prepared.fingerprint == open_corpus(tiny_corpus).fingerprint
    assert len(list(index_folder.glob("*/meta.json"))) == 3


def test_what_lhotse_reads_from_shar_in_order_is_read_at_random(shar: Path) -> None:
    lines = {u.id: u for _, u in iterate_shar(shar)}
    for cut in CutSet.from_shar(in_dir=shar):
        path = lines[cut.id].path
        np.testing.assert_array_equal(read_audio(path).numpy(), cut.load_audio()[0])
        assert audio_info(path).frames == cut.num_samples
    assert len({content_hash(u.path) for u in lines.values()}) == len(lines)


def test_an_index_is_made_once_and_again_when_the_manifest_changes(
    manifest: Path, tmp_path: Path, index_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cuts.jsonl.gz"
    shutil.copy(manifest, path)
    first = open_source(path, "train")
    assert "Indexing" in capfd.readouterr().err
    again = open_source(path, "train")
    assert "Indexing" not in capfd.readouterr().err
    assert again.fingerprint == first.fingerprint
    lines = gzip.decompress(manifest.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(lines[1:])))
    shorter = open_source(path, "train")
    assert len(shorter.index) == len(first.index) - 1
    assert shorter.fingerprint != first.fingerprint
    assert first.index[0].id != shorter.index[0].id  # the old files are still there for who has them open
    assert [p.name for p in index_folder.iterdir() if p.is_dir()] == [shorter.index.folder.name]  # type: ignore[attr-defined]


def test_small_manifests_are_not_indexed_and_have_the_same_fingerprint(
    manifest: Path, index_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed = open_source(manifest, "train")
    monkeypatch.setattr(sources, "SMALL", 1e9)
    listed = open_source(manifest, "train")
    assert isinstance(listed.index, ListedIndex)
    assert listed.fingerprint == indexed.fingerprint
    assert list(listed.index) == list(indexed.index)


def test_an_index_is_pickled_by_its_folder(manifest: Path, index_folder: Path) -> None:
    index = open_source(manifest, "train").index
    text = pickle.dumps(index)
    assert len(text) < 400
    assert list(pickle.loads(text)) == list(index)  # noqa: S301  # of our own


def test_batches_of_shar_come_from_few_archives_at_a_time(shar: Path) -> None:
    shards = np.repeat(np.arange(40, dtype=np.int32), 25)
    durations = 1 + 10 * torch.rand(1000, generator=make_generator(0)).double().numpy()
    stream = BatchStream(durations, batch_seconds=30.0, seed=1, shards=shards)
    plan = stream.plan(0)
    assert sorted(plan.items.tolist()) == list(range(1000))
    opened: list[set[int]] = []
    for number in range(len(plan)):
        own = set(shards[plan.indices(number)].tolist())
        if not opened or len(opened[-1] | own) > OPEN_SHARDS:
            opened.append(set())
        opened[-1] |= own
    assert len(opened) == 3  # 40 archives in groups of 16
    assert not np.array_equal(plan.items, stream.plan(1).items)


def test_files_are_mixed_with_the_archives_of_other_corpora() -> None:
    files = [Utterance(f"f{n}", f"/f/{n}.flac", 0.0, 5.0) for n in range(40_000)]
    members = [Utterance(f"m{n}", member_path(Path(f"/m/{n // 1000}.tar"), 0, 1), 0.0, 5.0) for n in range(40_000)]
    index = JoinedIndex({"files": ListedIndex(files), "archives": ListedIndex(members)})
    assert index.shards is not None
    plan = BatchStream(index.durations, batch_seconds=50.0, seed=0, shards=index.shards).plan(0)
    shares = [(plan.items[n : n + 16_000] < 40_000).mean() for n in range(0, 80_000, 16_000)]
    assert min(shares) > 0.1
    assert max(shares) < 0.9
    assert len(set(index.shards[:40_000]) & set(index.shards[40_000:])) == 0


# Lookups


def test_labels_are_found_in_any_order_and_of_several_corpora(tiny_corpus: Path, shar: Path, tmp_path: Path) -> None:
    parts = [open_source(path, "train") for path in (tiny_corpus, shar, tiny_corpus)]
    joined = open_sources([tiny_corpus, shar, tiny_corpus], "train")
    ids, index = list(joined.index.ids), joined.index
    assert ids[0] == f"tiny/{parts[0].index.ids[0]}"
    assert ids[-1] == index[len(ids) - 1].id == index.name(len(ids) - 1) == f"tiny#2/{parts[2].index.ids[-1]}"
    assert index.column("corpus").names == ("tiny", shar.name, "tiny#2")
    assert np.bincount(index.column("corpus").codes).tolist() == [len(p.index) for p in parts]
    assert [u.labels["corpus"] for u in index][:: len(parts[0].index)] == ["tiny", shar.name, "tiny#2"]
    assert joined.fingerprint != open_sources([shar, tiny_corpus, tiny_corpus], "train").fingerprint
    order = torch.randperm(len(ids), generator=make_generator(1)).tolist()
    codes = {ids[n]: torch.arange(n, n + 5) for n in order[1:]}
    made = make_label_set(codes, num_labels=500, label_rate=50.0, corpus=joined.fingerprint, origin="o")
    made.save(tmp_path / "labels.safetensors")
    labels = UtteranceLabels(load_labels(tmp_path / "labels.safetensors"), index)
    lengths = labels.lengths()
    assert np.flatnonzero(lengths < 0).tolist() == [order[0]]
    for number in order[1:]:
        assert labels.codes(number, 1, 4).tolist() == [number + 1, number + 2, number + 3]


def test_strings_of_a_table_are_those_that_went_in() -> None:
    names = ["a", "", "größer", "a b", "z" * 500]
    table = StringTable.of(names)
    assert table == names
    assert list(table) == names
    assert [table[-1], table[2]] == [names[-1], names[2]]
    assert table != [*names[:-1], "z"]
    assert StringTable.from_lines(table.text()) == table
    assert find_all(StringTable.of(["größer", "x", "a"]), table).tolist() == [2, -1, 0]
    assert find_all(table, StringTable.of([])).tolist() == [-1] * 5
    with pytest.raises(IndexError):
        table[5]


# Bad input


def test_a_corrupt_line_is_named_by_its_number(manifest: Path, tmp_path: Path, index_folder: Path) -> None:
    for damage in (
        b'{"id": "x", "start": 0.0\n',
        b"\xff\xfe\n",
        b"[]\n",
        b'{"id": "x", "start": 0.0, "duration": 1}\n',
    ):
        with pytest.raises(ManifestError, match="line 17, is not of a whole Lhotse manifest"):
            open_source(rewrite(manifest, tmp_path, {17: damage}), "train")
    assert not list(index_folder.glob("*/meta.json"))  # nothing half is taken for an index


def test_an_id_that_stands_twice_is_named(manifest: Path, tmp_path: Path, index_folder: Path) -> None:
    first = gzip.decompress(manifest.read_bytes()).splitlines(keepends=True)[2]
    path = rewrite(manifest, tmp_path, {9: first})
    for small in (0, 1e9):
        sources.SMALL = small
        with pytest.raises(ManifestError, match=f"3 and 9 have the same id '{json.loads(first)['id']}'"):
            open_source(path, "train")


def test_what_is_no_source_or_an_empty_one_is_a_sentence(manifest: Path, tmp_path: Path, index_folder: Path) -> None:
    with pytest.raises(ManifestError, match="no corpus, manifest or Shar folder"):
        open_source(tmp_path, "train")
    with pytest.raises(ManifestError, match="does not exist"):
        open_source(tmp_path / "nothing.jsonl", "train")
    (tmp_path / "none.jsonl").write_bytes(b"")
    with pytest.raises(ManifestError, match="0 bytes"):
        open_source(tmp_path / "none.jsonl", "train")
    (tmp_path / "none.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(ManifestError, match="no utterance in"):
        open_source(tmp_path / "none.jsonl.gz", "train")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SpeechsslError, match="SPEECHSSL_CACHE"):
        open_source(manifest, "train", cache=tmp_path / "file" / "cache")


def test_damaged_archives_are_named(shar: Path, tmp_path: Path, index_folder: Path) -> None:
    folder = tmp_path / "shar"
    shutil.copytree(shar, folder)
    archive = folder / "recording.000001.tar"
    archive.write_bytes((folder / "recording.000000.tar").read_bytes())
    with pytest.raises(ManifestError, match=r"000001\.jsonl\.gz, line 1, is the cut .* in its place"):
        open_source(folder, "train")
    with tarfile.open(shar / "recording.000001.tar") as whole, tarfile.open(archive, "w") as part:
        for member in whole.getmembers()[:6]:
            part.addfile(member, whole.extractfile(member))
    with pytest.raises(ManifestError, match=r"line 4, is the cut .* ends before it"):
        open_source(folder, "train")
    archive.write_bytes(b"no archive" * 100)
    with pytest.raises(ManifestError, match=r"recording\.000001\.tar can't be read"):
        open_source(folder, "train")
    archive.unlink()
    with pytest.raises(ManifestError, match=r"recording\.000001\.tar .* does not exist"):
        open_source(folder, "train")


def test_memory_grows_by_less_than_sixty_bytes_per_utterance(tmp_path: Path, index_folder: Path) -> None:
    def grown(count: int) -> int:
        path = tmp_path / f"{count}.jsonl"
        cut = '{"id": "%d", "start": 0, "duration": %.2f, "recording": {"sources": [{"source": "/a/%d.flac"}]}}\n'
        path.write_text("".join(cut % (n, 2 + n % 977 / 100, n) for n in range(count)))
        codes = {str(n): torch.zeros(int(50 * (2 + n % 977 / 100)), dtype=torch.long) for n in range(count)}
        index = open_source(path, "train").index
        make_label_set(codes, num_labels=3, label_rate=50.0, corpus="c", origin="o").save(tmp_path / "l.safetensors")
        del codes
        tracemalloc.start()
        dataset = PretrainDataset(index, [load_labels(tmp_path / "l.safetensors")], CROP, cache_gb=0.0)
        batches = iter(dataset.stream(PretrainConfig()))
        next(batches)
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return size

    assert (grown(22_000) - grown(2_000)) / 20_000 < 60


def test_shar_is_clustered_as_the_files_are(tiny_corpus: Path, shar: Path, tmp_path: Path) -> None:
    config = ClusterConfig(layer=0, kmeans=KMeansConfig(clusters=5), fraction=1.0)
    found = []
    for path in (tiny_corpus, shar):
        corpus = TrainingCorpus([path], "train")
        found.append(cluster(load_upstream("mfcc"), corpus, tmp_path / path.name, config).labels["train"])
    assert found[0].corpus != found[1].corpus
    assert torch.equal(found[0].codes, found[1].codes)
    assert found[0].ids == found[1].ids
