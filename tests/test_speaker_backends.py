"""Heads of speaker verification beside the x-vector, margins, normalised and calibrated scores, official trials."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from downstreams.speaker_verification.backend import make_cohort, score_trials
from downstreams.speaker_verification.config import HEADS, PRESETS, EcapaConfig, MhfaConfig, SpeakerVerificationConfig
from downstreams.speaker_verification.data import Trial, find_list, read_splits, read_trials
from downstreams.speaker_verification.ecapa import Ecapa, frame_norm
from downstreams.speaker_verification.head import XVector
from downstreams.speaker_verification.mhfa import FactorisedPooling
from downstreams.speaker_verification.task import TASK
from speechssl.config import load_config
from speechssl.data.corpus import open_corpus
from speechssl.errors import ConfigError, ManifestError, SpeechsslError
from speechssl.inference import infer
from speechssl.jobs import RunOptions
from speechssl.loss.margin import add_angle, margin_softmax
from speechssl.metric.calibration import (
    Calibration,
    actual_dcf,
    fit_calibration,
    llr_cost,
    min_llr_cost,
)
from speechssl.metric.detection import equal_error_rate, min_dcf
from speechssl.runner import run
from speechssl.task import FeatureConfig, TrainConfig
from speechssl.types import Utterance

Floats = NDArray[np.float64]
SMALL = SpeakerVerificationConfig(
    train=TrainConfig(steps=4, batch_seconds=30.0, learning_rate=1e-3, evaluate_every=2, max_duration=1.0),
    project_size=8,
    pooled_size=12,
    embedding_size=6,
    ecapa=EcapaConfig(channels=8, pooled=12, groups=4, squeezed=6, embedding=6),
    mhfa=MhfaConfig(heads=3, compressed=4, embedding=6),
)
MHFA = replace(SMALL, head="mhfa", features=FeatureConfig(interface="two_sums"))
LENGTHS = (17, 9, 3)


def ecapa(size: int = 5, config: SpeakerVerificationConfig = SMALL) -> Ecapa:
    """In evaluation, with all weights and running statistics drawn."""
    head = Ecapa(size, 4, frame_rate=50.0, config=config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in head.state_dict().items():
            if value.is_floating_point():
                drawn = 0.4 * torch.randn(value.shape, generator=generator)
                value.copy_(1.0 + drawn.abs() if name.endswith("var") else drawn)
    return head.eval()


def batch(size: int, lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor]:
    x = torch.randn(len(lengths), max(lengths), size, generator=torch.Generator().manual_seed(1))
    for row, length in enumerate(lengths):
        x[row, length:] = 0
    return x, torch.tensor(lengths)


class SlowEcapa:
    """One utterance at a time, from the paper's figures, with loops over frames."""

    def __init__(self, weights: dict[str, Tensor], groups: int) -> None:
        self.weights = {name: value.double().numpy() for name, value in weights.items()}
        self.groups = groups

    def conv(self, name: str, x: Floats, dilation: int = 1) -> Floats:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        size = weight.shape[2]
        out = np.tile(bias[:, None], (1, x.shape[1]))
        for t in range(x.shape[1]):
            for k in range(size):
                at = t + (k - size // 2) * dilation
                if 0 <= at < x.shape[1]:
                    out[:, t] += weight[:, :, k] @ x[:, at]
        return out

    def norm(self, name: str, x: Floats) -> Floats:
        mean, var = self.weights[f"{name}.running_mean"], self.weights[f"{name}.running_var"]
        found: Floats = (x.T - mean) / np.sqrt(var + 1e-5) * self.weights[f"{name}.weight"]
        shifted: Floats = (found + self.weights[f"{name}.bias"]).T
        return shifted

    def layer(self, name: str, x: Floats, dilation: int = 1) -> Floats:
        return self.norm(f"{name}.norm", np.maximum(self.conv(f"{name}.conv", x, dilation), 0))

    def linear(self, name: str, x: Floats) -> Floats:
        found: Floats = self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]
        return found

    def block(self, name: str, x: Floats, dilation: int) -> Floats:
        parts = np.split(self.layer(f"{name}.enter", x), self.groups)
        for k in range(1, self.groups):
            before = parts[k - 1] if k > 1 else 0.0
            parts[k] = self.layer(f"{name}.groups.{k - 1}", parts[k] + before, dilation)
        found = self.layer(f"{name}.leave", np.concatenate(parts))
        squeezed = np.maximum(self.linear(f"{name}.squeeze", found.mean(axis=1)), 0)
        gate = 1 / (1 + np.exp(-self.linear(f"{name}.excite", squeezed)))
        return x + gate[:, None] * found

    def embed(self, x: Floats) -> Floats:
        outputs = [self.layer("first", x.T)]
        for number, dilation in enumerate((2, 3, 4)):
            outputs.append(self.block(f"blocks.{number}", np.sum(outputs, axis=0), dilation))
        h = np.maximum(self.conv("join", np.concatenate(outputs[1:])), 0)  # (P, T)
        context = np.concatenate((h.mean(1), np.sqrt(np.maximum(h.var(1), 1e-9))))
        seen = np.concatenate((h, np.tile(context[:, None], (1, h.shape[1]))))
        scores = self.conv("attention.2", np.tanh(self.conv("attention.0", seen)))
        weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        mean = (weights * h).sum(1)
        deviation = np.sqrt(np.maximum((weights * h**2).sum(1) - mean**2, 1e-9))
        pooled = self.norm("pool_norm", np.concatenate((mean, deviation))[:, None])[:, 0]
        embedding: Floats = self.norm("norm", self.linear("project", pooled)[:, None])[:, 0]
        return embedding


