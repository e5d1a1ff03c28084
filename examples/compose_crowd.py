"""Compose a crowd picture with exactly known face boxes from the example photos.

Heads are cut out of the photos in ``photos/``, scaled, turned and pasted onto a patchwork of
photo, foliage, noise and plain backgrounds. The boxes follow from ``faces.json`` through the same
affine transform that moves the pixels, so they are exact at every size.

    python examples/compose_crowd.py [--out DIR] [--seed N]

Without ``--out`` the committed files are rewritten: ``photos/crowd.jpg`` and ``crowd.json``.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]
Texture = Callable[[np.random.Generator, int, int], Image]

HERE = Path(__file__).resolve().parent
PHOTOS = HERE / "photos"
DEFAULT_SEED = 7
DEFAULT_SIZE = (1920, 1280)
DEFAULT_FACES = 72
EDGES = ("left", "top", "right", "bottom")
# Share of the faces and their heights in px: many small ones, as in a real crowd.
HEIGHT_BANDS = ((0.36, 10, 20), (0.34, 20, 40), (0.16, 40, 90), (0.09, 90, 160), (0.05, 160, 250))
# The cut-out around a face box, in box widths and heights: hair or a hat above, shoulders below.
PAD_X, PAD_TOP, PAD_BOTTOM = 0.5, 0.6, 0.55
MAX_UPSCALE = 1.3
PLAIN_PHOTOS = {"coffee.jpg": 1.0, "rocket.jpg": 1.0, "chelsea.jpg": 0.3}


class Face(TypedDict):
    """One annotated face: half-open px box, the photo it came from and how much of it shows."""

    box: list[float]
    source: str
    clipped: bool
    occluded: float


@dataclass(frozen=True)
class Cutout:
    """A head cut out of a photo, with its face box in the cut-out's own pixels."""

    source: str
    pixels: Image
    box: Box

    @property
    def face_height(self) -> float:
        """Height of the face box in source pixels."""
        return self.box[3] - self.box[1]


@dataclass
class Placement:
    """Where and how one cut-out goes onto the canvas."""

    cutout: Cutout
    height: float
    angle: float
    flip: bool
    framed: bool
    center: tuple[float, float] = (0.0, 0.0)

    @property
    def scale(self) -> float:
        """Scale that gives the turned face exactly the wanted height."""
        return self.height / _spread(self.cutout.box, self.angle)[1]

    def face_box(self) -> Box:
        """Return the exact box of the face on the canvas, before clipping."""
        width, height = _spread(self.cutout.box, self.angle)
        half_w, half_h = width * self.scale / 2, height * self.scale / 2
        x, y = self.center
        return (x - half_w, y - half_h, x + half_w, y + half_h)

    def tile_box(self) -> Box:
        """Return the bounds of the whole cut-out on the canvas, before clipping."""
        corners = self.matrix() @ _corners(self.cutout.pixels.shape[1], self.cutout.pixels.shape[0])
        low, high = corners.min(axis=1), corners.max(axis=1)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    def matrix(self) -> npt.NDArray[np.float64]:
        """Return the 2x3 affine from cut-out to canvas; coordinates are pixel edges, not centers."""
        x0, y0, x1, y1 = self.cutout.box
        cos, sin = math.cos(self.angle) * self.scale, math.sin(self.angle) * self.scale
        mirror = -1.0 if self.flip else 1.0
        linear = np.array([[cos * mirror, -sin], [sin * mirror, cos]])
        shift = np.array(self.center) - linear @ np.array([(x0 + x1) / 2, (y0 + y1) / 2])
        return np.hstack([linear, shift[:, None]])


@dataclass
class Canvas:
    """The picture being composed and the faces already on it."""

    image: Image
    placed: list[Placement] = field(default_factory=list)
    visible: list[tuple[tuple[int, int, int, int], npt.NDArray[np.bool_], int]] = field(default_factory=list)

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in px."""
        return self.image.shape[1], self.image.shape[0]


def _spread(box: Box, angle: float) -> tuple[float, float]:
    """Width and height of the turned face.

    A face fills the ellipse in its box, not the corners; the bounds of the turned ellipse stay
    tight where those of the turned rectangle would grow.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    cos, sin = math.cos(angle), math.sin(angle)
    return math.hypot(width * cos, height * sin), math.hypot(width * sin, height * cos)


def _corners(width: float, height: float) -> npt.NDArray[np.float64]:
    return np.array([[0, width, width, 0], [0, 0, height, height], [1, 1, 1, 1]], dtype=np.float64)


