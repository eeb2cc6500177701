"""APC's and VQ-APC's loss, one utterance and one frame at a time."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechssl.data.batching import make_generator
from speechssl.errors import ConfigError
from speechssl.loading import build_upstream
from speechssl.metric.tallies import summarize
from speechssl.objective import Labelling, PretrainInputs
from upstreams.apc.config import PRESETS
from upstreams.apc.pretrain import PRETRAIN_PRESETS, TRAIN_PRESETS, ApcPretrainConfig, ApcPretraining

SIZES = (16_000, 9_000, 12_345)


def make(config: ApcPretrainConfig) -> ApcPretraining:
    upstream: Any = build_upstream("apc", replace(PRESETS["apc_tiny"], width=24), seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ApcPretraining(upstream, config, Labelling()).eval()


def inputs(*sizes: int) -> PretrainInputs:
    generator = make_generator("waveform")
    waveforms = [0.1 * torch.randn(n, generator=generator) * torch.linspace(0.1, 1.0, n) for n in sizes]
    return PretrainInputs(nn.utils.rnn.pad_sequence(waveforms, batch_first=True), torch.tensor(sizes))


def plain_loss(objective: ApcPretraining, given: PretrainInputs, quantize: Any) -> tuple[Tensor, int]:
    """Summed loss and number of frames: what is heard up to a frame predicts the one n later."""
    ahead, total, count = objective.config.steps_ahead, torch.zeros(()), 0
    for waveform, size in zip(given.waveform, given.lengths.tolist(), strict=True):
        values, _ = objective.upstream.extract_features(waveform[None, :size], torch.tensor([size]))
        for t in range(values.size(1) - ahead):
            heard = objective.upstream.encode(values[:, : t + 1], layers=frozenset({3}))[3][0, -1]
            total = total + (objective.prediction(quantize(heard)) - values[0, t + ahead]).abs().mean()
            count += 1
    return total, count


@pytest.mark.parametrize("ahead", [1, 5])
def test_the_loss_is_the_error_of_the_frame_that_many_steps_after_the_last_one_heard(ahead: int) -> None:
    objective = make(ApcPretrainConfig(steps_ahead=ahead))
    given = inputs(4_000, 3_000)
    output = objective(given, make_generator(0))
    expected, count = plain_loss(objective, given, lambda x: x)
    assert int(output.sample_size) == count
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-5, atol=1e-5)


def test_vq_apc_predicts_from_the_likeliest_entry_and_in_training_passes_gradients_through() -> None:
    objective = make(ApcPretrainConfig(groups=2, entries=16))
    quantizer = objective.quantizer
    assert quantizer is not None

    def quantize(heard: Tensor) -> Tensor:
        parts = []
        for part, one in zip(heard.chunk(2), quantizer.slices, strict=True):
            scores = part @ one.projection[0].weight.T + one.projection[0].bias  # type: ignore[index, union-attr, operator]
            parts.append(one.codebook[0, int(scores.argmax())])  # type: ignore[index]
        return torch.cat(parts)

    given = inputs(4_000, 3_000)
    output = objective(given, make_generator(0))
    expected, count = plain_loss(objective, given, quantize)
    assert int(output.sample_size) == count
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-5, atol=1e-5)
    objective.train()(given, make_generator(0)).loss_sum.backward()
    assert all(bool((p.grad != 0).any()) for p in objective.upstream.parameters() if p.grad is not None)
    values = summarize({"sample_size": output.sample_size, **output.metrics})
    assert 2 <= values["code_perplexity"] <= 32
    assert 2 <= values["probability_perplexity"] <= 32


def test_a_hidden_state_knows_nothing_of_what_follows() -> None:
    upstream = make(ApcPretrainConfig()).upstream
    values = torch.randn(1, 20, 80, generator=make_generator(0), requires_grad=True)
    for state in list(upstream.encode(values, layers=frozenset({1, 2, 3})).values()):
        gradient = torch.autograd.grad(state[0, 9].square().sum(), values, retain_graph=True)[0][0]
        assert (gradient[10:] == 0).all()
        assert (gradient[:10].abs().sum(dim=1) > 0).all()


def test_what_an_utterance_is_padded_with_and_batched_with_does_not_change_its_share() -> None:
    objective = make(ApcPretrainConfig())
    given = inputs(*SIZES)
    together = objective(given, make_generator(0))
    alone = [
        objective(PretrainInputs(w[None, :n], torch.tensor([n])), make_generator(0))
        for w, n in zip(given.waveform, SIZES, strict=True)
    ]
    torch.testing.assert_close(together.loss_sum, torch.stack([a.loss_sum for a in alone]).sum(), rtol=1e-5, atol=1e-4)
    assert float(together.sample_size) == sum(float(a.sample_size) for a in alone)


def test_utterances_too_short_to_predict_anything_count_nothing() -> None:
    for config in (ApcPretrainConfig(), ApcPretrainConfig(groups=1, entries=8)):
        objective = make(config).train()
        output = objective(inputs(1_000, 500), make_generator(0))  # 4 frames and 1
        output.loss_sum.backward()
        assert float(output.loss_sum.detach()) == float(output.sample_size) == 0
    mixed = make(ApcPretrainConfig())(inputs(1_000, 2_000), make_generator(0))
    assert float(mixed.sample_size) == 11 - 5


def test_presets_train_as_s3prl_does_in_crops_of_fifteen_seconds() -> None:
    assert PRETRAIN_PRESETS.keys() == TRAIN_PRESETS.keys() == PRESETS.keys()
    upstream = make(ApcPretrainConfig()).upstream
    for name, train in TRAIN_PRESETS.items():
        assert int(upstream.output_lengths(torch.tensor([round(train.max_seconds * 16_000)]))) == 1500
        assert train.batch_seconds / train.max_seconds >= 8 == train.max_batch
        assert (PRETRAIN_PRESETS[name].groups > 0) == ("vq" in name)


def test_settings_that_make_no_sense_are_named() -> None:
    with pytest.raises(ConfigError, match="steps_ahead"):
        ApcPretrainConfig(steps_ahead=0)
    with pytest.raises(ConfigError, match="multiple of the groups"):
        make(ApcPretrainConfig(groups=5))
