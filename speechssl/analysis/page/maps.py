"""Two-dimensional maps of the frames of a layer, coloured by phone and by speaker.

The map is t-SNE's (van der Maaten and Hinton 2008) of at most 30 principal components: what lies together is alike,
distances between heaps and their sizes mean nothing.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from speechssl.analysis.gather import Gathered, Rows
from speechssl.analysis.material import Material
from speechssl.analysis.page.plots import scatter
from speechssl.analysis.result import ModelAnalysis
from speechssl.report.blocks import Figure

PHONES = ("probe/phone", "information/phone share", "abx/within")
SPEAKERS = ("probe/speaker", "information/speaker share")
POINTS = 600
COMPONENTS = 30
SHOWN = 5
"""Classes with a colour of their own."""
ARPABET = {
    "vowels": "AA AE AH AO AW AX AXR AY EH ER EY IH IX IY OW OY UH UW UX",
    "stops, affricates": "B CH D DX G JH K P T Q",
    "fricatives": "DH F HH HV S SH TH V Z ZH",
    "nasals": "M N NG EM EN ENG NX",
    "approximants": "EL L R W WH Y",
}
CLASS_OF = {phone: name for name, phones in ARPABET.items() for phone in phones.split()}


def map_figures(model: ModelAnalysis, gathered: Gathered, material: Material, *, seed: int) -> list[Figure]:
    """A map by phone of the layer that tells phones best, and one by speaker of the one that tells speakers best."""
    figures = []
    phones = gathered.phones
    if len(phones) > 3 * SHOWN:
        layer = best_layer(model, gathered)
        names = np.array(phones.names, dtype=object)[phones.code]
        broad = np.array([CLASS_OF.get(str(n).upper(), str(n)) for n in names], dtype=object)
        what = "broad phone class (ARPABET)" if set(broad.tolist()) <= set(ARPABET) else "phone"
        figures.append(_map(model, phones, gathered, (layer, broad, what), seed=seed))
    speakers = material.values("speaker")
    voices = np.array([speakers.get(gathered.ids[u], "") for u in gathered.frames.utterance], dtype=object)
    if len(set(voices.tolist()) - {""}) > 1:
        layer = best_layer(model, gathered, SPEAKERS)
        figures.append(_map(model, gathered.frames, gathered, (layer, voices, "speaker"), seed=seed))
    return figures


def best_layer(model: ModelAnalysis, gathered: Gathered, names: Sequence[str] = PHONES) -> int:
    """The best layer by the first of these measures that there is; else the one in the middle."""
    for name in names:
        measure = model.measure(name)
        if measure is not None and (best := measure.best()) is not None:
            return best.layer
    return gathered.layers[len(gathered.layers) // 2]


def _map(
    model: ModelAnalysis, rows: Rows, gathered: Gathered, by: tuple[int, NDArray[Any], str], *, seed: int
) -> Figure:
    layer, classes, what = by
    index = np.sort(np.random.default_rng(seed).permutation(len(rows))[:POINTS])
    states = rows.states[torch.from_numpy(index), list(gathered.layers).index(layer)].float().numpy()
    chosen = classes[index].tolist()
    order = [name for name, _ in Counter(c for c in chosen if c).most_common(SHOWN)]
    caption = (
        f"{len(index)} frames of layer {layer} of {model.model}, by {what}; grey: all others. Frames that lie together "
        "are alike (t-SNE); the distances between heaps mean nothing."
    )
    svg = scatter(project(states, seed=seed), chosen, order)
    return Figure(f"{model.model}: frames by {what.split(' (')[0]}", caption, svg, f"Scatter plot: {caption}")


def project(states: NDArray[np.float32], *, seed: int) -> NDArray[np.float64]:
    """(N, D) -> (N, 2)."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    centred = states - states.mean(axis=0)
    most = min(COMPONENTS, *centred.shape)
    if not centred.any():
        return np.zeros((len(states), 2))
    reduced = PCA(most, random_state=seed, svd_solver="full").fit_transform(centred)
    perplexity = min(30.0, (len(states) - 1) / 3)
    found: NDArray[np.float64] = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    return found.astype(np.float64)
