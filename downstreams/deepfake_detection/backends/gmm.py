"""Two Gaussian mixtures over frames, one of spoofed and one of bona fide speech; they are fitted, not trained.

The score is the mean log-likelihood ratio of the frames. Expectation maximisation goes through the frames in batches,
so that their number does not matter. All is computed in float64.

B batch, T frames, D width, M components, N frames of many utterances.
Baseline: ASVspoof 2019 and 2021, LFCC-GMM (`asvspoof-challenge/2021`, LA/Baseline-LFCC-GMM): 512 components with
diagonal covariances, k-means first, 10 iterations.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from typing_extensions import override

from downstreams.deepfake_detection.backends.config import GmmConfig
from downstreams.deepfake_detection.backends.window import fit_frames
from downstreams.deepfake_detection.head import Detector
from speechssl.errors import SpeechsslError
from speechssl.lengths import lengths_to_padding_mask
from speechssl.targets.kmeans import nearest
from speechssl.targets.lloyd import KMeansConfig, fit_kmeans

CLASSES = ("spoofed", "bona fide")
Frames = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Goes once through the frames: (N, D), and 0 or 1 for the class of each, (N,)."""


class MixtureDetector(Detector):
    """Mean log-likelihoods of the frames under both mixtures."""

    progress: Tensor
    """How far `fit` has come, so that one which was interrupted goes on: passes, the last log-likelihood of each class,
    and whether it still rises; zeros where there is nothing to go on with."""

    def __init__(self, size: int, *, config: GmmConfig, window: int | None = None) -> None:
        """
        Args:
            size: D.
            window: frames that utterances are cut or repeated to; None = as they are.
        """
        super().__init__()
        self.window = window
        self.config = config
        shape = len(CLASSES), config.components
        self.log_weights = nn.Parameter(torch.full(shape, -math.log(config.components)))
        self.means = nn.Parameter(torch.zeros(*shape, size))
        self.log_variances = nn.Parameter(torch.zeros(*shape, size))
        self.register_buffer("progress", torch.zeros(1 + 2 * len(CLASSES), dtype=torch.float64))
        self.register_load_state_dict_pre_hook(_without_progress)  # type: ignore[no-untyped-call]  # torch has none

    @override
    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        features, lengths = fit_frames(features, lengths, least=1, window=self.window)
        padding = lengths_to_padding_mask(lengths, features.size(1))
        found = [self.log_likelihoods(features, number).logsumexp(dim=2) for number in range(len(CLASSES))]
        frames = torch.stack(found, dim=2).masked_fill(padding[:, :, None], 0.0)  # (B, T, 2)
        return (frames.sum(dim=1) / lengths[:, None]).to(self.means.dtype)

    def log_likelihoods(self, frames: Tensor, number: int) -> Tensor:
        """Of each frame with each component of a mixture, its weight included: (..., D) -> (..., M) float64."""
        with torch.autocast(frames.device.type, enabled=False):
            frames, means = frames.double(), self.means[number].double()
            precisions = (-self.log_variances[number].double()).exp()  # (M, D)
            distances = (
                frames.square() @ precisions.T
                - 2 * frames @ (means * precisions).T
                + (means.square() * precisions).sum(dim=1)
            )
            scale = frames.size(-1) * math.log(2 * math.pi) + self.log_variances[number].double().sum(dim=1)
            likelihoods: Tensor = self.log_weights[number].double() - 0.5 * (distances + scale)
        return likelihoods

    @torch.no_grad()
    def fit(self, frames: Frames, *, generator: torch.Generator, report: Callable[[float, str], None]) -> None:
        """Fits both mixtures by expectation maximisation.

        Args:
            frames: each call goes through the same ones.
            generator: of the sample that k-means sees, and of k-means.
            report: takes the share of the work that was done since the last call, and a note; what it then saves of
                the state is gone on from.

        Raises:
            SpeechsslError: a class has fewer frames than components.
        """
        share = 1 / (1 + self.config.iterations)
        passes = int(self.progress[0])
        if passes == 0:
            for number, sample in enumerate(self._sample(frames, generator)):
                self._begin(sample, number, generator)
            passes = 1
            self.progress[:] = torch.tensor([1.0, -math.inf, -math.inf, 1.0, 1.0])
            report(share, "k-means")
        else:
            report(share * passes, "goes on")
        before, running = self.progress[1:3].tolist(), [bool(rises) for rises in self.progress[3:]]
        for iteration in range(passes - 1, self.config.iterations):
            sums = [_Sums(self.means[number]) for number in range(len(CLASSES))]
            for part, classes in frames():
                for number in range(len(CLASSES)):
                    own = part[classes == number]
                    if running[number] and len(own):
                        sums[number].add(own.double(), self.log_likelihoods(own, number))
            for number in range(len(CLASSES)):
                if not running[number]:
                    continue
                self._set(number, sums[number])
                now = sums[number].mean_likelihood
                running[number] = abs(now - before[number]) >= self.config.tolerance
                before[number] = now
            note = ", ".join(f"{name} {value:.3f}" for name, value in zip(CLASSES, before, strict=True))
            self.progress[:] = torch.tensor([iteration + 2, *before, *running], dtype=torch.float64)
            report(share, f"log-likelihood {note}")
            if not any(running):
                report(share * (self.config.iterations - 1 - iteration), "converged")
                break
        self.progress.zero_()

    def _sample(self, frames: Frames, generator: torch.Generator) -> Iterator[Tensor]:
        """Up to so many random frames of each class as k-means is to see."""
        size = self.config.components * self.config.sample
        kept = [(self.means.new_zeros(0, self.means.size(2)), torch.zeros(0)) for _ in CLASSES]
        for part, classes in frames():
            for number in range(len(CLASSES)):
                own = part[classes == number].float()
                rows = torch.cat((kept[number][0], own))
                keys = torch.cat((kept[number][1], torch.rand(len(own), generator=generator)))
                best = keys.topk(min(size, len(keys))).indices
                kept[number] = rows[best.to(rows.device)], keys[best]
        for name, (rows, _) in zip(CLASSES, kept, strict=True):
            if len(rows) < self.config.components:
                raise SpeechsslError(
                    f"A mixture of {self.config.components} components needs as many frames, but the {name} speech "
                    f"has {len(rows)}: lower `head.gmm.components`, or train on more."
                )
            yield rows

    @torch.no_grad()
    def _begin(self, sample: Tensor, number: int, generator: torch.Generator) -> None:
        """Weights, means and variances of the clusters of k-means."""
        kmeans, _ = fit_kmeans(sample, KMeansConfig(clusters=self.config.components), generator=generator)
        codes = nearest(sample, kmeans.centroids)[0]
        sums = _Sums(self.means[number])
        certain = torch.full((len(sample), self.config.components), -torch.inf, device=sample.device)
        sums.add(sample.double(), certain.double().scatter(1, codes[:, None].long(), 0.0))
        self._set(number, sums)

    def _set(self, number: int, sums: "_Sums") -> None:
        weights, means, variances = sums.maximised(self.config.floor)
        self.log_weights[number] = weights.log()
        self.means[number] = means
        self.log_variances[number] = variances.log()


