"""Scores become probabilities, and passes together never make a face less probable than one of them alone."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blurguard import Anonymizer, Image, Layout, Settings
from blurguard.boxes import NO_DETECTIONS, iou
from blurguard.detection import model_zoo
from blurguard.detection.fusion import (
    MAX_PX,
    MIN_PROBABILITY,
    MIN_PX,
    SAME_FACE_IOU,
    fuse,
    least_score,
    merged,
    probabilities,
    same_faces,
)
from blurguard.detection.interpreter import Network
from blurguard.detection.model_zoo import PassSpec, Plan
from blurguard.detection.multiscale import MIN_SIDE_PX, FusedDetector
from blurguard.detection.scales import RULES
from blurguard.types import Detections

MANIFEST = model_zoo.load_manifest()
LOWEST_SCORE = 0.08  # of a network that may count
AS_IT_IS = (0.0, 1.0, 0.0, 0.0, 0.0)  # coefficients that leave a score unchanged
PLANS = {f"{model.name}, {mode}": plan for model in MANIFEST.models for mode, plan in model.plans.items()}
PASSES = {f"{name}, {each.network}/{each.scales}": each for name, plan in PLANS.items() for each in plan.every_pass}

Box = tuple[float, float, float, float]


def seen(*faces: tuple[Box, float]) -> Detections:
    return Detections(np.array([box for box, _ in faces]), np.array([score for _, score in faces]))


def square(x: float, y: float, side: float) -> Box:
    return x, y, x + side, y + side


@pytest.mark.parametrize("each", PASSES.values(), ids=PASSES)
def test_a_higher_score_is_a_higher_probability(each: PassSpec) -> None:
    scores = np.linspace(LOWEST_SCORE, 1, 200, dtype=np.float32)
    for height in np.geomspace(MIN_PX, MAX_PX, 60):
        boxes = np.tile(np.array([0, 0, height, height], np.float32), (len(scores), 1))
        found = probabilities(Detections(boxes, scores), each.probability).scores.astype(float)
        assert (np.diff(found) >= 0).all(), f"at {height:.1f} px"
        assert 0 <= found[0] < found[-1] <= 1


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_box_with_the_lowest_score_of_a_network_is_not_hidden_by_it_alone(plan: Plan) -> None:
    for each in plan.every_pass:
        smallest = MIN_SIDE_PX / RULES[each.scales](1024, 683)[0]
        boxes = np.array([[0, 0, side, side] for side in np.geomspace(smallest, 2 * MAX_PX, 60)], np.float32)
        lowest = Detections(boxes, np.full(len(boxes), least_score(each.probability), np.float32))
        assert probabilities(lowest, each.probability).scores.max() < plan.threshold, each


def test_a_probability_is_the_logistic_function_of_the_terms() -> None:
    found = probabilities(seen((square(0, 0, 40), 0.8)), (0.1, 2.0, 0.3, 0.4, 0.5))
    logit, height = math.log(0.8 / 0.2), math.log(2)
    expected = 0.1 + 2 * logit + 0.3 * height + 0.4 * logit * height + 0.5 * height**2
    assert found.scores == pytest.approx([1 / (1 + math.exp(-expected))])


def test_beyond_the_limits_heights_and_scores_say_nothing_more() -> None:
    coefficients = (0.1, 2.0, 0.3, 0.4, 0.5)
    for low, high in ((MIN_PX / 4, MIN_PX), (MAX_PX, 4 * MAX_PX)):
        one, other = (probabilities(seen((square(0, 0, side), 0.6)), coefficients) for side in (low, high))
        assert one.scores[0] == other.scores[0]
    certain = probabilities(seen((square(0, 0, 20), 1.0), (square(0, 0, 20), 0.0)), coefficients)
    assert np.isfinite(certain.scores).all() and certain.scores[0] > 0.99 and certain.scores[1] < 0.01


def test_coefficients_may_leave_scores_as_they_are() -> None:
    found = seen((square(0, 0, 7), 0.9), (square(50, 0, 300), 0.3))
    same = probabilities(Detections(found.boxes, found.scores, "dark"), AS_IT_IS)
    assert same.scores == pytest.approx(found.scores) and same.flaw == "dark"
    np.testing.assert_array_equal(same.boxes, found.boxes)


SCORES = st.floats(0, 1, width=32)
FACES = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 40), st.integers(1, 40), SCORES)
PARTS = st.lists(
    st.lists(FACES, max_size=6).map(lambda faces: seen(*(((x, y, x + w, y + h), p) for x, y, w, h, p in faces))),
    max_size=4,
)


@given(PARTS)
def test_a_face_is_at_least_as_probable_as_in_any_pass(passes: list[Detections]) -> None:
    faces = fuse(passes)
    assert (np.diff(faces.scores) <= 0).all()
    assert ((faces.scores >= MIN_PROBABILITY - 1e-6) & (faces.scores <= 1)).all()
    for group, face in zip(groups := same_faces(passes), merged(passes, groups).scores.tolist(), strict=True):
        own = [float(passes[index].scores[row]) for index, row in group]
        assert face >= max(own) - 1e-6
        assert face == pytest.approx(1 - math.prod(1 - p for p in own), abs=1e-6)
        assert len({index for index, _ in group}) == len(group)
    for found in passes:
        if (found.scores >= MIN_PROBABILITY).any():
            assert faces.scores[0] >= found.scores.max() - 1e-6


@given(PARTS)
def test_boxes_that_no_other_box_overlaps_much_stay_as_they_are(passes: list[Detections]) -> None:
    every = [(box, p) for found in passes for box, p in zip(found.boxes, found.scores, strict=True)]
    boxes = np.array([box for box, _ in every], np.float32).reshape(-1, 4)
    overlaps = iou(boxes, boxes)
    np.fill_diagonal(overlaps, 0)
    faces = fuse(passes)
    for (box, p), overlap in zip(every, overlaps, strict=True):
        if p >= MIN_PROBABILITY and overlap.max() <= SAME_FACE_IOU:
            at = np.flatnonzero(np.isclose(faces.boxes, box, atol=1e-3).all(axis=1))
            assert len(at) == 1
            assert faces.scores[at[0]] == pytest.approx(p, abs=1e-6)


@given(PARTS)
def test_passes_that_find_nothing_change_nothing(passes: list[Detections]) -> None:
    faces, same = fuse(passes), fuse([*passes, NO_DETECTIONS])
    np.testing.assert_array_equal(faces.boxes, same.boxes)
    np.testing.assert_array_equal(faces.scores, same.scores)


def test_two_passes_that_agree_are_one_face_between_their_boxes() -> None:
    faces = fuse([seen(((0, 0, 40, 40), 0.6)), seen(((8, 0, 48, 40), 0.3))])
    assert faces.scores == pytest.approx([1 - 0.4 * 0.7])
    np.testing.assert_allclose(faces.boxes, [[8 / 3, 0, 40 + 8 / 3, 40]], atol=1e-4)


def test_small_faces_inside_a_large_box_of_another_pass_all_stay() -> None:
    small = [(square(x, y, 20), 0.7) for x, y in itertools.product((0, 30, 60), (0, 30, 60))]
    large = (square(-5, -5, 90), 0.99)
    for passes in ([seen(*small), seen(large)], [seen(large), seen(*small)]):
        faces = fuse(passes)
        assert len(faces) == 10
        np.testing.assert_allclose(faces.boxes[0], large[0])
        assert {tuple(box) for box in faces.boxes[1:].tolist()} == {box for box, _ in small}


@pytest.mark.parametrize(("apart", "faces"), [(10, 1), (20, 2), (35, 2)])  # px of 40: IoU 0.6, 0.33 and 0.07
def test_neighbors_that_two_passes_find_both_stay(apart: int, faces: int) -> None:
    for one, other in ((0.9, 0.6), (0.6, 0.9)):
        assert len(fuse([seen((square(0, 0, 40), one)), seen((square(apart, 0, 40), other))])) == faces


def test_neighbors_that_one_box_of_another_pass_covers_both_stay() -> None:
    both = seen(((0, 0, 40, 20), 0.95))
    each = seen(((0, 0, 20, 20), 0.9), ((20, 0, 40, 20), 0.9))
    faces = fuse([both, each])
    covered = np.zeros((20, 40), bool)
    for x0, y0, x1, y1 in faces.boxes.round().astype(int).tolist():
        covered[y0:y1, x0:x1] = True
    assert len(faces) == 2
    assert covered.all()


def test_no_pass_and_no_box_give_no_face() -> None:
    assert len(fuse([])) == len(fuse([NO_DETECTIONS, NO_DETECTIONS])) == 0
    assert len(fuse([seen((square(0, 0, 20), MIN_PROBABILITY / 2))])) == 0


def test_equal_scores_give_the_same_faces_each_time() -> None:
    boxes = [square(x, 0, 20) for x in range(0, 100, 7)]
    passes = [seen(*((box, 0.5) for box in boxes[start::2])) for start in (0, 1)]
    first = fuse(passes)
    assert len(first) >= 5
    for _ in range(3):
        again = fuse(passes)
        np.testing.assert_array_equal(first.boxes, again.boxes)
        np.testing.assert_array_equal(first.scores, again.scores)


class Sees(Network):
    """A network that sees the same faces in every image of ordinary size, whatever it shows."""

    def __init__(self, *faces: tuple[Box, float]) -> None:
        spec = MANIFEST.networks["stock"]
        self.spec = dataclasses.replace(spec, box_scale=(1.0, 1.0), box_shift=(0.0, 0.0))
        self._faces = faces

    def run(self, canvas: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        rows, columns = canvas.shape[0] // 4, canvas.shape[1] // 4
        logits, boxes = np.full((rows, columns), -99, np.float32), np.zeros((rows, columns, 4), np.float32)
        for (x0, y0, x1, y1), score in self._faces:
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            row, column = int(y // 4), int(x // 4)
            logits[row, column] = math.log(score / (1 - score))
            boxes[row, column] = x - 4 * column - 2, y - 4 * row - 2, x1 - x0, y1 - y0
        return boxes, logits


WIDTH, HEIGHT = 720, 480  # the networks see it at its own size, in one tile
FIRST, SECOND = square(100, 100, 60), square(400, 250, 30)


def detector(*networks: Network, coefficients: Sequence[tuple[float, ...]] = ()) -> FusedDetector:
    """Return a detector with one pass at the own size for each network, and a threshold of 0.5."""
    chosen = coefficients or [AS_IT_IS] * len(networks)
    passes = tuple(PassSpec(network=str(number), scales="own", probability=row) for number, row in enumerate(chosen))
    plan = Plan(passes=passes, threshold=0.5, crowd_ap=0.0)
    return FusedDetector("both", plan, {str(number): network for number, network in enumerate(networks)})


def noise() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)


@pytest.mark.parametrize("turn", [1, -1])
def test_a_face_found_by_one_network_alone_is_found(turn: int) -> None:
    networks = [Sees((FIRST, 0.9)), Sees((SECOND, 0.6), (square(600, 50, 40), 0.4))][::turn]
    found = detector(*networks).detect(noise(), 0.5)
    np.testing.assert_allclose(found.boxes, [FIRST, SECOND], atol=0.01)
    assert found.scores == pytest.approx([0.9, 0.6], abs=1e-4)


def test_a_face_that_two_networks_doubt_is_found_if_both_see_it() -> None:
    both = detector(Sees((FIRST, 0.4)), Sees((FIRST, 0.3))).detect(noise(), 0.5)
    assert both.scores == pytest.approx([1 - 0.6 * 0.7], abs=1e-4)
    assert not len(detector(Sees((FIRST, 0.4)), Sees()).detect(noise(), 0.5))


def test_each_pass_has_coefficients_of_its_own() -> None:
    surer = (2.0, 1.0, 0.0, 0.0, 0.0)
    found = detector(Sees((FIRST, 0.5)), Sees((SECOND, 0.5)), coefficients=[AS_IT_IS, surer]).detect(noise(), 0.1)
    np.testing.assert_allclose(found.boxes, [SECOND, FIRST], atol=0.01)
    assert found.scores == pytest.approx([1 / (1 + math.exp(-2)), 0.5], abs=1e-4)


@pytest.mark.parametrize("turn", [1, -1])
def test_a_face_found_by_one_network_alone_is_hidden(turn: int) -> None:
    networks = [Sees((FIRST, 0.9)), Sees((SECOND, 0.51), (square(600, 50, 40), 0.45))][::turn]
    rgb = noise()
    hidden, faces = Anonymizer(Settings(), detector(*networks)).hide(Image(rgb, Layout.RGB))
    assert len(faces) == 2
    changed = (hidden.pixels != rgb).any(axis=2)
    for x0, y0, x1, y1 in (FIRST, SECOND):
        rows, columns = np.mgrid[int(y0) : int(y1), int(x0) : int(x1)]
        radius = (x1 - x0) / 2
        inside = np.hypot(columns + 0.5 - (x0 + x1) / 2, rows + 0.5 - (y0 + y1) / 2) <= radius
        assert changed[int(y0) : int(y1), int(x0) : int(x1)][inside].mean() > 0.98
    assert not changed[50:90, 600:640].any()  # 0.45 is under the threshold
