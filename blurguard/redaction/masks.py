"""Alpha masks of hidden regions: which pixels are covered, and how much of each pixel in the feather band."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blurguard.settings import Shape
from blurguard.types import Region

BOX_WIDTH_PX = 2


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """How much of each pixel of a patch is covered: (H, W) ``inside`` wholly, and a band of which part.

    ``rows``, ``columns`` and ``alpha`` (N,) are those of the band. Only the few pixels of the band need
    arithmetic, so no array of floats is made for all of them.
    """

    inside: NDArray[np.bool_]
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    alpha: NDArray[np.float32]


@functools.lru_cache(maxsize=1)  # both planes of chroma are covered alike
def make_mask(
    shape_hw: tuple[int, ...], origin_xy: tuple[int, int], region: Region, shape: Shape, feather: int
) -> Mask:
    """Return how a patch is covered: wholly in the hidden area, less and less outside.

    The hidden area of a clipped region is both the ellipse of its visible rectangle, which is what the
    report tells, and the visible part of the whole ellipse.
    """
    xs = np.arange(shape_hw[1], dtype=np.float32) + np.float32(origin_xy[0] + 0.5)
    ys = np.arange(shape_hw[0], dtype=np.float32) + np.float32(origin_xy[1] + 0.5)
    box = tuple(float(v) for v in region.box)
    if shape is Shape.BOX:
        return from_alpha(_box_alpha(xs, ys, box, feather))
    coverage = _ellipse_mask(xs, ys, box, feather)
    if region.ellipse != box:
        other = _ellipse_mask(xs, ys, region.ellipse, feather)
        return from_alpha(np.maximum(_to_alpha(coverage), _to_alpha(other)))
    return coverage


def _to_alpha(coverage: Mask) -> NDArray[np.float32]:
    """Return (H, W) the covered part of every pixel."""
    shares = coverage.inside.astype(np.float32)
    shares[coverage.rows, coverage.columns] = coverage.alpha
    return shares


def from_alpha(shares: NDArray[np.float32]) -> Mask:
    rows, columns = _nonzero((shares > 0) & (shares < 1))
    return Mask(shares == 1, rows, columns, shares[rows, columns])


def _box_alpha(
    xs: NDArray[np.float32], ys: NDArray[np.float32], box: tuple[float, ...], feather: int
) -> NDArray[np.float32]:
    x0, y0, x1, y1 = box
    beyond_x = np.clip(np.maximum(x0 - xs, xs - x1), 0, None)
    beyond_y = np.clip(np.maximum(y0 - ys, ys - y1), 0, None)
    beyond = np.maximum(beyond_x[None, :], beyond_y[:, None])
    return np.asarray(np.clip(1 - beyond / feather, 0, 1), np.float32)


def _ellipse_mask(xs: NDArray[np.float32], ys: NDArray[np.float32], box: tuple[float, ...], feather: int) -> Mask:
    """Fall from 1 on the ellipse to 0 on the one with half-axes ``feather`` px longer."""
    x0, y0, x1, y1 = box
    dx, dy, half_w, half_h = xs - (x0 + x1) / 2, ys - (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2
    inside = _within_chords(dx, _half_chords(dy, half_w, half_h))
    near = _within_chords(dx, _half_chords(dy, half_w + feather, half_h + feather))
    rows, columns = _nonzero(near & ~inside)
    to_inner = np.hypot(dx[columns] / half_w, dy[rows] / half_h) - 1
    to_outer = 1 - np.hypot(dx[columns] / (half_w + feather), dy[rows] / (half_h + feather))
    share = np.clip(to_outer / np.maximum(to_inner + to_outer, 1e-6), 0, 1).astype(np.float32)
    return Mask(inside, rows, columns, share)


def _half_chords(dy: NDArray[np.float32], half_w: float, half_h: float) -> NDArray[np.float32]:
    """Return how far an ellipse reaches to each side at these heights over its centre; -1 where it does not."""
    squared = 1 - (dy / half_h) ** 2
    chords: NDArray[np.float32] = np.where(squared >= 0, half_w * np.sqrt(np.maximum(squared, 0)), -1)
    return chords.astype(np.float32)


def _within_chords(dx: NDArray[np.float32], reach: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return (H, W) which of the places (W,) lie within the reach (H,) of each row."""
    first = np.searchsorted(dx, -reach, side="left").astype(np.int16)
    stop = np.searchsorted(dx, reach, side="right").astype(np.int16)
    number = np.arange(len(dx), dtype=np.int16)
    return np.asarray((number >= first[:, None]) & (number < stop[:, None]), np.bool_)


def _nonzero(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return rows and columns where a mask (H, W) is true: numpy.nonzero, three times quicker."""
    rows, columns = np.divmod(np.flatnonzero(mask), mask.shape[1])
    return rows, columns


def outline_alpha(shape_hw: tuple[int, ...], origin_xy: tuple[int, int], region: Region) -> NDArray[np.float32]:
    """Return (H, W) how much of each pixel lies on a line of ``BOX_WIDTH_PX`` along the region's border."""
    xs = np.arange(shape_hw[1], dtype=np.float32) + np.float32(origin_xy[0] + 0.5)
    ys = np.arange(shape_hw[0], dtype=np.float32) + np.float32(origin_xy[1] + 0.5)
    dx = np.maximum(region.x0 - xs, xs - region.x1)[None, :]
    dy = np.maximum(region.y0 - ys, ys - region.y1)[:, None]
    beyond = np.hypot(np.clip(dx, 0, None), np.clip(dy, 0, None))  # rounds the outer corners
    within = np.minimum(np.maximum(dx, dy), 0)
    return np.asarray(np.clip((BOX_WIDTH_PX + 1) / 2 - np.abs(beyond + within), 0, 1), np.float32)
