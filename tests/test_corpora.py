"""Published corpora: what holds for each of them, on small trees with the real layout."""

import dataclasses
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from corpus_trees import BOM, put_audio, put_list
from corpus_trees import TREES as OTHER_TREES
from spoof_trees import SPOOF_TREES

from speechssl import cli
from speechssl.data.corpora.audit import audit, find_missing
from speechssl.data.corpora.base import HELPERS, Count, Item, Reading, corpus_module, list_corpora
from speechssl.data.corpora.prepare import prepare_corpus
from speechssl.data.corpus import open_corpus
from speechssl.data.sources import open_source
from speechssl.errors import ConfigError, ManifestError, UnknownNameError

TREES = OTHER_TREES | SPOOF_TREES
NAMES = sorted(TREES)
WITHOUT_DEV = ("asvspoof2021_df", "asvspoof2021_la", "in_the_wild", "mlaad")
"""Corpora that are nothing but a test."""
LISTS = (".txt", ".csv", ".tsv", ".lst", ".rttm", ".scp", "segments", "utt2spk")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda file: None)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tree(name: str, tmp_path: Path) -> Path:
    return TREES[name](tmp_path / "source")


def reading_of(name: str, source: Path) -> Reading:
    module = corpus_module(name)
    return module.read(source, getattr(module, "CONFIG", None))


def small(name: str) -> str:
    """A split that every corpus of its kind has."""
    return "test" if name in WITHOUT_DEV else "dev"


def a_file(name: str, source: Path) -> Path:
    """An audio file that the lists name."""
    splits = reading_of(name, source).splits
    return Path(splits[small(name)][0].path)


def run(*argv: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in argv])
    return int(stop.value.code or 0)


def test_every_corpus_has_a_tree_and_says_what_it_is():
    assert list_corpora() == NAMES
    for name in NAMES:
        module = corpus_module(name)
        assert all((module.NAME, module.HOMEPAGE.startswith("http"), module.LICENCE, module.LAYOUT))
        assert all(isinstance(count, Count) for count in module.EXPECTED.values())
    with pytest.raises(UnknownNameError, match="'librispeech'"):
        corpus_module("librispech")


