"""The HEAR module against what the common API of HEAR 2021 asks for."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from speechssl.checkpoint import save_upstream
from speechssl.errors import SpeechsslError
from speechssl.loading import build_upstream, load_upstream
from speechssl.serving import hear
from upstreams.hubert.config import HubertConfig

CONFIG = HubertConfig(conv_channels=32, width=64, depth=3, heads=4, ffn_width=96)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hear") / "upstream"
    save_upstream(build_upstream("hubert", CONFIG, seed=0), path)
    return path


def noise(sounds: int, samples: int) -> torch.Tensor:
    return 2.0 * torch.rand(sounds, samples, generator=torch.Generator().manual_seed(0)) - 1.0


def test_the_model_has_what_the_api_asks_for(folder: Path) -> None:
    model = hear.load_model(f"{folder}#layers=2")
    assert isinstance(model, torch.nn.Module) and not model.training
    assert model.sample_rate == 16_000
    assert model.scene_embedding_size == model.timestamp_embedding_size == 64
    assert type(model.scene_embedding_size) is int


def test_timestamp_embeddings_are_the_layer_at_the_centres_of_its_frames(folder: Path) -> None:
    model = hear.load_model(f"{folder}#layers=2")
    audio = noise(3, 16_000)
    embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)
    assert embeddings.shape == (3, 49, 64) and embeddings.dtype == torch.float32 and not embeddings.requires_grad
    assert timestamps.shape == (3, 49)
    # Frame t hears samples 320 t to 320 t + 400, of which the middle lies 12.5 ms after the first.
    assert torch.allclose(timestamps[0], 12.5 + 20.0 * torch.arange(49), atol=1e-3)
    assert torch.equal(timestamps[0], timestamps[2])
    with torch.no_grad():
        expected = load_upstream(folder)(audio).hidden_states[2]
    assert torch.equal(embeddings, expected)


def test_a_click_shows_at_its_own_time(folder: Path) -> None:
    model = hear.load_model("fbank_no_cmvn")
    audio = torch.zeros(1, 16_000)
    audio[0, 8_000] = 1.0
    embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)
    energy = embeddings[0, :, :80].mean(dim=1)
    loud = timestamps[0][energy > energy.min() + 1.0]
    assert abs(float(loud.mean()) - 500.0) <= 5.0


def test_scene_embeddings_are_the_mean_over_time(folder: Path) -> None:
    model = hear.load_model(str(folder))
    audio = noise(2, 12_345)
    scene = hear.get_scene_embeddings(audio, model)
    assert scene.shape == (2, 64) and scene.dtype == torch.float32
    assert torch.allclose(scene, hear.get_timestamp_embeddings(audio, model)[0].mean(dim=1))


def test_without_layers_all_of_them_have_an_equal_say(folder: Path) -> None:
    audio = noise(2, 9_000)
    embeddings, _ = hear.get_timestamp_embeddings(audio, hear.load_model(str(folder)))
    with torch.no_grad():
        states = load_upstream(folder)(audio).hidden_states
    expected = torch.stack([F.layer_norm(state, (64,)) for state in states]).mean(dim=0)
    assert (embeddings - expected).abs().max() <= 1e-5
    two, _ = hear.get_timestamp_embeddings(audio, hear.load_model(f"{folder}#layers=1,-1"))
    expected = torch.stack([F.layer_norm(states[k], (64,)) for k in (1, 3)]).mean(dim=0)
    assert (two - expected).abs().max() <= 1e-5


def test_a_sound_shorter_than_a_frame_has_one_timestamp(folder: Path) -> None:
    embeddings, timestamps = hear.get_timestamp_embeddings(noise(1, 50), hear.load_model(str(folder)))
    assert embeddings.shape == (1, 1, 64) and timestamps.shape == (1, 1)
    assert embeddings.isfinite().all()


def test_an_upstream_of_a_rate_that_hear_lacks_is_resampled(folder: Path) -> None:
    model = hear.load_model(str(folder))
    model.embedder.upstream.sample_rate = 24_000
    again = hear.HearModel(model.embedder)
    assert again.sample_rate == 32_000
    embeddings, timestamps = hear.get_timestamp_embeddings(noise(1, 32_000), again)
    assert embeddings.shape[1] == 74  # 24 000 samples: (24 000 - 400) // 320 + 1
    assert timestamps.shape == (1, 74)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("", "must name an upstream"),
        ("mfcc#layers=six", r"layers of 'mfcc#layers=six' must be numbers, as in 'mfcc#layers=6,9'"),
        ("mfcc#layers=4", r"'mfcc' must lie in 0\.\.0"),
        ("mfccc", "'mfcc'"),
    ],
)
def test_a_wrong_reference_is_one_sentence(reference: str, message: str) -> None:
    with pytest.raises(SpeechsslError, match=message):
        hear.load_model(reference)
