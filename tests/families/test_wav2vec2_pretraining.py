"""wav2vec 2.0's pre-training against transformers, fairseq2 and loops written from the paper."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contextual_parity import LARGE, their_model
from fairseq_weights import fairseq_weights
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Wav2Vec2Config as TheirConfig
from transformers import Wav2Vec2ForPreTraining

from speechssl.data.batching import make_generator
from speechssl.errors import ConfigError
from speechssl.heads import read_heads, save_heads
from speechssl.loading import load_upstream
from speechssl.metric.codes import perplexity
from speechssl.objective import Labelling, PretrainInputs
from speechssl.train.run import pretrain_config
from speechssl.types import LossOutput
from upstreams.wav2vec2 import pretrain
from upstreams.wav2vec2.clusters import cluster_directions
from upstreams.wav2vec2.pretrain import Wav2Vec2Pretraining, load_heads
from upstreams.wav2vec2.pretrain_config import AUG, BASE, CCC, PRETRAIN_PRESETS, TRAIN_PRESETS, Wav2Vec2PretrainConfig

TOLERANCE = 1e-4
QUIET = {
    "hidden_dropout": 0.0, "attention_dropout": 0.0, "feat_proj_dropout": 0.0, "feat_quantizer_dropout": 0.0,
    "layerdrop": 0.0, "activation_dropout": 0.0,
}  # fmt: skip
SHAPE = {"codebook_entries": 8, "final_dim": 16, "feature_dropout": 0.0}


@pytest.fixture(autouse=True)
def _draws() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


def waveforms(samples: int = 24_000) -> PretrainInputs:
    waveform = 0.5 * torch.randn(2, samples, generator=make_generator("speech")) + 0.01
    return PretrainInputs(waveform, torch.full((2,), samples))


def pair(folder: Path, config: Wav2Vec2PretrainConfig = BASE, **changes: object) -> tuple[Any, Wav2Vec2Pretraining]:
    """A small model of transformers with its heads, and ours from what it wrote."""
    model = their_model(Wav2Vec2ForPreTraining, TheirConfig, **QUIET, **changes)
    model.save_pretrained(folder)
    objective = Wav2Vec2Pretraining(load_upstream(folder), replace(config, **SHAPE), Labelling())
    load_heads(objective, read_heads(folder), origin=str(folder))
    return model, objective.eval()


class Recorder:
    """What an objective draws and makes on its way: the originals run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.seen: dict[str, list[Any]] = {name: [] for name in names}
        for name in names:
            monkeypatch.setattr(pretrain, name, self._watch(name, getattr(pretrain, name)))

    def _watch(self, name: str, original: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            result = original(*args, **named)
            self.seen[name].append(SimpleNamespace(args=args, named=named, result=result))
            return result

        return call


def mean_metric(output: LossOutput, name: str) -> Tensor:
    return output.metrics[name] / output.sample_size


# Loss parity


@pytest.mark.parametrize("changes", [{}, LARGE], ids=["base", "large"])
def test_the_loss_equals_transformers_with_the_same_masks_and_distractors(
    changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, objective = pair(tmp_path, **changes)
    recorder = Recorder(monkeypatch, "draw_span_mask", "sample_distractors", "normalize_waveform")
    inputs = waveforms()
    output = objective(inputs, make_generator(1))
    mask = recorder.seen["draw_span_mask"][0].result
    drawn = recorder.seen["sample_distractors"][0]
    values = recorder.seen["normalize_waveform"][0].result if changes else inputs.waveform
    theirs = model(
        values, mask_time_indices=mask, sampled_negative_indices=as_theirs(drawn.args[0], drawn.result, mask)
    )
    torch.testing.assert_close(output.metrics["clean_loss"], theirs.contrastive_loss, rtol=TOLERANCE, atol=TOLERANCE)
    # In evaluation transformers takes the entropy of the choices; fairseq and we take that of their probabilities.
    chosen = sum(float(perplexity(row)) for row in output.metrics["code_usage"])
    assert chosen == pytest.approx(float(theirs.codevector_perplexity), rel=TOLERANCE)
    # Its sum has no features penalty, and no global count: what is left is equal.
    expected = theirs.contrastive_loss + 0.1 * output.metrics["diversity_loss"]
    penalty = 10.0 * output.metrics["features_penalty"]
    torch.testing.assert_close(output.loss_sum - penalty, expected, rtol=TOLERANCE, atol=TOLERANCE)


def as_theirs(frames: Any, distractors: Tensor, mask: Tensor) -> Tensor:
    """Ranks among an utterance's hidden frames -> places in the flattened batch: (B, T, K)."""
    start = torch.cumsum(frames.counts, dim=0) - frames.counts
    rows = start.repeat_interleave(frames.counts)[:, None] + distractors
    places = torch.zeros(*mask.shape, distractors.size(1), dtype=torch.int64)
    places[mask] = frames.index[rows]
    return places


def test_in_training_the_diversity_equals_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, objective = pair(tmp_path)
    recorder = Recorder(monkeypatch, "draw_span_mask", "sample_distractors")
    inputs = waveforms()
    output = objective.train()(inputs, make_generator(1))
    mask, drawn = recorder.seen["draw_span_mask"][0].result, recorder.seen["sample_distractors"][0]
    places = as_theirs(drawn.args[0], drawn.result, mask)
    theirs = model.train()(inputs.waveform, mask_time_indices=mask, sampled_negative_indices=places)
    torch.testing.assert_close(output.metrics["diversity_loss"], theirs.diversity_loss, rtol=TOLERANCE, atol=TOLERANCE)


def test_gradients_equal_those_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, objective = pair(tmp_path, replace(BASE, diversity_weight=0.0, features_penalty=0.0))
    recorder = Recorder(monkeypatch, "draw_span_mask", "sample_distractors")
    inputs = waveforms()
    objective(inputs, make_generator(1)).loss_sum.backward()
    mask, drawn = recorder.seen["draw_span_mask"][0].result, recorder.seen["sample_distractors"][0]
    places = as_theirs(drawn.args[0], drawn.result, mask)
    model(inputs.waveform, mask_time_indices=mask, sampled_negative_indices=places).contrastive_loss.backward()
    first, their_first = objective.upstream.encoder.blocks[0], model.wav2vec2.encoder.layers[0]
    for ours, theirs in (
        (objective.final_proj.weight, model.project_hid.weight),
        (objective.project_q.weight, model.project_q.weight),
        (objective.quantizer.codebook.flatten(0, 1)[None], model.quantizer.codevectors),
        (first.fc1.weight, their_first.feed_forward.intermediate_dense.weight),
        (objective.upstream.mask_embedding, model.wav2vec2.masked_spec_embed),
    ):  # fmt: skip
        grad = ours.grad if ours.is_leaf else objective.quantizer.codebook.grad.flatten(0, 1)[None]
        torch.testing.assert_close(grad, theirs.grad, rtol=1e-3, atol=1e-3 * float(theirs.grad.abs().max()))


RECORDED = Path(__file__).with_name("fairseq2_wav2vec2.safetensors")
"""A mask, distractors and the losses of fairseq2 0.8.1 with them; the test that has fairseq2 writes a missing one."""


def numbered(folder: Path) -> Wav2Vec2Pretraining:
    """A small objective whose weights depend on their names alone."""
    _, objective = pair(folder, replace(BASE, require_same_masks=True))
    with torch.no_grad():
        for name, weight in objective.named_parameters():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=make_generator("weights", name)))
    return objective


