"""Sets the smallest weights of an upstream to 0 before and while it is fine-tuned, so that they learn the task anew.

Nothing is masked: what was set to 0 is trained on like all else.
Paper: Prasad et al. 2022 (PADA), arXiv:2203.16965. One rate is the paper's 'once', equal ones are 'iterative', and
falling ones 'dynamic iterative'. By its own weights it is 'task-agnostic'; with those of a model that was fine-tuned
for the task, 'task-aware', or 'cross-domain task-aware' where that was elsewhere.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from speechssl.adapt.blocks import find_blocks
from speechssl.adapt.config import AdaptConfig
from speechssl.adapt.methods import Adapted
from speechssl.errors import ConfigError
from speechssl.upstream import Upstream


def prunable(adapted: Adapted) -> dict[str, Tensor]:
    """The trained matrices of the blocks, by name.

    Raises:
        ConfigError: there are none.
    """
    ids = {id(p) for block in find_blocks(adapted.upstream) for p in block.module.parameters()}
    found: dict[str, Tensor] = {
        name: weight for name, weight in adapted.trained.items() if weight.dim() == 2 and id(weight) in ids
    }
    if not found:
        raise ConfigError(
            f"`adapt.prune_rates` is for the matrices of transformer blocks, of which '{adapted.upstream.name}' trains "
            "none here: set `adapt.method=full`, or leave it empty."
        )
    return found


def rate_at(config: AdaptConfig, step: int) -> float:
    """The share of weights to be set to 0 before `step` (from 1); 0 = nothing is."""
    number, rest = divmod(step - 1, config.prune_every)
    return config.prune_rates[number] if rest == 0 and number < len(config.prune_rates) else 0.0


@torch.no_grad()
def prune(weights: Mapping[str, Tensor], magnitudes: Mapping[str, Tensor], rate: float) -> None:
    """Sets to 0, in each matrix, the share `rate` of its weights whose `magnitudes` are smallest.

    Args:
        weights: name -> matrix, changed in place.
        magnitudes: name -> a matrix of that shape, by whose absolute values weights are ranked.
    """
    for name, weight in weights.items():
        count = round(rate * weight.numel())
        smallest = magnitudes[name].abs().flatten().argsort(stable=True)[:count]
        weight.view(-1)[smallest.to(weight.device)] = 0.0


def prune_before(adapted: Adapted, config: AdaptConfig, step: int, *, tuned: Upstream | None) -> None:
    """What PADA does before a step, if it does anything then.

    Args:
        step: from 1.
        tuned: decides the first time what is small; None = the upstream itself. Later it is always the upstream.

    Raises:
        ConfigError: there is nothing to prune, or `tuned` has other weights.
    """
    rate = rate_at(config, step) if config.prune_rates else 0.0
    if rate == 0.0:
        return
    weights = prunable(adapted)
    magnitudes: dict[str, Tensor] = weights
    if step == 1 and tuned is not None:
        state = tuned.state_dict()
        for name, weight in weights.items():
            if name not in state or state[name].shape != weight.shape:
                raise ConfigError(
                    f"`adapt.prune_like` must be of the shape of '{adapted.upstream.name}', but its '{name}' differs."
                )
        magnitudes = {name: state[name] for name in weights}
    prune(weights, magnitudes, rate)