def test_listing_corpora_imports_none_of_them():
    code = (
        "import sys; from speechssl.data.corpora.base import list_corpora; names = list_corpora();"
        "print([n for n in names if f'speechssl.data.corpora.{n}' in sys.modules], 'torch' in sys.modules, len(names))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["[]", "False", str(len(NAMES))]
    assert not set(HELPERS) & set(NAMES)


def test_manifests_say_what_the_files_are(name, tree, tmp_path):
    info = prepare_corpus(name, tree, tmp_path / "out")
    corpus = open_corpus(tmp_path / "out")
    assert (corpus.name, corpus.source) == (name, "published")
    splits = set(reading_of(name, tree).splits)
    assert {small(name), "test"} <= splits and set(corpus.splits()) == set(info["splits"]) == splits
    for split in splits:
        utterances = corpus.utterances(split)
        assert len(utterances) == len({u.id for u in utterances}) == info["splits"][split]["utterances"] > 0
        for utterance in utterances:
            length = soundfile.info(utterance.path)
            end = utterance.start + (utterance.duration or 0)
            assert Path(utterance.path).is_absolute() and 0 < end <= length.duration + 1e-9
            if name not in ("lhotse_manifests", "speech_commands", "table"):  # which have parts of files
                assert utterance.duration == pytest.approx(length.duration, abs=1e-9)
        assert len(open_source(tmp_path / "out", split).index) == len(utterances)


def test_lhotse_reads_the_manifests_and_the_audio(name, tree, tmp_path):
    from lhotse import CutSet

    prepare_corpus(name, tree, tmp_path / "out")
    cuts = CutSet.from_file(tmp_path / "out" / "manifests" / f"{small(name)}.jsonl.gz").to_eager()
    utterances = open_corpus(tmp_path / "out").utterances(small(name))
    assert [c.id for c in cuts] == [u.id for u in utterances]
    last = list(cuts)[-1]
    assert last.load_audio().shape == (1, last.num_samples)
    assert last.num_samples == round(utterances[-1].duration * last.sampling_rate)
    custom = last.supervisions[0].custom or {}
    assert all(utterances[-1].labels[key] == value for key, value in custom.items())


def test_a_finished_corpus_is_left_as_it_is_until_the_source_changes(name, tree, tmp_path):
    out = tmp_path / "out"
    first = prepare_corpus(name, tree, out)
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    assert prepare_corpus(name, tree, out) == first
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == stamps
    manifest = out / "manifests" / f"{small(name)}.jsonl.gz"
    manifest.write_bytes(manifest.read_bytes()[:-9])
    assert prepare_corpus(name, tree, out)["fingerprint"] == first["fingerprint"]
    assert manifest.stat().st_mtime_ns != stamps[manifest] and open_corpus(out).utterances(small(name))


def test_equal_corpora_in_two_places_have_one_fingerprint(name, tree, tmp_path):
    first = prepare_corpus(name, tree, tmp_path / "out")
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(tree, moved)
    assert prepare_corpus(name, moved, tmp_path / "moved_out")["fingerprint"] == first["fingerprint"]
    path = a_file(name, moved)
    put_audio(path, soundfile.info(path).frames + 16)
    other = prepare_corpus(name, moved, tmp_path / "other_out", skip_bad=True)  # of a pair one side is longer now
    assert other["fingerprint"] != first["fingerprint"]


def test_a_missing_file_is_counted_named_refused_or_left_out(name, tree, tmp_path):
    path = a_file(name, tree)
    before = {row.what: row.found for row in audit(name, tree)}
    lost = sum(item.path == str(path) for item in reading_of(name, tree).splits[small(name)])
    path.unlink()
    rows = {row.what: row for row in audit(name, tree)}
    row = rows[f"{small(name)}: utterances"]
    assert row.fault and row.found == before[row.what] - lost
    assert len(row.examples) == 1 and row.examples[0].endswith(path.name)
    with pytest.raises(ManifestError, match=rf"1 audio files .* missing below .*{path.name}: fetch.*--skip-bad"):
        prepare_corpus(name, tree, tmp_path / "out")
    assert not (tmp_path / "out" / "corpus.json").exists()
    info = prepare_corpus(name, tree, tmp_path / "out", skip_bad=True)
    (source,) = info["sources"]
    assert source["skipped"]["missing"] == 1 and info["bad"][0].endswith(path.name)
    assert str(path) not in {u.path for u in open_corpus(tmp_path / "out").utterances(small(name))}


def test_an_unreadable_file_is_named_refused_or_left_out_and_taken_when_mended(name, tree, tmp_path):
    path = a_file(name, tree)
    whole = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(ManifestError, match=rf"1 audio files .*{path.name} is an empty file.*--skip-bad"):
        prepare_corpus(name, tree, tmp_path / "out")
    info = prepare_corpus(name, tree, tmp_path / "out", skip_bad=True)
    assert info["sources"][0]["skipped"]["unreadable"] == 1
    path.write_bytes(whole)
    again = prepare_corpus(name, tree, tmp_path / "out")
    assert again["sources"][0]["skipped"] == {} and again["bad"] == []
    assert again["sources"][0]["utterances"] == info["sources"][0]["utterances"] + 1


def test_byte_order_marks_and_line_ends_change_nothing(name, tree):
    before = reading_of(name, tree)
    for path in tree.rglob("*"):
        if path.is_file() and path.name.endswith(LISTS) and not path.name.startswith("."):
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            put_list(path, lines, bom=True, end="\r\n")
            assert path.read_text(encoding="utf-8").startswith(BOM)
    after = reading_of(name, tree)
    assert after == before


def test_the_wrong_folder_is_told_what_it_should_hold(name, tmp_path):
    (tmp_path / "empty").mkdir()
    title = corpus_module(name).NAME.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ManifestError, match=f"does not hold {title}.*--from a folder with "):
        audit(name, tmp_path / "empty")
    with pytest.raises(ManifestError, match=f"does not exist: give with --from where you have {title}"):
        prepare_corpus(name, tmp_path / "nowhere", tmp_path / "out")


def test_the_folder_above_is_taken_too(name, tree):
    if tree.parent.name == "source":  # not those whose tree is the folder itself
        above = reading_of(name, tree.parent)
        assert above.splits == reading_of(name, tree).splits


