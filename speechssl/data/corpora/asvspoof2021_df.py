"""ASVspoof 2021, deepfakes: more than a hundred systems through lossy codecs (Liu et al. 2023, arXiv:2210.02437). What
both tracks have in common is in `asvspoof2021`; the last four columns are known only of what comes from the Voice
Conversion Challenges."""

from pathlib import Path

from speechssl.data.corpora import asvspoof2021
from speechssl.data.corpora.base import Count, NoSettings, Reading

NAME = "ASVspoof 2021 DF"
HOMEPAGE = asvspoof2021.HOMEPAGE
LICENCE = asvspoof2021.LICENCE
LAYOUT = asvspoof2021.layout("DF")
EXPECTED = {"test": Count(533_928), "progress": Count(0), "hidden": Count(0)}
"""611 829 in all; of progress and hidden no publication at hand has the counts."""
COLUMNS = (
    *("speaker", "id", "codec", "origin", "attack", "key", "trim", "subset", "vocoder"),
    *("task", "team", "gender_pair", "target_language"),
)


def read(source: Path, config: NoSettings) -> Reading:
    """Lists the subsets."""
    del config
    return asvspoof2021.read_track(source, "DF", NAME, COLUMNS, EXPECTED, ("codec", "origin", "vocoder"))
