"""Who is on which side of the speaker splits.

Test: eight bilinguals and fillers of each of two language pairs, and the two Dutch leads. Dev: the nine members of a
council. Train: everyone else with a label, among them the many minor roles whose actors may overlap.
"""

from collections.abc import Iterable, Sequence

from speechssl.data.manifests import Clip, split_by_speaker, text_split

_TEST = ("lart_cy-en_", "lart_lmo-it_", "nl_big", "nl_small")
_DEV = ("speakerbox_",)
_SMALL_TEST = tuple(f"speakerbox_{i}" for i in (1, 2, 3, 4))
_SMALL_DEV = tuple(f"speakerbox_{i}" for i in (5, 6, 7))


def speaker_sides(speakers: Iterable[str]) -> dict[str, str]:
    """'train', 'dev' or 'test' for each speaker; without the bilinguals the council is divided among the three."""
    names = sorted(set(speakers))
    has_lart = any(name.startswith("lart_") for name in names)
    test = _TEST if has_lart else (*_TEST, *_SMALL_TEST)
    dev = _DEV if has_lart else _SMALL_DEV
    return {name: "test" if name.startswith(test) else "dev" if name.startswith(dev) else "train" for name in names}


def speaker_splits(clips: Sequence[Clip], only: frozenset[str]) -> dict[str, list[Clip]]:
    """The three speaker manifests; no clip of dev or test is in the plain train manifest.

    Args:
        only: sources whose clips are in no plain manifest.
    """
    sides = speaker_sides(clip.speaker for clip in clips if clip.speaker)
    unseen = [
        clip
        for clip in clips
        if sides.get(clip.speaker or "") == "train"
        or clip.source in only
        or (clip.text is not None and text_split(clip.text) != "train")
    ]
    return split_by_speaker(unseen, sides)
