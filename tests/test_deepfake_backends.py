"""Published back-ends of deepfake detection: their sizes, their numbers, and that padding takes no part in them."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from deepfake_reference import SlowAasist, SlowNes2Net, SlowSls, sinc_filters
from torch import Tensor, nn
from torch.nn import functional as F

from downstreams.deepfake_detection.backends.aasist import Aasist, RawAasist
from downstreams.deepfake_detection.backends.aasist_names import load_official, official_name, read_official
from downstreams.deepfake_detection.backends.build import build_detector
from downstreams.deepfake_detection.backends.config import (
    RAW_AASIST,
    RAW_AASIST_L,
    AasistConfig,
    Nes2NetConfig,
    SlsConfig,
)
from downstreams.deepfake_detection.backends.graph import GraphPool
from downstreams.deepfake_detection.backends.nes2net import Nes2Net
from downstreams.deepfake_detection.backends.sls import Sls
from downstreams.deepfake_detection.backends.window import fit_frames
from downstreams.deepfake_detection.config import HEADS, PRESETS
from downstreams.deepfake_detection.head import FOUND_ON_DEV, Detector
from speechssl.config import load_config
from speechssl.errors import AudioError, ConfigError, SpeechsslError
from speechssl.featurizer.build import build_featurizer
from speechssl.frontend.sinc import sinc_filters as our_filters
from speechssl.task import FeatureConfig

TINY = AasistConfig(projected=12, channels=(3, 5), widths=(4, 6), ratios=(0.6, 0.7, 0.5, 0.9))
SINC = AasistConfig(front="sinc", channels=(3, 5), widths=(4, 6), ratios=(0.6, 0.7, 0.5, 0.9))
LENGTHS = (50, 31, 9)


def drawn(module: nn.Module, scale: float = 0.3) -> nn.Module:
    """In evaluation, with all weights and running statistics drawn."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point() and value.dim() > 0:
                noise = scale * torch.randn(value.shape, generator=generator)
                value.copy_(1.0 + noise.abs() if name.endswith("var") else noise)
    return module.eval()


def batch(size: int, lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor]:
    x = torch.randn(len(lengths), max(lengths), size, generator=torch.Generator().manual_seed(1))
    for row, length in enumerate(lengths):
        x[row, length:] = 0
    return x, torch.tensor(lengths)


def official_weights(module: nn.Module) -> dict[str, Tensor]:
    """As the published code saves them."""
    return {official_name(k): v for k, v in module.state_dict().items() if not k.endswith(FOUND_ON_DEV)}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def slow(module: nn.Module, config: AasistConfig) -> SlowAasist:
    return SlowAasist(
        official_weights(module), ratios=config.ratios, temperatures=config.temperatures, official=config.official
    )


def test_the_networks_have_as_many_parameters_as_published() -> None:
    with torch.device("meta"):
        assert count(RawAasist(RAW_AASIST)) == 297_866
        assert count(RawAasist(RAW_AASIST_L)) == 85_306
        assert round(count(Aasist(1024, config=AasistConfig())) / 1e3) == 447
        gates = build_featurizer(FeatureConfig(interface="gated_sum"), 24, 1024)
        sls = Sls(1024, config=SlsConfig(), window=201)
        assert sls.hidden.in_features == 22_847
        assert round((count(sls) + count(gates)) / 1e3) == 23_399
        plain, extended = (Nes2Net(1024, config=Nes2NetConfig(extended=extended)) for extended in (False, True))
        assert (count(plain), count(extended)) == (511_794, 512_039)  # by hand from the layers of the published code
        assert round((count(extended) - 1025) / 1e3) == 511  # published, with one output


def test_the_filters_are_those_of_the_formula() -> None:
    found = our_filters(7, 129, sample_rate=16_000)
    assert found.shape == (7, 1, 129)
    np.testing.assert_allclose(found[:, 0], sinc_filters(7), atol=1e-7, rtol=0)


@pytest.mark.parametrize("official", [True, False])
def test_aasist_on_features_in_a_padded_batch_is_the_slow_reference(official: bool) -> None:
    config = AasistConfig(**{**vars(TINY), "official": official})
    network = drawn(Aasist(7, config=config))
    x, lengths = batch(7)
    found = network(x, lengths).detach()
    reference = slow(network, config)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found[row], reference.features(x[row, :length].double().numpy()), atol=1e-5, rtol=0)
    other = AasistConfig(**{**vars(TINY), "official": not official})
    changed = Aasist(7, config=other).eval()
    changed.load_state_dict(network.state_dict())
    assert (changed(x, lengths) - found).abs().max() > 1e-3


