"""UniSpeech against transformers; its other formats are asked for in tests/contracts/test_file_formats.py."""

from pathlib import Path

import pytest
import torch
from contextual_parity import LARGE, check_padded_parity, check_parity, check_round_trip, noise, their_model
from transformers import (
    UniSpeechConfig,
    UniSpeechForCTC,
    UniSpeechForPreTraining,
    UniSpeechForSequenceClassification,
    UniSpeechModel,
)

from speechssl.errors import SpeechsslError
from speechssl.loading import load_upstream
from upstreams.unispeech.config import PRESETS
from upstreams.unispeech.model import build

PUBLISHED = {**LARGE, "conv_bias": True}


@pytest.mark.parity("transformers", "transformers")
@pytest.mark.parametrize("changes", [{}, PUBLISHED], ids=["base", "large"])
def test_hidden_states_equal_transformers(changes: dict[str, object], tmp_path: Path) -> None:
    model = their_model(UniSpeechModel, UniSpeechConfig, **changes)
    model.save_pretrained(tmp_path)
    upstream = load_upstream(tmp_path)
    assert (upstream.family, upstream.normalize) == ("unispeech", bool(changes))
    check_parity(model, upstream, noise(40_000))


@pytest.mark.parity("transformers, padded batch", "transformers")
def test_padded_batches_equal_transformers(tmp_path: Path) -> None:
    model = their_model(UniSpeechModel, UniSpeechConfig, **PUBLISHED)
    model.save_pretrained(tmp_path)
    check_padded_parity(model, load_upstream(tmp_path))


@pytest.mark.parametrize("changes", [{}, PUBLISHED], ids=["base", "large"])
def test_export_gives_transformers_its_own_model_back(changes: dict[str, object], tmp_path: Path) -> None:
    check_round_trip(their_model(UniSpeechModel, UniSpeechConfig, **changes), tmp_path)


@pytest.mark.parametrize("kind", [UniSpeechForCTC, UniSpeechForPreTraining, UniSpeechForSequenceClassification])
def test_models_with_heads_are_read(kind: type[UniSpeechForCTC], tmp_path: Path) -> None:
    model = their_model(kind, UniSpeechConfig, vocab_size=12, **PUBLISHED)
    model.save_pretrained(tmp_path)
    check_parity(model.unispeech, load_upstream(tmp_path))


def test_presets_have_the_shape_that_transformers_gives_the_published_model() -> None:
    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    with torch.device("meta"):
        theirs = UniSpeechModel(UniSpeechConfig(**sizes, **PUBLISHED))
        counts = {
            sum(p.numel() for p in build(config).parameters()) for name, config in PRESETS.items() if "large" in name
        }
    assert counts == {sum(p.numel() for p in theirs.parameters())} == {315_437_696 + 1_024}


def test_a_missing_weight_is_named_as_transformers_does(tmp_path: Path) -> None:
    model = their_model(UniSpeechModel, UniSpeechConfig)
    model.config.save_pretrained(tmp_path)
    state = model.state_dict()
    del state["feature_projection.projection.bias"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(SpeechsslError, match=r"lack 'feature_projection\.projection\.bias'"):
        load_upstream(tmp_path)
