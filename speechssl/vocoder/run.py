"""From a preset's name and a corpus to a vocoder folder."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from speechssl.config import load_config
from speechssl.errors import ConfigError, UnknownNameError
from speechssl.files import check_writable
from speechssl.upstream_spec import load, parse_spec
from speechssl.vocoder.config import PRESETS, VocoderConfig, VocoderTrainConfig, with_features
from speechssl.vocoder.data import FeatureRequest, open_segments
from speechssl.vocoder.train import VocoderOutcome, VocoderTraining


def train_vocoder(
    preset: str,
    *,
    corpus: str | Path | Sequence[str | Path],
    output: str | Path,
    split: str = "train",
    upstream: str | None = None,
    layer: int | None = None,
    prematch: bool = False,
    match_layer: int | None = None,
    yaml: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> VocoderOutcome:
    """Trains a vocoder, or goes on with a run that was interrupted; `load_vocoder(output)` reads it.

    Args:
        preset: such as 'hifigan_v1' or 'istft_demo'.
        corpus: a prepared corpus, a Lhotse manifest of cuts, or a folder of Lhotse Shar; or several.
        output: receives the vocoder at every checkpoint, `checkpoints`, `log.jsonl` and `tensorboard`.
        upstream: reads features of it in place of log-mel, as `speechssl run` takes it; `layer` says
            which.
        prematch: trains on means of nearest frames, see `frames.find_neighbours`.
        match_layer: which hidden state is compared to find these, here and in conversion; None = `layer`.
        overrides: such as 'train.steps=1000'.

    Raises:
        SpeechsslError: settings that don't fit each other or the corpus, or those of another run.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("A vocoder is trained by one process: start it without torchrun.")
    if preset not in PRESETS:
        raise UnknownNameError("vocoder preset", preset, PRESETS)
    folder = Path(output)
    request = _request(upstream, layer, prematch, match_layer)
    default = PRESETS[preset]
    if request is not None:
        default = with_features(default, request.upstream.hidden_sizes[request.layer])
    config = load_config(default, yaml=yaml, overrides=overrides)
    _check_features(preset, config, request)
    check_writable(folder)
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    fabric = _make_fabric(config.train)
    if request is not None:
        request.upstream.to(fabric.device)
    corpora = [corpus] if isinstance(corpus, str | Path) else list(corpus)
    data = open_segments(corpora, split=split, config=config, request=request, folder=folder, device=fabric.device)
    return VocoderTraining(
        config, data, folder, fabric=fabric, source=None if request is None else request.source
    ).run()


def _make_fabric(config: VocoderTrainConfig) -> Any:
    from lightning_fabric import Fabric

    if config.accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError("`train.accelerator` is cuda, but there is no GPU that torch can use: choose cpu or auto.")
    wanted = "cpu" if config.accelerator == "auto" and not torch.cuda.is_available() else config.accelerator
    accelerator = "cuda" if wanted == "auto" else wanted
    precision: Any = "bf16-mixed" if config.precision == "bf16" else "32-true"
    fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
    fabric.launch()
    return fabric


def _request(upstream: str | None, layer: int | None, prematch: bool, match_layer: int | None) -> FeatureRequest | None:
    if upstream is None:
        if layer is not None or prematch or match_layer is not None:
            raise ConfigError(
                "`--layer`, `--prematch` and `--match-layer` are about features: name their `--upstream` too."
            )
        return None
    if layer is None:
        raise ConfigError("`--layer` must say which hidden state of the upstream is read, such as 6 of wavlm_large.")
    loaded = load(parse_spec(upstream), device="cpu")
    read, compared = (None if n is None else next(iter(loaded.resolve_layers([n]))) for n in (layer, match_layer))
    return FeatureRequest(loaded, upstream, cast(int, read), prematch, None if compared == read else compared)


def _check_features(preset: str, config: VocoderConfig, request: FeatureRequest | None) -> None:
    width = None if request is None else request.upstream.hidden_sizes[request.layer]
    if config.model.features != width:
        if request is None:
            raise ConfigError(f"'{preset}' reads features: name them, as with `--upstream wavlm_large --layer 6`.")
        raise ConfigError(
            f"`model.features` must be {width}, the width of layer {request.layer} of '{request.name}', but is "
            f"{config.model.features}: leave it out."
        )
