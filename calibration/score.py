"""Scoring detections against labeled pictures: WIDER-style average precision, and how many faces end up hidden.

Truth is a ``faces.jsonl``, a line per picture: ``{"image", "width", "height", "faces": [[x, y, w, h, flags]]}``,
px; flags are a sum of 1 easy, 2 medium, 4 hard (subsets of the official evaluation) and 8 ignore.

A face counts as hidden when at least 80 % of the ellipse inscribed in its box lies under the union of the
ellipses of the hidden regions. A box is false when its IoU with every annotated face, ignored ones included, is
under 0.1.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blurguard.boxes import iou, select
from blurguard.redaction.regions import regions_from
from blurguard.types import Detections
from calibration import CalibrationError

IGNORE = 8
SUBSETS = {"easy": 1, "medium": 2, "hard": 4}
FROM_PX = {1: 60, 2: 24, 4: 8}  # heights that stand in for the subsets where the labels have none
BUCKETS = ((0, 10), (10, 20), (20, 40), (40, 80), (80, 1_000_000))  # height of a face, px
SIZES = [f"{low}-{high} px" if high < BUCKETS[-1][1] else f"{low}+ px" for low, high in BUCKETS]  # columns
HIDDEN_SHARE = 0.8
FALSE_IOU = 0.1
FOUND_IOU = 0.5
LOWEST_SCORE = 0.05  # of scores that may be chosen: under it everything is a face
SCORE_STEPS = 1000  # of the scores that are written down: three digits
BOX_FACTOR = 1.3  # how much larger than its box a face is hidden where nothing is known of regions
_LAST_PIXEL = np.array([0, 0, 1, 1], np.float32)  # the official protocol counts the last px in: width is x1 - x0 + 1


@dataclass(frozen=True, slots=True, eq=False)
class Labeled:
    """One labeled picture: ``boxes`` float32 (N, 4) x0 y0 x1 y1, ``flags`` int (N,)."""

    path: Path
    width: int
    height: int
    boxes: NDArray[np.float32]
    flags: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Hidden:
    """One operating point: shares are in percent of faces, pictures or px."""

    threshold: float
    by_height: tuple[float, ...]  # one per bucket
    from_10_px: float
    pictures_all_hidden: float
    false_per_picture: float
    masked_outside: float


def load_truth(folder: Path) -> list[Labeled]:
    """Return the pictures of a folder with ``faces.jsonl``, or of another file of that form.

    Where no face belongs to a subset, as in training pictures, those of 60, 24 and 8 px and more stand for them.

    Raises:
        CalibrationError: ``faces.jsonl`` cannot be read, or names no picture.
    """
    labels = folder if folder.suffix == ".jsonl" else folder / "faces.jsonl"
    try:
        lines = labels.read_text("utf-8").splitlines()
        pictures = [_labeled(labels.parent, json.loads(line)) for line in lines if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CalibrationError(f"cannot read the labels of {folder}: {error!r}") from error
    if not pictures:
        raise CalibrationError(f"{labels} names no picture")
    if any((picture.flags & ~IGNORE).any() for picture in pictures):
        return pictures
    return [dataclasses.replace(picture, flags=_by_height(picture)) for picture in pictures]


def average_precision(truth: list[Labeled], found: list[Detections], subset: int, least_iou: float = 0.5) -> float:
    """Return the AP of a subset, 0 to 1, by the protocol of WIDER FACE, where ``least_iou`` is 0.5.

    A detection on a face outside the subset counts neither way, a second one on the same face and one on no face are
    false. Pictures without a labeled face count neither way, as in the official code.
    """
    scored: list[tuple[float, bool]] = []
    wanted_count = 0
    for picture, detections in zip(truth, found, strict=True):
        wanted = (picture.flags & subset) > 0
        wanted_count += int(wanted.sum())
        scored.extend(_judged(picture, detections, wanted, least_iou))
    if not scored or not wanted_count:
        return 0.0
    scored.sort(key=lambda pair: -pair[0])
    hits = np.cumsum([hit for _, hit in scored])
    recall, precision = hits / wanted_count, hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(recall, prepend=0.0)
    return float((steps * envelope).sum())


def subset_aps(truth: list[Labeled], found: list[Detections], least_iou: float = 0.5) -> list[float]:
    """Return the AP of the easy, the medium and the hard subset, percent."""
    return [100 * average_precision(truth, found, subset, least_iou) for subset in SUBSETS.values()]


def hidden_at(truth: list[Labeled], found: list[Detections], threshold: float, margin: float | None) -> Hidden:
    """Return what is hidden when every detection from ``threshold`` is, with ``margin`` on each side.

    With ``margin`` None the ellipses of boxes `BOX_FACTOR` times as large are, as detectors of any kind are compared.
    """
    seen, covered = np.zeros(len(BUCKETS)), np.zeros(len(BUCKETS))
    clean = counted = false_count = outside = area = 0
    for picture, detections in zip(truth, found, strict=True):
        chosen = select(detections, detections.scores >= threshold)
        mask = _mask(picture, chosen, margin)
        valid, hidden = _hits(picture, mask)
        heights = face_heights(picture)
        seen += _counts(heights[valid])
        covered += _counts(heights[hidden])
        large = valid & (heights >= BUCKETS[1][0])
        counted += bool(large.any())
        clean += bool(large.any() and hidden[large].all())
        false_count += int(false_boxes(picture, chosen).sum())
        outside += _outside(picture, mask)
        area += mask.size
    percent = 100 * covered / np.maximum(seen, 1)
    return Hidden(
        threshold,
        tuple(float(v) for v in percent),
        float(100 * covered[1:].sum() / max(seen[1:].sum(), 1)),
        100 * clean / max(counted, 1),
        false_count / max(len(truth), 1),
        100 * outside / max(area, 1),
    )


def hidden_faces(
    picture: Labeled, found: Detections, threshold: float, margin: float | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which rows of ``picture.boxes`` count, and which of these are hidden, as in `hidden_at`. Both are (N,)."""
    return _hits(picture, _mask(picture, select(found, found.scores >= threshold), margin))


