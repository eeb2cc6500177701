"""wav2vec and vq-wav2vec once more, slow and plain: one utterance, loops over frames, double precision.

Written from Schneider et al. 2019 (arXiv:1904.05862), Baevski et al. 2019 (arXiv:1910.05453) and what fairseq's
checkpoints hold; weights go by fairseq's names.
"""

import math
from typing import Any

import torch
from torch import Tensor

from speechssl.loss.future_prediction import FuturePrediction

OLD_DEFAULTS: dict[str, Any] = {
    "arch": "wav2vec", "activation": "relu", "log_compression": True, "skip_connections_agg": True,
    "skip_connections_feat": False, "residual_scale": 0.5, "agg_zero_pad": False, "no_conv_bias": False,
    "non_affine_group_norm": False, "aggregator": "cnn", "vq_type": "none", "vq_vars": 7, "vq_groups": 2, "vq_dim": 0,
    "vq_depth": 1, "combine_groups": False,
    "conv_feature_layers": "[(12, 10, 5), (12, 8, 4), (12, 4, 2)] + [(12, 1, 1)] * 2",
    "conv_aggregator_layers": "[(12, 2, 1), (12, 3, 1), (12, 4, 1)]",
}  # fmt: skip
FEATURE = [(10, 5), (8, 4), (4, 2), (1, 1), (1, 1)]
CHANNELS = 12


def settings(**changes: Any) -> dict[str, Any]:
    """What fairseq's `args` hold; `agg_width` replaces the width of the context network."""
    width = changes.pop("agg_width", CHANNELS)
    made = {**OLD_DEFAULTS, **changes, "agg_width": width}
    made["conv_aggregator_layers"] = f"[({width}, 2, 1), ({width}, 3, 1), ({width}, 4, 1)]"
    return made


