"""AASIST and its kin, slowly: one utterance at a time, loops over nodes, in float64, by the published names.

Written from the papers and from what the published code computes in evaluation. T frames, F bands, C channels.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Weights = Mapping[str, Any]


def selu(x: Floats) -> Floats:
    found: Floats = 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * (np.exp(np.minimum(x, 0)) - 1))
    return found


def sigmoid(x: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-x))
    return found


def softmax(x: Floats, axis: int = -1) -> Floats:
    raised = np.exp(x - x.max(axis=axis, keepdims=True))
    found: Floats = raised / raised.sum(axis=axis, keepdims=True)
    return found


class Slow:
    """The layers that all of them have."""

    def __init__(self, weights: Weights) -> None:
        self.weights = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}

    def linear(self, name: str, x: Floats) -> Floats:
        found: Floats = x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return found

    def norm(self, name: str, x: Floats, axis: int) -> Floats:
        """Channels lie along `axis`."""
        moved = np.moveaxis(x, axis, -1)
        w = {part: self.weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")}
        found = (moved - w["running_mean"]) / np.sqrt(w["running_var"] + 1e-5) * w["weight"] + w["bias"]
        return np.moveaxis(found, -1, axis)

    def conv2d(self, name: str, x: Floats, padding: tuple[int, int]) -> Floats:
        """(C, F, T) -> (C', F', T')."""
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        x = np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2))
        size = x.shape[1] - weight.shape[2] + 1, x.shape[2] - weight.shape[3] + 1
        out = np.tile(bias[:, None, None], (1, *size))
        for i in range(weight.shape[2]):
            for j in range(weight.shape[3]):
                part = x[:, i : i + size[0], j : j + size[1]]
                out += np.einsum("oc,cft->oft", weight[:, :, i, j], part)
        return out


def pool_frames(x: Floats, size: int, axis: int) -> Floats:
    """The largest of each `size` neighbours; what is left over is dropped."""
    moved = np.moveaxis(x, axis, -1)
    count = moved.shape[-1] // size
    found = moved[..., : count * size].reshape(*moved.shape[:-1], count, size).max(axis=-1)
    return np.moveaxis(found, -1, axis)


def sinc_filters(channels: int, kernel: int = 129, rate: float = 16_000) -> Floats:
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), channels + 1) / 2595) - 1)
    rows = []
    for low, high in pairwise(edges):
        row = []
        for k in range(kernel):
            at = k - (kernel - 1) / 2
            ideal = [2 * f / rate if at == 0 else np.sin(2 * np.pi * f * at / rate) / (np.pi * at) for f in (low, high)]
            row.append((0.54 - 0.46 * np.cos(2 * np.pi * k / (kernel - 1))) * (ideal[1] - ideal[0]))
        rows.append(row)
    return np.array(rows)


def conv1d(x: Floats, weight: Floats, bias: Floats, dilation: int) -> Floats:
    """(C, T) -> (C', T), zeros beyond both ends."""
    reach = weight.shape[2] // 2
    out = np.tile(bias[:, None], (1, x.shape[1]))
    for t in range(x.shape[1]):
        for k in range(weight.shape[2]):
            at = t + (k - reach) * dilation
            if 0 <= at < x.shape[1]:
                out[:, t] += weight[:, :, k] @ x[:, at]
    return out


class SlowSls(Slow):
    def features(self, x: Floats, window: int) -> Floats:
        """(T, D) -> logits."""
        x = np.stack([x[t % len(x)] for t in range(window)])
        x = selu(self.norm("norm", x[None], 0))[0]
        x = pool_frames(pool_frames(x, 3, 0), 3, 1)
        return selu(self.linear("output", selu(self.linear("hidden", x.reshape(-1)))))


class SlowNes2Net(Slow):
    """By our names."""

    def conv(self, name: str, x: Floats, dilation: int = 1) -> Floats:
        return conv1d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], dilation)

    def features(self, x: Floats, groups: tuple[int, int], dilation: int) -> Floats:
        """(T, D) -> logits."""
        x = np.pad(x.T, ((0, -x.shape[1] % groups[0]), (0, 0)))
        parts = np.split(x, groups[0])
        for i in range(groups[0] - 1):
            before = parts[i - 1] if i else 0.0
            found = self.block(f"blocks.{i}", parts[i] + before, groups[1], dilation)
            parts[i] = self.norm(f"norms.{i}", np.maximum(found, 0), 0)
        states = np.maximum(self.norm("last_norm", np.concatenate(parts), 0), 0)
        return self.linear("output", states.mean(1))

    def block(self, name: str, x: Floats, groups: int, dilation: int) -> Floats:
        parts = np.split(self.norm(f"{name}.enter_norm", np.maximum(self.conv(f"{name}.enter", x), 0), 0), groups)
        out = list(parts)
        carried = [parts[-1]]
        for i in range(groups - 1):
            shares = self.weights.get(f"{name}.shares.{i}")
            heard = [parts[i] + (out[i - 1] if i else 0.0)] if shares is None else [*carried, parts[i]]
            for k, one in enumerate(heard):
                convolved = np.maximum(self.conv(f"{name}.convs.{i}", one, dilation), 0)
                heard[k] = self.norm(f"{name}.norms.{i}", convolved, 0)
            carried = heard
            out[i] = heard[0] if shares is None else sum((s * h for s, h in zip(shares, heard, strict=True)), 0 * x[:1])
        found = np.maximum(self.conv(f"{name}.leave", np.concatenate(out)), 0)
        found = self.norm(f"{name}.leave_norm", found, 0)
        hidden = np.maximum(self.linear(f"{name}.squeeze", found.mean(1)), 0)
        gated: Floats = found * sigmoid(self.linear(f"{name}.excite", hidden))[:, None] + x
        return gated


