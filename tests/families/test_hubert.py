"""HuBERT against transformers and torchaudio, its shapes and its way through files."""

import dataclasses
import json
import logging

import contextual_parity
import pytest
import torch
import torchaudio
from contextual_parity import check_parity
from transformers import HubertConfig as TheirConfig
from transformers import HubertForCTC, HubertModel, Wav2Vec2FeatureExtractor

from speechssl.checkpoint import load_weights, read_weights, save_upstream
from speechssl.cli import main
from speechssl.errors import ConfigError, SpeechsslError, UnknownNameError
from speechssl.export import export_upstream
from speechssl.loading import build_upstream, load_upstream
from upstreams.hubert.config import PRESETS, HubertConfig
from upstreams.hubert.model import build

LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


def their_model(kind=HubertModel, **changes):
    return contextual_parity.their_model(kind, TheirConfig, vocab_size=12, **changes)


@pytest.fixture(scope="module")
def waveform():
    return contextual_parity.noise()


@pytest.mark.parity("transformers", "transformers")
@pytest.mark.parametrize("changes", [{}, LARGE], ids=["base", "large"])
def test_hidden_states_equal_transformers(changes, waveform, tmp_path):
    model = their_model(**changes)
    model.save_pretrained(tmp_path)
    upstream = load_upstream(tmp_path)
    assert upstream.normalize == bool(changes)
    check_parity(model, upstream, waveform)


