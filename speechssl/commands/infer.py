"""`speechssl infer`: apply a trained task to files."""

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    run_folder: Annotated[Path, typer.Argument(help="Folder of a finished run, such as exp/asr/fbank/seed0.")],
    files: Annotated[list[Path], typer.Argument(help="Audio files or folders.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file to write; else standard output.")] = None,
    upstream: Annotated[str | None, typer.Option(help="Where the upstream is now, if it was moved.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
) -> None:
    """Apply a trained task to your own files.

    Example: speechssl infer exp/asr/pretrained/seed0 a.flac b.wav -o transcripts.json
    """
    from speechssl.errors import SpeechsslError
    from speechssl.files import replacing
    from speechssl.inference import infer

    if out is not None:  # before anything is computed
        if out.is_dir():
            raise SpeechsslError(f"The output {out} is a folder: name a JSON file, such as {out / 'results.json'}.")
        out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the JSON file, and never the file itself.
    artifacts = None if out is None else out.with_suffix("") if out.suffix else out.with_name(f"{out.name}_files")
    found = infer(run_folder, files, upstream=upstream, out=artifacts, device=device)
    text = json.dumps(found, indent=1, ensure_ascii=False)
    if out is None:
        typer.echo(text)
        return
    with replacing(out) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    typer.echo(f"Wrote {out}.")
