"""DistilHuBERT against transformers' HuBERT without a norm of its features, and from S3PRL's format."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import HubertConfig as TheirConfig
from transformers import HubertModel

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.export import export_upstream
from speechssl.loading import load_upstream
from upstreams.distilhubert.config import PRESETS
from upstreams.distilhubert.model import build

SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "conv_dim": [32] * 7,
    "feat_proj_layer_norm": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> HubertModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = HubertModel(TheirConfig(**SMALL)).eval()
        for parameter in model.parameters():
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    return model


@torch.no_grad()
def check_parity(model: HubertModel, upstream: Any) -> None:
    waveform = 0.1 * torch.randn(2, 9_000, generator=torch.Generator().manual_seed(0)) + 0.01
    out = upstream(waveform, torch.tensor([9_000, 5_000]))
    for row, length in enumerate((9_000, 5_000)):
        theirs = model(waveform[row : row + 1, :length], output_hidden_states=True).hidden_states
        assert len(out.hidden_states) == len(theirs) == 3
        for a, b in zip(out.hidden_states, theirs, strict=True):
            torch.testing.assert_close(a[row, : b.size(1)], b[0], rtol=0, atol=1e-4)


def s3prl(model: HubertModel, **changes: Any) -> dict[str, Any]:
    """What S3PRL's runner saves, with its names."""
    state: dict[str, Tensor] = {}
    for theirs, value in model.state_dict().items():
        key = theirs.replace("feature_projection.projection", "post_extract_proj").replace("attention.", "self_attn.")
        key = key.replace(".pos_conv_embed.conv.", ".pos_conv.0.").replace(
            "parametrizations.weight.original0", "weight_g"
        )
        key = key.replace("parametrizations.weight.original1", "weight_v")
        if "conv_layers" in key:
            key = key.replace(".conv.", ".0.").replace(".layer_norm.", ".2.")
        elif "encoder.layers" in key:
            key = key.replace(".layer_norm.", ".self_attn_layer_norm.")
        key = key.replace("feed_forward.intermediate_dense", "fc1").replace("feed_forward.output_dense", "fc2")
        if key != "masked_spec_embed":
            state[key] = value
    heads = {"output_layer.0.weight": torch.zeros(128, 64), "output_layer.2.weight": torch.zeros(2, 64, 64)}
    settings = {
        "extractor_mode": "default", "extractor_conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2",
        "encoder_layers": 2, "encoder_embed_dim": 64, "encoder_ffn_embed_dim": 96, "encoder_attention_heads": 4,
        "n_tasks": 2, "pred_layer_id": [4, 12], **changes,
    }  # fmt: skip
    return {
        "Optimizer": {"state": {}, "param_groups": [{"lr": 2e-4}]}, "Step": 200_000,
        "Args": argparse.Namespace(upstream="distiller"), "Runner": {"runner": {"n_epochs": -1}},
        "Config": {"distiller": settings, "teacher": {"model": "hubert_base"}}, "Distiller": {**state, **heads},
    }  # fmt: skip


def test_s3prls_checkpoint_gives_the_numbers_of_transformers_and_goes_there(model: HubertModel, tmp_path: Path) -> None:
    torch.save(s3prl(model), tmp_path / "distilhubert_ls960_4-8-12.ckpt")
    upstream = load_upstream(tmp_path / "distilhubert_ls960_4-8-12.ckpt")
    assert (upstream.family, upstream.normalize) == ("distilhubert", False)
    check_parity(model, upstream)
    export_upstream(tmp_path / "distilhubert_ls960_4-8-12.ckpt", tmp_path / "back", to="transformers")
    again = HubertModel.from_pretrained(tmp_path / "back").eval()
    check_parity(again, upstream)
    theirs = model.state_dict()
    for key, value in again.state_dict().items():
        assert key == "masked_spec_embed" or torch.equal(value, theirs[key]), key


def test_transformers_folder_loads_as_hubert_and_goes_back_bit_for_bit(model: HubertModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "theirs")
    upstream = load_upstream(tmp_path / "theirs")
    assert upstream.family == "hubert"
    check_parity(model, upstream)
    export_upstream(tmp_path / "theirs", tmp_path / "back", to="transformers")
    again = HubertModel.from_pretrained(tmp_path / "back")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_the_preset_has_the_published_shape() -> None:
    with torch.device("meta"):
        ours = build(PRESETS["distilhubert"])
        theirs = HubertModel(TheirConfig(num_hidden_layers=2, feat_proj_layer_norm=False))
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters()) == 23_491_968


@pytest.mark.parametrize("change", [{"attention_type": "sparse"}, {"task_emb_type": "add"}, {"activation_fn": "relu"}])
def test_parts_that_the_published_model_has_not_are_named(
    change: dict[str, str], model: HubertModel, tmp_path: Path
) -> None:
    torch.save(s3prl(model, **change), tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match=f"`{next(iter(change))}` of .*x.ckpt"):
        load_upstream(tmp_path / "x.ckpt")


def test_damage_is_one_sentence(model: HubertModel, tmp_path: Path) -> None:
    content = s3prl(model)
    torch.save({**content, "Config": {}}, tmp_path / "x.ckpt")
    with pytest.raises(SpeechsslError, match=r"x\.ckpt must hold 'Config' with 'distiller'"):
        load_upstream(tmp_path / "x.ckpt")
    del content["Distiller"]["post_extract_proj.bias"]
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(SpeechsslError, match=r"lack 'post_extract_proj\.bias'"):
        load_upstream(tmp_path / "x.ckpt")
