"""Makes scores probabilities: ``python -m calibration probabilities DATA... --model NAME [--write]``.

For each mode the coefficients of `blurguard.detection.fusion` are fitted for all passes together, so that fused
scores are the shares of boxes that are faces. Rotated passes are fitted alone. DATA are data sets with pictures that
are kept out of all training (`calibration.heldout`); only those count. For other data sets ``--held N`` takes those
that training with this ``--held`` keeps back. A box is a face if it overlaps an annotated one by an IoU of 0.4. Boxes
on ignored faces do not count.

Three tables come out. Reliability: pictures are fitted in two halves, each with the coefficients of the other. The
default score of each mode: the lowest one at which no data set has more than so many false boxes a picture.
``--write`` puts all of it into the manifest.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own habit
from numpy.typing import NDArray

from blurguard.boxes import Boxes, iou
from blurguard.detection.fusion import (
    COEFFICIENTS,
    MAX_PX,
    MIN_PX,
    REFERENCE_PX,
    fuse,
    merged,
    probabilities,
    same_faces,
    terms,
)
from blurguard.detection.model_zoo import MANIFEST, PassSpec, Plan, load_manifest, models_dir
from blurguard.detection.multiscale import FusedDetector
from blurguard.detection.registry import load_detector
from blurguard.settings import Mode, Settings
from blurguard.types import Detections
from calibration import CalibrationError, counted, write_whole
from calibration.candidate import AS_IT_IS
from calibration.evaluate import crowd_ap, held_back, pixels_of
from calibration.heldout import data_set, divided
from calibration.manifest import with_entries
from calibration.score import IGNORE, Labeled, load_truth, lowest_score
from calibration.tables import table

__all__ = ["Seen", "add_parser", "cross_fitted", "fitted", "fused", "kept_out_pictures", "likely", "reliability", "run"]

FACE_IOU = 0.4  # a box of a small face that overlaps it by less than 0.5 still hides it
RIDGE = 1e-4  # keeps coefficients near zero that nothing determines
ROUNDS = 2  # of grouping boxes by the last probabilities and fitting again
ITERATIONS = 200
LEAST_SLOPE = 0.1  # of the logit of a probability by that of the score
TINY = 1e-9  # the least probability of a box, so that its logarithm is finite
DIGITS = 4  # of the coefficients
DECILES = 10

Coefficients = NDArray[np.float64]
"""(P, 5), a row for each pass."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A labeled picture, and the detections of each pass, with the scores of its network."""

    picture: Labeled
    passes: list[Detections]


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    text = "make scores probabilities, and choose the default ones"
    parser = steps.add_parser("probabilities", help=text, description=__doc__, formatter_class=raw)
    parser.add_argument("data", type=Path, nargs="+", help="folders with faces.jsonl")
    parser.add_argument("--model", default="", help="name in the manifest (default: the default one)")
    parser.add_argument("--mode", choices=[*Mode], action="append", help="only this one (may be repeated)")
    parser.add_argument("--budget", type=float, default=1.0, help="false boxes a picture (default: 1)")
    parser.add_argument("--limit", type=int, default=0, help="only the first so many pictures of each data set")
    parser.add_argument("--held", type=int, default=0, help="pictures that training with this --held keeps back")
    parser.add_argument("--models", type=Path, help="folder of the manifest (default: that of the released models)")
    parser.add_argument("--write", action="store_true", help="put coefficients and scores into the manifest")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the tables; with ``--write``, write the manifest.

    Raises:
        CalibrationError: the pictures cannot be read, or none is kept out.
    """
    cv2.setNumThreads(1)
    folder = arguments.models or models_dir()
    model = load_manifest(folder).model(arguments.model)
    pictures = kept_out_pictures(arguments.data, arguments.limit, arguments.held)
    plans = dict(model.plans)
    for mode in map(Mode, arguments.mode or [*Mode]):
        detector = load_detector(Settings(model=model.name, mode=mode), folder)
        plans[mode] = _fitted_plan(detector, mode, pictures, arguments.budget)
    if arguments.write:
        written = with_entries((folder / MANIFEST).read_text("utf-8"), [dataclasses.replace(model, plans=plans)])
        write_whole(folder / MANIFEST, written.encode())
    return 0


def kept_out_pictures(sources: Sequence[Path], limit: int = 0, held: int = 0) -> dict[str, list[Labeled]]:
    """Return the pictures of each data set that are kept out of training, by its name.

    Raises:
        CalibrationError: a data set cannot be read, or no picture is kept out.
    """
    kept = {data_set(source): _kept_out(source, load_truth(source), held) for source in sources}
    pictures = {name: some[:limit] if limit else some for name, some in kept.items() if some}
    if not pictures:
        raise CalibrationError(f"none of the pictures of {', '.join(map(str, sources))} is kept out of training")
    return pictures


def _kept_out(source: Path, truth: list[Labeled], held: int) -> list[Labeled]:
    if not held:
        return divided(source, truth)[1]
    return held_back(source, truth, held)


def _fitted_plan(detector: FusedDetector, mode: Mode, pictures: dict[str, list[Labeled]], budget: float) -> Plan:
    """Print the tables of a mode, and return its plan with probabilities, default score and AP on the crowd."""
    seen = {name: see(detector, some) for name, some in pictures.items()}
    everything = [one for some in seen.values() for one in some]
    # One network alone finds as many faces without heights, and more large ones (kept out, AP easy 85.2, not 82.4).
    by_height = len({each.network for each in detector.plan.passes}) > 1
    coefficients = fitted(everything, by_height=by_height)
    print(f"{mode}: {len(everything)} pictures kept out. Fused probabilities, each half by the other:\n")
    print(table(("probability", "boxes", "mean", "faces"), reliability(everything, by_height=by_height)))
    scores = {
        name: lowest_score([one.picture for one in some], fused(some, coefficients), budget)
        for name, some in seen.items()
    }
    print(f"\nscores with {budget:g} false boxes a picture: {scores}\n")
    plan = _with(detector.plan, coefficients, max(scores.values()))
    everywhere = [picture for some in pictures.values() for picture in some]
    plan = dataclasses.replace(plan, rotated=_fitted_rotated(detector, everywhere))
    return dataclasses.replace(plan, crowd_ap=crowd_ap(detector.with_plan(plan)))


def see(detector: FusedDetector, pictures: Sequence[Labeled]) -> list[Seen]:
    """Return the detections of all passes on these pictures, down to low scores."""
    start = np.tile(AS_IT_IS, (len(detector.plan.passes), 1))
    plain = detector.with_plan(_with(detector.plan, start, detector.threshold))
    return [Seen(picture, plain.detect_passes(pixels_of(picture))) for picture in counted(list(pictures))]


def likely(one: Seen, coefficients: Coefficients) -> list[Detections]:
    """Return the detections of each pass with probabilities for scores."""
    return [probabilities(found, row.tolist()) for found, row in zip(one.passes, coefficients, strict=True)]


def fused(seen: Sequence[Seen], coefficients: Coefficients) -> list[Detections]:
    """Return the faces of each picture with fused probabilities."""
    return [fuse(likely(one, coefficients)) for one in seen]


def fitted(seen: Sequence[Seen], *, by_height: bool = True) -> Coefficients:
    """Return the coefficients under which the annotations are the most probable, rounded.

    ``by_height`` False leaves the heights of boxes out.

    Raises:
        CalibrationError: no box is a face, or all of them are.
    """
    used = np.array([1, 1, *[by_height] * (COEFFICIENTS - 2)], float)
    passes = len(seen[0].passes)
    coefficients = np.zeros((passes, COEFFICIENTS))
    for index in range(passes):
        alone = [Seen(one.picture, [one.passes[index]]) for one in seen]
        coefficients[index] = _most_probable(*_examples(alone, np.array([AS_IT_IS])), used)[0]
    for _ in range(ROUNDS if passes > 1 else 0):
        coefficients = _most_probable(*_examples(seen, coefficients), used)
    return np.asarray(coefficients.round(DIGITS) + 0.0)  # no minus zero


def cross_fitted(seen: Sequence[Seen], *, by_height: bool = True) -> list[Detections]:
    """Return the faces of each picture with fused probabilities, by the coefficients of the other half of them."""
    halves = [fused(seen[half::2], fitted(seen[1 - half :: 2], by_height=by_height)) for half in (0, 1)]
    return [halves[index % 2][index // 2] for index in range(len(seen))]


def reliability(seen: Sequence[Seen], *, by_height: bool = True) -> list[list[str]]:
    """Return rows of a decile, its boxes, their mean probability and the share of them that are faces."""
    scores, faces = [np.zeros(0)], [np.zeros(0, np.bool_)]
    for one, found in zip(seen, cross_fitted(seen, by_height=by_height), strict=True):
        known, face = _judged(one.picture, found.boxes)
        scores.append(found.scores[known].astype(float))
        faces.append(face[known])
    every, right = np.concatenate(scores), np.concatenate(faces)
    deciles = np.minimum((every * DECILES).astype(int), DECILES - 1)
    return [
        [f"{index / DECILES:.1f} to {(index + 1) / DECILES:.1f}", f"{mask.sum()}", f"{every[mask].mean():.2f}",
         f"{right[mask].mean():.2f}"]
        for index in range(DECILES) if (mask := deciles == index).any()
    ]  # fmt: skip


def _with(plan: Plan, coefficients: Coefficients, threshold: float) -> Plan:
    """Return the plan with these coefficients of its passes but the rotated one."""
    passes = tuple(
        dataclasses.replace(each, probability=tuple(row.tolist()))
        for each, row in zip(plan.passes, coefficients, strict=True)
    )
    return dataclasses.replace(plan, passes=passes, threshold=threshold)


def _fitted_rotated(detector: FusedDetector, pictures: Sequence[Labeled]) -> PassSpec | None:
    """Return the rotated pass with coefficients of its own: a picture on its side is upright to it alone."""
    rotated = detector.plan.rotated
    if rotated is None:
        return None
    alone = detector.with_plan(dataclasses.replace(detector.plan, passes=(rotated,), rotated=None))
    (row,) = fitted(see(alone, pictures))
    return dataclasses.replace(rotated, probability=tuple(row.tolist()))


def _judged(picture: Labeled, boxes: Boxes) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which boxes (N,) count, and which of them are faces (N,)."""
    ignored = (picture.flags & IGNORE) > 0
    overlaps = iou(boxes, picture.boxes)
    face = np.asarray(overlaps[:, ~ignored].max(axis=1, initial=0) >= FACE_IOU)
    return face | (overlaps[:, ignored].max(axis=1, initial=0) < FACE_IOU), face


