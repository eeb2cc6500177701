"""vq-wav2vec's objective, with both quantizers, against slow ones written from the paper and fairseq's modules."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from plain_wav2vec import plain_future_loss
from torch import Tensor

from speechssl.data.batching import make_generator
from speechssl.loading import build_upstream
from speechssl.loss.future_prediction import receptive_frames, sample_other_frames
from speechssl.metric.tallies import summarize
from speechssl.objective import Labelling, PretrainInputs
from speechssl.quantizer.gumbel import GumbelQuantizer
from speechssl.train.optim import learning_rate
from speechssl.train.run import pretrain_config
from upstreams.vq_wav2vec.config import PRESETS, VqWav2VecConfig
from upstreams.vq_wav2vec.model import VqWav2VecUpstream
from upstreams.vq_wav2vec.pretrain import VqWav2VecPretrainConfig, VqWav2VecPretraining, build_pretraining

SMALL = VqWav2VecConfig(
    conv_channels=12, conv_kernels=(10, 8, 4), conv_strides=(5, 4, 2), width=20, context_kernels=(2, 3), codewords=9,
    activation="gelu",
)  # fmt: skip
LENGTHS = torch.tensor([2_400, 1_500])


def make(model: VqWav2VecConfig, **changes: float) -> VqWav2VecPretraining:
    upstream = build_upstream("vq_wav2vec", model, seed=0)
    assert isinstance(upstream, VqWav2VecUpstream)
    config = VqWav2VecPretrainConfig(prediction_steps=3, num_negatives=4)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build_pretraining(upstream, replace(config, **changes), Labelling())  # type: ignore[arg-type]  # floats


@pytest.fixture
def inputs() -> PretrainInputs:
    waveform = 0.1 * torch.randn(2, 2_400, generator=make_generator("vq"))
    waveform[1, 1_500:] = 0
    return PretrainInputs(waveform, LENGTHS)


def plain(
    objective: VqWav2VecPretraining, quantized: Tensor, frames: Tensor, generator: torch.Generator
) -> tuple[float, int]:
    """wav2vec's loss of quantised features (B, T, W), pair by pair, and its number of pairs."""
    others = sample_other_frames(frames, quantized.size(1), 4, generator=generator)
    with torch.no_grad():
        context = objective.upstream.contextualize(quantized.transpose(1, 2), frames)
    loss, pairs, _ = plain_future_loss(objective.prediction, context, quantized, frames.tolist(), others)
    return loss, pairs


@pytest.mark.parametrize("shared", [False, True])
def test_the_gumbel_loss_is_the_plain_one_with_the_same_noise(shared: bool, inputs: PretrainInputs) -> None:
    objective = make(replace(SMALL, shared_codebook=shared), diversity_weight=0.3).train()
    objective.begin_step(1_000)
    output = objective(inputs, make_generator(0))
    upstream, quantizer = objective.upstream, objective.upstream.quantizer
    generator = make_generator(0)
    with torch.no_grad():
        features, frames = upstream.extract_features(inputs.waveform, LENGTHS)
        rows = [features[row, :, t].double() for row in range(2) for t in range(int(frames[row]))]
        weights = {n: p.double() for n, p in quantizer.named_parameters()}
        noise = -torch.empty(len(rows), 2, 9).exponential_(generator=generator).log()
        likeliest, soft = torch.zeros(2, 9), torch.zeros(2, 9, dtype=torch.float64)
        quantized = torch.zeros(2, features.size(2), 12)
        places = [(row, t) for row in range(2) for t in range(int(frames[row]))]
        for (row, t), x, drawn in zip(places, rows, noise, strict=True):
            hidden = F.gelu(weights["projection.0.weight"] @ x + weights["projection.0.bias"])
            logits = (weights["projection.1.weight"] @ hidden + weights["projection.1.bias"]).view(2, 9)
            for group in range(2):
                likeliest[group, logits[group].argmax()] += 1
                soft[group] += logits[group].softmax(dim=0)
                word = (logits[group] + drawn[group]).argmax()
                quantized[row, t, 6 * group : 6 * group + 6] = quantizer.codebook[0 if shared else group, word]
    loss, pairs = plain(objective, quantized, frames, generator)
    average = soft / len(rows)
    perplexity = float(torch.exp(-(average * (average + 1e-7).log()).sum(dim=1)).sum())
    loss += 0.3 * pairs * (18 - perplexity) / 18
    assert int(output.sample_size) == pairs
    assert float(output.loss_sum.detach()) == pytest.approx(loss, rel=1e-6)
    assert torch.equal(output.metrics["code_usage"], likeliest)
    torch.testing.assert_close(output.metrics["probability_usage"].double(), soft, rtol=0, atol=1e-4)
    assert float(output.metrics["temperature"]) / pairs == pytest.approx(2 * 0.999995**1_000)


