"""Small trees with the layout of published corpora: real folder names, real forms of list files, tiny audio.

Each function makes one tree below `root` and returns the folder that a user would name. On purpose the lists have, here
and there, a byte-order mark or the line ends of another system.
"""

import hashlib
import io
import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
BOM = "\ufeff"


@cache
def audio_bytes(samples: int = 1600, suffix: str = ".wav") -> bytes:
    """A file of faint noise at 16 kHz."""
    out = io.BytesIO()
    noise = 0.01 * np.random.default_rng(0).normal(size=samples)
    soundfile.write(out, noise, RATE, format=suffix[1:].upper(), subtype=None if suffix == ".mp3" else "PCM_16")
    return out.getvalue()


def put_audio(path: Path, samples: int = 1600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(audio_bytes(samples, path.suffix))
    return path


def put_list(path: Path, lines: Sequence[str], *, bom: bool = False, end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(((BOM if bom else "") + "".join(line + end for line in lines)).encode())
    return path


def librispeech(root: Path) -> Path:
    """Three parts of two speakers each, and one of another name."""
    root = root / "LibriSpeech"
    for part, speakers in (
        ("train-clean-100", ("103", "1034")),
        ("dev-clean", ("84", "174")),
        ("test-clean", ("61", "121")),
        ("dev-other", ("116",)),
    ):
        for speaker in speakers:
            chapter = root / part / speaker / "1240"
            lines = []
            for number in range(3):
                name = f"{speaker}-1240-{number:04d}"
                put_audio(chapter / f"{name}.flac", 1600 + 160 * number)
                lines.append(f"{name} THE {'OLD ' * number}MAN")
            odd = speaker == "103"
            put_list(chapter / f"{speaker}-1240.trans.txt", lines, bom=odd, end="\r\n" if odd else "\n")
    return root


def s3prl_share(file: str) -> float:
    """Percentage that says on which side a speaker is: Warden 2018, sec. 7; S3PRL `speech_commands/expert.py`."""
    speaker = re.sub("_nohash_.*$", "", file)
    return int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % 2**27 * (100.0 / (2**27 - 1))


SPEECH_COMMANDS_WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "bed", "cat")


def speech_commands(root: Path) -> Path:
    """60 speakers; each word is said by all of them but 'go' by nobody of train."""
    main, test = root / "speech_commands_v0.01", root / "speech_commands_test_set_v0.01"
    speakers = [hashlib.sha1(bytes([k])).hexdigest()[:8] for k in range(60)]
    lists: dict[str, list[str]] = {"validation_list.txt": [], "testing_list.txt": []}
    for word in SPEECH_COMMANDS_WORDS:
        for speaker in speakers[:: 1 if word == "go" else 5]:
            file = f"{speaker}_nohash_0.wav"
            share = s3prl_share(file)
            if word == "go" and share >= 20:
                continue
            put_audio(main / word / file)
            if share < 20:
                lists["validation_list.txt" if share < 10 else "testing_list.txt"].append(f"{word}/{file}")
    put_list(main / "validation_list.txt", lists["validation_list.txt"], end="\r\n")
    put_list(main / "testing_list.txt", lists["testing_list.txt"])
    put_audio(main / "_background_noise_" / "running_tap.wav", 2 * RATE + 800)
    put_audio(main / "_background_noise_" / "pink_noise.wav", RATE)
    put_list(main / "_background_noise_" / "README.md", ["noise"])
    for word in SPEECH_COMMANDS_WORDS[:10]:
        put_audio(test / word / "0ff728b5_nohash_1.wav", RATE)
    put_audio(test / "_unknown_" / "bed_0ff728b5_nohash_1.wav", RATE)
    put_audio(test / "_silence_" / "12.wav", RATE)
    return root


VOXCELEB_SPEAKERS = ("id10001", "id10002", "id10270", "id10309")


def voxceleb1(root: Path) -> Path:
    """Two speakers of the training side of verification and two of the test side, three videos each."""
    root = root / "VoxCeleb1"
    lines = []
    for speaker in VOXCELEB_SPEAKERS:
        side = "test" if speaker in ("id10270", "id10309") else "dev"
        for code, video in ((1, "1zcIwhmdeo4"), (2, "7gWzIy6yIIk"), (3, "x6uYqmx31kE")):
            for number in (1, 2):
                file = f"{speaker}/{video}/{number:05d}.wav"
                put_audio(root / side / "wav" / file)
                lines.append(f"{code} {file}")
    put_list(root / "iden_split.txt", lines, bom=True, end="\r\n")
    one, other = "id10270/x6uYqmx31kE/00001.wav", "id10309/7gWzIy6yIIk/00002.wav"
    put_list(root / "veri_test2.txt", [f"1 {one} id10270/7gWzIy6yIIk/00001.wav", f"0 {one} {other}"])
    put_list(root / "meta" / "veri_test.txt", [f"0 {other} {one}"])
    return root


def fluent_speech_commands(root: Path) -> Path:
    """Four utterances in each split; 'Chinese' is in test only."""
    root = root / "fluent_speech_commands_dataset"
    for split, speaker in (("train", "2BqVo8kVB2Skwgyb"), ("valid", "4BrX8aDqK2cLZRYl"), ("test", "7B4XmNppyrCK977p")):
        lines = [",path,speakerId,transcription,action,object,location"]
        said = [
            ('"Lights off, please"', "deactivate", "lights", "washroom"),
            ("Heat up", "increase", "heat", "none"),
            ("", "increase", "volume", "none"),
            (
                "Chinese" if split == "test" else "English",
                "change language",
                "Chinese" if split == "test" else "English",
                "none",
            ),
        ]
        for number, (text, *intent) in enumerate(said):
            path = f"wavs/speakers/{speaker}/{split}-{number}.wav"
            put_audio(root / path)
            lines.append(",".join([str(number), path, speaker, text, *intent]))
        put_list(
            root / "data" / f"{split}_data.csv", lines, bom=split == "train", end="\r\n" if split == "valid" else "\n"
        )
    return root


EMOTIONS = ("neu", "exc", "ang", "sad", "hap", "fru", "xxx")


def iemocap(root: Path) -> Path:
    """Five sessions with an improvised and a scripted dialogue each."""
    root = root / "IEMOCAP_full_release"
    for session in range(1, 6):
        folder = root / f"Session{session}"
        for dialogue in (f"Ses0{session}F_impro01", f"Ses0{session}M_script01_1"):
            lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
            texts = []
            for number, emotion in enumerate(EMOTIONS[session - 1 :] + EMOTIONS[: session - 1]):
                name = f"{dialogue}_{'FM'[number % 2]}{number:03d}"
                lines += [f"[{number}.2901 - {number}.8357]\t{name}\t{emotion}\t[2.5000, 2.5000, 2.5000]"]
                lines += ["C-E2:\tNeutral;\t()", "A-F1:\tval 3; act 2; dom  2;\t()", ""]
                texts.append(f"{name} [00{number}.2901-00{number}.8357]: Number {number}.")
                put_audio(folder / "sentences/wav" / dialogue / f"{name}.wav")
            put_list(folder / "dialog/EmoEvaluation" / f"{dialogue}.txt", lines, end="\r\n" if session == 2 else "\n")
            put_list(folder / "dialog/transcriptions" / f"{dialogue}.txt", texts)
        put_list(folder / "dialog/EmoEvaluation" / f"._{dialogue}.txt", ["\x00\x05\x16"])
    return root


SNIPS_VOICES = (
    *("Ivy", "Joanna", "Joey", "Justin", "Kendra", "Kimberly", "Matthew", "Salli"),
    *("Aditi", "Amy", "Geraint", "Nicole", "Brian", "Emma", "Raveena", "Russell"),
)
SNIPS_FOLDERS = ("train",) * 8 + ("valid",) * 4 + ("test",) * 4
"""Where SUPERB takes each voice from; the other two thirds of the audio are never looked for."""
SNIPS_SENTENCES = (
    ("BOS LISTEN TO WESTBAM ALBUM ALLERGIC ON GOOGLE MUSIC EOS", "O O O artist O album O service service PlayMusic"),
    ("BOS ADD ÓLAFUR ARNALDS . EOS", "O O artist artist artist AddToPlaylist"),
    ("BOS R & B EOS", "O genre genre genre PlayMusic"),
    ('BOS PLAY " ONE EOS', "O O track PlayMusic"),
)


def audio_snips(root: Path) -> Path:
    """Every voice says three sentences, in each split by the list, as the real corpus has it."""
    root = root / "SNIPS"
    lines = []
    for split in ("train", "valid", "test"):
        for voice in SNIPS_VOICES:
            for number, (words, tags) in enumerate(SNIPS_SENTENCES):
                name = f"{voice}-snips-{split}-{number}"
                if split == SNIPS_FOLDERS[SNIPS_VOICES.index(voice)]:
                    put_audio(root / split / f"{name}.wav")
                lines.append(f"{name} {words}\t{tags}")
    put_list(root / "all.iob.snips.txt", lines, bom=True, end="\r\n")
    put_list(root / "slots.txt", ["O", "album", "artist", "genre", "service"])
    return root


def quesst14(root: Path) -> Path:
    """Two languages; six documents and four queries of English."""
    root = root / "quesst14Database"
    documents = [f"quesst14_{number:05d}" for number in range(9)]
    put_list(
        root / "scoring/language_key_utterances.lst",
        [
            f"quesst14Database/Audio/{name}.wav {'czech' if k % 3 == 2 else 'nnenglish'}"
            for k, name in enumerate(documents)
        ],
        end="\r\n",
    )
    for name in documents:
        put_audio(root / "Audio" / f"{name}.wav", 4800)
    for part in ("dev", "eval"):
        queries = [f"quesst14_{part}_{number:04d}" for number in range(3)]
        for name in queries:
            put_audio(root / f"{part}_queries" / f"{name}.wav")
        put_list(
            root / f"scoring/language_key_{part}.lst",
            [
                f"quesst14Database/{part}_queries/{q}.wav {'czech' if k == 2 else 'nnenglish'}"
                for k, q in enumerate(queries)
            ],
        )
        put_list(
            root / f"scoring/groundtruth_quesst14_{part}/quesst14_{part}.rttm",
            [
                "SPKR-INFO quesst14_00000 1 <NA> <NA> <NA> unknown QbE <NA>",
                f"LEXEME {documents[0]} 1 0.00 1.00 {queries[0]} lex QbE 0.5",
                f"LEXEME {documents[3]} 1 0.00 1.00 {queries[0]} lex QbE 0.5",
                f"LEXEME {documents[2]} 1 0.00 1.00 {queries[2]} lex QbE 0.5",
            ],
        )
    return root


def voicebank_demand(root: Path) -> Path:
    """Three training speakers, two of them of dev, and one of the test, resampled to 16 kHz."""
    for part, speakers in (("trainset_28spk", ("p226", "p287", "p230")), ("testset", ("p232",))):
        for speaker in speakers:
            for number in (1, 2):
                for side in ("noisy", "clean"):
                    put_audio(root / f"{side}_{part}_wav_16k" / f"{speaker}_{number:03d}.wav", 1600 * number)
                put_list(root / f"{part}_txt" / f"{speaker}_{number:03d}.txt", [f"Please call {speaker}."], end="\r\n")
    return root


def libri2mix_separation(root: Path) -> Path:
    """Two mixtures of train-100 and test, five of dev."""
    root = root / "Libri2Mix"
    for part, count in (("train-100", 2), ("dev", 5), ("test", 2)):
        for number in range(count):
            for side in ("mix_clean", "mix_both", "s1", "s2", "noise"):
                put_audio(root / "wav16k/min" / part / side / f"4077-13754-000{number}_5142-33396-0065.wav")
    return root


def libri2mix_diarization(root: Path) -> Path:
    """Two recordings per split; wav.scp has the paths of another machine."""
    root = root / "data"
    for split, part in (("train", "train-100"), ("dev", "dev"), ("test", "test")):
        scp, segments, utt2spk = [], [], []
        for number in range(2):
            name = f"1578-6379-003{number}_6415-111615-0009"
            path = f"Libri2Mix/wav16k/max/{part}/mix_both/{name}.wav"
            put_audio(root / path, 8000)
            scp.append(f"{name} /somebody/else/{path}")
            for speaker, begin, end in (("6415", 0.1, 0.35), ("1578", 0.0, 0.25)):
                segment = f"{speaker}-{name}_{int(1000 * begin):06d}_{int(1000 * end):06d}"
                segments.append(f"{segment} {name} {begin} {end}")
                utt2spk.append(f"{segment} {speaker}")
        put_list(root / split / "wav.scp", scp)
        put_list(root / split / "segments", segments, bom=True, end="\r\n")
        put_list(root / split / "utt2spk", utt2spk)
    return root


COMMON_VOICE_COLUMNS = (
    "client_id",
    "path",
    "sentence",
    "up_votes",
    "down_votes",
    "age",
    "gender",
    "accents",
    "variant",
)


def common_voice(root: Path) -> Path:
    """Two languages; of Welsh there is no training."""
    root = root / "cv-corpus-13.0-2023-03-09"
    for language, splits in (("cs", ("train", "dev", "test")), ("cy", ("train", "dev", "test"))):
        for split in splits:
            rows = ["\t".join(COMMON_VOICE_COLUMNS)]
            for number in range(0 if (language, split) == ("cy", "train") else 3):
                name = f"common_voice_{language}_{split}{number}.mp3"
                put_audio(root / language / "clips" / name, 16_000)
                sentence = "" if number == 2 else 'Řekl: "ahoj.'
                client = hashlib.sha512(f"{language}{split}{number}".encode()).hexdigest()
                rows.append("\t".join([client, name, sentence, "2", "0", "", "female" if number else "", "", ""]))
            put_list(
                root / language / f"{split}.tsv", rows, bom=split == "dev", end="\r\n" if split == "test" else "\n"
            )
    return root


def lhotse_manifests(root: Path) -> Path:
    """Recordings with two supervisions each, and cuts of the test; paths start from the manifests."""
    from lhotse import CutSet, Recording, RecordingSet, SupervisionSegment, SupervisionSet

    for split in ("train", "valid", "test"):
        recordings, supervisions = [], []
        for number in range(2):
            path = put_audio(root / "wavs" / f"{split}{number}.wav", 16_000)
            recording = Recording.from_file(path, recording_id=f"{split}{number}")
            recording.sources[0].source = str(path.relative_to(root))
            recordings.append(recording)
            for part in range(2):
                supervisions.append(
                    SupervisionSegment(
                        f"{split}{number}-{part}", recording.id, 0.5 * part, 0.5, text="sip", speaker=f"p{number}",
                        language="cs", custom={"stress": part},
                    )
                )  # fmt: skip
        parts = RecordingSet.from_recordings(recordings), SupervisionSet.from_segments(supervisions)
        if split == "test":
            CutSet.from_manifests(*parts).trim_to_supervisions().to_file(root / "toy_cuts_test.jsonl.gz")
        else:
            parts[0].to_file(root / f"toy_recordings_{split}.jsonl.gz")
            parts[1].to_file(root / f"toy_supervisions_{split}.jsonl.gz")
    return root


def table(root: Path) -> Path:
    """Six recordings, one of them in two parts, with labels of syllables; train is called as elsewhere."""
    for number in range(6):
        put_audio(root / "audio" / f"{number}.wav", 16_000)
    rows = [
        *("audio/0.wav,training,0.0,0.5,ann,sad,3.5", "audio/0.wav,training,0.5,,ann,happy,4"),
        *("audio/1.wav,training,,,bob,sad,", 'audio/2.wav,valid,,,eve,"sad",1', "audio/3.wav,valid,,,eve,happy,2"),
        *("audio/4.wav,test,,,joe,happy,5", "audio/5.wav,test,,,joe,,"),
    ]
    put_list(root / "mine.csv", ["path,split,start,end,speaker,emotion,score", *rows], bom=True, end="\r\n")
    lines = [f"audio-{k}\t{0.1 * j:.1f}\t{0.1 * j + 0.1:.1f}\t{j % 2}" for k in (1, 2, 4) for j in range(3)]
    put_list(root / "segments.tsv", ["id\tstart\tend\ttone", *lines])
    return root


def librispeech_conversion(root: Path) -> Path:
    """Three speakers in each of dev-clean and test-clean with seven utterances, and a training speaker."""
    root = root / "LibriSpeech"
    for part, speakers in (("train-clean-100", ("103",)), ("dev-clean", "123"), ("test-clean", "456")):
        for speaker in speakers:
            names = [f"{speaker}-7-{number:04d}" for number in range(7)]
            for number, name in enumerate(names):
                put_audio(root / part / speaker / "7" / f"{name}.flac", 1600 + 16 * number)
            put_list(root / part / speaker / "7" / f"{speaker}-7.trans.txt", [f"{name} SAID" for name in names])
    return root


VCC2020_SPOKEN = {
    "source": [f"SE{who}/E{10_000 + n}" for who in ("F1", "F2", "M1", "M2") for n in range(1, 71)],
    "target_task1": [
        f"TE{who}/E{n}" for who in ("F1", "F2", "M1", "M2") for n in (*range(10_051, 10_071), *range(20_001, 20_051))
    ],
    "target_task2": [
        f"T{who}1/{who[0]}{10_000 + n}" for who in ("FF", "FM", "GF", "GM", "MF", "MM") for n in range(1, 71)
    ],
    "vcc2020_database_evaluation": [f"SE{who}/E{n}" for who in ("F1", "F2", "M1", "M2") for n in range(30_001, 30_026)],
    "vcc2020_database_groundtruth": [
        f"T{who}/E{n}"
        for who in ("EF1", "EF2", "EM1", "EM2", "FF1", "FM1", "GF1", "GM1", "MF1", "MM1")
        for n in range(30_001, 30_026)
    ],
}  # fmt: skip


def vcc2020(root: Path, *, task: int = 1) -> Path:
    """The archives as they unpack, of the other task without audio."""
    root = root / "VCC2020-database"
    for folder, names in VCC2020_SPOKEN.items():
        for name in names:
            if name[0] == "S" or (name[1] == "E") == (task == 1):
                put_audio(root / folder / f"{name}.wav")
    texts = root / "vcc2020_database_transcriptions"
    training = [*range(10_001, 10_071), *range(20_001, 20_051)]
    for word in ("Eng", "Fin", "Ger", "Man"):
        numbers = training if word == "Eng" else training[:70]
        put_list(
            texts / f"transcriptions_training/vcc2020_database_training_{word}_transcriptions.txt",
            [f"{number} Sentence {number} in {word}." for number in numbers],
            bom=word == "Fin",
            end="\r\n" if word == "Ger" else "\n",
        )
    put_list(
        texts / "transcriptions_evaluation/vcc2020_database_evaluation_transcriptions.txt",
        [f"{number} Sentence {number} in Eng." for number in range(30_001, 30_026)],
    )
    return root


def vctk(root: Path) -> Path:
    """Five speakers with twelve utterances on two microphones; p280 has one, p315 no text, p362 too much text."""
    root = root / "VCTK-Corpus-0.92"
    for speaker in ("p225", "p280", "p315", "p362", "s5"):
        for number in range(1, 13):
            name = f"{speaker}_{number:03d}"
            if speaker != "p315":
                put_list(root / "txt" / speaker / f"{name}.txt", [f"Sentence {number} of {speaker}."])
            for microphone in ("mic1",) if speaker == "p280" else ("mic1", "mic2"):
                if name != "p362_003":
                    put_audio(root / f"wav48_silence_trimmed/{speaker}/{name}_{microphone}.flac", 1600 + 16 * number)
    put_list(
        root / "speaker-info.txt",
        [
            "ID  AGE  GENDER  ACCENTS  REGION COMMENTS ",
            "p225  23  F    English    Southern  England",
            "p280  25  F    Unknown    France (mic2 files unavailable)",
            "p315  18  M    American    New  England (Text unavailable)",
            "p362  29  F    American",
            "s5  30  M    British    Essex",
        ],
        end="\r\n",
    )
    put_list(root / "wav48_silence_trimmed" / "log.txt", ["trimmed"])
    return root


TREES = {
    function.__name__: function
    for function in (
        *(audio_snips, common_voice, fluent_speech_commands, iemocap, libri2mix_diarization, libri2mix_separation),
        lhotse_manifests,
        *(librispeech, librispeech_conversion, quesst14, speech_commands, table, vcc2020, vctk),
        *(voicebank_demand, voxceleb1),
    )
}


def shuffled_like_s3prl(names: Sequence[str], size: int) -> list[str]:
    """S3PRL `separation_stft/scripts/LibriMix/subsample.py`, with a generator of its own."""
    order = sorted(names)
    random.Random(7).shuffle(order)
    return sorted(order[:size])
