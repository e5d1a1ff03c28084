"""Chooses the pictures that quantization is calibrated on: ``python -m calibration sample DATA --out FOLDER``.

The calibration set shows small and distant faces: crops of labeled pictures at the scales that the detector sees,
chosen so that sizes, light, pose and crowding have the shares that a recipe asks for
(``calibration/sets/small_distant.toml``). Where pictures run short of a kind, its share goes to the others of its
table, and the printed table says so. No two crops show one scene, and none is of the pictures that training with
this ``--held`` keeps back.

FOLDER gets ``set.npz`` (``crops``: uint8 (N, side, side, 3) RGB), ``manifest.jsonl`` (where each crop comes from)
and ``contact.png`` to look at. The same pictures and recipe give the same bytes. They are parts of the pictures, so
they go no further than the pictures may.

What is cheap to tell is a proxy. Light is told by mean gray levels: a dark face on bright ground is taken for
backlit. Pose is told by the box: seen from the front and upright, a face is 0.68 to 1 times as wide as high; in
profile it is narrower, lying down or tilted it is wider.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration import CalibrationError, counted, whole_at, write_whole
from calibration.crops import Picture, decode, load_pictures, split
from calibration.tables import table

__all__ = ["Candidate", "Recipe", "add_parser", "candidates", "choose", "load_recipe", "load_set", "run", "targets"]

RECIPE = Path(__file__).parent / "sets" / "small_distant.toml"
SETTINGS = ("count", "seed", "side")
SIDE_MULTIPLE = 32
ENLARGED = 2.0  # times, at most, as in accurate mode
LOOKED_AT = 15  # pictures for each crop that is wanted
SHADED = 0.7  # of the gray level around it: a face under that is backlit,
LIT = 100.0  # where what is around it is at least so bright
DARK, BRIGHT = 65.0, 155.0  # gray levels of a face
UPRIGHT = (0.68, 1.0)  # width over height of a face seen from the front
COLUMNS, SHRINK, CAPTION = 16, 2, 30  # of the contact sheet; the last in px
LEAST_LABELED = 4.0  # px of the picture: of smaller boxes nobody knows what they show

Pixels = NDArray[np.uint8]
Strata = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a set is made of: ``strata`` holds for each table the share of each of its strata."""

    count: int
    seed: int
    side: int
    strata: Strata


