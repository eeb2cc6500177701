"""HuBERT's loss against torchaudio's HuBERTPretrainModel, and what intermediate-layer supervision adds to it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchaudio
from safetensors.torch import save_file
from torch import Tensor, nn

from speechssl.data.batching import make_generator
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.loading import build_upstream, load_upstream
from speechssl.masking.span import sample_span_mask
from speechssl.objective import Labelling, PretrainInputs
from speechssl.train.run import pretrain_config
from speechssl.upstream import normalize_waveform
from upstreams.hubert.config import PRESETS
from upstreams.hubert.pretrain import HubertPretrainConfig, HubertPretraining

LABELS = 11
CONVS = [(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] * 2


class FixedMask(nn.Module):
    """In the place of torchaudio's mask generator."""

    def __init__(self, theirs: nn.Module, mask: Tensor) -> None:
        super().__init__()
        self.mask_embedding = theirs.mask_embedding
        self.mask = mask

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        x[self.mask] = self.mask_embedding
        return x, self.mask


def torchaudios(*, layer_norm: bool) -> Any:
    """A small model of a published width, which its weights need to tell the heads."""
    masking: dict[str, Any] = {
        f"mask_{kind}{name}": value for kind in ("", "channel_")
        for name, value in (("prob", 0.0), ("selection", "static"), ("other", 0.0), ("length", 10), ("min_space", 1))
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = torchaudio.models.hubert_pretrain_model(
            **masking, no_mask_overlap=False, no_mask_channel_overlap=False,
            extractor_mode="layer_norm" if layer_norm else "group_norm", extractor_conv_layer_config=CONVS,
            extractor_conv_bias=layer_norm, encoder_embed_dim=768, encoder_projection_dropout=0.0,
            encoder_pos_conv_kernel=8, encoder_pos_conv_groups=8, encoder_num_layers=2, encoder_num_heads=12,
            encoder_attention_dropout=0.0, encoder_ff_interm_features=40, encoder_ff_interm_dropout=0.0,
            encoder_dropout=0.0, encoder_layer_norm_first=layer_norm, encoder_layer_drop=0.0, skip_masked=False,
            skip_nomask=False, num_classes=LABELS, final_dim=24, feature_grad_mult=None,
        )  # fmt: skip
        for parameter in model.parameters():
            parameter.data.add_((0.2 if parameter.dim() == 1 else 0.03) * torch.randn(parameter.shape))
    return model.eval()


def ours(theirs: Any, folder: Path, **changes: Any) -> HubertPretraining:
    """The objective with the weights of theirs."""
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, folder / "model.safetensors")
    upstream = load_upstream(folder / "model.safetensors")
    config = HubertPretrainConfig(final_dim=24, **changes)
    objective = HubertPretraining(upstream, config, Labelling((LABELS,), (50.0,)))  # type: ignore[arg-type]
    generator = theirs.logit_generator
    objective.prediction.final_proj.load_state_dict(generator.final_proj.state_dict())  # type: ignore[union-attr]
    objective.prediction.label_embeddings[0].data.copy_(generator.label_embeddings)  # type: ignore[index,union-attr]
    return objective.eval()


def inputs_and_mask(objective: HubertPretraining, lengths: list[int]) -> tuple[PretrainInputs, Tensor, Tensor]:
    """Noise with labels, and the mask and valid frames that the objective will have of generator 5."""
    size = torch.tensor(lengths)
    waveform = 0.3 * torch.randn(len(lengths), max(lengths), generator=make_generator(0))
    for row, length in zip(waveform, lengths, strict=True):
        row[length:] = 0
    frames = objective.upstream.output_lengths(size)
    codes = torch.randint(LABELS, (len(lengths), int(frames.max())), generator=make_generator(1))
    mask = sample_span_mask(frames, prob=0.8, span=10, min_spans=2, generator=make_generator(5))
    return PretrainInputs(waveform, size, (codes,)), mask, frames


