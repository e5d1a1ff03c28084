"""Carries faces through frames by optical flow, between two frames that a thorough detector saw.

A tracker can only guess where a face is that is detected twice a second. The picture shows it: points of the face are
found again in the next frame. So small faces stay hidden while camera and faces move.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from blurguard.boxes import NO_DETECTIONS, Boxes, centers, iou, rescale_boxes, select
from blurguard.types import Detections

Gray = NDArray[np.uint8]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

# With boxes at their true places in composed clips, 640 px wide, 93 % of the faces of 8 px and more are still at
# their places after 12 frames, in one direction of time. This takes 4 ms a frame for 60 faces.
WINDOW_PX, LEVELS = 13, 3
CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 10, 0.03)
# Points of a face, in half widths and half heights from its center.
POINTS_XY = np.array([(0.0, 0.0), (-0.6, -0.6), (0.6, -0.6), (-0.6, 0.6), (0.6, 0.6)], np.float32)
MIN_POINTS = 2  # that are found again
MAX_ERROR_PX = 0.7  # from a point to its place after one frame there and back
# The middle of a face is compared with that of its detection. Without it, boxes stay on what covers a face.
PATCH_PX, MIN_LIKENESS = 16, 0.3
EXPLAINED_IOU = 0.2  # from which a box is another one's face


class Carried(NamedTuple):
    """Faces in one frame that were detected in another, and those whose trace ends here, at their last places."""

    faces: Detections
    lost: Detections


def carry(faces: Detections, grays: Sequence[Gray], size_wh: tuple[int, int]) -> list[Carried]:
    """Return where faces are in the frames after theirs, with their scores. A face that leaves the frame is not lost.

    Args:
        faces: in the first frame, px of frames of ``size_wh``.
        grays: small copies (H, W) of the first frame and of the next ones, in either direction of time.
        size_wh: width and height of the frames, px.
    """
    small_wh = grays[0].shape[1], grays[0].shape[0]
    now = Detections(rescale_boxes(faces.boxes, size_wh, small_wh), faces.scores)
    patches, carried = _patches(grays[0], now.boxes), []
    for before, gray in pairwise(grays):
        shifts, found = _shifts(now.boxes, before, gray)
        moved = Detections(now.boxes + np.tile(shifts, 2), now.scores)
        found &= (patches * _patches(gray, moved.boxes)).sum(axis=1) >= MIN_LIKENESS
        middle = centers(moved.boxes)
        inside = ((middle >= 0) & (middle < small_wh)).all(axis=1)
        lost, stays = select(now, ~found & inside), found & inside
        now, patches = select(moved, stays), patches[stays]
        parts = (Detections(rescale_boxes(part.boxes, small_wh, size_wh), part.scores) for part in (now, lost))
        carried.append(Carried(*parts))
    return carried


def doubtful_frame(
    found: Sequence[Detections], forwards: Sequence[Carried], backwards: Sequence[Carried], min_score: float
) -> int | None:
    """Return the frame in which most likely faces appear or end between the first and the last one, if any.

    Faces appear that the quick detector is sure of, and that were not carried there. Faces end where their trace does
    while nothing else is in their place.

    Args:
        found: detections of the F frames.
        forwards: (F) of the first frame's faces.
        backwards: (F) of the last frame's faces.
        min_score: less likely faces do not count.
    """
    doubts = np.zeros(len(found))
    for number in range(1, len(found) - 1):
        own, sides = found[number], (forwards[number], backwards[number])
        carried = np.concatenate([side.faces.boxes for side in sides])
        doubts[number] = _unexplained(own, carried, min_score) + sum(
            _unexplained(side.lost, np.concatenate([own.boxes, carried]), min_score) for side in sides
        )
    return int(np.argmax(doubts)) if doubts.any() else None


def nothing_carried() -> Carried:
    """Return a frame to which no face was carried."""
    return Carried(NO_DETECTIONS, NO_DETECTIONS)


def _unexplained(faces: Detections, boxes: Boxes, min_score: float) -> float:
    """Return the number of likely faces, by probability, that overlap none of the boxes."""
    alone = iou(faces.boxes, boxes).max(axis=1, initial=0) < EXPLAINED_IOU
    return float(faces.scores[alone & (faces.scores >= min_score)].sum())


def _shifts(boxes: Boxes, before: Gray, now: Gray) -> tuple[Floats, Mask]:
    """Return how far faces (N, 4) moved between two frames, (N, 2) px, and which of them were found again, (N,)."""
    if not len(boxes):
        return np.zeros((0, 2), np.float32), np.zeros(0, np.bool_)
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    points = (centers(boxes)[:, None] + POINTS_XY * half[:, None]).reshape(-1, 1, 2).astype(np.float32)
    moved, there = _flow(before, now, points)
    back, again = _flow(now, before, moved)
    good = (there & again & (np.hypot(*(back - points)[:, 0].T) <= MAX_ERROR_PX)).reshape(len(boxes), -1)
    found = good.sum(axis=1) >= MIN_POINTS
    good[~found] = True  # a median of nothing is not a number
    steps = np.where(good[:, :, None], (moved - points).reshape(*good.shape, 2), np.nan)
    return np.asarray(np.nanmedian(steps, axis=1), np.float32), np.asarray(found, np.bool_)


def _flow(before: Gray, now: Gray, points: Floats) -> tuple[Floats, Mask]:
    """Return points (P, 1, 2) px in the other frame, and which of them were found, (P,)."""
    window, nowhere = (WINDOW_PX, WINDOW_PX), np.zeros_like(points)
    moved, found, _ = cv2.calcOpticalFlowPyrLK(before, now, points, nowhere, None, None, window, LEVELS, CRITERIA)
    return np.asarray(moved, np.float32), np.asarray(found[:, 0], np.bool_)


def _patches(gray: Gray, boxes: Boxes) -> Floats:
    """Return the middles of faces (N, 4) as vectors (N, 256), whose products are correlations, -1 to 1."""
    size = (PATCH_PX, PATCH_PX)
    cut = [cv2.getRectSubPix(gray, size, (x, y)).ravel() for x, y in centers(boxes).tolist()]
    patches = np.array(cut, np.float32).reshape(len(boxes), PATCH_PX**2)
    patches -= patches.mean(axis=1, keepdims=True)
    return np.asarray(patches / np.maximum(np.linalg.norm(patches, axis=1, keepdims=True), 1e-6), np.float32)
