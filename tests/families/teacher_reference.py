"""transformers' data2vec as a student and as a teacher, one utterance at a time, to compare objectives with."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from speechssl.contextual.model import ContextualUpstream
from speechssl.data.batching import make_generator
from speechssl.loading import build_upstream
from speechssl.objective import PretrainInputs
from upstreams.data2vec.config import Data2VecConfig

SMALL: dict[str, Any] = {
    "width": 32, "heads": 4, "depth": 4, "ffn_width": 48, "conv_channels": 16, "pos_groups": 4, "layerdrop": 0.0,
    "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
LENGTHS = (16_000, 11_000, 7_300)


def voices(lengths: tuple[int, ...] = LENGTHS, *, seed: int = 0) -> PretrainInputs:
    """Smoothed noise, 0 beyond the lengths."""
    waveform = 0.3 * torch.randn(len(lengths), max(lengths), generator=make_generator("voices", seed))
    waveform = torch.nn.functional.avg_pool1d(waveform[:, None], 5, stride=1, padding=2)[:, 0]
    inside = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return PretrainInputs(waveform * inside, torch.tensor(lengths))


def stir(module: nn.Module, *, seed: int = 1, scale: float = 0.2) -> None:
    """Moves all weights away from how they begin, where much is alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator) * parameter.std().nan_to_num(1.0))
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def in_transformers(upstream: ContextualUpstream, encoder: nn.Module | None = None) -> nn.Module:
    """transformers' model with the weights of an upstream, or with another encoder in it."""
    config = Data2VecConfig(**asdict(upstream.config))
    made = build_upstream("data2vec", config, seed=0)
    state = dict(upstream.state_dict())
    if encoder is not None:
        state |= {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    made.load_state_dict(state)
    model: nn.Module = made.to_transformers().eval()
    return model


@torch.no_grad()
def hear_in_transformers(model: Any, waveform: Tensor, mask: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """The last hidden state (T, D) of one waveform (S,), and what each block's feed-forward made, (T, D) each."""
    results: list[Tensor] = []
    handles = [
        layer.feed_forward.output_dense.register_forward_hook(lambda _m, _i, out: results.append(out[0]))
        for layer in model.encoder.layers
    ]
    normed = (waveform - waveform.mean()) / (waveform.var(unbiased=False) + 1e-5).sqrt()
    hidden = model(normed[None], mask_time_indices=None if mask is None else mask[None]).last_hidden_state[0]
    for handle in handles:
        handle.remove()
    return hidden, results


def normed_over_time(x: Tensor) -> Tensor:
    """Each channel of (T, D) to zero mean and unit variance, channel by channel."""
    columns = [(c - c.mean()) / (c.var(unbiased=False) + 1e-5).sqrt() for c in x.unbind(dim=1)]
    return torch.stack(columns, dim=1)
