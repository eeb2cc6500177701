"""A linear layer that takes the faster of torch's two float32 products on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_ROWS = 64
"""With fewer, bringing the weights into oneDNN's order costs more than its faster product gains."""
SPLIT = 2
"""Into how many steps of a convolution a row is cut: with one, oneDNN takes another, slower kernel."""


class Linear(nn.Linear):
    """torch's linear layer; in float32 on a CPU with AVX-512, without gradients, computed as a convolution.

    torch gives float32 products to MKL, which leaves AVX-512 unused on processors of other makers; its convolutions are
    oneDNN's, which does not. The numbers differ by rounding alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if not _as_convolution(x, self.weight):
            return F.linear(x, self.weight, self.bias)
        outputs, inputs = self.weight.shape
        # Both are views: the channels of an image in memory order (batch, height, width, channel) are the numbers of a
        # row, SPLIT pixels to each, and those of the weight likewise.
        image = x.reshape(1, 1, -1, inputs // SPLIT).permute(0, 3, 1, 2)
        weight = self.weight.view(outputs, 1, SPLIT, inputs // SPLIT).permute(0, 3, 1, 2)
        y = F.conv2d(image, weight, self.bias, stride=(1, SPLIT))  # (1, out, 1, rows)
        return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], outputs)


def _as_convolution(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.size(-1) % SPLIT == 0
        and x.numel() >= LEAST_ROWS * x.size(-1)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # untyped in torch
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and not torch.compiler.is_compiling()
    )