def face_heights(picture: Labeled) -> NDArray[np.float32]:
    """Return the height of each labeled box, (N,), px."""
    return picture.boxes[:, 3] - picture.boxes[:, 1]


def recall_at(truth: list[Labeled], found: list[Detections], threshold: float) -> tuple[float, ...]:
    """Return the share of faces of each size in `BUCKETS` that a box from ``threshold`` up lies on, percent.

    The IoU is that of the boxes as they are, without the px that the official protocol adds to both.
    """
    seen, hit = np.zeros(len(BUCKETS)), np.zeros(len(BUCKETS))
    for picture, detections in zip(truth, found, strict=True):
        boxes = picture.boxes[(picture.flags & IGNORE) == 0]
        best = iou(boxes, detections.boxes[detections.scores >= threshold]).max(axis=1, initial=0)
        heights = boxes[:, 3] - boxes[:, 1]
        seen += _counts(heights)
        hit += _counts(heights[best >= FOUND_IOU])
    return tuple(float(share) for share in 100 * hit / np.maximum(seen, 1))


def false_boxes(picture: Labeled, found: Detections) -> NDArray[np.bool_]:
    """Tell which boxes (N,) overlap no annotated face."""
    if not len(found) or not len(picture.boxes):
        return np.ones(len(found), np.bool_)
    return np.asarray(iou(found.boxes, picture.boxes).max(axis=1) < FALSE_IOU, np.bool_)


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
        return LOWEST_SCORE
    just_above = (math.floor(float(falling[allowed]) * SCORE_STEPS) + 1) / SCORE_STEPS
    return max(LOWEST_SCORE, just_above)


def covered_shares(picture: Labeled, found: Detections, margin: float, from_px: float) -> NDArray[np.float64]:
    """Return how much of its ellipse is hidden, 0 to 1, for each face of that height that was found (IoU 0.4)."""
    if not len(found) or not len(picture.boxes):
        return np.zeros(0)
    mask = _mask(picture, found, margin)
    matched = iou(picture.boxes, found.boxes).max(axis=1) >= 0.4
    large = face_heights(picture) >= from_px
    shares = []
    for box in picture.boxes[matched & large & ((picture.flags & IGNORE) == 0)]:
        rows, columns, inside = _ellipse(box, (picture.height, picture.width))
        if inside.any():
            shares.append(float(mask[rows, columns][inside].mean()))
    return np.array(shares)


def _counts(heights: NDArray[Any]) -> NDArray[np.int64]:
    """Return how many heights lie in each of the buckets."""
    return np.array([((heights >= low) & (heights < high)).sum() for low, high in BUCKETS])