@pytest.mark.parametrize("official", [True, False])
def test_aasist_on_waveforms_in_a_padded_batch_is_the_slow_reference(official: bool) -> None:
    config = AasistConfig(**{**vars(SINC), "official": official})
    network = drawn(RawAasist(config, channels=8))
    samples = (9_000, 4_600)  # 4 and 2 nodes of time
    waveform = torch.randn(2, 9_000, generator=torch.Generator().manual_seed(2))
    found = network(waveform, torch.tensor(samples)).detach()  # what lies in the padding is not heard
    reference = slow(network, config)
    for row, length in enumerate(samples):
        np.testing.assert_allclose(
            found[row], reference.raw(waveform[row, :length].double().numpy(), 8), atol=1e-5, rtol=0
        )
    with pytest.raises(AudioError, match="131 samples"):
        network(waveform, torch.tensor([9_000, 130]))


def test_sls_in_a_padded_batch_is_the_slow_reference() -> None:
    network = drawn(Sls(7, config=SlsConfig(hidden=6), window=20))
    x, lengths = batch(7)
    found = network(x, lengths).detach()
    reference = SlowSls(network.state_dict())
    for row, length in enumerate(LENGTHS):
        expected = reference.features(x[row, :length].double().numpy(), 20)
        np.testing.assert_allclose(found[row], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("extended", [False, True])
def test_nes2net_in_a_padded_batch_is_the_slow_reference(extended: bool) -> None:
    config = Nes2NetConfig(extended=extended, groups=(3, 4), squeeze=2)
    network = drawn(Nes2Net(22, config=config))  # groups of 8, the last with zeros
    x, lengths = batch(22)
    found = network(x, lengths).detach()
    reference = SlowNes2Net(network.state_dict())
    for row, length in enumerate(LENGTHS):
        expected = reference.features(x[row, :length].double().numpy(), (3, 4), 2)
        np.testing.assert_allclose(found[row], expected, atol=1e-5, rtol=0)


def test_each_utterance_gates_its_layers_by_their_means() -> None:
    interface = build_featurizer(FeatureConfig(interface="gated_sum"), 3, 5)
    drawn(interface, 0.8)
    x, lengths = batch(5)
    layers = torch.stack((x, 2 * x - x**2, x**2))
    found = interface(layers, lengths)
    (weight,), (bias,) = (value.tolist() for value in interface.state_dict().values())
    for row, length in enumerate(LENGTHS):
        expected = torch.zeros(length, 5)
        for layer in layers[:, row, :length]:
            mean = [float(layer[:, d].sum()) / length for d in range(5)]
            score = sum(w * m for w, m in zip(weight, mean, strict=True)) + bias
            expected += layer / (1 + math.exp(-score))
        torch.testing.assert_close(found[row, :length], expected, atol=1e-5, rtol=0)
        assert not found[row, length:].any()
        alone = interface(layers[:, row, :length])  # as `infer` joins them
        torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match="pooling=none"):
        FeatureConfig(interface="gated_sum", pooling="mean")


def test_public_weights_are_loaded_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "AASIST-L.pth"
    source = drawn(RawAasist(RAW_AASIST_L))
    weights = official_weights(source)
    for name in (
        "first_bn.running_var", "encoder.0.0.conv_downsample.bias", "encoder.5.0.bn1.weight", "pos_S", "master2",
        "GAT_layer_S.att_weight", "HtrgGAT_layer_ST21.att_weightM", "HtrgGAT_layer_ST12.proj_without_attM.bias",
        "HtrgGAT_layer_ST11.proj_type2.weight", "GAT_layer_T.bn.running_mean", "pool_hT2.proj.weight", "out_layer.bias",
    ):  # fmt: skip
        assert name in weights
    torch.save(weights, path)
    network = read_official(path)
    assert [m.ratio for m in network.modules() if isinstance(m, GraphPool)] == [0.4, 0.5, 0.7, 0.7, 0.7, 0.7]
    waveform, lengths = torch.randn(1, 4_600, generator=torch.Generator().manual_seed(0)), torch.tensor([4_600])
    assert torch.equal(network(waveform, lengths), source(waveform, lengths))
    torch.save({"encoder.5.0.conv2.weight": torch.zeros(7, 1)}, path)
    with pytest.raises(SpeechsslError, match="7 channels, but there are 64 and 24"):
        read_official(path)
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(SpeechsslError, match="no weights of AASIST"):
        read_official(path)


