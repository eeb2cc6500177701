import gzip
import io
import json
import lzma
import tarfile
import unicodedata
import zipfile
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from speechssl.config import load_config
from speechssl.data import packages
from speechssl.data.corpus import open_corpus
from speechssl.data.demo import decode
from speechssl.data.demo.base import Item, Source
from speechssl.data.demo.build import build_from_packages
from speechssl.data.demo.config import FULL, SOURCES, DemoConfig
from speechssl.data.demo.digits import spell_digits
from speechssl.data.demo.fillets import FilletsCs
from speechssl.data.demo.people import Lart, Speakerbox
from speechssl.data.demo.prepare import prepare_demo
from speechssl.data.demo.speakers import speaker_sides, speaker_splits
from speechssl.data.demo.tuxpaint import Tuxpaint
from speechssl.data.manifests import Clip, normalise_text, split_by_text, text_split, write_corpus
from speechssl.data.synthetic import SyntheticConfig, build_synthetic
from speechssl.errors import ConfigError, ManifestError, SpeechsslError

RECIPES = Path(__file__).parent.parent / "recipes" / "demo"


def clip(name: str, **changes: object) -> Clip:
    values: dict[str, object] = {
        "id": name, "path": f"audio/{name}.flac", "samples": 32_000, "source": "s", "language": "en", "licence": "CC0",
        **changes,
    }  # fmt: skip
    return Clip(**values)  # type: ignore[arg-type]


def test_no_sentence_and_no_speaker_is_on_two_sides(tiny_corpus):
    corpus = open_corpus(tiny_corpus)
    texts = {
        s: {u.labels["text"] for u in corpus.utterances(s) if "text" in u.labels} for s in ("train", "dev", "test")
    }
    speakers = {s: {u.labels["speaker"] for u in corpus.utterances(f"speaker_{s}")} for s in ("train", "dev", "test")}
    for sides in (texts, speakers):
        assert all(sides.values())
        assert (
            not sides["train"] & sides["dev"]
            and not sides["train"] & sides["test"]
            and not sides["dev"] & sides["test"]
        )
    assert all("text" in u.labels for s in ("dev", "test") for u in corpus.utterances(s))


def test_durations_in_the_manifest_are_those_of_the_files(tiny_corpus):
    for utterance in open_corpus(tiny_corpus).utterances("train"):
        info = soundfile.info(utterance.path)
        assert (info.samplerate, info.channels) == (16_000, 1)
        assert info.duration == pytest.approx(utterance.duration, abs=1e-9)


def test_lhotse_reads_the_manifests(tiny_corpus):
    from lhotse import CutSet

    cuts = CutSet.from_file(tiny_corpus / "manifests" / "dev.jsonl.gz").to_eager()
    utterances = open_corpus(tiny_corpus).utterances("dev")
    assert [c.id for c in cuts] == [u.id for u in utterances]
    assert [c.supervisions[0].text for c in cuts] == [u.labels["text"] for u in utterances]
    assert next(iter(cuts)).supervisions[0].custom["licence"] == "CC0-1.0"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Je bedoelt: zo'n «afgrijselijke» opslag…", "je bedoelt zo'n afgrijselijke opslag"),
        ("Vidíš to OKO?", "vidíš to oko"),
        ("L’été - c'est 'fini'!", "l'été c'est fini"),
        ("Подняла, с тротуара - корзинку.", "подняла с тротуара корзинку"),
        (unicodedata.normalize("NFD", "Čeština"), "čeština"),
        ("हिन्दी मलयालം", "हिन्दी मलयालം"),
        ("...", ""),
    ],
)
def test_text_is_normalised(raw, expected):
    assert normalise_text(raw) == expected


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(text):
    once = normalise_text(text)
    assert normalise_text(once) == once
    assert once == unicodedata.normalize("NFC", once)


def test_text_splits_are_80_10_10_and_the_same_everywhere():
    sides = Counter(text_split(f"sentence {i}") for i in range(5000))
    assert sides["train"] / 5000 == pytest.approx(0.8, abs=0.02)
    assert sides["dev"] / 5000 == pytest.approx(0.1, abs=0.02)
    assert [text_split(t) for t in ("dobrý den", "goede dag", "a", "d")] == ["train", "train", "train", "test"]


