"""Scalable AASIST, conformer, light CNN, Gaussian mixtures and LFCC, slowly: one utterance at a time, in float64.

Written from the papers and from what the published code computes in evaluation; weights by our names. T frames, D
width, F bands, C channels.
"""

import math

import numpy as np
import scipy.fft
from deepfake_reference import Floats, Slow, Weights, pool_frames, selu, sigmoid, softmax
from scipy.special import erf, logsumexp


def gelu(x: Floats) -> Floats:
    found: Floats = 0.5 * x * (1 + erf(x / math.sqrt(2)))
    return found


def silu(x: Floats) -> Floats:
    return x * sigmoid(x)


def layer_norm(x: Floats, weight: Floats, bias: Floats) -> Floats:
    centred = x - x.mean(-1, keepdims=True)
    found: Floats = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias
    return found


def attend(query: Floats, key: Floats, value: Floats, heads: int) -> Floats:
    """(M, C), (N, C), (N, C) -> (M, C), one head and one query at a time."""
    width = query.shape[1] // heads
    out = np.zeros((len(query), heads * width))
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        for m in range(len(query)):
            scores = np.array([query[m, own] @ one for one in key[:, own]]) / math.sqrt(width)
            out[m, own] = softmax(scores) @ value[:, own]
    return out


