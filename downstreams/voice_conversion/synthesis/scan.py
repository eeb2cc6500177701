"""An LSTM whose projected output is fed back, over all frames, with a backward pass that sums weight gradients once.

Left to autograd, every frame adds its own gradient of the recurrent weights, as large as they are, which is most of the
time and memory traffic of a training step. Here the frames' gradients are gathered and multiplied together.

T frames, B batch, H hidden.
"""

from typing import Any

import torch
from torch import Tensor


def lstmp_scan(gates: Tensor, recurrent: Tensor, weight: Tensor, bias: Tensor, kept: Tensor | None) -> Tensor:
    """Runs the layer from zero states, in float32.

    Args:
        gates: what the inputs and the biases give to the gates (in, forget, new, out), (T, B, 4 H).
        recurrent: from the output before to the gates, (4 H, H).
        weight: of the projection, (H, H).
        bias: of the projection, (H,).
        kept: what dropout multiplies the LSTM's output by before it is projected, (T, B, H); None = nothing is dropped.

    Returns:
        outputs, (T, B, H).
    """
    with torch.autocast(gates.device.type, enabled=False):
        given = None if kept is None else kept.to(recurrent.dtype)
        made: Tensor = _Scan.apply(gates.to(recurrent.dtype), recurrent, weight, bias, given)  # type: ignore[no-untyped-call]  # torch does not annotate it
        return made


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  torch passes them by place
        ctx: Any, gates: Tensor, recurrent: Tensor, weight: Tensor, bias: Tensor, kept: Tensor | None
    ) -> Tensor:
        frames, batch, hidden = gates.size(0), gates.size(1), recurrent.size(1)
        acts = torch.empty_like(gates, memory_format=torch.contiguous_format)  # the gates after their activations
        memories, hiddens, outputs = (gates.new_zeros(frames + 1, batch, hidden) for _ in range(3))
        for t in range(frames):
            before = torch.addmm(gates[t], outputs[t], recurrent.t())
            torch.sigmoid(before, out=acts[t])
            admit, forget, new, show = acts[t].chunk(4, dim=1)
            torch.tanh(before[:, 2 * hidden : 3 * hidden], out=new)
            torch.addcmul(forget * memories[t], admit, new, out=memories[t + 1])
            torch.mul(show, memories[t + 1].tanh(), out=hiddens[t])
            if kept is not None:
                hiddens[t].mul_(kept[t])
            torch.addmm(bias, hiddens[t], weight.t(), out=outputs[t + 1]).tanh_()
        ctx.save_for_backward(recurrent, weight, kept, acts, memories, hiddens[:frames], outputs)
        return outputs[1:].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # torch leaves it open
        recurrent, weight, kept, acts, memories, hiddens, outputs = ctx.saved_tensors
        frames = len(gradient)
        to_gates = torch.empty_like(acts)
        projected = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        later = to_memory = torch.zeros_like(gradient[0])
        for t in reversed(range(frames)):
            admit, forget, new, show = acts[t].chunk(4, dim=1)
            torch.mul(gradient[t] + later, 1 - outputs[t + 1].square(), out=projected[t])
            to_hidden = projected[t] @ weight
            if kept is not None:
                to_hidden = to_hidden * kept[t]
            seen = memories[t + 1].tanh()
            to_memory = to_memory + to_hidden * show * (1 - seen.square())
            to_admit, to_forget, to_new, to_show = to_gates[t].chunk(4, dim=1)
            torch.mul(to_memory * new, admit * (1 - admit), out=to_admit)
            torch.mul(to_memory * memories[t], forget * (1 - forget), out=to_forget)
            torch.mul(to_memory * admit, 1 - new.square(), out=to_new)
            torch.mul(to_hidden * seen, show * (1 - show), out=to_show)
            to_memory = to_memory * forget
            later = to_gates[t] @ recurrent
        flat = projected.flatten(0, 1)
        to_recurrent = to_gates.flatten(0, 1).t() @ outputs[:frames].flatten(0, 1)
        return to_gates, to_recurrent, flat.t() @ hiddens.flatten(0, 1), flat.sum(dim=0), None