def test_ecapa_in_a_padded_batch_is_the_slow_reference_of_each_utterance() -> None:
    head = ecapa()
    x, lengths = batch(5)
    slow = SlowEcapa(head.state_dict(), groups=4)
    found = head.embed(x, lengths)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found[row].detach(), slow.embed(x[row, :length].double().numpy()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("channels", "millions"), [(512, 6.2), (1024, 14.7)])
def test_ecapa_has_as_many_parameters_as_the_paper_counts(channels: int, millions: float) -> None:
    config = SpeakerVerificationConfig(head="ecapa", ecapa=EcapaConfig(channels=channels))
    with torch.device("meta"):
        head = Ecapa(80, 1211, frame_rate=100.0, config=config)
    count = sum(p.numel() for p in head.parameters()) - head.classes.numel()
    assert round(count / 1e6, 1) == millions
    assert count == {512: 6_191_104, 1024: 14_657_472}[channels]  # by hand from the layers
    assert head.classes.shape == (192, 1211)


def test_padding_takes_no_part_in_the_norms_of_training() -> None:
    x, lengths = batch(5)
    inside = torch.arange(17)[None, None] < lengths[:, None, None]
    ours, plain = torch.nn.BatchNorm1d(5), torch.nn.BatchNorm1d(5)
    found = frame_norm(ours, x.transpose(1, 2), inside)
    expected = plain(torch.cat([x[row, :length] for row, length in enumerate(LENGTHS)]))
    torch.testing.assert_close(found.transpose(1, 2)[inside[:, 0]], expected, atol=1e-6, rtol=0)
    assert not found.transpose(1, 2)[~inside[:, 0]].any()
    torch.testing.assert_close(ours.running_var, plain.running_var)
    longer = F.pad(x.transpose(1, 2), (0, 9), value=7.0)
    more = frame_norm(torch.nn.BatchNorm1d(5), longer, F.pad(inside, (0, 9)))
    torch.testing.assert_close(more[:, :, :17], found, atol=1e-6, rtol=0)


def test_training_of_ecapa_does_not_depend_on_padding() -> None:
    x, lengths = batch(5)
    losses = []
    for extra in (0, 30):
        head = ecapa().train()
        out = head.loss(F.pad(x, (0, 0, 0, extra)), lengths, torch.tensor([0, 3, 1]))
        out.loss_sum.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        gradients = [p.grad for p in head.parameters()]
        assert all(g is not None and torch.isfinite(g).all() for g in gradients)
        losses.append(float(out.loss_sum.detach()))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_factorised_pooling_is_the_slow_reference_of_each_utterance() -> None:
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        head = FactorisedPooling(10, 4, config=MHFA).eval()
    x, lengths = batch(10)
    found = head.embed(x, lengths)
    for row, length in enumerate(LENGTHS):
        keys, values = head.keys(x[row, :length, :5]), head.values(x[row, :length, 5:])
        pooled = []
        for h in range(3):
            scores = [(k @ head.attention.weight[h] + head.attention.bias[h]).item() for k in keys]
            weights = [math.exp(s) / sum(math.exp(other) for other in scores) for s in scores]
            pooled.append(sum(w * v for w, v in zip(weights, values, strict=True)))
        expected = head.project(torch.cat(pooled))  # type: ignore[arg-type]  # sums of tensors
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match="interface=two_sums"):
        FactorisedPooling(10, 4, config=replace(SMALL, head="mhfa"))