def _examples(
    seen: Sequence[Seen], coefficients: Coefficients
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return terms (N, P, 5), which passes have a box (N, P), and which of N groups of boxes are faces."""
    rows = [row for one in seen for row in _groups(one, coefficients)]
    face = np.array([is_face for _, _, is_face in rows], np.bool_)
    if not face.any() or face.all():
        raise CalibrationError("no box is a face, or all of them are: give more pictures")
    return np.stack([values for values, _, _ in rows]), np.stack([present for _, present, _ in rows]), face


def _groups(one: Seen, coefficients: Coefficients) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_], bool]]:
    """Yield terms (P, 5), which passes have a box (P,), and whether it is a face, of each group that counts."""
    scored = likely(one, coefficients)
    groups = same_faces(scored)
    known, face = _judged(one.picture, merged(scored, groups).boxes)
    every = [terms(found.scores, found.boxes) for found in one.passes]
    for group, is_known, is_face in zip(groups, known.tolist(), face.tolist(), strict=True):
        if is_known:
            values, present = np.zeros((len(every), COEFFICIENTS)), np.zeros(len(every), np.bool_)
            for index, row in group:
                values[index], present[index] = every[index][row], True
            yield values, present, is_face


def _most_probable(
    values: NDArray[np.float64], present: NDArray[np.bool_], face: NDArray[np.bool_], used: NDArray[np.float64]
) -> Coefficients:
    """Return the coefficients that make N boxes the most probable.

    The first arguments are those of `_examples`. Terms that are not ``used``, (5,), have no effect.
    """
    x, there, is_face = (torch.from_numpy(array.astype(np.float64)) for array in (values * used, present, face))
    chosen = torch.zeros(values.shape[1:], dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.LBFGS([chosen], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        # log of the probability that no pass is right: sum of log(1 - p)
        coefficients = _rising(chosen)
        none_right = -(F.softplus((x * coefficients).sum(dim=2)) * there).sum(dim=1)
        one_right = torch.log(-torch.expm1(none_right.clamp(max=-TINY)))
        value = -(is_face * one_right + (1 - is_face) * none_right).mean() + RIDGE * (coefficients**2).mean()
        value.backward()  # type: ignore[no-untyped-call]  # PyTorch's own
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]  # PyTorch's own
    return np.asarray(_rising(chosen).detach().numpy() * used)


def _rising(free: torch.Tensor) -> torch.Tensor:
    """Return coefficients (P, 5) under which a higher score is more probable at every height.

    Of the free numbers (P, 5), the second and the fourth decide how steeply at the least and at the largest height.
    """
    low, high = (math.log(side / REFERENCE_PX) for side in (MIN_PX, MAX_PX))
    constant, steep_low, tall, steep_high, square = free.unbind(dim=1)
    at_low, at_high = (F.softplus(steep) + LEAST_SLOPE for steep in (steep_low, steep_high))
    product = (at_high - at_low) / (high - low)
    return torch.stack([constant, at_low - product * low, tall, product, square], dim=1)
