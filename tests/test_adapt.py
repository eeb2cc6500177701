"""Adapting an upstream to a task: the methods against slow references, and runs that train them."""

import copy
import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from adapt_reference import slow_block
from safetensors.torch import load_file
from torch import Tensor

from downstreams.asr.config import AsrConfig
from speechssl.adapt.adaptable import Adaptable, heard_layers
from speechssl.adapt.blocks import find_blocks
from speechssl.adapt.config import AdaptConfig
from speechssl.adapt.distill import without_bottlenecks
from speechssl.adapt.live import LiveFeatures, Wanted
from speechssl.adapt.methods import Adapted, adapt, merge, set_training
from speechssl.adapt.perturb import draw_skipped, perturbing
from speechssl.adapt.prune import prune_before, rate_at
from speechssl.adapt.reading import cut
from speechssl.audio import read_audio
from speechssl.cache import FeatureCache
from speechssl.checkpoint import save_upstream
from speechssl.config import load_config
from speechssl.data.corpus import open_corpus
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.export import export_upstream
from speechssl.fitting import Fit
from speechssl.inference import infer, load_adapted
from speechssl.jobs import Job, RunOptions, upstream_of
from speechssl.loading import build_upstream, load_upstream
from speechssl.registry import find_preset
from speechssl.result import RunResult
from speechssl.runner import run
from speechssl.streaming import FrameKeeper
from speechssl.task import TrainConfig
from speechssl.types import LossOutput, Utterance
from speechssl.upstream import Upstream
from speechssl.upstream_spec import UpstreamSpec, make_card
from speechssl.variants import Variant

CONFIG = AsrConfig(
    train=TrainConfig(steps=4, batch_seconds=12.0, learning_rate=5e-3, evaluate_every=2),
    label_rate=25.0,
    project_size=12,
    hidden_size=8,
)
TINY = {"width": 16, "ffn_width": 24, "heads": 2, "depth": 3, "pos_kernel": 5, "pos_groups": 2}
METHODS = ("full", "adapters", "lora", "prefix", "bitfit")
SMALL: dict[str, Any] = {"adapter_width": 3, "lora_rank": 2, "prefix_length": 3}


def tiny(name: str = "hubert_tiny", seed: int = 3, **changes: Any) -> Upstream:
    family, config = find_preset(name)
    fields = {field.name for field in dataclasses.fields(config)}
    sizes = {key: value for key, value in {**TINY, **changes}.items() if key in fields}
    upstream = build_upstream(family, dataclasses.replace(config, **sizes), seed=seed).eval()
    upstream.name = name
    return upstream


def adapted(method: Any, upstream: Upstream | None = None, **changes: Any) -> Adapted:
    return adapt(upstream or tiny(), AdaptConfig(method=method, **{**SMALL, **changes}), seed=0)


@torch.no_grad()
def shake(found: Adapted, size: float = 0.3) -> Adapted:
    generator = torch.Generator().manual_seed(1)
    for parameter in found.trained.values():
        parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return found


def noise(rows: int = 1, samples: int = 4_000) -> Tensor:
    return 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- the methods


def added_weights(found: Adapted, number: int, method: str) -> dict[str, Tensor]:
    """What a method added to a block, by the names of the reference."""
    prefix = f"encoder.blocks.{number}."
    own = {k.removeprefix(prefix): v.detach() for k, v in found.trained.items() if k.startswith(prefix)}
    if method == "lora":
        down, up = own["attention.qkv.down"], own["attention.qkv.up"]
        pairs = {"query": 0, "value": 1}
        return {
            "scale": torch.tensor(12.0 / 2),
            **{f"down_{name}": down[place] for name, place in pairs.items()},
            **{f"up_{name}": up[place] for name, place in pairs.items()},
        }
    if method == "prefix":
        return {part: own[f"attention.prefix.{part}"].squeeze() for part in ("key", "value", "gate")}
    places = {"attention": "attention.output.bottleneck", "ffn": "fc2.bottleneck"}
    return {
        f"{short}_{layer}{'' if part == 'weight' else '_bias'}": own[f"{long}.{layer}.{part}"]
        for short, long in places.items()
        for layer in ("down", "up")
        for part in ("weight", "bias")
    }


