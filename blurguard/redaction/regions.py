"""Regions to hide: face boxes enlarged by a margin, rounded outward and clipped to the image."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from blurguard.types import Detections, Region

# A face box is a guess: however small the face, this many px round it are hidden too.
MIN_MARGIN_PX = 1.5


def regions_from(found: Detections, margin: float, width: int, height: int) -> list[Region]:
    """Return what is to be hidden for each face, in the order of ``detections``; faces wholly outside have none.

    Args:
        found: faces in px of an image of ``width`` x ``height`` px.
        margin: share of the face's width and height that is added on each side.
        width: of the image, px.
        height: of the image, px.

    Rounds outward and clips to ``width`` and ``height`` themselves: a face at the edge is hidden to the
    last row and column.
    """
    paired = paired_regions(found, margin, width, height)
    return [region for region in paired if region is not None]


def paired_regions(found: Detections, margin: float, width: int, height: int) -> list[Region | None]:
    """Return the region of each face as ``regions_from`` does, None for a face outside the image."""
    size = np.clip(found.boxes[:, 2:] - found.boxes[:, :2], 0, None)
    grow = np.maximum(size * np.float32(margin), np.float32(MIN_MARGIN_PX))
    grown = np.concatenate([found.boxes[:, :2] - grow, found.boxes[:, 2:] + grow], axis=1)
    widths = size[:, 0].astype(float)
    return [_clip_region(box, face, width, height) for box, face in zip(grown.astype(float), widths, strict=True)]


def _clip_region(box: NDArray[np.float64], face_width: float, width: int, height: int) -> Region | None:
    """Round one enlarged box outward and clip it."""
    if not np.isfinite(box).all():
        raise ValueError(f"a face without a place cannot be hidden: {box}")
    x0, y0, x1, y1 = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if left >= right or top >= bottom:
        return None
    return Region(left, top, right, bottom, face_width, (float(x0), float(y0), float(x1), float(y1)))


def scale_to_plane(region: Region, step_xy: tuple[int, int], beyond: int = 1) -> Region:
    """Return a region in samples of a plane that has one for each ``step_xy`` px, as chroma has.

    The result is ``beyond`` samples larger on each side, unless samples are px, and may leave the plane by as
    many: an ellipse goes by their centres, and each that tells of a px in the region is to be inside.
    """
    if step_xy == (1, 1):
        return region
    steps = np.array(step_xy * 2)
    grow = np.array([-beyond, -beyond, beyond, beyond])
    box, ellipse = np.array(region.box) / steps + grow, np.array(region.ellipse) / steps + grow
    left, top, right, bottom = box.tolist()
    whole = math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
    x0, y0, x1, y1 = (float(v) for v in whole) if region.box == region.ellipse else ellipse.tolist()
    return Region(*whole, region.face_width / step_xy[0], (x0, y0, x1, y1))