def _load(name: str) -> Image:
    bgr = cv2.imread(str(PHOTOS / name), cv2.IMREAD_COLOR)
    if bgr is None:
        raise FileNotFoundError(PHOTOS / name)
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _cut(name: str, box: list[int]) -> Cutout:
    photo = _load(name)
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    left, top = max(0, round(x0 - PAD_X * width)), max(0, round(y0 - PAD_TOP * height))
    right = min(photo.shape[1], round(x1 + PAD_X * width))
    bottom = min(photo.shape[0], round(y1 + PAD_BOTTOM * height))
    return Cutout(name, photo[top:bottom, left:right].copy(), (x0 - left, y0 - top, x1 - left, y1 - top))


@functools.cache
def _cutouts() -> tuple[Cutout, ...]:
    photos: dict[str, list[list[int]]] = json.loads((HERE / "faces.json").read_text("utf-8"))["photos"]
    return tuple(_cut(name, box) for name, boxes in sorted(photos.items()) for box in boxes)


@functools.cache
def _plain_photo(name: str) -> Image:
    photo = _load(name)
    # The cat's face is left out: only its fur is background.
    return photo[:, : round(photo.shape[1] * PLAIN_PHOTOS[name])]


# ---- backgrounds -------------------------------------------------------------------------------


def _to_image(values: npt.NDArray[np.floating]) -> Image:
    return np.asarray(np.clip(values, 0, 255), dtype=np.uint8)


