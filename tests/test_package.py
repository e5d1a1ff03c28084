"""What is released: sdist -> wheel -> an environment without developer tools -> one photo."""

import shutil
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from bench.faults.commands import put
from blurguard.detection import model_zoo
from tests.commands import face, shows_face
from tests.conftest import ROOT
from tests.environments import build, lend_ours, make, pip_install, run


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the sdist and the wheel that is built from it, not from the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    parts = ("blurguard", "models", "calibration", "tests", "examples", "docs")
    for part in (path for name in parts if (path := ROOT / name).exists()):
        shutil.copytree(part, folder / "source" / part.name, ignore=shutil.ignore_patterns("__pycache__", "*_blurred"))
    for file in (path for path in ROOT.iterdir() if path.is_file()):
        shutil.copy(file, folder / "source")
    return build(folder / "source", folder / "dist").parent


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (wheel,) = dist.glob("*.whl")
    return wheel


def test_the_wheel_holds_what_runs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    info = next(name for name in names if name.endswith("METADATA")).removesuffix("METADATA")
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "blurguard").rglob("*.py")} | {"blurguard/py.typed"}
    expected |= {f"blurguard/models/{path.name}" for path in (ROOT / "models").iterdir()}
    texts = ("LICENSE", "models/LICENSE-APACHE-2.0.txt", "models/LICENSE-MIT-CENTERFACE.txt", "models/NOTICE.md")
    licenses = {f"{info}licenses/{name}" for name in texts}
    expected |= licenses | {f"{info}{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    assert names == expected
    assert "blurguard/models/manifest.toml" in names
    assert wheel.stat().st_size < 14_000_000  # 9 of them are CenterFace as INT8 and float


def test_the_sdist_holds_what_its_build_and_its_tests_need(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"pyproject.toml", "README.md", "LICENSE", "Makefile", "models/manifest.toml", "tests/conftest.py"}
    needed |= {str(path.relative_to(ROOT)) for path in (ROOT / "blurguard").rglob("*.py")}
    needed |= {"calibration/base.py", "examples/photos/crowd.jpg", "examples/crowd.json"}
    assert needed <= names
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(project["license-files"]) <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith((".venv", "bench-results"))]


def test_the_wheel_runs_where_nothing_of_the_checkout_is(wheel: Path, tmp_path: Path) -> None:
    python = make(tmp_path / "venv")
    lend_ours(python)
    installed = pip_install(python, wheel, index=False)
    assert installed.returncode == 0, installed.stderr
    home, folder = model_zoo.__name__, model_zoo.models_dir.__name__
    code = f"import blurguard, {home} as zoo; print(blurguard.__file__); print(zoo.{folder}())"
    places = [Path(line) for line in run(python, "-c", code, cwd=tmp_path).stdout.splitlines()]
    assert all(place.is_relative_to(tmp_path / "venv") for place in places), places
    assert places[1] == places[0].with_name("models")
    photo = put(tmp_path / "a.jpg", face())
    told = run(tmp_path / "venv" / "bin" / "blurguard", "file", photo, cwd=tmp_path).stdout
    assert "done" in told and not shows_face(tmp_path / "a_blurred.jpg")
    assert "FAIL" not in run(tmp_path / "venv" / "bin" / "blurguard", "doctor", cwd=tmp_path).stdout
    shutil.rmtree(places[1])
    assert "reinstall" in run(tmp_path / "venv" / "bin" / "blurguard", "file", photo, cwd=tmp_path, code=4).stderr
