"""CONTRIBUTING.md shows a whole family; here its folder is made from that page and held to the laws."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_family_of_the_contributing_page_keeps_every_law(tmp_path: Path) -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = re.findall(r"`(upstreams/recurrent/\w+\.py)`[^\n]*\n\n```python\n(.*?)```", page, flags=re.DOTALL)
    assert [name.rsplit("/", 1)[-1] for name, _ in files] == ["__init__.py", "config.py", "model.py"]
    for package in ("speechssl", "upstreams", "downstreams"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "upstreams/recurrent").mkdir()
    for name, content in files:
        (tmp_path / name).write_text(content, encoding="utf-8")
    test = shutil.copy(ROOT / "tests/contracts/test_upstreams.py", tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "recurrent", str(test)]
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert re.search(r"^1[0-9] passed", ran.stdout.splitlines()[-1]), ran.stdout[-300:]
