"""The adapters of MMS, and the convolutions that some models have after their last block, against transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from contextual_parity import LARGE, check_parity_row_by_row, their_model
from fairseq_weights import fairseq_weights
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor
from transformers import Wav2Vec2Config as TheirConfig
from transformers import Wav2Vec2ForCTC, Wav2Vec2Model

from speechssl.errors import ConfigError, SpeechsslError, UnknownNameError
from speechssl.export import export_upstream
from speechssl.loading import build_upstream, load_upstream
from upstreams.wav2vec2.config import PRESETS, Wav2Vec2Config
from upstreams.wav2vec2.convert import FORMATS
from upstreams.wav2vec2.model import Wav2Vec2Upstream, build

LAYERS = {**LARGE, "conv_bias": True, "vocab_size": 12}


def model_with_adapters(**changes: Any) -> Any:
    return their_model(Wav2Vec2ForCTC, TheirConfig, **{**LAYERS, "adapter_attn_dim": 8, **changes})


def adapters_of(model: Any) -> dict[str, Tensor]:
    """What transformers saves for a language: the adapters and the head."""
    return {key: value.detach().clone() for key, value in model._get_adapters().items()}


def other_language(model: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {key: torch.randn(value.shape, generator=generator) for key, value in adapters_of(model).items()}


@pytest.mark.parity("transformers (MMS)", "transformers", family="wav2vec2")
def test_models_with_adapters_equal_transformers_and_go_back_bit_for_bit(tmp_path: Path) -> None:
    model = model_with_adapters()
    model.save_pretrained(tmp_path / "theirs")
    save_file(other_language(model), tmp_path / "theirs" / "adapter.fra.safetensors")  # beside the model's own
    upstream = load_upstream(tmp_path / "theirs")
    assert upstream.config.adapter_width == 8
    check_parity_row_by_row(model.wav2vec2, upstream)
    export_upstream(tmp_path / "theirs", tmp_path / "ours", to="speechssl")
    export_upstream(tmp_path / "ours", tmp_path / "back", to="transformers")
    again = Wav2Vec2Model.from_pretrained(tmp_path / "back").state_dict()
    assert again.keys() == model.wav2vec2.state_dict().keys()
    assert all(torch.equal(value, again[name]) for name, value in model.wav2vec2.state_dict().items())


@pytest.mark.parity("adapter of a language ({form})", "transformers", family="wav2vec2")
@pytest.mark.parametrize("form", ["file", "folder", "bin"])
def test_another_languages_adapter_gives_what_transformers_gives_with_it(form: str, tmp_path: Path) -> None:
    model = model_with_adapters()
    model.save_pretrained(tmp_path)
    upstream = load_upstream(tmp_path)
    before = upstream.fingerprint()
    other = other_language(model)
    if form == "bin":
        torch.save(other, tmp_path / "adapter.fra.bin")
    else:
        save_file(other, tmp_path / "adapter.fra.safetensors")
    assert isinstance(upstream, Wav2Vec2Upstream)
    if form == "file":
        upstream.load_adapter(tmp_path / "adapter.fra.safetensors")
    else:
        upstream.load_adapter(tmp_path, language="fra")
    assert upstream.fingerprint() != before
    assert "fra" in upstream.weights
    model.load_state_dict(other, strict=False)
    check_parity_row_by_row(model.wav2vec2, upstream)


def fairseq_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a model fine-tuned with CTC."""
    inside = {k.removeprefix("wav2vec2."): v for k, v in state.items() if not k.startswith("lm_head.")}
    head = {f"w2v_encoder.proj.{k.removeprefix('lm_head.')}": v for k, v in state.items() if k.startswith("lm_head.")}
    return {f"w2v_encoder.w2v_model.{k}": v for k, v in fairseq_weights(inside, norm="layer").items()} | head


def fairseq(model: Any) -> dict[str, Any]:
    settings = {
        "_name": "wav2vec2", "extractor_mode": "layer_norm", "conv_bias": True, "layer_norm_first": True,
        "encoder_layers": 3, "encoder_embed_dim": 64, "encoder_ffn_embed_dim": 128, "encoder_attention_heads": 4,
        "conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2", "layer_type": "trf_adp",
        "adp_num": 1, "adp_dim": 8, "adp_act_fn": "relu", "adp_trf_idx": "all",
    }  # fmt: skip
    inner = OmegaConf.create({"model": settings, "task": {"normalize": True}})
    outer = {"_name": "wav2vec_ctc", "w2v_args": inner, "layer_type": "trf_adp", "adp_dim": 8}
    fra = fairseq_names(other_language(model))
    return {
        "cfg": {"model": outer, "task": {"normalize": True}}, "model": fairseq_names(model.state_dict()),
        "adapter": {"fra": {"model": fra, "task_state": {}}, "deu": {"model": fra, "task_state": {}}},
    }  # fmt: skip


