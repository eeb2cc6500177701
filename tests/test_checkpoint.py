"""Reading and checking weights: shards, types, numbers that are none, and files that are something else."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import HubertConfig, HubertModel

from speechssl.checkpoint import WEIGHTS_FILE, load_weights, read_weights, save_upstream
from speechssl.errors import SpeechsslError
from speechssl.loading import build_upstream, load_upstream
from upstreams.hubert.config import PRESETS

SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}


@pytest.fixture(scope="module")
def model() -> HubertModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return HubertModel(HubertConfig(**SMALL, conv_dim=[32] * 7)).eval()


def cut_into_bins(state: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes shards as transformers did before safetensors: its version here writes only the newer kind."""
    names = sorted(state)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / file)
        places.update(dict.fromkeys(part, file))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_give_the_numbers_of_the_whole_model(kind: str, model: HubertModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "whole")
    if kind == "safetensors":
        model.save_pretrained(tmp_path / "cut", max_shard_size="200KB")
        assert len(list((tmp_path / "cut").glob("model-*.safetensors"))) > 1
    else:
        model.config.save_pretrained(tmp_path / "cut")
        cut_into_bins(model.state_dict(), tmp_path / "cut")
    whole, cut = (load_upstream(tmp_path / name) for name in ("whole", "cut"))
    assert cut.fingerprint() == whole.fingerprint()


def test_a_shard_that_is_missing_or_cut_off_is_named(model: HubertModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    first, second = sorted(tmp_path.glob("model-*.safetensors"))[:2]
    whole = first.read_bytes()
    first.unlink()
    with pytest.raises(SpeechsslError, match=rf"lacks {first.name}, which model\.safetensors\.index\.json lists"):
        load_upstream(tmp_path)
    save_file({"x": torch.zeros(1)}, first)
    with pytest.raises(SpeechsslError, match=rf"{first.name} lacks '.+', which"):
        load_upstream(tmp_path)
    first.write_bytes(whole)
    second.write_bytes(second.read_bytes()[:-100])
    with pytest.raises(SpeechsslError, match=rf"{second.name} is damaged"):
        load_upstream(tmp_path)


def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    for content, message in (
        ({"weight_map": {"x": "../secret.safetensors"}}, r"'x' is in '\.\./secret\.safetensors'"),
        ({"weight_map": {"x": 3}}, "files beside it"),
        ({"weight_map": {}}, "'weight_map'"),
        ({"other": 1}, "'weight_map'"),
    ):
        index.write_text(json.dumps(content))
        with pytest.raises(SpeechsslError, match=message):
            read_weights(folder)


@pytest.mark.parametrize(("number", "name"), [(float("nan"), "NaN"), (float("-inf"), "infinite")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_weights_that_are_no_finite_numbers_are_named(number: float, name: str, dtype: torch.dtype) -> None:
    module = nn.Linear(2, 2)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    bad = torch.tensor([0.0, number]).to(dtype)
    with pytest.raises(SpeechsslError, match=rf"'bias' of x\.bin holds {name}"):
        load_weights(module, {"weight": torch.zeros(2, 2), "bias": bad}, origin="x.bin")
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("kind", ["ours", "transformers"])
def test_a_folder_with_a_weight_that_is_nan_is_refused(kind: str, model: HubertModel, tmp_path: Path) -> None:
    if kind == "ours":
        save_upstream(build_upstream("hubert", PRESETS["hubert_tiny"], seed=0), tmp_path)
        key = "encoder.blocks.2.fc1.weight"
    else:
        model.save_pretrained(tmp_path)
        key = "encoder.layers.1.feed_forward.output_dense.bias"
    state = read_weights(tmp_path)
    state[key].view(-1)[3] = float("nan")
    save_file(state, tmp_path / WEIGHTS_FILE)
    with pytest.raises(SpeechsslError, match=rf"'{key}' of .* holds NaN"):
        load_upstream(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_type_become_the_modules_own(dtype: torch.dtype) -> None:
    module = nn.Linear(3, 2)
    state = {key: value.to(dtype) for key, value in module.state_dict().items()}
    load_weights(module, state, origin="x")
    assert module.weight.dtype == torch.float32
    assert torch.equal(module.weight, state["weight"].float())


def test_half_precision_files_load_in_float32(model: HubertModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    half = {key: value.half() for key, value in read_weights(tmp_path).items()}
    save_file(half, tmp_path / WEIGHTS_FILE)
    upstream = load_upstream(tmp_path)
    assert {p.dtype for p in upstream.parameters()} == {torch.float32}
    assert torch.equal(upstream.projection.weight, half["feature_projection.projection.weight"].float())


def test_quantised_weights_are_refused() -> None:
    state = {"weight": torch.zeros(2, 2, dtype=torch.int8), "bias": torch.zeros(2)}
    with pytest.raises(SpeechsslError, match="'weight' of x must hold floating-point numbers, but is int8"):
        load_weights(nn.Linear(2, 2), state, origin="x")


class Runs:
    """Pickles to a call of `os.system`."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_a_bin_that_runs_code_is_refused_and_runs_none(model: HubertModel, tmp_path: Path) -> None:
    model.config.save_pretrained(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save({**model.state_dict(), "more": Runs(f"touch {tmp_path}/ran")}, path)
    with pytest.raises(SpeechsslError, match=r"pytorch_model\.bin is refused.*system"):
        load_upstream(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_bin_that_holds_something_else_is_named(model: HubertModel, tmp_path: Path) -> None:
    model.config.save_pretrained(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    for content in ({"epoch": 3}, [torch.zeros(1)]):
        torch.save(content, path)
        with pytest.raises(SpeechsslError, match="must hold weights by their names"):
            load_upstream(tmp_path)
    torch.jit.script(nn.Linear(2, 2)).save(path)
    with pytest.raises(SpeechsslError, match="is a TorchScript program"):
        load_upstream(tmp_path)
