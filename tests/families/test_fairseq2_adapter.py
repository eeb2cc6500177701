"""wav2vec 2.0 and w2v-BERT of fairseq2 behind our interface; all but the first need the extra `fairseq2`."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from speechssl.checkpoint import save_upstream
from speechssl.errors import AudioError, ConfigError, SpeechsslError, UnknownNameError
from speechssl.loading import load_upstream

ENCODER = {"model_dim": 32, "num_encoder_layers": 3, "num_encoder_attn_heads": 4, "ffn_inner_dim": 48}
CONVS = {"feature_dim": 16, "feature_extractor_layer_descs": [[16, 10, 5]] + [[16, 3, 2]] * 4 + [[16, 2, 2]] * 2}
SMALL = ENCODER | CONVS | {"pos_conv_kernel_size": 16, "num_pos_conv_groups": 4}
QUANTIZER = {"num_codebook_entries": 8, "quantized_dim": 16, "final_dim": 16}
CARDS: dict[str, dict[str, Any]] = {
    "base": {"model_family": "wav2vec2", "model_arch": "base", "config": {"encoder_config": SMALL} | QUANTIZER},
    "large": {"model_family": "wav2vec2", "model_arch": "large_lv60k", "config": {"encoder_config": SMALL} | QUANTIZER},
    "fine-tuned": {"model_family": "wav2vec2_asr", "model_arch": "base_10h", "config": {"encoder_config": SMALL}},
    "conformer": {
        "model_family": "w2vbert",
        "model_arch": "300m",
        "config": {
            "w2v2_config": {"encoder_config": ENCODER | {"depthwise_conv_kernel_size": 7}} | QUANTIZER,
            "num_bert_encoder_layers": 2,
        },
    },
}


@pytest.mark.skipif(find_spec("fairseq2") is not None, reason="fairseq2 is installed")
def test_without_fairseq2_the_error_names_what_to_install(tmp_path: Path) -> None:
    for reference in ("wav2vec2_base", tmp_path):
        with pytest.raises(SpeechsslError, match=r"pip install speechssl\[fairseq2\]"):
            load_upstream(f"fairseq2:{reference}")
    config = {"model_family": "wav2vec2", "settings": "{}"}
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, "family": "fairseq2", "config": config}))
    with pytest.raises(SpeechsslError, match=r"pip install speechssl\[fairseq2\]"):
        load_upstream(tmp_path)


def card(name: str, folder: Path, **changes: Any) -> Any:
    """Writes a folder with a card and a checkpoint, by fairseq2 alone, and returns its model."""
    pytest.importorskip("fairseq2.models.w2vbert", reason="needs pip install speechssl[fairseq2]")

    fields = {k: v for k, v in CARDS[name].items() if k != "config"}
    fields |= {"name": f"tiny_{name}", "model_config_overrides": CARDS[name]["config"]} | changes
    (folder / "card.yaml").write_text(yaml.safe_dump(fields))
    from fairseq2.assets import AssetCard

    from upstreams.fairseq2 import theirs as library

    settings = library.make_settings(library.read_config(AssetCard("x", fields)))
    hub = library.hub(fields["model_family"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hub.create_new_model(settings, device=torch.device("cpu"), dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
            for key, buffer in model.named_buffers():
                if "running" in key:
                    buffer.add_(0.3 * torch.rand_like(buffer))
    torch.save({"model": model.state_dict()}, folder / "model.pt")
    return model


def noise(samples: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(samples, generator=torch.Generator().manual_seed(seed)) + 0.01


def expected(model: Any, name: str, waveform: Tensor) -> list[Tensor]:
    """fairseq2's hidden states of one utterance: its own forward pass, watched by its own hooks."""
    from fairseq2.data.audio import WaveformToFbankConverter
    from fairseq2.nn import BatchLayout

    inner = getattr(model, "w2v2_model", model)
    inputs = waveform[None]
    if name == "large":
        inputs = torch.nn.functional.layer_norm(inputs, inputs.shape[1:])
    if name == "conformer":
        convert = WaveformToFbankConverter(num_mel_bins=80, waveform_scale=2**15, channel_last=True, standardize=True)
        inputs = convert({"waveform": waveform[:, None], "sample_rate": 16_000.0})["fbank"][None]
    states: list[Tensor] = []

    def hook(_index: int, output: Tensor, _layout: Any, _count: int) -> bool:
        states.append(output)
        return True

    handle = inner.encoder.register_layer_hook(hook)
    with torch.no_grad():
        x, layout = inner.encoder_frontend(inputs, BatchLayout.of(inputs))
        last = inner.encoder(x, layout)
    handle.remove()
    return [x, *states[:-1], last]


