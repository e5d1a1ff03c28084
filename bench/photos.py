"""The pictures that are measured: composed ones with photo-like detail and noise, and the examples."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from bench.measure import ROOT
from examples.compose_crowd import compose

EXAMPLES = ROOT / "examples" / "photos"
LARGE = (4032, 3024)  # 12 Mpx, as telephones take them
COMMON = ((1600, 1200), (1200, 1600), (1536, 1024), (1280, 960), (1080, 1350), (1920, 1080))  # 1.2 to 2.1 Mpx
SMALL = ((640, 480), (480, 640), (512, 512), (600, 400))
FACES = 6
QUALITY = 90
NOISE = 5.0  # standard deviation of the grain, gray levels: a 12-Mpx file is about 3 MB then, like a real one
GRAIN_PX = 0.7  # sigma; grain of real photos is not independent from pixel to pixel

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Photo:
    """A composed picture file and the boxes of its faces, px."""

    path: Path
    faces: tuple[Box, ...]


def compose_photo(path: Path, seed: int, size_wh: tuple[int, int], faces: int = FACES) -> Photo:
    """Write a composed JPEG: quality 90, 4:2:0, with grain; depends on the arguments alone."""
    image, truth = compose(seed, size_wh, faces)
    noise = np.random.default_rng(seed).normal(0, NOISE, image.shape[:2]).astype(np.float32)
    # Smoothing takes most of the strength away; this gives it back.
    grain = cv2.GaussianBlur(noise, (0, 0), GRAIN_PX) * np.float32(2 * GRAIN_PX * np.sqrt(np.pi))
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    noisy = np.clip(bgr + grain[:, :, None], 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), noisy, [cv2.IMWRITE_JPEG_QUALITY, QUALITY]):
        raise OSError(f"cannot write {path.name}")
    boxes = [tuple(map(float, face["box"])) for face in truth]
    return Photo(path, tuple((b[0], b[1], b[2], b[3]) for b in boxes))


def large_photos(folder: Path, count: int = 4) -> list[Photo]:
    """Write 12-Mpx photos."""
    return [compose_photo(folder / f"large{i:03d}.jpg", 100 + i, LARGE) for i in range(count)]


def common_photos(folder: Path, count: int = 12) -> list[Photo]:
    """Write photos of 1 to 2 Mpx."""
    sizes = [COMMON[i % len(COMMON)] for i in range(count)]
    return [compose_photo(folder / f"common{i:03d}.jpg", 200 + i, size) for i, size in enumerate(sizes)]


def small_photos(folder: Path, count: int = 12) -> list[Photo]:
    """Write photos of a quarter of a megapixel, with three faces each."""
    sizes = [SMALL[i % len(SMALL)] for i in range(count)]
    return [compose_photo(folder / f"small{i:03d}.jpg", 300 + i, size, 3) for i, size in enumerate(sizes)]


def examples() -> list[Path]:
    """Return the example photos."""
    return sorted(EXAMPLES.glob("*.jpg"))


def repeated(files: Sequence[Path], folder: Path, count: int) -> list[Path]:
    """Fill a folder with ``count`` copies of the files, in turns."""
    folder.mkdir(parents=True)
    copies = [folder / f"{i:04d}_{files[i % len(files)].name}" for i in range(count)]
    for index, copy in enumerate(copies):
        shutil.copyfile(files[index % len(files)], copy)
    return copies
