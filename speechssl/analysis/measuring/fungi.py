"""Whether a model's gradients, beside its last layer, help nearest neighbours to tell speakers and languages."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from speechssl.analysis.fungi import FungiConfig, GradientFeatures
from speechssl.analysis.gather import Gathered
from speechssl.analysis.material import Material
from speechssl.analysis.probes import Samples, probe_neighbours, split_groups
from speechssl.analysis.result import LayerValue, Measure
from speechssl.analysis.settings import AnalysisSettings
from speechssl.audio import read_audio
from speechssl.progress import progress
from speechssl.upstream import Upstream

NEIGHBOURS = 5
FEWEST = 6
"""Utterances of a class that counts."""
NEGATIVES = 32
"""Utterances that 'simclr' tells others from."""
SOURCE = "Simoncini et al. 2024, arXiv:2407.10964"


def measure_fungi(
    upstream: Upstream, gathered: Gathered, material: Material, settings: AnalysisSettings
) -> tuple[list[Measure], list[str]]:
    """Accuracies of the nearest neighbours by the embedding alone and with gradients, of other utterances."""
    measures: list[Measure] = []
    problems: list[str] = []
    maker = _Maker(upstream, material, settings)
    held = set(gathered.ids)
    for name in ("speaker", "language"):
        values = {i: v for i, v in material.values(name, fewest=FEWEST).items() if i in held}
        if len(set(values.values())) < 2:
            problems.append(f"Gradients can't be asked for {name}s: there are no two with {FEWEST} utterances each.")
            continue
        ids = np.random.default_rng(settings.seed).permutation(sorted(values))[: settings.fungi_utterances].tolist()
        train, test = split_groups(ids, seed=settings.seed)
        rows = maker.make(ids, [ids[k] for k in train[:NEGATIVES]])
        labels = np.array([values[i] for i in ids], dtype=object)
        width = upstream.hidden_sizes[-1]
        for key, title, columns in (
            ("embedding", "by the embedding", slice(0, width)),
            ("gradients", "by the embedding and gradients", slice(None)),
        ):
            parts = [Samples(rows[torch.from_numpy(k), columns], labels[k]) for k in (train, test)]
            found = probe_neighbours(*parts, k=NEIGHBOURS, seed=settings.seed)
            value = LayerValue(gathered.layers[-1], found.value, found.low, found.high, found.n)
            called = f"{name.capitalize()} of an utterance, {title}"
            source = f"{SOURCE}; vote of {NEIGHBOURS} neighbours"
            measures.append(Measure(f"fungi/{name} {key}", called, "share", "up", source, [value]))
    return measures, problems


class _Maker:
    """Makes the features of utterances, each once."""

    def __init__(self, upstream: Upstream, material: Material, settings: AnalysisSettings) -> None:
        self.upstream = upstream
        self.material = material
        self.features = GradientFeatures(upstream, FungiConfig(losses=settings.fungi_losses, seed=settings.seed))
        self.device = next(upstream.parameters()).device
        self.made: dict[str, Tensor] = {}

    def make(self, ids: Sequence[str], negatives: Sequence[str]) -> Tensor:
        """(B, W) of utterances; the `negatives` of the first call are those of all."""
        if "simclr" in self.features.config.losses and not self.made:
            waves = [self._waveform(i) for i in negatives]
            padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True).to(self.device)
            self.features.set_negatives(padded, torch.tensor([len(w) for w in waves], device=self.device))
        todo = [i for i in ids if i not in self.made]
        with progress("Differentiating", len(todo), unit="utterances") as advance:
            for name in todo:
                waveform = self._waveform(name)
                lengths = torch.tensor([len(waveform)], device=self.device)
                self.made[name] = self.features(waveform[None].to(self.device), lengths)[0].detach().cpu()
                advance()
        return torch.stack([self.made[i] for i in ids])

    def _waveform(self, name: str) -> Tensor:
        one, rate = self.material.by_id[name], self.upstream.sample_rate
        return read_audio(one.path, sample_rate=rate, start=one.start, duration=one.duration)
