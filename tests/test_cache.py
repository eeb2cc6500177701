"""The feature cache: computed once, the same numbers ever after, whatever happens to the disk or other processes."""

import errno
import gc
import os
import subprocess
import sys
import time
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from filelock import FileLock
from torch import Tensor

from speechssl import packs
from speechssl.cache import FeatureCache
from speechssl.cli import main
from speechssl.errors import AudioError, SpeechsslError
from speechssl.extraction import extract
from speechssl.types import Utterance
from speechssl.upstream import Upstream

RATE, HOP, LAYERS, WIDTH = 16_000, 160, 4, 8


class Framer(Upstream):
    """Frames the waveform and projects them: four layers, one hop, no context."""

    def __init__(self, widths: tuple[int, ...] = (WIDTH,) * LAYERS) -> None:
        super().__init__(sample_rate=RATE, frame_rate=RATE / HOP, hidden_sizes=widths)
        self.name, self.calls, self.broken = "framer", 0, False
        generator = torch.Generator().manual_seed(0)
        self.project = torch.nn.ParameterList(torch.randn(HOP, w, generator=generator) for w in widths)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return lengths // HOP

    def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
        if self.broken:
            raise RuntimeError("the upstream was touched")
        self.calls += len(lengths)
        frames = waveform[:, : waveform.size(1) // HOP * HOP].unflatten(1, (-1, HOP))  # (B, T, HOP)
        return {k: frames @ self.project[k] for k in layers}

    def fingerprint_config(self) -> str:
        return repr(self.hidden_sizes)


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(12):
        path = tmp_path / f"u{i}.flac"
        soundfile.write(path, rng.uniform(-0.5, 0.5, RATE // 4 + 800 * i), RATE)
        made.append(Utterance(f"u{i}", str(path)))
    return made


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache")


def direct(upstream: Upstream, utterances: list[Utterance]) -> dict[str, Tensor]:
    return {u.id: torch.stack(list(f)) for u, f in extract(upstream, utterances)}


def test_the_cache_returns_what_the_upstream_computes(cache: FeatureCache, utterances: list[Utterance]) -> None:
    upstream = Framer()
    store = cache.features(upstream, utterances, dtype="float32")
    assert (store.computed, store.from_cache, len(store)) == (12, 0, 12)
    assert (store.num_layers, store.hidden_size, store.frame_rate) == (LAYERS, WIDTH, 100.0)
    assert store.audio_seconds == pytest.approx(12 * 0.25 + 66 * 0.05)
    for name, expected in direct(upstream, utterances).items():
        assert store.length(name) == expected.size(1)
        torch.testing.assert_close(store.get(name), expected, atol=1e-5, rtol=0)


def test_a_second_run_does_not_touch_the_upstream(cache: FeatureCache, utterances: list[Utterance]) -> None:
    upstream = Framer()
    first = cache.features(upstream, utterances)
    upstream.broken = True
    second = cache.features(upstream, utterances)
    assert (second.computed, second.from_cache) == (0, 12)
    assert all(torch.equal(first.get(u.id), second.get(u.id)) for u in utterances)


def test_only_what_is_missing_is_computed(cache: FeatureCache, utterances: list[Utterance]) -> None:
    upstream = Framer()
    cache.features(upstream, utterances[:5])
    store = cache.features(upstream, utterances)
    assert (store.computed, store.from_cache, upstream.calls) == (7, 5, 12)


def test_bf16_is_the_default_and_rounds_once(cache: FeatureCache, utterances: list[Utterance]) -> None:
    upstream = Framer()
    store = cache.features(upstream, utterances)
    for name, expected in direct(upstream, utterances).items():
        assert store.get(name).dtype == torch.bfloat16
        torch.testing.assert_close(store.get(name).float(), expected, atol=1e-4, rtol=2**-7)


def test_mean_pooling_keeps_one_vector_per_layer(cache: FeatureCache, utterances: list[Utterance]) -> None:
    upstream = Framer()
    store = cache.features(upstream, utterances, pooling="mean")
    expected = direct(upstream, utterances)
    for u in utterances:
        assert store.get(u.id).dtype == torch.float32 and store.length(u.id) == expected[u.id].size(1)
        torch.testing.assert_close(store.get(u.id), expected[u.id].mean(dim=1), atol=1e-5, rtol=0)
    features, lengths = store.batch(["u0", "u5"])
    assert features.shape == (LAYERS, 2, WIDTH) and lengths.tolist() == [25, 50]


@pytest.mark.parametrize("layers", [(1, 2), (0, 3), (0, 2), (0, 1, 3), (-1,)])
def test_fewer_layers_are_served_from_the_wider_entry(
    cache: FeatureCache, utterances: list[Utterance], layers: tuple[int, ...]
) -> None:
    upstream = Framer()
    whole = cache.features(upstream, utterances)
    upstream.broken = True
    part = cache.features(upstream, utterances, layers=layers)
    assert part.layers == tuple(k % LAYERS for k in layers) and part.computed == 0
    for u in utterances:
        assert torch.equal(part.get(u.id), whole.get(u.id)[list(layers)])
    assert part.batch(["u0", "u1"])[0].shape == (len(layers), 2, 30, WIDTH)


def test_a_batch_is_padded_with_zeros(cache: FeatureCache, utterances: list[Utterance]) -> None:
    store = cache.features(Framer(), utterances)
    features, lengths = store.batch(["u3", "u0", "u11"])
    assert features.shape == (LAYERS, 3, 80, WIDTH) and lengths.tolist() == [40, 25, 80]
    for row, name in enumerate(["u3", "u0", "u11"]):
        assert torch.equal(features[:, row, : lengths[row]], store.get(name))
        assert not features[:, row, lengths[row] :].any()


def test_the_address_is_the_content(cache: FeatureCache, utterances: list[Utterance], tmp_path: Path) -> None:
    upstream = Framer()
    cache.features(upstream, utterances[:1])
    copy = tmp_path / "elsewhere.flac"
    copy.write_bytes(Path(utterances[0].path).read_bytes())
    assert cache.features(upstream, [Utterance("copy", str(copy))]).computed == 0
    assert cache.features(upstream, [Utterance("part", str(copy), start=0.1)]).computed == 1
    soundfile.write(copy, np.random.default_rng(1).uniform(-0.5, 0.5, RATE), RATE)
    assert cache.features(upstream, [Utterance("copy", str(copy))]).computed == 1


def test_other_weights_are_another_upstream(cache: FeatureCache, utterances: list[Utterance]) -> None:
    upstream = Framer()
    cache.features(upstream, utterances[:2])
    with torch.no_grad():
        upstream.project[0][0, 0] += 1
    assert cache.features(upstream, utterances[:2]).computed == 2


def test_layers_of_different_widths_are_refused(cache: FeatureCache, utterances: list[Utterance]) -> None:
    upstream = Framer((8, 8, 4))
    with pytest.raises(SpeechsslError, match="different widths"):
        cache.features(upstream, utterances)
    assert cache.features(upstream, utterances, layers=(0, 1)).computed == 12


def only_pack(cache: FeatureCache) -> Path:
    (path,) = cache.folder.glob("*/*.bin")
    return path


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "torn index line", "index gone", "index garbage"])
def test_what_is_damaged_is_computed_again(cache: FeatureCache, utterances: list[Utterance], damage: str) -> None:
    upstream = Framer()
    expected = {u.id: cache.features(upstream, utterances).get(u.id).clone() for u in utterances}
    data = only_pack(cache)
    index = data.with_suffix(".jsonl")
    if damage == "truncated":
        os.truncate(data, data.stat().st_size - 10)
    elif damage == "flipped bit":
        raw = bytearray(data.read_bytes())
        raw[5] ^= 4
        data.write_bytes(raw)
    elif damage == "torn index line":
        os.truncate(index, index.stat().st_size - 10)
    elif damage == "index gone":
        index.unlink()
    else:
        index.write_bytes(b"\x00garbage\n" + index.read_bytes())
    again = cache.features(upstream, utterances)
    assert again.computed == (12 if damage.startswith("index") else 1)
    assert all(torch.equal(again.get(u.id), expected[u.id]) for u in utterances)
    assert cache.features(upstream, utterances).computed == 0


def test_a_full_disk_is_one_sentence_and_keeps_what_was_computed(
    cache: FeatureCache, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, written = Framer(), 0

    class FullDisk(FileIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            nonlocal written
            if str(self.name).endswith(".bin"):
                written += len(data)
                if written > 12_000:
                    super().write(bytes(data)[: len(data) // 2])
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr(packs, "FileIO", FullDisk)
    with pytest.raises(SpeechsslError, match=r"disk is full.*what was computed is kept") as caught:
        cache.features(upstream, utterances)
    assert "\n" not in str(caught.value) and str(cache.folder) in str(caught.value)
    monkeypatch.undo()
    store = cache.features(upstream, utterances)
    assert 0 < store.from_cache < 12 and store.computed + store.from_cache == 12
    for name, expected in direct(upstream, utterances).items():
        torch.testing.assert_close(store.get(name).float(), expected, atol=1e-4, rtol=2**-7)


def test_an_interruption_keeps_what_was_computed(cache: FeatureCache, utterances: list[Utterance]) -> None:
    class Interrupted(Framer):
        def compute(self, waveform: Tensor, lengths: Tensor, layers: frozenset[int]) -> dict[int, Tensor]:
            if self.calls >= 6:
                raise KeyboardInterrupt
            return super().compute(waveform, lengths, layers)

    upstream = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        cache.features(upstream, utterances, batch_seconds=1.5)
    done = upstream.calls
    upstream.calls = -100
    assert cache.features(upstream, utterances).from_cache == done >= 6


def test_bad_files_stop_the_run_or_are_listed(cache: FeatureCache, utterances: list[Utterance], tmp_path: Path) -> None:
    text = tmp_path / "text.wav"
    text.write_text("no samples here, only words\n" * 20)
    short = tmp_path / "short.wav"
    soundfile.write(short, np.zeros(HOP - 1), RATE)
    bad = [Utterance("text", str(text)), Utterance("short", str(short)), Utterance("gone", str(tmp_path / "gone.wav"))]
    for utterance in bad:
        with pytest.raises(AudioError, match=Path(utterance.path).name):
            cache.features(Framer(), [*utterances, utterance])
    store = cache.features(Framer(), [*bad, *utterances], skip_bad=True)
    assert set(store.bad) == {"text", "short", "gone"} and len(store) == 12
    with pytest.raises(SpeechsslError, match="does not exist"):
        store.get("gone")


def make_three(cache: FeatureCache, utterances: list[Utterance]) -> list[Framer]:
    made = []
    for i in range(3):
        upstream = Framer()
        with torch.no_grad():
            upstream.project[0][0, 0] += i
        cache.features(upstream, utterances).close()
        for path in (cache.folder / upstream.fingerprint()).glob("*.bin"):
            os.utime(path, (i, i))
        made.append(upstream)
    return made


def test_trim_evicts_the_least_recently_used_first(cache: FeatureCache, utterances: list[Utterance]) -> None:
    first, second, third = make_three(cache, utterances)
    size = cache.entries()[0].gigabytes
    cache.features(first, utterances).close()  # now the most recently used
    assert cache.trim(2.5 * size) > 0
    assert {e.fingerprint for e in cache.entries()} == {first.fingerprint(), third.fingerprint()}
    assert cache.features(second, utterances).computed == 12


def test_what_is_in_use_is_never_evicted(cache: FeatureCache, utterances: list[Utterance]) -> None:
    first, _, _ = make_three(cache, utterances)
    store = cache.features(first, utterances)
    before = store.get("u3").clone()
    cache.trim(0.0)
    (left,) = cache.entries()
    assert left.fingerprint == first.fingerprint() and left.in_use
    assert torch.equal(store.get("u3"), before)
    store.close()
    cache.trim(0.0)
    assert cache.entries() == []
    assert torch.equal(store.get("u3"), before)  # the mapping outlives the file


def test_the_budget_holds_without_being_asked(utterances: list[Utterance], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "small", max_gb=70_000 / 1e9)  # one upstream needs about 45 kB
    make_three(cache, utterances)
    assert sum(e.gigabytes for e in cache.entries()) <= cache.max_gb
    assert len(cache.entries()) == 1


RACE = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_cache import Framer
from speechssl.cache import FeatureCache
from speechssl.cli import main
from speechssl.types import Utterance
files = sorted(Path({folder!r}).glob("u*.flac"))
store = FeatureCache({cache!r}).features(Framer(), [Utterance(p.stem, str(p)) for p in files])
print(store.computed, store.from_cache, float(sum(store.get(i).double().sum() for i in sorted(store.ids))))
"""


def test_processes_share_the_work(cache: FeatureCache, utterances: list[Utterance], tmp_path: Path) -> None:
    script = RACE.format(tests=str(Path(__file__).parent), folder=str(tmp_path), cache=str(cache.folder))
    started = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    lines = [p.communicate(timeout=60)[0].split() for p in started]
    assert sum(int(line[0]) for line in lines) == 12  # nothing was computed twice
    assert len({line[2] for line in lines}) == 1


def test_the_lease_of_a_killed_process_ends_with_it(
    cache: FeatureCache, utterances: list[Utterance], tmp_path: Path
) -> None:
    script = RACE.format(tests=str(Path(__file__).parent), folder=str(tmp_path), cache=str(cache.folder))
    script += "print('ready', flush=True); import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "ready" not in process.stdout.readline():
        pass
    assert cache.trim(0.0) == 0 and cache.entries()[0].in_use
    process.kill()
    process.wait()
    assert cache.trim(0.0) > 0 and cache.entries() == []


def test_reading_costs_microseconds(cache: FeatureCache, utterances: list[Utterance]) -> None:
    store = cache.features(Framer(), utterances)
    begin = time.perf_counter()
    for _ in range(1000):
        store.get("u7")
    assert (time.perf_counter() - begin) / 1000 < 50e-6


def test_twins_of_a_bad_file_are_listed_too(cache: FeatureCache, tmp_path: Path) -> None:
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(HOP - 1), RATE)
    store = cache.features(Framer(), [Utterance(n, str(tmp_path / f"{n}.wav")) for n in "ab"], skip_bad=True)
    assert set(store.bad) == {"a", "b"} and len(store) == 0


def test_long_runs_begin_new_packs(
    cache: FeatureCache, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechssl.cache.PACK_BYTES", 10_000)
    upstream = Framer()
    store = cache.features(upstream, utterances, dtype="float32")
    assert cache.entries()[0].packs > 3
    for name, expected in direct(upstream, utterances).items():
        torch.testing.assert_close(store.get(name), expected, atol=1e-5, rtol=0)


def test_reading_does_not_wait_for_one_who_computes(cache: FeatureCache, utterances: list[Utterance]) -> None:
    upstream = Framer()
    cache.features(upstream, utterances)
    with FileLock(cache.folder / upstream.fingerprint() / "write.lock"):
        assert cache.features(upstream, utterances).computed == 0


def test_a_store_that_is_collected_gives_its_packs_free(cache: FeatureCache, utterances: list[Utterance]) -> None:
    store = cache.features(Framer(), utterances)
    assert cache.trim(0.0) == 0
    del store
    gc.collect()
    assert cache.trim(0.0) > 0


def test_the_command_line_shows_and_trims(
    cache: FeatureCache,
    utterances: list[Utterance],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPEECHSSL_CACHE", str(cache.folder))
    monkeypatch.setenv("COLUMNS", "200")
    upstream = Framer()
    cache.features(upstream, utterances).close()
    for argv, held in ((["cache"], True), (["cache", "--trim", "1"], True), (["cache", "--trim", "0"], False)):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert not stop.value.code
        assert (upstream.fingerprint() in capsys.readouterr().out) is held


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_cache import Framer
from speechssl.cache import FeatureCache
from speechssl.types import Utterance

class Killed(Framer):
    def compute(self, *args):
        if self.calls >= 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compute(*args)

Killed.__qualname__ = Framer.__qualname__
files = sorted(Path({folder!r}).glob("u*.flac"))
utterances = [Utterance(p.stem, str(p)) for p in files]
FeatureCache({cache!r}).features(Killed(), utterances, batch_seconds=1.5)
"""


def test_a_kill_keeps_what_was_computed(cache: FeatureCache, utterances: list[Utterance], tmp_path: Path) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path), cache=str(cache.folder))
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode < 0
    upstream = Framer()
    store = cache.features(upstream, utterances)
    assert store.from_cache >= 6 and store.computed == 12 - store.from_cache == upstream.calls
    for name, expected in direct(upstream, utterances).items():
        torch.testing.assert_close(store.get(name).float(), expected, atol=1e-4, rtol=2**-7)
