"""What the cluster of a frame tells of its label: mutual information, purity, normalised mutual information.

Conventions
-----------
N frames, K clusters z, C labels y (phones, words, speakers). All is computed of the (K, C) table of how often each pair
occurs, which can be added up piece by piece. Information is in bits. Clusters that were fitted to the frames they are
measured on know too much: fit them to other frames (`fit` of `cluster_information`).

Measures
--------
* Mutual information I(y; z), and its share I(y; z) / H(y) of what there is to know: Pasad et al. 2021,
  arXiv:2107.04734 (with 500 clusters for phones and 5000 for words, by its code), and 'phone-normalised mutual
  information' of Hsu et al. 2021, arXiv:2106.07447. The share is 0 of a single label.
* Phone purity: the share of frames whose label is the most frequent one of their cluster. Cluster purity: the share of
  frames whose cluster is the most frequent one of their label. Same paper of Hsu et al.
* NMI: I / mean(H(y), H(z)), scikit-learn's `normalized_mutual_info_score`.

Even clusters that know nothing of the labels have information in a sample, the more the smaller they are: `chance` is
what they would have on average, were the labels of the frames dealt out anew (scikit-learn computes it). AMI is NMI
with that taken off: (I - chance) / (mean(H(y), H(z)) - chance), 0 for clusters that know nothing. Vinh, Epps and Bailey
2010, "Information theoretic measures for clusterings comparison". Intervals are of the grouped jackknife (Efron and
Tibshirani 1993, chapter 11): a bootstrap sample holds utterances twice, and so has more information than the sample
itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.metrics.cluster import expected_mutual_information
from torch import Tensor

from speechssl.analysis.arrays import Frames, as_rows
from speechssl.errors import SpeechsslError
from speechssl.targets.kmeans import KMeans
from speechssl.targets.lloyd import KMeansConfig, fit_kmeans

Numbers = Sequence[int] | Tensor | NDArray[np.int64]
"""(N,) integers from 0 on."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Information:
    """What clusters tell of labels."""

    bits: float
    """Mutual information."""
    share: float
    """Of the entropy of the labels, within [0, 1]."""
    nmi: float
    purity: float
    """Share of frames whose label is their cluster's most frequent one."""
    cluster_purity: float
    """Share of frames whose cluster is their label's most frequent one."""
    label_entropy: float
    """Bits."""
    cluster_entropy: float
    """Bits."""
    chance: float
    """Bits that clusters of these sizes have of such labels without knowing them."""
    ami: float
    """NMI beyond chance."""
    clusters: int
    """In use."""
    labels: int
    """That occur."""
    n: int
    """Frames."""
    low: float | None = None
    """Where the 95 % interval of `share` begins; None = no groups were given."""
    high: float | None = None
    note: str = ""
    """What is doubtful, one sentence; '' = nothing."""


def information(codes: Numbers, labels: Numbers, *, groups: Numbers | None = None) -> Information:
    """What the cluster of a frame tells of its label.

    Args:
        codes: cluster of each frame, (N,).
        labels: label of each frame, (N,).
        groups: utterance or speaker of each frame, (N,), left out one by one for the interval; None = no interval.

    Raises:
        SpeechsslError: no frames, unequal numbers, or negative ones.
    """
    z, y = _numbers(codes, "codes"), _numbers(labels, "labels")
    if z.size != y.size:
        raise SpeechsslError(f"There must be a label for each of the {z.size} codes, but there are {y.size}.")
    found = table_information(count_pairs(z, y))
    if groups is None:
        return found
    units = np.unique(_numbers(groups, "groups"), return_inverse=True)[1]
    if units.size != z.size:
        raise SpeechsslError(f"There must be a group for each of the {z.size} codes, but there are {units.size}.")
    error = _jackknife(z, y, units)
    if error is None:
        return Information(**{**vars(found), "note": found.note or "One group only: no interval can be told."})
    half = 1.96 * error
    return Information(**{**vars(found), "low": max(found.share - half, 0.0), "high": min(found.share + half, 1.0)})


def count_pairs(codes: Numbers, labels: Numbers) -> NDArray[np.int64]:
    """(K, C) how often each pair occurs; tables of the same shape can be added."""
    z, y = _numbers(codes, "codes"), _numbers(labels, "labels")
    table = np.zeros((int(z.max()) + 1, int(y.max()) + 1), dtype=np.int64)
    np.add.at(table, (z, y), 1)
    return table


