"""Small trees with the layout of published corpora of spoofed speech, as `corpus_trees` makes them.

Lines of protocols have the forms that the corpora's README files and evaluation packages show.
"""

from collections.abc import Sequence
from pathlib import Path

from corpus_trees import put_audio, put_list


def asvspoof2019_la(root: Path) -> Path:
    """Three bona fide and four spoofed utterances in each split; two files enrol speakers of dev and eval."""
    root = root / "LA"
    for part, letter, list_, attacks in (
        ("train", "T", "train.trn", ("A01", "A04")),
        ("dev", "D", "dev.trl", ("A01", "A04")),
        ("eval", "E", "eval.trl", ("A07", "A16")),
    ):
        flac = root / f"ASVspoof2019_LA_{part}" / "flac"
        lines = []
        for number in range(7):
            name = f"LA_{letter}_10000{number:02d}"
            attack = "-" if number < 3 else attacks[number % 2]
            lines.append(f"LA_00{70 + number} {name} - {attack} {'bonafide' if number < 3 else 'spoof'}")
            put_audio(flac / f"{name}.flac", 1600 + 160 * number)
        odd = part == "dev"
        protocol = root / "ASVspoof2019_LA_cm_protocols" / f"ASVspoof2019.LA.cm.{list_}.txt"
        put_list(protocol, lines, bom=odd, end="\r\n" if odd else "\n")
        if part != "train":
            names = [f"LA_{letter}_900000{number}" for number in range(2)]
            for name in names:
                put_audio(flac / f"{name}.flac")
            folder = root / "ASVspoof2019_LA_asv_protocols"
            put_list(folder / f"ASVspoof2019.LA.asv.{part}.female.trn.txt", [f"LA_0070 {','.join(names)}"])
            put_list(
                folder / f"ASVspoof2019.LA.asv.{part}.gi.trl.txt", [f"LA_0070 LA_{letter}_1000000 bonafide target"]
            )
    put_list(root / "README.LA.txt", ["ASVspoof 2019"])
    return root


LA_2021 = (
    "LA_0009 LA_E_9332881 alaw ita_tx A07 spoof notrim eval",
    "LA_0020 LA_E_7294490 g722 loc_tx bonafide bonafide notrim eval",
    "LA_0009 LA_E_2000001 none loc_tx A16 spoof notrim eval",
    "LA_0009 LA_E_2000002 pstn mad_tx bonafide bonafide notrim eval",
    "LA_0009 LA_E_8589971 alaw loc_tx A07 spoof notrim progress",
    "LA_0009 LA_E_8589972 alaw loc_tx bonafide bonafide notrim progress",
    "LA_0012 LA_E_3000001 gsm sin_tx A19 spoof trim hidden",
    "LA_0012 LA_E_3000002 opus sin_tx bonafide bonafide trim hidden",
)


def asvspoof2021_la(root: Path) -> Path:
    """Four trials of eval, two of each other subset; the keys are unpacked beside the audio."""
    return _asvspoof2021(root / "asvspoof2021", "LA", LA_2021)


DF_2021 = (
    "LA_0023 DF_E_2000011 nocodec asvspoof A14 spoof notrim progress traditional_vocoder - - - -",
    "LA_0023 DF_E_2000012 nocodec asvspoof - bonafide notrim progress bonafide - - - -",
    "TEF2 DF_E_2000013 low_m4a vcc2020 Task1-team20 spoof notrim eval neural_vocoder_nonautoregressive "
    "Task1 team20 FF E",
    "TGF1 DF_E_2000024 mp3m4a vcc2020 Task2-team12 spoof notrim eval traditional_vocoder Task2 team12 FF G",
    "TEM1 DF_E_2000053 low_mp3 vcc2018 - bonafide notrim eval bonafide - - - -",
    "LA_0040 DF_E_2000054 high_ogg asvspoof - bonafide notrim eval bonafide - - - -",
    "LA_0040 DF_E_2000055 high_ogg asvspoof A10 spoof trim hidden neural_vocoder_autoregressive - - - -",
    "LA_0040 DF_E_2000056 high_ogg asvspoof - bonafide trim hidden bonafide - - - -",
)


