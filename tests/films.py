"""Films in which colored squares stand for faces, and a detector that sees some of them.

Magenta is seen, cyan is seen weakly, yellow is never seen: so a test decides in which frames a face is missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from blurguard.anonymize.anonymizer import Anonymizer
from blurguard.settings import Settings
from blurguard.types import Detections
from tests.commands import face, pixels

SEEN, WEAK, MISSED = (255, 0, 255), (0, 255, 255), (255, 255, 0)
SCORES = {SEEN: 0.9, WEAK: 0.3, MISSED: 0.0}
BACKGROUND = 110
OTHER_SCENE = 100  # backgrounds from this seed on look all different
CHECK_PX = 3  # faces are checked: a mosaic may come near their color, but it has no checks
FPS = 25
FACE_FILM_FRAMES, FACE_FILM_SIDE = 30, 128
SIZE = (160, 96)


class Square(NamedTuple):
    """A face in a frame, px."""

    x: int
    y: int
    side: int = 24
    color: tuple[int, int, int] = SEEN

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.x, self.y, self.x + self.side, self.y + self.side


@dataclass(frozen=True)
class ColorDetector:
    """Sees squares by their color; what a mosaic left of one is none."""

    identity: str = "colors"
    threshold: float = 0.5

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        boxes, scores = [], []
        for color, score in SCORES.items():
            if score < min_score:
                continue
            near = (np.abs(rgb.astype(np.int16) - color).max(axis=2) < 70).astype(np.uint8)
            for x, y, width, height, area in cv2.connectedComponentsWithStats(near)[2][1:]:
                if area > 30:
                    boxes.append((x, y, x + width, y + height))
                    scores.append(score)
        return Detections(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32))


def sees_colors(**settings: Any) -> Anonymizer:
    return Anonymizer(Settings(**{"margin": 0.2} | settings), ColorDetector())


def picture(squares: Sequence[Square], size_wh: tuple[int, int] = SIZE, seed: int = 0) -> NDArray[np.uint8]:
    """Return a frame: a still, faintly textured background, and the squares."""
    strength = 12 if seed < OTHER_SCENE else 100
    texture = np.random.default_rng(seed).integers(-strength, strength, (size_wh[1] // 8 + 1, size_wh[0] // 8 + 1, 1))
    rgb = (BACKGROUND + np.repeat(texture.repeat(8, 0).repeat(8, 1), 3, 2))[: size_wh[1], : size_wh[0]].astype(np.uint8)
    checks = (np.indices(rgb.shape[:2]) // CHECK_PX).sum(axis=0) % 2 == 1
    for square in squares:
        x0, y0, x1, y1 = (max(v, 0) for v in square.box)
        rgb[y0:y1, x0:x1] = square.color
        rgb[y0:y1, x0:x1][checks[y0:y1, x0:x1]] = np.multiply(square.color, 0.8).astype(np.uint8)
    return rgb


def write_film(
    path: Path,
    frames: Sequence[Sequence[Square]],
    size_wh: tuple[int, int] = SIZE,
    seeds: Sequence[int] = (),
    aspect: Fraction = Fraction(1),
) -> Path:
    """Write an H.264 film; ``seeds`` choose the background of each frame, ``aspect`` is that of a px."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", FPS, options={"crf": "12", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *size_wh, "yuv444p"
        stream.codec_context.sample_aspect_ratio = aspect
        for number, squares in enumerate(frames):
            seed = seeds[number] if seeds else 0
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(squares, size_wh, seed), "rgb24")))
        out.mux(stream.encode())
    return path


def write_face_film(path: Path, frames: int = FACE_FILM_FRAMES) -> Path:
    """Write a video of one face that hardly moves, with a tone; returns its name."""
    picture = pixels(face(side=FACE_FILM_SIDE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        film, sound = out.add_stream("libx264", FPS), out.add_stream("aac", 44100)
        film.width = film.height = FACE_FILM_SIDE
        film.pix_fmt = "yuv420p"
        for number in range(frames):
            moved = np.roll(picture, number % 3, axis=1)
            out.mux(film.encode(av.VideoFrame.from_ndarray(moved, "rgb24")))
        out.mux(film.encode())
        for number in range(frames * 44100 // FPS // 1024):
            tone = np.sin(np.arange(1024, dtype=np.float32) / 10)[None]
            heard = av.AudioFrame.from_ndarray(tone, "fltp", "mono")
            heard.sample_rate, heard.pts = 44100, number * 1024
            out.mux(sound.encode(heard))
        out.mux(sound.encode())
    return path


def pictures_of(path: Path) -> list[NDArray[np.uint8]]:
    """Return the frames of a video, RGB."""
    with av.open(str(path)) as source:
        return [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in source.decode(video=0)]


def bare_share(rgb: NDArray[np.uint8], square: Square) -> float:
    """Return in which share of a square (the ellipse in it) its checks can still be seen."""
    x0, y0, x1, y1 = square.box
    ys, xs = np.mgrid[y0:y1, x0 : x1 - 2 * CHECK_PX] + 0.5
    inside = ((xs - (x0 + x1) / 2) ** 2 + (ys - (y0 + y1) / 2) ** 2) <= (square.side / 2) ** 2
    inside &= (xs > 0) & (ys > 0) & (xs < rgb.shape[1] - 2 * CHECK_PX) & (ys < rgb.shape[0])
    rows, columns = ys[inside].astype(int), xs[inside].astype(int)
    if not len(rows):
        return 0.0
    here = rgb[rows, columns].astype(int)
    next_one, one_after = rgb[rows, columns + CHECK_PX], rgb[rows, columns + 2 * CHECK_PX]
    checked = (np.abs(here - next_one).max(axis=1) > 20) & (np.abs(here - one_after).max(axis=1) < 12)
    return float(checked.mean())
