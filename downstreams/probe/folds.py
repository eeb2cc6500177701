"""Divides utterances into folds of whole groups and like labels.

G groups, F folds, C strata.
"""

from collections.abc import Sequence

import numpy as np

from speechssl.data.seeds import derive_seed
from speechssl.errors import ManifestError


def assign_folds(groups: Sequence[str], strata: Sequence[str], folds: int) -> list[int]:
    """The fold of each utterance, from 1 on: the same for all of a group, and the same on every machine.

    Groups are dealt one after the other, the largest first, to the fold where it leaves the shares of each stratum most
    even over the folds, and of those to the smallest. As scikit-learn's `StratifiedGroupKFold`, whose order of groups
    is another.

    Args:
        groups: of each utterance, such as its speaker.
        strata: of each utterance, such as its class.

    Raises:
        ManifestError: fewer groups than folds.
    """
    names, owner = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if len(names) < folds:
        raise ManifestError(f"There are {len(names)} groups, too few for {folds} folds: set `fold=0` or no `group`.")
    kinds, kind = np.unique(np.asarray(strata, dtype=str), return_inverse=True)
    counts = np.zeros((len(names), len(kinds)))
    np.add.at(counts, (owner, kind), 1.0)
    shares = counts / counts.sum(axis=0)  # (G, C)
    order = sorted(range(len(names)), key=lambda g: (-counts[g].sum(), derive_seed("fold", str(names[g]))))
    held, sizes = np.zeros((folds, len(kinds))), np.zeros(folds)
    place = np.zeros(len(names), dtype=np.intp)
    for group in order:
        mean = (held.sum(axis=0) + shares[group]) / folds
        # Of the squared distances to the mean over folds only one term differs between the choices.
        change = ((held + shares[group] - mean) ** 2 - (held - mean) ** 2).sum(axis=1)  # (F,)
        place[group] = min(range(folds), key=lambda f: (round(float(change[f]), 12), sizes[f], f))
        held[place[group]] += shares[group]
        sizes[place[group]] += counts[group].sum()
    return [int(fold) + 1 for fold in place[owner]]


def quantile_strata(values: Sequence[float], parts: int) -> list[str]:
    """Which of `parts` equally large parts of the sorted values each of them is in."""
    array = np.asarray(values, dtype=np.float64)
    edges = np.quantile(array, np.arange(1, parts) / parts) if len(array) else array
    return [str(place) for place in np.searchsorted(edges, array)]
