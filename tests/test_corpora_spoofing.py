"""The protocols of each published corpus of spoofed speech, and what is said of a bad one."""

from collections import Counter
from pathlib import Path

import pytest
import spoof_trees as trees
from corpus_trees import put_audio, put_list

from speechssl.data.corpora.audit import audit
from speechssl.data.corpora.prepare import prepare_corpus
from speechssl.data.corpus import open_corpus
from speechssl.errors import ConfigError, ManifestError
from speechssl.types import Utterance


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda file: None)


def prepared(name: str, source: Path, out: Path, settings: str = "") -> dict[str, list[Utterance]]:
    yaml = None
    if settings:
        yaml = out.with_suffix(".yaml")
        yaml.write_text(settings)
    prepare_corpus(name, source, out, config=yaml)
    corpus = open_corpus(out)
    return {split: corpus.utterances(split) for split in corpus.splits()}


def counts_of(name: str, source: Path) -> dict[str, int]:
    return {row.what: row.found for row in audit(name, source)}


def lists_of(out: Path, name: str) -> list[str]:
    path: str = open_corpus(out).info["files"][name]
    return (out / path).read_text(encoding="utf-8").splitlines()


def by_id(utterances: list[Utterance]) -> dict[str, Utterance]:
    return {u.id: u for u in utterances}


def test_asvspoof2019_la_has_the_keys_and_attacks_of_its_protocols(tmp_path: Path) -> None:
    source = trees.asvspoof2019_la(tmp_path)
    ours = prepared("asvspoof2019_la", source, tmp_path / "out")
    for split, part in (("train", "train.trn"), ("dev", "dev.trl"), ("test", "eval.trl")):
        path = source / "ASVspoof2019_LA_cm_protocols" / f"ASVspoof2019.LA.cm.{part}.txt"
        lines = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        told = {
            name: (speaker, key, "bonafide" if attack == "-" else attack) for speaker, name, _, attack, key in lines
        }
        found = {u.id: (u.labels["speaker"], u.labels["key"], u.labels["attack"]) for u in ours[split]}
        assert found == told and len(found) == 7
    assert {u.labels["family"] for u in ours["test"]} == {
        "bonafide", "TTS, vocoder and GAN", "TTS, waveform concatenation",
    }  # fmt: skip


def test_an_audit_counts_classes_attacks_and_files_that_no_protocol_names(tmp_path: Path) -> None:
    source = trees.asvspoof2019_la(tmp_path)
    flac = source / "ASVspoof2019_LA_dev" / "flac"
    put_audio(flac / "LA_D_7777777.flac")
    (flac / "LA_D_1000003.flac").unlink()  # spoofed, A04
    (flac / "LA_D_1000000.flac").unlink()  # bona fide
    rows = {row.what: row for row in audit("asvspoof2019_la", source)}
    expected = {
        "dev: key 'bonafide'": (3, 2), "dev: key 'spoof'": (4, 3), "dev: attack 'bonafide'": (3, 2),
        "dev: attack 'A01'": (2, 2), "dev: attack 'A04'": (2, 1), "test: attack 'A16'": (2, 2),
    }  # fmt: skip
    assert {what: (rows[what].expected, rows[what].found) for what in expected} == expected
    assert [rows[what].fault for what in expected] == [True, True, True, False, True, False]
    stray = [row for what, row in rows.items() if "no protocol names" in what]
    assert [(row.found, Path(row.examples[0]).name) for row in stray] == [(1, "LA_D_7777777.flac")]
    with pytest.raises(ManifestError, match=r"2 audio files .*, the first is .*LA_D_1000000.flac"):
        prepare_corpus("asvspoof2019_la", source, tmp_path / "out")
    info = prepare_corpus("asvspoof2019_la", source, tmp_path / "out", skip_bad=True)
    assert info["sources"][0]["skipped"] == {"missing": 2}
    assert [count for what, count in info["notes"].items() if "no protocol names" in what] == [1]


def test_asvspoof2021_la_has_codecs_transmissions_and_subsets(tmp_path: Path) -> None:
    ours = prepared("asvspoof2021_la", trees.asvspoof2021_la(tmp_path), tmp_path / "out")
    names = ("speaker", "id", "codec", "transmission", "attack", "key", "trim", "subset")
    subsets = {"eval": "test"}
    for line in trees.LA_2021:
        told = dict(zip(names, line.split(), strict=True))
        utterance = by_id(ours[subsets.get(told["subset"], told["subset"])])[told.pop("id")]
        assert {name: utterance.labels[name] for name in told} == told
    assert {split: len(found) for split, found in ours.items()} == {"test": 4, "progress": 2, "hidden": 2}
    counts = counts_of("asvspoof2021_la", tmp_path / "asvspoof2021")
    assert counts["test: codec 'none'"] == counts["hidden: transmission 'sin_tx'"] - 1 == 1


