"""UniSpeech's objective against a slow one written from the paper and the official order of operations."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.contextual.config import tiny
from speechssl.data.batching import make_generator
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.lengths import lengths_to_padding_mask
from speechssl.loading import build_upstream
from speechssl.loss.contrastive import HiddenFrames
from speechssl.loss.ctc import ctc_loss, fewest_frames
from speechssl.loss.future_prediction import sample_other_frames
from speechssl.masking.span import sample_span_mask
from speechssl.objective import Labelling, PretrainInputs
from speechssl.train.optim import learning_rate
from speechssl.train.run import pretrain_config
from upstreams.unispeech.config import PRESETS, UniSpeechConfig
from upstreams.unispeech.contrast import contrast_everywhere
from upstreams.unispeech.model import UniSpeechUpstream
from upstreams.unispeech.pretrain import UniSpeechPretrainConfig, UniSpeechPretraining, build_pretraining

SMALL = replace(tiny(UniSpeechConfig()), width=24, depth=2, heads=2, ffn_width=32, pos_kernel=7, pos_groups=4)
TOKENS = 5
LENGTHS = torch.tensor([16_000, 9_600])
CONFIG = UniSpeechPretrainConfig(final_dim=16, codebook_entries=6, feature_dropout=0.0, distractors=7)


def make(**changes: float) -> UniSpeechPretraining:
    upstream = build_upstream("unispeech", SMALL, seed=0)
    assert isinstance(upstream, UniSpeechUpstream)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = replace(CONFIG, **changes)  # type: ignore[arg-type]  # numbers all
        return build_pretraining(upstream, config, Labelling(num_tokens=TOKENS)).train()


@pytest.fixture
def inputs() -> PretrainInputs:
    waveform = 0.1 * torch.randn(2, 16_000, generator=make_generator("unispeech"))
    waveform[1, 9_600:] = 0
    tokens = torch.tensor([[1, 3, 3, 2, 4], [2, 1, 0, 0, 0]])
    return PretrainInputs(waveform, LENGTHS, tokens=tokens, token_lengths=torch.tensor([5, 2]))


def plain_ctc(logits: Tensor, tokens: list[int]) -> float:
    """Graves et al. 2006, eq. 6-8: forward variables over the transcript with blanks between, in double precision."""
    probability = logits.double().softmax(dim=1)
    extended = [0]
    for token in tokens:
        extended += [token, 0]
    alpha = [0.0] * len(extended)
    alpha[0] = float(probability[0, 0])
    if tokens:
        alpha[1] = float(probability[0, tokens[0]])
    for frame in probability[1:]:
        before = list(alpha)
        for s, symbol in enumerate(extended):
            total = before[s] + (before[s - 1] if s >= 1 else 0.0)
            if s >= 2 and symbol not in (0, extended[s - 2]):
                total += before[s - 2]
            alpha[s] = total * float(frame[symbol])
    return -math.log(sum(alpha[-2:]))


def test_ctc_sums_over_every_path_that_spells_the_transcript() -> None:
    logits = torch.randn(3, 6, 3, generator=make_generator("ctc"))
    frames, token_lengths = torch.tensor([6, 4, 3]), torch.tensor([3, 2, 0])
    tokens = torch.tensor([[1, 1, 2], [2, 2, 9], [7, 7, 7]])  # what stands beyond the lengths is no token at all
    expected = 0.0
    for row, (count, length) in enumerate(zip(frames.tolist(), token_lengths.tolist(), strict=True)):
        probability = logits[row, :count].double().softmax(dim=1)
        total = 0.0
        for path in itertools.product(range(3), repeat=count):
            spelled = [symbol for symbol, _ in itertools.groupby(path) if symbol != 0]
            if spelled == tokens[row, :length].tolist():
                total += math.prod(float(probability[t, symbol]) for t, symbol in enumerate(path))
        assert plain_ctc(logits[row, :count], tokens[row, :length].tolist()) == pytest.approx(-math.log(total))
        expected -= math.log(total)
    loss, too_short = ctc_loss(logits, frames, tokens, token_lengths)
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert float(too_short) == 0


def test_padding_neither_changes_ctc_nor_gets_a_gradient() -> None:
    logits = torch.randn(2, 9, 4, generator=make_generator("pad"), requires_grad=True)
    frames, tokens = torch.tensor([9, 5]), torch.tensor([[1, 2, 3], [3, 3, 0]])
    lengths = torch.tensor([3, 2])
    loss, _ = ctc_loss(logits, frames, tokens, lengths)
    (gradient,) = torch.autograd.grad(loss, logits)
    alone = sum(
        ctc_loss(logits[r : r + 1, : frames[r]], frames[r : r + 1], tokens[r : r + 1], lengths[r : r + 1])[0]
        for r in range(2)
    )
    torch.testing.assert_close(loss, alone, rtol=1e-6, atol=1e-6)
    assert (gradient[1, 5:] == 0).all()
    assert (gradient[1, :5] != 0).any()


def test_utterances_too_short_for_their_transcripts_are_counted_and_add_nothing() -> None:
    tokens = torch.tensor([[1, 1, 2], [1, 2, 3], [1, 1, 0]])
    token_lengths = torch.tensor([3, 3, 2])
    assert fewest_frames(tokens, token_lengths).tolist() == [4, 3, 3]
    logits = torch.randn(3, 4, 4, generator=make_generator("short"), requires_grad=True)
    loss, too_short = ctc_loss(logits, torch.tensor([3, 3, 4]), tokens, token_lengths)
    assert float(too_short) == 1
    expected = plain_ctc(logits[1, :3].detach(), [1, 2, 3]) + plain_ctc(logits[2].detach(), [1, 1])
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[0] == 0).all()
    assert gradient.isfinite().all()


def quantize_plainly(objective: UniSpeechPretraining, frame: Tensor, noise: Tensor) -> tuple[Tensor, list[int]]:
    """One frame: its target in the context's width (D,), and its codes, in double precision."""
    quantizer = objective.quantizer
    weight, bias = (quantizer.get_parameter(f"projection.0.{n}").double() for n in ("weight", "bias"))
    logits = (weight @ frame.double() + bias).view(2, -1)
    codes = [int((logits[g] + noise[g]).argmax()) for g in range(2)]
    entries = torch.cat([quantizer.codebook[g, codes[g]] for g in range(2)]).double()
    hidden = objective.project_q.weight.double() @ entries + objective.project_q.bias.double()
    return objective.target_proj.weight.double() @ hidden + objective.target_proj.bias.double(), codes