class Candidate(NamedTuple):
    """A crop that could be taken.

    Attributes:
        picture: its index.
        scale: by which the picture is resized.
        corner: x, y of the crop in the resized picture, px.
        face: x0 y0 x1 y1 in px of the crop of the face that it is about.
        strata: of each table its stratum.
    """

    picture: int
    scale: float
    corner: tuple[int, int]
    face: tuple[float, float, float, float]
    strata: dict[str, str]


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    text = "choose the pictures that quantization is calibrated on"
    parser = steps.add_parser("sample", help=text, description=__doc__, formatter_class=raw)
    parser.add_argument("data", type=Path, help="folder with faces.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder of the set")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="TOML file (default: small and distant faces)")
    for name, what in zip(SETTINGS, ("crops", "of the choice", "px of a crop, a multiple of 32"), strict=True):
        parser.add_argument(f"--{name}", type=int, help=f"{what} (default: the recipe's)")
    parser.add_argument(
        "--held", type=int, default=100, help="as in training, whose held-back pictures are left out (default: 100)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Choose, write and print the table.

    Raises:
        CalibrationError: recipe or pictures cannot be read, or no picture has a face that would do.
    """
    cv2.setNumThreads(1)
    recipe = load_recipe(arguments.recipe, {name: getattr(arguments, name) for name in SETTINGS})
    pictures = split(load_pictures(arguments.data), arguments.held)[0]
    if not pictures:
        raise CalibrationError(f"{arguments.data} has no labeled picture")
    found = candidates(pictures, recipe)
    if not found:
        raise CalibrationError(f"no face in {arguments.data} fits a crop of {recipe.side} px")
    scenes = [f"{pictures[one.picture].event}\n{pictures[one.picture].scene}" for one in found]
    chosen = [found[index] for index in choose(found, scenes, recipe)]
    crops = np.stack([_crop(decode(pictures[one.picture]).pyramid[1], one, recipe.side) for one in chosen])
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = [
        _line(arguments.data, pictures[one.picture].path, one, crop) for one, crop in zip(chosen, crops, strict=True)
    ]
    write_whole(arguments.out / "manifest.jsonl", "".join(lines).encode())
    write_whole(arguments.out / "contact.png", _contact(crops, chosen))
    _save(arguments.out / "set.npz", crops)
    _print(found, scenes, chosen, recipe)
    return 0


def load_set(folder: Path) -> Pixels:
    """Return the crops of a calibration set, uint8 (N, side, side, 3) RGB.

    Raises:
        CalibrationError: there is none, or it is damaged.
    """
    path = folder / "set.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            crops = stored["crops"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CalibrationError(f"cannot read the calibration set {path}: {error}; make it by sample") from error
    if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[1] != crops.shape[2] or crops.shape[3] != 3:
        raise CalibrationError(f"{path} is no calibration set: {crops.dtype} {crops.shape}; make it again by sample")
    return np.asarray(crops, np.uint8)


def load_recipe(path: Path, given: Mapping[str, int | None]) -> Recipe:
    """Return the recipe of a TOML file, with settings that are given instead of its own.

    Raises:
        CalibrationError: it cannot be read, or its shares and settings make no sense.
    """
    try:
        told = tomllib.loads(path.read_text("utf-8"))
        own: dict[str, Any] = {name: told.pop(name) for name in SETTINGS}
        settings = own | {name: value for name, value in given.items() if value is not None}
        recipe = Recipe(**settings, strata=told)
        sums = [sum(shares.values()) for shares in told.values()]
        _ = [_span(name) for axis in ("size", "crowding") for name in told[axis]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CalibrationError(f"cannot read the recipe {path}: {error!r}") from error
    if set(told) != {"size", "light", "pose", "crowding"} or any(abs(total - 1) > 1e-6 for total in sums):
        raise CalibrationError(f"{path} must have the tables size, light, pose and crowding, each adding up to 1")
    if recipe.count < 1 or recipe.seed < 0 or recipe.side < SIDE_MULTIPLE or recipe.side % SIDE_MULTIPLE:
        raise CalibrationError(f"{path}: count must be positive, seed not negative, side a multiple of {SIDE_MULTIPLE}")
    return recipe


def candidates(pictures: Sequence[Picture], recipe: Recipe) -> list[Candidate]:
    """Return crops of a random part of the pictures, of each at most one for each size."""
    random = np.random.default_rng([recipe.seed, 0])
    found = []
    order = random.permutation(len(pictures))[: LOOKED_AT * recipe.count]
    for index in counted(order.tolist()):
        picture = pictures[index]
        rgb = decode(picture).pyramid[1]
        grey = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)
        for name in recipe.strata["size"]:
            if (one := _candidate(index, picture, grey, name, recipe, random)) is not None:
                found.append(one)
    return found


def targets(shares: Sequence[float], there: Sequence[int], count: int) -> NDArray[np.int64]:
    """Return how many of ``count`` each stratum gets, (S,); what one has not got goes to the others by their shares."""
    weights, most = np.array(shares, np.float64), np.array(there, np.int64)
    given = np.zeros(len(weights), np.int64)
    while (left := count - int(given.sum())) > 0:
        open_weights = np.where(given < most, weights, 0)
        if not open_weights.any():
            break
        parts = left * open_weights / open_weights.sum()
        whole = np.floor(parts).astype(np.int64)
        largest = np.argsort(-(parts - whole), kind="stable")[: left - int(whole.sum())]
        whole[largest] += 1
        given = np.minimum(given + whole, most)
    return given


def choose(found: Sequence[Candidate], scenes: Sequence[str], recipe: Recipe) -> list[int]:
    """Return the indices of at most ``recipe.count`` candidates, no two of one scene, as near to the shares as can be.

    Each time the one is taken whose strata lack most of what they should have; among equals the one of which
    combination there are fewest.
    """
    names = {axis: list(shares) for axis, shares in recipe.strata.items()}
    codes = np.array([[names[axis].index(one.strata[axis]) for axis in names] for one in found])
    wanted = [
        targets([*shares.values()], _there(found, scenes, axis, [*shares]), recipe.count)
        for axis, shares in recipe.strata.items()
    ]
    _, scene = np.unique(scenes, return_inverse=True)
    _, kind = np.unique(codes, axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    taken = [np.zeros(len(values), np.int64) for values in wanted]
    of_kind = np.zeros(kind.max(initial=0) + 1)
    free = np.ones(len(found), np.bool_)
    shuffled = np.random.default_rng([recipe.seed, 1]).permutation(len(found))
    chosen: list[int] = []
    while len(chosen) < recipe.count and free.any():
        lacks = [(want - have - 1) / np.maximum(want, 1) for want, have in zip(wanted, taken, strict=True)]
        merit = sum(lack[codes[:, axis]] for axis, lack in enumerate(lacks)) - 1e-3 * of_kind[kind]
        best = int(shuffled[np.argmax(np.where(free, merit, -np.inf)[shuffled])])
        chosen.append(best)
        for axis, have in enumerate(taken):
            have[codes[best, axis]] += 1
        of_kind[kind[best]] += 1
        free &= scene != scene[best]
    return chosen


def _there(found: Sequence[Candidate], scenes: Sequence[str], axis: str, names: Sequence[str]) -> list[int]:
    """Return how many scenes have a candidate of each stratum."""
    return [
        len({scene for one, scene in zip(found, scenes, strict=True) if one.strata[axis] == name}) for name in names
    ]


def _candidate(
    index: int, picture: Picture, grey: Pixels, size: str, recipe: Recipe, random: np.random.Generator
) -> Candidate | None:
    """Return a crop round a random face that can be brought to a size, or None; the picture fills it."""
    low, high = _span(size)
    shape = np.array(grey.shape[::-1])
    least = recipe.side / float(shape.min())
    heights = picture.faces[:, 3]
    fits = (heights * ENLARGED >= low) & (heights * least < high) & (picture.faces[:, 2:] >= LEAST_LABELED).all(axis=1)
    usable = np.flatnonzero(fits & ~picture.ignored)
    if not len(usable) or least > ENLARGED:
        return None
    face = picture.faces[random.choice(usable)].astype(np.float64)
    ends = np.log([max(low / face[3], least), min(high / face[3], ENLARGED)])
    scale = float(np.exp(random.uniform(*ends)))
    corner = face[:2] * scale - random.random(2) * np.maximum(recipe.side - face[2:] * scale, 0)
    x, y = np.clip(corner, 0, _size_of(shape, scale) - recipe.side).astype(int).tolist()
    centers = (picture.faces[:, :2] + picture.faces[:, 2:] / 2) * scale - (x, y)
    inside = ((centers >= 0) & (centers < recipe.side)).all(axis=1) & ~picture.ignored
    strata = {
        "size": _named(face[3] * scale, recipe.strata["size"]),
        "light": _light(grey, face),
        "pose": "frontal" if UPRIGHT[0] <= face[2] / face[3] <= UPRIGHT[1] else "turned",
        "crowding": _named(int(inside.sum()), recipe.strata["crowding"]),
    }
    if any(name not in recipe.strata[axis] for axis, name in strata.items()):
        return None
    x0, y0 = (face[:2] * scale - (x, y)).tolist()
    return Candidate(index, scale, (x, y), (x0, y0, x0 + face[2] * scale, y0 + face[3] * scale), strata)


def _span(name: str) -> tuple[float, float]:
    """Return from where to where a stratum reaches: ``6-9``, ``1`` or ``21+``."""
    low, dash, high = name.partition("-")
    return float(low.rstrip("+")), float(high) if dash else math.inf if name.endswith("+") else float(low)


def _named(value: float, strata: Mapping[str, float]) -> str:
    """Return the stratum of a length, which is below where it ends, or of a count; empty for none."""
    for name in strata:
        low, high = _span(name)
        if low <= value < high or (isinstance(value, int) and value == high):
            return name
    return ""


def _light(grey: Pixels, face: NDArray[np.float64]) -> str:
    """Return the light on a face x y w h in a picture (H, W), by mean gray levels."""
    inner, outer = (_window(grey, face, grow) for grow in (0.0, 1.0))
    ground = (outer.sum(dtype=np.float64) - inner.sum(dtype=np.float64)) / max(outer.size - inner.size, 1)
    level, ground = float(inner.mean()), max(float(ground), float(grey.mean()))
    if level < SHADED * ground and ground >= LIT:
        return "backlit"
    return "dark" if level < DARK else "bright" if level >= BRIGHT else "ordinary"


def _window(grey: Pixels, face: NDArray[np.float64], grow: float) -> Pixels:
    """Return the pixels under a box that is grown by so many times its size on each side; one at least."""
    low = np.clip(face[:2] - grow * face[2:], 0, np.array(grey.shape[::-1]) - 1).astype(int)
    high = np.maximum(np.ceil(face[:2] + (1 + grow) * face[2:]).astype(int), low + 1)
    return grey[low[1] : high[1], low[0] : high[0]]


def _size_of(shape_wh: NDArray[Any], scale: float) -> NDArray[np.int64]:
    return np.rint(shape_wh * scale).astype(np.int64)


def _crop(rgb: Pixels, one: Candidate, side: int) -> Pixels:
    """Return (side, side, 3) out of the picture, resized as pictures are before detection."""
    width, height = _size_of(np.array(rgb.shape[1::-1]), one.scale).tolist()
    method = cv2.INTER_AREA if one.scale < 1 else cv2.INTER_LINEAR
    x, y = one.corner
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=method)[y : y + side, x : x + side], np.uint8)


def _line(data: Path, path: Path, one: Candidate, crop: Pixels) -> str:
    """Return the crop's line of the manifest."""
    x, y, side = (value / one.scale for value in (*one.corner, crop.shape[0]))
    told = {
        "image": (path.relative_to(data) if path.is_relative_to(data) else path).as_posix(),
        "image_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "rectangle": [round(value, 2) for value in (x, y, side, side)],  # x y w h, px of the picture
        "scale": round(one.scale, 6),
        "face": [round(value, 2) for value in one.face],  # x0 y0 x1 y1, px of the crop
        "strata": one.strata,
        "crop_sha256": hashlib.sha256(crop.tobytes()).hexdigest(),
    }
    return json.dumps(told) + "\n"


def _contact(crops: Pixels, chosen: Sequence[Candidate]) -> bytes:
    """Return a PNG of all crops with the face marked and the strata written under each."""
    side = crops.shape[1] // SHRINK
    sheet = np.full((math.ceil(len(crops) / COLUMNS) * (side + CAPTION), COLUMNS * side, 3), 255, np.uint8)
    for index, (crop, one) in enumerate(zip(crops, chosen, strict=True)):
        marked = crop.copy()
        x0, y0, x1, y1 = (round(value) for value in one.face)
        cv2.rectangle(marked, (x0 - 5, y0 - 5), (x1 + 5, y1 + 5), (255, 255, 0), 2)
        row, column = divmod(index, COLUMNS)
        top, left = row * (side + CAPTION), column * side
        small = cv2.resize(marked, (side, side), interpolation=cv2.INTER_AREA)
        sheet[top : top + side, left : left + side] = small
        height, light, pose, crowd = (
            f"{one.face[3] - one.face[1]:.0f} px",
            *(one.strata[a] for a in ("light", "pose", "crowding")),
        )
        for line, text in enumerate((f"{height} {light}", f"{pose} {crowd} faces")):
            place = (left + 3, top + side + 12 + 14 * line)
            cv2.putText(sheet, text, place, cv2.FONT_HERSHEY_PLAIN, 0.9, (0, 0, 0), 1, cv2.LINE_AA)
    done, packed = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    if not done:
        raise CalibrationError("cannot write the contact sheet as PNG")
    return packed.tobytes()


def _save(path: Path, crops: Pixels) -> None:
    """Write the .npz; uncompressed and of a fixed time, so that the same crops give the same bytes."""
    with (
        whole_at(path) as whole,
        zipfile.ZipFile(whole, "w") as archive,
        archive.open(zipfile.ZipInfo("crops.npy"), "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array(file, crops, allow_pickle=False)


def _print(found: Sequence[Candidate], scenes: Sequence[str], chosen: Sequence[Candidate], recipe: Recipe) -> None:
    """Print what was wanted, how many scenes have it, and what was taken."""
    rows: list[tuple[object, ...]] = []
    for axis, shares in recipe.strata.items():
        for (name, share), there in zip(shares.items(), _there(found, scenes, axis, [*shares]), strict=True):
            taken = sum(one.strata[axis] == name for one in chosen)
            rows.append((axis, name, f"{share * recipe.count:g}", there, taken))
    print(f"{len(chosen)} crops of {recipe.count}\n\n{table(('', '', 'wanted', 'scenes that have it', 'taken'), rows)}")