@pytest.mark.parametrize("head", list(HEADS))
def test_an_embedding_does_not_depend_on_padding_or_neighbours(head: str) -> None:
    config = load_config(SMALL, overrides=(*HEADS[head], "standardise=true"))
    kinds: dict[str, Callable[[], Any]] = {
        "xvector": lambda: XVector(6, 4, frame_rate=50.0, config=config),
        "ecapa": lambda: ecapa(6, config),
        "mhfa": lambda: FactorisedPooling(6, 4, config=config),
    }
    module = kinds[head]().eval()
    x, lengths = batch(6, (50, 21, 1))
    together = module.embed(x, lengths)
    for row, length in enumerate((50, 21, 1)):
        alone = module.embed(x[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)


def test_the_angular_margin_moves_angles_and_never_turns_round() -> None:
    cosine = torch.linspace(-1, 1, 2001, dtype=torch.float64, requires_grad=True)
    moved = add_angle(cosine, 0.2)
    roomy = cosine.detach().arccos() + 0.2 < math.pi
    expected = (cosine.detach().arccos() + 0.2).cos()
    torch.testing.assert_close(moved.detach()[roomy], expected[roomy], atol=1e-4, rtol=0)
    assert (moved.diff() > 0).all()
    moved.sum().backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
    assert cosine.grad is not None and torch.isfinite(cosine.grad).all()


@pytest.mark.parametrize("kind", ["am_softmax", "aam_softmax"])
def test_margin_softmax_is_its_definition(kind: Any) -> None:
    cosine = torch.rand(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.8 - 0.9
    labels = [2, 0, 3, 3, 1]
    expected = 0.0
    for row, label in enumerate(labels):
        own = float(cosine[row, label])
        right = own - 0.2 if kind == "am_softmax" else math.cos(math.acos(own) + 0.2)
        logits = [30 * (right if k == label else float(cosine[row, k])) for k in range(4)]
        expected += math.log(sum(math.exp(v) for v in logits)) - logits[label]
    found = margin_softmax(cosine, torch.tensor(labels), kind=kind, scale=30.0, margin=0.2)
    assert float(found) == pytest.approx(expected, abs=1e-8)


def scores(seed: int, targets: int = 60, nontargets: int = 400, gap: float = 1.5) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    return rng.normal(gap, 1.0, targets).round(2), rng.normal(0.0, 0.7, nontargets).round(2)


@pytest.mark.parametrize("prior", [0.5, 0.05])
def test_calibration_is_the_logistic_regression_of_scikit_learn(prior: float) -> None:
    target, nontarget = scores(0)
    found = fit_calibration(target, nontarget, prior=prior)
    values = np.concatenate((target, nontarget))[:, None]
    labels = np.repeat([1, 0], [target.size, nontarget.size])
    weights = np.repeat([prior / target.size, (1 - prior) / nontarget.size], [target.size, nontarget.size])
    model = LogisticRegression(C=1e12, tol=1e-12, max_iter=10_000).fit(values, labels, sample_weight=1e3 * weights)
    assert found.scale == pytest.approx(float(model.coef_[0, 0]), abs=1e-4)
    assert found.offset == pytest.approx(float(model.intercept_[0]) - math.log(prior / (1 - prior)), abs=1e-4)
    again = fit_calibration(1000 * target - 7, 1000 * nontarget - 7, prior=prior)
    np.testing.assert_allclose(again.apply(1000 * target - 7), found.apply(target), atol=1e-6)


def slow_cllr(target: Floats, nontarget: Floats) -> float:
    missed = sum(math.log2(1 + math.exp(-s)) for s in target) / len(target)
    return 0.5 * (missed + sum(math.log2(1 + math.exp(s)) for s in nontarget) / len(nontarget))


def test_cllr_is_its_definition_and_least_where_it_is_calibrated() -> None:
    target, nontarget = scores(1)
    assert llr_cost(target, nontarget) == pytest.approx(slow_cllr(target, nontarget), abs=1e-12)
    found = fit_calibration(target, nontarget)
    calibrated = llr_cost(found.apply(target), found.apply(nontarget))
    best = minimize(
        lambda x: slow_cllr(x[0] * target + x[1], x[0] * nontarget + x[1]), [1.0, 0.0], method="Nelder-Mead", tol=1e-10
    )
    assert calibrated == pytest.approx(best.fun, abs=1e-8)
    weights = np.repeat([0.5 / target.size, 0.5 / nontarget.size], [target.size, nontarget.size])
    labels = np.repeat([1.0, 0.0], [target.size, nontarget.size])
    values = np.concatenate((target, nontarget))
    posterior = IsotonicRegression().fit(values, labels, sample_weight=weights).predict(values)
    with np.errstate(divide="ignore"):
        lost = np.where(labels == 1, -np.log2(posterior), -np.log2(1 - posterior))
    assert min_llr_cost(target, nontarget) == pytest.approx(float((weights * lost).sum()), abs=1e-9)
    assert min_llr_cost(target, nontarget) <= calibrated < 1.0
    assert llr_cost([0.0], [0.0, 0.0]) == 1.0
    assert llr_cost([-2000.0], [2000.0]) == pytest.approx(2000 / math.log(2))


def test_actual_cost_is_counted_at_the_threshold_of_the_prior() -> None:
    target, nontarget = scores(2)
    for prior, miss_cost, alarm_cost in ((0.01, 1.0, 1.0), (0.3, 10.0, 1.0), (0.5, 1.0, 4.0)):
        threshold = math.log(alarm_cost * (1 - prior) / (miss_cost * prior))
        misses = sum(s <= threshold for s in target) / len(target)
        alarms = sum(s > threshold for s in nontarget) / len(nontarget)
        weights = miss_cost * prior, alarm_cost * (1 - prior)
        found = actual_dcf(target, nontarget, p_target=prior, cost_miss=miss_cost, cost_false_alarm=alarm_cost)
        assert found == pytest.approx((weights[0] * misses + weights[1] * alarms) / min(weights), abs=1e-12)
        least = min_dcf(target, nontarget, p_target=prior, cost_miss=miss_cost, cost_false_alarm=alarm_cost)
        assert found >= least - 1e-12


def test_calibration_of_degenerate_scores_is_defined() -> None:
    apart = fit_calibration([2.0, 3.0], [0.0, 1.0])
    assert math.isfinite(apart.scale) and apart.scale > 5
    assert llr_cost(apart.apply([2.0, 3.0]), apart.apply([0.0, 1.0])) < 1e-6
    assert min_llr_cost([2.0, 3.0], [0.0, 1.0]) == 0.0
    assert fit_calibration([0.0, 1.0], [2.0, 3.0]) == Calibration(0.0, 0.0)  # turned round: nothing is known
    assert fit_calibration([1.0, 1.0], [1.0]) == Calibration(0.0, 0.0)
    assert min_llr_cost([1.0, 1.0], [1.0]) == min_llr_cost([0.0], [1.0]) == 1.0
    for wrong in ([], [math.nan]):
        with pytest.raises(SpeechsslError, match="target_scores"):
            fit_calibration(wrong, [1.0])
    with pytest.raises(SpeechsslError, match="prior"):
        fit_calibration([1.0], [0.0], prior=1.0)
    with pytest.raises(SpeechsslError, match="p_target"):
        actual_dcf([1.0], [0.0], p_target=0.0)


@pytest.mark.parametrize(("top", "centre"), [(3, False), (3, True), (300, False)])
def test_normalised_scores_are_those_of_the_slow_loop(top: int, centre: bool) -> None:
    rng = np.random.default_rng(0)
    names = [Utterance(f"u{k}", "", labels={"speaker": f"s{k % 2}"}) for k in range(4)]
    others = [Utterance(f"c{k}", "", labels={"speaker": f"p{k % 5}"}) for k in range(12)]
    raw = {u.id: rng.normal(size=6) for u in (*names, *others)}
    raw = {name: v / np.linalg.norm(v) for name, v in raw.items()}
    embeddings = {name: torch.from_numpy(v) for name, v in raw.items()}
    trials = [Trial(names[a], names[b], a % 2 == b % 2, "") for a, b in ((0, 1), (0, 2), (3, 1))]
    config = SpeakerVerificationConfig(scoring="as_norm", cohort_top=top, centre=centre)
    found = score_trials(trials, embeddings, make_cohort(others, embeddings), config)
    means = [np.mean([raw[u.id] for u in others if u.labels["speaker"] == f"p{s}"], axis=0) for s in range(5)]
    centred = np.mean(means, axis=0) if centre else np.zeros(6)

    def cosine(a: Floats, b: Floats) -> float:
        a, b = a - centred, b - centred
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    for trial, score in zip(trials, found, strict=True):
        sides = [raw[u.id] for u in (trial.first, trial.second)]
        expected = 0.0
        for side in sides:
            nearest = sorted((cosine(side, m) for m in means), reverse=True)[:top]
            expected += 0.5 * float((cosine(*sides) - np.mean(nearest)) / np.std(nearest))
        assert score == pytest.approx(expected, abs=1e-8)
    with pytest.raises(SpeechsslError, match="there are 1"):
        make_cohort([replace(u, labels={"speaker": "x"}) for u in others], embeddings)


@pytest.fixture
def listed_corpus(tiny_corpus: Path, tmp_path: Path) -> Path:
    """The tiny corpus with a list of trials of bb2 and bb3, in Windows' line ends after a byte-order mark."""
    root = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, root)
    spoken: dict[str, list[str]] = {"bb2": [], "bb3": []}
    for utterance in open_corpus(root).utterances("speaker_test"):
        spoken[utterance.labels["speaker"]].append(utterance.id)
    lines = [f"{int(a == b)} {spoken[a][k]} {spoken[b][k + 1]}" for a in spoken for b in spoken for k in range(8)]
    (root / "lists").mkdir()
    (root / "lists/veri_test2.txt").write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n").encode())
    info = json.loads((root / "corpus.json").read_text())
    (root / "corpus.json").write_text(json.dumps({**info, "files": {"veri_test2": "lists/veri_test2.txt"}}))
    return root


def test_official_trials_are_taken_where_the_corpus_has_them(listed_corpus: Path) -> None:
    corpus = open_corpus(listed_corpus)
    few = replace(SMALL, max_eval_utterances=2)
    assert find_list(corpus, few) == "veri_test2"
    assert find_list(corpus, replace(few, trials="pairs")) is None
    with pytest.raises(ManifestError, match="has veri_test2"):
        find_list(corpus, replace(few, trials="list_test_hard"))
    data = TASK(few).prepare(corpus)
    assert len(data.extra["roles"].listed) == 32
    assert len(data.splits["test"]) == 18 and len(data.splits["dev"]) == 4
    left = corpus.without([data.extra["roles"].listed[1].first.id])
    assert len(read_trials(left, "veri_test2", left.utterances("speaker_test"))) == 28


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 bb2-01", r"line 2, is '1 bb2-01', but must be 1 or 0"),
        ("2 bb2-01 bb2-02", r"line 2, is '2 bb2-01 bb2-02'"),
        ("1 bb2-01 aa0-01", r"line 2, names 'aa0-01', which is not in 'speaker_test'"),
        ("1 bb2-01 bb2-02", "must have trials of both kinds"),
    ],
)
def test_a_trial_that_does_not_fit_is_named(line: str, message: str, listed_corpus: Path) -> None:
    corpus = open_corpus(listed_corpus)
    (listed_corpus / "lists/veri_test2.txt").write_text(f"1 bb2-02 bb2-03\n{line}\n")
    with pytest.raises(ManifestError, match=message):
        read_trials(corpus, "veri_test2", read_splits(corpus, SMALL)["test"])


