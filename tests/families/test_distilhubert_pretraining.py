"""DistilHuBERT's loss against S3PRL's spelled out, and what becomes of its teacher."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speechssl.checkpoint import save_upstream
from speechssl.data.batching import make_generator
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.loading import build_upstream
from speechssl.loss.distillation import LayerPrediction
from speechssl.objective import Labelling, PretrainInputs
from speechssl.train.run import build_objective, pretrain_config
from upstreams.distilhubert.config import PRESETS
from upstreams.distilhubert.pretrain import DistilHubertPretrainConfig, DistilHubertPretraining

SIZES: dict[str, Any] = {"width": 32, "heads": 4, "ffn_width": 48, "pos_kernel": 7}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a HuBERT of three blocks, whose positions, norms and biases matter."""
    folder = tmp_path_factory.mktemp("teacher")
    config = pretrain_config("hubert_tiny", overrides=[f"model.{k}={v}" for k, v in SIZES.items()])[1].model
    upstream = build_upstream("hubert", replace(config, depth=3), seed=3)
    with torch.no_grad():
        for number, parameter in enumerate(upstream.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=make_generator(number)))
    save_upstream(upstream, folder)
    return str(folder)


def student(**changes: Any) -> Any:
    return build_upstream("distilhubert", replace(PRESETS["distilhubert_tiny"], **SIZES, **changes), seed=0)


def objective(teacher: str | None, **changes: Any) -> DistilHubertPretraining:
    settings = replace(DistilHubertPretrainConfig(teacher=teacher, layers=(1, 3)), **changes)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return DistilHubertPretraining(student(), settings, Labelling())


def inputs(lengths: tuple[int, ...] = (16_000, 16_000, 16_000)) -> PretrainInputs:
    waveform = 0.1 * torch.randn(len(lengths), max(lengths), generator=make_generator(0))
    size = torch.tensor(lengths)
    return PretrainInputs(torch.where(torch.arange(max(lengths)) < size[:, None], waveform, 0.0), size)


def s3prls_heads(hidden: Tensor, heads: LayerPrediction) -> Tensor:
    """`output_layer` with its SplitLinear: (B, T, D) -> (B, L, T, E)."""
    B, T, _ = hidden.shape
    x = F.gelu(F.linear(hidden, heads.expand.weight, heads.expand.bias)).reshape(B, T, heads.layers, 1, -1)
    out = torch.einsum("...klm,kmn->...kln", x, heads.weight).squeeze(3) + heads.bias.squeeze(1)
    return out.permute(0, 2, 1, 3)


@pytest.mark.parametrize("cosine_weight", [0.0, 1.0, 0.5])
def test_the_loss_is_s3prls(teacher: str, cosine_weight: float) -> None:
    module = objective(teacher, cosine_weight=cosine_weight).eval()
    given = inputs()
    output = module(given, make_generator(0))
    hidden = module.upstream(given.waveform, given.lengths).hidden_states[-1]
    predicted = s3prls_heads(hidden, module.heads)
    taught = module.teacher(given.waveform, given.lengths).hidden_states
    target = torch.stack([taught[1], taught[3]], dim=1)
    expected = F.l1_loss(predicted, target)
    expected = expected - cosine_weight * F.logsigmoid(F.cosine_similarity(predicted, target, dim=-1)).mean()
    assert output.sample_size.item() == target.size(0) * target.size(2)
    torch.testing.assert_close(output.loss_sum / output.sample_size, expected, rtol=1e-5, atol=1e-5)


def test_padding_counts_in_no_mean(teacher: str) -> None:
    module = objective(teacher).eval()
    lengths = (16_000, 9_000, 12_345)
    together = module(inputs(lengths), make_generator(0))
    given = inputs(lengths)
    apart = [
        module(PretrainInputs(given.waveform[i : i + 1, :n], torch.tensor([n])), make_generator(0))
        for i, n in enumerate(lengths)
    ]
    torch.testing.assert_close(together.loss_sum, sum(o.loss_sum for o in apart), rtol=1e-5, atol=1e-4)
    assert together.sample_size.item() == sum(o.sample_size.item() for o in apart)