def test_asvspoof2021_df_has_vocoders_and_finds_the_parts_of_its_audio(tmp_path: Path) -> None:
    source = trees.asvspoof2021_df(tmp_path)
    ours = prepared("asvspoof2021_df", source, tmp_path / "out")
    assert [u.id for u in ours["test"]] == ["DF_E_2000013", "DF_E_2000024", "DF_E_2000053", "DF_E_2000054"]
    fake, real = ours["test"][0].labels, ours["test"][2].labels
    told = {
        "speaker": "TEF2", "codec": "low_m4a", "origin": "vcc2020", "attack": "Task1-team20", "key": "spoof",
        "vocoder": "neural_vocoder_nonautoregressive", "family": "neural_vocoder_nonautoregressive",
        "task": "Task1", "team": "team20", "gender_pair": "FF", "target_language": "E", "language": "en",
    }  # fmt: skip
    assert {name: fake[name] for name in told} == told
    assert real["attack"] == real["vocoder"] == real["key"] == "bonafide" and "team" not in real
    moved = {u.id: u.path for u in ours["hidden"]}
    assert "part01" in moved["DF_E_2000056"] and "part01" not in moved["DF_E_2000055"]
    assert not [row.what for row in audit("asvspoof2021_df", source) if "no protocol names" in row.what]


def test_asvspoof2021_without_keys_says_where_they_come_from(tmp_path: Path) -> None:
    source = trees.asvspoof2021_df(tmp_path)
    (source / "keys/DF/CM/trial_metadata.txt").unlink()
    with pytest.raises(ManifestError, match=r"trial_metadata.txt is missing: fetch DF-keys-full.tar.gz from http"):
        audit("asvspoof2021_df", source)


def test_asvspoof5_has_both_tracks(tmp_path: Path) -> None:
    source, out = trees.asvspoof5(tmp_path), tmp_path / "out"
    ours = prepared("asvspoof5", source, out)
    sizes = {"train": 3, "dev": 3, "test": 4, "dev_enrolment": 3, "test_enrolment": 2}
    assert {split: len(found) for split, found in ours.items()} == sizes
    test = by_id(ours["test"])
    coded, plain = test["E_0009538969"], test["E_0009538970"]
    assert dict(coded.labels) == {
        "speaker": "E_1607", "gender": "f", "codec": "C05", "codec_quality": "3", "original": "E_0001234567",
        "attack_tag": "AC1", "attack": "A17", "key": "spoof", "language": "en",
    }  # fmt: skip
    assert plain.labels["codec"] == "none" and not {"codec_quality", "original"} & plain.labels.keys()
    assert lists_of(out, "trials_dev") == [
        "spoof D_0062 D_0000000001", "target D_0461 D_0000000190", "nontarget D_0461 D_0000000191",
    ]  # fmt: skip
    assert lists_of(out, "enrolment_dev") == ["D_0461 D_0000009001 D_0000009002", "D_0062 D_0000009003"]
    enrolled = by_id(ours["dev_enrolment"])["D_0000009003"].labels
    assert enrolled == {"speaker": "D_0062", "gender": "f", "key": "bonafide", "attack": "bonafide", "language": "en"}
    trial = source / "ASVspoof5_protocols/ASVspoof5.eval.track_2.trial.tsv"
    put_list(trial, [*trees.ASVSPOOF5_TRIALS["eval"], "E_1609 E_0000000404 M bonafide target"])
    with pytest.raises(ManifestError, match=r"trial.tsv, line 3, names 'E_0000000404', which the protocol of track 1"):
        audit("asvspoof5", source)


def test_in_the_wild_is_a_test_of_two_classes(tmp_path: Path) -> None:
    ours = prepared("in_the_wild", trees.in_the_wild(tmp_path), tmp_path / "out")
    found = {u.id: (u.labels["speaker"], u.labels["key"], u.labels["attack"]) for u in ours["test"]}
    assert found["0"] == ("Barack Obama", "spoof", "spoof") and found["1"] == ("Alec Guinness", "bonafide", "bonafide")
    assert Counter(u.labels["key"] for u in ours["test"]) == {"bonafide": 3, "spoof": 2}


def test_mlaad_takes_its_bona_fide_speech_from_the_recordings_that_its_fakes_say(tmp_path: Path) -> None:
    source = trees.mlaad(tmp_path)
    ours = prepared("mlaad", source, tmp_path / "out")["test"]
    real = [u for u in ours if u.labels["key"] == "bonafide"]
    fakes = [u for u in ours if u.labels["key"] == "spoof"]
    assert (len(real), len(fakes)) == (2, 6)
    assert {u.labels["original"] for u in real} == {u.labels["original"] for u in fakes}
    assert {(u.labels["speaker"], u.labels["language"], u.labels["gender"]) for u in real} == {("karlsson", "de", "m")}
    assert Counter((u.labels["language"], u.labels["attack"], u.labels["family"]) for u in fakes) == {
        ("de", "griffin_lim", "GL"): 2, ("de", "tts_models_de_vits", "VITS"): 2,
        ("cs", "tts_models_cs_vits", "VITS"): 2,
    }  # fmt: skip
    (source / "m_ailabs").rename(source / "elsewhere")
    (note,) = [row for row in audit("mlaad", source) if "no bona fide speech" in row.what]
    assert note.found == 2
    yaml = tmp_path / "mlaad.yaml"
    yaml.write_text("bonafide: elsewhere\n")
    assert {r.what: r.found for r in audit("mlaad", source, config=yaml)}["test: key 'bonafide'"] == 2


