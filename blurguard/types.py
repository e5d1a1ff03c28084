"""Data classes shared by all packages."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8] | NDArray[np.uint16]


class Layout(StrEnum):
    """Meaning of an image's channels. Alpha, if any, is the last channel."""

    GREY = "grey"
    GREY_ALPHA = "grey+alpha"
    RGB = "rgb"
    RGBA = "rgba"
    CMYK = "cmyk"

    @property
    def channels(self) -> int:
        """Number of channels, alpha included."""
        return {"grey": 1, "grey+alpha": 2, "rgb": 3, "rgba": 4, "cmyk": 4}[self.value]

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self in (Layout.GREY_ALPHA, Layout.RGBA)

    @property
    def colors(self) -> int:
        """Number of color channels: all but alpha."""
        return self.channels - self.has_alpha


class Palette(NamedTuple):
    """Indexed form of an image: ``colors[indices]`` are its pixels."""

    colors: NDArray[np.uint8]  # (N, C), N <= 256
    indices: NDArray[np.uint8]  # (H, W)


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """One upright image in the file's own channels and bit depth. Never BGR.

    Attributes:
        pixels: (H, W, C) uint8 or uint16.
        layout: meaning of the C channels.
        palette: indexed form of the pixels, if the file stores one.
    """

    pixels: Pixels
    layout: Layout
    palette: Palette | None = None

    def __post_init__(self) -> None:
        """Check shape and type of the pixels.

        Raises:
            ValueError: they do not fit the layout, or are neither uint8 nor uint16.
        """
        if self.pixels.ndim != 3 or self.pixels.shape[2] != self.layout.channels or not self.pixels.size:
            raise ValueError(f"{self.layout} pixels need shape (H, W, {self.layout.channels}): {self.pixels.shape}")
        if self.pixels.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"pixels must be uint8 or uint16, not {self.pixels.dtype}")

    @property
    def height(self) -> int:
        """Rows, px."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Columns, px."""
        return int(self.pixels.shape[1])

    @property
    def white(self) -> int:
        """Largest value of a channel: 255 or 65535."""
        return int(np.iinfo(self.pixels.dtype).max)

    def rgb8(self) -> NDArray[np.uint8]:
        """Return the image for detection, (H, W, 3) uint8 RGB: a view if the pixels are that already.

        Alpha is ignored on purpose: any viewer of the file can ignore it too.
        """
        color = _to_8_bit(self.pixels[:, :, : self.layout.colors])
        if self.layout.colors == 1:
            return np.repeat(color, 3, axis=2)
        if self.layout is Layout.CMYK:
            light = 255 - color.astype(np.uint16)
            return (light[:, :, :3] * light[:, :, 3:] // 255).astype(np.uint8)
        return color


def _to_8_bit(color: Pixels) -> NDArray[np.uint8]:
    """Return (H, W, C) of any depth as uint8. 16-bit images that use only low values are stretched.

    Otherwise 12-bit scans stored in 16 bits would be black for the detector.
    """
    if color.dtype == np.uint8:
        return np.asarray(color, np.uint8)
    top = max(int(np.percentile(color[::4, ::4], 99.9)), 255)
    if top >= 1 << 15:
        return (color >> 8).astype(np.uint8)
    return np.asarray(np.clip(color * np.float32(255 / top), 0, 255), np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Faces detected in one image.

    Attributes:
        boxes: float32 (N, 4), x0 y0 x1 y1 in px of the whole upright image. They may extend beyond it.
        scores: float32 (N,), 0 to 1, in falling order.
        flaw: the ``detection.lighting.exposure_defect`` that caused a second pass, or ``""``.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    flaw: str = ""

    def __post_init__(self) -> None:
        """Convert the arrays to these types and shapes, and make them read-only.

        Raises:
            ValueError: the numbers of boxes and scores differ.
        """
        boxes, scores = np.array(self.boxes, np.float32).reshape(-1, 4), np.array(self.scores, np.float32).reshape(-1)
        if len(boxes) != len(scores):
            raise ValueError(f"{len(boxes)} boxes but {len(scores)} scores")
        boxes.flags.writeable = scores.flags.writeable = False
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "scores", scores)

    def __len__(self) -> int:
        """Return the number of faces."""
        return len(self.scores)


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle that is hidden, or the ellipse in it: half-open, inside the image, never empty.

    Only ``redaction.regions`` makes them.

    Attributes:
        x0: left edge, px.
        y0: top edge, px.
        x1: right edge, px.
        y1: bottom edge, px.
        face_width: of the hidden face, px. The strength of the blur follows it.
        ellipse: the rectangle before clipping. At the image's edge the ellipse keeps its true center and axes.
    """

    x0: int
    y0: int
    x1: int
    y1: int
    face_width: float
    ellipse: tuple[float, float, float, float]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1)."""
        return self.x0, self.y0, self.x1, self.y1


@dataclass(frozen=True, slots=True)
class Face:
    """One hidden face, for reports. In a video or animation its best detection stands for all.

    Attributes:
        box: x0 y0 x1 y1 as detected, px of the upright image.
        score: 0 to 1, of this detection.
        region: x0 y0 x1 y1 as hidden, px of the upright image.
        frame: number of the page or frame of this detection.
        span: first and last frame in which the face is hidden, in a video or animation.
        path: float32 (N, 4), the box in each frame of the span, if requested.
    """

    box: tuple[float, float, float, float]
    score: float
    region: tuple[int, int, int, int]
    frame: int = 0
    span: tuple[int, int] | None = None
    path: NDArray[np.float32] | None = field(default=None, compare=False)

    def as_json(self) -> dict[str, Any]:
        """Return the face as JSON types, with ``frame`` only for files of several frames."""
        record: dict[str, Any] = {"box": [round(v, 2) for v in self.box], "score": round(self.score, 4)}
        record["region"] = list(self.region)
        if self.frame or self.span:
            record["frame"] = self.frame
        if self.span is not None:
            record["frames"] = list(self.span)
        if self.path is not None:
            record["boxes"] = [[round(v, 2) for v in box] for box in self.path.tolist()]
        return record


class Status(StrEnum):
    """Result of one file. Skipped files never count as done."""

    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one file. Reports and exit codes are computed from it.

    Attributes:
        source: the file, as named by the user.
        status: done, skipped or failed.
        target: intended path of the result, which may not exist. None if no result was requested.
        kind: format by content, e.g. ``"JPEG"``, or ``""`` if unknown.
        reason: of a skip, of a failure with its remedy, or losses of a file that is done.
        error: class name of the failure, or ``""``.
        exit_code: of the failure, or 0.
        faces: all hidden faces.
        frames: number of pages or frames in the file.
        width: of the first upright page or frame, px.
        height: of the first upright page or frame, px.
        seconds: wall time spent on this file.
        model: name and SHA-256 of the detector's weights.
        second_pass: each ``detection.lighting.exposure_defect`` that caused a second pass, or ``""``.
    """

    source: Path
    status: Status
    target: Path | None = None
    kind: str = ""
    reason: str = ""
    error: str = ""
    exit_code: int = 0
    faces: tuple[Face, ...] = ()
    frames: int = 0
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    model: str = ""
    second_pass: str = ""
