"""What the network is trained on: crops of labeled pictures, varied at random, and what it should answer.

The pictures are those of a folder with ``faces.jsonl`` (see `calibration.score`; ``event`` and ``scene`` are
optional). Everything follows from the seed and the number of a block, so a training run that is taken up
again sees what it would have seen.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration import CalibrationError
from calibration.score import IGNORE

__all__ = [
    "Batch",
    "Blocks",
    "Crop",
    "Picture",
    "Plan",
    "batch_of",
    "crop_of",
    "decode",
    "load_pictures",
    "split",
    "targets_of",
    "weights_of",
]

STRIDE = 4  # px of the crop per cell of the maps
SIGMA = 0.16  # of a face's width and height: how wide its hill of heat is
MIN_SIGMA = 0.72  # cells: the cell that holds a center, at most 0.707 away, always answers for its face
BOX_HEAT = 0.6  # cells with more heat than this answer for the face: score and box
NEAR = 3  # sigmas: the hill is cut off there
FAINT = 0.01  # of heat: cells with more belong to the face, although those under `BOX_HEAT` do not answer for it
# Half of the faces in crops are under 17 px. With this weight every octave of size from 12 to 100 px has the same share
# of the loss; in 1,100 steps AP 80.5 / 72.3 / 64.3 -> 85.1 / 76.1 / 66.0 on held-back training pictures.
USUAL_PX = 20.0  # geometric mean of the sides of a face that counts as one
WEIGHT_POWER = 0.7  # of a face's size over that
LEAST_WEIGHT_AT, MOST_WEIGHT_AT = 0.3, 10.0  # of that ratio

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Plan:
    """How crops are made; lengths in px of the crop."""

    side: int = 384
    per_picture: int = 4  # decoding a picture costs as much as several crops
    mosaics: tuple[float, ...] = (0.55, 0.33, 0.12)  # shares of crops that show 1, 2 x 2 and 3 x 3 pictures
    small: float = 7.0  # faces are brought to a size between small and large, evenly in its logarithm,
    large: float = 320.0
    distant: float = 40.0  # and in every fifth part to one between small and distant,
    cover: float = 0.8  # as far as the picture then still fills this share of its part of the crop each way
    enlarged: float = 2.5  # times, at most
    scenes: float = 0.1  # share of crops that show any place of a picture instead of a face,
    scene_scale: tuple[float, float] = (0.2, 1.5)  # scaled by between these, evenly in the logarithm
    shortest: float = 6.0  # faces beyond these two neither count for nor against the network
    longest: float = 340.0
    visible: float = 0.4  # nor do those of which less than this share is seen; others end where they are cut


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A labeled picture: ``faces`` float32 (N, 4) x y width height in px, ``ignored`` bool (N,)."""

    path: Path
    event: str
    scene: str
    faces: Floats
    ignored: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A picture's pixels, uint8 (H, W, 3) RGB, whole under 1 and reduced n times under n."""

    picture: Picture
    pyramid: dict[int, Pixels]


class Crop(NamedTuple):
    """Part of a picture, or a mosaic of parts.

    ``pixels`` uint8 (h, w, 3) RGB; ``faces`` float32 (N, 4) x0 y0 x1 y1 in px of the crop; ``ignored`` bool (N,).
    """

    pixels: Pixels
    faces: Floats
    ignored: NDArray[np.bool_]


class Batch(NamedTuple):
    """Crops and targets; s is side / 4.

    ``pixels`` uint8 (B, side, side, 3) RGB; ``heat`` float32 (B, s, s), how near a cell's center is to a face's;
    ``counted`` (B, s, s), 0 where nothing is known; ``boxes`` (B, 4, s, s): center from the cell's center in
    px, log of width and height in px, of the face that a cell belongs to, 0 for none; ``share`` (B, s, s): how much
    of its face a cell answers for, 0 for none. The shares of a face add up to `weights_of` it.
    """

    pixels: Pixels
    heat: Floats
    counted: Floats
    boxes: Floats
    share: Floats


class Blocks:
    """Blocks of batches: each block decodes as many pictures as a batch has crops.

    Its n-th batch holds the n-th crop of each of them, so no batch has two crops of one picture. Blocks have
    no end: the pictures come in another order each time round.
    """

    def __init__(self, pictures: list[Picture], plan: Plan, batch: int, seed: int) -> None:
        if not pictures:
            raise CalibrationError("no picture to train on")
        self.pictures, self.plan, self.batch, self.seed = pictures, plan, batch, seed

    def __getitem__(self, block: int) -> list[Batch]:
        """Return the ``plan.per_picture`` batches of a block."""
        decoded = []
        for draw in range(block * self.batch, (block + 1) * self.batch):
            around, position = divmod(draw, len(self.pictures))
            order = np.random.default_rng([self.seed, 0, around]).permutation(len(self.pictures))
            decoded.append(decode(self.pictures[order[position]]))
        random = np.random.default_rng([self.seed, 1, block])
        return [
            batch_of([crop_of(decoded, first, self.plan, random) for first in range(self.batch)], self.plan)
            for _ in range(self.plan.per_picture)
        ]


