"""Running the command line as a user does, on small pictures."""

import contextlib
import functools
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from blurguard import Anonymizer, Settings
from tests.conftest import EXAMPLES, ROOT

Finished = subprocess.CompletedProcess[str]
FACE_IN_ASTRONAUT = (130, 20, 320, 210)
FORMATS = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".tif": "TIFF", ".gif": "GIF"}


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without settings of ours, but with ``variables``."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("BLURGUARD_")}
    return kept | {"COLUMNS": "100", "PYTHONPATH": str(ROOT)} | variables


def blurguard(*arguments: object, code: int = 0, cwd: Path = ROOT, env: dict[str, str] | None = None) -> Finished:
    """Run a command to its end, with these variables in its environment, and check its exit code."""
    command = [sys.executable, "-P", "-m", "blurguard", *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(**(env or {})),
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
    )
    assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


@functools.cache
def face(suffix: str = ".jpg", side: int = 96, turn: int = 0) -> bytes:
    """Return a small picture with one face; ``turn`` makes others of the same kind."""
    with Image.open(EXAMPLES / "photos" / "astronaut.jpg") as photo:
        x0, y0, x1, y1 = FACE_IN_ASTRONAUT
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


def put(path: Path, data: bytes) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def pixels(source: Path | bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
        return np.array(picture.convert("RGB"))


@functools.cache
def _anonymizer() -> Anonymizer:
    return Anonymizer(Settings(mode="fast", min_score=0.4))  # type: ignore[arg-type]


def faces_in(path: Path) -> int:
    return len(_anonymizer().look(path).faces)


def snapshot(folder: Path) -> dict[Path, tuple[Any, ...]]:
    """Return everything that must stay as it is when a folder is left alone."""
    return {
        path: (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else ()
        for path in sorted(folder.rglob("*"))
    }


def names(folder: Path) -> list[str]:
    """Return the names of the files below a folder, without our own record."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return sorted(str(name) for name in files if name.parts[0] != ".blurguard")


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
