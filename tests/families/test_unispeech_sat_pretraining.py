"""UniSpeech-SAT's utterance contrast against a slow loop over frames, and the terms of its loss."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from speechssl.data.batching import make_generator
from speechssl.errors import ConfigError
from speechssl.loading import build_upstream
from speechssl.loss.utterance_contrast import utterance_contrast
from speechssl.metric.tallies import summarize
from speechssl.objective import Labelling, PretrainInputs
from speechssl.train.run import pretrain_config
from speechssl.types import LossOutput
from upstreams.unispeech_sat.config import PRESETS
from upstreams.unispeech_sat.pretrain import UniSpeechSatPretrainConfig, UniSpeechSatPretraining


def slowly(context: Tensor, targets: Tensor, owner: Tensor, others: Tensor, temperature: float) -> tuple[float, float]:
    """Sums over frames of the mean binary cross-entropy, and of the share of scores on the right side of 0."""
    loss = right = 0.0
    for frame in range(len(owner)):
        terms, hits = [], []
        for other in [frame, *others[frame].tolist()]:
            cosine = torch.dot(context[frame], targets[other]) / (context[frame].norm() * targets[other].norm())
            probability = 1 / (1 + math.exp(-cosine.item() / temperature))
            same = bool(owner[other] == owner[frame])
            terms.append(-math.log(probability if same else 1 - probability))
            hits.append((cosine.item() >= 0) == same)
        loss += sum(terms) / len(terms)
        right += sum(hits) / len(hits)
    return loss, right


def test_the_contrast_is_that_of_a_slow_loop() -> None:
    context, targets = (torch.randn(17, 6, generator=make_generator(s), dtype=torch.float64) for s in (0, 1))
    owner = torch.tensor([0] * 5 + [1] * 9 + [2] * 3)
    found = utterance_contrast(context, targets, owner, number=8, temperature=0.1, generator=make_generator(4))
    draw = torch.randint(16, (17, 8), generator=make_generator(4))
    others = draw + (draw >= torch.arange(17)[:, None])
    assert (others != torch.arange(17)[:, None]).all()
    loss, right = slowly(context, targets, owner, others, 0.1)
    assert found.loss_sum.item() == pytest.approx(loss, rel=1e-5)
    assert found.accuracy.item() == pytest.approx(right, rel=1e-5)
    assert found.same.item() == pytest.approx(
        sum((1 + (owner[o] == owner[i]).sum().item()) / 9 for i, o in enumerate(others)), rel=1e-5
    )


def test_every_other_frame_of_the_batch_is_drawn_alike_and_never_the_frame_itself() -> None:
    """With orthogonal targets the gradient of a frame's score says which frames were drawn."""
    N, number = 6, 3_000
    context = torch.eye(N).requires_grad_()
    found = utterance_contrast(
        context, torch.eye(N), torch.arange(N), number=number, temperature=1e6, generator=make_generator(0)
    )
    drawn = torch.autograd.grad(found.loss_sum, context)[0] * 1e6 * 2 * (number + 1)  # 1 per drawn other, -1 for own
    expected = number / (N - 1)
    for row in range(1, N):
        others = drawn[row][torch.arange(N) != row]
        assert (others - expected).abs().max() < 6 * math.sqrt(expected)


def test_a_single_frame_has_only_itself() -> None:
    one = torch.ones(1, 4)
    found = utterance_contrast(one, one, torch.zeros(1), number=5, temperature=0.1, generator=make_generator(0))
    assert found.loss_sum.item() == pytest.approx(math.log1p(math.exp(-10)), rel=1e-3)
    assert found.same.item() == 1.0


def objective(*, pre_norm: bool = False, **changes: object) -> UniSpeechSatPretraining:
    config = replace(
        PRESETS["unispeech_sat_tiny"], width=32, heads=4, ffn_width=48, depth=3, pos_kernel=7, pre_norm=pre_norm
    )
    settings = replace(  # type: ignore[arg-type]  # a test's shorthand
        UniSpeechSatPretrainConfig(final_dim=16, contrast_layer=2, contrast_others=20, entries=8), **changes
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        upstream = build_upstream("unispeech_sat", config, seed=0)
        return UniSpeechSatPretraining(upstream, settings, Labelling((7,), (50.0,))).eval()  # type: ignore[arg-type]


def inputs() -> PretrainInputs:
    waveform = 0.1 * torch.randn(3, 16_000, generator=make_generator(0))
    codes = torch.randint(7, (3, 50), generator=make_generator(1))
    return PretrainInputs(waveform, torch.tensor([16_000, 12_000, 9_000]), (codes,))


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_loss_is_the_sum_of_its_terms(quantize: bool, pre_norm: bool) -> None:
    module = objective(quantize=quantize, pre_norm=pre_norm, contrast_weight=0.7, diversity_weight=0.3)
    output = module(inputs(), make_generator(5))
    terms = output.metrics
    expected = terms["masked_loss"] + 0.7 * terms["contrast_loss"]
    if quantize:
        expected = expected + 0.3 * terms["diversity_loss"]
        codes = summarize({**terms, "sample_size": output.sample_size})["contrast_code_perplexity"]
        assert 2 <= codes <= 16
    else:
        assert "diversity_loss" not in terms
    torch.testing.assert_close(output.loss_sum, expected)
    assert list(module.contrast_norm) == (["2"] if pre_norm else [])
    size = output.sample_size
    assert 0 < terms["contrast_loss"] / size < 10.01  # at most log(1 + exp(10)), of a cosine of 1 over 0.1
    assert 1 / 3 < terms["contrast_same"] / size < 0.6  # three utterances, and the frame itself


def test_the_contrast_trains_the_blocks_below_its_layer_and_none_above() -> None:
    module = objective(contrast_weight=1.0, diversity_weight=0.0)
    states = {2: torch.randn(3, 49, 32, generator=make_generator(0)).requires_grad_()}
    states[3] = torch.zeros(3, 49, 32).requires_grad_()
    mask = torch.rand(3, 49, generator=make_generator(2)) < 0.5
    start = LossOutput(torch.zeros(()), mask.sum(), {})
    loss = module.further_loss(start, states, mask, make_generator(3)).loss_sum
    lower, upper = torch.autograd.grad(loss, [states[2], states[3]], allow_unused=True)
    assert upper is None
    assert (lower[mask] != 0).any()
    assert (lower[~mask] == 0).all()


def test_the_temperature_of_the_quantizer_follows_the_step() -> None:
    module = objective()
    assert module.quantizer is not None
    for step in (0, 1_000, 10_000_000):
        module.begin_step(step)
        assert module.quantizer.temperature == pytest.approx(max(2.0 * 0.999995**step, 0.5))


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"contrast_layer` must lie in 1\.\.3"):
        objective(contrast_layer=6)


def test_the_presets_contrast_the_middle_layer() -> None:
    for name, layer in (("tiny", 3), ("base", 6), ("base_plus", 6), ("large", 12)):
        config = pretrain_config(f"unispeech_sat_{name}")[1]
        assert (config.objective.contrast_layer, config.objective.contrast_others) == (layer, 100)
        assert layer * 2 == config.model.depth
        assert (config.objective.mixing.prob, config.objective.mixing.noise_prob) == (0.2, 0.0)
