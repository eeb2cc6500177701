"""Separation and enhancement metrics: the scale-invariant signal-to-distortion ratio, in dB.

B utterances, N sources, S samples.

Conventions
-----------
The reference s is scaled by a = <e, s> / |s|^2 so that it explains as much of the estimate e as it can; the ratio is
10 log10(|a s|^2 / |e - a s|^2). Computed in float64, over the valid samples of each utterance only: padding changes
nothing, whatever it holds.

* *Mean removal.* `zero_mean=True` takes the mean of both signals off first. So does asteroid's `get_metrics` (in
  pb_bss_eval 0.0.2), with which SUPERB scores source separation, hence the default; asteroid's losses
  (`PairwiseNegSDR`) and torchmetrics' SI-SNR do as well. `zero_mean=False` is Le Roux's definition to the letter, and
  the default of torchmetrics' `scale_invariant_signal_distortion_ratio`. They differ where an estimate has an offset.
* *Limits.* Shares of the estimate's energy are both raised by EPSILON = 1e-12, so a perfect estimate has 120 dB and one
  that has nothing of the reference, a silent one among them, -120 dB. Between -60 and 60 dB that changes less than
  1e-5 dB. (pb_bss_eval adds 1e-8 to energies instead: its limits depend on loudness, and its least is -80 dB.)
* *Order of sources.* The order is chosen for each utterance so that the mean ratio is highest. asteroid's `get_metrics`
  chooses it by the interference ratio of BSS Eval instead, which may differ where the separation has failed.

Paper: Le Roux et al. 2019, "SDR - half-baked or well done?", eq. 3 and 4, arXiv:1811.02508; Tsai et al. 2022
(SUPERB-SG), arXiv:2203.06849, for the improvement over the mixture.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from speechssl.errors import SpeechsslError
from speechssl.lengths import lengths_to_padding_mask
from speechssl.metric.interval import mean_interval
from speechssl.result import MetricValue

EPSILON = 1e-12
SILENT = 1e-24  # what mean removal leaves of a constant signal is rounding


def si_sdr(estimates: Tensor, references: Tensor, *, lengths: Tensor | None = None, zero_mean: bool = True) -> Tensor:
    """The ratio of each estimate to the reference in the same place.

    Args:
        estimates: (B, S) or (B, N, S).
        references: of the same shape.
        lengths: valid samples, (B,) int64; None = all.
        zero_mean: whether to remove the mean of both signals first.

    Returns:
        dB, (B,) or (B, N) float64.

    Raises:
        SpeechsslError: shapes that differ, lengths out of range, a signal that is not finite, or a silent reference.
    """
    estimates, references = _prepare(estimates, references, lengths, zero_mean)
    dot = (estimates * references).sum(dim=-1)
    return _ratio(dot, references.square().sum(dim=-1), estimates.square().sum(dim=-1))


def si_sdr_improvement(
    estimates: Tensor,
    references: Tensor,
    mixtures: Tensor,
    *,
    lengths: Tensor | None = None,
    zero_mean: bool = True,
) -> Tensor:
    """How much higher the ratio of each estimate is than that of the unprocessed mixture; as `si_sdr`.

    Args:
        estimates: (B, S) or (B, N, S), in the order of the references.
        references: of the same shape.
        mixtures: (B, S).

    Returns:
        dB, (B,) or (B, N) float64.
    """
    if mixtures.dim() == 2 and references.dim() == 3:
        mixtures = mixtures[:, None].expand_as(references)
    before = si_sdr(mixtures, references, lengths=lengths, zero_mean=zero_mean)
    return si_sdr(estimates, references, lengths=lengths, zero_mean=zero_mean) - before


def best_order(
    estimates: Tensor, references: Tensor, *, lengths: Tensor | None = None, zero_mean: bool = True
) -> tuple[Tensor, Tensor]:
    """Assigns the estimates to the references of each utterance so that the mean ratio is highest.

    Args:
        estimates: (B, N, S) in any order.
        references: (B, N, S).

    Returns:
        dB of each reference's estimate, (B, N) float64, and which estimate that is, (B, N) int64.

    Raises:
        SpeechsslError: as `si_sdr`.
    """
    if estimates.dim() != 3:
        raise SpeechsslError(f"`estimates` must be (B, N, S), but have shape {tuple(estimates.shape)}.")
    estimates, references = _prepare(estimates, references, lengths, zero_mean)
    dot = references @ estimates.transpose(1, 2)  # (B, references, estimates)
    ratios = _ratio(dot, references.square().sum(dim=-1)[:, :, None], estimates.square().sum(dim=-1)[:, None, :])
    rows = [linear_sum_assignment(table, maximize=True)[1] for table in ratios.cpu().numpy()]
    order = torch.from_numpy(np.array(rows, dtype=np.int64).reshape(dot.shape[:2])).to(dot.device)  # (B, N)
    return ratios.gather(2, order[:, :, None])[:, :, 0], order


def reorder(estimates: Tensor, order: Tensor) -> Tensor:
    """Puts estimates (B, N, S) into the order that `best_order` found, (B, N)."""
    return estimates.gather(1, order[:, :, None].expand_as(estimates))


def mean_decibels(
    values: Sequence[float] | Tensor, *, groups: Sequence[str] | None = None, seed: int = 0
) -> MetricValue:
    """The mean over utterances with its interval.

    Args:
        values: dB, (B,), or (B, N) of which the mean over sources is taken first, as in asteroid's `get_metrics`.
        groups: (B,) what is resampled, such as speakers; None = utterances.
        seed: of the interval.
    """
    rows = torch.as_tensor(values, dtype=torch.float64).cpu()
    rows = rows.mean(dim=1) if rows.dim() == 2 else rows
    if rows.dim() != 1 or not len(rows):
        raise SpeechsslError(
            f"`values` must hold the dB of at least one utterance, but have shape {tuple(rows.shape)}."
        )
    low, high = mean_interval(rows.numpy(), groups=groups, seed=seed)
    return MetricValue(float(rows.mean()), len(rows), "utterances", low, high)


def _ratio(dot: Tensor, reference_energy: Tensor, estimate_energy: Tensor) -> Tensor:
    """dB from inner products and energies, shapes that broadcast."""
    explained = dot.square() / (reference_energy * estimate_energy)
    # A silent estimate has no share of anything: 0 / 0 becomes the least that there is.
    explained = torch.where(estimate_energy > 0, explained, 0.0)
    return 10.0 * torch.log10((explained + EPSILON) / (1.0 - explained + EPSILON))


def _prepare(estimates: Tensor, references: Tensor, lengths: Tensor | None, zero_mean: bool) -> tuple[Tensor, Tensor]:
    """Both in float64, 0 beyond the valid samples, and without their means where asked."""
    if estimates.shape != references.shape or estimates.dim() not in (2, 3) or not estimates.size(-1):
        raise SpeechsslError(
            "`estimates` and `references` must both be (B, S) or (B, N, S), but have shapes "
            f"{tuple(estimates.shape)} and {tuple(references.shape)}."
        )
    size = estimates.size(-1)
    if lengths is None:
        lengths = torch.full((len(estimates),), size, device=estimates.device)
    if lengths.shape != (len(estimates),) or bool(((lengths < 1) | (lengths > size)).any()):
        raise SpeechsslError(
            f"`lengths` must be {len(estimates)} numbers within 1 and {size}, but are {lengths.tolist()}."
        )
    padding_mask = lengths_to_padding_mask(lengths, size)  # (B, S)
    if estimates.dim() == 3:
        padding_mask, lengths = padding_mask[:, None], lengths[:, None]
    pair = []
    for name, signal in (("estimates", estimates), ("references", references)):
        valid = signal.double().masked_fill(padding_mask, 0.0)
        if not bool(valid.isfinite().all()):
            raise SpeechsslError(f"`{name}` must be finite: did the training diverge?")
        energy = valid.square().sum(dim=-1)
        if zero_mean:
            mean = valid.sum(dim=-1) / lengths
            valid = (valid - mean[..., None]).masked_fill(padding_mask, 0.0)
        if name == "references":
            _refuse_silence(valid, energy)
        pair.append(valid)
    return pair[0], pair[1]


def _refuse_silence(references: Tensor, energy: Tensor) -> None:
    """`energy` is that before the mean was removed."""
    silent = (references.square().sum(dim=-1) <= SILENT * energy).nonzero()
    if len(silent):
        at = ", ".join(map(str, silent[0].tolist()))
        raise SpeechsslError(
            f"references[{at}] is silent, so its ratio is undefined: leave the utterance out and count it, or check "
            "the corpus."
        )
