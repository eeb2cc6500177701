"""What fairseq2 makes of its cards and configurations."""

import json
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from speechssl.errors import ConfigError, SpeechsslError, UnknownNameError
from upstreams.fairseq2.config import Fairseq2Config

FAMILIES = ("wav2vec2", "wav2vec2_asr", "w2vbert")
CHECKPOINTS = ("model.pt", "model.safetensors", "model")
"""In a folder without a `checkpoint` in its card, where the weights may be."""


def hub(family: str) -> Any:
    """fairseq2's hub of a model family.

    Raises:
        SpeechsslError: fairseq2 is not installed.
        UnknownNameError: it is another family.
    """
    try:
        from fairseq2.models.w2vbert import get_w2vbert_model_hub
        from fairseq2.models.wav2vec2 import get_wav2vec2_model_hub
        from fairseq2.models.wav2vec2.asr import get_wav2vec2_asr_model_hub
    except (ImportError, OSError) as error:  # its native part needs libsndfile
        raise SpeechsslError(
            f"Models named 'fairseq2:...' need the package fairseq2 ({error}): pip install speechssl[fairseq2], and "
            "libsndfile from the system."
        ) from error
    known = dict(
        zip(FAMILIES, (get_wav2vec2_model_hub, get_wav2vec2_asr_model_hub, get_w2vbert_model_hub), strict=True)
    )
    if family not in known:
        raise UnknownNameError("model family of fairseq2", family, known)
    return known[family]()


def find_card(reference: str) -> Any:
    """The asset card of a name or a folder.

    Raises:
        SpeechsslError: there is none, or it is no model of a family in FAMILIES.
    """
    hub(FAMILIES[0])  # says so where fairseq2 is missing
    from fairseq2.assets import AssetNotFoundError, get_asset_store

    folder = Path(reference).expanduser()
    if folder.is_dir():
        card = _card_of_folder(folder)
    else:
        try:
            card = get_asset_store().retrieve_card(reference)
        except AssetNotFoundError as error:
            names = [name.rstrip("@") for name in get_asset_store().asset_names]
            raise UnknownNameError("card of fairseq2", reference, names) from error
    family = card.maybe_get_field("model_family")
    if family is None or family.value not in FAMILIES:
        found = None if family is None else family.value
        raise ConfigError(f"`model_family` of {reference} must be one of {', '.join(FAMILIES)}, but is {found!r}.")
    return card


def _card_of_folder(folder: Path) -> Any:
    from fairseq2.assets import AssetCard

    found = sorted(folder.glob("*.yaml"))
    if len(found) != 1:
        raise SpeechsslError(f"{folder} must hold one card of fairseq2 (a .yaml file), but holds {len(found)}.")
    try:
        fields = yaml.safe_load(found[0].read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpeechsslError(f"{found[0]} is not valid YAML: mend it.") from error
    if not isinstance(fields, dict):
        raise SpeechsslError(f"{found[0]} must hold the fields of one card of fairseq2: mend it.")
    weights = fields.get("checkpoint") or next((n for n in CHECKPOINTS if (folder / n).exists()), None)
    if weights is None:
        raise SpeechsslError(
            f"{folder} holds no weights ({', '.join(CHECKPOINTS)}): name them as `checkpoint` in the card."
        )
    # `restrict`: tensors and plain containers only are read, nothing in the file is run.
    fields = {**fields, "checkpoint": str(weights), "__base_path__": folder.absolute(), "restrict": True}
    return AssetCard(str(fields.get("name") or folder.name), fields)


def read_config(card: Any) -> Fairseq2Config:
    """The configuration that a card names."""
    from fairseq2.utils.structured import StandardValueConverter

    family = str(card.field("model_family").value)
    try:
        made = hub(family).get_model_config(card)
    except Exception as error:  # fairseq2 has an error for each part of a card
        raise ConfigError(f"The card '{card.name}' of fairseq2 can't be read ({error}): mend it.") from error
    settings = json.dumps(StandardValueConverter().unstructure(made), sort_keys=True)
    encoder = encoder_settings(family, made)
    # As in fairseq: models with layer norms in their convolutions were trained on normalised waveforms.
    return Fairseq2Config(family, settings, not encoder.use_fbank and encoder.feature_extractor_layer_norm_convs)


def make_settings(config: Fairseq2Config) -> Any:
    """fairseq2's configuration object.

    Raises:
        ConfigError: it does not fit.
    """
    family = hub(config.model_family)
    from fairseq2.utils.structured import StandardValueConverter, StructureError

    try:
        kind = type(family.get_arch_config(sorted(family.get_archs())[0]))
        return StandardValueConverter().structure(json.loads(config.settings), kind)
    except (StructureError, json.JSONDecodeError) as error:
        raise ConfigError(f"`settings` is no configuration of fairseq2's {config.model_family}: {error}.") from error


def encoder_settings(family: str, settings: Any) -> Any:
    """The part of a model's configuration that is of its encoder."""
    return (settings.w2v2_config if family == "w2vbert" else settings).encoder_config


def make_model(config: Fairseq2Config, settings: Any) -> nn.Module:
    """The wav2vec 2.0 model with random weights; that of a w2v-BERT is in it."""
    import torch

    model = hub(config.model_family).create_new_model(settings, device=torch.device("cpu"), dtype=torch.float32)
    return _inner(model)


def load_model(card: Any) -> nn.Module:
    """The wav2vec 2.0 model with the weights of a card, fetched if need be.

    Raises:
        SpeechsslError: they can't be fetched, or don't fit.
    """
    import torch

    family = hub(str(card.field("model_family").value))
    try:
        model = family.load_model(card, device=torch.device("cpu"), dtype=torch.float32)
    except Exception as error:  # downloads, unpickling and shapes each have their own
        cause = error.__cause__ or error
        first = (str(cause).splitlines() or [type(cause).__name__])[0].removesuffix(".")
        raise SpeechsslError(
            f"fairseq2 can't load the weights of '{card.name}' ({type(error).__name__}: {first}): check the card's "
            "`checkpoint`, connect once, or ask for random weights."
        ) from error
    return _inner(model)


def _inner(model: Any) -> nn.Module:
    return getattr(model, "w2v2_model", model)  # type: ignore[no-any-return]  # fairseq2 has types of its own
