"""`speechssl infer`: apply a trained task to files, or say what one file says in the voice of others."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from speechssl.errors import ConfigError, SpeechsslError

if TYPE_CHECKING:
    from speechssl.conversion import Conversion, Voice

TASK = "voice_conversion"
MANY = "--voice"
"""The option that takes several values."""


class Parser(TyperCommand):
    """Lets `--voice` take all that follows up to the next option, where click would take one value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Writes `--voice b c` as `--voice b --voice c`, which click understands."""
        return super().parse_args(ctx, spread(args))


def spread(args: Sequence[str]) -> list[str]:
    """Repeats `--voice` before each of its values."""
    found: list[str] = []
    taking = False
    for arg in args:
        if arg.startswith("-") and arg != "-":
            taking = arg == MANY or arg.startswith(f"{MANY}=")
        elif taking and found[-1] != MANY:
            found.append(MANY)
        found.append(arg)
    return found


def command(  # noqa: PLR0917  typer calls it by keyword
    run_folder: Annotated[
        Path,
        typer.Argument(help="Folder of a finished run, such as exp/asr/fbank/seed0; or the word voice_conversion."),
    ],
    files: Annotated[list[Path] | None, typer.Argument(help="Audio files, folders, lists or manifests.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="JSON file to write, else standard output; of a conversion, .wav or .flac."),
    ] = None,
    upstream: Annotated[
        str | None, typer.Option("--upstream", "-u", help="Where the upstream is now, if it was moved.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="Deepfake detection: hop=0.25, window=2 (seconds), prior=0.1 (of spoofed)."),
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="A table instead of JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Deepfake detection: HTML page to write, with a curve over time for each file.")
    ] = None,
    source: Annotated[Path | None, typer.Option(help="Conversion: what is to be said, of any length.")] = None,
    voice: Annotated[
        list[Path] | None, typer.Option(help="Conversion: speech of the target, several files; or one .voice.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Conversion: run folder; without it, kNN-VC.")] = None,
    vocoder: Annotated[
        str | None,
        typer.Option(help="kNN-VC: a folder, or prematch_g_02500000.pt; else the shipped one."),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="kNN-VC: hidden state; else the one that the vocoder reads.")
    ] = None,
    match_layer: Annotated[
        int | None, typer.Option(help="kNN-VC: hidden state that is compared; else as the vocoder says, or --layer.")
    ] = None,
    k: Annotated[int | None, typer.Option(help="Conversion: nearest frames that are averaged.")] = None,
    trim: Annotated[
        bool | None, typer.Option("--trim/--no-trim", help="Conversion: cut silence off the ends of --voice files.")
    ] = None,
    loudness: Annotated[
        str, typer.Option(help="Conversion: source, voice, vocoder (as it comes), or LUFS such as -16.")
    ] = "source",
    sample_rate: Annotated[int | None, typer.Option(help="Conversion: Hz; else the vocoder's.")] = None,
    chunk: Annotated[float, typer.Option(help="Conversion: seconds heard at once; 0 = all.")] = 30.0,
    precision: Annotated[Literal["float32", "bf16"], typer.Option(help="Conversion: of the networks.")] = "float32",
    save_voice: Annotated[Path | None, typer.Option(help="Conversion: .voice file that keeps the target.")] = None,
) -> None:
    """Apply a trained task to your own files, or convert a voice.

    Example: speechssl infer exp/asr/pretrained/seed0 a.flac b.wav -o transcripts.json

    Example: speechssl infer exp/emotion_recognition/hubert_base/seed0 data/calls/wav.scp --table

    Example: speechssl infer exp/deepfake_detection/pretrained/seed0 calls/ --table --plot calls.html -s hop=0.5

    Example: speechssl infer voice_conversion --source a.wav --voice b.wav c.wav --out d.wav

    Example: speechssl infer voice_conversion --run exp/voice_conversion/hubert_base/seed0 --source a.wav --voice b.wav
    c.wav --out d.wav
    """
    conversion = {"source": source, "voice": voice, "run": run, "vocoder": vocoder, "save-voice": save_voice}
    given = [f"--{name}" for name, value in conversion.items() if value]
    named = str(run_folder) == TASK and not (run_folder / "task.json").is_file()
    if not named and not given:
        if not files:
            raise ConfigError("Name audio files or folders after the run folder.")
        for path, kind, example in ((out, "JSON", "results.json"), (plot, "HTML", "page.html")):
            if path is not None:  # before anything is computed
                _check_out(path, kind, example)
        found = _apply(
            run_folder, files, out=out, settings=setting or (), plotted=plot is not None, upstream=upstream,
            device=device,
        )  # fmt: skip
        _show(found, run_folder, out=out, table=table, plot=plot)
        return
    if files:
        raise ConfigError(
            f"A conversion takes its files by `--source` and `--voice`, so {files[0]} has no place: move it."
        )
    if setting or table or plot is not None:
        raise ConfigError("A conversion has no `--set`, `--table` and `--plot`: leave them out.")
    if not named:
        if run is not None:
            raise ConfigError(f"Two runs are named, {run_folder} and {run}: leave one out.")
        run = run_folder
    _check(source, voice, out, save_voice)
    from speechssl.conversion import load_converter

    converter = load_converter(
        run, upstream=upstream, layer=layer, match_layer=match_layer, vocoder=vocoder, k=k, trim=trim,
        chunk=chunk or None, precision=precision, device=device,
    )  # fmt: skip
    kept = converter.voice(list(voice or ()))
    if save_voice is not None:
        kept.save(save_voice)
        typer.echo(f"Wrote {save_voice}.")
    if source is not None:
        level: Any = _level(loudness)
        made = converter.convert(source, kept, out=out, loudness=level, sample_rate=sample_rate)
        _tell(kept, made)


def _check_out(out: Path, kind: str, example: str) -> None:
    if out.is_dir():
        raise SpeechsslError(f"The output {out} is a folder: name a file of type {kind}, such as {out / example}.")
    out.parent.mkdir(parents=True, exist_ok=True)


def _apply(
    run_folder: Path,
    files: Sequence[Path],
    *,
    out: Path | None,
    settings: Sequence[str],
    plotted: bool,
    upstream: str | None,
    device: str,
) -> "Applied":
    from speechssl.inference import JudgesFiles, infer_with, load_run
    from speechssl.scoring import split_settings

    given = split_settings(settings)
    run = load_run(run_folder, upstream=upstream, device=device)
    if plotted and not isinstance(run.task, JudgesFiles):
        raise ConfigError(f"The task '{run.task.name}' has no curve over time: leave out `--plot`.")
    # Beside the JSON file, and never the file itself.
    beside = None if out is None else out.with_suffix("") if out.suffix else out.with_name(f"{out.name}_files")
    return Applied(run.task, infer_with(run, files, folder=beside or run_folder / "infer", settings=given))


@dataclass(frozen=True)
class Applied:
    """What was found, and the task that can show it."""

    task: Any
    found: Any


def _show(applied: Applied, run_folder: Path, *, out: Path | None, table: bool, plot: Path | None) -> None:
    """JSON into a file, else a table or JSON to standard output; and a page."""
    from speechssl.files import replacing

    task, found = applied.task, applied.found
    text = json.dumps(found, indent=1, ensure_ascii=False)
    if out is not None:
        with replacing(out) as partial:
            partial.write_text(text + "\n", encoding="utf-8")
        typer.echo(f"Wrote {out}.")
    if table:
        from rich.console import Console

        from speechssl.console import FittingTable

        header, rows = task.table(found)
        Console().print(FittingTable(f"{task.name} with {run_folder}", header, rows))
    elif out is None:
        typer.echo(text)
    if plot is not None:
        from speechssl.report.page import write_sections

        write_sections(task.page(found), plot, title=f"{task.name} with {run_folder}")
        typer.echo(f"Wrote {plot}.", err=True)


def _check(source: Path | None, voice: Sequence[Path] | None, out: Path | None, save_voice: Path | None) -> None:
    """Sees that there is enough to begin with, before anything is loaded."""
    if not voice:
        raise ConfigError("Say in whose voice: `--voice b.wav c.wav`, recordings of the target, or one .voice file.")
    if source is None and save_voice is None:
        raise ConfigError(
            "Say what to convert, `--source a.wav --out d.wav`, or keep the voice, `--save-voice b.voice`."
        )
    if (source is None) != (out is None):
        missing = "where to write it, `--out d.wav`" if out is None else "what to convert, `--source a.wav`"
        raise ConfigError(f"Say {missing}.")
    if out is not None and out.suffix.lower() not in (".wav", ".flac"):
        raise ConfigError(f"The output {out} must end in .wav or .flac: name it so.")
    if save_voice is not None and save_voice.suffix != ".voice":
        raise ConfigError(f"The voice {save_voice} must end in .voice, by which `--voice` knows it: name it so.")
    for path in (source, *voice):
        if path is not None and not path.exists() and not any(c in str(path) for c in "*?["):
            raise SpeechsslError(f"{path} does not exist: check the path.")


def _level(loudness: str) -> str | float:
    try:
        return float(loudness)
    except ValueError:
        return loudness


def _tell(voice: "Voice", made: "Conversion") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("seconds", "sampling rate (Hz)", "loudness (LUFS)", "seconds of the voice")
    level = "silent" if made.loudness is None else f"{made.loudness:.1f}"
    seconds = f"{len(made.waveform) / made.sample_rate:.2f}"
    table.add_row(seconds, str(made.sample_rate), level, f"{voice.seconds:.1f}")
    Console().print(table)
    typer.echo(f"Wrote {made.path}.")
