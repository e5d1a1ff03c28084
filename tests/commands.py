"""Running the command line as a user does, on small pictures."""

import contextlib
import functools
import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.conftest import EXAMPLES

PORTRAIT, AROUND_FACE = "biden_blue_room.jpg", (17, -80, 535, 438)
FACE_DETAIL = 10.0  # of 255; 15 to 21 in originals, 0 to 7 in results
FORMATS = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".tif": "TIFF", ".gif": "GIF"}


@functools.cache
def face(suffix: str = ".jpg", side: int = 128, turn: int = 0) -> bytes:
    """Return a small picture with one face; ``turn`` makes others of the same kind."""
    with Image.open(EXAMPLES / "photos" / PORTRAIT) as photo:
        x0, y0, x1, y1 = AROUND_FACE
        crop = photo.crop((x0 - turn, y0, x1 - turn, y1)).resize((side, side))
    return encoded(crop, suffix)


@functools.cache
def blank(suffix: str = ".jpg") -> bytes:
    """Return a small picture without a face."""
    return encoded(Image.new("RGB", (64, 48), (90, 120, 150)), suffix)


def encoded(picture: Image.Image, suffix: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, FORMATS[suffix], **options)
    return buffer.getvalue()


def pixels(source: Path | bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
        return np.array(picture.convert("RGB"))


def shows_face(path: Path) -> bool:
    """Tell whether the middle of ``face()`` is still there: hidden, it has no detail, in whatever style.

    A detector would be the wrong judge: at a low threshold a blurred face may well be taken for one.
    """
    picture = pixels(path)
    height, width = picture.shape[:2]
    middle = picture[int(0.38 * height) : int(0.66 * height), int(0.42 * width) : int(0.66 * width)].astype(int)
    detail = sum(float(np.abs(np.diff(middle, axis=axis)).mean()) for axis in (0, 1))
    return detail > FACE_DETAIL


def snapshot(folder: Path) -> dict[Path, tuple[Any, ...]]:
    """Return everything that must stay as it is when a folder is left alone."""
    return {
        path: (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else ()
        for path in sorted(folder.rglob("*"))
    }


def names(folder: Path) -> list[str]:
    """Return the names of the files below a folder, without our own record."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return sorted(str(name) for name in files if ".blurguard" not in name.parts)


def lines(text: str | Path) -> list[dict[str, Any]]:
    """Return JSON lines."""
    content = text.read_text("utf-8") if isinstance(text, Path) else text
    return [json.loads(line) for line in content.splitlines()]


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """Mount a file system of its own at ``folder``; skips where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