def test_scores_are_normalised_and_calibrated_in_a_run_and_by_infer(listed_corpus: Path, tmp_path: Path) -> None:
    config = replace(SMALL, scoring="as_norm", centre=True, calibrate=True, cohort_top=3)
    options = RunOptions(cache_folder=str(tmp_path / "cache"))
    (result,) = run(
        "speaker_verification", upstream="fbank", corpus=listed_corpus, config=config, out=tmp_path, options=options
    )
    folder = tmp_path / "speaker_verification/fbank/seed0"
    assert {"eer", "cllr", "min cllr", "act dcf 0.01", "act dcf 0.05"} <= set(result.test.metrics)
    assert set(result.test.breakdown["eer by trial kind"]) == {"official list", "all"}
    rows = [line.split("\t") for line in (folder / "scores.tsv").read_text().splitlines()]
    assert rows[0] == ["trial", "label", "score", "kind", "log-likelihood ratio"] and len(rows) == 33
    sides = [[float(r[2]) for r in rows[1:] if r[1] == label] for label in ("target", "nontarget")]
    assert result.test.metrics["eer"].value == pytest.approx(equal_error_rate(*sides)[0], abs=1e-9)
    ratios = [[float(r[4]) for r in rows[1:] if r[1] == label] for label in ("target", "nontarget")]
    assert result.test.metrics["cllr"].value == pytest.approx(llr_cost(*ratios), abs=1e-5)
    saved = json.loads((folder / "task.json").read_text())["state"]
    calibration = Calibration(*saved["calibration"])
    np.testing.assert_allclose(calibration.apply(np.concatenate(sides)), np.concatenate(ratios), atol=1e-3)
    names = rows[1][0].split()
    files = [listed_corpus / "audio" / f"{name}.flac" for name in names]
    found = infer(folder, files)
    assert found["score"][0][1] == pytest.approx(float(rows[1][2]), rel=0.02, abs=0.02)  # features in bf16 there
    expected = calibration.apply(found["score"][0][1])
    assert found["log-likelihood ratio"][0][1] == pytest.approx(float(expected), rel=1e-2, abs=1e-2)


