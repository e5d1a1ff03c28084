"""Pictures without people: ``python -m calibration barren --out FOLDER`` makes them, for `evaluate` to count boxes on.

Skies, foliage, walls, prints and noise, drawn at random, and those of the project's own photos that show nobody. All
boxes in them are false. FOLDER gets the pictures and a ``faces.jsonl`` without faces.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from calibration.evaluate import EXAMPLES

__all__ = ["KINDS", "add_parser", "run"]

HEIGHT, WIDTH = 768, 1024
PHOTOS = ("chelsea.jpg", "coffee.jpg", "rocket.jpg")  # a cat, a cup, a rocket
LETTERS = "etaoin shrdlu 0123456789 ETAOIN (oo) :-) @ 8-) QO"

Pixels = NDArray[np.uint8]
Random = np.random.Generator
Color = tuple[int, int, int]


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = steps.add_parser("barren", help="make pictures without people", description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--each", type=int, default=8, help="pictures of each kind (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the pictures and their labels."""
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, tuple[int, int]] = {}
    for kind, draw in KINDS.items():
        for number in range(arguments.each):
            random = np.random.default_rng([arguments.seed, number, *kind.encode()])
            name = f"{kind}_{number}.png"
            Image.fromarray(draw(random)).save(out / name)
            sizes[name] = (WIDTH, HEIGHT)
    for name in PHOTOS:
        shutil.copyfile(EXAMPLES / "photos" / name, out / name)
        with Image.open(out / name) as photo:
            sizes[name] = photo.size
    lines = [{"image": name, "width": width, "height": height, "faces": []} for name, (width, height) in sizes.items()]
    (out / "faces.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    print(f"{len(lines)} pictures in {out}")
    return 0


def _clouds(random: Random, roughness: float) -> NDArray[np.float64]:
    """Return (HEIGHT, WIDTH) in 0 to 1: noise whose power falls with frequency, the quicker the smoother."""
    spectrum = np.fft.rfft2(random.standard_normal((HEIGHT, WIDTH)))
    rows, columns = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None]
    distance = np.hypot(rows, columns)
    distance[0, 0] = 1.0
    field = np.fft.irfft2(spectrum / distance**roughness, s=(HEIGHT, WIDTH))
    return np.asarray((field - field.min()) / np.ptp(field))


def _between(share: NDArray[np.float64], low: Color, high: Color) -> Pixels:
    """Return (HEIGHT, WIDTH, 3): one color where the share is 0, the other where it is 1."""
    near, far = np.array(low, np.float64), np.array(high, np.float64)
    mixed = near + share[..., None] * (far - near)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def _sky(random: Random) -> Pixels:
    return _between(_clouds(random, 1.7), (70, 120, 200), (245, 245, 250))


def _wall(random: Random) -> Pixels:
    wall = _between(_clouds(random, 0.8), (120, 80, 60), (190, 150, 120))
    step = int(random.integers(24, 60))
    for row, top in enumerate(range(0, HEIGHT, step)):
        cv2.line(wall, (0, top), (WIDTH, top), (90, 85, 80), 3)
        for left in range((row % 2) * step, WIDTH, 2 * step):
            cv2.line(wall, (left, top), (left, top + step), (90, 85, 80), 3)
    return wall


def _foliage(random: Random) -> Pixels:
    leaves = _between(_clouds(random, 1.2), (10, 30, 5), (60, 90, 40))
    for _ in range(4000):
        center = tuple(int(v) for v in random.integers((0, 0), (WIDTH, HEIGHT)))
        size = tuple(int(v) for v in random.integers(3, 16, 2))
        shade = (random.uniform(0.3, 1.3) * np.array([80, 130, 40])).clip(0, 255)
        cv2.ellipse(leaves, center, size, float(random.uniform(0, 180)), 0, 360, shade.tolist(), -1, cv2.LINE_AA)
    return leaves


def _print(random: Random) -> Pixels:
    page = Image.new("RGB", (WIDTH, HEIGHT), tuple(int(v) for v in random.integers(200, 256, 3)))
    pen, top = ImageDraw.Draw(page), 10
    while top < HEIGHT:
        size = int(random.integers(12, 64))
        line = "".join(random.choice(list(LETTERS), WIDTH // max(size // 2, 1)))
        ink = tuple(int(v) for v in random.integers(0, 120, 3))
        pen.text((10, top), line, fill=ink, font=ImageFont.load_default(size))
        top += int(1.3 * size)
    return np.array(page)


def _noise(random: Random) -> Pixels:
    grain = random.normal(128, random.uniform(10, 70), (HEIGHT, WIDTH, 3))
    return np.clip(cv2.GaussianBlur(grain, (0, 0), float(random.uniform(0.3, 4))) * 2 - 128, 0, 255).astype(np.uint8)


def _balls(random: Random) -> Pixels:
    """Fruit, lamps, pebbles: round things with a highlight, some in the colors of skin."""
    ground = _between(_clouds(random, 1.4), (60, 60, 65), (150, 150, 140))
    for _ in range(120):
        x, y = (int(v) for v in random.integers((0, 0), (WIDTH, HEIGHT)))
        radius = int(np.exp(random.uniform(np.log(4), np.log(80))))
        color = np.array([(205, 160, 130), (220, 120, 40), (150, 150, 150), (120, 160, 60)][random.integers(4)])
        for share in np.linspace(1, 0.2, 6):
            shade = (color * (1.15 - 0.5 * share)).clip(0, 255).tolist()
            center = (int(x - radius * 0.3 * (1 - share)), int(y - radius * 0.3 * (1 - share)))
            cv2.circle(ground, center, max(1, int(radius * share)), shade, -1, cv2.LINE_AA)
    return ground


KINDS: dict[str, Callable[[Random], Pixels]] = {
    "sky": _sky,
    "wall": _wall,
    "foliage": _foliage,
    "print": _print,
    "noise": _noise,
    "balls": _balls,
}
