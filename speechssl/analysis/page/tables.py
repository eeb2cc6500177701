"""The tables of the page: which layer for what, which models, which labels."""

from collections.abc import Sequence

from speechssl.analysis.page.literature import Finding, contradictions
from speechssl.analysis.page.words import interval, written
from speechssl.analysis.result import Analysis, ModelAnalysis
from speechssl.report.blocks import Cell, Code, Table
from speechssl.report.words import format_count, format_parameters, format_seconds, join_words

TASKS = {
    "probe/phone": "telling phones apart, such as in recognition",
    "abx/within": "units without labels, such as in spoken language models",
    "abx/any": "phones whatever their neighbours",
    "information/phone share": "clusters to pre-train with",
    "similarity/word pwcca": "words, such as in spoken term detection",
    "probe/speaker": "speaker identification and verification",
    "probe/language": "language identification",
    "probe/gender": "gender",
    "probe/tone": "tones",
    "probe/pitch": "melody, such as in emotion and voice conversion",
    "probe/energy": "loudness",
    "probe/duration": "rhythm",
    "similarity/mel pwcca": "the signal itself, such as in resynthesis",
    "rank/rankme": "most directions in use",
}
"""Measure -> what its best layer is for."""


def best_table(models: Sequence[ModelAnalysis]) -> Table | None:
    """The best layer of each model by each measure that says something of a task."""
    rows = []
    for name, task in TASKS.items():
        held = [m.measure(name) for m in models]
        first = next((me for me in held if me is not None), None)
        if first is None:
            continue
        cells = []
        for measure in held:
            best = None if measure is None else measure.best()
            if measure is None or best is None:
                cells.append(Cell("–"))
                continue
            note = f"{written(best.value, measure.unit)} {interval(best, measure.unit)}".strip()
            cells.append(Cell(f"layer {best.layer}", note=note))
        rows.append([Cell(task, note=first.title), *cells])
    if not rows:
        return None
    caption = (
        "The best layer, and its value there; neighbours whose intervals overlap are as good. Layer 0 enters the first "
        "block."
    )
    return Table("Which layer for which task", caption, [Cell("For"), *(Cell(m.model) for m in models)], rows)


def models_table(models: Sequence[ModelAnalysis]) -> Table:
    """Size and weights of each model."""
    rows = [
        [
            Cell(m.model), Cell(str(m.num_layers)), Cell(f"{m.frame_rate:g} Hz"), Cell(format_parameters(m.parameters)),
            Cell(m.fingerprint), Cell(m.weights if len(m.weights) <= 60 else m.weights[:59] + "…"),
        ]
        for m in models
    ]  # fmt: skip
    header = [Cell(c) for c in ("Model", "Hidden states", "Frame rate", "Parameters", "Fingerprint", "Weights")]
    return Table("Models", "Equal fingerprints mean equal numbers.", header, rows)


def labels_sentence(analysis: Analysis) -> str:
    """What made the labels."""
    made = " ".join(f"{kind.capitalize()}s: {text}." for kind, text in analysis.labels.items())
    doubt = "Labels that a machine made rank layers and models; they are no reference for where a phone begins."
    return f"{made} {doubt}" if made else "Nobody labelled phones or words."


def about_blocks(analysis: Analysis) -> list[Table | Code]:
    """Where the time went, and the settings."""
    seconds = [[Cell(stage), Cell(format_seconds(value))] for stage, value in analysis.seconds.items()]
    settings = "\n".join(f"{k} {v}" for k, v in analysis.settings.items())
    versions = "\n".join(f"{k} {v}" for k, v in analysis.versions.items())
    return [
        Table("Time", "All models together.", [Cell("Stage"), Cell("Wall time")], seconds),
        Code("Settings", settings),
        Code("Versions", versions),
    ]


def sentence_of(models: Sequence[ModelAnalysis], found: Sequence[Finding]) -> str:
    """What the page comes to, in a few sentences."""
    parts = []
    for name, what in (("probe/phone", "phones"), ("probe/speaker", "speakers")):
        best = [(m.model, b.layer) for m in models if (me := m.measure(name)) is not None and (b := me.best())]
        if best:
            parts.append(f"{what} best in {join_words([f'layer {layer} of {label}' for label, layer in best])}")
    text = f"Probes tell {'; '.join(parts)}. " if parts else ""
    if found:
        against = len(contradictions(found))
        rest = (
            f"{against} {'is' if against == 1 else 'are'} contradicted here, see below."
            if against
            else "none is contradicted here."
        )
        text += f"Of {format_count(len(found))} predictions of the literature {rest}"
    return text.strip()