def test_clips_without_text_are_only_in_train():
    splits = split_by_text([clip(f"{i}", text=None if i % 2 else f"text {i}") for i in range(200)])
    assert sum(c.text is None for c in splits["train"]) == 100
    assert splits["dev"] and splits["test"]
    assert all(c.text is not None for side in ("dev", "test") for c in splits[side])


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("press 5 now", "en", "press five now"), ("premere 1 o 2", "it", "premere uno o due"), ("h 323", "en", None),
        ("25 cent", "nl", None), ("5 x", "da", None), ("none", "da", "none"), ("²", "en", None), ("٣", "en", None),
    ],
)  # fmt: skip
def test_only_single_digits_of_known_languages_are_spelled(text, language, expected):
    assert spell_digits(text, language) == expected


def test_speakers_of_dev_and_test_are_not_heard_in_plain_train():
    names = [
        "lart_cy-en_s1",
        "lart_lmo-it_f2",
        "lart_lb-de_s1",
        "speakerbox_1",
        "nl_big",
        "nl_small",
        "cs_big",
        "ru_nsh",
    ]
    clips = [clip(f"{n}-{i}", speaker=n, source=n.split("_")[0], text=f"t {i}") for n in names for i in range(40)]
    splits = speaker_splits(clips, frozenset({"lart", "speakerbox"}))
    train = {c.id for c in split_by_text(c for c in clips if c.source not in ("lart", "speakerbox"))["train"]}
    assert {c.speaker for c in splits["speaker_test"]} == {"lart_cy-en_s1", "lart_lmo-it_f2", "nl_big", "nl_small"}
    assert {c.speaker for c in splits["speaker_dev"]} == {"speakerbox_1"}
    assert {c.speaker for c in splits["speaker_train"]} == {"lart_lb-de_s1", "cs_big", "ru_nsh"}
    assert not {c.id for side in ("speaker_dev", "speaker_test") for c in splits[side]} & train


def test_short_clips_are_not_in_the_speaker_splits():
    splits = speaker_splits(
        [clip("a", speaker="cs_big", samples=15_999), clip("b", speaker="cs_big", samples=16_000)], frozenset()
    )
    assert [c.id for c in splits["speaker_train"]] == ["b"]


def test_without_the_bilinguals_each_side_still_has_speakers():
    sides = speaker_sides(f"speakerbox_{i}" for i in range(1, 10))
    assert Counter(sides.values()) == {"test": 4, "dev": 3, "train": 2}


def write_clips(root: Path, texts: list[str]) -> dict[str, object]:
    (root / "audio").mkdir(exist_ok=True)
    clips = [clip(f"u{i}", text=text) for i, text in enumerate(texts)]
    for one in clips:
        soundfile.write(root / one.path, np.zeros(one.samples), 16_000)
    return write_corpus(root, split_by_text(clips), name="x", source="synthetic", sources=[])


def test_fingerprint_tells_corpora_apart(tmp_path):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
    a, b, c = (write_clips(f, ["one", t]) for f, t in zip(folders, ("two", "two", "three"), strict=True))
    assert a["fingerprint"] == b["fingerprint"] != c["fingerprint"]
    for name in ("train", "dev", "test"):
        files = [(f / "manifests" / f"{name}.jsonl.gz").read_bytes() for f in folders]
        assert files[0] == files[1]


def test_twin_ids_and_missing_audio_are_errors(tmp_path):
    with pytest.raises(ManifestError, match="Two clips have the id 'a'"):
        write_corpus(tmp_path, {"train": [clip("a"), clip("a")]}, name="x", source="synthetic", sources=[])
    with pytest.raises(ManifestError, match=r"b\.flac is missing"):
        write_corpus(tmp_path, {"train": [clip("b")]}, name="x", source="synthetic", sources=[])


def test_long_recordings_are_cut_in_their_pauses():
    generator = np.random.default_rng(0)
    waveform = generator.normal(0, 0.1, 16_000 * 23).astype(np.float32)
    pauses = [5.0, 11.5, 17.0]
    for pause in pauses:
        waveform[int(pause * 16_000) : int((pause + 0.3) * 16_000)] = 0.0
    bounds = decode.cut_points(waveform)
    assert bounds[0][0] == 0 and bounds[-1][1] == len(waveform)
    assert all(a[1] == b[0] for a, b in pairwise(bounds))
    for pause, (_, end) in zip(pauses, bounds, strict=False):
        assert pause <= end / 16_000 <= pause + 0.3
    assert all(1.0 <= (end - start) / 16_000 <= 9.0 for start, end in bounds)


