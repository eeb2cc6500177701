"""What transformers makes of its own files: configs, encoders, and the extractors that prepare their input.

Only classes that transformers itself holds are made; code that comes with a repository is never run.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from speechssl import hub
from speechssl.checkpoint import CONFIG_FILE, read_json
from speechssl.errors import ConfigError, SpeechsslError, UnknownNameError
from upstreams.transformers.config import TransformersConfig

PREPROCESSOR_FILE = "preprocessor_config.json"
VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "_attn_implementation")
"""Of config.json, what does not decide the numbers."""
WITH_PRENET = {"speecht5": "SpeechT5ForSpeechToText"}
"""Model type -> class, where the plain model has no part that hears waveforms."""
ENCODERS = ("audio_tower", "audio_model", "speech_encoder")
"""What models of several kinds of input call their audio encoder."""


def library() -> ModuleType:
    """The transformers package.

    Raises:
        SpeechsslError: it is not installed.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise SpeechsslError(
            "Models named 'transformers:...' need the package transformers: pip install speechssl[hf]."
        ) from error
    return transformers


def find_folder(reference: str) -> Path:
    """The local folder of 'REPOSITORY[@REVISION]' or of a path, fetched if need be.

    Raises:
        SpeechsslError: there is none.
    """
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder
    repository, revision = hub.split_revision(reference)
    if folder.is_absolute() or reference.startswith((".", "~")) or len(Path(repository).parts) != 2:
        raise SpeechsslError(f"'{reference}' is neither a folder nor 'org/name' of a repository: check the path.")
    return hub.download(repository, revision=revision)


def read_config(folder: Path) -> TransformersConfig:
    """Reads config.json and preprocessor_config.json.

    Raises:
        SpeechsslError: the model is unknown to transformers, or needs code of its repository.
    """
    description = as_known(read_json(folder / CONFIG_FILE), origin=str(folder))
    check_type(description, origin=str(folder))
    made = library().AutoConfig.for_model(**description)
    full = {key: value for key, value in made.to_dict().items() if key not in VOLATILE}
    path = folder / PREPROCESSOR_FILE
    preprocessor = json.dumps(read_json(path), sort_keys=True) if path.is_file() else ""
    return TransformersConfig(json.dumps(full, sort_keys=True), preprocessor)


def as_known(description: Mapping[str, Any], *, origin: str) -> Mapping[str, Any]:
    """The config.json of MERT as that of HuBERT, which it is but for the code that comes with it; others unchanged.

    Paper: Li et al. 2023 (MERT), sec. 3.3, arXiv:2306.00107.

    Raises:
        ConfigError: a MERT with parts that HuBERT has not.
    """
    if description.get("model_type") != "mert_model":
        return description
    for key in ("feature_extractor_cqt", "deepnorm"):
        if description.get(key):
            raise ConfigError(f"`{key}` of {origin} is {description[key]!r}: only MERT models without are supported.")
    return {k: v for k, v in description.items() if k != "auto_map"} | {"model_type": "hubert"}


def check_type(description: Mapping[str, Any], *, origin: str) -> None:
    """Sees that transformers itself knows the model.

    Raises:
        SpeechsslError: it does not.
    """
    kind = str(description.get("model_type", ""))
    known = list(library().models.auto.configuration_auto.CONFIG_MAPPING_NAMES)
    if kind in known:
        return
    if description.get("auto_map"):
        raise SpeechsslError(
            f"The model type '{kind}' of {origin} is no part of transformers: it needs code of its repository "
            "(trust_remote_code), which is never run here; use a model whose architecture transformers has."
        )
    raise UnknownNameError("model type of transformers", kind, known)


def make_config(config: TransformersConfig) -> Any:
    """transformers' config object; the decoder of an encoder-decoder is left out where it can be."""
    if not config.description:
        raise ConfigError("`description` must hold the config.json of a model of transformers, but is empty.")
    description = json.loads(config.description)
    check_type(description, origin="the config")
    made = library().AutoConfig.for_model(**description)
    if getattr(made, "is_encoder_decoder", False) and hasattr(made, "decoder_layers"):
        made.decoder_layers = 0
    return made


def model_class(theirs: Any) -> Any:
    """The class that makes or loads the model of a config."""
    package = library()
    return getattr(package, WITH_PRENET[theirs.model_type]) if theirs.model_type in WITH_PRENET else package.AutoModel


def make_encoder(theirs: Any) -> nn.Module:
    """The audio encoder with random weights."""
    kind = model_class(theirs)
    model = kind.from_config(theirs) if kind is library().AutoModel else kind(theirs)
    return find_encoder(model)


def load_encoder(folder: Path, theirs: Any) -> nn.Module:
    """The audio encoder with the weights of a folder.

    Raises:
        SpeechsslError: weights are missing or don't fit.
    """
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # It would list the heads that are left out.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # untyped in transformers
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # untyped in transformers
    try:
        model, report = model_class(theirs).from_pretrained(
            folder, config=theirs, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # transformers raises what the damage happens to cause
        first = (str(error).splitlines() or [type(error).__name__])[0].removesuffix(".")
        raise SpeechsslError(f"transformers can't load {folder} ({first}): check or download it again.") from error
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # untyped in transformers
    encoder = find_encoder(model)
    prefix = next(f"{name}." if name else "" for name, module in model.named_modules() if module is encoder)
    missing = sorted(k for k in report["missing_keys"] if k.startswith(prefix) and "masked_spec_embed" not in k)
    if missing:
        raise SpeechsslError(f"The weights of {folder} don't fit its config: they lack {', '.join(missing[:8])}.")
    return encoder


def find_encoder(model: nn.Module) -> nn.Module:
    """The part that hears audio, or the whole model."""
    for name in ENCODERS:
        if isinstance(getattr(model, name, None), nn.Module):
            return getattr(model, name)  # type: ignore[no-any-return]  # just seen to be one
    if getattr(model.config, "is_encoder_decoder", False):
        return model.get_encoder()  # type: ignore[operator, no-any-return]  # transformers' models have it
    return model


def make_extractor(config: TransformersConfig, theirs: Any) -> Any:
    """transformers' feature extractor: the one that preprocessor_config.json names, or the usual one of the model.

    Raises:
        ConfigError: there is none.
    """
    package = library()
    settings = json.loads(config.preprocessor) if config.preprocessor else {}
    usual = package.models.auto.feature_extraction_auto.FEATURE_EXTRACTOR_MAPPING_NAMES.get(theirs.model_type)
    name = settings.get("feature_extractor_type") or usual
    kind = getattr(package, str(name), None)
    if kind is None or not issubclass(kind, package.FeatureExtractionMixin):
        raise ConfigError(
            f"A model of type '{theirs.model_type}' needs a preprocessor_config.json that names its input."
        )
    if not settings and kind is package.Wav2Vec2FeatureExtractor:
        return kind(do_normalize=getattr(theirs, "feat_extract_norm", "group") == "layer")
    return kind.from_dict(settings)
