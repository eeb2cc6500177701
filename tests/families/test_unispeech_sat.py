"""UniSpeech-SAT against transformers; its other formats are asked for in tests/contracts/test_file_formats.py."""

from pathlib import Path

import pytest
import torch
from contextual_parity import LARGE, check_padded_parity, check_parity, check_round_trip, noise, their_model
from transformers import (
    UniSpeechSatConfig,
    UniSpeechSatForCTC,
    UniSpeechSatForPreTraining,
    UniSpeechSatForXVector,
    UniSpeechSatModel,
)

from speechssl.errors import SpeechsslError
from speechssl.loading import load_upstream
from upstreams.unispeech_sat.config import PRESETS
from upstreams.unispeech_sat.model import build


@pytest.mark.parity("transformers", "transformers")
@pytest.mark.parametrize("changes", [{}, LARGE], ids=["base", "large"])
def test_hidden_states_equal_transformers(changes: dict[str, object], tmp_path: Path) -> None:
    model = their_model(UniSpeechSatModel, UniSpeechSatConfig, **changes)
    model.save_pretrained(tmp_path)
    upstream = load_upstream(tmp_path)
    assert (upstream.family, upstream.normalize) == ("unispeech_sat", bool(changes))
    check_parity(model, upstream, noise(40_000))


@pytest.mark.parity("transformers, padded batch", "transformers")
def test_padded_batches_equal_transformers(tmp_path: Path) -> None:
    model = their_model(UniSpeechSatModel, UniSpeechSatConfig, **LARGE)
    model.save_pretrained(tmp_path)
    check_padded_parity(model, load_upstream(tmp_path))


@pytest.mark.parametrize("changes", [{}, LARGE], ids=["base", "large"])
def test_export_gives_transformers_its_own_model_back(changes: dict[str, object], tmp_path: Path) -> None:
    check_round_trip(their_model(UniSpeechSatModel, UniSpeechSatConfig, **changes), tmp_path)


@pytest.mark.parametrize("kind", [UniSpeechSatForCTC, UniSpeechSatForPreTraining, UniSpeechSatForXVector])
def test_models_with_heads_are_read(kind: type[UniSpeechSatForCTC], tmp_path: Path) -> None:
    changes = {"vocab_size": 12, "num_clusters": 7, "tdnn_dim": (16,), "tdnn_kernel": (3,), "tdnn_dilation": (1,)}
    model = their_model(kind, UniSpeechSatConfig, **changes)
    model.save_pretrained(tmp_path)
    check_parity(model.unispeech_sat, load_upstream(tmp_path))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("unispeech_sat_base", 94_370_944),
        ("unispeech_sat_base_plus", 94_370_944),
        ("unispeech_sat_large", 315_434_112),
    ],
)
def test_presets_have_the_shapes_of_hubert(name: str, count: int) -> None:
    with torch.device("meta"):
        ours = build(PRESETS[name])
    assert sum(p.numel() for p in ours.parameters()) - ours.mask_embedding.numel() == count


def test_a_missing_weight_is_named_as_transformers_does(tmp_path: Path) -> None:
    model = their_model(UniSpeechSatModel, UniSpeechSatConfig)
    model.config.save_pretrained(tmp_path)
    state = model.state_dict()
    del state["encoder.layers.2.final_layer_norm.bias"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(SpeechsslError, match=r"lack 'encoder\.layers\.2\.final_layer_norm\.bias'"):
        load_upstream(tmp_path)
