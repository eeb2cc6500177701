"""`speechssl cluster` beyond one process and beyond memory, and its labels as fairseq reads them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import run

from speechssl.audio import audio_info
from speechssl.data.corpus import open_corpus
from speechssl.errors import SpeechsslError
from speechssl.loading import load_upstream
from speechssl.targets.cluster import ClusterConfig, cluster
from speechssl.targets.fairseq_labels import write_fairseq_labels
from speechssl.targets.kmeans import load_kmeans
from speechssl.targets.labels import label_path, load_labels, make_label_set
from speechssl.targets.lloyd import KMeansConfig, _Spare

CONFIG = ClusterConfig(layer=0, kmeans=KMeansConfig(clusters=12), fraction=1.0)


def test_passes_over_the_corpus_see_frames_that_do_not_fit_into_memory(tiny_corpus: Path, tmp_path: Path) -> None:
    corpus, upstream = open_corpus(tiny_corpus), load_upstream("mfcc")
    small = replace(CONFIG, max_frames=400)
    everything = load_kmeans(_fit(tmp_path / "whole", CONFIG, tiny_corpus)).info
    sampled = _inertia(_fit(tmp_path / "sampled", small, tiny_corpus), corpus, upstream)
    lloyd = load_kmeans(_fit(tmp_path / "lloyd", replace(small, corpus_passes=4), tiny_corpus)).info
    mini = load_kmeans(_fit(tmp_path / "mini", replace(small, minibatch_passes=2, minibatch=1000), tiny_corpus)).info
    assert lloyd["frames"] == mini["frames"] == everything["frames"]
    assert lloyd["inertia"] < sampled
    assert mini["inertia"] < sampled
    assert lloyd["inertia"] < 1.05 * everything["inertia"]


def _fit(folder: Path, config: ClusterConfig, corpus: Path) -> Path:
    cluster(load_upstream("mfcc"), open_corpus(corpus), folder, config)
    return folder


def _inertia(folder: Path, corpus: object, upstream: object) -> float:
    """Of all frames, by a slow way."""
    from speechssl.extraction import extract

    centroids = load_kmeans(folder).centroids.double()
    frames = torch.cat([states[0] for _, states in extract(upstream, corpus.utterances("train"), layers=[0])])  # type: ignore[attr-defined,arg-type]
    return float(torch.cdist(frames.double(), centroids).min(dim=1).values.square().mean())


def test_the_centroids_of_another_part_of_a_corpus_can_label_this_one(tiny_corpus: Path, tmp_path: Path) -> None:
    corpus, upstream = open_corpus(tiny_corpus), load_upstream("mfcc")
    first = cluster(upstream, corpus, tmp_path / "first", CONFIG)
    other = corpus.without([u.id for u in corpus.utterances("train")[::2]])
    second = cluster(upstream, other, tmp_path / "second", CONFIG, fitted=tmp_path / "first")
    theirs, ours = first.labels["train"].by_id(), second.labels["train"].by_id()
    assert 0 < len(ours) < len(theirs)
    assert all(torch.equal(codes, theirs[name]) for name, codes in ours.items())
    assert load_kmeans(tmp_path / "second").info["fitted_on"] == corpus.fingerprint
    with pytest.raises(SpeechsslError, match="holds a clustering with clusters=12, not 7"):
        seven = replace(CONFIG, kmeans=KMeansConfig(clusters=7))
        cluster(upstream, other, tmp_path / "third", seven, fitted=tmp_path / "first")


def test_what_can_not_end_well_is_told_before_features_are_made(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechssl.targets.cluster.extract", None)
    corpus, upstream = open_corpus(tiny_corpus), load_upstream("mfcc")
    (tmp_path / "file").write_text("")
    with pytest.raises(SpeechsslError, match=r"file is a file, but must be a folder"):
        cluster(upstream, corpus, tmp_path / "file" / "x", CONFIG)
    with pytest.raises(SpeechsslError, match="600000 clusters need as many frames: raise `--max-frames`"):
        cluster(upstream, corpus, tmp_path, replace(CONFIG, kmeans=KMeansConfig(clusters=600_000)))
    with pytest.raises(SpeechsslError, match=r"400000 clusters need as many frames, but the sample of \d+ s has"):
        cluster(upstream, corpus, tmp_path, replace(CONFIG, kmeans=KMeansConfig(clusters=400_000)))


def test_spare_frames_of_a_stream_take_bounded_memory() -> None:
    spare = _Spare(torch.Generator().manual_seed(0))
    for number in range(20):
        spare.offer(torch.full((1000, 3), float(number)), torch.full((1000,), 1.0 if number < 19 else 1e6))
    assert spare.rows is not None
    assert spare.rows.shape == (_Spare.KEPT, 3)
    assert (spare.rows == 19).all()


def test_two_processes_label_as_one_does(tiny_corpus: Path, tmp_path: Path) -> None:
    command = ["cluster", "--upstream", "mfcc", "--corpus", str(tiny_corpus), "--clusters", "12", "--fraction", "1",
               "--corpus-passes", "1", "--split", "train", "--split", "dev"]  # fmt: skip
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, "-m", "speechssl", *command, "-o", str(tmp_path / "two")],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert run(*command, "-o", tmp_path / "one") == 0
    one, two = (load_kmeans(tmp_path / name) for name in ("one", "two"))
    assert two.info["frames"] == one.info["frames"]
    assert two.info["inertia"] == pytest.approx(one.info["inertia"], rel=0.05)  # other first centroids
    corpus = open_corpus(tiny_corpus)
    for split in ("train", "dev"):
        found = load_labels(label_path(tmp_path / "two", split))
        assert found.ids == tuple(u.id for u in corpus.utterances(split))
        again = cluster(
            load_upstream("mfcc"), corpus, tmp_path / "two", replace(CONFIG, corpus_passes=1), splits=["train", "dev"]
        )
        assert again.labels[split].fingerprint() == found.fingerprint()  # kept, not made anew
    centroids = two.centroids
    for utterance in corpus.utterances("dev")[:3]:
        from speechssl.audio import read_audio

        states = load_upstream("mfcc")(read_audio(utterance.path, sample_rate=16_000)[None], layers=[0]).hidden_states
        expected = torch.cdist(states[0][0], centroids).argmin(dim=1)
        codes = load_labels(label_path(tmp_path / "two", "dev")).by_id()[utterance.id]
        assert (codes == expected).float().mean() > 0.99
    assert not list((tmp_path / "two").glob("*.shards"))


def test_fairseq_reads_the_labels(tiny_corpus: Path, tmp_path: Path) -> None:
    corpus = open_corpus(tiny_corpus)
    command = ["cluster", "--upstream", "mfcc", "--corpus", tiny_corpus, "--clusters", "12", "--fairseq"]
    assert run(*command, "-o", tmp_path) == 0
    # As fairseq's hubert_dataset.py reads them.
    root, *rows = (tmp_path / "train.tsv").read_text().splitlines()
    lines = (tmp_path / "train.km").read_text().splitlines()
    entries = [line.split()[0] for line in (tmp_path / "dict.km.txt").read_text().splitlines()]
    labels = load_labels(label_path(tmp_path, "train")).by_id()
    assert len(rows) == len(lines) == len(corpus.utterances("train"))
    for row, line, utterance in zip(rows, lines, corpus.utterances("train"), strict=True):
        name, samples = row.split("\t")
        path = Path(root) / name
        assert path.samefile(utterance.path)
        info = audio_info(str(path))
        assert int(samples) == round(info.duration * info.sample_rate)
        assert [entries.index(word) for word in line.split()] == labels[utterance.id].tolist()
        assert abs(len(line.split()) / 100 - int(samples) / info.sample_rate) < 0.05


def test_parts_of_files_have_no_place_in_a_fairseq_manifest(tiny_corpus: Path, tmp_path: Path) -> None:
    corpus = open_corpus(tiny_corpus)
    outcome = cluster(load_upstream("mfcc"), corpus, tmp_path, CONFIG)
    utterances = [replace(u, start=0.1) for u in corpus.utterances("train")]
    with pytest.raises(SpeechsslError, match="is a part of"):
        write_fairseq_labels(outcome.labels["train"], utterances, tmp_path, split="train")


@pytest.mark.parametrize("wrong", [12, -1])
def test_a_code_that_no_cluster_has_is_named(tmp_path: Path, wrong: int) -> None:
    path = label_path(tmp_path, "train")
    codes = {"one": torch.tensor([0, 11, wrong])}
    make_label_set(codes, num_labels=12, label_rate=50.0, corpus="c", origin="o").save(path)
    with pytest.raises(SpeechsslError, match=rf"code {wrong}, but are of 12 clusters"):
        load_labels(path)
