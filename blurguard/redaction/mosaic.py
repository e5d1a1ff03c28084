"""What takes a face's place: averaged cells with fresh noise, then, for looks, blur.

Blur alone can be undone, or recognised through (arXiv 1609.00408, 2506.12344). Here nothing of the face
reaches the result but the averages of at most 3 x 3 cells, and those carry noise from the system's random
source; the blur on top only makes them pleasant to look at.

Regions are hidden fully up to their border. What is blended is a band outside of it, ``feather_px`` wide.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from blurguard.redaction.masks import BOX_WIDTH_PX, Mask, from_alpha, make_mask, outline_alpha
from blurguard.settings import Shape, Style
from blurguard.types import Pixels, Region

# Across the longer side of what is hidden. Of faces averaged into 6 cells a good detector (CenterFace) still sees
# twice as many as of those in 3, and in 3 hardly more than in one flat colour, where it goes by the surroundings.
CELLS = 3
SOLID_BELOW_PX = 24.0  # a face narrower than this, or of which no more lies in the picture, is one cell
# Standard deviation of the noise, as a share of white; clipping at black or white leaves 0.58 of it.
NOISE_RATIO = 8 / 255
MIN_RADIUS_PX = 15.0
RADIUS_RATIO = 0.3  # Gaussian radius, as a share of the face's width; sigma is half of it
# Cells are blurred at this size at most and enlarged afterwards: the eye sees no difference, and a face of
# 2,000 px takes no longer than one of 200.
MAX_BLUR_PX = 96

_RANDOM = random.SystemRandom()


def feather_px(region: Region) -> int:
    """Return the width of the band outside the hidden area that is blended, px."""
    side = max(region.x1 - region.x0, region.y1 - region.y0)
    return max(2, min(24, round(0.05 * side)))


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """What is painted on: a picture, or one plane of a video's frame, without alpha.

    Attributes:
        pixels: (H, W, C), a writable view.
        white: the largest value of a channel.
        black: float32 (C,), what black is here.
        noise: standard deviation of the noise that cells get, in values of a channel.
    """

    pixels: Pixels
    white: int
    black: NDArray[np.float32]
    noise: float


class Mosaic:
    """The cells that take one face's place, taken once: through all frames of a video they stay the same.

    So an attacker gets no more from a thousand frames than from one, and the mosaic does not crawl. Not for
    two faces, nor for two planes of one.
    """

    def __init__(self) -> None:
        self._cells: dict[int, NDArray[np.float32]] = {}

    def cells(self, canvas: Canvas, patch: Pixels, face_width: float) -> NDArray[np.float32]:
        """Return float32 (rows, columns, C); the canvas's patch (H, W, C) is looked at when there are none yet."""
        height, width = patch.shape[:2]
        count = 1 if min(face_width, max(width, height)) < SOLID_BELOW_PX else CELLS
        if count not in self._cells:
            rows, columns = (max(1, math.ceil(count * side / max(width, height))) for side in (height, width))
            self._cells[count] = _add_noise(_average_cells(patch, rows, columns), canvas)
        return self._cells[count]


def redact_region(canvas: Canvas, region: Region, veil: Mosaic, style: Style, shape: Shape) -> None:
    """Hide one region on the canvas itself behind this veil."""
    feather = feather_px(region)
    x0, y0 = max(region.x0 - feather, 0), max(region.y0 - feather, 0)
    # A slice ends at the image's edge by itself.
    patch = canvas.pixels[y0 : region.y1 + feather, x0 : region.x1 + feather]
    if style is Style.SOLID:
        cover = round_like(canvas.black, patch)
    else:
        cells = veil.cells(canvas, patch, region.face_width)
        cover = _render(cells, patch, region.face_width, smooth=style is Style.BLUR)
    blend(patch, cover, make_mask(patch.shape[:2], (x0, y0), region, shape, feather))


def draw_outline(canvas: Canvas, r: Region, color: NDArray[np.float32]) -> None:
    """Draw an antialiased 2-px rectangle of a colour, float32 (C,), round a region, on the canvas itself."""
    x0, y0 = max(r.x0 - BOX_WIDTH_PX, 0), max(r.y0 - BOX_WIDTH_PX, 0)
    patch = canvas.pixels[y0 : r.y1 + BOX_WIDTH_PX, x0 : r.x1 + BOX_WIDTH_PX]
    blend(patch, round_like(color, patch), from_alpha(outline_alpha(patch.shape[:2], (x0, y0), r)))


def _render(cells: NDArray[np.float32], patch: Pixels, face_width: float, smooth: bool) -> Any:
    """Return what hides the patch: of its type and shape, or (1, 1, C) where there is one cell only."""
    height, width = patch.shape[:2]
    if cells.shape[:2] == (1, 1):
        return round_like(cells, patch)
    if not smooth:
        return _resize(round_like(cells, patch), width, height, cv2.INTER_NEAREST)
    scale = min(1.0, MAX_BLUR_PX / max(width, height))
    mosaic = _resize(cells, math.ceil(width * scale), math.ceil(height * scale), cv2.INTER_NEAREST)
    sigma = max(MIN_RADIUS_PX, RADIUS_RATIO * face_width) / 2 * scale
    blurred = cv2.GaussianBlur(mosaic, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return _resize(round_like(blurred, patch).reshape(mosaic.shape), width, height, cv2.INTER_LINEAR)


def _average_cells(patch: Pixels, rows: int, columns: int) -> NDArray[np.float32]:
    """(H, W, C) -> means of the cells, float32 (rows, columns, C)."""
    small = cv2.resize(np.ascontiguousarray(patch), (columns, rows), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32).reshape(rows, columns, -1)


def _add_noise(cells: NDArray[np.float32], canvas: Canvas) -> NDArray[np.float32]:
    """Add Gaussian noise from the system's random source to every cell and channel; stays in 0..white."""
    noise = np.array([_RANDOM.gauss(0, canvas.noise) for _ in range(cells.size)], np.float32)
    return np.asarray(np.clip(cells + noise.reshape(cells.shape), 0, canvas.white), np.float32)


def round_like(values: Any, patch: Pixels) -> Any:
    """Return the values as integers of the patch's type."""
    return np.rint(values).astype(patch.dtype)


def _resize(pixels: Any, width: int, height: int, interpolation: int) -> Any:
    """cv2.resize that keeps (H, W, 1)."""
    return cv2.resize(pixels, (width, height), interpolation=interpolation).reshape(height, width, -1)


def blend(patch: Pixels, cover: Pixels, coverage: Mask) -> None:
    """Lay ``cover`` over ``patch`` in place; what is not covered stays bit for bit."""
    rows, columns, opacity = coverage.rows, coverage.columns, coverage.alpha[:, None]
    whole: Any = np.broadcast_to(cover, patch.shape)
    patch[rows, columns] = round_like(whole[rows, columns] * opacity + patch[rows, columns] * (1 - opacity), patch)
    if cover.shape == patch.shape and patch.strides[1] == patch.shape[2] * patch.itemsize:
        cv2.copyTo(cover, coverage.inside.view(np.uint8), patch)  # quicker, where it can write in place
    else:
        np.copyto(patch, whole, where=coverage.inside[:, :, None])


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """A part of a picture that is painted on: all of its channels, or luma, or chroma.

    Attributes:
        canvas: upright.
        step_x: width of a sample, px of the picture.
        step_y: height of a sample, px of the picture.
        box_color: float32 (C,), the colour of drawn boxes here.
    """

    canvas: Canvas
    step_x: int
    step_y: int
    box_color: NDArray[np.float32]