def draw_as_recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    kept = load_file(RECORDED)
    monkeypatch.setattr(pretrain, "draw_span_mask", lambda *_: kept["mask"])
    monkeypatch.setattr(pretrain, "sample_distractors", lambda *_, **__: kept["distractors"].long())
    return kept


def losses_of(output: LossOutput) -> dict[str, Tensor]:
    names = {"contrastive": "clean_loss", "diversity": "diversity_loss", "features_penalty": "features_penalty"}
    return {theirs: output.metrics[ours].detach() for theirs, ours in names.items()} | {
        "aggregate": output.loss_sum.detach()
    }


def test_the_loss_equals_fairseq2_with_the_same_masks_and_distractors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = numbered(tmp_path)
    kept = draw_as_recorded(monkeypatch)
    for name, ours in losses_of(objective(waveforms(), make_generator(1))).items():
        torch.testing.assert_close(ours, kept[name], rtol=TOLERANCE, atol=0.0)


def test_fairseq2_still_gives_the_losses_that_were_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("fairseq2.models.wav2vec2", reason="needs pip install speechssl[fairseq2]")
    objective = numbered(tmp_path)
    if RECORDED.is_file():
        draw_as_recorded(monkeypatch)
    recorder = Recorder(monkeypatch, "draw_span_mask", "sample_distractors", "features_penalty")
    states: list[Tensor] = []
    monkeypatch.setattr(objective.upstream, "encode", _keep(objective.upstream.encode, states))
    objective(waveforms(), make_generator(1))
    mask, drawn = recorder.seen["draw_span_mask"][0].result, recorder.seen["sample_distractors"][0]
    raw = recorder.seen["features_penalty"][0].args[0]
    places = as_theirs(drawn.args[0], drawn.result, mask)[mask]
    order = torch.full((mask.numel(),), -1).index_put((drawn.args[0].index,), torch.arange(int(mask.sum())))
    # It compiles a sum for each shape; compiled or not, the numbers are those of the sum.
    monkeypatch.setattr(torch, "compile", lambda *_a, **_n: lambda function: function)
    model = fairseq2_model(library, objective)
    model._sample_distractors = lambda targets: targets.flatten(0, 1)[order[places]].unflatten(0, targets.shape[:2])
    hidden = model.masker.extract_masked_elements(objective.upstream.feature_norm(raw), mask)
    features = library.model.Wav2Vec2Features(states[0], None, hidden, mask, raw)
    found = model.compute_loss(model.quantize_and_contrast(features))
    losses = {
        name: getattr(found, name).detach() for name in ("contrastive", "diversity", "features_penalty", "aggregate")
    }
    if not RECORDED.is_file():
        save_file({"mask": mask, "distractors": drawn.result.to(torch.int16), **losses}, RECORDED)
    kept = load_file(RECORDED)
    for name, value in losses.items():
        torch.testing.assert_close(value, kept[name], rtol=TOLERANCE, atol=0.0)