@pytest.mark.parametrize("method", ["lora", "prefix", "adapters"])
@torch.no_grad()
def test_blocks_give_what_their_definition_gives(method: str) -> None:
    found = shake(adapted(method, lora_alpha=12.0))
    states = found.upstream(noise()).hidden_states
    for number, block in enumerate(find_blocks(found.upstream)):
        expected = slow_block(states[number][0], block.module, added_weights(found, number, method))
        assert (states[number + 1][0] - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["hubert_tiny", "wav2vec2_conformer_rope_large"])
@torch.no_grad()
def test_merged_low_rank_updates_are_the_weights_plus_the_product(name: str) -> None:
    upstream = tiny(name, **({"conv_channels": 16} if "conformer" in name else {}))
    before = copy.deepcopy(upstream)
    found = shake(adapted("lora", upstream, lora_alpha=6.0, lora_targets=("value", "query")))
    weights = {name: weight.clone() for name, weight in found.trained.items()}
    heard = found.upstream(noise()).hidden_states
    merge(found.upstream)
    for number, (new, old) in enumerate(zip(find_blocks(found.upstream), find_blocks(before), strict=True)):
        down = weights[f"encoder.blocks.{number}.attention.qkv.down"]
        up = weights[f"encoder.blocks.{number}.attention.qkv.up"]
        expected = old.attention.qkv.weight.clone()
        expected[:16] += 3.0 * up[0] @ down[0]  # queries come first, whatever the order of the targets
        expected[32:] += 3.0 * up[1] @ down[1]
        assert (new.attention.qkv.weight - expected).abs().max() <= 1e-6
        assert type(new.attention.qkv) is type(old.attention.qkv)
    again = found.upstream(noise()).hidden_states
    assert max((a - b).abs().max() for a, b in zip(heard, again, strict=True)) <= 1e-5


def test_each_method_trains_as_many_numbers_as_its_paper_says() -> None:
    width, depth, inner, rank, length, heads = 16, 3, 3, 2, 3, 2
    norms = 2 * 2 * width
    assert adapted("adapters").parameters() == depth * (2 * (2 * inner * width + inner + width) + norms)
    assert adapted("adapters", adapter_norms=False).parameters() == depth * 2 * (2 * inner * width + inner + width)
    assert adapted("lora").parameters() == depth * 2 * 2 * rank * width
    assert adapted("prefix").parameters() == depth * (2 * length * width + heads)
    # Of queries, keys and values; of attention's output; of the feed-forward's two layers; of two norms.
    assert adapted("bitfit").parameters() == depth * (3 * width + width + 24 + width + 2 * width)
    assert adapted("bitfit", top_layers=1).parameters() == adapted("bitfit").parameters() // depth
    whole = adapted("full", train_frontend=True, mask_prob=0.1)
    assert whole.parameters() == sum(p.numel() for p in tiny().parameters())
    assert adapted("frozen").parameters() == 0


def test_only_the_topmost_layers_learn_and_rates_fall_from_block_to_block() -> None:
    found = adapted("full", top_layers=2, layer_decay=0.5)
    assert {name.split(".")[2] for name in found.trained} == {"1", "2"}
    assert found.frozen == 1
    for name, rate in found.rates.items():
        assert rate == {"1": 0.5, "2": 1.0}[name.split(".")[2]]
    whole = adapted("full", layer_decay=0.5)
    assert whole.rates["projection.weight"] == 0.125
    assert whole.rates["encoder.blocks.0.fc1.weight"] == 0.25
    assert whole.frozen == -1


def test_heads_hear_all_layers_that_are_as_wide_as_the_last_one(caplog: pytest.LogCaptureFixture) -> None:
    upstream = load_upstream("apc_tiny", random_weights=0)
    assert upstream.hidden_sizes == (80, 384, 384, 384)
    assert heard_layers(upstream, AdaptConfig(), None) == [1, 2, 3]
    assert "The hidden states [0]" in caplog.text
    assert heard_layers(upstream, AdaptConfig(), [0]) == [0]


def test_what_no_head_hears_is_not_trained() -> None:
    config = AdaptConfig(method="full")
    found = adapt(tiny(), config, seed=0, deepest=1)
    assert not any(name.startswith(("encoder.blocks.1", "encoder.blocks.2")) for name in found.trained)
    with pytest.raises(ConfigError, match="nothing to train"):
        adapt(tiny(), dataclasses.replace(config, top_layers=1), seed=0, deepest=2)


