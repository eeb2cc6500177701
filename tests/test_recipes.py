"""Every pre-training recipe runs whole on generated speech, and is as short as a recipe should be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from speechssl.loading import load_upstream

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes" / "pretrain").glob("*/run.sh"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def _run(script: Path, *arguments: str, data: Path, out: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "DATA": str(data), "EXP": str(out),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    return subprocess.run(
        ["bash", str(script), *arguments], env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize("script", RECIPES, ids=lambda p: p.parent.name)
def test_the_recipe_runs_whole_on_generated_speech(script: Path, data: Path, tmp_path: Path) -> None:
    done = _run(script, "--smoke", data=data, out=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    last = sorted(tmp_path.glob("pretrain*"))[-1]
    assert done.stderr.rstrip().splitlines()[-1].startswith(f"== done: speechssl extract {last}")
    assert "3 steps" in load_upstream(last).weights


@pytest.mark.parametrize("script", RECIPES, ids=lambda p: p.parent.name)
def test_the_recipe_is_thin_and_told(script: Path) -> None:
    assert len(script.read_text().splitlines()) <= 60
    assert os.access(script, os.X_OK)
    told = (script.parent / "README.md").read_text()
    for row in ("| corpus |", "| published target |", "| ours |"):
        assert row in told
    for settings in script.parent.glob("*.yaml"):
        assert yaml.safe_load(settings.read_text())["train"]["steps"] >= 1_000


def test_an_unknown_option_of_a_recipe_says_which_there_are(data: Path, tmp_path: Path) -> None:
    done = _run(RECIPES[0], "--smok", data=data, out=tmp_path)
    assert done.returncode == 2
    assert "--smoke" in done.stderr
