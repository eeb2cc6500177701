"""DistilHuBERT against transformers' HuBERT without a norm of its features, and from S3PRL's format."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from contextual_parity import check_parity_row_by_row, their_model
from fairseq_weights import fairseq_weights
from transformers import HubertConfig as TheirConfig
from transformers import HubertModel

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.export import export_upstream
from speechssl.loading import load_upstream
from upstreams.distilhubert.config import PRESETS
from upstreams.distilhubert.model import build


@pytest.fixture(scope="module")
def model() -> Any:
    return their_model(HubertModel, TheirConfig, num_hidden_layers=2, feat_proj_layer_norm=False)


def s3prl(model: HubertModel, **changes: Any) -> dict[str, Any]:
    """What S3PRL's runner saves, with its names."""
    state = fairseq_weights(model.state_dict(), norm="group")
    del state["mask_emb"]  # S3PRL's model has none
    heads = {"output_layer.0.weight": torch.zeros(128, 64), "output_layer.2.weight": torch.zeros(2, 64, 64)}
    settings = {
        "extractor_mode": "default", "extractor_conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2",
        "encoder_layers": 2, "encoder_embed_dim": 64, "encoder_ffn_embed_dim": 128, "encoder_attention_heads": 4,
        "n_tasks": 2, "pred_layer_id": [4, 12], **changes,
    }  # fmt: skip
    return {
        "Optimizer": {"state": {}, "param_groups": [{"lr": 2e-4}]}, "Step": 200_000,
        "Args": argparse.Namespace(upstream="distiller"), "Runner": {"runner": {"n_epochs": -1}},
        "Config": {"distiller": settings, "teacher": {"model": "hubert_base"}}, "Distiller": {**state, **heads},
    }  # fmt: skip


@pytest.mark.parity("S3PRL's .ckpt", "transformers")
def test_s3prls_checkpoint_gives_the_numbers_of_transformers_and_goes_there(model: HubertModel, tmp_path: Path) -> None:
    torch.save(s3prl(model), tmp_path / "distilhubert_ls960_4-8-12.ckpt")
    upstream = load_upstream(tmp_path / "distilhubert_ls960_4-8-12.ckpt")
    assert (upstream.family, upstream.normalize) == ("distilhubert", False)
    check_parity_row_by_row(model, upstream)
    export_upstream(tmp_path / "distilhubert_ls960_4-8-12.ckpt", tmp_path / "back", to="transformers")
    again = HubertModel.from_pretrained(tmp_path / "back").eval()
    check_parity_row_by_row(again, upstream)
    theirs = model.state_dict()
    for key, value in again.state_dict().items():
        assert key == "masked_spec_embed" or torch.equal(value, theirs[key]), key


@pytest.mark.parity("transformers", "transformers")
def test_transformers_folder_loads_as_hubert_and_goes_back_bit_for_bit(model: HubertModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "theirs")
    upstream = load_upstream(tmp_path / "theirs")
    assert upstream.family == "hubert"
    check_parity_row_by_row(model, upstream)
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