def asvspoof2021_df(root: Path) -> Path:
    """Its archives in parts, of which one is unpacked into a folder of its own."""
    root = _asvspoof2021(root / "asvspoof2021", "DF", DF_2021)
    name = "DF_E_2000056.flac"
    moved = root / "ASVspoof2021_DF_eval_part01" / "ASVspoof2021_DF_eval" / "flac" / name
    moved.parent.mkdir(parents=True)
    (root / "ASVspoof2021_DF_eval" / "flac" / name).rename(moved)
    return root


def _asvspoof2021(root: Path, track: str, lines: Sequence[str]) -> Path:
    audio = root / f"ASVspoof2021_{track}_eval"
    ids = [line.split()[1] for line in lines]
    for number, name in enumerate(ids):
        put_audio(audio / "flac" / f"{name}.flac", 1600 + 160 * number)
    put_list(audio / f"ASVspoof2021.{track}.cm.eval.trl.txt", ids)
    put_list(root / "keys" / track / "CM" / "trial_metadata.txt", lines)
    put_list(root / "keys" / track / "README.txt", ["keys"])
    return root


ASVSPOOF5 = {
    "train": (
        "T_4850 T_0000000000 F - - - AC3 A05 spoof -",
        "T_3734 T_0000000011 F - - - - bonafide bonafide -",
        "T_3734 T_0000000012 M - - - AC1 A01 spoof -",
    ),
    "dev.track_1": (
        "D_0062 D_0000000001 F - - - AC1 A11 spoof -",
        "D_0461 D_0000000190 M - - - - bonafide bonafide -",
        "D_0462 D_0000000191 M - - - - bonafide bonafide -",
    ),
    "eval.track_1": (
        "E_1607 E_0009538969 F C05 3 E_0001234567 AC1 A17 spoof -",
        "E_1608 E_0009538970 M - 0 - AC2 A28 spoof -",
        "E_1609 E_0009538971 M - 0 - - bonafide bonafide -",
        "E_1609 E_0009538972 M C05 1 E_0009538971 - bonafide bonafide -",
    ),
}
ASVSPOOF5_TRIALS = {
    "dev": (
        "D_0062 D_0000000001 F A11 spoof",
        "D_0461 D_0000000190 M bonafide target",
        "D_0461 D_0000000191 M bonafide nontarget",
    ),
    "eval": ("E_1609 E_0009538971 M bonafide target", "E_1609 E_0009538970 M A28 spoof"),
}
ASVSPOOF5_ENROLMENT = {
    "dev": ("D_0461 D_0000009001,D_0000009002", "D_0062 D_0000009003"),
    "eval": ("E_1609 E_0000009001,E_0000009002",),
}


def asvspoof5(root: Path) -> Path:
    """Both tracks, protocols in the folder that the archive's name suggests."""
    root = root / "ASVspoof5"
    protocols = root / "ASVspoof5_protocols"
    for part, folder in (("train", "flac_T"), ("dev.track_1", "flac_D"), ("eval.track_1", "flac_E_eval")):
        lines = ASVSPOOF5[part]
        put_list(protocols / f"ASVspoof5.{part}.tsv", lines)
        names = [line.split()[1] for line in lines]
        short = part.split(".")[0]
        if short in ASVSPOOF5_TRIALS:
            put_list(protocols / f"ASVspoof5.{short}.track_2.trial.tsv", ASVSPOOF5_TRIALS[short])
            put_list(protocols / f"ASVspoof5.{short}.track_2.enroll.tsv", ASVSPOOF5_ENROLMENT[short])
            names += [name for line in ASVSPOOF5_ENROLMENT[short] for name in line.split()[1].split(",")]
        for number, name in enumerate(names):
            put_audio(root / folder / f"{name}.flac", 1600 + 160 * number)
    put_list(protocols / "ASVspoof5.codec.config.csv", ["C05,mp3"])
    return root