@torch.no_grad()
def test_the_loss_is_the_plain_one_with_the_same_draws(inputs: PretrainInputs) -> None:
    objective = make(mask_channel_prob=0.3, mask_channel_length=3)
    output = objective(inputs, make_generator(0))
    upstream, generator = objective.upstream, make_generator(0)
    features, frames = upstream.extract_features(inputs.waveform, LENGTHS)
    T = features.size(1)
    mask = sample_span_mask(frames, prob=0.5, span=10, min_spans=2, generator=generator)
    channels = sample_span_mask(torch.tensor([24, 24]), prob=0.3, span=3, min_spans=0, generator=generator)
    assert 0 < int(channels.sum()) < 48
    context = upstream.encode_projected(
        upstream.project(features), lengths_to_padding_mask(frames, T), layers=frozenset({2}), mask=mask,
        channel_mask=channels,
    )[2]  # fmt: skip
    hidden = [(row, t) for row in range(2) for t in range(T) if mask[row, t]]
    valid = [(row, t) for row in range(2) for t in range(int(frames[row]))]
    heard = upstream.feature_norm(features)
    drawn = [-torch.empty(len(p), 2, 6).exponential_(generator=generator).log().double() for p in (hidden, valid)]
    positive = {p: quantize_plainly(objective, heard[p], n) for p, n in zip(hidden, drawn[0], strict=True)}
    everywhere = {p: quantize_plainly(objective, heard[p], n) for p, n in zip(valid, drawn[1], strict=True)}
    others = sample_other_frames(frames, T, 7, generator=generator)
    contrast, right, left_out = 0.0, 0, 0
    for row, t in hidden:
        target, codes = positive[row, t]
        scores = [float(F.cosine_similarity(context[row, t].double(), target, dim=0)) / 0.1]
        for other in others[row, t].tolist():
            assert other != t
            assert other < int(frames[row])
            candidate, found = everywhere[row, other]
            if found == codes:
                left_out += 1
            else:
                scores.append(float(F.cosine_similarity(context[row, t].double(), candidate, dim=0)) / 0.1)
        contrast += math.log(sum(math.exp(s) for s in scores)) - scores[0]
        right += scores[0] > max(scores[1:])
    assert left_out > 0
    replaced = torch.rand(2, T, generator=generator) < 0.5
    spelled = 0.0
    for row, count in enumerate(frames.tolist()):
        rows = [everywhere[row, t][0] if replaced[row, t] else context[row, t].double() for t in range(count)]
        logits = torch.stack(rows) @ objective.spelling.weight.double().T + objective.spelling.bias.double()
        length = int(inputs.token_lengths[row])  # type: ignore[index]  # they are given
        spelled += plain_ctc(logits, inputs.tokens[row, :length].tolist())  # type: ignore[index]  # likewise
    average = output.metrics["probability_usage"].double() / len(hidden)
    perplexity = float(torch.exp(-(average * (average + 1e-7).log()).sum(dim=1)).sum())
    diversity = len(hidden) * (12 - perplexity) / 12
    expected = 0.5 * spelled + 0.5 * (contrast + 0.1 * diversity)
    assert int(output.sample_size) == len(hidden)
    assert int(output.metrics["accuracy"]) == right
    assert float(output.metrics["ctc_loss"]) == pytest.approx(spelled, rel=1e-6)
    assert float(output.metrics["contrastive_loss"]) == pytest.approx(contrast, rel=1e-6)
    assert float(output.loss_sum) == pytest.approx(expected, rel=1e-6)


