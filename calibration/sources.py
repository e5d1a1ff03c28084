"""Reads pictures and their labels in the forms that they come in.

A source is a folder with ``faces.jsonl``, a COCO-style annotation file, a list in WIDER FACE's form, or a folder of
plain pictures, which nobody has labeled. Which of them it is, is told by its content.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration import CalibrationError
from calibration.score import IGNORE

__all__ = ["Entry", "Rows", "read"]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})  # of plain pictures

Rows = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A picture as its source labels it.

    Attributes:
        rows: (N, 5) x y width height in px and flags; None where nobody has labeled it.
        size_wh: px, None where the source does not say.
        scene: empty where the source does not say.
    """

    path: Path
    rows: Rows | None
    size_wh: tuple[int, int] | None = None
    event: str = ""
    scene: str = ""


def read(source: Path, pictures: Path | None = None) -> list[Entry]:
    """Return the pictures of one source, told by its content.

    Raises:
        CalibrationError: it is not there, or no form that is known.
    """
    try:
        if source.is_dir():
            return _from_lines(source) if (source / "faces.jsonl").exists() else _from_folder(source)
        text = source.read_text("utf-8")
        if text.lstrip()[:1] == "{":
            return _from_coco(source, json.loads(text), pictures)
        return _from_wider(source, text.splitlines(), pictures)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CalibrationError(f"cannot read the labels of {source}: {error!r}") from error


def _from_lines(folder: Path) -> list[Entry]:
    entries = []
    for line in (folder / "faces.jsonl").read_text("utf-8").splitlines():
        if line.strip():
            told = json.loads(line)
            size = (int(told["width"]), int(told["height"])) if "width" in told else None
            where = str(told.get("event", "")), str(told.get("scene", ""))
            entries.append(Entry(folder / str(told["image"]), _rows(told["faces"]), size, *where))
    return entries


def _from_folder(folder: Path) -> list[Entry]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise CalibrationError(f"{folder} has neither faces.jsonl nor pictures")
    return [Entry(path, None, event=_event(path.relative_to(folder))) for path in paths]


def _from_coco(source: Path, told: dict[str, Any], pictures: Path | None) -> list[Entry]:
    wanted = _face_categories(told.get("categories", []))
    rows = defaultdict(list)
    for box in told["annotations"]:
        if not wanted or box["category_id"] in wanted:
            ignored = bool(box.get("iscrowd")) or bool(box.get("ignore"))
            rows[box["image_id"]].append([*box["bbox"], IGNORE * ignored])
    names = [str(image["file_name"]) for image in told["images"]]
    base = pictures or _beside(source, names)
    entries = []
    for name, image in zip(names, told["images"], strict=True):
        size = (int(image["width"]), int(image["height"])) if "width" in image else None
        entries.append(Entry(base / name, _rows(rows[image["id"]]), size, _event(Path(name))))
    return entries


def _face_categories(categories: list[dict[str, Any]]) -> set[Any]:
    """Return the ids of the categories that are faces; all if there is but one."""
    wanted = {each["id"] for each in categories if len(categories) == 1 or "face" in str(each["name"]).lower()}
    if categories and not wanted:
        raise ValueError("no category is named 'face'")
    return wanted


def _from_wider(source: Path, lines: list[str], pictures: Path | None) -> list[Entry]:
    names, rows, at = [], [], 0
    while at < len(lines):
        name, count = lines[at].strip(), int(lines[at + 1])
        at += 2
        # Of no face there is one row of zeros, but not in everybody's copy.
        blank = not count and at < len(lines) and all(word.isdigit() for word in lines[at].split())
        values = [[float(word) for word in line.split()] for line in lines[at : at + count]]
        if len(values) < count:
            raise ValueError(f"{name} shall have {count} faces, the file ends after {len(values)}")
        # x y w h blur expression illumination invalid occlusion pose
        rows.append(_rows([[*value[:4], IGNORE * (value[7] > 0)] for value in values]))
        names.append(name)
        at += count + blank
    base = pictures or _beside(source, names)
    return [Entry(base / name, row, event=_event(Path(name))) for name, row in zip(names, rows, strict=True)]


def _beside(source: Path, names: list[str]) -> Path:
    """Return the folder near an annotation file in which its first pictures lie."""
    near = [source.parent, source.parent.parent]
    bases = [*near, *(path for folder in near for kind in ("*", "*/images") for path in sorted(folder.glob(kind)))]
    for name in names[:10]:
        for base in bases:
            if (base / name).is_file():
                return base
    raise CalibrationError(f"the pictures of {source} do not lie beside it: give --pictures FOLDER")


def _event(name: Path) -> str:
    return name.parts[0] if len(name.parts) > 1 else ""


def _rows(values: list[Any]) -> Rows:
    rows = np.array(values, np.float64)
    if rows.size and rows.shape != (len(values), 5):
        raise ValueError(f"expected five numbers for each face, got {rows.shape}")
    return rows.reshape(-1, 5)