def fairseq2_model(library: Any, objective: Wav2Vec2Pretraining) -> Any:
    """fairseq2's heads with our weights; its encoder is not used."""
    encoder = library.Wav2Vec2EncoderConfig(
        model_dim=64, num_encoder_layers=1, num_encoder_attn_heads=4, ffn_inner_dim=64, feature_dim=32,
        feature_extractor_layer_descs=[(32, 10, 5)],
    )  # fmt: skip
    model = library.create_wav2vec2_model(
        library.Wav2Vec2Config(encoder_config=encoder, final_dim=16, quantized_dim=16, num_codebook_entries=8)
    ).eval()
    own = objective.state_dict()
    with torch.no_grad():
        model.quantizer.entries.copy_(own["quantizer.codebook"].flatten(0, 1)[None])
        model.quantizer.entry_proj.weight.copy_(own["quantizer.projection.0.weight"])
        model.quantizer.entry_proj.bias.copy_(own["quantizer.projection.0.bias"])
        for theirs, ours in (("final_proj", "final_proj"), ("final_target_proj", "project_q")):
            for part in ("weight", "bias"):
                getattr(getattr(model, theirs), part).copy_(own[f"{ours}.{part}"])
    return model


def _keep(encode: Any, states: list[Tensor]) -> Any:
    def call(*args: Any, **named: Any) -> dict[int, Tensor]:
        result: dict[int, Tensor] = encode(*args, **named)
        states.append(result[max(result)])
        return result

    return call


# Heads


def test_heads_come_from_fairseq_and_from_our_own_runs_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, expected = pair(tmp_path / "theirs")
    inner = {k.removeprefix("wav2vec2."): v for k, v in model.state_dict().items() if k.startswith("wav2vec2.")}
    heads = {
        "quantizer.vars": model.quantizer.codevectors,
        "quantizer.weight_proj.weight": model.quantizer.weight_proj.weight,
        "quantizer.weight_proj.bias": model.quantizer.weight_proj.bias,
        **{f"project_q.{k}": v for k, v in model.project_q.state_dict().items()},
        **{f"final_proj.{k}": v for k, v in model.project_hid.state_dict().items()},
    }
    model_settings = {"_name": "wav2vec2", "encoder_layers": 3, "encoder_embed_dim": 64, "encoder_ffn_embed_dim": 128}
    model_settings |= {"encoder_attention_heads": 4, "conv_feature_layers": "[(32,10,5)] + [(32,3,2)]*4 + [(32,2,2)]*2"}
    content = {"cfg": {"model": model_settings, "task": {}}, "model": fairseq_weights(inner, norm="group") | heads}
    torch.save(content, tmp_path / "fairseq.pt")
    save_heads({k: v for k, v in expected.state_dict().items() if not k.startswith("upstream.")}, tmp_path)
    for source in (tmp_path / "fairseq.pt", tmp_path):
        found = Wav2Vec2Pretraining(expected.upstream, expected.config, Labelling())
        with caplog.at_level(logging.INFO):
            load_heads(found, read_heads(source), origin=str(source))
        assert "goes on from" in caplog.messages[-1]
        for name, value in expected.state_dict().items():
            assert torch.equal(value, found.state_dict()[name]), name
    load_upstream(tmp_path / "fairseq.pt")  # the heads do not disturb the upstream


