"""What is reported of a labelled corpus: all attacks of its test, and each attack, codec and other condition.

As in the evaluation packages of ASVspoof, an attack, its family or its vocoder is compared with all bona fide speech,
while a codec, transmission, language or gender has both classes.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from downstreams.deepfake_detection import measure
from downstreams.deepfake_detection.measure import Scored
from speechssl.result import Evaluation, MetricValue
from speechssl.types import Utterance

logger = logging.getLogger(__name__)
OF_SPOOF = ("attack", "family", "vocoder", "attack_tag")
"""Labels that only spoofed speech has."""
OF_BOTH = ("codec", "codec_quality", "transmission", "origin", "subset", "trim", "gender", "language")


def evaluate_test(scored: Scored, threshold: float, folder: Path) -> Evaluation:
    """The test of the corpus that was trained on, and of the others behind it.

    Args:
        scored: with the labels of `labelled`; the first utterance's `corpus` is the one of the headline.
        threshold: found on dev.
        folder: receives scores.tsv, and scores_<corpus>.tsv of the others, in the ids of the corpora.
    """
    names = list(dict.fromkeys(str(u.labels["corpus"]) for u, _ in scored))
    parts = {name: [s for s in scored if s[0].labels["corpus"] == name] for name in names}
    main, *others = names
    real, spoofed = measure.real_and_spoofed(parts[main])
    metrics = {"eer": measure.eer(real, spoofed), "min_dcf": measure.detection_cost(real, spoofed)}
    metrics |= measure.errors_at(threshold, real, spoofed)
    unseen = [s for s in spoofed if not s[0].labels["seen"]]
    if 0 < len(unseen) < len(spoofed):
        metrics["eer_unseen"] = measure.eer(real, unseen)
    breakdown = dict(by_condition(parts[main]))
    breakdown["false acceptance by attack"] = measure.acceptance_by("attack", spoofed, threshold, accepted=True)
    breakdown["false rejection by language"] = measure.acceptance_by("language", real, threshold, accepted=False)
    if others:
        sides = {name: measure.real_and_spoofed(part) for name, part in parts.items()}
        for name in [name for name, side in sides.items() if not all(side)]:
            logger.warning("Of %s one class alone was heard: it gets no rates", name)
            del sides[name]
        breakdown["eer by corpus"] = {name: measure.eer(*side) for name, side in sides.items()}
        breakdown["min dcf by corpus"] = {name: measure.detection_cost(*side) for name, side in sides.items()}
        for name in filter(sides.__contains__, others):
            breakdown |= {f"{name}: {what}": found for what, found in by_condition(parts[name]).items()}
    files = {"scores": "scores.tsv"} | {f"scores of {name}": f"scores_{name.replace(':', '_')}.tsv" for name in others}
    for name, file in zip(names, files.values(), strict=True):
        own = [(replace(u, id=u.id.removeprefix(f"{name}/")), score) for u, score in parts[name]]
        measure.write_scores(folder / file, own)
    return Evaluation(metrics, breakdown, files | {"corpora": "corpora.json"})


def by_condition(scored: Scored) -> dict[str, Mapping[str, MetricValue]]:
    """'eer by <label>' -> value -> equal error rate, of each label that has more than one value."""
    real, spoofed = measure.real_and_spoofed(scored)
    found: dict[str, Mapping[str, MetricValue]] = {}
    twins = {(u.labels.get("family") in {u.labels["attack"], u.labels.get("vocoder")}) for u, _ in spoofed} == {True}
    for label in (*OF_SPOOF, *OF_BOTH):
        if label == "family" and twins:  # it has another name already
            continue
        fakes, others = _parted(label, spoofed), {} if label in OF_SPOOF else _parted(label, real)
        rates = {}
        for value in sorted(fakes) if len(fakes) > 1 else ():
            if label in OF_SPOOF or value in others:
                rates[value] = measure.eer(real if label in OF_SPOOF else others[value], fakes[value])
            else:
                logger.info("No bona fide speech has %s '%s': it gets no rate of its own", label, value)
        if rates:
            found[f"eer by {label.replace('_', ' ')}"] = rates
    return found


def _parted(label: str, scored: Scored) -> dict[str, list[tuple[Utterance, float]]]:
    """Value of a label -> the trials that have it."""
    parts: dict[str, list[tuple[Utterance, float]]] = defaultdict(list)
    for one in scored:
        value = one[0].labels.get(label)
        if value is not None:
            parts[str(value)].append(one)
    return parts
