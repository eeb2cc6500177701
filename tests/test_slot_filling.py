"""Slot filling: tags as units, scores, bad input, and a run from end to end."""

import gzip
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from downstreams.slot_filling.config import HEADS, PRESETS, SlotConfig
from downstreams.slot_filling.task import TASK
from downstreams.slot_filling.vocabulary import TaggedCharacters, find_units
from speechssl.config import load_config
from speechssl.data.corpus import open_corpus
from speechssl.errors import ManifestError
from speechssl.inference import infer
from speechssl.jobs import RunOptions
from speechssl.runner import run
from speechssl.task import TaskData, TrainConfig
from speechssl.types import Utterance

TEXT = "ADD B-artist NICK DRAKE E-artist TO MY B-list BEST E-list"
SMALL = SlotConfig(
    train=TrainConfig(steps=10, batch_seconds=15.0, learning_rate=1e-2, evaluate_every=5),
    label_rate=25.0,
    standardise=True,
    project_size=16,
    hidden_size=16,
    num_layers=1,
    augment=None,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_units(text: str) -> list[str]:
    """Tags and characters, by marking tags with brackets and taking out the blank that belongs to each."""
    marked = re.sub(r" E-([a-z]+)", r"{\1>", re.sub(r"B-([a-z]+) ", r"<\1>", text))
    pieces = re.findall(r"[<{][a-z]+>|.", marked)
    return [p.replace("<", "B-").replace("{", "E-").replace(">", "") for p in pieces]


@pytest.mark.parametrize("text", [TEXT, "B-a X E-a", "GO", "B-a X E-a B-b Y E-b", "IN B-a NEW YORK E-a"])
def test_tags_are_units_without_a_blank_to_their_value(text: str) -> None:
    vocabulary = find_units([text, TEXT])
    assert list(vocabulary.split(text)) == slow_units(text)
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert 0 not in vocabulary.encode(text)
    assert max(vocabulary.encode(TEXT)) < len(vocabulary)


def test_units_are_those_of_the_training_texts() -> None:
    vocabulary = find_units([TEXT])
    assert vocabulary.slots == ("artist", "list")
    assert "".join(vocabulary.characters) == "".join(sorted(set("ADD NICK DRAKE TO MY BEST")))
    assert len(vocabulary) == 1 + len(vocabulary.characters) + 4
    assert vocabulary.unseen(["ADD B-song X E-song"]) == {"B-song": 1, "X": 1, "E-song": 1}
    assert vocabulary.encode("B-song A E-song") == vocabulary.encode("A")


def test_words_that_look_like_tags_and_never_close_are_text() -> None:
    vocabulary = find_units(["PLAY B-SIDES", TEXT])
    assert "-" in vocabulary.characters
    assert vocabulary.slots == ("artist", "list")
    assert vocabulary.decode(vocabulary.encode("PLAY B-SIDES")) == "PLAY B-SIDES"


def test_labels_of_a_network_are_written_as_s3prl_writes_them() -> None:
    vocabulary = TaggedCharacters((" ", "A"), ("x",))
    assert vocabulary.decode([4, 2, 3, 2, 1]) == " E-xAB-x A "


def test_superbs_head_is_recurrent_and_every_head_can_be_built() -> None:
    config = PRESETS["slot_filling"]
    assert (config.train.steps, config.train.learning_rate, config.train.max_batch_size) == (200_000, 1e-4, 32)
    data = TaskData({}, {"vocabulary": find_units([TEXT])})
    with torch.device("meta"):
        head = TASK(config).build_head(768, 50.0, data)
        lstm = sum(2 * 4 * 1024 * (width + 1024 + 2) for width in (1024, 2048))
    assert sum(p.numel() for p in head.parameters()) == 769 * 1024 + lstm + 2049 * len(data.extra["vocabulary"])
    layers = [len(TASK(load_config(config, overrides=s)).build_head(8, 50.0, data).layers) for s in HEADS.values()]  # type: ignore[arg-type]
    assert layers == [2, 0]


def test_scores_are_of_slots_and_of_words_without_tags(tmp_path: Path) -> None:
    references = [TEXT, "PLAY B-artist ABBA E-artist"]
    vocabulary = find_units(references)
    hypotheses = ["ADD B-artist NICK BRAKE E-artist TO MY BEST", "PLAY B-artist ABBA E-artist"]
    utterances = [Utterance(str(i), "p", labels={"slots": t}) for i, t in enumerate(references)]
    data = TaskData({"test": utterances}, {"vocabulary": vocabulary})
    labels = {str(i): vocabulary.encode(t) for i, t in enumerate(hypotheses)}
    found = TASK(SMALL).evaluate(nn.Identity(), labels, data, "test", tmp_path).metrics
    assert found["slot type f1"].value == pytest.approx((2 / 3 + 1) / 2)
    # One letter of 'NICK DRAKE' and all four of the missing 'BEST', over 10 + 4 + 4 letters.
    assert found["slot value cer"].value == pytest.approx(5 / 18)
    # Decoded as S3PRL does, 'ABBA' lacks its second B too.
    assert found["slot value cer as S3PRL"].value == pytest.approx(6 / 18)
    assert found["wer"].value == pytest.approx(1 / 8)
    assert (tmp_path / "transcripts.tsv").read_text().splitlines()[1] == f"0\t{TEXT}\t{hypotheses[0]}"


@pytest.fixture
def tagged_corpus(tiny_corpus: Path, tmp_path: Path) -> Path:
    """The tiny corpus with the last word of each text as the value of the slot that is its language."""
    root = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, root)
    for path in (root / "manifests").glob("*.jsonl.gz"):
        edit(path, _tag)
    return root