@pytest.mark.parity("transformers, padded batch", "transformers")
def test_padded_batches_equal_transformers_one_by_one(waveform, tmp_path):
    model = their_model()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        ours = load_upstream(tmp_path)(waveform.repeat(2, 1), torch.tensor([9_000, 4_000]))
        theirs = model(waveform[:, :4_000]).last_hidden_state
    torch.testing.assert_close(ours.hidden_states[-1][1, : int(ours.lengths[1])], theirs[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("old_names", [False, True])
def test_a_model_with_a_head_in_the_old_format_is_read(old_names, waveform, tmp_path):
    model = their_model(HubertForCTC)
    model.config.save_pretrained(tmp_path)
    state = model.state_dict()
    if old_names:
        for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
            prefix = "hubert.encoder.pos_conv_embed.conv."
            state[prefix + old] = state.pop(prefix + f"parametrizations.weight.{new}")
    torch.save(state, tmp_path / "pytorch_model.bin")
    check_parity(model.hubert, load_upstream(tmp_path), waveform)


def test_contentvec_of_the_hub_is_read_without_its_last_projection(waveform, tmp_path):
    model = their_model()
    model.config.save_pretrained(tmp_path)
    projection = {"final_proj.weight": torch.zeros(8, 64), "final_proj.bias": torch.zeros(8)}  # beside, with no prefix
    torch.save({**model.state_dict(), **projection}, tmp_path / "pytorch_model.bin")
    check_parity(model, load_upstream(tmp_path), waveform)


def test_a_stray_weight_in_a_folder_is_named_as_transformers_does(tmp_path):
    model = their_model()
    model.config.save_pretrained(tmp_path)
    stray = {"encoder.layers.0.attention.stray.weight": torch.zeros(2)}
    torch.save({**model.state_dict(), **stray}, tmp_path / "pytorch_model.bin")
    with pytest.raises(SpeechsslError, match=r"unexpectedly hold 'encoder\.layers\.0\.attention\.stray\.weight'"):
        load_upstream(tmp_path)


def test_the_preprocessor_decides_whether_the_input_is_normalised(tmp_path):
    their_model(**LARGE).save_pretrained(tmp_path)
    assert load_upstream(tmp_path).normalize
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    assert not load_upstream(tmp_path).normalize


def test_the_caller_can_decide_whether_the_input_is_normalised(tmp_path):
    their_model(**LARGE).save_pretrained(tmp_path)
    plain = load_upstream(tmp_path, normalize=False)
    assert (plain.normalize, plain.config.normalize) == (False, False)
    assert plain.fingerprint() != load_upstream(tmp_path).fingerprint()
    with pytest.raises(SpeechsslError, match="'fbank' hears no waveform"):
        load_upstream("fbank", normalize=True)


@pytest.mark.parametrize("changes", [{}, LARGE], ids=["base", "large"])
def test_export_gives_transformers_its_own_model_back(changes, waveform, tmp_path):
    model = their_model(**changes)
    model.save_pretrained(tmp_path / "theirs")
    export_upstream(tmp_path / "theirs", tmp_path / "ours", to="speechssl")
    export_upstream(tmp_path / "ours", tmp_path / "back", to="transformers")
    again = HubertModel.from_pretrained(tmp_path / "back").eval()
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    assert Wav2Vec2FeatureExtractor.from_pretrained(tmp_path / "back").do_normalize == bool(changes)
    check_parity(again, load_upstream(tmp_path / "ours"), waveform)


def test_export_by_the_command_line(tmp_path, capsys):
    save_upstream(build_upstream("hubert", PRESETS["hubert_tiny"], seed=0), tmp_path / "tiny")
    with pytest.raises(SystemExit) as done:
        main(["export", str(tmp_path / "tiny"), "-o", str(tmp_path / "copy")])
    assert done.value.code == 0
    assert load_upstream(tmp_path / "copy").fingerprint() == load_upstream(tmp_path / "tiny").fingerprint()
    with pytest.raises(SystemExit) as done:
        main(["export", str(tmp_path / "tiny"), "--to", "transformers", "-o", str(tmp_path / "hf")])
    assert done.value.code == 1
    assert "no HubertModel with frontend 'log_mel'" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("name", "builder", "count"),
    [
        ("hubert_base", torchaudio.models.hubert_base, 94_370_944),
        ("hubert_large", torchaudio.models.hubert_large, 315_434_112),
        ("hubert_xlarge", torchaudio.models.hubert_xlarge, 962_492_544),
    ],
)
def test_presets_have_the_published_shapes(name, builder, count):
    with torch.device("meta"):
        ours, theirs = build(PRESETS[name]), builder()
    parameters = sum(p.numel() for p in ours.parameters()) - ours.mask_embedding.numel()
    assert parameters == sum(p.numel() for p in theirs.parameters()) == count


def test_tiny_has_about_five_million_parameters_and_50_frames_a_second():
    upstream = build_upstream("hubert", PRESETS["hubert_tiny"], seed=0)
    assert 4_500_000 <= sum(p.numel() for p in upstream.parameters()) <= 5_500_000
    assert upstream.frame_rate == 50.0
    assert upstream(torch.randn(1, 16_000)).lengths.tolist() == [49]


def test_masked_frames_are_hidden_from_the_encoder():
    upstream = build_upstream("hubert", PRESETS["hubert_tiny"], seed=0).eval()
    features = torch.randn(1, 40, upstream.feature_width, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 40, dtype=torch.bool)
    mask[:, 10:20] = True
    changed = torch.where(mask[:, :, None], 9.0, features)
    frames = torch.tensor([40])
    layers = frozenset({6})
    with torch.no_grad():
        first = upstream.encode(features, frames, mask=mask, layers=layers)[6]
        assert torch.equal(first, upstream.encode(changed, frames, mask=mask, layers=layers)[6])
        assert not torch.allclose(first, upstream.encode(features, frames, layers=layers)[6], atol=1e-3)


def test_the_gradient_of_the_frontend_is_scaled():
    config = HubertConfig(conv_channels=16, width=32, heads=2, depth=1, ffn_width=32, dropout=0, attention_dropout=0)
    grads = {}
    for scale in (1.0, 0.1):
        changed = dataclasses.replace(config, feature_grad_mult=scale, input_dropout=0.0)
        upstream = build_upstream("hubert", changed, seed=0)
        upstream(torch.randn(1, 4_000, generator=torch.Generator().manual_seed(0))).hidden_states[1].sum().backward()
        grads[scale] = (upstream.frontend.convs[0].weight.grad, upstream.projection.weight.grad)
    assert torch.allclose(0.1 * grads[1.0][0], grads[0.1][0], rtol=1e-4, atol=1e-7)
    assert torch.equal(grads[1.0][1], grads[0.1][1])


def test_random_weights_repeat_by_seed_and_leave_the_random_state_alone(caplog):
    before = torch.random.get_rng_state()
    with caplog.at_level(logging.WARNING):
        fallback = load_upstream("hubert_tiny")
    assert "no weights to fetch" in caplog.text
    prints = {seed: load_upstream("hubert_tiny", random_weights=seed).fingerprint() for seed in (0, 1)}
    assert fallback.fingerprint() == prints[0] != prints[1]
    assert fallback.weights == "random (seed 0)"
    assert torch.equal(before, torch.random.get_rng_state())


def test_random_weights_can_replace_those_of_a_folder(tmp_path):
    save_upstream(build_upstream("hubert", PRESETS["hubert_tiny"], seed=5), tmp_path)
    assert load_upstream(tmp_path, random_weights=0).fingerprint() == load_upstream("hubert_tiny").fingerprint()


def test_loading_without_a_connection_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SpeechsslError, match=r"facebook/hubert-base-ls960.*connect once"):
        load_upstream("hubert_base")


