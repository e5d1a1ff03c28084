"""Where to look and how closely: the scale plans of the fast and the accurate mode.

A detector is whatever turns an RGB picture into ``Detections``; nothing above this module knows of networks.
"""

from __future__ import annotations

import itertools
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from blurguard import models
from blurguard.blazeface import detect_once
from blurguard.config import Mode, Settings
from blurguard.geometry import merged, tile_spans
from blurguard.runtime import Network
from blurguard.types import Detections

# Two boxes are one face above these. On training images, 0.45 without the second rule hides 0.5 % more of the
# faces and reports every fourth face twice; this way every twelfth.
SAME_IOU = 0.35
SAME_CONTAINED = 0.6
# Tiles bound the memory (170 bytes per px) and fit the processor's caches: at 640 px a pixel takes 0.1 us, at
# 1,280 px and more 0.14 us, which is more than what overlapping costs.
TILE_PX = 640
TILE_OVERLAP_PX = 96  # larger faces are whole at the next coarser scale, where they are half the size
TILE_MULTIPLE_PX = 64
TILE_EDGE_PX = 3  # a box that comes this near to a cut edge is a part of a face
FULL_PX = 2_000_000  # pictures of fewer px are looked at enlarged, up to twice and up to this
FINE_SCALE = 0.9  # above it the model's fine_logit_shift holds
COARSEST_PX = 100  # an octave whose longer side is under this adds nothing; 112 px find faces that fill the frame
FAST_SIDE_PX = 640
FAST_COARSE_SIDES_PX = (192, 96)  # the last one takes 1 ms, and finds faces that fill the frame


class Detector(Protocol):
    """The seam between pictures and networks; tests and other detectors stand in here."""

    @property
    def identity(self) -> str:
        """What looked: it stands in reports, and decides whether a result is up to date."""

    @property
    def threshold(self) -> float:
        """Score from which a face is hidden when the user sets none."""

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        """Return the faces in an upright (H, W, 3) uint8 RGB picture that score at least ``min_score``."""


class BlazeFaceDetector:
    """BlazeFace full-range over the scale plan of a mode. Not thread-safe."""

    def __init__(self, network: Network, mode: Mode) -> None:
        """Take the weights and how hard to look."""
        self._network = network
        self._mode = mode

    @property
    def identity(self) -> str:
        """Name and SHA-256 of the weights."""
        return self._network.spec.identity

    @property
    def threshold(self) -> float:
        """The model's own for the mode."""
        return self._network.spec.thresholds[self._mode]

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        """Return the faces, best first, one box per face, px of ``rgb``."""
        height, width = rgb.shape[:2]
        plan = fast_plan if self._mode is Mode.FAST else accurate_plan
        parts, level = [], rgb
        for scale in plan(width, height):
            level = _resized(rgb, level, scale)
            shift = self._network.spec.fine_logit_shift if scale > FINE_SCALE else 0.0
            found = self._look(level, min_score, shift)
            factor = np.array([width / level.shape[1], height / level.shape[0]] * 2, np.float32)
            parts.append(Detections(found.boxes * factor, found.scores))
        return merged(parts, SAME_IOU, SAME_CONTAINED)

    def _look(self, rgb: NDArray[np.uint8], min_score: float, logit_shift: float) -> Detections:
        """Look at one scale, in overlapping tiles where it is large.

        What a cut edge halves is whole in the neighbouring tile, or smaller at a coarser scale.
        """
        height, width = rgb.shape[:2]
        rows, columns = (tile_spans(n, TILE_PX, TILE_OVERLAP_PX, TILE_MULTIPLE_PX) for n in (height, width))
        parts = []
        for (y0, y1), (x0, x1) in itertools.product(rows, columns):
            found = detect_once(self._network, rgb[y0:y1, x0:x1], min_score, logit_shift)
            boxes = found.boxes + np.array([x0, y0, x0, y0], np.float32)
            uncut = _uncut(boxes, (x0, y0, x1, y1), width, height)
            parts.append(Detections(boxes[uncut], found.scores[uncut]))
        return merged(parts, SAME_IOU, SAME_CONTAINED)


def fast_plan(width: int, height: int) -> list[float]:
    """Return the scales of the fast mode: one pass at a bounded size, and coarse ones for large faces."""
    longer = max(width, height)
    finest = min(2.0, FAST_SIDE_PX / longer)
    return sorted({finest, *(min(finest, side / longer) for side in FAST_COARSE_SIDES_PX)}, reverse=True)


def accurate_plan(width: int, height: int) -> list[float]:
    """Return the scales of the accurate mode: the picture's own size or, for small ones, up to twice that,
    then octaves for larger faces.
    """  # noqa: D205 - one sentence
    scales = [min(2.0, max(1.0, (FULL_PX / (width * height)) ** 0.5))]
    while max(width, height) * scales[-1] / 2 >= COARSEST_PX:
        scales.append(scales[-1] / 2)
    return scales


def load_detector(settings: Settings, threads: int = 1) -> BlazeFaceDetector:
    """Return the detector that the settings ask for.

    Raises:
        ModelError: no such model, file damaged, or no runtime.
    """
    spec = models.find(settings.model)
    return BlazeFaceDetector(Network(spec, models.load(spec), threads), settings.mode)


def _resized(rgb: NDArray[np.uint8], level: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
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


def _uncut(boxes: NDArray[np.float32], tile: tuple[int, int, int, int], width: int, height: int) -> NDArray[np.bool_]:
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
