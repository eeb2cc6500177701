"""Checkpoints of other toolkits: read without running what is in them, and with the numbers of the original.

Families that share the architecture of wav2vec 2.0 are asked for here, family by format; the others by their own tests.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from speechssl.errors import SpeechsslError
from speechssl.export import export_upstream
from speechssl.loading import load_upstream
from speechssl.upstream import Upstream

LAYERS = "[(24,10,5)] + [(24,3,2)] * 2"
THEIRS = {
    "hubert": "Hubert",
    "wav2vec2": "Wav2Vec2",
    "wavlm": "WavLM",
    "unispeech": "UniSpeech",
    "unispeech_sat": "UniSpeechSat",
}
"""Family -> the beginning of its classes' names in transformers."""


def theirs(norm: str, family: str = "hubert", **changes: Any) -> PreTrainedModel:
    large = norm == "layer"
    sizes = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
        "conv_dim": [24] * 3, "conv_kernel": [10, 3, 3], "conv_stride": [5, 2, 2], "feat_extract_norm": norm,
        "conv_bias": large, "do_stable_layer_norm": large, "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
    }  # fmt: skip
    if family == "wavlm":
        sizes |= {"num_buckets": 16, "max_bucket_distance": 40}
    config = getattr(transformers, THEIRS[family] + "Config")(**sizes | changes)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model: PreTrainedModel = getattr(transformers, THEIRS[family] + "Model")(config).eval()
        for parameter in model.parameters():
            spread = 0.3 if parameter.dim() != 2 else parameter.size(1) ** -0.5
            parameter.data.add_(spread * torch.randn(parameter.shape) if parameter.dim() != 3 else 0)
    return model


def fairseq_state(model: PreTrainedModel) -> dict[str, Tensor]:
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
            if model.config.model_type == "wavlm":
                ours[f"{at}self_attn.grep_linear.{part}"] = state[f"{at}attention.gru_rel_pos_linear.{part}"]
                ours[f"{at}self_attn.grep_a"] = state[f"{at}attention.gru_rel_pos_const"]
    if model.config.model_type == "wavlm":
        bias = state["encoder.layers.0.attention.rel_attn_embed.weight"]
        ours["encoder.layers.0.self_attn.relative_attention_bias.weight"] = bias
    return ours


def settings(norm: str, family: str = "hubert") -> dict[str, Any]:
    large = norm == "layer"
    made = {
        "_name": family, "extractor_mode": "layer_norm" if large else "default", "conv_bias": large,
        "layer_norm_first": large, "encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 48,
        "encoder_attention_heads": 2, "conv_feature_layers": LAYERS, "conv_pos": 8, "conv_pos_groups": 4,
        "activation_fn": "gelu", "feature_grad_mult": 0.1,
    }  # fmt: skip
    if family == "wavlm":
        made |= {"relative_position_embedding": True, "gru_rel_pos": True, "num_buckets": 16, "max_distance": 40}
    return made


HEADS = {
    "hubert": "label_embs_concat",
    "wav2vec2": "quantizer.vars",
    "wavlm": "label_embs_concat",
    "unispeech": "quantizer.vars",
    "unispeech_sat": "spk_proj.weight",
}
"""Family -> a weight of its pre-training."""


def newer(model: dict[str, Any], state: dict[str, Tensor], normalize: bool) -> dict[str, Any]:
    heads = {HEADS[model["_name"]]: torch.zeros(5, 4), "final_proj.weight": torch.zeros(4, 32)}
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


def older_fine_tuned(model: dict[str, Any], state: dict[str, Tensor], normalize: bool) -> dict[str, Any]:
    inside = older(model, state, normalize)["args"]
    made = fine_tuned(model, state, normalize)
    return {
        "args": argparse.Namespace(arch="wav2vec_ctc", w2v_args=inside, normalize=normalize),
        "model": made["model"],
    }


def inside_its_own_head(model: dict[str, Any], state: dict[str, Tensor], normalize: bool) -> dict[str, Any]:
    """As UniSpeech is pre-trained: with the prefix of a fine-tuned model, and settings of its own."""
    made = newer(model, state, normalize)
    weights = {f"w2v_encoder.w2v_model.{k}": v for k, v in made["model"].items()}
    return {**made, "model": {**weights, "w2v_encoder.proj.weight": torch.zeros(7, 32)}}


def s3prl(model: dict[str, Any], state: dict[str, Tensor], normalize: bool) -> dict[str, Any]:
    return {"task_cfg": {"normalize": normalize}, "model_cfg": model, "model_weight": state, "dictionaries_symbols": []}


def half(model: dict[str, Any], state: dict[str, Tensor], normalize: bool) -> dict[str, Any]:
    return newer(model, {k: v.half() for k, v in state.items()}, normalize)


def microsoft(model: dict[str, Any], state: dict[str, Tensor], normalize: bool) -> dict[str, Any]:
    """One level of settings without a name; WavLM is published so, and UniSpeech-SAT in S3PRL."""
    flat = {**{k: v for k, v in model.items() if k != "_name"}, "normalize": normalize}
    return {"cfg": flat, "model": state}


