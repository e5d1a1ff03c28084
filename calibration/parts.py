"""What each pass of the accurate mode is worth: ``python -m calibration parts DATA --held N``.

The own size and the octaves alone, with the closer looks, and with the turned passes, each at the scores that let
through one and two false boxes a picture. AP stands there with an IoU of 0.4 too: what that adds is lost by boxes
that lie beside small faces, not by faces that are not seen.
"""

from __future__ import annotations

import argparse

import cv2

from blurguard.detection.multiscale import ROTATIONS
from blurguard.settings import Mode, Settings
from calibration.evaluate import add_choice, chosen_pictures, detect_all, detector_of
from calibration.score import hidden_at, subset_aps
from calibration.tables import row, table_head
from calibration.thresholds import lowest_score

__all__ = ["add_parser", "run"]

PARTS = (
    ("own size, octaves", False, ()),
    ("+ closer looks", True, ()),
    ("+ turned passes", True, ROTATIONS),
)
BUDGETS = (1.0, 2.0)  # false boxes a picture
IOUS = (0.5, 0.4)


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    told = "what each pass of the accurate mode is worth"
    parser = steps.add_parser("parts", help=told, description=__doc__, formatter_class=raw)
    add_choice(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    cv2.setNumThreads(1)
    truth = chosen_pictures(arguments)
    detector = detector_of(arguments, Mode.ACCURATE)
    print(f"{len(truth)} pictures, one thread; faces of 10 px and more hidden at so many false boxes a picture\n")
    heads = [f"AP, IoU {least:g}" for least in IOUS] + [f"hidden at {budget:g}" for budget in BUDGETS]
    print(table_head(["", *heads, "CPU ms a picture"]))
    for name, closer, turns in PARTS:
        detector.refines, detector.rotations = closer, turns
        found, milliseconds = detect_all(detector, truth)
        cells = [" / ".join(f"{ap:.1f}" for ap in subset_aps(truth, found, least)) for least in IOUS]
        for budget in BUDGETS:
            point = hidden_at(truth, found, lowest_score(truth, found, budget), Settings().margin)
            cells.append(f"{point.from_10_px:.1f} %")
        print(row([name, *cells, f"{milliseconds:.0f}"]))
    return 0
