"""DinoSR's objective against transformers' model as student and teacher and plain loops; its checkpoints."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from contextual_parity import check_parity_row_by_row, their_model
from fairseq_weights import fairseq_weights
from omegaconf import OmegaConf
from teacher_reference import SMALL, hear_in_transformers, in_transformers, normed_over_time, stir, voices
from torch import Tensor
from transformers import Data2VecAudioConfig as TheirConfig
from transformers import Data2VecAudioForCTC

from speechssl.data.batching import make_generator
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.loading import build_upstream, load_upstream
from speechssl.masking.span import sample_span_mask
from speechssl.metric.tallies import summarize
from speechssl.objective import Labelling, PretrainInputs
from speechssl.train.optim import learning_rate, make_optimizer
from upstreams.data2vec.config import PRESETS as DATA2VEC
from upstreams.data2vec.config import Data2VecConfig
from upstreams.dinosr.codebooks import OnlineCodebooks
from upstreams.dinosr.config import PRESETS, DinoSRConfig
from upstreams.dinosr.model import DinoSRUpstream
from upstreams.dinosr.pretrain import PRETRAIN_PRESETS, TRAIN_PRESETS, DinoSRPretrainConfig, DinoSRPretraining

K, V = 3, 12
CONFIG = DinoSRPretrainConfig(target_layers=K, codebook_entries=V, ema_decay=0.5, ema_end_decay=0.5)


def make(config: DinoSRPretrainConfig = CONFIG, **changes: Any) -> DinoSRPretraining:
    """A student and a teacher that differ."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        upstream = build_upstream("dinosr", replace(DinoSRConfig(**SMALL), **changes), seed=0)
        assert isinstance(upstream, DinoSRUpstream)
        stir(upstream)
        objective = DinoSRPretraining(upstream, config, Labelling())
    stir(objective.teacher.module, seed=2)
    return objective


class PlainCodebooks:
    """Lists of sums and counts, entry by entry, in float64."""

    def __init__(self, books: OnlineCodebooks) -> None:
        self.sums = [[e.double() for e in book] for book in books.sums.clone()]
        self.counts = [[float(c) for c in book] for book in books.counts]
        self.new: list[dict[int, list[Tensor]]] = [{} for _ in self.sums]

    def nearest(self, layer: int, frame: Tensor) -> int:
        distances = [
            float((frame.double() - s / c).square().sum())
            for s, c in zip(self.sums[layer], self.counts[layer], strict=True)
        ]
        return distances.index(min(distances))

    def gather(self, layer: int, frame: Tensor, code: int) -> None:
        self.new[layer].setdefault(code, []).append(frame.double())

    def move(self, decay: float) -> None:
        for layer, chosen in enumerate(self.new):
            for code, frames in chosen.items():
                self.sums[layer][code] = decay * self.sums[layer][code] + (1 - decay) * torch.stack(frames).sum(dim=0)
                self.counts[layer][code] = decay * self.counts[layer][code] + (1 - decay) * len(frames)
            chosen.clear()


@torch.no_grad()
def reference(objective: DinoSRPretraining, inputs: PretrainInputs, seed: int, books: PlainCodebooks) -> dict[str, Any]:
    """Loss, count and codes, utterance by utterance and frame by frame."""
    frames = objective.upstream.output_lengths(inputs.lengths)
    mask = sample_span_mask(
        frames, prob=0.8, span=10, min_spans=1, generator=make_generator(seed), require_same_masks=True
    )
    student = in_transformers(objective.upstream)
    teacher = in_transformers(objective.upstream, objective.teacher.module)
    loss, codes = 0.0, []
    for waveform, length, T, hidden in zip(inputs.waveform, inputs.lengths, frames, mask, strict=True):
        heard, _ = hear_in_transformers(student, waveform[:length], hidden[:T])
        _, results = hear_in_transformers(teacher, waveform[:length])
        targets = [normed_over_time(r) for r in results[-K:]]
        for t in hidden.nonzero().flatten().tolist():
            codes.append([books.nearest(layer, targets[layer][t]) for layer in range(K)])
            for layer, code in enumerate(codes[-1]):
                books.gather(layer, targets[layer][t], code)
                part = slice(layer * V, (layer + 1) * V)
                logits = heard[t] @ objective.heads.weight[part].T + objective.heads.bias[part]
                loss -= float(logits.double().log_softmax(dim=0)[code]) / K
    return {"loss": loss, "count": len(codes), "codes": torch.tensor(codes)}