def test_the_probabilities_of_the_diversity_are_those_of_hidden_frames_without_noise(inputs: PretrainInputs) -> None:
    objective = make(mask_channel_prob=0.0)
    output = objective(inputs, make_generator(0))
    with torch.no_grad():
        features, frames = objective.upstream.extract_features(inputs.waveform, LENGTHS)
        mask = sample_span_mask(frames, prob=0.5, span=10, min_spans=2, generator=make_generator(0))
        weight, bias = (objective.quantizer.get_parameter(f"projection.0.{n}") for n in ("weight", "bias"))
        logits = F.linear(objective.upstream.feature_norm(features)[mask], weight, bias).view(-1, 2, 6)
    torch.testing.assert_close(
        output.metrics["probability_usage"], logits.softmax(dim=2).sum(dim=0), rtol=1e-5, atol=1e-4
    )
    assert int(output.metrics["code_usage"].sum()) == 2 * int(mask.sum())


def test_the_penalty_is_the_mean_square_of_the_frontends_output_and_shares_the_contrasts_weight(
    inputs: PretrainInputs,
) -> None:
    model = replace(SMALL, frontend="conv_waveform", conv_channels=8)
    losses = []
    for weight in (0.0, 3.0):
        upstream = build_upstream("unispeech", model, seed=0)
        assert isinstance(upstream, UniSpeechUpstream)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            config = replace(CONFIG, features_penalty=weight, ctc_weight=0.25)
            objective = build_pretraining(upstream, config, Labelling(num_tokens=TOKENS)).train()
        losses.append(objective(inputs, make_generator(0)))
    features, frames = objective.upstream.extract_features(inputs.waveform, LENGTHS)
    square = torch.cat([features[row, : frames[row]] for row in range(2)]).square().mean()
    found = (losses[1].loss_sum - losses[0].loss_sum) / losses[0].sample_size
    torch.testing.assert_close(found, 0.75 * 3.0 * square, rtol=1e-3, atol=1e-6)


def _learns(objective: UniSpeechPretraining, inputs: PretrainInputs) -> tuple[bool, bool]:
    """Whether the spelling teaches the encoder's last block, and the quantizer."""
    objective(inputs, make_generator(0)).loss_sum.backward()
    grads = [objective.upstream.get_parameter("encoder.blocks.1.fc2.weight").grad, objective.quantizer.codebook.grad]
    found = tuple(g is not None and bool((g != 0).any()) for g in grads)
    return found[0], found[1]


def test_spelling_teaches_the_encoder_or_the_quantizer_by_what_it_hears(inputs: PretrainInputs) -> None:
    assert _learns(make(ctc_weight=1.0, replace_prob=0.0), inputs) == (True, False)
    assert _learns(make(ctc_weight=1.0, replace_prob=1.0), inputs) == (False, True)
    assert _learns(make(ctc_weight=1.0, replace_prob=0.5), inputs) == (True, True)


