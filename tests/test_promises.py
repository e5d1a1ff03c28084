"""The four promises, on whole files; and for each a broken build that its check finds out.

``python -m tests.test_promises PROMISE FOLDER`` runs one check: the broken builds are told apart by its exit code.
"""

import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import blurguard
from bench.faults.commands import environment
from bench.faults.samples import FACE, Array, gif, picture, saved, texture
from bench.faults.stubs import Box, StubDetector, anonymizer
from blurguard.anonymize.anonymizer import Anonymizer
from blurguard.errors import InputError, OutputError
from blurguard.settings import Settings
from blurguard.types import Detections
from tests.breakages import BREAKAGES, BROKEN, STAGES, VARIABLE
from tests.children import run_with_small_files
from tests.conftest import ROOT
from tests.test_clean import SECRET, cleaned, leaks

SIZE = WIDTH, HEIGHT = 128, 112
# In the middle, over every edge and corner, large, small, of one pixel.
FACES: dict[str, list[Box]] = {
    "middle": [(40, 30, 72, 70)],
    "top left": [(-12, -10, 28, 34)],
    "bottom right": [(96, 76, 132, 120)],
    "last row and column": [(100, 80, 128, 112)],
    "nearly all": [(4, 2, 124, 110)],
    "small": [(60, 50, 70, 62)],
    "tiny": [(60, 50, 61, 51)],
    "two": [(10, 10, 40, 46), (70, 60, 110, 108)],
}


def hidden(folder: Path, boxes: list[Box], **settings: Any) -> tuple[Array, Array, list[tuple[int, ...]]]:
    """Return a picture before and after, and the reported regions."""
    source, target = folder / "source.png", folder / "target.png"
    pixels = texture(3, size=SIZE)
    Image.fromarray(pixels).save(source)
    outcome = anonymizer(boxes, **settings).process(source, target, replace_existing=True)
    with Image.open(target) as result:
        after = np.array(result)
    return pixels, after, [face.region for face in outcome.faces]


def area(region: tuple[float, ...], shape: str, wider: int = 0) -> Array:
    """Return (H, W) which pixels' centers lie in the region, or in one that is wider on every side."""
    x0, y0, x1, y1 = region
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    half_w, half_h = (x1 - x0) / 2 + wider, (y1 - y0) / 2 + wider
    dx, dy = np.abs(x - (x0 + x1) / 2), np.abs(y - (y0 + y1) / 2)
    if shape == "box":
        return np.asarray((dx < half_w) & (dy < half_h))
    return np.asarray((dx / half_w) ** 2 + (dy / half_h) ** 2 <= 1)


def grown(box: Box) -> tuple[float, ...]:
    """Return the whole region of a face, also where it leaves the picture: a fifth wider on every side."""
    x0, y0, x1, y1 = box
    x, y = (max(0.2 * side, 1.5) for side in (x1 - x0, y1 - y0))
    return math.floor(x0 - x), math.floor(y0 - y), math.ceil(x1 + x), math.ceil(y1 + y)


def detail(pixels: Array, inside: Array) -> float:
    """Return how much neighboring pixels of the area differ: what noise has, and no blur, mosaic or fill."""
    steps = np.abs(np.diff(pixels.astype(float).mean(axis=2), axis=1))
    return float(np.median(steps[inside[:, 1:] & inside[:, :-1]]))


