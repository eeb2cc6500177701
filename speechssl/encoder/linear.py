"""A linear layer that takes the fastest product that torch has on a CPU."""

import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_ROWS = 64
"""With fewer, bringing the weights into oneDNN's order costs more than its faster product gains."""
SPLIT = 2
"""Into how many steps of a convolution a row is cut: with one, oneDNN takes another, slower kernel."""
PACKS = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
"""Whether this torch has what its compiler calls for packed weights; it is no public interface."""
MOST_PACKED = 2 << 30
"""Bytes of weights that are kept in oneDNN's order, besides the weights themselves, over all models."""


class Linear(nn.Linear):
    """torch's linear layer; on a CPU with AVX-512, without gradients, computed by oneDNN on weights in its own order.

    torch gives float32 products to MKL, which leaves AVX-512 unused on processors of other makers, and brings bfloat16
    weights into oneDNN's order again for each product. Where no more weights are to be kept twice (`MOST_PACKED`),
    float32 products become convolutions, which are oneDNN's too. The numbers differ by rounding alone.
    """

    packed_bytes = 0
    """Of all layers that live."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles go without the packed weight."""
        return {**self.__dict__, "_packed": None, "_packed_from": None, "_has_room": None}

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if not _by_onednn(x, self.weight):
            return F.linear(x, self.weight, self.bias)
        packed = self._pack()
        if packed is not None:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, self.bias, "none", [], "")
            return y
        if x.dtype == torch.float32 and x.size(-1) % SPLIT == 0 and x.numel() >= LEAST_ROWS * x.size(-1):
            return _as_convolution(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)

    def _forget(self) -> None:
        self._packed: Tensor | None = None
        self._packed_from: tuple[object, ...] | None = None
        self._has_room: bool | None = None  # None = not asked for yet

    def pack_never(self) -> None:
        """For weights that change without their version telling, as gathered shards do."""
        self._packed = self._packed_from = None
        self._has_room = False

    def _pack(self) -> Tensor | None:
        """The weight in oneDNN's order, made anew when it has changed; None where it is not to be kept."""
        weight = self.weight
        if self._has_room is None:
            self._has_room = _take_room(self, weight.numel() * weight.element_size())
        if not self._has_room:
            return None
        state = weight.data_ptr(), weight._version, weight.dtype
        if self._packed_from != state:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
            self._packed_from = state
        return self._packed


def _take_room(owner: Linear, size: int) -> bool:
    """Counts `size` bytes as packed for as long as `owner` lives; False where there is no room for them."""
    if not PACKS or Linear.packed_bytes + size > MOST_PACKED:
        return False
    Linear.packed_bytes += size
    weakref.finalize(owner, _give_back, size)
    return True


def _give_back(size: int) -> None:
    Linear.packed_bytes -= size


def _as_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # Both are views: the channels of an image in memory order (batch, height, width, channel) are the numbers of a row,
    # SPLIT pixels to each, and those of the weight likewise.
    outputs, inputs = weight.shape
    image = x.reshape(1, 1, -1, inputs // SPLIT).permute(0, 3, 1, 2)
    kernel = weight.view(outputs, 1, SPLIT, inputs // SPLIT).permute(0, 3, 1, 2)
    y = F.conv2d(image, kernel, bias, stride=(1, SPLIT))  # (1, out, 1, rows)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], outputs)


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and not weight.is_inference()  # such a weight keeps no count of its changes
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # untyped in torch
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[no-untyped-call, attr-defined]  # as torch has it
    )