@pytest.mark.parametrize(
    ("layer_norm", "lengths"),  # torchaudio's group norm hears the padding, so that base is compared without
    [(False, [16_000, 16_000]), (True, [16_000, 16_000]), (True, [16_000, 11_300])],
)
def test_the_loss_terms_are_torchaudios(layer_norm: bool, lengths: list[int], tmp_path: Path) -> None:
    theirs = torchaudios(layer_norm=layer_norm)
    losses = {w: ours(theirs, tmp_path, unmasked_weight=w) for w in (0.0, 0.25)}
    inputs, mask, frames = inputs_and_mask(losses[0.0], lengths)
    theirs.mask_generator = FixedMask(theirs.mask_generator, mask)
    waveform = normalize_waveform(inputs.waveform, inputs.lengths) if layer_norm else inputs.waveform
    hidden, shown, penalty = theirs(waveform, inputs.codes[0], inputs.lengths)
    masked_loss, unmasked_loss = (
        F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64), reduction="sum")
        for logits in (hidden, shown)
    )
    features = theirs.wav2vec2.feature_extractor(waveform, inputs.lengths)[0]
    # torchaudio's penalty takes the padding in; ours is of the valid frames.
    valid = torch.cat([row[:n] for row, n in zip(features, frames.tolist(), strict=True)]).square().mean()
    if lengths[0] == lengths[1]:
        torch.testing.assert_close(valid, penalty)
    for weight, objective in losses.items():
        output = objective(inputs, make_generator(5))
        size = output.sample_size
        assert size.item() == mask.sum().item() == len(hidden)
        expected = (masked_loss + weight * unmasked_loss) / size + 10.0 * valid
        torch.testing.assert_close(output.loss_sum / size, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(output.metrics["masked_loss"] / size, masked_loss / size, rtol=0, atol=1e-4)
        torch.testing.assert_close(output.metrics["features_penalty"] / size, valid, rtol=0, atol=1e-5)


def test_the_gradient_is_torchaudios_too(tmp_path: Path) -> None:
    theirs = torchaudios(layer_norm=False)
    objective = ours(theirs, tmp_path)
    objective.upstream.config = replace(objective.upstream.config, feature_grad_mult=1.0)  # theirs was made without
    inputs, mask, _ = inputs_and_mask(objective, [16_000, 16_000])
    theirs.mask_generator = FixedMask(theirs.mask_generator, mask)
    hidden, _, penalty = theirs(inputs.waveform, inputs.codes[0], inputs.lengths)
    loss = F.cross_entropy(hidden, hidden.new_zeros(len(hidden), dtype=torch.int64)) + 10.0 * penalty
    loss.backward()
    output = objective(inputs, make_generator(5))
    (output.loss_sum / output.sample_size).backward()
    block = theirs.wav2vec2.encoder.transformer.layers[0]
    pairs = (
        (objective.upstream.frontend.convs[0].weight, theirs.wav2vec2.feature_extractor.conv_layers[0].conv.weight),
        (objective.upstream.mask_embedding, theirs.mask_generator.mask_embedding),
        (objective.prediction.label_embeddings[0], theirs.logit_generator.label_embeddings),  # type: ignore[index,union-attr]
        (objective.upstream.encoder.blocks[0].fc1.weight, block.feed_forward.intermediate_dense.weight),
    )
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5)


