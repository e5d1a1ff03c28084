"""What networks cost: ``python -m calibration cost [MODEL ...]``: bytes, multiplications, time by input size, memory.

Time is the least processor time of one thread over some rounds in which all networks take turns, so that what else
the machine does meanwhile weighs on all of them. Memory is the most that a fresh process needs for a model of the
manifest and the project's crowd picture at some sizes, beyond what it has once everything is imported.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import math
import multiprocessing
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import process_time

import cv2
import numpy as np
from PIL import Image as Pillow

from blurguard.detection import model_zoo
from blurguard.detection.interpreter import Network
from blurguard.detection.registry import load_detector
from blurguard.settings import Mode, Settings
from calibration import CalibrationError, flatbuffer
from calibration.candidate import candidate, read_in_units
from calibration.evaluate import EXAMPLES
from calibration.tables import row, table_head

__all__ = ["add_parser", "quickest", "run"]

SIDES = (192, 384, 640, 768, 1024)
MEMORY_SIDES = (1024, 640, 1536, 900, 1920)  # px, longer sides of one picture
KIB = 1024


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = steps.add_parser("cost", help="bytes, time and memory", description=__doc__, formatter_class=raw)
    parser.add_argument("models", nargs="*", help="names in the manifest (default: all); shares are of the first")
    parser.add_argument("--file", type=Path, action="append", default=[], help="a .tflite of ours besides")
    parser.add_argument("--side", type=int, action="append", help="px, a multiple of 32 (may be repeated)")
    parser.add_argument("--rounds", type=int, default=15, help="of which the quickest counts (default: 15)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the tables.

    Raises:
        CalibrationError: a side is no multiple of 32.
    """
    cv2.setNumThreads(1)
    sides = arguments.side or SIDES
    if any(side % 32 or side < 32 for side in sides):
        raise CalibrationError(f"sides are multiples of 32 px: {', '.join(map(str, sides))}")
    known = model_zoo.load_manifest().networks
    if unknown := set(arguments.models) - known.keys():
        raise CalibrationError(f"no network {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    named = [known[name] for name in arguments.models or known]
    networks = [(spec, model_zoo.load_weights(spec)) for spec in named]
    for path in arguments.file:
        content = read_in_units(path)
        networks.append((candidate(content, path.name), content))
    first = len(networks[0][1])
    print(table_head(["model", "bytes", *(f"{side} px: MMAC, ms" for side in sides)]))
    times = [quickest(_looks(networks, side), arguments.rounds) for side in sides]
    for index, (spec, content) in enumerate(networks):
        told = (
            f"{flatbuffer.macs(content, side) / 1e6:.0f}, {at_side[index]:.1f} ({at_side[0] / at_side[index]:.2f}x)"
            for side, at_side in zip(sides, times, strict=True)
        )
        print(row([spec.name, f"{len(content):,} ({len(content) / first:.2f}x)", *told]))
    models = [model.name for model in model_zoo.load_manifest().models]
    print("\n" + table_head(["model", *(f"{mode}: MB" for mode in Mode)]))
    with concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as fresh:
        for name in models:
            settings = [Settings(model=name, mode=mode) for mode in Mode]
            print(row([name, *(f"{fresh.submit(_memory, each).result():.0f}" for each in settings)]))
    return 0


def quickest(actions: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Return the least CPU ms of each action over so many rounds, in which they take turns."""
    least = [math.inf] * len(actions)
    for _ in range(rounds):
        for index, action in enumerate(actions):
            began = process_time()
            action()
            least[index] = min(least[index], 1000 * (process_time() - began))
    return least


def _looks(networks: Sequence[tuple[model_zoo.NetworkSpec, bytes]], side: int) -> list[Callable[[], object]]:
    """Return for each network what looks at noise of side x side px, with its interpreter built."""
    canvas = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    ready: list[Callable[[], object]] = [partial(Network(spec, data).run, canvas) for spec, data in networks]
    for look in ready:
        look()
    return ready


def _memory(settings: Settings) -> float:
    """Return how many MB this process needs at most for the detector of these settings, over pictures of some sizes."""
    cv2.setNumThreads(1)
    pictures = []
    with Pillow.open(EXAMPLES / "photos" / "crowd.jpg") as photo:
        for side in MEMORY_SIDES:
            copy = photo.convert("RGB")
            copy.thumbnail((side, side))
            pictures.append(np.asarray(copy))
    before = _kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak counts from here on
    detector = load_detector(settings)
    for picture in pictures:
        detector.detect(picture, detector.threshold)
    return (_kib("VmHWM") - before) * KIB / 1e6


def _kib(name: str) -> int:
    status = Path("/proc/self/status")
    for line in status.read_text("ascii").splitlines() if status.exists() else ():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise CalibrationError(f"this system does not tell {name}: memory is measured on Linux only")