def test_the_calibration_of_test_is_that_of_dev(listed_corpus: Path, tmp_path: Path) -> None:
    config = replace(SMALL, calibrate=True)
    task = TASK(config)
    data = task.prepare(open_corpus(listed_corpus))
    rng = np.random.default_rng(0)
    everything = {u.id: u for split in ("dev", "test") for u in data.splits[split]}
    centres = {name: rng.normal(size=6) for name in sorted({u.labels["speaker"] for u in everything.values()})}
    raw = {name: centres[u.labels["speaker"]] + rng.normal(size=6) for name, u in everything.items()}
    embeddings = {name: torch.tensor(v / np.linalg.norm(v)) for name, v in raw.items()}
    head = torch.nn.Identity()
    dev = task.evaluate(head, {u.id: embeddings[u.id] for u in data.splits["dev"]}, data, "dev", tmp_path)
    assert "calibration" not in task.state(data)
    test = task.evaluate(head, {u.id: embeddings[u.id] for u in data.splits["test"]}, data, "test", tmp_path)
    members = [u for u in everything.values() if u.labels["speaker"] in ("aa2", "aa3")]
    pairs = [(a, b) for k, a in enumerate(members) for b in members[k + 1 :]]
    same = [a.labels["speaker"] == b.labels["speaker"] for a, b in pairs]
    cosines = np.array([float(embeddings[a.id] @ embeddings[b.id]) for a, b in pairs])
    expected = fit_calibration(cosines[np.array(same)], cosines[~np.array(same)])
    assert task.state(data)["calibration"] == pytest.approx([expected.scale, expected.offset], rel=1e-4)
    least = llr_cost(expected.apply(cosines[np.array(same)]), expected.apply(cosines[~np.array(same)]))
    assert dev.metrics["cllr"].value == pytest.approx(least, abs=1e-6)
    assert test.metrics["eer"].n == 32