def test_wavefake_keeps_a_recording_and_its_fakes_in_one_split(tmp_path: Path) -> None:
    source = trees.wavefake(tmp_path)
    ours = prepared("wavefake", source, tmp_path / "out")
    where = {split: {u.labels["original"] for u in found} for split, found in ours.items()}
    assert not where["train"] & where["test"] and not where["dev"] & where["test"] and not where["train"] & where["dev"]
    everything = [u for found in ours.values() for u in found]
    assert Counter((u.labels["language"], u.labels["attack"]) for u in everything) == {
        ("en", "bonafide"): 30, ("en", "hifiGAN"): 30, ("en", "waveglow"): 30, ("en", "conformer_fastspeech2_pwg"): 2,
        ("ja", "bonafide"): 3, ("ja", "parallel_wavegan"): 3,
    }  # fmt: skip
    assert counts_of("wavefake", source)["copies in generated/, which are left out"] == 2
    held = prepared("wavefake", source, tmp_path / "held", "held_out: [waveglow]\n")
    attacks = {split: {u.labels["attack"] for u in found} for split, found in held.items()}
    assert "waveglow" in attacks["test"] and "waveglow" not in attacks["train"] | attacks["dev"]
    with pytest.raises(ConfigError, match=r"'wavglow', of which .* has no folder. Did you mean 'waveglow'"):
        prepared("wavefake", source, tmp_path / "wrong", "held_out: [wavglow]\n")


def test_folders_with_lists_of_labels_may_be_called_anything(tmp_path: Path) -> None:
    ours = prepared("add", trees.add(tmp_path), tmp_path / "out")
    assert {split: len(found) for split, found in ours.items()} == {"train": 4, "dev": 4, "adaptation": 4, "test": 4}
    assert [u.labels["attack"] for u in ours["test"]] == ["bonafide", "1", "bonafide", "3"]
    assert [u.labels["attack"] for u in ours["train"]] == ["bonafide", "spoof"] * 2
    other = tmp_path / "mine"
    for name in ("a.wav", "b.wav", "deep/c.flac"):
        put_audio(other / "speech" / name)
    put_list(other / "labels.txt", ["a.wav,real", "b.wav,fake,hifigan", "deep/c.flac,fake,world"])
    settings = "lists: {test: labels.txt}\naudio: {test: speech}\nlanguage: cs\n"
    found = prepared("add", other, tmp_path / "mine_out", settings)["test"]
    assert [(u.id, u.labels["attack"], u.labels["language"]) for u in found] == [
        ("a", "bonafide", "cs"), ("b", "hifigan", "cs"), ("deep-c", "world", "cs"),
    ]  # fmt: skip


PROTOCOL = "ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.dev.trl.txt"
BAD = {
    "unknown keys": (
        ["LA_1 a - A01 spof", "LA_1 b - - bonafide", "LA_1 c - A01 spoofed"],
        r"dev.trl.txt has 2 lines with a key that is none of .*'spoof'.*; the first is line 1, 'spof'",
    ),
    "twin ids": (
        ["LA_1 a - A01 spoof", "LA_1 b - - bonafide", "LA_1 a - A01 spoof", "LA_2 b - - bonafide"],
        "has 2 lines with an id that an earlier line has; the first is line 3, 'a'",
    ),
    "a contradiction": (
        ["LA_1 a - A01 bonafide", "LA_1 b - bonafide spoof"],
        "has 2 lines with an attack that its key contradicts; the first is line 1, 'A01 bonafide'",
    ),
    "columns": (["LA_1 a - A01 spoof", "LA_1 b A01 spoof"], "line 2, has 4 columns, but must have 5 .*fetch the prot"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_protocol_is_named_with_the_count_and_the_first_line(case: str, tmp_path: Path) -> None:
    source = trees.asvspoof2019_la(tmp_path)
    lines, says = BAD[case]
    put_list(source / PROTOCOL, lines)
    with pytest.raises(ManifestError, match=says):
        audit("asvspoof2019_la", source)


def test_an_unknown_subset_is_named_with_the_count_and_the_first_line(tmp_path: Path) -> None:
    source = trees.asvspoof2021_la(tmp_path)
    lines = [line.replace("progress", "later") for line in trees.LA_2021]
    put_list(source / "keys/LA/CM/trial_metadata.txt", lines)
    with pytest.raises(
        ManifestError, match=r"2 lines with a value of 'subset' that is none of .*; the first is line 5"
    ):
        audit("asvspoof2021_la", source)
