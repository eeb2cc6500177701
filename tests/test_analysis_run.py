"""An analysis from corpus to page: what is gathered is what the cache holds, and what labels don't allow is said."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from chromium import CHROMIUM, look_at
from torch import Tensor

from speechssl.analysis.attention import attention_weights, weights_of
from speechssl.analysis.gather import gather
from speechssl.analysis.labels import Labels, write_labels
from speechssl.analysis.material import Acoustics, Material, doubts, draw_utterances
from speechssl.analysis.models import PREFIX, Model, resolve_models
from speechssl.analysis.result import load_analysis
from speechssl.analysis.run import Analysed, Options, analyse
from speechssl.analysis.settings import AnalysisSettings
from speechssl.cache import FeatureCache
from speechssl.checkpoint import save_tensors, save_upstream
from speechssl.cli import main
from speechssl.data.corpus import Corpus, open_corpus
from speechssl.data.spans import Span
from speechssl.encoder.attention import SelfAttention
from speechssl.errors import ConfigError, ManifestError, SpeechsslError
from speechssl.feature_store import FeatureStore
from speechssl.loading import load_upstream
from speechssl.types import Utterance

LETTER = 0.11  # seconds, as the fixture speaks
NAMES = ["one=distilhubert_tiny:random", "two=distilhubert_tiny:random:1"]
SMALL = AnalysisSettings(
    utterances=60,
    frames=500,
    rank_frames=900,
    gap=0.04,
    acoustic_utterances=30,
    probe_samples=400,
    clusters=12,
    abx_items=300,
    trials=1,
    examples=1,
)


def letters(corpus: Corpus) -> Labels:
    """Where each letter of a tiny corpus is, and each word."""
    phones: dict[str, list[Span]] = {}
    words: dict[str, list[Span]] = {}
    for utterance in [u for split in ("train", "dev", "test") for u in corpus.utterances(split)]:
        text = str(utterance.labels.get("text") or "")
        spans = [Span((k + 1) * LETTER, (k + 2) * LETTER, c) for k, c in enumerate(text)]
        phones[utterance.id] = [s for s in spans if s.value != " "]
        place = 1
        for word in text.split():
            end = place + len(word)
            words.setdefault(utterance.id, []).append(Span(place * LETTER, end * LETTER, word))
            place = end + 1
    return Labels({"phone": phones, "word": words})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("analysis")


@pytest.fixture(scope="module")
def options(tiny_corpus: Path, folder: Path) -> Options:
    write_labels(letters(open_corpus(tiny_corpus)), folder / "letters.jsonl")
    return Options(
        splits=("train", "dev", "test"),
        labels=(str(folder / "letters.jsonl"),),
        cache=FeatureCache(folder / "cache"),
    )


@pytest.fixture(scope="module")
def analysed(tiny_corpus: Path, folder: Path, options: Options) -> Analysed:
    return analyse(resolve_models(NAMES), open_corpus(tiny_corpus), folder / "out", SMALL, options)


def test_every_measure_is_taken_of_every_layer_of_every_model(analysed: Analysed) -> None:
    wanted = [
        "rank/rankme", "similarity/mel pwcca", "similarity/phone pwcca", "similarity/word cka",
        "similarity/first svcca", "information/phone share", "information/speaker share", "probe/phone",
        "probe/phone selectivity", "probe/speaker", "probe/language", "probe/pitch", "probe/energy", "abx/any",
        "abx/any_across", "units/segment bitrate", "units/speaker distance",
    ]  # fmt: skip
    first, second = analysed.analysis.models
    for model in (first, second):
        for name in wanted:
            measure = model.measure(name)
            assert measure is not None, (name, model.warnings)
            layers = [v.layer for v in measure.values]
            assert layers == list(range(1 if "first" in name else 0, model.num_layers)), name
            assert all(np.isfinite(v.value) for v in measure.values), name
            assert all(v.low is None or v.low <= v.value <= (v.high or 0) + 1e-9 for v in measure.values), name
    assert first.measure("similarity/model cka") is None
    assert second.measure("similarity/model cka") is not None
    assert "letters.jsonl" in analysed.analysis.labels["phone"]


def test_letters_that_sound_unlike_are_told_apart(analysed: Analysed) -> None:
    for model in analysed.analysis.models:
        best = {}
        for name in ("probe/phone", "probe/phone selectivity", "abx/any"):
            measure = model.measure(name)
            assert measure is not None
            found = measure.best()
            assert found is not None
            best[name] = found.value
        assert best["probe/phone"] > 0.3  # of 22 letters
        assert best["probe/phone selectivity"] > 0.1
        assert best["abx/any"] < 0.35
        assert any("ABX error within speakers can't be measured" in text for text in model.warnings)  # short words


def test_what_was_found_is_read_again_as_it_was(analysed: Analysed, folder: Path) -> None:
    read = load_analysis(folder / "out")
    assert [m.model for m in read.models] == ["one", "two"]
    for mine, other in zip(analysed.analysis.models, read.models, strict=True):
        assert [m.name for m in mine.measures] == [m.name for m in other.measures]
        for a, b in zip(mine.measures, other.measures, strict=True):
            np.testing.assert_array_equal([v.value for v in a.values], [v.value for v in b.values])
    text = (folder / "out" / "analysis.json").read_text()
    assert "NaN" not in text
    (folder / "broken.json").write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(ManifestError, match="format 2"):
        load_analysis(folder / "broken.json")


def test_the_command_draws_a_page_from_the_cache_with_the_same_numbers(
    analysed: Analysed, tiny_corpus: Path, folder: Path, tmp_path: Path
) -> None:
    del analysed  # so that features are cached
    held = {p: p.stat().st_size for p in (folder / "cache").rglob("*") if p.is_file() and "lease" not in str(p)}
    arguments = ["analyse", *NAMES, "--corpus", str(tiny_corpus), "-o", str(tmp_path / "out"), "--examples", "1"]
    for split in ("train", "dev", "test"):
        arguments += ["--split", split]
    arguments += ["--labels", str(folder / "letters.jsonl"), "--cache", str(folder / "cache"), "--utterances", "60"]
    arguments += ["--frames", "500", "--clusters", "12", "--measures", "information"]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    after = {p: p.stat().st_size for p in (folder / "cache").rglob("*") if p.is_file() and "lease" not in str(p)}
    assert after == held
    once, again = (load_analysis(f / "out").models[0].measure("information/phone share") for f in (folder, tmp_path))
    assert once is not None and again is not None
    np.testing.assert_allclose([v.value for v in once.values], [v.value for v in again.values], atol=1e-9)
    page = tmp_path / "out" / "index.html"
    text = page.read_text()
    for part in ("Maps of frames", "Chosen utterances", "Attention of one", "runs of one k-means unit"):
        assert part in text
    if CHROMIUM is not None:
        for width in (1280, 400):
            scroll, inner, _, _ = look_at(page, tmp_path, width)
            assert inner == width
            assert scroll <= width


def test_what_labels_do_not_allow_is_said_and_the_rest_is_measured(tiny_corpus: Path, tmp_path: Path) -> None:
    corpus = open_corpus(tiny_corpus)
    one = [u.id for s in ("train", "dev", "test") for u in corpus.utterances(s) if u.labels["speaker"] != "aa1"]
    settings = replace(
        SMALL, measures=("rank", "similarity", "information", "abx", "fungi"), utterances=None, examples=0
    )
    options = Options(splits=("train", "dev"), cache=FeatureCache(tmp_path / "cache"))
    found = analyse(resolve_models(NAMES[1:]), corpus.without(one), tmp_path / "out", settings, options).analysis
    said = " ".join([*found.warnings, *found.models[0].warnings])
    assert "There are no phone labels" in said
    assert "All utterances have one speaker ('aa1')" in said
    assert "Gradients can't be asked for speakers" in said
    assert "utterances in 256 dimensions" in said
    names = {m.name for m in found.models[0].measures}
    assert {"rank/rankme", "similarity/mel cka"} <= names
    assert not any(n.startswith("abx") or "phone" in n for n in names)


def test_rows_are_the_frames_and_the_means_of_segments_that_labels_name() -> None:
    rate, layers, width = 50.0, 3, 4
    lengths = {"a": 40, "b": 61}
    arrays = {
        name: torch.arange(layers)[:, None, None] * 100.0 + torch.arange(frames)[None, :, None].repeat(1, 1, width)
        for name, frames in lengths.items()
    }  # what stands there tells layer and frame; whole numbers up to 256 are exact in bfloat16
    spans = [Span(0.1 * k, 0.1 * (k + 1), "xy"[k % 2]) for k in range(8)]
    phones = {
        "b": [s for _ in range(1) for s in spans] + [Span(0.8 + 0.01 * k, 0.81 + 0.01 * k, "x") for k in range(40)]
    }
    heard = Acoustics(np.zeros((130, 80), np.float32), np.full(130, np.nan, np.float32), np.zeros(130, np.float32))
    utterances = [Utterance(n, n, 0.0, frames / rate, {}) for n, frames in lengths.items()]
    material = Material(utterances, Labels({"phone": phones, "word": {"a": spans[:2]}}), {"a": heard})
    store = FeatureStore(arrays, lengths, frame_rate=rate, layers=(0, 1, 2))
    found = gather(store, material, AnalysisSettings(frames=500, gap=0.04))

    np.testing.assert_allclose(found.utterances.layer(2).numpy(), [[219.5] * 4, [230.0] * 4])
    assert set(found.frames.utterance.tolist()) == {0}  # nothing is heard of the other
    frames = found.phones
    assert found.phones.names == ["x"]  # 'y' occurs four times only
    np.testing.assert_array_equal(frames.layer(1)[:, 0].numpy(), frames.place + 100.0)
    named = [s for s in phones["b"] if s.value == "x"]
    inside = [k for k in range(61) if any(s.begin <= (k + 0.5) / rate + 1e-9 < s.end for s in named)]
    assert frames.place.tolist() == inside
    words = found.word_segments
    np.testing.assert_allclose(words.layer(0)[:, 0].numpy(), [2.0, 7.0])  # frames 0-4 and 5-9
    assert words.names == ["x", "y"] and words.code.tolist() == [0, 1]
    assert found.geometry[0] is not None
    assert found.geometry[0].n in (20 + 30, 20 + 31)  # every other frame, from the first or second on


@pytest.mark.parametrize("name", ["hubert_tiny", "wavlm_tiny"])
def test_attention_weights_are_those_that_make_the_outputs(name: str) -> None:
    upstream = load_upstream(name, random_weights=0)
    waveform = torch.randn(8000, generator=torch.Generator().manual_seed(0)) * 0.1
    seen: list[tuple[SelfAttention, tuple[Tensor | None, ...], Tensor]] = []
    for module in upstream.modules():
        if isinstance(module, SelfAttention):
            module.register_forward_hook(lambda m, given, out: seen.append((m, given, out)))
    found = attention_weights(upstream, waveform)
    assert list(found) == list(range(1, len(upstream.hidden_sizes)))
    for weights in found.values():
        np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-5)
    for module, given, output in seen:
        with torch.inference_mode():
            x, attended, positions = (*given, None, None)[:3]
            assert x is not None
            value = module.qkv(x).view(*x.shape[:2], 3, module.heads, -1)[:, :, 2].transpose(1, 2)
            again = module.output((weights_of(module, x, attended, positions) @ value).transpose(1, 2).flatten(2))
        torch.testing.assert_close(again, output, atol=1e-5, rtol=1e-4)


def test_checkpoints_of_a_run_are_models_with_the_weights_of_their_steps(tmp_path: Path) -> None:
    upstream = load_upstream("hubert_tiny", random_weights=0)
    save_upstream(upstream, tmp_path / "run")
    for step in (20, 100):
        place = tmp_path / "run" / "checkpoints" / f"step-{step:08d}"
        place.mkdir(parents=True)
        tensors = {PREFIX + k: v + step if v.is_floating_point() else v for k, v in upstream.state_dict().items()}
        save_tensors({**tensors, "model.head.weight": torch.zeros(2)}, place / "tensors.safetensors")
        (place / "state.json").write_text(json.dumps({"step": step}))
    models: list[Model] = resolve_models([f"run={tmp_path / 'run'}"], checkpoints=True)
    assert [(m.label, m.step, m.series) for m in models] == [("run @ 20", 20, "run"), ("run @ 100", 100, "run")]
    key = "encoder.blocks.0.attention.output.weight"
    torch.testing.assert_close(models[1].load().state_dict()[key], upstream.state_dict()[key] + 100, atol=0, rtol=0)
    with pytest.raises(SpeechsslError, match="None of hubert_tiny holds checkpoints"):
        resolve_models(["hubert_tiny"], checkpoints=True)
    with pytest.raises(ConfigError, match="Two upstreams have the label 'fbank'"):
        resolve_models(["fbank", "fbank"])


def test_a_sample_of_a_corpus_keeps_what_is_labelled_and_one_voice_is_named() -> None:
    utterances = [Utterance(str(k), "x", 0.0, 1.0, {"speaker": f"s{k % 3}"}) for k in range(100)]
    drawn = draw_utterances(utterances, 20, labelled=[str(k) for k in range(0, 12, 3)], seed=0)
    assert len(drawn) == 20
    assert {str(k) for k in range(0, 12, 3)} <= {u.id for u in drawn}
    labels = Labels({"phone": {"0": [Span(0, 1, "a")], "3": [Span(0, 1, "b")]}}, {"phone": "x"})
    assert any("in the speech of one speaker ('s0')" in text for text in doubts(Material(utterances, labels)))


def test_gradients_stand_beside_the_embedding_where_they_are_asked_for(tiny_corpus: Path, tmp_path: Path) -> None:
    corpus = open_corpus(tiny_corpus)
    settings = replace(SMALL, measures=("fungi",), utterances=None, examples=0, fungi_utterances=24)
    settings = replace(settings, fungi_losses=("kl",))
    options = Options(splits=("train",), cache=FeatureCache(tmp_path / "cache"))
    (model,) = analyse(resolve_models(NAMES[:1]), corpus, tmp_path / "out", settings, options).analysis.models
    for kind in ("speaker", "language"):
        for way in ("embedding", "gradients"):
            measure = model.measure(f"fungi/{kind} {way}")
            assert measure is not None, model.warnings
            assert 0.0 <= measure.values[0].value <= 1.0 and measure.values[0].layer == 2
    language = model.measure("fungi/language gradients")
    assert language is not None and language.values[0].value > 0.5  # the two languages have other sounds
