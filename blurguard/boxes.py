"""Boxes, tiles and regions: pure numpy, no pictures.

Boxes are float32 (N, 4) x0 y0 x1 y1 in px of the whole upright image. They count px from the first to the last, as
the labels do that networks learn from: what turns, mirrors or resizes a picture moves them by centres of px. Areas,
overlaps and regions take them for spans that end at x1: `MIN_MARGIN_PX` covers the px that this is less on the right
and at the bottom.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from blurguard.types import Detections

Boxes = NDArray[np.float32]

NO_DETECTIONS = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
VOTING_IOU = 0.4
# Longer side, px as a pass saw it, from which a box has its full weight in the mean; weights fall with its square.
# On held-back training pictures AP hard 64.7 -> 66.0 and as many faces hidden with 16 px; that those of full weight
# come first too: 66.1 -> 67.4. With the closer looks of today 74.3 with 12, 75.0 with 16, 75.1 with 24 px, and 75.4
# with 24 px and an IoU of 0.4 instead of 0.5.
FULL_WEIGHT_PX = 24.0
MAX_BOXES = 4000  # the best ones; more there are only at scores where noise is taken for faces


def areas(boxes: Boxes) -> NDArray[np.float32]:
    """Return the area of each box, px^2; 0 where a box is turned inside out."""
    size = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None)
    return np.asarray(size[:, 0] * size[:, 1], np.float32)


def longer_sides(boxes: Boxes) -> NDArray[np.float32]:
    """Return the longer side of each box, px."""
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0), np.float32)


def intersections(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """Return the area that each pair shares, px^2, (N, M)."""
    near = np.maximum(a[:, None, :2], b[None, :, :2])
    far = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.asarray(np.prod(np.clip(far - near, 0, None), axis=2), np.float32)


def iou(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """Return intersection over union of every pair, (N, M); 0 for empty boxes."""
    shared = intersections(a, b)
    union = areas(a)[:, None] + areas(b)[None] - shared
    return np.asarray(shared / np.maximum(union, 1e-9), np.float32)


def overlap_over_smaller(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """Return intersection over the smaller box of every pair, (N, M); 0 for empty boxes."""
    smaller = np.minimum(areas(a)[:, None], areas(b)[None])
    return np.asarray(intersections(a, b) / np.maximum(smaller, 1e-9), np.float32)


def nms(
    boxes: Boxes, scores: NDArray[np.float32], most_iou: float, most_contained: float = math.inf
) -> NDArray[np.intp]:
    """Return the indices that greedy non-maximum suppression keeps, best score first.

    A box goes when its IoU with a better one is above ``most_iou``, or when one of the two lies in the other
    with more than ``most_contained`` of its area. Equal scores keep their order, so that the same picture
    gives the same faces. Boxes beyond the best ``MAX_BOXES`` go as well.
    """
    order = _best_first(scores)
    return order[[index for index, _, _ in _greedy_nms(boxes[order], most_iou, most_contained)]]


def weighted_nms(
    parts: list[Detections], most_iou: float, most_contained: float = math.inf, scales: list[float] | None = None
) -> Detections:
    """Return one list of faces from the passes over one picture.

    Each box is the mean, weighted by score, of the best one and those that agree with it: nearer to the face
    than the best one alone, most of all for large faces. Its score is the best one's.

    Args:
        parts: a list for each pass, px of the picture.
        most_iou: as for ``nms``.
        most_contained: as for ``nms``.
        scales: px that each pass saw for one px of the picture. Where given, boxes of few px that a pass saw weigh
            less, and come later: a coarse one often has the best score of all, but not the best place.
    """
    boxes = np.concatenate([p.boxes for p in parts] or [NO_DETECTIONS.boxes])
    scores = np.concatenate([p.scores for p in parts] or [NO_DETECTIONS.scores])
    weights = scores
    if scales is not None:
        seen = np.repeat(np.array(scales, np.float32), [len(p) for p in parts]) * longer_sides(boxes)
        weights = scores * np.clip(seen / FULL_WEIGHT_PX, 1e-3, 1) ** 2
    order = _best_first(weights)
    boxes, scores, weights = boxes[order], scores[order], weights[order]
    means, best = [], []
    for _, overlap, standing in _greedy_nms(boxes, most_iou, most_contained):
        agreeing = np.flatnonzero(overlap > VOTING_IOU)
        means.append(weights[agreeing] @ boxes[agreeing] / weights[agreeing].sum())
        best.append(scores[standing & (overlap > most_iou)].max())
    faces, scores = np.array(means, np.float32).reshape(-1, 4), np.array(best, np.float32)
    apart = nms(faces, scores, most_iou, most_contained)  # means of one face can come nearer to each other
    return Detections(faces[apart], scores[apart])


def _best_first(scores: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the order of the scores, equal ones as they are, without those beyond the best ``MAX_BOXES``."""
    return np.argsort(-scores, kind="stable")[:MAX_BOXES]