def random_state(args: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Weights of a model with these settings, as fairseq names and shapes them, heads of pre-training included."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        fan = math.prod(shape[1:]) if len(shape) > 1 else 4
        return torch.randn(shape, generator=generator) * (1.5 / math.sqrt(fan))

    state: dict[str, Tensor] = {}
    inputs = 1
    for layer, (kernel, _) in enumerate(FEATURE):
        at = f"feature_extractor.conv_layers.{layer}."
        state[at + "0.weight"] = normal(CHANNELS, inputs, kernel)
        if not args["non_affine_group_norm"]:
            state |= {at + "2.weight": 1 + 0.3 * normal(CHANNELS), at + "2.bias": 0.3 * normal(CHANNELS)}
        inputs = CHANNELS
    state |= _quantizer_state(args, normal)
    inputs, width = args["vq_dim"] or CHANNELS, args["agg_width"]
    for layer, kernel in enumerate((2, 3, 4)):
        at = f"feature_aggregator.conv_layers.{layer}."
        state[at + "1.weight"] = normal(width, inputs, kernel)
        if not args["no_conv_bias"]:
            state[at + "1.bias"] = normal(width)
        if not args["non_affine_group_norm"]:
            state |= {at + "3.weight": 1 + 0.3 * normal(width), at + "3.bias": 0.3 * normal(width)}
        if args["skip_connections_agg"] and inputs != width:
            state[f"feature_aggregator.residual_proj.{layer}.weight"] = normal(width, inputs, 1)
        inputs = width
    state["wav2vec_predictions.project_to_steps.weight"] = normal(width, CHANNELS, 1, 12)
    state["wav2vec_predictions.project_to_steps.bias"] = normal(CHANNELS)
    return state


def _quantizer_state(args: dict[str, Any], normal: Any) -> dict[str, Tensor]:
    groups, codewords, width = args["vq_groups"], args["vq_vars"], args["vq_dim"] or CHANNELS
    kept = 1 if args["combine_groups"] else groups
    at = "vector_quantizer."
    if args["vq_type"] == "kmeans":
        return {
            at + "embedding": 0.5 * normal(codewords, kept, width // groups),
            at + "projection.0.weight": normal(CHANNELS, CHANNELS // groups, 1),
            at + "projection.1.weight": 1 + 0.3 * normal(CHANNELS), at + "projection.1.bias": 0.3 * normal(CHANNELS),
        }  # fmt: skip
    if args["vq_type"] != "gumbel":
        return {}
    state = {at + "vars": normal(1, kept * codewords, width // groups)}
    inputs = CHANNELS
    for layer in range(args["vq_depth"] - 1):
        state[f"{at}weight_proj.{layer}.0.weight"] = 2 * normal(2 * CHANNELS, inputs)
        state[f"{at}weight_proj.{layer}.0.bias"] = normal(2 * CHANNELS)
        inputs = 2 * CHANNELS
    last = f"{at}weight_proj." + (f"{args['vq_depth'] - 1}." if args["vq_depth"] > 1 else "")
    return {**state, last + "weight": normal(groups * codewords, inputs), last + "bias": normal(groups * codewords)}


def reference(state: dict[str, Tensor], args: dict[str, Any], waveform: Tensor) -> tuple[list[Tensor], Tensor | None]:
    """Hidden states [(T, C), (T, D), ...] and codes (T, G) of one utterance (S,)."""
    weights = {key: value.double() for key, value in state.items()}
    activate = torch.relu if args["activation"] == "relu" else _gelu
    x = waveform.double()[None, :]  # (C, T)
    for layer, (_, stride) in enumerate(FEATURE):
        at = f"feature_extractor.conv_layers.{layer}."
        x = _conv(x, weights[at + "0.weight"], None, stride)
        x = activate(_group_norm(x, 1, weights.get(at + "2.weight"), weights.get(at + "2.bias")))
    if args["log_compression"]:
        x = torch.log(x.abs() + 1)
    codes = None
    if args["vq_type"] != "none":
        x, codes = (_gumbel if args["vq_type"] == "gumbel" else _kmeans)(x, weights, args, activate)
    states = [x.T]
    for layer, kernel in enumerate((2, 3, 4)):
        at = f"feature_aggregator.conv_layers.{layer}."
        first = torch.zeros_like(x[:, :1]) if args["agg_zero_pad"] else x[:, :1]
        padded = torch.cat([first] * (kernel - 1) + [x], dim=1)
        y = _conv(padded, weights[at + "1.weight"], weights.get(at + "1.bias"), 1)
        y = activate(_group_norm(y, 1, weights.get(at + "3.weight"), weights.get(at + "3.bias")))
        if args["skip_connections_agg"]:
            projection = weights.get(f"feature_aggregator.residual_proj.{layer}.weight")
            y = (y + (x if projection is None else projection[:, :, 0] @ x)) * args["residual_scale"] ** 0.5
        x = y
        states.append(x.T)
    return [s.float() for s in states], codes


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    kernel = weight.size(2)
    frames = (x.size(1) - kernel) // stride + 1
    columns = [(weight * x[:, t * stride : t * stride + kernel]).sum(dim=(1, 2)) for t in range(frames)]
    y = torch.stack(columns, dim=1)
    return y if bias is None else y + bias[:, None]


def _group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    parts = [(p - p.mean()) / torch.sqrt(p.var(correction=0) + 1e-5) for p in x.chunk(groups, dim=0)]
    y = torch.cat(parts)
    return y if weight is None or bias is None else y * weight[:, None] + bias[:, None]


def _gumbel(x: Tensor, weights: dict[str, Tensor], args: dict[str, Any], activate: Any) -> tuple[Tensor, Tensor]:
    codewords, groups = args["vq_vars"], args["vq_groups"]
    book = weights["vector_quantizer.vars"][0]
    if args["combine_groups"]:
        book = book.repeat(groups, 1)
    frames, codes = [], []
    for column in x.T:
        hidden = column
        for layer in range(args["vq_depth"] - 1):
            at = f"vector_quantizer.weight_proj.{layer}.0."
            hidden = activate(weights[at + "weight"] @ hidden + weights[at + "bias"])
        at = "vector_quantizer.weight_proj." + (f"{args['vq_depth'] - 1}." if args["vq_depth"] > 1 else "")
        logits = weights[at + "weight"] @ hidden + weights[at + "bias"]
        chosen = [int(logits[g * codewords : (g + 1) * codewords].argmax()) for g in range(groups)]
        frames.append(torch.cat([book[g * codewords + c] for g, c in enumerate(chosen)]))
        codes.append(chosen)
    return torch.stack(frames, dim=1), torch.tensor(codes)


def _kmeans(x: Tensor, weights: dict[str, Tensor], args: dict[str, Any], _activate: Any) -> tuple[Tensor, Tensor]:
    groups = args["vq_groups"]
    projection, book = weights["vector_quantizer.projection.0.weight"], weights["vector_quantizer.embedding"]
    parts = zip(projection[:, :, 0].chunk(groups), x.chunk(groups), strict=True)
    y = torch.cat([weight @ part for weight, part in parts])
    at = "vector_quantizer.projection.1."
    y = _group_norm(y, groups, weights[at + "weight"], weights[at + "bias"])
    frames, codes = [], []
    for column in y.T:
        chosen, words = [], []
        for group, part in enumerate(column.chunk(groups)):
            candidates = book[:, 0 if args["combine_groups"] else group]
            chosen.append(int((candidates - part).norm(dim=1).argmin()))
            words.append(candidates[chosen[-1]])
        frames.append(torch.cat(words))
        codes.append(chosen)
    return torch.stack(frames, dim=1), torch.tensor(codes)


def plain_future_loss(
    head: FuturePrediction, context: Tensor, features: Tensor, frames: list[int], others: Tensor
) -> tuple[float, int, int]:
    """Pair by pair in double precision, with fairseq's transposed convolution; loss, pairs, pairs that are right."""
    K, C = head.steps, features.size(2)
    project = torch.nn.ConvTranspose2d(context.size(2), C, (1, K)).double()
    with torch.no_grad():
        project.weight.copy_(head.projection.weight.double().view(K, C, 1, -1).permute(3, 1, 2, 0))
        project.bias.copy_(head.bias.double())  # type: ignore[union-attr]  # it has one
        predicted = project(context.double().transpose(1, 2)[..., None])  # (B, C, T, K)
    z = features.double()
    loss, pairs, right = 0.0, 0, 0
    for row, valid in enumerate(frames):
        for t in range(valid):
            for step in range(K):
                ahead = t + head.offset + step
                if ahead >= valid:
                    continue
                h = predicted[row, :, t, step]
                truth = float(h @ z[row, ahead])
                false = [float(h @ z[row, int(index)]) for index in others[row, ahead]]
                loss += math.log1p(math.exp(-truth)) + head.weight * sum(math.log1p(math.exp(s)) for s in false)
                pairs += 1
                right += truth > max(false)
    return loss, pairs, right
