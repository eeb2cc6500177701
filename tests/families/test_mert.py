"""MERT, which is HuBERT for music at 24 kHz, against transformers' HuBERT: its own code is not run here either."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from contextual_parity import check_parity_row_by_row, their_model
from fairseq_weights import fairseq_weights, old_weight_norm
from omegaconf import OmegaConf
from transformers import HubertConfig as TheirConfig
from transformers import HubertModel, Wav2Vec2FeatureExtractor

from speechssl.errors import ConfigError
from speechssl.export import export_upstream
from speechssl.loading import load_upstream
from upstreams.hubert.config import PRESETS
from upstreams.hubert.model import build

LARGE = {"do_stable_layer_norm": True, "hidden_dropout": 0.0}
MERT = {
    "model_type": "mert_model", "architectures": ["MERTModel"], "sample_rate": 24_000, "deepnorm": False,
    "feature_extractor_cqt": False, "feature_extractor_cqt_bins": 336, "attention_relax": -1.0,
    "auto_map": {"AutoConfig": "configuration_MERT.MERTConfig", "AutoModel": "modeling_MERT.MERTModel"},
}  # fmt: skip


def save(model: Any, folder: Path, **changes: Any) -> Path:
    """As the hub has it: pytorch_model.bin with weight norm's old names, and code that must not be run."""
    folder.mkdir()
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["conv_pos_batch_norm"]  # MERT's config is older
    (folder / "config.json").write_text(json.dumps({**config, **MERT, **changes}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "sampling_rate": 24_000}))
    (folder / "modeling_MERT.py").write_text("raise SystemExit('this was run')")
    torch.save(old_weight_norm(model.state_dict()), folder / "pytorch_model.bin")
    return folder


@pytest.mark.parity("transformers (MERT)", "transformers", family="hubert")
@pytest.mark.parametrize(("shape", "said"), [({}, {}), (LARGE, {"attention_relax": 32.0})], ids=["95M", "330M"])
def test_hidden_states_equal_transformers_hubert_and_go_there(
    shape: dict[str, Any], said: dict[str, Any], tmp_path: Path
) -> None:
    model = their_model(HubertModel, TheirConfig, **shape)
    upstream = load_upstream(save(model, tmp_path / "theirs", **said))
    assert (upstream.family, upstream.sample_rate, upstream.frame_rate) == ("hubert", 24_000, 75.0)
    assert upstream.normalize
    check_parity_row_by_row(model, upstream)
    export_upstream(tmp_path / "theirs", tmp_path / "back", to="transformers")
    again = HubertModel.from_pretrained(tmp_path / "back").eval()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert Wav2Vec2FeatureExtractor.from_pretrained(tmp_path / "back").sampling_rate == 24_000


def test_a_folder_without_a_preprocessor_is_heard_at_its_own_rate(tmp_path: Path) -> None:
    folder = save(their_model(HubertModel, TheirConfig), tmp_path / "theirs")
    (folder / "preprocessor_config.json").unlink()
    upstream = load_upstream(folder)
    assert (upstream.sample_rate, upstream.normalize) == (24_000, True)


@pytest.mark.parametrize("part", ["feature_extractor_cqt", "deepnorm"])
def test_parts_that_the_published_models_have_not_are_named(part: str, tmp_path: Path) -> None:
    save(their_model(HubertModel, TheirConfig), tmp_path / "theirs", **{part: True})
    with pytest.raises(ConfigError, match=f"`{part}` of .*theirs must be False"):
        load_upstream(tmp_path / "theirs")


def fairseq(model: Any, **changes: Any) -> dict[str, Any]:
    heads = {"label_embs_concat": torch.ones(9, 4), "encoder_cqt_model.fc.weight": torch.ones(336, 64),
             "encoder_cqt_model.spec_layer.cqt_kernels_real": torch.ones(3)}  # fmt: skip
    settings = {
        "_name": "mert", "extractor_mode": "default", "layer_norm_first": True, "encoder_layers": 3,
        "encoder_embed_dim": 64, "encoder_ffn_embed_dim": 128, "encoder_attention_heads": 4, "attention_relax": 32.0,
        "conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2", "deepnorm": False, **changes,
    }  # fmt: skip
    task = {"_name": "mert_pretraining", "normalize": False, "sample_rate": 24_000}
    return {
        "cfg": OmegaConf.create({"model": settings, "task": task}),
        "model": {**fairseq_weights(model.state_dict(), norm="group"), **heads},
    }


@pytest.mark.parity("fairseq .pt", "transformers", family="hubert")
def test_fairseqs_checkpoint_brings_its_rate_and_its_normalisation(tmp_path: Path) -> None:
    model = their_model(HubertModel, TheirConfig, **LARGE)
    torch.save(fairseq(model), tmp_path / "MERT.pt")
    upstream = load_upstream(tmp_path / "MERT.pt")
    assert (upstream.family, upstream.frame_rate, upstream.normalize) == ("hubert", 75.0, False)
    check_parity_row_by_row(model, upstream)
    torch.save(fairseq(model, subln=True), tmp_path / "MERT.pt")
    with pytest.raises(ConfigError, match="`subln`"):
        load_upstream(tmp_path / "MERT.pt")


@pytest.mark.parametrize(
    ("name", "sizes", "count"),
    [
        ("hubert_mert_95m", {}, 94_371_712),
        ("hubert_mert_330m", {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
                              "intermediate_size": 4096, **LARGE}, 315_428_992),
    ],
)  # fmt: skip
def test_presets_have_the_published_shapes(name: str, sizes: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        ours, theirs = build(PRESETS[name]), HubertModel(TheirConfig(**sizes))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == count
    assert (ours.sample_rate, ours.frame_rate) == (24_000, 75.0)
