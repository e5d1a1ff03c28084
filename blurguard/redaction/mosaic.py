"""Mosaics: a few averaged cells with fresh noise replace a face. Blur on top only makes them pleasant to see.

Blur alone can be reversed, or the face still recognized (arXiv 1609.00408, 2506.12344). Here only the averages
of at most 3 x 3 cells reach the result, and each average carries noise from the system's random source.

A change that gives other results needs a higher ``DIGEST_VERSION`` in anonymize/anonymizer.py, or results made before
count as up to date.

Regions are hidden fully up to their border. Only a band outside of it, ``feather_px`` wide, is blended.
"""

import math
import random
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from blurguard.redaction.masks import OUTLINE_PX, Mask, make_mask, outline_mask
from blurguard.redaction.regions import scale_to_plane
from blurguard.settings import Shape, Style
from blurguard.types import Pixels, Region

# Cells across the longer side of a hidden patch. A good detector (CenterFace) finds twice as many of the faces
# averaged into 6 cells as of those in 3. In 3 cells it finds hardly more than in one flat color, where only the
# surroundings are left to it.
CELLS = 3  # stated in docs/architecture.md and README.md as well
SOLID_BELOW_PX = 24.0  # narrower faces, and smaller visible rests of larger ones, are one cell
# Standard deviation of the noise, as a share of white. Clipping at black or white leaves 0.58 of it.
NOISE_RATIO = 8 / 255
RADIUS_RATIO = 0.3  # Gaussian radius, as a share of the face's width; sigma is half of it
MIN_RADIUS_PX = 15.0
# Cells are blurred at this size at most and enlarged afterwards. The difference is invisible, and a face of
# 2,000 px takes no longer than one of 200.
MAX_BLUR_PX = 96
# Width of the feather band, as a share of the region's longer side, and its bounds.
FEATHER_RATIO, MIN_FEATHER_PX, MAX_FEATHER_PX = 0.05, 2, 24

_RANDOM = random.SystemRandom()


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """Pixels to draw on, without alpha: a whole image, or one plane of a video frame.

    Attributes:
        pixels: (H, W, C) uint8 or uint16, upright, a writable view.
        white: largest value of a channel.
        black: float32 (C,), black in these channels.
        box_color: float32 (C,), color of drawn boxes.
        noise: standard deviation of a mosaic's noise, in values of a channel.
        step_x: width of a sample, px of the image. It is more than 1 in subsampled chroma.
        step_y: height of a sample, px of the image.
    """

    pixels: Pixels
    white: int
    black: NDArray[np.float32]
    box_color: NDArray[np.float32]
    noise: float
    step_x: int = 1
    step_y: int = 1


class Mosaic:
    """The cells that replace one face on one surface, computed once and kept through all frames of a video.

    So a thousand frames reveal no more than one, and the mosaic does not flicker. Create one
    per face and plane.
    """

    def __init__(self) -> None:
        self._cells: dict[int, NDArray[np.float32]] = {}

    def cells(self, surface: Surface, patch: Pixels, face_width: float) -> NDArray[np.float32]:
        """Return the cells, float32 (rows, columns, C).

        Args:
            surface: supplies ``noise`` and ``white``.
            patch: (H, W, C), pixels to average. Used by the first call for each number of cells.
            face_width: in samples of the surface.
        """
        height, width = patch.shape[:2]
        count = 1 if min(face_width, max(width, height)) < SOLID_BELOW_PX else CELLS
        if count not in self._cells:
            rows, columns = (max(1, math.ceil(count * side / max(width, height))) for side in (height, width))
            means = cv2.resize(np.ascontiguousarray(patch), (columns, rows), interpolation=cv2.INTER_AREA)
            self._cells[count] = _add_noise(np.asarray(means, np.float32).reshape(rows, columns, -1), surface)
        return self._cells[count]


def feather_px(region: Region) -> int:
    """Return the width of the blended band outside the hidden area, px."""
    side = max(region.x1 - region.x0, region.y1 - region.y0)
    return max(MIN_FEATHER_PX, min(MAX_FEATHER_PX, round(FEATHER_RATIO * side)))


