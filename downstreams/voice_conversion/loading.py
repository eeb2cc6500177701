"""Puts converters together: of a finished run, or as kNN-VC with a vocoder on features and no training at all.

T frames, D width.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from downstreams.voice_conversion.converter import FrameConverter
from downstreams.voice_conversion.encoder import Encoder, encoder_of_run
from downstreams.voice_conversion.method import EVERYTHING, match_pieces, side_by_side
from downstreams.voice_conversion.synthesis.method import warn_of_one_voice
from downstreams.voice_conversion.task import VoiceConversion
from downstreams.voice_conversion.vocoders import NAMED, check_features, check_upstream, resolve_path
from speechssl.errors import ConfigError
from speechssl.forward import Precision
from speechssl.inference import load_run
from speechssl.registry import shipped_vocoders
from speechssl.upstream import Upstream
from speechssl.upstream_spec import load, parse_spec
from speechssl.vocoder import FeatureSource, Vocoder, load_vocoder

logger = logging.getLogger(__name__)
K = 4
"""Nearest frames: Baas et al. 2023, arXiv:2305.18975."""


def make_converter(
    run_folder: str | Path | None = None,
    *,
    upstream: str | Path | Upstream | None,
    layer: int | None,
    match_layer: int | None,
    vocoder: str | Path | None,
    k: int | None,
    trim: bool | None,
    chunk: float | None,
    precision: Precision,
    device: str,
) -> FrameConverter:
    """Loads a converter, see `speechssl.conversion.load_converter`."""
    if k is not None and k < 1:
        raise ConfigError(f"`k` must be 1 or more, but is {k}.")
    if run_folder is not None:
        if layer is not None or match_layer is not None:
            raise ConfigError(
                "`layer` and `match_layer` are of kNN-VC without a run: leave them out, since a run has its own layers."
            )
        return _from_run(
            run_folder, upstream, vocoder, k=k, trim=bool(trim), chunk=chunk, precision=precision, device=device
        )
    if vocoder is None:
        loaded: Vocoder | None = load_vocoder(_shipped_for(upstream), precision=precision)
    else:
        known = str(vocoder) in NAMED and not Path(vocoder).exists()  # none of these reads features
        loaded = None if known else load_vocoder(resolve_path(vocoder), precision=precision)
    if loaded is None or loaded.source is None:
        raise ConfigError(
            f"The vocoder {vocoder} reads log-mel, which only the head of a run makes of features: add `--run RUN`, or "
            "give a vocoder that reads features."
        )
    model = _upstream_of(loaded, upstream, device)
    said = _layer_of(model, loaded.source.layer if layer is None else layer)
    compared = loaded.source.matching if match_layer is None else match_layer
    compared = said if compared is None else _layer_of(model, compared)
    check_features(loaded, layer=said, width=model.hidden_sizes[said], frame_rate=model.frame_rate)
    encoder, columns = Encoder(model, [said], chunk=chunk, precision=precision), EVERYTHING
    if compared != said:
        layers = sorted([said, compared])
        columns = side_by_side(said, compared, model.hidden_sizes[layers[0]])
        encoder = Encoder(model, layers, join=_beside, joined="side by side", chunk=chunk, precision=precision)
    neighbours = K if k is None else k

    def speak(source: Iterable[Tensor], voice: Tensor) -> Iterator[Tensor]:
        return match_pieces(source, voice.to(device), k=neighbours, columns=columns)

    return FrameConverter(encoder, speak, _to(loaded, device), trim=trim is None or trim)


def _from_run(
    run_folder: str | Path,
    upstream: str | Path | Upstream | None,
    vocoder: str | Path | None,
    *,
    k: int | None,
    trim: bool,
    chunk: float | None,
    precision: Precision,
    device: str,
) -> FrameConverter:
    run = load_run(run_folder, upstream=upstream, device=device)
    if not isinstance(run.task, VoiceConversion):
        raise ConfigError(f"The run {run_folder} is of '{run.task.name}': give one of voice_conversion.")
    config = run.task.config
    network = precision if precision == "bf16" else config.vocoder_precision
    changed = replace(config, vocoder=str(vocoder or config.vocoder), k=k or config.k, vocoder_precision=network)
    task = VoiceConversion(changed)
    if task.mel != run.task.mel:
        raise ConfigError(
            f"The head of {run_folder} was not trained for the log-mel that {vocoder} reads: leave it out."
        )
    head, method = run.probe.head, task.method
    warn_of_one_voice(config, run.data.extra.get("target"))

    def speak(source: Iterable[Tensor], voice: Tensor) -> Iterator[Tensor]:
        return method.pieces(head, source, voice.to(device))

    encoder = encoder_of_run(run, chunk=chunk, precision=precision)
    return FrameConverter(encoder, speak, _to(task.vocoder, device), trim=trim)


def _shipped_for(upstream: str | Path | Upstream | None) -> str:
    """The name of the vocoder that comes with the package, on features of this upstream or else of its own.

    Raises:
        ConfigError: there is none.
    """
    known = shipped_vocoders()
    wanted = str(upstream.name if isinstance(upstream, Upstream) else upstream or next(iter(known), None))
    if wanted in known:
        logger.info("The upstream and vocoder '%s' convert, small ones that come with the package.", wanted)
        return wanted
    of = f" of '{wanted}'" if upstream else ""
    raise ConfigError(
        "Say what converts: a finished run (`--run RUN` of `speechssl run voice_conversion`), or a vocoder that reads "
        f"features{of} (`--vocoder VOCODER`: a folder of `speechssl vocoder`, or kNN-VC's prematch_g_02500000.pt)."
    )


def _upstream_of(vocoder: Vocoder, upstream: str | Path | Upstream | None, device: str) -> Upstream:
    """The upstream that a vocoder was trained on; of a public one WavLM-Large, which hears waveforms as they are."""
    if isinstance(upstream, Upstream):
        model = upstream
    else:
        source = cast(FeatureSource, vocoder.source)
        spec = parse_spec(source.upstream if upstream is None else str(upstream))
        model = load(replace(spec, normalize=False) if source.fingerprint is None else spec, device=device)
    check_upstream(vocoder, model)
    return model


def _layer_of(model: Upstream, layer: int) -> int:
    return next(iter(model.resolve_layers([layer])))


def _beside(layers: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(layers), dim=1)


def _to(vocoder: Vocoder, device: str) -> Vocoder:
    return cast(Vocoder, vocoder.to(device)) if isinstance(vocoder, nn.Module) else vocoder
