"""Masked prediction against fairseq's own construction, spelled out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.data.batching import make_generator
from speechssl.errors import SpeechsslError
from speechssl.loss.masked_prediction import LinearPrediction, MaskedPrediction, cosine_logits, features_penalty
from speechssl.metric.codes import perplexity


def _fairseq_loss(projected: Tensor, embeddings: Tensor, target: Tensor) -> Tensor:
    """compute_nce + cross-entropy with target 0: [positive] + all classes, the duplicate of the positive at -inf."""
    positive = embeddings[target].unsqueeze(0)  # (1, N, E)
    negatives = embeddings.unsqueeze(1).expand(-1, projected.size(0), -1)  # (K, N, E)
    is_positive = (positive == negatives).all(-1)
    logits = F.cosine_similarity(projected.unsqueeze(0), torch.cat([positive, negatives]), dim=-1) / 0.1
    logits[1:][is_positive] = float("-inf")
    return F.cross_entropy(logits.T, torch.zeros_like(target), reduction="sum")


def _head(**changes: object) -> MaskedPrediction:
    torch.manual_seed(0)
    arguments = {"num_labels": [7], "final_dim": 16, "temperature": 0.1, "untie_final_proj": True, **changes}
    return MaskedPrediction(12, **arguments)  # type: ignore[arg-type]  # a test's shorthand


def test_the_loss_is_that_of_fairseqs_positive_and_all_classes() -> None:
    head = _head()
    hidden = torch.randn(30, 12, generator=make_generator(1))
    target = torch.randint(7, (30,), generator=make_generator(2))
    output = head(hidden, [target])
    expected = _fairseq_loss(head.final_proj(hidden), head.label_embeddings[0], target)
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-5, atol=1e-5)
    assert output.sample_size.item() == 30


def test_the_gradient_is_that_of_fairseqs_construction_too() -> None:
    head = _head()
    target = torch.randint(7, (30,), generator=make_generator(2))
    gradients = []
    for loss in (
        lambda h: head(h, [target]).loss_sum,
        lambda h: _fairseq_loss(head.final_proj(h), head.label_embeddings[0], target),
    ):
        hidden = torch.randn(30, 12, generator=make_generator(1)).requires_grad_()
        gradients.append(torch.autograd.grad(loss(hidden), hidden)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_label_sets_are_summed_and_projected_apart() -> None:
    head = _head(num_labels=[7, 5])
    assert head.final_proj.out_features == 32
    hidden = torch.randn(30, 12, generator=make_generator(1))
    codes = [torch.randint(k, (30,), generator=make_generator(k)) for k in (7, 5)]
    projected = head.final_proj(hidden)
    expected = sum(
        _fairseq_loss(p, e, c) for p, e, c in zip(projected.chunk(2, -1), head.label_embeddings, codes, strict=True)
    )
    output = head(hidden, codes)
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-5, atol=1e-5)
    assert set(output.metrics) == {
        "accuracy", "masked_loss", "code_usage", "prediction_usage", "code_2_usage", "prediction_2_usage",
    }  # fmt: skip
    assert _head(num_labels=[7, 5], untie_final_proj=False).final_proj.out_features == 16
    with pytest.raises(SpeechsslError, match="2 label sets"):
        head(hidden, codes[:1])


def test_logits_stay_float32_under_autocast() -> None:
    left, right = (torch.randn(4, 8, generator=make_generator(s)) for s in (0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = cosine_logits(left, right, temperature=0.1)
    assert logits.dtype == torch.float32
    expected = F.cosine_similarity(left[:, None], right[None], dim=-1) / 0.1
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_the_features_penalty_ignores_padding() -> None:
    features = torch.randn(2, 6, 3, generator=make_generator(0))
    frames = torch.tensor([6, 4])
    expected = torch.cat([features[0], features[1, :4]]).square().mean()
    features[1, 4:] = 1e6
    torch.testing.assert_close(features_penalty(features, frames), expected)


def test_metrics_count_hits_and_usage() -> None:
    head = _head()
    hidden = torch.randn(30, 12, generator=make_generator(1))
    target = torch.randint(7, (30,), generator=make_generator(2))
    predicted = cosine_logits(head.final_proj(hidden), head.label_embeddings[0], temperature=0.1).argmax(1)
    metrics = head(hidden, [target]).metrics
    assert metrics["accuracy"].item() == (predicted == target).sum().item()
    assert metrics["code_usage"].tolist() == torch.bincount(target, minlength=7).tolist()
    assert metrics["prediction_usage"].tolist() == torch.bincount(predicted, minlength=7).tolist()


def test_perplexity_is_the_number_of_labels_in_even_use() -> None:
    assert perplexity(torch.tensor([5.0, 5, 5, 5, 0])).item() == pytest.approx(4.0, abs=1e-9)
    assert perplexity(torch.tensor([3.0, 0, 0])).item() == pytest.approx(1.0, abs=1e-9)
    assert perplexity(torch.tensor([3.0, 1.0])).item() == pytest.approx(
        math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))), abs=1e-9
    )
    assert perplexity(torch.zeros(3)).item() == 0.0


def test_unit_label_embeddings_begin_apart_and_uniform_ones_alike() -> None:
    similarity = {}
    for init in ("uniform", "unit"):
        embeddings = _head(num_labels=[50], final_dim=64, label_init=init).label_embeddings[0]
        cosine = cosine_logits(embeddings, embeddings, temperature=1.0)
        similarity[init] = ((cosine.sum() - 50) / (50 * 49)).item()
        length = embeddings.norm(dim=1).mean().item()
        assert length == pytest.approx(1.0 if init == "unit" else (64 / 3) ** 0.5, rel=0.1)
    assert similarity["uniform"] == pytest.approx(0.75, abs=0.03)
    assert similarity["unit"] == pytest.approx(0.0, abs=0.03)


def test_the_linear_head_is_a_plain_softmax_over_each_label_set() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = LinearPrediction(12, num_labels=[7, 5], temperature=0.5)
    hidden = torch.randn(30, 12, generator=make_generator(1))
    codes = [torch.randint(k, (30,), generator=make_generator(k)) for k in (7, 5)]
    scores = hidden @ head.final_proj.weight.T + head.final_proj.bias
    parts = (scores[:, :7] / 0.5, scores[:, 7:] / 0.5)
    output = head(hidden, codes)
    expected = sum(F.cross_entropy(p, c, reduction="sum") for p, c in zip(parts, codes, strict=True))
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-5, atol=1e-5)
    hits = sum((p.argmax(1) == c).sum() for p, c in zip(parts, codes, strict=True)) / 2
    assert output.metrics["accuracy"].item() == pytest.approx(hits.item())
    masked = torch.arange(30) < 10
    part = head(hidden, codes, masked=masked, unmasked_weight=0.25)
    apart = head(hidden[:10], [c[:10] for c in codes]), head(hidden[10:], [c[10:] for c in codes])
    torch.testing.assert_close(part.loss_sum, apart[0].loss_sum + 0.25 * apart[1].loss_sum)
    assert part.sample_size.item() == 10
