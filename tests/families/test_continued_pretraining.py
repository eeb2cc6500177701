"""Pre-training that goes on from a checkpoint in the format of another library."""

import pytest
import torch
from contextual_parity import check_parity, noise, their_model
from fairseq_weights import fairseq_weights
from pretraining_runs import FAST, write_labels
from transformers import HubertConfig, HubertModel

from speechssl.errors import SpeechsslError
from speechssl.loading import load_upstream
from speechssl.train.run import pretrain

SETTINGS = {
    "_name": "hubert", "encoder_layers": 3, "encoder_embed_dim": 64, "encoder_ffn_embed_dim": 128,
    "encoder_attention_heads": 4, "conv_pos": 128, "conv_pos_groups": 16, "extractor_mode": "default",
    "conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2", "label_rate": 50,
}  # fmt: skip


def save(model, kind, path):
    if kind == "transformers":
        model.save_pretrained(path)
        return path
    state = fairseq_weights(model.state_dict(), norm="group") | {"final_proj.weight": torch.zeros(16, 64)}
    task = {"_name": "hubert_pretraining", "normalize": False, "sample_rate": 16_000}
    path.mkdir()
    torch.save({"cfg": {"model": SETTINGS, "task": task}, "model": state}, path / "checkpoint.pt")
    return path / "checkpoint.pt"


@pytest.mark.parametrize("kind", ["fairseq", "transformers"])
def test_a_run_starts_from_a_checkpoint_of_another_library(kind, tiny_corpus, tmp_path):
    model = their_model(HubertModel, HubertConfig, vocab_size=12)
    given = save(model, kind, tmp_path / kind)
    labels = write_labels(tiny_corpus, tmp_path / "labels")
    fast = [s for s in FAST if not s.startswith("model.")]
    shape = vars(load_upstream(given).config)
    names = ("conv_channels", "width", "depth", "heads", "ffn_width", "pos_kernel", "pos_groups")
    overrides = (*fast, *(f"model.{name}={shape[name]}" for name in names), "train.steps=3")
    still = (*overrides, "train.learning_rate=0", "train.precision=float32")
    pretrain("hubert_base", corpus=tiny_corpus, labels=[labels], output=tmp_path / "still", init=given, overrides=still)
    check_parity(model, load_upstream(tmp_path / "still"), noise())  # nothing was lost on the way in
    pretrain(
        "hubert_base", corpus=tiny_corpus, labels=[labels], output=tmp_path / "moved", init=given, overrides=overrides
    )
    before, after = load_upstream(given).state_dict(), load_upstream(tmp_path / "moved").state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) > 0.8 * len(before)
    with pytest.raises(SpeechsslError, match="must have shape"):
        pretrain(
            "hubert_base", corpus=tiny_corpus, labels=[labels], output=tmp_path / "other", init=given,
            overrides=(*overrides, "model.ffn_width=80"),
        )  # fmt: skip
