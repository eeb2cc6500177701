"""Which packages the demo corpus is made of, and how much of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from speechssl.data.demo.asterisk import Asterisk
from speechssl.data.demo.base import Source
from speechssl.data.demo.festvox import FestvoxRu
from speechssl.data.demo.fillets import FilletsCs, FilletsNl
from speechssl.data.demo.games import Drascula, Queen
from speechssl.data.demo.gcin import Gcin
from speechssl.data.demo.kde import Klettres, Ktuberling
from speechssl.data.demo.people import Lart, Speakerbox
from speechssl.data.demo.prompts import Prompts
from speechssl.data.demo.tuxpaint import Tuxpaint
from speechssl.errors import ConfigError, suggest

ALL: tuple[type[Source], ...] = (
    FestvoxRu, FilletsCs, FilletsNl, Asterisk, Tuxpaint, Klettres, Ktuberling, Gcin, Lart, Speakerbox, Prompts,
    Queen, Drascula,
)  # fmt: skip
SOURCES: Mapping[str, Source] = {source.name: source() for source in ALL}


@dataclass(frozen=True)
class DemoConfig:
    """The default is about ten hours; `recipes/demo/quick/corpus.yaml` is one hour."""

    sources: tuple[str, ...] = (
        "festvox_ru", "fillets_cs", "fillets_nl", "asterisk", "tuxpaint", "klettres", "gcin", "lart", "speakerbox",
    )  # fmt: skip
    """Names of the sources, see docs/demo_corpus.md."""
    max_hours: dict[str, float] = field(default_factory=lambda: {"tuxpaint": 1.0, "klettres": 0.3})
    """Hours taken at most of a source, by a fixed pseudo-random choice of clips; 0 or absent = all."""
    min_duration: float = 0.3
    """Seconds; shorter clips are left out and counted."""

    def chosen(self) -> list[Source]:
        """The sources in the order of the config.

        Raises:
            ConfigError: a name that isn't a source, in `sources` or in `max_hours`.
        """
        for name in (*self.sources, *self.max_hours):
            if name not in SOURCES:
                raise ConfigError(f"Unknown source '{name}' of the demo corpus.{suggest(name, SOURCES)}")
        return [SOURCES[name] for name in self.sources]


FULL = DemoConfig(sources=tuple(SOURCES), max_hours={})
"""Everything that can be decoded."""