def _greedy_nms(
    boxes: Boxes, most_iou: float, most_contained: float
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.bool_]]]:
    """Yield of each box (N, 4), best first, that `nms` keeps: its index, its IoU with all, which still stand."""
    x0, y0, x1, y1 = np.ascontiguousarray(
        boxes.T
    )  # a third of the time that `iou` and `overlap_over_smaller` take together
    area = np.maximum(areas(boxes), 1e-9)
    standing = np.ones(len(boxes), np.bool_)
    for index in range(len(boxes)):
        if not standing[index]:
            continue
        width = np.minimum(x1, x1[index]) - np.maximum(x0, x0[index])
        height = np.minimum(y1, y1[index]) - np.maximum(y0, y0[index])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        overlap = shared / (area + area[index] - shared)
        overlap[index] = 1  # of an empty box too
        yield index, overlap, standing
        standing &= (overlap <= most_iou) & (shared <= most_contained * np.minimum(area, area[index]))


def mirror_boxes(boxes: Boxes, width: int) -> Boxes:
    """Return boxes (N, 4) seen in a picture of this width as they lie in its mirror image.

    Networks place a face as its label did, which counts px: the first and the last one change places. As if they
    were edges, every face would move by a px, which is a tenth of the smallest.
    """
    left, top, right, bottom = boxes.T
    return np.stack([width - 1 - right, top, width - 1 - left, bottom], axis=1).astype(np.float32)


def rescale_boxes(boxes: Boxes, seen_wh: tuple[int, int], wanted_wh: tuple[int, int]) -> Boxes:
    """Return boxes (N, 4) seen in a picture of one size as they lie in it at another; they count centres of px."""
    factor = np.array([wanted_wh[0] / seen_wh[0], wanted_wh[1] / seen_wh[1]] * 2, np.float32)
    return np.asarray((boxes + 0.5) * factor - 0.5, np.float32)


def unrotate_boxes(boxes: Boxes, quarters: int, width: int, height: int) -> Boxes:
    """Return boxes (N, 4) seen in ``np.rot90(picture, quarters)`` as px of the upright picture.

    Args:
        boxes: px of the turned picture.
        quarters: turns of 90 degrees against the clock.
        width: of the upright picture, px.
        height: of the upright picture, px.
    """
    left, top, right, bottom = boxes.T
    last_x, last_y = width - 1, height - 1  # boxes count px, as in `mirror_boxes`
    if quarters % 4 == 1:
        left, top, right, bottom = last_x - bottom, left, last_x - top, right
    elif quarters % 4 == 2:
        left, top, right, bottom = last_x - right, last_y - bottom, last_x - left, last_y - top
    elif quarters % 4 == 3:
        left, top, right, bottom = top, last_y - right, bottom, last_y - left
    return np.stack([left, top, right, bottom], axis=1).astype(np.float32)


def tile_spans(length: int, most: int, overlap: int, multiple: int) -> list[tuple[int, int]]:
    """Return the (start, stop) of tiles that cover ``length`` px, evenly spread and all of one size.

    Neighbours share at least ``overlap`` px. The size is a multiple of ``multiple``, as small as the count
    of tiles allows and at most ``most``. One tile of the whole where ``length`` fits into ``most``.
    """
    if length <= most:
        return [(0, length)]
    count = math.ceil((length - overlap) / (most - overlap))
    tile = math.ceil((length + (count - 1) * overlap) / count / multiple) * multiple
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    return [(start, start + tile) for start in starts]