@pytest.mark.parity("fairseq .pt (MMS)", "transformers", family="wav2vec2")
def test_fairseqs_checkpoint_with_all_languages_gives_the_same(tmp_path: Path) -> None:
    model, path = model_with_adapters(), tmp_path / "mms1b_all.pt"
    torch.save(fairseq(model), path)
    upstream = load_upstream(path)
    check_parity_row_by_row(model.wav2vec2, upstream)
    assert isinstance(upstream, Wav2Vec2Upstream)
    with pytest.raises(UnknownNameError, match=r"Unknown language 'fre'\. Did you mean 'fra'"):
        upstream.load_adapter(path, language="fre")
    with pytest.raises(SpeechsslError, match="name one by `language`, such as 'deu'"):
        upstream.load_adapter(path)
    upstream.load_adapter(path, language="fra")
    model.load_state_dict(other_language(model), strict=False)
    check_parity_row_by_row(model.wav2vec2, upstream)


def test_several_adapters_in_a_block_are_refused(tmp_path: Path) -> None:
    content = fairseq(model_with_adapters())
    content["model"] = {
        k: v.expand(2, *v.shape[1:]) if "adapter_layer" in k else v for k, v in content["model"].items()
    }
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match=r"x\.pt must hold one adapter"):
        load_upstream(tmp_path / "x.pt")


def test_wrong_adapters_are_one_sentence(tmp_path: Path) -> None:
    model = model_with_adapters()
    model.save_pretrained(tmp_path / "model")
    upstream = load_upstream(tmp_path / "model")
    assert isinstance(upstream, Wav2Vec2Upstream)
    before = upstream.fingerprint()
    save_file(adapters_of(model_with_adapters(adapter_attn_dim=4)), tmp_path / "adapter.fra.safetensors")
    with pytest.raises(SpeechsslError, match=r"must have shape \(8"):
        upstream.load_adapter(tmp_path / "adapter.fra.safetensors")
    with pytest.raises(SpeechsslError, match="unexpectedly hold"):
        save_file({"wav2vec2.something": torch.ones(2), **adapters_of(model)}, tmp_path / "adapter.fra.safetensors")
        upstream.load_adapter(tmp_path / "adapter.fra.safetensors")
    with pytest.raises(SpeechsslError, match="holds no adapter"):
        upstream.load_adapter(tmp_path / "model", language="fra")
    assert upstream.fingerprint() == before
    plain = build_upstream("wav2vec2", Wav2Vec2Config(conv_channels=8, width=16, heads=2, depth=1, ffn_width=8), seed=0)
    assert isinstance(plain, Wav2Vec2Upstream)
    with pytest.raises(SpeechsslError, match="has no adapters"):
        plain.load_adapter(tmp_path, language="fra")


def test_adapters_after_norms_that_come_after_are_ours_alone() -> None:
    with pytest.raises(ConfigError, match="no Wav2Vec2Model with adapter_width 8"):
        FORMATS.write_transformers(Wav2Vec2Config(adapter_width=8), {})


@pytest.mark.parity("transformers, with add_adapter", "transformers", family="wav2vec2")
@pytest.mark.parametrize("changes", [{}, {"do_stable_layer_norm": False, "feat_extract_norm": "group"}])
def test_convolutions_after_the_last_block_change_no_hidden_state(changes: dict[str, Any], tmp_path: Path) -> None:
    model = model_with_adapters(add_adapter=True, output_hidden_size=48, adapter_attn_dim=None, **changes)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": true}')
    upstream = load_upstream(tmp_path)
    assert not any("adapter" in key for key in upstream.state_dict())
    check_parity_row_by_row(model.wav2vec2, upstream)


@pytest.mark.parametrize("name", ["wav2vec2_mms_1b_all", "wav2vec2_mms_1b_fl102", "wav2vec2_mms_1b_l1107"])
def test_presets_have_the_shape_that_transformers_gives_them(name: str) -> None:
    large = {"hidden_size": 1280, "num_hidden_layers": 48, "num_attention_heads": 16, "intermediate_size": 5120}
    config = TheirConfig(**LAYERS | large | {"adapter_attn_dim": 16})
    with torch.device("meta"):
        ours, theirs = build(PRESETS[name]), Wav2Vec2Model(config)
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters()) == 962_497_408 + 48 * (2 * 16 * 1280 + 16 + 3 * 1280)
