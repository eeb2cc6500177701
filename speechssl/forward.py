"""One batch through an upstream: the device, the precision and the copy back that every kind of extraction shares.

B batch, S samples, T frames, D width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from speechssl.upstream import Upstream

Precision = Literal["float32", "bf16"]


@torch.inference_mode()
def forward_batch(
    upstream: Upstream, waveform: Tensor, lengths: Tensor, layers: Sequence[int] | None, precision: Precision
) -> tuple[dict[int, Tensor], list[int]]:
    """Runs an upstream where its weights are.

    Args:
        waveform: (B, S), 0 beyond `lengths`.
        lengths: valid samples, (B,) int64.
        layers: see `Upstream.forward`.
        precision: 'bf16' computes under autocast.

    Returns:
        layer -> (B, T, D) on the CPU, and the valid frames per utterance.
    """
    tensors = [*upstream.parameters(), *upstream.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        out = upstream(waveform.to(device), lengths.to(device), layers=layers)
    states = {k: out.hidden_states[k].cpu() for k in out.hidden_states.layers}
    return states, out.lengths.tolist()


@contextmanager
def evaluating(upstream: Upstream) -> Iterator[None]:
    """Evaluation mode inside, and afterwards whatever mode it was."""
    training = upstream.training
    upstream.eval()
    try:
        yield
    finally:
        upstream.train(training)
