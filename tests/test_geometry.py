"""Boxes become regions that hide all of a face, and tiles that see all of a picture."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blurguard.boxes import (
    FULL_WEIGHT_PX,
    areas,
    iou,
    mirror_boxes,
    nms,
    overlap_over_smaller,
    rescale_boxes,
    tile_spans,
    unrotate_boxes,
    weighted_nms,
)
from blurguard.redaction.regions import MIN_MARGIN_PX, paired_regions, regions_from
from blurguard.types import Detections

Boxes = NDArray[np.float32]
SIDES = st.integers(1, 500)
COORDINATES = st.floats(-300, 800, width=32)
LENGTHS = st.floats(0, 400, width=32)


@st.composite
def boxes(draw: st.DrawFn, most: int = 12) -> Boxes:
    corners = draw(st.lists(st.tuples(COORDINATES, COORDINATES, LENGTHS, LENGTHS), max_size=most))
    near_and_size = np.array(corners, np.float32).reshape(-1, 4)
    return np.concatenate([near_and_size[:, :2], near_and_size[:, :2] + near_and_size[:, 2:]], axis=1)


def found_in(boxes: object) -> Detections:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(array, np.linspace(0.9, 0.5, len(array), dtype=np.float32))


@given(boxes(), st.floats(0, 2), SIDES, SIDES)
def test_regions_lie_inside_the_picture_and_are_never_empty(
    faces: Boxes, margin: float, width: int, height: int
) -> None:
    for region in regions_from(found_in(faces), margin, width, height):
        assert 0 <= region.x0 < region.x1 <= width
        assert 0 <= region.y0 < region.y1 <= height
        assert all(type(v) is int for v in region.box)


@given(boxes(), st.floats(0, 2), SIDES, SIDES)
def test_regions_hold_the_enlarged_box_rounded_outward_by_less_than_a_pixel(
    faces: Boxes, margin: float, width: int, height: int
) -> None:
    tiny = 1e-3  # float32 at these coordinates
    for box, region in zip(faces.astype(float), paired_regions(found_in(faces), margin, width, height), strict=True):
        grow = np.maximum((box[2:] - box[:2]) * margin, MIN_MARGIN_PX)
        near = np.maximum(box[:2] - grow, 0)
        far = np.minimum(box[2:] + grow, [width, height])
        if region is None:
            assert (far - near).min() <= tiny
            continue
        assert (region.box[:2] <= near + tiny).all() and (near < np.add(region.box[:2], 1 + tiny)).all()
        assert (region.box[2:] >= far - tiny).all() and (far > np.subtract(region.box[2:], 1 + tiny)).all()
        assert region.face_width == pytest.approx(box[2] - box[0], abs=tiny)


def test_regions_reach_the_last_row_and_column() -> None:
    (region,) = regions_from(found_in([[80, 60, 120, 90]]), 0.2, 100, 70)
    assert region.box == (72, 54, 100, 70)
    (region,) = regions_from(found_in([[-9, -9, 5, 5]]), 0.2, 100, 70)
    assert region.box == (0, 0, 8, 8)


def test_a_clipped_region_keeps_its_whole_ellipse() -> None:
    (region,) = regions_from(found_in([[90, 20, 110, 40]]), 0.2, 100, 70)
    assert region.box == (86, 16, 100, 44)
    assert region.ellipse == (86, 16, 114, 44)


def test_small_faces_keep_a_margin_in_pixels() -> None:
    (region,) = regions_from(found_in([[10, 10, 12, 12]]), 0.0, 100, 100)
    assert region.box == (8, 8, 14, 14)


def test_faces_outside_have_no_region_and_the_others_keep_their_order() -> None:
    faces = found_in([[50, 50, 60, 60], [-40, 0, -20, 20], [10, 10, 20, 20], [0, 200, 9, 220], [30, 30, 40, 40]])
    paired = paired_regions(faces, 0.0, 100, 100)
    assert [region and region.x0 for region in paired] == [48, None, 8, None, 28]
    assert regions_from(faces, 0.0, 100, 100) == [region for region in paired if region is not None]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_face_without_a_place_is_an_error_and_not_passed_over(bad: float) -> None:
    for place in range(4):
        box = [10.0, 10.0, 20.0, 20.0]
        box[place] = bad
        with pytest.raises(ValueError, match="cannot be hidden"):
            paired_regions(found_in([box]), 0.2, 100, 100)


def test_areas_and_overlaps_are_those_of_half_open_boxes() -> None:
    a = np.array([[0, 0, 10, 10], [5, 5, 3, 9]], np.float32)
    b = np.array([[5, 0, 15, 10], [10, 0, 20, 10], [0, 0, 10, 10]], np.float32)
    assert areas(a).tolist() == [100, 0]
    assert iou(a, b) == pytest.approx(np.array([[1 / 3, 0, 1], [0, 0, 0]]))


@given(boxes(), boxes())
def test_overlap_is_a_share_and_the_same_both_ways(a: Boxes, b: Boxes) -> None:
    overlap = iou(a, b)
    assert overlap.shape == (len(a), len(b))
    assert (overlap >= 0).all() and (overlap <= 1 + 1e-3).all()
    assert np.array_equal(overlap, iou(b, a).T)


@given(boxes(40), st.randoms(use_true_random=False), st.floats(0, 0.9))
def test_suppression_keeps_the_best_and_drops_only_what_overlaps_a_better_one(
    faces: Boxes, random: np.random.Generator, overlap: float
) -> None:
    scores = np.array([random.random() for _ in faces], np.float32)
    kept = nms(faces, scores, overlap)
    assert np.array_equal(kept, nms(faces, scores, overlap))
    assert list(scores[kept]) == sorted(scores[kept], reverse=True)
    apart = iou(faces[kept], faces[kept])
    np.fill_diagonal(apart, 0)
    assert (apart <= overlap).all()
    for lost in set(range(len(faces))) - set(kept.tolist()):
        better = kept[scores[kept] >= scores[lost]]
        assert (iou(faces[lost : lost + 1], faces[better]) > overlap).any()


def test_equal_scores_keep_their_order() -> None:
    corners = np.arange(300, dtype=np.float32)[:, None] * 20
    apart = np.concatenate([corners, corners, corners + 10, corners + 10], axis=1)
    scores = np.repeat(np.array([0.5, 0.9, 0.5], np.float32), 100)
    assert nms(apart, scores, 0.4).tolist() == [*range(100, 200), *range(100), *range(200, 300)]


def test_merging_passes_leaves_one_box_per_face_best_first() -> None:
    first = Detections(np.array([[0, 0, 10, 10]], np.float32), np.array([0.6], np.float32))
    second = Detections(np.array([[50, 0, 60, 10], [1, 0, 11, 10]], np.float32), np.array([0.9, 0.7], np.float32))
    both = weighted_nms([first, second], 0.45)
    share = 0.7 / (0.7 + 0.6)  # the boxes of one face are averaged by score
    assert both.boxes.tolist() == pytest.approx(np.array([[50, 0, 60, 10], [share, 0, 10 + share, 10]]))
    assert both.scores == pytest.approx([0.9, 0.7])
    assert len(weighted_nms([], 0.45)) == 0


@given(st.integers(1, 5000), st.integers(1, 20), st.sampled_from([1, 16, 32, 64]), st.integers(0, 200))
def test_tiles_cover_everything_with_the_overlap_asked_for(
    length: int, times: int, multiple: int, overlap: int
) -> None:
    most = times * multiple
    assume(overlap < most)
    spans = tile_spans(length, most, overlap, multiple)
    sizes = {stop - start for start, stop in spans}
    assert spans[0][0] == 0 and spans[-1][1] == length
    assert len(sizes) == 1 and max(sizes) <= min(length, most)
    if length > most:
        assert sizes.pop() % multiple == 0
        for (_, stop), (start, _) in itertools.pairwise(spans):
            assert stop - start >= overlap
            assert start >= 0


@pytest.mark.parametrize(
    ("length", "spans"),
    [(640, [(0, 640)]), (641, [(0, 384), (257, 641)]), (1185, [(0, 512), (336, 848), (673, 1185)])],
)
def test_tiles_are_as_few_and_as_small_as_can_be(length: int, spans: list[tuple[int, int]]) -> None:
    assert tile_spans(length, 640, 96, 64) == spans


def test_a_box_inside_a_better_one_is_the_same_face() -> None:
    faces = np.array([[0, 0, 100, 100], [10, 10, 60, 60], [70, 70, 120, 120]], np.float32)
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    assert nms(faces, scores, 0.45).tolist() == [0, 1, 2]
    assert nms(faces, scores, 0.45, 0.6).tolist() == [0, 2]
    assert overlap_over_smaller(faces, faces)[0].tolist() == pytest.approx([1, 1, 0.36])


def test_a_likely_box_is_not_dropped_for_an_unlikely_one_around_it() -> None:
    boxes = np.array([[0, 0, 60, 60], [10, 10, 25, 25]], np.float32)
    likely_inside = [Detections(boxes, np.array([0.3, 0.9]))]
    assert len(weighted_nms(likely_inside, 0.35, 0.75, [1.0])) == 2
    unlikely_inside = [Detections(boxes, np.array([0.9, 0.3]))]
    assert len(weighted_nms(unlikely_inside, 0.35, 0.75, [1.0])) == 1


@pytest.mark.parametrize("quarters", range(4))
def test_boxes_of_a_turned_picture_are_turned_back_to_the_pixels_they_were(quarters: int) -> None:
    picture = np.zeros((30, 50), np.uint8)
    picture[4:9, 7:20] = 1
    rows, columns = np.nonzero(np.rot90(picture, quarters))
    box = np.array([[columns.min(), rows.min(), columns.max(), rows.max()]], np.float32)
    assert unrotate_boxes(box, quarters, 50, 30).tolist() == [[7, 4, 19, 8]]


def test_boxes_that_count_pixels_keep_their_middles_at_another_size() -> None:
    small = np.zeros((30, 50), np.uint8)
    small[4, 7] = 1
    rows, columns = np.nonzero(np.kron(small, np.ones((4, 4), np.uint8)))
    middle = [columns.mean(), rows.mean()] * 2
    assert rescale_boxes(np.array([[7, 4, 7, 4]], np.float32), (50, 30), (200, 120)).tolist() == [middle]
    assert rescale_boxes(np.array([middle], np.float32), (200, 120), (50, 30)).tolist() == [[7, 4, 7, 4]]


def test_boxes_that_count_pixels_have_the_same_ones_in_the_mirror() -> None:
    picture = np.zeros((30, 50), np.uint8)
    picture[4:9, 7:20] = 1
    first, last = (np.argwhere(picture[:, ::-1])[end] for end in (0, -1))
    assert mirror_boxes(np.array([[7, 4, 19, 8]], np.float32), 50).tolist() == [[first[1], first[0], last[1], last[0]]]


def test_a_box_that_was_seen_with_few_pixels_weighs_less_in_the_mean() -> None:
    coarse = Detections(np.array([[0, 0, 20, 20]]), np.array([0.8]))
    fine = Detections(np.array([[4, 0, 24, 20]]), np.array([0.6]))
    assert weighted_nms([fine, coarse], 0.3).boxes[0, 0] == pytest.approx(4 * 0.6 / 1.4, abs=1e-4)
    weighted = weighted_nms([fine, coarse], 0.3, scales=[1, 0.25])  # of 20 and 5 px
    sharp, blunt = 0.6 * (20 / FULL_WEIGHT_PX) ** 2, 0.8 * (5 / FULL_WEIGHT_PX) ** 2
    assert weighted.boxes[0, 0] == pytest.approx(4 * sharp / (sharp + blunt), abs=1e-4)
    assert weighted.scores.tolist() == pytest.approx([0.8])


@pytest.mark.parametrize("scales", [[], [1.0]])
def test_merging_nothing_gives_nothing(scales: list[float]) -> None:
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    assert len(weighted_nms([nothing] * len(scales), 0.3, scales=scales)) == 0


def test_of_two_passes_the_sharper_one_says_where_and_the_surer_one_how_sure() -> None:
    coarse = Detections(np.array([[10, 10, 24, 24]], np.float32), np.array([0.9], np.float32))
    fine = Detections(np.array([[13, 12, 25, 26]], np.float32), np.array([0.5], np.float32))
    found = weighted_nms([fine, coarse], 0.35, 0.75, [1.0, 0.125])
    assert len(found) == 1
    assert found.scores.tolist() == [pytest.approx(0.9)]
    assert np.abs(found.boxes[0] - fine.boxes[0]).max() < 0.2


def test_empty_boxes_do_no_harm() -> None:
    empty = Detections(np.array([[5, 5, 5, 5], [9, 9, 8, 8]], np.float32), np.array([0.5, 0.4], np.float32))
    assert len(weighted_nms([empty], 0.35, 0.75)) == 2
