"""The rules of each published corpus, against Lhotse's recipes and plain loops over the same trees."""

import csv
import re
from collections import Counter
from pathlib import Path

import corpus_trees as trees
import pytest
import soundfile
import torch
from corpus_trees import put_audio, put_list, s3prl_share

from speechssl.data.corpora import iemocap as iemocap_module
from speechssl.data.corpora import libri2mix_separation as separation_module
from speechssl.data.corpora.audio_snips import tag_slots
from speechssl.data.corpora.audit import audit
from speechssl.data.corpora.base import NoSettings, Reading, corpus_module
from speechssl.data.corpora.prepare import prepare_corpus
from speechssl.data.corpus import open_corpus
from speechssl.errors import ConfigError, ManifestError
from speechssl.types import Utterance


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda file: None)


def prepared(name: str, source: Path, out: Path, **settings: object) -> dict[str, list[Utterance]]:
    yaml = None
    if settings:
        yaml = out.with_suffix(".yaml")
        yaml.write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
    prepare_corpus(name, source, out, config=yaml)
    corpus = open_corpus(out)
    return {split: corpus.utterances(split) for split in corpus.splits()}


def notes_of(name: str, source: Path) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {row.what: (row.found, row.examples) for row in audit(name, source) if row.expected is None}


def lists_of(out: Path, name: str) -> list[str]:
    return (out / open_corpus(out).info["files"][name]).read_text(encoding="utf-8").splitlines()


# LibriSpeech


def test_librispeech_is_what_lhotse_makes_of_it(tmp_path):
    from lhotse.recipes import prepare_librispeech

    source = trees.librispeech(tmp_path)
    plain = source / "train-clean-100/103/1240/103-1240.trans.txt"
    put_list(plain, plain.read_text(encoding="utf-8-sig").splitlines())  # Lhotse stumbles over a byte-order mark
    ours = prepared("librispeech", source, tmp_path / "out")
    theirs = prepare_librispeech(source)
    for split, part in (("train", "train-clean-100"), ("dev", "dev-clean"), ("test", "test-clean"), ("dev-other",) * 2):
        segments = {s.id: s for s in theirs[part]["supervisions"]}
        recordings = theirs[part]["recordings"]
        assert {u.id for u in ours[split]} == set(segments)
        for utterance in ours[split]:
            segment, recording = segments[utterance.id], recordings[utterance.id]
            assert (utterance.labels["text"], utterance.labels["speaker"]) == (segment.text, segment.speaker)
            assert utterance.path == recording.sources[0].source
            assert utterance.duration == pytest.approx(recording.duration, abs=1e-9)


def test_librispeech_keeps_empty_transcripts_and_notes_chapters_without_one(tmp_path):
    source = trees.librispeech(tmp_path)
    put_list(source / "dev-clean/84/1240/84-1240.trans.txt", ["84-1240-0000 ", "84-1240-0001", "84-1240-0002 A"])
    (source / "test-clean/61/1240/61-1240.trans.txt").unlink()
    notes = notes_of("librispeech", source)
    assert notes["dev: empty transcripts"] == (2, ("84-1240-0000", "84-1240-0001"))
    assert notes["test: chapters without a transcript"][0] == 1
    ours = prepared("librispeech", source, tmp_path / "out")
    assert [u.labels["text"] for u in ours["dev"] if u.labels["speaker"] == "84"] == ["", "", "A"]
    assert len(ours["test"]) == 3


def test_librispeech_puts_parts_together(tmp_path):
    source = trees.librispeech(tmp_path)
    ours = prepared("librispeech", source, tmp_path / "out", train="[train-clean-100, dev-other]", dev="[dev-clean]")
    assert Counter(u.labels["speaker"] for u in ours["train"]) == {"103": 3, "1034": 3, "116": 3}
    assert "dev-other" not in ours
    with pytest.raises(ConfigError, match=r"`train` names no part 'train-100'. Did you mean 'train-clean-100'"):
        prepared("librispeech", source, tmp_path / "other", train="[train-100]")
    rows = {r.what: r for r in audit("librispeech", source, config=tmp_path / "out.yaml")}
    assert rows["train: utterances"].expected == 28_539 + 2864
    assert rows["train: values of 'speaker'"].expected == 251 + 33


# Speech Commands