@pytest.mark.parametrize("shared", [False, True])
def test_the_kmeans_loss_is_the_plain_one_with_means_over_valid_frames(shared: bool, inputs: PretrainInputs) -> None:
    objective = make(replace(SMALL, quantizer="kmeans", shared_codebook=shared)).train()
    quantizer = objective.upstream.quantizer
    with torch.no_grad():
        quantizer.codebook.mul_(100)  # of the size of the features, so that several are chosen
    output = objective(inputs, make_generator(0))
    with torch.no_grad():
        features, frames = objective.upstream.extract_features(inputs.waveform, LENGTHS)
        z = objective.upstream.comparable(features, frames).transpose(1, 2)
        quantized, errors, used = torch.zeros_like(z), [], torch.zeros(2, 9)
        for row in range(2):
            for t in range(int(frames[row])):
                for group in range(2):
                    part = slice(6 * group, 6 * group + 6)
                    book = quantizer.codebook[0 if shared else group].double()
                    word = (book - z[row, t, part].double()).norm(dim=1).argmin()
                    quantized[row, t, part] = quantizer.codebook[0 if shared else group, word]
                    used[group, word] += 1
                errors.append((quantized[row, t] - z[row, t]).double().square())
    loss, pairs = plain(objective, quantized, frames, make_generator(0))
    assert (used > 0).sum() > 6
    loss += pairs * (1 + 0.25) * float(torch.stack(errors).mean())
    assert float(output.loss_sum.detach()) == pytest.approx(loss, rel=1e-6)
    assert torch.equal(output.metrics["code_usage"], used)
    assert int(output.metrics["code_usage"].sum()) == 2 * int(frames.sum())


def test_predictions_move_the_features_and_only_kmeans_own_loss_moves_its_codewords(inputs: PretrainInputs) -> None:
    gradients = []
    for weight in (0.0, 1.0, 2.0):
        objective = make(replace(SMALL, quantizer="kmeans"), quantizer_weight=weight).train()
        objective(inputs, make_generator(0)).loss_sum.backward()
        codebook = objective.upstream.quantizer.codebook.grad
        frontend = objective.upstream.get_parameter("frontend.convs.0.weight").grad
        assert codebook is not None
        assert frontend is not None
        gradients.append((codebook, frontend))
    assert (gradients[0][0] == 0).all()
    assert (gradients[0][1] != 0).any()
    assert (gradients[1][0] != 0).any()
    torch.testing.assert_close(gradients[2][0], 2 * gradients[1][0], rtol=1e-5, atol=1e-6)


def test_the_gumbel_softmax_passes_gradients_to_codewords_logits_and_features(inputs: PretrainInputs) -> None:
    objective = make(SMALL).train()
    objective(inputs, make_generator(0)).loss_sum.backward()
    quantizer = objective.upstream.quantizer
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in quantizer.parameters())
    frontend = objective.upstream.get_parameter("frontend.convs.0.weight").grad
    assert frontend is not None
    assert (frontend != 0).any()


def test_the_temperature_is_a_function_of_the_updates_made() -> None:
    objective = make(SMALL)
    quantizer = objective.upstream.quantizer
    assert isinstance(quantizer, GumbelQuantizer)
    temperatures = []
    for step in (0, 100_000, 277_000, 278_000, 400_000, 0):
        objective.begin_step(step)
        temperatures.append(quantizer.temperature)
    assert temperatures[0] == temperatures[-1] == 2.0
    assert temperatures[1] == pytest.approx(2 * 0.999995**100_000)
    assert temperatures[2] > 0.5
    assert temperatures[3] == temperatures[4] == 0.5


def test_in_evaluation_the_choice_is_that_of_the_upstreams_codes(inputs: PretrainInputs) -> None:
    for quantizer in ("gumbel", "kmeans"):
        objective = make(replace(SMALL, quantizer=quantizer)).eval()  # type: ignore[arg-type]  # one of the two
        with torch.no_grad():
            one, two = (objective(inputs, make_generator(3)) for _ in range(2))
        codes = objective.upstream.codes(inputs.waveform, LENGTHS)
        counts = torch.stack([torch.bincount(codes[..., g][codes[..., g] >= 0], minlength=9) for g in range(2)])
        assert torch.equal(one.metrics["code_usage"], counts.float())
        assert torch.equal(one.loss_sum, two.loss_sum)
        log = summarize({"sample_size": one.sample_size, **one.metrics})
        assert 1 < log["code_perplexity"] <= 18
        assert log["target_std"] > 0


def test_the_published_settings() -> None:
    _, config = pretrain_config("vq_wav2vec_gumbel")
    assert learning_rate(1_000, config.train) == pytest.approx(1e-5)
    assert (config.objective.prediction_steps, config.objective.num_negatives) == (12, 10)
    model = PRESETS["vq_wav2vec_gumbel"]
    assert receptive_frames(model.conv_kernels, model.conv_strides) == 3
    assert (model.groups, model.codewords, model.projection_depth) == (2, 320, 2)
    assert PRESETS["vq_wav2vec_tiny"].shared_codebook
