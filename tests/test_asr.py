"""Speech recognition: head, loss, decoding, augmentation and data."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from downstreams.asr.config import PRESETS, AsrConfig
from downstreams.asr.task import TASK
from speechssl.augment.spec_augment import SpecAugmentConfig, spec_augment, time_warp
from speechssl.config import load_config
from speechssl.ctc.data import read_splits
from speechssl.ctc.vocabulary import Characters, find_characters
from speechssl.data.corpus import open_corpus
from speechssl.decode.ctc import greedy_decode
from speechssl.errors import ManifestError
from speechssl.head.recurrent import BidirectionalLSTM, RecurrentHead
from speechssl.task import TaskData
from speechssl.types import Utterance

SMALL = AsrConfig(project_size=8, hidden_size=8, augment=None, label_rate=25.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_default_preset_is_superbs() -> None:
    config = PRESETS["asr"]
    head = RecurrentHead(768, 32, frame_rate=50.0, config=config)
    # Linear 768->1024, two bidirectional LSTM layers of 1024, Linear 2048->32.
    lstm = sum(2 * 4 * 1024 * (width + 1024 + 2) for width in (1024, 2048))
    expected = 769 * 1024 + lstm + 2049 * 32
    assert sum(p.numel() for p in head.parameters()) == expected
    assert (config.train.steps, config.train.learning_rate, config.train.max_batch_size) == (200_000, 1e-4, 32)
    assert head.factor == 1


def test_both_directions_are_those_of_a_packed_lstm() -> None:
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        ours = BidirectionalLSTM(6, 8)
    reference = torch.nn.LSTM(6, 8, bidirectional=True, batch_first=True)
    names = {
        k: ("back." + k.removesuffix("_reverse") if k.endswith("_reverse") else "ahead." + k)
        for k in reference.state_dict()
    }
    reference.load_state_dict({k: ours.state_dict()[name] for k, name in names.items()})
    lengths = torch.tensor([20, 11, 1])
    features = torch.randn(3, 20, 6, generator=generator())
    packed = pack_padded_sequence(features, lengths, batch_first=True)
    expected, _ = pad_packed_sequence(reference(packed)[0], batch_first=True)
    found = ours(features, lengths)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(found[row, :length], expected[row, :length], atol=1e-6, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(features, lengths), found)


def test_the_head_for_other_domains_drops_frames_and_projects_after_each_layer() -> None:
    ood = PRESETS["asr_ood"]
    assert (ood.train.steps, ood.train.max_batch_size, ood.train.learning_rate) == (500_000, 16, 1e-4)
    config = load_config(ood, overrides=["project_size=6", "hidden_size=5"])
    head = RecurrentHead(4, 7, frame_rate=100.0, config=config).eval()
    state = head.state_dict()
    features, lengths = torch.randn(2, 21, 4, generator=generator()), torch.tensor([21, 10])
    log_probs, frames = head(features, lengths)
    assert frames.tolist() == [11, 5]
    for row, length in enumerate(lengths.tolist()):
        states = features[row : row + 1, :length:2] @ state["project.weight"].T + state["project.bias"]
        for place in range(2):
            layer = torch.nn.LSTM(states.size(2), 5, bidirectional=True, batch_first=True)
            part = {k.removeprefix(f"layers.{place}."): v for k, v in state.items() if k.startswith(f"layers.{place}.")}
            layer.load_state_dict(
                {k.removeprefix("ahead."): v for k, v in part.items() if k.startswith("ahead.")}
                | {k.removeprefix("back.") + "_reverse": v for k, v in part.items() if k.startswith("back.")}
            )
            weight, bias = (state[f"layer_projections.{place}.{k}"] for k in ("weight", "bias"))
            states = torch.tanh(layer(states)[0] @ weight.T + bias)
        expected = (states @ state["output.weight"].T + state["output.bias"]).log_softmax(dim=2)
        torch.testing.assert_close(log_probs[row : row + 1, : expected.size(1)], expected, atol=1e-5, rtol=0)


def test_an_utterance_scores_the_same_alone_and_padded() -> None:
    head = RecurrentHead(6, 5, frame_rate=100.0, config=SMALL).eval()
    features = torch.randn(3, 41, 6, generator=generator())
    lengths = torch.tensor([41, 17, 3])
    features = features * (torch.arange(41)[None, :, None] < lengths[:, None, None])
    together, frames = head(features, lengths)
    assert frames.tolist() == [11, 5, 1]
    for row, length in enumerate(lengths.tolist()):
        alone, _ = head(features[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(alone[0], together[row, : frames[row]], atol=1e-5, rtol=0)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
@settings(deadline=None, max_examples=60)
def test_greedy_decoding_merges_repeats_and_drops_blanks(path: list[int]) -> None:
    scores = torch.nn.functional.one_hot(torch.tensor([[*path, 1, 2]]), 4).float()
    expected, last = [], 0
    for label in path:
        if label not in (0, last):
            expected.append(label)
        last = label
    assert greedy_decode(scores, torch.tensor([len(path)])) == [expected]


@given(st.text(alphabet="abč ", min_size=1, max_size=20))
@settings(deadline=None, max_examples=40)
def test_texts_survive_encoding(text: str) -> None:
    vocabulary = Characters((" ", "a", "b", "č"))
    assert vocabulary.decode(vocabulary.encode(text)) == " ".join(text.split())
    assert 0 not in vocabulary.encode(text)


def test_unseen_characters_are_counted_and_never_encoded() -> None:
    vocabulary = find_characters(["ab a"])
    assert vocabulary.characters == (" ", "a", "b")
    assert vocabulary.encode("axb") == [2, 3]
    assert vocabulary.unseen(["axx", "y"]) == {"x": 2, "y": 1}


def batch(texts: list[str]) -> tuple[TaskData, list[Utterance]]:
    utterances = [Utterance(str(i), "p", labels={"text": t, "language": "aa"}) for i, t in enumerate(texts)]
    return TaskData({"train": utterances}, {"vocabulary": find_characters(texts)}), utterances


def test_the_loss_is_that_of_ctc_per_character_summed_over_utterances() -> None:
    data, utterances = batch(["abba", "b a"])
    task = TASK(SMALL)
    head = task.build_head(6, 50.0, data).eval()
    features, lengths = torch.randn(2, 40, 6, generator=generator()), torch.tensor([40, 30])
    out = task.loss(head, features, lengths, utterances, data, generator())
    log_probs, frames = head(features, lengths)
    vocabulary = data.extra["vocabulary"]
    expected = torch.zeros(())
    for row, utterance in enumerate(utterances):
        labels = torch.tensor([vocabulary.encode(utterance.labels["text"])])
        scores = log_probs[row, : frames[row], None]
        one = torch.nn.functional.ctc_loss(scores, labels, frames[row : row + 1], torch.tensor([labels.size(1)]))
        expected = expected + one
    torch.testing.assert_close(out.loss_sum, expected, atol=1e-5, rtol=0)
    assert int(out.sample_size) == 2
    assert int(out.metrics["too short for its text"]) == 0


def test_an_utterance_too_short_for_its_text_is_counted_and_has_no_gradient() -> None:
    data, utterances = batch(["aabbaabb"])
    task = TASK(SMALL)
    head = task.build_head(6, 50.0, data)
    out = task.loss(head, torch.randn(1, 10, 6), torch.tensor([10]), utterances, data, generator())
    assert float(out.loss_sum.detach()) == 0.0
    assert int(out.metrics["too short for its text"]) == 1


def test_spec_augment_masks_within_its_widths_and_repeats_with_its_generator() -> None:
    features, lengths = torch.ones(64, 100, 80), torch.tensor([100] * 32 + [40] * 32)
    config = SpecAugmentConfig(time_warp=0.0, time_masks=1, time_width=0.2, channel_masks=1, channel_width=0.1)
    out = spec_augment(features, lengths, frame_rate=50.0, config=config, generator=generator())
    again = spec_augment(features, lengths, frame_rate=50.0, config=config, generator=generator())
    assert torch.equal(out, again)
    assert float(out[32:, 40:].abs().max()) == 0.0
    hidden_frames = (out[:32].amax(dim=2) == 0).sum(dim=1)
    hidden_channels = (out[:32].amax(dim=1) == 0).sum(dim=1)
    assert (int(hidden_frames.max()), int(hidden_channels.max())) == (10, 8)
    assert int(hidden_frames.min()) == 0
    assert float(features.min()) == 1.0, "the input must not be changed"


def test_adaptive_masks_are_as_many_as_the_seconds_of_an_utterance_ask_for() -> None:
    features, lengths = torch.ones(200, 400, 4), torch.tensor([400] * 100 + [49] * 100)
    config = SpecAugmentConfig(
        time_warp=0.0, time_masks=5, time_masks_per_second=1.0, max_time_fraction=0.01, channel_masks=0
    )
    out = spec_augment(features, lengths, frame_rate=50.0, config=config, generator=generator())
    hidden = (out[:100, :, 0] == 0).sum(dim=1)  # 5 of the 8 masks for 8 s, of up to 4 frames
    assert 14 < int(hidden.max()) <= 20
    assert int((out[100:, :49] == 0).sum()) == 0, "less than a second has none"


def test_warping_keeps_ends_and_order() -> None:
    ramp = torch.arange(60.0)[None, :, None].repeat(2, 1, 3)
    lengths = torch.tensor([60, 30])
    out = time_warp(ramp, lengths, window=5.0, generator=generator(1))
    for row, length in enumerate(lengths.tolist()):
        inside = out[row, :length, 0]
        assert (float(inside[0]), float(inside[-1])) == pytest.approx((0.0, length - 1), abs=1e-3)
        assert bool((inside.diff() >= 0).all())
        assert 0.05 < float((inside - torch.arange(length)).abs().max()) <= 5.001


def test_short_utterances_are_not_warped() -> None:
    ramp = torch.arange(8.0)[None, :, None]
    out = time_warp(ramp, torch.tensor([8]), window=5.0, generator=generator())
    torch.testing.assert_close(out, ramp, atol=1e-6, rtol=0)


def test_splits_hold_the_languages_asked_for_and_only_transcribed_speech(tiny_corpus: Path) -> None:
    corpus = open_corpus(tiny_corpus)
    everything = read_splits(corpus, AsrConfig(), task="asr")
    assert all(u.labels["text"] for part in everything.values() for u in part)
    assert len(everything["train"]) == len(corpus.utterances("train")) - 2
    some = read_splits(corpus, AsrConfig(languages=("bb",), max_train_utterances=5), task="asr")
    assert len(some["train"]) == 5
    assert {u.labels["language"] for part in some.values() for u in part} == {"bb"}
    assert some == read_splits(corpus, AsrConfig(languages=("bb",), max_train_utterances=5), task="asr")
    with pytest.raises(ManifestError, match=r"'zz'.*aa, bb"):
        read_splits(corpus, AsrConfig(languages=("zz",)), task="asr")


def test_an_empty_transcript_is_refused_with_its_line_or_counted(tiny_corpus: Path, tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, root)
    path = root / "manifests" / "dev.jsonl.gz"
    cuts = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    cuts[4]["supervisions"][0]["text"] = " "
    path.write_bytes(gzip.compress("".join(json.dumps(cut) + "\n" for cut in cuts).encode()))
    with pytest.raises(ManifestError, match=r"dev\.jsonl\.gz, line 5, has an empty transcript"):
        TASK(SMALL).prepare(open_corpus(root))
    data = TASK(load_config(SMALL, overrides=["leave_out_empty=true"])).prepare(open_corpus(root))
    assert len(data.splits["dev"]) == len(cuts) - 1


def test_evaluation_has_both_rates_by_language_and_keeps_the_transcripts(tiny_corpus: Path, tmp_path: Path) -> None:
    task = TASK(SMALL)
    data = task.prepare(open_corpus(tiny_corpus))
    texts = {u.id: str(u.labels["text"]) for u in data.splits["test"]}
    head = torch.nn.Identity()
    perfect = task.evaluate(head, texts, data, "test", tmp_path)
    assert (perfect.metrics["wer"].value, perfect.metrics["cer"].value) == (0.0, 0.0)
    assert set(perfect.breakdown["wer by language"]) == {"aa", "bb"}
    assert len((tmp_path / perfect.files["transcripts"]).read_text().splitlines()) == len(texts) + 1
    nothing = {u.id: "" for u in data.splits["dev"]}
    silent = task.evaluate(head, nothing, data, "dev", tmp_path / "none")
    assert silent.metrics["wer"].value == 1.0
    assert not (tmp_path / "none").exists(), "dev must not leave artifacts"


def test_the_vocabulary_is_restored_from_its_state(tiny_corpus: Path) -> None:
    task = TASK(SMALL)
    data = task.prepare(open_corpus(tiny_corpus))
    assert task.restore(task.state(data)).extra["vocabulary"] == data.extra["vocabulary"]
