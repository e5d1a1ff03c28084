"""Print as JSON all that the library shows and does; ``bench.unchanged`` runs this file in each checkout.

python -P bench/unchanged_library.py PICTURE FOLDER
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import blurguard


def _signature(function: Any) -> str:
    """Return names, kinds and defaults of the parameters; annotations may be spelled in many ways."""
    told = []
    for parameter in inspect.signature(function).parameters.values():
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        told.append(f"{parameter.kind.name.lower()} {parameter.name}{default}")
    return re.sub(r" at 0x[0-9a-f]+", "", ", ".join(told))


def _attributes(kind: type) -> Iterator[tuple[str, str]]:
    """Yield public attributes, wherever in blurguard the class has them from."""
    for home in kind.__mro__:
        if not home.__module__.startswith("blurguard"):
            continue
        for name, value in vars(home).items():
            if name == "__init__" or not name.startswith("_"):
                shown: Any = getattr(value, "__func__", value)
                if inspect.isfunction(shown):
                    yield name, f"{type(value).__name__} {_signature(shown)}"
                elif type(value).__name__ in ("property", "member_descriptor", "cached_property"):
                    yield name, type(value).__name__
                else:
                    yield name, re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _shape(name: str) -> dict[str, Any]:
    """Return all that can be seen of a public name."""
    thing = getattr(blurguard, name)
    if not inspect.isclass(thing):
        return {"signature": _signature(thing)}
    known: dict[str, Any] = {"attributes": dict(reversed(list(_attributes(thing))))}
    known["bases"] = [base.__name__ for base in thing.__mro__ if base.__name__ in blurguard.__all__]
    if dataclasses.is_dataclass(thing):
        known["fields"] = [field.name for field in dataclasses.fields(thing)]
    if issubclass(thing, enum.Enum):
        known["members"] = {member.name: repr(member.value) for member in thing}
    return known


def _digest(pixels: np.ndarray[Any, Any]) -> str:
    return hashlib.blake2b(np.ascontiguousarray(pixels).tobytes(), digest_size=16).hexdigest()


def _error(work: Any) -> str:
    try:
        work()
    except Exception as error:
        return type(error).__name__
    return ""


def main() -> None:
    """Look at the library, then use it."""
    picture, folder = Path(sys.argv[1]), Path(sys.argv[2])
    rgb = np.asarray(Image.open(picture).convert("RGB"))
    solid = blurguard.Settings(mode=blurguard.Mode.FAST, style=blurguard.Style.SOLID)
    arrays = {
        "rgb": rgb,
        "grey": rgb[:, :, 1],
        "rgba": np.dstack([rgb, rgb[:, :, 0]]),
        "rgb16": rgb.astype(np.uint16) * 257,
    }
    anonymizer = blurguard.Anonymizer(solid)
    image = blurguard.Image(rgb, blurguard.Layout.RGB)
    found = anonymizer.detect(image)
    hidden, faces = anonymizer.hide(image)
    outcome = anonymizer.process(picture, folder / "library.jpg")
    looked = anonymizer.look(picture)
    known: dict[str, Any] = {f"blurguard.{name}": _shape(name) for name in blurguard.__all__}
    known["blurguard"] = {
        "file": blurguard.__file__,
        "all": sorted(blurguard.__all__),
        "version": blurguard.__version__,
    }
    known["hide_faces"] = {name: _digest(blurguard.hide_faces(array, solid)) for name, array in arrays.items()}
    known["Anonymizer"] = {
        "attributes": sorted(name for name in vars(anonymizer) if not name.startswith("_")),
        "min_score": anonymizer.min_score,
        "recipe": anonymizer.recipe,
        "identity": anonymizer.detector.identity,
        "detect": [found.boxes.tolist(), found.scores.tolist()],
        "hide": [_digest(hidden.pixels), [face.as_json() for face in faces]],
        "process": [outcome.status, outcome.kind, [face.as_json() for face in outcome.faces]],
        "look": [looked.status, looked.frames, [face.as_json() for face in looked.faces]],
        "recipes": [
            blurguard.Anonymizer(blurguard.Settings()).recipe,
            blurguard.Anonymizer(blurguard.Settings(model="stock", hold=1.0)).recipe,
        ],
    }
    known["errors"] = {
        "no file": _error(lambda: anonymizer.look(folder / "none.jpg")),
        "taken": _error(lambda: anonymizer.process(picture, folder / "library.jpg")),
        "no model": _error(lambda: blurguard.Anonymizer(blurguard.Settings(model="none"))),
        "no share": _error(lambda: blurguard.Settings(margin=9.0)),
        "no array": _error(lambda: blurguard.hide_faces(rgb[:, :, :2])),
        "no name": _error(lambda: blurguard.nothing),
    }
    print(json.dumps(known, default=str))


if __name__ == "__main__":
    main()
