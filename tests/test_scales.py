"""Each rule of scales bounds its work, goes from fine to coarse, and ends with a copy small enough for large faces."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blurguard.detection import scales
from blurguard.detection.scales import RULES

SIDES = st.integers(1, 60_000)
SHOWN_PX = 7.0  # the fast mode finds most faces of this side


def pixels(rule: str, width: int, height: int) -> float:
    """Return how many px a network sees under a rule."""
    return sum(scale**2 for scale in RULES[rule](width, height)) * width * height


def all_scales(width: int, height: int) -> dict[str, list[float]]:
    return {name: rule(width, height) for name, rule in RULES.items()}


@given(SIDES, SIDES)
@example(1, 1)
@example(60_000, 1)
@example(60_000, 60_000)
def test_scales_are_finest_first_and_in_bounds(width: int, height: int) -> None:
    for name, found in all_scales(width, height).items():
        assert 1 <= len(found) <= 10, name
        assert all(0 < scale <= scales.MAX_SCALE for scale in found), name
        assert all(fine > coarse for fine, coarse in itertools.pairwise(found)), name


@given(SIDES, SIDES)
def test_rules_are_the_same_for_an_image_on_its_side(width: int, height: int) -> None:
    for (name, found), turned in zip(
        all_scales(width, height).items(), all_scales(height, width).values(), strict=True
    ):
        assert found == turned, name


@given(SIDES, SIDES)
@example(2000, 800)
def test_work_is_bounded(width: int, height: int) -> None:
    image, longer, shorter = width * height, max(width, height), min(width, height)
    fast = max(scales.FAST_SIDE_PX**2, scales.FAST_SHORT_SIDE_PX**2 * longer / shorter)
    most = {
        "fast": min(scales.MAX_SCALE**2 * image, fast) * (1 + sum(ratio**2 for ratio in scales.FAST_RATIOS)),
        "fine": max(scales.FINE_PX, image),
        "coarse": max(scales.FINE_PX, image) / 8,  # a ninth, and its ninths
        "medium": scales.MEDIUM_PX,
        "own": max(scales.FAST_SIDE_PX**2, image),
        "octaves": max(scales.FAST_SIDE_PX**2, image) / 3,  # a fourth, and its fourths
        "pyramid": max(scales.FAST_SIDE_PX**2, image) * 4 / 3,
        "rotated": scales.ROTATED_SIDE_PX**2,
    }
    assert most.keys() == RULES.keys()
    for name, bound in most.items():
        assert pixels(name, width, height) <= bound * (1 + 1e-9), name


@given(SIDES, SIDES)
def test_own_sizes_are_never_reduced(width: int, height: int) -> None:
    assert RULES["own"](width, height)[0] >= 1
    assert RULES["fine"](width, height)[0] >= 1
    if width * height <= scales.MEDIUM_PX:
        assert RULES["medium"](width, height)[0] >= 1


@given(SIDES, SIDES)
def test_small_images_are_enlarged_as_far_as_it_helps(width: int, height: int) -> None:
    (fine,), (own,) = RULES["fine"](width, height), RULES["own"](width, height)
    assert fine == scales.MAX_FINE_SCALE or fine**2 * width * height >= scales.FINE_PX * (1 - 1e-9)
    assert own == scales.MAX_SCALE or own * max(width, height) >= scales.FAST_SIDE_PX * (1 - 1e-9)


@given(SIDES, SIDES)
def test_coarse_copies_follow_the_fine_one_down_to_a_small_one(width: int, height: int) -> None:
    longer, found = max(width, height), RULES["coarse"](width, height)
    finer = [*RULES["fine"](width, height), *found]
    assert all(b == pytest.approx(a * scales.COARSE_RATIO) for a, b in itertools.pairwise(finer))
    assert found[-1] * longer <= scales.COARSE_SIDE_PX
    assert all(scale * longer > scales.COARSE_SIDE_PX for scale in found[:-1])


@given(SIDES, SIDES)
def test_octaves_halve_the_own_size_down_to_a_small_copy(width: int, height: int) -> None:
    longer, found = max(width, height), RULES["octaves"](width, height)
    every = [*RULES["own"](width, height), *found]
    assert every == RULES["pyramid"](width, height)
    assert all(fine == 2 * coarse for fine, coarse in itertools.pairwise(every))
    assert found[-1] * longer < 2 * scales.SMALLEST_OCTAVE_PX
    assert len(found) == 1 or found[-1] * longer >= scales.SMALLEST_OCTAVE_PX
    assert len(found) <= 1 + math.log2(max(longer / scales.SMALLEST_OCTAVE_PX, 1))


@given(SIDES, SIDES)
def test_the_fast_mode_sees_a_bounded_size_and_coarser_ones(width: int, height: int) -> None:
    found, longer, shorter = RULES["fast"](width, height), max(width, height), min(width, height)
    assert [scale / found[0] for scale in found[1:]] == pytest.approx(scales.FAST_RATIOS)
    assert found[0] == scales.MAX_SCALE or found[0] * longer >= scales.FAST_SIDE_PX * (1 - 1e-9)
    assert min(found[0] * longer / scales.FAST_SIDE_PX, found[0] * shorter / scales.FAST_SHORT_SIDE_PX) <= 1 + 1e-9


@pytest.mark.parametrize(("width", "height"), [(14_400, 1440), (480, 4320), (1440, 14_400), (8000, 600)])
def test_the_fast_mode_shows_small_faces_of_long_images(width: int, height: int) -> None:
    face = 0.02 * min(width, height)
    assert RULES["fast"](width, height)[0] * face >= SHOWN_PX


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (3840, 2160), (1280, 720)])
def test_the_fast_mode_sees_ordinary_images_at_one_size(width: int, height: int) -> None:
    finest = RULES["fast"](width, height)[0]
    assert (round(finest * width), round(finest * height)) == (scales.FAST_SIDE_PX, scales.FAST_SHORT_SIDE_PX)
