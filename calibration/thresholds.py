"""Chooses the score from which a face is hidden: ``python -m calibration thresholds DATA --held N ...``.

For each mode: the lowest score at which no more than so many boxes a picture lie where no face is annotated. DATA
are pictures that training kept back, never those that a published figure is from. Annotators leave faces out,
tiny ones above all, so part of what counts as false here is none: budgets are stated for the labels as they are.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from blurguard.settings import Mode, Settings
from blurguard.types import Detections
from calibration import CalibrationError, write_whole
from calibration.evaluate import TABLE_HEAD, add_choice, chosen_pictures, detect_all, detector_of, row_of
from calibration.score import Labeled, false_boxes, hidden_at, subset_aps
from calibration.tables import table

__all__ = ["add_parser", "lowest_score", "run"]

LOWEST = 0.05  # of scores that may be chosen: under it everything is a face
# The accurate mode goes by the score in what it looks at more closely, so it is chosen anew until it stays, nearly.
ROUNDS = 5
SAME_SCORE = 0.005
STEPS = 1000  # of the scores that are written down: three digits


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = steps.add_parser("thresholds", help="choose scores per mode", description=__doc__, formatter_class=raw)
    add_choice(parser)
    parser.add_argument("--budget", type=float, default=1.0, help="false boxes a picture (default: 1)")
    parser.add_argument("--out", type=Path, help="JSON file to write the scores into: {mode: score}")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the operating point of each mode, and write the scores."""
    cv2.setNumThreads(1)
    truth = chosen_pictures(arguments)
    scores: dict[str, float] = {}
    rows = []
    for mode in arguments.mode or [*Mode]:
        detector = detector_of(arguments, mode)
        for _ in range(ROUNDS):
            found, milliseconds = detect_all(detector, truth)
            chosen = lowest_score(truth, found, arguments.budget)
            near = abs(chosen - detector.threshold) <= SAME_SCORE
            detector.threshold = chosen
            if near or mode == Mode.FAST:
                break
        else:
            raise CalibrationError(
                f"the score of the {mode} mode does not stay, it is {chosen:g} now: give more pictures"
            )
        scores[str(mode)] = chosen
        aps = subset_aps(truth, found)
        rows.append(row_of(mode, aps, hidden_at(truth, found, scores[str(mode)], Settings().margin), milliseconds))
    print(f"{len(truth)} pictures, at most {arguments.budget:g} false boxes a picture\n")
    print(table(TABLE_HEAD, rows))
    if arguments.out:
        write_whole(arguments.out, f"{json.dumps(scores)}\n".encode())
    return 0


def lowest_score(truth: Sequence[Labeled], found: Sequence[Detections], budget: float) -> float:
    """Return the lowest score, 0 to 1, from which there are at most ``budget`` false boxes a picture.

    Raises:
        CalibrationError: no picture.
    """
    if not truth:
        raise CalibrationError("no picture to choose a threshold on")
    scores = np.concatenate(
        [pair.scores[false_boxes(picture, pair)] for picture, pair in zip(truth, found, strict=True)]
    )
    allowed = int(budget * len(truth))
    falling = np.sort(scores)[::-1]
    if len(falling) <= allowed:
        return LOWEST
    just_above = (math.floor(float(falling[allowed]) * STEPS) + 1) / STEPS
    return max(LOWEST, just_above)
