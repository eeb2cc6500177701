"""The laws that hold for every quantizer."""

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from speechssl.data.batching import make_generator
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.metric.codes import perplexity
from speechssl.quantizer.base import Quantizer
from speechssl.quantizer.ema import EmaConfig, EmaQuantizer
from speechssl.quantizer.fsq import LEVELS, FiniteScalarQuantizer
from speechssl.quantizer.gumbel import GumbelQuantizer
from speechssl.quantizer.kmeans import KMeansQuantizer, load_kmeans_quantizer
from speechssl.quantizer.mel_rvq import MelRvqConfig, MelRvqQuantizer
from speechssl.quantizer.nearest_neighbour import NearestNeighbourConfig, NearestNeighbourQuantizer
from speechssl.quantizer.random_projection import RandomProjectionConfig, RandomProjectionQuantizer
from speechssl.quantizer.residual import ResidualConfig, ResidualQuantizer
from speechssl.quantizer.sliced import SlicedGumbelQuantizer
from speechssl.targets.kmeans import KMeans

WIDTH, ENTRIES = 4, 16
FSQ = (4, 5, 3, 4)


@dataclass(frozen=True)
class Case:
    make: Callable[[], Quantizer]
    gradient: str
    """What reaches the frames: 'none', 'identity' (as if nothing had been done), or 'some'."""
    reversible: bool = False
    """Whether an entry's vector is a frame that gets this entry."""
    restarts: bool = False
    learns: bool = False
    """Whether evenness is learned, by a diversity loss."""
    spread: float = 0.9
    """Least perplexity on even data, over the number of entries."""


CASES = {
    "kmeans": Case(lambda: KMeansQuantizer(torch.rand(ENTRIES, WIDTH)), "none", reversible=True),
    "nearest_neighbour": Case(
        lambda: NearestNeighbourQuantizer(
            NearestNeighbourConfig(width=WIDTH, groups=2, entries=ENTRIES, initial_deviation=0.5)
        ),
        "identity",
        reversible=True,
    ),
    "nearest_neighbour_apart": Case(
        lambda: NearestNeighbourQuantizer(
            NearestNeighbourConfig(width=WIDTH, groups=2, entries=ENTRIES, shared=False, initial_deviation=0.5)
        ),
        "identity",
        reversible=True,
    ),
    "ema": Case(
        lambda: EmaQuantizer(EmaConfig(width=WIDTH, entries=ENTRIES, decay=0.9, restart_below=0.5)),
        "identity",
        reversible=True,
        restarts=True,
    ),
    "ema_normalized": Case(
        lambda: EmaQuantizer(EmaConfig(width=WIDTH, entries=ENTRIES, decay=0.9, normalize=True, restart_below=0.5)),
        "some",
        reversible=True,
        restarts=True,
    ),
    "residual": Case(
        lambda: ResidualQuantizer(
            ResidualConfig(width=WIDTH, stages=3, entries=ENTRIES, decay=0.9, restart_below=0.5, dropout=0.3)
        ),
        "identity",
        restarts=True,
    ),
    "random_projection": Case(
        lambda: RandomProjectionQuantizer(
            RandomProjectionConfig(width=WIDTH, entries=ENTRIES, code_width=3, codebooks=2), generator=make_generator(1)
        ),
        "none",
    ),
    "fsq": Case(lambda: FiniteScalarQuantizer(FSQ), "some"),
    "mel_rvq": Case(
        lambda: MelRvqQuantizer(
            MelRvqConfig(
                width=WIDTH, stages=2, entries=ENTRIES, code_width=2, restart_after=2, steps=300, batch_frames=256,
            )
        ),
        "some",
        restarts=True,
        spread=0.7,  # neither squares of errors nor directions ask for equal shares
    ),
    "gumbel": Case(
        lambda: GumbelQuantizer(WIDTH, output_width=6, groups=2, entries=ENTRIES), "some", learns=True
    ),
    "sliced_gumbel": Case(
        lambda: SlicedGumbelQuantizer(WIDTH, groups=2, entries=ENTRIES, temperature=1.0), "some", learns=True
    ),
}  # fmt: skip