def table_information(table: NDArray[np.int64]) -> Information:
    """The same of a (K, C) table of counts."""
    n = int(table.sum())
    if n < 1:
        raise SpeechsslError("There are no frames with both a cluster and a label.")
    label_counts, cluster_counts = table.sum(axis=0), table.sum(axis=1)
    label_entropy, cluster_entropy = _entropy(label_counts), _entropy(cluster_counts)
    bits = max(label_entropy + cluster_entropy - _entropy(table.ravel()), 0.0)
    mean = (label_entropy + cluster_entropy) / 2
    used = table[np.ix_(cluster_counts > 0, label_counts > 0)]
    clusters, labels = used.shape
    chance = float(expected_mutual_information(used, n)) / math.log(2)
    return Information(
        bits=bits,
        share=bits / label_entropy if label_entropy else 0.0,
        nmi=bits / mean if mean else 1.0,
        purity=float(table.max(axis=1).sum() / n),
        cluster_purity=float(table.max(axis=0).sum() / n),
        label_entropy=label_entropy,
        cluster_entropy=cluster_entropy,
        chance=chance,
        ami=(bits - chance) / (mean - chance) if mean > chance else 1.0,
        clusters=clusters,
        labels=labels,
        n=n,
        note=_note(clusters, labels),
    )


def cluster_information(
    fit: Frames,
    frames: Frames,
    labels: dict[str, Numbers],
    *,
    clusters: int,
    generator: torch.Generator,
    groups: Numbers | None = None,
) -> dict[str, Information]:
    """Fits clusters to some frames and measures them on others.

    Args:
        fit: (M, D) with M >= clusters.
        frames: (N, D), other frames.
        labels: 'phone', 'speaker', ... -> (N,) numbers; -1 = that frame has none.
        clusters: K.
        generator: decides the first centroids.
        groups: as in `information`.
    """
    kmeans = fit_clusters(fit, clusters, generator=generator)
    codes = kmeans.assign(as_rows(frames, "frames").float()).numpy()
    found = {}
    for name, wanted in labels.items():
        numbers = np.asarray(wanted, dtype=np.int64)
        if numbers.shape != codes.shape:
            raise SpeechsslError(f"`labels['{name}']` must have {len(codes)} numbers, but has shape {numbers.shape}.")
        known = numbers >= 0
        units = None if groups is None else np.asarray(groups, dtype=np.int64)[known]
        found[name] = information(codes[known], numbers[known], groups=units)
    return found


def fit_clusters(frames: Frames, clusters: int, *, generator: torch.Generator) -> KMeans:
    """k-means of (M, D) frames with few passes, enough for a measure; of `speechssl.targets.lloyd`."""
    config = KMeansConfig(clusters=clusters, subsampled_passes=5, fast_passes=5, full_passes=1)
    return fit_kmeans(as_rows(frames, "fit").float(), config, generator=generator)[0]


def _jackknife(codes: NDArray[np.int64], labels: NDArray[np.int64], units: NDArray[np.intp]) -> float | None:
    """Standard error of the share with one group left out at a time; None with fewer than two groups."""
    number = int(units.max()) + 1
    if number < 2:
        return None
    width = int(labels.max()) + 1
    cells = np.unique(codes * width + labels, return_inverse=True)
    ones = np.ones(len(codes))
    by_unit = sparse.csr_array((ones, (units, cells[1])), shape=(number, len(cells[0])))
    cluster_of, label_of = np.unique(cells[0] // width, return_inverse=True)[1], cells[0] % width
    total = np.asarray(by_unit.sum(axis=0)).ravel()
    shares = []
    for unit in range(number):
        left = total.copy()
        own = slice(by_unit.indptr[unit], by_unit.indptr[unit + 1])
        left[by_unit.indices[own]] -= by_unit.data[own]
        if not left.any():
            continue
        label_entropy = _entropy(np.bincount(label_of, left))
        bits = label_entropy + _entropy(np.bincount(cluster_of, left)) - _entropy(left)
        shares.append(bits / label_entropy if label_entropy else 0.0)
    values = np.array(shares)
    return math.sqrt((len(values) - 1) / len(values) * float(np.square(values - values.mean()).sum()))


def _entropy(counts: NDArray[np.int64] | Floats) -> float:
    """Bits of a histogram."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum()) + 0.0


def _note(clusters: int, labels: int) -> str:
    if labels < 2:
        return "All frames have the same label: there is nothing to tell."
    if clusters < 2:
        return "All frames are in the same cluster: the model has collapsed, or has one cluster."
    return ""


def _numbers(values: Numbers, name: str) -> NDArray[np.int64]:
    numbers = np.asarray(values)
    if numbers.ndim != 1 or not numbers.size:
        raise SpeechsslError(f"`{name}` must be a number for each frame, but has shape {numbers.shape}.")
    if not np.issubdtype(numbers.dtype, np.integer) or int(numbers.min()) < 0:
        raise SpeechsslError(f"`{name}` must be integers from 0 on, but holds {numbers.min()}: leave such frames out.")
    return numbers.astype(np.int64)
