"""Pictures in which a detector sees little: told by cheap statistics, and evened out for a second look.

The detector looks a second time at a picture that has a flaw, and the report tells of it.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

THUMB_PX = 256  # longer side of what the statistics are taken from, so that they do not depend on the picture's size
# Grey levels of 255. Of 300 WIDER FACE training pictures the least have a mean of 38, a spread of 134 and a variance
# of 202; darkened to a fifth they have means of 7 to 36, paled to a fifth spreads of 34 to 52, and blurred with a
# sigma of 0.004 of the longer side variances of 24 to 247.
MIN_MEAN = 40.0
MIN_CONTRAST = 120.0  # from the darkest to the brightest
MIN_SHARPNESS = 150.0  # of the Laplacian
MIN_SPREAD = 3.0  # less is one tone: there is nothing to see
TARGET_MEAN = 0.45  # of the range: where pictures have their mean
GAMMA_RANGE = (0.3, 2.0)  # beyond them noise is all there is
_TAILS = (1.0, 99.0)  # percentiles that count as darkest and brightest: a few lamps say nothing of a room

Luma = NDArray[np.uint8]


def exposure_defect(rgb: NDArray[np.uint8]) -> str:
    """Return what keeps faces from being seen: ``"dark"``, ``"washed out"``, ``"blurred"``, or ``""`` for nothing.

    Args:
        rgb: upright (H, W, 3) uint8 RGB. One of a single tone holds nothing that could be seen better.
    """
    luma = _luma_thumbnail(rgb)
    low, high = _tonal_range(luma)
    if high - low < MIN_SPREAD:
        return ""
    if luma.mean() < MIN_MEAN:
        return "dark"
    if high - low < MIN_CONTRAST:
        return "washed out"
    return "blurred" if cv2.Laplacian(luma, cv2.CV_32F).var() < MIN_SHARPNESS else ""


def correct_tone(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a copy, (H, W, 3) uint8 RGB, whose light fills the range and has its mean near the middle.

    Stretching alone finds as many faces in dark and pale pictures, but not where a few bright spots hide that the
    rest is dark: there the gamma does it. Local equalisation (CLAHE) on top adds false boxes, seldom faces.
    """
    luma = _luma_thumbnail(rgb)
    low, high = _tonal_range(luma)
    wide = max(high - low, MIN_SPREAD)
    mean = float(np.clip((luma - low) / wide, 0, 1).mean())
    gamma = float(np.clip(np.log(TARGET_MEAN) / np.log(np.clip(mean, 0.001, 0.999)), *GAMMA_RANGE))
    levels = np.clip((np.arange(256) - low) / wide, 0, 1) ** gamma
    return np.asarray(cv2.LUT(np.ascontiguousarray(rgb), np.rint(255 * levels).astype(np.uint8)), np.uint8)


def _luma_thumbnail(rgb: NDArray[np.uint8]) -> Luma:
    """Return the luma of a small copy; of large pictures only every n-th row and column is read."""
    skip = max(1, max(rgb.shape[:2]) // (2 * THUMB_PX))
    few = np.ascontiguousarray(rgb[::skip, ::skip])
    scale = THUMB_PX / max(few.shape[:2])
    if scale < 1:
        size = max(1, round(few.shape[1] * scale)), max(1, round(few.shape[0] * scale))
        few = np.asarray(cv2.resize(few, size, interpolation=cv2.INTER_AREA), np.uint8)
    return np.asarray(cv2.cvtColor(few, cv2.COLOR_RGB2GRAY), np.uint8)


def _tonal_range(luma: Luma) -> tuple[float, float]:
    low, high = np.percentile(luma, _TAILS)
    return float(low), float(high)