def _tag(number: int, supervision: dict) -> None:
    if supervision.get("text"):
        *words, last = supervision["text"].split()
        slot = supervision["language"]
        supervision["custom"]["slots"] = " ".join([*words, f"B-{slot}", last, f"E-{slot}"])


def edit(path: Path, change) -> None:
    cuts = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    for number, cut in enumerate(cuts):
        change(number, cut["supervisions"][0])
    path.write_bytes(gzip.compress("".join(json.dumps(cut) + "\n" for cut in cuts).encode()))


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ("do B-aa ba B-aa ki E-aa", r"test\.jsonl\.gz, line 3, has the tag 'B-aa' inside of a slot"),
        ("do B-aa ba", r"test\.jsonl\.gz, line 3, has the tag 'B-aa' without its other end"),
        (" ", r"test\.jsonl\.gz, line 3, has an empty transcript"),
    ],
)
def test_bad_tags_are_refused_with_their_line(tagged_corpus: Path, slots: str, words: str) -> None:
    def spoil(number: int, supervision: dict) -> None:
        if number == 2:
            supervision["custom"]["slots"] = slots

    edit(tagged_corpus / "manifests" / "test.jsonl.gz", spoil)
    with pytest.raises(ManifestError, match=words):
        TASK(SMALL).prepare(open_corpus(tagged_corpus))


def test_a_corpus_without_slots_is_refused(tiny_corpus: Path, tagged_corpus: Path) -> None:
    with pytest.raises(ManifestError, match="no utterance in 'train' with a transcript in 'slots'"):
        TASK(SMALL).prepare(open_corpus(tiny_corpus))

    def bare(number: int, supervision: dict) -> None:
        supervision.setdefault("custom", {})["slots"] = "do ki"

    edit(tagged_corpus / "manifests" / "dev.jsonl.gz", bare)
    with pytest.raises(ManifestError, match="no slot in 'dev'"):
        TASK(SMALL).prepare(open_corpus(tagged_corpus))


def test_a_run_gives_words_and_slots_of_files(tagged_corpus: Path, tmp_path: Path) -> None:
    options = RunOptions(cache_folder=str(tmp_path / "cache"))
    (result,) = run("slot_filling", upstream="fbank", corpus=tagged_corpus, config=SMALL, out=tmp_path, options=options)
    assert (result.metric, result.higher_is_better) == ("slot type f1", True)
    assert set(result.test.metrics) >= {"slot value cer", "slot value wer", "slot edit f1 full", "slot edit f1 part"}
    utterance = open_corpus(tagged_corpus).utterances("test")[0]
    said = infer(tmp_path / "slot_filling" / "fbank" / "seed0", [utterance.path])[utterance.path]
    assert set(said) == {"text", "slots"}
    assert "B-" not in said["text"]
