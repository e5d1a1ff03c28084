"""BlazeFace over an image pyramid: the passes of the fast and the accurate mode."""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from blurguard.boxes import Boxes, centers, iou, longer_sides, select, tile_spans, weighted_nms
from blurguard.detection.blazeface import detect_once
from blurguard.detection.interpreter import Network
from blurguard.detection.lighting import correct_tone, exposure_defect
from blurguard.detection.views import Block, Rgb, View
from blurguard.settings import Mode
from blurguard.types import Detections

# Two boxes above these are one face. On 90 held-back training images 11 faces are reported twice. With 0.6 for the
# second rule 7 are, but 0.4 of AP hard is lost in crowds. With 0.45 for the first 28 are, without the second 71.
SAME_IOU, SAME_OVERLAP = 0.35, 0.75
# Tiles bound the memory (170 bytes per px) and fit the caches of the processor: at 640 px a pixel takes 0.1 us, at
# 1,280 px and more 0.14 us, a larger loss than the overlap.
TILE_PX, TILE_MULTIPLE_PX = 640, 64
TILE_OVERLAP_PX = 96  # larger faces are whole at the next coarser scale, at half the size
FINE_SCALE = 0.9  # the model's fine_logit_shift applies above it
COARSEST_PX = 100  # smaller octaves (longer side) add nothing: at 112 px faces that fill the image are detected
REFINE_SCORE_RATIO = 0.3  # of the threshold: boxes from this score on are refined
REFINE_CONTEXT_PX = 40.0  # margin round these boxes, px of the finest scale
REFINE_BLOCK_PX = 1024  # about the longest side of a refined block, px of the finest scale
REFINE_IOU = 0.4  # boxes of two passes that overlap more are one face
ROTATIONS = (1, 2, 3)
ROTATED_SIDE_PX = 384  # 512 px find 1 % more in rotated images and take two thirds longer
# Rotated passes add false boxes: 1.62 -> 2.80 an image in 40 upright held-back training images. With these two rules
# 1.48 -> 1.50 in 60 of them. In 24 images that lie on their sides they find 70 instead of 19 % of the faces of 20 px
# and more (`python -m calibration turned`).
ROTATED_LOGIT_SHIFT = -1.0  # added if the image is upright, so that only sure faces remain
ROTATED_EVIDENCE_RATIO = 1.5  # times the upright evidence: a rotation with more is the right way up
MIN_EVIDENCE_PX = 8.0  # px of the rotated passes: smaller faces are not evidence
FAST_SIDE_PX = 640
FAST_COARSE_SIDES_PX = (192, 96)  # the last one takes 1 ms and finds faces that fill the image


class RefinementPass(NamedTuple):
    """A second pass at a higher scale over the blocks that may hold small faces."""

    scale: float  # times the finest one
    mirrored: bool  # a mirrored copy counts as an independent pass
    max_side_px: float  # longer side of these faces, at the finest scale


class _PassResult(NamedTuple):
    """Detections of a pass, the blocks that it covered, and the longer side below which it detects faces.

    All in px of the image.
    """

    detections: Detections
    blocks: list[Block]
    max_side: float


# Scores are means over all passes that cover a face. AP hard on 99 held-back training images, and on 240 that were
# trained on: 71.2, 65.6 without refinement, 73.5, 70.3 with the first pass, 75.0, 71.4 with both. Faces from 10 px on
# that are hidden at one false box an image: 64.7, 61.2 %, then 67.6, 64.1 % and 68.4, 64.6 %. The second pass is no
# better for faces of up to 12 or 32 px, nor is the first one if mirrored too.
REFINEMENT_PASSES = (
    RefinementPass(math.sqrt(2), mirrored=False, max_side_px=32),
    RefinementPass(2.0, mirrored=True, max_side_px=16),
)


