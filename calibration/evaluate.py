"""How many faces are found: both modes on a folder of labeled pictures, at the thresholds that are shipped.

``python -m calibration evaluate DATA`` prints the tables of docs/accuracy.md. With ``--sweep`` it prints the
operating points from which thresholds are chosen: only ever on pictures that no published figure is from.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps

from blurguard.boxes import iou
from blurguard.detection import model_zoo
from blurguard.detection.detector import Detector
from blurguard.detection.multiscale import FusedDetector
from blurguard.detection.registry import load_detector
from blurguard.settings import Mode, Settings
from blurguard.types import Detections
from calibration import CalibrationError
from calibration.candidate import alone, candidate, read_in_units
from calibration.crops import load_pictures, split
from calibration.heldout import divided
from calibration.score import (
    BOX_FACTOR,
    FOUND_IOU,
    IGNORE,
    SIZES,
    Hidden,
    Labeled,
    average_precision,
    covered_shares,
    hidden_at,
    load_truth,
    recall_at,
    subset_aps,
)
from calibration.tables import table

SWEEP = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)
MARGINS = (0.1, 0.2, 0.25, 0.3, 0.4)
EXAMPLES = Path(__file__).parent.parent / "examples"
MIN_SCORE = 0.02  # for AP; operating points lie far above it


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    parser = steps.add_parser("evaluate", help="recall, false boxes and AP on labeled pictures")
    add_choice(parser)
    parser.add_argument("--against", default="", help="another model of the manifest, at the same scores")
    parser.add_argument("--sweep", action="store_true", help="several thresholds besides the shipped one")
    parser.add_argument("--boxes", action="store_true", help="measure box_scale and box_shift of the manifest instead")
    parser.add_argument("--margins", action="store_true", help="measure what the default margin is chosen from instead")
    parser.set_defaults(run=run)


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which model looks at which pictures, and how."""
    parser.add_argument("data", type=Path, help="folder with faces.jsonl, or such a file")
    parser.add_argument("--model", default="", help="name in the manifest (default: the default one)")
    parser.add_argument("--file", type=Path, help="a .tflite of ours that is in no manifest yet, instead")
    parser.add_argument("--mode", choices=[*Mode], action="append", help="only this one (may be repeated)")
    parser.add_argument("--limit", type=int, default=0, help="a random sample of so many pictures")
    parser.add_argument("--seed", type=int, default=0, help="of that sample")
    parser.add_argument("--held", type=int, default=0, help="only what training with this --held keeps back")
    parser.add_argument("--kept-out", action="store_true", help="only pictures that no network is trained on")


def chosen_pictures(arguments: argparse.Namespace) -> list[Labeled]:
    """Return the labeled pictures that ``add_choice``'s arguments ask for, at least one.

    Raises:
        CalibrationError: they cannot be read, or there is none.
    """
    truth = load_truth(arguments.data)
    if arguments.kept_out:
        truth = divided(arguments.data, truth)[1]
        if not truth:
            raise CalibrationError(f"no picture of {arguments.data} is kept out of training: give wider_more or masked")
    if arguments.held:
        truth = held_back(arguments.data, truth, arguments.held)
        if not truth:
            raise CalibrationError(f"--held {arguments.held} keeps none of the pictures of {arguments.data} back")
    if arguments.limit:
        truth = random.Random(arguments.seed).sample(truth, min(arguments.limit, len(truth)))  # noqa: S311 - a sample
    return truth


def held_back(source: Path, truth: list[Labeled], held: int) -> list[Labeled]:
    """Return the pictures that training with this ``--held`` keeps back."""
    kept = {picture.path for picture in split(load_pictures(source), held)[1]}
    return [picture for picture in truth if picture.path in kept]


def detector_of(arguments: argparse.Namespace, mode: str) -> FusedDetector:
    """Return the detector that ``add_choice``'s arguments ask for.

    Raises:
        CalibrationError: the file is no network of ours.
        ModelError: no such model.
    """
    if not arguments.file:
        return load_detector(Settings(mode=Mode(mode), model=arguments.model))
    data = read_in_units(arguments.file)
    return alone(candidate(data, arguments.file.name), data, Mode(mode))


def run(arguments: argparse.Namespace) -> int:
    """Print the tables."""
    cv2.setNumThreads(1)
    truth = chosen_pictures(arguments)
    if arguments.margins:
        return _print_margins(detector_of(arguments, Mode.ACCURATE), truth)
    if arguments.boxes:
        return _print_box_correction(arguments.model, truth)
    rows: dict[float | None, list[list[str]]] = {Settings().margin: [], None: []}
    recalls = []
    for mode in arguments.mode or [*Mode]:
        detectors = {mode: detector_of(arguments, mode)}
        if arguments.against:
            other = load_detector(Settings(mode=Mode(mode), model=arguments.against))
            other.threshold = detectors[mode].threshold
            detectors[f"{mode}, {arguments.against}"] = other
        thresholds = sorted({detectors[mode].threshold, *(SWEEP if arguments.sweep else ())})
        for name, detector in detectors.items():
            found, milliseconds = detect_all(detector, truth)
            aps = subset_aps(truth, found)
            for threshold in thresholds:
                for margin, points in rows.items():
                    points.append(row_of(name, aps, hidden_at(truth, found, threshold, margin), milliseconds))
                shares = (f"{share:.1f} %" for share in recall_at(truth, found, threshold))
                recalls.append([name, f"{threshold:g}", *shares])
    print(f"{len(truth)} pictures, one thread. Hidden with the margin of {Settings().margin:g}:\n")
    print(table(TABLE_HEAD, rows[Settings().margin]))
    print(f"\nHidden under boxes {BOX_FACTOR:g} times as large, as any detector's boxes are compared:\n")
    print(table(TABLE_HEAD, rows[None]))
    print(f"\nFaces that a box lies on (IoU {FOUND_IOU:g}), by their height:\n")
    print(table(("mode", "score from", *SIZES), recalls))
    return 0


