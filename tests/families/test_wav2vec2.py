"""wav2vec 2.0 against transformers and torchaudio; what it shares with HuBERT is tested there."""

from pathlib import Path

import pytest
import torch
import torchaudio
from contextual_parity import LARGE, check_padded_parity, check_parity, check_round_trip, noise, their_model
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining, Wav2Vec2Model

from speechssl.loading import load_upstream
from upstreams.wav2vec2.config import PRESETS
from upstreams.wav2vec2.model import build

LV60 = {**LARGE, "conv_bias": True}


@pytest.mark.parity("transformers", "transformers")
@pytest.mark.parametrize("changes", [{}, LV60], ids=["base", "large"])
def test_hidden_states_equal_transformers(changes: dict[str, object], tmp_path: Path) -> None:
    model = their_model(Wav2Vec2ForPreTraining, Wav2Vec2Config, **changes)
    model.save_pretrained(tmp_path)  # with the quantizer, which is no part of the upstream
    upstream = load_upstream(tmp_path)
    assert (upstream.family, upstream.normalize) == ("wav2vec2", bool(changes))
    check_parity(model.wav2vec2, upstream, noise(40_000))


@pytest.mark.parity("transformers, padded batch", "transformers")
def test_padded_batches_equal_transformers(tmp_path: Path) -> None:
    model = their_model(Wav2Vec2Model, Wav2Vec2Config, **LV60)
    model.save_pretrained(tmp_path)
    check_padded_parity(model, load_upstream(tmp_path))


@pytest.mark.parametrize("changes", [{}, LV60], ids=["base", "large"])
def test_export_gives_transformers_its_own_model_back(changes: dict[str, object], tmp_path: Path) -> None:
    check_round_trip(their_model(Wav2Vec2Model, Wav2Vec2Config, **changes), tmp_path)


@pytest.mark.parametrize(
    ("name", "builder", "count"),
    [
        ("wav2vec2_base", torchaudio.models.wav2vec2_base, 94_370_944),
        ("wav2vec2_large", torchaudio.models.wav2vec2_large, 315_427_968),
        ("wav2vec2_large_lv60", torchaudio.models.wav2vec2_large_lv60k, 315_437_696),
        ("wav2vec2_xls_r_300m", torchaudio.models.wav2vec2_xlsr_300m, 315_437_696),
        ("wav2vec2_xls_r_1b", torchaudio.models.wav2vec2_xlsr_1b, 962_496_128),
        ("wav2vec2_voxpopuli_base_100k", torchaudio.models.wav2vec2_base, 94_370_944),
        ("wav2vec2_voxpopuli_large_100k", torchaudio.models.wav2vec2_large_lv60k, 315_437_696),
        ("wav2vec2_xls_r_2b", torchaudio.models.wav2vec2_xlsr_2b, 2_159_257_728),
    ],
)
def test_presets_have_the_published_shapes(name: str, builder: object, count: int) -> None:
    with torch.device("meta"):
        ours, theirs = build(PRESETS[name]), builder()  # type: ignore[operator]  # a builder of torchaudio
    parameters = sum(p.numel() for p in ours.parameters()) - ours.mask_embedding.numel()
    assert parameters == sum(p.numel() for p in theirs.parameters()) == count
