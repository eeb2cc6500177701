"""The pre-training engine in one process: precision, hooks, memory, what is watched and what stops a run."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain_toys import Following, install
from pretraining_runs import FAST, SMALL, log_of, write_labels
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from speechssl.errors import ConfigError
from speechssl.loading import build_upstream, load_upstream
from speechssl.objective import Labelling, Objective, PretrainInputs
from speechssl.train import loop, run
from speechssl.train.checkpoint import last_checkpoint
from speechssl.train.fabric import half_precision, set_up
from speechssl.train.metrics import read_log
from speechssl.train.run import pretrain
from speechssl.train.watch import CollapseGuard, TrainingError
from speechssl.types import LossOutput
from upstreams.hubert.pretrain import HubertPretraining

FLOAT32 = "train.precision=float32"


@pytest.fixture(scope="module")
def labels(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labels(tiny_corpus, tmp_path_factory.mktemp("labels"))


def _run(corpus: Path, labels: Path, output: Path, *overrides: str, **named: Any) -> Any:
    return pretrain(
        "hubert_tiny", corpus=corpus, labels=[labels], output=output, overrides=(*FAST, *overrides), **named
    )


# Precision


def test_waveforms_stay_float32_in_half_precision(
    tiny_corpus: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fabric rounds the floating-point tensors it is given, which would be noise 50 dB below the signal."""
    given: list[Tensor] = []
    forward = HubertPretraining.forward

    def note(self: HubertPretraining, inputs: PretrainInputs, generator: torch.Generator) -> LossOutput:
        given.append(inputs.waveform)
        return forward(self, inputs, generator)

    monkeypatch.setattr(HubertPretraining, "forward", note)
    _run(tiny_corpus, labels, tmp_path, "train.steps=1", "train.precision=bf16")
    assert {w.dtype for w in given} == {torch.float32}
    assert any(not torch.equal(w, w.bfloat16().float()) for w in given)


