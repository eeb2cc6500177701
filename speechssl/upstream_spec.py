"""How runs name upstreams: `[label=]name`.

After the name `:raw` gives it waveforms as they are, whatever its checkpoint says about normalising them, and `:random`
or `:random:SEED` random weights.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from speechssl.errors import ConfigError, SpeechsslError
from speechssl.loading import load_upstream
from speechssl.result import UpstreamInfo
from speechssl.upstream import Upstream

UpstreamLike = str | Path | Upstream
SPEC = re.compile(r"(?P<name>.+?)(?P<raw>:raw)?(?P<random>:random(:(?P<seed>\d+))?)?")


@dataclass(frozen=True)
class UpstreamSpec:
    """An upstream as a user asks for it."""

    label: str
    """What tables call it; folders too, with other characters than letters, digits, '.', '-' replaced by '_'."""
    name: str
    """What `load_upstream` takes."""
    random_weights: int | None = None
    """Seed; None = the published or saved weights."""
    normalize: bool | None = None
    """Whether waveforms are normalised first; None = as the checkpoint says."""

    @property
    def folder(self) -> str:
        """The label as a folder's name."""
        return re.sub(r"[^\w.-]+", "_", self.label).strip("_.") or "upstream"


@dataclass(frozen=True)
class UpstreamCard:
    """All that is needed of an upstream once its features are cached."""

    spec: UpstreamSpec
    info: UpstreamInfo
    sample_rate: int
    hidden_sizes: tuple[int, ...]


def parse_spec(text: str, *, random_weights: int | None = None) -> UpstreamSpec:
    """Parses '[label=]name[:raw][:random[:SEED]]'.

    Args:
        random_weights: seed for every upstream, as if ':random:SEED' stood after each name.
    """
    label, separator, rest = text.partition("=")
    if not separator or "/" in label:
        label, rest = "", text
    if not rest:
        raise ConfigError(f"An upstream must look like name or label=name, but is '{text}'.")
    match = SPEC.fullmatch(rest)
    if match is None:
        raise ConfigError(f"An upstream must be named on one line, but is {text!r}.")
    name, raw = match["name"], bool(match["raw"])
    seed = int(match["seed"] or 0) if match["random"] else random_weights
    own = default_label(f"{name}_raw" if raw else name, seed)
    return UpstreamSpec(label or own, name, seed, False if raw else None)


def default_label(name: str, random_weights: int | None) -> str:
    """The preset's name, or that of the folder (or of its parent, where it is just 'upstream')."""
    parts = [p for p in Path(name).parts if p not in (os.sep, "..", ".")]
    base = parts[-2] if len(parts) > 1 and parts[-1] == "upstream" else (parts or [name])[-1]
    return base if random_weights is None else f"{base}_random"


def resolve_upstreams(
    upstream: UpstreamLike | Sequence[UpstreamLike] | Mapping[str, UpstreamLike], *, random_weights: int | None
) -> list[tuple[UpstreamSpec, Upstream | None]]:
    """Brings whatever `run` was given into a list of specs, with the upstreams that are loaded already.

    Raises:
        ConfigError: none at all, or two with one label.
    """
    if isinstance(upstream, Mapping):
        found = [_resolve(u, random_weights, label) for label, u in upstream.items()]
    elif isinstance(upstream, str | Path | Upstream):
        found = [_resolve(upstream, random_weights)]
    else:
        found = [_resolve(u, random_weights) for u in upstream]
    if not found:
        raise ConfigError("There is no upstream: name at least one, such as `--upstream fbank`.")
    folders = [spec.folder for spec, _ in found]
    for folder in folders:
        if folders.count(folder) > 1:
            raise ConfigError(f"Two upstreams have the label '{folder}': give each its own, as in label=name.")
    return found


def _resolve(
    upstream: UpstreamLike, random_weights: int | None, label: str | None = None
) -> tuple[UpstreamSpec, Upstream | None]:
    if isinstance(upstream, Upstream):
        return UpstreamSpec(label or default_label(upstream.name, None), upstream.name), upstream
    text = str(upstream)
    return parse_spec(text if label is None else f"{label}={text}", random_weights=random_weights), None


def load(spec: UpstreamSpec, *, device: str) -> Upstream:
    """Loads what a spec names."""
    return load_upstream(spec.name, device=device, random_weights=spec.random_weights, normalize=spec.normalize)


def make_card(spec: UpstreamSpec, upstream: Upstream) -> UpstreamCard:
    """Notes what later stages need of a loaded upstream."""
    info = UpstreamInfo(
        name=spec.name,
        label=spec.label,
        fingerprint=upstream.fingerprint(),
        weights=upstream.weights,
        parameters=sum(p.numel() for p in upstream.parameters()),
        frame_rate=upstream.frame_rate,
        num_layers=len(upstream.hidden_sizes),
    )
    return UpstreamCard(spec, info, upstream.sample_rate, upstream.hidden_sizes)


class CachedUpstream(Upstream):
    """Stands for an upstream whose features are cached: it has no weights and computes nothing."""

    def __init__(self, card: UpstreamCard, *, device: str = "cpu") -> None:
        super().__init__(sample_rate=card.sample_rate, frame_rate=card.info.frame_rate, hidden_sizes=card.hidden_sizes)
        self.device = device
        self.card = card
        self.name = card.info.name
        self.weights = card.info.weights

    def load(self) -> Upstream:
        """The upstream itself, for what can't be cached.

        Raises:
            SpeechsslError: by its name another one is found than that of the run.
        """
        upstream = load(self.card.spec, device=self.device)
        if upstream.fingerprint() != self.card.info.fingerprint:
            raise SpeechsslError(
                f"'{self.card.spec.name}' is not what the run was started with, which only its own process has: save "
                "it in a folder and name that, or set `jobs` to 1."
            )
        return upstream

    def fingerprint(self) -> str:
        """That of the upstream it stands for."""
        return self.card.info.fingerprint

    def fingerprint_config(self) -> str:
        """Unused: the fingerprint is remembered as a whole."""
        return self.fingerprint()

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Asked only on the way to `compute`."""
        return lengths

    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        """Is never right: features that were there are gone."""
        del waveform, lengths, layers
        raise SpeechsslError(
            f"Features of '{self.card.info.label}' vanished from the cache during the run: give it more room with "
            "`--cache-gb`."
        )
