"""data2vec 2.0's objective against a slow one on plain functions, dense where ours gathers, one view at a time.

The reference encodes all frames of every view and forbids attention to the hidden ones, computes each head and bias on
its own in float64, and averages what the teacher makes of one utterance without padding.
"""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from teacher_reference import SMALL, normed_over_time, stir, voices
from torch import Tensor

from speechssl.data.batching import make_generator
from speechssl.encoder.alibi import LinearBias, linear_slopes
from speechssl.encoder.subset import frame_subset
from speechssl.encoder.transformer import EncoderConfig, TransformerEncoder
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.loading import build_upstream
from speechssl.masking.block import sample_block_mask
from speechssl.objective import Labelling, PretrainInputs
from speechssl.targets.self_distillation import Heard
from speechssl.train.optim import learning_rate, make_optimizer
from upstreams.data2vec2.config import Data2Vec2Config
from upstreams.data2vec2.model import Data2Vec2Upstream
from upstreams.data2vec2.pretrain import (
    PRETRAIN_PRESETS,
    TRAIN_PRESETS,
    Data2Vec2PretrainConfig,
    Data2Vec2Pretraining,
)

CONFIG = Data2Vec2PretrainConfig(
    views=3, decoder_width=16, decoder_groups=4, decoder_depth=3, decoder_dropout=0.0, target_layers=3
)
WIDTH, HEADS = SMALL["width"], SMALL["heads"]


