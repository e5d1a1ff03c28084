"""What looking at turned pictures finds and costs: ``python -m calibration turned DATA``.

Pictures are turned by 0 to 180 degrees, with the boxes of their faces, and looked at with and without the turned
passes of the accurate mode. Faces of ``FROM_PX`` and more count: turned passes are too coarse for others.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from blurguard.boxes import iou
from blurguard.detection.multiscale import QUARTERS, FusedDetector
from blurguard.settings import Mode
from blurguard.types import Detections
from calibration import tables
from calibration.evaluate import add_choice, chosen_pictures, detector_of, pixels_of
from calibration.score import IGNORE, Labeled, false_boxes
from calibration.tables import table_head

DEGREES = (0, 45, 90, 135, 180)
FROM_PX = 20.0  # longer side of a face, px of the picture
FOUND_IOU = 0.3  # of a turned face's box, which is a guess between its corners


@dataclass(frozen=True, slots=True)
class Turned:
    """What was found, with the turned passes (``rescue``) or without; processor time is per picture."""

    rescue: bool
    faces: int
    found: int
    false_per_picture: float
    milliseconds: float


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    parser = steps.add_parser("turned", help="recall on turned pictures, with and without the turned passes")
    add_choice(parser)
    parser.add_argument("--degrees", type=int, action="append", help="turn by so much (may be repeated)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    cv2.setNumThreads(1)
    truth = chosen_pictures(arguments)
    detector = detector_of(arguments, Mode.ACCURATE)
    print(f"{len(truth)} pictures, one thread, score from {detector.threshold:g}, faces of {FROM_PX:g} px and more\n")
    print(table_head(["turned by", "turned passes", "faces", "found", "false boxes a picture", "CPU ms a picture"]))
    for degrees in arguments.degrees or DEGREES:
        for row in measured(detector, truth, degrees):
            print(
                tables.row(
                    [
                        f"{degrees}°",
                        "with" if row.rescue else "without",
                        row.faces,
                        f"{100 * row.found / max(row.faces, 1):.1f} %",
                        f"{row.false_per_picture:.2f}",
                        f"{row.milliseconds:.0f}",
                    ]
                )
            )
    return 0


def measured(detector: FusedDetector, truth: list[Labeled], degrees: int) -> list[Turned]:
    """Return what is found without the turned passes, and with them, in pictures turned by so many degrees."""
    pairs = [turned_by(pixels_of(picture), picture, degrees) for picture in truth]
    rows = []
    for turns in ((), QUARTERS):
        detector.quarters = turns
        seen, wrong, seconds = [np.zeros(0, np.bool_)], 0, 0.0
        for rgb, picture in pairs:
            detector.detect(rgb, detector.threshold)  # builds the interpreters of this size, untimed
            started = time.process_time()
            boxes = detector.detect(rgb, detector.threshold)
            seconds += time.process_time() - started
            seen.append(found_in(picture, boxes))
            wrong += int(false_boxes(picture, boxes).sum())
        every = np.concatenate(seen)
        count = max(len(truth), 1)
        rows.append(Turned(bool(turns), len(every), int(every.sum()), wrong / count, 1000 * seconds / count))
    return rows


def turned_by(rgb: NDArray[np.uint8], picture: Labeled, degrees: int) -> tuple[NDArray[np.uint8], Labeled]:
    """Return a picture turned against the clock, grown so that no corner is cut, and where its faces are then.

    A box keeps its size and turns about its center; by a quarter turn its sides change places.
    """
    height, width = rgb.shape[:2]
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[cosine, sine], [-sine, cosine]])  # y runs down
    across = np.abs(turn) @ (width, height)
    size = round(float(across[0])), round(float(across[1]))
    shift = np.array(size) / 2 - turn @ (width / 2, height / 2)
    # Centers of pixels lie at + 0.5; OpenCV counts from the first of them.
    matrix = np.column_stack([turn, shift + turn @ (0.5, 0.5) - 0.5])
    pixels = np.asarray(cv2.warpAffine(rgb, matrix, size), np.uint8)
    # Labels count px by their centers too.
    centers = ((picture.boxes[:, :2] + picture.boxes[:, 2:]) / 2 + 0.5) @ turn.T + shift - 0.5
    sides = picture.boxes[:, 2:] - picture.boxes[:, :2]
    half = (sides[:, ::-1] if degrees % 180 == 90 else sides) / 2
    boxes = np.concatenate([centers - half, centers + half], axis=1).astype(np.float32)
    return pixels, dataclasses.replace(picture, width=size[0], height=size[1], boxes=boxes)


def found_in(picture: Labeled, found: Detections) -> NDArray[np.bool_]:
    """Tell which of the faces that count were found, (n,)."""
    longer = (picture.boxes[:, 2:] - picture.boxes[:, :2]).max(axis=1, initial=0)
    counted = picture.boxes[((picture.flags & IGNORE) == 0) & (longer >= FROM_PX)]
    return np.asarray(iou(counted, found.boxes).max(axis=1, initial=0) >= FOUND_IOU, np.bool_)
