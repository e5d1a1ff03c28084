"""The detector of a model: its passes over an image pyramid, fused by probability."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from blurguard.boxes import iou, longer_sides, select, tile_grid, weighted_nms
from blurguard.detection.fusion import fuse, least_score, probabilities
from blurguard.detection.interpreter import Network
from blurguard.detection.lighting import correct_tone, exposure_defect
from blurguard.detection.model_zoo import PassSpec, Plan
from blurguard.detection.scales import RULES
from blurguard.detection.single_pass import detect_once
from blurguard.detection.views import Rgb, View
from blurguard.types import Detections

# Two boxes of one pass above these are one face. On 90 held-back training images 11 faces are reported twice. With
# 0.6 for the second rule 7 are, but 0.4 of AP hard is lost in crowds. With 0.45 for the first 28 are, without the
# second 71.
SAME_IOU, SAME_OVERLAP = 0.35, 0.75
MIN_SIDE_PX = 5.0  # of a box in the rendering: a network sees no smaller faces
TILE_MULTIPLE_PX = 64
TILE_OVERLAP_PX = 96  # larger faces are whole at the next coarser scale
QUARTERS = (1, 2, 3)
# Rotated passes add false boxes. With these two rules 1.48 -> 1.50 an image in 60 upright held-back training images,
# without 1.62 -> 2.80.
ROTATED_LOGIT_SHIFT = -1.0  # added if the image is upright, so that only sure faces remain
ROTATED_EVIDENCE_RATIO = 1.5  # times the upright evidence: a rotation with more is the right way up
MIN_EVIDENCE = 0.5  # probability of a face that is evidence
MIN_EVIDENCE_PX = 8.0  # px of the rotated passes: smaller faces are not evidence


class FusedDetector:
    """One or more networks over the image pyramids of a plan. Not thread-safe.

    Attributes:
        identity: name of the model, and a digest of its weights, passes and probabilities.
        plan: the passes.
        threshold: probability from which a face is hidden by default.
        quarters: quarter turns counterclockwise of the rotated passes.
        quick: a quicker detector for frames of a video between others, or None. Its scores are probabilities too.
    """

    def __init__(self, identity: str, plan: Plan, networks: Mapping[str, Network]) -> None:
        """Take the plan of a mode, and its networks by their names."""
        self.identity, self.plan, self._networks = identity, plan, networks
        self.threshold = plan.threshold
        self.quarters: tuple[int, ...] = QUARTERS if plan.rotated else ()
        self.quick: FusedDetector | None = None

    def with_plan(self, plan: Plan) -> FusedDetector:
        """Return a detector with the same networks and another plan of them."""
        return FusedDetector(self.identity, plan, self._networks)

    def detect(self, rgb: Rgb, min_score: float) -> Detections:
        """Return the faces with at least this probability, most probable first, one box per face, px of ``rgb``."""
        found = self.detect_passes(rgb)
        likely = [probabilities(one, each.probability) for one, each in zip(found, self.plan.passes, strict=True)]
        faces = fuse(likely)
        if self.quarters and self.plan.rotated:
            faces = fuse([faces, *self._detect_rotated(rgb, self.plan.rotated, faces)])
        sure = select(faces, faces.scores >= min_score)
        return Detections(sure.boxes, sure.scores, found[0].flaw)

    def detect_passes(self, rgb: Rgb) -> list[Detections]:
        """Return the detections of each pass but the rotated ones, with the scores of its network, px of ``rgb``."""
        defect = exposure_defect(rgb)
        images = [rgb, correct_tone(rgb)] if defect else [rgb]
        passes = []
        for each in self.plan.passes:
            scales = RULES[each.scales](rgb.shape[1], rgb.shape[0])
            parts = [part for image in images for part in self._detect_pyramid(image, each, scales)]
            merged = weighted_nms(parts, SAME_IOU, SAME_OVERLAP, scales * len(images))
            passes.append(Detections(merged.boxes, merged.scores, defect))
        return passes

    def _detect_pyramid(self, rgb: Rgb, each: PassSpec, scales: Sequence[float]) -> list[Detections]:
        """Return the detections of each scale, finest first, px of ``rgb``."""
        parts, level = [], rgb
        for scale in scales:
            view = View.at_scale(rgb, scale).snapped()
            level = view.render(rgb, finer=level)
            parts.append(view.uncut(self._detect_tiled(level, each)))
        return parts

    def _detect_rotated(self, rgb: Rgb, each: PassSpec, upright: Detections) -> list[Detections]:
        """Return the faces of each rotation, with probabilities, px of ``rgb``.

        Only new faces count, and with a lower probability. A rotation with more evidence than the upright image in the
        same pass is the right way up: there all faces count fully.
        """
        (scale,) = RULES[each.scales](rgb.shape[1], rgb.shape[0])
        view = View.at_scale(rgb, scale).snapped()
        level = view.render(rgb)
        turns = (0, *self.quarters)
        found = [self._detect_quarter(rgb, level, view._replace(rotation=turn), each) for turn in turns]
        evidence = [_evidence(faces, scale) for faces in found]
        parts = []
        for faces, own in zip(found[1:], evidence[1:], strict=True):
            if own > ROTATED_EVIDENCE_RATIO * evidence[0]:
                parts.append(faces)
                continue
            # Faces of the upright image keep their boxes there, which are better.
            lowered = Detections(faces.boxes, _shift_logits(faces.scores, ROTATED_LOGIT_SHIFT))
            same = iou(faces.boxes, upright.boxes) > SAME_IOU
            better = same & (upright.scores >= lowered.scores[:, None])
            parts.append(select(lowered, np.asarray(~better.any(axis=1))))
        return parts

    def _detect_quarter(self, rgb: Rgb, level: Rgb, view: View, each: PassSpec) -> Detections:
        """Return the faces of one rotation, with probabilities, px of ``rgb``. ``level`` is the unrotated rendering."""
        faces = view.uncut(self._detect_tiled(view.render(rgb, finer=level), each))
        return probabilities(faces, each.probability)

    def _detect_tiled(self, rgb: Rgb, each: PassSpec) -> Detections:
        """Run the network of a pass on one rendering, in overlapping tiles if it is large.

        A face that a tile cuts is whole in the neighboring tile, or smaller at a coarser scale.
        """
        height, width = rgb.shape[:2]
        network = self._networks[each.network]
        least = least_score(each.probability)
        rows, columns = tile_grid(height, width, network.max_px, TILE_OVERLAP_PX, TILE_MULTIPLE_PX)
        parts = []
        for (y0, y1), (x0, x1) in itertools.product(rows, columns):
            tile = View((width, height), (x0, y0, x1, y1))
            parts.append(tile.uncut(detect_once(network, tile.render(rgb), least)))
        faces = weighted_nms(parts, SAME_IOU, SAME_OVERLAP)
        return select(faces, longer_sides(faces.boxes) >= MIN_SIDE_PX)


def _evidence(faces: Detections, scale: float) -> float:
    """Return the sum of the probabilities of likely faces that are large enough at this scale."""
    clear = (faces.scores >= MIN_EVIDENCE) & (longer_sides(faces.boxes) * scale >= MIN_EVIDENCE_PX)
    return float(faces.scores[clear].sum())


def _shift_logits(scores: NDArray[np.float32], shift: float) -> NDArray[np.float32]:
    """Return the scores after ``shift`` is added to their logits."""
    odds = scores * np.float32(math.exp(shift))
    return np.asarray(odds / (1 - scores + odds), np.float32)
