"""The tasks of SUPERB and of the part of SUPERB-SG that is here, their corpora, and the score of both challenges.

Papers: Yang et al. 2021 (SUPERB), arXiv:2105.01051; Tsai et al. 2022 (SUPERB-SG), arXiv:2203.06849; Feng et al. 2022
(SUPERB @ SLT 2022: the score), arXiv:2210.08634; Wang et al. 2023 (MiniSUPERB: its tasks), arXiv:2305.19011.
"""

from speechssl.suite import Entry, Reference, Suite

# What counts, as fractions: low = FBANK (Yang et al. 2021, table 2), high = WavLM Large (Chen et al. 2022,
# arXiv:2110.13900, January 2022). The challenge took the best entry of its leaderboard for each metric instead, so that
# scores of its papers are near these, not equal. Recognition is without a language model. Separation and enhancement
# have no references here: their published values could not be looked up.
CONTENT = (
    Entry("phoneme_recognition", "librispeech", {"per": Reference(0.8201, 0.0306)}),
    Entry("asr", "librispeech", {"wer": Reference(0.2318, 0.0344)}),
    Entry("keyword_spotting", "speech_commands", {"accuracy": Reference(0.0863, 0.9786)}),
    Entry("query_by_example", "quesst14", {"mtwv": Reference(0.0058, 0.0886)}),
)
SPEAKER = (
    Entry("speaker_identification", "voxceleb1", {"accuracy": Reference(8.5e-6, 0.9549)}),
    Entry("speaker_verification", "voxceleb1", {"eer": Reference(0.0956, 0.0377)}),
    Entry("diarization", "libri2mix_diarization", {"der": Reference(0.1005, 0.0324)}),
)
MEANING = (
    Entry("intent_classification", "fluent_speech_commands", {"accuracy": Reference(0.0910, 0.9931)}),
    Entry(
        "slot_filling",
        "audio_snips",
        {"slot type f1": Reference(0.6964, 0.9221), "slot value cer": Reference(0.5294, 0.1836)},
    ),
    Entry("emotion_recognition", "iemocap", {"accuracy": Reference(0.3539, 0.7062)}, folds=("all",)),
)
GENERATION = (
    Entry("source_separation", "libri2mix_separation"),
    Entry("speech_enhancement", "voicebank_demand"),
)
# What trains from one mean per utterance comes first: an upstream that is no good shows within minutes.
ORDER = (
    "keyword_spotting", "intent_classification", "emotion_recognition", "speaker_identification", "query_by_example",
    "phoneme_recognition", "asr", "slot_filling", "speaker_verification", "diarization",
    "source_separation", "speech_enhancement",
)  # fmt: skip
ENTRIES = {entry.task: entry for entry in (*CONTENT, *SPEAKER, *MEANING, *GENERATION)}
DEMO = (
    "language_identification_demo", "speaker_identification_demo", "asr_demo", "speaker_verification_demo",
    "deepfake_detection_demo", "voice_conversion_demo",
)  # fmt: skip

SUITES = {
    "superb": Suite(tuple(ENTRIES[t] for t in ORDER if t not in {e.task for e in GENERATION}), score="superb_s"),
    "superb_sg": Suite(tuple(ENTRIES[t] for t in ORDER if t in {e.task for e in GENERATION})),
    # MiniSUPERB's four tasks on a tenth of the data and steps; its own choice of utterances is not published in full.
    "superb_mini": Suite(
        tuple(ENTRIES[t] for t in ("speaker_identification", "asr", "source_separation", "speech_enhancement")),
        subset=0.1,
    ),
    "superb_demo": Suite(tuple(Entry(task, "demo") for task in DEMO)),
}
