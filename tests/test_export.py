"""Programs for onnxruntime and torch.export beside the upstream they were made from, and transformers' own models."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run, the_sentence

from speechssl.checkpoint import save_upstream
from speechssl.errors import ConfigError, SpeechsslError
from speechssl.export import export_upstream, to_transformers
from speechssl.frontend.log_mel import LogMel
from speechssl.loading import build_upstream, load_upstream
from speechssl.registry import find_preset
from speechssl.serving import programs
from speechssl.upstream import Upstream

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

SHRINK = {"width": 64, "ffn_width": 96, "heads": 4, "depth": 2, "conv_channels": 32}
TRACED = [
    "hubert_base",  # group norm
    "hubert_large",  # layer norm, normalised input, norms before the blocks
    "hubert_tiny",  # log-mel frames
    "wav2vec2_base",
    "wavlm_base",  # gated relative positions
    "data2vec_base",  # stacked positional convolutions
    "data2vec2_base",  # attention with linear biases
    "wav2vec2_conformer_rel_pos_large",
    "wav2vec2_conformer_rope_large",
    "w2v_bert_2_0",
    "wav2vec_large",  # group norm after every convolution
    "fbank",
    "mfcc",
]
SIZES = [(1, (16_000,)), (2, (9_000, 5_000)), (3, (23_456, 800, 12_001)), (1, (960,))]


def small(name: str) -> Upstream:
    family, config = find_preset(name)
    fields = {f.name for f in dataclasses.fields(config)}
    config = dataclasses.replace(config, **{k: v for k, v in SHRINK.items() if k in fields})
    upstream = build_upstream(family, config, seed=0).eval()
    upstream.name = name
    for module in upstream.modules():
        if isinstance(module, LogMel):  # programs have float64; float32 is off by 1e-4 where a band is weak
            module.options = dataclasses.replace(module.options, double=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in upstream.parameters():
            if parameter.dim() == 1:  # fresh biases are 0, which would hide a mistake in their use
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return upstream


def speech_like(samples: int, *, rows: int) -> torch.Tensor:
    """Noise with a loudness that changes, so that statistics over padding would be far off."""
    generator = torch.Generator().manual_seed(samples)
    return 0.3 * torch.randn(rows, samples, generator=generator) * torch.linspace(0.3, 1.0, samples) + 0.02


def compare(upstream: Upstream, run_program, layers: list[int]) -> None:
    for rows, lengths in SIZES:
        waveform = speech_like(max(lengths), rows=rows)
        counts = torch.tensor(lengths)
        with torch.no_grad():
            expected = upstream(waveform, counts, layers=layers)
            *states, frames = run_program(waveform, counts)
        assert np.asarray(frames).tolist() == expected.lengths.tolist()
        assert len(states) == len(layers)
        for row, count in enumerate(expected.lengths.tolist()):
            for ours, theirs in zip(expected.hidden_states, states, strict=True):
                program = torch.as_tensor(np.asarray(theirs))[row]
                assert (program[:count] - ours[row, :count]).abs().max() <= 1e-4
                assert not program[count:].any()


def in_onnxruntime(path: Path):
    session = onnxruntime.InferenceSession(path)
    return lambda w, n: session.run(None, {"waveform": w.numpy(), "lengths": n.numpy()})


@pytest.mark.parametrize("name", TRACED)
def test_onnx_gives_the_upstreams_numbers_at_any_length_and_batch_size(name: str, tmp_path: Path) -> None:
    upstream = small(name)
    path = tmp_path / "model.onnx"
    deviation = programs.export_onnx(upstream, path)
    assert 0.0 < deviation <= 1e-4
    compare(upstream, in_onnxruntime(path), list(range(len(upstream.hidden_sizes))))
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hubert_base", "hubert_tiny"])
def test_a_program_of_torch_export_gives_the_upstreams_numbers(name: str, tmp_path: Path) -> None:
    upstream = small(name)
    path = tmp_path / "model.pt2"
    programs.export_program(upstream, path, layers=[-1])
    files = {programs.METADATA: ""}
    program = torch.export.load(path, extra_files=files).module()
    compare(upstream, program, [2])
    assert json.loads(files[programs.METADATA])["fingerprint"] == upstream.fingerprint()


def test_only_the_chosen_layers_come_out_and_the_others_weights_stay_behind(tmp_path: Path) -> None:
    upstream = small("hubert_base")
    save_upstream(upstream, tmp_path / "upstream")
    export_upstream(tmp_path / "upstream", tmp_path / "one", to="onnx", layers=[1])
    export_upstream(tmp_path / "upstream", tmp_path / "all.onnx", to="onnx")
    path = tmp_path / "one" / "model.onnx"
    compare(upstream, in_onnxruntime(path), [1])
    session = onnxruntime.InferenceSession(path)
    assert [o.name for o in session.get_outputs()] == ["hidden_state_1", "frame_lengths"]
    assert path.stat().st_size < (tmp_path / "all.onnx").stat().st_size
    about = session.get_modelmeta().custom_metadata_map
    assert about["sample_rate"] == "16000" and about["layers"] == "[1]" and about["frame_rate"] == "50.0"
    assert about["fingerprint"] == upstream.fingerprint()


def test_weights_too_large_for_one_file_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "LARGEST_FILE", 1_000)
    upstream = small("hubert_base")
    programs.export_onnx(upstream, tmp_path / "large.onnx", layers=[2])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    assert (tmp_path / "large.onnx.data").stat().st_size > (tmp_path / "large.onnx").stat().st_size
    compare(upstream, in_onnxruntime(tmp_path / "large.onnx"), [2])


def test_exporting_leaves_the_upstream_as_it_was(tmp_path: Path) -> None:
    upstream = small("wavlm_base")
    before = upstream.fingerprint(), [type(m) for m in upstream.modules()]
    programs.export_onnx(upstream, tmp_path / "model.onnx", layers=[0])
    assert (upstream.fingerprint(), [type(m) for m in upstream.modules()]) == before


def test_a_program_with_other_numbers_is_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = programs._in_onnxruntime

    def wrong(path: Path):
        program = original(path)
        return lambda w, n: [x + 2e-4 if x.dtype == torch.float32 else x for x in program(w, n)]

    monkeypatch.setattr(programs, "_in_onnxruntime", wrong)
    with pytest.raises(SpeechsslError, match=r"'hubert_tiny' can't be exported to onnx.* is off by 2"):
        programs.export_onnx(small("hubert_tiny"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


class FixedSize(Upstream):
    """Frames that depend on a number that tracing takes for a constant."""

    name = family = "fixed"

    def __init__(self) -> None:
        super().__init__(sample_rate=16_000, frame_rate=50.0, hidden_sizes=(1,))

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        return torch.div(lengths, 320, rounding_mode="floor")

    def compute(self, waveform, lengths, layers):
        frames = int(self.output_lengths(lengths).max())
        return {0: waveform[:, : 320 * frames].reshape(len(waveform), frames, 320).mean(dim=2, keepdim=True)}

    def fingerprint_config(self) -> str:
        return "fixed"


@pytest.mark.parametrize("to", ["onnx", "torch-export"])
def test_a_family_that_can_not_be_traced_is_refused_in_one_sentence(
    to: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write = programs.export_onnx if to == "onnx" else programs.export_program
    with pytest.raises(SpeechsslError) as refused:
        write(FixedSize().eval(), tmp_path / "program")
    assert str(refused.value).startswith(f"'fixed' can't be exported to {to}, since the family 'fixed' has a part")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().out == ""


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(SpeechsslError, match=r"needs onnxruntime: pip install 'speechssl\[onnx\]'"):
        programs.export_onnx(small("hubert_tiny"), tmp_path / "model.onnx")


def test_the_command_line_exports_and_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_upstream(small("hubert_base"), tmp_path / "up")
    assert run("export", tmp_path / "up", "--to", "onnx", "--layers", "1,-1", "-o", tmp_path / "x.onnx") == 0
    assert "onnx" in capsys.readouterr().out
    outputs = onnxruntime.InferenceSession(tmp_path / "x.onnx").get_outputs()
    assert [o.name for o in outputs] == ["hidden_state_1", "hidden_state_2", "frame_lengths"]
    assert run("export", tmp_path / "up", "--to", "safetensors", "-o", tmp_path / "copy") == 0
    assert load_upstream(tmp_path / "copy").fingerprint() == load_upstream(tmp_path / "up").fingerprint()
    assert "`layers`" in the_sentence(capsys, "export", tmp_path / "up", "--layers", "1", "-o", tmp_path / "no")
    line = the_sentence(capsys, "export", tmp_path / "up", "--to", "onnx", "--layers", "9", "-o", tmp_path / "no")
    assert "0..2" in line
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("name", ["hubert_base", "hubert_large", "wav2vec2_base", "wavlm_base", "w2v_bert_2_0"])
def test_to_transformers_gives_its_own_model_with_the_same_numbers(name: str) -> None:
    upstream = small(name)
    state = torch.random.get_rng_state()
    model = upstream.to_transformers()
    assert torch.equal(state, torch.random.get_rng_state())
    assert type(model).__module__.startswith("transformers.") and not model.training
    waveform = speech_like(9_000, rows=1)
    with torch.no_grad():
        ours = upstream(waveform).hidden_states
        found = model(**their_inputs(upstream, waveform), output_hidden_states=True)
    # The last of `hidden_states` is without the closing norm in transformers 5, and with it in 4.
    theirs = [*found.hidden_states[:-1], found.last_hidden_state]
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b[:, : a.size(1)]).abs().max() <= 1e-4
    next(model.parameters()).data.zero_()
    assert next(upstream.to_transformers().parameters()).any()  # the weights are the model's own


def their_inputs(upstream: Upstream, waveform: torch.Tensor) -> dict[str, torch.Tensor]:
    from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2FeatureExtractor

    if upstream.family == "w2v_bert":
        made = SeamlessM4TFeatureExtractor()(waveform[0].numpy(), sampling_rate=16_000, return_tensors="pt")
        return {"input_features": made.input_features, "attention_mask": made.attention_mask}
    extractor = Wav2Vec2FeatureExtractor(do_normalize=upstream.normalize)
    return {"input_values": extractor(waveform[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values}


def test_to_transformers_keeps_the_type() -> None:
    model = small("hubert_base").to(torch.bfloat16).to_transformers()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_what_transformers_lacks_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="no HubertModel with frontend 'log_mel'"):
        to_transformers(small("hubert_tiny"))
    with pytest.raises(SpeechsslError, match="'fbank' can't be exported to transformers"):
        to_transformers(small("fbank"))
