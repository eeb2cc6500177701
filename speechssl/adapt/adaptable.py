"""An upstream that each run of a task adapts for itself, with what they share: the features that stay as they are."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence

from speechssl.adapt.config import AdaptConfig
from speechssl.adapt.live import LiveFeatures, Wanted, heard_once
from speechssl.adapt.methods import adapt
from speechssl.adapt.perturb import check_perturbations
from speechssl.adapt.start import FrontendUpstream, Start, find_start
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.extraction import measure_heard
from speechssl.feature_store import FeatureStore
from speechssl.types import Utterance
from speechssl.upstream import Upstream

logger = logging.getLogger(__name__)
Keep = Callable[[Upstream, Sequence[int]], FeatureStore]
"""keep(upstream, layers) caches hidden states of all utterances, in float32."""


def heard_layers(upstream: Upstream, config: AdaptConfig, layers: Sequence[int] | None) -> list[int]:
    """Which hidden states a head hears, ascending; of a student, its own are counted.

    Args:
        layers: as `Upstream.resolve_layers` takes them; None = all that are as wide as the last one.

    Raises:
        SpeechsslError: there are no such layers.
    """
    if config.method != "distill":
        found = sorted(upstream.resolve_layers(layers))
        return found if layers is not None else _as_wide_as_the_last(upstream)
    top = config.student_layers
    if layers is not None and not all(-top - 1 <= layer <= top for layer in layers):
        raise ConfigError(f"`features.layers` of a student must lie in 0..{top}, but is {list(layers)}.")
    return list(range(top + 1)) if layers is None else sorted({layer % (top + 1) for layer in layers})


def _as_wide_as_the_last(upstream: Upstream) -> list[int]:
    widths = upstream.hidden_sizes
    others = [layer for layer, width in enumerate(widths) if width != widths[-1]]
    if others:
        message = "The hidden states %s of '%s' are not %d wide as the last, and take no part: see `features.layers`"
        logger.warning(message, others, upstream.name, widths[-1])
    return [layer for layer in range(len(widths)) if layer not in others]


class Adaptable:
    """An upstream that is yet to be adapted, and the utterances that a task hears."""

    def __init__(
        self,
        upstream: Upstream,
        config: AdaptConfig,
        wanted: Wanted,
        utterances: Mapping[str, Utterance],
        *,
        keep: Keep,
        skip_bad: bool,
        disturbed: bool = False,
    ) -> None:
        """
        Args:
            upstream: stays as it is.
            config: of the first adaptation, for which what can be kept is computed here.
            utterances: id -> utterance, of all splits.
            skip_bad: leaves out bad files, see `bad`.
            disturbed: audio is to be disturbed anew at each visit, so that nothing can be kept.

        Raises:
            ConfigError: the method does not fit the upstream, or keeps what is to be disturbed.
            SpeechsslError: layers of different widths.
        """
        self.upstream, self.wanted, self.utterances = upstream, wanted, utterances
        widths = sorted({upstream.hidden_sizes[layer] for layer in wanted.layers})
        if len(widths) != 1:
            raise SpeechsslError(
                f"The layers {list(wanted.layers)} of '{upstream.name}' have different widths ({widths}): choose "
                "`features.layers` of one width."
            )
        self.layers, self.hidden_size = wanted.layers, widths[0]
        self._keep, self._disturbed = keep, disturbed
        self._stores: dict[Start, FeatureStore] = {}
        self._last: FeatureStore | None = None
        self.bad: dict[str, str] = {}
        """As `FeatureStore.bad`; so are the next ones."""
        self.computed, self.from_cache, self.seconds, self.audio_seconds = 0, 0, 0.0, 0.0
        self.adapt(config, seed=0)
        for store in self._stores.values():
            self.bad, self.computed, self.from_cache = store.bad, store.computed, store.from_cache
            self.seconds, self.audio_seconds = store.seconds, store.audio_seconds
        if not self._stores:  # bad files are found before hours are spent
            heard = measure_heard(upstream, list(utterances.values()), skip_bad=skip_bad, bad=self.bad)
            self.audio_seconds = sum(heard.values())

    def __len__(self) -> int:
        return len(self.utterances) - len(self.bad)

    def adapt(self, config: AdaptConfig, *, seed: int) -> LiveFeatures:
        """Copies the upstream and makes the copy ready to be trained; `seed` is that of weights that are added."""
        check_perturbations(self.upstream, config)
        adapted = adapt(copy.deepcopy(self.upstream), config, seed=seed, deepest=max(self.layers))
        start = find_start(adapted, config, self.layers)
        if self._disturbed and start.kind != "waveform":  # said before hours are spent on what is kept
            raise heard_once(self.upstream.name)
        store = None if start.kind == "waveform" else self._store(start)
        teacher = self._teacher(start) if config.method == "distill" else None
        return LiveFeatures(adapted, config, self.wanted, self.utterances, start=start, store=store, teacher=teacher)

    def _teacher(self, start: Start) -> FeatureStore:
        """The last hidden states of the upstream itself, which never change."""
        if start.kind != "frontend":
            raise ConfigError(
                f"`adapt.method=distill` keeps what the frontend of '{self.upstream.name}' makes: leave "
                "`adapt.train_frontend` and `adapt.top_layers` out and `adapt.cache` true, or take another upstream."
            )
        if self._last is None:
            self._last = self._keep(self.upstream, [len(self.upstream.hidden_sizes) - 1])
        return self._last

    def _store(self, start: Start) -> FeatureStore:
        if start not in self._stores:
            if start.kind == "frontend":
                self._stores[start] = self._keep(FrontendUpstream(self.upstream), [0])
            else:
                self._stores[start] = self._keep(self.upstream, start.kept_layers(self.layers))
        return self._stores[start]