def test_heads_that_are_not_there_or_do_not_fit_begin_anew_and_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, small = pair(tmp_path)
    wider = Wav2Vec2Pretraining(small.upstream, replace(small.config, final_dim=24, quantized_dim=16), Labelling())
    kept = load_heads(wider, read_heads(tmp_path), origin="the file")
    assert kept == ["quantizer.codebook", "quantizer.projection.0.bias", "quantizer.projection.0.weight"]
    assert "final_proj.bias, final_proj.weight, project_q.bias, project_q.weight" in caplog.text
    assert load_heads(wider, {}, origin="nothing") == []


# The traps, and the paper's numbers


def test_the_frontend_learns_a_tenth_as_fast(tmp_path: Path) -> None:
    grads = []
    for scale in (1.0, 0.1):
        _, objective = pair(tmp_path / str(scale))
        upstream = objective.upstream
        upstream.config = replace(upstream.config, feature_grad_mult=scale)
        objective(waveforms(), make_generator(1)).loss_sum.backward()
        grads.append([p.grad for p in (upstream.frontend.convs[0].weight, upstream.projection.weight)])
    torch.testing.assert_close(grads[1][0], 0.1 * grads[0][0], rtol=1e-4, atol=1e-5 * float(grads[0][0].abs().max()))
    torch.testing.assert_close(grads[1][1], grads[0][1])


def test_the_temperature_is_a_function_of_the_updates_made(tmp_path: Path) -> None:
    _, objective = pair(tmp_path)
    for step, expected in (
        (0, 2.0),
        (1, 1.99999),
        (100_000, 2.0 * 0.999995**100_000),
        (277_000, 0.5007),
        (400_000, 0.5),
    ):
        objective.begin_step(step)
        assert objective.quantizer.temperature == pytest.approx(expected, abs=1e-4)
    objective.begin_step(7)  # as after a restart
    output = objective(waveforms(), make_generator(1))
    assert float(mean_metric(output, "temperature")) == pytest.approx(2.0 * 0.999995**7)


def test_the_penalty_is_on_features_before_their_layer_norm(tmp_path: Path) -> None:
    _, objective = pair(tmp_path)
    inputs = waveforms()
    features, _ = objective.upstream.extract_features(inputs.waveform, inputs.lengths)
    with_penalty = objective(inputs, make_generator(1))
    objective.config = replace(objective.config, features_penalty=0.0)
    without = objective(inputs, make_generator(1))
    expected = 10.0 * features.square().mean() * with_penalty.sample_size
    torch.testing.assert_close(with_penalty.loss_sum - without.loss_sum, expected, rtol=1e-3, atol=1e-3)


def test_large_models_hear_normalised_waveforms(tmp_path: Path) -> None:
    _, objective = pair(tmp_path, **LARGE)
    inputs = waveforms()
    louder = replace(inputs, waveform=3.0 * inputs.waveform + 0.2)
    one, two = (objective(x, make_generator(1)).metrics["clean_loss"] for x in (inputs, louder))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


def test_draws_depend_on_the_generator_alone(tmp_path: Path) -> None:
    _, objective = pair(tmp_path)
    objective.train()
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)  # dropout is off: nothing may use it
        losses.append(float(objective(waveforms(), make_generator(5)).loss_sum.detach()))
    assert losses[0] == losses[1] != float(objective(waveforms(), make_generator(6)).loss_sum.detach())


def test_cosines_are_in_float32_under_autocast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, objective = pair(tmp_path)
    recorder = Recorder(monkeypatch, "contrastive_loss")
    with torch.autocast("cpu", torch.bfloat16):
        output = objective(waveforms(), make_generator(1))
    call = recorder.seen["contrastive_loss"][0]
    context, targets, codes, frames, distractors = call.args
    exact, _ = pretrain.contrastive_loss(
        context.double(), targets.double(), codes, frames, distractors, temperature=0.1
    )
    assert output.loss_sum.dtype == torch.float32
    torch.testing.assert_close(call.result[0], exact, rtol=1e-6, atol=1e-6)


def test_what_is_quantized_are_the_hidden_frames_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, objective = pair(tmp_path)
    recorder = Recorder(monkeypatch, "draw_span_mask")
    heard: list[Tensor] = []
    objective.quantizer.register_forward_pre_hook(lambda _module, args: heard.append(args[0]))
    inputs = waveforms()
    objective(inputs, make_generator(1))
    features, _ = objective.upstream.extract_features(inputs.waveform, inputs.lengths)
    mask = recorder.seen["draw_span_mask"][0].result
    torch.testing.assert_close(heard[0], objective.upstream.feature_norm(features)[mask])
    assert 0.3 < float(mask.float().mean()) < 0.65