def test_gradients_of_the_spelling_end_where_frames_were_replaced(inputs: PretrainInputs) -> None:
    objective = make()
    context, quantized = (torch.randn(2, 50, 24, generator=make_generator(n), requires_grad=True) for n in range(2))
    frames = torch.tensor([50, 30])
    loss, _ = objective.spell(context, quantized, frames, inputs, make_generator(4))
    heard, replacing = torch.autograd.grad(loss, [context, quantized])
    replaced = torch.rand(2, 50, generator=make_generator(4)) < 0.5
    inside = ~lengths_to_padding_mask(frames, 50)
    assert torch.equal((heard != 0).any(dim=2), ~replaced & inside)
    assert torch.equal((replacing != 0).any(dim=2), replaced & inside)
    assert 0.3 < float(replaced[inside].float().mean()) < 0.7
    mixed = torch.where(replaced[:, :, None], quantized, context)
    assert inputs.tokens is not None
    assert inputs.token_lengths is not None
    probability = objective.spelling(mixed).log_softmax(2).transpose(0, 1)
    total = F.ctc_loss(probability, inputs.tokens, frames, inputs.token_lengths, reduction="sum")
    torch.testing.assert_close(loss, total, rtol=1e-6, atol=1e-6)


def test_candidates_with_the_targets_codes_are_left_out_wherever_they_stand() -> None:
    generator = make_generator("equal")
    mask = torch.tensor([[False, True, False, True], [True, False, False, False]])
    hidden = HiddenFrames.of(mask)
    context, targets = torch.randn(3, 5, generator=generator), torch.randn(3, 5, generator=generator)
    candidates = torch.randn(2, 4, 5, generator=generator)
    codes = torch.tensor([[[0, 1], [1, 1], [0, 1], [2, 2]], [[1, 0], [1, 0], [1, 0], [3, 3]]])
    target_codes = torch.tensor([[0, 1], [2, 2], [1, 0]])
    distractors = torch.tensor([[0, 2, 3], [0, 1, 2], [1, 2, 1]])
    loss, correct = contrast_everywhere(
        context, targets, target_codes, candidates, codes, hidden=hidden, distractors=distractors, temperature=0.5
    )
    kept = [(0, [(0, 3)]), (1, [(0, 0), (0, 1), (0, 2)]), (2, [])]
    expected, right = 0.0, 0
    for n, places in kept:
        scores = [float(F.cosine_similarity(context[n], targets[n], dim=0)) / 0.5]
        scores += [float(F.cosine_similarity(context[n], candidates[place], dim=0)) / 0.5 for place in places]
        expected += math.log(sum(map(math.exp, scores))) - scores[0]
        right += scores[0] == max(scores)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert int(correct) == right


def test_hidden_channels_are_silent_in_every_frame_and_others_untouched() -> None:
    objective = make()
    upstream = objective.upstream
    heard: list[Tensor] = []
    upstream.encoder.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    x = torch.randn(2, 9, 24, generator=make_generator("x"))
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[:, 3:5] = True
    channels = torch.zeros(2, 24, dtype=torch.bool)
    channels[0, :5] = True
    for given in (None, channels):
        upstream.encode_projected(x, None, layers=frozenset({0}), mask=mask, channel_mask=given)
    plain, silent = heard
    assert (silent[0, :, :5] == 0).all()
    assert torch.equal(silent[0, :, 5:], plain[0, :, 5:])
    assert torch.equal(silent[1], plain[1])
    assert torch.equal(plain[0, 3], upstream.mask_embedding)


def test_bad_settings_and_missing_transcripts_are_one_sentence(inputs: PretrainInputs) -> None:
    with pytest.raises(ConfigError, match="`replace_prob` must be"):
        UniSpeechPretrainConfig(replace_prob=1.5)
    upstream = build_upstream("unispeech", SMALL, seed=0)
    assert isinstance(upstream, UniSpeechUpstream)
    with pytest.raises(SpeechsslError, match="needs transcripts"):
        build_pretraining(upstream, CONFIG, Labelling())
    with pytest.raises(SpeechsslError, match="holds none"):
        make()(PretrainInputs(inputs.waveform, LENGTHS), make_generator(0))


def test_the_published_settings() -> None:
    _, config = pretrain_config("unispeech_large")
    assert learning_rate(25_000, config.train) == pytest.approx(1e-3)
    assert learning_rate(200_000, config.train) == 0.0
    assert config.train.batch_seconds * config.train.batches_per_step == 4_800
    assert (config.objective.ctc_weight, config.objective.replace_prob, config.objective.mask_prob) == (0.5, 0.5, 0.5)
    assert PRESETS["unispeech_large"].dropout == 0.1