def test_loss_codes_and_codebooks_are_those_of_plain_loops_over_two_updates_of_two_batches() -> None:
    objective = make().train()
    books = PlainCodebooks(objective.codebooks)
    for step in range(2):
        objective.begin_step(step)
        for number in (0, 1):
            inputs, seed = voices((12_000, 9_000), seed=2 * step + number), 10 * step + number
            output = objective(inputs, make_generator(seed))
            expected = reference(objective, inputs, seed, books)
            assert float(output.sample_size) == expected["count"] > 0
            assert abs(float(output.loss_sum.detach()) - expected["loss"]) <= 1e-5 * expected["loss"]
            counts = torch.stack([torch.bincount(c, minlength=V) for c in expected["codes"].T])
            assert torch.equal(output.metrics["target_usage"], counts.float())
        with torch.no_grad():
            objective.end_step(step + 1, dict)
        books.move(0.9)
        assert float((objective.codebooks.sums - stack(books.sums)).abs().max()) <= 1e-4
        assert float((objective.codebooks.counts - torch.tensor(books.counts)).abs().max()) <= 1e-4


def stack(sums: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(book) for book in sums])


def codebooks(decay: float = 0.9) -> OnlineCodebooks:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OnlineCodebooks(2, entries=64, width=16, decay=decay)


def test_codebooks_begin_with_normed_channels_and_counts_of_one() -> None:
    books = codebooks()
    assert float(books.entries().mean(dim=1).abs().max()) <= 1e-6
    assert float((books.entries().std(dim=1, correction=0) - 1).abs().max()) <= 1e-4
    assert torch.equal(books.counts, torch.ones(2, 64))


def test_entries_without_frames_stay_and_counts_are_summed_over_processes() -> None:
    books = codebooks().train()
    before = books.sums.clone()
    frames = books.entries()[0, [3, 3, 5]] + 0.01
    codes = books.assign([frames, frames])
    assert codes[:, 0].tolist() == [3, 3, 5]
    books.end_step(lambda sums: {name: 2 * value for name, value in sums.items()})  # two processes with the same frames
    torch.testing.assert_close(books.sums[0, 3], 0.9 * before[0, 3] + 0.1 * 2 * frames[:2].sum(dim=0))
    assert books.counts[0, [3, 5, 7]].tolist() == pytest.approx([0.9 + 0.1 * 4, 0.9 + 0.1 * 2, 1.0])
    unused = torch.ones(64, dtype=torch.bool).index_fill(0, torch.tensor([3, 5]), False)
    assert torch.equal(books.sums[0, unused], before[0, unused])


def test_codebooks_may_begin_with_frames_and_are_then_in_use() -> None:
    objective = make(replace(CONFIG, codebook_init="frames"))
    batches = [voices((12_000, 9_000), seed=n) for n in range(2)]
    objective.begin_run(batches)
    teacher = in_transformers(objective.upstream, objective.teacher.module)
    frames = []
    for inputs in batches:
        for waveform, length in zip(inputs.waveform, inputs.lengths, strict=True):
            _, results = hear_in_transformers(teacher, waveform[:length])
            frames.append(torch.stack([normed_over_time(r) for r in results[-K:]], dim=1))
    distances = torch.cdist(objective.codebooks.entries(), torch.cat(frames).transpose(0, 1))  # (K, V, frames)
    nearest, found = distances.min(dim=2)
    assert float(nearest.max()) <= 1e-2
    assert all(len(set(row.tolist())) == V for row in found)
    again = make(replace(CONFIG, codebook_init="frames"))
    again.begin_run(batches)
    assert torch.equal(objective.codebooks.sums, again.codebooks.sums)
    published = make()
    before = published.codebooks.sums.clone()
    published.begin_run(batches)
    assert torch.equal(before, published.codebooks.sums)
    usage = []
    for kind in (objective, published):
        output = kind.eval()(voices(), make_generator(0))
        usage.append(int((output.metrics["target_usage"] > 0).sum()))
    assert usage[0] > usage[1]


