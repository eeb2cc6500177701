"""Judges of converted speech: their networks, their scores, and (with the network) what they say of real speech."""

from pathlib import Path

import numpy as np
import pytest
import torch

from downstreams.voice_conversion import judges, scoring
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
    similarity, identified = scoring.judge_voice(_tone(120.0), "a", {"a": own, "b": other}, judge)
    assert (round(similarity, 4), identified) == (1.0, True)
    assert scoring.judge_voice(_tone(120.0), "b", {"a": own, "b": other}, judge)[1] is False


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
