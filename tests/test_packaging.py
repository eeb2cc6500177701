"""The package: what the wheel holds, and what importing it costs."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("speechssl", "upstreams", "downstreams")


def tracked_package_files() -> set[str]:
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.split("\n") if name}


@pytest.mark.slow
def test_the_wheel_holds_every_tracked_package_file(tmp_path: Path) -> None:
    # From a copy: setuptools packs whatever an earlier build left in `build/`.
    source = tmp_path / "source"
    for name in (*tracked_package_files(), "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), str(source)]
    subprocess.run(command, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {n for n in archive.namelist() if n.split("/")[0] in PACKAGES}
    assert packed == tracked_package_files()


def test_import_is_light() -> None:
    # Best of three: the machine may be busy, and what is claimed is the cost of the import itself.
    code = (
        "import sys, time; t = time.perf_counter(); import speechssl; "
        "print(time.perf_counter() - t, 'torch' in sys.modules)"
    )
    runs = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        seconds, torch_loaded = done.stdout.split()
        assert torch_loaded == "False"
        runs.append(float(seconds))
    assert min(runs) < 0.3


def test_every_public_name_resolves() -> None:
    import speechssl

    for name in speechssl.__all__:
        assert getattr(speechssl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = speechssl.nonsense
