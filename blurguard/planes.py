"""A video's frame as numpy sees it: planes that can be painted on, and the RGB picture that a detector looks at.

Faces are hidden in the frame's own planes and depth. Nothing is converted there and back, so what is not
hidden reaches the encoder as the decoder gave it.
"""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
from av import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from blurguard.cloak import Plane
from blurguard.obscure import NOISE_SHARE, Canvas
from blurguard.types import Pixels

_PLANAR = re.compile(r"(yuvj?a?4\d\d|gbra?|gray)p?(9|1[0246])?(le)?|nv12|nv21")
_PACKED = re.compile(r"(rgb|bgr)(24|0|a)|rgba|bgra|rgb48le|rgba64le")
# Weights of red and blue in luma, by AVColorSpace: BT.709, BT.470BG, SMPTE 170M, BT.2020 (ITU-T H.273, table 4).
_LUMA_WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
_HD_HEIGHT = 720  # what does not say its colour space is taken for BT.709 from here on, as players do
_CHROMA_NOISE = 0.3  # of that in luma: more would only make faces green and purple
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG
_PQ = 16  # AVCOL_TRC_SMPTE2084
_PQ_WHITE_NITS = 203.0  # of paper in HDR pictures (ITU-R BT.2408)


def can_paint(pixel_format: str) -> bool:
    """Tell whether faces can be hidden in frames of this pixel format."""
    return bool(_PLANAR.fullmatch(pixel_format) or _PACKED.fullmatch(pixel_format))


def planes_of(frame: VideoFrame, rotation: int, box_rgb: tuple[int, int, int]) -> list[Plane]:
    """Return the planes of a frame, upright and writable, without alpha.

    Args:
        frame: of a format that ``can_paint`` knows; becomes writable, which copies it where others read it.
        rotation: degrees counter-clockwise by which it is turned for display, a multiple of 90.
        box_rgb: the colour of boxes drawn on it.
    """
    frame.make_writable()
    planes = []
    for index, colors in _colors_by_plane(frame).items():
        pixels, step_x, step_y = _pixels(frame, index)
        if rotation % 180:
            step_x, step_y = step_y, step_x
        white = (1 << frame.format.components[0].bits) - 1
        black, color = _in_frame(frame, (0, 0, 0)), _in_frame(frame, box_rgb)
        is_chroma = not frame.format.is_rgb and 0 not in colors
        noise = NOISE_SHARE * white * (_CHROMA_NOISE if is_chroma else 1)
        canvas = Canvas(np.rot90(pixels, rotation // 90)[:, :, : len(colors)], white, black[colors], noise)
        planes.append(Plane(canvas, step_x, step_y, color[colors]))
    return planes


def _colors_by_plane(frame: VideoFrame) -> dict[int, list[int]]:
    """Return which components lie in each plane, in their order there; alpha is left out."""
    colors: dict[int, list[int]] = {}
    for number, component in enumerate(frame.format.components):
        if not component.is_alpha:
            colors.setdefault(component.plane, []).append(number)
    if frame.format.name.startswith("bgr"):
        colors = {plane: numbers[::-1] for plane, numbers in colors.items()}
    if frame.format.name == "nv21":
        colors[1] = colors[1][::-1]
    return colors


def _pixels(frame: VideoFrame, index: int) -> tuple[Pixels, int, int]:
    """Return a plane as (H, W, C), a view, and how many px wide and high its samples are."""
    plane, form = frame.planes[index], frame.format
    inside = [part for part in form.components if part.plane == index]
    bits = max(part.bits for part in inside)
    buffer = memoryview(plane)
    samples: Pixels = np.frombuffer(buffer, np.uint8) if bits <= 8 else np.frombuffer(buffer, np.uint16)
    channels = len(inside)
    if _PACKED.fullmatch(form.name):  # rgb0 has a fourth that is no component
        channels = form.padded_bits_per_pixel // (8 * samples.itemsize)
    rows = samples.reshape(plane.height, -1)[:, : plane.width * channels]
    pixels = rows.reshape(plane.height, plane.width, channels)
    return pixels, _step(frame.width, plane.width), _step(frame.height, plane.height)


def _step(px: int, samples: int) -> int:
    """Return how many px a sample stands for: a power of two, also where the last one stands for fewer."""
    return 1 << (-(-px // samples) - 1).bit_length()


def _in_frame(frame: VideoFrame, rgb: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return an 8-bit RGB colour in the components of a frame, in their order: float32 (3,)."""
    scale = (1 << frame.format.components[0].bits) / 256
    red, green, blue = rgb
    if frame.format.is_rgb:
        return np.array(rgb, np.float32) * np.float32(scale)
    weights = _LUMA_WEIGHTS[1 if frame.height >= _HD_HEIGHT else 6]
    of_red, of_blue = _LUMA_WEIGHTS.get(frame.colorspace, weights)
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    cb, cr = (blue - luma) / (2 - 2 * of_blue), (red - luma) / (2 - 2 * of_red)
    full = frame.color_range == _FULL_RANGE or frame.format.name.startswith(("yuvj", "gray"))
    values = (luma, cb + 128, cr + 128) if full else (16 + luma * 219 / 255, 128 + cb * 224 / 255, 128 + cr * 224 / 255)
    return np.array(values, np.float32) * np.float32(scale)


class Viewer:
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

    def rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
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