def test_the_student_starts_with_the_teachers_first_blocks(teacher: str) -> None:
    module = objective(teacher)
    given = module.teacher.state_dict()
    same = {k for k, v in module.upstream.state_dict().items() if k in given and torch.equal(v, given[k])}
    for part in ("projection.weight", "projection.bias", "encoder.position.conv.bias", "encoder.blocks.1.fc2.weight"):
        assert part in same
    assert "encoder.norm.weight" not in same
    apart = objective(teacher, initialize=False)
    assert not torch.equal(apart.upstream.projection.weight, given["projection.weight"])


def test_the_teacher_is_frozen_in_evaluation_mode_and_stops_at_the_deepest_layer_asked_for(teacher: str) -> None:
    module = objective(teacher, layers=(1, 2)).train()
    assert module.upstream.training
    assert not any(m.training for m in module.teacher.modules())
    before = {k: v.clone() for k, v in module.teacher.state_dict().items()}
    rows = dict.fromkeys(range(3), 0)

    def count(index: int, x: Tensor) -> None:
        assert x.dtype == torch.float32  # under autocast too
        rows[index] += len(x)

    for index, block in enumerate(module.teacher.encoder.blocks):  # type: ignore[arg-type,union-attr]
        block.register_forward_hook(lambda _m, _i, out, index=index: count(index, out))
    with torch.autocast("cpu", torch.bfloat16):
        output = module(inputs(), make_generator(0))
    output.loss_sum.backward()
    assert rows == {0: 3, 1: 3, 2: 0}  # each utterance once
    assert all(p.grad is None for p in module.teacher.parameters())
    assert not any(name.startswith("teacher.") for name, _ in module.trained_parameters())
    assert all(torch.equal(v, before[k]) for k, v in module.teacher.state_dict().items())


def test_a_student_that_learns_comes_nearer_to_its_teacher(teacher: str) -> None:
    module = objective(teacher).train()
    optimizer = torch.optim.AdamW([p for _, p in module.trained_parameters()], lr=2e-3)
    similarity = []
    for _ in range(40):
        output = module(inputs(), make_generator(0))
        (output.loss_sum / output.sample_size).backward()
        optimizer.step()
        optimizer.zero_grad()
        similarity.append(float(output.metrics["similarity_3"] / output.sample_size))
    assert similarity[-1] > similarity[0] + 0.5


def test_the_tiny_preset_names_a_random_teacher_of_its_own_shape() -> None:
    overrides = [f"model.{k}={v}" for k, v in SIZES.items()]
    config = pretrain_config("distilhubert_tiny", overrides=overrides)[1]
    upstream = build_upstream("distilhubert", config.model, seed=0)
    module: Any = build_objective(upstream, config, Labelling())
    assert len(module.teacher.encoder.blocks) == 6
    assert len(upstream.encoder.blocks) == 2  # type: ignore[arg-type,union-attr]
    assert torch.equal(upstream.projection.weight, module.teacher.projection.weight)  # type: ignore[union-attr]


def test_teachers_that_do_not_fit_are_refused_with_the_reason(teacher: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"name an upstream with `objective\.teacher`"):
        objective(None)
    with pytest.raises(ConfigError, match=r"50\.0 frames a second, but .* has 100\.0"):
        objective("fbank")
    with pytest.raises(SpeechsslError, match=r"must lie in 0\.\.3"):
        objective(teacher, layers=(4, 8, 12))
    with pytest.raises(ConfigError, match=r"'projection\.weight' has shape .*make the shapes equal"):
        objective("hubert_tiny:random:2")
    other = objective("hubert_tiny:random:2", initialize=False, layers=(2, 6))  # another width is no obstacle
    assert other.heads.weight.shape == (2, 32, 256)


def test_the_preset_has_s3prls_numbers() -> None:
    config = pretrain_config("distilhubert")[1]
    assert (config.objective.teacher, config.objective.layers) == ("hubert_base", (4, 8, 12))
    train = config.train
    assert (train.steps, train.max_batch, train.batches_per_step) == (200_000, 24, 1)
    assert (train.learning_rate, train.weight_decay, train.warmup, train.clip_norm) == (2e-4, 1e-6, 0.07, 5.0)