def test_float16_needs_a_gpu(tiny_corpus: Path, labels: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        _run(tiny_corpus, labels, tmp_path, "train.precision=fp16")


class _Overflowing(Objective):
    """A weight whose gradient is as told at the third micro-batch, and 1 otherwise."""

    uses_labels = True

    def __init__(self, *, third: float, always: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(load_upstream("fbank"), Labelling((12,), (100.0,)))
        self.weight = nn.Parameter(torch.zeros(2, 2))
        self.calls = 0
        self.third = third
        self.always = always

    def forward(self, inputs: PretrainInputs, generator: torch.Generator) -> LossOutput:
        self.calls += 1
        broken = self.always or self.calls == 3
        factor = torch.full_like(self.weight, self.third if broken else 1.0)
        loss = _Gradient.apply(self.weight, factor)
        return LossOutput(loss, torch.ones((), device=loss.device), {})


class _Gradient(torch.autograd.Function):
    """Of a loss of 1 whatever the weight: as given, times the loss scale."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return weight.new_ones(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.saved_tensors[0], None


def _half_run(
    module: Objective, corpus: Path, labels: Path, folder: Path, device: str, *overrides: str
) -> tuple[Any, loop.Pretraining]:
    """A run in float16 on a device, with the loss scale that Fabric leaves out on a CPU."""
    from lightning_fabric import Fabric

    made: list[loop.Pretraining] = []

    class Half(loop.Pretraining):
        def __init__(self, objective: Objective, *given: Any, **named: Any) -> None:
            fabric = Fabric(accelerator=device, devices=1, plugins=[half_precision(device)])
            fabric.launch()
            super().__init__(module, *given, **named, fabric=fabric)
            made.append(self)

    settings = ("train.batches_per_step=1", "train.clip_norm=1e9", "train.warmup=0", "train.weight_decay=0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "Pretraining", Half)
        outcome = _run(corpus, labels, folder, *settings, f"train.accelerator={device}", *overrides)
    return outcome, made[0]


def _check_overflow(corpus: Path, labels: Path, folder: Path, device: str) -> None:
    module = _Overflowing(third=float("inf"))
    outcome, done = _half_run(module, corpus, labels, folder, device, "train.steps=6")
    assert outcome.finished
    log = read_log(folder)
    assert [line["overflows"] for line in log] == [0, 0, 1, 0, 0, 0]
    assert [line["loss_scale"] for line in log] == [128, 128, 64, 64, 64, 64]
    assert [line["grad_norm"] for line in log] == pytest.approx([2, 2, 0, 2, 2, 2])  # of four ones, unscaled
    assert torch.isfinite(module.weight).all()
    saved = last_checkpoint(folder / "checkpoints")
    assert saved is not None
    assert saved.state["scaler"]["scale"] == 64
    again = _Overflowing(third=1.0)
    _, resumed = _half_run(again, corpus, labels, folder, device, "train.steps=6")
    assert resumed.scaler.get_scale() == done.scaler.get_scale() == 64
    assert resumed.scaler.state_dict() == done.scaler.state_dict()


def test_steps_that_overflow_are_skipped_and_counted(tiny_corpus: Path, labels: Path, tmp_path: Path) -> None:
    _check_overflow(tiny_corpus, labels, tmp_path, "cpu")


@pytest.mark.gpu
def test_steps_that_overflow_are_skipped_and_counted_on_a_gpu(tiny_corpus: Path, labels: Path, tmp_path: Path) -> None:
    _check_overflow(tiny_corpus, labels, tmp_path / "toy", "cuda")
    half = ("train.accelerator=cuda", "train.precision=fp16", "train.steps=30", "train.learning_rate=4e-3")
    _run(tiny_corpus, labels, tmp_path / "half", *half)
    log = read_log(tmp_path / "half")
    assert log[-1]["loss"] < log[0]["loss"]
    assert log[-1]["memory_gb"] > 0


def test_gradients_that_overflow_at_any_scale_stop_the_run(tiny_corpus: Path, labels: Path, tmp_path: Path) -> None:
    module = _Overflowing(third=float("inf"), always=True)
    with pytest.raises(TrainingError, match=r"loss scale has fallen to .* at step 21"):
        _half_run(module, tiny_corpus, labels, tmp_path, "cpu", "train.steps=40", "train.save_every=100")


# The inner loop


class _Waits(TorchDispatchMode):
    """Counts the reads of a number from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_step_does_not_wait_for_the_device(
    tiny_corpus: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    update = loop.Pretraining._update

    def counted(self: loop.Pretraining, batches: Any) -> bool:
        with _Waits() as waits:
            whole = update(self, batches)
        counts.append(waits.count)
        return whole

    monkeypatch.setattr(loop.Pretraining, "_update", counted)
    monkeypatch.setattr(run, "build_objective", lambda *_: _Overflowing(third=1.0))
    _run(tiny_corpus, labels, tmp_path, FLOAT32)
    assert counts == [0] * 8


def test_hooks_are_called_once_per_run_and_once_per_step(
    tiny_corpus: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "build_objective", run.build_objective)  # put back at the end
    made = install()
    steps = [(name, step) for step in range(4) for name, step in (("begin_step", step), ("end_step", step + 1))]
    save = loop.Pretraining._save

    def stop_at_two(self: loop.Pretraining, *, must: bool) -> None:
        save(self, must=must)
        if self.step == 2 and len(made) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Pretraining, "_save", stop_at_two)
    with pytest.raises(KeyboardInterrupt):
        _run(tiny_corpus, labels, tmp_path / "parts", FLOAT32, "train.steps=4")
    _run(tiny_corpus, labels, tmp_path / "parts", FLOAT32, "train.steps=4")
    assert made[0].calls == [("begin_run", Following.fit_batches), *steps[:4]]
    assert made[1].calls == steps[4:]  # what `begin_run` made came with the checkpoint
    _run(tiny_corpus, labels, tmp_path / "whole", FLOAT32, "train.steps=4")
    assert made[2].offset.abs().sum() > 0
    for name, value in made[2].state_dict().items():
        assert torch.equal(value, made[1].state_dict()[name]), name


# Memory and compilation


def _saved_bytes(objective: Objective, inputs: PretrainInputs) -> tuple[LossOutput, int]:
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = objective(inputs, torch.Generator().manual_seed(0))
    return output, sum(sizes.values())


def _hubert() -> HubertPretraining:
    _, config = run.pretrain_config("hubert_tiny", overrides=SMALL)
    config = replace(config, model=replace(config.model, depth=6, dropout=0.1))
    objective = run.build_objective(build_upstream("hubert", config.model, seed=0), config, Labelling((12,), (100.0,)))
    assert isinstance(objective, HubertPretraining)
    return objective.train()


def test_activations_computed_again_take_less_memory_and_give_the_same_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = PretrainInputs(
        torch.randn(4, 32_000, generator=generator),
        torch.full((4,), 32_000),
        (torch.randint(12, (4, 200), generator=generator),),
    )
    results = []
    for again in (False, True):
        objective = _hubert()
        set_up(_NoFabric(), objective, replace(loop.PretrainConfig(), checkpoint_activations=again))
        with torch.random.fork_rng():
            torch.manual_seed(3)
            output, size = _saved_bytes(objective, inputs)
            output.loss_sum.backward()
        results.append((output.loss_sum, size, [p.grad for p in objective.parameters() if p.grad is not None]))
    (one, much, grads), (two, little, others) = results
    assert torch.equal(one, two)
    assert all(torch.equal(a, b) for a, b in zip(grads, others, strict=True))
    assert little < 0.6 * much


class _NoFabric:
    world_size = 1

    def setup_module(self, module: nn.Module) -> nn.Module:
        return module


@pytest.mark.slow
def test_a_compiled_run_gives_nearly_the_same_losses(tiny_corpus: Path, labels: Path, tmp_path: Path) -> None:
    _run(tiny_corpus, labels, tmp_path / "plain", FLOAT32, "train.steps=2", "model.depth=1")
    _run(tiny_corpus, labels, tmp_path / "compiled", FLOAT32, "train.steps=2", "model.depth=1", "train.compile=true")
    for one, two in zip(log_of(tmp_path / "plain"), log_of(tmp_path / "compiled"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)


# What is watched


def test_the_log_tells_padding_speed_and_how_busy_the_device_is(
    tiny_corpus: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds: list[tuple[float, float]] = []
    forward = loop.Pretraining._forward

    def note(self: loop.Pretraining, batch: Any) -> Any:
        inputs = batch.inputs
        seconds.append((float(inputs.lengths.sum()) / 16_000, inputs.waveform.numel() / 16_000))
        return forward(self, batch)

    monkeypatch.setattr(loop.Pretraining, "_forward", note)
    _run(tiny_corpus, labels, tmp_path, "train.steps=4", "train.log_every=2")
    log = read_log(tmp_path)
    for line, part in zip(log, (seconds[:4], seconds[4:]), strict=True):
        audio, padded = (sum(column) for column in zip(*part, strict=True))
        assert line["audio_seconds"] == pytest.approx(audio, rel=1e-5)
        assert line["padding"] == pytest.approx(1 - audio / padded, abs=1e-5)
        assert line["audio_per_second"] == pytest.approx(audio / line["seconds"], rel=1e-4)
        assert 0 < line["device_use"] <= 1
        assert {"loss", "accuracy", "grad_norm", "learning_rate", "code_perplexity"} <= line.keys()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == log[0].keys() - {"step"}
    assert [event.step for event in board.Scalars("padding")] == [2, 4]


def test_a_device_that_waits_for_data_is_told_so(
    tiny_corpus: Path, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = loop.load_batches

    def slowly(*given: Any, **named: Any) -> Any:
        for batch in load(*given, **named):
            time.sleep(0.3)
            yield batch

    monkeypatch.setattr(loop, "load_batches", slowly)
    _run(tiny_corpus, labels, tmp_path, "train.steps=3")
    line = read_log(tmp_path)[-1]
    waited = (1 - line["device_use"]) * line["seconds"]
    assert waited == pytest.approx(0.6, abs=0.15)


def test_each_limit_has_a_patience_of_its_own_that_survives_an_interruption() -> None:
    guard = CollapseGuard({"perplexity": 2.0, "target_std": 0.1}, patience=10)
    well, flat, few = ({"perplexity": p, "target_std": s} for p, s in ((5.0, 1.0), (5.0, 0.0), (1.0, 1.0)))
    guard.check(5, well)
    guard.check(10, few)
    guard.check(14, flat)  # the codes are well again, now the targets are not
    again = CollapseGuard(guard.limits, patience=10)
    again.healthy = json.loads(json.dumps(guard.healthy))
    again.check(19, flat)
    with pytest.raises(TrainingError, match=r"collapsed at step 20 \(target std 0\.00, below 0\.1 since step 10\)"):
        again.check(20, flat)
