"""Machines that have only the old runtime, which needs numpy < 2 and Python 3.11, hide faces too."""

import sys
import tomllib
from pathlib import Path

import pytest

from bench.faults.commands import put
from tests.commands import face, shows_face
from tests.conftest import ROOT
from tests.environments import build, make, pip_install, run

OLD = ("tflite-runtime==2.14.*", "numpy<2")


@pytest.fixture(scope="module")
def blurguard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the command of an environment with the old runtime instead of the new one."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("tflite-runtime 2.14 has wheels for Python 3.11 and older only")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(OLD) <= {line.partition(";")[0] for line in project["optional-dependencies"]["tflite-runtime"]}
    others = [line for line in project["dependencies"] if not line.startswith("ai-edge-litert")]
    folder = tmp_path_factory.mktemp("old")
    python = make(folder / "venv")
    installed = pip_install(python, "--only-binary", ":all:", *others, *OLD)
    if installed.returncode:
        pytest.skip(f"no package index within reach: {installed.stderr.strip().splitlines()[-1]}")
    installed = pip_install(python, build(ROOT, folder / "dist", "--wheel"), index=False)
    assert installed.returncode == 0, installed.stderr
    return folder / "venv" / "bin" / "blurguard"


def test_the_old_runtime_hides_a_face(blurguard: Path, tmp_path: Path) -> None:
    versions = "import numpy, cv2; print(numpy.__version__, cv2.__version__)"
    told = run(blurguard.with_name("python"), "-c", versions, cwd=tmp_path).stdout
    assert told.startswith("1.26."), told
    missing = "import importlib.util; print(importlib.util.find_spec('ai_edge_litert'))"
    assert run(blurguard.with_name("python"), "-c", missing, cwd=tmp_path).stdout == "None\n"
    examined = run(blurguard, "doctor", cwd=tmp_path).stdout
    assert "runtime: tflite-runtime 2.14" in examined and "FAIL" not in examined
    photo = put(tmp_path / "a.jpg", face())
    run(blurguard, "file", photo, cwd=tmp_path)
    assert not shows_face(tmp_path / "a_blurred.jpg")
    put(tmp_path / "photos" / "b.png", face(".png"))
    put(tmp_path / "photos" / "c.webp", face(".webp"))
    run(blurguard, "dir", tmp_path / "photos", "--jobs", 2, cwd=tmp_path)
    assert not any(shows_face(tmp_path / "photos_blurred" / name) for name in ("b.png", "c.webp"))