def test_evaluation_gathers_nothing_and_assigns_alike() -> None:
    books = codebooks()
    frames = torch.randn(2, 50, 16, generator=make_generator(0))
    trained = books.train().assign(frames)
    books.end_step(lambda sums: {name: torch.zeros_like(value) for name, value in sums.items()})
    before = books.sums.clone()
    assert torch.equal(trained, books.eval().assign(frames))
    books.end_step(dict)
    assert torch.equal(before, books.sums)


def test_perplexities_are_sums_over_the_codebooks_and_a_collapse_is_below_the_limits() -> None:
    objective = make().eval()
    output = objective(voices(), make_generator(0))
    values = summarize({"sample_size": output.sample_size, **output.metrics})
    expected = 0.0
    for counts in output.metrics["target_usage"]:
        p = counts / counts.sum()
        expected += 2.0 ** float(-(p * (p + 1e-8).log2()).sum())
    assert values["target_perplexity"] == pytest.approx(expected, rel=1e-3)
    assert K < values["prediction_perplexity"] <= K * V * (1 + 1e-6)
    torch.testing.assert_close(output.metrics["prediction_usage"].sum(dim=1), output.sample_size.expand(K).detach())
    assert objective.limits == {"target_perplexity": 1.5 * K, "prediction_perplexity": 1.5 * K}
    one = torch.zeros(K, V).index_fill(1, torch.tensor([4]), 9.0)
    collapsed = summarize({"sample_size": torch.tensor(9.0), "target_usage": one, "prediction_usage": one})
    assert all(collapsed[name] < least for name, least in objective.limits.items())


# Freezing


def updates(objective: DinoSRPretraining, steps: range) -> None:
    """Updates with a rate so large, and weight decay, that whatever is trained moves."""
    config = replace(TRAIN_PRESETS["dinosr_tiny"], learning_rate=1e-2)
    optimizer = make_optimizer(objective.trained_parameters(), config)
    for step in steps:
        objective.begin_step(step)
        objective(voices((9_000, 9_000), seed=step), make_generator(step)).loss_sum.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            objective.end_step(step + 1, dict)


def test_teacher_and_frontend_stop_after_the_freezing_step_and_the_rest_goes_on() -> None:
    objective = make(replace(CONFIG, freeze_step=2)).train()
    assert objective.skips_blocks  # distributed training must expect weights without gradients
    before = {n: v.clone() for n, v in objective.state_dict().items()}
    updates(objective, range(2))
    at_freezing = {n: v.clone() for n, v in objective.state_dict().items()}
    still = [n for n, v in at_freezing.items() if torch.equal(v, before[n]) and not n.startswith("codebooks")]
    assert not still
    updates(objective, range(2, 4))
    state = objective.state_dict()
    frozen = ("teacher.", "upstream.frontend.", "upstream.feature_norm.", "upstream.projection.")
    for name, value in state.items():
        same = torch.equal(value, at_freezing[name])
        assert same == name.startswith(frozen), name


def test_the_frontend_goes_on_where_the_settings_say_so() -> None:
    objective = make(replace(CONFIG, freeze_step=0, freeze_frontend=False)).train()
    assert not objective.skips_blocks
    before = objective.upstream.projection.weight.clone()
    teacher = objective.teacher.module.blocks[0].fc1.weight.clone()
    updates(objective, range(1))
    assert not torch.equal(before, objective.upstream.projection.weight)
    assert torch.equal(teacher, objective.teacher.module.blocks[0].fc1.weight)


# Settings and checkpoints