def test_keywords_are_split_by_the_hash_of_the_speaker(tmp_path):
    source = trees.speech_commands(tmp_path)
    ours = prepared("speech_commands", source, tmp_path / "out")
    main = source / "speech_commands_v0.01"
    files = [p for p in main.glob("*/*.wav") if p.parent.name != "_background_noise_"]
    train = {str(p) for p in files if s3prl_share(p.name) >= 20}
    dev = {str(p) for p in files if s3prl_share(p.name) < 10}
    assert train and dev and len(train) + len(dev) < len(files)
    assert {u.path for u in ours["train"] if u.labels["keyword"] != "_silence_"} == train
    assert {u.path for u in ours["dev"] if u.labels["keyword"] != "_silence_"} == dev
    for utterance in ours["train"]:
        word = Path(utterance.path).parent.name
        expected = {"_background_noise_": "_silence_", "bed": "_unknown_", "cat": "_unknown_"}.get(word, word)
        assert utterance.labels["keyword"] == expected


def test_noise_is_cut_into_seconds_of_silence_in_train_and_dev(tmp_path):
    ours = prepared("speech_commands", trees.speech_commands(tmp_path), tmp_path / "out")
    for split in ("train", "dev"):
        silence = [u for u in ours[split] if u.labels["keyword"] == "_silence_"]
        found = sorted((Path(u.path).stem, u.start, u.duration) for u in silence)
        assert found == [("pink_noise", 0.0, 1.0), ("running_tap", 0.0, 1.0), ("running_tap", 1.0, 1.0)]
    counts = Counter(u.labels["keyword"] for u in ours["test"])
    assert len(counts) == 12 and counts["_silence_"] == counts["_unknown_"] == 1
    (unknown,) = [u for u in ours["test"] if u.labels["keyword"] == "_unknown_"]
    assert (unknown.labels["text"], unknown.labels["speaker"]) == ("bed", "0ff728b5")
    assert "speaker" not in next(u for u in ours["test"] if u.labels["keyword"] == "_silence_").labels
    notes = notes_of("speech_commands", tmp_path)
    assert notes["classes of 'keyword' without a training example"] == (1, ("go",))


def test_words_and_speakers_are_those_of_lhotse(tmp_path):
    from lhotse.recipes.speechcommands import prepare_speechcommands

    source = trees.speech_commands(tmp_path)
    ours = prepared("speech_commands", source, tmp_path / "out")
    theirs = prepare_speechcommands("1", source)
    for split, part in (("train", "train"), ("dev", "valid"), ("test", "test")):
        recordings = theirs[part]["recordings"]
        segments = {recordings[s.recording_id].sources[0].source: s for s in theirs[part]["supervisions"]}
        spoken = [u for u in ours[split] if u.labels["keyword"] != "_silence_"]
        assert {u.path for u in spoken} == {p for p, s in segments.items() if s.text}
        for utterance in spoken:
            segment = segments[utterance.path]
            assert (utterance.labels["text"], utterance.labels["speaker"]) == (segment.text, segment.speaker)


def test_speech_commands_without_dev_or_test_are_refused(tmp_path):
    source = trees.speech_commands(tmp_path)
    put_list(source / "speech_commands_v0.01/validation_list.txt", [])
    for noise in (source / "speech_commands_v0.01/_background_noise_").glob("*.wav"):
        noise.unlink()
    with pytest.raises(ManifestError, match="No utterance of 'dev' is left"):
        prepared("speech_commands", source, tmp_path / "out")
    assert notes_of("speech_commands", source)["no background noise, so no _silence_ in train"][0] == 1
    (source / "speech_commands_test_set_v0.01").rename(source / "test_set")
    with pytest.raises(ManifestError, match=r"no speech_commands_test_set_v0.01/: .* unpack it there"):
        audit("speech_commands", source)


# VoxCeleb1


def test_voxceleb1_has_the_splits_of_both_tasks(tmp_path):
    source = trees.voxceleb1(tmp_path)
    ours = prepared("voxceleb1", source, tmp_path / "out")
    lines = [line.split() for line in (source / "iden_split.txt").read_text(encoding="utf-8-sig").splitlines()]
    expected: dict[str, set[str]] = {}
    for code, file in lines:  # S3PRL `dataio/corpus/voxceleb1sid.py` and `voxceleb1sv.py`
        name = "-".join(Path(file).with_suffix("").parts)
        expected.setdefault({"1": "train", "2": "dev", "3": "test"}[code], set()).add(name)
        held_out = int(file[2:7]) in range(10_270, 10_310)
        side = "speaker_test" if held_out else "speaker_train" if code in "13" else "speaker_dev"
        expected.setdefault(side, set()).add(name)
    assert {split: {u.id for u in utterances} for split, utterances in ours.items()} == expected
    assert {u.labels["speaker"] for u in ours["train"]} == set(trees.VOXCELEB_SPEAKERS)