def _smooth_noise(rng: np.random.Generator, width: int, height: int, step: int) -> Floats:
    """Return noise in [0, 1] with features about ``step`` px wide."""
    coarse = rng.random((max(2, height // step), max(2, width // step), 3), dtype=np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def _photo_texture(rng: np.random.Generator, width: int, height: int) -> Image:
    photo = _plain_photo(sorted(PLAIN_PHOTOS)[int(rng.integers(len(PLAIN_PHOTOS)))])
    share = rng.uniform(0.4, 0.9)
    cut_h, cut_w = max(8, int(photo.shape[0] * share)), max(8, int(photo.shape[1] * share))
    y, x = (int(rng.integers(photo.shape[i] - cut + 1)) for i, cut in enumerate((cut_h, cut_w)))
    window = photo[y : y + cut_h, x : x + cut_w]
    shrinks = cut_w > width and cut_h > height
    mode = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(window, (width, height), interpolation=mode), dtype=np.uint8)


def _gradient_texture(rng: np.random.Generator, width: int, height: int) -> Image:
    first, second = rng.uniform(20, 235, 3), rng.uniform(20, 235, 3)
    ramp = np.linspace(0, 1, height)[:, None, None] * 0.6 + np.linspace(0, 0.4, width)[None, :, None]
    return _to_image(first * (1 - ramp) + second * ramp)


def _noise_texture(rng: np.random.Generator, width: int, height: int) -> Image:
    base = rng.uniform(50, 200, 3).astype(np.float32)
    image = np.broadcast_to(base, (height, width, 3))
    for step, gain in ((40, 70), (9, 40), (3, 20)):
        image = image + (_smooth_noise(rng, width, height, step) - np.float32(0.5)) * np.float32(gain)
    return _to_image(image)


def _plain(rng: np.random.Generator, width: int, height: int, level: float) -> Image:
    tint = rng.uniform(-10, 10, 3).astype(np.float32)
    return _to_image(level + tint + (_smooth_noise(rng, width, height, 24) - 0.5) * 14)


def _dark_texture(rng: np.random.Generator, width: int, height: int) -> Image:
    return _plain(rng, width, height, rng.uniform(12, 45))


def _bright_texture(rng: np.random.Generator, width: int, height: int) -> Image:
    return _plain(rng, width, height, rng.uniform(205, 240))


def _foliage_texture(rng: np.random.Generator, width: int, height: int) -> Image:
    image = _to_image(np.array([25, 45, 20], np.float32) + _smooth_noise(rng, width, height, 30) * 25)
    for _ in range(width * height // 260):
        center = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(rng.integers(6, 17)), int(rng.integers(2, 6)))
        light = rng.uniform(0.35, 1.15)
        color = tuple(float(light * part) for part in (rng.uniform(60, 120), rng.uniform(110, 165), 45.0))
        cv2.ellipse(image, center, axes, float(rng.uniform(0, 180)), 0, 360, color, -1, cv2.LINE_AA)
    return image


def _brick_texture(rng: np.random.Generator, width: int, height: int) -> Image:
    brick_w, brick_h = int(rng.integers(36, 80)), int(rng.integers(14, 30))
    y, x = np.mgrid[0:height, 0:width]
    row = y // brick_h
    mortar = (y % brick_h < 2) | ((x + row % 2 * brick_w // 2) % brick_w < 2)
    color = np.array([rng.uniform(110, 180), rng.uniform(70, 120), rng.uniform(55, 100)])
    wall = color + (_smooth_noise(rng, width, height, 18) - 0.5) * 45
    return _to_image(np.where(mortar[:, :, None], 165.0, wall))


TEXTURES: tuple[Texture, ...] = (
    _foliage_texture,
    _photo_texture,
    _dark_texture,
    _gradient_texture,
    _brick_texture,
    _photo_texture,
    _noise_texture,
    _bright_texture,
)


def _cells(rng: np.random.Generator, width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Split the canvas into uneven rectangles (x, y, w, h)."""
    todo, done = [(0, 0, width, height)], []
    while todo:
        x, y, w, h = todo.pop()
        if max(w, h) <= 620:
            done.append((x, y, w, h))
            continue
        cut = int(max(w, h) * rng.uniform(0.38, 0.62))
        if w >= h:
            todo += [(x, y, cut, h), (x + cut, y, w - cut, h)]
        else:
            todo += [(x, y, w, cut), (x, y + cut, w, h - cut)]
    return done


def _background(seed: int, width: int, height: int) -> Image:
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    cells = _cells(rng, width, height)
    for index, cell in enumerate(cells):
        x, y, w, h = cell
        image[y : y + h, x : x + w] = TEXTURES[index % len(TEXTURES)](rng, w, h)
    # Uneven light across the whole picture gives each texture darker and brighter stretches.
    coarse = rng.uniform(0.7, 1.15, (4, 6)).astype(np.float32)
    light = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return _to_image(image * np.asarray(light, dtype=np.float32)[:, :, None])


# ---- layout: decided with random.Random alone, whose stream no library update changes ----------


def _heights(rng: random.Random, count: int, limit: float) -> list[float]:
    heights = []
    for share, low, high in HEIGHT_BANDS:
        wanted = max(1, round(share * count))
        heights += [low + (high - low) * (i + rng.random()) / wanted for i in range(wanted)]
    # The ends of the range are always there, so that tests may rely on them.
    heights[0], heights[-1] = 10.0, 245.0
    heights = (heights + [rng.uniform(10, 40) for _ in range(count)])[: max(0, count - 1)] + heights[-1:]
    return sorted((min(height, limit) for height in heights[:count]), reverse=True)


def _new_placement(rng: random.Random, height: float) -> Placement:
    fitting = [cutout for cutout in _cutouts() if cutout.face_height * MAX_UPSCALE >= height]
    cutout = rng.choice(fitting or [max(_cutouts(), key=lambda one: one.face_height)])
    angle = math.radians(rng.uniform(-9, 9))
    return Placement(cutout, height, angle, rng.random() < 0.5, framed=rng.random() < 0.3)


def _overlap(first: Box, second: Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _is_free(placement: Placement, placed: list[Placement], strict: bool) -> bool:
    """Tell whether neither this face nor any other gets hidden; strict keeps shoulders apart too."""
    tile, face = placement.tile_box(), placement.face_box()
    for other in placed:
        if _overlap(tile, other.tile_box() if strict else other.face_box()):
            return False
        if _overlap(face, other.face_box()):
            return False
    return True


def _inside_center(rng: random.Random, placement: Placement, size_wh: tuple[int, int]) -> tuple[float, float]:
    x0, y0, x1, y1 = placement.face_box()
    half = (x1 - x0) / 2 + 1, (y1 - y0) / 2 + 1
    x, y = (rng.uniform(h, max(h, side - h)) for h, side in zip(half, size_wh, strict=True))
    return x, y


def _edge_center(rng: random.Random, placement: Placement, size_wh: tuple[int, int], edge: str) -> tuple[float, float]:
    """Return a center that leaves 60 to 85 % of the face inside the given edge."""
    x, y = _inside_center(rng, placement, size_wh)
    x0, y0, x1, y1 = placement.face_box()
    inside = rng.uniform(0.1, 0.35)
    across, down = (x1 - x0) * inside, (y1 - y0) * inside
    spots = {
        "left": (across, y),
        "top": (x, down),
        "right": (size_wh[0] - across, y),
        "bottom": (x, size_wh[1] - down),
    }
    return spots[edge]


def _place_free(rng: random.Random, placement: Placement, canvas: Canvas, edge: str | None) -> None:
    """Find a free spot; the face shrinks when the picture is too full for it."""
    while True:
        for attempt in range(160):
            size = canvas.size_wh
            placement.center = (
                _edge_center(rng, placement, size, edge) if edge else _inside_center(rng, placement, size)
            )
            if _is_free(placement, canvas.placed, strict=attempt < 80):
                return
        if placement.height < 8:
            raise ValueError("too many faces for this picture size")
        placement.height *= 0.8


def _place_over(rng: random.Random, placement: Placement, canvas: Canvas) -> bool:
    """Put the face half over one that is somewhat larger; False when there is no good spot."""
    width, height = canvas.size_wh
    # A whole rectangle could hide the other face altogether.
    placement.framed = False
    for other in rng.sample(canvas.placed, len(canvas.placed)):
        if not placement.height <= other.height <= 2 * placement.height:
            continue
        x0, y0, x1, y1 = other.face_box()
        side = rng.choice((-1, 1))
        placement.center = (
            other.center[0] + side * (0.8 * placement.height + 0.1 * (x1 - x0)),
            other.center[1] + 0.45 * (y1 - y0),
        )
        box = placement.face_box()
        fits = box[0] > 0 and box[1] > 0 and box[2] < width and box[3] < height
        rest = [one for one in canvas.placed if one is not other]
        if fits and _is_free(placement, rest, strict=False):
            return True
    return False


# ---- drawing -----------------------------------------------------------------------------------


def _mask(cutout: Cutout, framed: bool) -> Floats:
    """Return the soft outline of head and shoulders, or of the whole rectangle, in [0, 1]."""
    height, width = cutout.pixels.shape[:2]
    if framed:
        return np.ones((height, width), np.float32)
    x0, y0, x1, y1 = cutout.box
    face_w, face_h, middle = x1 - x0, y1 - y0, (x0 + x1) / 2
    mask = np.zeros((height, width), np.uint8)
    head = (round(middle), round(y0 + 0.36 * face_h)), (round(0.74 * face_w), round(0.86 * face_h))
    body = (round(middle), round(y1 + 0.62 * face_h)), (round(0.98 * face_w), round(0.62 * face_h))
    for center, axes in (head, body):
        cv2.ellipse(mask, center, axes, 0, 0, 360, 255, -1, cv2.LINE_AA)
    # Not faded at the border of the cut-out: shoulders end in a straight line, as in a portrait.
    soft = cv2.GaussianBlur(mask, (0, 0), 0.05 * face_h, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(soft, dtype=np.float32) / np.float32(255)


def _toned(pixels: Image, rng: np.random.Generator) -> Image:
    """Vary brightness, contrast and color a little."""
    contrast, shift = rng.uniform(0.8, 1.15), rng.uniform(-22, 18)
    tint = rng.uniform(0.96, 1.04, 3)
    return _to_image(((pixels.astype(np.float32) - 128) * contrast + 128 + shift) * tint)


def _clip(box: Box, size_wh: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the whole pixels that a box touches inside the picture."""
    width, height = size_wh
    x0, y0 = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    return x0, y0, max(x0, min(width, math.ceil(box[2]))), max(y0, min(height, math.ceil(box[3])))


def _shrink(layer: Floats, scale: float) -> Floats:
    """Shrink by area averaging, which does not alias; enlarging is left to the warp."""
    if scale >= 1:
        return layer
    size = max(1, round(layer.shape[1] * scale)), max(1, round(layer.shape[0] * scale))
    return np.asarray(cv2.resize(layer, size, interpolation=cv2.INTER_AREA), dtype=np.float32)


def _warp(layer: Floats, matrix: npt.NDArray[np.float64], window: tuple[int, int, int, int], border: int) -> Floats:
    """Draw a layer into a window of the canvas, first shrunk and then turned and shifted."""
    height, width = layer.shape[:2]
    small = _shrink(layer, math.sqrt(abs(float(np.linalg.det(matrix[:, :2])))))
    # Rounding the shrunk size changes the scale a little per axis; the matrix makes up for it.
    linear = matrix[:, :2] @ np.diag([width / small.shape[1], height / small.shape[0]])
    # OpenCV counts from pixel centers, the matrix from pixel edges.
    shift = matrix[:, 2] - np.array(window[:2]) + linear @ np.array([0.5, 0.5]) - 0.5
    size = (window[2] - window[0], window[3] - window[1])
    whole = np.hstack([linear, shift[:, None]])
    drawn = cv2.warpAffine(small, whole, size, flags=cv2.INTER_LINEAR, borderMode=border)
    return np.asarray(drawn, dtype=np.float32)


def _ellipse_pixels(box: Box, window: tuple[int, int, int, int]) -> npt.NDArray[np.bool_]:
    y, x = np.mgrid[window[1] : window[3], window[0] : window[2]] + 0.5
    across = (x - (box[0] + box[2]) / 2) / max((box[2] - box[0]) / 2, 0.5)
    down = (y - (box[1] + box[3]) / 2) / max((box[3] - box[1]) / 2, 0.5)
    return np.asarray(across**2 + down**2 <= 1)


def _hide(canvas: Canvas, alpha: Floats, window: tuple[int, int, int, int]) -> None:
    """Take the pixels that a new cut-out covers from the faces below it."""
    x0, y0, x1, y1 = window
    for (left, top, right, bottom), seen, _ in canvas.visible:
        a, b, c, d = max(x0, left), max(y0, top), min(x1, right), min(y1, bottom)
        if a < c and b < d:
            seen[b - top : d - top, a - left : c - left] &= alpha[b - y0 : d - y0, a - x0 : c - x0] < 0.5


def _paste(canvas: Canvas, placement: Placement, rng: np.random.Generator) -> None:
    window = _clip(placement.tile_box(), canvas.size_wh)
    matrix = placement.matrix()
    mask = _mask(placement.cutout, placement.framed)
    alpha = _warp(mask, matrix, window, cv2.BORDER_CONSTANT)
    pixels = _toned(placement.cutout.pixels, rng).astype(np.float32)
    colors = _warp(pixels, matrix, window, cv2.BORDER_REPLICATE)
    x0, y0, x1, y1 = window
    below = canvas.image[y0:y1, x0:x1].astype(np.float32)
    canvas.image[y0:y1, x0:x1] = _to_image(below + (colors - below) * alpha[:, :, None] + 0.5)
    _hide(canvas, alpha, window)
    box = placement.face_box()
    face_window = _clip(box, canvas.size_wh)
    seen = _ellipse_pixels(box, face_window)
    canvas.placed.append(placement)
    canvas.visible.append((face_window, seen, int(seen.sum())))


def _annotation(canvas: Canvas, index: int) -> Face:
    width, height = canvas.size_wh
    x0, y0, x1, y1 = canvas.placed[index].face_box()
    box = [max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1)]
    _, seen, total = canvas.visible[index]
    return {
        "box": [round(value, 1) for value in box],
        "source": canvas.placed[index].cutout.source,
        "clipped": box != [x0, y0, x1, y1],
        "occluded": round(1 - int(seen.sum()) / max(1, total), 2),
    }


def compose(
    seed: int = DEFAULT_SEED, size_wh: tuple[int, int] = DEFAULT_SIZE, faces: int = DEFAULT_FACES
) -> tuple[Image, list[Face]]:
    """Compose a picture with ``faces`` faces and return it (RGB) with its annotations.

    The result depends on the arguments alone. About a ninth of the faces is cut by the picture's
    edges and about one in eleven is pasted partly over another one.
    """
    width, height = size_wh
    canvas = Canvas(_background(seed, width, height))
    layout, tones = random.Random(seed), np.random.default_rng(seed + 1)
    # Steps without a common divisor reach every band of heights.
    edge_every, over_every = 9, 11
    for index, face_height in enumerate(_heights(layout, faces, 0.4 * min(size_wh))):
        placement = _new_placement(layout, face_height)
        edge = EDGES[index // edge_every % 4] if index % edge_every == 4 else None
        over = edge is None and index % over_every == 10 and _place_over(layout, placement, canvas)
        if not over:
            _place_free(layout, placement, canvas, edge)
        _paste(canvas, placement, tones)
    return canvas.image, [_annotation(canvas, index) for index in range(len(canvas.placed))]


def write(image: Image, faces: list[Face], picture: Path, listing: Path) -> None:
    """Write the picture as JPEG and its boxes as JSON."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    if not cv2.imwrite(str(picture), bgr, [cv2.IMWRITE_JPEG_QUALITY, 92]):
        raise OSError(f"cannot write {picture}")
    head = {"image": picture.name, "width": image.shape[1], "height": image.shape[0]}
    # One face per line keeps the file readable and its diffs small.
    lines = ",\n".join("    " + json.dumps(face) for face in faces)
    listing.write_text(json.dumps(head)[:-1] + f', "faces": [\n{lines}\n]}}\n', encoding="utf-8")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Compose a crowd picture with exactly known face boxes.")
    parser.add_argument("--out", type=Path, help="folder for crowd.jpg and crowd.json")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    args = parser.parse_args()
    out: Path | None = args.out
    image, faces = compose(args.seed)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    write(image, faces, (out or PHOTOS) / "crowd.jpg", (out or HERE) / "crowd.json")


if __name__ == "__main__":
    main()
