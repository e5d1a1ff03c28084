"""Where to look and how closely: the scale plans of the fast and the accurate mode.

A detector is whatever turns an RGB picture into ``Detections``; nothing above this module knows of networks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from blurguard.boxes import iou, longer_sides, mirror_boxes, rescale_boxes, tile_spans, unrotate_boxes, weighted_nms
from blurguard.detection.blazeface import detect_once
from blurguard.detection.interpreter import Network
from blurguard.detection.lighting import correct_tone, exposure_defect
from blurguard.settings import Mode
from blurguard.types import Detections

# Two boxes are one face above these. On 90 held-back training pictures 11 faces are reported twice; with 0.6 for
# the second rule 7, but 0.4 in AP hard is lost in crowds; with 0.45 for the first 28, and without the second 71.
SAME_IOU = 0.35
SAME_OVERLAP = 0.75
# Tiles bound the memory (170 bytes per px) and fit the processor's caches: at 640 px a pixel takes 0.1 us, at
# 1,280 px and more 0.14 us, which is more than what overlapping costs.
TILE_PX = 640
TILE_OVERLAP_PX = 96  # larger faces are whole at the next coarser scale, where they are half the size
TILE_MULTIPLE_PX = 64
TILE_EDGE_PX = 3  # a box that comes this near to a cut edge is a part of a face
FINE_SCALE = 0.9  # above it the model's fine_logit_shift holds
COARSEST_PX = 100  # an octave whose longer side is under this adds nothing; 112 px find faces that fill the frame
REFINE_SCORE_RATIO = 0.3  # of the threshold: boxes from this score on are looked at again
REFINE_CONTEXT_PX = 40.0  # what is shown round them, px of the finest scale
REFINE_BLOCK_PX = 1024  # of the finest scale: what is looked at in one piece
REFINE_IOU = 0.4
ROTATIONS = (1, 2, 3)
ROTATED_SIDE_PX = 384  # 512 px find 1 % more in turned pictures and take two thirds longer
# Turned pictures give false boxes of their own: 1.62 -> 2.80 a picture in 40 upright held-back training pictures. With
# these two rules 1.48 -> 1.50 in 60 of them, while in 24 that lie on their sides 70 instead of 19 % of the faces of
# 20 px and more are found (`python -m calibration turned`).
ROTATED_LOGIT_SHIFT = -1.0  # added where the picture is upright: only sure ones remain
ROTATED_EVIDENCE_RATIO = (
    1.5  # times the evidence of the upright picture, from which another way up is taken for the right one
)
MIN_EVIDENCE_PX = 8.0  # at that size; smaller faces are no evidence
FAST_SIDE_PX = 640
FAST_COARSE_SIDES_PX = (192, 96)  # the last one takes 1 ms, and finds faces that fill the frame


Block = tuple[int, int, int, int]  # x0 y0 x1 y1, px of the picture


class RefinementPass(NamedTuple):
    """A second look at where small faces may be."""

    scale: float  # times the finest one
    mirrored: bool  # as good as another picture of the same place
    max_side_px: float  # longer side of these faces, at the finest scale


class _PassResult(NamedTuple):
    """What was seen where, px of the picture; faces count from the longer side ``max_side`` down."""

    detections: Detections
    blocks: list[Block]
    max_side: float


# Scores are the means of all looks at a face. AP hard on 99 held-back training pictures, and on 240 that were trained
# on, with none of these 71.2, 65.6, with the first 73.5, 70.3, with both 75.0, 71.4; at one false box a picture
# 64.7, 61.2 % of the faces from 10 px on are hidden, 67.6, 64.1 % and 68.4, 64.6 %. The second one for faces of up to
# 12 or 32 px does no better, nor does the first mirrored too.
REFINEMENT_PASSES = (
    RefinementPass(math.sqrt(2), mirrored=False, max_side_px=32),
    RefinementPass(2.0, mirrored=True, max_side_px=16),
)


class BlazeFaceDetector:
    """BlazeFace full-range over the scale plan of a mode. Not thread-safe.

    Attributes:
        closer: whether parts with small faces are looked at again, enlarged.
        threshold: the model's own for the mode; what is looked at again follows from it.
        turns: quarter turns against the clock at which the picture is looked at besides.
    """

    def __init__(self, network: Network, mode: Mode) -> None:
        """Take the weights and how hard to look."""
        self._network = network
        self._mode = mode
        self.threshold = network.spec.thresholds[mode]
        self.refines = mode is Mode.ACCURATE
        self.rotations: tuple[int, ...] = ROTATIONS if mode is Mode.ACCURATE else ()

    @property
    def identity(self) -> str:
        """Name and SHA-256 of the weights."""
        return self._network.spec.identity

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        """Return the faces, best first, one box per face, px of ``rgb``."""
        least = min(min_score, REFINE_SCORE_RATIO * self.threshold) if self.refines else min_score
        plan = accurate_scales if self._mode is Mode.ACCURATE else fast_scales
        scales = plan(rgb.shape[1], rgb.shape[0])
        parts = self._detect_pyramid(rgb, scales, least)
        best, told = rgb, exposure_defect(rgb)
        if told:
            best = correct_tone(rgb)
            parts += self._detect_pyramid(best, scales, least)
        found = weighted_nms(parts, SAME_IOU, SAME_OVERLAP, scales * (len(parts) // len(scales)))
        if self.refines:
            found = _above_score(self._refine(best, found, scales[0], least), min_score)
        turned = self._detect_rotated(best, found, min_score)
        found = weighted_nms([found, *turned], SAME_IOU, SAME_OVERLAP) if turned else found
        return Detections(found.boxes, found.scores, told)

    def _detect_pyramid(self, rgb: NDArray[np.uint8], scales: list[float], min_score: float) -> list[Detections]:
        """Return what is found at each scale, px of ``rgb``."""
        parts, level = [], rgb
        for scale in scales:
            level = _resize(rgb, level, scale)
            shift = self._network.spec.fine_logit_shift if scale > FINE_SCALE else 0.0
            parts.append(_to_image(self._detect_tiled(level, min_score, shift), level, rgb))
        return parts

    def _refine(self, rgb: NDArray[np.uint8], found: Detections, finest: float, min_score: float) -> Detections:
        """Return the faces after closer looks at where small ones may be.

        A true face is mostly seen in all of them, and its place is known better.
        """
        height, width = rgb.shape[:2]
        # The first look was at everything, also at what lies beyond the edge.
        looks = [_PassResult(found, [(-width, -height, 2 * width, 2 * height)], math.inf)]
        for look in REFINEMENT_PASSES:
            worth = longer_sides(found.boxes) * finest < look.max_side_px
            worth &= found.scores >= REFINE_SCORE_RATIO * self.threshold
            blocks = [*_blocks(found.boxes[worth], REFINE_BLOCK_PX / finest, REFINE_CONTEXT_PX / finest, rgb.shape)]
            scale = finest * look.scale
            parts = [self._detect_block(rgb, block, scale, min_score, mirror=look.mirrored) for block in blocks]
            again = weighted_nms(parts, SAME_IOU, SAME_OVERLAP)
            kept = longer_sides(again.boxes) * finest < 1.5 * look.max_side_px  # looks differ in sizes too
            seen = Detections(again.boxes[kept], again.scores[kept])
            looks.append(_PassResult(seen, blocks, look.max_side_px / finest))
        scales = [finest, *(finest * look.scale for look in REFINEMENT_PASSES)]
        return weighted_nms([_mean_scores(look, looks) for look in looks], SAME_IOU, SAME_OVERLAP, scales)

    def _detect_block(
        self, rgb: NDArray[np.uint8], block: Block, scale: float, min_score: float, *, mirror: bool
    ) -> Detections:
        """Return what is found in a part of the picture at this scale; px of ``rgb``."""
        x0, y0, x1, y1 = block
        part = rgb[y0:y1, x0:x1]
        level = _resize(part, part, scale)
        shown = np.ascontiguousarray(level[:, ::-1] if mirror else level)
        seen = self._detect_tiled(shown, min_score, self._network.spec.fine_logit_shift)
        boxes = mirror_boxes(seen.boxes, level.shape[1]) if mirror else seen.boxes
        found = _to_image(Detections(boxes, seen.scores), level, part)
        boxes = found.boxes + np.array([x0, y0, x0, y0], np.float32)
        uncut = _inside_tile(boxes, block, rgb.shape[1], rgb.shape[0])
        return Detections(boxes[uncut], found.scores[uncut])

    def _detect_rotated(self, rgb: NDArray[np.uint8], upright: Detections, min_score: float) -> list[Detections]:
        """Return what is found in the picture lying on its sides and on its head, at a bounded size.

        Only new faces count, and less, unless that way up holds more than ``apply_orientation``: then it is the right one.
        """
        scale = min(1.0, ROTATED_SIDE_PX / max(rgb.shape[:2]))
        level = _resize(rgb, rgb, scale)
        height, width = level.shape[:2]
        enough = ROTATED_EVIDENCE_RATIO * self._evidence(upright, scale)
        parts = []
        for quarters in self.rotations:
            seen = self._detect_tiled(
                np.ascontiguousarray(np.rot90(level, quarters)), min(min_score, self.threshold), 0.0
            )
            boxes = unrotate_boxes(seen.boxes, quarters, width, height)
            found = _to_image(Detections(boxes, seen.scores), level, rgb)
            if self._evidence(found, scale) <= enough:
                # What the upright picture has found as well keeps its place there, which is the better one.
                new = iou(found.boxes, upright.boxes).max(axis=1, initial=0) <= SAME_IOU
                found = Detections(found.boxes[new], _shift_logits(found.scores[new], ROTATED_LOGIT_SHIFT))
            parts.append(_above_score(found, min_score))
        return parts

    def _evidence(self, found: Detections, scale: float) -> float:
        """Return the sum of the scores of faces that can be seen at this scale."""
        counted = (found.scores >= self.threshold) & (longer_sides(found.boxes) * scale >= MIN_EVIDENCE_PX)
        return float(found.scores[counted].sum())

    def _detect_tiled(self, rgb: NDArray[np.uint8], min_score: float, logit_shift: float) -> Detections:
        """Look at one scale, in overlapping tiles where it is large.

        What a cut edge halves is whole in the neighbouring tile, or smaller at a coarser scale.
        """
        height, width = rgb.shape[:2]
        rows, columns = (tile_spans(n, TILE_PX, TILE_OVERLAP_PX, TILE_MULTIPLE_PX) for n in (height, width))
        parts = []
        for (y0, y1), (x0, x1) in itertools.product(rows, columns):
            found = detect_once(self._network, rgb[y0:y1, x0:x1], min_score, logit_shift)
            boxes = found.boxes + np.array([x0, y0, x0, y0], np.float32)
            uncut = _inside_tile(boxes, (x0, y0, x1, y1), width, height)
            parts.append(Detections(boxes[uncut], found.scores[uncut]))
        return weighted_nms(parts, SAME_IOU, SAME_OVERLAP)


def fast_scales(width: int, height: int) -> list[float]:
    """Return the scales of the fast mode: one pass at a bounded size, and coarse ones for large faces."""
    longer = max(width, height)
    finest = min(2.0, FAST_SIDE_PX / longer)
    return sorted({finest, *(min(finest, side / longer) for side in FAST_COARSE_SIDES_PX)}, reverse=True)


def accurate_scales(width: int, height: int) -> list[float]:
    """Return the scales of the accurate mode: its own size, enlarged where the fast mode does so, and octaves."""
    scales = [min(2.0, max(1.0, FAST_SIDE_PX / max(width, height)))]
    while max(width, height) * scales[-1] / 2 >= COARSEST_PX:
        scales.append(scales[-1] / 2)
    return scales


def _to_image(found: Detections, level: NDArray[np.uint8], rgb: NDArray[np.uint8]) -> Detections:
    """Return what was found in a level of the picture in px of the picture."""
    (level_h, level_w), (height, width) = level.shape[:2], rgb.shape[:2]
    return Detections(rescale_boxes(found.boxes, (level_w, level_h), (width, height)), found.scores)


def _above_score(found: Detections, min_score: float) -> Detections:
    """Return the faces that score as much; the best stand first."""
    count = int((found.scores >= min_score).sum())
    return Detections(found.boxes[:count], found.scores[:count])


def _shift_logits(scores: NDArray[np.float32], logits: float) -> NDArray[np.float32]:
    """Return the scores with so much added to their logits."""
    odds = scores * np.float32(math.exp(logits))
    return np.asarray(odds / (1 - scores + odds), np.float32)


def _blocks(boxes: NDArray[np.float32], side: float, around: float, shape: tuple[int, ...]) -> Iterator[Block]:
    """Yield the parts of a picture of this shape, at most about ``side`` wide, that hold the boxes."""
    cells = ((boxes[:, :2] + boxes[:, 2:]) / 2 // side).astype(int)
    for cell in np.unique(cells, axis=0):
        own = boxes[(cells == cell).all(axis=1)]
        low = np.maximum(own[:, :2].min(axis=0) - around, 0).astype(int).tolist()
        high = np.minimum(own[:, 2:].max(axis=0) + around, shape[1::-1]).astype(int).tolist()
        yield low[0], low[1], high[0], high[1]


def _mean_scores(own: _PassResult, looks: list[_PassResult]) -> Detections:
    """Return what one of the looks has seen, with the mean score of all looks at the place."""
    boxes = own.detections.boxes
    sides = longer_sides(boxes)
    total, count = own.detections.scores.astype(np.float64), np.ones(len(boxes))
    for other in looks:
        if other is not own:
            there = (sides < other.max_side) & _centers_inside(boxes, other.blocks)
            total += np.where(there, _scores_at(boxes, other.detections), 0)
            count += there
    return Detections(boxes, (total / count).astype(np.float32))


def _centers_inside(boxes: NDArray[np.float32], blocks: list[Block]) -> NDArray[np.bool_]:
    """Tell which boxes (N, 4) have their centre in one of the blocks; with none, none has."""
    x, y = ((boxes[:, :2] + boxes[:, 2:]) / 2).T[:, :, None]
    x0, y0, x1, y1 = np.array(blocks, np.float32).reshape(-1, 4).T
    return np.asarray(((x >= x0) & (x < x1) & (y >= y0) & (y < y1)).any(axis=1), np.bool_)


def _scores_at(boxes: NDArray[np.float32], found: Detections) -> NDArray[np.float32]:
    """Return for each box (N, 4) the best score of what was found there, 0 for nothing, (N,)."""
    there = iou(boxes, found.boxes) > REFINE_IOU
    return np.asarray(np.where(there, found.scores, 0).max(axis=1, initial=0), np.float32)


def _resize(rgb: NDArray[np.uint8], level: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """Return the picture at ``scale``, made from the last, finer level where that is none of its enlargements."""
    size = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
    if size == (rgb.shape[1], rgb.shape[0]):
        return rgb
    source = level if level.shape[1] <= rgb.shape[1] else rgb
    # Halving has a fast path of its own: four times quicker for 12 megapixels than one large step.
    while source.shape[1] >= 2 * size[0] and source.shape[0] >= 2 * size[1]:
        height, width = source.shape[0] // 2, source.shape[1] // 2
        source = np.asarray(
            cv2.resize(source[: height * 2, : width * 2], (width, height), interpolation=cv2.INTER_AREA), np.uint8
        )
    if size == (source.shape[1], source.shape[0]):
        return source
    method = cv2.INTER_AREA if size[0] < source.shape[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(source, size, interpolation=method), np.uint8)


def _inside_tile(
    boxes: NDArray[np.float32], tile: tuple[int, int, int, int], width: int, height: int
) -> NDArray[np.bool_]:
    """Tell which boxes (N, 4) no inner edge of the tile cuts; the picture's own edges cut nothing."""
    x0, y0, x1, y1 = tile
    inside = np.ones(len(boxes), np.bool_)
    if x0 > 0:
        inside &= boxes[:, 0] > x0 + TILE_EDGE_PX
    if y0 > 0:
        inside &= boxes[:, 1] > y0 + TILE_EDGE_PX
    if x1 < width:
        inside &= boxes[:, 2] < x1 - TILE_EDGE_PX
    if y1 < height:
        inside &= boxes[:, 3] < y1 - TILE_EDGE_PX
    return inside
