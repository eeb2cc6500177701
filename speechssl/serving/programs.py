"""Upstreams as ONNX models and as torch.export programs, each compared with the upstream before it is kept.

Inputs: `waveform` (B, S) float32 and `lengths` (B,) int64. Outputs: `hidden_state_K` (B, T, D) for each layer K, 0
beyond the valid frames, and `frame_lengths` (B,) int64. B and S may be any, T follows from S.
"""

import json
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechssl.errors import SpeechsslError
from speechssl.files import disk_full, replacing
from speechssl.frontend.log_mel import LogMel
from speechssl.serving.exportable import Exportable, sharing_copy
from speechssl.upstream import Upstream

INPUTS = ("waveform", "lengths")
TOLERANCE = 1e-4
"""Largest deviation of a hidden state from the upstream's."""
RELATIVE = 1e-5
"""The same relative to the largest number in it, for models whose numbers are so large that float32 has no 1e-4."""
OPSET = 17
"""Of ONNX; onnxruntime has run it since 1.12 (2022)."""
LARGEST_FILE = 1_900_000_000
"""Bytes of weights up to which ONNX models are one file: protobuf ends at 2 GiB, and the rest goes beside it."""
METADATA = "speechssl.json"
"""The file inside a torch.export program that holds what `describe` says."""

Program = Callable[[Tensor, Tensor], Sequence[Tensor]]