def test_equal_seeds_add_equal_weights_and_touch_no_global_state() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (adapt(tiny(), AdaptConfig(method="lora"), seed=seed).state() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"lora_rank": 0}, "lora_rank"), ({"layerdrop": 1.0}, "layerdrop"), ({"learning_rate": 0.0}, "learning_rate"),
        ({"lora_targets": ("query", "query")}, "distinct"), ({"freeze_steps": -1}, "freeze_steps"),
        ({"top_layers": 0}, "top_layers"), ({"max_batch_seconds": 0.0}, "max_batch_seconds"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        AdaptConfig(method="lora", **changes)


def test_a_key_that_is_none_is_answered_with_a_near_one() -> None:
    assert load_config(CONFIG, overrides=["adapt.method=lora", "adapt.lora_rank=4"]).adapt.lora_rank == 4
    with pytest.raises(ConfigError, match=r"adapt\.lora_rnk.*lora_rank"):
        load_config(CONFIG, overrides=["adapt.lora_rnk=4"])
    with pytest.raises(ConfigError, match=r"adapt\.method"):
        load_config(CONFIG, overrides=["adapt.method=loar"])


# ---------------------------------------------------------------- training mode


@torch.no_grad()
def test_blocks_that_are_passed_by_hand_on_their_input_and_no_state_is_missing() -> None:
    found = adapted("full", top_layers=2)
    config = AdaptConfig(method="full", top_layers=2, layerdrop=0.5)
    set_training(found, True)
    dropped: set[int] = set()
    for seed in range(8):
        generator, same = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
        skipped = draw_skipped(found, config, same)
        assert skipped <= {1, 2}, "what is frozen is not passed by"
        dropped |= skipped
        with perturbing(found, config, generator):
            states = found.upstream(noise()).hidden_states
        assert states.layers == (0, 1, 2, 3)
        for block in range(3):
            assert torch.equal(states[block], states[block + 1]) == (block in skipped)
    assert dropped == {1, 2}


@torch.no_grad()
def test_hidden_frames_are_the_embedding_and_hidden_channels_zero_in_training_alone() -> None:
    config = AdaptConfig(method="full", mask_prob=0.5, mask_length=3, channel_mask_prob=0.4, channel_mask_length=4)
    found = adapt(tiny(), config, seed=0)
    upstream: Any = found.upstream
    heard: list[Tensor] = []
    waveform, lengths = noise(2), torch.tensor([4_000, 2_500])
    for settings in (config, AdaptConfig(method="full")):
        with torch.set_grad_enabled(True), perturbing(found, settings, torch.Generator().manual_seed(0)):
            hook = upstream.encoder.register_forward_pre_hook(lambda _, args: heard.append(args[0].detach().clone()))
            upstream(waveform, lengths, layers=[0])
            hook.remove()
    hidden, plain = heard
    frames = upstream.output_lengths(lengths).tolist()
    channels = (hidden == 0).all(dim=1)  # (B, D)
    assert channels.any(dim=1).all() and not channels.all(dim=1).any()
    for row, count in enumerate(frames):
        shown = ~channels[row]
        masked = (hidden[row, :, shown] == upstream.mask_embedding[shown]).all(dim=1)
        same = (hidden[row, :, shown] == plain[row, :, shown]).all(dim=1)
        assert torch.equal(masked, ~same)
        assert 0 < int(masked.sum()) < count and not masked[count:].any()


def test_what_is_frozen_from_below_evaluates_and_the_rest_drops_out() -> None:
    found = adapted("full", tiny(dropout=0.5, input_dropout=0.5), top_layers=1)
    set_training(found, True)
    blocks = find_blocks(found.upstream)
    assert [block.module.training for block in blocks] == [False, False, True]
    with torch.no_grad():
        first, second = (found.upstream(noise()).hidden_states for _ in range(2))
    assert [torch.equal(a, b) for a, b in zip(first, second, strict=True)] == [True, True, True, False]
    set_training(found, False)
    assert not any(module.training for module in found.upstream.modules())


def test_families_whose_input_can_not_be_hidden_say_so(tmp_path: Path) -> None:
    upstream = tiny("tera_tiny")
    for name in ("mask_prob", "layerdrop"):
        changes: dict[str, Any] = {name: 0.5}
        with pytest.raises(ConfigError, match=rf"adapt\.{name}"):
            live_features(upstream, {}, tmp_path, **changes)


# ---------------------------------------------------------------- what is kept


def live_features(
    upstream: Upstream, utterances: dict[str, Utterance], folder: Path, *, max_duration: float | None = None,
    layers: tuple[int, ...] = (0, 1, 2, 3), pooled: bool = False, cache_gb: float = 1.0, **changes: Any,
) -> LiveFeatures:  # fmt: skip
    config = AdaptConfig(**{"method": "lora", **SMALL, **changes})
    items, cache = list(utterances.values()), FeatureCache(folder, cache_gb)
    keeper = FrameKeeper(cache, items, precision="float32", skip_bad=False, devices=())
    wanted = Wanted(layers, pooled, max_duration=max_duration)
    keep = partial(keeper.keep, dtype="float32")
    return Adaptable(upstream, config, wanted, utterances, keep=keep, skip_bad=False).adapt(config, seed=0)


@pytest.fixture
def utterances(tiny_corpus: Path) -> dict[str, Utterance]:
    return {u.id: u for u in open_corpus(tiny_corpus).utterances("dev")[:5]}


@pytest.mark.parametrize("pooled", [False, True])
@torch.no_grad()
def test_features_are_the_same_wherever_they_begin(
    pooled: bool, utterances: dict[str, Utterance], tmp_path: Path
) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"method": "full"}, "frontend"), ({"method": "full", "top_layers": 2}, "layer"), ({"method": "lora"}, "layer"),
        ({"method": "full", "train_frontend": True}, "frontend"), ({"method": "lora", "mask_prob": 0.5}, "frontend"),
    ]  # fmt: skip
    for changes, kind in cases:
        live = live_features(tiny(), utterances, tmp_path, pooled=pooled, layers=(1, 3), **changes)
        plain = live_features(tiny(), utterances, tmp_path, pooled=pooled, layers=(1, 3), **changes, cache=False)
        assert (live.start.kind, plain.start.kind) == (kind, "waveform")
        shake(live.adapted)
        shake(plain.adapted)
        kept, lengths = live.batch(list(utterances))
        anew, same = plain.batch(list(utterances))
        assert torch.equal(lengths, same)
        assert max((a - b).abs().max() for a, b in zip(kept, anew, strict=True)) <= 1e-5
        learned, _ = live.learn(list(utterances.values()), torch.Generator(), frozen=True)
        if not live.config.hides:
            assert max((a - b).abs().max() for a, b in zip(learned, kept, strict=True)) <= 1e-5


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"method": "full"}, "frontend"),
        ({"method": "lora", "top_layers": 1}, "layer"),
        ({"method": "distill", "student_layers": 2, "layers": (0, 1, 2)}, "frontend"),
    ],
    ids=["frontend", "layer", "with a teacher"],
)
def test_what_does_not_fit_into_the_cache_is_computed_anew_with_the_same_numbers(
    changes: dict[str, Any], kind: str, utterances: dict[str, Utterance], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    whole = live_features(tiny(), utterances, tmp_path / "whole", max_duration=0.9, **changes)
    packs = [path.stat().st_size for path in (tmp_path / "whole").rglob("*.bin")]
    budget = 0.6 * sum(packs)
    part = live_features(tiny(), utterances, tmp_path / "part", max_duration=0.9, cache_gb=budget / 1e9, **changes)
    assert whole.start.kind == part.start.kind == kind and "Raise `--cache-gb`" in caplog.text
    stored = sum(path.stat().st_size for path in (tmp_path / "part").rglob("*.bin"))
    largest = max(packs) / len(utterances) * 2  # of every store at least one utterance is kept
    assert 0 < stored <= budget + largest * (len(packs) - 1)
    for live in (whole, part):
        shake(live.adapted)
    items = list(utterances.values())
    for _ in range(2):  # anew, and from memory
        kept, anew = (live.batch(list(utterances)) for live in (whole, part))
        assert torch.equal(kept[1], anew[1])
        assert max((a - b).abs().max() for a, b in zip(kept[0], anew[0], strict=True)) <= 1e-5
        learned = [live.learn(items, torch.Generator().manual_seed(0), frozen=False)[0] for live in (whole, part)]
        assert max((a - b).abs().max() for a, b in zip(*learned, strict=True)) <= 1e-5
    if whole._distance is not None:
        assert part._distance is not None and (whole._distance - part._distance).abs().item() <= 1e-5


def test_convolutions_that_are_trained_begin_at_the_waveform(utterances: dict[str, Utterance], tmp_path: Path) -> None:
    upstream = tiny("hubert_base", conv_channels=8)
    assert live_features(upstream, utterances, tmp_path, method="full").start.kind == "frontend"
    live = live_features(upstream, utterances, tmp_path, method="full", train_frontend=True)
    assert live.start.kind == "waveform"
    live.prefetch(list(utterances.values()))
    states, lengths = live.learn(list(utterances.values()), torch.Generator(), frozen=False)
    assert len(states) == 4 and states[0].size(1) == int(lengths.max())
    states[3].sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in live.adapted.trained.values())


