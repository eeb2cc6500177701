"""wav2vec's objective against a slow one written from the paper and fairseq's order of operations."""

import pytest
import torch
import torch.nn.functional as F
from plain_wav2vec import plain_future_loss

from speechssl.data.batching import make_generator
from speechssl.errors import ConfigError
from speechssl.loading import build_upstream
from speechssl.loss.future_prediction import FuturePrediction, receptive_frames, sample_other_frames
from speechssl.metric.tallies import standard_deviation
from speechssl.objective import Labelling, PretrainInputs
from speechssl.registry import find_preset
from speechssl.train.optim import learning_rate
from speechssl.train.run import pretrain_config
from upstreams.wav2vec.config import Wav2VecConfig
from upstreams.wav2vec.model import Wav2VecUpstream
from upstreams.wav2vec.pretrain import TRAIN_PRESETS, Wav2VecPretrainConfig, build_pretraining

SMALL = Wav2VecConfig(
    conv_channels=12, conv_kernels=(10, 8, 4), conv_strides=(5, 4, 2), width=20, context_kernels=(2, 3)
)


@pytest.mark.parametrize("balanced", [False, True])
def test_the_loss_is_that_of_the_paper_pair_by_pair(balanced: bool) -> None:
    generator = make_generator("future")
    frames = [17, 9, 4, 1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = FuturePrediction(7, 5, steps=4, offset=2, distractors=6, balanced=balanced)
    context, features = (torch.randn(4, 17, width, generator=generator) for width in (7, 5))
    valid = torch.tensor(frames)
    output = head(context, features, valid, generator=make_generator(1))
    others = sample_other_frames(valid, 17, 6, generator=make_generator(1))
    loss, pairs, right = plain_future_loss(head, context, features, frames, others)
    assert (int(output.sample_size), int(output.metrics["accuracy"])) == (pairs, right)
    assert pairs == sum(max(n - 2 - k, 0) for n in frames for k in range(4))
    assert float(output.loss_sum.detach()) == pytest.approx(loss, rel=1e-6, abs=1e-5)
    parts = output.metrics["positive_loss"] + output.metrics["negative_loss"]
    torch.testing.assert_close(parts, output.loss_sum.detach(), rtol=1e-6, atol=0)


def test_negatives_are_other_valid_frames_of_the_same_utterance_and_all_of_them() -> None:
    frames = torch.tensor([9, 4, 2, 1])
    others = sample_other_frames(frames, 9, 400, generator=make_generator(0))
    for row, count in enumerate(frames.tolist()):
        for t in range(count):
            drawn = set(others[row, t].tolist())
            assert drawn == (set(range(count)) - {t} if count > 1 else {0})
    counts = torch.bincount(others[0, 4], minlength=9).float()
    assert counts[4] == 0
    assert (counts[torch.arange(9) != 4] > 20).all()  # 50 are expected


def test_gradients_are_those_of_autograd_through_the_plain_formula() -> None:
    generator = make_generator("gradients")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = FuturePrediction(4, 3, steps=3, offset=1, distractors=2)
    context = torch.randn(2, 8, 4, generator=generator, requires_grad=True)
    features = torch.randn(2, 8, 3, generator=generator, requires_grad=True)
    frames = torch.tensor([8, 5])
    ours = torch.autograd.grad(
        head(context, features, frames, generator=make_generator(2)).loss_sum, [context, features]
    )
    others = sample_other_frames(frames, 8, 2, generator=make_generator(2))
    predicted = (head.projection(context).view(2, 8, 3, 3) + head.bias).unbind(2)
    total = torch.zeros(())
    for row, count in enumerate((8, 5)):
        for step in range(3):
            for ahead in range(1 + step, count):
                h = predicted[step][row, ahead - 1 - step]
                scores = torch.stack([features[row, ahead], *features[row, others[row, ahead]]]) @ h
                labels = torch.tensor([1.0, 0.0, 0.0])
                total = total + F.binary_cross_entropy_with_logits(scores, labels, reduction="sum")
    for a, b in zip(ours, torch.autograd.grad(total, [context, features]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert (ours[0][1, 4:] == 0).all()  # from where nothing lies ahead
    assert (ours[1][1, 5:] == 0).all()


def _without_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("speechssl.frontend.conv_group_norm", "speechssl.encoder.causal_conv"):
        monkeypatch.setattr(f"{place}.group_norm", lambda x, lengths, norm: x)


@pytest.mark.parametrize("published", [False, True])
def test_no_context_hears_a_sample_of_what_it_predicts(published: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The norms' statistics aside, which are of the whole utterance as published."""
    _without_norms(monkeypatch)
    config = Wav2VecConfig(conv_channels=8, width=8) if published else SMALL
    upstream = build_upstream("wav2vec", config, seed=0)
    assert isinstance(upstream, Wav2VecUpstream)
    head = build_pretraining(upstream, Wav2VecPretrainConfig(), Labelling()).prediction
    hop = upstream.frontend.hop
    samples = 60 * hop
    lengths = torch.tensor([samples])
    waveform = 0.1 * torch.randn(1, samples, generator=make_generator(3))
    t = 20
    later = waveform.clone()
    later[:, (t + head.offset) * hop :] = 0.3  # from the first sample of the first features that are predicted
    contexts, features = [], []
    with torch.no_grad():
        for w in (waveform, later):
            z, frames = upstream.extract_features(w, lengths)
            contexts.append(upstream.contextualize(z, frames)[0])
            features.append(z[0].T)
    assert torch.equal(contexts[0][: t + 1], contexts[1][: t + 1])
    assert not torch.equal(features[0][t + head.offset], features[1][t + head.offset])
    if published:
        assert head.offset == 3  # 465 samples of 160


def test_frames_beyond_an_utterance_are_neither_scored_nor_drawn() -> None:
    upstream = build_upstream("wav2vec", SMALL, seed=0)
    assert isinstance(upstream, Wav2VecUpstream)
    objective = build_pretraining(upstream, Wav2VecPretrainConfig(prediction_steps=3, num_negatives=4), Labelling())
    waveform = 0.1 * torch.randn(2, 4_000, generator=make_generator(5))
    lengths = torch.tensor([4_000, 1_900])
    counts = upstream.output_lengths(lengths).tolist()
    offset = receptive_frames(SMALL.conv_kernels, SMALL.conv_strides)
    output = objective(PretrainInputs(waveform, lengths), make_generator(0))
    assert int(output.sample_size) == sum(n - offset - k for n in counts for k in range(3))
    # Alone, with the same draws, the second utterance gives what it gives within the batch.
    frames = upstream.output_lengths(lengths)
    others = sample_other_frames(frames, counts[0], 4, generator=make_generator(0))
    with torch.no_grad():
        total = 0.0
        for row, count in enumerate(counts):
            z, valid = upstream.extract_features(waveform[row : row + 1, : lengths[row]], lengths[row : row + 1])
            context = upstream.contextualize(z, valid)
            loss, *_ = plain_future_loss(
                objective.prediction, context, z.transpose(1, 2), [count], others[row : row + 1]
            )
            total += loss
    assert float(output.loss_sum.detach()) == pytest.approx(total, rel=1e-5)
    std = standard_deviation(output.metrics["target_moments"])
    assert int(output.metrics["target_moments"][0, 0]) == sum(counts)
    assert float(std) > 0


def test_the_head_begins_as_fairseqs_transposed_convolution() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = FuturePrediction(64, 48, steps=12)
        theirs = torch.nn.ConvTranspose2d(64, 48, (1, 12))
    assert sum(p.numel() for p in head.parameters()) == sum(p.numel() for p in theirs.parameters())
    for ours, other in ((head.projection.weight, theirs.weight), (head.bias, theirs.bias)):
        assert other is not None
        assert float(ours.detach().abs().max()) == pytest.approx(float(other.detach().abs().max()), rel=0.1)
        assert float(ours.detach().std()) == pytest.approx(float(other.detach().std()), rel=0.15)


def test_settings_that_predict_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 step"):
        FuturePrediction(4, 4, steps=0)


def test_the_published_optimisation_and_the_sizes() -> None:
    train = TRAIN_PRESETS["wav2vec_large"]
    assert learning_rate(500, train) == pytest.approx(5e-3)
    assert learning_rate(200_250, train) == pytest.approx(2.5e-3, rel=1e-3)
    with torch.device("meta"):
        tiny, hubert = (build_upstream(f, find_preset(f"{f}_tiny")[1], seed=0) for f in ("wav2vec", "hubert"))
    sizes = [sum(p.numel() for p in u.parameters()) for u in (tiny, hubert)]
    assert tiny.frame_rate == hubert.frame_rate == 50.0
    assert 0.8 < sizes[0] / sizes[1] < 1.25
    assert find_preset("wav2vec_large")[1].conv_strides == (5, 4, 2, 2, 2, 1, 1)
    assert pretrain_config("wav2vec_large")[1].objective.prediction_steps == 12
