"""Converts video frames to the upright RGB images that detectors see."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from av import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

_PQ = 16  # AVCOL_TRC_SMPTE2084
_PQ_WHITE_NITS = 203.0  # of paper in HDR pictures (ITU-R BT.2408)


class RgbConverter:
    """Turns frames into the pictures that a detector looks at. Not thread-safe: one per thread."""

    def __init__(self, rotation: int, aspect: Fraction, longest_px: int | None) -> None:
        """Say how frames are shown.

        Args:
            rotation: as for ``planes_of``.
            aspect: width of a px by its height.
            longest_px: longer side of the pictures, at most; None for all that is there.
        """
        self._rotation = rotation
        self._aspect = aspect
        self._longest = longest_px
        self._reformatter = VideoReformatter()

    def convert(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Return a frame upright with square px: (H, W, 3) uint8 RGB."""
        aspect = float(self._aspect)
        width, height = frame.width * max(aspect, 1.0), frame.height / min(aspect, 1.0)
        scale = min(1.0, self._longest / max(width, height)) if self._longest else 1.0
        size = max(1, round(width * scale)), max(1, round(height * scale))
        # Area averages neither alias nor invent; they are also the quickest.
        small = self._reformatter.reformat(frame, *size, "rgb24", interpolation=Interpolation.AREA)
        rgb = np.asarray(small.to_ndarray(), np.uint8)
        if frame.color_trc == _PQ:
            rgb = _PQ_TO_SDR[rgb]
        return np.ascontiguousarray(np.rot90(rgb, self._rotation // 90))


def _pq_to_sdr() -> NDArray[np.uint8]:
    """Return the table (256,) that brings PQ code values (SMPTE ST 2084) to what photographs look like."""
    power = np.linspace(0, 1, 256) ** (32 / 2523)
    nits = 1e4 * (np.clip(power - 0.8359375, 0, None) / (18.8515625 - 18.6875 * power)) ** (16384 / 2610)
    return np.asarray(np.rint(255 * np.clip(nits / _PQ_WHITE_NITS, 0, 1) ** (1 / 2.2)), np.uint8)


_PQ_TO_SDR = _pq_to_sdr()