def test_a_crop_is_a_stretch_of_its_utterance(utterances: dict[str, Utterance]) -> None:
    parts = list(utterances.values())
    for seed in range(5):
        chosen = cut(parts, max_duration=0.9, generator=torch.Generator().manual_seed(seed))
        for part, whole in zip(chosen, parts, strict=True):
            assert part.duration is not None and whole.duration is not None
            assert part.start >= whole.start
            assert part.start + part.duration <= whole.start + whole.duration + 1e-4
            assert part.duration == min(0.9, whole.duration)


# ---------------------------------------------------------------- runs


@pytest.fixture
def options(tmp_path: Path) -> RunOptions:
    return RunOptions(cache_folder=str(tmp_path / "cache"))


def once(
    corpus: Path, out: Path, options: RunOptions, *, steps: int = 4, upstream: Upstream | None = None, **changes: Any
) -> RunResult:
    train = dataclasses.replace(CONFIG.train, steps=steps)
    sizes = SMALL if changes["method"] != "frozen" else {}
    config = dataclasses.replace(CONFIG, train=train, adapt=AdaptConfig(**{**sizes, **changes}))
    (result,) = run(
        "asr", upstream={"tiny": upstream or tiny(dropout=0.1)}, corpus=corpus, config=config, out=out, options=options
    )
    return result


