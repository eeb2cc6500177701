"""Back-ends of deepfake detection that came after AASIST, and the baselines on LFCC, against slow references."""

from pathlib import Path

import numpy as np
import pytest
import torch
from deepfake_heads_reference import SlowConformer, SlowLcnn, SlowMixtures, SlowScalableAasist, slow_lfcc
from sklearn.mixture import GaussianMixture
from test_deepfake_backends import LENGTHS, batch, count, drawn

from downstreams.deepfake_detection.backends.build import build_detector
from downstreams.deepfake_detection.backends.config import (
    ConformerHeadConfig,
    GmmConfig,
    LcnnConfig,
    ScalableAasistConfig,
)
from downstreams.deepfake_detection.backends.conformer import ConformerDetector
from downstreams.deepfake_detection.backends.gmm import MixtureDetector
from downstreams.deepfake_detection.backends.lcnn import Lcnn
from downstreams.deepfake_detection.backends.scalable_aasist import ScalableAasist
from downstreams.deepfake_detection.config import HEADS, PRESETS
from downstreams.deepfake_detection.head import Detector
from downstreams.deepfake_detection.task import DeepfakeDetection
from speechssl.config import load_config
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.feature_store import FeatureStore
from speechssl.fitting import Fit
from speechssl.loading import load_upstream
from speechssl.task import TaskData
from speechssl.types import Utterance

SCALABLE = ScalableAasistConfig(projected=12, channels=(3, 4), widths=(6, 4), ratios=(0.6, 0.7, 0.5), heads=2)
CONFORMER = ConformerHeadConfig(width=8, blocks=2, heads=2, kernel=7, ffn_multiple=2, distance=6)


def test_the_networks_have_as_many_numbers_as_their_published_layers() -> None:
    with torch.device("meta"):
        assert count(ScalableAasist(1024, config=ScalableAasistConfig())) == 576_202  # added up by hand
        conformer = count(ConformerDetector(1024, config=ConformerHeadConfig()))
        # The published blocks add up to 2,506,324; ours have biases in attention (432) and none in convolutions (1008).
        assert conformer == 2_506_324 + 4 * (432 - 1008)
        assert count(Lcnn(60, config=LcnnConfig())) == 269_729
        assert count(MixtureDetector(60, config=GmmConfig())) == 2 * 512 * (1 + 60 + 60)


def test_scalable_aasist_in_a_padded_batch_is_the_slow_reference() -> None:
    network = drawn(ScalableAasist(7, config=SCALABLE))
    reference = SlowScalableAasist(network.state_dict(), ratios=SCALABLE.ratios, heads=SCALABLE.heads)
    x, lengths = batch(7)
    found = network(x, lengths).detach()
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found[row], reference.features(x[row, :length].double().numpy()), atol=1e-5, rtol=0)


def test_the_conformer_in_a_padded_batch_is_the_slow_reference() -> None:
    network = drawn(ConformerDetector(7, config=CONFORMER))
    reference = SlowConformer(network.state_dict())
    x, lengths = batch(7)
    found = network(x, lengths).detach()
    for row, length in enumerate(LENGTHS):
        expected = reference.features(x[row, :length].double().numpy(), heads=2, distance=6)
        np.testing.assert_allclose(found[row], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [9, 35])
def test_the_light_network_in_a_padded_batch_is_the_slow_reference(size: int) -> None:
    network = drawn(Lcnn(size, config=LcnnConfig()), 0.1)
    reference = SlowLcnn(network.state_dict())
    x, lengths = batch(size)
    found = network(x, lengths).detach()
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found[row], reference.features(x[row, :length].double().numpy()), atol=1e-5, rtol=0)


def test_mixtures_in_a_padded_batch_are_the_slow_reference() -> None:
    network = drawn(MixtureDetector(7, config=GmmConfig(components=5)))
    reference = SlowMixtures(network.state_dict())
    x, lengths = batch(7)
    found = network(x, lengths).detach()
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found[row], reference.features(x[row, :length].double().numpy()), atol=1e-5, rtol=0)