def test_public_weights_behind_a_model_leave_the_model_out() -> None:
    source = drawn(Aasist(7, config=TINY))
    weights = official_weights(source) | {"ssl_model.model.mask_emb": torch.zeros(4)}
    assert {"LL.weight", "first_bn1.weight", "attention.0.weight", "attention.2.bias", "attention.3.bias"} <= set(
        weights
    )
    network = Aasist(7, config=TINY).eval()
    load_official(network, weights, origin="x.pth")
    x, lengths = batch(7)
    assert torch.equal(network(x, lengths), source(x, lengths))
    again = Aasist(7, config=TINY).eval()
    load_official(again, {f"module.{name}": value for name, value in weights.items()}, origin="x.pth")
    assert torch.equal(again(x, lengths), source(x, lengths))
    del weights["master1"]
    with pytest.raises(SpeechsslError, match="lack 'master1'"):
        load_official(network, weights, origin="x.pth")


def test_a_window_repeats_what_is_short_and_cuts_what_is_long() -> None:
    x = torch.arange(1.0, 6.0)[None, :, None].repeat(2, 1, 1)
    x[1, 2:] = 0
    lengths = torch.tensor([5, 2])
    found, new = fit_frames(x, lengths, least=1, window=4)
    assert found[:, :, 0].tolist() == [[1, 2, 3, 4], [1, 2, 1, 2]] and new.tolist() == [4, 4]
    found, new = fit_frames(x, lengths, least=3)
    assert found[:, :, 0].tolist() == [[1, 2, 3, 4, 5], [1, 2, 1, 0, 0]] and new.tolist() == [5, 3]
    assert fit_frames(x, lengths, least=2)[0] is x


SMALL: dict[str, tuple[str, ...]] = {
    "statistics": ("head.width=6", "head.attention=4"),
    "aasist": ("head.aasist.projected=12", "head.aasist.channels=[3,5]", "head.aasist.widths=[4,6]"),
    "sls": ("head.sls.hidden=6", "head.window=0.5"),
    "nes2net": ("head.nes2net.groups=[3,2]",),
    "scalable_aasist": (
        "head.scalable_aasist.projected=12", "head.scalable_aasist.channels=[3,4]",
        "head.scalable_aasist.widths=[6,4]", "head.scalable_aasist.heads=2",
    ),
    "conformer": ("head.conformer.width=8", "head.conformer.blocks=2", "head.conformer.kernel=5"),
    "lcnn": (),
    "gmm": ("head.gmm.components=4",),
}  # fmt: skip


def small(head: str, *more: str) -> Detector:
    overrides = HEADS[head]
    kind = overrides[0].removeprefix("head.kind=")
    config = load_config(PRESETS["deepfake_detection"], overrides=[*overrides, *SMALL[kind], *more])
    scale = 0.1 if kind == "lcnn" else 0.3  # nine layers of many channels would blow up
    return drawn(build_detector(config, 10, frame_rate=50.0), scale)  # type: ignore[return-value]  # the same module


@pytest.mark.parametrize("head", list(HEADS))
def test_a_score_does_not_depend_on_padding_or_neighbours(head: str) -> None:
    network = small(head)
    x, lengths = batch(10, (50, 21, 1))
    together = network(x, lengths)
    assert together.shape == (3, 2)
    for row, length in enumerate(lengths.tolist()):
        alone = network(x[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", list(HEADS))
def test_training_does_not_depend_on_padding_and_reaches_the_weights(head: str) -> None:
    x, lengths = batch(10, (50, 21, 4))
    losses = []
    for extra in (0, 30):
        network = small(head, "head.dropout=0").train()
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
        loss = F.cross_entropy(network(F.pad(x, (0, 0, 0, extra)), lengths), torch.tensor([0, 1, 1]))
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        unused = [n for n, p in network.named_parameters() if p.grad is None]
        assert all(".norm1." in n for n in unused)  # what the published AASIST computes and drops
        assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_settings_that_do_not_fit_are_refused() -> None:
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: small("aasist", "head.aasist.front=sinc"), "features.normalize=false"),
        (lambda: small("aasist", "head.aasist.front=sinc", "features.normalize=false"), "use the upstream 'sinc'"),
        (lambda: small("sls", "head.window=null"), "one input for 3 frames"),
        (lambda: small("nes2net", "head.nes2net.kernel=2"), "an odd kernel"),
        (lambda: small("aasist", "head.window=0.001"), "`head.window` must hold a frame"),
        (lambda: small("aasist", "head.aasist.ratios=[0.5,0.5,1.5,0.5]"), "must lie in"),
    ]
    for call, message in cases:
        with pytest.raises(ConfigError, match=message):
            call()