def head(out: Path) -> dict[str, Tensor]:
    return load_file(out / "asr/tiny/seed0/head.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_trains_what_it_says_and_leaves_the_rest_bit_for_bit(
    method: str, tiny_corpus: Path, tmp_path: Path, options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Fit] = []
    original = Fit.fit

    def keep(self: Fit) -> None:
        kept.append(self)
        original(self)

    monkeypatch.setattr(Fit, "fit", keep)
    upstream = tiny()
    before = {name: weight.clone() for name, weight in upstream.state_dict().items()}
    result = once(tiny_corpus, tmp_path, options, upstream=upstream, method=method)
    assert kept[0].live is not None
    found = kept[0].live.adapted
    assert result.trained == {**result.trained, "upstream": found.parameters()} and found.parameters() > 0
    assert result.trained_parameters == sum(result.trained.values())
    assert all(torch.equal(before[name], weight) for name, weight in upstream.state_dict().items())
    initial = adapt(tiny(), AdaptConfig(**{**SMALL, "method": method}), seed=0).upstream.state_dict()
    for name, weight in found.upstream.state_dict().items():
        assert torch.equal(weight, initial[name]) or name in found.trained, name
    moved = [name for name in found.trained if not torch.equal(found.trained[name], initial[name])]
    assert len(moved) > len(found.trained) / 2
    saved = {name.removeprefix("upstream.") for name in head(tmp_path) if name.startswith("upstream.")}
    assert saved == set(found.trained)