TABLE_HEAD = (
    "mode", "AP easy / medium / hard", "score from", *SIZES, "10+ px", "pictures all hidden", "false boxes a picture",
    "masked outside faces", "CPU ms a picture",
)  # fmt: skip


def crowd_ap(detector: Detector) -> float:
    """Return the AP, percent, of the faces of the project's own crowd picture."""
    told = json.loads((EXAMPLES / "crowd.json").read_text("utf-8"))
    boxes = np.array([face["box"] for face in told["faces"]], np.float32)
    everything = np.ones(len(boxes), np.int64)
    truth = [Labeled(EXAMPLES / "photos" / "crowd.jpg", told["width"], told["height"], boxes, everything)]
    found = [detector.detect(pixels_of(picture), MIN_SCORE) for picture in truth]
    return round(100 * average_precision(truth, found, 1), 1)


def detect_all(detector: Detector, truth: list[Labeled]) -> tuple[list[Detections], float]:
    """Return the faces of every picture, and the mean processor time of detection at its threshold, ms."""
    found, seconds = [], 0.0
    for index, picture in enumerate(truth):
        rgb = pixels_of(picture)
        found.append(detector.detect(rgb, MIN_SCORE))  # also builds the interpreters of this size, untimed
        started = time.process_time()
        detector.detect(rgb, detector.threshold)
        seconds += time.process_time() - started
        if sys.stderr.isatty():
            print(f"\r{index + 1}/{len(truth)}", end="", file=sys.stderr)
    return found, 1000 * seconds / max(len(truth), 1)


def row_of(mode: str, aps: list[float], point: Hidden, milliseconds: float) -> list[str]:
    """Return one operating point as a row of the table; APs in percent."""
    shares = (f"{share:.1f} %" for share in (*point.by_height, point.from_10_px, point.pictures_all_hidden))
    cost = f"{point.false_per_picture:.2f}", f"{point.masked_outside:.2f} %", f"{milliseconds:.0f}"
    return [mode, " / ".join(f"{ap:.1f}" for ap in aps), f"{point.threshold:g}", *shares, *cost]


def pixels_of(picture: Labeled) -> NDArray[np.uint8]:
    """Return a picture as upright (H, W, 3) RGB."""
    with Pillow.open(picture.path) as opened:
        return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))


def _print_box_correction(model: str, truth: list[Labeled]) -> int:
    """Print the medians of true over raw size, and of the center's offset, over faces found with score 0.6."""
    manifest = model_zoo.load_manifest()
    shipped = manifest.networks[manifest.model(model).networks[0]]
    spec = dataclasses.replace(shipped, box_scale=(1.0, 1.0), box_shift=(0.0, 0.0))
    detector = alone(spec, model_zoo.load_weights(spec), Mode.ACCURATE)
    rows = []
    for picture in truth:
        boxes = picture.boxes[(picture.flags & IGNORE) == 0]
        raw = detector.detect(pixels_of(picture), 0.6).boxes
        if not len(raw) or not len(boxes):
            continue
        overlaps = iou(boxes, raw)
        matched = overlaps.max(axis=1) > 0.4
        rows.append(np.concatenate([boxes[matched], raw[overlaps.argmax(axis=1)[matched]]], axis=1))
    pairs = np.concatenate(rows)
    size, raw_size = pairs[:, 2:4] - pairs[:, :2], pairs[:, 6:] - pairs[:, 4:6]
    shift = (pairs[:, :2] + pairs[:, 2:4] - pairs[:, 4:6] - pairs[:, 6:]) / 2 / size
    scale, offset = np.median(size / raw_size, axis=0), np.median(shift, axis=0)
    told = [f"[{x:.3f}, {y:.3f}]" for x, y in (scale, offset)]
    print(f"{len(pairs)} faces: box_scale = {told[0]}, box_shift = {told[1]}")
    return 0


def _print_margins(detector: Detector, truth: list[Labeled]) -> int:
    """Print how many of the faces of 20 px and more that are found each margin covers to 95 % of their ellipse."""
    found = [detector.detect(pixels_of(picture), detector.threshold) for picture in truth]
    for margin in MARGINS:
        shares = np.concatenate([covered_shares(*pair, margin, 20) for pair in zip(truth, found, strict=True)])
        outside = hidden_at(truth, found, detector.threshold, margin).masked_outside
        well = 100 * float((shares >= 0.95).mean())
        print(f"margin {margin:g}: {well:.1f} % of {len(shares)} faces; {outside:.2f} % of the pictures masked outside")
    return 0
