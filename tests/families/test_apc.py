"""APC and VQ-APC against gated recurrent units written out, with S3PRL's names, on torchaudio's features."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import torchaudio
from torch import Tensor, nn

import speechssl.upstream
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.loading import load_upstream
from speechssl.objective import Labelling
from upstreams.apc.config import PRESETS
from upstreams.apc.model import build
from upstreams.apc.pretrain import PRETRAIN_PRESETS, build_pretraining

WIDTH, DEPTH, BANDS = 24, 3, 80


def random_state(*, quantized: bool = False) -> dict[str, Tensor]:
    """Weights by S3PRL's names."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    state: dict[str, Tensor] = {}
    for index in range(DEPTH):
        inputs = WIDTH if index else BANDS
        state[f"rnn_layers.{index}.weight_ih_l0"] = normal(3 * WIDTH, inputs)
        state[f"rnn_layers.{index}.weight_hh_l0"] = normal(3 * WIDTH, WIDTH)
        state[f"rnn_layers.{index}.bias_ih_l0"] = normal(3 * WIDTH)
        state[f"rnn_layers.{index}.bias_hh_l0"] = normal(3 * WIDTH)
    if quantized:
        state["vq_layers.0.vq_logits.weight"], state["vq_layers.0.vq_logits.bias"] = normal(16, WIDTH), normal(16)
        state["vq_layers.0.codebook_CxE.weight"] = normal(WIDTH, 16)
    state["postnet.weight"], state["postnet.bias"] = normal(BANDS, WIDTH), normal(BANDS)
    return state


def s3prl(state: dict[str, Tensor], *, audio: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """What S3PRL's runner saves."""
    paras = {"num_layers": DEPTH, "hidden_size": WIDTH, "dropout": 0.1, "residual": True, **changes}
    heard = {
        "feat_type": "fbank", "feat_dim": BANDS, "frame_length": 25, "frame_shift": 10, "decode_wav": False,
        **(audio or {}),
    }  # fmt: skip
    settings = {
        "model": {"paras": paras}, "task": {"sequence_length": 1500, "n_future": 5}, "data": {"audio": heard}
    }  # fmt: skip
    return {
        "Optimizer": {"param_groups": [{"lr": 1e-4}]}, "Step": 1000, "Args": argparse.Namespace(upstream="apc"),
        "Config": {"runner": {"n_epochs": 100}}, "config": settings, "Upstream_Config": settings, "model": state,
    }  # fmt: skip


def plain_features(waveform: Tensor) -> Tensor:
    """(S,) -> (T, M) by torchaudio."""
    fbank = torchaudio.compliance.kaldi.fbank(waveform[None], num_mel_bins=BANDS, window_type="hamming")
    return (fbank - fbank.mean(dim=0)) / (1e-10 + fbank.std(dim=0))


def plain(state: dict[str, Tensor], waveform: Tensor, *, residual: bool) -> list[Tensor]:
    """Hidden states of one utterance, frame by frame."""
    states = [plain_features(waveform)]
    for index in range(DEPTH):
        heard, spoken = (f"rnn_layers.{index}.{{}}_{side}_l0" for side in ("ih", "hh"))
        hidden, out = torch.zeros(WIDTH), []
        for frame in states[-1]:
            a = state[heard.format("weight")] @ frame + state[heard.format("bias")]
            b = state[spoken.format("weight")] @ hidden + state[spoken.format("bias")]
            reset = torch.sigmoid(a[:WIDTH] + b[:WIDTH])
            update = torch.sigmoid(a[WIDTH : 2 * WIDTH] + b[WIDTH : 2 * WIDTH])
            new = torch.tanh(a[2 * WIDTH :] + reset * b[2 * WIDTH :])
            hidden = (1 - update) * new + update * hidden
            out.append(hidden)
        made = torch.stack(out)
        states.append(made + states[-1] if residual and index else made)
    return states


@pytest.mark.parity("S3PRL's .ckpt ({model})", "a slow reference")
@pytest.mark.parametrize("model", ["APC", "VQ-APC", "without residuals"])
def test_s3prls_checkpoint_gives_the_hidden_states_of_the_formulas(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speechssl.upstream, "GROUP_SECONDS", 1_000.0)  # one batch, whatever the padding costs
    quantized, residual = model == "VQ-APC", model != "without residuals"
    vq = {"vq": {"codebook_size": [16], "code_dim": [WIDTH], "gumbel_temperature": 0.5}} if quantized else {}
    state = random_state(quantized=quantized)
    torch.save(s3prl(state, audio={"cmvn": True}, residual=residual, **vq), tmp_path / "apc.ckpt")
    upstream = load_upstream(tmp_path / "apc.ckpt")
    assert (upstream.family, upstream.frame_rate) == ("apc", 100.0)
    generator = torch.Generator().manual_seed(0)
    waveforms = [0.1 * torch.randn(n, generator=generator) * torch.linspace(0.1, 1.0, n) for n in (9_000, 16_037, 900)]
    with torch.no_grad():
        out = upstream(nn.utils.rnn.pad_sequence(waveforms, batch_first=True), torch.tensor([9_000, 16_037, 900]))
    for row, waveform in enumerate(waveforms):
        for ours, theirs in zip(out.hidden_states, plain(state, waveform, residual=residual), strict=True):
            assert int(out.lengths[row]) == len(theirs)
            torch.testing.assert_close(ours[row, : len(theirs)], theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("audio", [{"feat_type": "mfcc"}, {"cmvn": False}, {"frame_shift": 20}, {"low_freq": 100}])
def test_other_features_are_named(audio: dict[str, Any], tmp_path: Path) -> None:
    torch.save(s3prl(random_state(), audio=audio), tmp_path / "apc.ckpt")
    with pytest.raises(ConfigError, match=next(iter(audio))):
        load_upstream(tmp_path / "apc.ckpt")


def test_a_missing_weight_is_named_as_the_file_would_have_it(tmp_path: Path) -> None:
    state = random_state()
    del state["rnn_layers.1.bias_hh_l0"]
    torch.save(s3prl(state), tmp_path / "apc.ckpt")
    with pytest.raises(SpeechsslError, match=r"rnn_layers\.1\.bias_hh_l0"):
        load_upstream(tmp_path / "apc.ckpt")


def test_missing_settings_are_named(tmp_path: Path) -> None:
    content = s3prl(random_state())
    del content["config"]["model"]["paras"]["residual"]
    torch.save(content, tmp_path / "apc.ckpt")
    with pytest.raises(SpeechsslError, match="residual"):
        load_upstream(tmp_path / "apc.ckpt")


@pytest.mark.parametrize(("name", "count"), [("apc_base", 4_105_296), ("apc_vq_base", 4_630_096)])
def test_with_their_heads_the_models_have_as_many_weights_as_s3prls(name: str, count: int) -> None:
    objective = build_pretraining(build(PRESETS[name]), PRETRAIN_PRESETS[name], Labelling())
    assert sum(p.numel() for p in objective.parameters()) == count
