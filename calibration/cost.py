"""What networks cost: ``python -m calibration cost [MODEL ...]``: bytes, multiplications, time by input size, memory.

Time is the least processor time of one thread over some rounds in which all networks take turns, so that what else
the machine does meanwhile weighs on all of them. Memory is what a fresh process comes to need at most for looking
at the project's crowd picture, beyond what it has once everything is imported.
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
from blurguard.settings import Mode
from calibration import CalibrationError, flatbuffer
from calibration.candidate import alone, candidate, read_in_units
from calibration.evaluate import EXAMPLES
from calibration.tables import row, table_head

__all__ = ["add_parser", "quickest", "run"]

SIDES = (192, 384, 640, 768, 1024)
MEMORY_SIDE = 1024
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
    print("\n" + table_head(["model", *(f"{mode}, {MEMORY_SIDE} px: MB" for mode in Mode)]))
    with concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as fresh:
        for spec, content in networks:
            needed = (fresh.submit(_memory, spec, content, mode).result() for mode in Mode)
            print(row([spec.name, *(f"{megabytes:.0f}" for megabytes in needed)]))
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


def _memory(spec: model_zoo.NetworkSpec, data: bytes, mode: Mode) -> float:
    """Return how many MB this process needs at most for a detector that looks at one picture of 1024 px."""
    cv2.setNumThreads(1)
    with Pillow.open(EXAMPLES / "photos" / "crowd.jpg") as photo:
        photo.thumbnail((MEMORY_SIDE, MEMORY_SIDE))
        picture = np.asarray(photo.convert("RGB"))
    before = _kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak counts from here on
    detector = alone(spec, data, mode)
    detector.detect(picture, detector.threshold)
    return (_kib("VmHWM") - before) * KIB / 1e6


def _kib(name: str) -> int:
    status = Path("/proc/self/status")
    for line in status.read_text("ascii").splitlines() if status.exists() else ():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise CalibrationError(f"this system does not tell {name}: memory is measured on Linux only")