def make(config: Data2Vec2PretrainConfig = CONFIG, **changes: Any) -> Data2Vec2Pretraining:
    """A student and a teacher that differ."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        upstream = build_upstream("data2vec2", replace(Data2Vec2Config(**SMALL), **changes), seed=0)
        assert isinstance(upstream, Data2Vec2Upstream)
        stir(upstream)
        objective = Data2Vec2Pretraining(upstream, config, Labelling())
    stir(objective.teacher.module, seed=2)
    stir(objective.decoder, seed=3)
    return objective


def masks_of(objective: Data2Vec2Pretraining, frames: Tensor, generator: torch.Generator) -> Tensor:
    config = objective.config
    return sample_block_mask(
        frames.repeat_interleave(config.views), prob=config.mask_prob, block=config.mask_length,
        adjust=config.mask_prob_adjust, generator=generator, max_length=int(frames.max()),
    )  # fmt: skip


# The reference


def weights_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().double() for name, value in module.state_dict().items()}


def linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].t() + state[f"{name}.bias"]


def layer_norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return plain_norm(x) * state[f"{name}.weight"] + state[f"{name}.bias"]


def plain_norm(x: Tensor) -> Tensor:
    return (x - x.mean(dim=1, keepdim=True)) / (x.var(dim=1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def convolve(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """(T, C) -> (T, D), the same length."""
    return F.conv1d(x.t()[None], weight, bias, padding=weight.size(2) // 2, groups=groups)[0].t()


def attend(state: dict[str, Tensor], block: str, x: Tensor, hidden: Tensor) -> Tensor:
    query, key, value = linear(state, f"{block}attention.qkv", x).split(WIDTH, dim=1)
    size, T = WIDTH // HEADS, len(x)
    outputs = []
    for head, slope in enumerate(linear_slopes(HEADS)):
        part = slice(head * size, (head + 1) * size)
        steepness = slope * max(0.0, float(state["relative_bias.scale"][head]))
        bias = torch.tensor([[-steepness * abs(i - j) for j in range(T)] for i in range(T)], dtype=torch.float64)
        scores = query[:, part] @ key[:, part].t() / math.sqrt(size) + bias
        outputs.append(scores.masked_fill(hidden[None, :], -math.inf).softmax(dim=1) @ value[:, part])
    return linear(state, f"{block}attention.output", torch.cat(outputs, dim=1))


def encode(state: dict[str, Tensor], x: Tensor, hidden: Tensor) -> tuple[Tensor, list[Tensor]]:
    """(T, D) -> the last hidden state and the feed-forward results, where nothing attends to the hidden frames."""
    position = x
    for number in range(5):
        name = f"position.convs.{number}"
        position = F.gelu(plain_norm(convolve(position, state[f"{name}.weight"], state[f"{name}.bias"], 4)))
    x = layer_norm(state, "norm", x + position)
    results = []
    for number in range(SMALL["depth"]):
        block = f"blocks.{number}."
        x = layer_norm(state, f"{block}attention_norm", x + attend(state, block, x, hidden))
        result = linear(state, f"{block}fc2", F.gelu(linear(state, f"{block}fc1", x)))
        results.append(result)
        x = layer_norm(state, f"{block}ffn_norm", x + result)
    return x, results


def decode(state: dict[str, Tensor], x: Tensor, groups: int) -> Tensor:
    number = 0
    while f"convs.{number}.weight" in state:
        weight, bias = state[f"convs.{number}.weight"], state[f"convs.{number}.bias"]
        y = F.gelu(plain_norm(convolve(x, weight, bias, groups)))
        x = y if number == 0 else x + y
        number += 1
    return linear(state, "projection", x)


@torch.no_grad()
def reference_loss(objective: Data2Vec2Pretraining, inputs: PretrainInputs, seed: int) -> tuple[float, int]:
    """View by view; the noise is drawn as ours is, and laid over the frames of each view."""
    config, generator = objective.config, make_generator(seed)
    frames = objective.upstream.output_lengths(inputs.lengths)
    masks = masks_of(objective, frames, generator)
    shape = (len(masks), masks.size(1), WIDTH)
    entering = torch.zeros(shape) if config.zero_hidden else torch.randn(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    student, teacher = weights_of(objective.upstream.encoder), weights_of(objective.teacher.module)
    decoder = weights_of(objective.decoder)
    loss, count = 0.0, 0
    for row, T in enumerate(frames.tolist()):
        alone = PretrainInputs(inputs.waveform[row : row + 1, : inputs.lengths[row]], inputs.lengths[row : row + 1])
        x = objective.hear(alone).projected[0].double()  # (T, D)
        _, results = encode(teacher, x, torch.zeros(T, dtype=torch.bool))
        target = torch.stack([normed_over_time(r) for r in results[-config.target_layers :]]).mean(dim=0)
        for view in range(config.views):
            number = row * config.views + view
            hidden = masks[number, :T]
            first = torch.where(hidden[:, None], 0.01 * entering[number, :T].double(), x)
            encoded, _ = encode(student, first, hidden)
            filled = torch.where(hidden[:, None], 0.01 * noise[number, :T].double(), encoded)
            predicted = decode(decoder, filled, config.decoder_groups)
            loss += float((predicted - target)[hidden].square().sum()) / math.sqrt(WIDTH)
            count += int(hidden.sum())
    return loss, count


@pytest.mark.parametrize("lengths", [(16_000, 11_000), (9_600, 9_600)], ids=["padded", "equal"])
@pytest.mark.parametrize("zero_hidden", [True, False], ids=["zeros", "noise"])
@torch.no_grad()
def test_the_loss_is_that_of_dense_attention_to_visible_frames(lengths: tuple[int, ...], zero_hidden: bool) -> None:
    objective = make(replace(CONFIG, zero_hidden=zero_hidden)).eval()
    inputs = voices(lengths)
    output = objective(inputs, make_generator(3))
    loss, count = reference_loss(objective, inputs, 3)
    assert float(output.sample_size) == count > 0
    assert abs(float(output.loss_sum) - loss) <= 1e-5 * loss, (float(output.loss_sum), loss)


@torch.no_grad()
def test_half_precision_products_and_biases_stay_close_to_the_dense_loss() -> None:
    objective = make().eval()
    inputs = voices((16_000, 11_000))
    with torch.autocast("cpu", torch.bfloat16):
        output = objective(inputs, make_generator(3))
    loss, _ = reference_loss(objective, inputs, 3)
    assert abs(float(output.loss_sum) - loss) <= 0.02 * loss


# Masks


def slow_block_mask(n: int, prob: float, block: int, adjust: float, generator: torch.Generator) -> list[bool]:
    """Of one utterance, as fairseq's data loading makes it."""
    hidden: set[int] = set()
    for _ in range(int(n * ((prob + adjust) / block))):
        centre = int(torch.randint(n, (1,), generator=generator))
        hidden |= {min(max(centre + k - block // 2, 0), n - 1) for k in range(block)}
    want = int(n * prob)
    shuffled = [int(i) for i in torch.randperm(n, generator=generator)]
    for frame in shuffled:
        if len(hidden) > want and frame in hidden:
            hidden.remove(frame)
        elif len(hidden) < want and frame not in hidden:
            hidden.add(frame)
    return [t in hidden for t in range(n)]


@pytest.mark.parametrize(("prob", "adjust", "block"), [(0.5, 0.05, 5), (0.55, 0.1, 5), (0.3, 0.9, 4)])
def test_exactly_the_fraction_is_hidden_whatever_the_length(prob: float, adjust: float, block: int) -> None:
    lengths = torch.arange(1, 301)
    mask = sample_block_mask(lengths, prob=prob, block=block, adjust=adjust, generator=make_generator(0))
    assert mask.sum(dim=1).tolist() == [int(n * prob) for n in lengths.tolist()]
    assert not bool((mask & (torch.arange(300) >= lengths[:, None])).any())


def runs(rows: list[list[bool]]) -> Counter[int]:
    """How often stretches of hidden frames have each length."""
    found: Counter[int] = Counter()
    for row in rows:
        length = 0
        for hidden in [*row, False]:
            if not hidden and length:
                found[length] += 1
            length = length + 1 if hidden else 0
    return found


@pytest.mark.parametrize(("prob", "adjust", "block"), [(0.5, 0.05, 5), (0.2, 0.6, 4)], ids=["grown", "trimmed"])
def test_masks_are_distributed_as_fairseqs(prob: float, adjust: float, block: int) -> None:
    rows, n = 600, 60
    generator = make_generator(0)
    theirs = [slow_block_mask(n, prob, block, adjust, generator) for _ in range(rows)]
    ours = sample_block_mask(
        torch.full((rows,), n), prob=prob, block=block, adjust=adjust, generator=make_generator(1)
    ).tolist()
    expected, found = runs(theirs), runs(ours)
    for length in range(1, 13):
        deviation = 4 * math.sqrt(expected[length] + found[length] + 4)
        assert abs(expected[length] - found[length]) <= deviation, (length, expected, found)
    by_place = (torch.tensor(ours).float().mean(dim=0) - torch.tensor(theirs).float().mean(dim=0)).abs()
    assert float(by_place.max()) < 0.12


def test_views_of_an_utterance_differ_and_equal_seeds_give_equal_masks() -> None:
    objective = make()
    frames = torch.tensor([100, 80])
    one, two = (masks_of(objective, frames, make_generator("mask", 7)) for _ in range(2))
    assert torch.equal(one, two)
    assert len({tuple(row) for row in one.tolist()}) == 6
    assert not torch.equal(one, masks_of(objective, frames, make_generator("mask", 8)))


def test_block_masks_that_make_no_sense_are_refused() -> None:
    for bad in ({"prob": 1.0}, {"block": 0}, {"adjust": -0.6}):
        settings: dict[str, Any] = {"prob": 0.5, "block": 5, "adjust": 0.0, **bad}
        with pytest.raises(SpeechsslError, match="Block masks need"):
            sample_block_mask(torch.tensor([10]), generator=make_generator(0), **settings)


# Visible frames only


def test_frames_are_taken_in_order_and_put_back_with_their_gradients() -> None:
    chosen = torch.tensor([[True, False, True, True, False], [False, False, True, False, True]])
    subset = frame_subset(chosen, 3, equal=False)
    x = torch.randn(2, 5, 4, generator=make_generator(0), dtype=torch.float64, requires_grad=True)
    taken = subset.take(x)
    assert torch.equal(taken[0], x[0, [0, 2, 3]])
    assert torch.equal(taken[1, :2], x[1, [2, 4]])
    assert subset.present is not None
    assert subset.present.tolist() == [[True] * 3, [True, True, False]]
    assert torch.equal(subset.rows(taken), x[chosen])
    back = subset.put(taken, torch.full_like(x, 7.0))
    assert torch.equal(back, torch.where(chosen[:, :, None], x, 7.0))
    back.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, chosen[:, :, None].expand_as(x).double())


def test_the_bias_is_gathered_on_both_axes() -> None:
    bias = LinearBias(6)
    with torch.no_grad():
        bias.scale.copy_(torch.tensor([1.0, 0.5, -2.0, 1.5, 0.1, 1.0]))
    whole = bias(20)[:, :, :20].flip(2)  # (H, T, T), keys in order
    frames = torch.tensor([[0, 3, 4, 11, 19], [2, 5, 6, 0, 1]])
    present = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    found = bias.between(frames, present)
    for row, kept in enumerate(frames):
        expected = whole[:, kept][:, :, kept].masked_fill(~present[row], -math.inf)
        torch.testing.assert_close(found[row, :, :, :5], expected, rtol=0, atol=1e-6)
    assert bool((found[..., 5:] == -math.inf).all())


def test_the_learned_scales_have_the_gradient_of_a_dense_bias() -> None:
    config = EncoderConfig(width=16, heads=4, depth=2, ffn_width=16, pos_groups=4, pos_kernel=3, pos_depth=2,
                           alibi=True, dropout=0.0, attention_dropout=0.0)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = TransformerEncoder(config)
    stir(encoder, scale=1.0)
    x = torch.randn(2, 12, 16, generator=make_generator(0))
    padding = torch.arange(12) >= torch.tensor([12, 9])[:, None]
    everything = frame_subset(~padding, 12, equal=False)
    gradients = []
    for kept in (None, everything):
        encoder.zero_grad()
        output = encoder(x, padding, layers=[2], kept=kept)[2]
        (output[~padding] * torch.arange(16)).sin().sum().backward()
        gradients.append(encoder.relative_bias.scale.grad.clone())
    assert float(gradients[0].abs().min()) > 0
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_no_frame_can_be_left_out_with_bucketed_positions() -> None:
    encoder = TransformerEncoder(EncoderConfig(width=16, heads=4, depth=1, ffn_width=16, relative_buckets=32))
    kept = frame_subset(torch.ones(1, 6, dtype=torch.bool), 6, equal=True)
    with pytest.raises(ConfigError, match="relative_buckets"):
        encoder(torch.zeros(1, 6, 16), None, layers=[1], kept=kept)


def test_nothing_hidden_reaches_the_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = make(replace(CONFIG, views=1))
    inputs = voices()
    heard = objective.hear(inputs)
    leaf = heard.projected.detach().requires_grad_(True)
    monkeypatch.setattr(objective, "hear", lambda _: Heard(leaf, heard.frames, heard.padding_mask))
    objective(inputs, make_generator(3)).loss_sum.backward()
    mask = masks_of(objective, heard.frames, make_generator(3))
    inside = torch.arange(mask.size(1)) < heard.frames[:, None]
    assert leaf.grad is not None
    assert torch.equal(leaf.grad.abs().sum(dim=2) > 0, inside & ~mask)


def test_features_and_targets_are_computed_once_and_blocks_hear_visible_frames_alone() -> None:
    objective = make(replace(CONFIG, views=4))
    inputs = voices((16_000, 16_000))
    shapes: dict[str, list[tuple[int, ...]]] = {"frontend": [], "teacher": [], "student": []}
    for name, module in (
        ("frontend", objective.upstream.frontend),
        ("teacher", objective.teacher.module.blocks[0].fc1),
        ("student", objective.upstream.encoder.blocks[0].fc1),
    ):
        module.register_forward_hook(lambda _m, _i, out, name=name: shapes[name].append(tuple(out.shape[:2])))
    objective(inputs, make_generator(0))
    T = int(objective.upstream.output_lengths(inputs.lengths).max())
    assert shapes == {"frontend": [(2, T)], "teacher": [(2, T)], "student": [(8, T - T // 2)]}


# The teacher and the optimiser


def test_the_teacher_averages_positions_norms_blocks_and_scales_and_not_the_frontend() -> None:
    objective = make(replace(CONFIG, ema_decay=0.75, ema_end_decay=0.75))
    before = {n: p.clone() for n, p in objective.teacher.module.named_parameters()}
    objective.begin_step(0)
    objective.end_step(1, dict)
    for name, p in objective.upstream.encoder.named_parameters():
        expected = 0.75 * before[name] + 0.25 * p
        torch.testing.assert_close(dict(objective.teacher.module.named_parameters())[name], expected.detach())
    assert {"relative_bias.scale", "norm.weight", "position.convs.0.weight"} <= before.keys()
    assert not any("frontend" in n or "decoder" in n for n, _ in objective.teacher.named_parameters())


def test_a_decay_of_one_leaves_the_teacher_alone() -> None:
    objective = make(replace(CONFIG, ema_decay=0.9997, ema_end_decay=1.0, ema_ramp_steps=3))
    before = [p.clone() for p in objective.teacher.parameters()]
    objective.begin_step(2)
    objective.end_step(3, dict)
    assert objective.decay == 1.0
    assert all(torch.equal(a, b) for a, b in zip(before, objective.teacher.parameters(), strict=True))


def test_vectors_and_the_scales_of_attention_do_not_decay() -> None:
    objective = make()
    optimizer = make_optimizer(objective.trained_parameters(), TRAIN_PRESETS["data2vec2_base"])
    spared = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    vectors = {n for n, p in objective.trained_parameters() if id(p) in spared}
    assert vectors == {n for n, p in objective.trained_parameters() if p.dim() == 1}
    assert "upstream.encoder.relative_bias.scale" in vectors


def test_the_published_settings_are_the_papers() -> None:
    base, large = PRETRAIN_PRESETS["data2vec2_base"], PRETRAIN_PRESETS["data2vec2_large"]
    assert (base.views, base.mask_prob, base.mask_prob_adjust, base.mask_length) == (8, 0.5, 0.05, 5)
    assert (base.decoder_width, base.decoder_kernel, base.decoder_groups, base.decoder_depth) == (384, 7, 16, 4)
    assert (base.ema_decay, base.ema_end_decay, base.ema_ramp_steps) == (0.999, 0.99999, 75_000)
    assert (large.views, large.target_layers, large.ema_end_decay, large.ema_ramp_steps) == (12, 16, 1.0, 300_000)
    train = TRAIN_PRESETS["data2vec2_base"]
    assert train.batch_seconds * train.batches_per_step == 500
    rates = {8_000: 7.5e-4, 204_000: 3.75e-4, 400_000: 0.0}
    assert {step: learning_rate(step, train) for step in rates} == pytest.approx(rates)


def test_decoders_that_can_not_be_are_refused() -> None:
    for bad in ({"decoder_kernel": 6}, {"decoder_groups": 5}, {"views": 0}):
        with pytest.raises(ConfigError, match=r"odd kernel|groups|views"):
            make(replace(CONFIG, **bad))
