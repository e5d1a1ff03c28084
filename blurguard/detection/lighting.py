"""Exposure defects that hide faces from a detector: low light, low contrast and blur, and their correction.

A detector adds a second pass over the corrected image, and the report names the defect.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

THUMB_PX = 256  # longer side of the copy that is measured, so that results do not depend on the size of the image
# Gray levels, 0 to 255. The lowest of 300 WIDER FACE training images are a mean of 38, a spread of 134 and a variance
# of 202. Darkened to a fifth they have means of 7 to 36. Paled to a fifth they have spreads of 34 to 52. Blurred with
# a sigma of 0.004 of the longer side they have variances of 24 to 247.
MIN_MEAN = 40.0
MIN_CONTRAST = 120.0  # from the darkest to the brightest level
MIN_SHARPNESS = 150.0  # variance of the Laplacian
MIN_SPREAD = 3.0  # less is a single tone, which holds no detail
TARGET_MEAN = 0.45  # of the range: the mean of ordinary images
GAMMA_RANGE = (0.3, 2.0)  # beyond these only noise remains
_TAILS = (1.0, 99.0)  # percentiles of the darkest and the brightest level: a few lamps do not make a room bright

Luma = NDArray[np.uint8]


def exposure_defect(rgb: NDArray[np.uint8]) -> str:
    """Return the defect of an upright (H, W, 3) uint8 RGB image, or ``""``.

    Defects are ``"dark"``, ``"washed out"`` and ``"blurred"``. An image of a single tone has none, since no
    correction reveals anything in it.
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
    """Return a copy, (H, W, 3) uint8 RGB, that fills the tonal range and has its mean near the middle.

    Stretching alone detects as many faces in dark and pale images, but fails if a few bright spots raise the range
    of a dark one. The gamma corrects those. Local equalization (CLAHE) on top adds false boxes, seldom faces.
    """
    luma = _luma_thumbnail(rgb)
    low, high = _tonal_range(luma)
    spread = max(high - low, MIN_SPREAD)
    mean = float(np.clip((luma - low) / spread, 0, 1).mean())
    gamma = float(np.clip(np.log(TARGET_MEAN) / np.log(np.clip(mean, 0.001, 0.999)), *GAMMA_RANGE))
    levels = np.clip((np.arange(256) - low) / spread, 0, 1) ** gamma
    return np.asarray(cv2.LUT(np.ascontiguousarray(rgb), np.rint(255 * levels).astype(np.uint8)), np.uint8)


def _luma_thumbnail(rgb: NDArray[np.uint8]) -> Luma:
    """Return the luma of a small copy. Only every n-th row and column of a large image is read."""
    step = max(1, max(rgb.shape[:2]) // (2 * THUMB_PX))
    sampled = np.ascontiguousarray(rgb[::step, ::step])
    scale = THUMB_PX / max(sampled.shape[:2])
    if scale < 1:
        size = max(1, round(sampled.shape[1] * scale)), max(1, round(sampled.shape[0] * scale))
        sampled = np.asarray(cv2.resize(sampled, size, interpolation=cv2.INTER_AREA), np.uint8)
    return np.asarray(cv2.cvtColor(sampled, cv2.COLOR_RGB2GRAY), np.uint8)


def _tonal_range(luma: Luma) -> tuple[float, float]:
    low, high = np.percentile(luma, _TAILS)
    return float(low), float(high)
