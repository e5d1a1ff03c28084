"""Boxes of a view lie in the image where the pixels of its rendering come from."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blurguard.detection.views import COMMON_MULTIPLE_PX, CUT_PX, MIN_SNAPPED_PX, View, bucket, nearest_bucket
from blurguard.types import Detections

WIDTH, HEIGHT = 120, 96
FACTORS = (1.0, 2.0, 3.0, 0.5, 0.25, 1.5, 0.7)


def coordinates() -> NDArray[np.uint8]:
    """Return an image whose pixels hold twice their own column and row."""
    rows, columns = np.indices((HEIGHT, WIDTH))
    return np.stack([2 * columns, 2 * rows, np.zeros_like(rows)], axis=2).astype(np.uint8)


@st.composite
def views(draw: st.DrawFn) -> View:
    """Return any block at any scale, rotation and mirroring; sides are multiples of 4, so that halves lose none."""
    x0, y0 = draw(st.integers(0, WIDTH - 8)), draw(st.integers(0, HEIGHT - 8))
    width, height = 4 * draw(st.integers(2, (WIDTH - x0) // 4)), 4 * draw(st.integers(2, (HEIGHT - y0) // 4))
    block = x0, y0, x0 + width, y0 + height
    rotation, mirrored = draw(st.integers(0, 3)), draw(st.booleans())
    if draw(st.booleans()):
        return View((WIDTH, HEIGHT), block, None, rotation, mirrored)
    view = View.at_scale(coordinates(), draw(st.sampled_from(FACTORS)), block)
    return view._replace(rotation=rotation, mirrored=mirrored)


@given(views(), st.randoms(use_true_random=False))
def test_boxes_go_forward_and_back(view: View, random: Random) -> None:
    rendering = view.render(coordinates())
    height, width = rendering.shape[:2]
    columns, rows = (np.sort([random.randrange(side), random.randrange(side)]) for side in (width, height))
    corners = rendering[rows][:, columns, :2].reshape(4, 2) / 2  # px of the image that were rendered there
    box = np.array([[columns[0], rows[0], columns[1], rows[1]]], np.float32)
    (found,) = view.to_image(box).astype(float)
    x0, y0, x1, y1 = view.block
    inside = np.clip(found, [x0, y0] * 2, [x1 - 1, y1 - 1] * 2)  # rendering repeats the block's edge when it enlarges
    wanted = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
    # Exact in all but the values that OpenCV rounds.
    tolerance = 0.0 if view.scaled_wh in (None, (x1 - x0, y1 - y0)) else 0.6
    assert np.abs(inside - wanted).max() <= tolerance
    assert (found[2:] >= found[:2]).all()


@given(views())
def test_finer_renderings_only_save_time(view: View) -> None:
    level = View.at_scale(coordinates(), 1.0, view.block).render(coordinates())
    assert np.array_equal(view.render(coordinates(), finer=level), view.render(coordinates()))


@given(views())
def test_a_view_shares_memory_or_leaves_the_image_alone(view: View) -> None:
    image = coordinates()
    image.flags.writeable = False
    view.render(image)
    if view.scaled_wh is None and not (view.rotation or view.mirrored):
        assert np.shares_memory(view.render(image), image)


@pytest.mark.parametrize("scale", [None, 2.0])
@pytest.mark.parametrize(
    ("block", "cut"),
    [
        ((0, 0, WIDTH, HEIGHT), set()),
        ((8, 0, WIDTH, HEIGHT), {"left"}),
        ((0, 8, WIDTH, HEIGHT), {"top"}),
        ((0, 0, WIDTH - 8, HEIGHT), {"right"}),
        ((0, 0, WIDTH, HEIGHT - 8), {"bottom"}),
        ((8, 8, WIDTH - 8, HEIGHT - 8), {"left", "top", "right", "bottom"}),
    ],
)
def test_only_inner_edges_cut_faces(block: tuple[int, int, int, int], cut: set[str], scale: float | None) -> None:
    view = View.at_scale(coordinates(), scale, block) if scale else View((WIDTH, HEIGHT), block)
    x0, y0, x1, y1 = block
    middle = (x0 + x1) / 2, (y0 + y1) / 2
    near = {
        "left": (x0 + CUT_PX - 1, middle[1], middle[0], middle[1] + 9),
        "top": (middle[0], y0 + CUT_PX - 1, middle[0] + 9, middle[1]),
        "right": (middle[0], middle[1], x1 - CUT_PX + 1, middle[1] + 9),
        "bottom": (middle[0], middle[1], middle[0] + 9, y1 - CUT_PX + 1),
    }
    boxes = (np.array([*near.values()]) - [x0, y0, x0, y0] + 0.5) * (scale or 1) - 0.5
    found = view.uncut(Detections(boxes.astype(np.float32), np.array([0.9, 0.8, 0.7, 0.6])))
    assert [
        name for name, score in zip(near, (0.9, 0.8, 0.7, 0.6), strict=True) if np.float32(score) in found.scores
    ] == [name for name in near if name not in cut]


@given(st.integers(1, 6000))
def test_a_side_becomes_the_nearest_of_few_lengths(side: int) -> None:
    chosen = nearest_bucket(side)
    if side < MIN_SNAPPED_PX:
        assert chosen == side
        return
    lengths = [length for length in range(64, 8192, 64) if bucket(length, COMMON_MULTIPLE_PX) == length]
    assert chosen in lengths
    assert abs(chosen - side) == min(abs(length - side) for length in lengths)
    assert abs(chosen - side) <= side / (16 if side >= 512 else 6)
