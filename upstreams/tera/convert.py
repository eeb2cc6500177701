"""The format that TERA, Mockingjay and Audio ALBERT come in: S3PRL's checkpoints."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.formats import ForeignModel, Formats
from speechssl.s3prl_format import require, section
from upstreams.tera.config import TeraConfig

INPUT = {"spec_transform": "projection", "LayerNorm": "norm"}
BLOCK = {
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "ffn_norm",
}
QKV = ("query", "key", "value")
OLD = {"gamma": "weight", "beta": "bias"}
"""What layer norms' weights are called in checkpoints that began in TensorFlow."""
ONLINE = {"win_ms": 25, "hop_ms": 10, "n_freq": 201}
CENTRED = {"feat_type": "mel", "channel": 0, "log": True, "delta": 0, "cmvn": True}
KALDI = {"frame_length": 25.0, "frame_shift": 10.0, "use_log_fbank": True}


class TeraFormats(Formats):
    """S3PRL's checkpoints: settings under 'Config' or 'Upstream_Config', weights under 'Transformer'."""

    def read_file(self, content: Any, *, origin: str) -> ForeignModel | None:
        """Reads a checkpoint; the head that predicts frames is left out."""
        if not isinstance(content, Mapping) or "Transformer" not in content:
            return None
        state = content["Transformer"]
        if not isinstance(state, Mapping) or not any(str(k).startswith("input_representations.") for k in state):
            return None
        settings = next(
            (
                c
                for c in map(content.get, ("Config", "Upstream_Config"))
                if isinstance(c, Mapping) and "transformer" in c
            ),
            None,
        )
        if settings is None:
            raise SpeechsslError(f"{origin} must hold 'transformer' in 'Config' or 'Upstream_Config': check it.")
        config = _config(settings, origin)
        return ForeignModel(config, dict(_renamed(state, share=config.share_blocks)), their_name=_their_name)


def _config(settings: Mapping[str, Any], origin: str) -> TeraConfig:
    model = section(settings, "transformer", origin)
    require(model, {"hidden_act": "gelu", "pre_layer_norm": False, "downsample_rate": 1}, origin)
    frontend = _frontend(section(settings, "audio", origin), origin)
    return TeraConfig(
        **frontend,
        width=int(model["hidden_size"]),
        depth=int(model["num_hidden_layers"]),
        heads=int(model["num_attention_heads"]),
        ffn_width=int(model["intermediate_size"]),
        share_blocks=bool(model.get("share_layer", False)),
        max_frames=int(section(settings, "task", origin)["sequence_length"]),
        norm_eps=float(model["layer_norm_eps"]),
        dropout=float(model["hidden_dropout_prob"]),
        attention_dropout=float(model["attention_probs_dropout_prob"]),
    )


def _frontend(audio: Mapping[str, Any], origin: str) -> dict[str, Any]:
    if "kaldi" not in audio:
        require(audio, ONLINE, origin)
        require(section(audio, "input", origin), CENTRED, origin)
        level = audio["target_level"]
        return {"num_mel_bins": int(audio["n_mels"]), "level": None if level == "None" else float(level)}
    kaldi = section(audio, "kaldi", origin)
    require(kaldi, {"feat_type": "fbank"}, origin)
    require(section(audio, "delta", origin), {"order": 2, "win_length": 5}, origin)
    require(section(audio, "cmvn", origin), {"use_cmvn": True}, origin)
    fbank = section(kaldi, "fbank", origin)
    require(fbank, KALDI, origin)
    unknown = fbank.keys() - {"num_mel_bins", *KALDI}
    if unknown:
        raise ConfigError(f"`{min(unknown)}` of {origin} is not supported: its features would be others.")
    return {"frontend": "fbank", "num_mel_bins": int(fbank["num_mel_bins"]), "level": None}


def _renamed(state: Mapping[str, Tensor], *, share: bool) -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        path, _, kind = key.rpartition(".")
        name = key if kind not in OLD else f"{path}.{OLD[kind]}"
        if match := re.fullmatch(r"input_representations\.(\w+)\.(\w+)", name):
            yield f"encoder.{INPUT.get(match[1], match[1])}.{match[2]}", value
        elif match := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(\w+)", name):
            if share and match[1] != "0":
                continue
            place = "encoder.shared" if share else f"encoder.blocks.{match[1]}"
            if match[2] == "attention.self.query":
                parts = [state.get(key.replace("query", part)) for part in QKV]
                if all(part is not None for part in parts):
                    yield f"{place}.attention.qkv.{match[3]}", torch.cat(parts)  # type: ignore[arg-type]
            elif match[2] not in ("attention.self.key", "attention.self.value"):
                yield f"{place}.{BLOCK.get(match[2], match[2])}.{match[3]}", value
        else:
            yield name, value


def _their_name(key: str) -> str:
    key = key.replace("encoder.shared", "encoder.blocks.0")
    if match := re.fullmatch(r"encoder\.blocks\.(\d+)\.(.+)\.(\w+)", key):
        names = {ours: theirs for theirs, ours in BLOCK.items()} | {"attention.qkv": "attention.self.query"}
        return f"encoder.layer.{match[1]}.{names.get(match[2], match[2])}.{match[3]}"
    if match := re.fullmatch(r"encoder\.(projection|norm)\.(\w+)", key):
        names = {ours: theirs for theirs, ours in INPUT.items()}
        return f"input_representations.{names[match[1]]}.{match[2]}"
    return key


FORMATS = TeraFormats()