def test_decoding_resamples_mixes_down_and_leaves_out_the_short_and_the_silent(tmp_path):
    time = np.arange(44_100) / 44_100
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "tone.wav", np.stack([tone, 0 * tone], axis=1), 44_100)
    soundfile.write(tmp_path / "short.wav", tone[:4410], 44_100)
    soundfile.write(tmp_path / "empty.wav", tone[:0], 44_100)
    soundfile.write(tmp_path / "silent.wav", 1e-4 * tone, 44_100)
    (tmp_path / "bad.ogg").write_bytes(b"no audio")
    names = ["tone.wav", "short.wav", "empty.wav", "silent.wav", "bad.ogg", "absent.wav"]
    jobs = [decode.Job(n, tmp_path / n, tmp_path / f"out-{n[:-4]}", False, 0.3) for n in names]
    results = {r.key: r for r in decode.decode_all(jobs)}
    assert [results[n].skipped for n in names] == ["", "short", "short", "silent", "", ""]
    assert results["tone.wav"].pieces == (("out-tone.flac", 16_000),)
    assert results["bad.ogg"].error and results["absent.wav"].error
    waveform, rate = soundfile.read(tmp_path / "out-tone.flac")
    assert rate == 16_000
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert np.abs(waveform - expected)[500:-500].max() < 2e-3


def make_deb(path: Path, files: dict[str, bytes]) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with path.open("wb") as out:
        out.write(b"!<arch>\n")
        for name, content in (
            ("debian-binary", b"2.0\n"),
            ("control.tar.xz", lzma.compress(b"x")),
            ("data.tar.xz", data.getvalue()),
        ):
            out.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content)
            out.write(b"\n" * (len(content) % 2))


def test_packages_are_unpacked_without_dpkg(tmp_path, monkeypatch):
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    deb = tmp_path / "voice_1%3a2-3_all.deb"
    make_deb(deb, {"./usr/a.ogg": b"sound", "./usr/b.txt": b"text", "./usr/c.png": b"picture"})
    archive = packages.download_debian(["voice"], tmp_path)["voice"]
    assert archive.version == "1:2-3"
    target = packages.unpack_debian(archive, tmp_path / "out", keep=r"\.(ogg|txt)$")
    assert sorted(p.name for p in target.rglob("*.*") if p.is_file() and p.name != packages.RECORD) == [
        "a.ogg",
        "b.txt",
    ]
    (target / "usr" / "a.ogg").write_bytes(b"kept")
    packages.unpack_debian(archive, tmp_path / "out", keep=r"\.(ogg|txt)$")
    assert (target / "usr" / "a.ogg").read_bytes() == b"kept"


def test_a_file_that_leaves_the_folder_and_a_damaged_package_are_refused(tmp_path):
    make_deb(tmp_path / "evil_1_all.deb", {"../evil.ogg": b"x"})
    (tmp_path / "broken_1_all.deb").write_bytes(b"!<arch>\nrubbish")
    found = packages.download_debian(["evil", "broken"], tmp_path)
    for name in found:
        with pytest.raises(SpeechsslError, match="damaged"):
            packages.unpack_debian(found[name], tmp_path / "in" / "out")
    assert not list((tmp_path / "in").rglob("evil.ogg"))


def test_missing_packages_are_named_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(SpeechsslError, match=r"no apt-get to fetch festvox-ru.*--source synthetic"):
        packages.download_debian(["festvox-ru"], tmp_path)
    monkeypatch.setattr(packages.shutil, "which", lambda name: "/usr/bin/apt-get")
    monkeypatch.setattr(packages, "_apt", lambda *a, **k: "Unable to locate package festvox-ru")
    with pytest.raises(SpeechsslError, match=r"festvox-ru \(Unable to locate.*apt-get update.*--source synthetic"):
        packages.download_debian(["festvox-ru"], tmp_path)


def test_own_package_lists_are_fetched_where_the_system_has_none(tmp_path, monkeypatch):
    calls = []

    def apt(arguments, *, folder, environment):
        calls.append((arguments[0], bool(environment)))
        if arguments[0] == "download" and environment:
            make_deb(folder / "voice_1_all.deb", {"./a.ogg": b"x"})
        return "" if environment else "Unable to locate package voice"

    monkeypatch.setattr(packages.shutil, "which", lambda name: "/usr/bin/apt-get")
    monkeypatch.setattr(packages, "_apt", apt)
    assert packages.download_debian(["voice"], tmp_path)["voice"].version == "1"
    assert calls == [("download", False), ("update", True), ("download", True)]


