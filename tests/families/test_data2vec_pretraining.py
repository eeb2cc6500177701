"""data2vec's objective against transformers' model as student and teacher, and its teacher against plain loops."""

import copy
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from teacher_reference import SMALL, hear_in_transformers, in_transformers, normed_over_time, stir, voices

from speechssl.data.batching import make_generator
from speechssl.errors import ConfigError
from speechssl.loading import build_upstream
from speechssl.loss.regression import REGRESSION_LIMITS, regression_loss
from speechssl.masking.span import sample_span_mask
from speechssl.metric.tallies import summarize
from speechssl.objective import Labelling, PretrainInputs
from speechssl.targets.ema_teacher import EmaTeacher, average_results, ema_decay
from speechssl.targets.self_distillation import Heard
from speechssl.train.config import PretrainConfig
from speechssl.train.optim import learning_rate
from upstreams.data2vec.config import Data2VecConfig
from upstreams.data2vec.model import Data2VecUpstream
from upstreams.data2vec.pretrain import PRETRAIN_PRESETS, TRAIN_PRESETS, Data2VecPretrainConfig, Data2VecPretraining

CONFIG = Data2VecPretrainConfig(target_layers=3, ema_decay=0.5, ema_end_decay=0.5)


def make(config: Data2VecPretrainConfig = CONFIG, **changes: float) -> Data2VecPretraining:
    """A student and a teacher that differ."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        upstream = build_upstream("data2vec", replace(Data2VecConfig(**SMALL), **changes), seed=0)
        assert isinstance(upstream, Data2VecUpstream)
        stir(upstream)
        objective = Data2VecPretraining(upstream, config, Labelling())
    stir(objective.teacher.module, seed=2)
    return objective


@torch.no_grad()
def test_the_loss_is_that_of_transformers_model_and_of_its_teacher() -> None:
    objective = make().eval()
    inputs = voices()
    output = objective(inputs, make_generator(3))
    frames = objective.upstream.output_lengths(inputs.lengths)
    mask = sample_span_mask(
        frames, prob=0.65, span=10, min_spans=1, generator=make_generator(3), require_same_masks=True
    )
    student = in_transformers(objective.upstream)
    teacher = in_transformers(objective.upstream, objective.teacher.module)
    loss, count = 0.0, 0
    for waveform, length, T, hidden in zip(inputs.waveform, inputs.lengths, frames, mask, strict=True):
        heard, _ = hear_in_transformers(student, waveform[:length], hidden[:T])
        _, results = hear_in_transformers(teacher, waveform[:length])
        target = sum((normed_over_time(r) for r in results[-3:]), torch.zeros(())) / 3
        predicted = heard @ objective.final_proj.weight.T + objective.final_proj.bias
        error = (predicted - target)[hidden[:T]].double().square().sum()
        loss += float(error) / math.sqrt(SMALL["width"])
        count += int(hidden.sum())
    assert float(output.sample_size) == count > 0
    assert abs(float(output.loss_sum) - loss) <= 1e-5 * loss, (float(output.loss_sum), loss)


def test_the_target_is_what_the_feed_forward_makes_before_dropout_and_residual() -> None:
    objective = make(dropout=0.5).train()
    block = objective.upstream.encoder.blocks[0]
    x = torch.randn(2, 9, 32, generator=make_generator(0))
    seen = []
    block.fc2.register_forward_hook(lambda _m, _i, out: seen.append(out))
    _, result = block.forward_with_result(x, None)
    assert result is seen[0]


@torch.no_grad()
def test_targets_do_not_depend_on_padding_and_dropout() -> None:
    objective = make(dropout=0.3, attention_dropout=0.3).train()
    assert not any(m.training for m in objective.teacher.modules())
    inputs = voices()
    heard = objective.hear(inputs)
    target = average_results(objective.teacher_results(heard), heard.padding_mask)
    worst = 0.0
    for row, length in enumerate(inputs.lengths.tolist()):
        alone = objective.hear(PretrainInputs(inputs.waveform[row : row + 1, :length], inputs.lengths[row : row + 1]))
        single = average_results(objective.teacher_results(alone), alone.padding_mask)
        worst = max(worst, float((target[row, : single.size(1)] - single[0]).abs().max()))
    assert worst <= 1e-5


def test_nothing_hidden_reaches_the_student_and_no_gradient_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = make()
    inputs = voices()
    heard = objective.hear(inputs)
    leaf = heard.projected.detach().requires_grad_(True)
    monkeypatch.setattr(objective, "hear", lambda _: Heard(leaf, heard.frames, heard.padding_mask))
    objective(inputs, make_generator(3)).loss_sum.backward()
    mask = sample_span_mask(
        heard.frames, prob=0.65, span=10, min_spans=1, generator=make_generator(3), require_same_masks=True
    )
    assert leaf.grad is not None
    reached = leaf.grad.abs().sum(dim=2) > 0
    inside = torch.arange(mask.size(1)) < heard.frames[:, None]
    assert torch.equal(reached, inside & ~mask)
    assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())
    assert not any(name.startswith("teacher.") for name, _ in objective.trained_parameters())


def test_equally_many_frames_are_hidden_in_all_utterances_of_a_batch() -> None:
    frames = torch.tensor([400, 400, 390])
    mask = sample_span_mask(
        frames, prob=0.65, span=10, min_spans=1, generator=make_generator(0), require_same_masks=True
    )
    assert len(set(mask.sum(dim=1).tolist())) == 1
    assert 0.4 < float(mask.float().mean()) < 0.55


# The teacher


def test_the_decay_rises_linearly_and_stays() -> None:
    ramp = {"start": 0.999, "end": 0.9999, "ramp_steps": 30_000}
    for step, expected in {1: 0.999 + 0.0009 / 30_000, 15_000: 0.99945, 30_000: 0.9999, 400_000: 0.9999}.items():
        assert ema_decay(step, **ramp) == pytest.approx(expected, abs=1e-12)
    assert ema_decay(1, start=0.9, end=0.9, ramp_steps=0) == 0.9


def test_the_teacher_is_a_float32_average_whose_positions_are_the_students() -> None:
    objective = make(replace(CONFIG, ema_decay=0.5, ema_end_decay=0.9, ema_ramp_steps=4))
    student, teacher = objective.upstream.encoder, objective.teacher.module
    expected = {n: p.detach().clone().double() for n, p in teacher.named_parameters()}
    for step, decay in enumerate([0.6, 0.7, 0.8, 0.9, 0.9]):
        stir(student, seed=step)
        objective.begin_step(step)
        objective.end_step(step + 1, dict)
        for name, p in student.named_parameters():
            own = expected[name]
            expected[name] = p.double() if name.startswith("position.") else decay * own + (1 - decay) * p.double()
    for name, p in teacher.named_parameters():
        assert p.dtype == torch.float32
        assert float((p.double() - expected[name]).detach().abs().max()) <= 1e-6, name


def test_buffers_are_copied_and_half_precision_students_are_followed_in_float32() -> None:
    student = torch.nn.BatchNorm1d(3)
    teacher = EmaTeacher(student)
    student(torch.randn(8, 3, generator=make_generator(0)))
    with torch.no_grad():
        student.weight.fill_(3.0)
    teacher.update(student.to(torch.bfloat16), 0.75)
    assert torch.equal(teacher.module.running_mean, student.running_mean.float())
    assert int(teacher.module.num_batches_tracked) == 1
    assert teacher.module.weight.tolist() == [1.5] * 3


def test_a_sharded_student_is_followed_as_a_whole_one(tmp_path: Path) -> None:
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*launcher, str(script)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


SHARDED = """
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from speechssl.targets.ema_teacher import EmaTeacher

