"""Lists of conversions: which utterance goes to which target's voice, in an order of which any beginning is even."""

from collections.abc import Iterable, Sequence

LISTS = {"dev": "conversion_dev", "test": "conversion_test"}
"""Split -> the corpus's list: a line for each conversion, '<id of the source> <target speaker>'."""


def list_conversions(
    sources: Iterable[tuple[str, str]], targets: Sequence[str], *, most: int | None = None
) -> list[str]:
    """Each source to each target but its own speaker: all sources once, then all once more to their next target, ...

    Args:
        sources: id and speaker of each; those of one speaker begin with different targets.
        targets: speakers.
        most: targets for each source; None = all.

    Returns:
        Lines '<id> <speaker>'.
    """
    others = [(name, [target for target in targets if target != speaker]) for name, speaker in sources]
    rounds = max([len(names) for _, names in others], default=0)
    return [
        f"{name} {names[(number + turn) % len(names)]}"
        for turn in range(rounds if most is None else min(most, rounds))
        for number, (name, names) in enumerate(others)
        if turn < len(names)
    ]
