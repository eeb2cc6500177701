"""NPC's loss and its batch norms, against torch's own on the valid frames alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speechssl.data.batching import make_generator
from speechssl.encoder.batch_norm import FrameBatchNorm, batch_norms, set_learning, update_batch_norms
from speechssl.loading import build_upstream
from speechssl.metric.tallies import summarize
from speechssl.objective import Labelling, PretrainInputs
from upstreams.npc.config import PRESETS
from upstreams.npc.pretrain import PRETRAIN_PRESETS, TRAIN_PRESETS, NpcPretrainConfig, NpcPretraining

SIZES = (16_000, 9_000, 12_345)


def make(config: NpcPretrainConfig, **changes: Any) -> NpcPretraining:
    upstream: Any = build_upstream("npc", replace(PRESETS["npc_tiny"], width=24, **changes), seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NpcPretraining(upstream, config, Labelling())


def inputs(*sizes: int) -> PretrainInputs:
    generator = make_generator("waveform")
    waveforms = [0.1 * torch.randn(n, generator=generator) * torch.linspace(0.1, 1.0, n) for n in sizes]
    return PretrainInputs(nn.utils.rnn.pad_sequence(waveforms, batch_first=True), torch.tensor(sizes))


@pytest.mark.parametrize("groups", [0, 4])
def test_the_loss_is_the_error_of_the_frame_itself_predicted_from_the_likeliest_entries(groups: int) -> None:
    objective = make(NpcPretrainConfig(groups=groups, entries=16)).eval()
    given = inputs(*SIZES)
    output = objective(given, make_generator(0))
    total, count = torch.zeros(()), 0
    for waveform, size in zip(given.waveform, SIZES, strict=True):
        values, frames = objective.upstream.extract_features(waveform[None, :size], torch.tensor([size]))
        seen = objective.upstream.encode(values, frames, layers=frozenset({5}))[5][0]
        if objective.quantizer is not None:
            parts = []
            for part, one in zip(seen.chunk(groups, dim=1), objective.quantizer.slices, strict=True):
                scores = part @ one.projection[0].weight.T + one.projection[0].bias  # type: ignore[index, union-attr, operator]
                parts.append(one.codebook[0][scores.argmax(dim=1)])  # type: ignore[index]
            seen = torch.cat(parts, dim=1)
        total = total + (objective.prediction(seen) - values[0]).abs().mean(dim=1).sum()
        count += len(seen)
    assert int(output.sample_size) == count
    torch.testing.assert_close(output.loss_sum, total, rtol=1e-5, atol=1e-4)
    if groups:
        values_logged = summarize({"sample_size": output.sample_size, **output.metrics})
        assert groups <= values_logged["code_perplexity"] <= groups * 16


def test_the_prediction_of_a_frame_has_no_gradient_from_the_five_frames_around_it() -> None:
    objective = make(NpcPretrainConfig(groups=0), activation="tanh").eval()
    values = torch.randn(1, 40, 80, generator=make_generator(0), requires_grad=True)
    hidden = objective.upstream.encode(values, torch.tensor([40]), layers=frozenset({5}))[5]
    gradient = torch.autograd.grad(objective.prediction(hidden)[0, 20].sum(), values)[0][0].abs().sum(dim=1)
    assert torch.nonzero(gradient).flatten().tolist() == [t for t in range(9, 32) if abs(t - 20) > 2]


def normed(norm: FrameBatchNorm, rows: list[Tensor]) -> Tensor:
    """Normalises rows (T, C), padded with something loud, and returns them one after the other."""
    lengths = [len(row) for row in rows]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=50.0).transpose(1, 2)
    padding = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    out = norm(padded, padding if padding.any() else None).transpose(1, 2)
    return torch.cat([row[:n] for row, n in zip(out, lengths, strict=True)])


def test_a_batch_norm_in_training_is_torchs_over_the_valid_frames() -> None:
    generator = make_generator(0)
    rows = [3.0 + 2.0 * torch.randn(n, 5, generator=generator) for n in (30, 12, 7)]
    ours, theirs = FrameBatchNorm(5), nn.BatchNorm1d(5)
    with torch.no_grad():
        for module in (ours, theirs):
            module.weight.copy_(torch.linspace(0.5, 2.0, 5))
            module.bias.copy_(torch.linspace(-1.0, 1.0, 5))
    set_learning([ours])
    for _ in range(3):  # of one micro-batch each
        flat = torch.cat(rows).requires_grad_()
        parts = list(flat.split([30, 12, 7]))
        mine, yours = normed(ours, parts), theirs(flat)
        torch.testing.assert_close(mine, yours, rtol=1e-5, atol=1e-5)
        target = torch.randn(49, 5, generator=generator)
        grads = [torch.autograd.grad((x * target).sum(), flat, retain_graph=True)[0] for x in (mine, yours)]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            update_batch_norms({"": ours}, dict)
        torch.testing.assert_close(ours.mean, theirs.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.variance, theirs.running_var, rtol=1e-5, atol=1e-6)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(normed(ours, rows), theirs(torch.cat(rows)), rtol=1e-5, atol=1e-5)


def test_the_running_statistics_are_those_of_all_micro_batches_of_a_step() -> None:
    generator = make_generator(0)
    rows = [torch.randn(n, 5, generator=generator) * n for n in (30, 12, 7, 25)]
    norm = FrameBatchNorm(5, momentum=1.0)
    set_learning([norm])
    with torch.no_grad():
        for part in (rows[:2], rows[2:]):
            normed(norm, part)
        assert torch.equal(norm.mean, torch.zeros(5))  # all micro-batches of a step are normalised with equal state
        update_batch_norms({"": norm}, dict)
    together = torch.cat(rows)
    torch.testing.assert_close(norm.mean, together.mean(dim=0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.variance, together.var(dim=0), rtol=1e-5, atol=1e-5)


def test_outside_of_pretraining_a_batch_norm_in_training_mode_keeps_utterances_apart() -> None:
    norm = FrameBatchNorm(5).train()
    x = torch.randn(2, 5, 9, generator=make_generator(0))
    torch.testing.assert_close(norm(x, None)[:1], norm(x[:1], None), rtol=0, atol=0)
    assert norm.gathered is None
    objective = make(NpcPretrainConfig()).train()
    objective(inputs(*SIZES), make_generator(0))
    assert len(batch_norms(objective.upstream)) == 8
    assert all(norm.gathered is not None for norm in batch_norms(objective.upstream).values())


def test_padding_does_not_change_the_loss_of_training_either() -> None:
    objective = make(NpcPretrainConfig(groups=0)).train()
    given = inputs(*SIZES)
    longer = PretrainInputs(nn.functional.pad(given.waveform, (0, 8_000), value=0.3), given.lengths)
    one, two = objective(given, make_generator(0)), objective(longer, make_generator(0))
    torch.testing.assert_close(one.loss_sum, two.loss_sum, rtol=1e-5, atol=1e-4)


def test_presets_train_as_the_authors_do_in_crops_of_fifteen_seconds() -> None:
    assert PRETRAIN_PRESETS.keys() == TRAIN_PRESETS.keys() == PRESETS.keys()
    upstream = make(NpcPretrainConfig()).upstream
    for train in TRAIN_PRESETS.values():
        assert int(upstream.output_lengths(torch.tensor([round(train.max_seconds * 16_000)]))) == 1500
        assert train.batch_seconds / train.max_seconds >= 32 == train.max_batch