def _labeled(folder: Path, record: dict[str, object]) -> Labeled:
    rows = np.array(record["faces"], np.float64).reshape(-1, 5)
    boxes = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1).astype(np.float32)
    width, height = int(str(record["width"])), int(str(record["height"]))
    return Labeled(folder / str(record["image"]), width, height, boxes, rows[:, 4].astype(np.int64))


def _by_height(picture: Labeled) -> NDArray[np.int64]:
    heights = face_heights(picture)
    subsets = sum(np.where(heights >= least, bit, 0) for bit, least in FROM_PX.items())
    return np.where(picture.flags & IGNORE, picture.flags, subsets).astype(np.int64)


def _judged(
    picture: Labeled, detections: Detections, wanted: NDArray[np.bool_], least_iou: float
) -> list[tuple[float, bool]]:
    """(score, right or wrong) of each detection that counts."""
    if not len(detections) or not len(picture.boxes):
        return []
    judged: list[tuple[float, bool]] = []
    taken = np.zeros(len(picture.boxes), np.bool_)
    overlaps = iou(detections.boxes + _LAST_PIXEL, picture.boxes + _LAST_PIXEL)
    for row, score in zip(overlaps, detections.scores, strict=True):
        best = int(row.argmax())
        if row[best] < least_iou:
            judged.append((float(score), False))
        elif wanted[best]:
            judged.append((float(score), not taken[best]))
        taken[best] |= row[best] >= least_iou
    return judged


def _ellipse(
    box: NDArray[np.float32] | tuple[int, ...], shape_hw: tuple[int, int]
) -> tuple[slice, slice, NDArray[np.bool_]]:
    """Return the rows, the columns and the pixels between them whose centers lie in the box's ellipse."""
    x0, y0, x1, y1 = (float(v) for v in box)
    first_row, first_column = max(int(y0), 0), max(int(x0), 0)
    rows = slice(first_row, max(first_row, min(int(np.ceil(y1)), shape_hw[0])))
    columns = slice(first_column, max(first_column, min(int(np.ceil(x1)), shape_hw[1])))
    ys, xs = np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)
    dx = (xs + 0.5 - (x0 + x1) / 2) / max((x1 - x0) / 2, 0.5)
    dy = (ys + 0.5 - (y0 + y1) / 2) / max((y1 - y0) / 2, 0.5)
    return rows, columns, dx[None] ** 2 + dy[:, None] ** 2 <= 1


def _mask(picture: Labeled, detections: Detections, margin: float | None) -> NDArray[np.bool_]:
    """(H, W) what is hidden."""
    mask = np.zeros((picture.height, picture.width), np.bool_)
    areas: Iterable[NDArray[np.float32] | tuple[int, ...]]
    if margin is None:
        grow = (detections.boxes[:, 2:] - detections.boxes[:, :2]) * (BOX_FACTOR - 1) / 2
        areas = np.concatenate([detections.boxes[:, :2] - grow, detections.boxes[:, 2:] + grow], axis=1)
    else:
        areas = (region.box for region in regions_from(detections, margin, picture.width, picture.height))
    for area in areas:
        rows, columns, inside = _ellipse(area, mask.shape)
        mask[rows, columns] |= inside
    return mask


def _hits(picture: Labeled, mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which labeled faces count, and which of these are hidden, both (N,)."""
    valid, hidden = np.zeros((2, len(picture.boxes)), np.bool_)
    for index, (box, flags) in enumerate(zip(picture.boxes, picture.flags, strict=True)):
        if flags & IGNORE or min(box[2] - box[0], box[3] - box[1]) < 2:
            continue
        rows, columns, inside = _ellipse(box, mask.shape)
        if inside.any():
            valid[index] = True
            hidden[index] = mask[rows, columns][inside].mean() >= HIDDEN_SHARE
    return valid, hidden


def _outside(picture: Labeled, mask: NDArray[np.bool_]) -> int:
    """Count hidden px beyond the annotated boxes enlarged 1.6 times; clears those in ``mask``."""
    grow = (picture.boxes[:, 2:] - picture.boxes[:, :2]) * 0.3
    for x0, y0, x1, y1 in np.concatenate([picture.boxes[:, :2] - grow, picture.boxes[:, 2:] + grow], axis=1):
        mask[max(int(y0), 0) : int(y1) + 1, max(int(x0), 0) : int(x1) + 1] = False
    return int(mask.sum())