@pytest.fixture(scope="module", params=sorted(CARDS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    folder = tmp_path_factory.mktemp("card")
    model = card(request.param, folder)
    return request.param, model, load_upstream(f"fairseq2:{folder}")


def test_hidden_states_equal_fairseq2_on_each_utterance_alone(pair: tuple[str, Any, Any]) -> None:
    name, model, upstream = pair
    assert (upstream.family, upstream.normalize, upstream.frame_rate) == ("fairseq2", name == "large", 50)
    waveforms = [noise(16_000), noise(9_001, 1), noise(16_000, 2), noise(1_000, 3)]
    lengths = torch.tensor([len(w) for w in waveforms])
    with torch.no_grad():
        out = upstream(torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True, padding_value=5.0), lengths)
    for row, waveform in enumerate(waveforms):
        reference, frames = expected(model, name, waveform), int(out.lengths[row])
        assert len(out.hidden_states) == len(reference) == 4
        assert reference[0].size(1) == frames
        alone = upstream(waveform[None]).hidden_states
        for a, b, c in zip(out.hidden_states, reference, alone, strict=True):
            torch.testing.assert_close(a[row, :frames], b[0], rtol=0, atol=1e-4)
            assert (a[row, :frames] - c[0]).abs().max() <= 1e-5
            assert (a[row, frames:] == 0).all()


def test_asking_for_a_layer_runs_no_block_above_it(pair: tuple[str, Any, Any]) -> None:
    _, _, upstream = pair
    calls: list[int] = []
    hooks = [b.register_forward_hook(lambda *_, i=i: calls.append(i)) for i, b in enumerate(upstream.encoder.layers)]
    with torch.no_grad():
        every = upstream(noise(4_000)[None]).hidden_states
        for layer in range(4):
            calls.clear()
            assert torch.equal(upstream(noise(4_000)[None], layers=[layer]).hidden_states[layer], every[layer])
            assert calls == list(range(layer))
    for hook in hooks:
        hook.remove()
    with pytest.raises(AudioError, match="shorter than one frame"):
        upstream(torch.ones(1, 300))


def test_saved_and_loaded_needs_no_card(pair: tuple[str, Any, Any], tmp_path: Path) -> None:
    _, _, upstream = pair
    save_upstream(upstream, tmp_path)
    loaded = load_upstream(tmp_path)
    assert (loaded.config, loaded.fingerprint()) == (upstream.config, upstream.fingerprint())
    with torch.no_grad():
        half = load_upstream(tmp_path, dtype=torch.bfloat16)(noise(8_000)[None]).hidden_states
        ours, again = (u(noise(8_000)[None]).hidden_states for u in (upstream, loaded))
    for a, b, c in zip(ours, again, half, strict=True):
        assert torch.equal(a, b)
        assert torch.nn.functional.cosine_similarity(a.flatten(), c.float().flatten(), dim=0) > 0.99


def test_w2v_bert_has_the_same_numbers_without_fairseq2(tmp_path: Path) -> None:
    model = card("conformer", tmp_path)
    upstream = load_upstream(tmp_path / "model.pt")
    assert upstream.family == "w2v_bert"
    with torch.no_grad():
        ours = upstream(noise(9_001)[None]).hidden_states
    for a, b in zip(ours, expected(model, "conformer", noise(9_001)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_random_weights_are_those_of_the_seed(tmp_path: Path) -> None:
    card("base", tmp_path)
    first, again, other = (load_upstream(f"fairseq2:{tmp_path}", random_weights=seed) for seed in (1, 1, 2))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_what_can_not_be_used_is_one_sentence(tmp_path: Path) -> None:
    card("conformer", tmp_path)
    upstream = load_upstream(f"fairseq2:{tmp_path}")
    with pytest.raises(SpeechsslError, match="82 s at most"):
        upstream(torch.zeros(1, 16_000 * 83))
    (tmp_path / "model.pt").write_bytes(b"nothing")
    with pytest.raises(SpeechsslError, match="can't load the weights"):
        load_upstream(f"fairseq2:{tmp_path}")
    (tmp_path / "model.pt").unlink()
    with pytest.raises(SpeechsslError, match="no weights"):
        load_upstream(f"fairseq2:{tmp_path}")
    (tmp_path / "model.pt").touch()
    (tmp_path / "card.yaml").write_text("model_family: llama")
    with pytest.raises(ConfigError, match="model_family"):
        load_upstream(f"fairseq2:{tmp_path}")
    (tmp_path / "card.yaml").write_text("model_family: wav2vec2\nmodel_arch: huge")
    with pytest.raises(ConfigError, match="huge"):
        load_upstream(f"fairseq2:{tmp_path}")
    (tmp_path / "card.yaml").unlink()
    with pytest.raises(SpeechsslError, match="one card"):
        load_upstream(f"fairseq2:{tmp_path}")
    with pytest.raises(UnknownNameError, match="wav2vec2_large"):
        load_upstream("fairseq2:wav2vec2_larg")
