"""BEST-RQ's objective: targets, masks and loss against slow computations, and what its checkpoints hold."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from speechssl.data.batching import make_generator
from speechssl.errors import ConfigError
from speechssl.metric.codes import perplexity
from speechssl.metric.tallies import summarize
from speechssl.objective import Labelling, PretrainInputs
from speechssl.quantizer.random_projection import RandomProjectionConfig, RandomProjectionQuantizer
from upstreams.best_rq.config import PRESETS
from upstreams.best_rq.mask import sample_starts_mask
from upstreams.best_rq.model import build
from upstreams.best_rq.pretrain import PRETRAIN_PRESETS, BestRqPretrainConfig, BestRqPretraining

SHRINK = {"width": 32, "ffn_width": 48, "heads": 4, "depth": 2}


def make(preset="best_rq_tiny_conformer", **changes):
    """A shrunk objective, equal at each call, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        upstream = build(dataclasses.replace(PRESETS[preset], stem_channels=(4, 4), **SHRINK))
        config = dataclasses.replace(PRETRAIN_PRESETS[preset], **{"entries": 64, **changes})
        return BestRqPretraining(upstream, config, Labelling()).eval()


def batch(number=0):
    """Noise whose tilt and level move about, as those of speech do."""
    generator = make_generator("best_rq", number)
    waveform = torch.randn(3, 24_000, generator=generator)
    blocks = torch.randn(3, 2, 31, generator=generator).repeat_interleave(800, dim=2)[:, :, :24_000]
    smooth = F.avg_pool1d(waveform[:, None], 9, stride=1, padding=4)[:, 0]
    waveform = 0.05 * blocks[:, 0].exp() * (waveform + 4 * blocks[:, 1] * smooth)
    lengths = torch.tensor([24_000, 20_000, 11_111])
    waveform[torch.arange(24_000)[None, :] >= lengths[:, None]] = 0
    return PretrainInputs(waveform, lengths)


def normalized_mel(objective, inputs, row):
    """The stacked log-mel of one utterance, each band normalised over it: (T, S M), computed alone."""
    mel = objective.upstream.log_mel(inputs.waveform[row : row + 1, : int(inputs.lengths[row])])[0]
    mel = (mel - mel.mean(dim=0)) / mel.std(dim=0, correction=0)
    stack = objective.upstream.config.stack
    return mel[: len(mel) // stack * stack].reshape(len(mel) // stack, -1)


def captured(objective, inputs, seed=3):
    """The output, the features before hiding, those that were encoded, and the last hidden states."""
    seen = {}
    extract, encode = objective.upstream.extract_features, objective.upstream.encode

    def spy(features, frames, **rest):
        states = encode(features, frames, **rest)
        seen.update(hidden=features, states=states)
        return states

    objective.upstream.encode = spy
    output = objective(inputs, make_generator(seed))
    objective.upstream.encode = encode
    return output, *extract(inputs.waveform, inputs.lengths), seen["hidden"], seen["states"][objective.depth]


@pytest.mark.parametrize("preset", ["best_rq_tiny", "best_rq_tiny_conformer", "best_rq_base"])
def test_the_loss_is_cross_entropy_on_the_codes_of_frames_that_are_hidden_whole(preset):
    objective, inputs = make(preset, codebooks=2), batch()
    output, features, frames, hidden, states = captured(objective, inputs)
    stack, quantizer = objective.upstream.config.stack, objective.quantizer
    loss, count = 0.0, 0
    for row in range(3):
        mel = normalized_mel(objective, inputs, row)
        changed = (features[row] != hidden[row]).view(-1, stack, 80).all(dim=2)  # (T, S)
        for time in range(int(frames[row])):
            if not changed[time].all():
                continue
            count += 1
            logits = objective.prediction.final_proj(states[row, time]).split(64)
            for projection, codebook, scores in zip(quantizer.projection, quantizer.codebook, logits, strict=True):
                code = F.cosine_similarity((mel[time] @ projection)[None], codebook, dim=1).argmax()
                loss += float(F.cross_entropy(scores[None], code[None]).detach()) / 2
        assert not changed[int(frames[row]) :].any()
    assert float(output.sample_size) == count > 0
    assert float(output.loss_sum.detach()) == pytest.approx(loss, rel=1e-4)


def test_hidden_frames_are_noise_and_the_others_are_untouched():
    objective = make(mask_prob=0.02)
    _, features, _, hidden, _ = captured(objective, batch())
    changed = (features != hidden).view(3, -1, 80)
    assert (changed.all(dim=2) == changed.any(dim=2)).all()  # whole mel frames
    noise = hidden[features != hidden]
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.01)
    assert float(noise.std()) == pytest.approx(0.1, abs=0.01)


