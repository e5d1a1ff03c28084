"""What several test files share."""

import ctypes
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray
from PIL import Image

from tests.children import program
from tests.needs import SkipCheck, in_ci

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
Crowd = tuple[NDArray[np.uint8], list[dict[str, Any]]]
Starter = Callable[..., "subprocess.Popen[str]"]

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup; what the tests start shall be hung up all the same
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The same examples on every machine, and no time limits.
settings.register_profile("blurguard", deadline=None, derandomize=True, database=None)
settings.load_profile("blurguard")


def pytest_configure(config: pytest.Config) -> None:
    """In CI, check for unexpected skips in the process that receives all reports."""
    if in_ci() and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipCheck())


@pytest.fixture(scope="session")
def crowd() -> Crowd:
    """Return the pixels of the crowd picture, (H, W, 3) RGB, and its faces as ``crowd.json`` tells them."""
    with Image.open(EXAMPLES / "photos" / "crowd.jpg") as picture:
        rgb = np.array(picture.convert("RGB"))
    rgb.flags.writeable = False
    return rgb, json.loads((EXAMPLES / "crowd.json").read_text("utf-8"))["faces"]


@pytest.fixture
def labeled_crowd(tmp_path: Path) -> Path:
    """Return a folder with the crowd picture and its ``faces.jsonl``; every face is in every subset."""
    crowd = json.loads((EXAMPLES / "crowd.json").read_text("utf-8"))
    faces = [[x0, y0, x1 - x0, y1 - y0, 7] for x0, y0, x1, y1 in (face["box"] for face in crowd["faces"])]
    record = {"image": "crowd.jpg", "width": crowd["width"], "height": crowd["height"], "faces": faces}
    (tmp_path / "faces.jsonl").write_text(json.dumps(record) + "\n", "utf-8")
    (tmp_path / "crowd.jpg").write_bytes((EXAMPLES / "photos" / "crowd.jpg").read_bytes())
    return tmp_path


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Return the folder of pictures that are not part of the project."""
    if "BG_TEST_DATA" not in os.environ:
        pytest.skip("set BG_TEST_DATA to the folder of hostile pictures and annotated photos")
    return Path(os.environ["BG_TEST_DATA"])


@pytest.fixture
def old_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the call that renames only to a free name, as older systems do not have it."""
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())


@pytest.fixture
def start_python() -> Iterator[Starter]:
    """Return a function that starts a program of ``tests.children``; one that still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(function: Callable[..., None], *arguments: object) -> "subprocess.Popen[str]":
        command, variables = program(function, *arguments), os.environ | {"PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