def test_an_interrupted_run_ends_bit_for_bit_as_an_uninterrupted_one(
    tiny_corpus: Path, tmp_path: Path, options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = {"mask_prob": 0.3, "mask_length": 3, "layerdrop": 0.2}
    changes: dict[str, Any] = {"method": "full", "freeze_steps": 1, "cache": False, **hidden}
    once(tiny_corpus, tmp_path / "whole", options, **changes)
    original, steps = Fit._step, 0

    def dies(self: Fit, utterances: Sequence[Any]) -> float:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise KeyboardInterrupt
        return original(self, utterances)

    monkeypatch.setattr(Fit, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        once(tiny_corpus, tmp_path / "cut", options, **changes)
    once(tiny_corpus, tmp_path / "cut", options, **changes)
    assert steps == 4 + 2, "it must go on from the evaluation at step 2"
    whole, resumed = head(tmp_path / "whole"), head(tmp_path / "cut")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    logs = [(tmp_path / name / "asr/tiny/seed0/log.jsonl").read_text() for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_the_head_alone_is_trained_in_the_first_steps(tiny_corpus: Path, tmp_path: Path, options: RunOptions) -> None:
    once(tiny_corpus, tmp_path, options, steps=2, method="full", freeze_steps=2)
    initial = tiny(dropout=0.1).state_dict()
    own = {name: weight for name, weight in head(tmp_path).items() if name.startswith("upstream.")}
    assert own and all(torch.equal(weight, initial[name.removeprefix("upstream.")]) for name, weight in own.items())


def test_a_batch_in_parts_has_the_gradient_of_the_whole(
    tiny_corpus: Path, tmp_path: Path, options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    grads: list[dict[str, Tensor]] = []

    def stop(self: Any, *_: Any) -> Any:
        raise KeyboardInterrupt

    original = torch.nn.utils.clip_grad_norm_

    def watch(parameters: list[Any], limit: float) -> Tensor:
        grads.append({str(i): p.grad.clone() for i, p in enumerate(parameters) if p.grad is not None})
        return original(parameters, limit)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watch)
    monkeypatch.setattr(Fit, "_checkpoint", stop)
    for number, seconds in enumerate((None, 4.0)):
        config = dataclasses.replace(CONFIG, augment=None, dropout=0.0)
        adaptation = AdaptConfig(method="lora", max_batch_seconds=seconds, **SMALL)
        with pytest.raises(KeyboardInterrupt):
            run("asr", upstream={"tiny": tiny()}, corpus=tiny_corpus, out=tmp_path / str(number), options=options,
                config=dataclasses.replace(config, adapt=adaptation))  # fmt: skip
    whole, parts = grads[0], grads[2]
    assert whole.keys() == parts.keys()
    assert max(float((whole[name] - parts[name]).abs().max()) for name in whole) <= 1e-5


def test_half_precision_begins_with_the_loss_of_full_precision(
    tiny_corpus: Path, tmp_path: Path, options: RunOptions
) -> None:
    losses = {}
    for precision in ("float32", "bf16"):
        train = dataclasses.replace(CONFIG.train, steps=1, precision=precision)
        adaptation = AdaptConfig(**{**SMALL, "method": "full", "cache": False})
        (result,) = run(
            "asr", upstream={"tiny": tiny("wavlm_tiny")}, corpus=tiny_corpus, out=tmp_path / precision, options=options,
            config=dataclasses.replace(CONFIG, train=train, adapt=adaptation, augment=None, dropout=0.0),
        )  # fmt: skip
        losses[precision] = result.curves["train loss"][0][1]
    assert losses["bf16"] != losses["float32"]
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.02)


def test_infer_applies_the_adapted_upstream(tiny_corpus: Path, tmp_path: Path, options: RunOptions) -> None:
    upstream = tiny()
    once(tiny_corpus, tmp_path, options, upstream=upstream, method="adapters", learning_rate=1e-2)
    folder = tmp_path / "asr/tiny/seed0"
    rows = [line.split("\t") for line in (folder / "transcripts.tsv").read_text().splitlines()[1:]]
    files = [tiny_corpus / "audio" / f"{name}.flac" for name, _, _ in rows]
    found = infer(folder, files, upstream=upstream)
    assert [found[str(file)] for file in files] == [row[2] for row in rows]
    weights = load_file(folder / "head.safetensors")
    assert json.loads((folder / "task.json").read_text())["config"]["adapt"]["method"] == "adapters"
    assert any("bottleneck" in name for name in weights)


def test_runs_that_adapt_nothing_save_what_they_always_did(
    tiny_corpus: Path, tmp_path: Path, options: RunOptions
) -> None:
    result = once(tiny_corpus, tmp_path, options, steps=2, method="frozen")
    assert result.trained["upstream"] == 0 and result.features["computed"] > 0
    assert {name.split(".")[0] for name in head(tmp_path)} == {"featurizer", "head"}
    path = tmp_path / "asr/tiny/seed0/result.json"
    older = json.loads(path.read_text())
    del older["config"]["adapt"], older["trained"]
    path.write_text(json.dumps(older))
    again = once(tiny_corpus, tmp_path, options, steps=2, method="frozen")
    assert again.date == result.date, "a run from before there were adaptations counts as finished"


def test_an_upstream_that_only_this_process_has_is_not_adapted_in_another(
    tiny_corpus: Path, tmp_path: Path, options: RunOptions
) -> None:
    """A worker loads by name: what stands there must be what the run was started with."""
    config = dataclasses.replace(CONFIG, adapt=AdaptConfig(method="bitfit"))
    spec = UpstreamSpec("tiny", "hubert_tiny", random_weights=0)
    card = make_card(spec, tiny())
    job = Job("asr", config, open_corpus(tiny_corpus), card, 0, Variant(), tmp_path, options)
    with pytest.raises(SpeechsslError, match="save it in a folder"):
        upstream_of(job)
    same = dataclasses.replace(job, card=make_card(spec, load_upstream("hubert_tiny", random_weights=0)))
    assert upstream_of(same).fingerprint() == same.card.info.fingerprint


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_fine_tuned_upstream_is_exported_as_one_of_its_family(
    method: str, tiny_corpus: Path, tmp_path: Path, options: RunOptions
) -> None:
    save_upstream(tiny(), tmp_path / "upstream")
    upstream = load_upstream(tmp_path / "upstream")
    once(tiny_corpus, tmp_path, options, upstream=upstream, steps=2, method=method, learning_rate=1e-2)
    folder = tmp_path / "asr/tiny/seed0"
    export_upstream(folder, tmp_path / "exported", to="speechssl")
    exported = load_upstream(tmp_path / "exported")
    tuned = load_adapted(folder, upstream=upstream)
    assert exported.fingerprint() == tuned.fingerprint() != upstream.fingerprint()
    assert method in exported.weights
    applied = adapt(copy.deepcopy(upstream), AdaptConfig(**{**SMALL, "method": method}), seed=0)
    applied.load({k.removeprefix("upstream."): v for k, v in head(tmp_path).items()}, origin="the head")
    with torch.no_grad():
        heard, again = applied.upstream(noise()).hidden_states, exported(noise()).hidden_states
    assert max((a - b).abs().max() for a, b in zip(heard, again, strict=True)) <= 1e-5


def test_what_can_not_be_exported_says_why(tiny_corpus: Path, tmp_path: Path, options: RunOptions) -> None:
    for method, match in (("frozen", "left its upstream as it was"), ("prefix", "can't be merged")):
        upstream = tiny()
        once(tiny_corpus, tmp_path / method, options, upstream=upstream, steps=2, method=method)
        with pytest.raises(SpeechsslError, match=match):
            load_adapted(tmp_path / method / "asr/tiny/seed0", upstream=upstream)


# ---------------------------------------------------------------- pruning and distillation


@torch.no_grad()
def test_pruning_sets_the_smallest_weights_to_zero_at_its_steps_alone() -> None:
    config = AdaptConfig(method="full", prune_rates=(0.4, 0.25), prune_every=3)
    assert [rate_at(config, step) for step in range(1, 9)] == [0.4, 0, 0, 0.25, 0, 0, 0, 0]
    found = adapt(tiny(), config, seed=0)
    before = {name: weight.clone() for name, weight in found.trained.items()}
    prune_before(found, config, 2, tuned=None)
    assert all(torch.equal(found.trained[name], weight) for name, weight in before.items())
    prune_before(found, config, 1, tuned=None)
    matrices = [name for name in before if ".blocks." in name and before[name].dim() == 2]
    assert len(matrices) == 3 * 4
    for name, weight in before.items():
        expected = weight.clone()
        if name in matrices:
            ranked = sorted(range(weight.numel()), key=lambda i: float(weight.flatten()[i].abs()))
            expected.view(-1)[ranked[: round(0.4 * weight.numel())]] = 0.0
        assert torch.equal(found.trained[name], expected), name


@torch.no_grad()
def test_a_tuned_model_decides_the_first_time_which_weights_are_small(tmp_path: Path) -> None:
    config = AdaptConfig(method="full", prune_rates=(0.5,))
    found, tuned = adapt(tiny(), config, seed=0), tiny(seed=9)
    prune_before(found, config, 1, tuned=tuned)
    weight, like = (u.get_parameter("encoder.blocks.0.fc1.weight") for u in (found.upstream, tuned))
    assert torch.equal(weight == 0, like.abs() <= like.abs().median())
    with pytest.raises(ConfigError, match="must be of the shape"):
        prune_before(found, config, 1, tuned=tiny(width=24))
    with pytest.raises(ConfigError, match=r"is for `adapt\.method=full`"):
        AdaptConfig(method="lora", prune_rates=(0.5,))


def test_pruned_weights_learn_again(tiny_corpus: Path, tmp_path: Path, options: RunOptions) -> None:
    once(tiny_corpus, tmp_path, options, method="full", prune_rates=(0.6,), learning_rate=1e-2)
    weight, initial = (
        head(tmp_path)["upstream.encoder.blocks.0.fc1.weight"],
        tiny().get_parameter("encoder.blocks.0.fc1.weight"),
    )
    small = initial.abs() <= initial.abs().flatten().kthvalue(round(0.6 * initial.numel())).values
    assert (weight[small] != 0).float().mean() > 0.9
    assert (weight[small] - initial[small]).abs().mean() > 1e-3


@torch.no_grad()
def test_a_student_is_the_first_blocks_of_its_teacher_and_room_beside_them() -> None:
    teacher = tiny()
    found = adapt(tiny(), AdaptConfig(method="distill", student_layers=2, adapter_width=3), seed=0)
    student = found.upstream
    assert student.hidden_sizes == (16, 16, 16) and len(find_blocks(student)) == 2
    waveform = noise()
    for a, b in zip(student(waveform).hidden_states, teacher(waveform, layers=[0, 1, 2]).hidden_states, strict=True):
        assert torch.equal(a, b)
    shake(found)
    block: Any = find_blocks(student)[1].module
    beside, x = block.beside, torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
    normed = torch.nn.functional.layer_norm(x, (16,)) * beside.norm.weight + beside.norm.bias
    inner = (normed @ beside.down.weight.T + beside.down.bias).clamp(min=0)
    expected = block.feed_forward(x)
    with without_bottlenecks(student):
        plain = block.feed_forward(x)
    assert (expected - plain - 0.1 * (inner @ beside.up.weight.T + beside.up.bias)).abs().max() <= 1e-5
    with pytest.raises(ConfigError, match=r"must lie in 1\.\.2"):
        adapt(tiny(), AdaptConfig(method="distill", student_layers=3), seed=0)


def test_a_student_learns_from_its_teacher_less_and_less(utterances: dict[str, Utterance], tmp_path: Path) -> None:
    live = live_features(
        tiny(), utterances, tmp_path, method="distill", student_layers=2, layers=(0, 1, 2), max_duration=0.9
    )
    shake(live.adapted)
    heard = list(utterances.values())
    states, frames = live.learn(heard, torch.Generator().manual_seed(0), frozen=False)
    assert len(states) == 3 and int(frames.max()) == 45
    zero = LossOutput(states[0].sum() * 0, torch.tensor(4))
    with torch.no_grad(), without_bottlenecks(live.adapted.upstream):
        # The same crops, drawn here by hand, of the frontend's frames and of the teacher's last hidden state.
        generator, squares, count = torch.Generator().manual_seed(0), 0.0, 0
        for utterance in heard:
            waveform = read_audio(utterance.path, sample_rate=16_000)[None]
            teacher = tiny()(waveform, layers=[3]).hidden_states[3][0]
            features, _ = live.adapted.upstream.extract_features(waveform, torch.tensor([waveform.size(1)]))  # type: ignore[operator]
            length = min(45, len(teacher))
            start = int(torch.randint(len(teacher) - length + 1, (), generator=generator))
            part = features[:, start : start + length]
            student = live.adapted.upstream.encode(part, torch.tensor([length]), layers=frozenset({2}))[2][0]  # type: ignore[operator]
            squares += float((student - teacher[start : start + length]).square().mean(dim=1).sum())
            count += length
    for step, weight in ((1, 100.0), (5, 60.0), (10, 10.0)):
        out = live.with_distance(zero, step, 10)
        assert float(out.loss_sum.detach()) == pytest.approx(4 * weight * squares / count, rel=1e-4)
    live.with_distance(zero, 1, 10).loss_sum.backward()  # type: ignore[no-untyped-call]
    grads = {name: parameter.grad for name, parameter in live.adapted.trained.items()}
    assert all((grad is None or not grad.any()) == ("beside" in name) for name, grad in grads.items() if "fc" in name)
    assert all(grad is None for name, grad in grads.items() if "beside" in name)


def test_a_student_runs_and_answers(tiny_corpus: Path, tmp_path: Path, options: RunOptions) -> None:
    upstream = tiny()
    result = once(tiny_corpus, tmp_path, options, upstream=upstream, steps=2, method="distill", student_layers=1)
    assert len(result.layer_weights) == 2
    log = [json.loads(line) for line in (tmp_path / "asr/tiny/seed0/log.jsonl").read_text().splitlines()]
    assert log[0]["distance"] > 0
    file = next((tiny_corpus / "audio").iterdir())
    assert list(infer(tmp_path / "asr/tiny/seed0", [file], upstream=upstream)) == [str(file)]


def test_loading_names_what_has_no_blocks() -> None:
    with pytest.raises(ConfigError, match="needs transformer blocks, which 'fbank'"):
        adapt(load_upstream("fbank"), AdaptConfig(method="lora"), seed=0)