def test_masks_cover_what_the_paper_says():
    lengths = torch.tensor([4000, 4000, 1200, 30, 1])
    masks = torch.stack(
        [sample_starts_mask(lengths, 4000, prob=0.01, span=40, generator=make_generator(n)) for n in range(40)]
    )
    share = masks[:, :2].float().mean()
    assert float(share) == pytest.approx(1 - 0.99**40, abs=0.02)  # 33 %
    assert not masks[:, torch.arange(4000) >= lengths[:, None]].any()
    assert masks.any(dim=2).all()  # at least one span each
    aligned = sample_starts_mask(lengths[:2], 4000, prob=0.15, span=4, grid=4, generator=make_generator(0))
    frames = aligned.view(2, 1000, 4)
    assert (frames.all(dim=2) == frames.any(dim=2)).all()
    assert float(aligned.float().mean()) == pytest.approx(0.6, abs=0.03)  # SpeechBrain
    runs = sample_starts_mask(lengths[:1], 4000, prob=0.001, span=7, generator=make_generator(1))[0].tolist()
    sizes = [len(run) for run in "".join("x" if m else " " for m in runs).split()]
    assert sizes
    assert min(sizes[:-1]) >= 7
    with pytest.raises(ConfigError, match="mask_prob"):
        sample_starts_mask(lengths, 4000, prob=0.5, span=4, grid=4, generator=make_generator(0))


def test_without_normalisation_few_codes_are_used():
    """Trap 30: the level of log-mel energies, the same in all frames, decides the direction of their projection."""
    objective, inputs = make(), batch()
    quantizer = RandomProjectionQuantizer(RandomProjectionConfig(), generator=make_generator(0))
    normalized = torch.cat([normalized_mel(objective, inputs, row) for row in range(3)])
    mel = objective.upstream.log_mel(inputs.waveform[:1] * 2**15)[0, :148].reshape(37, -1)  # as Kaldi hears 16 bits
    raw, good = (float(perplexity(quantizer(x).usage[0])) for x in (mel, normalized[:37]))
    assert good > 25
    assert raw < good / 2, (raw, good)


def test_projection_and_codebook_are_in_the_checkpoint_and_define_the_targets():
    first, other = make(), make(seed=1)
    inputs = batch()
    assert {"quantizer.projection", "quantizer.codebook"} <= first.state_dict().keys()
    assert not any("quantizer" in name for name, _ in first.trained_parameters())
    assert torch.equal(first.quantizer.projection, make().quantizer.projection)
    frames = normalized_mel(first, inputs, 0)
    assert not torch.equal(first.quantizer.encode(frames), other.quantizer.encode(frames))
    other.load_state_dict(first.state_dict())
    assert torch.equal(first.quantizer.encode(frames), other.quantizer.encode(frames))
    losses = [float(o(inputs, make_generator(2)).loss_sum.detach()) for o in (first, other)]
    assert losses[0] == losses[1]


def test_corpus_statistics_come_from_the_first_batches():
    objective, inputs = make(normalization="corpus"), [batch(0), batch(1)]
    objective.begin_run(inputs)
    mel = torch.cat(
        [
            mel[: len(mel) // 4 * 4]
            for given in inputs
            for row in range(3)
            for mel in objective.upstream.log_mel(given.waveform[row : row + 1, : int(given.lengths[row])])
        ]
    )
    torch.testing.assert_close(objective.mean, mel.mean(dim=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(objective.deviation, mel.std(dim=0), rtol=1e-3, atol=1e-4)
    before = objective(inputs[0], make_generator(0))
    objective.mean += 100.0
    assert not torch.equal(objective(inputs[0], make_generator(0)).loss_sum, before.loss_sum)  # the targets use them


def test_a_mel_rvq_is_trained_first_and_then_frozen():
    objective = make(targets="mel_rvq", codebooks=2, entries=16, code_width=4, fit_steps=200)
    fresh = {name: value.clone() for name, value in objective.quantizer.state_dict().items()}
    objective.begin_run([batch(n) for n in range(3)])
    assert not torch.equal(objective.quantizer.state_dict()["stages.0.codebook"], fresh["stages.0.codebook"])
    assert not any("quantizer" in name for name, _ in objective.trained_parameters())
    again = make(targets="mel_rvq", codebooks=2, entries=16, code_width=4, fit_steps=200)
    again.begin_run([batch(n) for n in range(3)])  # another process
    for name, value in objective.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    state = {name: value.clone() for name, value in objective.quantizer.state_dict().items()}
    output = objective.train()(batch(), make_generator(0))
    output.loss_sum.backward()
    objective.end_step(1, dict)
    assert all(torch.equal(value, objective.quantizer.state_dict()[name]) for name, value in state.items())
    values = summarize({"sample_size": output.sample_size, **output.metrics})
    assert values["code_perplexity"] > 4
    assert values["code_2_perplexity"] > 4
    frames = torch.cat([normalized_mel(objective, batch(n), row) for n in range(3) for row in range(3)])
    decoded = objective.quantizer.decode(objective.quantizer.encode(frames))
    assert float((decoded - frames).square().mean() / frames.square().mean()) < 0.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": "kmeans"}, "`targets` must be 'random_projection' or 'mel_rvq', but is 'kmeans'"),
        ({"normalization": "none"}, "`normalization` must be 'utterance' or 'corpus', but is 'none'"),
        ({"coverage": 0.0}, "`coverage` must be > 0 and <= 1, but is 0.0"),
        ({"entries": 0}, "`entries` must be positive"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_defaults_are_the_papers():
    config = BestRqPretrainConfig()
    assert (config.mask_prob, config.mask_length, config.noise_deviation) == (0.01, 40, 0.1)
    assert (config.entries, config.code_width, config.codebooks) == (8192, 16, 1)
