"""NPC against convolutions over whole kernels with the authors' names, on torchaudio's features."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

import speechssl.upstream
from speechssl.encoder.masked_conv import MaskedConvConfig, MaskedConvEncoder
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.loading import load_upstream
from speechssl.objective import Labelling
from upstreams.npc.config import PRESETS
from upstreams.npc.model import build
from upstreams.npc.pretrain import PRETRAIN_PRESETS, build_pretraining

WIDTH, DEPTH, BANDS, KERNEL, MASK = 16, 4, 80, 15, 5


def random_state(*, batch_norm: bool = True, cross_layer: bool = True) -> dict[str, Tensor]:
    """Weights by the authors' names."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * max(1, torch.Size(shape[1:]).numel()) ** -0.5

    state: dict[str, Tensor] = {}
    for index in range(DEPTH):
        for name, shape in (("conv", (WIDTH, WIDTH if index else BANDS, 3)), ("linear", (WIDTH, WIDTH, 1))):
            state[f"blocks.{index}.{name}.weight"], state[f"blocks.{index}.{name}.bias"] = normal(*shape), normal(WIDTH)
        for name in ("bn1", "bn2") if batch_norm else ():
            norm = f"blocks.{index}.{name}"
            state[f"{norm}.weight"], state[f"{norm}.bias"] = 1 + 0.3 * normal(WIDTH), normal(WIDTH)
            state[f"{norm}.running_mean"], state[f"{norm}.running_var"] = normal(WIDTH), 0.5 + normal(WIDTH).square()
            state[f"{norm}.num_batches_tracked"] = torch.tensor(1000)
        if cross_layer or index == DEPTH - 1:
            conv = f"masked_convs.{index}"
            state[f"{conv}.conv.weight"], state[f"{conv}.conv.bias"] = normal(WIDTH, WIDTH, KERNEL), normal(WIDTH)
            state[f"{conv}.conv_mask"] = kernel_mask(index).expand(WIDTH, WIDTH, KERNEL).clone()
    for group in range(4):
        state[f"vq_layers.{group}.vq_logits.weight"] = normal(64, WIDTH // 4)
        state[f"vq_layers.{group}.vq_logits.bias"] = normal(64)
        state[f"vq_layers.{group}.codebook_CxE.weight"] = normal(WIDTH // 4, 64)
    state["postnet.weight"], state["postnet.bias"] = normal(BANDS, WIDTH), normal(BANDS)
    return state


def kernel_mask(index: int) -> Tensor:
    """1 where the masked convolution above block `index` sees, (KERNEL,)."""
    hidden = MASK + 2 * (index + 1)
    return ((torch.arange(KERNEL) - KERNEL // 2).abs() > hidden // 2).float()


def s3prl(state: dict[str, Tensor], **changes: Any) -> dict[str, Any]:
    """What S3PRL's runner saves."""
    paras = {
        "kernel_size": KERNEL, "mask_size": MASK, "n_blocks": DEPTH, "hidden_size": WIDTH, "dropout": 0.1,
        "residual": True, "batch_norm": True, "activate": "relu", "disable_cross_layer": False,
        "vq": {"codebook_size": [64] * 4, "code_dim": [WIDTH // 4] * 4, "gumbel_temperature": 1.0}, **changes,
    }  # fmt: skip
    audio = {"feat_type": "fbank", "feat_dim": BANDS, "frame_length": 25, "frame_shift": 10, "cmvn": True}
    settings = {"model": {"paras": paras}, "task": {"sequence_length": 1500}, "data": {"audio": audio}}
    return {"Args": argparse.Namespace(upstream="npc"), "config": settings, "model": state, "Step": 1000}


def plain(state: dict[str, Tensor], waveform: Tensor, *, residual: bool, relu: bool) -> list[Tensor]:
    """Hidden states of one utterance."""

    def norm(name: str, x: Tensor) -> Tensor:
        if f"{name}.weight" not in state:
            return x
        scale = state[f"{name}.weight"] / (state[f"{name}.running_var"] + 1e-5).sqrt()
        return (x - state[f"{name}.running_mean"][:, None]) * scale[:, None] + state[f"{name}.bias"][:, None]

    act = torch.relu if relu else torch.tanh
    fbank = torchaudio.compliance.kaldi.fbank(waveform[None], num_mel_bins=BANDS, window_type="hamming")
    features = (fbank - fbank.mean(dim=0)) / (1e-10 + fbank.std(dim=0))
    states, x, total = [features], features.T, torch.zeros(())
    for index in range(DEPTH):
        conv, linear = (f"blocks.{index}.{name}" for name in ("conv", "linear"))
        y = F.conv1d(x[None], state[f"{conv}.weight"], state[f"{conv}.bias"], padding=1)[0]
        y = act(norm(f"blocks.{index}.bn1", y))
        y = state[f"{linear}.weight"][:, :, 0] @ y + state[f"{linear}.bias"][:, None]
        y = norm(f"blocks.{index}.bn2", y)
        x = act(y + x if residual and index else y)
        states.append(x.T)
        masked = f"masked_convs.{index}.conv"
        if f"{masked}.weight" in state:
            weight = state[f"{masked}.weight"] * kernel_mask(index)
            total = total + torch.tanh(F.conv1d(x[None], weight, state[f"{masked}.bias"], padding=KERNEL // 2)[0])
    return [*states, total.T]


VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "last block alone": {"disable_cross_layer": True},
    "tanh, no norm": {"batch_norm": False, "activate": "tanh", "residual": False},
}


@pytest.mark.parity("S3PRL's .ckpt ({variant})", "a slow reference")
@pytest.mark.parametrize("variant", VARIANTS)
def test_s3prls_checkpoint_gives_the_hidden_states_of_the_formulas(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speechssl.upstream, "GROUP_SECONDS", 1_000.0)  # one batch, whatever the padding costs
    changes = VARIANTS[variant]
    state = random_state(
        batch_norm=changes.get("batch_norm", True), cross_layer=not changes.get("disable_cross_layer", False)
    )
    torch.save(s3prl(state, **changes), tmp_path / "npc.ckpt")
    upstream = load_upstream(tmp_path / "npc.ckpt")
    assert (upstream.family, upstream.frame_rate) == ("npc", 100.0)
    generator = torch.Generator().manual_seed(0)
    sizes = (9_000, 16_037, 900)
    waveforms = [0.1 * torch.randn(n, generator=generator) * torch.linspace(0.1, 1.0, n) for n in sizes]
    with torch.no_grad():
        out = upstream(nn.utils.rnn.pad_sequence(waveforms, batch_first=True), torch.tensor(sizes))
    for row, waveform in enumerate(waveforms):
        expected = plain(
            state, waveform, residual=changes.get("residual", True), relu=changes.get("activate") != "tanh"
        )
        for ours, theirs in zip(out.hidden_states, expected, strict=True):
            assert int(out.lengths[row]) == len(theirs)
            torch.testing.assert_close(ours[row, : len(theirs)], theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("cross_layer", [True, False])
@pytest.mark.parametrize("mask_size", [1, 5])
def test_the_last_hidden_state_sees_around_the_hidden_frames_and_nothing_of_them(
    mask_size: int, cross_layer: bool
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = MaskedConvConfig(width=16, mask_size=mask_size, cross_layer=cross_layer, activation="tanh")
        encoder = MaskedConvEncoder(6, shape).double().eval()
        features = torch.randn(1, 41, 6, dtype=torch.float64, requires_grad=True)
    middle = 20
    state = encoder(features, None, layers={5})[5]
    gradient = torch.autograd.grad(state[0, middle].square().sum(), features)[0][0].abs().amax(dim=1)
    distance = (torch.arange(41) - middle).abs()
    seen = (distance > mask_size // 2) & (distance <= 7 + 4)
    # Widened by its own reach of 3, every masked kernel begins where the mask ends.
    assert (gradient[distance <= mask_size // 2] == 0).all()
    assert (gradient[distance > 7 + 4] == 0).all()
    assert (gradient[seen] > 0).all()


def test_a_mask_that_leaves_a_kernel_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="kernel"):
        MaskedConvEncoder(6, MaskedConvConfig(width=8, depth=5))
    with pytest.raises(ConfigError, match="activation"):
        MaskedConvEncoder(6, MaskedConvConfig(width=8, activation="gelu"))


def test_a_bottleneck_is_named(tmp_path: Path) -> None:
    torch.save(s3prl(random_state(), dim_bottleneck=8), tmp_path / "npc.ckpt")
    with pytest.raises(ConfigError, match="dim_bottleneck"):
        load_upstream(tmp_path / "npc.ckpt")


@pytest.mark.parametrize("missing", ["blocks.1.bn2.running_var", "masked_convs.2.conv.bias", "blocks.0.conv.weight"])
def test_a_missing_weight_is_named_as_the_file_would_have_it(missing: str, tmp_path: Path) -> None:
    state = random_state()
    del state[missing]
    torch.save(s3prl(state), tmp_path / "npc.ckpt")
    with pytest.raises(SpeechsslError, match=missing.replace(".", r"\.")):
        load_upstream(tmp_path / "npc.ckpt")


def test_with_what_does_nothing_the_model_has_as_many_weights_as_s3prls() -> None:
    objective = build_pretraining(build(PRESETS["npc_base"]), PRETRAIN_PRESETS["npc_base"], Labelling())
    hidden_taps, biases = (7 + 9 + 11 + 13) * 512 * 512, 2 * 4 * 512
    assert sum(p.numel() for p in objective.parameters()) + hidden_taps + biases == 19_380_560
