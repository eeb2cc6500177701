"""Features of a frozen upstream, computed once, kept on disk, and read ever after.

The address of an array is its content: upstream fingerprint, layers, pooling, dtype and precision, the bytes of the
audio file, and the stretch of it. Names, paths and times of change don't matter: a copied or renamed corpus hits too.
Several processes may share a folder: one computes while those that want the same upstream wait for it, reading needs no
lock, and what a living process holds is never evicted. The folder's layout is in `speechssl.cache_folder`.

K layers, T frames, D width, B batch.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from speechssl.audio import content_hash
from speechssl.cache_folder import FORMAT, CacheEntry, evict, list_entries, make_upstream_folder
from speechssl.errors import AudioError, SpeechsslError
from speechssl.extraction import Precision, extract, measure, resolve_items
from speechssl.feature_store import FeatureStore
from speechssl.files import FULL, default_folder
from speechssl.leases import Lease
from speechssl.packs import DTYPES, Pack, PackWriter, open_packs
from speechssl.progress import progress
from speechssl.types import Utterance
from speechssl.upstream import Upstream

logger = logging.getLogger(__name__)
PACK_BYTES = 1 << 29
"""A pack is closed and the next one begun at this size: the budget evicts whole packs."""

Pooling = Literal["none", "mean"]
DType = Literal["float32", "bf16"]


class FeatureCache:
    """Computes features once per upstream and audio content, within a size budget."""

    def __init__(self, folder: str | Path | None = None, max_gb: float = 20.0) -> None:
        """
        Args:
            folder: None = `default_folder()`.
            max_gb: budget in 10^9 bytes. Least recently used packs go first; what is in use stays, even beyond it.
        """
        self.folder = default_folder() if folder is None else Path(folder)
        self.max_gb = max_gb

    def features(
        self,
        upstream: Upstream,
        utterances: Iterable[Utterance],
        *,
        layers: Sequence[int] | None = None,
        pooling: Pooling = "none",
        dtype: DType | None = None,
        precision: Precision = "float32",
        batch_seconds: float = 60.0,
        workers: int = 2,
        skip_bad: bool = False,
        devices: Sequence[torch.device] = (),
    ) -> FeatureStore:
        """Returns the features of `utterances`; only those that are not cached go through the upstream.

        Args:
            layers: which hidden states; None = all. A cached wider choice serves as well.
            pooling: 'mean' keeps the mean over the valid frames, one (K, D) array per utterance.
            dtype: how they are kept; None = 'bf16', and 'float32' where pooled.
            precision: 'bf16' computes under autocast.
            skip_bad: leaves out bad files, see `extract` and `FeatureStore.bad`.
            devices: where copies of the upstream compute side by side, see `extract`.

        Raises:
            AudioError: a bad file, unless `skip_bad`; what was computed before is kept.
            SpeechsslError: layers of different widths, or a full disk.
        """
        begin = time.perf_counter()
        wanted = resolve_items(utterances)
        request = _Request(self.folder, upstream, layers=layers, pooling=pooling, dtype=dtype, precision=precision)
        bad: dict[str, str] = {}
        keys = _keys(wanted, workers, skip_bad, bad)
        held = _Held(request.folder)
        try:
            held.find(request, keys.values())
            missing = {keys[u.id]: u for u in wanted if u.id in keys and keys[u.id] not in held.packs}
            computed: set[str] = set()
            if missing:
                with _turn(request):
                    held.find(request, missing)
                    missing = {k: u for k, u in missing.items() if k not in held.packs}
                    computed = _compute(
                        request,
                        missing,
                        held,
                        batch_seconds=batch_seconds,
                        workers=workers,
                        skip_bad=skip_bad,
                        bad=bad,
                        make_room=lambda: evict(self.folder, self.max_gb * 1e9),
                        devices=devices,
                    )
            _add_twins(keys, held, bad)
            store = held.store(request, {i: k for i, k in keys.items() if k in held.packs})
        except OSError as error:
            held.lease.release()
            if error.errno not in FULL:
                raise
            raise SpeechsslError(
                f"The disk is full while writing features to {self.folder}: free some space and run the same command "
                "again; what was computed is kept."
            ) from error
        except BaseException:
            held.lease.release()
            raise
        store.computed = sum(keys[i] in computed for i in store.ids)
        store.from_cache = len(store) - store.computed
        store.bad = bad
        if computed:
            self.trim()
        store.seconds = time.perf_counter() - begin
        return store

    def entries(self) -> list[CacheEntry]:
        """What is held, per upstream, last used first."""
        return list_entries(self.folder)

    def trim(self, max_gb: float | None = None) -> int:
        """Evicts least recently used packs that nobody uses until the cache fits into `max_gb` (None = its budget).

        Returns:
            freed bytes.
        """
        budget = self.max_gb if max_gb is None else max_gb
        freed, left = evict(self.folder, budget * 1e9)
        if left > budget * 1e9:
            message = "The feature cache %s holds %.2f GB that are in use, above its budget of %.2f GB."
            logger.warning(message, self.folder, left / 1e9, budget)
        return freed


class _Request:
    """What all arrays of one call have in common."""

    def __init__(
        self,
        root: Path,
        upstream: Upstream,
        *,
        layers: Sequence[int] | None,
        pooling: Pooling,
        dtype: DType | None,
        precision: Precision,
    ) -> None:
        self.upstream = upstream
        self.layers = _layers(upstream, layers)
        self.pooling = pooling
        self.precision = precision
        kept_as = dtype or ("bf16" if pooling == "none" else "float32")
        if kept_as not in DTYPES:
            raise SpeechsslError(f"`dtype` of cached features must be one of {', '.join(DTYPES)}, but is {dtype}.")
        self.header = {
            "format": FORMAT,
            "layers": list(self.layers),
            "frame_rate": upstream.frame_rate,
            "pooling": pooling,
            "dtype": kept_as,
            "precision": precision,
        }
        self.folder = make_upstream_folder(root, upstream)

    def serves(self, header: Mapping[str, Any]) -> bool:
        """Whether a pack with this header holds what is wanted, or more layers of it."""
        same = all(header.get(k) == v for k, v in self.header.items() if k != "layers")
        return same and set(self.layers) <= set(header["layers"])


class _Held:
    """The packs that one call uses, leased to it."""

    def __init__(self, folder: Path) -> None:
        self.packs: dict[str, Pack] = {}
        """Key -> the pack that holds it."""
        self.folder = folder
        self.lease = Lease(folder / "leases")

    def find(self, request: _Request, keys: Iterable[str]) -> None:
        """Looks `keys` up in the packs of the folder, checks the arrays found, and leases their packs."""
        wanted = set(keys) - set(self.packs)
        with FileLock(self.folder / "index.lock"):
            packs = [p for p in open_packs(self.folder) if request.serves(p.header)]
            # The narrowest first: its arrays need no selection of layers.
            for pack in sorted(packs, key=lambda p: len(p.header["layers"])):
                pack.drop_corrupt(wanted & set(pack.entries))
                for key in wanted & set(pack.entries):
                    self.packs[key] = pack
                wanted -= set(pack.entries)
            used = {p.path.name: p for p in self.packs.values()}
            self.lease.add(used)
            for pack in used.values():
                os.utime(pack.path)

    def store(self, request: _Request, keys: dict[str, str]) -> FeatureStore:
        """Makes the store of utterance id -> key."""
        arrays: dict[str, Tensor] = {}
        uneven: dict[str, list[int]] = {}
        for name, key in keys.items():
            array, rows = self.packs[key].array(key), _rows(self.packs[key].header["layers"], request.layers)
            arrays[name] = array[rows] if isinstance(rows, slice) else array
            if not isinstance(rows, slice):
                uneven[name] = rows
        entries = {i: self.packs[k].entries[k] for i, k in keys.items()}
        lengths = {i: e.frames for i, e in entries.items()}
        rate = request.upstream.frame_rate
        store = FeatureStore(arrays, lengths, frame_rate=rate, layers=request.layers, rows=uneven)
        store.audio_seconds = sum(e.seconds for e in entries.values())
        store.on_close(self.lease.release)
        return store


def _compute(
    request: _Request,
    missing: dict[str, Utterance],
    held: _Held,
    *,
    batch_seconds: float,
    workers: int,
    skip_bad: bool,
    bad: dict[str, str],
    make_room: Callable[[], object],
    devices: Sequence[torch.device],
) -> set[str]:
    """Runs the upstream over `missing` and writes packs as it goes; returns the keys computed."""
    upstream, computed = request.upstream, set[str]()
    durations = measure(list(missing.values()), workers=workers, skip_bad=skip_bad, bad=bad)
    todo = {u.id: k for k, u in missing.items() if u.id in durations}
    features = extract(
        upstream,
        [missing[k] for k in todo.values()],
        layers=request.layers,
        batch_seconds=batch_seconds,
        workers=workers,
        precision=request.precision,
        skip_bad=skip_bad,
        bad=bad,
        devices=devices,
    )
    writer: PackWriter | None = None
    title = f"Computing features of {upstream.name}"
    try:
        with progress(title, sum(durations.values()), unit="s of audio") as advance:
            for utterance, states in features:
                if writer is None or writer.size >= PACK_BYTES:
                    writer = _next_pack(request, held, writer)
                    make_room()
                array = torch.stack(list(states))  # (K, T, D)
                frames, seconds = array.size(1), durations[utterance.id]
                array = array.mean(dim=1) if request.pooling == "mean" else array
                writer.append(todo[utterance.id], array, frames=frames, seconds=seconds)
                computed.add(todo[utterance.id])
                advance(seconds)
    finally:
        features.close()
        if writer is not None:
            writer.close()
    held.find(request, computed)
    return computed


def _add_twins(keys: Mapping[str, str], held: _Held, bad: dict[str, str]) -> None:
    """Of utterances with the same content only one was tried: what is wrong with it holds for the others."""
    reasons = {keys[i]: reason for i, reason in bad.items() if i in keys}
    for name, key in keys.items():
        if key not in held.packs:
            bad.setdefault(name, reasons.get(key, "it could not be computed."))


def _next_pack(request: _Request, held: _Held, writer: PackWriter | None) -> PackWriter:
    if writer is not None:
        writer.close()
    with FileLock(request.folder / "index.lock"):
        writer = PackWriter(request.folder, request.header)
        held.lease.add([writer.path.name])
    return writer


def _layers(upstream: Upstream, layers: Sequence[int] | None) -> tuple[int, ...]:
    wanted = tuple(sorted(upstream.resolve_layers(layers)))
    widths = {upstream.hidden_sizes[k] for k in wanted}
    if len(widths) > 1:
        raise SpeechsslError(
            f"The layers {list(wanted)} of '{upstream.name}' have different widths ({sorted(widths)}) and can't be "
            "cached as one array: choose `layers` of one width."
        )
    return wanted


def _keys(utterances: Sequence[Utterance], workers: int, skip_bad: bool, bad: dict[str, str]) -> dict[str, str]:
    """Returns utterance id -> content address."""
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        outcomes = list(pool.map(_key, utterances))
    keys: dict[str, str] = {}
    for utterance, outcome in zip(utterances, outcomes, strict=True):
        if not isinstance(outcome, AudioError):
            keys[utterance.id] = outcome
        elif skip_bad:
            logger.warning("Left out: %s", outcome)
            bad[utterance.id] = str(outcome)
        else:
            raise outcome
    return keys


def _key(utterance: Utterance) -> str | AudioError:
    try:
        audio = content_hash(utterance.path)
    except AudioError as error:
        return error
    return blake2b(f"{audio} {utterance.start!r} {utterance.duration!r}".encode(), digest_size=16).hexdigest()


def _rows(held: Sequence[int], wanted: Sequence[int]) -> slice | list[int]:
    """Which rows of an array of the layers `held` are those `wanted`; a slice, and so a view, where they are even."""
    rows = [held.index(layer) for layer in wanted]
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    even = range(rows[0], rows[-1] + 1, step)
    return slice(even.start, even.stop, step) if rows == list(even) else rows


@contextmanager
def _turn(request: _Request) -> Iterator[None]:
    """Waits until no other process computes features of this upstream."""
    lock = FileLock(request.folder / "write.lock")
    try:
        lock.acquire(timeout=1.0)
    except Timeout:
        logger.info("Waiting for another process that computes features of '%s'.", request.upstream.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