def test_trials_are_kept_in_the_ids_of_the_manifests(tmp_path):
    source, out = trees.voxceleb1(tmp_path), tmp_path / "out"
    ours = prepared("voxceleb1", source, out)
    known = {u.id for u in ours["speaker_test"]}
    trials = [line.split() for line in lists_of(out, "veri_test2")]
    assert [t[0] for t in trials] == ["1", "0"] and all({a, b} <= known for _, a, b in trials)
    assert trials[0][1:] == ["id10270-x6uYqmx31kE-00001", "id10270-7gWzIy6yIIk-00001"]
    assert lists_of(out, "veri_test") == ["0 id10309-7gWzIy6yIIk-00002 id10270-x6uYqmx31kE-00001"]


def test_trials_of_what_is_left_out_are_left_out_and_counted(tmp_path):
    source, out = trees.voxceleb1(tmp_path), tmp_path / "out"
    (source / "test/wav/id10270/7gWzIy6yIIk/00001.wav").unlink()
    info = prepare_corpus("voxceleb1", source, out, skip_bad=True)
    assert lists_of(out, "veri_test2") == ["0 id10270-x6uYqmx31kE-00001 id10309-7gWzIy6yIIk-00002"]
    assert info["sources"][0]["skipped"] == {"missing": 1, "lines of veri_test2": 1}


def test_voxceleb1_in_one_folder_is_what_lhotse_makes_of_it(tmp_path):
    from lhotse.recipes.voxceleb import _prepare_voxceleb_v1

    source = trees.voxceleb1(tmp_path)
    (source / "dev/wav").rename(source / "wav")
    for speaker in sorted((source / "test/wav").iterdir()):
        speaker.rename(source / "wav" / speaker.name)
    rows = [f"{s}\tSomebody\tf\tUK\t{'test' if s > 'id10200' else 'dev'}" for s in trees.VOXCELEB_SPEAKERS]
    put_list(source / "vox1_meta.csv", ["VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet", *rows])
    ours = prepared("voxceleb1", source, tmp_path / "out")
    theirs = _prepare_voxceleb_v1(source, 1)
    for part, splits in (("train", ("speaker_train", "speaker_dev")), ("test", ("speaker_test",))):
        segments = {s.recording_id: s.speaker for s in theirs[part]["supervisions"]}
        assert {u.id: u.labels["speaker"] for split in splits for u in ours[split]} == segments


# Fluent Speech Commands


def test_intents_are_those_of_the_lists(tmp_path):
    source = trees.fluent_speech_commands(tmp_path)
    ours = prepared("fluent_speech_commands", source, tmp_path / "out")
    for split, name in (("train", "train"), ("dev", "valid"), ("test", "test")):
        with (source / "data" / f"{name}_data.csv").open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(ours[split]) == 4
        for row, utterance in zip(rows, ours[split], strict=True):
            assert utterance.path == str(source / row["path"]) and utterance.id == Path(row["path"]).stem
            assert all(utterance.labels[key] == row[key] for key in ("action", "object", "location"))
            assert (utterance.labels["text"], utterance.labels["speaker"]) == (row["transcription"], row["speakerId"])
    assert ours["train"][0].labels["text"] == "Lights off, please"
    notes = notes_of("fluent_speech_commands", source)
    assert notes["classes of 'object' without a training example"] == (1, ("Chinese",))
    assert notes["empty transcripts"][0] == 3


# IEMOCAP


def slow_session(folder: Path) -> dict[str, str]:
    """S3PRL `downstream/emotion/IEMOCAP_preprocess.py` for one session: utterance -> class."""
    found = {}
    for path in sorted(folder.glob("dialog/EmoEvaluation/Ses*.txt")):
        for line in path.read_text().splitlines():
            values = [value for value in re.split("[\t\n]", line) if value]
            if line[:1] == "[" and values[2] in ("neu", "hap", "ang", "sad", "exc"):
                found[values[1]] = values[2].replace("exc", "hap")
    return found