class SlowAasist(Slow):
    """`official=False` uses the pre-activation of the blocks and the fourth ratio."""

    def __init__(
        self, weights: Weights, *, ratios: tuple[float, ...], temperatures: tuple[float, ...], official: bool = True
    ) -> None:
        super().__init__(weights)
        self.ratios, self.temperatures, self.official = ratios, temperatures, official

    def raw(self, waveform: Floats, channels: int) -> Floats:
        """(S,) -> logits (2,)."""
        bands = np.stack([np.correlate(waveform, f, mode="valid") for f in sinc_filters(channels)])
        return self.bands(pool_frames(pool_frames(np.abs(bands), 3, 0), 3, 1))

    def bands(self, x: Floats) -> Floats:
        """What comes of the filters, (F, T) -> logits."""
        x = self.encode(x, pools=True)
        return self.graphs(np.abs(x).max(axis=2).T, np.abs(x).max(axis=1).T)

    def features(self, x: Floats) -> Floats:
        """SSL-AASIST: (T, D) -> logits."""
        x = self.encode(pool_frames(pool_frames(self.linear("LL", x).T, 3, 0), 3, 1), pools=False)
        x = selu(self.norm("first_bn1", x, 0))
        hidden = self.norm("attention.2", selu(self.conv2d("attention.0", x, (0, 0))), 0)
        scores = self.conv2d("attention.3", hidden, (0, 0))
        return self.graphs((x * softmax(scores, 2)).sum(2).T, (x * softmax(scores, 1)).sum(1).T)

    def encode(self, x: Floats, *, pools: bool) -> Floats:
        x = selu(self.norm("first_bn", x[None], 0))
        for number in range(6):
            name = f"encoder.{number}.0"
            found = x
            if number > 0 and not self.official:
                found = selu(self.norm(f"{name}.bn1", x, 0))
            found = selu(self.norm(f"{name}.bn2", self.conv2d(f"{name}.conv1", found, (1, 1)), 0))
            found = self.conv2d(f"{name}.conv2", found, (0, 1))
            if f"{name}.conv_downsample.weight" in self.weights:
                x = self.conv2d(f"{name}.conv_downsample", x, (0, 1))
            x = pool_frames(found + x, 3, 2) if pools else found + x
        return x

    def attention(self, name: str, nodes: Floats, temperature: float) -> Floats:
        out = []
        for node in nodes:
            scores = [np.tanh(self.linear(f"{name}.att_proj", node * other)) for other in nodes]
            shares = softmax(np.array(scores) @ self.weights[f"{name}.att_weight"][:, 0] / temperature)
            heard = sum(share * other for share, other in zip(shares, nodes, strict=True))
            out.append(self.linear(f"{name}.proj_with_att", heard) + self.linear(f"{name}.proj_without_att", node))
        return selu(self.norm(f"{name}.bn", np.array(out), 1))

    def stacked(self, name: str, t: Floats, s: Floats, master: Floats) -> tuple[Floats, Floats, Floats]:
        nodes = np.concatenate((self.linear(f"{name}.proj_type1", t), self.linear(f"{name}.proj_type2", s)))
        heat = self.temperatures[2]
        out = []
        for i, node in enumerate(nodes):
            scores = []
            for j, other in enumerate(nodes):
                kind = {(True, True): "11", (False, False): "22"}.get((i < len(t), j < len(t)), "12")
                edge = np.tanh(self.linear(f"{name}.att_proj", node * other))
                scores.append(edge @ self.weights[f"{name}.att_weight{kind}"][:, 0] / heat)
            heard = softmax(np.array(scores)) @ nodes
            out.append(self.linear(f"{name}.proj_with_att", heard) + self.linear(f"{name}.proj_without_att", node))
        edges = np.tanh(self.linear(f"{name}.att_projM", nodes * master))
        shares = softmax(edges @ self.weights[f"{name}.att_weightM"][:, 0] / heat)
        master = self.linear(f"{name}.proj_with_attM", shares @ nodes) + self.linear(
            f"{name}.proj_without_attM", master
        )
        found = selu(self.norm(f"{name}.bn", np.array(out), 1))
        return found[: len(t)], found[len(t) :], master

    def pool(self, name: str, nodes: Floats, ratio: float) -> Floats:
        scores = sigmoid(self.linear(f"{name}.proj", nodes)[:, 0])
        best = np.argsort(-scores, kind="stable")[: max(int(len(nodes) * ratio), 1)]
        return nodes[best] * scores[best, None]

    def graphs(self, spectral: Floats, temporal: Floats) -> Floats:
        spectral = self.attention("GAT_layer_S", spectral + self.weights["pos_S"][0], self.temperatures[0])
        temporal = self.attention("GAT_layer_T", temporal, self.temperatures[1])
        spectral = self.pool("pool_S", spectral, self.ratios[0])
        temporal = self.pool("pool_T", temporal, self.ratios[1])
        branches = []
        for k in (1, 2):
            t, s, m = self.stacked(f"HtrgGAT_layer_ST{k}1", temporal, spectral, self.weights[f"master{k}"][0, 0])
            s = self.pool(f"pool_hS{k}", s, self.ratios[2])
            t = self.pool(f"pool_hT{k}", t, self.ratios[2 if self.official else 3])
            more = self.stacked(f"HtrgGAT_layer_ST{k}2", t, s, m)
            branches.append((t + more[0], s + more[1], m + more[2]))
        t, s, m = (np.maximum(a, b) for a, b in zip(*branches, strict=True))
        last = np.concatenate((np.abs(t).max(0), t.mean(0), np.abs(s).max(0), s.mean(0), m))
        return self.linear("out_layer", last)
