"""Phoneme recognition: inventory, lexicon, head, loss, error rate, and a run from end to end."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from downstreams.phoneme_recognition.config import HEADS, INVENTORY, PRESETS, PhonemeConfig
from downstreams.phoneme_recognition.data import read_lexicon
from downstreams.phoneme_recognition.task import TASK, merge_repeats
from speechssl.config import load_config
from speechssl.ctc.vocabulary import Words
from speechssl.data.corpus import open_corpus
from speechssl.errors import ConfigError, ManifestError
from speechssl.inference import infer
from speechssl.jobs import RunOptions
from speechssl.runner import run
from speechssl.task import TaskData, TrainConfig
from speechssl.types import Utterance

SMALL = PhonemeConfig(
    train=TrainConfig(steps=40, batch_seconds=15.0, learning_rate=2e-2, evaluate_every=20),
    label_rate=25.0,
    standardise=True,
    project_size=16,
    num_layers=0,
    augment=None,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def lexicon(tiny_corpus: Path, tmp_path: Path) -> Path:
    """Spells the words of the tiny corpus, as its sounds do; with a mark, CRLF, a comment and other pronunciations."""
    corpus = open_corpus(tiny_corpus)
    texts = [str(u.labels.get("text") or "") for split in ("train", "dev", "test") for u in corpus.utterances(split)]
    words = sorted({word for text in texts for word in text.split()})
    lines = [";;; spelled", *(f"{word.upper()}  {' '.join(word.upper())}" for word in words), "BA\tX Y Z", ""]
    path = tmp_path / "lexicon.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    return path


def test_the_inventory_is_that_of_the_cmu_dictionary_with_stress() -> None:
    assert len(INVENTORY) == len(set(INVENTORY)) == 71
    assert INVENTORY[:5] == ("SIL", "SPN", "AA0", "AA1", "AA2")
    assert INVENTORY[2:] == tuple(sorted(INVENTORY[2:]))
    assert sum(phone[-1].isdigit() for phone in INVENTORY) == 45


def test_superbs_head_and_loss_are_two_linear_layers_and_torchs_mean_ctc() -> None:
    config = PRESETS["phoneme_recognition"]
    assert (config.train.steps, config.train.learning_rate, config.train.max_batch_size) == (100_000, 1e-2, 32)
    utterances = [Utterance(str(i), "p", labels={"phones": t}) for i, t in enumerate(["AA1 B B", "K AA0 T S"])]
    data = TaskData({"train": utterances}, {"vocabulary": Words(INVENTORY)})
    task = TASK(config)
    head = task.build_head(768, 50.0, data)
    assert sum(p.numel() for p in head.parameters()) == 769 * 256 + 257 * 72
    first, second = nn.Linear(768, 256), nn.Linear(256, 72)
    state = head.state_dict()
    first.load_state_dict({k: state[f"project.{k}"] for k in ("weight", "bias")})
    second.load_state_dict({k: state[f"output.{k}"] for k in ("weight", "bias")})
    features, lengths = torch.randn(2, 12, 768, generator=generator()), torch.tensor([12, 9])
    expected = torch.log_softmax(second(first(features)), dim=2)
    log_probs, frames = head(features, lengths)
    torch.testing.assert_close(log_probs, expected, atol=1e-5, rtol=0)
    assert frames.tolist() == [12, 9]
    labels = [[INVENTORY.index(p) + 1 for p in u.labels["phones"].split()] for u in utterances]
    loss = nn.CTCLoss(blank=0, zero_infinity=True)(
        expected.transpose(0, 1), torch.tensor([*labels[0], *labels[1]]), lengths, torch.tensor([3, 4])
    )
    out = task.loss(head, features, lengths, utterances, data, generator())
    torch.testing.assert_close(out.loss_sum / out.sample_size, loss, atol=1e-5, rtol=0)


def test_every_head_can_be_built() -> None:
    data = TaskData({}, {"vocabulary": Words(("A", "B"))})
    layers = {}
    for name, settings in HEADS.items():
        config = load_config(PRESETS["phoneme_recognition_demo"], overrides=settings)
        layers[name] = len(TASK(config).build_head(8, 50.0, data).layers)  # type: ignore[arg-type]
    assert layers == {"linear": 0, "recurrent": 2}


def test_the_first_pronunciation_counts_and_case_only_where_needed(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("Polish  P OW1\nREAD\tR EH1 D\npolish  P AA1\n")
    second.write_text("READ  R IY1 D\nTWO  T UW1\n")
    lexicon = read_lexicon([str(first), str(second)], inventory=INVENTORY)
    pronounced = lexicon.pronounce(Utterance("u", "p", labels={"text": "read polish Polish TWO"}))
    assert pronounced == "R EH1 D P AA1 P OW1 T UW1"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"A  AH0\nB\n", r"lexicon\.txt, line 2,.*'B' without phonemes"),
        (b"A  AH0\r\n\r\nB  BEE\r\n", r"lexicon\.txt, line 3,.*'BEE' in 'B'.*inventory"),
        (b"A  AH0\n\xff\xfe\n", r"lexicon\.txt, line 2,.*UTF-8"),
        (b"\n;;; nothing\n", "holds no word"),
        (None, "does not exist"),
    ],
)
def test_a_bad_lexicon_is_refused_with_its_line(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "lexicon.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ManifestError, match=words):
        read_lexicon([str(path)], inventory=INVENTORY)


def test_a_lexicon_must_be_named_and_only_where_it_is_used(tiny_corpus: Path) -> None:
    with pytest.raises(ConfigError, match="librispeech-lexicon"):
        TASK(PRESETS["phoneme_recognition"]).prepare(open_corpus(tiny_corpus))
    with pytest.raises(ConfigError, match="phones=lexicon"):
        PhonemeConfig(phones="labels", lexicon=("a.txt",))


def test_words_without_phonemes_are_counted_and_never_dropped_in_silence(
    tiny_corpus: Path, lexicon: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = open_corpus(tiny_corpus)
    kept = [line for line in lexicon.read_text("utf-8-sig").splitlines() if not line.startswith("KIMU ")]
    lexicon.write_text("\n".join(kept))
    having = sum("kimu" in str(u.labels.get("text")).split() for u in corpus.utterances("train"))
    assert having > 0
    config = load_config(SMALL, overrides=[f"lexicon=[{lexicon}]"])
    with pytest.raises(ManifestError, match=rf"jsonl\.gz, line \d+, .*{having} utterances in 'train'.*'kimu'"):
        TASK(config).prepare(corpus)
    data = TASK(load_config(config, overrides=["leave_out_unknown=true"])).prepare(corpus)
    assert len(data.splits["train"]) == len(corpus.utterances("train")) - 2 - having
    assert f"{having} utterances are left out for 'kimu'" in caplog.text


def test_phonemes_come_from_labels_and_empty_ones_are_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, root)
    for split in ("train", "dev", "test"):
        path = root / "manifests" / f"{split}.jsonl.gz"
        cuts = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        for cut in cuts:
            cut["supervisions"][0].setdefault("custom", {})["phones"] = "A B A"
        if split == "dev":
            cuts[2]["supervisions"][0]["custom"]["phones"] = "  "
        with gzip.open(path, "wt") as file:
            file.writelines(json.dumps(cut) + "\n" for cut in cuts)
    config = load_config(SMALL, overrides=["phones=labels"])
    with pytest.raises(ManifestError, match=r"dev\.jsonl\.gz, line 3, .*empty transcript.*leave_out_empty"):
        TASK(config).prepare(open_corpus(root))
    data = TASK(load_config(config, overrides=["leave_out_empty=true"])).prepare(open_corpus(root))
    assert data.extra["vocabulary"] == Words(("A", "B"))
    with pytest.raises(
        ManifestError, match=r"train\.jsonl\.gz, line 1, has the phoneme 'A' in '\S+', which is not in `inv"
    ):
        TASK(load_config(config, overrides=["inventory=[B]", "leave_out_empty=true"])).prepare(open_corpus(root))


def slow_distance(reference: list[str], hypothesis: list[str]) -> int:
    row = list(range(len(hypothesis) + 1))
    for i, wanted in enumerate(reference, 1):
        last, row[0] = row[0], i
        for j, given in enumerate(hypothesis, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (wanted != given))
    return row[-1]


def test_the_error_rate_counts_phonemes_over_all_utterances(tmp_path: Path) -> None:
    references = ["AA1 B B", "K AA0 T S", "SIL"]
    hypotheses = ["AA1 B B", "AA0 T T Z", ""]
    utterances = [Utterance(str(i), "p", labels={"phones": t}) for i, t in enumerate(references)]
    data = TaskData({"test": utterances}, {"vocabulary": Words(INVENTORY)})
    found = TASK(SMALL).evaluate(nn.Identity(), dict(zip("012", hypotheses, strict=True)), data, "test", tmp_path)
    errors = [slow_distance(r.split(), h.split()) for r, h in zip(references, hypotheses, strict=True)]
    assert found.metrics["per"].value == pytest.approx(sum(errors) / 8, abs=1e-12)
    assert merge_repeats("AA0 T T Z T") == "AA0 T Z T"
    merged = [slow_distance(r.split(), merge_repeats(h).split()) for r, h in zip(references, hypotheses, strict=True)]
    assert found.metrics["per as S3PRL"].value == pytest.approx(sum(merged) / 8, abs=1e-12)
    assert (tmp_path / "transcripts.tsv").read_text().splitlines()[2] == "1\tK AA0 T S\tAA0 T T Z"


def test_a_run_learns_and_its_folder_names_the_phonemes_of_files(
    tiny_corpus: Path, lexicon: Path, tmp_path: Path
) -> None:
    options = RunOptions(cache_folder=str(tmp_path / "cache"))
    config = load_config(SMALL, overrides=[f"lexicon=[{lexicon}]"])
    (result,) = run(
        "phoneme_recognition", upstream="fbank", corpus=tiny_corpus, config=config, out=tmp_path, options=options
    )
    assert result.metric == "per"
    assert result.test.metrics["per"].value < 0.9, "a head that emits only blanks has 1"
    utterance = open_corpus(tiny_corpus).utterances("test")[0]
    folder = tmp_path / "phoneme_recognition" / "fbank" / "seed0"
    said = infer(folder, [utterance.path])[utterance.path]
    rows = [line.split("\t") for line in (folder / "transcripts.tsv").read_text().splitlines()]
    assert said == next(hypothesis for name, _, hypothesis in rows if name == utterance.id)


def test_espeak_reads_texts_by_the_rules_of_their_language() -> None:
    pytest.importorskip("espeakng_loader", reason="phones=espeak needs the extra 'synthesis'")
    from downstreams.phoneme_recognition.data import Unknown, read_aloud

    assert read_aloud(Utterance("u", "p", labels={"text": "a tady je", "language": "cs"})) == "a t a d i j e"
    with pytest.raises(Unknown, match="xx_zz"):
        read_aloud(Utterance("u", "p", labels={"text": "a", "language": "xx_zz"}))