def load_pictures(folder: Path) -> list[Picture]:
    """Return the labeled pictures of a folder, or of a .jsonl file of that form beside them.

    Raises:
        CalibrationError: the labels cannot be read.
    """
    file = folder if folder.suffix == ".jsonl" else folder / "faces.jsonl"
    folder = file.parent
    try:
        lines = file.read_text("utf-8").splitlines()
        return [_picture(folder, json.loads(line)) for line in lines if line.strip()]
    except (OSError, ValueError, KeyError) as error:
        raise CalibrationError(f"cannot read the labels of {folder}: {error}") from error


def split(pictures: list[Picture], held: int, seed: int = 0) -> tuple[list[Picture], list[Picture]]:
    """Return pictures to train on and about ``held`` kept back, of every event its part, no scene in both.

    At most a third of a small set is kept back.
    """
    held = min(held, len(pictures) // 3)
    events: dict[str, dict[str, list[Picture]]] = defaultdict(lambda: defaultdict(list))
    for picture in pictures:
        events[picture.event][picture.scene].append(picture)
    training: list[Picture] = []
    kept: list[Picture] = []
    random = np.random.default_rng(seed)
    for _, scenes in sorted(events.items()):
        names = sorted(scenes)
        wanted = held * sum(map(len, scenes.values())) / max(len(pictures), 1)
        taken = 0
        for index in random.permutation(len(names)):
            members = scenes[names[index]]
            (kept if taken + len(members) / 2 <= wanted else training).extend(members)
            taken += len(members)
    return training, kept


def decode(picture: Picture) -> Decoded:
    """Return the picture's pixels.

    Raises:
        CalibrationError: the picture cannot be decoded.
    """
    stored = cv2.imread(str(picture.path), cv2.IMREAD_COLOR)
    if stored is None:
        raise CalibrationError(f"cannot decode {picture.path}")
    return Decoded(picture, {1: np.asarray(cv2.cvtColor(stored, cv2.COLOR_BGR2RGB), np.uint8)})


def crop_of(decoded: Sequence[Decoded], first: int, plan: Plan, random: np.random.Generator) -> Crop:
    """Return a random crop, (side, side, 3), of one picture or a mosaic of it and some of the others.

    Without mosaics half of all pixels would be empty: a portrait shrunk until its face is small fills little.
    """
    across = 1 + int(random.choice(len(plan.mosaics), p=plan.mosaics))
    x_edges, y_edges = (_edges(across, plan.side, random) for _ in range(2))
    own = int(random.integers(across**2))
    pixels = np.empty((plan.side, plan.side, 3), np.uint8)
    faces, ignored = [], []
    for index in range(across**2):
        row, column = divmod(index, across)
        rows, columns = slice(*y_edges[row : row + 2]), slice(*x_edges[column : column + 2])
        source = decoded[first if index == own else int(random.integers(len(decoded)))]
        part = _part(source, (rows.stop - rows.start, columns.stop - columns.start), plan, random)
        pixels[rows, columns] = part.pixels
        faces.append(part.faces + np.array([columns.start, rows.start] * 2, np.float32))
        ignored.append(part.ignored)
    return Crop(_colors(pixels, random), np.concatenate(faces), np.concatenate(ignored))


def batch_of(crops: list[Crop], plan: Plan) -> Batch:
    """Return the crops and their targets as one batch."""
    targets = [targets_of(crop, plan) for crop in crops]
    return Batch(np.stack([crop.pixels for crop in crops]), *(np.stack(maps) for maps in zip(*targets, strict=True)))


def targets_of(crop: Crop, plan: Plan) -> tuple[Floats, Floats, Floats, Floats]:
    """Return heat, counted, boxes and share of one crop, as in `Batch` without its first axis."""
    cells = plan.side // STRIDE
    heat, counted = np.zeros((cells, cells), np.float32), np.ones((cells, cells), np.float32)
    boxes, share = np.zeros((4, cells, cells), np.float32), np.zeros((cells, cells), np.float32)
    owner = np.full((cells, cells), -1)
    longer = (crop.faces[:, 2:] - crop.faces[:, :2]).max(axis=1, initial=0)
    teaching = ~crop.ignored & (longer >= plan.shortest) & (longer <= plan.longest)
    for x0, y0, x1, y1 in crop.faces[~teaching]:
        counted[_span(y0, y1, cells), _span(x0, x1, cells)] = 0
    teachers = np.concatenate(
        [(crop.faces[:, :2] + crop.faces[:, 2:]) / 2, crop.faces[:, 2:] - crop.faces[:, :2]], axis=1
    )[teaching]
    largest_first = np.argsort(-teachers[:, 2:].prod(axis=1), kind="stable")
    for number, (x, y, width, height) in enumerate(teachers[largest_first]):
        column, row = x / STRIDE - 0.5, y / STRIDE - 0.5  # a cell's center lies at its whole number
        sigma_x, sigma_y = (max(side / STRIDE * SIGMA, MIN_SIGMA) for side in (width, height))
        rows = slice(max(0, int(row - NEAR * sigma_y)), min(cells, int(row + NEAR * sigma_y + 2)))
        columns = slice(max(0, int(column - NEAR * sigma_x)), min(cells, int(column + NEAR * sigma_x + 2)))
        ys, xs = np.mgrid[rows, columns].astype(np.float32)
        hill = np.exp(-(((xs - column) / sigma_x) ** 2 + ((ys - row) / sigma_y) ** 2) / 2)
        np.maximum(heat[rows, columns], hill, out=heat[rows, columns])
        counted[rows, columns] = 1  # a face that teaches does so even on top of an ignored one
        mine = hill > BOX_HEAT
        told = mine | ((hill > FAINT) & (owner[rows, columns] < 0))
        values = (x - (xs + 0.5) * STRIDE, y - (ys + 0.5) * STRIDE, np.log(width), np.log(height))
        for channel, value in enumerate(values):
            boxes[channel, rows, columns] = np.where(told, value, boxes[channel, rows, columns])
        share[rows, columns] = np.where(mine, hill, share[rows, columns])
        owner[rows, columns] = np.where(mine, number, owner[rows, columns])
    owned = owner >= 0
    weights = weights_of(teachers[largest_first, 2:])
    sums = np.bincount(owner[owned], weights=share[owned], minlength=len(weights))
    share[owned] *= weights[owner[owned]] / sums[owner[owned]]
    return heat, counted, boxes, share


def weights_of(sizes: Floats) -> Floats:
    """Return how much faces of these widths and heights, (N, 2) px of the crop, count in the loss, (N,)."""
    ratio = np.sqrt(sizes.prod(axis=1)) / USUAL_PX
    return np.asarray(np.clip(ratio, LEAST_WEIGHT_AT, MOST_WEIGHT_AT) ** WEIGHT_POWER, np.float32)


def _span(low: float, high: float, cells: int) -> slice:
    """Return the cells that a stretch of px touches."""
    return slice(max(0, int(low // STRIDE)), max(0, min(cells, int(np.ceil(high / STRIDE)))))


def _picture(folder: Path, record: dict[str, Any]) -> Picture:
    rows = np.array(record["faces"], np.float32).reshape(-1, 5)
    image = str(record["image"])
    ignored = (rows[:, 4].astype(np.int64) & IGNORE) > 0
    return Picture(folder / image, str(record.get("event", "")), str(record.get("scene", image)), rows[:, :4], ignored)


def _edges(across: int, side: int, random: np.random.Generator) -> list[int]:
    """Return where the parts of a mosaic begin and end, px."""
    inner = np.arange(1, across) + random.uniform(-0.2, 0.2, across - 1)
    return [0, *(int(edge) for edge in inner * side / across), side]


def _part(source: Decoded, shape_hw: tuple[int, int], plan: Plan, random: np.random.Generator) -> Crop:
    """Return (h, w, 3) of a picture: scaled, turned, mirrored and placed at random."""
    picture = source.picture
    size_wh = np.array(source.pyramid[1].shape[1::-1])
    part_wh = np.array(shape_hw[::-1])
    scale, aim = _aim(picture, size_wh, part_wh, plan, random)
    stretch = float(np.exp(random.uniform(-0.12, 0.12)))
    angle = np.radians(random.normal(0, 6)) if random.random() < 0.3 else 0.0
    wide, high = scale * stretch, scale / stretch
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.diag([-wide if random.random() < 0.5 else wide, high])
    shift = random.uniform(0.1, 0.9, 2) * part_wh - matrix @ aim
    if random.random() < 0.85:
        corners = np.array([(0, 0), (1, 0), (0, 1), (1, 1)]) * size_wh @ matrix.T + shift
        low, high_end = corners.min(axis=0), corners.max(axis=0)
        spare = np.sort([-low, part_wh - high_end], axis=0)  # moves by between these show no more border than need be
        shift += np.clip(0, spare[0], spare[1])
    pixels = _warp(source.pyramid, matrix, shift, shape_hw, random)
    # Labels count px: their 10 is the px whose center lies at 10.5. As if it were an edge, every mirrored crop had its
    # faces a px further right, and the network, which cannot know which are mirrored, found all half a px right.
    centers = (picture.faces[:, :2] + picture.faces[:, 2:] / 2 + 0.5) @ matrix.T + shift - 0.5
    half = picture.faces[:, 2:] * (wide, high) / 2
    whole = np.concatenate([centers - half, centers + half], axis=1).astype(np.float32)
    return _cut(Crop(pixels, whole, picture.ignored), plan)


def _cut(crop: Crop, plan: Plan) -> Crop:
    """Return the crop with the faces that are seen, as far as they are; of too little the network learns nothing."""
    height, width = crop.pixels.shape[:2]
    edges = np.array([width, height] * 2, np.float32) - 0.5
    faces = np.clip(crop.faces, -0.5, edges)  # labels count px: the first one begins half a px before 0
    seen, whole = (((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)) for boxes in (faces, crop.faces))
    kept = seen > 0
    ignored = crop.ignored | (seen < plan.visible * whole)
    return Crop(crop.pixels, faces[kept], ignored[kept])


def _aim(
    picture: Picture, size_wh: NDArray[Any], part_wh: NDArray[Any], plan: Plan, random: np.random.Generator
) -> tuple[float, NDArray[Any]]:
    """Return how much the picture is scaled, and the px (x, y) of it that comes somewhere into the crop."""
    least = min(plan.cover * float((part_wh / size_wh).max()), plan.enlarged)
    usable = np.flatnonzero(~picture.ignored & (picture.faces[:, 2:] >= 3).all(axis=1))
    if not len(usable) or random.random() >= 1 - plan.scenes:
        scale = np.exp(random.uniform(*np.log(plan.scene_scale)))
        return float(np.clip(scale, least, plan.enlarged)), random.uniform(0, size_wh)
    face = picture.faces[random.choice(usable)]
    largest = plan.large if random.random() < 0.8 else plan.distant
    wanted = np.exp(random.uniform(np.log(plan.small), np.log(largest)))
    return float(np.clip(wanted / face[2:].max(), least, plan.enlarged)), face[:2] + face[2:] / 2


def _warp(
    pyramid: dict[int, Pixels],
    matrix: NDArray[Any],
    shift: NDArray[Any],
    shape_hw: tuple[int, int],
    random: np.random.Generator,
) -> Pixels:
    """Return the crop out of the picture, or out of a smaller copy of it where pixels would be skipped."""
    whole = pyramid[1]
    scale = float(np.sqrt(abs(np.linalg.det(matrix))))
    factor = 2 ** max(int(np.floor(np.log2(0.9 / scale))), 0)
    if factor not in pyramid:
        size = max(1, whole.shape[1] // factor), max(1, whole.shape[0] // factor)
        pyramid[factor] = np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_AREA), np.uint8)
    source = pyramid[factor]
    ratio = np.array([whole.shape[1] / source.shape[1], whole.shape[0] / source.shape[0]])
    # Pixel centers lie at + 0.5 in every picture; OpenCV counts from the center of the first one.
    offset = shift + matrix @ (ratio / 2) - 0.5
    border = int(random.integers(256)) if random.random() < 0.3 else 0
    affine = np.column_stack([matrix * ratio, offset])
    return np.asarray(cv2.warpAffine(source, affine, shape_hw[::-1], borderValue=(border,) * 3), np.uint8)


def _colors(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Return the crop in other light, through another lens and camera; (side, side, 3) RGB."""
    levels = np.arange(256, dtype=np.float32)
    if random.random() < 0.8:
        table = np.clip(levels * random.uniform(0.6, 1.4) + random.uniform(-35, 35), 0, 255).astype(np.uint8)
        pixels = np.asarray(cv2.LUT(pixels, table), np.uint8)
    if random.random() < 0.1:
        pixels = np.asarray(cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
    elif random.random() < 0.4:
        hue = (levels + random.integers(-10, 11)) % 180
        saturation = np.clip(levels * random.uniform(0.6, 1.4), 0, 255)
        table = np.stack([hue, saturation, levels], axis=-1).astype(np.uint8)[None]  # (1, 256, 3)
        other = cv2.LUT(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV), table)
        pixels = np.asarray(cv2.cvtColor(other, cv2.COLOR_HSV2RGB), np.uint8)
    if random.random() < 0.15:
        pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), random.uniform(0.4, 1.6)), np.uint8)
    if random.random() < 0.15:
        _, packed = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(25, 81))])
        pixels = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)
    if random.random() < 0.1:
        grain = random.standard_normal(pixels.shape, np.float32) * random.uniform(3, 14)
        pixels = np.clip(pixels + grain, 0, 255).astype(np.uint8)
    return pixels
