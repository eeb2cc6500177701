"""Encoders of transformers behind our interface, against transformers itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from speechssl.checkpoint import save_upstream
from speechssl.errors import AudioError, ConfigError, SpeechsslError, UnknownNameError
from speechssl.loading import load_upstream
from speechssl.registry import list_families
from upstreams.transformers.model import find_blocks

BLOCKS: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip
CONVS: dict[str, Any] = BLOCKS | {
    "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
SEW = CONVS | {"conv_dim": [16] * 13, "squeeze_factor": 2, "feature_layer_norm_eps": 1e-5}
"""Its hidden states have half of the rate of its convolutions."""
LARGE = CONVS | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
WHISPER = {
    "d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_layers": 1,
    "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "vocab_size": 60, "max_source_positions": 50,
    "pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1,
}  # fmt: skip
RAW = {"return_attention_mask": False}
T = transformers
MODELS: dict[str, tuple[Any, Any, dict[str, Any], Any]] = {
    "wav2vec2": (T.Wav2Vec2Model, T.Wav2Vec2Config, CONVS, T.Wav2Vec2FeatureExtractor(**RAW)),
    "hubert": (T.HubertModel, T.HubertConfig, LARGE, T.Wav2Vec2FeatureExtractor(**RAW)),
    "wavlm": (T.WavLMModel, T.WavLMConfig, CONVS | {"num_buckets": 32}, None),
    "sew": (T.SEWModel, T.SEWConfig, SEW, T.Wav2Vec2FeatureExtractor(**RAW)),
    "sew-d": (
        T.SEWDModel,
        T.SEWDConfig,
        SEW | {"max_position_embeddings": 64, "position_buckets": 16},
        T.Wav2Vec2FeatureExtractor(do_normalize=False, **RAW),
    ),
    "whisper": (T.WhisperModel, T.WhisperConfig, WHISPER, T.WhisperFeatureExtractor(chunk_length=1)),
    "speech_to_text": (
        T.Speech2TextModel,
        T.Speech2TextConfig,
        WHISPER | {"conv_channels": 32, "max_source_positions": 500},
        T.Speech2TextFeatureExtractor(),
    ),
    "moonshine": (
        T.MoonshineModel,
        T.MoonshineConfig,
        {
            "hidden_size": 32, "encoder_num_hidden_layers": 3, "encoder_num_attention_heads": 4, "vocab_size": 60,
            "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4, "intermediate_size": 48,
        },
        T.Wav2Vec2FeatureExtractor(do_normalize=False, **RAW),
    ),
    "ast": (
        T.ASTModel,
        T.ASTConfig,
        BLOCKS | {"max_length": 128, "num_mel_bins": 64},
        T.ASTFeatureExtractor(max_length=128, num_mel_bins=64),
    ),
    "parakeet": (
        T.ParakeetEncoder,
        T.ParakeetEncoderConfig,
        BLOCKS | {"subsampling_conv_channels": 16},
        T.ParakeetFeatureExtractor(),
    ),
    "wav2vec2-bert": (
        T.Wav2Vec2BertModel,
        T.Wav2Vec2BertConfig,
        BLOCKS,
        T.SeamlessM4TFeatureExtractor(padding_value=1),
    ),
}  # fmt: skip
SAMPLES = {"ast": [18_000, 13_000, 3_200]}
"""Of three utterances, one longer than a window; 16,000, 9,000 and 4,100 where not told."""


def saved(name: str, folder: Path) -> Any:
    """A model with random weights, biases and gains included, saved as people find it; returns its encoder."""
    kind, config, settings, extractor = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config(**settings)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    if extractor is not None:
        extractor.save_pretrained(folder)
    return model.get_encoder() if model.config.is_encoder_decoder else model


def noise(samples: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(samples, generator=torch.Generator().manual_seed(seed)) + 0.01


def utterances(name: str) -> list[Tensor]:
    return [noise(n, seed) for seed, n in enumerate(SAMPLES.get(name, [16_000, 9_000, 4_100]))]


@pytest.fixture(scope="module", params=sorted(MODELS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any, Path]:
    folder = tmp_path_factory.mktemp("theirs")
    theirs = saved(request.param, folder)
    return request.param, theirs, load_upstream(f"transformers:{folder}"), folder


def expected(name: str, theirs: Any, waveform: Tensor, folder: Path) -> list[Tensor]:
    """transformers' hidden states of one utterance, used as its documentation says."""
    extractor = MODELS[name][3] or transformers.Wav2Vec2FeatureExtractor(do_normalize=False)
    sampling = {"sampling_rate": 16_000, "return_tensors": "pt"}
    with torch.no_grad():
        if name == "whisper":  # windows of one second
            windows = [extractor(part.numpy(), **sampling).input_features for part in waveform.split(16_000)]
            parts = [theirs(w, output_hidden_states=True).hidden_states for w in windows]
            return [torch.cat(states, dim=1) for states in zip(*parts, strict=True)]
        if name == "ast":  # windows of twelve patches in time, 10 frames of 10 ms apart, 5 bands each
            parts = []
            for part in waveform.split(12 * 1_600):
                states = theirs(**extractor(part.numpy(), **sampling), output_hidden_states=True).hidden_states
                parts.append([s[:, 2:].reshape(1, 5, 12, 32).mean(1) for s in states])
            return [torch.cat(states, dim=1) for states in zip(*parts, strict=True)]
        inputs = extractor(waveform.numpy(), **sampling)
        return list(theirs(**inputs, output_hidden_states=True).hidden_states)