def test_presets_have_the_published_numbers() -> None:
    base, large = PRETRAIN_PRESETS["wav2vec2_base"], PRETRAIN_PRESETS["wav2vec2_large_lv60"]
    assert (base.mask_prob, base.mask_length, base.min_masks, base.distractors) == (0.65, 10, 2, 100)
    assert (base.codebooks * base.codebook_entries, base.final_dim, base.logit_temperature) == (640, 256, 0.1)
    assert (base.diversity_weight, base.features_penalty, base.temperature) == (0.1, 10.0, (2.0, 0.5, 0.999995))
    assert (large.features_penalty, large.final_dim, large.temperature[1]) == (0.0, 768, 0.1)
    train = TRAIN_PRESETS["wav2vec2_base"]
    assert train.batch_seconds * train.batches_per_step == 5600  # seconds: 1.6 hours
    assert (train.steps, train.learning_rate) == (400_000, 5e-4)
    assert TRAIN_PRESETS["wav2vec2_large_lv60"].learning_rate == 3e-4  # not the 0.005 of the yaml
    for name in PRETRAIN_PRESETS:
        assert pretrain_config(name)[0] == "wav2vec2"


# Two views


def test_ccc_adds_cross_contrasts_of_a_view_with_the_same_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, objective = pair(tmp_path, CCC)
    recorder = Recorder(monkeypatch, "draw_span_mask", "contrastive_loss", "cluster_directions")
    output = objective(waveforms(), make_generator(1))
    assert len(recorder.seen["draw_span_mask"]) == 1
    clean, disturbed, heard = recorder.seen["contrastive_loss"]
    assert clean.args[0] is disturbed.args[0] and clean.args[1] is heard.args[1]  # contexts, and targets
    assert not torch.equal(clean.args[0], heard.args[0]) and not torch.equal(clean.args[1], disturbed.args[1])
    names = ("clean_loss", "disturbed_target_loss", "disturbed_context_loss")
    parts = [output.metrics[name] for name in names]
    expected = parts[0] + 0.5 * parts[1] + 0.5 * parts[2] + 0.1 * output.metrics["diversity_loss"]
    expected = expected + 10.0 * output.metrics["features_penalty"]
    torch.testing.assert_close(output.loss_sum, expected)
    clustered = recorder.seen["cluster_directions"][0]
    hidden = int(output.sample_size)
    assert len(clustered.args[0]) == 2 * hidden and clustered.args[1] == max(2, hidden // 2 // 16)
    assert torch.equal(clean.named["clusters"], clustered.result[:hidden])
    assert torch.equal(disturbed.named["clusters"], clustered.result[hidden:])


def test_aug_hears_disturbed_speech_and_keeps_clean_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, objective = pair(tmp_path, AUG)
    recorder = Recorder(monkeypatch, "contrastive_loss", "corrupt")
    output = objective(waveforms(), make_generator(1))
    assert set(output.metrics) >= {"disturbed_context_loss", "accuracy"} and "clean_loss" not in output.metrics
    targets = recorder.seen["contrastive_loss"][0].args[1]
    objective.config = replace(objective.config, corruption=replace(AUG.corruption, noise_prob=1.0, reverb_prob=1.0))
    objective(waveforms(), make_generator(1))
    again = recorder.seen["contrastive_loss"][1].args[1]
    if torch.equal(*(call.args[3].index for call in recorder.seen["contrastive_loss"])):
        torch.testing.assert_close(targets, again)
    assert len(objective.quantizer.projection) == 2
    assert objective.context_mlp[0].out_features == 2 * objective.config.final_dim


def test_directions_that_point_apart_are_clusters_of_their_own() -> None:
    centres = torch.eye(4, 8)
    wanted = torch.arange(200) % 4
    scale = 1 + 9 * torch.rand(200, 1, generator=make_generator(0))
    frames = scale * (centres[wanted] + 0.05 * torch.randn(200, 8, generator=make_generator(1)))
    pairs = [
        {
            (int(a), int(b))
            for a, b in zip(wanted, cluster_directions(frames, 4, generator=make_generator(s)), strict=True)
        }
        for s in range(8)
    ]
    assert min(len(found) for found in pairs) == 4
    found = cluster_directions(frames, 7, generator=make_generator(0))
    cosine = F.normalize(frames, dim=1)
    sums = torch.zeros(7, 8).index_add_(0, found, cosine)
    assert torch.equal((cosine @ F.normalize(sums, dim=1).T).argmax(dim=1), found)  # a fixed point of Lloyd's passes


def test_contrasts_without_weight_are_refused() -> None:
    with pytest.raises(ConfigError, match="not all 0"):
        replace(BASE, clean_weight=0.0)
