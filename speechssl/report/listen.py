"""Listening examples: what each upstream made of the same title, side by side; what all share is shown once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from speechssl.errors import AudioError
from speechssl.report.audio import Clip, fundamental_frequency, is_audio, load_clip, log_mel, mel_band
from speechssl.report.blocks import Example, Listen, Player
from speechssl.report.collect import Run
from speechssl.report.plots import spectrogram_figure
from speechssl.report.summary import Group
from speechssl.report.words import format_count, metric_title

SPECTROGRAMS = 3  # titles of each task that get spectrograms; more make the page heavy


@dataclass
class Budget:
    """How many characters of audio the page may still take, and what was refused."""

    characters: int = 8_000_000
    refused: int = 0
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


Found = Mapping[str, tuple[Path, Mapping[str, str]]]
"""Upstream label -> (run folder, example) of one title."""


def listen_block(groups: Sequence[Group], runs: Sequence[Run], budget: Budget, *, limit: int) -> Listen | None:
    """The first `limit` titles among the examples of one task's first seeds; None where there are none."""
    titles = _by_title(groups, {id(run.result): run.folder for run in runs})
    examples = []
    for number, (title, found) in enumerate(list(titles.items())[:limit]):
        example = _example(title, found, budget, spectrograms=number < SPECTROGRAMS)
        if example.players or example.texts:
            examples.append(example)
    if not examples:
        return None
    caption = "Examples from the test split, of the first seed. What is the same for every upstream is shown once."
    if any(p.spectrogram for e in examples for p in e.players):
        caption += (
            " Spectrograms: time runs to the right, frequency (mel scale) upwards; brighter is louder, over 80 dB. "
            "Light blue line: pitch (F0) where speech is voiced. Sharp, evenly spaced bands mean clean harmonics; blur "
            "and stripes mean artefacts."
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


def _example(title: str, found: Found, budget: Budget, *, spectrograms: bool) -> Example:
    keys = list(dict.fromkeys(k for _, example in found.values() for k in example if k != "title"))
    texts: list[tuple[str, str]] = []
    players: list[Player] = []
    for key in keys:
        values = {label: (folder, str(e[key])) for label, (folder, e) in found.items() if e.get(key)}
        for name, (folder, value) in _shared(key, values).items():
            if not is_audio(value):
                texts.append((name, value))
            elif (clip := budget.clip(folder / value)) is not None:
                players.append(Player(name, clip.uri, clip.seconds, _spectrogram(clip) if spectrograms else ""))
    return Example(title, texts, players)


def _shared(key: str, values: Mapping[str, tuple[Path, str]]) -> Mapping[str, tuple[Path, str]]:
    """Player name -> file or text: one entry where all upstreams have the same content, else one for each."""
    contents = {_content(folder, value) for folder, value in values.values()}
    name = metric_title(key).capitalize() if key.islower() else metric_title(key)
    if len(contents) == 1:
        return {name: next(iter(values.values()))}
    return {f"{name}: {label}": value for label, value in values.items()}


def _content(folder: Path, value: str) -> str | bytes:
    path = folder / value
    return path.read_bytes() if is_audio(value) and path.is_file() else value


def _spectrogram(clip: Clip) -> str:
    f0 = fundamental_frequency(clip.waveform)
    band = None if f0 is None else mel_band(f0)
    return spectrogram_figure(log_mel(clip.waveform), f0_band=band, seconds=clip.seconds)
