"""The data that travels between the rooms; hardly any behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8] | NDArray[np.uint16]


class Layout(StrEnum):
    """What the channels of an image mean; alpha, where there is one, is the last channel."""

    GREY = "grey"
    GREY_ALPHA = "grey+alpha"
    RGB = "rgb"
    RGBA = "rgba"
    CMYK = "cmyk"

    @property
    def channels(self) -> int:
        """Channels in all, alpha included."""
        return {"grey": 1, "grey+alpha": 2, "rgb": 3, "rgba": 4, "cmyk": 4}[self.value]

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is opacity and not ink or light."""
        return self in (Layout.GREY_ALPHA, Layout.RGBA)

    @property
    def colors(self) -> int:
        """Channels that show something: all but alpha."""
        return self.channels - self.has_alpha


class Palette(NamedTuple):
    """The indexed form of an image: ``colors[indices]`` are its pixels."""

    colors: NDArray[np.uint8]  # (N, C), N <= 256
    indices: NDArray[np.uint8]  # (H, W)


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """One upright picture in the file's own channels and depth; never BGR.

    Attributes:
        pixels: (H, W, C) uint8 or uint16.
        layout: what the C channels mean.
        palette: how the file stores these pixels when it stores indices.
    """

    pixels: Pixels
    layout: Layout
    palette: Palette | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that no format of ours has, before they travel any further."""
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
        """The largest value of a channel: 255 or 65535."""
        return int(np.iinfo(self.pixels.dtype).max)

    def rgb8(self) -> NDArray[np.uint8]:
        """Return the picture as detection sees it: (H, W, 3) uint8 RGB; alpha is ignored.

        Alpha is ignored on purpose: whoever gets the file can ignore it too. A view of the pixels where
        they are RGB already.
        """
        color = _to_8_bit(self.pixels[:, :, : self.layout.colors])
        if self.layout in (Layout.GREY, Layout.GREY_ALPHA):
            return np.repeat(color, 3, axis=2)
        if self.layout is Layout.CMYK:
            light = 255 - color.astype(np.uint16)
            return (light[:, :, :3] * light[:, :, 3:] // 255).astype(np.uint8)
        return color


def _to_8_bit(color: Pixels) -> NDArray[np.uint8]:
    """(H, W, C) of any depth -> uint8; 16-bit pictures that use only the low values are stretched.

    12-bit scans stored in 16 bits would otherwise reach the detector as black pictures.
    """
    if color.dtype == np.uint8:
        return np.asarray(color, np.uint8)
    top = max(int(np.percentile(color[::4, ::4], 99.9)), 255)
    if top >= 1 << 15:
        return (color >> 8).astype(np.uint8)
    scale = np.float32(255 / top)
    return np.asarray(np.clip(color * scale, 0, 255), np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Faces as a detector saw them.

    Attributes:
        boxes: float32 (N, 4), x0 y0 x1 y1 in px of the whole upright image; may lie outside it.
        scores: float32 (N,), 0 to 1, in falling order.
        flaw: the exposure defect for which the detector added a second pass, or ``""``.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    flaw: str = ""

    def __post_init__(self) -> None:
        """Make the arrays what the docstring says, and read-only."""
        boxes = np.array(self.boxes, np.float32).reshape(-1, 4)
        scores = np.array(self.scores, np.float32).reshape(-1)
        if len(boxes) != len(scores):
            raise ValueError(f"{len(boxes)} boxes but {len(scores)} scores")
        boxes.flags.writeable = scores.flags.writeable = False
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "scores", scores)

    def __len__(self) -> int:
        """Count the faces."""
        return len(self.scores)


@dataclass(frozen=True, slots=True)
class Region:
    """A hidden rectangle, or the one round a hidden ellipse: ints, half-open, inside the image, never empty.

    Only ``geometry.regions_from`` makes them. ``face_width`` is the width in px of the face that it hides:
    the strength of the blur follows it.
    """

    x0: int
    y0: int
    x1: int
    y1: int
    face_width: float
    # The rectangle before clipping: at the picture's edge the ellipse keeps its true centre and axes.
    ellipse: tuple[float, float, float, float]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1)."""
        return self.x0, self.y0, self.x1, self.y1


@dataclass(frozen=True, slots=True)
class Face:
    """One hidden face as a report tells it: ``box`` as detected, ``region`` as hidden, px of the upright image.

    Attributes:
        box: in a video or animation, where it was seen best.
        score: there.
        region: there.
        frame: the number of that page or frame.
        span: first and last frame in which the face is hidden, in a video or animation.
        path: float32 (N, 4), where the face is taken to be in each frame of the span, when that was asked for.
    """

    box: tuple[float, float, float, float]
    score: float
    region: tuple[int, int, int, int]
    frame: int = 0
    span: tuple[int, int] | None = None
    path: NDArray[np.float32] | None = field(default=None, compare=False)

    def as_json(self) -> dict[str, Any]:
        """Return the face as JSON types; ``frame`` only where there can be several."""
        record: dict[str, Any] = {
            "box": [round(v, 2) for v in self.box],
            "score": round(self.score, 4),
            "region": list(self.region),
        }
        if self.frame or self.span:
            record["frame"] = self.frame
        if self.span is not None:
            record["frames"] = list(self.span)
        if self.path is not None:
            record["boxes"] = [[round(v, 2) for v in box] for box in self.path.tolist()]
        return record


class Status(StrEnum):
    """How one file ended. Skipped is never counted as done."""

    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file; the report's lines and the exit code are computed from these.

    Attributes:
        source: the file as it was named.
        target: where the result is, or would be; None when nothing was to be written.
        kind: the format by content, e.g. ``"JPEG"``; ``""`` when it could not be told.
        error: class name of the failure, ``""`` otherwise.
        exit_code: 0, or that of the failure.
        reason: why it was skipped, what failed and what to do about it, or what of a done one was lost.
        frames: pictures inside the file (pages, frames).
        seconds: wall time spent on this file.
        model: name and SHA-256 of the weights that looked.
        second_pass: the exposure defects for which detection added a second pass; ``""`` mostly.
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