class BlazeFaceDetector:
    """BlazeFace full-range over the image pyramid of a mode. Not thread-safe.

    Attributes:
        threshold: of the model for the mode. It also decides which boxes are refined.
        refines: whether blocks with small faces get the refinement passes.
        rotations: quarter turns counterclockwise of the rotated passes.
    """

    def __init__(self, network: Network, mode: Mode) -> None:
        """Prepare the passes of a mode."""
        self._network = network
        self._scales = accurate_scales if mode is Mode.ACCURATE else fast_scales
        self.threshold = network.spec.thresholds[mode]
        self.refines = mode is Mode.ACCURATE
        self.rotations: tuple[int, ...] = ROTATIONS if mode is Mode.ACCURATE else ()

    @property
    def identity(self) -> str:
        """Name and SHA-256 of the weights."""
        return self._network.spec.identity

    def detect(self, rgb: Rgb, min_score: float) -> Detections:
        """Return the faces, best first, one box per face, px of ``rgb``."""
        pass_score = min(min_score, REFINE_SCORE_RATIO * self.threshold) if self.refines else min_score
        scales = self._scales(rgb.shape[1], rgb.shape[0])
        parts = self._detect_pyramid(rgb, scales, pass_score)
        best, defect = rgb, exposure_defect(rgb)
        if defect:
            best = correct_tone(rgb)
            parts += self._detect_pyramid(best, scales, pass_score)
        faces = _merge(parts, scales * (len(parts) // len(scales)))
        if self.refines:
            faces = self._refine(best, faces, scales[0], pass_score)
            faces = select(faces, faces.scores >= min_score)
        if rotated := self._detect_rotated(best, faces, min_score):
            faces = _merge([faces, *rotated])
        return Detections(faces.boxes, faces.scores, defect)

    def _detect_pyramid(self, rgb: Rgb, scales: list[float], min_score: float) -> list[Detections]:
        """Return the faces of each scale, finest first, px of ``rgb``."""
        parts, level = [], rgb
        for scale in scales:
            view = View.at_scale(rgb, scale)
            level = view.render(rgb, finer=level)
            logit_shift = self._network.spec.fine_logit_shift if scale > FINE_SCALE else 0.0
            parts.append(view.uncut(self._detect_tiled(level, min_score, logit_shift)))
        return parts

    def _refine(self, rgb: Rgb, faces: Detections, finest: float, min_score: float) -> Detections:
        """Return the faces after the refinement passes over blocks with small ones.

        True faces are mostly detected by all passes, and located better.
        """
        height, width = rgb.shape[:2]
        # The pyramid has covered everything, also beyond the edges.
        results = [_PassResult(faces, [(-width, -height, 2 * width, 2 * height)], math.inf)]
        shift = self._network.spec.fine_logit_shift
        for scale, mirrored, max_side_px in REFINEMENT_PASSES:
            small = longer_sides(faces.boxes) * finest < max_side_px
            small &= faces.scores >= REFINE_SCORE_RATIO * self.threshold
            blocks = [*_blocks(faces.boxes[small], REFINE_BLOCK_PX / finest, REFINE_CONTEXT_PX / finest, rgb.shape)]
            views = [View.at_scale(rgb, finest * scale, block)._replace(mirrored=mirrored) for block in blocks]
            merged = _merge([view.uncut(self._detect_tiled(view.render(rgb), min_score, shift)) for view in views])
            fits = longer_sides(merged.boxes) * finest < 1.5 * max_side_px  # passes differ in sizes too
            results.append(_PassResult(select(merged, fits), blocks, max_side_px / finest))
        scales = [finest, *(finest * refinement.scale for refinement in REFINEMENT_PASSES)]
        return _merge([_mean_scores(own, results) for own in results], scales)

    def _detect_rotated(self, rgb: Rgb, upright: Detections, min_score: float) -> list[Detections]:
        """Return the faces of each rotated pass, at a bounded size, px of ``rgb``.

        Only new faces count, and with a lower score. A rotation with more evidence than the upright image is the
        right way up: there all faces count fully.
        """
        scale = min(1.0, ROTATED_SIDE_PX / max(rgb.shape[:2]))
        view = View.at_scale(rgb, scale)
        level = view.render(rgb)
        enough = ROTATED_EVIDENCE_RATIO * self._evidence(upright, scale)
        parts = []
        for rotation in self.rotations:
            rotated = view._replace(rotation=rotation)
            rendering = rotated.render(rgb, finer=level)
            faces = rotated.uncut(self._detect_tiled(rendering, min(min_score, self.threshold), 0.0))
            if self._evidence(faces, scale) <= enough:
                # Faces of the upright image keep their boxes there, which are better.
                faces = select(faces, iou(faces.boxes, upright.boxes).max(axis=1, initial=0) <= SAME_IOU)
                faces = Detections(faces.boxes, _shift_logits(faces.scores, ROTATED_LOGIT_SHIFT))
            parts.append(select(faces, faces.scores >= min_score))
        return parts

    def _evidence(self, faces: Detections, scale: float) -> float:
        """Return the sum of the scores of faces that are large enough at this scale."""
        clear = (faces.scores >= self.threshold) & (longer_sides(faces.boxes) * scale >= MIN_EVIDENCE_PX)
        return float(faces.scores[clear].sum())

    def _detect_tiled(self, rgb: Rgb, min_score: float, logit_shift: float) -> Detections:
        """Run the network on one rendering, in overlapping tiles if it is large.

        A face that a tile cuts is whole in the neighboring tile, or smaller at a coarser scale.
        """
        height, width = rgb.shape[:2]
        rows, columns = (tile_spans(n, TILE_PX, TILE_OVERLAP_PX, TILE_MULTIPLE_PX) for n in (height, width))
        parts = []
        for (y0, y1), (x0, x1) in itertools.product(rows, columns):
            tile = View((width, height), (x0, y0, x1, y1))
            parts.append(tile.uncut(detect_once(self._network, tile.render(rgb), min_score, logit_shift)))
        return _merge(parts)


def fast_scales(width: int, height: int) -> list[float]:
    """Return the scales of the fast mode: one of a bounded size, and coarse ones for large faces."""
    longer = max(width, height)
    finest = min(2.0, FAST_SIDE_PX / longer)
    return sorted({finest, *(min(finest, side / longer) for side in FAST_COARSE_SIDES_PX)}, reverse=True)


def accurate_scales(width: int, height: int) -> list[float]:
    """Return the scales of the accurate mode: full size, or more for small images, and its octaves."""
    scales = [min(2.0, max(1.0, FAST_SIDE_PX / max(width, height)))]
    while max(width, height) * scales[-1] / 2 >= COARSEST_PX:
        scales.append(scales[-1] / 2)
    return scales


def _merge(parts: list[Detections], scales: list[float] | None = None) -> Detections:
    return weighted_nms(parts, SAME_IOU, SAME_OVERLAP, scales)


def _shift_logits(scores: NDArray[np.float32], shift: float) -> NDArray[np.float32]:
    """Return the scores after ``shift`` is added to their logits."""
    odds = scores * np.float32(math.exp(shift))
    return np.asarray(odds / (1 - scores + odds), np.float32)


def _blocks(boxes: Boxes, side: float, context: float, shape: tuple[int, ...]) -> Iterator[Block]:
    """Yield blocks of an image of this shape that hold the boxes, each about ``side`` long at most."""
    cells = (centers(boxes) // side).astype(int)
    for cell in np.unique(cells, axis=0):
        own = boxes[(cells == cell).all(axis=1)]
        low = np.maximum(own[:, :2].min(axis=0) - context, 0).astype(int).tolist()
        high = np.minimum(own[:, 2:].max(axis=0) + context, shape[1::-1]).astype(int).tolist()
        yield low[0], low[1], high[0], high[1]


def _mean_scores(own: _PassResult, results: list[_PassResult]) -> Detections:
    """Return the boxes of one pass, with their mean scores over all passes that cover them."""
    boxes = own.detections.boxes
    sides = longer_sides(boxes)
    total, count = own.detections.scores.astype(np.float64), np.ones(len(boxes))
    for other in results:
        if other is not own:
            covered = (sides < other.max_side) & _centers_inside(boxes, other.blocks)
            total += np.where(covered, _scores_at(boxes, other.detections), 0)
            count += covered
    return Detections(boxes, (total / count).astype(np.float32))


def _centers_inside(boxes: Boxes, blocks: list[Block]) -> NDArray[np.bool_]:
    """Mark the boxes (N, 4) whose center is in one of the blocks, (N,). Without blocks, none."""
    x, y = centers(boxes).T[:, :, None]
    x0, y0, x1, y1 = np.array(blocks, np.float32).reshape(-1, 4).T
    return np.asarray(((x >= x0) & (x < x1) & (y >= y0) & (y < y1)).any(axis=1), np.bool_)


def _scores_at(boxes: Boxes, faces: Detections) -> NDArray[np.float32]:
    """Return the best score of a face at each box (N, 4), or 0, (N,)."""
    same = iou(boxes, faces.boxes) > REFINE_IOU
    return np.asarray(np.where(same, faces.scores, 0).max(axis=1, initial=0), np.float32)
