"""How much room the frames of each layer take up."""

from speechssl.analysis.gather import Gathered
from speechssl.analysis.rank import Geometry
from speechssl.analysis.result import Better, LayerValue, Measure

RANKS: tuple[tuple[str, str, str, Better, str], ...] = (
    ("rankme", "RankMe", "dimensions", "up", "Garrido et al. 2023, eq. 1, arXiv:2210.02885, on frames some apart"),
    ("effective_rank", "Effective rank", "dimensions", "up", "Roy and Vetterli 2007; of centred frames"),
    ("isotropy", "Isotropy (IsoScore)", "", "up", "Rudman et al. 2022, arXiv:2108.07344; 1 = all directions alike"),
    ("mean_cosine", "Mean cosine between frames", "", "down", "Ethayarajh 2019, arXiv:1909.00512; 1 = all alike"),
    ("spread", "Spread", "", "up", "share of the frames' length that is not their common mean; ours"),
    ("deviation", "Standard deviation", "", None, "mean over dimensions, in the unit of the features"),
)  # fmt: skip


def measure_rank(gathered: Gathered) -> list[Measure]:
    """RankMe and its kin, and how long frames resemble each other."""
    found = [
        Measure(f"rank/{name}", title, unit, better, source, _values(gathered, name))
        for name, title, unit, better, source in RANKS
    ]
    memory = [LayerValue(k, v, n=len(gathered.ids)) for k, v in zip(gathered.layers, gathered.memory, strict=True)]
    source = "lag at which frames of an utterance, less their mean, correlate by less than 1/e"
    return [*found, Measure("rank/memory", "Time until frames differ", "s", None, source, memory)]


def _values(gathered: Gathered, name: str) -> list[LayerValue]:
    return [
        _value(layer, geometry, name)
        for layer, geometry in zip(gathered.layers, gathered.geometry, strict=True)
        if geometry is not None
    ]


def _value(layer: int, geometry: Geometry, name: str) -> LayerValue:
    return LayerValue(layer, getattr(geometry, name), n=geometry.n, note=geometry.note)
