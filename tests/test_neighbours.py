"""The exact search for nearest frames beside brute force in float64, and what it takes."""

import sys
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from speechssl.errors import SpeechsslError
from speechssl.neighbours import ReferencePool, nearest, pool

K = 4


def _frames(count: int, seed: int, *, common: float = 0.0) -> Tensor:
    """Frames that move slowly near a plane, (count, 48); `common` is added to all, as features of speech share much."""
    generator = torch.Generator().manual_seed(seed)
    shape = torch.Generator().manual_seed(99)
    path = torch.randn(count // 5 + 1, 8, generator=generator).repeat_interleave(5, dim=0)[:count]
    lift = torch.randn(8, 48, generator=shape)
    return torch.tanh(path @ lift) + 0.1 * torch.randn(count, 48, generator=generator) + common * lift[0]


KINDS = {
    "speech": (_frames(300, 0), _frames(2500, 1)),
    "nearly_parallel": (_frames(300, 0, common=4.0), _frames(2500, 1, common=4.0)),
    "repeated": (_frames(300, 0), _frames(100, 1).repeat(25, 1)),
    "silent": (
        torch.cat([torch.zeros(20, 48), _frames(280, 0)]),
        torch.cat([torch.zeros(1200, 48), _frames(1300, 1)]),
    ),
}


def _hidden(exclude: str, source: Tensor, reference: Tensor) -> tuple[Tensor | None, Tensor]:
    """What is given to the search, and what it means, (T, N)."""
    rows, columns = torch.arange(len(source)), torch.arange(len(reference))
    if exclude == "mask":
        mask = columns % 7 < 3
        return mask, mask.expand(len(rows), -1)
    begin = rows // 40 * 300
    spans = torch.stack([begin, begin + 900], dim=1).clamp(max=len(reference))
    if exclude == "spans":
        return spans, (columns >= spans[:, :1]) & (columns < spans[:, 1:])
    return None, torch.zeros(len(rows), len(columns), dtype=torch.bool)


def _check(found: Tensor, source: Tensor, reference: Tensor, hidden: Tensor) -> None:
    cosine = F.normalize(source.double(), dim=1) @ F.normalize(reference.double(), dim=1).T
    cosine = cosine.masked_fill(hidden, -9.0)
    best = cosine.topk(found.size(1), dim=1)
    torch.testing.assert_close(cosine.gather(1, found), best.values, atol=1e-6, rtol=0)
    assert all(len(set(row)) == len(row) for row in found.tolist())


@pytest.mark.parametrize("exclude", ["nothing", "mask", "spans"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_blocks_of_coarse_products_find_what_brute_force_finds(
    dtype: torch.dtype, kind: str, exclude: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "product_type", lambda device: dtype)
    monkeypatch.setitem(pool.LARGEST, "cpu", (128, 512))  # several blocks both ways
    source, reference = KINDS[kind]
    given, hidden = _hidden(exclude, source, reference)
    _check(ReferencePool(reference).search(source, k=K, exclude=given), source, reference, hidden)
    once = nearest(3 * source[:50], reference, k=20, exclude=given[:50] if exclude == "spans" else given)  # type: ignore[index]
    _check(once, source[:50], reference, hidden[:50])


def test_coarse_float32_products_do_not_make_the_search_coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "product_type", lambda device: torch.float32)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        for source, reference in KINDS.values():
            _check(nearest(source, reference, k=K), source, reference, torch.zeros(len(source), len(reference)).bool())
    finally:
        torch.set_float32_matmul_precision(before)


class _Peak(TorchDispatchMode):
    """Bytes of tensors that operations made, at most at once, beside those that were there."""

    def __init__(self, *there: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in there}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self._known:
                self._known.add(key)
                self.now += (size := tensor.untyped_storage().nbytes())
                self.peak = max(self.peak, self.now)
                weakref.finalize(tensor.untyped_storage(), self._drop, key, size)
        return out

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@pytest.mark.parametrize("prepare", [False, True])
@pytest.mark.parametrize("kind", ["speech", "repeated"])
def test_a_search_stays_within_its_memory(kind: str, prepare: bool) -> None:
    source, reference = (x.repeat(4, 1) for x in KINDS[kind])
    kept = 4 * len(reference) + 4 * reference.numel() * prepare  # lengths, and at most a copy
    for memory_mb in (2, 8):
        with _Peak(source, reference) as used:
            ReferencePool(reference, memory_mb=memory_mb, prepare=prepare).search(source, k=K)
        assert used.peak < memory_mb * 1e6 + kept + 8 * K * len(source)
    with pytest.raises(SpeechsslError, match=r"takes \d MB, more than `memory_mb` = 1: raise it"):
        nearest(source, reference, k=64, memory_mb=1)


def test_what_is_not_finite_or_does_not_fit_is_refused() -> None:
    source, reference = KINDS["speech"]
    broken = reference.clone()
    broken[17, 3] = float("nan")
    with pytest.raises(SpeechsslError, match="frame 17 is not finite"):
        ReferencePool(broken)
    with pytest.raises(SpeechsslError, match="source frame is not finite"):
        nearest(broken[:20], reference, k=K)
    with pytest.raises(SpeechsslError, match=r"must be \(T, 48\)"):
        nearest(source[:, :5], reference, k=K)
    spans = torch.tensor([[0, 2497]]).expand(len(source), 2)
    with pytest.raises(SpeechsslError, match="has 3 frames, fewer than k = 4"):
        nearest(source, reference, k=K, exclude=spans)


@pytest.mark.parametrize("exclude", ["nothing", "mask", "spans"])
def test_faiss_finds_the_same(exclude: str) -> None:
    pytest.importorskip("faiss")
    source, reference = KINDS["speech"]
    given, hidden = _hidden(exclude, source, reference)
    _check(nearest(source, reference, k=K, exclude=given, backend="faiss"), source, reference, hidden)


def test_without_faiss_its_backend_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(SpeechsslError, match=r"pip install 'speechssl\[faiss\]'"):
        nearest(*KINDS["speech"], k=K, backend="faiss")


@pytest.mark.gpu
def test_an_accelerator_finds_the_same() -> None:
    device = torch.accelerator.current_accelerator()
    for source, reference in KINDS.values():
        given, hidden = _hidden("spans", source, reference)
        assert given is not None
        found = ReferencePool(reference.to(device)).search(source.to(device), k=K, exclude=given.to(device))
        _check(found.cpu(), source, reference, hidden)