def _without_progress(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Lets weights in that know no progress."""
    del module
    state.setdefault(f"{prefix}progress", torch.zeros(1 + 2 * len(CLASSES), dtype=torch.float64))


class _Sums:
    """What expectation gathers over frames for maximisation, in float64."""

    def __init__(self, means: Tensor) -> None:
        self.counts = means.new_zeros(len(means), dtype=torch.float64)
        self.first = torch.zeros_like(means, dtype=torch.float64)
        self.second = torch.zeros_like(self.first)
        self.likelihood = 0.0
        self.frames = 0

    def add(self, frames: Tensor, likelihoods: Tensor) -> None:
        """Frames (N, D) and their log-likelihoods with each component (N, M)."""
        total = likelihoods.logsumexp(dim=1, keepdim=True)
        shares = (likelihoods - total).exp()  # (N, M)
        self.counts += shares.sum(dim=0)
        self.first += shares.T @ frames
        self.second += shares.T @ frames.square()
        self.likelihood += float(total.sum())
        self.frames += len(frames)

    @property
    def mean_likelihood(self) -> float:
        """Log-likelihood of a frame under the mixture that gave `likelihoods`."""
        return self.likelihood / max(1, self.frames)

    def maximised(self, floor: float) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (M,), means and variances (M, D), these plus `floor`."""
        counts = self.counts + 10 * torch.finfo(torch.float64).eps  # of a component without frames
        means = self.first / counts[:, None]
        variances = (self.second / counts[:, None] - means.square()).clamp(min=0.0) + floor
        return counts / counts.sum(), means, variances
