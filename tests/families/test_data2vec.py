"""data2vec for speech against transformers, in its formats and in fairseq's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from contextual_parity import check_parity_row_by_row, their_model
from fairseq_weights import fairseq_weights
from omegaconf import OmegaConf
from transformers import Data2VecAudioConfig as TheirConfig
from transformers import Data2VecAudioForCTC, Data2VecAudioModel, Wav2Vec2FeatureExtractor

from speechssl.contextual.model import ContextualUpstream
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.export import export_upstream
from speechssl.loading import build_upstream, load_upstream
from upstreams.data2vec.config import PRESETS, Data2VecConfig
from upstreams.data2vec.convert import FORMATS
from upstreams.data2vec.model import build


@pytest.mark.parity("transformers", "transformers")
@pytest.mark.parametrize(
    "changes",
    [{}, {"conv_bias": True, "conv_pos_kernel_size": 6, "num_conv_pos_embeddings": 3}],
    ids=["published", "other shapes"],
)
def test_hidden_states_equal_transformers_and_go_back_bit_for_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    model = their_model(Data2VecAudioForCTC, TheirConfig, **changes)
    model.save_pretrained(tmp_path / "theirs")  # fine-tuned: with a prefix and a head
    upstream = load_upstream(tmp_path / "theirs")
    assert (upstream.family, upstream.normalize) == ("data2vec", True)
    check_parity_row_by_row(model.data2vec_audio, upstream)
    export_upstream(tmp_path / "theirs", tmp_path / "ours", to="speechssl")
    export_upstream(tmp_path / "ours", tmp_path / "back", to="transformers")
    again = Data2VecAudioModel.from_pretrained(tmp_path / "back").eval()
    assert again.state_dict().keys() == model.data2vec_audio.state_dict().keys()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.data2vec_audio.state_dict().items())
    assert Wav2Vec2FeatureExtractor.from_pretrained(tmp_path / "back").do_normalize
    check_parity_row_by_row(again, load_upstream(tmp_path / "back"))


def fairseq_state(model: Data2VecAudioModel) -> dict[str, Any]:
    """The names that fairseq gives these weights, its teacher among them."""
    state = fairseq_weights(model.state_dict(), norm="layer")
    teacher = {k.removeprefix("encoder."): v + 1.0 for k, v in state.items() if k.startswith("encoder.layers")}
    return {**state, "_ema": teacher, "final_proj.weight": torch.zeros(64, 64), "final_proj.bias": torch.zeros(64)}


SETTINGS = {
    "_name": "data2vec_audio", "extractor_mode": "layer_norm", "encoder_layers": 3, "encoder_embed_dim": 64,
    "encoder_ffn_embed_dim": 128, "encoder_attention_heads": 4, "conv_pos": 95, "pos_conv_depth": 5,
    "conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2", "ema_decay": 0.999,
}  # fmt: skip


@pytest.mark.parity("fairseq .pt ({form})", "transformers")
@pytest.mark.parametrize("form", ["pre-trained", "fine-tuned"])
def test_fairseq_checkpoints_give_the_student_and_not_its_teacher(form: str, tmp_path: Path) -> None:
    model = their_model(Data2VecAudioForCTC, TheirConfig).data2vec_audio
    state, settings = fairseq_state(model), OmegaConf.create({"model": SETTINGS, "task": {"normalize": True}})
    content: dict[str, Any] = {"cfg": settings, "model": state}
    if form == "fine-tuned":
        state = {f"w2v_encoder.w2v_model.{k}": v for k, v in state.items() if not k.startswith("final_proj")}
        state["w2v_encoder.proj.weight"] = torch.zeros(9, 64)
        outer = {"_name": "wav2vec_ctc", "w2v_args": settings}
        content = {"cfg": {"model": outer, "task": {"normalize": True}}, "model": state}
    torch.save(content, tmp_path / "audio_base_ls.pt")
    upstream = load_upstream(tmp_path / "audio_base_ls.pt")
    assert upstream.family == "data2vec"
    check_parity_row_by_row(model, upstream)


@pytest.mark.parametrize(
    ("name", "sizes", "count"),
    [
        ("data2vec_base", {}, 93_164_288),
        ("data2vec_large", {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
                            "intermediate_size": 4096}, 313_276_416),
    ],
)  # fmt: skip
def test_presets_have_the_published_shapes(name: str, sizes: dict[str, int], count: int) -> None:
    with torch.device("meta"):
        ours, theirs = build(PRESETS[name]), Data2VecAudioModel(TheirConfig(**sizes))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == count


def test_what_transformers_can_not_express_is_one_sentence() -> None:
    config = Data2VecConfig(pre_norm=True)
    with pytest.raises(ConfigError, match=r"no Data2VecAudioModel with .*pre_norm"):
        FORMATS.write_transformers(config, {})


def test_a_missing_convolution_is_named(tmp_path: Path) -> None:
    state = fairseq_state(their_model(Data2VecAudioForCTC, TheirConfig).data2vec_audio)
    del state["encoder.pos_conv.4.0.weight"]
    torch.save({"cfg": {"model": SETTINGS, "task": {}}, "model": state}, tmp_path / "x.pt")
    with pytest.raises(SpeechsslError, match=r"lack 'encoder\.pos_conv\.4\.0\.weight'"):
        load_upstream(tmp_path / "x.pt")


def test_positions_reach_as_far_as_the_five_convolutions_together() -> None:
    upstream = build_upstream("data2vec", Data2VecConfig(width=32, heads=2, depth=1, ffn_width=32), seed=0)
    assert isinstance(upstream, ContextualUpstream)
    x = torch.randn(1, 200, 32, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 100] += 1.0
    position = upstream.encoder.position
    moved = torch.nonzero((position(x) - position(changed)).abs().sum(dim=2)[0] > 0).flatten()
    assert (int(moved.min()), int(moved.max())) == (100 - 5 * 9, 100 + 5 * 9)
