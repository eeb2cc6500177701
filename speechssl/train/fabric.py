"""Devices, precision and parallel strategies, as Lightning Fabric offers them, set up for an objective."""

import atexit
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # torch names them without exporting

from speechssl.encoder.linear import Linear
from speechssl.errors import ConfigError
from speechssl.objective import Objective, PretrainInputs
from speechssl.train.config import PretrainConfig

LOSS_SCALE = 2.0**7
"""Of float16 at the start: that of fairseq, whose losses are sums too. torch's 2**16 is made for means."""


class Given:
    """One micro-batch for `Fabricated`; Fabric does not look into it.

    Of plain tensors it would round the floating-point ones to half precision, and so the waveforms.
    """

    def __init__(self, inputs: PretrainInputs, generator: torch.Generator) -> None:
        self.inputs = inputs
        self.generator = generator


class Fabricated(nn.Module):
    """An objective as Fabric takes it: with tensors by name as its output."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, given: Given) -> dict[str, Tensor]:
        """Returns 'loss_sum', 'sample_size' and the metrics."""
        output = self.objective(given.inputs, given.generator)
        return {"loss_sum": output.loss_sum, "sample_size": output.sample_size, **output.metrics}


def make_fabric(config: PretrainConfig, objective: Objective) -> Any:
    """Launches Fabric: one process, or those that torchrun or Slurm began.

    Raises:
        ConfigError: what is asked for can't be had here.
    """
    from lightning_fabric import Fabric

    accelerator = _accelerator(config)
    if config.precision == "fp16" and accelerator == "cpu":
        raise ConfigError("`train.precision`=fp16 needs a GPU: choose bf16 or float32.")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    precision: dict[str, Any] = {"precision": "bf16-mixed" if config.precision == "bf16" else "32-true"}
    if config.precision == "fp16":
        precision = {"plugins": [half_precision(accelerator)]}
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=processes // local,
        strategy=_strategy(config, objective, accelerator, processes),
        **precision,
    )
    if processes > 1:
        _join(_backend(accelerator), processes)
    fabric.launch()
    return fabric


def half_precision(device: str) -> Any:
    """Mixed float16 with a loss scale that adapts."""
    from lightning_fabric.plugins import MixedPrecision

    return MixedPrecision("16-mixed", device, scaler=GradScaler(device, init_scale=LOSS_SCALE))


def set_up(fabric: Any, objective: Objective, config: PretrainConfig) -> nn.Module:
    """Wraps an objective on its device: activation checkpointing, compilation, and the strategy.

    Its parameters may be other objects afterwards (shards), so that the optimiser comes later.

    Raises:
        ConfigError: the objective's modules don't offer what is asked for.
    """
    if config.checkpoint_activations:
        _switch_on(objective, "checkpoint_activations", "`train.checkpoint_activations` can't be true")
    if is_sharded(config, fabric):
        if objective.skips_blocks:
            _switch_on(objective, "run_skipped_blocks", "`train.strategy`=fsdp needs model.layerdrop=0")
        for module in objective.modules():
            if isinstance(module, Linear):
                module.pack_never()
        for parameter in objective.parameters():  # the waveform's convolutions keep theirs channels last
            parameter.data = parameter.data.contiguous()
    if config.compile:
        for block in blocks_of(objective):
            block.compile(dynamic=True)  # type: ignore[no-untyped-call]  # untyped in torch
    model: nn.Module = fabric.setup_module(Fabricated(objective))
    return model


def is_sharded(config: PretrainConfig, fabric: Any) -> bool:
    """Whether each process holds a part of every weight."""
    return config.strategy == "fsdp" and int(fabric.world_size) > 1


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The transformer blocks: what stands in any `blocks`, teachers' among them."""
    lists = (m for name, m in module.named_modules() if name.split(".")[-1] == "blocks")
    return [block for found in lists if isinstance(found, nn.ModuleList) for block in found]


def _accelerator(config: PretrainConfig) -> str:
    if config.accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if config.accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError("`train.accelerator` is cuda, but there is no GPU that torch can use: choose cpu or auto.")
    return config.accelerator


def _strategy(config: PretrainConfig, objective: Objective, accelerator: str, processes: int) -> Any:
    if processes == 1:
        return "auto"
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

    backend = _backend(accelerator)
    if config.strategy == "ddp":
        # Buffers are alike in all processes without being sent: they change by sums over all of them alone.
        return DDPStrategy(
            process_group_backend=backend,
            find_unused_parameters=objective.skips_blocks,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    return ModelParallelStrategy(
        _shard, data_parallel_size=processes, tensor_parallel_size=1, process_group_backend=backend
    )


def _backend(accelerator: str) -> str:
    return "nccl" if accelerator == "cuda" else "gloo"


def _join(backend: str, processes: int) -> None:
    """Meets the other processes of torchrun at a place of this restart's own.

    torchrun's store outlives a restart: what the processes before had written there, such as the addresses of those
    that were killed, would be read again.
    """
    environment = os.environ
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or dist.is_initialized():
        return
    place = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    every = TCPStore(*place, processes, is_master=False, wait_for_workers=False)
    store = PrefixStore(f"restart-{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", every)
    dist.init_process_group(backend, store=store, rank=int(environment["RANK"]), world_size=processes)
    if backend == "nccl":
        atexit.register(dist.destroy_process_group)


def _shard(model: nn.Module, mesh: Any) -> nn.Module:
    """FSDP2: every block is gathered when it is computed, all else for the whole of a micro-batch."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in blocks_of(model):
        if next(block.parameters(), None) is None:  # its weights are another module's
            continue
        fully_shard(block, mesh=mesh["data_parallel"])
        if not any(p.requires_grad for p in block.parameters()):  # a teacher's
            register_fsdp_forward_method(block, "forward_with_result")
    fully_shard(model, mesh=mesh["data_parallel"])
    return model


def _switch_on(objective: Objective, name: str, refusal: str) -> None:
    able = [m for m in objective.modules() if hasattr(m, name)]
    if not able:
        raise ConfigError(f"{refusal} for '{objective.upstream.name}', whose encoder has no `{name}`.")
    for module in able:
        setattr(module, name, True)