class SlowNorms(Slow):
    def layer_norm(self, name: str, x: Floats) -> Floats:
        return layer_norm(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def torch_attention(self, name: str, query: Floats, nodes: Floats, heads: int) -> Floats:
        """As torch keeps it: three projections below each other."""
        weights = np.split(self.weights[f"{name}.in_proj_weight"], 3)
        biases = np.split(self.weights[f"{name}.in_proj_bias"], 3)
        asked, keys, values = (x @ w.T + b for x, w, b in zip((query, nodes, nodes), weights, biases, strict=True))
        return self.linear(f"{name}.out_proj", attend(asked, keys, values, heads))


class SlowScalableAasist(SlowNorms):
    def __init__(self, weights: Weights, *, ratios: tuple[float, float, float], heads: int) -> None:
        super().__init__(weights)
        self.ratios, self.heads = ratios, heads

    def features(self, x: Floats) -> Floats:
        """(T, D) -> logits."""
        x = pool_frames(pool_frames(self.linear("project", x).T, 3, 0), 3, 1)
        x = gelu(self.norm("first_norm", x[None], 0))
        for number in range(6):
            name, found = f"blocks.{number}", x
            if number > 0:
                found = gelu(self.norm(f"{name}.norm1", x, 0))
            found = gelu(self.norm(f"{name}.norm2", self.conv2d(f"{name}.conv1", found, (1, 1)), 0))
            found = self.conv2d(f"{name}.conv2", found, (0, 1))
            if f"{name}.shortcut.weight" in self.weights:
                x = self.conv2d(f"{name}.shortcut", x, (0, 1))
            x = found + x
        x = gelu(self.norm("reader.norm", x, 0))
        hidden = self.norm("reader.hidden_norm", gelu(self.conv2d("reader.enter", x, (0, 0))), 0)
        scores = self.conv2d("reader.leave", hidden, (0, 0))
        spectral, temporal = (x * softmax(scores, 2)).sum(2).T, (x * softmax(scores, 1)).sum(1).T
        spectral = self.pool("pool_spectral", self.graph("spectral", spectral + self.weights["positions"][0]), 0)
        temporal = self.pool("pool_temporal", self.graph("temporal", temporal), 1)
        both = [self.branch(f"branches.{k}", temporal, spectral) for k in range(2)]
        t, s, m = (self.fuse(f"fusions.{k}", both[0][k], both[1][k]) for k in range(3))
        last = np.concatenate((np.abs(t).max(0), t.mean(0), np.abs(s).max(0), s.mean(0), m.mean(0)))
        return self.linear("output", last)

    def graph(self, name: str, nodes: Floats) -> Floats:
        heard = self.torch_attention(f"{name}.attention", nodes, nodes, self.heads)
        return gelu(
            self.norm(f"{name}.norm", self.linear(f"{name}.gathered", heard) + self.linear(f"{name}.own", nodes), 1)
        )

    def pool(self, name: str, nodes: Floats, which: int) -> Floats:
        scores = sigmoid(self.linear(f"{name}.score", nodes)[:, 0])
        best = np.argsort(-scores, kind="stable")[: max(int(len(nodes) * self.ratios[which]), 1)]
        return nodes[best] * scores[best, None]

    def branch(self, name: str, t: Floats, s: Floats) -> list[Floats]:
        first = self.stacked(f"{name}.first", t, s, self.weights[f"{name}.master"][0])
        s, t = self.pool(f"{name}.pool_spectral", first[1], 2), self.pool(f"{name}.pool_temporal", first[0], 2)
        second = self.stacked(f"{name}.second", t, s, first[2])
        return [a + b for a, b in zip((t, s, first[2]), second, strict=True)]

    def stacked(self, name: str, t: Floats, s: Floats, master: Floats) -> tuple[Floats, Floats, Floats]:
        t, s = self.linear(f"{name}.enter_temporal", t), self.linear(f"{name}.enter_spectral", s)
        nodes = np.concatenate((t, s))
        heard = self.torch_attention(f"{name}.master_attention", master, nodes, self.heads)
        master = self.linear(f"{name}.master_gathered", heard) + self.linear(f"{name}.master_own", master)
        query, key = (
            np.concatenate([self.linear(f"{name}.{part}_{kind}", x) for kind, x in (("temporal", t), ("spectral", s))])
            for part in ("query", "key")
        )
        heard = self.linear(f"{name}.leave", attend(query, key, self.linear(f"{name}.value", nodes), self.heads))
        found = self.linear(f"{name}.gathered", heard) + self.linear(f"{name}.own", nodes)
        found = gelu(self.norm(f"{name}.norm", found, 1))
        return found[: len(t)], found[len(t) :], master

    def fuse(self, name: str, one: Floats, other: Floats) -> Floats:
        nodes = np.concatenate((one, other))
        return self.layer_norm(
            f"{name}.norm", nodes + self.torch_attention(f"{name}.attention", nodes, nodes, self.heads)
        )


class SlowConformer(SlowNorms):
    def features(self, x: Floats, *, heads: int, distance: int) -> Floats:
        """(T, D) -> logits."""
        x = selu(self.norm("first_norm", self.linear("project", x)[None], 0))[0]
        x = np.concatenate((self.weights["token"][0], x))
        number = 0
        while f"encoder.blocks.{number}.norm.weight" in self.weights:
            x = self.block(f"encoder.blocks.{number}", x, heads, distance)
            number += 1
        return self.linear("output", x[0])

    def block(self, name: str, x: Floats, heads: int, distance: int) -> Floats:
        x = x + 0.5 * self.feed_forward(f"{name}.ffn1", self.layer_norm(f"{name}.ffn1_norm", x))
        x = x + self.attention(f"{name}.attention", self.layer_norm(f"{name}.attention_norm", x), heads, distance)
        x = x + self.convolution(f"{name}.conv", self.layer_norm(f"{name}.conv_norm", x))
        x = x + 0.5 * self.feed_forward(f"{name}.ffn2", self.layer_norm(f"{name}.ffn2_norm", x))
        return self.layer_norm(f"{name}.norm", x)

    def feed_forward(self, name: str, x: Floats) -> Floats:
        return self.linear(f"{name}.fc2", silu(self.linear(f"{name}.fc1", x)))

    def attention(self, name: str, x: Floats, heads: int, distance: int) -> Floats:
        query, key, value = np.split(self.linear(f"{name}.qkv", x), 3, axis=1)
        width = query.shape[1] // heads
        out = np.zeros_like(query)
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            for t in range(len(x)):
                away = [min(max(u - t, -distance), distance) + distance for u in range(len(x))]
                keys = key[:, own] + self.weights[f"{name}.distance.weight"][away]
                out[t, own] = softmax(keys @ query[t, own] / math.sqrt(width)) @ value[:, own]
        return self.linear(f"{name}.output", out)

    def convolution(self, name: str, x: Floats) -> Floats:
        x = x @ self.weights[f"{name}.pointwise1.weight"].T
        x, gate = np.split(x, 2, axis=1)
        x = x * sigmoid(gate)
        kernel = self.weights[f"{name}.depthwise.weight"][:, 0]  # (C, kernel)
        reach = kernel.shape[1] // 2
        out = np.zeros_like(x)
        for t in range(len(x)):
            for k in range(kernel.shape[1]):
                if 0 <= t + k - reach < len(x):
                    out[t] += kernel[:, k] * x[t + k - reach]
        return silu(self.norm(f"{name}.norm", out, 1)) @ self.weights[f"{name}.pointwise2.weight"].T


class SlowLcnn(Slow):
    POOLED = (0, 2, 4, 8)

    def features(self, x: Floats) -> Floats:
        """(T, D) -> logits."""
        x = np.stack([x[t % len(x)] for t in range(max(16, len(x)))])
        x = np.pad(x, ((0, 0), (0, max(0, 16 - x.shape[1]))))[None].transpose(0, 2, 1)  # (1, F, T)
        for number in range(9):
            kernel = self.weights[f"convs.{number}.weight"].shape[2]
            x = self.conv2d(f"convs.{number}", x, (kernel // 2, kernel // 2))
            x = np.maximum(x[: len(x) // 2], x[len(x) // 2 :])
            if number in self.POOLED:
                x = pool_frames(pool_frames(x, 2, 1), 2, 2)
            if f"norms.{number}.running_mean" in self.weights:
                mean, variance = (self.weights[f"norms.{number}.running_{part}"] for part in ("mean", "var"))
                x = (x - mean[:, None, None]) / np.sqrt(variance + 1e-5)[:, None, None]
        states = x.transpose(2, 0, 1).reshape(x.shape[2], -1)  # (T/16, C F/16)
        found = states
        for number in range(2):
            found = np.concatenate(
                (
                    self.lstm(f"recurrent.{number}.ahead", found),
                    self.lstm(f"recurrent.{number}.back", found[::-1])[::-1],
                ),
                axis=1,
            )
        score = self.linear("output", (found + states).mean(0))
        return np.array([0.0, score[0]])

    def lstm(self, name: str, x: Floats) -> Floats:
        w = {part: self.weights[f"{name}.{part}_l0"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        hidden = cell = np.zeros(w["weight_hh"].shape[1])
        out = []
        for frame in x:
            gates = w["weight_ih"] @ frame + w["bias_ih"] + w["weight_hh"] @ hidden + w["bias_hh"]
            enter, forget, candidate, leave = np.split(gates, 4)
            cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(candidate)
            hidden = sigmoid(leave) * np.tanh(cell)
            out.append(hidden)
        return np.array(out)


class SlowMixtures(Slow):
    def features(self, x: Floats) -> Floats:
        """(T, D) -> mean log-likelihoods of both."""
        out = []
        for number in range(2):
            means, variances = self.weights["means"][number], np.exp(self.weights["log_variances"][number])
            frames = []
            for frame in x:
                each = -0.5 * ((frame - means) ** 2 / variances + np.log(2 * math.pi * variances)).sum(1)
                frames.append(logsumexp(each + self.weights["log_weights"][number]))
            out.append(np.mean(frames))
        return np.array(out)


def slow_lfcc(
    waveform: Floats, *, ceps: int, filters: int, window: int, hop: int, fft: int, high: float, emphasis: bool,
    energy: bool, floor: float,
) -> Floats:  # fmt: skip
    """(S,) at 16 kHz -> (T, 3 ceps): frames within the waveform, deltas half the difference of neighbours."""
    rate = 16_000
    if emphasis:
        waveform = waveform - 0.97 * np.concatenate(([0.0], waveform[:-1]))
    edges = np.linspace(0.0, high, filters + 2)
    bins = np.arange(fft // 2 + 1) * rate / fft
    rows = []
    for start in range(0, len(waveform) - window + 1, hop):
        power = np.abs(np.fft.rfft(waveform[start : start + window] * np.hamming(window), fft)) ** 2
        energies = []
        for low, centre, top in zip(edges, edges[1:], edges[2:], strict=False):
            weights = [max(0.0, min((f - low) / (centre - low), (top - f) / (top - centre))) for f in bins]
            energies.append(np.log10(power @ weights + floor))
        row = scipy.fft.dct(np.array(energies), type=2, norm="ortho")[:ceps]
        if energy:
            row[0] = np.log10(power.sum() / fft + floor)
        rows.append(row)
    parts = [np.array(rows)]
    for _ in range(2):
        held = np.pad(parts[-1], ((1, 1), (0, 0)), mode="edge")
        parts.append((held[2:] - held[:-2]) / 2)
    return np.concatenate(parts, axis=1)
