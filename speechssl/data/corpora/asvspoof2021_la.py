"""ASVspoof 2021, logical access: the attacks of 2019's evaluation through telephone lines (Liu et al. 2023,
arXiv:2210.02437). What both tracks have in common is in `asvspoof2021`."""

from pathlib import Path

from speechssl.data.corpora import asvspoof2021
from speechssl.data.corpora.base import Count, NoSettings, Reading

NAME = "ASVspoof 2021 LA"
HOMEPAGE = asvspoof2021.HOMEPAGE
LICENCE = asvspoof2021.LICENCE
LAYOUT = asvspoof2021.layout("LA")
EXPECTED = {"test": Count(148_176), "progress": Count(0), "hidden": Count(0)}
"""181 566 in all; of progress and hidden no publication at hand has the counts."""
COLUMNS = ("speaker", "id", "codec", "transmission", "attack", "key", "trim", "subset")


def read(source: Path, config: NoSettings) -> Reading:
    """Lists the subsets."""
    del config
    return asvspoof2021.read_track(source, "LA", NAME, COLUMNS, EXPECTED, ("codec", "transmission"))