MALFORMED = {
    "not UTF-8": ("librispeech", "train-clean-100/103/1240/103-1240.trans.txt", b"103-1240-0000 A\n\xff\xfe\n", 2),
    "a chapter's utterance elsewhere": ("librispeech", "dev-clean/84/1240/84-1240.trans.txt", b"174-1240-0000 A\n", 1),
    "no file": ("speech_commands", "speech_commands_v0.01/validation_list.txt", b"bed\n", 1),
    "a code that is none": ("voxceleb1", "iden_split.txt", b"\n4 id10001/1zcIwhmdeo4/00001.wav\n", 2),
    "a trial of three": ("voxceleb1", "veri_test2.txt", b"1 a b c\n", 1),
    "a trial of an unknown file": ("voxceleb1", "veri_test2.txt", b"1 id10270/x6uYqmx31kE/00001.wav id9/x/1.wav\n", 1),
    "a column missing": ("fluent_speech_commands", "data/test_data.csv", b",path,speakerId\n", 1),
    "a value missing": (
        "fluent_speech_commands",
        "data/test_data.csv",
        b",path,speakerId,transcription,action,object,location\n0,a.wav,s,t,a,o\n",
        2,
    ),
    "no emotion": ("iemocap", "Session3/dialog/EmoEvaluation/Ses03F_impro01.txt", b"[1.0 - 2.0] Ses03F\n", 1),
    "tags too few": ("audio_snips", "all.iob.snips.txt", b"Ivy-snips-train-0 BOS HI EOS\tO X\n", 1),
    "no language": ("quesst14", "scoring/language_key_dev.lst", b"quesst14Database/dev_queries/a.wav\n", 1),
    "a segment without end": ("libri2mix_diarization", "dev/segments", b"a b 0.0\n", 1),
    "a segment that ends first": ("libri2mix_diarization", "dev/segments", b"a b 2.0 1.0\n", 1),
    "a pipe": ("libri2mix_diarization", "dev/wav.scp", b"a sox x |\n", 1),
    "a time that is none": ("table", "mine.csv", b"path,start\na.wav,soon\n", 2),
    "an end before the start": ("table", "mine.csv", b"path,start,end\na.wav,2,1\n", 2),
    "an utterance twice": ("table", "mine.csv", b"path\na.wav\nb.wav\na.wav\n", 4),
    "a column twice": ("table", "mine.csv", b"path;age;age\n", 1),
    "no path": ("table", "mine.csv", b"path,age\n,3\n", 2),
    "no split": ("table", "mine.csv", b"path,split\na.wav,\n", 2),
    "no id": ("table", "mine.csv", b"path,id\na.wav,\n", 2),
    "a segment of nobody": ("table", "segments.tsv", b"id\tstart\tend\taudio-9\naudio-9\t0\t1\t1\n", 2),
    "a segment without length": ("table", "segments.tsv", b"id\tstart\tend\ttone\naudio-1\t1\t1\t2\n", 2),
    "a sentence without a number": (
        "vcc2020",
        "vcc2020_database_transcriptions/transcriptions_evaluation/vcc2020_database_evaluation_transcriptions.txt",
        b"30001 Yes.\nE30002 No.\n",
        2,
    ),
    "a speaker without an age": ("vctk", "speaker-info.txt", b"ID AGE GENDER ACCENTS REGION\np225 F English\n", 2),
    "no speakers": ("vctk", "speaker-info.txt", b"p225 23 F English\n", 1),
    "a line of two columns": ("common_voice", "cs/dev.tsv", b"client_id\tpath\tsentence\na\tb\n", 2),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_list_is_named_with_its_line(case, tmp_path):
    name, file, content, line = MALFORMED[case]
    source = TREES[name](tmp_path)
    (source / file).write_bytes(content)
    with pytest.raises(ManifestError, match=rf"{Path(file).name}, line {line},"):
        audit(name, source)


MISSING_LISTS = {
    "vctk": "speaker-info.txt",
    "fluent_speech_commands": "data/valid_data.csv",
    "speech_commands": "speech_commands_v0.01/testing_list.txt",
    "voxceleb1": "iden_split.txt",
    "quesst14": "scoring/groundtruth_quesst14_eval/quesst14_eval.rttm",
    "libri2mix_diarization": "test/segments",
}


@pytest.mark.parametrize("name", MISSING_LISTS)
def test_a_missing_list_is_named_with_where_it_comes_from(name, tree):
    (tree / MISSING_LISTS[name]).unlink()
    with pytest.raises(ManifestError, match=rf"{Path(MISSING_LISTS[name]).name}( is missing)?:"):
        audit(name, tree)


def test_no_other_corpus_is_written_over(tmp_path):
    out = tmp_path / "out"
    prepare_corpus("librispeech", TREES["librispeech"](tmp_path), out)
    with pytest.raises(ManifestError, match="holds the corpus 'librispeech': choose another folder for 'iemocap'"):
        prepare_corpus("iemocap", TREES["iemocap"](tmp_path), out)
    assert open_corpus(out).name == "librispeech"


def test_settings_are_checked(tmp_path):
    source = TREES["iemocap"](tmp_path)
    yaml = tmp_path / "x.yaml"
    yaml.write_text("languages: [cs]\n")
    with pytest.raises(ConfigError, match="'iemocap' has no settings: drop --config"):
        audit("iemocap", source, config=yaml)
    with pytest.raises(ConfigError, match="languages"):
        audit("quesst14", TREES["quesst14"](tmp_path), config=yaml)


def test_twin_ids_are_refused(tmp_path):
    source = TREES["librispeech"](tmp_path)
    transcripts = source / "dev-clean/84/1240/84-1240.trans.txt"
    put_list(transcripts, ["84-1240-0000 ONE", "84-1240-0000 TWO"])
    with pytest.raises(ManifestError, match="Two utterances have the id '84-1240-0000'"):
        prepare_corpus("librispeech", source, tmp_path / "out")


def test_each_folder_is_listed_once_and_no_file_opened(tmp_path, monkeypatch):
    import os

    put_audio(tmp_path / "a" / "0.wav")
    scans = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scans.append(path) or scandir(path))
    items = [Item(str(k), f"{tmp_path}/{folder}/{k}.wav", {}) for folder in "ab" for k in range(100)]
    missing = find_missing(Reading({"train": items}))
    assert len(missing["train"]) == 199 and scans == [f"{tmp_path}/a", f"{tmp_path}/b"]


