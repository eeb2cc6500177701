"""Judges of converted speech: their networks, their scores, and (with the network) what they say of real speech."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from downstreams.voice_conversion import ecapa, judges, scoring
from downstreams.voice_conversion.scoring import Verdict
from speechssl.data import pypi
from speechssl.errors import SpeechsslError


def _tone(pitch: float, seconds: float = 2.0) -> torch.Tensor:
    time = torch.arange(int(16_000 * seconds)) / 16_000
    return 0.1 * torch.stack([torch.sin(2 * torch.pi * pitch * n * time) for n in range(1, 12)]).sum(dim=0)


def _speaker_judge() -> judges.SpeakerJudge:
    torch.manual_seed(0)
    return judges.SpeakerJudge().eval()


def test_embeddings_have_unit_length_and_ignore_the_level() -> None:
    judge = _speaker_judge()
    loud = judge.embed(_tone(120.0))
    assert float(loud.norm()) == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(judge.embed(0.001 * _tone(120.0)), judge.embed(0.002 * _tone(120.0)), atol=1e-3, rtol=0)


def test_short_speech_has_one_window_and_long_speech_overlapping_ones() -> None:
    judge = _speaker_judge()
    assert judge._windows(_tone(120.0, 0.5)).shape == (1, 160, 40)
    # 3 s are 301 frames: windows begin at 0, 77 and 154; the last holds 147 frames, over three quarters.
    assert judge._windows(_tone(120.0, 3.0)).shape == (3, 160, 40)


def test_original_whisper_names_become_those_of_transformers() -> None:
    pytest.importorskip("transformers")
    from transformers import WhisperConfig, WhisperModel

    dims = {
        "n_vocab": 51_864, "n_mels": 80, "n_audio_state": 16, "n_audio_head": 2, "n_audio_layer": 1,
        "n_text_layer": 1, "n_text_head": 2, "n_audio_ctx": 1500, "n_text_ctx": 448,
    }  # fmt: skip
    expected = set(WhisperModel(WhisperConfig(**judges._whisper_config(dims))).state_dict())
    part = "{side}.blocks.0.{name}"
    attention = [f"{{a}}.{n}" for n in ("query.weight", "query.bias", "key.weight", "value.weight", "value.bias")]
    attention += ["{a}.out.weight", "{a}.out.bias", "{a}_ln.weight", "{a}_ln.bias"]
    feed = [f"{n}.{p}" for n in ("mlp.0", "mlp.2", "mlp_ln") for p in ("weight", "bias")]
    keys = [part.format(side="encoder", name=n) for n in [a.format(a="attn") for a in attention] + feed]
    both = [a.format(a=kind) for a in attention for kind in ("attn", "cross_attn")]
    keys += [part.format(side="decoder", name=n) for n in both + feed]
    keys += [f"encoder.conv{i}.{p}" for i in (1, 2) for p in ("weight", "bias")]
    keys += ["encoder.ln_post.weight", "encoder.ln_post.bias", "decoder.ln.weight", "decoder.ln.bias"]
    keys += ["encoder.positional_embedding", "decoder.positional_embedding", "decoder.token_embedding.weight"]
    assert {judges.transformers_key(k) for k in keys} == expected


class _Session:
    """Stands in for DNSMOS: the raw score of a window is its first sample."""

    def run(self, outputs: None, inputs: dict[str, Any]) -> list[Any]:
        (window,) = inputs.values()
        assert window.shape == (1, 144_160)  # 9.01 s
        return [[[0.0, 0.0, window[0, 0]]]]


def test_quality_is_the_mean_over_windows_that_begin_every_second() -> None:
    judge = judges.QualityJudge(_Session())
    long = torch.zeros(16_000 * 12)  # windows begin at 0, 1 and 2 s
    long[[0, 16_000, 32_000]] = torch.tensor([1.0, 2.0, 4.0])
    expected = np.mean([np.polyval(judge.OVERALL, raw) for raw in (1.0, 2.0, 4.0)])
    assert judge.score(long) == pytest.approx(expected, abs=1e-6)
    assert judge.score(torch.full((500,), 3.0)) == pytest.approx(np.polyval(judge.OVERALL, 3.0), abs=1e-6)


def test_long_speech_is_cut_where_it_is_quiet_and_nothing_is_lost() -> None:
    speech = torch.randn(16_000 * 70, generator=torch.Generator().manual_seed(0))
    speech[16_000 * 25 : 16_000 * 26] *= 0.01
    parts = judges.split_quietly(speech, 16_000 * 30)
    assert len(parts) == 3 and 25 <= len(parts[0]) / 16_000 <= 26
    assert all(len(part) <= 16_000 * 30 for part in parts)
    torch.testing.assert_close(torch.cat(parts), speech, atol=0, rtol=0)


def _slow_ecapa(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """SpeechBrain's network on (80, T), layer by layer from its own names of weights."""

    def conv(name: str, x: torch.Tensor, dilation: int = 1) -> torch.Tensor:
        kernel = weights[f"{name}.conv.weight"].size(2)
        pad = dilation * (kernel - 1) // 2
        x = F.pad(x[None], (pad, pad), mode="reflect") if pad else x[None]
        return F.conv1d(x, weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"], dilation=dilation)[0]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        mean, var, gain, bias = (weights[f"{name}.norm.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean[:, None]) / (var[:, None] + 1e-5).sqrt() * gain[:, None] + bias[:, None]

    def layer(name: str, x: torch.Tensor, dilation: int = 1) -> torch.Tensor:
        return norm(f"{name}.norm", conv(f"{name}.conv", x, dilation).relu())

    x = layer("blocks.0", x)
    outputs = []
    for block in (1, 2, 3):
        before, x = x, layer(f"blocks.{block}.tdnn1", x)
        done: list[torch.Tensor] = []
        for group, part in enumerate(x.chunk(8)):
            name = f"blocks.{block}.res2net_block.blocks.{group - 1}"
            done.append(part if group == 0 else layer(name, part if group == 1 else part + done[-1], block + 1))
        x = layer(f"blocks.{block}.tdnn2", torch.cat(done))
        gate = conv(f"blocks.{block}.se_block.conv1", x.mean(dim=1, keepdim=True)).relu()
        x = x * conv(f"blocks.{block}.se_block.conv2", gate).sigmoid() + before
        outputs.append(x)
    x = layer("mfa", torch.cat(outputs))
    ends = [x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True, correction=0)]
    seen = torch.cat([x, *(e.expand_as(x) for e in ends)])
    weight = conv("asp.conv", layer("asp.tdnn", seen).tanh()).softmax(dim=1)
    mean = (weight * x).sum(dim=1, keepdim=True)
    deviation = (weight * (x - mean) ** 2).sum(dim=1, keepdim=True).sqrt()
    return conv("fc", norm("asp_bn", torch.cat([mean, deviation])))[:, 0]


