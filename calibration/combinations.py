"""The worth of each combination of passes: ``python -m calibration combinations DATA... [--passes A+B ...]``.

A pass is a network at the scales of a rule, ``centerface/fine``. Without ``--passes`` the table shows each pass of the
accurate mode alone, all but each, and all of them. The pictures are those kept out of training. Each combination has
probabilities of its own, for each half of the pictures from the other half. Rotated passes are not part of it: see
`turned`. Processor time is that of one thread, reading excluded, interpreters of new sizes included.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2

from blurguard.detection.model_zoo import Manifest, load_manifest, load_weights
from blurguard.detection.multiscale import FusedDetector
from blurguard.detection.scales import RULES
from blurguard.settings import Mode
from blurguard.types import Detections
from calibration import CalibrationError, counted
from calibration.candidate import one_pass
from calibration.evaluate import pixels_of
from calibration.probabilities import Seen, cross_fitted, kept_out_pictures
from calibration.rivals import BUDGETS, columns, points_at, shares_of
from calibration.score import Labeled
from calibration.tables import row, table_head

__all__ = ["add_parser", "run"]

HEAD = ("passes", *columns(BUDGETS), "CPU ms a picture")


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    text = "the worth and the cost of passes together"
    parser = steps.add_parser("combinations", help=text, description=__doc__, formatter_class=raw)
    parser.add_argument("data", type=Path, nargs="+", help="folders with faces.jsonl")
    parser.add_argument("--passes", action="append", metavar="A+B", help="NETWORK/RULE+... (may be repeated)")
    parser.add_argument("--model", default="", help="name in the manifest (default: the default one)")
    parser.add_argument("--limit", type=int, default=0, help="only the first so many pictures of each data set")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a table per data set.

    Raises:
        CalibrationError: the pictures cannot be read, or there is no such network or rule.
    """
    cv2.setNumThreads(1)
    manifest = load_manifest()
    chosen = [text.split("+") for text in arguments.passes or ()] or [*_default(manifest, arguments.model)]
    names = list(dict.fromkeys(name for combination in chosen for name in combination))
    detectors = {name: _detector(manifest, name) for name in names}
    for source, pictures in kept_out_pictures(arguments.data, arguments.limit).items():
        found = {name: _detected(detector, pictures) for name, detector in detectors.items()}
        print(f"{source}, {len(pictures)} pictures kept out:\n\n{table_head(HEAD)}")
        for combination in chosen:
            passes = zip(*(found[name][0] for name in combination), strict=True)
            seen = [Seen(picture, list(own)) for picture, own in zip(pictures, passes, strict=True)]
            cost = sum(found[name][1] for name in combination)
            print(row([" + ".join(combination), *_figures(seen), f"{cost:.0f}"]), flush=True)
        print()
    return 0


def _default(manifest: Manifest, model: str) -> Iterator[list[str]]:
    """Yield each pass of the accurate mode, all but each, and all of them."""
    passes = [f"{each.network}/{each.scales}" for each in manifest.model(model).plans[Mode.ACCURATE].passes]
    yield from ([name] for name in passes)
    if len(passes) > 2:
        yield from ([other for other in passes if other != name] for name in passes)
    if len(passes) > 1:
        yield passes


def _detector(manifest: Manifest, name: str) -> FusedDetector:
    """Return the detector of one pass."""
    network, _, rule = name.partition("/")
    if network not in manifest.networks or rule not in RULES:
        known = f"networks {', '.join(manifest.networks)}, rules {', '.join(RULES)}"
        raise CalibrationError(f"no pass {name!r}: give NETWORK/RULE; there are {known}")
    spec = manifest.networks[network]
    return one_pass(spec, load_weights(spec), rule)


def _detected(detector: FusedDetector, pictures: Sequence[Labeled]) -> tuple[list[Detections], float]:
    """Return the detections of a pass on each picture, and its mean processor time, ms."""
    found, seconds = [], 0.0
    for picture in counted(list(pictures)):
        rgb = pixels_of(picture)
        started = time.process_time()
        found += detector.detect_passes(rgb)
        seconds += time.process_time() - started
    return found, 1000 * seconds / max(len(pictures), 1)


def _figures(seen: Sequence[Seen]) -> list[str]:
    """Return the cells of a row, without its name and cost."""
    truth, found = [one.picture for one in seen], cross_fitted(seen)
    return shares_of(truth, found, points_at(truth, found, BUDGETS))