def test_segments_and_pieces_of_long_files_become_cuts(tmp_path, monkeypatch):
    module = corpus_module("quesst14")
    path = str(put_audio(tmp_path / "long.wav", 40_000))
    items = [
        Item("whole", path, {"text": "a"}),
        Item("part", path, {"text": "b"}, start=0.5, duration=1.25),
        Item("cut", path, {}, start=0.25, pieces=1.0),
    ]
    monkeypatch.setattr(module, "read", lambda source, config: Reading({"test": items}))
    info = prepare_corpus("quesst14", tmp_path, tmp_path / "out")
    found = {u.id: (u.start, u.duration) for u in open_corpus(tmp_path / "out").utterances("test")}
    assert found == {"whole": (0.0, 2.5), "part": (0.5, 1.25), "cut-000": (0.25, 1.0), "cut-001": (1.25, 1.0)}
    assert info["sources"][0]["hours"] == pytest.approx(2.5 / 3600, abs=1e-4)
    monkeypatch.setattr(module, "read", lambda s, c: Reading({"test": [dataclasses.replace(items[1], duration=9.0)]}))
    with pytest.raises(ManifestError, match=r"long.wav is 2\.50 s long, but 'part' should be 0\.50 s to 9\.50 s of it"):
        prepare_corpus("quesst14", tmp_path, tmp_path / "too_long")


def test_a_part_that_its_file_does_not_have_is_left_out_alone(tmp_path, monkeypatch):
    module = corpus_module("quesst14")
    path, short = (str(put_audio(tmp_path / f"{k}.wav", k)) for k in (16_000, 8000))
    items = [
        Item("too late", path, {}, start=2.0),
        Item("good", path, {}, start=0.5),
        Item("too long", path, {}, duration=1.2),
        Item("rounded", path, {}, duration=1.01),
        Item("no piece", short, {}, pieces=1.0),
    ]
    monkeypatch.setattr(module, "read", lambda source, config: Reading({"test": items}))
    info = prepare_corpus("quesst14", tmp_path, tmp_path / "out", skip_bad=True)
    found = {u.id: (u.start, u.duration) for u in open_corpus(tmp_path / "out").utterances("test")}
    assert found == {"good": (0.5, 0.5), "rounded": (0.0, 1.0)}
    assert info["sources"][0]["skipped"] == {"unreadable": 3} and len(info["bad"]) == 3
    assert "shorter than the 1.0 s of a piece" in info["bad"][2]