def test_fillets_roles_become_speakers(tmp_path):
    game = Path("usr/share/games/fillets-ng")
    folders = {"fillets-ng-data": tmp_path / "text", "fillets-ng-data-cs": tmp_path / "sound"}
    script = folders["fillets-ng-data"] / game / "script" / "cave" / "dialogs_cs.lua"
    script.parent.mkdir(parents=True)
    script.write_text(
        'dialogId("m-a", "font_small", "Hi \\"you\\"")\ndialogStr("Ahoj \\"ty\\"!")\n'
        'dialogId("b", "font_white", "x")\ndialogStr(\n"Bílý")\ndialogId("z", "", "")\ndialogStr("")\n',
        encoding="utf-8",
    )
    sound = folders["fillets-ng-data-cs"] / game / "sound" / "cave" / "cs"
    sound.mkdir(parents=True)
    for name in ("m-a", "b", "z", "laugh"):
        (sound / f"{name}.ogg").touch()
    items = {item.file.stem: item for item in FilletsCs().items(folders)}
    assert (items["m-a"].text, items["m-a"].speaker) == ('Ahoj "ty"!', "cs_small")
    assert (items["b"].text, items["b"].speaker) == ("Bílý", "cs_white_cave")
    assert items["z"].skip == items["laugh"].skip == "no speech"


def test_tuxpaint_texts_are_found_by_language(tmp_path):
    stamps = tmp_path / "usr/share/tuxpaint/stamps/animals"
    stamps.mkdir(parents=True)
    (stamps / "cat.txt").write_text("A cat.\nfr.utf8=Un chat.\npt_BR.utf8=Um gato.\n", encoding="utf-8")
    for name in ("cat_desc_fr.ogg", "cat_desc_pt_BR.wav", "cat_desc_el.ogg"):
        (stamps / name).touch()
    items = {item.language: item.text for item in Tuxpaint().items({"tuxpaint-stamps-default": tmp_path})}
    assert items == {"fr": "Un chat.", "pt": "Um gato.", "el": None}


def test_people_are_told_apart_and_not_named(tmp_path):
    agt = tmp_path / "lart/research_assistant/web/audio/agt"
    for folder in ("CymEng_Eng_GB", "LmoIta_Ita_IT", "LtzGer_Ger_BE"):
        (agt / folder).mkdir(parents=True)
        for name in ("f1", "f2", "f3", "f4", "practice", *(f"s{i}_{g}" for i in (1, 2, 3, 4) for g in ("maj", "rml"))):
            same = folder.startswith("Ltz") and name[:2] in ("s2", "s3")
            (agt / folder / f"{name}.mp3").write_bytes((folder + (name[:2] if same else name)).encode())
    items = [i for i in Lart().items({"lart-research-assistant": tmp_path / "lart"}) if not i.skip]
    languages = defaultdict(set)
    for item in items:
        languages[item.speaker].add(item.language)
    assert len(languages) == 24
    assert languages["lart_cy-en_s1"] == {"cy", "en"} and languages["lart_lb-de_s2"] == {"lb-de"}
    assert len(items) == 34

    data = tmp_path / "box/speakerbox/tests/data"
    data.mkdir(parents=True)
    with zipfile.ZipFile(data / "diarized.zip", "w") as archive:
        for name in ("m1/smith/1-2.wav", "m2/smith/3-4.wav", "m1/jones/5-6.wav"):
            archive.writestr(name, b"x")
    labels = [(i.speaker, i.id) for i in Speakerbox().items({"speakerbox": tmp_path / "box"})]
    assert {speaker for speaker, _ in labels} == {"speakerbox_1", "speakerbox_2"}
    assert not any("smith" in key or "jones" in key for _, key in labels)


class Tones(Source):
    name = "tones"
    debian = ("tones",)
    licence = "CC0-1.0"
    expected = 3

    def items(self, folders):
        files = sorted(folders["tones"].rglob("*.wav"))
        return [
            Item(f.stem, f, "en", f"Number {f.stem}", "me", skip="no speech" if f.stem == "noise" else "")
            for f in files
        ]