def make(name):
    """A quantizer, equal at each call, in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CASES[name].make().train()


def frames(number, count=200):
    """Frames that are spread evenly; equal for equal numbers."""
    return 2 * torch.rand(count, WIDTH, generator=make_generator("frames", number)) - 1


def update(quantizer, optimizer, numbers, *, reduce=dict, reduce_gradient=lambda grad: None):
    """One update from some micro-batches, as the training loop makes it."""
    for number in numbers:
        x = frames(number).requires_grad_()
        output = quantizer(x, generator=make_generator("draws", number))
        loss = output.loss + output.quantized.square().sum()
        if loss.requires_grad:
            loss.backward()
    for parameter in quantizer.parameters():
        reduce_gradient(parameter.grad)
        parameter.grad /= 400
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()
    quantizer.end_step(reduce)


def adam(quantizer):
    parameters = list(quantizer.parameters())
    return torch.optim.Adam(parameters, lr=1e-2) if parameters else None


def unbounded(levels, values):
    """What a finite scalar quantizer bounds to `values` (N, D), in units of levels."""
    count = torch.tensor(levels)
    radius, offset = (count - 1) * 1.001 / 2, torch.where(count % 2 == 0, 0.5, 0.0)
    return torch.atanh(((values + offset) / radius).clamp(-0.9999, 0.9999)) - torch.atanh(offset / radius)


def even(name):
    """Frames whose codes a perfect codebook would use equally."""
    if name == "fsq":
        count = torch.tensor(FSQ)
        return unbounded(FSQ, (frames("even", 4000) + 1) / 2 * count - count // 2 - 0.5)
    if name == "random_projection":  # nothing is fitted: frames that its projections send close to each entry
        made = make(name)
        entries = torch.cat([c @ torch.linalg.pinv(p) for c, p in zip(made.codebook, made.projection, strict=True)])
        return entries.repeat(50, 1) * (1 + frames("even", 50 * len(entries))[:, :1] / 2)
    return frames("even", 4000)


@pytest.fixture(params=CASES)
def name(request):
    return request.param


def test_codes_lead_back_to_what_was_quantized(name):
    quantizer = make(name).eval()
    output = quantizer(frames(0))
    codes = quantizer.encode(frames(0))
    assert torch.equal(output.codes, codes)
    assert torch.equal(quantizer.decode(codes), output.quantized)
    assert codes.shape == (200, quantizer.groups)
    assert codes.dtype == torch.int64
    assert 0 <= int(codes.min()) <= int(codes.max()) < quantizer.entries
    assert output.usage.shape == output.probability.shape == (quantizer.groups, quantizer.entries)
    assert torch.equal(output.usage, torch.stack([torch.bincount(c, minlength=quantizer.entries) for c in codes.T]))
    torch.testing.assert_close(output.probability.sum(dim=1), output.usage.sum(dim=1))


def test_an_entry_is_its_own_nearest(name):
    quantizer = make(name).eval()
    codes = torch.randint(quantizer.entries, (50, quantizer.groups), generator=make_generator(3))
    vectors = quantizer.decode(codes)
    assert len(vectors) == 50
    if name == "fsq":
        scale = torch.tensor(FSQ) // 2
        assert torch.equal(quantizer.encode(unbounded(FSQ, vectors * scale)), codes)
    elif CASES[name].reversible:
        assert torch.equal(quantizer.encode(vectors), codes)


def test_gradients_go_straight_through_or_not_at_all(name):
    quantizer = make(name)
    x = frames(0).requires_grad_()
    weight = torch.randn(1, generator=make_generator(4))
    output = quantizer(x, generator=make_generator(5))
    if CASES[name].gradient == "none":
        assert not output.quantized.requires_grad
        assert not output.loss.requires_grad
        return
    (grad,) = torch.autograd.grad((weight * output.quantized).sum(), x, retain_graph=True)
    assert (grad != 0).any(dim=1).float().mean() > 0.9
    if CASES[name].gradient == "identity":
        assert torch.equal(grad, weight.expand_as(grad))


def test_evaluation_is_a_pure_function(name):
    quantizer = make(name).eval()
    state = copy.deepcopy(quantizer.state_dict())
    before = torch.random.get_rng_state()
    first, second = quantizer(frames(0)), quantizer(frames(0))
    quantizer.end_step(dict)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first.quantized, second.quantized)
    assert all(torch.equal(value, state[key]) for key, value in quantizer.state_dict().items())


def test_codebooks_stay_until_the_step_ends(name):
    quantizer = make(name)
    state = copy.deepcopy(quantizer.state_dict())
    for number in range(3):
        quantizer(frames(number), generator=make_generator("draws", number))
    assert all(torch.equal(value, state[key]) for key, value in quantizer.state_dict().items())
    learns = "codebook" in state and not isinstance(quantizer, KMeansQuantizer | RandomProjectionQuantizer)
    quantizer.end_step(dict)
    if learns and isinstance(quantizer, EmaQuantizer):
        assert not torch.equal(quantizer.codebook, state["codebook"])


def test_a_restored_quantizer_goes_on_as_if_nothing_had_happened(name):
    whole, first = make(name), make(name)
    optimizers = [adam(whole), adam(first)]
    for step in range(6):
        update(whole, optimizers[0], (2 * step, 2 * step + 1))
        if step < 3:
            update(first, optimizers[1], (2 * step, 2 * step + 1))
    second = make(name)
    second.load_state_dict(first.state_dict())
    optimizer = adam(second)
    if optimizer is not None:
        optimizer.load_state_dict(optimizers[1].state_dict())
    for step in range(3, 6):
        update(second, optimizer, (2 * step, 2 * step + 1))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    assert torch.equal(whole.encode(frames(0)), second.encode(frames(0)))


def test_even_data_uses_all_entries_evenly(name):
    quantizer, x = make(name), even(name)
    if name == "kmeans":
        fitted = EmaQuantizer(EmaConfig(width=WIDTH, entries=ENTRIES))
        fitted.fit(x, generator=make_generator(6))
        quantizer = KMeansQuantizer(fitted.codebook)
    elif hasattr(quantizer, "fit"):
        quantizer.fit(x, generator=make_generator(6))
    if CASES[name].learns:
        _learn_evenness(quantizer, x)
    if name == "random_projection":
        halves = quantizer.eval().encode(x).view(50, 2, ENTRIES, 2)  # (copies, whose entries, entries, codebooks)
        usage = [torch.bincount(halves[:, g, :, g].flatten(), minlength=ENTRIES) for g in range(2)]
    else:
        output = quantizer.eval()(x)
        # The diversity loss asks for even probabilities; which entry is the likeliest follows only roughly.
        usage = output.probability.detach() if CASES[name].learns else output.usage
    for stage, row in enumerate(usage):
        assert float(perplexity(row)) >= CASES[name].spread * quantizer.entries, (name, stage)


def _learn_evenness(quantizer, x):
    """By the entropy of the mean probability: the diversity loss of wav2vec 2.0 (eq. 4)."""
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=2e-2)
    for step in range(60):
        output = quantizer(x, generator=make_generator("even", step))
        share = output.probability / output.probability.sum(dim=1, keepdim=True)
        (share * share.clamp(min=1e-7).log()).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_half_precision_changes_nothing(name):
    quantizer = make(name).eval()
    exact = quantizer(frames(0))
    with torch.autocast("cpu", torch.bfloat16):
        half = quantizer(frames(0))
        assert torch.equal(quantizer.encode(frames(0)), exact.codes)
        quantizer.train()(frames(0), generator=make_generator(0))
        quantizer.end_step(dict)
    for field in ("quantized", "codes", "loss", "usage", "probability"):
        assert torch.equal(getattr(exact, field), getattr(half, field)), field
        assert getattr(half, field).dtype in (torch.float32, torch.int64)
    assert all(value.dtype in (torch.float32, torch.int64) for value in quantizer.state_dict().values())


def test_no_frames_are_no_trouble(name):
    quantizer = make(name)
    state = copy.deepcopy(quantizer.state_dict())
    output = quantizer(torch.zeros(0, WIDTH), generator=make_generator(0))
    assert output.codes.shape == (0, quantizer.groups)
    assert float(output.loss.detach()) == float(output.usage.sum()) == 0
    assert len(output.quantized) == len(quantizer.decode(output.codes)) == 0
    quantizer.end_step(dict)
    for key, value in quantizer.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("restarting", [name for name, case in CASES.items() if case.restarts])
@torch.no_grad()
def test_entries_that_are_not_used_restart_at_frames(restarting):
    quantizer, x = make(restarting), frames(0).abs()
    lost = getattr(quantizer, "stages", [quantizer])[0]
    seen = F.normalize(x, dim=1) if restarting == "ema_normalized" else x
    seen = lost.project_in(x) if restarting == "mel_rvq" else seen
    centre = F.normalize(seen.mean(dim=0), dim=0)
    lost.codebook[0], lost.codebook[1:] = centre, -centre  # all frames lie on this side
    if hasattr(lost, "sums"):
        lost.sums.copy_(lost.codebook * lost.counts[:, None])
    assert int((quantizer.eval()(x).usage[0] > 0).sum()) == 1
    quantizer.train()
    for step in range(8):
        old = lost.codebook[1:].clone()
        quantizer(x, generator=make_generator("step", step))
        quantizer.end_step(dict)
        if step == 0:
            assert (lost.codebook[1:] - old).abs().max() < 0.1  # not at once
        if (lost.codebook[1:] - old).abs().max() > 0.1:
            break
    distance = torch.cdist(lost.codebook[1:], seen, compute_mode="donot_use_mm_for_euclid_dist")
    assert (distance.min(dim=1).values == 0).all()
    assert len(lost.codebook.unique(dim=0)) == ENTRIES
    assert int((quantizer.eval()(x).usage[0] > 0).sum()) == ENTRIES


def test_restarts_need_a_generator_and_say_so():
    with pytest.raises(SpeechsslError, match="generator"):
        make("ema")(frames(0))


def test_two_processes_give_the_codes_and_codebooks_of_one(tmp_path):
    """Each of 2 processes sees every second micro-batch; one process alone sees both."""
    script = Path(__file__).with_name("two_ranks_quantizers.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(script), str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name in CASES:
        quantizer = make(name)
        optimizer = adam(quantizer)
        for step in range(5):
            update(quantizer, optimizer, (2 * step, 2 * step + 1))
        codes = quantizer.eval().encode(frames(0))
        for found in ranks:
            for key, value in quantizer.state_dict().items():
                torch.testing.assert_close(found[name][key], value, rtol=0, atol=1e-5, msg=f"{name} {key}")
            assert torch.equal(found[name]["codes"], codes), name
        assert all(torch.equal(value, ranks[1][name][key]) for key, value in ranks[0][name].items()), name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: NearestNeighbourQuantizer(NearestNeighbourConfig(width=5)), "`width` must be a multiple of 2"),
        (lambda: EmaQuantizer(EmaConfig(entries=0)), "`entries` must be positive, but is 0"),
        (lambda: EmaQuantizer(EmaConfig(decay=1.5)), "`decay` must be >= 0 and <= 1, but is 1.5"),
        (lambda: ResidualQuantizer(ResidualConfig(stages=0)), "`stages` must be positive, but is 0"),
        (lambda: ResidualQuantizer(ResidualConfig(dropout=-1)), "`dropout` must be >= 0 and <= 1, but is -1"),
        (lambda: FiniteScalarQuantizer((5, 1)), r"`levels` must be numbers from 2 on.*\[5, 1\]"),
        (lambda: KMeansQuantizer(torch.zeros(3)), r"`centroids` must be \(clusters, width\)"),
        (
            lambda: RandomProjectionQuantizer(RandomProjectionConfig(code_width=0), generator=make_generator(0)),
            "`code_width` must be positive",
        ),
        (lambda: MelRvqQuantizer(MelRvqConfig(steps=0)), "`steps` must be positive"),
    ],
)
def test_a_bad_setting_is_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        wrong()


def test_frames_and_codes_that_do_not_fit_are_refused(name):
    if name == "gumbel":
        pytest.skip("its linear layer refuses them")
    quantizer = make(name)
    with pytest.raises(SpeechsslError, match=r"shape \(N, 4\), but was given \(3, 5\)"):
        quantizer.encode(torch.zeros(3, 5))
    with pytest.raises(SpeechsslError, match=rf"0\.\.{quantizer.entries - 1}, but range 0\.\.{quantizer.entries}"):
        quantizer.decode(torch.tensor([[0] * quantizer.groups, [quantizer.entries] * quantizer.groups]))


def test_too_few_frames_to_begin_with_say_so():
    with pytest.raises(SpeechsslError, match="16 clusters need as many frames, but there are 3"):
        make("ema").fit(torch.rand(3, WIDTH), generator=make_generator(0))


def test_the_folder_of_a_clustering_is_a_quantizer(tmp_path):
    centroids = torch.randn(7, 3, generator=make_generator(0))
    KMeans(centroids, {"label_rate": 50.0}).save(tmp_path)
    quantizer = load_kmeans_quantizer(tmp_path)
    assert torch.equal(quantizer.decode(torch.arange(7)[:, None]), centroids)


# Each against a slow computation from its paper


def slow_nearest(x, codebook):
    return torch.stack([(row - codebook).square().sum(dim=1).argmin() for row in x])


@pytest.mark.parametrize("normalize", [False, True])
def test_moving_averages_are_those_of_the_paper(normalize):
    quantizer = EmaQuantizer(EmaConfig(width=WIDTH, entries=ENTRIES, decay=0.8, normalize=normalize, commitment=0.7))
    codebook, count, total = quantizer.codebook.clone(), torch.ones(ENTRIES), quantizer.codebook.clone()
    for step in range(4):
        x = F.normalize(frames(step), dim=1) if normalize else frames(step)
        output = quantizer(frames(step))
        codes = slow_nearest(x, codebook)
        assert torch.equal(output.codes[:, 0], codes)
        expected = 0.7 * F.mse_loss(x, codebook[codes]) * len(x)
        torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-5)
        quantizer.end_step(dict)
        for entry in range(ENTRIES):
            mine = x[codes == entry]
            if normalize and len(mine):
                mean = F.normalize(mine.mean(dim=0), dim=0)
                codebook[entry] = F.normalize(0.8 * codebook[entry] + 0.2 * mean, dim=0)
            elif not normalize:
                count[entry] = 0.8 * count[entry] + 0.2 * len(mine)
                total[entry] = 0.8 * total[entry] + 0.2 * mine.sum(dim=0)
        if not normalize:
            whole = count.sum()
            codebook = total / ((count + 1e-5) / (whole + ENTRIES * 1e-5) * whole)[:, None]
        torch.testing.assert_close(quantizer.codebook, codebook, rtol=0, atol=1e-6)


def test_residual_stages_quantize_what_is_left():
    quantizer = make("residual").eval()
    output = quantizer(frames(0))
    rest, loss = frames(0), 0.0
    for stage, codes in zip(quantizer.stages, output.codes.T, strict=True):
        assert torch.equal(slow_nearest(rest, stage.codebook), codes)
        loss += 0.25 * float(F.mse_loss(rest, stage.codebook[codes])) * len(rest)
        rest = rest - stage.codebook[codes]
    torch.testing.assert_close(output.quantized, frames(0) - rest, rtol=0, atol=1e-6)
    assert float(output.loss) == pytest.approx(loss, rel=1e-5)


def test_quantizer_dropout_leaves_out_the_last_stages():
    quantizer = make("residual")
    counts = []
    for number in range(60):
        output = quantizer(frames(number, 5), generator=make_generator(number))
        used = (output.codes >= 0).sum(dim=1)
        assert (used == used[0]).all()
        counts.append(int(used[0]))
        assert float(output.usage.sum()) == 5 * counts[-1]
        torch.testing.assert_close(quantizer.decode(output.codes), output.quantized, rtol=0, atol=1e-6)
    assert set(counts) == {1, 2, 3}
    assert counts.count(3) > 40  # 0.7 + 0.3 / 3 of them


@pytest.mark.parametrize("levels", LEVELS.values())
def test_finite_scalars_are_bounded_and_rounded(levels):
    """As the paper's listing, whose tan stands where an atanh would be: they differ by less than rounding shows."""
    quantizer = FiniteScalarQuantizer(levels)
    x = 2 * torch.randn(300, len(levels), generator=make_generator(7))
    output = quantizer(x)
    for row, code, out in zip(x.tolist(), output.codes[:, 0].tolist(), output.quantized.tolist(), strict=True):
        number, place = 0, 1
        for value, count, rounded in zip(row, levels, out, strict=True):
            half, offset = (count - 1) * 1.001 / 2, 0.0 if count % 2 else 0.5
            level = round(math.tanh(value + math.tan(offset / half)) * half - offset)
            assert rounded == pytest.approx(level / (count // 2))
            number += (level + count // 2) * place
            place *= count
        assert code == number
    assert len(quantizer.decode(torch.arange(quantizer.entries)[:, None]).unique(dim=0)) == math.prod(levels)


def test_random_projections_are_matched_by_direction():
    quantizer = make("random_projection")
    x = frames(0)
    for group in range(2):
        projected = x @ quantizer.projection[group]
        similar = F.cosine_similarity(projected[:, None], quantizer.codebook[group][None], dim=2)
        assert torch.equal(quantizer.encode(x)[:, group], similar.argmax(dim=1))
    assert not list(quantizer.parameters())
    config = RandomProjectionConfig(width=320)
    wide = RandomProjectionQuantizer(config, generator=make_generator(0))
    again = RandomProjectionQuantizer(config, generator=make_generator(0))
    assert torch.equal(wide.projection, again.projection)
    assert torch.equal(wide.codebook, again.codebook)
    assert float(wide.projection.std()) == pytest.approx(math.sqrt(2 / (320 + 16)), rel=0.03)  # Glorot and Bengio 2010
    torch.testing.assert_close(wide.codebook.norm(dim=2), torch.ones(1, 8192))


def test_the_loss_of_trained_entries_is_that_of_vq_wav2vec():
    quantizer = make("nearest_neighbour")
    x = frames(0).requires_grad_()
    output = quantizer(x)
    chosen = torch.cat([quantizer.codebook[0][slow_nearest(part, quantizer.codebook[0])] for part in x.chunk(2, 1)], 1)
    expected = 200 * (F.mse_loss(chosen, x.detach()) + 0.25 * F.mse_loss(x, chosen.detach()))
    torch.testing.assert_close(output.loss, expected)
    found = torch.autograd.grad(output.loss, (x, quantizer.codebook))
    for one, two in zip(found, torch.autograd.grad(expected, (x, quantizer.codebook)), strict=True):
        torch.testing.assert_close(one, two)


def test_a_mel_rvq_reconstructs_better_with_each_stage_and_is_frozen():
    quantizer, x = make("mel_rvq"), frames("even", 2000)
    error = quantizer.fit(x, generator=make_generator(0))
    assert error < 0.5
    assert not quantizer.training
    assert not any(p.requires_grad for p in quantizer.parameters())
    codes = quantizer.encode(x)
    first, second = (stage.decode(code).detach() for stage, code in zip(quantizer.stages, codes.T, strict=True))
    assert (first + second - x).square().mean() < 0.8 * (first - x).square().mean()
    torch.testing.assert_close(float((first + second - x).square().mean() / x.square().mean()), error)
