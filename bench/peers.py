"""Photos per second against deface, the best known offline face anonymizer, on the same photos in the same run.

deface needs packages that clash with ours, so it lives in an environment of its own, ``.venv-bench``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from bench.measure import Cost, Section, Target, command_cost, median, python_command, times
from bench.photos import Photo, repeated
from blurguard import Mode
from calibration.opencv_centerface import DEFACE_ENVIRONMENT

# opencv-python, which deface asks for, needs a display's libraries; the headless one does the same work.
PACKAGES = ("imageio", "imageio-ffmpeg", "tqdm", "scikit-image", "onnx", "onnxruntime", "opencv-python-headless")
DEFACE_POSTFIX = "_anonymized"
FEW = 2  # photos in the run that is subtracted to be rid of start-up
JUDGED_FROM_PX = 40.0  # height of the faces that tell whether anything was hidden
UNKNOWN = "–"
CHANGED = 8.0  # mean difference inside a face's box, gray levels; recompression alone gives about 3


class Folder(NamedTuple):
    """Photos that are repeated up to a count, and the aims: photos/s without start-up, times those of deface."""

    name: str
    photos: list[Photo]
    size: int
    aims: dict[Mode, float]


def install_deface() -> Path:
    """Return deface's command; makes its environment if need be."""
    command = DEFACE_ENVIRONMENT / "bin" / "deface"
    if not command.exists():
        venv.create(DEFACE_ENVIRONMENT, with_pip=True)
        pip = [str(DEFACE_ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", "deface"], check=True)
        subprocess.run([*pip, *PACKAGES], check=True)
    return command


def deface_versions() -> str:
    """Return the versions that were measured."""
    code = "from importlib.metadata import version as v; print(', '.join(f'{p} {v(p)}' for p in "
    code += "('deface', 'onnxruntime', 'opencv-python-headless')))"
    python = DEFACE_ENVIRONMENT / "bin" / "python"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def against_deface(chosen: Folder, rounds: int) -> Section:
    """Measure whole commands on a folder and on one of a few photos, in turns, each as it comes."""
    deface = install_deface()
    many: dict[str, list[Cost]] = {}
    few: dict[str, list[Cost]] = {}
    checks: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for runs, size in ((few, FEW), (many, chosen.size)) * rounds:
            for tool in ("deface", *Mode):
                source = home / "photos"
                files = repeated([p.path for p in chosen.photos], source, size)
                runs.setdefault(tool, []).append(_run(tool, source, deface))
                checks[tool] = _hidden(chosen.photos, files, tool, home)
                for path in (source, home / "out"):
                    shutil.rmtree(path, ignore_errors=True)
    return _section(chosen, {t: median(many[t]) for t in many}, {t: median(few[t]) for t in few}, checks)


def _run(tool: str, source: Path, deface: Path) -> Cost:
    """Run a tool's command as a user would; blurguard writes to ``out`` beside the folder."""
    if tool == "deface":
        return command_cost([deface, source])
    out = source.with_name("out")
    return command_cost(python_command("blurguard", "dir", source, "--out", out, "--mode", tool, "--quiet"))


def _hidden(photos: list[Photo], files: list[Path], tool: str, home: Path) -> str:
    """Return in how many of the larger faces something has changed.

    Raises:
        RuntimeError: an output is missing.
    """
    changed = []
    for photo, file in zip(photos, files, strict=False):
        output = file.with_stem(file.stem + DEFACE_POSTFIX) if tool == "deface" else home / "out" / file.name
        before, after = cv2.imread(str(photo.path)), cv2.imread(str(output))
        if before is None or after is None:
            raise RuntimeError(f"{tool} wrote no {output.name}")
        changed += [_differs(before, after, box) for box in photo.faces if box[3] - box[1] >= JUDGED_FROM_PX]
    return f"{sum(changed)} of {len(changed)}"


def _differs(before: np.ndarray, after: np.ndarray, box: Iterable[float]) -> bool:
    x0, y0, x1, y1 = (round(v) for v in box)
    a, b = (image[y0:y1, x0:x1].astype(np.float32) for image in (before, after))
    return bool(np.abs(a - b).mean() > CHANGED)


def _section(chosen: Folder, many: dict[str, Cost], few: dict[str, Cost], checks: dict[str, str]) -> Section:
    rows, targets, count = [], [], chosen.size
    deface = (many["deface"] - few["deface"]).per(count - FEW)
    for tool, whole in many.items():
        net = (whole - few[tool]).per(count - FEW)
        label = tool if tool == "deface" else f"blurguard, {tool}"
        gains = many["deface"].wall / whole.wall, _gain(deface.wall, net.wall), _gain(deface.cpu, net.cpu)
        rates = f"{count / whole.wall:.2f}", f"{1 / net.wall:.2f}" if net.wall > 0 else UNKNOWN
        told = [times(gain) if gain else UNKNOWN for gain in gains]
        rows.append((label, rates[0], told[0], rates[1], told[1], f"{net.cpu:.2f}", told[2], checks[tool]))
        if tool != "deface":
            what = f"{label}, photos/s against deface, {chosen.name} (CPU time; start-up included)"
            measured = f"{told[1]} ({told[2]}; {told[0]})"
            least = chosen.aims[Mode(tool)]
            targets.append(Target(what, f"≥ {least:g}×", measured, gains[1] >= least))
    return Section(
        f"Against deface: {chosen.name}",
        f"Whole commands on a folder of {count} photos, each as it comes (all cores), {deface_versions()}. Without "
        f"start-up: the difference to a folder of {FEW}. The last column tells in how many faces of {JUDGED_FROM_PX:g} "
        "px and more the output differs from the photo.",
        (
            "",
            "photos/s",
            "against deface",
            "without start-up",
            "against deface",
            "CPU s per photo",
            "against deface",
            "faces changed",
        ),
        rows,
        targets,
    )


def _gain(theirs: float, ours: float) -> float:
    """Return how many times as fast; 0 where a busy machine made one of the differences meaningless."""
    return theirs / ours if theirs > 0 and ours > 0 else 0.0


def main() -> int:
    """Install deface and say what was installed."""
    install_deface()
    print(deface_versions())
    return 0


if __name__ == "__main__":
    sys.exit(main())
