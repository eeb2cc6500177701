"""What was trained: the head alone or the upstream too, how, and how many numbers of each."""

from collections.abc import Iterable, Sequence

from speechssl.report.summary import Group
from speechssl.report.words import format_parameters, join_words
from speechssl.result import RunResult

FROZEN = "frozen"
ADAPTED = {
    "full": "fine-tuned",
    "adapters": "adapted by adapters",
    "lora": "adapted by LoRA",
    "prefix": "adapted by prefixes",
    "bitfit": "adapted by its biases (BitFit)",
    "distill": "distilled into a smaller one",
}
"""What `adapt.method` does to an upstream."""


def what_is_trained(groups: Sequence[Group]) -> str:
    """One sentence, or one for each way of training where the upstreams of a task differ in it."""
    ways: dict[str, list[Group]] = {}
    for group in groups:
        ways.setdefault(_way(group.results[0]), []).append(group)
    sentences = []
    for way, found in ways.items():
        names = [f"“{group.label}”" for group in found]
        subject = f"{join_words(names)} {'is' if len(names) == 1 else 'are'}" if len(ways) > 1 else "The upstream is"
        sentences.append(f"{subject} {_clause(way, [r for group in found for r in group.results])}.")
    return " ".join(sentences)


def _way(result: RunResult) -> str:
    """`adapt.method`; '' = nothing at all was trained."""
    if result.config.get("train", {}).get("steps") == 0:
        return ""
    return str(result.config.get("adapt", {}).get("method", FROZEN))


def _clause(way: str, results: Sequence[RunResult]) -> str:
    if not way:
        return "frozen, and nothing is trained"
    known = all(result.trained for result in results)
    head, joint, upstream = (_range(r.trained.get(n, 0) for r in results) for n in ("head", "featurizer", "upstream"))
    total = _range(r.trained_parameters for r in results)
    if way == FROZEN:
        if not known:
            return f"frozen; only the head is trained ({total} parameters)"
        if joint == "0":
            return f"frozen; only the head is trained ({head} parameters)"
        return f"frozen; only the head ({head} parameters) and what joins the layers ({joint}) are trained"
    done = ADAPTED.get(way, f"adapted ({way})")
    if not known:
        return f"{done}, and the head is trained with it ({total} parameters together)"
    return f"{done} ({upstream} trained parameters), and the head ({head}) is trained with it"


def _range(counts: Iterable[int]) -> str:
    """'1.2 M', or '37 k to 1.2 M' where they differ."""
    found = sorted(set(counts))
    ends = [format_parameters(count) for count in (found[0], found[-1])]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)
