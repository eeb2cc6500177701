"""Recognition-synthesis conversion: log-mel, networks, losses and discriminators, beside slow plain references."""

import math
from collections.abc import Mapping
from dataclasses import replace

import librosa
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstreams.voice_conversion.synthesis.adversarial import Disentanglement, Segments, cut, reverse_gradient
from downstreams.voice_conversion.synthesis.config import (
    NETWORKS,
    AdversarialConfig,
    DiscretiseConfig,
    NetworkConfig,
    SynthesisConfig,
)
from downstreams.voice_conversion.synthesis.discretise import Discretiser, load_discretiser
from downstreams.voice_conversion.synthesis.encoder import resample, resampled_lengths
from downstreams.voice_conversion.synthesis.loss import SynthesisBatch, synthesis_loss
from downstreams.voice_conversion.synthesis.mel import RECIPE, fit_statistics, log10_mel, mel_lengths, to_vocoder
from downstreams.voice_conversion.synthesis.model import SynthesisModel, build
from downstreams.voice_conversion.synthesis.official import from_s3prl_vc
from downstreams.voice_conversion.synthesis.scan import lstmp_scan
from downstreams.voice_conversion.synthesis.speakers import PooledStatistics, check_independent, mean_embedding
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.targets.kmeans import KMeans
from speechssl.vocoder import MelConfig, log_mel

MEL_RATE = 93.75
BANDS, WIDTH, SPEAKER = 6, 5, 4
TINY = {
    name: replace(network, hidden=8, conv_channels=7, prenet_width=min(network.prenet_width, 9))
    for name, network in NETWORKS.items()
}


# --- a reference: the published network, one utterance and one frame at a time, in float64 ---


