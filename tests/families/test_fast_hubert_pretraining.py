"""Fast-HuBERT: its frontend against torchaudio's Kaldi features and plain convolutions, its format, its loss."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fairseq_weights import fairseq_weights
from safetensors.torch import save_file
from torch import Tensor
from torchaudio.compliance.kaldi import fbank
from transformers import HubertConfig, HubertModel

from speechssl.checkpoint import save_upstream
from speechssl.data.batching import make_generator
from speechssl.data.corpus import open_corpus
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.loading import build_upstream, load_upstream
from speechssl.masking.span import sample_span_mask
from speechssl.objective import Labelling, PretrainInputs
from speechssl.targets.labels import label_path, make_label_set
from speechssl.train.metrics import read_log
from speechssl.train.run import pretrain, pretrain_config
from upstreams.fast_hubert.config import PRESETS, FastHubertConfig
from upstreams.fast_hubert.frontend import SubsampledLogMel
from upstreams.fast_hubert.model import build
from upstreams.fast_hubert.pretrain import FastHubertPretrainConfig, FastHubertPretraining

LENGTHS = torch.tensor([16_000, 12_345, 8_000])


def waveforms() -> Tensor:
    noise = 0.1 * torch.randn(3, 16_000, generator=make_generator(0))
    return torch.where(torch.arange(16_000) < LENGTHS[:, None], noise, 5.0)  # garbage in the padding


def frontend() -> SubsampledLogMel:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        made = SubsampledLogMel(80, channels=24, inner=32, kernels=(5, 5))
    made.norm.fit([(torch.randn(2, 50, 80, generator=make_generator(3)) * 3 + 14, torch.tensor([50, 30]))])
    return made


def kaldi(waveform: Tensor) -> Tensor:
    """(S,) in [-1, 1] -> (F, 80), as the authors' `extract_fbank.py` has it of fairseq."""
    return fbank(waveform[None] * 2**15, num_mel_bins=80, sample_frequency=16_000)


