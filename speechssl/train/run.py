"""From a preset's name, a corpus and labels to a pre-trained upstream folder."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from speechssl.checkpoint import CONFIG_FILE, load_weights, read_json, save_upstream
from speechssl.config import load_config, to_dict
from speechssl.data.batching import derive_seed
from speechssl.errors import ConfigError, SpeechsslError, UnknownNameError
from speechssl.files import check_writable
from speechssl.heads import adopt_heads, read_heads, save_heads
from speechssl.loading import build_upstream, load_upstream
from speechssl.objective import Labelling, Objective
from speechssl.registry import family_module, find_preset, list_shipped
from speechssl.train.checkpoint import whole
from speechssl.train.config import PretrainConfig
from speechssl.train.inputs import open_data
from speechssl.train.loop import Pretraining, PretrainOutcome
from speechssl.upstream import Upstream

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run; `model` and `objective` are those of the family."""

    model: Any
    objective: Any
    train: PretrainConfig = field(default_factory=PretrainConfig)


def pretrain(
    preset: str,
    *,
    corpus: str | Path | Sequence[str | Path],
    labels: Sequence[str | Path] = (),
    output: str | Path,
    split: str = "train",
    init: str | Path | None = None,
    yaml: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> PretrainOutcome:
    """Pre-trains an upstream, or goes on with a run that was interrupted, and writes it to `output`.

    Args:
        preset: public name, such as 'hubert_tiny'.
        corpus: a prepared corpus, a Lhotse manifest of cuts, or a folder of Lhotse Shar; or several.
        labels: folders of `speechssl cluster`, one per label set and corpus; none for an objective that makes its own
            targets.
        output: receives the upstream (`load_upstream` reads it), `checkpoints`, `log.jsonl` and `tensorboard`.
        init: an upstream of the same shape to start from, as `load_upstream` takes it; None = random weights, as the
            paper's second iteration too. What the objective adds (quantizers, projections, teachers) goes on from it
            where it is there; what predicts labels is new, and what is new is logged.
        overrides: such as 'train.steps=1000'.

    Raises:
        SpeechsslError: a preset without pre-training, labels of another corpus, a run with other settings, weights that
            don't fit.
    """
    family, config = pretrain_config(preset, yaml=yaml, overrides=overrides)
    check_writable(Path(output))
    upstream = build_upstream(family, config.model, seed=config.train.seed)
    check_span(config, upstream.frame_rate)
    started = None
    if init is not None:
        source = load_upstream(init)
        _warn_of_other_settings(source, config.model, str(init))
        load_weights(upstream, source.state_dict(), origin=str(init))
        started = source.fingerprint()
    upstream.name = preset
    corpora = [corpus] if isinstance(corpus, str | Path) else list(corpus)
    data = open_data(corpora, labels, split=split, upstream=upstream, config=config.train)
    objective = build_objective(upstream, config, data.labelling)
    if config.train.noise is not None and not objective.uses_noise:
        raise ConfigError(f"Pre-training '{preset}' with these settings mixes no noise in: leave out `train.noise`.")
    # Labels may mean something else this time; whatever predicts them is kept by no folder.
    keeps_heads = not objective.uses_labels
    if init is not None and keeps_heads:
        load_heads = getattr(family_module(family, "pretrain"), "load_heads", adopt_heads)
        load_heads(objective, read_heads(init), origin=str(init))
    elif init is not None:
        logger.info("What predicts the labels begins anew.")
    identity = {
        "model": to_dict(config.model),
        "objective": to_dict(config.objective),
        **data.identity,
        "init": started,
    }
    run = Pretraining(objective, data.dataset, config.train, Path(output), identity=identity)
    outcome = run.run()
    if outcome.finished:
        weights = {name: whole(value) for name, value in upstream.state_dict().items()}
        state = objective.state_dict() if keeps_heads else {}
        heads = {name: whole(value) for name, value in state.items() if not name.startswith("upstream.")}
        if run.fabric.is_global_zero:
            final = build_upstream(family, config.model, seed=config.train.seed)
            final.load_state_dict(weights)
            final.name = preset
            final.weights = f"pre-trained on {data.title}, {outcome.step} steps"
            if init is not None:
                final.weights += f", from {source.weights}"
            save_heads(heads, Path(output))
            save_upstream(final, output)
        run.fabric.barrier()
    return outcome


def check_span(config: RunConfig, frame_rate: float) -> None:
    """
    Raises:
        ConfigError: utterances may be shorter than the spans that are hidden, so that nothing of them would be seen.
    """
    # Spans on a grid are counted in mel frames of 10 ms.
    rate = 100.0 if hasattr(config.objective, "mask_grid") else frame_rate
    span = getattr(config.objective, "mask_length", 0) / rate
    if config.train.min_seconds <= span:  # and max_seconds is no less
        raise ConfigError(
            f"`train.min_seconds` must be longer than a hidden span of {span:g} s (`objective.mask_length`), but is "
            f"{config.train.min_seconds:g}: shorter utterances would be hidden whole."
        )


def pretrain_config(
    preset: str, *, yaml: str | Path | None = None, overrides: Sequence[str] = ()
) -> tuple[str, RunConfig]:
    """The family of a preset and the settings of its pre-training: the paper's, and then the changes."""
    if (shipped := list_shipped().get(preset)) is not None:
        trained = read_json(shipped / CONFIG_FILE)["name"]
        raise SpeechsslError(f"'{preset}' is a trained {trained}: pre-train that, with `--init {preset}`.")
    family, model_config = find_preset(preset)
    module = _objective_module(family, preset)
    train = getattr(module, "TRAIN_PRESETS", {}).get(preset, PretrainConfig())
    default = RunConfig(model_config, module.PRETRAIN_PRESETS[preset], train)
    return family, load_config(default, yaml=yaml, overrides=overrides)


def build_objective(upstream: Upstream, config: RunConfig, labelling: Labelling) -> Objective:
    """Makes the objective around an upstream; its new weights depend on the run's seed alone."""
    module = family_module(upstream.family, "pretrain")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(config.train.seed, "objective"))
        objective: Objective = module.build_pretraining(upstream, config.objective, labelling)
    return objective


def _objective_module(family: str, preset: str) -> ModuleType:
    try:
        module = family_module(family, "pretrain")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.endswith(f"{family}.pretrain"):
            raise
        raise SpeechsslError(f"'{preset}' can't be pre-trained: choose one such as 'hubert_tiny'.") from error
    if preset not in module.PRETRAIN_PRESETS:
        raise UnknownNameError("pre-training preset", preset, module.PRETRAIN_PRESETS)
    return module


def _warn_of_other_settings(source: Upstream, model: Any, init: str) -> None:
    """Weights of the same names and shapes may have been trained with, say, norms in other places."""
    old, new = to_dict(getattr(source, "config", model)), to_dict(model)
    different = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if different:
        logger.warning("The run starts from %s, whose settings differ in: %s.", init, ", ".join(different))