def _shapes(config: NetworkConfig, size: int, bands: int, speaker_size: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of S3PRL-VC."""
    hidden, channels, kernel = config.hidden, config.conv_channels, config.conv_kernel
    shapes: dict[str, tuple[int, ...]] = {"target_mean": (bands,), "target_scale": (bands,)}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    def lstm(name: str, inputs: int, outputs: int, ending: str) -> None:
        for kind, shape in (("weight_ih", (inputs,)), ("weight_hh", (outputs,)), ("bias_ih", ()), ("bias_hh", ())):
            shapes[f"{name}.{kind}{ending}"] = (4 * outputs, *shape)

    if config.encoder == "taco2":
        linear("encoder.input_layer", size, channels)
        for n in range(config.conv_layers):
            shapes[f"encoder.convs.{n}.0.weight"] = (channels, channels, kernel)
            for part in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"encoder.convs.{n}.1.{part}"] = (channels,)
            shapes[f"encoder.convs.{n}.1.num_batches_tracked"] = ()
        for ending in ("_l0", "_l0_reverse"):
            lstm("encoder.blstm", channels, hidden // 2, ending)
    else:
        linear("encoder.0", size, hidden)
    for n in range(config.prenet_layers):
        linear(f"prenet.prenet.{n}.0", bands if n == 0 else config.prenet_width, config.prenet_width)
    before = config.prenet_width if config.prenet_layers else bands
    for n in range(config.lstmp_layers):
        if config.autoregressive:
            lstm(f"lstmps.{n}.cell", hidden + (before if n == 0 else 0), hidden, "")
        else:
            lstm(f"lstmps.{n}.layer", hidden, hidden, "_l0")
        linear(f"lstmps.{n}.pj", hidden, hidden)
    linear("proj", hidden, bands)
    if config.speaker != "none":
        linear("spk_emb_projection", speaker_size + (hidden if config.speaker == "concat" else 0), hidden)
    return shapes


def _official(config: NetworkConfig) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(3)
    found = {}
    for name, shape in _shapes(config, WIDTH, BANDS, SPEAKER).items():
        values = 0.4 * torch.randn(shape, generator=draws)
        found[name] = values.abs() + 0.5 if name.endswith(("var", "scale")) else values
        if name.endswith("tracked"):
            found[name] = torch.tensor(7)
    return found


class _Reference:
    def __init__(self, config: NetworkConfig, weights: Mapping[str, Tensor]) -> None:
        self.config = config
        self.w = {name: tensor.double() for name, tensor in weights.items()}

    def linear(self, name: str, x: Tensor) -> Tensor:
        return self.w[f"{name}.weight"] @ x + self.w[f"{name}.bias"]

    def cell(self, name: str, x: Tensor, h: Tensor, c: Tensor, ending: str = "") -> tuple[Tensor, Tensor]:
        w = {kind: self.w[f"{name}.{kind}{ending}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        i, f, g, o = (w["weight_ih"] @ x + w["bias_ih"] + w["weight_hh"] @ h + w["bias_hh"]).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def encode(self, features: Tensor) -> list[Tensor]:
        scale = MEL_RATE / 50
        frames = F.interpolate(features.double().T[None], scale_factor=scale)[0].T
        if self.config.encoder == "feedforward":
            return [self.linear("encoder.0", x).relu() for x in frames]
        x = torch.stack([self.linear("encoder.input_layer", x) for x in frames]).T[None]
        for n in range(self.config.conv_layers):
            x = F.conv1d(x, self.w[f"encoder.convs.{n}.0.weight"], padding=self.config.conv_kernel // 2)
            norm = [self.w[f"encoder.convs.{n}.1.{p}"] for p in ("running_mean", "running_var", "weight", "bias")]
            x = F.batch_norm(x, *norm, eps=1e-5).relu()
        frames, half = x[0].T, self.config.hidden // 2
        both = []
        for ending, order in (("_l0", 1), ("_l0_reverse", -1)):
            h = c = torch.zeros(half, dtype=torch.float64)
            states = []
            for frame in list(frames)[::order]:
                h, c = self.cell("encoder.blstm", frame, h, c, ending)
                states.append(h)
            both.append(states[::order])
        return [torch.cat(pair) for pair in zip(*both, strict=True)]

    def join(self, states: list[Tensor], speaker: Tensor | None) -> list[Tensor]:
        if speaker is None:
            return states
        unit = speaker.double() / speaker.double().norm()
        if self.config.speaker == "add":
            return [s + self.linear("spk_emb_projection", unit) for s in states]
        return [self.linear("spk_emb_projection", torch.cat((s, unit))) for s in states]

    def __call__(self, features: Tensor, speaker: Tensor | None, targets: Tensor | None = None) -> Tensor:
        config, found = self.config, []
        states = self.join(self.encode(features), speaker)
        width = config.prenet_width if config.prenet_layers else BANDS
        draws = torch.rand(
            len(states), max(config.prenet_layers, 1), width, generator=torch.Generator().manual_seed(config.seed)
        )
        kept = (draws >= config.prenet_dropout).double() / (1 - config.prenet_dropout)
        h, c = ([torch.zeros(config.hidden, dtype=torch.float64)] * config.lstmp_layers for _ in range(2))
        before = torch.zeros(BANDS, dtype=torch.float64)
        for t, state in enumerate(states):
            x = state
            if config.autoregressive:
                own = before if config.prenet_layers else before * kept[t, 0]
                for n in range(config.prenet_layers):
                    own = self.linear(f"prenet.prenet.{n}.0", own).relu() * kept[t, n]
                x = torch.cat((state, own))
            for n in range(config.lstmp_layers):
                name, ending = (f"lstmps.{n}.cell", "") if config.autoregressive else (f"lstmps.{n}.layer", "_l0")
                out, c[n] = self.cell(name, x, h[n], c[n], ending)
                x = self.linear(f"lstmps.{n}.pj", out).tanh()
                h[n] = x if config.autoregressive else out  # only the cells feed the projection back
            found.append(self.linear("proj", x))
            told = found[-1] if targets is None else targets[t].double()
            before = (told - self.w["target_mean"]) / self.w["target_scale"]
        return torch.stack(found)


def _model(config: NetworkConfig, weights: Mapping[str, Tensor] | None = None) -> SynthesisModel:
    torch.manual_seed(0)
    model = build(
        SynthesisConfig(config), WIDTH, 50.0, mel_rate=MEL_RATE, mean=torch.zeros(BANDS), scale=torch.ones(BANDS),
        speaker_size=None if config.speaker == "none" else SPEAKER,
    )  # fmt: skip
    if weights is not None:
        model.load_state_dict(from_s3prl_vc(weights))
    return model.eval()


def _speaker(config: NetworkConfig, seed: int = 5) -> Tensor | None:
    if config.speaker == "none":
        return None
    return torch.randn(SPEAKER, generator=torch.Generator().manual_seed(seed))


CASES = [
    *TINY.values(), replace(TINY["taco2_ar"], speaker="concat"), replace(TINY["simple_ar"], speaker="add"),
    replace(TINY["simple"], speaker="concat"),
]  # fmt: skip
NAMES = ["simple", "simple_ar", "taco2_ar", "taco2_ar_concat", "simple_ar_add", "simple_concat"]


@pytest.mark.parametrize("config", CASES, ids=NAMES)
def test_conversion_is_that_of_the_published_network(config: NetworkConfig) -> None:
    weights = _official(config)
    model, speaker = _model(config, weights), _speaker(config)
    features = torch.randn(23, WIDTH, generator=torch.Generator().manual_seed(1))
    expected = _Reference(config, weights)(features, speaker)
    found = model.convert(features, speaker)
    assert found.shape == (43, BANDS)  # floor(23 * 1.875)
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=0)
    assert torch.equal(found, model.convert(features, speaker))


@pytest.mark.parametrize("name", ["simple_ar", "taco2_ar"])
def test_teacher_forcing_shows_the_decoder_the_true_frames(name: str) -> None:
    config = replace(TINY[name], prenet_dropout=0.0)
    weights = _official(config)
    features = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(1))
    mel = torch.randn(30, BANDS, generator=torch.Generator().manual_seed(2))
    expected = _Reference(config, weights)(features, None, mel)
    found = _model(config, weights)(features[None], torch.tensor([12]), targets=mel[None])[0]
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=0)


def test_gradients_of_the_recurrence_are_those_of_finite_differences() -> None:
    draws = torch.Generator().manual_seed(0)
    shapes = ((3, 2, 8), (8, 2), (2, 2), (2,))
    given = [torch.randn(s, generator=draws, dtype=torch.float64, requires_grad=True) for s in shapes]
    kept = torch.tensor([[0.0, 1.25], [1.25, 1.25]], dtype=torch.float64).expand(3, 2, 2)
    assert torch.autograd.gradcheck(lambda *x: lstmp_scan(*x, kept), given)  # type: ignore[arg-type]  # four of them
    assert torch.autograd.gradcheck(lambda *x: lstmp_scan(*x, None), given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(NETWORKS))
def test_published_sizes_have_the_published_number_of_weights(name: str) -> None:
    with torch.device("meta"):
        model = build(
            SynthesisConfig(NETWORKS[name]), 768, 50.0, mel_rate=MEL_RATE, mean=torch.zeros(80), scale=torch.ones(80)
        )
    shapes = _shapes(NETWORKS[name], 768, 80, 256)
    empty = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in from_s3prl_vc(empty).items()}
    learned = sum(p.numel() for p in model.parameters())
    assert learned == {"simple": 5_162_576, "simple_ar": 5_326_416, "taco2_ar": 28_641_360}[name]
    with pytest.raises(SpeechsslError, match=r"'attention\.query'"):
        from_s3prl_vc({"attention.query": torch.zeros(1)})


@pytest.mark.parametrize("config", CASES[:4], ids=NAMES[:4])
def test_padding_does_not_change_a_conversion(config: NetworkConfig) -> None:
    model = _model(config, _official(config))
    utterances = [torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(n)) for n in (9, 20, 3)]
    lengths = torch.tensor([len(u) for u in utterances])
    speaker = _speaker(config)
    padded = nn.utils.rnn.pad_sequence(utterances, batch_first=True, padding_value=50.0)
    batched = model(padded, lengths, None if speaker is None else speaker.expand(3, -1))
    for row, one in enumerate(utterances):
        size = int(model.mel_lengths(lengths[row]))
        torch.testing.assert_close(batched[row, :size], model.convert(one, speaker), atol=1e-5, rtol=0)


def test_padding_changes_neither_the_loss_nor_its_gradients() -> None:
    config = replace(TINY["taco2_ar"], conv_dropout=0.0, prenet_dropout=0.0, lstmp_dropout=0.0)
    model = _model(config).train()
    batch = _batch()
    found = []
    for extra in (0, 7):
        wider = replace(
            batch, features=F.pad(batch.features, (0, 0, 0, extra), value=9.0), mel=F.pad(batch.mel, (0, 0, 0, extra))
        )
        model.zero_grad()
        out = synthesis_loss(model, wider)
        out.loss_sum.backward()
        found.append((out.loss_sum.detach(), out.sample_size, [p.grad.clone() for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frame_rate", [50.0, 100.0, 43.0])
def test_frames_are_repeated_as_nearest_interpolation_does_it(frame_rate: float) -> None:
    lengths = torch.tensor([40, 17, 2])
    states = torch.randn(3, 40, 2)
    scale = MEL_RATE / frame_rate
    found = resample(states, lengths, scale)
    for row, length in enumerate(lengths.tolist()):
        alone = F.interpolate(states[row, :length].T[None], scale_factor=scale)[0].T
        assert len(alone) == int(resampled_lengths(lengths[row], scale))
        assert torch.equal(found[row, : len(alone)], alone)


# --- log-mel ---


def _waveforms() -> list[Tensor]:
    draws = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(n, generator=draws) for n in (24_000, 9_000)]


def test_log_mel_is_that_of_float64_and_librosas_filters() -> None:
    waveforms = _waveforms()
    lengths = torch.tensor([len(w) for w in waveforms])
    padded = nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    found = log10_mel(padded, lengths)
    filters = librosa.filters.mel(sr=24_000, n_fft=1024, n_mels=80, fmin=80, fmax=7600)
    for row, waveform in enumerate(waveforms):
        mirrored = np.pad(waveform.double().numpy(), 512, mode="reflect")  # as librosa.stft frames it
        frames = np.lib.stride_tricks.sliding_window_view(mirrored, 1024)[::256]
        spectrum = np.abs(np.fft.rfft(frames * np.hanning(1025)[:-1]))
        expected = torch.from_numpy(np.log10(np.maximum(1e-10, spectrum @ filters.T))).float()
        assert len(expected) == int(mel_lengths(lengths[row]))
        torch.testing.assert_close(found[row, : len(expected)], expected, atol=1e-5, rtol=0)
    assert float(log10_mel(torch.zeros(1, 2_000)).max()) == -10.0
    with pytest.raises(SpeechsslError, match="512 samples"):
        log10_mel(torch.zeros(1, 512))


def test_statistics_are_those_of_all_frames() -> None:
    mels = [torch.randn(n, BANDS) * 3 + 2 for n in (7, 40)]
    mels = [torch.cat((m[:, :-1], torch.full((len(m), 1), -4.0)), dim=1) for m in mels]  # one band never changes
    mean, scale = fit_statistics(iter(mels))
    every = torch.cat(mels).double()
    expected = every.std(dim=0, correction=0)
    expected[-1] = 1.0
    torch.testing.assert_close(mean, every.mean(dim=0).float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(scale, expected.float(), atol=1e-6, rtol=0)


def test_vocoder_is_given_the_log_mel_that_it_was_trained_on() -> None:
    waveform = _waveforms()[0]
    # Its frame t is centred half a hop later than ours, so ours are taken of a waveform that begins there.
    ours = to_vocoder(log10_mel(waveform[None, RECIPE.hop // 2 :])[0], RECIPE)
    theirs = log_mel(waveform[None], RECIPE.sample_rate, RECIPE)[0]
    torch.testing.assert_close(ours[3:80], theirs[3:80], atol=1e-4, rtol=0)
    assert float(to_vocoder(torch.full((1, 80), -10.0), RECIPE).max()) == pytest.approx(math.log(1e-5))
    with pytest.raises(ConfigError, match="22050"):
        to_vocoder(torch.zeros(1, 80), MelConfig())


# --- loss ---


def _batch(*, speaker: bool = False, external: Tensor | None = None) -> SynthesisBatch:
    draws = torch.Generator().manual_seed(4)
    features, mel = torch.randn(4, 16, WIDTH, generator=draws), torch.randn(4, 33, BANDS, generator=draws)
    return SynthesisBatch(
        features, torch.tensor([16, 11, 6, 14]), mel, torch.tensor([33, 18, 12, 20]),
        torch.randn(4, SPEAKER, generator=draws) if speaker else None, external,
    )  # fmt: skip


def test_loss_is_the_mean_error_of_the_frames_that_both_sides_have() -> None:
    config = TINY["simple"]
    weights = _official(config)
    model, batch = _model(config, weights), _batch()
    out = synthesis_loss(model, batch)
    errors = []
    for row in range(4):
        found = model.convert(batch.features[row, : batch.lengths[row]])
        size = min(len(found), int(batch.mel_lengths[row]))
        error = (found[:size] - batch.mel[row, :size]).abs() / weights["target_scale"]
        errors.extend(error.mean(dim=1).tolist())
    assert int(out.sample_size) == len(errors)
    assert float(out.loss_sum.detach()) == pytest.approx(sum(errors), rel=1e-5)


@pytest.mark.parametrize("name", ["simple", "taco2_ar"])
def test_training_teaches_what_conversion_then_says(name: str) -> None:
    torch.manual_seed(0)
    letters = torch.randint(4, (6, 12))  # which of four sounds each stretch of three frames is
    features = F.one_hot(letters, WIDTH).float().repeat_interleave(3, dim=1)
    lengths = torch.full((6,), 36)
    mel = resample(torch.randn(4, BANDS)[letters].repeat_interleave(3, dim=1), lengths, 1.875)
    batch = SynthesisBatch(features, lengths, mel, torch.full((6,), mel.size(1)))
    model = _model(replace(TINY[name], hidden=32, conv_channels=24, prenet_width=16, prenet_dropout=0.2))
    model.train()
    errors = []
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2, weight_decay=0.0)
    for _ in range(50):
        out = synthesis_loss(model, batch)
        loss = out.loss_sum / out.sample_size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.4 * errors[0]
    said = torch.stack([model.convert(f) for f in features])
    assert float((said - mel).abs().mean()) < 0.4 * float((mel - mel.mean(dim=(0, 1))).abs().mean())


# --- any-to-any ---


def test_embedding_decides_the_voice_and_only_where_there_are_several() -> None:
    config = replace(TINY["taco2_ar"], speaker="concat")
    model = _model(config, _official(config))
    features = torch.randn(8, WIDTH)
    one, other = (_speaker(config, seed) for seed in (1, 2))
    assert one is not None and other is not None
    said = model.convert(features, one)
    torch.testing.assert_close(said, model.convert(features, 3 * one), atol=1e-5, rtol=0)  # unit length is what counts
    assert float((said - model.convert(features, mean_embedding([one, other]))).abs().max()) > 1e-2
    with pytest.raises(ConfigError, match="any-to-any"):
        model.convert(features)
    with pytest.raises(ConfigError, match="any-to-one"):
        _model(TINY["simple"]).convert(features, one)
    with pytest.raises(ConfigError, match=r"\(B, 4\)"):
        model.convert(features, torch.zeros(7))


def test_pooled_statistics_hear_no_padding_and_are_standardised_over_training() -> None:
    encoder = PooledStatistics(WIDTH)
    utterances = [torch.randn(n, WIDTH) * 2 + torch.arange(WIDTH) for n in (30, 12, 25, 40)]
    lengths = torch.tensor([len(u) for u in utterances])
    padded = nn.utils.rnn.pad_sequence(utterances, batch_first=True, padding_value=100.0)
    encoder(padded[:2], lengths[:2])
    encoder(padded[2:], lengths[2:])
    found = encoder.eval()(padded, lengths)
    plain = torch.stack([torch.cat((u.mean(dim=0), u.std(dim=0, correction=0))) for u in utterances])
    expected = (plain - plain.mean(dim=0)) / plain.std(dim=0, correction=0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    check_independent(encoder, ["resemblyzer"])
    with pytest.raises(ConfigError, match="judges the conversions"):
        check_independent(encoder, ["pooled_statistics"])


def test_discretised_features_are_the_nearest_centroids(tmp_path_factory: pytest.TempPathFactory) -> None:
    frames = torch.randn(600, 6)
    discretiser = Discretiser(6, DiscretiseConfig(clusters=(5, 9), partitions=2))
    discretiser.fit(frames, generator=torch.Generator().manual_seed(0))
    features = torch.randn(2, 7, 6)
    found = discretiser(features)
    expected = []
    for number, quantizer in enumerate(discretiser.quantizers):  # member 0 has parts 0 and 1, then member 1
        part = features[:, :, 3 * (number % 2) : 3 * (number % 2) + 3]
        nearest = (part[:, :, None] - quantizer.centroids).square().sum(dim=3).argmin(dim=2)
        expected.append(quantizer.centroids[nearest])
    torch.testing.assert_close(found, torch.cat(expected, dim=2), atol=0, rtol=0)
    centroid_error = (found[:, :, 6:] - features).square().mean()
    assert float(centroid_error) < 0.8 * float(features.square().mean())  # fitted, not left at zero

    folder = tmp_path_factory.mktemp("kmeans")
    KMeans(torch.randn(8, 6)).save(folder)
    loaded = load_discretiser([folder])
    assert torch.equal(loaded(features)[0, 0], loaded.quantizers[0].decode(loaded.quantizers[0].encode(features[0]))[0])

    config = SynthesisConfig(TINY["simple"], DiscretiseConfig(clusters=(5, 9), partitions=2))
    model = build(config, 6, 50.0, mel_rate=MEL_RATE, mean=torch.zeros(BANDS), scale=torch.ones(BANDS))
    assert model.discretiser is not None
    model.discretiser.load_state_dict(discretiser.state_dict())
    near = features[0] + 1e-4 * torch.randn(7, 6)
    torch.testing.assert_close(model.convert(features[0]), model.convert(near), atol=0, rtol=0)


# --- discriminators ---

ADVERSARIAL = AdversarialConfig(content_weight=0.3, mel_weight=0.7, width=8, layers=2, kernel=3, segment=10)
EXTERNAL = torch.tensor([False, True, False, True])


def _grads(module: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in module.parameters()]


def test_reversed_gradients_come_back_with_the_other_sign() -> None:
    x = torch.randn(5, requires_grad=True)
    reverse_gradient(x, 0.25).square().sum().backward()
    torch.testing.assert_close(x.grad, -0.25 * 2 * x.detach(), atol=0, rtol=0)


def test_encoder_unlearns_what_the_discriminator_learns() -> None:
    torch.manual_seed(0)
    game = Disentanglement(8, BANDS, ADVERSARIAL)
    lengths = torch.tensor([12, 7, 9, 5])
    content = torch.randn(4, 12, 8, requires_grad=True)
    game.content_loss(content, lengths, EXTERNAL).backward()
    # Plainly: one logit per utterance, the mean of its frames' scores alone; both kinds weigh the same.
    own = content.detach().clone().requires_grad_()
    logits = [game.content(own[row : row + 1, :n], torch.tensor([n])).mean() for row, n in enumerate(lengths.tolist())]
    errors = [F.softplus(-s if e else s) for s, e in zip(logits, EXTERNAL.tolist(), strict=True)]
    expected = torch.stack(errors).mean()
    learned = torch.autograd.grad(expected, [own, *game.content.parameters()])
    torch.testing.assert_close(content.grad, -0.3 * learned[0], atol=1e-6, rtol=1e-4)
    for found, plain in zip(game.content.parameters(), learned[1:], strict=True):
        torch.testing.assert_close(found.grad, plain, atol=1e-6, rtol=1e-4)


def test_each_side_of_the_game_over_log_mel_learns_its_own_part() -> None:
    torch.manual_seed(0)
    game = Disentanglement(8, BANDS, ADVERSARIAL)
    made = torch.randn(2, 10, BANDS, requires_grad=True)
    real = Segments(torch.randn(2, 10, BANDS), torch.tensor([10, 8]))
    judged, passed = game.mel_losses(real, Segments(made, torch.tensor([10, 6])))
    judged.backward()
    assert made.grad is None and all(float(g.abs().max()) > 0 for g in _grads(game.mel))
    game.zero_grad()
    passed.backward()
    assert not any(bool(g.any()) for g in _grads(game.mel))
    assert made.grad is not None and bool(made.grad[0].any()) and not bool(made.grad[1, 6:].any())


@pytest.mark.parametrize("name", list(TINY))
def test_external_speech_is_heard_by_the_discriminators_alone(name: str) -> None:
    torch.manual_seed(0)
    config = replace(TINY[name], conv_dropout=0.0, prenet_dropout=0.0, lstmp_dropout=0.0)
    model = _model(config, _official(config))
    game = Disentanglement(config.hidden, BANDS, ADVERSARIAL)
    batch = _batch(external=EXTERNAL)
    out = synthesis_loss(model, batch, disentanglement=game, generator=torch.Generator().manual_seed(0))
    own = SynthesisBatch(*(x[~EXTERNAL] for x in (batch.features, batch.lengths, batch.mel, batch.mel_lengths)))
    alone = synthesis_loss(model, own)
    assert int(out.sample_size) == int(alone.sample_size)
    torch.testing.assert_close(out.metrics["mel_error"], alone.loss_sum.detach(), atol=1e-4, rtol=1e-5)
    parts = out.metrics
    total = parts["mel_error"] + parts["content_discriminator"] + parts["mel_discriminator"]
    torch.testing.assert_close(out.loss_sum.detach(), total + 0.7 * parts["mel_adversarial"], atol=1e-4, rtol=1e-5)
    out.loss_sum.backward()
    assert all(float(g.abs().max()) > 0 for g in (*_grads(model), *_grads(game)))
    unknown = replace(batch, mel=torch.where(EXTERNAL[:, None, None], torch.nan, batch.mel))  # never read
    again = synthesis_loss(model, unknown, disentanglement=game, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.loss_sum, out.loss_sum)
    with pytest.raises(SpeechsslError, match="together with discriminators"):
        synthesis_loss(model, batch)


def test_segments_are_stretches_of_their_utterances() -> None:
    lengths = torch.tensor([30, 12, 4])
    frames = torch.arange(30.0)[None, :, None].expand(3, -1, 1) + 100 * torch.arange(3)[:, None, None]
    found = cut(frames, lengths, 12, torch.Generator().manual_seed(1))
    assert found.lengths.tolist() == [12, 12, 4]
    for row, size in enumerate(found.lengths.tolist()):
        stretch = found.frames[row, :size, 0] - 100 * row
        assert torch.equal(stretch, stretch[0] + torch.arange(float(size))) and float(stretch[-1]) < lengths[row]
    firsts = {float(cut(frames, lengths, 12, torch.Generator().manual_seed(n)).frames[0, 0, 0]) for n in range(200)}
    assert firsts == set(map(float, range(19)))