@pytest.mark.parametrize("head", ["ecapa", "mhfa"])
def test_a_run_trains_each_head_and_infer_uses_it(head: str, tiny_corpus: Path, tmp_path: Path) -> None:
    config = load_config(SMALL, overrides=HEADS[head])
    options = RunOptions(cache_folder=str(tmp_path / "cache"))
    upstream = "hubert_tiny:random" if head == "mhfa" else "fbank"
    (result,) = run(
        "speaker_verification", upstream=upstream, corpus=tiny_corpus, config=config, out=tmp_path, options=options
    )
    (folder,) = (tmp_path / "speaker_verification").glob("*/seed0")
    weights = load_file(folder / "head.safetensors")
    if head == "mhfa":
        assert weights["featurizer.logits"].shape == (2, result.upstream.num_layers)
        assert not torch.equal(*weights["featurizer.logits"])
        assert result.layer_weights == []  # there are two for each layer
    found = infer(folder, sorted((tiny_corpus / "audio").iterdir())[:3])
    np.testing.assert_allclose(np.diag(np.array(found["cosine"])), 1.0, atol=1e-3)


def test_presets_name_superbs_head_first_and_all_heads_have_settings() -> None:
    assert list(HEADS) == ["xvector", "ecapa", "mhfa"]
    for name, settings in HEADS.items():
        for preset in PRESETS.values():
            config = load_config(preset, overrides=settings)
            assert config.head == name
            assert (config.loss, config.margin) == (
                (preset.loss, preset.margin) if name == "xvector" else ("aam_softmax", 0.2)
            )
    with pytest.raises(ConfigError, match="multiple"):
        EcapaConfig(channels=10)
    with pytest.raises(ConfigError, match="cohort_top"):
        SpeakerVerificationConfig(cohort_top=1)