@torch.no_grad()
def test_the_frontend_is_kaldis_log_mel_normalised_and_two_gated_convolutions() -> None:
    made = frontend()
    found, lengths = made(waveforms(), LENGTHS), made.output_lengths(LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        x = ((kaldi(waveforms()[row, :length]) - made.norm.mean) / made.norm.deviation).T[None]
        for conv in made.convs:
            x = F.glu(F.conv1d(x, conv.weight, conv.bias, stride=2, padding=2), dim=1)  # type: ignore[arg-type]
        assert int(lengths[row]) == x.size(2) == -(-(1 + (length - 400) // 160) // 4)
        torch.testing.assert_close(found[row, : x.size(2)], x[0].T, rtol=0, atol=1e-4)


def test_there_are_25_frames_a_second() -> None:
    upstream = build_upstream("fast_hubert", small(), seed=0).eval()
    assert upstream.frame_rate == 25.0
    with torch.no_grad():
        assert upstream(torch.randn(1, 160_000, generator=make_generator(0))).lengths.tolist() == [250]


def test_the_statistics_are_those_of_the_valid_frames_of_all_batches() -> None:
    made = SubsampledLogMel(80, channels=24, inner=32, kernels=(5, 5))
    made.fit([(waveforms(), LENGTHS), (0.5 * waveforms()[:1], LENGTHS[:1])])
    frames = [kaldi(w[:n]) for w, n in zip(waveforms(), LENGTHS.tolist(), strict=True)]
    whole = torch.cat([*frames, kaldi(0.5 * waveforms()[0])]).double()
    torch.testing.assert_close(made.norm.mean, whole.mean(dim=0).float(), rtol=0, atol=1e-4)
    torch.testing.assert_close(made.norm.deviation, whole.std(dim=0, correction=0).float(), rtol=0, atol=1e-4)
    assert made.norm.frames.item() == len(whole)


def small(**changes: Any) -> FastHubertConfig:
    sizes: dict[str, Any] = {"width": 32, "heads": 4, "ffn_width": 48, "depth": 3, "pos_kernel": 7}
    return replace(PRESETS["fast_hubert_tiny"], **{**sizes, "conv_channels": 24, "subsample_channels": 32, **changes})


def objective(labelling: Labelling | None = None, **changes: Any) -> FastHubertPretraining:
    settings = replace(FastHubertPretrainConfig(layers=(1, -1)), **changes)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        upstream: Any = build_upstream("fast_hubert", small(), seed=0)
        return FastHubertPretraining(upstream, settings, labelling or Labelling((7,), (50.0,))).eval()


def inputs() -> PretrainInputs:
    return PretrainInputs(waveforms(), LENGTHS, (torch.randint(7, (3, 50), generator=make_generator(1)),))


def test_statistics_come_from_the_first_batches_or_a_file_or_the_upstream_itself(tmp_path: Path) -> None:
    module = objective()
    assert not module.upstream.frontend.norm.fitted
    module.begin_run([inputs()])
    first = module.upstream.frontend.norm.mean.clone()
    assert module.upstream.frontend.norm.fitted
    module.begin_run([replace(inputs(), waveform=0.1 * waveforms())])  # a run that starts from an upstream with some
    assert torch.equal(module.upstream.frontend.norm.mean, first)
    save_upstream(module.upstream, tmp_path / "upstream")
    assert torch.equal(load_upstream(tmp_path / "upstream").frontend.norm.mean, first)

    save_file({"mean": torch.full((80,), 12.0), "deviation": torch.full((80,), 3.0)}, tmp_path / "s.safetensors")
    given = objective(statistics=str(tmp_path / "s.safetensors"))
    given.begin_run([])
    assert given.upstream.frontend.norm.mean.unique().tolist() == [12.0]
    assert given.upstream.frontend.norm.deviation.unique().tolist() == [3.0]
    save_file({"mean": torch.zeros(40)}, tmp_path / "s.safetensors")
    for path in (tmp_path / "s.safetensors", tmp_path / "absent"):
        with pytest.raises(ConfigError, match="`mean` and `deviation`, 80 numbers each"):
            objective(statistics=str(path)).begin_run([])


@pytest.mark.parametrize("rate", [50.0, 100.0])
def test_the_loss_is_the_mean_over_two_layers_of_plain_cross_entropy(rate: float) -> None:
    """The criterion of the authors' code: both layers' frames counted, logits over 0.1, every second label of 50 Hz."""
    module = objective(Labelling((7,), (rate,)))
    given = replace(inputs(), codes=(torch.randint(7, (3, int(rate)), generator=make_generator(1)),))
    module.begin_run([given])
    output = module(given, make_generator(5))
    features, frames = module.upstream.extract_features(given.waveform, given.lengths)
    mask = sample_span_mask(
        frames, prob=0.8, span=10, min_spans=2, generator=make_generator(5), max_length=features.size(1)
    )
    states = module.upstream.encode(features, frames, layers=frozenset({1, 3}), mask=mask)
    target = given.codes[0][:, :: int(rate // 25)][:, : features.size(1)][mask]
    total = torch.zeros(())
    for layer in (1, 3):
        head = module.heads[str(layer)].final_proj  # type: ignore[union-attr]
        logits = states[layer][mask] @ head.weight.T + head.bias  # type: ignore[union-attr,operator]
        total = total + F.cross_entropy(logits / 0.1, target, reduction="sum")
    counted = 2 * len(target)
    torch.testing.assert_close(output.loss_sum / output.sample_size, total / counted, rtol=1e-5, atol=1e-5)
    assert output.sample_size.item() == len(target)


def test_the_preset_has_the_numbers_of_the_authors_recipe() -> None:
    config = pretrain_config("fast_hubert_base")[1]
    assert (config.objective.layers, config.objective.mask_prob, config.objective.head) == ((4, 12), 0.8, "linear")
    assert (config.train.steps, config.train.learning_rate, config.train.clip_norm) == (400_000, 5e-4, 10.0)
    assert config.train.max_seconds == 15.62
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in build(PRESETS["fast_hubert_base"]).state_dict().items()}
    assert shapes["frontend.convs.0.weight"] == (1024, 80, 5)
    assert shapes["frontend.convs.1.weight"] == (1024, 512, 5)
    assert shapes["projection.weight"] == (768, 512)


def authors_checkpoint() -> dict[str, Any]:
    """A state dict and settings by the names of the authors' code: transformers' encoder, and two convolutions."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = HubertModel(HubertConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, conv_dim=[24] * 7,
            num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
        )).eval()  # fmt: skip
        state = fairseq_weights(model.state_dict(), norm="group")
        for index, (a, b) in enumerate(((80, 32), (16, 48))):
            state[f"subsample.conv_layers.{index}.weight"] = 0.1 * torch.randn(b, a, 5)
            state[f"subsample.conv_layers.{index}.bias"] = 0.1 * torch.randn(b)
        state |= {"final_proj.0.weight": torch.zeros(7, 64), "final_proj.1.weight": torch.zeros(7, 64)}
        state["label_embs_concat"] = torch.zeros(7, 16)
    settings = {
        "_name": "fasthubert", "encoder_layers": 2, "encoder_embed_dim": 64, "encoder_ffn_embed_dim": 96,
        "encoder_attention_heads": 4, "conv_pos": 8, "conv_pos_groups": 4, "conv_channels": 32, "fbank_encoder_dim": 24,
        "conv_kernel_sizes": "5,5", "input_feat_per_channel": 80, "label_rate": 50, "feature_grad_mult": 0.1,
        "conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2", "predict_layers": "[3,11]",
    }  # fmt: skip
    task = {"_name": "fasthubert_pretraining", "sample_rate": 100, "normalize": False}
    return {"cfg": {"model": settings, "task": task}, "model": state, "theirs": model}


@torch.no_grad()
def test_the_authors_checkpoint_is_read_by_its_content(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = authors_checkpoint()
    theirs = checkpoint.pop("theirs")
    torch.save(checkpoint, tmp_path / "checkpoint280.pt")
    with caplog.at_level(logging.WARNING):
        upstream: Any = load_upstream(tmp_path / "checkpoint280.pt")
    assert "no mean and deviation" in caplog.text
    assert (upstream.family, upstream.frame_rate, upstream.sample_rate) == ("fast_hubert", 25.0, 16_000)
    assert (upstream.config.label_rate, upstream.config.subsample_channels) == (50.0, 32)
    x = kaldi(waveforms()[0]).T[None]
    for index in range(2):
        weight, bias = (checkpoint["model"][f"subsample.conv_layers.{index}.{n}"] for n in ("weight", "bias"))
        x = F.glu(F.conv1d(x, weight, bias, stride=2, padding=2), dim=1)
    projected = theirs.feature_projection(x.transpose(1, 2))
    projected = projected[0] if isinstance(projected, tuple) else projected
    expected = theirs.encoder(projected, output_hidden_states=True).hidden_states
    found = upstream(waveforms()[:1]).hidden_states
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_a_damaged_setting_is_named(tmp_path: Path) -> None:
    checkpoint = authors_checkpoint()
    del checkpoint["theirs"]
    checkpoint["cfg"]["model"]["conv_kernel_sizes"] = "five"
    torch.save(checkpoint, tmp_path / "x.pt")
    with pytest.raises(SpeechsslError, match=r"`conv_kernel_sizes` of .*x\.pt must look like"):
        load_upstream(tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="odd"):
        SubsampledLogMel(80, channels=24, inner=32, kernels=(4,))


def test_a_run_keeps_its_statistics_when_it_goes_on(tiny_corpus: Path, tmp_path: Path) -> None:
    """Steps 3 and 4 after an interruption are those of a run without one, and the upstream is saved with both."""
    corpus = open_corpus(tiny_corpus)
    codes = {
        u.id: torch.randint(5, (round((u.duration or 0) * 100) - 2,), generator=make_generator(u.id))
        for u in corpus.utterances("train")
    }
    labels = make_label_set(codes, num_labels=5, label_rate=100.0, corpus=corpus.fingerprint, origin="noise")
    labels.save(label_path(tmp_path / "labels", "train"))
    settings = [
        *(f"model.{name}={value}" for name, value in {"width": 32, "heads": 2, "ffn_width": 48, "depth": 2}.items()),
        "objective.layers=[1,2]", "train.batch_seconds=5", "train.batches_per_step=1", "train.min_seconds=0.5",
        "train.max_seconds=1.2", "train.log_every=1", "train.save_every=2", "train.steps=4", "train.warmup=0.25",
        "train.accelerator=cpu", "train.threads=1",
    ]  # fmt: skip
    arguments: dict[str, Any] = {"corpus": tiny_corpus, "labels": [tmp_path / "labels"], "overrides": settings}
    pretrain("fast_hubert_tiny", output=tmp_path / "whole", **arguments)
    shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / "part" / "checkpoints")
    last = max((tmp_path / "part" / "checkpoints").iterdir(), key=lambda path: path.name)
    shutil.rmtree(last) if last.is_dir() else last.unlink()
    pretrain("fast_hubert_tiny", output=tmp_path / "part", **arguments)
    one, two = (load_upstream(tmp_path / name) for name in ("whole", "part"))
    assert one.frontend.norm.frames > 1_000
    assert all(torch.equal(value, two.state_dict()[key]) for key, value in one.state_dict().items())
    assert [line["loss"] for line in read_log(tmp_path / "whole")][2:] == [
        line["loss"] for line in read_log(tmp_path / "part")
    ]