def _their_keys(judge: ecapa.EcapaJudge) -> dict[str, str]:
    """Our name -> SpeechBrain's."""
    found = {}
    for ours in judge.state_dict():
        *path, name = ours.split(".")
        if path[0] == "asp_bn":  # the one norm that is wrapped once
            found[ours] = ours
            continue
        last = {"conv": "conv", "conv1": "conv", "conv2": "conv", "fc": "conv", "norm": "norm"}[path[-1]]
        found[ours] = ".".join([*path, last, name])
    return found


def test_ecapa_is_that_of_speechbrain() -> None:
    torch.manual_seed(0)
    judge = ecapa.EcapaJudge(channels=16, pooled=24, size=8).eval()
    for name, value in judge.state_dict().items():
        if value.is_floating_point():  # the names of a norm's weights begin as those of its statistics
            value.copy_(torch.rand_like(value) + 0.5 if "norm" in name else torch.randn_like(value) * 0.3)
    theirs = {key: judge.state_dict()[ours] for ours, key in _their_keys(judge).items()}
    assert {ecapa.our_key(key): key for key in theirs} == _their_keys(judge)
    bands = torch.randn(80, 50)
    with torch.inference_mode():
        torch.testing.assert_close(judge(bands[None])[0], _slow_ecapa(theirs, bands), atol=1e-4, rtol=1e-5)


def test_ecapa_hears_no_level_and_refuses_what_is_too_short() -> None:
    torch.manual_seed(0)
    judge = ecapa.EcapaJudge(channels=16, pooled=24, size=8).eval()
    loud = judge.embed(_tone(120.0))
    assert float(loud.norm()) == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(judge.embed(0.1 * _tone(120.0)), loud, atol=1e-4, rtol=0)
    with pytest.raises(SpeechsslError, match=r"needs 0\.1 s of speech, but was given 1599 samples"):
        judge.embed(torch.zeros(1599))