def test_folds_hold_out_one_session_each_and_draw_dev_as_torch_does(tmp_path):
    source = trees.iemocap(tmp_path)
    ours = prepared("iemocap", source, tmp_path / "out")
    sessions = {number: slow_session(source / f"Session{number}") for number in range(1, 6)}
    for fold in range(1, 6):
        test = {u.id: u.labels["emotion"] for u in ours[f"fold{fold}_test"]}
        assert test == sessions[fold]
        rest = [name for number in range(1, 6) if number != fold for name in sessions[number]]
        size = int(0.8 * len(rest))
        lengths = [size, len(rest) - size]
        drawn = torch.utils.data.random_split(range(len(rest)), lengths, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
        for part, subset in zip(("train", "dev"), drawn, strict=True):
            assert {u.id for u in ours[f"fold{fold}_{part}"]} == {rest[place] for place in subset}
    assert [u.id for u in ours["dev"]] == [u.id for u in ours["fold1_dev"]]


def test_emotions_come_with_speaker_session_act_and_text(tmp_path):
    ours = prepared("iemocap", trees.iemocap(tmp_path), tmp_path / "out")
    everything = {u.id: u.labels for fold in range(1, 6) for u in ours[f"fold{fold}_test"]}
    assert {labels["emotion"] for labels in everything.values()} == {"neu", "hap", "ang", "sad"}
    assert everything["Ses01F_impro01_M001"] == {
        "emotion": "hap", "category": "exc", "session": "Session1", "act": "improvised", "speaker": "Ses01M",
        "language": "en", "text": "Number 1.",
    }  # fmt: skip
    assert everything["Ses04M_script01_1_F000"]["act"] == "scripted"
    assert everything["Ses04M_script01_1_F000"]["speaker"] == "Ses04F"


def test_a_session_that_is_not_there_is_missed(tmp_path):
    source = trees.iemocap(tmp_path)
    (source / "Session5").rename(tmp_path / "away")
    rows = {r.what: r for r in audit("iemocap", source)}
    assert rows["fold5_test: utterances"].found == 0 and rows["fold5_test: utterances"].fault
    with pytest.raises(ManifestError, match="No utterance of 'fold5_test' is left"):
        prepared("iemocap", source, tmp_path / "out")
    assert sum(iemocap_module.PER_SESSION.values()) == 1103 + 1636 + 1084 + 1708


# Audio SNIPS


def test_slots_are_tagged_as_s3prl_spells_them(tmp_path):
    ours = prepared("audio_snips", trees.audio_snips(tmp_path), tmp_path / "out")
    said = {u.id.rsplit("-", 1)[1]: u.labels for u in ours["train"] if u.labels["speaker"] == "Ivy"}
    assert said["0"]["slots"] == (
        "LISTEN TO B-artist WESTBAM E-artist ALBUM B-album ALLERGIC E-album ON B-service GOOGLE MUSIC E-service"
    )
    assert said["0"]["text"] == "LISTEN TO WESTBAM ALBUM ALLERGIC ON GOOGLE MUSIC"
    assert said["1"]["slots"] == "ADD B-artist OLAFUR ARNALDS E-artist"  # the full stop takes its tag along
    assert said["2"]["slots"] == "B-genre R AND B E-genre"
    assert said["3"]["slots"] == "PLAY B-track ONE E-track"  # the quotation mark has no tag of its own
    assert [said[k]["intent"] for k in "012"] == ["PlayMusic", "AddToPlaylist", "PlayMusic"]


def slow_tags(words: list[str], tags: list[str]) -> str:
    """S3PRL `downstream/ctc/text.py`, CharacterTextSlotEncoder, on words without punctuation."""
    tokens = []
    for i, (word, tag) in enumerate(zip(words, tags, strict=True)):
        if tag != "O" and (i == 0 or tags[i - 1] != tag):
            tokens.append("B-" + tag)
        tokens.append(word)
        if tag != "O" and (i == len(words) - 1 or tags[i + 1] != tag):
            tokens.append("E-" + tag)
    return " ".join(tokens)


def test_any_sequence_of_tags_is_spelled_as_s3prl_does():
    generator = torch.Generator().manual_seed(0)
    for size in range(12):
        for _ in range(20):
            tags = ["Oab"[k] for k in torch.randint(3, (size,), generator=generator).tolist()]
            words = [f"w{k}" for k in range(size)]
            assert tag_slots(words, tags) == slow_tags(words, tags)
    assert tag_slots(["x", "y", "z"], ["B-a", "I-a", "B-a"]) == "B-a x y E-a B-a z E-a"


def test_voices_are_split_as_superb_does(tmp_path):
    source = trees.audio_snips(tmp_path)
    ours = prepared("audio_snips", source, tmp_path / "out")
    voices = {split: {u.labels["speaker"] for u in utterances} for split, utterances in ours.items()}
    assert (len(voices["train"]), len(voices["dev"]), len(voices["test"])) == (8, 4, 4)
    assert voices["dev"] == {"Aditi", "Amy", "Geraint", "Nicole"} and set.union(*voices.values()) == set(
        trees.SNIPS_VOICES
    )
    assert all(f"/{folder}/" in u.path for s, folder in (("dev", "valid"), ("test", "test")) for u in ours[s])
    put_audio(source / "train" / "Ivy-snips-train-99.wav")
    put_audio(source / "train" / "Amy-snips-train-99.wav")  # a voice that train does not use
    assert notes_of("audio_snips", source)["audio without a transcript"][0] == 1


# QUESST 2014


def test_queries_and_documents_of_one_language_with_what_belongs_together(tmp_path):
    source, out = trees.quesst14(tmp_path), tmp_path / "out"
    ours = prepared("quesst14", source, out)
    assert [u.id for u in ours["documents"]] == [f"quesst14_0000{k}" for k in (0, 1, 3, 4, 6, 7)]
    assert [u.id for u in ours["dev"]] == ["quesst14_dev_0000", "quesst14_dev_0001"]
    assert "/eval_queries/" in ours["test"][0].path
    assert lists_of(out, "ground_truth_dev") == [
        "quesst14_dev_0000 quesst14_00000",
        "quesst14_dev_0000 quesst14_00003",
    ]
    assert len(lists_of(out, "ground_truth_test")) == 2
    everything = prepared("quesst14", source, tmp_path / "all", language="all")
    assert len(everything["documents"]) == 9 and len(lists_of(tmp_path / "all", "ground_truth_dev")) == 3
    with pytest.raises(ManifestError, match="no language 'klingon'"):
        prepared("quesst14", source, tmp_path / "none", language="klingon")


# VoiceBank-DEMAND


def test_noisy_files_come_with_their_clean_side(tmp_path):
    ours = prepared("voicebank_demand", trees.voicebank_demand(tmp_path / "s"), tmp_path / "out")
    speakers = {split: {u.labels["speaker"] for u in utterances} for split, utterances in ours.items()}
    assert speakers == {"train": {"p230"}, "dev": {"p226", "p287"}, "test": {"p232"}}
    for utterance in (u for utterances in ours.values() for u in utterances):
        assert utterance.labels["clean"] == utterance.path.replace("/noisy_", "/clean_")
        assert soundfile.info(utterance.labels["clean"]).frames == soundfile.info(utterance.path).frames
        assert utterance.labels["text"] == f"Please call {utterance.labels['speaker']}."


def test_pairs_of_unequal_length_or_without_a_side_are_refused(tmp_path):
    source = trees.voicebank_demand(tmp_path / "s")
    clean = source / "clean_testset_wav_16k" / "p232_002.wav"
    put_audio(clean, 1600)
    with pytest.raises(ManifestError, match=r"p232_002.wav holds 1600 samples .* must be as long as .* with 3200"):
        prepared("voicebank_demand", source, tmp_path / "out")
    clean.unlink()
    rows = {r.what: r for r in audit("voicebank_demand", source)}
    assert rows["test: utterances"].examples == (str(clean),)
    info = prepare_corpus("voicebank_demand", source, tmp_path / "out", skip_bad=True)
    assert info["splits"]["test"]["utterances"] == 1 and info["sources"][0]["utterances"] == 7


# Libri2Mix


def test_mixtures_come_with_their_sources_and_dev_is_the_draw_of_s3prl(tmp_path, monkeypatch):
    monkeypatch.setattr(separation_module, "DEV_SIZE", 3)
    source = trees.libri2mix_separation(tmp_path)
    ours = prepared("libri2mix_separation", source, tmp_path / "out")
    assert [u.id for u in ours["dev"]] == trees.shuffled_like_s3prl([u.id for u in ours["dev_all"]], 3)
    assert len(ours["dev_all"]) == 5
    mixture = ours["test"][0]
    assert "/wav16k/min/test/mix_clean/" in mixture.path
    assert mixture.labels["sources"] == [mixture.path.replace("mix_clean", side) for side in ("s1", "s2")]
    assert mixture.labels["speakers"] == ["4077", "5142"]
    noisy = prepared("libri2mix_separation", source, tmp_path / "noisy", mixture="mix_both")
    assert all("/mix_both/" in u.path for u in noisy["train"])


def test_the_draw_of_dev_is_pythons_shuffle_with_seed_7():
    names = [f"{k:04d}" for k in range(3000)]
    drawn = separation_module._subsample(names)
    assert sorted(drawn) == trees.shuffled_like_s3prl(names, 1000) and len(set(drawn)) == 1000


def test_segments_say_who_speaks_when_also_with_paths_of_another_machine(tmp_path):
    source = trees.libri2mix_diarization(tmp_path)
    ours = prepared("libri2mix_diarization", source, tmp_path / "out")
    for split in ("train", "dev", "test"):
        for utterance in ours[split]:
            assert utterance.labels["segments"] == [["1578", 0.0, 0.25], ["6415", 0.1, 0.35]]
            assert utterance.labels["speakers"] == ["1578", "6415"]
            assert utterance.path.startswith(str(source)) and Path(utterance.path).is_file()
    put_list(source / "dev/utt2spk", ["a b"])
    with pytest.raises(ManifestError, match=r"segments, line 1, names the segment '6415-.*', whose speaker"):
        audit("libri2mix_diarization", source)
    put_list(source / "test/wav.scp", ["other x.wav"])
    trees.put_list(source / "dev/utt2spk", (source / "train/utt2spk").read_text().splitlines())
    with pytest.raises(ManifestError, match=r"names the recording '1578-.*', which wav.scp lacks"):
        audit("libri2mix_diarization", source)


# Common Voice


def test_clips_are_what_lhotse_makes_of_them(tmp_path):
    from lhotse.recipes.commonvoice import _parse_utterance

    source = trees.common_voice(tmp_path)
    ours = prepared("common_voice", source, tmp_path / "out")
    for split in ("train", "dev", "test"):
        found = {u.id: u for u in ours[split]}
        for language in ("cs", "cy"):
            lines = (source / language / f"{split}.tsv").read_text(encoding="utf-8-sig").splitlines()
            for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
                recording, segment = _parse_utterance(source / language, language, row)
                utterance = found.pop(recording.id)
                assert (utterance.labels["text"], utterance.labels["speaker"]) == (segment.text, segment.speaker)
                assert utterance.labels["language"] == segment.language == language
                assert utterance.duration == pytest.approx(recording.duration, abs=1e-3)
        assert not found


def test_languages_are_chosen_and_those_without_training_noted(tmp_path):
    source = trees.common_voice(tmp_path)
    notes = notes_of("common_voice", source)
    assert notes["classes of 'language' without a training example"] == (1, ("cy",))
    assert notes["empty transcripts"][0] == 5
    czech = prepared("common_voice", source, tmp_path / "cs", languages="[cs]")
    assert {u.labels["language"] for utterances in czech.values() for u in utterances} == {"cs"}
    alone: Reading = corpus_module("common_voice").read(source / "cs", corpus_module("common_voice").CONFIG)  # type: ignore[attr-defined]
    assert {split: len(items) for split, items in alone.splits.items()} == {"train": 3, "dev": 3, "test": 3}
    with pytest.raises(ManifestError, match=r"no language 'cz'. Did you mean 'c[sy]'"):
        prepared("common_voice", source, tmp_path / "cz", languages="[cz]")


# Voice conversion


def pairs_of(out: Path, split: str) -> list[tuple[str, str]]:
    return [(line.split()[0], line.split()[1]) for line in lists_of(out, f"conversion_{split}")]


@pytest.mark.parametrize("task", [1, 2])
def test_vcc2020_has_the_lists_of_the_challenge(task, tmp_path):
    source, out = trees.vcc2020(tmp_path, task=task), tmp_path / "out"
    ours = prepared("vcc2020", source, out, task=task)
    targets = ("TEF1", "TEF2", "TEM1", "TEM2") if task == 1 else ("TFF1", "TFM1", "TGF1", "TGM1", "TMF1", "TMM1")
    sources = ("SEF1", "SEF2", "SEM1", "SEM2")
    # ESPnet `vc1_task1/local/lists/{E,F,G,M}_train_list.txt`: 1-60 of the first hundred thousand, all of the second
    for speaker in (*sources, *targets):
        letter = speaker[1]
        listed = {f"{letter}{n}" for n in (*range(10_001, 10_061), *range(20_001, 20_051))}
        held = {f"{letter}{n}" for n in range(10_061, 10_071)}
        there = {p.stem for p in source.glob(f"*/{speaker}/*.wav")}
        found = {s: {u.id.split("_")[1] for u in us if u.labels["speaker"] == speaker} for s, us in ours.items()}
        assert found["train"] == listed & there and len(found["train"]) == 60
        assert found["dev"] == held and found["test"] == {f"E{n}" for n in range(30_001, 30_026)}
    # S3PRL `a2o-vc-vcc2020/dataset.py`: every sentence of every source, for each target
    expected = {(f"{s}_E{n}", t) for t in targets for s in sources for n in range(30_001, 30_026)}
    pairs = pairs_of(out, "test")
    assert set(pairs) == expected and len(pairs) == len(expected) == (400 if task == 1 else 600)
    assert len({name for name, _ in pairs[:100]}) == 100  # every source once before any twice
    labels = next(u.labels for u in ours["train"] if u.labels["speaker"] == targets[0])
    assert labels["role"] == "target" and labels["gender"] == "f"
    assert (labels["f0_min"], labels["f0_max"]) == ((127, 405) if task == 1 else (139, 387))
    assert labels["language"] == ("en" if task == 1 else "fi")
    assert {u.labels["text"] for u in ours["test"]} == {f"Sentence {n} in Eng." for n in range(30_001, 30_026)}
    if task == 2:
        assert labels["text"] == "Sentence 10001 in Fin."


def test_vcc2020_is_read_as_the_scripts_of_others_leave_it(tmp_path):
    source = trees.vcc2020(tmp_path)
    before = prepared("vcc2020", source, tmp_path / "before")
    prompts = source / "prompts"
    prompts.mkdir()
    texts = source / "vcc2020_database_transcriptions"
    parts = ("training_Eng", "evaluation")  # S3PRL `a2o_vc/local/data_download.sh` puts both into one file
    files = [next(texts.rglob(f"vcc2020_database_{part}_transcriptions.txt")) for part in parts]
    (prompts / "Eng_transcriptions.txt").write_text("".join(f.read_text() for f in files))
    for folder in ("source", "target_task1", "vcc2020_database_evaluation", "vcc2020_database_groundtruth"):
        for path in sorted((source / folder).glob("*/*.wav")):
            (source / path.parent.name).mkdir(exist_ok=True)
            path.rename(source / path.parent.name / path.name)
    after = prepared("vcc2020", source, tmp_path / "after")
    for split, utterances in before.items():
        assert [(u.id, u.labels) for u in utterances] == [(u.id, u.labels) for u in after[split]]
    with pytest.raises(ConfigError, match=r"'task' .* expected one of \[1, 2\]"):
        prepared("vcc2020", source, tmp_path / "third", task=3)


def test_vctk_is_what_lhotse_makes_of_it(tmp_path):
    from lhotse.recipes.vctk import prepare_vctk

    source = trees.vctk(tmp_path)
    ours = prepared("vctk", source, tmp_path / "out", microphone="mic1")
    theirs = {s.id.removesuffix("_mic1"): s for s in prepare_vctk(source, None, True, "mic1")["supervisions"]}
    found = {u.id: u for utterances in ours.values() for u in utterances}
    assert set(found) == set(theirs) and len(found) == 47
    for name, utterance in found.items():
        segment = theirs[name]
        assert (utterance.labels["text"], utterance.labels["speaker"]) == (segment.text, segment.speaker)
        assert utterance.labels["gender"].upper() == segment.gender
        assert (utterance.labels["age"], utterance.labels["accent"]) == (
            segment.custom["age"],
            segment.custom["accent"],
        )
        assert utterance.duration == pytest.approx(segment.duration, abs=1e-9)
        assert utterance.path.endswith(f"wav48_silence_trimmed/{segment.speaker}/{name}_mic1.flac")
    assert found["p280_001"].labels["region"] == "France" and "region" not in found["p362_001"].labels


def test_vctk_holds_out_the_last_utterances_of_each_speaker(tmp_path):
    source, out = trees.vctk(tmp_path), tmp_path / "out"
    ours = prepared("vctk", source, out)
    for speaker in ("p225", "p280", "p362", "s5"):
        numbers = {s: [u.id.split("_")[1] for u in us if u.labels["speaker"] == speaker] for s, us in ours.items()}
        assert numbers["dev"] == [f"{n:03d}" for n in range(8, 13)]  # S3PRL `a2a-vc-vctk/data/lists/dev_list.txt`
        assert numbers["test"] == [
            f"{n:03d}" for n in range(3 if speaker != "p362" else 2, 8) if (speaker, n) != ("p362", 3)
        ]
    pairs = pairs_of(out, "test")
    assert all(name.split("_")[0] != target for name, target in pairs)
    assert len(set(pairs)) == len(pairs) == 20 * 3  # of four speakers there are three others
    notes = notes_of("vctk", source)
    assert notes["transcripts that the publisher has no audio of"] == (1, ("p362_003",))
    assert notes["speakers without transcripts"] == (1, ("p315",))
    second = prepared("vctk", source, tmp_path / "second", microphone="mic2")
    assert {u.labels["speaker"] for u in second["train"]} == {"p225", "p362", "s5"}
    assert all(u.path.endswith("_mic2.flac") for u in second["test"])


def test_librispeech_is_converted_from_everyone_to_everyone(tmp_path):
    source, out = trees.librispeech_conversion(tmp_path), tmp_path / "out"
    ours = prepared("librispeech_conversion", source, out)
    for split, speakers in (("dev", "123"), ("test", "456")):
        assert Counter(u.labels["speaker"] for u in ours[split]) == dict.fromkeys(speakers, 5)
        own = {u.id: u.labels["speaker"] for u in ours[split]}
        expected = {(name, target) for name, speaker in own.items() for target in speakers if target != speaker}
        pairs = pairs_of(out, split)
        assert set(pairs) == expected and len(pairs) == 30
        assert {name for name, _ in pairs[:15]} == set(own)
        assert [own[name] for name, _ in pairs[:3]] == list(speakers)
        assert len({target for _, target in pairs[:3]}) > 1
    used = {u.id for split in ("dev", "test") for u in ours[split]}
    assert Counter(u.labels["speaker"] for u in ours["reference"]) == dict.fromkeys("123456", 2)
    assert not used & {u.id for u in ours["reference"]} and {u.labels["speaker"] for u in ours["train"]} == {"103"}
    fewer = prepared("librispeech_conversion", source, tmp_path / "fewer", utterances=2)
    assert {u.id for u in fewer["test"]} < {u.id for u in ours["test"]}


# Manifests of Lhotse


def test_what_supervisions_say_becomes_labels(tmp_path):
    source = trees.lhotse_manifests(tmp_path / "s")
    ours = prepared("lhotse_manifests", source, tmp_path / "out")
    assert {split: len(utterances) for split, utterances in ours.items()} == {"train": 4, "dev": 4, "test": 4}
    found = {u.id: u for u in ours["dev"]}
    second = found["valid1-1"]
    assert (second.start, second.duration, Path(second.path)) == (0.5, 0.5, source / "wavs/valid1.wav")
    assert second.labels == {"text": "sip", "speaker": "p1", "language": "cs", "stress": 1}
    assert {(u.start, u.labels["stress"]) for u in ours["test"]} == {(0.0, 0), (0.5, 1)}


def test_splits_of_manifests_are_renamed_and_put_together(tmp_path):
    source = trees.lhotse_manifests(tmp_path / "s")
    ours = prepared("lhotse_manifests", source, tmp_path / "out", splits="{valid: train}")
    assert {split: len(utterances) for split, utterances in ours.items()} == {"train": 8, "test": 4}
    with pytest.raises(ManifestError, match=r"no manifest of a split 'vallid'. Did you mean 'valid'"):
        prepared("lhotse_manifests", source, tmp_path / "other", splits="{vallid: dev}")
    (source / "toy_cuts_test.jsonl.gz").rename(source / "other_cuts_train.jsonl.gz")
    with pytest.raises(ManifestError, match="holds manifests of 'toy' and of 'other'"):
        audit("lhotse_manifests", source)


def test_settings_that_are_none_are_an_empty_dataclass():
    assert NoSettings() == NoSettings() and not vars(NoSettings())
