"""Regions to hide: face boxes enlarged by a margin, rounded outward and clipped to the image."""

import math

import numpy as np
from numpy.typing import NDArray

from blurguard.types import Detections, Region

# A face box is an estimate. However small the face, at least this border around it is hidden too.
MIN_MARGIN_PX = 1.5


def regions_from(detections: Detections, margin: float, width: int, height: int) -> list[Region]:
    """Return the region of each face, in the order of the detections. Faces outside the image have none.

    Regions are rounded outward and clipped to the image's size, so a face at the edge is hidden to the last
    row and column.

    Args:
        detections: faces in px of the image.
        margin: share of the face's width and height that is added on each side.
        width: of the image, px.
        height: of the image, px.

    Raises:
        ValueError: a box has a coordinate that is not finite.
    """
    return [region for region in paired_regions(detections, margin, width, height) if region is not None]


def paired_regions(detections: Detections, margin: float, width: int, height: int) -> list[Region | None]:
    """Return one item per face: its region as of ``regions_from``, or None for a face outside the image."""
    size = np.clip(detections.boxes[:, 2:] - detections.boxes[:, :2], 0, None)
    grow = np.maximum(size * np.float32(margin), np.float32(MIN_MARGIN_PX))
    grown = np.concatenate([detections.boxes[:, :2] - grow, detections.boxes[:, 2:] + grow], axis=1)
    widths = size[:, 0].astype(float)
    return [_clip_region(box, face, width, height) for box, face in zip(grown.astype(float), widths, strict=True)]


def _clip_region(box: NDArray[np.float64], face_width: float, width: int, height: int) -> Region | None:
    """Round one enlarged box outward and clip it to the image."""
    if not np.isfinite(box).all():
        raise ValueError(f"a face without a place cannot be hidden: {box}")
    x0, y0, x1, y1 = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if left >= right or top >= bottom:
        return None
    return Region(left, top, right, bottom, face_width, (float(x0), float(y0), float(x1), float(y1)))


def scale_to_plane(region: Region, step_xy: tuple[int, int], beyond: int = 1) -> Region:
    """Return a region in samples of a plane, for example of subsampled chroma.

    An ellipse covers a sample by its center, but each sample that shows a hidden px has to be covered. So the
    result grows by ``beyond`` samples on each side, and may leave the plane by as many. If samples are px, the
    region stays as it is.

    Args:
        region: px of the image.
        step_xy: width and height of a sample, px.
        beyond: samples.
    """
    if step_xy == (1, 1):
        return region
    steps, grow = np.array(step_xy * 2), np.array([-beyond, -beyond, beyond, beyond])
    box, ellipse = np.array(region.box) / steps + grow, np.array(region.ellipse) / steps + grow
    left, top, right, bottom = box.tolist()
    whole = math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)
    x0, y0, x1, y1 = (float(v) for v in whole) if region.box == region.ellipse else ellipse.tolist()
    return Region(*whole, region.face_width / step_xy[0], (x0, y0, x1, y1))