FORMS = (newer, newer_omegaconf, older, fine_tuned, older_fine_tuned, inside_its_own_head, s3prl, half)
CASES = [
    *[(family, norm, form) for family in THEIRS for norm in ("group", "layer") for form in FORMS],
    *[(family, norm, microsoft) for family in ("wavlm", "unispeech_sat") for norm in ("group", "layer")],
]


@torch.no_grad()
def check_numbers(upstream: Upstream, model: PreTrainedModel) -> None:
    waveform = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    values = torch.nn.functional.layer_norm(waveform, waveform.shape[-1:]) if upstream.normalize else waveform
    out = model(values, output_hidden_states=True)
    expected = [*out.hidden_states[:-1], out.last_hidden_state]  # transformers 5 leaves out the closing norm
    found = upstream(waveform).hidden_states
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parity(".pt ({form})", "transformers")
@pytest.mark.parametrize(("family", "norm", "form"), CASES)
def test_fairseq_checkpoints_give_the_numbers_of_transformers(
    family: str, norm: str, form: Callable[..., Any], tmp_path: Path
) -> None:
    model, path = theirs(norm, family), tmp_path / "model.pt"
    if form is half:
        model.load_state_dict({k: v.half().float() for k, v in model.state_dict().items()})
    torch.save(form(settings(norm, family), fairseq_state(model), norm == "layer"), path)
    upstream = load_upstream(path)
    assert (upstream.family, upstream.normalize, upstream.weights) == (family, norm == "layer", str(path))
    check_numbers(upstream, model)


@pytest.mark.parametrize("form", [newer, newer_omegaconf, older, fine_tuned, microsoft])
def test_files_of_before_torch_1_6_are_read(form: Callable[..., Any], tmp_path: Path) -> None:
    model, path = theirs("layer", "wavlm"), tmp_path / "model.pt"
    content = form(settings("layer", "wavlm"), fairseq_state(model), True)
    torch.save(content, path, _use_new_zipfile_serialization=False)
    check_numbers(load_upstream(path), model)


def whole(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)


def in_shards(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").is_file()


def in_one_bin(model: PreTrainedModel, folder: Path) -> None:
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def with_old_weight_norm(model: PreTrainedModel, folder: Path) -> None:
    model.config.save_pretrained(folder)
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = model.state_dict()
    for new, old in names.items():
        state[f"encoder.pos_conv_embed.conv.{old}"] = state.pop(f"encoder.pos_conv_embed.conv.{new}")
    torch.save(state, folder / "pytorch_model.bin")


def in_shards_of_bin(model: PreTrainedModel, folder: Path) -> None:
    model.config.save_pretrained(folder)
    places = {}
    for number, (name, value) in enumerate(sorted(model.state_dict().items())):
        places[name] = f"pytorch_model-{1 + number % 2:05d}-of-00002.bin"
        torch.save({**_saved(folder / places[name]), name: value}, folder / places[name])
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))


def _saved(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True) if path.is_file() else {}


def below_the_name_of_the_model(model: PreTrainedModel, folder: Path) -> None:
    """As in models with a head, one of whose weights might be taken for the upstream's."""
    model.config.save_pretrained(folder)
    prefix = f"{model.base_model_prefix}."
    state = {prefix + name: value.clone() for name, value in model.state_dict().items()}
    save_file({**state, "feature_extractor.weight": torch.zeros(3, 4)}, folder / "model.safetensors")


FOLDERS = (whole, in_shards, in_one_bin, with_old_weight_norm, in_shards_of_bin, below_the_name_of_the_model)


@pytest.mark.parity("transformers folder ({form})", "transformers")
@pytest.mark.parametrize("family", THEIRS)
@pytest.mark.parametrize("form", FOLDERS)
def test_transformers_folders_give_its_numbers(
    family: str, form: Callable[[PreTrainedModel, Path], None], tmp_path: Path
) -> None:
    model = theirs("layer" if form is whole else "group", family)
    form(model, tmp_path)
    upstream = load_upstream(tmp_path)
    assert upstream.family == family
    check_numbers(upstream, model)


@pytest.mark.parametrize(
    ("model", "task", "rate"),
    [
        ({}, {"label_rate": 50.0}, 50.0),
        ({"label_rate": 100}, {}, 100.0),
        ({"label_rate": "${task.label_rate}"}, {"label_rate": 25}, 25.0),
        ({}, {"label_rate": -1}, None),
        ({}, {}, None),
    ],
)
def test_the_sampling_rate_and_the_label_rate_come_with_the_checkpoint(
    model: dict[str, Any], task: dict[str, Any], rate: float | None, tmp_path: Path
) -> None:
    content = newer(settings("group") | model, fairseq_state(theirs("group")), False)
    content["cfg"]["task"] |= {"sample_rate": 8_000, **task}
    torch.save(content, tmp_path / "model.pt")
    upstream = load_upstream(tmp_path / "model.pt")
    assert (upstream.sample_rate, upstream.config.label_rate) == (8_000, rate)
    export_upstream(tmp_path / "model.pt", tmp_path / "ours", to="speechssl")
    assert load_upstream(tmp_path / "ours").config == upstream.config


