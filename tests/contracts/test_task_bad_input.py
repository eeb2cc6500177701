"""Bad input of every task: a sentence with the file, its line where there is one, and what to do.

Task by case. What makes a score meaningless is refused before any feature is computed; what costs a few utterances is
counted, and the first of them is named. `SMALL` of test_tasks says how each task is made small.
"""

import gzip
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from labelled_corpus import write_labelled
from test_tasks import SMALL

from speechssl.data.corpus import open_corpus
from speechssl.errors import SpeechsslError
from speechssl.jobs import build_task, prepare_data
from speechssl.registry import list_tasks
from speechssl.runner import resolve_config
from speechssl.task import TaskData

TASKS = list_tasks()
OWN_MIXTURES = ("diarization", "source_separation", "speech_enhancement")
"""Tasks that SMALL lets make mixtures; here the corpus has them."""
FIELDS = {
    "emotion_recognition": "emotion",
    "intent_classification": "action",
    "keyword_spotting": "keyword",
    "language_identification": "language",
    "probe": "emotion",
    "speaker_identification": "speaker",
}
"""Tasks that give an utterance a class -> the label that it is."""
TEXTS = {"asr": "text", "phoneme_recognition": "phones", "slot_filling": "slots"}
"""Tasks that spell an utterance -> the label that is spelled."""
BOM = b"\xef\xbb\xbf"
Harm = Callable[[Path], Sequence[str] | None]
"""Spoils the corpus in a folder; may return further overrides."""
Supervision = dict[str, Any]


def split_of(task: str, split: str) -> str:
    """What the corpus calls a split of a task."""
    return {"emotion_recognition": f"fold1_{split}", "speaker_verification": f"speaker_{split}"}.get(task, split)


def manifest(root: Path, split: str) -> Path:
    return root / "manifests" / f"{split}.jsonl.gz"


def edit(root: Path, split: str, change: Callable[[int, Supervision], bool | None]) -> None:
    """Changes the supervisions of a manifest; what `change` answers False to is dropped."""
    cuts = read_cuts(root, split)
    write_cuts(
        root, split, [c for number, c in enumerate(cuts, 1) if change(number, c["supervisions"][0]) is not False]
    )


def read_cuts(root: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(manifest(root, split).read_bytes()).splitlines()]


def write_cuts(root: Path, split: str, cuts: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(cut) + "\n" for cut in cuts)
    manifest(root, split).write_bytes(gzip.compress(text.encode(), compresslevel=1))


def put(supervision: Supervision, key: str, value: object) -> None:
    owner = supervision if key in ("text", "speaker", "language") else supervision["custom"]
    owner[key] = value


