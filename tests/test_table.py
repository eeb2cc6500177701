"""Corpora from tables of audio files: what becomes of each column, and what is refused."""

from pathlib import Path

import pytest
from corpus_trees import put_audio, put_list
from corpus_trees import table as make_tree

from speechssl.data.corpora.audit import audit
from speechssl.data.corpora.base import Item, Reading
from speechssl.data.corpora.prepare import prepare_corpus
from speechssl.data.corpora.table import CONFIG, TableConfig, read
from speechssl.data.corpus import open_corpus
from speechssl.errors import ManifestError


def items(reading: Reading) -> dict[str, Item]:
    return {item.id: item for part in reading.splits.values() for item in part}


def test_columns_become_paths_times_splits_and_labels(tmp_path: Path) -> None:
    reading = read(make_tree(tmp_path), CONFIG)
    assert {split: [i.id for i in part] for split, part in reading.splits.items()} == {
        "training": ["audio-0-0.000", "audio-0-0.500", "audio-1"],
        "dev": ["audio-2", "audio-3"],
        "test": ["audio-4", "audio-5"],
    }
    found = items(reading)
    first, second = found["audio-0-0.000"], found["audio-0-0.500"]
    assert first.path == second.path == str(tmp_path / "audio" / "0.wav")
    assert (first.start, first.duration, second.start, second.duration) == (0.0, 0.5, 0.5, None)
    assert first.labels == {"speaker": "ann", "emotion": "sad", "score": "3.5"}
    assert found["audio-5"].labels == {"speaker": "joe"}  # empty cells are no labels
    assert found["audio-2"].labels["tone"] == [
        {"start": 0.0, "end": 0.1, "value": "0"},
        {"start": 0.1, "end": 0.2, "value": "1"},
        {"start": 0.2, "end": 0.3, "value": "0"},
    ]


def test_a_prepared_table_hands_out_the_labels(tmp_path: Path) -> None:
    settings = put_list(tmp_path / "settings.yaml", ["splits: {training: train}"])
    prepare_corpus("table", make_tree(tmp_path / "source"), tmp_path / "out", config=settings)
    corpus = open_corpus(tmp_path / "out")
    assert corpus.splits() == ["dev", "test", "train"]
    assert [(u.start, u.duration, u.labels["emotion"]) for u in corpus.utterances("train")] == [
        (0.0, 0.5, "sad"),
        (0.5, 0.5, "happy"),
        (0.0, 1.0, "sad"),
    ]
    assert corpus.utterances("test")[0].labels["tone"][2] == {"start": 0.2, "end": 0.3, "value": "0"}


def test_several_tables_are_splits_and_one_is_train(tmp_path: Path) -> None:
    for name in ("train", "validation", "eval"):
        put_list(tmp_path / f"{name}.tsv", ["path\tnote", f'{name}.wav\tsaid "{name}"'])
    splits = read(tmp_path, CONFIG).splits
    assert {name: [i.labels["note"] for i in part] for name, part in splits.items()} == {
        "train": ['said "train"'],
        "dev": ['said "validation"'],
        "test": ['said "eval"'],
    }
    alone = put_list(tmp_path / "alone" / "all.csv", ["path;id;mood", "/far/away.flac;x1;a, b"])
    (item,) = read(alone, CONFIG).splits["train"]  # the table itself may be named
    assert item == Item("x1", "/far/away.flac", {"mood": "a, b"})
    assert list(read(alone.parent, CONFIG).splits) == ["train"]
    assert items(read(put_list(tmp_path / "b" / "b.csv", ["path", "../a/b.c.wav"]), CONFIG)).keys() == {"a-b.c"}


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.csv": ["path,tone", "x.wav,1"], "segments.csv": ["id,start,end,tone", "x,0,1,1"]}, "a.csv, line 2, has a"),
        ({"a.csv": ["path"]}, "has a first line and no other"),
        ({"a.csv": ["path", "x.wav"], "b.csv": ["path", "x.wav"]}, r"b.csv, line 2, has the id 'x', as has .*a.csv, l"),
        ({"a.csv": ["path", "x.wav"], "segments.csv": ["id"], "segments.tsv": ["id"]}, "keep one of them"),
        ({"a.csv": ["file", "x.wav"]}, "a.csv, line 1, names no column 'path'"),
        ({"a.csv": ["path,start", "x.wav,-1"]}, "line 2, has '-1' as 'start', which must be seconds"),
        ({"a.csv": ["path,end", "x.wav,nan"]}, "line 2, has 'nan' as 'end'"),
        ({"a.csv": ["path,b", "x.wav"]}, "line 2, has 1 values for 2 columns"),
        ({"notes.txt": ["path"]}, "does not hold a table of audio files"),
        ({"a.csv": ["path", "speech1.wav"], "segments.csv": ["id,start,end,t", "speech2,0,1,1"]}, "mean 'speech1'"),
    ],
)
def test_what_contradicts_itself_is_named_with_its_line(
    files: dict[str, list[str]], reason: str, tmp_path: Path
) -> None:
    for name, lines in files.items():
        put_list(tmp_path / name, lines)
    with pytest.raises(ManifestError, match=reason):
        read(tmp_path, CONFIG)


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no split 'trainig'\. Did you mean 'training'"):
        read(make_tree(tmp_path), TableConfig(splits={"trainig": "train"}))


def test_what_is_missing_is_counted_without_opening_audio(tmp_path: Path) -> None:
    put_list(tmp_path / "a.csv", ["path,split", "x.wav,train", "y.wav,train", "z.wav,test"])
    put_audio(tmp_path / "x.wav")
    rows = {row.what: (row.expected, row.found, row.fault) for row in audit("table", tmp_path)}
    assert rows == {"train: utterances": (2, 1, True), "test: utterances": (1, 0, True)}
