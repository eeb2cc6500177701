"""The laws that hold for every pre-training objective; a new one is tested here for nothing.

Every family with a `pretrain.py` is tested with its preset `<family>_tiny`, shrunk.
"""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from speechssl.data.batching import make_generator
from speechssl.errors import SpeechsslError
from speechssl.loading import build_upstream
from speechssl.metric.tallies import summarize
from speechssl.objective import Labelling, PretrainInputs
from speechssl.registry import family_module, list_families
from speechssl.train.optim import make_optimizer, scale_gradients
from speechssl.train.run import build_objective, pretrain_config

SHRINK = {"width": 32, "ffn_width": 48, "heads": 4, "depth": 3, "conv_channels": 16, "pos_kernel": 7}
LABELS = Labelling((7, 5), (100.0, 50.0))
TOKENS = 6
STRATEGIES = ("ddp", "fsdp")


def _families():
    names = []
    for family in list_families():
        try:
            family_module(family, "pretrain")
        except ModuleNotFoundError:
            continue
        names.append(family)
    return names


FAMILIES = _families()
VARIANTS = {
    "hubert_base": ("objective.unmasked_weight=0.5",),  # convolutions on the waveform, their penalty, dropout
    "hubert_base_ils": ("objective.layers=[1,-1]", "model.layerdrop=0.3"),
    "wav2vec2_ccc_base": (),
    "wav2vec2_aug_base": (),
    "best_rq_tiny_conformer": (),
    "apc_vq_base": (),
}
"""What the tiny presets leave out: preset -> settings."""


def make(family, **changes):
    """The shrunk objective of a family or variant, equal at each call, in training mode."""
    preset = family if family in VARIANTS else f"{family}_tiny"
    family, config = pretrain_config(preset, overrides=VARIANTS.get(preset, ()))
    shrunk = {k: v for k, v in (SHRINK | changes).items() if k in {f.name for f in dataclasses.fields(config.model)}}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **shrunk))
    upstream = build_upstream(family, config.model, seed=0)
    upstream.name = preset
    module = family_module(family, "pretrain")
    kind = module.build_pretraining.__annotations__["return"]
    objective = build_objective(
        upstream,
        config,
        Labelling(
            LABELS.num_labels if kind.uses_labels else (),
            LABELS.label_rates if kind.uses_labels else (),
            TOKENS if kind.uses_tokens else None,
        ),
    )
    return objective.train(), config


def batch(number, objective, *, size=3, padding=0):
    """A micro-batch of voice-like noise with speech-like loudness; equal for equal numbers."""
    generator = make_generator("batch", number)
    lengths = torch.tensor([16_000, 14_080, 12_800, 9_600][:size])
    waveform = 0.1 * torch.randn(size, 16_000 + padding, generator=generator)
    waveform = torch.nn.functional.avg_pool1d(waveform[:, None], 5, stride=1, padding=2)[:, 0]
    for row, length in zip(waveform, lengths.tolist(), strict=True):
        row[length:] = 0
    codes = tuple(
        torch.randint(k, (size, round((16_000 + padding) * rate / 16_000)), generator=generator)
        for k, rate in zip(LABELS.num_labels, LABELS.label_rates, strict=True)
    )
    tokens = torch.randint(1, TOKENS, (size, 4), generator=generator)
    return PretrainInputs(
        waveform,
        lengths,
        codes if objective.uses_labels else (),
        tokens if objective.uses_tokens else None,
        torch.full((size,), 4) if objective.uses_tokens else None,
    )


def begin(objective):
    objective.begin_run(batch(n, objective) for n in range(objective.fit_batches))


