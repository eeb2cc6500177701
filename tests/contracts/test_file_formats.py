"""Checkpoints of other toolkits: read without running what is in them, and with the numbers of the original."""

import argparse
import builtins
import importlib
import os
import sys
import types
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2Model

from speechssl.errors import SpeechsslError
from speechssl.fairseq_format import parse_conv_layers
from speechssl.loading import load_upstream
from speechssl.pickled import read_pickled

LAYERS = "[(24,10,5)] + [(24,3,2)] * 2"


def theirs(norm: str, family: str = "hubert") -> HubertModel | Wav2Vec2Model:
    large = norm == "layer"
    kind, their_config = (HubertModel, HubertConfig) if family == "hubert" else (Wav2Vec2Model, Wav2Vec2Config)
    config = their_config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, conv_dim=[24] * 3,
        conv_kernel=[10, 3, 3], conv_stride=[5, 2, 2], feat_extract_norm=norm, conv_bias=large,
        do_stable_layer_norm=large, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    torch.manual_seed(3)
    return kind(config).eval()


def fairseq_state(model: HubertModel | Wav2Vec2Model) -> dict[str, Tensor]:
    """The names that fairseq gives these weights, written down here once more, from fairseq's side."""
    state, ours = model.state_dict(), {}
    large = model.config.feat_extract_norm == "layer"
    for layer in range(3):
        at, out = f"feature_extractor.conv_layers.{layer}.", f"feature_extractor.conv_layers.{layer}."
        ours[out + "0.weight"] = state[at + "conv.weight"]
        if large:
            ours[out + "0.bias"] = state[at + "conv.bias"]
        if large or layer == 0:
            for part in ("weight", "bias"):
                ours[out + ("2.1." if large else "2.") + part] = state[at + "layer_norm." + part]
    for part in ("weight", "bias"):
        ours["layer_norm." + part] = state["feature_projection.layer_norm." + part]
        ours["post_extract_proj." + part] = state["feature_projection.projection." + part]
        ours["encoder.layer_norm." + part] = state["encoder.layer_norm." + part]
    ours["mask_emb"] = state["masked_spec_embed"]
    position = "encoder.pos_conv_embed.conv."
    ours["encoder.pos_conv.0.weight_g"] = state[position + "parametrizations.weight.original0"]
    ours["encoder.pos_conv.0.weight_v"] = state[position + "parametrizations.weight.original1"]
    ours["encoder.pos_conv.0.bias"] = state[position + "bias"]
    for block in range(2):
        at = f"encoder.layers.{block}."
        for part in ("weight", "bias"):
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                ours[f"{at}self_attn.{name}.{part}"] = state[f"{at}attention.{name}.{part}"]
            ours[f"{at}self_attn_layer_norm.{part}"] = state[f"{at}layer_norm.{part}"]
            ours[f"{at}fc1.{part}"] = state[f"{at}feed_forward.intermediate_dense.{part}"]
            ours[f"{at}fc2.{part}"] = state[f"{at}feed_forward.output_dense.{part}"]
            ours[f"{at}final_layer_norm.{part}"] = state[f"{at}final_layer_norm.{part}"]
    return ours


def settings(norm: str, family: str = "hubert") -> dict[str, Any]:
    large = norm == "layer"
    return {
        "_name": family, "extractor_mode": "layer_norm" if large else "default", "conv_bias": large,
        "layer_norm_first": large, "encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 48,
        "encoder_attention_heads": 2, "conv_feature_layers": LAYERS, "conv_pos": 8, "conv_pos_groups": 4,
        "activation_fn": "gelu", "feature_grad_mult": 0.1,
    }  # fmt: skip


def newer(model: dict[str, Any], state: dict[str, Tensor], normalize: bool) -> dict[str, Any]:
    names = {"hubert": "label_embs_concat", "wav2vec2": "quantizer.vars"}
    heads = {names[model["_name"]]: torch.zeros(5, 4), "final_proj.weight": torch.zeros(4, 32)}
    return {"cfg": {"model": model, "task": {"normalize": normalize}}, "args": None, "model": {**state, **heads}}


def newer_omegaconf(model: dict[str, Any], state: dict[str, Tensor], normalize: bool) -> dict[str, Any]:
    made = newer(model, state, normalize)
    return {**made, "cfg": OmegaConf.create(made["cfg"]), "extra_state": {"best": 1.5}}


def older(model: dict[str, Any], state: dict[str, Tensor], normalize: bool) -> dict[str, Any]:
    arguments = {**model, "arch": model["_name"], "normalize": normalize}
    del arguments["_name"]
    return {"args": argparse.Namespace(**arguments), "model": state}


def fine_tuned(model: dict[str, Any], state: dict[str, Tensor], normalize: bool) -> dict[str, Any]:
    inside = OmegaConf.create({"model": model, "task": {"normalize": normalize}})
    weights = {f"w2v_encoder.w2v_model.{k}": v for k, v in state.items()}
    weights["w2v_encoder.proj.weight"] = torch.zeros(7, 32)
    outside = {"_name": "hubert_ctc", "w2v_args": inside}
    return {"cfg": {"model": outside, "task": {"normalize": normalize}}, "model": weights}


def s3prl(model: dict[str, Any], state: dict[str, Tensor], normalize: bool) -> dict[str, Any]:
    return {"task_cfg": {"normalize": normalize}, "model_cfg": model, "model_weight": state, "dictionaries_symbols": []}


def half(model: dict[str, Any], state: dict[str, Tensor], normalize: bool) -> dict[str, Any]:
    return newer(model, {k: v.half() for k, v in state.items()}, normalize)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("form", [newer, newer_omegaconf, older, fine_tuned, s3prl, half])