def export_onnx(upstream: Upstream, path: Path, *, layers: Sequence[int] | None = None) -> float:
    """Writes an upstream as an ONNX model, once onnxruntime has given the upstream's numbers with it.

    Args:
        upstream: float32, on the CPU.
        path: of the file; where the weights are more than protobuf can hold, they lie beside it as PATH.data.
        layers: hidden states to put out (negative counts from the end); None = all.

    Returns:
        The largest deviation from the upstream.

    Raises:
        SpeechsslError: onnx or onnxruntime is not installed, the family can't be traced, or the numbers differ.
    """
    onnx = _import("onnx")
    _import("onnxruntime")
    exportable = Exportable(upstream, layers)
    names = output_names(exportable)
    axes = {name: {0: "batch", 1: "frames"} for name in names[:-1]} | {names[-1]: {0: "batch"}}
    axes |= {"waveform": {0: "batch", 1: "samples"}, "lengths": {0: "batch"}}
    with tempfile.TemporaryDirectory(dir=_folder(path), prefix=".onnx-") as folder:
        traced = Path(folder) / "model.onnx"
        with _following(upstream, "onnx"), _silent_exporter():
            torch.onnx.export(
                exportable,
                next(iter(examples(upstream))),
                str(traced),  # of a Path it would not write weights beside the model
                input_names=list(INPUTS),
                output_names=names,
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
        model = onnx.load(traced)
        onnx.helper.set_model_props(model, {key: str(value) for key, value in describe(upstream, exportable).items()})
        final = Path(folder) / path.name  # its name is in it where the weights lie beside it
        beside = sum(tensor.nbytes for tensor in exportable.state_dict().values()) > LARGEST_FILE
        data = f"{path.name}.data"
        onnx.save_model(model, final, save_as_external_data=beside, location=data if beside else None)
        deviation = check(upstream, _in_onnxruntime(final), exportable.layers, to="onnx")
        for name in [data] * beside + [path.name]:
            with replacing(path.with_name(name)) as partial:
                (Path(folder) / name).replace(partial)
    return deviation


def export_program(upstream: Upstream, path: Path, *, layers: Sequence[int] | None = None) -> float:
    """Writes an upstream as a program of torch.export (.pt2), once it has been read back and given the same numbers.

    Args, Returns and Raises are those of `export_onnx`.
    """
    exportable = Exportable(upstream, layers)
    example = max(examples(upstream), key=lambda e: e[0].size(0))  # sizes of 1 would be taken for constants
    batch, samples = torch.export.Dim("batch"), torch.export.Dim("samples", min=_fewest_samples(upstream))
    shapes = {"waveform": {0: batch, 1: samples}, "lengths": {0: batch}}
    with _following(upstream, "torch-export"):
        program = torch.export.export(exportable, example, dynamic_shapes=shapes)
    _folder(path)
    with replacing(path) as partial, partial.open("wb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, file, extra_files={METADATA: json.dumps(describe(upstream, exportable))})
        file.flush()
        with _following(upstream, "torch-export"):
            again = torch.export.load(partial.open("rb")).module()
            return check(upstream, again, exportable.layers, to="torch-export")


def describe(upstream: Upstream, exportable: Exportable) -> dict[str, Any]:
    """What one has to know to use the program, kept inside it."""
    return {
        "name": upstream.name,
        "weights": upstream.weights,
        "fingerprint": upstream.fingerprint(),
        "sample_rate": upstream.sample_rate,
        "frame_rate": upstream.frame_rate,
        "layers": list(exportable.layers),
    }


def output_names(exportable: Exportable) -> list[str]:
    """One name per hidden state, and that of the frames."""
    return [*(f"hidden_state_{layer}" for layer in exportable.layers), "frame_lengths"]


def check(upstream: Upstream, program: Program, layers: Sequence[int], *, to: str) -> float:
    """Compares a program with the upstream for several batch sizes and lengths.

    Returns:
        The largest deviation.

    Raises:
        SpeechsslError: it is beyond TOLERANCE, or the program fails for sizes other than those it was made with.
    """
    worst = 0.0
    reference = _in_full_precision(upstream)
    for waveform, lengths in examples(upstream):
        size = f"{waveform.size(0)} utterances of {waveform.size(1)} samples"
        with torch.no_grad():
            expected = reference(waveform, lengths, layers=layers)
            try:
                *states, frames = program(waveform, lengths)
            except Exception as error:  # whatever the runtime says about shapes that don't fit
                raise _refusal(upstream, to, f"it fails for {size}: {_first_line(error)}") from error
        if not torch.equal(frames, expected.lengths):
            raise _refusal(upstream, to, f"it counts other frames for {size}")
        for layer, ours, theirs in zip(layers, expected.hidden_states, states, strict=True):
            deviation = _deviation(ours, theirs)
            if not deviation <= max(TOLERANCE, RELATIVE * float(ours.abs().max())):
                how = f"is off by {deviation:.1e}" if math.isfinite(deviation) else "has other frames"
                raise _refusal(upstream, to, f"layer {layer} {how} for {size}")
            worst = max(worst, deviation)
    return worst


def _in_full_precision(upstream: Upstream) -> Upstream:
    """With log-mel energies in float64, as programs have them: float32 is off by 1e-4 where a band is weak."""
    exact = sharing_copy(upstream)
    for module in exact.modules():
        if isinstance(module, LogMel):
            module.options = replace(module.options, double=True)
    return exact


def examples(upstream: Upstream) -> Iterator[tuple[Tensor, Tensor]]:
    """Noise of several batch sizes and lengths, padded and not; the same each time."""
    generator = torch.Generator().manual_seed(0)
    fewest = _fewest_samples(upstream)
    second = max(upstream.sample_rate, 2 * fewest)
    for shares in ((1.0, 0.6), (1.7,), (0.5, 0.9, 0.7), (0.31, 0.31)):
        lengths = torch.tensor([max(fewest, int(second * share)) for share in shares])
        waveform = 0.1 * torch.randn(len(shares), int(lengths.max()), generator=generator) + 0.01
        yield waveform, lengths


def _fewest_samples(upstream: Upstream) -> int:
    """About the samples of two frames, since programs may take axes of one element for constants."""
    step = max(1, upstream.sample_rate // 200)
    return next(n for n in range(step, 2_000 * step, step) if int(upstream.output_lengths(torch.tensor([n]))) >= 2)


def _deviation(ours: Tensor, theirs: Tensor) -> float:
    """Of (B, T, D); `theirs` may have more frames, which must be 0."""
    size = ours.size(1)
    if theirs.size(0) != ours.size(0) or theirs.size(1) < size or bool(theirs[:, size:].any()):
        return float("inf")
    return float((ours - theirs[:, :size]).abs().max())


def _in_onnxruntime(path: Path) -> Program:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(waveform: Tensor, lengths: Tensor) -> list[Tensor]:
        arrays = session.run(None, dict(zip(INPUTS, (waveform.numpy(), lengths.numpy()), strict=True)))
        return [torch.from_numpy(array) for array in arrays]

    return run


@contextmanager
def _silent_exporter() -> Iterator[None]:
    """Keeps torch from printing the graph of a model that it can't export, which it always does."""
    log = torch._C._jit_onnx_log  # type: ignore[attr-defined]  # not in torch's stubs
    torch._C._jit_onnx_log = lambda *_: None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._jit_onnx_log = log  # type: ignore[attr-defined]


@contextmanager
def _following(upstream: Upstream, to: str) -> Iterator[None]:
    """Without the exporters' warnings, since `check` says what they fear; their errors as one sentence."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "torch._export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (SpeechsslError, OSError):
        raise
    except Exception as error:  # the exporters raise what the family's code happens to cause
        if disk_full(error):
            raise
        raise _refusal(upstream, to, _first_line(error)) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _refusal(upstream: Upstream, to: str, reason: str) -> SpeechsslError:
    return SpeechsslError(
        f"'{upstream.name}' can't be exported to {to}, since the family '{upstream.family}' has a part that the "
        f"exporter can't follow for every size of input ({reason}): export to 'speechssl' or 'transformers'."
    )


def _first_line(error: Exception) -> str:
    """Without what exporters add to it: requests for support, and where to send them."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.partition(". ")[0].removesuffix(".")


def _folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent


def _import(package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise SpeechsslError(f"Exporting to onnx needs {package}: pip install 'speechssl[onnx]'.") from error
