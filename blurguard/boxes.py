"""Box and tile arithmetic in pure numpy.

Boxes are float32 (N, 4), x0 y0 x1 y1, in px of the whole upright image. Both ends are px of the box, as in the
labels that networks learn from. Rotating, mirroring and rescaling therefore map the centers of px. Areas, overlaps
and regions take x1 and y1 for the ends of spans instead: `MIN_MARGIN_PX` covers the px that this loses on the right
and at the bottom.
"""

import math
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from blurguard.types import Detections

Boxes = NDArray[np.float32]
Mask = NDArray[np.bool_]
AnyFloat = TypeVar("AnyFloat", np.float32, np.float64)

NO_DETECTIONS = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
VOTING_IOU = 0.4  # boxes that overlap the best one by more take part in the mean
# Longer side, px of the pass, from which a box has its full weight in the mean. Weights fall with its square.
# On held-back training images AP hard 64.7 -> 66.0 with 16 px, and as many faces hidden. Sorting by weight as well:
# 66.1 -> 67.4. With a voting IoU of 0.4 instead of 0.5: 75.1 -> 75.4.
FULL_WEIGHT_PX = 24.0
MAX_BOXES = 4000  # the best ones. Only at scores where noise passes for faces are there more.


def select(detections: Detections, rows: Mask | NDArray[np.intp]) -> Detections:
    """Return the detections of these rows, a mask or indices."""
    return Detections(detections.boxes[rows], detections.scores[rows], detections.flaw)


def areas(boxes: Boxes) -> NDArray[np.float32]:
    """Return the area of each box, px^2, or 0 for an inverted box."""
    size = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None)
    return np.asarray(size[:, 0] * size[:, 1], np.float32)


def centers(boxes: NDArray[AnyFloat]) -> NDArray[AnyFloat]:
    """Return the center of each box, (N, 2) px."""
    return np.asarray((boxes[:, :2] + boxes[:, 2:]) / 2, boxes.dtype)


def longer_sides(boxes: Boxes) -> NDArray[np.float32]:
    """Return the longer side of each box, px."""
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0), np.float32)


