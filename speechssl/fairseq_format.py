"""Checkpoints of fairseq and of what is built on it: settings and names of weights, without fairseq.

Old ones hold `args` (a namespace with everything in it), newer ones `cfg` (sections `model`, `task`, ...); models
fine-tuned with CTC hold the settings of pre-training inside and the encoder below a prefix. S3PRL's converted files
hold `task_cfg`, `model_cfg` and `model_weight` instead, and Microsoft's (WavLM, UniSpeech-SAT, BEATs) a `cfg` without
sections.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from speechssl.errors import SpeechsslError

PREFIXES = ("w2v_encoder.w2v_model.", "w2v_model.", "encoder.w2v_model.")
"""Of the upstream inside a model that was fine-tuned."""
TEACHER = ("_ema", "_pre_encoder")
"""Beginnings of names with the weights of data2vec's and DinoSR's teachers below them, which are not the upstream's."""
FAIRSEQ2 = "encoder_frontend."
"""In names of fairseq2, whose checkpoints hold no settings."""

MOST_NAMES = 5
"""Of a checkpoint's content that an error lists."""


@dataclass(frozen=True)
class FairseqCheckpoint:
    """What an upstream needs of a checkpoint."""

    model: Mapping[str, Any]
    """Settings of the pre-trained model, such as `encoder_layers`."""
    task: Mapping[str, Any]
    """Settings of its task, such as `normalize` and `sample_rate`."""
    state: Mapping[str, Tensor]
    """Weights by fairseq's names, without the prefix of a fine-tuned model."""

    @property
    def architecture(self) -> str:
        """The pre-trained model's name in fairseq, such as 'hubert' or 'wav2vec2'."""
        return str(self.model.get("_name") or self.model.get("arch") or "")


def is_fairseq(content: Any) -> bool:
    """Whether the content of a checkpoint looks like fairseq's, S3PRL's or Microsoft's: settings beside weights."""
    if not isinstance(content, Mapping) or ("model" not in content and "model_weight" not in content):
        return False
    if isinstance(content.get("config"), Mapping) and "model" in content["config"]:
        return False  # what S3PRL trained itself
    model = content.get("model")
    return not (isinstance(model, Mapping) and any(FAIRSEQ2 in str(name) for name in model))


def open_fairseq(content: Any, *, origin: str) -> FairseqCheckpoint:
    """Finds settings and weights in what `read_pickled` gave.

    Args:
        content: of the checkpoint.
        origin: named in errors.

    Raises:
        SpeechsslError: it is no checkpoint of this kind.
    """
    if not isinstance(content, Mapping):
        raise SpeechsslError(f"{origin} holds no mapping, so it is no checkpoint of fairseq: check the file.")
    state = content.get("model", content.get("model_weight"))
    if isinstance(state, Mapping):
        state = {k: v for k, v in state.items() if not k.rsplit(".", 1)[-1].startswith(TEACHER)}
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise SpeechsslError(f"{origin} holds no weights under 'model' or 'model_weight': check the file.")
    model, task = _sections(content)
    if not model:
        raise SpeechsslError(f"{origin} holds neither 'cfg' nor 'args' with the model's settings: check the file.")
    if model.get("w2v_args") is not None:  # fine-tuned: the settings of pre-training lie inside
        inner = _mapping(model["w2v_args"])
        model, inside = (_mapping(inner["model"]), _mapping(inner.get("task"))) if "model" in inner else (inner, inner)
        task = {**inside, **{k: v for k, v in task.items() if v is not None}}
    prefix = next((p for p in PREFIXES if any(k.startswith(p) for k in state)), "")
    return FairseqCheckpoint(model, task, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


def has_settings(content: Any) -> bool:
    """Whether there are settings of a model in it; without, it is nothing that this module can read."""
    return isinstance(content, Mapping) and bool(_sections(content)[0])


def _sections(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of model and task, wherever they are; empty where they are nowhere."""
    if "model_cfg" in content:
        return _mapping(content["model_cfg"]), _mapping(content.get("task_cfg"))
    settings = _mapping(content.get("cfg"))
    if settings.get("model"):
        return _mapping(settings["model"]), _mapping(settings.get("task"))
    everything = _mapping(content.get("args"))
    if "encoder_layers" in settings:
        everything = {"_name": _microsofts_name(settings), **settings}
    return everything, everything


def _microsofts_name(settings: Mapping[str, Any]) -> str:
    """Of a model whose settings go without one; S3PRL keeps UniSpeech-SAT as a WavLM without the gated bias."""
    if "extractor_mode" not in settings:
        return ""
    return "wavlm" if settings.get("gru_rel_pos") else "unispeech_sat"


def _mapping(content: Any) -> dict[str, Any]:
    return dict(content) if isinstance(content, Mapping) else {}


def describe(content: Any, *, origin: str) -> str:
    """What a checkpoint of no known family holds, as the end of an error's sentence."""
    if is_fairseq(content):
        return f"its architecture is '{open_fairseq(content, origin=origin).architecture}'."
    if not isinstance(content, Mapping):
        return "it holds no mapping."
    names = ", ".join([str(name) for name in content][:MOST_NAMES]) + (", ..." if len(content) > MOST_NAMES else "")
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return f"it holds weights alone ({names}), without settings: name the folder or file that has both."
    return f"it holds {names}."


def parse_conv_layers(text: str, *, origin: str) -> list[tuple[int, int, int]]:
    """Reads `conv_feature_layers`, such as '[(512,10,5)] + [(512,3,2)] * 4', without running it.

    Returns:
        (channels, kernel, stride) of each layer.

    Raises:
        SpeechsslError: anything but lists and tuples of integers, added and multiplied.
    """
    try:
        layers = _value(ast.parse(text.strip(), mode="eval").body)
        return [(int(c), int(k), int(s)) for c, k, s in layers]
    except (SyntaxError, TypeError, ValueError) as error:
        raise SpeechsslError(f"`conv_feature_layers` of {origin} can't be read: '{text}'.") from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.List):
        return [_value(e) for e in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(e) for e in node.elts)
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Add) and isinstance(left, list) and isinstance(right, list):
            return left + right
        if isinstance(node.op, ast.Mult) and isinstance(left, list) and isinstance(right, int) and right <= 64:
            return left * right
    raise ValueError(ast.dump(node))