def test_wrong_names_and_folders_are_one_sentence(tmp_path):
    with pytest.raises(UnknownNameError, match="Did you mean 'hubert_base'"):
        load_upstream("hubert_bse")
    with pytest.raises(SpeechsslError, match="does not exist"):
        load_upstream(tmp_path / "nothing")
    with pytest.raises(SpeechsslError, match=r"it has no config\.json"):
        load_upstream(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SpeechsslError, match="not valid JSON"):
        load_upstream(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SpeechsslError, match="no upstream folder"):
        load_upstream(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UnknownNameError, match="model type 'bert'"):
        load_upstream(tmp_path)


def test_a_config_with_an_unknown_key_names_the_nearest(tmp_path):
    save_upstream(build_upstream("hubert", PRESETS["hubert_tiny"], seed=0), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["config"]["widht"] = 3
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"'widht'.*Did you mean 'width'"):
        load_upstream(tmp_path)


def test_weights_that_do_not_fit_are_listed_and_change_nothing(tmp_path):
    upstream = build_upstream("hubert", PRESETS["hubert_tiny"], seed=0)
    before = upstream.fingerprint()
    state = upstream.state_dict()
    renamed = {k.replace("projection.", "projektion."): v for k, v in state.items()}
    with pytest.raises(SpeechsslError, match=r"lack 'projection.bias'.*mean 'projektion.bias'"):
        load_weights(upstream, renamed, origin="x")
    with pytest.raises(SpeechsslError, match=r"'projection.bias' must have shape \(256,\)"):
        load_weights(upstream, state | {"projection.bias": torch.zeros(3)}, origin="x")
    assert upstream.fingerprint() == before


def test_damaged_weights_are_one_sentence(tmp_path):
    save_upstream(build_upstream("hubert", PRESETS["hubert_tiny"], seed=0), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000])
    with pytest.raises(SpeechsslError, match="damaged"):
        load_upstream(tmp_path)
    weights.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"no weights at all")
    with pytest.raises(SpeechsslError, match="no checkpoint that torch saved"):
        read_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(SpeechsslError, match="holds neither"):
        read_weights(tmp_path)


def test_a_crash_while_saving_keeps_what_was_there(tmp_path, monkeypatch):
    save_upstream(build_upstream("hubert", PRESETS["hubert_tiny"], seed=0), tmp_path)
    before = load_upstream(tmp_path).fingerprint()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("speechssl.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_upstream(build_upstream("hubert", PRESETS["hubert_tiny"], seed=1), tmp_path)
    assert load_upstream(tmp_path).fingerprint() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_models_that_are_not_supported_say_so(tmp_path):
    for changes, message in (({"conv_pos_batch_norm": True}, "conv_pos_batch_norm"), ({"hidden_act": "relu"}, "relu")):
        TheirConfig(**contextual_parity.SMALL, **changes).save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=message):
            load_upstream(tmp_path)
