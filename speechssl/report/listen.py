"""Listening examples: what each upstream made of the same title, side by side; what all share is shown once.

An example is a mapping of names to audio files and texts. A text whose name begins with that of an audio file and an
underscore, such as 'converted_similarity' beside 'converted', is shown under that file's player.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from speechssl.errors import AudioError
from speechssl.report.audio import Clip, fundamental_frequency, is_audio, load_clip, log_mel
from speechssl.report.blocks import Example, Listen, Player
from speechssl.report.collect import Run
from speechssl.report.plots import spectrogram_figure
from speechssl.report.summary import Group
from speechssl.report.words import format_count, metric_title

SPECTROGRAMS = 5_000_000
"""Characters of spectrograms on a page, after which clips are shown without; each takes some 50 000."""


@dataclass
class Budget:
    """How many characters of audio and of spectrograms the page may still take, and what was refused."""

    characters: int = 8_000_000
    spectrograms: int = SPECTROGRAMS
    refused: int = 0
    plain: int = 0
    """Clips without spectrograms."""
    problems: list[str] = field(default_factory=list)

    def clip(self, path: Path) -> Clip | None:
        """Decodes and encodes a file; None where it can't be read or the page is full."""
        try:
            clip = load_clip(path)
        except AudioError as error:
            self.problems.append(f"An example is left out. {error}")
            return None
        if len(clip.uri) > self.characters:
            self.refused += 1
            return None
        self.characters -= len(clip.uri)
        return clip

    def player(self, name: str, path: Path, notes: Sequence[tuple[str, str]]) -> Player | None:
        """A clip with its spectrogram, as far as there is room."""
        clip = self.clip(path)
        if clip is None:
            return None
        f0 = fundamental_frequency(clip.waveform)
        pitch = float(np.nanmedian(f0)) if np.isfinite(f0).any() else None
        image = ""
        if self.spectrograms > 0:
            image = spectrogram_figure(log_mel(clip.waveform), f0=f0, seconds=clip.seconds)
            self.spectrograms -= len(image)
        self.plain += not image
        return Player(name, clip.uri, clip.seconds, image, pitch, notes)


Found = Mapping[str, tuple[Path, Mapping[str, str]]]
"""Upstream label -> (run folder, example) of one title."""


def listen_block(groups: Sequence[Group], runs: Sequence[Run], budget: Budget, *, limit: int) -> Listen | None:
    """The first `limit` titles among the examples of one task's first seeds; None where there are none."""
    titles = _by_title(groups, {id(run.result): run.folder for run in runs})
    examples = []
    for title, found in list(titles.items())[:limit]:
        example = _example(title, found, budget)
        if example.players or example.texts:
            examples.append(example)
    if not examples:
        return None
    caption = "Examples from the test split, of the first seed. What is the same for every upstream is shown once."
    if any(p.spectrogram for e in examples for p in e.players):
        caption += (
            " Spectrograms: time runs to the right, frequency (mel scale) upwards; brighter is louder, over 80 dB. "
            "Light blue line, on the axis at the right: pitch (F0) where speech is voiced. Sharp, evenly spaced bands "
            "mean clean harmonics; blur and stripes mean artefacts."
        )
    if len(titles) > limit:
        caption += f" {format_count(len(titles) - limit)} more are in the run folders."
    return Listen(caption, examples)


def _by_title(
    groups: Sequence[Group], folders: Mapping[int, Path]
) -> dict[str, dict[str, tuple[Path, Mapping[str, str]]]]:
    titles: dict[str, dict[str, tuple[Path, Mapping[str, str]]]] = {}
    for group in groups:
        result = next((r for r in group.results if r.test.examples), None)
        for number, example in enumerate(result.test.examples if result is not None else ()):
            title = str(example.get("title", f"Example {number + 1}"))
            titles.setdefault(title, {})[group.label] = (folders[id(result)], example)
    return titles


def _example(title: str, found: Found, budget: Budget) -> Example:
    keys = list(dict.fromkeys(k for _, example in found.values() for k in example if k != "title"))
    audio = [k for k in keys if any(is_audio(str(e[k])) for _, e in found.values() if e.get(k))]
    texts: list[tuple[str, str]] = []
    players: list[Player] = []
    for key in keys:
        if _owner(key, audio) is not None:
            continue
        values = {label: (folder, str(e[key])) for label, (folder, e) in found.items() if e.get(key)}
        for name, label, (folder, value) in _shared(key, values):
            if not is_audio(value):
                texts.append((name, value))
                continue
            example = found[label][1]
            notes = [(_title(k.removeprefix(f"{key}_")), str(v)) for k, v in example.items() if _owner(k, audio) == key]
            if (player := budget.player(name, folder / value, notes)) is not None:
                players.append(player)
    return Example(title, texts, players)


def _owner(key: str, audio: Sequence[str]) -> str | None:
    """The audio file that a text is about; None = all of the example, or no text."""
    return next((a for a in audio if key not in audio and key.startswith(f"{a}_")), None)


def _title(key: str) -> str:
    return metric_title(key).capitalize() if key.islower() else metric_title(key)


def _shared(key: str, values: Mapping[str, tuple[Path, str]]) -> list[tuple[str, str, tuple[Path, str]]]:
    """(name, upstream, file or text): one entry where all upstreams have the same content, else one for each."""
    contents = {_content(folder, value) for folder, value in values.values()}
    name = _title(key)
    if len(contents) == 1:
        label, value = next(iter(values.items()))
        return [(name, label, value)]
    return [(f"{name}: {label}", label, value) for label, value in values.items()]


def _content(folder: Path, value: str) -> str | bytes:
    path = folder / value
    return path.read_bytes() if is_audio(value) and path.is_file() else value