def intersections(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """Return the shared area of every pair, px^2, (N, M)."""
    near = np.maximum(a[:, None, :2], b[None, :, :2])
    far = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.asarray(np.prod(np.clip(far - near, 0, None), axis=2), np.float32)


def iou(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """Return intersection over union of every pair, (N, M), or 0 for empty boxes."""
    shared = intersections(a, b)
    union = areas(a)[:, None] + areas(b)[None] - shared
    return np.asarray(shared / np.maximum(union, 1e-9), np.float32)


def overlap_over_smaller(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """Return intersection over the smaller box of every pair, (N, M), or 0 for empty boxes."""
    smaller = np.minimum(areas(a)[:, None], areas(b)[None])
    return np.asarray(intersections(a, b) / np.maximum(smaller, 1e-9), np.float32)


def nms(boxes: Boxes, scores: NDArray[np.float32], max_iou: float, max_contained: float = math.inf) -> NDArray[np.intp]:
    """Return the indices that greedy non-maximum suppression keeps, best score first.

    Args:
        boxes: (N, 4). Those beyond the best ``MAX_BOXES`` are dropped.
        scores: (N,). Equal ones keep their order, so that an image always gives the same faces.
        max_iou: a box whose IoU with a better one is above this is dropped.
        max_contained: a smaller box is dropped if one with a better score holds more than this share of it. A larger
            one stays, because a small false box in a large face must not win.
    """
    order = best_first(scores)
    return order[[index for index, _, _ in greedy_nms(boxes[order], scores[order], max_iou, max_contained)]]


def weighted_nms(
    parts: list[Detections], max_iou: float, max_contained: float = math.inf, scales: list[float] | None = None
) -> Detections:
    """Merge the passes over one image into one list of faces.

    Each box is the mean of the best one and those that agree with it, weighted by score. It lies nearer to the face
    than the best one alone, most of all for large faces. Its score is the best one's.

    Args:
        parts: one list for each pass, px of the image.
        max_iou: as for `nms`.
        max_contained: as for `nms`.
        scales: px of each pass for one px of the image. If given, boxes of few px weigh less and come later. A
            coarse box often has the best score of all, but not the best position.
    """
    boxes = np.concatenate([p.boxes for p in parts] or [NO_DETECTIONS.boxes])
    scores = np.concatenate([p.scores for p in parts] or [NO_DETECTIONS.scores])
    weights = scores
    if scales is not None:
        pass_px = np.repeat(np.array(scales, np.float32), [len(p) for p in parts]) * longer_sides(boxes)
        weights = scores * np.clip(pass_px / FULL_WEIGHT_PX, 1e-3, 1) ** 2
    order = best_first(weights)
    boxes, scores, weights = boxes[order], scores[order], weights[order]
    means, best = [], []
    for _, overlap, remaining in greedy_nms(boxes, scores, max_iou, max_contained):
        agreeing = np.flatnonzero(overlap > VOTING_IOU)
        means.append(weights[agreeing] @ boxes[agreeing] / weights[agreeing].sum())
        best.append(scores[remaining & (overlap > max_iou)].max())
    merged = Detections(np.array(means, np.float32), np.array(best, np.float32))
    # Means of one face can come nearer to each other.
    return select(merged, nms(merged.boxes, merged.scores, max_iou, max_contained))


def best_first(scores: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the indices of the best ``MAX_BOXES`` scores, best first."""
    return np.argsort(-scores, kind="stable")[:MAX_BOXES]


def greedy_nms(
    boxes: Boxes, scores: NDArray[np.float32], max_iou: float, max_contained: float = math.inf
) -> Iterator[tuple[int, NDArray[np.float32], Mask]]:
    """Yield the index of each box that `nms` keeps, its IoU with all boxes, and the mask of remaining boxes.

    Boxes (N, 4) come in the order in which they are kept, which need not be that of their scores (N,).
    """
    # Sides apart take a third of the time of `iou` and `overlap_over_smaller` together.
    x0, y0, x1, y1 = np.ascontiguousarray(boxes.T)
    area = np.maximum(areas(boxes), 1e-9)
    remaining = np.ones(len(boxes), np.bool_)
    for index in range(len(boxes)):
        if not remaining[index]:
            continue
        width = np.minimum(x1, x1[index]) - np.maximum(x0, x0[index])
        height = np.minimum(y1, y1[index]) - np.maximum(y0, y0[index])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        overlap = shared / (area + area[index] - shared)
        overlap[index] = 1  # of an empty box too
        yield index, overlap, remaining
        contained = (shared > max_contained * area) & (area <= area[index]) & (scores <= scores[index])
        remaining &= (overlap <= max_iou) & ~contained


def mirror_boxes(boxes: Boxes, width: int) -> Boxes:
    """Map boxes (N, 4) between an image of this width and its mirror image.

    The first and the last px change places, as boxes hold px. Mirroring edges would move every face by one px, a
    tenth of the smallest.
    """
    left, top, right, bottom = boxes.T
    return np.stack([width - 1 - right, top, width - 1 - left, bottom], axis=1).astype(np.float32)


def rescale_boxes(boxes: Boxes, from_wh: tuple[int, int], to_wh: tuple[int, int]) -> Boxes:
    """Map boxes (N, 4) of an image of one size, width and height, to the same image at another size."""
    factor = np.array([to_wh[0] / from_wh[0], to_wh[1] / from_wh[1]] * 2, np.float32)
    return np.asarray((boxes + 0.5) * factor - 0.5, np.float32)


def unrotate_boxes(boxes: Boxes, quarters: int, width: int, height: int) -> Boxes:
    """Map boxes (N, 4) of ``np.rot90(image, quarters)`` to the upright image.

    Args:
        boxes: px of the rotated image.
        quarters: rotation by 90 degrees, counterclockwise.
        width: of the upright image, px.
        height: of the upright image, px.
    """
    left, top, right, bottom = boxes.T
    last_x, last_y = width - 1, height - 1  # boxes hold px, as in `mirror_boxes`
    upright = (
        (left, top, right, bottom),
        (last_x - bottom, left, last_x - top, right),
        (last_x - right, last_y - bottom, last_x - left, last_y - top),
        (top, last_y - right, bottom, last_y - left),
    )
    return np.stack(upright[quarters % 4], axis=1).astype(np.float32)


def tile_grid(
    height: int, width: int, max_px: int, overlap: int, multiple: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the (start, stop) of the rows and the columns of tiles of at most about ``max_px`` px.

    As few tiles as possible, as near to squares as their number allows. For the other arguments see `tile_spans`.
    """
    rows = columns = 1
    while True:
        down, across = (
            tile_spans(length, _even_tile(length, count, overlap, multiple), overlap, multiple)
            for length, count in ((height, rows), (width, columns))
        )
        tile_height, tile_width = (spans[0][1] - spans[0][0] for spans in (down, across))
        if tile_height * tile_width <= max_px or max(tile_height, tile_width) <= 2 * overlap:
            return down, across
        rows, columns = (rows + 1, columns) if tile_height > tile_width else (rows, columns + 1)


def _even_tile(length: int, count: int, overlap: int, multiple: int) -> int:
    """Return the size of each of so many tiles."""
    return length if count == 1 else math.ceil((length + (count - 1) * overlap) / count / multiple) * multiple


def tile_spans(length: int, max_tile: int, overlap: int, multiple: int) -> list[tuple[int, int]]:
    """Return (start, stop) of tiles that cover ``length`` px, evenly spaced and of equal size.

    Neighbors share at least ``overlap`` px. The tile size is a multiple of ``multiple``, at most ``max_tile``, and as
    small as the number of tiles allows. If ``length`` fits into ``max_tile``, one tile holds it all.
    """
    if length <= max_tile:
        return [(0, length)]
    count = math.ceil((length - overlap) / (max_tile - overlap))
    tile = _even_tile(length, count, overlap, multiple)
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    return [(start, start + tile) for start in starts]
