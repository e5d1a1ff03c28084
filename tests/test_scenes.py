"""A new scene is told from a camera that moves, a light that goes on and a flash."""

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from blurguard.tracking.scene_cuts import SceneCutDetector
from tests.conftest import ROOT

Picture = NDArray[np.uint8]
PHOTOS = ROOT / "examples" / "photos"
DIFFERENT = ("astronaut.jpg", "coffee.jpg", "crowd.jpg", "obama_speech.jpg", "rocket.jpg")


def photo(name: str) -> Picture:
    pixels = cv2.imread(str(Path(PHOTOS, name)), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None
    return np.asarray(pixels, np.uint8)


def view(picture: Picture, x: float, y: float, share: float) -> Picture:
    """Return what a camera sees that looks at a place, all in shares of the picture; 256 x 144."""
    height, width = picture.shape[:2]
    scale = 256 / (width * share)
    matrix = np.array([[scale, 0, 128 - scale * x * width], [0, scale, 72 - scale * y * height]])
    soft = cv2.GaussianBlur(picture, (0, 0), max(0.3, 0.4 / scale))
    return np.asarray(cv2.warpAffine(soft, matrix, (256, 144), borderMode=cv2.BORDER_REFLECT), np.uint8)


def exposed(picture: Picture, gain: float, offset: float = 0.0) -> Picture:
    return np.asarray(np.clip(picture.astype(np.float32) * gain + offset, 0, 255), np.uint8)


def cuts(*frames: Picture) -> list[int]:
    """Return the numbers of the frames with which scenes begin."""
    finder = SceneCutDetector()
    return [number for number, frame in enumerate(frames) if finder.is_cut(frame)]


def test_another_picture_is_a_cut_in_most_cases_and_nothing_else_is() -> None:
    seen = [view(photo(name), 0.5, 0.5, 0.9) for name in DIFFERENT]
    found = [cuts(a, a, b, b) for a, b in itertools.permutations(seen, 2)]
    assert all(numbers in ([], [2]) for numbers in found)
    assert found.count([2]) >= 15  # of 20; a doubt speaks for the old scene


def test_a_scene_may_be_cut_again() -> None:
    a, b = (view(photo(name), 0.5, 0.5, 0.9) for name in ("astronaut.jpg", "coffee.jpg"))
    assert cuts(a, a, b, b, a, a, b, b) == [2, 4, 6]


def test_pictures_may_be_of_any_size() -> None:
    seen = photo("astronaut.jpg")
    assert cuts(seen, seen[::2, ::2], seen[:1, :1], np.zeros((3, 4000, 3), np.uint8), seen) == []


@pytest.mark.parametrize("name", DIFFERENT)
def test_pans_and_zooms_are_no_cuts(name: str) -> None:
    whole = photo(name)
    pan = [view(whole, 0.3 + 0.02 * i, 0.45 + 0.005 * i, 0.4) for i in range(20)]
    zoom = [view(whole, 0.5, 0.5, 0.9 * 0.93**i) for i in range(20)]
    assert cuts(*pan, *pan[::-1]) == []
    assert cuts(*zoom, *zoom[::-1]) == []


@pytest.mark.parametrize("name", DIFFERENT)
def test_light_and_noise_are_no_cuts(name: str) -> None:
    seen, random = view(photo(name), 0.5, 0.5, 0.8), np.random.default_rng(0)
    noisy = [np.clip(seen + random.normal(0, 12, seen.shape), 0, 255).astype(np.uint8) for _ in range(5)]
    lit = [exposed(seen, gain) for gain in (1.0, 0.5, 1.0, 1.6, 1.0)]
    assert cuts(*noisy, *lit) == []


def test_a_flash_is_no_cut() -> None:
    seen = view(photo("astronaut.jpg"), 0.5, 0.5, 0.8)
    white = np.full_like(seen, 255)
    assert cuts(seen, seen, white, seen, seen, exposed(seen, 1.0, 150), seen, seen) == []


def test_through_black_to_another_picture_is_one_cut() -> None:
    a, b = (view(photo(name), 0.5, 0.5, 0.9) for name in ("astronaut.jpg", "rocket.jpg"))
    black = np.zeros_like(a)
    assert cuts(black, a, a, black, black, b, b, black) == [5]
    assert cuts(a, black, a) == []


def test_nothing_to_see_is_no_cut() -> None:
    assert cuts(*(np.full((36, 64, 3), level, np.uint8) for level in (0, 255, 90, 0))) == []