@pytest.mark.parametrize(("family", "norm"), [("hubert", "group"), ("hubert", "layer"), ("wav2vec2", "layer")])
def test_fairseq_checkpoints_give_the_numbers_of_transformers(
    family: str, norm: str, form: Callable[..., Any], zipped: bool, tmp_path: Path
) -> None:
    model, path = theirs(norm, family), tmp_path / "model.pt"
    if form is half:
        model.load_state_dict({k: v.half().float() for k, v in model.state_dict().items()})
    content = form(settings(norm, family), fairseq_state(model), norm == "layer")
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    upstream = load_upstream(path)
    assert (upstream.family, upstream.normalize, upstream.weights) == (family, norm == "layer", str(path))
    waveform = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.layer_norm(waveform, waveform.shape[-1:]) if norm == "layer" else waveform
    with torch.no_grad():
        found = upstream(waveform, torch.tensor([4000]))
        expected = model(whole, output_hidden_states=True).hidden_states
    for layer, state in enumerate(expected[:-1]):
        torch.testing.assert_close(found.hidden_states[layer], state, rtol=0, atol=1e-4)
    last = expected[-1]
    torch.testing.assert_close(found.hidden_states[-1], last, rtol=0, atol=1e-4)


class Attack:
    """Runs a function when it is unpickled by pickle itself."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.what = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.what


ATTACKS = {
    "os.system": lambda marker: Attack(os.system, f"touch {marker}"),
    "builtins.eval": lambda marker: Attack(builtins.eval, f"open({str(marker)!r}, 'w')"),
    "builtins.getattr": lambda marker: Attack(getattr, Path, "home"),
    "builtins.open": lambda marker: Attack(open, str(marker), "w"),
    "importlib.import_module": lambda marker: Attack(importlib.import_module, "antigravity"),
    "nested": lambda marker: {"deep": [(Attack(dict, [(1, Attack(os.mkdir, str(marker)))]),)]},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("name", ATTACKS)
def test_checkpoints_that_would_run_code_are_refused_by_name(name: str, zipped: bool, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.pt"
    content = {"model": {"w": torch.zeros(2)}, "cfg": ATTACKS[name](marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    names = {"os.system": r"\.system", "nested": r"\.mkdir", "builtins.open": r"io\.open"}.get(name, name)
    with pytest.raises(SpeechsslError, match=names):
        load_upstream(path)
    assert not marker.exists()


def test_objects_of_unknown_packages_become_plain_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("fairseq")
    module = types.ModuleType("fairseq.settings")

    class Choice:
        def __init__(self, value: str) -> None:
            self.value = value

        def __reduce__(self) -> tuple[type, tuple[str]]:
            return Choice, (self.value,)

    class Settings:
        def __init__(self) -> None:
            self.mode, self.sizes = Choice("layer_norm"), [1, 2]

    for cls in (Choice, Settings):
        cls.__module__, cls.__qualname__ = "fairseq.settings", cls.__name__
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "fairseq", package)
    monkeypatch.setitem(sys.modules, "fairseq.settings", module)
    content = {
        "settings": Settings(), "choice": Choice("a"), "path": Path("a/b"),
        "none": defaultdict(list), "space": argparse.Namespace(x=1),
        "conf": OmegaConf.create({"a": [1, {"b": None}], "c": "text"}), "w": torch.arange(3),
    }  # fmt: skip
    torch.save(content, tmp_path / "x.pt")
    monkeypatch.undo()
    found = read_pickled(tmp_path / "x.pt")
    assert torch.equal(found.pop("w"), torch.arange(3))
    assert found == {
        "settings": {"mode": "layer_norm", "sizes": [1, 2]}, "choice": "a", "path": "a/b", "none": {},
        "space": {"x": 1},
        "conf": {"a": [1, {"b": None}], "c": "text"},
    }  # fmt: skip


def _truncated(path: Path) -> None:
    torch.save({"model": {"w": torch.zeros(500)}}, path)
    path.write_bytes(path.read_bytes()[:1500])


def _old_truncated(path: Path) -> None:
    torch.save({"model": {"w": torch.zeros(500)}}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:900])


def _torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_truncated, "cut off"),
        (_old_truncated, "torch"),
        (_torchscript, "TorchScript"),
        (lambda p: p.write_text("no checkpoint"), "cut off"),
        (lambda p: p.write_bytes(b""), "cut off"),
        (lambda p: torch.save([1], p), "no mapping"),
        (lambda p: torch.save({"model": {"w": 1}}, p), "no weights"),
        (lambda p: torch.save({"model": {}}, p), "neither 'cfg' nor 'args'"),
        (lambda p: torch.save({"model": {}, "cfg": {"model": {"_name": "transformer_lm"}}}, p), "transformer_lm"),
        (lambda p: torch.save(newer(settings("group"), {}, False), p), "lack"),
        (lambda p: torch.save(newer({**settings("group"), "activation_fn": "relu"}, {}, False), p), "activation_fn"),
    ],
)
def test_what_is_no_such_checkpoint_is_one_sentence(damage: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.pt"
    damage(path)
    with pytest.raises(SpeechsslError, match=says) as error:
        load_upstream(path)
    assert "bad.pt" in str(error.value)


def test_layers_of_convolutions_are_read_without_running_the_text() -> None:
    assert parse_conv_layers("[(512,10,5)] + [(512,3,2)] * 2", origin="x") == [(512, 10, 5)] + [(512, 3, 2)] * 2
    for text in ("__import__('os').system('true')", "[(1,2)]", "[1]", "[(1,2,3)] * 999999999", "(", "[(1,2,'a')]"):
        with pytest.raises(SpeechsslError, match="conv_feature_layers"):
            parse_conv_layers(text, origin="x")
