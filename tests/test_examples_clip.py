"""The composed clips: their boxes are exact, and the same plan gives the same clip."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path

import av
import numpy as np
import pytest

from examples.compose_clip import SCENE_IDS, Camera, ClipFace, Plan, Scene, Walker, Wave, frames, write
from examples.compose_crowd import Box, Cutout, Image, Placement

SMALL = Plan(size_wh=(320, 192), fps=10, seconds=1, faces=10, walkers=2)
STILL = Wave(0, 0, 1, 0)
TIMES = [0.0, 0.7, 1.9, 3.1, 4.3]


def discs(size_wh: tuple[int, int], boxes: list[Box]) -> Image:
    """White ellipses on black, each px as bright as so much of it is inside."""
    pixels = np.zeros((size_wh[1], size_wh[0], 3), np.uint8)
    for x0, y0, x1, y1 in boxes:
        left, top, right, bottom = int(x0), int(y0), math.ceil(x1), math.ceil(y1)
        ys, xs = (np.mgrid[8 * top : 8 * bottom, 8 * left : 8 * right] + 0.5) / 8
        inside = ((2 * xs - x0 - x1) / (x1 - x0)) ** 2 + ((2 * ys - y0 - y1) / (y1 - y0)) ** 2 <= 1
        share = inside.reshape(bottom - top, 8, right - left, 8).mean(axis=(1, 3))
        pixels[top:bottom, left:right] = np.rint(255 * share).astype(np.uint8)[:, :, None]
    return pixels


def bright_bounds(image: Image, near: ClipFace) -> list[float]:
    """Bounds of what is bright round a face, px."""
    x, y = max(0, int(near["x"]) - 6), max(0, int(near["y"]) - 6)
    part = image[y : int(near["y"] + near["h"]) + 7, x : int(near["x"] + near["w"]) + 7, 0].astype(float)
    part /= part.max()
    across, down = part.max(axis=0), part.max(axis=1)
    columns, rows = np.flatnonzero(across > 0.5), np.flatnonzero(down > 0.5)
    return [float(v) for v in (x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1)]


def corners(face: ClipFace) -> list[float]:
    return [face["x"], face["y"], face["x"] + face["w"], face["y"] + face["h"]]


def camera(size_wh: tuple[int, int], world_wh: tuple[int, int], seed: int = 1) -> Camera:
    return Camera.of(random.Random(seed), size_wh, world_wh)


def still_camera(size_wh: tuple[int, int]) -> Camera:
    return Camera(size_wh, size_wh, (STILL, STILL), Wave(1, 0, 1, 0), STILL, (STILL, STILL))


def walker(height: float, start: tuple[float, float], speed: tuple[float, float]) -> Walker:
    """A white disc that walks."""
    cutout = Cutout("disc", discs((80, 100), [(20, 25, 60, 75)]), (20, 25, 60, 75))
    return Walker(Placement(cutout, height, math.radians(5), True, True), start, speed, STILL, 3)


@pytest.mark.parametrize("seconds", TIMES)
@pytest.mark.parametrize("seed", [1, 2])
def test_boxes_follow_the_camera(seconds: float, seed: int) -> None:
    boxes: list[Box] = [(100 + 90 * i, 60 + 70 * j, 124 + 96 * i, 90 + 76 * j) for i in range(5) for j in range(4)]
    view = camera((400, 300), (640, 480), seed)
    image, faces = Scene(discs((640, 480), boxes), tuple(boxes), (1.0,) * len(boxes), view, (), 0).frame(seconds)
    whole = [face for face in faces if face["visible"] > 0.999]
    assert len(whole) >= 3
    for face in whole:
        assert bright_bounds(image, face) == pytest.approx(corners(face), abs=1)


def test_the_camera_never_looks_beyond_the_world() -> None:
    frame = np.array([[0, 320, 320, 0], [0, 0, 180, 180]])
    for seed in range(20):
        view = camera((320, 180), (512, 288), seed)
        for seconds in np.arange(0, 30, 0.37):
            matrix = view.matrix(float(seconds))
            x, y = np.linalg.solve(matrix[:, :2], frame - matrix[:, 2:])
            assert min(x.min(), y.min()) > -1e-6 and x.max() < 512 + 1e-6 and y.max() < 288 + 1e-6


@pytest.mark.parametrize("seconds", TIMES)
def test_boxes_follow_those_who_walk(seconds: float) -> None:
    world = np.zeros((240, 320, 3), np.uint8)
    walking = walker(48, (60, 80), (37.3, 11.7))
    image, (face,) = Scene(world, (), (), still_camera((320, 240)), (walking,), 7).frame(seconds)
    assert face["id"] == 7 and face["visible"] > 0.98 and not face["ignore"]
    assert bright_bounds(image, face) == pytest.approx(corners(face), abs=1.5)
    assert face["h"] == pytest.approx(48, abs=0.1)


def test_what_shows_of_a_face_is_told() -> None:
    world = np.zeros((240, 320, 3), np.uint8)
    half_out, behind, before, gone = (
        walker(60, place, (0, 0)) for place in ((0, 60), (200, 120), (215, 120), (400, 0))
    )
    scene = Scene(world, (), (), still_camera((320, 240)), (half_out, behind, before, gone), 0)
    faces = {face["id"]: face for face in scene.frame(0)[1]}
    assert faces.keys() == {0, 1, 2}
    assert faces[0]["visible"] == pytest.approx(0.5, abs=0.02) and faces[0]["ignore"]
    assert faces[0]["x"] < 0
    assert faces[1]["visible"] < 0.6 and faces[1]["ignore"]  # the other one's picture is wider than its face
    assert faces[2]["visible"] > 0.98 and not faces[2]["ignore"]


def test_faces_that_a_picture_cut_are_ignored() -> None:
    world = np.zeros((240, 320, 3), np.uint8)
    faces = Scene(world, ((50, 50, 80, 90),) * 2, (0.0, 1.0), still_camera((320, 240)), (), 0).frame(0)[1]
    assert [face["ignore"] for face in faces] == [True, False]


def test_the_same_plan_gives_the_same_clip(tmp_path: Path) -> None:
    truths = [write(SMALL, tmp_path / f"{number}.mp4") for number in range(2)]
    files = [(tmp_path / f"{number}.mp4").read_bytes() for number in range(2)]
    assert truths[0] == truths[1] and files[0] == files[1]
    assert truths[0] == json.loads((tmp_path / "0.json").read_text("utf-8"))


@pytest.mark.parametrize(("size", "pixel_format"), [((320, 180), "yuv420p"), ((161, 121), "yuv444p")])
def test_the_file_holds_the_frames(tmp_path: Path, size: tuple[int, int], pixel_format: str) -> None:
    plan = Plan(size_wh=size, fps=10, seconds=0.6, faces=6, audio=True)
    truth = write(plan, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert len(container.streams.audio) == 1
        decoded = list(container.decode(video=0))
    assert (truth["width"], truth["height"], truth["fps"], len(truth["frames"])) == (*size, 10, 6)
    assert [float(frame.time) for frame in decoded] == pytest.approx([i / 10 for i in range(6)])
    for frame, (image, faces), told in zip(decoded, frames(plan), truth["frames"], strict=True):
        assert (frame.width, frame.height, frame.format.name) == (*size, pixel_format)
        assert faces == told
        assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - image).mean() < 6


def test_scenes_differ() -> None:
    pictures, faces = zip(*frames(Plan(size_wh=(320, 180), fps=10, seconds=2, faces=10, cuts=1)), strict=True)
    steps = [float(np.abs(b.astype(int) - a).mean()) for a, b in itertools.pairwise(pictures)]
    assert np.argmax(steps) == 9 and steps[9] > 2 * max(steps[:9] + steps[10:])
    assert all(face["id"] < SCENE_IDS for found in faces[:10] for face in found)
    assert all(face["id"] >= SCENE_IDS for found in faces[10:] for face in found)


def test_faces_come_in_all_sizes_and_some_come_and_go() -> None:
    told = [found for _, found in frames(Plan(size_wh=(640, 480), fps=3, seconds=8, faces=40, walkers=6))]
    heights = [face["h"] for found in told for face in found if not face["ignore"]]
    assert 8 <= min(heights) < 12 and max(heights) > 150
    there = [{face["id"] for face in found} for found in told]
    assert set.union(*there) - there[0] and there[0] - there[-1]