def two_clouds(frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames of two classes, each of three clusters."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(frames) % 2
    centres = 3 * torch.randn(2, 3, 4, generator=generator)
    kind = torch.randint(3, (frames,), generator=generator)
    return centres[classes, kind] + torch.randn(frames, 4, generator=generator), classes


def test_expectation_maximisation_is_scikit_learns() -> None:
    frames, classes = two_clouds(1200)
    network = MixtureDetector(4, config=GmmConfig(components=5, iterations=4, tolerance=0.0))
    # scikit-learn begins with what k-means of our own gives.
    begun = MixtureDetector(4, config=network.config)
    for number, sample in enumerate(begun._sample(lambda: [(frames, classes)], torch.Generator().manual_seed(1))):
        begun._begin(sample, number, torch.Generator().manual_seed(number))
        network._begin(sample, number, torch.Generator().manual_seed(number))
    network._begin = lambda *_: None  # type: ignore[method-assign]  # it has begun
    parts = [(frames[i : i + 100], classes[i : i + 100]) for i in range(0, 1200, 100)]
    network.fit(lambda: parts, generator=torch.Generator().manual_seed(1), report=lambda *_: None)
    for number in range(2):
        weights = begun.log_weights[number].detach().double().exp()
        theirs = GaussianMixture(
            5, covariance_type="diag", max_iter=4, tol=0.0, reg_covar=1e-6,
            weights_init=(weights / weights.sum()).numpy(),
            means_init=begun.means[number].detach().double().numpy(),
            precisions_init=(-begun.log_variances[number].detach().double()).exp().numpy(),
        )  # fmt: skip
        theirs.fit(frames[classes == number].double().numpy())
        for ours, expected in (
            (network.log_weights[number].exp(), theirs.weights_),
            (network.means[number], theirs.means_),
            (network.log_variances[number].exp(), theirs.covariances_),
        ):
            np.testing.assert_allclose(ours.detach(), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(SpeechsslError, match="the spoofed speech has 2"):
        network.fit(lambda: [(frames[:4], classes[:4])], generator=torch.Generator(), report=lambda *_: None)


def test_a_run_fits_mixtures_and_tells_two_kinds_of_features_apart(tmp_path: Path) -> None:
    settings = [*HEADS["gmm"], "head.gmm.components=6", "head.gmm.iterations=5"]
    task = DeepfakeDetection(load_config(PRESETS["deepfake_detection"], overrides=settings))
    frames, classes = two_clouds(30 * 40)
    frames = torch.cat((frames[classes == 0], frames[classes == 1])).view(30, 40, 4)  # 15 spoofed ones come first
    found: dict[str, list[Utterance]] = {"train": [], "dev": [], "test": []}
    arrays = {}
    for number in range(30):
        split = ("train", "train", "dev")[number % 3]
        attack = "world" if number < 15 else "bonafide"
        labels = {"attack": attack, "original": str(number), "seen": True}
        found[split].append(Utterance(f"u{number}", "", 0.0, 0.4, labels))
        arrays[f"u{number}"] = frames[number][None]
    store = FeatureStore(arrays, dict.fromkeys(arrays, 40), frame_rate=100.0, layers=(0,))
    heads = []
    for folder in ("one", "two"):
        fit = Fit(task, TaskData(found), dict.fromkeys(found, store), seed=0, folder=tmp_path / folder, identity="x")
        fit.fit()
        assert fit.evaluate("dev").metrics["eer"].value == 0.0
        heads.append(fit.probe.head.state_dict())
    assert torch.equal(heads[0]["means"], heads[1]["means"])
    # Killed after its third pass, a run goes on from there, and ends with the same mixtures.
    notes: list[str] = []

    def report(done: float, note: str) -> None:
        notes.append(note)
        if len(notes) == 4:  # k-means and two passes are saved
            raise KeyboardInterrupt

    def begin() -> Fit:
        stores = dict.fromkeys(found, store)
        return Fit(task, TaskData(found), stores, seed=0, folder=tmp_path / "killed", identity="x", report=report)

    with pytest.raises(KeyboardInterrupt):
        begin().fit()
    fit = begin()
    fit.fit()
    assert notes[0] == "k-means" and notes[4] == "goes on" and "k-means" not in notes[1:]
    again = fit.probe.head.state_dict()
    assert all(torch.equal(again[name], heads[0][name]) for name in ("log_weights", "means", "log_variances"))
    assert not again["progress"].any()
    with pytest.raises(ConfigError, match="set `train"):
        task = DeepfakeDetection(load_config(task.config, overrides=["train.steps=5"]))
        task.build_head(4, 100.0, TaskData(found))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lfcc", {"ceps": 20, "filters": 20, "window": 320, "hop": 160, "fft": 512, "high": 8e3, "emphasis": True,
                  "energy": False, "floor": 2.0**-52}),
        ("lfcc_2021_gmm", {"ceps": 20, "filters": 70, "window": 480, "hop": 240, "fft": 1024, "high": 4e3,
                           "emphasis": False, "energy": False, "floor": 2.0**-52}),
        ("lfcc_2021_lcnn", {"ceps": 20, "filters": 20, "window": 320, "hop": 160, "fft": 1024, "high": 4e3,
                            "emphasis": True, "energy": True, "floor": 2.0**-23}),
    ],
)  # fmt: skip
def test_linear_cepstra_are_those_of_the_slow_reference(name: str, settings: dict[str, float]) -> None:
    waveform = 0.1 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(0)).cumsum(dim=1)
    waveform[:, 2000:] *= 1e-3
    upstream = load_upstream(name)
    found = upstream(waveform).hidden_states[0][0]
    expected = slow_lfcc(waveform[0].double().numpy(), **settings)  # type: ignore[arg-type]  # of several types
    assert found.shape == expected.shape == (int(upstream.output_lengths(torch.tensor([4000]))), 60)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_the_window_is_a_setting_of_all_heads_and_a_projection_of_one() -> None:
    x, lengths = batch(10, (50, 21))
    for head in ("statistics", "scalable_aasist", "conformer", "lcnn", "gmm"):
        config = load_config(PRESETS["deepfake_detection"], overrides=[*HEADS[head], "head.window=0.4"])
        network = drawn(build_detector(config, 10, frame_rate=50.0))
        assert isinstance(network, Detector)
        torch.testing.assert_close(network(x[:, :20], lengths.clamp(max=20)), network(x, lengths))
    projected, plain = Lcnn(768, config=LcnnConfig(projected=60)), Lcnn(60, config=LcnnConfig())
    assert count(projected) == count(plain) + 769 * 60
    for wrong, message in (
        ({"heads": 5}, "must divide"), ({"ratios": (0.0, 0.5, 0.5)}, "must lie in"), ({"projected": 2}, "3 or more"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            ScalableAasistConfig(**wrong)  # type: ignore[arg-type]  # each is of its own type
