"""Permutation-invariant training: a network's outputs have no names, so they are scored in their best order.

B batch, N outputs and as many references.

The cost of an order is a sum over outputs, so N x N costs say all: an utterance never needs its loss in each of the N!
orders, as S3PRL's `pit_loss` and `SepLoss` compute it.
Paper: Yu et al. 2017, arXiv:1607.00325; Kolbaek et al. 2017 (over whole utterances), sec. III, arXiv:1703.06284.
"""

from functools import lru_cache
from itertools import permutations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from speechssl.errors import SpeechsslError

ENUMERATED = 5
"""Most outputs whose orders are compared on the device; of more, the assignment is solved on the CPU."""


def best_permutation(costs: Tensor) -> tuple[Tensor, Tensor]:
    """Assigns references to outputs so that the sum of costs is least.

    Args:
        costs: of taking output i for reference j, (B, N, N).

    Returns:
        the least sum, (B,), through which gradients flow; and which reference each output is taken for, (B, N) int64.
        Of orders that cost the same, the first in lexicographic order is taken (up to `ENUMERATED` outputs).

    Raises:
        SpeechsslError: costs that are not square.
    """
    if costs.dim() != 3 or costs.size(1) != costs.size(2) or costs.size(1) == 0:
        raise SpeechsslError(f"`costs` must be (B, N, N) with N > 0, but have shape {tuple(costs.shape)}.")
    order = _enumerate(costs.detach()) if costs.size(1) <= ENUMERATED else _assign(costs.detach())
    return costs.gather(2, order[:, :, None])[:, :, 0].sum(dim=1), order


def _enumerate(costs: Tensor) -> Tensor:
    number = costs.size(1)
    orders = torch.tensor(_orders(number), device=costs.device)  # (N!, N)
    sums = costs[:, torch.arange(number, device=costs.device), orders].sum(dim=2)  # (B, N!)
    return orders[sums.argmin(dim=1)]


def _assign(costs: Tensor) -> Tensor:
    rows = [linear_sum_assignment(table)[1] for table in costs.double().cpu().numpy()]
    return torch.from_numpy(np.array(rows, dtype=np.int64).reshape(costs.shape[:2])).to(costs.device)


@lru_cache(maxsize=ENUMERATED)
def _orders(number: int) -> list[tuple[int, ...]]:
    return list(permutations(range(number)))
