"""What takes a face's place: averaged cells with fresh noise, then, for looks, blur.

Blur alone can be undone, or recognised through (arXiv 1609.00408, 2506.12344). Here nothing of the face
reaches the result but the averages of at most 3 x 3 cells, and those carry noise from the system's random
source; the blur on top only makes them pleasant to look at.

Regions are hidden fully up to their border. What is blended is a band outside of it, ``feather_px`` wide.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from blurguard.config import Shape, Style
from blurguard.types import Image, Layout, Pixels, Region

# Across the longer side of what is hidden. Of faces averaged into 6 cells a good detector (CenterFace) still sees
# twice as many as of those in 3, and in 3 hardly more than in one flat colour, where it goes by the surroundings.
CELLS = 3
SOLID_BELOW_PX = 24.0  # a face narrower than this, or of which no more lies in the picture, is one cell
# Standard deviation of the noise, as a share of white; clipping at black or white leaves 0.58 of it.
NOISE_SHARE = 8 / 255
MIN_RADIUS_PX = 15.0
RADIUS_SHARE = 0.3  # Gaussian radius, as a share of the face's width; sigma is half of it
BOX_WIDTH_PX = 2
# Cells are blurred at this size at most and enlarged afterwards: the eye sees no difference, and a face of
# 2,000 px takes no longer than one of 200.
WORK_PX = 96

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


class Veil:
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
            self._cells[count] = _noisy(_averages(patch, rows, columns), canvas)
        return self._cells[count]


def canvas_of(image: Image) -> Canvas:
    """Return what of an image can be painted on."""
    pixels = image.pixels[:, :, : image.layout.colors]
    return Canvas(pixels, image.white, color_in(image, (0, 0, 0)), NOISE_SHARE * image.white)


def hide(image: Image, regions: Iterable[Region], style: Style = Style.BLUR, shape: Shape = Shape.ELLIPSE) -> Image:
    """Return a copy of the image with every region hidden; alpha stays as it is."""
    hidden = Image(image.pixels.copy(), image.layout, image.palette)
    hide_into(hidden, regions, style, shape)
    return hidden


def hide_into(image: Image, regions: Iterable[Region], style: Style, shape: Shape) -> None:
    """Hide every region in ``image.pixels`` itself."""
    canvas = canvas_of(image)
    for region in regions:
        veil_into(canvas, region, Veil(), style, shape)


def veil_into(canvas: Canvas, region: Region, veil: Veil, style: Style, shape: Shape) -> None:
    """Hide one region on the canvas itself behind this veil."""
    feather = feather_px(region)
    x0, y0 = max(region.x0 - feather, 0), max(region.y0 - feather, 0)
    # A slice ends at the image's edge by itself.
    patch = canvas.pixels[y0 : region.y1 + feather, x0 : region.x1 + feather]
    if style is Style.SOLID:
        cover = _rounded(canvas.black, patch)
    else:
        cells = veil.cells(canvas, patch, region.face_width)
        cover = _drawn(cells, patch, region.face_width, smooth=style is Style.BLUR)
    _blend(patch, cover, _coverage(patch.shape[:2], (x0, y0), region, shape, feather))


def draw_boxes_into(image: Image, regions: Iterable[Region], rgb: tuple[int, int, int]) -> None:
    """Draw an antialiased 2-px rectangle of that colour round every region, into ``image.pixels`` itself."""
    canvas, color = canvas_of(image), color_in(image, rgb)
    for region in regions:
        outline_into(canvas, region, color)


def outline_into(canvas: Canvas, r: Region, color: NDArray[np.float32]) -> None:
    """Draw an antialiased 2-px rectangle of a colour, float32 (C,), round a region, on the canvas itself."""
    x0, y0 = max(r.x0 - BOX_WIDTH_PX, 0), max(r.y0 - BOX_WIDTH_PX, 0)
    patch = canvas.pixels[y0 : r.y1 + BOX_WIDTH_PX, x0 : r.x1 + BOX_WIDTH_PX]
    _blend(patch, _rounded(color, patch), _from_shares(_outline(patch.shape[:2], (x0, y0), r)))


def color_in(image: Image, rgb: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return an 8-bit RGB colour in the channels and depth of the image, without alpha: float32 (C,)."""
    red, green, blue = rgb
    if image.layout is Layout.CMYK:
        black = 255 - max(rgb)
        ink = [255 * (255 - v - black) / max(255 - black, 1) for v in rgb]
        return np.array([*ink, black], np.float32) * np.float32(image.white / 255)
    if image.layout.colors == 1:  # ITU-R BT.601 luma
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        return np.array([luma], np.float32) * np.float32(image.white / 255)
    return np.array(rgb, np.float32) * np.float32(image.white / 255)