torch.manual_seed(0)
torch.set_num_threads(1)
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
student = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 4))
teacher, alone = EmaTeacher(student, copied=("1.",)), EmaTeacher(student, copied=("1.",))
with torch.no_grad():
    for p in student.parameters():
        p.add_(1.0)
expected = {n: (p if n.startswith("1.") else 0.9 * o + 0.1 * p).detach().clone()
            for (n, p), o in zip(student.named_parameters(), teacher.module.parameters())}
fully_shard(student, mesh=mesh)
fully_shard(teacher.module, mesh=mesh)
teacher.update(student, 0.9)
alone.update(student, 0.9)
for name, p in teacher.module.named_parameters():
    assert isinstance(p, DTensor)
    torch.testing.assert_close(p.full_tensor(), expected[name], rtol=0, atol=1e-6)
for name, p in alone.module.named_parameters():
    assert not isinstance(p, DTensor)
    torch.testing.assert_close(p, expected[name], rtol=0, atol=1e-6)
dist.destroy_process_group()
"""


def test_the_teacher_is_part_of_the_state_and_not_of_the_upstream() -> None:
    objective = make()
    state = copy.deepcopy(objective.state_dict())
    other = make()
    stir(other, seed=9)
    other.load_state_dict(state)
    assert all(torch.equal(v, state[k]) for k, v in other.state_dict().items())
    assert {k for k in state if k.startswith("teacher.module.blocks.3.")}
    assert not any("teacher" in k for k in objective.upstream.state_dict())


# Loss and guard


def test_standard_deviations_are_fairseqs_and_a_collapse_is_below_their_limits() -> None:
    generator = make_generator(0)
    predicted, target = (s * torch.randn(200, 16, generator=generator) for s in (2.0, 0.5))
    output = regression_loss(predicted, target)
    values = summarize({"sample_size": output.sample_size, **output.metrics})
    for name, x in (("prediction_std", predicted), ("target_std", target)):
        assert values[name] == pytest.approx(float(torch.sqrt(x.var(dim=0) + 1e-6).mean()), rel=1e-4)
    assert REGRESSION_LIMITS == Data2VecPretraining.limits == {"target_std": 0.1, "prediction_std": 0.01}
    flat = regression_loss(predicted[:1].expand(50, -1), target[:1].expand(50, -1))
    values = summarize({"sample_size": flat.sample_size, **flat.metrics})
    assert all(values[name] < least for name, least in REGRESSION_LIMITS.items())


def test_smooth_l1_is_squared_near_zero_only() -> None:
    predicted, target = torch.tensor([[0.5, 3.0, 0.0, 0.0]]), torch.zeros(1, 4)
    assert float(regression_loss(predicted, target, beta=1.0).loss_sum) == pytest.approx((0.125 + 2.5) / 2)
    assert float(regression_loss(predicted, target, scale=1.0).loss_sum) == pytest.approx(9.25)


def test_the_published_settings_are_the_papers() -> None:
    base, train = PRETRAIN_PRESETS["data2vec_base"], TRAIN_PRESETS["data2vec_base"]
    assert (base.mask_prob, base.mask_length, base.min_masks, base.require_same_masks) == (0.65, 10, 1, True)
    assert (base.target_layers, base.ema_decay, base.ema_end_decay, base.ema_ramp_steps) == (8, 0.999, 0.9999, 30_000)
    assert train.batch_seconds * train.batches_per_step == 3_800
    rates = {12_000: 5e-4, 372_000: 5e-4, 400_000: 5e-6}
    assert {step: learning_rate(step, train) for step in rates} == pytest.approx(rates)
    assert isinstance(train, PretrainConfig)


@pytest.mark.parametrize("config", [{"target_layers": 5}, {"target_layers": 0}, {"ema_decay": 0.9999}])
def test_a_teacher_that_can_not_be_is_refused(config: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"target_layers|ema_decay"):
        make(replace(CONFIG, **config))  # type: ignore[arg-type]  # mypy takes each field for each type