def small(**changes: Any) -> HubertPretraining:
    config = replace(PRESETS["hubert_tiny"], width=32, heads=4, ffn_width=48, depth=3, pos_kernel=7)
    upstream = build_upstream("hubert", config, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        settings = HubertPretrainConfig(final_dim=16, **changes)
        return HubertPretraining(upstream, settings, Labelling((7, 5), (100.0, 50.0))).eval()  # type: ignore[arg-type]


def batch() -> PretrainInputs:
    codes = tuple(torch.randint(k, (2, n), generator=make_generator(k)) for k, n in ((7, 100), (5, 50)))
    waveform = 0.1 * torch.randn(2, 16_000, generator=make_generator(0))
    return PretrainInputs(waveform, torch.tensor([16_000, 12_000]), codes)


@pytest.mark.parametrize("average", [False, True])
def test_each_supervised_layer_has_a_head_and_a_share_of_the_loss(average: bool) -> None:
    objective, inputs = small(layers=(1, -1), average_layers=average), batch()
    output = objective(inputs, make_generator(5))
    features, frames = objective.upstream.extract_features(inputs.waveform, inputs.lengths)
    mask = sample_span_mask(
        frames, prob=0.8, span=10, min_spans=2, generator=make_generator(5), max_length=features.size(1)
    )
    states = objective.upstream.encode(features, frames, layers=frozenset({1, 3}), mask=mask)
    T = features.size(1)
    targets = [inputs.codes[0][:, ::2][:, :T][mask], inputs.codes[1][:, :T][mask]]  # 100 Hz: every second label
    losses = {layer: objective.heads[str(layer)](states[layer][mask], targets).loss_sum for layer in (1, 3)}
    expected = sum(losses.values()) / (2 if average else 1)
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(output.metrics["layer_1_masked_loss"], losses[1])
    torch.testing.assert_close(output.metrics["masked_loss"], losses[3])
    assert output.sample_size.item() == mask.sum().item()


def test_layers_that_are_not_there_or_lack_the_last_are_refused() -> None:
    with pytest.raises(SpeechsslError, match=r"must lie in 0\.\.3"):
        small(layers=(4, 12))
    with pytest.raises(ConfigError, match="last layer, 3"):
        small(layers=(1, 2))


def test_residuals_between_blocks_with_norms_before_are_normalised_first() -> None:
    config = replace(PRESETS["hubert_tiny"], width=32, heads=4, ffn_width=48, depth=3, pre_norm=True)
    upstream = build_upstream("hubert", config, seed=0)
    objective = HubertPretraining(upstream, HubertPretrainConfig(layers=(1, -1)), Labelling((7,), (50.0,)))  # type: ignore[arg-type]
    assert list(objective.norms) == ["1"]
    assert not small(layers=(1, -1)).norms


def test_labels_that_differ_only_behind_the_shown_frames_change_nothing() -> None:
    objective, inputs = small(), batch()
    expected = objective(inputs, make_generator(5)).loss_sum
    odd = inputs.codes[0].clone()
    odd[:, 1::2] = (odd[:, 1::2] + 1) % 7
    torch.testing.assert_close(
        objective(replace(inputs, codes=(odd, inputs.codes[1])), make_generator(5)).loss_sum, expected
    )
    even = inputs.codes[0].clone()
    even[:, ::2] = (even[:, ::2] + 1) % 7
    changed = objective(replace(inputs, codes=(even, inputs.codes[1])), make_generator(5)).loss_sum
    assert (changed - expected).abs() > 1


@pytest.mark.parametrize(
    ("preset", "steps", "rate", "clip", "seconds"),
    [
        ("hubert_base_iter1", 250_000, 5e-4, 10.0, 2_800.0),
        ("hubert_base", 400_000, 5e-4, 10.0, 2_800.0),
        ("hubert_base_ils", 400_000, 5e-4, 10.0, 2_800.0),
        ("hubert_large", 400_000, 1.5e-3, 1.0, 7_200.0),
        ("hubert_xlarge", 400_000, 3e-3, 1.0, 5_760.0),
    ],
)
def test_the_presets_have_fairseqs_numbers(preset: str, steps: int, rate: float, clip: float, seconds: float) -> None:
    train = pretrain_config(preset)[1].train
    assert (train.steps, train.learning_rate, train.clip_norm) == (steps, rate, clip)
    assert train.batch_seconds * train.batches_per_step == seconds
    assert (train.warmup, train.weight_decay, train.beta2, train.eps) == (0.08, 0.01, 0.98, 1e-6)


def test_settings_of_mixing_can_be_given_by_name() -> None:
    config = pretrain_config("hubert_tiny", overrides=["objective.mixing.prob=0.3", "objective.layers=[2,6]"])[1]
    assert (config.objective.mixing.prob, config.objective.layers) == (0.3, (2, 6))
    with pytest.raises(ConfigError, match="prob"):
        pretrain_config("hubert_tiny", overrides=["objective.mixing.prob=1.5"])