@pytest.mark.parity("transformers ({pair})", "transformers", family="transformers")
def test_hidden_states_equal_transformers_on_each_utterance_alone(pair: tuple[str, Any, Any, Path]) -> None:
    name, theirs, upstream, folder = pair
    waveforms = utterances(name)
    with torch.no_grad():
        out = upstream(
            torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), torch.tensor([len(w) for w in waveforms])
        )
    for row, waveform in enumerate(waveforms):
        reference, frames = expected(name, theirs, waveform, folder), int(out.lengths[row])
        assert len(out.hidden_states) == len(reference) == 4
        assert 0 <= reference[0].size(1) - frames <= (40 if name in ("whisper", "ast") else 1)
        for a, b in zip(out.hidden_states, reference, strict=True):
            torch.testing.assert_close(a[row, :frames], b[0, :frames], rtol=0, atol=1e-4)


FIRST = {"parakeet": 0}
"""Samples of the first frame, where the model pads the edges and takes no less than some other number."""
RATES = {"parakeet": 12.5, "sew": 25, "sew-d": 25, "ast": 10, "moonshine": 16_000 / 384, "speech_to_text": 25}
"""Hz, where it is not 50."""


def test_frames_follow_from_the_length(pair: tuple[str, Any, Any, Path]) -> None:
    name, _, upstream, _ = pair
    assert upstream.frame_rate == pytest.approx(RATES.get(name, 50))
    shortest = upstream.layout.least
    for samples in (shortest, shortest + 1, shortest + 3_199, shortest + 3_200, 7_777):
        with torch.no_grad():
            out = upstream(noise(samples)[None])
        assert out.hidden_states[0].size(1) == int(out.lengths) == int(upstream.output_lengths(torch.tensor(samples)))
        assert int(out.lengths) == (samples - FIRST.get(name, shortest)) // upstream.layout.hop + 1
    with pytest.raises(AudioError, match="shorter than one frame"):
        upstream(torch.ones(1, shortest - 1))


def test_an_utterance_does_not_depend_on_its_batch_or_padding(pair: tuple[str, Any, Any, Path]) -> None:
    name, _, upstream, _ = pair
    waveforms = utterances(name)
    lengths = torch.tensor([len(w) for w in waveforms])
    batch = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True, padding_value=9.0)
    with torch.no_grad():
        out = upstream(batch, lengths)
        for row, waveform in enumerate(waveforms):
            alone = upstream(waveform[None])
            assert out.lengths[row] == alone.lengths[0]
            for a, b in zip(out.hidden_states, alone.hidden_states, strict=True):
                assert (a[row, : b.size(1)] - b[0]).abs().max() <= 1e-5
                assert (a[row, b.size(1) :] == 0).all()


