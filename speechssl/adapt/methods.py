"""Makes an upstream ready to learn with a task: what is trained, at which rate, and what stays below it.

Every method leaves the upstream's numbers as they are until the first step; 'distill' those of the first blocks.
L blocks.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechssl.adapt.blocks import choose_blocks, find_blocks
from speechssl.adapt.bottleneck import Bottleneck, insert_adapters
from speechssl.adapt.config import AdaptConfig
from speechssl.adapt.depth import first_uses
from speechssl.adapt.distill import Beside, make_student
from speechssl.adapt.lora import insert_lora, merge_lora
from speechssl.adapt.prefix import Prefix, insert_prefix
from speechssl.data.seeds import derive_seed
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.upstream import Upstream

FRONTEND = "frontend."
"""Begins the names of the weights of what hears the waveform."""
MASK = "mask_embedding"
"""What stands for hidden frames; only training with them uses it."""


@dataclass(frozen=True)
class Adapted:
    """An upstream some of whose weights are trained."""

    upstream: Upstream
    trained: Mapping[str, nn.Parameter]
    """By their names in `upstream`."""
    rates: Mapping[str, float]
    """Of each, over `AdaptConfig.learning_rate`."""
    frozen: int
    """The highest hidden state with none of them in it; -1 = they are in all."""

    def state(self) -> dict[str, Tensor]:
        """The weights that are trained, to be saved."""
        return {name: parameter.detach() for name, parameter in self.trained.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], *, origin: str) -> None:
        """Sets the trained weights to saved ones.

        Raises:
            SpeechsslError: they are of another adaptation.
        """
        for name, parameter in self.trained.items():
            if name not in state or state[name].shape != parameter.shape:
                raise SpeechsslError(f"{origin} does not fit its config ('{name}' differs): run the task again.")
            parameter.copy_(state[name])

    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.trained.values())

    def on(self, device: torch.device) -> "Adapted":
        """A copy as it is now, on a device."""
        upstream = copy.deepcopy(self.upstream).to(device)
        weights = dict(upstream.named_parameters())
        return Adapted(upstream, {name: weights[name] for name in self.trained}, self.rates, self.frozen)


def adapt(upstream: Upstream, config: AdaptConfig, *, seed: int, deepest: int | None = None) -> Adapted:
    """Changes an upstream in place, so that it can be trained as `config` says.

    Args:
        seed: of the weights that are added; no global random state is touched.
        deepest: the highest hidden state that is heard: nothing above is trained. None = all are.

    Raises:
        ConfigError: the method does not fit the upstream.
    """
    upstream.requires_grad_(False)
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # unnamed, several GPUs give a warning
        torch.random.manual_seed(derive_seed(seed, "adapt"))
        added = _insert(upstream, config)
    uses = first_uses(upstream)
    if config.method in ("full", "distill"):
        chosen = _own_weights(upstream, config, uses)
    else:
        ids = {id(parameter) for parameter in added}
        chosen = {name: parameter for name, parameter in upstream.named_parameters() if id(parameter) in ids}
    top = len(upstream.hidden_sizes) - 1
    heard = top if deepest is None else deepest
    chosen = {name: parameter for name, parameter in chosen.items() if uses.get(name, 0) <= heard}
    if config.method != "frozen" and not chosen:
        where = "" if config.top_layers is None else f" and `adapt.top_layers={config.top_layers}`"
        raise ConfigError(
            f"There is nothing to train in '{upstream.name}' below hidden state {heard} (of {top}), the highest that "
            f"is heard, with `adapt.method={config.method}`{where}: choose another, or other `features.layers`."
        )
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    depths = {name: uses.get(name, 0) for name in chosen}
    rates = {name: config.layer_decay ** (top - depth) for name, depth in depths.items()}
    return Adapted(upstream, chosen, rates, min(depths.values(), default=top + 1) - 1)


def _insert(upstream: Upstream, config: AdaptConfig) -> list[nn.Parameter]:
    """Adds what the method adds; returns what it trains, where that is not a choice among all weights."""
    trained: list[nn.Parameter] = []
    if config.method == "distill":
        make_student(upstream, config.student_layers, inner=config.adapter_width)
    if config.method in ("frozen", "full", "distill"):
        return trained
    for block in choose_blocks(upstream, top=config.top_layers, method=config.method):
        if config.method == "lora":
            trained += insert_lora(block, rank=config.lora_rank, alpha=config.lora_alpha, targets=config.lora_targets)
        elif config.method == "adapters":
            trained += insert_adapters(block, inner=config.adapter_width, norms=config.adapter_norms)
        elif config.method == "prefix":
            trained += insert_prefix(block, length=config.prefix_length)
        else:
            # Ben Zaken et al. 2021, sec. 3, arXiv:2106.10199: every bias, those of layer norms too.
            trained += [p for name, p in block.module.named_parameters() if name.rpartition(".")[2] == "bias"]
    return trained


def _own_weights(upstream: Upstream, config: AdaptConfig, uses: Mapping[str, int]) -> dict[str, nn.Parameter]:
    top = len(upstream.hidden_sizes) - 1
    if config.top_layers is not None and config.top_layers > top:
        raise ConfigError(f"`adapt.top_layers` is {config.top_layers}, but '{upstream.name}' has {top} layers.")
    least = -1 if config.top_layers is None else top - config.top_layers + 1
    chosen = {
        name: parameter
        for name, parameter in upstream.named_parameters()
        if uses.get(name, -2) >= least and (config.train_frontend or not name.startswith(FRONTEND))
    }
    mask = getattr(upstream, MASK, None)
    if config.top_layers is None and config.mask_prob > 0 and isinstance(mask, nn.Parameter):
        chosen[MASK] = mask
    return chosen


def set_training(adapted: Adapted, training: bool) -> None:
    """Puts what is trained, and what lies above it, into training mode; the rest evaluates, so without dropout.

    Batch norms keep the statistics that they have, so that an utterance does not depend on its batch.
    """
    upstream, blocks = adapted.upstream, find_blocks(adapted.upstream)
    upstream.eval()
    if not training:
        return
    if adapted.frozen >= 0 and len(blocks) == len(upstream.hidden_sizes) - 1:
        for block in blocks[adapted.frozen :]:
            block.module.train()
    else:
        upstream.train()
    for module in upstream.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def merge(upstream: Upstream) -> None:
    """Brings low-rank updates into the weights, in place: the model is one of its family again.

    Raises:
        SpeechsslError: it holds adapters or prefixes, which no weights of the family can stand for.
    """
    for block in find_blocks(upstream):
        merge_lora(block)
    if any(isinstance(module, Bottleneck | Prefix | Beside) for module in upstream.modules()):
        raise SpeechsslError(
            f"'{upstream.name}' holds adapters or prefixes, which can't be merged into its weights: keep the run's "
            "folder, or adapt with `adapt.method=lora`, `bitfit` or `full`."
        )