def _drawn(cells: NDArray[np.float32], patch: Pixels, face_width: float, smooth: bool) -> Any:
    """Return what hides the patch: of its type and shape, or (1, 1, C) where there is one cell only."""
    height, width = patch.shape[:2]
    if cells.shape[:2] == (1, 1):
        return _rounded(cells, patch)
    if not smooth:
        return _resized(_rounded(cells, patch), width, height, cv2.INTER_NEAREST)
    scale = min(1.0, WORK_PX / max(width, height))
    mosaic = _resized(cells, math.ceil(width * scale), math.ceil(height * scale), cv2.INTER_NEAREST)
    sigma = max(MIN_RADIUS_PX, RADIUS_SHARE * face_width) / 2 * scale
    blurred = cv2.GaussianBlur(mosaic, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return _resized(_rounded(blurred, patch).reshape(mosaic.shape), width, height, cv2.INTER_LINEAR)


def _averages(patch: Pixels, rows: int, columns: int) -> NDArray[np.float32]:
    """(H, W, C) -> means of the cells, float32 (rows, columns, C)."""
    small = cv2.resize(np.ascontiguousarray(patch), (columns, rows), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32).reshape(rows, columns, -1)


def _noisy(cells: NDArray[np.float32], canvas: Canvas) -> NDArray[np.float32]:
    """Add Gaussian noise from the system's random source to every cell and channel; stays in 0..white."""
    noise = np.array([_RANDOM.gauss(0, canvas.noise) for _ in range(cells.size)], np.float32)
    return np.asarray(np.clip(cells + noise.reshape(cells.shape), 0, canvas.white), np.float32)


def _rounded(values: Any, patch: Pixels) -> Any:
    """Return the values as integers of the patch's type."""
    return np.rint(values).astype(patch.dtype)


def _resized(pixels: Any, width: int, height: int, interpolation: int) -> Any:
    """cv2.resize that keeps (H, W, 1)."""
    return cv2.resize(pixels, (width, height), interpolation=interpolation).reshape(height, width, -1)


@dataclass(frozen=True, slots=True, eq=False)
class _Coverage:
    """How much of each pixel of a patch is covered: (H, W) ``inside`` wholly, and a band of which part.

    ``rows``, ``columns`` and ``share`` (N,) are those of the band. Only the few pixels of the band need
    arithmetic, so no array of floats is made for all of them.
    """

    inside: NDArray[np.bool_]
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    share: NDArray[np.float32]


def _blend(patch: Pixels, cover: Pixels, coverage: _Coverage) -> None:
    """Lay ``cover`` over ``patch`` in place; what is not covered stays bit for bit."""
    rows, columns, opacity = coverage.rows, coverage.columns, coverage.share[:, None]
    whole: Any = np.broadcast_to(cover, patch.shape)
    patch[rows, columns] = _rounded(whole[rows, columns] * opacity + patch[rows, columns] * (1 - opacity), patch)
    if cover.shape == patch.shape and patch.strides[1] == patch.shape[2] * patch.itemsize:
        cv2.copyTo(cover, coverage.inside.view(np.uint8), patch)  # quicker, where it can write in place
    else:
        np.copyto(patch, whole, where=coverage.inside[:, :, None])


@functools.lru_cache(maxsize=1)  # both planes of chroma are covered alike
def _coverage(
    shape_hw: tuple[int, ...], origin_xy: tuple[int, int], region: Region, shape: Shape, feather: int
) -> _Coverage:
    """Return how a patch is covered: wholly in the hidden area, less and less outside.

    The hidden area of a clipped region is both the ellipse of its visible rectangle, which is what the
    report tells, and the visible part of the whole ellipse.
    """
    xs = np.arange(shape_hw[1], dtype=np.float32) + np.float32(origin_xy[0] + 0.5)
    ys = np.arange(shape_hw[0], dtype=np.float32) + np.float32(origin_xy[1] + 0.5)
    box = tuple(float(v) for v in region.box)
    if shape is Shape.BOX:
        return _from_shares(_box_shares(xs, ys, box, feather))
    coverage = _ellipse_coverage(xs, ys, box, feather)
    if region.ellipse != box:
        other = _ellipse_coverage(xs, ys, region.ellipse, feather)
        return _from_shares(np.maximum(_shares(coverage), _shares(other)))
    return coverage


def _shares(coverage: _Coverage) -> NDArray[np.float32]:
    """Return (H, W) the covered part of every pixel."""
    shares = coverage.inside.astype(np.float32)
    shares[coverage.rows, coverage.columns] = coverage.share
    return shares


def _from_shares(shares: NDArray[np.float32]) -> _Coverage:
    rows, columns = _places((shares > 0) & (shares < 1))
    return _Coverage(shares == 1, rows, columns, shares[rows, columns])


def _box_shares(
    xs: NDArray[np.float32], ys: NDArray[np.float32], box: tuple[float, ...], feather: int
) -> NDArray[np.float32]:
    x0, y0, x1, y1 = box
    beyond_x = np.clip(np.maximum(x0 - xs, xs - x1), 0, None)
    beyond_y = np.clip(np.maximum(y0 - ys, ys - y1), 0, None)
    beyond = np.maximum(beyond_x[None, :], beyond_y[:, None])
    return np.asarray(np.clip(1 - beyond / feather, 0, 1), np.float32)


def _ellipse_coverage(
    xs: NDArray[np.float32], ys: NDArray[np.float32], box: tuple[float, ...], feather: int
) -> _Coverage:
    """Fall from 1 on the ellipse to 0 on the one with half-axes ``feather`` px longer."""
    x0, y0, x1, y1 = box
    dx, dy, half_w, half_h = xs - (x0 + x1) / 2, ys - (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2
    inside = _between(dx, _half_chords(dy, half_w, half_h))
    near = _between(dx, _half_chords(dy, half_w + feather, half_h + feather))
    rows, columns = _places(near & ~inside)
    to_inner = np.hypot(dx[columns] / half_w, dy[rows] / half_h) - 1
    to_outer = 1 - np.hypot(dx[columns] / (half_w + feather), dy[rows] / (half_h + feather))
    share = np.clip(to_outer / np.maximum(to_inner + to_outer, 1e-6), 0, 1).astype(np.float32)
    return _Coverage(inside, rows, columns, share)


def _half_chords(dy: NDArray[np.float32], half_w: float, half_h: float) -> NDArray[np.float32]:
    """Return how far an ellipse reaches to each side at these heights over its centre; -1 where it does not."""
    squared = 1 - (dy / half_h) ** 2
    chords: NDArray[np.float32] = np.where(squared >= 0, half_w * np.sqrt(np.maximum(squared, 0)), -1)
    return chords.astype(np.float32)


def _between(dx: NDArray[np.float32], reach: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return (H, W) which of the places (W,) lie within the reach (H,) of each row."""
    first = np.searchsorted(dx, -reach, side="left").astype(np.int16)
    stop = np.searchsorted(dx, reach, side="right").astype(np.int16)
    number = np.arange(len(dx), dtype=np.int16)
    return np.asarray((number >= first[:, None]) & (number < stop[:, None]), np.bool_)


def _places(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return rows and columns where a mask (H, W) is true: numpy.nonzero, three times quicker."""
    rows, columns = np.divmod(np.flatnonzero(mask), mask.shape[1])
    return rows, columns


def _outline(shape_hw: tuple[int, ...], origin_xy: tuple[int, int], region: Region) -> NDArray[np.float32]:
    """Return (H, W) how much of each pixel lies on a line of ``BOX_WIDTH_PX`` along the region's border."""
    xs = np.arange(shape_hw[1], dtype=np.float32) + np.float32(origin_xy[0] + 0.5)
    ys = np.arange(shape_hw[0], dtype=np.float32) + np.float32(origin_xy[1] + 0.5)
    dx = np.maximum(region.x0 - xs, xs - region.x1)[None, :]
    dy = np.maximum(region.y0 - ys, ys - region.y1)[:, None]
    beyond = np.hypot(np.clip(dx, 0, None), np.clip(dy, 0, None))  # rounds the outer corners
    within = np.minimum(np.maximum(dx, dy), 0)
    return np.asarray(np.clip((BOX_WIDTH_PX + 1) / 2 - np.abs(beyond + within), 0, 1), np.float32)
