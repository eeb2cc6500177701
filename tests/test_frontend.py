"""Frontends and encoder blocks against torchaudio, torch's own modules and slow loops."""

import pytest
import torch
import torch.nn.functional as F
import torchaudio
from torchaudio.compliance import kaldi

from speechssl.encoder.attention import SelfAttention, attend_in_chunks
from speechssl.encoder.positional import ConvPositionalEmbedding
from speechssl.encoder.transformer import EncoderConfig, TransformerEncoder, sample_skipped_blocks
from speechssl.errors import ConfigError
from speechssl.frontend.conv_waveform import ConvWaveform, window_statistics
from speechssl.frontend.grad_multiply import multiply_gradient
from speechssl.frontend.log_mel import LogMel, LogMelConfig, Mfcc, deltas, normalize_frames, with_deltas
from speechssl.loading import load_upstream


@pytest.fixture(scope="module")
def speech():
    """Pulses through two resonances with a hum and an offset: the dynamics of speech, made without a file."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(24_000) / 16_000
    source = (torch.sin(2 * torch.pi * (120 + 30 * time) * time) > 0.95).float()
    source += 0.02 * torch.randn(time.shape, generator=generator)
    for hertz in (600.0, 1_800.0):
        source = torchaudio.functional.bandpass_biquad(source, 16_000, hertz, Q=3.0) + 0.3 * source
    return (0.2 * source / source.abs().max() + 0.001)[None, :]  # (1, S)


@pytest.mark.parametrize("bands", [23, 40, 80])
def test_log_mel_equals_kaldi(speech, bands):
    ours = LogMel(LogMelConfig(num_mel_bins=bands))(speech)[0]
    theirs = kaldi.fbank(speech, num_mel_bins=bands)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4


def test_mfcc_equals_kaldi(speech):
    ours = Mfcc()(speech)[0]
    theirs = kaldi.mfcc(speech, num_ceps=13, use_energy=False)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("samples", [400, 559, 560, 561, 719, 720])
def test_frames_lie_within_the_waveform_as_kaldi_counts_them(speech, samples):
    log_mel = LogMel(LogMelConfig())
    theirs = kaldi.fbank(speech[:, :samples], num_mel_bins=80)
    assert int(log_mel.output_lengths(torch.tensor([samples]))) == log_mel(speech[:, :samples]).size(1) == len(theirs)


def test_log_mel_stays_float32_under_autocast_and_in_a_bfloat16_model(speech):
    expected = LogMel(LogMelConfig())(speech)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(LogMel(LogMelConfig())(speech), expected)
    assert torch.equal(LogMel(LogMelConfig()).bfloat16()(speech), expected)


def test_deltas_equal_torchaudio_for_each_utterance_of_a_batch():
    features = torch.randn(3, 50, 7, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([50, 20, 1])
    ours = with_deltas(features, lengths)
    for row, frames in enumerate(lengths.tolist()):
        alone = features[row, :frames].T
        first = torchaudio.functional.compute_deltas(alone)
        second = torchaudio.functional.compute_deltas(first)
        assert (ours[row, :frames].T - torch.cat((alone, first, second))).abs().max() <= 1e-6
    assert deltas(features, lengths).shape == features.shape


def test_normalised_frames_have_mean_0_and_deviation_1_over_the_valid_ones():
    features = 5 + 3 * torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(0))
    out = normalize_frames(features, torch.tensor([60, 25]))
    for row, frames in ((0, 60), (1, 25)):
        valid = out[row, :frames]
        assert valid.mean(dim=0).abs().max() <= 1e-5
        assert (valid.std(dim=0, correction=0) - 1).abs().max() <= 1e-5
    assert (out[1, 25:] == 0).all()


def test_silence_gives_zeros_and_not_rounding_noise():
    for name in ("fbank", "mfcc"):
        out = load_upstream(name)(torch.zeros(1, 16_000)).hidden_states[0]
        assert (out == 0).all(), name


@pytest.mark.parametrize("name", ["fbank", "mfcc"])
def test_baselines_equal_the_recipe_of_s3prl(speech, name):
    upstream = load_upstream(name)
    base = kaldi.fbank(speech, num_mel_bins=80) if name == "fbank" else kaldi.mfcc(speech, use_energy=False)
    compute = torchaudio.transforms.ComputeDeltas()
    first = compute(base.T[None])[0].T
    expected = torch.cat((base, first, compute(first.T[None])[0].T), dim=1)
    expected = (expected - expected.mean(dim=0)) / (1e-10 + expected.std(dim=0))
    ours = upstream(speech).hidden_states[0][0]
    assert ours.shape == expected.shape == (148, 240 if name == "fbank" else 39)
    assert upstream.frame_rate == 100.0
    assert (ours - expected).abs().max() <= 1e-3
    raw = load_upstream(f"{name}_no_cmvn")(speech).hidden_states[0][0]
    assert (raw[:, : base.size(1)] - base).abs().max() <= 1e-4 * base.abs().max()


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("bias", [False, True])
def test_conv_waveform_equals_plain_convolutions_and_norms_of_each_utterance_alone(norm, bias, grad):
    generator = torch.Generator().manual_seed(0)
    conv = ConvWaveform(8, kernels=(10, 3, 2), strides=(5, 2, 2), norm=norm, bias=bias)
    for parameter in conv.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    lengths = torch.tensor([9_000, 1_234, 60])
    waveform = 0.3 + 0.1 * torch.randn(3, 9_000, generator=generator) * (torch.arange(9_000) < lengths[:, None])
    with torch.set_grad_enabled(grad):
        found = conv(waveform, lengths)
    for row, frames in enumerate(conv.output_lengths(lengths).tolist()):
        x = waveform[row : row + 1, None, : lengths[row]]
        for index, layer in enumerate(conv.convs):
            x = F.conv1d(x, layer.weight, layer.bias, stride=layer.stride)
            if norm == "layer":
                x = F.layer_norm(x.transpose(1, 2), (8,), conv.norms[index].weight, conv.norms[index].bias).mT
            elif index == 0:
                x = F.group_norm(x, 8, conv.norms[0].weight, conv.norms[0].bias)
            x = F.gelu(x)
        assert (found[row, :frames] - x[0].T).abs().max() <= 1e-5


def test_statistics_of_windows_equal_a_plain_loop():
    waveform = 0.5 + torch.randn(2, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    mean, covariance = window_statistics(waveform, torch.tensor([400, 57]), kernel=10, stride=5)
    for row, samples in enumerate((400, 57)):
        windows = torch.stack([waveform[row, i : i + 10] for i in range(0, samples - 9, 5)]).double()
        torch.testing.assert_close(mean[row], windows.mean(dim=0), rtol=0, atol=1e-12)
        torch.testing.assert_close(covariance[row], torch.cov(windows.T, correction=0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("samples", "frames"), [(400, 1), (16_000, 49), (64_600, 201), (250_000, 781), (320_000, 999)])
def test_conv_waveform_has_the_published_number_of_frames(samples, frames):
    kernels, strides = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
    conv = ConvWaveform(4, kernels=kernels, strides=strides, norm="group")
    assert conv.hop == 320
    assert int(conv.output_lengths(torch.tensor([samples]))) == frames
    if samples < 20_000:
        assert conv(torch.randn(1, samples), torch.tensor([samples])).shape == (1, frames, 4)


def test_conv_waveform_rejects_unequal_lists_and_unknown_norms():
    with pytest.raises(ConfigError, match="equally long"):
        ConvWaveform(4, kernels=(3, 3), strides=(2,), norm="group")
    with pytest.raises(ConfigError, match="'group' or 'layer'"):
        ConvWaveform(4, kernels=(3,), strides=(2,), norm="batch")


def test_multiplied_gradient_is_scaled_and_the_value_is_not():
    x = torch.randn(5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = multiply_gradient(x, 0.1)
    assert torch.equal(x, y)
    y.square().sum().backward()
    assert torch.allclose(x.grad, 0.1 * 2 * x.detach(), atol=1e-7)


@pytest.mark.parametrize("frames", [7, 300])
def test_attention_in_chunks_equals_torch(frames, monkeypatch):
    monkeypatch.setattr("speechssl.encoder.attention.CHUNK", 3 * frames * frames)
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 5, 4, frames, 16, generator=generator)
    lengths = torch.tensor([frames, frames // 2, 1, 3, frames])
    attended = (torch.arange(frames) < lengths[:, None])[:, None, None, :]
    for mask in (None, attended):
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        assert (attend_in_chunks(query, key, value, mask) - expected).abs().max() <= 1e-5


def test_self_attention_equals_torchs_module():
    generator = torch.Generator().manual_seed(0)
    ours = SelfAttention(32, heads=4)
    theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.output.weight,
            "out_proj.bias": ours.output.bias,
        }
    )
    x = torch.randn(2, 9, 32, generator=generator)
    padding = torch.arange(9) >= torch.tensor([[9], [4]])
    expected, _ = theirs(x, x, x, key_padding_mask=padding)
    assert (ours(x, ~padding[:, None, None, :]) - expected).abs().max() <= 1e-5
    half = ours.bfloat16()(x.bfloat16(), ~padding[:, None, None, :])
    assert (half.float() - expected).abs().max() <= 0.03


@pytest.mark.parametrize("kernel", [31, 128])
def test_positions_keep_the_length_and_see_half_a_kernel_each_way(kernel):
    position = ConvPositionalEmbedding(16, kernel=kernel, groups=4)
    x = torch.randn(1, 200, 16, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 100] += 1.0
    moved = torch.nonzero((position(x) - position(changed)).abs().sum(dim=2)[0] > 1e-6).flatten()
    assert position(x).shape == x.shape
    assert int(moved.min()) == 100 - (kernel - 1 - kernel // 2)
    assert int(moved.max()) == 100 + kernel // 2


def test_skipped_blocks_pass_their_input_on():
    encoder = TransformerEncoder(EncoderConfig(width=16, depth=4, heads=2, ffn_width=32, pos_kernel=5)).eval()
    x = torch.randn(1, 10, 16, generator=torch.Generator().manual_seed(0))
    states = encoder(x, None, layers=range(5), skipped_blocks=frozenset({1, 3}))
    assert torch.equal(states[2], states[1])
    assert torch.equal(states[4], states[3])
    assert not torch.equal(states[3], states[2])


def test_layer_drop_repeats_with_its_generator_and_has_its_rate():
    draws = [sample_skipped_blocks(1000, 0.2, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert draws[0] == draws[1]
    assert 150 <= len(draws[0]) <= 250
    assert sample_skipped_blocks(12, 0.0, generator=torch.Generator()) == frozenset()


def test_checkpointed_activations_give_the_same_gradients():
    x = torch.randn(2, 10, 16, generator=torch.Generator().manual_seed(0))
    grads = []
    for checkpointed in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            encoder = TransformerEncoder(EncoderConfig(width=16, depth=2, heads=2, ffn_width=32, pos_kernel=5))
            encoder.checkpoint_activations = checkpointed
            torch.manual_seed(1)
            encoder(x, None, layers=[2])[2].square().sum().backward()
        grads.append(encoder.blocks[0].fc1.weight.grad)
    assert torch.equal(*grads)