def train(objective, config, steps, *, first=0, optimizer=None, numbers=lambda step: (2 * step, 2 * step + 1)):
    """Updates as the loop makes them: summed losses over micro-batches, divided by the count."""
    optimizer = optimizer or make_optimizer(objective.trained_parameters(), config.train)
    logs = []
    for step in range(first, first + steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        objective.begin_step(step)
        sums = {}
        for number in numbers(step):
            torch.manual_seed(number)
            output = objective(batch(number, objective), make_generator("mask", number))
            output.loss_sum.backward()
            for name, value in {
                "loss": output.loss_sum, "sample_size": output.sample_size, **output.metrics
            }.items():  # fmt: skip
                sums[name] = sums.get(name, 0) + value.detach()
        scale_gradients(objective, 1 / sums["sample_size"], 1e9)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            objective.end_step(step + 1, dict)
        logs.append(summarize(sums))
    return optimizer, logs


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    with torch.random.fork_rng():
        yield request.param


def test_the_loss_falls_on_a_batch_that_is_seen_again_and_again(family):
    objective, config = make(family)
    begin(objective)
    _, logs = train(objective, config, 30, numbers=lambda step: (0,))
    assert all(torch.isfinite(torch.tensor(list(log.values()))).all() for log in logs)
    first, last = (sum(log["loss"] for log in part) for part in (logs[:5], logs[-5:]))
    assert last < first, logs


def test_equal_seeds_give_equal_losses_and_the_global_generator_is_left_alone(family):
    losses = []
    for _ in range(2):
        objective, _ = make(family)
        begin(objective)
        objective.eval()  # no dropout, whose draws are torch's own
        before = torch.random.get_rng_state()
        losses.append(objective(batch(0, objective), make_generator(3)).loss_sum)
        assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(*losses)


def test_what_stands_in_the_padding_does_not_change_the_loss(family):
    objective, _ = make(family)
    begin(objective)
    objective.eval()
    inputs = batch(0, objective)
    noisy = inputs.waveform.clone()
    for row, length in zip(noisy, inputs.lengths.tolist(), strict=True):
        row[length:] = 0.5 * torch.randn(noisy.size(1) - length, generator=make_generator(9))
    one, two = (objective(dataclasses.replace(inputs, waveform=w), make_generator(3)) for w in (inputs.waveform, noisy))
    torch.testing.assert_close(one.loss_sum, two.loss_sum, rtol=1e-5, atol=1e-4)
    assert float(one.sample_size) == float(two.sample_size) > 0


def test_every_trained_weight_learns(family):
    objective, _ = make(family)
    begin(objective)
    touched = set()
    for step in range(6):
        objective.begin_step(step)
        output = objective(batch(step, objective), make_generator(step))
        output.loss_sum.backward()
        touched |= {n for n, p in objective.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
    missing = {n for n, _ in objective.trained_parameters()} - touched
    assert not missing


def test_a_restored_objective_goes_on_as_if_nothing_had_happened(family):
    whole, config = make(family)
    begin(whole)
    _, logs = train(whole, config, 4)
    first, _ = make(family)
    begin(first)
    optimizer, _ = train(first, config, 2)
    second, _ = make(family)  # restored: begin_run is not called again
    second.load_state_dict(first.state_dict())
    other = make_optimizer(second.trained_parameters(), config.train)
    other.load_state_dict(optimizer.state_dict())
    _, rest = train(second, config, 2, first=2, optimizer=other)
    assert rest == logs[2:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_a_micro_batch_that_is_given_up_leaves_no_trace_but_in_buffers(family):
    objective, _ = make(family)
    begin(objective)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    buffers = {name: value.clone() for name, value in objective.named_buffers()}
    objective(batch(0, objective), make_generator(3)).loss_sum.backward()
    for name, value in objective.named_buffers():
        value.copy_(buffers[name])
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_half_precision_gives_nearly_the_same_loss(family):
    objective, _ = make(family)
    begin(objective)
    objective.eval()
    inputs = batch(0, objective)
    exact = objective(inputs, make_generator(3))
    with torch.autocast("cpu", torch.bfloat16):
        half = objective(inputs, make_generator(3))
    assert half.loss_sum.dtype == torch.float32
    assert float(half.sample_size) == float(exact.sample_size)
    torch.testing.assert_close(half.loss_sum, exact.loss_sum, rtol=0.05, atol=0.05 * float(exact.sample_size))


def test_labels_that_are_missing_or_of_no_use_are_refused(family):
    objective, config = make(family)
    wrong = Labelling() if objective.uses_labels else Labelling((4,), (50.0,))
    with pytest.raises(SpeechsslError, match="frame labels"):
        build_objective(objective.upstream, config, wrong)


def test_two_processes_give_the_weights_of_two_accumulated_batches(tmp_path):
    """For every family, with whole and with sharded weights: rank r of 2 sees every second of a step's four
    micro-batches, one process alone sees all."""
    script = Path(__file__).with_name("two_ranks.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(script), str(tmp_path)], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for family in (*FAMILIES, *VARIANTS):
        with torch.random.fork_rng():
            objective, config = make(family)
            begin(objective)
            train(objective, config, 2, numbers=lambda step: range(4 * step, 4 * step + 4))
        for strategy in STRATEGIES:
            found = torch.load(tmp_path / f"{family}_{strategy}.pt", weights_only=True)
            for name, value in objective.state_dict().items():
                difference = float((value.float() - found[name].float()).abs().max())
                assert difference <= 1e-5, (family, strategy, name, difference)