def check_covered(folder: Path) -> None:
    """Every pixel of the hidden area is what the veil made it: nothing of the noise that was there is left."""
    for style in ("blur", "pixelate", "solid"):
        for shape in ("ellipse", "box"):
            for name, boxes in FACES.items():
                before, after, regions = hidden(folder, boxes, style=style, shape=shape)
                assert len(regions) == len(boxes), name
                for box, region in zip(boxes, regions, strict=True):
                    inside = area(region, shape)
                    whole = [(0, WIDTH), (0, HEIGHT)] * 2
                    beyond = [box[0] <= 0, box[1] <= 0, box[2] >= WIDTH, box[3] >= HEIGHT]
                    edges = [whole[i][i // 2] for i in range(4)]
                    assert all(region[i] == edges[i] for i in range(4) if beyond[i]), f"{name}: ends before the edge"
                    if name != "tiny":
                        assert detail(before, inside) > 5 * detail(after, inside), f"{name}, {style}, {shape}"
                    left = np.all(before == after, axis=2) & inside
                    assert left.sum() <= 0.01 * inside.sum(), f"{name}, {style}, {shape}: pixels left as they were"
                    if style != "solid" and name == "middle":
                        assert (hidden(folder, boxes, style=style, shape=shape)[1] != after)[inside].mean() > 0.3, (
                            "no noise"
                        )
                    rim = inside & ~area(tuple(np.add(region, (2, 2, -2, -2))), shape)
                    steps = np.abs(after.astype(float) - before)[rim].mean()
                    assert name == "tiny" or steps > 5, f"{name}: it fades inside"


def check_untouched(folder: Path) -> None:
    """Outside the hidden area and its feather every pixel is bit for bit what it was."""
    for shape in ("ellipse", "box"):
        for name, boxes in FACES.items():
            before, after, regions = hidden(folder, boxes, shape=shape)
            may = np.zeros((HEIGHT, WIDTH), bool)
            for box, region in zip(boxes, regions, strict=True):
                feather = max(2, min(24, round(0.05 * max(region[2] - region[0], region[3] - region[1]))))
                may |= area(region, shape, feather)
                if shape == "ellipse":  # at the edge of the picture it is a part of the whole face's
                    may |= area(grown(box), shape, feather)
            assert np.array_equal(before[~may], after[~may]), f"{name}, {shape}"
    before, after, _ = hidden(folder, [])
    assert np.array_equal(before, after)


class Dies:
    """A detector that fails in the second frame."""

    identity, threshold = "dies", 0.5

    def __init__(self) -> None:
        self.calls = 0

    def detect(self, rgb: Array, min_score: float) -> Detections:
        self.calls += 1
        if self.calls == 2:
            raise MemoryError("no room for the second frame")
        return StubDetector((FACE,)).detect(rgb, min_score)


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def check_closed(folder: Path) -> None:
    """A fault leaves nothing: no part of a result, no scratch, and what was there before as it was."""
    source, target = folder / "source", folder / "target"
    for whole in (gif(), saved(picture("RGB"), "PNG")):
        source.write_bytes(whole)
        for length in (len(whole) // 2, len(whole) - 1):
            source.write_bytes(whole[:length])
            with pytest.raises(InputError):
                anonymizer([FACE]).process(source, target)
            assert files_in(folder) == {"source"}, "read"
    source.write_bytes(gif())
    with pytest.raises(MemoryError):
        Anonymizer(Settings(), Dies()).process(source, target)
    assert files_in(folder) == {"source"}, "detect"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(OutputError):
            anonymizer([FACE]).process(source, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_in(folder) == {"source"}, "write"
    for existing in (target.touch, target.mkdir):
        existing()
        with pytest.raises(OutputError):
            anonymizer([FACE]).process(source, target)
        assert files_in(folder) == {"source", "target"}, "rename"
        assert target.is_dir() or not target.stat().st_size, "it was there before"
        target.rmdir() if target.is_dir() else target.unlink()
    anonymizer([FACE]).process(source, target)
    assert files_in(folder) == {"source", "target"}


def check_clean(folder: Path) -> None:
    """Nothing of what came with the picture is in the result but what may be kept."""
    for name in ("jpeg-motion-photo", "jpeg-mpo", "png", "webp", "gif", "heic"):
        for keep_metadata in (False, True):
            data = cleaned(folder, name, keep_metadata).read_bytes()
            (folder / "out" / name).unlink()
            assert SECRET not in data, name
            assert leaks(data, keep_metadata) == [], name


CHECKS: dict[str, Callable[[Path], None]] = {
    "covered": check_covered,
    "untouched": check_untouched,
    "closed": check_closed,
    "clean": check_clean,
}


def test_covered(tmp_path: Path) -> None:
    check_covered(tmp_path)


def test_untouched(tmp_path: Path) -> None:
    check_untouched(tmp_path)


def test_closed(tmp_path: Path) -> None:
    check_closed(tmp_path)


def test_clean(tmp_path: Path) -> None:
    check_clean(tmp_path)


# --- broken builds ----------------------------------------------------------------------------------------------


def python(*arguments: object, breakage: str = "") -> "subprocess.CompletedProcess[str]":
    """Run Python with our package; ``breakage`` is for programs that know of broken builds."""
    command = [sys.executable, *map(str, arguments)]
    variables = environment(**({VARIABLE: breakage} if breakage else {}))
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("promise", CHECKS)
def test_a_build_that_is_not_broken_passes(promise: str, tmp_path: Path) -> None:
    run = python("-m", "tests.test_promises", promise, tmp_path)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_build_is_found_out(name: str, tmp_path: Path) -> None:
    promise, _ = BROKEN[name]
    run = python("-m", "tests.test_promises", promise, tmp_path, breakage=name)
    assert run.returncode == BROKEN_PROMISE, run.stderr
    assert "broken promise" in run.stderr


BROKEN_PROMISE = 9


def main() -> int:
    """Run one check, of a broken build where the environment names one; 9 when the promise is broken."""
    promise, folder = sys.argv[1], Path(sys.argv[2]) / "work"
    assert Path(blurguard.__file__).is_relative_to(Path.cwd())
    if VARIABLE in os.environ:
        BREAKAGES[os.environ[VARIABLE]]()
    folder.mkdir()
    try:
        CHECKS[promise](folder)
    except (AssertionError, pytest.fail.Exception) as error:
        sys.stderr.write(f"broken promise: {error}\n")
        return BROKEN_PROMISE
    return 0


# --- the command line: a fault at every stage -------------------------------------------------------------------


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photos" / "a.png"
    path.parent.mkdir()
    path.write_bytes(saved(picture("RGB", size=(96, 96)), "PNG"))
    return path


@pytest.mark.parametrize("stage", STAGES)
def test_a_fault_leaves_no_output_and_an_exit_code(stage: str, photo: Path) -> None:
    run = python("-m", "tests.broken", "file", photo, breakage=f"raise in {stage}")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "injected" in run.stdout + run.stderr
    assert files_in(photo.parent) == {"a.png"}


@pytest.mark.parametrize("stage", ["hide", "write", "rename"])
def test_a_kill_leaves_no_output_and_the_next_run_sweeps(stage: str, photo: Path) -> None:
    run = python("-m", "tests.broken", "file", photo, breakage=f"kill in {stage}")
    assert run.returncode != 0
    assert not (photo.parent / "a_blurred.png").exists()
    scratch = [path for path in photo.parent.rglob("*") if path != photo]
    assert all(path.stat().st_mode & 0o077 == 0 for path in scratch)
    assert len([path for path in scratch if path.is_file()]) == (0 if stage == "hide" else 1)
    again = python("-m", "blurguard", "file", photo)
    assert again.returncode == 0, again.stderr
    assert files_in(photo.parent) == {"a.png", "a_blurred.png"}


def test_what_the_world_does_leaves_no_output_and_an_exit_code(photo: Path) -> None:
    folder, whole = photo.parent, photo.read_bytes()
    cut, missing, directory = folder / "cut.png", folder / "missing.png", folder / "folder.jpg"
    cut.write_bytes(whole[: len(whole) // 2])
    directory.mkdir()
    (folder / "taken.png").mkdir()
    (folder / "no_folder").touch()
    before = files_in(folder)
    run = ["-m", "blurguard", "file"]
    for arguments, code in (
        ([*run, cut], 5),
        ([*run, missing], 5),
        ([*run, directory], 5),
        ([*run, photo, "--model", "nobody"], 4),
        ([*run, photo, "--out", folder / "no_folder" / "out.png"], 6),
        (["-m", "tests.children", run_with_small_files.__name__, 9000, "file", photo], 6),
    ):
        result = python(*arguments)
        assert result.returncode == code, (arguments, result.stdout, result.stderr)
        assert files_in(folder) == before, arguments
    blocked = folder / "a_blurred.png"
    blocked.mkdir()
    result = python(*run, photo)
    assert result.returncode == 6, result.stderr
    assert files_in(folder) == before | {"a_blurred.png"}


if __name__ == "__main__":
    sys.exit(main())