@pytest.fixture
def tones(tmp_path, monkeypatch):
    """A corpus of one package that lies ready, with a damaged file in it."""
    files = {}
    for name in ("a", "b", "c", "noise"):
        out = io.BytesIO()
        soundfile.write(out, 0.1 * np.random.default_rng(0).normal(size=20_000), 16_000, format="WAV")
        files[f"./{name}.wav"] = out.getvalue()
    files["./bad.wav"] = b"RIFF"
    debs = tmp_path / "corpus" / "packages" / "debs"
    debs.mkdir(parents=True)
    make_deb(debs / "tones_1_all.deb", files)
    monkeypatch.setitem(SOURCES, "tones", Tones())
    return tmp_path / "corpus"


def test_a_bad_file_is_an_error_or_is_counted(tones):
    config = DemoConfig(sources=("tones",), max_hours={})
    with pytest.raises(SpeechsslError, match=r"bad\.wav can't be decoded.*--skip-bad"):
        build_from_packages(tones, config, workers=1)
    info = build_from_packages(tones, config, workers=1, skip_bad=True)
    (row,) = info["sources"]
    assert (row["utterances"], row["skipped"], row["version"]) == (3, {"bad": 1, "no speech": 1}, "1")
    assert row["bad"][0].startswith("bad.wav: ")
    corpus = open_corpus(tones)
    found = [u for s in ("train", "dev", "test") for u in corpus.utterances(s)]
    assert sorted(u.labels["text"] for u in found) == ["number a", "number b", "number c"]
    assert corpus.source == "debian" and not (tones / "packages").exists()


def test_the_configs_in_recipes_fit():
    assert load_config(DemoConfig(), yaml=RECIPES / "default" / "corpus.yaml") == DemoConfig()
    quick = load_config(DemoConfig(), yaml=RECIPES / "quick" / "corpus.yaml")
    assert {source.name for source in quick.chosen()} < {source.name for source in FULL.chosen()}
    with pytest.raises(ConfigError, match="Did you mean 'asterisk'"):
        DemoConfig(sources=("asterix",)).chosen()


def test_synthetic_speech_makes_a_corpus_and_is_made_once(tmp_path):
    pytest.importorskip("espeakng_loader")
    yaml = tmp_path / "small.yaml"
    yaml.write_text("languages: [en, cs]\nsentences: 12\nsentences_per_speaker: 4\n")
    info = prepare_demo(tmp_path / "c", source="synthetic", config=yaml, workers=1)
    corpus = open_corpus(tmp_path / "c")
    assert (corpus.source, info["sources"][0]["utterances"]) == ("synthetic", 96)
    for split in ("speaker_dev", "speaker_test"):
        speakers = defaultdict(set)
        for utterance in corpus.utterances(split):
            speakers[utterance.labels["language"]].add(utterance.labels["speaker"])
        assert {language: len(names) for language, names in speakers.items()} == {"en": 3, "cs": 3}
    stamp = (tmp_path / "c" / "corpus.json").stat().st_mtime_ns
    assert prepare_demo(tmp_path / "c", source="synthetic", config=yaml, workers=1) == info
    assert (tmp_path / "c" / "corpus.json").stat().st_mtime_ns == stamp
    again = prepare_demo(tmp_path / "d", source="synthetic", config=yaml, workers=1)
    assert again["fingerprint"] == info["fingerprint"]


def test_unknown_languages_and_too_many_sentences_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no phrases in the language 'xx'"):
        build_synthetic(tmp_path, SyntheticConfig(languages=("xx",)))
    with pytest.raises(ConfigError, match="`sentences` must be"):
        build_synthetic(tmp_path, SyntheticConfig(sentences=10**6))


def test_gzip_manifests_hold_one_cut_per_line(tiny_corpus):
    lines = gzip.decompress((tiny_corpus / "manifests" / "test.jsonl.gz").read_bytes()).decode().splitlines()
    cuts = [json.loads(line) for line in lines]
    assert all(
        cut["type"] == "MonoCut" and not Path(cut["recording"]["sources"][0]["source"]).is_absolute() for cut in cuts
    )


@pytest.mark.network
def test_the_quick_corpus_can_be_prepared(tmp_path):
    info = prepare_demo(tmp_path, config=RECIPES / "quick" / "corpus.yaml")
    assert 0.9 < sum(row["hours"] for row in info["sources"]) < 1.6
    assert all(row["utterances"] > 100 for row in info["sources"])
    assert info["splits"]["speaker_test"]["speakers"] >= 4
