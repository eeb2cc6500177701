"""Models from the hub, played by a server of our own on 127.0.0.1: revisions, shards, cache, refusals and cut-offs."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub, connect, serve
from transformers import HubertConfig, HubertModel

from speechssl.errors import SpeechsslError
from speechssl.loading import load_upstream

OLD, NEW = "a" * 40, "b" * 40
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def their_model(seed: int) -> HubertModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return HubertModel(HubertConfig(**SMALL, conv_dim=[32] * 7)).eval()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with 'org/model' in two commits, of which the older has the tag v1 and weights in shards."""
    folder = tmp_path / "served" / "org" / "model"
    their_model(0).save_pretrained(folder / OLD, max_shard_size="200KB")
    their_model(1).save_pretrained(folder / NEW)
    (folder / NEW / "preprocessor_config.json").write_text('{"do_normalize": true}')
    with serve(tmp_path / "served") as served:
        served.refs["org/model"] = {"main": NEW, "v1": OLD}
        connect(served, tmp_path / "cache", monkeypatch)
        yield served


def test_the_newest_commit_is_loaded_with_its_preprocessor(hub: FakeHub) -> None:
    upstream = load_upstream("org/model")
    assert upstream.fingerprint() == load_upstream(hub.root / "org" / "model" / NEW).fingerprint()
    assert upstream.normalize
    assert upstream.weights == f"org/model at {NEW}"
    assert upstream.name == "org/model"


@pytest.mark.parametrize("revision", ["v1", OLD])
def test_a_revision_is_pinned_by_tag_or_commit_and_its_shards_are_fetched(revision: str, hub: FakeHub) -> None:
    upstream = load_upstream(f"org/model@{revision}")
    assert upstream.fingerprint() == load_upstream(hub.root / "org" / "model" / OLD).fingerprint()
    assert upstream.weights == f"org/model at {OLD}"


def test_old_models_are_fetched_as_bin(hub: FakeHub) -> None:
    model = their_model(2)
    folder = hub.root / "org" / "old" / OLD
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    hub.refs["org/old"] = {"main": OLD}
    upstream = load_upstream("org/old")
    assert torch.equal(upstream.projection.weight, model.feature_projection.projection.weight)


def test_a_cached_model_is_not_downloaded_again_but_a_new_commit_is(hub: FakeHub) -> None:
    hub.refs["org/model"]["main"] = OLD
    first = load_upstream("org/model")
    hub.requests.clear()
    load_upstream("org/model")
    assert not [r for r in hub.requests if r.startswith("GET") and "/resolve/" in r]
    hub.refs["org/model"]["main"] = NEW
    assert load_upstream("org/model").fingerprint() != first.fingerprint()


def test_a_whole_commit_in_the_cache_asks_nothing(hub: FakeHub) -> None:
    load_upstream(f"org/model@{OLD}")
    hub.requests.clear()
    load_upstream(f"org/model@{OLD}")
    assert hub.requests == []


@pytest.mark.parametrize("how", ["offline", "unreachable", "down"])
@pytest.mark.parametrize("name", ["org/model", "org/model@v1"])
def test_what_is_cached_loads_without_a_connection(
    name: str, how: str, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = load_upstream(name)
    hub.requests.clear()
    if how == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif how == "unreachable":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    else:
        hub.down = True
    start = time.perf_counter()
    assert load_upstream(name).fingerprint() == online.fingerprint()
    assert time.perf_counter() - start < 5.0
    assert len(hub.requests) == (1 if how == "down" else 0)


@pytest.mark.parametrize("how", ["offline", "unreachable", "down"])
def test_what_is_not_cached_is_one_sentence_at_once(how: str, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif how == "unreachable":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    else:
        hub.down = True
    start = time.perf_counter()
    with pytest.raises(SpeechsslError, match=r"^'org/model' is no local folder, .*connect once"):
        load_upstream("org/model")
    assert time.perf_counter() - start < 5.0


def test_half_a_model_in_the_cache_is_none(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load_upstream("org/model@v1")
    next((tmp_path / "cache").rglob("model-00001-*.safetensors")).unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SpeechsslError, match="HF_HUB_OFFLINE is set"):
        load_upstream("org/model@v1")


def test_a_repository_that_is_missing_private_or_gated_is_named(hub: FakeHub) -> None:
    with pytest.raises(SpeechsslError, match=r"'org/gone' is no local folder, .* does not exist or is private"):
        load_upstream("org/gone")
    hub.refs["org/secret"] = {"main": NEW}
    hub.private.add("org/secret")
    with pytest.raises(SpeechsslError, match=r"refuses to show 'org/secret' \(status 401\).* private: .*HF_TOKEN"):
        load_upstream("org/secret")
    hub.gated.add("org/terms")
    with pytest.raises(SpeechsslError, match=r"'org/terms' is given to those who agreed"):
        load_upstream("org/terms")
    with pytest.raises(SpeechsslError, match=r"'org/model' has no revision 'v9'"):
        load_upstream("org/model@v9")
    with pytest.raises(SpeechsslError, match=r"'org/--x' is no name of a repository"):
        load_upstream("org/--x")


def test_a_repository_without_a_model_for_torch_says_so(hub: FakeHub) -> None:
    folder = hub.root / "org" / "other" / NEW
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_bytes(b"x")
    hub.refs["org/other"] = {"main": NEW}
    with pytest.raises(SpeechsslError, match=r"'org/other' has no config\.json"):
        load_upstream("org/other")
    (folder / "config.json").write_text("{}")
    with pytest.raises(SpeechsslError, match=r"'org/other' has neither model\.safetensors nor pytorch_model\.bin"):
        load_upstream("org/other")


def test_a_cut_off_download_is_named_and_goes_on_where_it_stopped(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the tries of huggingface_hub
    hub.cut["model.safetensors"] = 100
    with pytest.raises(SpeechsslError, match=r"download of model\.safetensors of 'org/model' was cut off .*try again"):
        load_upstream("org/model")
    hub.cut.clear()
    upstream = load_upstream("org/model")
    assert upstream.fingerprint() == load_upstream(hub.root / "org" / "model" / NEW).fingerprint()


def test_the_endpoint_of_the_environment_is_asked(hub: FakeHub, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "other")}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-m", "speechssl", "export", "org/model@v1", "-o", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert load_upstream(tmp_path / "out").fingerprint() == load_upstream("org/model@v1").fingerprint()