def contentvec(norm: str) -> tuple[PreTrainedModel, dict[str, Any]]:
    """With conditional blocks above, as `ContentVec` (not legacy) is published."""
    model = theirs(norm)
    state = fairseq_state(model)
    above = {key.replace("layers.1.", "layers.2."): v for key, v in state.items() if "encoder.layers.1." in key}
    norms = {"encoder.layers.2.final_layer_norm.weight_ln.weight": torch.zeros(32, 7)}
    heads = {"encoder.cond_layer_norm.bias_ln.weight": torch.zeros(32, 7), "layer_proj.weight": torch.zeros(4, 32)}
    model_settings = {**settings(norm), "_name": "contentvec", "encoder_layers_1": 1}
    content = {"cfg": {"model": model_settings, "task": {"normalize": False}}, "model": {**state, **above, **norms}}
    content["model"].update({**heads, "label_embs_concat": torch.zeros(5, 4)})
    return model, content


def test_contentvec_loads_as_hubert_without_the_blocks_that_are_told_the_speaker(tmp_path: Path) -> None:
    model, content = contentvec("group")
    torch.save(content, tmp_path / "model.pt")
    upstream = load_upstream(tmp_path / "model.pt")
    assert upstream.family == "hubert"
    check_numbers(upstream, model)


def test_hubert_with_supervised_layers_in_between_loads_as_hubert(tmp_path: Path) -> None:
    model = theirs("group")
    heads = {"final_proj.0.weight": torch.zeros(4, 32), "final_proj.1.weight": torch.zeros(4, 32)}
    content = {
        "cfg": {"model": {**settings("group"), "_name": "ils_hubert", "predict_layers": "[1, 2]"}, "task": {}},
        "model": {**fairseq_state(model), **heads, "weights": torch.zeros(2)},
    }
    torch.save(content, tmp_path / "model.pt")
    check_numbers(load_upstream(tmp_path / "model.pt"), model)


FAMILIES_IN_ERRORS = [
    ("hubert", "encoder.layers.1.fc2.bias"),
    ("hubert", "layer_norm.weight"),
    ("wav2vec2", "feature_extractor.conv_layers.2.0.weight"),
    ("wav2vec2", "encoder.pos_conv.0.bias"),
    ("wavlm", "encoder.layers.0.self_attn.grep_a"),
    ("wavlm", "encoder.layers.1.self_attn.grep_linear.weight"),
    ("wavlm", "encoder.layers.0.self_attn.relative_attention_bias.weight"),
    ("unispeech_sat", "encoder.layer_norm.bias"),
]


@pytest.mark.parametrize(("family", "name"), FAMILIES_IN_ERRORS)
def test_a_missing_weight_is_named_as_the_file_would(family: str, name: str, tmp_path: Path) -> None:
    state = fairseq_state(theirs("group", family))
    del state[name]
    torch.save(newer(settings("group", family), state, False), tmp_path / "model.pt")
    with pytest.raises(SpeechsslError) as error:
        load_upstream(tmp_path / "model.pt")
    assert f"they lack '{name}'." in str(error.value)


def test_a_missing_projection_of_attention_is_named_with_the_other_two(tmp_path: Path) -> None:
    state = fairseq_state(theirs("group"))
    del state["encoder.layers.1.self_attn.k_proj.weight"]
    torch.save(newer(settings("group"), state, False), tmp_path / "model.pt")
    with pytest.raises(SpeechsslError, match=r"lack 'encoder\.layers\.1\.self_attn\.\{q,k,v\}_proj\.weight'"):
        load_upstream(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["encoder.layers.0.stray.weight", "stray", "encoder.layers.7.fc1.bias"])
def test_a_stray_weight_is_named_as_the_file_does(name: str, tmp_path: Path) -> None:
    state = {**fairseq_state(theirs("group")), name: torch.zeros(3)}
    torch.save(newer(settings("group"), state, False), tmp_path / "model.pt")
    with pytest.raises(SpeechsslError) as error:
        load_upstream(tmp_path / "model.pt")
    assert f"they unexpectedly hold '{name}'." in str(error.value)
    assert len(str(error.value)) < 300  # names that are not near are no help


def test_a_weight_of_another_shape_is_named_as_the_file_does(tmp_path: Path) -> None:
    state = {**fairseq_state(theirs("group")), "encoder.layers.0.fc1.bias": torch.zeros(3)}
    torch.save(newer(settings("group"), state, False), tmp_path / "model.pt")
    with pytest.raises(SpeechsslError, match=r"'encoder\.layers\.0\.fc1\.bias' must have shape \(48,\)"):
        load_upstream(tmp_path / "model.pt")