def test_mel_filters_of_ecapa_are_triangles_as_wide_as_below_their_centre() -> None:
    def slow(band: int, frequency: float) -> float:
        edges = [700 * (10 ** (2595 * np.log10(1 + 8000 / 700) * k / 81 / 2595) - 1) for k in range(82)]
        slope = (frequency - edges[band + 1]) / (edges[band + 1] - edges[band])
        return max(0.0, float(min(slope + 1, 1 - slope)))

    expected = torch.tensor([[slow(band, 40.0 * k) for band in range(80)] for k in range(201)])
    torch.testing.assert_close(ecapa.mel_filters(), expected, atol=1e-4, rtol=0)


def _verdicts(*rows: tuple[float, str]) -> list[Verdict]:
    return [Verdict(similarity, similarity > 0.4, "abcd", heard) for similarity, heard in rows]


def test_score_is_the_harmonic_mean_of_voice_and_words() -> None:
    found = scoring.score_metrics(_verdicts((0.9, "abcd"), (0.9, "ab"), (0.1, "abcd"), (0.9, "abcd")), 0.5)
    assert found["identification"].value == pytest.approx(0.75)
    assert found["cer"].value == pytest.approx(2 / 16)
    assert found["score"].value == pytest.approx(2 * 0.75 * 0.875 / (0.75 + 0.875))
    assert found["score"].n == 4


def test_score_is_zero_where_one_side_fails_and_one_where_both_hold() -> None:
    assert scoring.score_metrics(_verdicts((0.1, "abcd"), (0.2, "abcd")), 0.5)["score"].value == 0.0
    assert scoring.score_metrics(_verdicts((0.9, ""), (0.9, "")), 0.5)["score"].value == 0.0
    assert scoring.score_metrics(_verdicts((0.9, "abcd"), (0.8, "abcd")), 0.5)["score"].value == 1.0


def test_a_voice_is_identified_where_no_other_profile_is_nearer() -> None:
    judge = _speaker_judge()
    own, other = judge.embed(_tone(120.0)), judge.embed(_tone(310.0))
    similarity, identified, _ = scoring.judge_voice(_tone(120.0), "a", {"a": own, "b": other}, judge)
    assert (round(similarity, 4), identified) == (1.0, True)
    assert scoring.judge_voice(_tone(120.0), "b", {"a": own, "b": other}, judge)[1] is False


def test_the_share_nearer_to_the_target_needs_the_source() -> None:
    rows = [Verdict(0.9, True, "a", "a", source_similarity=0.5), Verdict(0.4, True, "a", "a", source_similarity=0.6)]
    assert scoring.score_metrics(rows, 0.5)["nearer_target"].value == 0.5
    unasked = [*rows, Verdict(0.9, True, "a", "a")]
    assert "nearer_target" not in scoring.score_metrics(unasked, 0.5)
    conditions = scoring.by_condition({"bound": rows, "converted": unasked}, 0.5)
    assert "nearer_target by condition" not in conditions and "similarity by condition" in conditions


def test_endless_repetition_costs_no_more_than_a_lost_sentence() -> None:
    babble = scoring.score_metrics(_verdicts((0.9, "abcd" * 30), (0.9, "abcd")), 0.5)["score"]
    silent = scoring.score_metrics(_verdicts((0.9, ""), (0.9, "abcd")), 0.5)["score"]
    assert babble == silent


def test_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SpeechsslError, match=r"'resemblyzer' 0\.1\.4 can't be fetched from pypi"):
        judges.load_speaker_judge(tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("pypi-")]


def test_changed_or_incomplete_package_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("four")
    pypi._write_record(tmp_path, "a.whl", "0")
    assert pypi.is_complete(tmp_path)
    (tmp_path / "a.txt").write_text("longer")
    assert not pypi.is_complete(tmp_path)


@pytest.mark.network
def test_ready_speaker_judge_hears_what_is_alike() -> None:
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32))
    judge = judges.load_speaker_judge()
    tone = judge.embed(_tone(110.0))
    assert float(tone @ judge.embed(_tone(112.0))) > float(tone @ judge.embed(noise))


@pytest.mark.network
def test_ready_ecapa_hears_what_is_alike() -> None:
    judge = ecapa.load_ecapa_judge()
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32))
    tone = judge.embed(_tone(110.0))
    assert float(tone @ judge.embed(_tone(112.0))) > float(tone @ judge.embed(noise))
