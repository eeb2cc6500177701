"""TERA's alteration and loss against the rules of the paper and of S3PRL's code, applied one utterance at a time."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torchaudio
from torch import Tensor, nn

from speechssl.data.batching import make_generator
from speechssl.errors import ConfigError
from speechssl.loading import build_upstream
from speechssl.loss.reconstruction import reconstruction_loss
from speechssl.masking.alteration import AlterationConfig, alter, sample_band, sample_spans
from speechssl.metric.tallies import standard_deviation
from speechssl.objective import Labelling, PretrainInputs
from upstreams.tera.config import PRESETS, TeraConfig
from upstreams.tera.pretrain import PRETRAIN_PRESETS, TRAIN_PRESETS, TeraPretrainConfig, TeraPretraining

TIME = AlterationConfig(channel_proportion=0.0, noise_prob=0.0)
BAND = AlterationConfig(time_proportion=0.0, noise_prob=0.0)
SMALL = replace(PRESETS["tera_tiny"], width=16, heads=2, ffn_width=24, depth=2)


def features(rows: int, frames: int, channels: int = 80, *, seed: int = 0) -> Tensor:
    return torch.randn(rows, frames, channels, generator=make_generator("features", seed))


def runs(row: Tensor) -> list[int]:
    """Lengths of the runs of True in (T,)."""
    found, current = [], 0
    for value in [*row.tolist(), False]:
        if value:
            current += 1
        elif current:
            found.append(current)
            current = 0
    return found


def make(config: TeraPretrainConfig, model: TeraConfig = SMALL) -> TeraPretraining:
    upstream: Any = build_upstream("tera", model, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TeraPretraining(upstream, config, Labelling()).eval()


def inputs(*sizes: int) -> PretrainInputs:
    generator = make_generator("waveform")
    waveforms = [0.1 * torch.randn(n, generator=generator) * torch.linspace(0.1, 1.0, n) for n in sizes]
    return PretrainInputs(nn.utils.rnn.pad_sequence(waveforms, batch_first=True), torch.tensor(sizes))


def test_spans_are_seven_frames_and_as_many_as_the_proportion_says() -> None:
    lengths = torch.tensor([1500, 700, 97, 70, 23, 8, 7, 3])
    starts: list[int] = []
    for seed in range(200):
        spans, _ = sample_spans(lengths, 1500, TIME, generator=make_generator(seed))
        for row, length in zip(spans, lengths.tolist(), strict=True):
            count = min(round(length * 0.15 / 7), max(length - 7, 1))
            assert not row[length:].any()
            assert all(run >= min(7, length) for run in runs(row))
            assert int(row.sum()) <= 7 * count
            assert (int(row.sum()) == 0) == (count == 0)
        starts += [t for t in range(97) if spans[2, t] and (t == 0 or not spans[2, t - 1])]
    # Starts are drawn from the first n - 7 frames, so the last frame of an utterance is never hidden.
    assert (min(starts), max(starts)) == (0, 97 - 7 - 1)


def test_about_fifteen_percent_of_the_frames_are_in_spans_with_their_overlaps() -> None:
    spans, _ = sample_spans(torch.full((400,), 1500), 1500, TIME, generator=make_generator(0))
    # 32 spans of 7 frames among 1493 starts: a frame is spared by each with 1 - 7 / 1493.
    assert abs(float(spans.float().mean()) - (1 - (1 - 7 / 1493) ** 32)) < 0.003


def test_a_replaced_frame_comes_from_the_stretch_that_belongs_to_the_last_span_over_it() -> None:
    lengths = torch.tensor([90, 41])
    generator = make_generator(5)
    spans, source = sample_spans(lengths, 90, replace(TIME, time_proportion=0.6), generator=generator)
    time = torch.arange(90)
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(source[row][~spans[row]], time[~spans[row]].clamp(max=length - 1))
        assert int(source[row].max()) < length
        shift = (source[row] - time)[spans[row]]
        assert len(shift.unique()) <= round(length * 0.6 / 7)
        assert (shift != 0).any()


def test_eight_in_ten_utterances_are_zeroed_one_is_replaced_and_one_stays() -> None:
    x = features(3000, 60, 2)
    lengths = torch.full((3000,), 60)
    made = alter(x, lengths, TIME, generator=make_generator(0))
    spans = made.mask.all(dim=2)
    zeroed = ((made.features == 0).all(dim=2) | ~spans).all(dim=1)
    same = (made.features == x).flatten(1).all(dim=1)
    shares = [float(s.float().mean()) for s in (zeroed, same, ~zeroed & ~same)]
    for share, expected in zip(shares, (0.8, 0.1, 0.1), strict=True):
        assert abs(share - expected) < 0.02, shares
    assert torch.equal(made.features[~spans], x[~spans])  # nothing else changes
    replaced = ~zeroed & ~same
    others = made.features[replaced][spans[replaced]]  # each is a frame of its own utterance
    rows = torch.nonzero(replaced)[:, 0].repeat_interleave(spans[replaced].sum(dim=1))
    assert (x[rows] == others[:, None]).all(dim=2).any(dim=1).all()


def test_the_band_is_at_most_a_fifth_of_the_channels_and_zero_in_all_frames() -> None:
    band = sample_band((20_000, 80), 0.2, generator=make_generator(0), device=torch.device("cpu"))
    widths = band.sum(dim=1)
    counts = torch.bincount(widths, minlength=17)
    assert len(counts) == 17
    assert (counts / 20_000 - 1 / 17).abs().max() < 0.01
    assert all(len(runs(row)) <= 1 for row in band[:200])
    top = band[:, 79]
    assert not top.any()  # S3PRL leaves one channel above it
    x = features(4, 30)
    lengths = torch.tensor([30, 20, 30, 11])
    made = alter(x, lengths, BAND, generator=make_generator(3))
    for row, length in enumerate(lengths.tolist()):
        channels = made.mask[row, 0]
        assert (made.mask[row, :length] == channels).all()
        assert not made.mask[row, length:].any()
        assert (made.features[row][:, channels] == 0).all()
        assert torch.equal(made.features[row, :length][:, ~channels], x[row, :length][:, ~channels])


def test_noise_of_a_fifth_falls_on_one_utterance_in_seven_and_is_not_predicted() -> None:
    x = torch.zeros(4000, 20, 10)
    config = AlterationConfig(time_proportion=0.0)
    made = alter(x, torch.full((4000,), 20), config, generator=make_generator(0))
    noisy = (made.features != 0).flatten(1).any(dim=1)
    assert abs(float(noisy.float().mean()) - 0.15) < 0.02
    assert abs(float(made.features[noisy].std()) - 0.2) < 0.005
    alone = alter(x, torch.full((4000,), 20), replace(config, channel_proportion=0.0), generator=make_generator(0))
    assert alone.mask.all()  # there is nothing else to predict


@pytest.mark.parametrize("config", [TIME, AlterationConfig()])
def test_nothing_of_what_was_zeroed_can_be_heard(config: AlterationConfig) -> None:
    config = replace(config, zero_prob=1.0, replace_prob=0.0)
    x, lengths = features(4, 60), torch.tensor([60, 33, 60, 50])
    made = alter(x, lengths, config, generator=make_generator(1))
    other = torch.where(made.mask, 9.0, x)
    again = alter(other, lengths, config, generator=make_generator(1))
    assert torch.equal(made.mask, again.mask)
    assert torch.equal(made.features, again.features)
    assert made.mask.any()


def test_the_loss_is_the_mean_error_over_all_hidden_numbers_of_the_batch() -> None:
    objective = make(TeraPretrainConfig())
    given = inputs(16_000, 9_000, 12_345)
    output = objective(given, make_generator(4))
    values, frames = objective.upstream.extract_features(given.waveform, given.lengths)
    made = alter(values, frames, objective.config.alteration, generator=make_generator(4))
    errors = []
    for row, length in enumerate(frames.tolist()):
        hidden = objective.upstream.encoder(made.features[row : row + 1, :length], frames[row : row + 1], layers={2})[2]
        predicted = objective.head(hidden)[0]
        errors.append((predicted - values[row, :length]).abs()[made.mask[row, :length]])
    expected = torch.cat(errors).mean()
    torch.testing.assert_close(output.loss_sum / output.sample_size, expected, rtol=1e-5, atol=1e-6)
    assert float(output.sample_size) == pytest.approx(sum(len(e) for e in errors) / 80)


def test_mockingjay_large_rebuilds_the_linear_spectrum_of_the_hidden_frames() -> None:
    objective = make(PRETRAIN_PRESETS["tera_mockingjay_large"])
    given = inputs(16_000, 16_000)
    output = objective(given, make_generator(4))
    values, frames = objective.upstream.extract_features(given.waveform, given.lengths)
    made = alter(values, frames, objective.config.alteration, generator=make_generator(4))
    predicted = objective.head(objective.upstream.encoder(made.features, frames, layers={2})[2])
    level = given.waveform * 10 ** (-25 / 20) / given.waveform.square().mean(dim=1, keepdim=True).sqrt()
    log = (torchaudio.transforms.Spectrogram(n_fft=400, hop_length=160)(level) + 1e-10).log().transpose(1, 2)
    target = (log - log.mean(dim=1, keepdim=True)) / log.std(dim=1, keepdim=True)
    spans = made.mask[:, :, 0]
    expected = (predicted - target).abs()[spans].mean()
    torch.testing.assert_close(output.loss_sum / output.sample_size, expected, rtol=1e-4, atol=1e-5)
    assert float(output.sample_size) == float(spans.sum())


def test_the_moments_are_those_of_the_frames_that_count() -> None:
    x, y = features(3, 20, 5), features(3, 20, 5, seed=1)
    scored = torch.rand(3, 20, 1, generator=make_generator(0)) < 0.4
    metrics = reconstruction_loss(x, y, scored=scored).metrics
    for name, values in (("prediction_moments", x), ("target_moments", y)):
        expected = values[scored[:, :, 0]].std(dim=0).mean()
        assert float(standard_deviation(metrics[name])) == pytest.approx(float(expected), rel=1e-5)


def test_every_preset_can_be_pretrained_in_crops_that_are_read_in_one_part() -> None:
    assert PRETRAIN_PRESETS.keys() == TRAIN_PRESETS.keys() == PRESETS.keys()
    for name, train in TRAIN_PRESETS.items():
        upstream: Any = build_upstream("tera", replace(PRESETS[name], width=8, heads=2, ffn_width=8, depth=1), seed=0)
        frames = upstream.output_lengths(torch.tensor([round(train.max_seconds * 16_000)]))
        limit = PRESETS[name].max_frames
        assert limit - 2 <= int(frames) <= limit, name
        assert train.batch_seconds / train.max_seconds >= 8 == train.max_batch
        TeraPretraining(upstream, PRETRAIN_PRESETS[name], Labelling())


@pytest.mark.parametrize(
    "change",
    [{"time_proportion": 1.5}, {"noise_prob": -0.1}, {"time_span": 0}, {"zero_prob": 0.9, "replace_prob": 0.2}],
)
def test_settings_that_make_no_sense_are_named(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        AlterationConfig(**change)


def test_a_spectrum_can_be_rebuilt_from_spans_of_its_own_frontend_alone() -> None:
    with pytest.raises(ConfigError, match="channel_proportion"):
        make(TeraPretrainConfig(target="spectrum"))
    with pytest.raises(ConfigError, match="fbank"):
        make(TeraPretrainConfig(TIME, target="spectrum"), replace(SMALL, frontend="fbank", level=None))


@pytest.mark.parametrize("share", [False, True])
def test_activations_that_are_computed_again_give_equal_gradients(share: bool) -> None:
    gradients = []
    for again in (False, True):
        objective = make(TeraPretrainConfig(), replace(SMALL, share_blocks=share, dropout=0.1)).train()
        objective.upstream.encoder.checkpoint_activations = again
        with torch.random.fork_rng():
            torch.manual_seed(0)
            objective(inputs(8_000, 5_000), make_generator(0)).loss_sum.backward()
        gradients.append({name: p.grad for name, p in objective.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert torch.equal(gradient, gradients[1][name]), name  # type: ignore[arg-type]
