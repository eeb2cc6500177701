"""Gradient features, against automatic differentiation of one utterance at a time and slow losses."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from speechssl.analysis.fungi import (
    FungiConfig,
    GradientFeatures,
    dino_loss,
    kl_loss,
    project,
    simclr_loss,
)
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.loading import build_upstream
from speechssl.registry import find_preset
from speechssl.upstream import Upstream

CONFIG = FungiConfig(kl_outputs=24, dino_outputs=24, simclr_outputs=24, dino_local=1, simclr_views=2)


def _tiny() -> Upstream:
    family, config = find_preset("hubert_tiny")
    sizes = {"width": 16, "ffn_width": 24, "heads": 2, "depth": 2, "pos_kernel": 5, "pos_groups": 2}
    return build_upstream(family, dataclasses.replace(config, **sizes), seed=0).eval()


def _speech() -> tuple[torch.Tensor, torch.Tensor]:
    waveform = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)) * 0.1
    return waveform, torch.tensor([8000, 5000])


def _of_weights(loss: torch.Tensor, features: GradientFeatures) -> torch.Tensor:
    weight, bias = torch.autograd.grad(loss, [features.layer.weight, features.layer.bias])
    return torch.cat((weight, bias[:, None]), dim=1).flatten()


def test_the_gradient_of_an_utterance_equals_that_of_backpropagation_into_the_weights() -> None:
    upstream, (waveform, lengths) = _tiny(), _speech()
    features = GradientFeatures(upstream, CONFIG)
    assert upstream.get_submodule("encoder.blocks.1.attention.output") is features.layer
    found = features.gradients("kl", waveform, lengths)
    weight, bias = features._heads["kl"]
    for row, length in enumerate(lengths.tolist()):
        out = upstream(waveform[row : row + 1, :length], layers=[-1])
        embedding = F.normalize(out.hidden_states[-1].mean(dim=1), dim=1)
        loss = kl_loss(F.linear(embedding, weight, bias), CONFIG).sum()
        expected = _of_weights(loss, features)
        torch.testing.assert_close(found[row], expected, rtol=1e-3, atol=1e-7)


def test_gradients_of_views_are_summed_and_do_not_depend_on_the_batch() -> None:
    upstream, (waveform, lengths) = _tiny(), _speech()
    before = upstream.fingerprint()
    features = GradientFeatures(upstream, CONFIG)
    features.set_negatives(*_speech())
    both = features(waveform, lengths)
    alone = torch.cat([features(waveform[i : i + 1, :n], lengths[i : i + 1]) for i, n in enumerate(lengths.tolist())])
    assert both.shape == (2, features.width)
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-4)
    torch.testing.assert_close(both.view(2, 4, -1).norm(dim=2), torch.ones(2, 4), rtol=0, atol=1e-5)
    assert float((both[0] - both[1]).abs().max()) > 0.05
    assert upstream.fingerprint() == before
    assert all(p.grad is None and p.requires_grad for p in upstream.parameters())
    views, sizes = features._views(waveform, lengths, 2, 1)
    embeddings = features._embed(views[:3], sizes[:3])[None]
    unit = F.normalize(embeddings, dim=2)
    teacher = F.linear(unit[:, :2], *features._teacher).detach()
    expected = _of_weights(dino_loss(F.linear(unit, *features._heads["dino"]), teacher, CONFIG).sum(), features)
    torch.testing.assert_close(features.gradients("dino", waveform, lengths)[0], expected, rtol=1e-3, atol=1e-6)


def test_losses_equal_slow_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    views, others = torch.randn(1, 3, 6, generator=generator), torch.randn(4, 6, generator=generator)
    p = views[0, 0].softmax(dim=0)
    assert float(kl_loss(views[:, 0], CONFIG)) == pytest.approx(
        sum(math.log(1 / 6 / float(x)) / 6 for x in p), abs=1e-6
    )

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(F.cosine_similarity(a, b, dim=0)) / 0.5

    slow = 0.0
    for i in range(3):
        rest = [views[0, j] for j in range(3) if j != i]
        total = sum(math.exp(cosine(views[0, i], x)) for x in [*rest, *others])
        slow += sum(math.log(total) - cosine(views[0, i], x) for x in rest) / len(rest) / 3
    assert float(simclr_loss(views, others, 0.5)) == pytest.approx(slow, abs=1e-5)
    teacher = torch.randn(1, 2, 6, generator=generator)
    pairs = [
        -((teacher[0, g] / 0.07).softmax(0) * (views[0, v] / 0.1).log_softmax(0)).sum()
        for g in range(2)
        for v in range(3)
    ]
    assert float(dino_loss(views, teacher, CONFIG)) == pytest.approx(float(sum(pairs)), rel=1e-5)


def test_the_projection_is_a_matrix_of_signs_that_keeps_lengths() -> None:
    matrix = project(torch.eye(50), 40) * math.sqrt(40)
    assert set(matrix.flatten().tolist()) == {-1.0, 1.0}
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(project(x, 40), x @ matrix / math.sqrt(40), rtol=0, atol=1e-5)
    long = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(project(long, 800).norm(dim=1), long.norm(dim=1), rtol=0.1, atol=0)
    assert not torch.equal(project(x, 40, seed=1), project(x, 40))


def test_what_is_missing_is_named() -> None:
    upstream = _tiny()
    with pytest.raises(SpeechsslError, match="call `set_negatives` first"):
        GradientFeatures(upstream, CONFIG).gradients("simclr", *_speech())
    with pytest.raises(SpeechsslError, match="no linear layer 'nowhere'"):
        GradientFeatures(upstream, dataclasses.replace(CONFIG, layer="nowhere"))
    with pytest.raises(ConfigError, match="some of kl, dino, simclr"):
        FungiConfig(losses=())