@pytest.fixture(scope="module")
def whole(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with the labels of all tasks, and a list of trials."""
    root = write_labelled(tiny_corpus, tmp_path_factory.mktemp("whole") / "corpus")

    def mix(_: int, supervision: Supervision) -> None:
        path = str(root / "audio" / f"{supervision['id']}.flac")
        supervision["custom"] |= {"sources": [path, path], "clean": path, "segments": [["one", 0.1, 0.5]]}

    for split in ("train", "dev", "test"):
        edit(root, split, mix)
    ids = [u.id for u in open_corpus(root).utterances("speaker_test")]
    trials = [f"{int(a[:3] == b[:3])} {a} {b}" for a in ids[:12] for b in ids[-12:] if a != b]
    add_list(root, "veri_test2", "\n".join(trials).encode())
    return root


def add_list(root: Path, name: str, content: bytes) -> None:
    info = json.loads((root / "corpus.json").read_text())
    info["files"][name] = f"lists/{name}.txt"
    (root / "corpus.json").write_text(json.dumps(info))
    (root / info["files"][name]).write_bytes(content)


@pytest.fixture
def corpus(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    root = tmp_path / "corpus"
    shutil.copytree(whole, root, ignore=shutil.ignore_patterns("audio"))
    (root / "audio").symlink_to(whole / "audio")
    return root


def prepare(name: str, root: Path, *overrides: str) -> TaskData:
    preset, *own = SMALL[name]
    mixtures = ("simulate=null",) if name in OWN_MIXTURES else ()
    task = build_task(*resolve_config(preset, overrides=[*own, *mixtures, *overrides]))
    return prepare_data(task, open_corpus(root))


@dataclass(frozen=True)
class Case:
    """What is wrong, and what is said of it."""

    harm: Harm
    words: str
    """Pattern; {dev} and the like are the names of the task's splits."""
    refused: bool = True
    """False = said in the log."""
    overrides: tuple[str, ...] = ()


def absent(split: str) -> Harm:
    def harm(root: Path) -> None:
        manifest(root, split).unlink()

    return harm


def silenced(split: str) -> Harm:
    """Lines 3 and 5 name audio files that are not there."""

    def harm(root: Path) -> None:
        cuts = read_cuts(root, split)
        for number in (3, 5):
            cuts[number - 1]["recording"]["sources"][0]["source"] = f"audio/gone{number}.flac"
        write_cuts(root, split, cuts)

    return harm


def label(split: str, key: str, value: object, *, line: int | None = 3) -> Harm:
    """Sets a label of one line, or of all."""

    def harm(root: Path) -> None:
        edit(root, split, lambda number, s: put(s, key, value) if line in (None, number) else None)

    return harm


def without(split: str, speaker: str | tuple[str, ...], *, keep: int = 0) -> Harm:
    """Drops what a speaker says ('' = anybody), but for the first utterances of each."""

    def harm(root: Path) -> None:
        left: dict[str, int] = {}

        def change(_: int, supervision: Supervision) -> bool:
            name = supervision["speaker"]
            left[name] = left.get(name, keep) - 1
            return not name.startswith(speaker) or left[name] >= 0

        edit(root, split, change)

    return harm


def with_lists(content: bytes, *names: str) -> Harm:
    """Writes lists; {0} and {1} in them are utterances of speaker_test."""

    def harm(root: Path) -> None:
        ids = [u.id for u in open_corpus(root).utterances("speaker_test")]
        for name in names:
            add_list(root, name, content.decode().format(*ids).encode())

    return harm


def a_lexicon_without_a_word(root: Path) -> Sequence[str]:
    words = {word for u in open_corpus(root).utterances("train") for word in str(u.labels.get("text") or "").split()}
    path = root / "lexicon.txt"
    path.write_bytes(BOM + "".join(f"{word}  A\r\n" for word in sorted(words - {"kimu"})).encode())
    return (f"lexicon=[{path}]",)


def odd_segment(**change: object) -> Harm:
    """Half a second of each utterance has a label, but in line 3 of dev it is another."""

    def harm(root: Path) -> None:
        for split in ("train", "dev", "test"):
            edit(
                root, split, lambda number, s: put(s, "quality", [{"start": 0, "end": 0.5, "value": "ab"[number % 2]}])
            )
        label("dev", "quality", [{"start": 0, "end": 0.5, "value": "a", **change}])(root)

    return harm


NO_DEV = r"The corpus \S+/corpus has no split '{dev}'.*(prepare one with that split|name it with `splits`)"
LINE = r"{dev}\.jsonl\.gz, line 3, "
EMPTY = LINE + r"has an empty transcript of '\S+' \(1 in 'dev'\): mend it, or set `leave_out_empty=true`"
UNSEEN = LINE + r"is the first of 1 utterances in '{dev}' of classes without a training example: 'zz'"
UNLABELLED = LINE + r"is the first of 1 utterances of \d+ in '{dev}' without '.+', which take no part"
SILENT = (
    LINE
    + r"names \S+/audio/gone3\.flac, which does not exist, the first of 2 missing among the \d+ utterances of '{dev}': "
    r"fetch them, .* `--skip-bad`"
)
NEW_UNIT = LINE + r"has the first of 1 units in 'dev' that never occur in training, and are errors: ß"
LETTERS = "inventory=[" + ",".join("abcdefghijklmnopqrstuvwxyz") + "]"

NUMBERS = ("kind=regression", "fields=[quality]", "metric=mae", "balance=none")
SEGMENTS = ("level=segment", "fields=[quality]", "features.pooling=none")

CASES: dict[tuple[str, str], Case] = {
    **{(task, "dev set absent"): Case(absent(split_of(task, "dev")), NO_DEV) for task in TASKS},
    **{(task, "missing audio"): Case(silenced(split_of(task, "dev")), SILENT) for task in TASKS},
    **{
        (task, "class without training examples"): Case(label(split_of(task, "dev"), key, "zz"), UNSEEN + ".*Add some")
        for task, key in FIELDS.items()
    },
    **{
        (task, "one class alone"): Case(
            label(split_of(task, "train"), key, "zz", line=None), "one class of .*'zz': a cl"
        )
        for task, key in FIELDS.items()
    },
    **{
        (task, "utterance without a label"): Case(label(split_of(task, "dev"), key, " "), UNLABELLED, refused=False)
        for task, key in FIELDS.items()
    },
    **{
        (task, "nothing labelled"): Case(
            label(split_of(task, "dev"), key, "", line=None), "no utterance in '{dev}' with '.*its labels are.*`fields`"
        )
        for task, key in FIELDS.items()
    },
    **{(task, "empty transcript"): Case(label("dev", key, " "), EMPTY) for task, key in TEXTS.items()},
    ("asr", "unknown symbol"): Case(label("dev", "text", "ba ß"), NEW_UNIT, refused=False),
    ("slot_filling", "unknown symbol"): Case(label("dev", "slots", "B-first ß E-first"), NEW_UNIT, refused=False),
    ("slot_filling", "tag that never ends"): Case(
        label("dev", "slots", "B-first do"),
        LINE + r"has the tag 'B-first' without its other end.*mend",
    ),
    ("phoneme_recognition", "unknown symbol"): Case(
        label("dev", "phones", "b ß"),
        LINE + r"has the phoneme 'ß' in '\S+', which is not in `inventory`: mend it, or",
        overrides=(LETTERS,),
    ),
    ("phoneme_recognition", "word that the lexicon lacks"): Case(
        a_lexicon_without_a_word,
        r"train\.jsonl\.gz, line \d+, is the first of \d+ utterances in 'train' .*'kimu': add them to a file in",
        overrides=("phones=lexicon",),
    ),
    ("query_by_example", "empty transcript"): Case(
        label("train", "text", " ", line=None),
        "no utterance in 'train' with a transcript.*take another",
        overrides=("truth=text", "documents=train"),
    ),
    ("query_by_example", "list that names what is not there"): Case(
        with_lists(BOM + b"aa0-04 aa0-00\r\naa0-04 gone\r\n", "ground_truth_test"),
        r"ground_truth_test\.txt, line 2, names the document 'gone', which the corpus lacks: prepare it again",
    ),
    ("query_by_example", "list of another form"): Case(
        with_lists(b"aa0-03\n", "ground_truth_dev"),
        r"ground_truth_dev\.txt, line 1, is 'aa0-03', but must be a query and",
    ),
    ("query_by_example", "list that is absent"): Case(
        lambda root: (root / "lists/ground_truth_test.txt").unlink(), r"ground_truth_test\.txt does not exist: check"
    ),
    ("query_by_example", "whole list of another form"): Case(
        with_lists(b"a\n", "ground_truth_dev_whole", "documents_whole"),
        r"ground_truth_dev_whole\.txt, line 1, is 'a', but must be a query and a document",
    ),
    ("speaker_verification", "trial that names a missing file"): Case(
        with_lists(BOM + b"1 {0} {1}\r\n0 {0} gone\r\n", "veri_test2"),
        r"veri_test2\.txt, line 2, names 'gone', which is not in 'speaker_test' .*choose another list",
    ),
    ("speaker_verification", "trial of another form"): Case(
        with_lists(b"target {0} {1}\n", "veri_test2"), r"veri_test2\.txt, line 1, .* must be 1 or 0 and two utter"
    ),
    ("speaker_verification", "speaker with one utterance"): Case(
        without("speaker_dev", "aa2", keep=1),
        r"1 of 2 speakers in 'speaker_dev' of \S+ have one utterance, and so no target trial: 'aa2'",
        refused=False,
    ),
    ("speaker_verification", "no speaker with two utterances"): Case(
        without("speaker_dev", "", keep=1), "no trials of both kinds.* in 'speaker_dev' of .* two utterances each"
    ),
    ("speaker_verification", "speaker in two splits"): Case(
        label("speaker_test", "speaker", "aa2"),
        r"speaker_test\.jsonl\.gz, line 3, has an utterance of 'aa2', who is in 'speaker_dev' too: split again",
    ),
    ("voice_conversion", "empty transcript"): Case(
        label("test", "text", " "),
        r"test\.jsonl\.gz, line 3, is the first of 1 utterances of 'aa' in 'test' without text or speaker",
        refused=False,
    ),
    ("voice_conversion", "no transcript at all"): Case(
        label("test", "text", "", line=None),
        r"the corpus \S+ has none in 'test' \(\S+gz\): set `la",
    ),
    ("voice_conversion", "speaker with one utterance"): Case(
        without("train", "aa0"),
        r"sources are left out, since 'train' has nothing of their speakers, such as 'aa0'",
        refused=False,
        overrides=("judges=packages",),
    ),
    ("voice_conversion", "only speakers with one utterance"): Case(
        without("train", "aa"), "No speaker of the sources.* in 'train' of .*prepare", overrides=("judges=packages",)
    ),
    ("voice_conversion", "speakers with little speech"): Case(
        without("train", "bb", keep=1), "No speaker but the sources' .*'train' of .* lower `reference_seconds`"
    ),
    ("probe", "label that is no number"): Case(
        label("dev", "quality", "good"),
        r"The utterance '\S+' of \S+ \(manifests/dev\.jsonl\.gz, line 3\) has 'good' as 'quality', .*: mend it",
        overrides=NUMBERS,
    ),
    ("probe", "one value alone"): Case(
        label("train", "quality", 2, line=None), "one value of 'quality' in 'train': 2.0; a regr", overrides=NUMBERS
    ),
    ("probe", "segment beyond the end"): Case(
        odd_segment(end=99),
        r"\(manifests/dev\.jsonl\.gz, line 3\) is \S+ s long, but has 'quality' from 0 s to 99 s",
        overrides=SEGMENTS,
    ),
    ("probe", "segment of a class without training examples"): Case(
        odd_segment(value="zz"),
        r"dev\.jsonl\.gz, line 3, is the first of 1 utterances in 'dev' of classes without a training example: 'zz'",
        overrides=SEGMENTS,
    ),
    ("deepfake_detection", "no transcript at all"): Case(
        label("dev", "text", " ", line=None),
        r"no transcribed utterance of 0\.5 s or more in 'dev': prepare a",
    ),
    ("diarization", "recording without segments"): Case(
        label("dev", "segments", None), LINE + r"has the recording '\S+' without the label `segments`"
    ),
    ("diarization", "segment beyond the end"): Case(
        label("dev", "segments", [["one", 90, 91]]), LINE + r".* begins after its \S+ s: mend it"
    ),
    ("diarization", "nobody speaks"): Case(label("test", "segments", [], line=None), "Nobody speaks in 'test' of "),
    ("source_separation", "label that names a missing file"): Case(
        label("dev", "sources", ["gone.wav", "gone.wav"]),
        LINE + r"names gone\.wav, a source of '\S+' in 'dev', which does not exist: fetch it",
    ),
    ("source_separation", "source too few"): Case(
        label("dev", "sources", ["one.wav"]),
        LINE + r"has 1 of 2 sources .*: prepare a corpus for source",
    ),
    ("speech_enhancement", "label that names a missing file"): Case(
        label("dev", "clean", "gone.wav"),
        LINE + r"names gone\.wav, a source of '\S+' in 'dev', which does not exist: fetch it",
    ),
    ("speech_enhancement", "source too few"): Case(
        label("dev", "clean", ""),
        LINE + r"has 0 of 1 sources .*: prepare a corpus for speech enh",
    ),
    **{
        (task, "one speaker to mix"): Case(
            without("speaker_train", ("b", "aa1")),
            r"has 1 speakers with utterances of 1\.0 s or more in 'speaker_train': mixtures need two",
            overrides=("simulate={train: 1, dev: 1, test: 1, duration: 2.5}",),
        )
        for task in OWN_MIXTURES
    },
}


@pytest.mark.parametrize(("task", "case"), CASES)
def test_bad_input_is_a_sentence_with_file_and_line(
    task: str, case: str, corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = CASES[task, case]
    words = found.words.replace("{dev}", split_of(task, "dev"))
    further = found.harm(corpus) or ()
    if not found.refused:
        with caplog.at_level(logging.INFO):
            prepare(task, corpus, *found.overrides, *further)
        assert re.search(words, caplog.text)
        return
    with pytest.raises(SpeechsslError, match=words) as caught:
        prepare(task, corpus, *found.overrides, *further)
    said = str(caught.value)
    assert "\n" not in said and said.endswith((".", "?"))


@pytest.mark.parametrize("task", [task for task in TASKS if task != "deepfake_detection"])
def test_a_byte_order_mark_and_crlf_do_not_matter(task: str, corpus: Path) -> None:
    plain = prepare(task, corpus)
    for path in (corpus / "manifests").iterdir():
        lines = gzip.decompress(path.read_bytes())
        path.write_bytes(gzip.compress(BOM + lines.replace(b"\n", b"\r\n"), compresslevel=1))
    for path in (corpus / "lists").iterdir():
        path.write_bytes(BOM + path.read_bytes().replace(b"\n", b"\r\n"))
    (corpus / "corpus.json").write_bytes(BOM + (corpus / "corpus.json").read_bytes().replace(b"\n", b"\r\n"))
    marked = prepare(task, corpus)
    assert marked.splits == plain.splits
    assert all(
        marked.extra[key] == plain.extra[key]
        for key in ("classes", "vocabulary", "truths", "roles")
        if key in plain.extra
    )


def test_deepfake_detection_refuses_a_class_of_which_nothing_could_be_made(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("downstreams.deepfake_detection.data._make", lambda items, folder, config: {})
    with pytest.raises(SpeechsslError, match=r"No real speech could be made for 'train' of \S+: choose attacks"):
        prepare("deepfake_detection", corpus)


def test_every_task_is_tried_with_bad_input() -> None:
    assert {task for task, case in CASES if case not in ("dev set absent", "missing audio")} == set(TASKS)
