"""Every recipe runs whole on generated speech, and is as short as a recipe should be."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from speechssl.loading import load_upstream
from speechssl.result import load_result
from speechssl.vocoder import load_vocoder

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes" / "pretrain").glob("*/run.sh"))
VOCODERS = sorted((ROOT / "recipes" / "vocoder").glob("*/run.sh"))
DEEPFAKE = sorted((ROOT / "recipes" / "deepfake").glob("*/run.sh"))
CONVERSION = sorted((ROOT / "recipes" / "voice_conversion").glob("*/run.sh"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def _run(script: Path, *arguments: str, data: Path, out: Path) -> subprocess.CompletedProcess[str]:
    environment = _environment(data, out)
    return subprocess.run(
        ["bash", str(script), *arguments], env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def _environment(data: Path, out: Path) -> dict[str, str]:
    return {
        **os.environ, "OMP_NUM_THREADS": "1", "DATA": str(data), "EXP": str(out),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip


@pytest.mark.parametrize("script", RECIPES, ids=lambda p: p.parent.name)
def test_the_recipe_runs_whole_on_generated_speech(script: Path, data: Path, tmp_path: Path) -> None:
    done = _run(script, "--smoke", data=data, out=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    last = sorted(tmp_path.glob("pretrain*"))[-1]
    assert done.stderr.rstrip().splitlines()[-1].startswith(f"== done: speechssl extract {last}")
    assert "3 steps" in load_upstream(last).weights


@pytest.mark.parametrize("script", VOCODERS, ids=lambda p: p.parent.name)
def test_the_recipe_of_a_vocoder_runs_whole_on_generated_speech(script: Path, data: Path, tmp_path: Path) -> None:
    done = _run(script, "--smoke", data=data, out=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "at step 2" in done.stdout
    vocoder = load_vocoder(tmp_path)
    on_features = "--upstream" in script.read_text()
    assert (vocoder.mel.sample_rate, vocoder.source is not None) == (16_000, on_features)
    assert _run(script, "--smok", data=data, out=tmp_path).returncode == 2


@pytest.mark.parametrize("script", DEEPFAKE, ids=lambda p: p.parent.name)
def test_the_recipe_of_a_detector_runs_whole_on_generated_speech(script: Path, data: Path, tmp_path: Path) -> None:
    done = _run(script, "--smoke", data=data, out=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "report" / "index.html").is_file()
    found = [load_result(path) for path in tmp_path.glob("**/seed*/result.json") if "made" not in path.parts]
    ensemble = "ensemble" in script.parent.name
    assert sorted(result.seed for result in found) == ([0] * 4 if ensemble else [0, 1])
    assert all(set(result.test.breakdown["eer by corpus"]) == {"deepfake", "deepfake:dev"} for result in found)
    assert len(list(tmp_path.glob("fusion/seed*/scores.json"))) == (1 if ensemble else 0)
    assert _run(script, "--smok", data=data, out=tmp_path).returncode == 2


@pytest.mark.parametrize("script", CONVERSION, ids=lambda p: p.parent.name)
def test_the_recipe_of_a_conversion_runs_whole_on_generated_speech(script: Path, data: Path, tmp_path: Path) -> None:
    done = _run(script, "--smoke", data=data, out=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "report" / "index.html").is_file()
    (result,) = [load_result(path) for path in tmp_path.glob("**/seed*/result.json")]
    assert result.task == "voice_conversion" and 0 < result.test.metrics["mel_distance"].value < 20
    assert (result.trained_parameters == 0) == script.parent.name.startswith("knnvc")
    assert _run(script, "--smok", data=data, out=tmp_path).returncode == 2


@pytest.mark.parametrize("script", [*RECIPES, *VOCODERS, *DEEPFAKE, *CONVERSION], ids=lambda p: p.parent.name)
def test_the_recipe_is_thin_and_told(script: Path) -> None:
    assert len(script.read_text().splitlines()) <= 60
    assert os.access(script, os.X_OK)
    told = (script.parent / "README.md").read_text()
    hardware = () if script in (*VOCODERS, *DEEPFAKE, *CONVERSION) else ("| published hardware |",)
    for row in ("| corpus |", *hardware, "| published target |", "| ours |"):
        assert row in told
    for settings in script.parent.glob("*.yaml"):
        steps = yaml.safe_load(settings.read_text()).get("train", {}).get("steps")
        assert steps is None or steps >= 1_000


def test_the_recipe_of_superb_runs_on_generated_speech(data: Path, tmp_path: Path) -> None:
    script = ROOT / "recipes" / "superb" / "run.sh"
    done = _run(script, "--smoke", "fbank", "--", "--seed", "1", data=data, out=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "superb_demo: test" in done.stdout and (tmp_path / "report" / "index.html").is_file()
    assert len(list(tmp_path.glob("runs/*/fbank/seed1/result.json"))) == 3
    assert _run(script, data=data, out=tmp_path).returncode == 2  # no upstream


STOPPABLE = """
cd recipes/pretrain/hubert_base_ls960
source ../common.sh --smoke
small+=(model.conv_channels=32 train.steps=100000 train.save_every=100000)
librispeech
clusters mfcc 0 100 "$exp/cluster1"
pretrain hubert_base_iter1 iteration1.yaml "$exp/pretrain1" --labels "$exp/cluster1"
stage "what comes after"
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_recipe_that_is_asked_to_stop_saves_and_goes_no_further(processes: int, data: Path, tmp_path: Path) -> None:
    environment = _environment(data, tmp_path) | {"NPROC": str(processes)}
    recipe = subprocess.Popen(["bash", "-c", STOPPABLE], env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    log, begin = tmp_path / "pretrain1" / "log.jsonl", time.monotonic()
    while not (log.exists() and log.read_text()):
        assert recipe.poll() is None, recipe.communicate()[1][-3000:]
        assert time.monotonic() - begin < 200
        time.sleep(0.2)
    recipe.send_signal(signal.SIGTERM)
    _, errors = recipe.communicate(timeout=60)
    assert recipe.returncode == 143, errors[-3000:]
    assert "Stopped at step" in errors
    assert "what comes after" not in errors
    assert len(list((tmp_path / "pretrain1" / "checkpoints").glob("step-*"))) == 1


def test_the_batch_of_a_recipe_is_shared_by_the_gpus_that_its_readme_names() -> None:
    named = 0
    for script in RECIPES:
        found = re.search(r"\| published hardware \| .*?(\d+) (?:GPUs|V100)", (script.parent / "README.md").read_text())
        for settings in script.parent.glob("*.yaml") if found else ():
            batches = yaml.safe_load(settings.read_text())["train"].get("batches_per_step")
            assert batches is not None, f"{settings} leaves it to the preset"
            assert batches % int(found[1]) == 0, settings  # type: ignore[index]
            named += 1
    assert named >= 5


def test_an_unknown_option_of_a_recipe_says_which_there_are(data: Path, tmp_path: Path) -> None:
    done = _run(RECIPES[0], "--smok", data=data, out=tmp_path)
    assert done.returncode == 2
    assert "--smoke" in done.stderr
