"""Upstreams that come with the package: found by their folder, loaded with their weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import speechssl.heads
import speechssl.loading
import speechssl.registry
import speechssl.train.run
from speechssl.checkpoint import CONFIG_FILE, read_json, save_upstream
from speechssl.errors import SpeechsslError
from speechssl.export import export_upstream
from speechssl.loading import build_upstream, load_upstream
from speechssl.registry import find_preset, list_shipped, list_upstreams
from speechssl.train.run import pretrain_config
from speechssl.upstream import Upstream

NAME = "shipped_tiny"
MEANS = [0.63894, 0.62133, 0.60351, 0.59528, 0.60192, 0.60716, 0.71078]
"""Of the absolute hidden states of `speechssl_tiny`, for `_rising_tone`."""
SOME = [0.59947, -0.3311, -0.98037, 0.01266]
"""The first features of its layer 4 at frame 10."""


def small(seed: int) -> Upstream:
    family, config = find_preset("hubert_tiny")
    upstream = build_upstream(family, replace(config, width=32, depth=2, heads=2, ffn_width=48), seed=seed)
    upstream.name, upstream.weights = "hubert_tiny", "trained"
    return upstream


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as `upstreams/<name>/`, with weights of half precision."""
    save_upstream(small(seed=3).half(), tmp_path / NAME)
    for module in (speechssl.heads, speechssl.loading, speechssl.registry, speechssl.train.run):
        monkeypatch.setattr(module, "list_shipped", lambda: {NAME: tmp_path / NAME})
    return tmp_path / NAME


def test_a_shipped_upstream_is_listed_and_loads_with_its_weights(shipped: Path) -> None:
    assert NAME in list_upstreams()
    assert find_preset(NAME)[1].width == 32
    upstream, folder = load_upstream(NAME), load_upstream(shipped)
    assert (upstream.name, upstream.family, upstream.weights) == (NAME, "hubert", "trained")
    assert {p.dtype for p in upstream.parameters()} == {torch.float32}
    assert all(torch.equal(v, folder.state_dict()[k]) for k, v in upstream.state_dict().items())
    assert load_upstream(NAME, random_weights=1).weights == "random (seed 1)"
    assert speechssl.heads.read_heads(NAME) == {}


@pytest.mark.usefixtures("shipped")
def test_pre_training_goes_on_from_a_shipped_upstream_by_init() -> None:
    with pytest.raises(SpeechsslError, match=f"a trained hubert_tiny: pre-train that, with `--init {NAME}`"):
        pretrain_config(NAME)


def test_weights_exported_in_half_the_space_load_in_full_precision(tmp_path: Path) -> None:
    upstream = small(seed=3)
    save_upstream(upstream, tmp_path / "whole")
    export_upstream(tmp_path / "whole", tmp_path / "half", to="speechssl", half=True)
    sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert read_json(tmp_path / "half" / CONFIG_FILE)["name"] == "hubert_tiny"  # and no path
    loaded = load_upstream(tmp_path / "half")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for name, weight in upstream.named_parameters():
        torch.testing.assert_close(loaded.get_parameter(name), weight, atol=1e-6, rtol=2**-11)


def test_only_our_own_format_is_exported_in_half_the_space(tmp_path: Path) -> None:
    with pytest.raises(SpeechsslError, match="`half` is for speechssl's own format"):
        export_upstream("hubert_tiny:random", tmp_path / "out", to="transformers", half=True)


def test_weights_beyond_half_precision_are_not_stored_so(tmp_path: Path) -> None:
    upstream = small(seed=3)
    with torch.no_grad():
        next(upstream.parameters()).fill_(1e5)
    save_upstream(upstream, tmp_path / "whole")
    with pytest.raises(SpeechsslError, match="beyond float16: export without `half`"):
        export_upstream(tmp_path / "whole", tmp_path / "half", to="speechssl", half=True)
    assert not (tmp_path / "half").exists()


def test_speechssl_tiny_comes_with_the_package_and_its_card() -> None:
    folder = list_shipped()["speechssl_tiny"]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 20e6
    card = (folder / "README.md").read_text()
    for part in ("## Data", "## Licence", "## Cost", "## Scores", "recipes/pretrain/speechssl_tiny"):
        assert part in card
    description = read_json(folder / CONFIG_FILE)
    assert description["name"] == "hubert_tiny"  # so that pre-training can go on from it
    assert "pre-trained on demo" in description["weights"]


def test_the_features_of_speechssl_tiny_stay_what_they_are() -> None:
    """Of a tone in noise that rises from 100 to 4000 Hz within a second; the numbers are those of its first day.

    Without the noise, most bands would hold nothing but rounding.
    """
    states = load_upstream("speechssl_tiny")(*_rising_tone()).hidden_states
    means = torch.stack([state.abs().mean() for state in states])
    torch.testing.assert_close(means, torch.tensor(MEANS), atol=2e-4, rtol=0)
    torch.testing.assert_close(states[4][0, 10, :4], torch.tensor(SOME), atol=2e-3, rtol=0)


def _rising_tone() -> tuple[torch.Tensor, torch.Tensor]:
    time = torch.arange(16_000) / 16_000
    tone = 0.1 * torch.sin(2 * torch.pi * (100 * time + 1950 * time.square()))
    noise = 0.02 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    return (tone + noise)[None], torch.tensor([16_000])
