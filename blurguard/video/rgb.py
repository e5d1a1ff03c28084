"""Converts video frames to upright RGB images for detectors."""

from fractions import Fraction

import numpy as np
from av import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

_PQ = 16  # AVCOL_TRC_SMPTE2084
_PQ_WHITE_NITS = 203.0  # diffuse white in HDR (ITU-R BT.2408)


class RgbConverter:
    """Scales frames down, maps PQ to SDR and turns them upright. Not thread-safe: use one per thread."""

    def __init__(self, rotation: int, aspect: Fraction, max_side_px: int | None) -> None:
        """Set the geometry of all frames.

        Args:
            rotation: degrees counter-clockwise that turn a frame upright.
            aspect: width of a px divided by its height.
            max_side_px: bound of the longer side of the images. None keeps full size.
        """
        self._rotation, self._aspect, self._max_side_px = rotation, float(aspect), max_side_px
        self._reformatter = VideoReformatter()

    def convert(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Return a frame upright with square px: (H, W, 3) uint8 RGB."""
        width, height = frame.width * max(self._aspect, 1.0), frame.height / min(self._aspect, 1.0)
        scale = min(1.0, self._max_side_px / max(width, height)) if self._max_side_px else 1.0
        size = max(1, round(width * scale)), max(1, round(height * scale))
        # Area averaging does not alias or ring. It is also the fastest.
        small = self._reformatter.reformat(frame, *size, "rgb24", interpolation=Interpolation.AREA)
        rgb = np.asarray(small.to_ndarray(), np.uint8)
        if frame.color_trc == _PQ:
            rgb = _PQ_TO_SDR[rgb]
        return np.ascontiguousarray(np.rot90(rgb, self._rotation // 90))


def _pq_to_sdr() -> NDArray[np.uint8]:
    """Return the table (256,) from PQ code values (SMPTE ST 2084) to the tones of SDR photos."""
    power = np.linspace(0, 1, 256) ** (32 / 2523)
    nits = 1e4 * (np.clip(power - 0.8359375, 0, None) / (18.8515625 - 18.6875 * power)) ** (16384 / 2610)
    return np.asarray(np.rint(255 * np.clip(nits / _PQ_WHITE_NITS, 0, 1) ** (1 / 2.2)), np.uint8)


_PQ_TO_SDR = _pq_to_sdr()
