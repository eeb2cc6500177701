"""What joins the layers of an upstream, and frame stacking."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from speechssl.checkpoint import save_tensors
from speechssl.classification.config import ClassificationConfig
from speechssl.config import load_config
from speechssl.data.corpus import open_corpus
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.featurizer.attention import LayerAttention
from speechssl.featurizer.build import build_featurizer
from speechssl.featurizer.hierarchical_conv import layer_counts
from speechssl.featurizer.interface import Interface
from speechssl.featurizer.stack import stack_factor, stack_frames
from speechssl.featurizer.weighted_sum import WeightedSum
from speechssl.inference import infer
from speechssl.jobs import RunOptions
from speechssl.report import write_report
from speechssl.runner import run
from speechssl.task import FeatureConfig, TrainConfig
from speechssl.types import HiddenStates

KINDS = ["weighted_sum", "single", "two_sums", "concat", "concat to 7", "hierarchical_conv", "attention"]
LINEAR = KINDS[:5]
SIZE = 12
COUNTS = {  # parameters of 13 layers of 12, counted by hand; `single` has one layer
    "weighted_sum": 13,
    "single": 0,
    "two_sums": 2 * 13,
    "concat": 0,
    "concat to 7": 7 * 13 * 12,
    "hierarchical_conv": (12 * 12 * 5 + 12) + (6 * 12 * 5 + 6),
    "attention": 13 + 13 * 12,
}


def config_of(kind: str, **changes: Any) -> FeatureConfig:
    name, _, width = kind.partition(" to ")
    layers = (3,) if name == "single" else None
    return FeatureConfig(interface=name, interface_size=int(width) if width else None, layers=layers, **changes)  # type: ignore[arg-type]


def make(kind: str, layers: int = 13, *, seed: int = 0, **changes: Any) -> Interface:
    """With all parameters drawn, so that none is where it is by default."""
    module = build_featurizer(config_of(kind, **changes), 1 if kind == "single" else layers, SIZE)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return module


def layers_of(module: Interface, lengths: tuple[int, ...] = (7, 3, 5)) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    layers = 2 * torch.randn(module.num_layers, len(lengths), max(lengths), SIZE, generator=generator) + 0.5
    for row, length in enumerate(lengths):
        layers[:, row, length:] = 0
    return layers  # (K, B, T, D)


def slowly(kind: str, module: Interface, frame: Tensor) -> Tensor:
    """One frame (K, D) -> (E,), from the definitions."""
    own: Any = module
    if kind == "single":
        return frame[0]
    if kind == "two_sums":
        both = [own.logits[k].exp() / own.logits[k].exp().sum() for k in range(2)]
        return torch.cat([sum((w * x for w, x in zip(b, frame, strict=True)), torch.zeros(SIZE)) for b in both])
    if kind == "concat":
        return torch.tensor([x for layer in frame.tolist() for x in layer])
    if kind == "concat to 7":
        return own.project.weight @ frame.flatten()  # type: ignore[no-any-return]
    if kind == "hierarchical_conv":  # as the reference code stacks them
        signal = frame.T[None]  # (1, D, K)
        for part in own.transforms:
            padded = isinstance(part, nn.Conv1d)
            signal = F.conv1d(signal, part.weight, part.bias, stride=3, padding=2) if padded else signal.clamp(min=0)
        return signal.flatten()
    scores = own.logits.tolist()
    if kind == "attention":
        for k, layer in enumerate(frame):
            standard = (layer - layer.mean()) / (layer.var(correction=0) + 1e-5).sqrt()
            scores[k] += own.query[k].dot(standard).item() / SIZE**0.5
    weights = torch.tensor(scores).exp()
    weights = weights / weights.sum()
    return sum((w * layer for w, layer in zip(weights, frame, strict=True)), torch.zeros(SIZE))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_interface_does_what_its_definition_says(kind: str, normalize: bool) -> None:
    module = make(kind, normalize=normalize)
    layers = layers_of(module, (4, 4))
    prepared = (layers - layers.mean(-1, keepdim=True)) / (layers.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    found = module(layers)
    assert found.shape == (2, 4, module.hidden_size)
    for row in range(2):
        for t in range(4):
            expected = slowly(kind, module, (prepared if normalize else layers)[:, row, t])
            torch.testing.assert_close(found[row, t], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", range(2, 28))
def test_hierarchical_convolutions_leave_the_layers_that_torch_would(count: int) -> None:
    module = make("hierarchical_conv", count)
    layers = layers_of(module)
    stacked: Tensor = module.transforms(layers.permute(1, 2, 3, 0).flatten(0, 1))  # type: ignore[operator]  # (B*T, D, K)
    assert stacked.size(2) == layer_counts(count)[-1]
    torch.testing.assert_close(module(layers), stacked.flatten(1).reshape(3, 7, -1), atol=1e-5, rtol=1e-5)


def test_a_base_and_a_large_model_keep_the_sizes_of_the_reference_code() -> None:
    """`atosystem/SSL_Interface`: 13 x 768 -> 2 x 384, 25 x 1024 -> 3 x 341."""
    assert layer_counts(13) == [13, 5, 2]
    assert layer_counts(25) == [25, 9, 3]
    config = FeatureConfig(interface="hierarchical_conv")
    with torch.device("meta"):
        assert [build_featurizer(config, k, d).hidden_size for k, d in ((13, 768), (25, 1024))] == [768, 1023]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing_and_stays_zero(kind: str, normalize: bool) -> None:
    module, lengths = make(kind, normalize=normalize), torch.tensor([7, 3, 5])
    layers = layers_of(module)
    together = module(layers, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = module(layers[:, row : row + 1, :length])
        torch.testing.assert_close(together[row : row + 1, :length], alone, atol=1e-5, rtol=1e-5)
        assert not together[row, length:].any()


@pytest.mark.parametrize("kind", LINEAR)
def test_the_mean_over_time_can_be_taken_before_what_is_linear(kind: str) -> None:
    module, lengths = make(kind), torch.tensor([7, 3, 5])
    layers = layers_of(module)
    after = module(layers, lengths).sum(1) / lengths[:, None]
    before = module(layers.sum(2) / lengths[None, :, None], lengths)
    assert before.shape == (3, module.hidden_size)
    torch.testing.assert_close(before, after, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(LINEAR)))
def test_the_mean_over_time_is_refused_before_what_is_not_linear(kind: str) -> None:
    module, lengths = make(kind), torch.tensor([7, 3, 5])
    layers = layers_of(module)
    after = module(layers, lengths).sum(1) / lengths[:, None]
    assert (module(layers.sum(2) / lengths[None, :, None]) - after).abs().max() > 1e-2  # it would be wrong
    with pytest.raises(ConfigError, match=f"{kind}.*is not linear.*features.pooling=none"):
        config_of(kind, pooling="mean")


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_layer_and_every_parameter(kind: str) -> None:
    module = make(kind)
    layers = layers_of(module).requires_grad_()
    module(layers, torch.tensor([7, 3, 5])).square().sum().backward()
    assert layers.grad is not None and (layers.grad.flatten(1).abs().amax(1) > 0).all()
    for name, parameter in module.named_parameters():
        assert not parameter.requires_grad or (parameter.grad is not None and parameter.grad.abs().max() > 0), name


@pytest.mark.parametrize("kind", KINDS)
def test_lists_tensors_hidden_states_and_bf16_are_taken_alike(kind: str) -> None:
    module = make(kind)
    layers = layers_of(module)
    expected = module(layers)
    states = HiddenStates(dict(enumerate(layers)), 13)
    for given in (list(layers), states):
        torch.testing.assert_close(module(given), expected, atol=0, rtol=0)
    half = module(layers.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, module(layers.bfloat16().float()), atol=0, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back_from_a_file(kind: str, tmp_path: Path) -> None:
    module, other = make(kind), make(kind, seed=5)
    save_tensors(module.state_dict(), tmp_path / "a.safetensors")
    other.load_state_dict(load_file(tmp_path / "a.safetensors"))
    layers = layers_of(module)
    torch.testing.assert_close(other(layers), module(layers), atol=0, rtol=0)
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == COUNTS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_weighted_sum_has_weights_to_report(kind: str) -> None:
    weights = make(kind).weights()
    if kind == "single":
        assert weights is not None and weights.tolist() == [1.0]
    else:
        assert (weights is not None) == (kind == "weighted_sum")


def test_attention_begins_as_the_weighted_sum_does() -> None:
    layers = layers_of(make("attention"))
    begun = build_featurizer(config_of("attention"), 13, SIZE)
    torch.testing.assert_close(begun(layers), WeightedSum(13, SIZE)(layers), atol=1e-6, rtol=1e-6)
    assert isinstance(begun, LayerAttention) and begun.attend(list(layers)).shape == (3, 7, 13)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["interface=single"], "features.layers` is null: name one, as in `features.layers=\\[6\\]`"),
        (["interface=single", "layers=[1,2]"], "takes one layer, but `features.layers` is \\[1, 2\\]"),
        (["interface_size=4"], "is 4 with `features.interface=weighted_sum`"),
        (["interface=concat", "interface_size=0"], "1 or more"),
        (["interface=concat", "weight_rate_scale=10"], "leave it at 1"),
        (["interface=hierarchical_conv", "pooling=mean"], "features.pooling=none"),
        (["interface=conv"], "hierarchical_conv"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_config(FeatureConfig(), overrides=settings)


def test_interfaces_that_the_layers_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="joins layers, but there is one"):
        build_featurizer(config_of("hierarchical_conv"), 1, SIZE)
    with pytest.raises(ConfigError, match="takes one layer, but there are 4"):
        build_featurizer(config_of("single"), 4, SIZE)
    with pytest.raises(SpeechsslError, match="12 wide, but are 5"):
        make("concat", 4)(torch.zeros(4, 1, 2, 5))


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> RunOptions:
    return RunOptions(cache_folder=str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("kind", ["single", "concat to 7", "hierarchical_conv", "attention"])
def test_a_run_with_it_is_saved_reported_and_applied_to_files(
    kind: str, tiny_corpus: Path, tmp_path: Path, options: RunOptions
) -> None:
    """The probability of a file alone is that of the file in a batch."""
    config = ClassificationConfig(
        train=TrainConfig(steps=6, batch_seconds=20.0, learning_rate=3e-3, evaluate_every=3),
        features=config_of(kind),
        fields=("language",),
        max_train_utterances=4,
        max_eval_utterances=3,
    )
    (result,) = run(
        "language_identification",
        upstream="hubert_tiny:random",
        corpus=tiny_corpus,
        config=config,
        out=tmp_path,
        options=options,
    )
    interface = build_featurizer(config.features, 1 if kind == "single" else result.upstream.num_layers, 256)
    head = interface.hidden_size * 256 + 256 + 256 * 2 + 2
    own = sum(p.numel() for p in interface.parameters() if p.requires_grad)
    assert result.trained_parameters == own + head
    assert list(result.layer_weights) == ([1.0] if kind == "single" else [])
    folder = tmp_path / "language_identification/hubert_tiny_random/seed0"
    rows = [line.split("\t") for line in (folder / "predictions.tsv").read_text().splitlines()[1:3]]
    files = {u.id: u.path for u in open_corpus(tiny_corpus).utterances("test")}
    found = infer(folder, [files[row[0]] for row in rows])
    for row in rows:
        assert found[files[row[0]]]["language"]["probability"] == pytest.approx(
            float(row[3]), abs=1e-3
        )  # cached in bf16
    page = write_report([tmp_path], tmp_path / "page").path.read_text(encoding="utf-8")
    assert "Layer weights" not in page and "hubert_tiny_random" in page


def states(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 3, 7, 5, generator=torch.Generator().manual_seed(seed))  # (K, B, T, D)


@pytest.mark.parametrize("normalize", [False, True])
def test_running_sum_equals_the_stacked_sum_in_value_and_gradient(normalize: bool) -> None:
    module = WeightedSum(4, 5, normalize=normalize)
    with torch.no_grad():
        module.logits.copy_(torch.tensor([0.3, -1.0, 2.0, 0.0]))
    out = module(states())
    out.square().sum().backward()
    logits = module.logits.detach().clone().requires_grad_()
    stacked = F.layer_norm(states(), (5,)) if normalize else states()
    reference = (torch.softmax(logits, 0)[:, None, None, None] * stacked).sum(0)
    reference.square().sum().backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
    torch.testing.assert_close(out, reference, atol=1e-6, rtol=0)
    torch.testing.assert_close(module.logits.grad, logits.grad, atol=1e-5, rtol=1e-5)


def test_weights_begin_equal_and_sum_to_one() -> None:
    torch.testing.assert_close(WeightedSum(4, 5).weights(), torch.full((4,), 0.25))


def test_hidden_states_lists_and_tensors_give_the_same() -> None:
    module, tensor = WeightedSum(4, 5), states()
    expected = module(tensor)
    torch.testing.assert_close(module(list(tensor)), expected, atol=0, rtol=0)
    torch.testing.assert_close(module(HiddenStates(dict(enumerate(tensor)), 4)), expected, atol=0, rtol=0)


def test_bf16_features_are_summed_in_float32_and_pooled_ones_as_well() -> None:
    out = WeightedSum(4, 5)(states().bfloat16())
    assert out.dtype == torch.float32
    assert WeightedSum(4, 5)(states()[:, :, 0]).shape == (3, 5)


def test_one_layer_has_nothing_to_learn() -> None:
    module = WeightedSum(1, 5)
    torch.testing.assert_close(module(states()[:1]), states()[0], atol=0, rtol=0)
    assert not module.logits.requires_grad


def test_wrong_layers_are_refused() -> None:
    with pytest.raises(SpeechsslError, match="4 layers, but holds 3"):
        WeightedSum(4, 5)(states()[:3])
    with pytest.raises(SpeechsslError, match="one shape"):
        WeightedSum(2, 3)([torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)])


def test_stacked_frames_hold_their_neighbours_and_zeros_after_the_end() -> None:
    features = torch.arange(10.0).reshape(1, 5, 2)
    stacked, lengths = stack_frames(features, torch.tensor([5]), 2)
    assert stacked.tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 0]]]
    assert lengths.tolist() == [3]


def test_stacking_brings_every_upstream_to_one_rate() -> None:
    assert [stack_factor(rate, 25.0) for rate in (100.0, 50.0, 25.0, 20.0)] == [4, 2, 1, 1]
    assert stack_factor(49.95, 25.0) == 2
    with pytest.raises(ConfigError, match="30 Hz"):
        stack_factor(50.0, 30.0)