def test_a_link_to_nowhere_is_a_file_that_cannot_be_opened(tmp_path):
    source = TREES["quesst14"](tmp_path)
    path = a_file("quesst14", source)
    path.unlink()
    path.symlink_to(tmp_path / "gone.wav")
    with pytest.raises(ManifestError, match=rf"{path.name} can't be opened \(No such file"):
        prepare_corpus("quesst14", source, tmp_path / "out")


def test_audit_ends_with_one_where_something_is_missing(tmp_path, capsys):
    source = TREES["quesst14"](tmp_path)
    assert run("prepare", "quesst14", tmp_path / "out", "--from", source, "--audit") == 0
    assert "dev: utterances" in capsys.readouterr().out and not (tmp_path / "out").exists()
    (source / "Audio" / "quesst14_00003.wav").unlink()
    assert run("prepare", "quesst14", tmp_path / "out", "--from", source, "--audit") == 1
    out = "".join(capsys.readouterr().out.split())
    assert "quesst14_00003.wav" in "".join(out.split("│"))


def test_an_incomplete_corpus_is_told_by_the_published_counts(tmp_path):
    rows = {row.what: row for row in audit("librispeech", TREES["librispeech"](tmp_path))}
    assert (rows["train: utterances"].expected, rows["train: utterances"].found) == (28_539, 6)
    assert rows["train: values of 'speaker'"].fault
    assert "train-clean-360: utterances" not in rows  # nobody needs all parts
    shutil.rmtree(tmp_path / "LibriSpeech" / "train-clean-100")
    rows = {row.what: row for row in audit("librispeech", tmp_path)}
    assert rows["train: utterances"].found == 0 and rows["train: utterances"].fault


def test_prepare_ends_with_a_table(tmp_path, capsys):
    source = TREES["voxceleb1"](tmp_path)
    assert run("prepare", "voxceleb1", tmp_path / "out", "--from", source) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("CC-BY-4.0", "speaker_train", "veri_test2"))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["demo", "x", "--from", "y"], "`--from` belongs to published corpora, not to the demo: drop it."),
        (["demo", "x", "--audit"], "`--audit` belongs to published corpora"),
        (["iemocap", "x", "--from", "y", "--full"], "`--full` belongs to the demo corpus, not to 'iemocap': drop it."),
        (["iemocap", "x", "--from", "y", "--source", "debian"], "`--source` belongs to the demo corpus"),
        (["iemocap", "x", "--from", "y", "--keep-packages"], "`--keep-packages` belongs to the demo corpus"),
        (["iemocap", "x", "--from", "y", "--audit", "--skip-bad"], "`--skip-bad` has no meaning with --audit"),
        (["iemocap", "x"], "Give with --from the folder where you have 'iemocap'."),
        (["iemocap", "x", "--from", "y"], "y does not exist"),
        (["librispech", "x", "--from", "y"], "Did you mean 'librispeech'"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(argv, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("prepare", *argv) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line and not list(tmp_path.glob("x/corpus.json"))


def test_help_names_the_corpora(capsys):
    assert run("prepare", "--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(name in out for name in ("demo", *NAMES))


def test_the_docs_have_a_row_for_each_corpus():
    text = (Path(__file__).parent.parent / "docs" / "corpora.md").read_text(encoding="utf-8")
    for name in NAMES:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}`")]
        licence = importlib.import_module(f"speechssl.data.corpora.{name}").LICENCE
        assert licence in row


def test_corpus_json_holds_what_it_was_made_of(tmp_path):
    source = TREES["librispeech"](tmp_path)
    yaml = tmp_path / "all.yaml"
    yaml.write_text("train: [train-clean-100, dev-other]\n")
    prepare_corpus("librispeech", source, tmp_path / "out", config=yaml)
    info = json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert info["from"] == str(source) and info["config"]["train"] == ["train-clean-100", "dev-other"]
    assert info["splits"]["train"]["utterances"] == 9 and info["splits"]["train"]["labels"] == [
        "language",
        "speaker",
        "text",
    ]
    assert prepare_corpus("librispeech", source, tmp_path / "out")["splits"]["train"]["utterances"] == 6