def in_the_wild(root: Path) -> Path:
    """Five recordings of two people."""
    root = root / "release_in_the_wild"
    labels = ("spoof", "bona-fide", "spoof", "bona-fide", "bona-fide")
    lines = ["file,speaker,label"]
    for number, label in enumerate(labels):
        put_audio(root / f"{number}.wav", 1600 + 160 * number)
        lines.append(f"{number}.wav,{'Alec Guinness' if number % 2 else 'Barack Obama'},{label}")
    put_list(root / "meta.csv", lines)
    put_list(root / "attribution.txt", ["thanks"])
    return root


MLAAD_COLUMNS = (
    "path|original_file|language|is_original_language|duration|training_data|model_name|architecture|transcript"
)


def mlaad(root: Path) -> Path:
    """Two systems in German and one in Czech that say the same recordings of M-AILABS."""
    root = root / "MLAAD"
    originals = [f"de_DE/by_book/male/karlsson/kleinzaches/wavs/kleinzaches_0{k}_f000001.wav" for k in range(2)]
    for name in originals:
        put_audio(root / "m_ailabs" / name, 1600)
    systems = (("de", "griffin_lim", "GL"), ("de", "tts_models_de_vits", "VITS"), ("cs", "tts_models_cs_vits", "VITS"))
    for language, system, architecture in systems:
        lines = [MLAAD_COLUMNS]
        for number, original in enumerate(originals):
            name = Path(original).name
            put_audio(root / "fake" / language / system / name, 1760 + 160 * number)
            own = language == "de"
            path = f"./fake/{language}/{system}/{name}" if own else name
            lines.append(f"{path}|{original}|{language}|{own}|0.11|LJ|{system}|{architecture}|Er sagte: „Ja“.")
        put_list(root / "fake" / language / system / "meta.csv", lines, end="\r\n" if language == "cs" else "\n")
    return root


def wavefake(root: Path) -> Path:
    """Thirty recordings of LJSpeech by two vocoders, three of JSUT by one, two of the text-to-speech system."""
    root = root / "wavefake"
    lj, jsut = [f"LJ001-{k:04d}" for k in range(1, 31)], [f"BASIC5000_{k:04d}" for k in range(1, 4)]
    for number, name in enumerate(lj):
        put_audio(root / "LJSpeech-1.1/wavs" / f"{name}.wav", 1600 + 16 * number)
        for vocoder in ("ljspeech_hifiGAN", "ljspeech_waveglow"):
            put_audio(root / "generated_audio" / vocoder / f"{name}_gen.wav", 1600 + 16 * number)
    for name in jsut:
        put_audio(root / "jsut_ver1.1/basic5000/wav" / f"{name}.wav")
        put_audio(root / "generated_audio/jsut_parallel_wavegan" / f"{name}_gen.wav")
    conformer = root / "generated_audio/common_voices_prompts_from_conformer_fastspeech2_pwg_ljspeech"
    for number in range(2):
        put_audio(conformer / f"gen_{number}.wav")
        put_audio(conformer / "generated" / f"gen_{number}.wav")
    return root


def add(root: Path) -> Path:
    """ADD 2022: train and dev, the adaptation set, and the test set of track 1 with the attacks."""
    root = root / "ADD2022"
    for split, folder, labels, letter in (
        ("train", "ADD_train_dev/train", "ADD_train_dev/label/train_label.txt", "T"),
        ("dev", "ADD_train_dev/dev", "ADD_train_dev/label/dev_label.txt", "D"),
        ("adaptation", "track1adp_out", "track1adp_out/label.txt", "A"),
        ("test", "ADD2022_test/track1test", "ADD2022_test/track1_label.txt", "E"),
    ):
        lines = []
        for number in range(4):
            name = f"ADD_{letter}_0000000{number}.wav"
            put_audio(root / folder / name, 1600 + 160 * number)
            attack = f" {number}" if split == "test" and number % 2 else ""
            lines.append(f"{name} {'fake' if number % 2 else 'genuine'}{attack}")
        put_list(root / labels, lines)
    return root


SPOOF_TREES = {
    function.__name__: function
    for function in (
        *(add, asvspoof2019_la, asvspoof2021_df, asvspoof2021_la, asvspoof5),
        *(in_the_wild, mlaad, wavefake),
    )
}