def redact_region(surface: Surface, region: Region, mosaic: Mosaic, style: Style, shape: Shape) -> None:
    """Hide one region, px of the image, on the surface itself."""
    region = scale_to_plane(region, (surface.step_x, surface.step_y))
    feather = feather_px(region)
    patch, origin_xy = _cut_patch(surface, region, feather)
    if style is Style.SOLID:
        cover = _round_like(surface.black, patch)
    else:
        cells = mosaic.cells(surface, patch, region.face_width)
        cover = _render(cells, patch, region.face_width, smooth=style is Style.BLUR)
    _blend(patch, cover, make_mask(patch.shape[:2], origin_xy, region, shape, feather))


def draw_outline(surface: Surface, region: Region) -> None:
    """Draw an antialiased rectangle of ``surface.box_color`` around a region, px of the image."""
    region = scale_to_plane(region, (surface.step_x, surface.step_y), beyond=0)
    patch, origin_xy = _cut_patch(surface, region, OUTLINE_PX)
    _blend(patch, _round_like(surface.box_color, patch), outline_mask(patch.shape[:2], origin_xy, region))


def _cut_patch(surface: Surface, region: Region, border: int) -> tuple[Pixels, tuple[int, int]]:
    """Return the pixels (H, W, C) of a region and the border around it, a view, and their first x and y."""
    x0, y0 = max(region.x0 - border, 0), max(region.y0 - border, 0)
    # A slice ends at the image's edge by itself.
    return surface.pixels[y0 : region.y1 + border, x0 : region.x1 + border], (x0, y0)


def _add_noise(cells: NDArray[np.float32], surface: Surface) -> NDArray[np.float32]:
    """Add Gaussian noise from the system's random source to every cell and channel, within 0..white."""
    noise = np.array([_RANDOM.gauss(0, surface.noise) for _ in range(cells.size)], np.float32)
    return np.asarray(np.clip(cells + noise.reshape(cells.shape), 0, surface.white), np.float32)


def _render(cells: NDArray[np.float32], patch: Pixels, face_width: float, smooth: bool) -> Any:
    """Return the cover of a patch: of its type and shape, or (1, 1, C) for a single cell."""
    height, width = patch.shape[:2]
    if cells.shape[:2] == (1, 1):
        return _round_like(cells, patch)
    if not smooth:
        return _resize(_round_like(cells, patch), width, height, cv2.INTER_NEAREST)
    scale = min(1.0, MAX_BLUR_PX / max(width, height))
    mosaic = _resize(cells, math.ceil(width * scale), math.ceil(height * scale), cv2.INTER_NEAREST)
    sigma = max(MIN_RADIUS_PX, RADIUS_RATIO * face_width) / 2 * scale
    blurred = cv2.GaussianBlur(mosaic, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return _resize(_round_like(blurred, patch).reshape(mosaic.shape), width, height, cv2.INTER_LINEAR)


def _blend(patch: Pixels, cover: Pixels, mask: Mask) -> None:
    """Draw ``cover`` over ``patch`` in place. Pixels outside the mask keep every bit."""
    rows, columns, alpha = mask.rows, mask.columns, mask.alpha[:, None]
    whole: Any = np.broadcast_to(cover, patch.shape)
    patch[rows, columns] = _round_like(whole[rows, columns] * alpha + patch[rows, columns] * (1 - alpha), patch)
    if cover.shape == patch.shape and patch.strides[1] == patch.shape[2] * patch.itemsize:
        cv2.copyTo(cover, mask.inside.view(np.uint8), patch)  # faster, but only pixels without gaps work in place
    else:
        np.copyto(patch, whole, where=mask.inside[:, :, None])


def _round_like(values: Any, patch: Pixels) -> Any:
    """Round values to integers of the patch's type."""
    return np.rint(values).astype(patch.dtype)


def _resize(pixels: Any, width: int, height: int, interpolation: int) -> Any:
    """Resize as OpenCV does, but keep (H, W, 1)."""
    return cv2.resize(pixels, (width, height), interpolation=interpolation).reshape(height, width, -1)