def test_asking_for_a_layer_runs_no_block_above_it(pair: tuple[str, Any, Any, Path]) -> None:
    name, _, upstream, _ = pair
    waveform = utterances(name)[2][None]
    calls: list[int] = []
    blocks = find_blocks(upstream.encoder)
    hooks = [block.register_forward_hook(lambda *_, i=i: calls.append(i)) for i, block in enumerate(blocks)]
    with torch.no_grad():
        every = upstream(waveform).hidden_states
        for layer in range(4):
            calls.clear()
            one = upstream(waveform, layers=[layer]).hidden_states
            assert calls == list(range(layer))
            assert torch.equal(one[layer], every[layer])
    for hook in hooks:
        hook.remove()


def test_saved_and_loaded_needs_no_folder_of_transformers(pair: tuple[str, Any, Any, Path], tmp_path: Path) -> None:
    name, _, upstream, _ = pair
    save_upstream(upstream, tmp_path)
    before = torch.random.get_rng_state()
    loaded = load_upstream(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (loaded.family, loaded.config) == ("transformers", upstream.config)
    assert loaded.fingerprint() == upstream.fingerprint()
    waveform = utterances(name)[2][None]
    with torch.no_grad():
        for a, b in zip(upstream(waveform).hidden_states, loaded(waveform).hidden_states, strict=True):
            assert torch.equal(a, b)
        half = load_upstream(tmp_path, dtype=torch.bfloat16)(waveform).hidden_states
        for a, c in zip(upstream(waveform).hidden_states, half, strict=True):
            assert c.dtype == torch.bfloat16
            assert torch.nn.functional.cosine_similarity(a.flatten(), c.float().flatten(), dim=0) > 0.99


def test_random_weights_are_those_of_the_seed(tmp_path: Path) -> None:
    saved("whisper", tmp_path)
    first, again, other = (load_upstream(f"transformers:{tmp_path}", random_weights=seed) for seed in (1, 1, 2))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert first.weights == "random (seed 1)"


def test_mert_is_hubert_at_another_rate(tmp_path: Path) -> None:
    theirs = saved("hubert", tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    mert = {"model_type": "mert_model", "auto_map": {"AutoModel": "m.M"}, "attention_relax": -1.0, "deepnorm": False}
    (tmp_path / "config.json").write_text(json.dumps(description | mert))
    T.Wav2Vec2FeatureExtractor(sampling_rate=24_000).save_pretrained(tmp_path)
    upstream = load_upstream(f"transformers:{tmp_path}")
    assert (upstream.sample_rate, upstream.frame_rate) == (24_000, 75)
    with torch.no_grad():
        ours = upstream(noise(9_000)[None]).hidden_states
    for a, b in zip(ours, expected("hubert", theirs, noise(9_000), tmp_path), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    (tmp_path / "config.json").write_text(json.dumps(description | mert | {"deepnorm": True}))
    with pytest.raises(ConfigError, match="deepnorm"):
        load_upstream(f"transformers:{tmp_path}")


def test_models_that_need_code_of_their_repository_are_refused(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w')")
    description = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
    (tmp_path / "config.json").write_text(json.dumps(description))
    with pytest.raises(SpeechsslError, match="trust_remote_code"):
        load_upstream(f"transformers:{tmp_path}")
    assert not ran.exists()


def test_what_can_not_be_used_is_one_sentence(tmp_path: Path) -> None:
    for reference, message in (
        (f"transformers:{tmp_path / 'none'}", "neither a folder"),
        ("transformers:x", "neither"),
    ):
        with pytest.raises(SpeechsslError, match=message):
            load_upstream(reference)
    with pytest.raises(UnknownNameError):
        load_upstream("transformers:")
    (tmp_path / "config.json").write_text('{"model_type": "whispr"}')
    with pytest.raises(UnknownNameError, match="whisper"):
        load_upstream(f"transformers:{tmp_path}")
    transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="preprocessor_config"):
        load_upstream(f"transformers:{tmp_path}", random_weights=0)
    saved("wav2vec2", tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(SpeechsslError, match="can't load"):
        load_upstream(f"transformers:{tmp_path}")
    weights.unlink()
    with pytest.raises(SpeechsslError, match="can't load"):
        load_upstream(f"transformers:{tmp_path}")
    saved("whisper", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(SpeechsslError, match="input"):
        load_upstream(f"transformers:{tmp_path}", random_weights=0)


def test_the_adapter_is_a_family_without_presets() -> None:
    assert "transformers" in list_families()