def test_the_published_settings_are_the_papers() -> None:
    base, train = PRETRAIN_PRESETS["dinosr_base"], TRAIN_PRESETS["dinosr_base"]
    assert (base.mask_prob, base.mask_length, base.target_layers, base.codebook_entries) == (0.8, 10, 8, 256)
    assert (base.codebook_decay, base.ema_decay, base.ema_end_decay, base.ema_ramp_steps) == (
        0.9,
        0.999,
        0.9999,
        30_000,
    )
    assert base.freeze_step == 200_000
    rates = {12_000: 5e-4, 200_000: 5e-4, 300_000: 5e-4 * math.sqrt(0.01), 400_000: 5e-6}
    assert {step: learning_rate(step, train) for step in rates} == pytest.approx(rates)
    assert asdict(PRESETS["dinosr_base"]) == asdict(DATA2VEC["data2vec_base"])
    assert asdict(PRESETS["dinosr_tiny"]) == asdict(DATA2VEC["data2vec_tiny"])
    for bad in ({"codebook_decay": 1.5}, {"codebook_entries": 0}, {"target_layers": 9}):
        with pytest.raises(ConfigError, match=r"codebook|target_layers"):
            make(replace(CONFIG, **bad))


SETTINGS = {
    "_name": "dinosr", "discrete": True, "codebook_size": 256, "extractor_mode": "layer_norm", "encoder_layers": 3,
    "encoder_embed_dim": 64, "encoder_ffn_embed_dim": 128, "encoder_attention_heads": 4, "conv_pos": 95,
    "pos_conv_depth": 5, "conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2", "ema_decay": 0.999,
}  # fmt: skip


def official_state(model: Any) -> dict[str, Any]:
    """The weights by fairseq's names, with what the official code keeps beside them."""
    state = fairseq_weights(model.state_dict(), norm="layer")
    teacher = {k.removeprefix("encoder."): v + 1.0 for k, v in state.items() if k.startswith("encoder.layers")}
    extra: dict[str, Any] = {"_ema": teacher, "_pre_encoder_cnn": {"conv_layers.0.0.weight": torch.ones(32, 1, 10)}}
    for number in range(2):
        extra |= {f"_codebook{number}": torch.ones(256, 64), f"_codebook_cnts{number}": torch.ones(256)}
        extra |= {f"heads.{number}.weight": torch.ones(256, 64), f"heads.{number}.bias": torch.ones(256)}
    return {**state, **extra}


@pytest.mark.parity("fairseq .pt ({form})", "transformers")
@pytest.mark.parametrize("form", ["pre-trained", "fine-tuned"])
def test_official_checkpoints_give_the_student_without_teacher_and_codebooks(form: str, tmp_path: Path) -> None:
    model = their_model(Data2VecAudioForCTC, TheirConfig).data2vec_audio
    state, settings = official_state(model), OmegaConf.create({"model": SETTINGS, "task": {"normalize": True}})
    content: dict[str, Any] = {"cfg": settings, "model": state}
    if form == "fine-tuned":
        state = {f"w2v_encoder.w2v_model.{k}": v for k, v in state.items() if not k.startswith("heads")}
        state["w2v_encoder.proj.weight"] = torch.zeros(9, 64)
        outer = {"_name": "wav2vec_ctc", "w2v_args": settings}
        content = {"cfg": {"model": outer, "task": {"normalize": True}}, "model": state}
    torch.save(content, tmp_path / "dinosr.ckpt")
    upstream = load_upstream(tmp_path / "dinosr.ckpt")
    assert (upstream.family, upstream.normalize) == ("dinosr", True)
    check_parity_row_by_row(model, upstream)


def test_a_missing_weight_is_named_as_the_official_code_does(tmp_path: Path) -> None:
    state = official_state(their_model(Data2VecAudioForCTC, TheirConfig).data2vec_audio)
    del state["encoder.layers.1.fc1.weight"]
    torch.save({"cfg": {"model": SETTINGS, "task": {}}, "model": state}, tmp_path / "x.pt")
    with pytest.raises(SpeechsslError, match=r"lack 'encoder\.layers\.1\.fc1\.weight'"):
        load_upstream(tmp_path / "x.pt")


def test_data2vecs_checkpoints_stay_data2vecs(tmp_path: Path) -> None:
    state = fairseq_weights(their_model(Data2VecAudioForCTC, TheirConfig).data2vec_audio.state_dict(), norm="layer")
    torch.save({"cfg": {"model": {**SETTINGS, "_name": "data2vec_audio"}, "task": {}}, "model": state}, tmp_path / "x")
    upstream = load_upstream(tmp_path / "x")
    assert isinstance(upstream.config, Data2VecConfig)
