"""The detector finds the faces, once each, where they are."""

import dataclasses
import json
import math
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from blurguard.boxes import iou, tile_grid, unrotate_boxes, weighted_nms
from blurguard.detection import model_zoo
from blurguard.detection.fusion import SAME_FACE_IOU
from blurguard.detection.interpreter import Network
from blurguard.detection.model_zoo import PassSpec, Plan
from blurguard.detection.multiscale import (
    SAME_IOU,
    TILE_MULTIPLE_PX,
    TILE_OVERLAP_PX,
    FusedDetector,
)
from blurguard.detection.registry import load_detector
from blurguard.detection.single_pass import MAX_PER_PASS, detect_once
from blurguard.detection.views import bucket
from blurguard.errors import ModelError
from blurguard.redaction.regions import regions_from
from blurguard.settings import Mode, Settings
from blurguard.types import Detections
from tests.children import hide_in_threads
from tests.conftest import EXAMPLES, Crowd, Starter

SAME_FACE = 0.4
PHOTOS: dict[str, list[list[int]]] = json.loads((EXAMPLES / "faces.json").read_text("utf-8"))["photos"]


MANIFEST = model_zoo.load_manifest()
STOCK = MANIFEST.networks["stock"]
AS_IT_IS = (0.0, 1.0, 0.0, 0.0, 0.0)  # coefficients that leave a score unchanged


@pytest.fixture(scope="module")
def network() -> Network:
    spec = MANIFEST.networks["far"]
    return Network(spec, model_zoo.load_weights(spec))


@pytest.fixture(scope="module")
def detectors() -> dict[Mode, FusedDetector]:
    return {mode: load_detector(Settings(mode=mode)) for mode in Mode}


@pytest.fixture(scope="module")
def accurate(detectors: dict[Mode, FusedDetector]) -> FusedDetector:
    return detectors[Mode.ACCURATE]


@pytest.fixture(scope="module")
def found(accurate: FusedDetector, crowd: Crowd) -> Detections:
    return accurate.detect(crowd[0], accurate.threshold)


def faces_of(crowd: Crowd, height: float) -> NDArray[np.float32]:
    """Return the whole, uncovered faces of at least that height, px."""
    whole = [face["box"] for face in crowd[1] if not face["clipped"] and face["occluded"] == 0]
    boxes = np.array(whole, np.float32)
    return boxes[boxes[:, 3] - boxes[:, 1] >= height]


def alone(network: Network, scales: str, *, rotated: bool = False) -> FusedDetector:
    """Return a detector of one pass, with the scores of its network."""
    each = PassSpec(network="it", scales=scales, probability=AS_IT_IS)
    turned = dataclasses.replace(each, scales="rotated") if rotated else None
    return FusedDetector("it", Plan(passes=(each,), rotated=turned, threshold=0.5, crowd_ap=0), {"it": network})


def all_apart(found: Detections, most: float = SAME_FACE_IOU) -> bool:
    overlap = iou(found.boxes, found.boxes)
    np.fill_diagonal(overlap, 0)
    return bool((overlap <= most).all())


def test_accurate_mode_finds_the_faces_of_the_crowd(found: Detections, crowd: Crowd) -> None:
    for height, share in ((40, 1.0), (20, 0.8)):
        wanted = faces_of(crowd, height)
        assert len(wanted) >= 12
        assert (iou(wanted, found.boxes).max(axis=1) > SAME_FACE).mean() >= share


def test_fast_mode_finds_the_large_faces_of_the_crowd(detectors: dict[Mode, FusedDetector], crowd: Crowd) -> None:
    fast = detectors[Mode.FAST]
    found = fast.detect(crowd[0], fast.threshold)
    assert (iou(faces_of(crowd, 80), found.boxes).max(axis=1) > SAME_FACE).all()
    assert all_apart(found)


@pytest.mark.parametrize("edge", ["left", "top", "right", "bottom"])
def test_a_face_that_the_edge_of_the_picture_cuts_is_found(accurate: FusedDetector, crowd: Crowd, edge: str) -> None:
    x0, y0, x1, y1 = crowd[1][0]["box"]
    dx, dy = (x1 - x0) / 5, (y1 - y0) / 5
    left, right = (
        int(x0 + dx if edge == "left" else x0 - 4 * dx),
        int(x1 - dx if edge == "right" else x1 + 4 * dx),
    )
    top, bottom = (
        int(y0 + dy if edge == "top" else y0 - 4 * dy),
        int(y1 - dy if edge == "bottom" else y1 + 4 * dy),
    )
    part = crowd[0][top:bottom, left:right]
    found = accurate.detect(part, accurate.threshold)
    visible = np.array([[max(x0, left), max(y0, top), min(x1, right), min(y1, bottom)]]) - [
        left,
        top,
        left,
        top,
    ]
    assert iou(visible.astype(np.float32), found.boxes).max(initial=0) > SAME_FACE


def test_every_box_is_one_face_and_no_face_has_two(accurate: FusedDetector, crowd: Crowd) -> None:
    found = accurate.detect(crowd[0], 0.5)
    faces = np.array([face["box"] for face in crowd[1]], np.float32)
    on_face = iou(faces, found.boxes) > 0.3
    assert (on_face.sum(axis=1) <= 1).all()
    assert (on_face.sum(axis=0) >= 1).mean() >= 0.9
    assert all_apart(found)


@pytest.mark.parametrize("name", [name for name in PHOTOS if name != "crowd.jpg"])
def test_each_photo_gives_its_faces_and_surely_nothing_else(accurate: FusedDetector, name: str) -> None:
    with Image.open(EXAMPLES / "photos" / name) as photo:
        found = accurate.detect(np.array(photo.convert("RGB")), accurate.threshold)
    overlap = iou(np.array(PHOTOS[name], np.float32).reshape(-1, 4), found.boxes)
    assert (overlap.max(axis=1, initial=0) > SAME_FACE).all()
    assert (overlap.max(axis=0, initial=0)[found.scores >= 0.7] > 0.1).all()


def test_tiles_see_what_one_look_at_the_whole_picture_sees(
    accurate: FusedDetector, network: Network, crowd: Crowd
) -> None:
    rgb = crowd[0]
    tiled = accurate._detect_tiled(rgb, accurate.plan.passes[0])
    whole = weighted_nms([detect_once(network, rgb, 0.3)], SAME_IOU)
    rows, columns = tile_grid(rgb.shape[0], rgb.shape[1], network.max_px, TILE_OVERLAP_PX, TILE_MULTIPLE_PX)
    cuts = [{edge for span in spans for edge in span} for spans in (columns, rows)]
    crossed = [any(box[at] < cut < box[at + 2] for at in (0, 1) for cut in cuts[at]) for box in whole.boxes]
    assert sum(crossed) >= 2
    assert all_apart(tiled, SAME_IOU)
    for one, other in ((tiled, whole), (whole, tiled)):
        sure = one.boxes[one.scores >= 0.65]
        small = sure[(sure[:, 2:] - sure[:, :2]).max(axis=1) < TILE_OVERLAP_PX]
        assert len(small) >= 30
        assert (iou(small, other.boxes).max(axis=1) > 0.7).all()


@pytest.mark.parametrize("at", [(0, 0), (31, 50), (77, 13), (120, 120)])
def test_faces_are_found_once_wherever_the_tiles_cut(
    accurate: FusedDetector, crowd: Crowd, at: tuple[int, int]
) -> None:
    top, left = at
    moved = np.pad(crowd[0], ((top, 0), (left, 0), (0, 0)), mode="edge")
    found = accurate.detect(moved, accurate.threshold)
    wanted = faces_of(crowd, 40) + np.array([left, top, left, top], np.float32)
    overlap = iou(wanted, found.boxes)
    assert (overlap.max(axis=1) > SAME_FACE).all()
    assert ((overlap > 0.3).sum(axis=1) == 1).all()


def test_boxes_are_in_pixels_of_the_picture_whatever_its_size(accurate: FusedDetector, crowd: Crowd) -> None:
    x0, y0, x1, y1 = crowd[1][0]["box"]
    left, top = int(x0) - 60, int(y0) - 80
    part = Image.fromarray(crowd[0][top : int(y1) + 50, left : int(x1) + 90])
    for width, height in ((part.width, part.height), (97, 111), (517, 611), (1733, 2011)):
        found = accurate.detect(np.array(part.resize((width, height))), accurate.threshold)
        scale = np.array([width / part.width, height / part.height] * 2)
        wanted = (np.array([[x0, y0, x1, y1]]) - [left, top, left, top]) * scale
        assert iou(wanted.astype(np.float32), found.boxes).max(initial=0) > SAME_FACE


@pytest.mark.parametrize("mode", Mode)
def test_scores_are_at_least_what_was_asked_for(detectors: dict[Mode, FusedDetector], crowd: Crowd, mode: Mode) -> None:
    rgb = crowd[0][300:900, 200:1000]
    counts = []
    for least in (0.05, 0.3, 0.7, 0.9):
        found = detectors[mode].detect(rgb, least)
        assert (found.scores >= least - 1e-6).all() and (found.scores <= 1).all()
        assert (np.diff(found.scores) <= 0).all()
        counts.append(len(found))
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def test_the_same_picture_gives_the_same_faces(crowd: Crowd) -> None:
    rgb = crowd[0][300:900, 200:1000]
    one = load_detector(Settings())
    for other in (one, load_detector(Settings())):
        first, again = one.detect(rgb, 0.3), other.detect(rgb, 0.3)
        assert np.array_equal(first.boxes, again.boxes) and np.array_equal(first.scores, again.scores)


SIZES = [(1, 1), (1, 2000), (3, 5000), (2000, 3), (7, 9), (31, 33), (641, 100), (8, 8)]


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_any_size_can_be_looked_at(detectors: dict[Mode, FusedDetector], mode: Mode, height: int, width: int) -> None:
    black = np.zeros((height, width, 3), np.uint8)
    assert len(detectors[mode].detect(black, 0.5)) == 0


def test_settings_choose_the_detector(detectors: dict[Mode, FusedDetector]) -> None:
    for mode, detector in detectors.items():
        plan = MANIFEST.model().plans[mode]
        assert (detector.plan, detector.threshold) == (plan, plan.threshold)
        assert detector.identity == MANIFEST.identity(MANIFEST.model(), mode)
    quick = detectors[Mode.ACCURATE].quick
    assert quick and quick.plan == MANIFEST.model().plans[Mode.FAST]
    assert quick.identity == detectors[Mode.ACCURATE].identity
    assert detectors[Mode.FAST].quick is None
    with pytest.raises(ModelError, match="better"):
        load_detector(Settings(model="better"))


@given(st.integers(1, 20_000))
def test_pictures_are_run_at_few_sizes_with_little_padding(side: int) -> None:
    run_at = bucket(side, 32)
    assert run_at >= side and run_at % 32 == 0
    assert run_at - side < max(32, side / 8 + 32)


def test_few_interpreters_serve_all_sizes() -> None:
    assert len({bucket(side, 32) for side in range(1, 641)}) <= 20


def test_padding_adds_no_faces_and_loses_none(network: Network, crowd: Crowd) -> None:
    rgb = crowd[0][550:850, 230:490]
    canvas = np.zeros((bucket(300, 32), bucket(260, 32), 3), np.uint8)
    canvas[:300, :260] = rgb
    cut, padded = detect_once(network, rgb, 0.3), detect_once(network, canvas, 0.3)
    assert len(cut) >= 1
    assert np.array_equal(cut.boxes, padded.boxes)


class Maps(Network):
    """A network that gives the maps it is told."""

    def __init__(self, boxes: NDArray[np.float32], logits: NDArray[np.float32]) -> None:
        self.spec = STOCK
        self._maps = boxes, logits

    def run(self, canvas: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self._maps


def test_a_cell_becomes_the_box_that_the_manifest_says() -> None:
    logits, boxes = np.full((8, 8), -9, np.float32), np.zeros((8, 8, 4), np.float32)
    logits[2, 5], boxes[2, 5] = 0, [1, -2, 10, 20]
    found = detect_once(Maps(boxes, logits), np.zeros((32, 32, 3), np.uint8), 0.5)
    (scale_x, scale_y), (shift_x, shift_y) = STOCK.box_scale, STOCK.box_shift
    width, height = 10 * scale_x, 20 * scale_y
    x, y = 5.5 * 4 + 1 + width * shift_x, 2.5 * 4 - 2 + height * shift_y  # the center of the cell, stride 4
    wanted = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    assert found.boxes.tolist() == [pytest.approx(wanted, abs=1e-4)]
    assert found.scores.tolist() == [0.5]


def test_when_everything_looks_like_a_face_the_best_cells_stay() -> None:
    logits = np.random.default_rng(0).normal(0, 30, (64, 64)).astype(np.float32)
    boxes = np.zeros((64, 64, 4), np.float32)
    found = detect_once(Maps(boxes, logits), np.zeros((256, 256, 3), np.uint8), 1e-9)
    assert len(found) == MAX_PER_PASS
    assert np.isfinite(found.scores).all() and found.scores[0] == 1
    assert found.scores[-1] < 1e-3


class RightEdge(Network):
    """A network that sees one face of 45 px half beyond the right edge of whatever it is shown."""

    def __init__(self) -> None:
        self.spec = MANIFEST.networks["far"]

    def run(self, canvas: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        rows, columns = canvas.shape[0] // 4, canvas.shape[1] // 4
        logits, boxes = np.full((rows, columns), -99, np.float32), np.zeros((rows, columns, 4), np.float32)
        logits[rows // 2, -1] = 9
        return boxes, logits


def test_what_the_edge_of_a_tile_cuts_is_left_to_its_neighbor() -> None:
    found = alone(RightEdge(), "pyramid").detect(np.zeros((1000, 2000, 3), np.uint8), 0.5)
    assert len(found) >= 1
    assert (found.boxes[:, 2] > 1990).all()  # only the edge of the picture itself cuts faces


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_faces_that_lie_or_stand_on_their_heads_are_found_in_accurate_mode(
    accurate: FusedDetector, crowd: Crowd, quarters: int
) -> None:
    height, width = crowd[0].shape[:2]
    turned = np.ascontiguousarray(np.rot90(crowd[0], quarters))
    found = accurate.detect(turned, accurate.threshold)
    wanted = faces_of(crowd, 80)
    back = unrotate_boxes(found.boxes, quarters, width, height)
    assert (iou(wanted, back).max(axis=1) > SAME_FACE).mean() >= 0.9
    assert ((iou(wanted, back) > 0.3).sum(axis=1) <= 1).all()
    assert (iou(found.boxes, found.boxes) > SAME_IOU).sum() == len(found)


class OneWayUp(Network):
    """A network that sees one small face where the brightest pixel is, with a score for each way up."""

    def __init__(self, upright: float, turned: float) -> None:
        self.spec = dataclasses.replace(STOCK, box_scale=(1, 1), box_shift=(0, 0))
        self._upright, self._turned = upright, turned

    def run(self, canvas: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        rows, columns = canvas.shape[0] // 4, canvas.shape[1] // 4
        logits, boxes = np.full((rows, columns), -99, np.float32), np.zeros((rows, columns, 4), np.float32)
        luma = canvas[:, :, 0]
        row, column = (int(v[0]) // 4 for v in np.nonzero(luma == luma.max()))
        score = self._upright if rows < columns else self._turned
        logits[row, column], boxes[row, column] = math.log(score / (1 - score)), [0, 0, 70, 70]
        return boxes, logits


@pytest.mark.parametrize(
    ("upright", "turned", "wanted"),
    [
        (0.001, 0.6, 0.6),  # nothing upright: this way up is the right one
        (0.6, 0.5, 0.5 / (0.5 + 0.5 * math.e)),
        (0.001, 0.05, None),  # no network's score under 0.08 counts
    ],
)
def test_what_is_seen_in_a_turned_picture_counts_less_where_the_upright_one_has_faces(
    upright: float, turned: float, wanted: float | None
) -> None:
    rgb = np.zeros((200, 320, 3), np.uint8)
    rgb[100, 40] = 255
    detector = alone(OneWayUp(upright, turned), "own", rotated=True)
    detector.quarters = (1,)
    assert detector.plan.rotated
    seen = Detections(np.array([[200, 50, 270, 120]]), np.array([upright]))
    found = detector._detect_rotated(rgb, detector.plan.rotated, seen)
    assert [part.scores.tolist() for part in found] == [[pytest.approx(wanted, abs=1e-3)] if wanted else []]
    for box in found[0].boxes:
        assert ((box[:2] + box[2:]) / 2).tolist() == pytest.approx([40, 100], abs=4)


def test_a_weak_upright_box_does_not_hide_a_sure_rotated_one() -> None:
    rgb = np.zeros((200, 320, 3), np.uint8)
    rgb[100, 40] = 255
    detector = alone(OneWayUp(0.61, 0.9), "own", rotated=True)
    detector.quarters = (1,)
    assert detector.plan.rotated
    for score, count in ((0.1, 1), (0.95, 0)):
        seen = Detections(np.array([[5, 65, 75, 135]]), np.array([score]))
        (found,) = detector._detect_rotated(rgb, detector.plan.rotated, seen)
        assert len(found) == count


def test_a_dark_picture_is_looked_at_a_second_time(detectors: dict[Mode, FusedDetector], crowd: Crowd) -> None:
    fast = detectors[Mode.FAST]
    wanted = faces_of(crowd, 40)

    def share(rgb: NDArray[np.uint8]) -> float:
        found = fast.detect(rgb, fast.threshold)
        return float((iou(wanted, found.boxes).max(axis=1, initial=0) > SAME_FACE).mean())

    shares = {least: share((crowd[0] * least).astype(np.uint8)) for least in (1.0, 0.06)}
    assert shares[0.06] >= shares[1.0] - 0.1, shares


def test_threads_leave_standard_error_as_it_was(start_python: Starter) -> None:
    process = start_python(hide_in_threads)
    told, wrong = process.communicate()
    assert (process.returncode, told) == (0, "") and wrong.endswith("heard\n")


def test_a_face_found_is_covered_from_forehead_to_chin_and_ear_to_ear() -> None:
    shares = []
    for name, boxes in PHOTOS.items():
        with Image.open(EXAMPLES / "photos" / name) as picture:
            rgb = np.asarray(picture.convert("RGB"))
        detector = load_detector(Settings())
        regions = regions_from(detector.detect(rgb, detector.threshold), Settings().margin, rgb.shape[1], rgb.shape[0])
        mask = np.zeros(rgb.shape[:2], np.uint8)
        for region in regions:
            cv2.ellipse(mask, *_axes(region.box), 0, 0, 360, 1, -1)
        for box in boxes:
            face = np.zeros_like(mask)
            cv2.ellipse(face, *_axes(box), 0, 0, 360, 1, -1)
            shares.append(mask[face > 0].mean())
    assert len(shares) == 6 and min(shares) > 0.97, shares


def _axes(box: Sequence[float]) -> tuple[tuple[int, int], tuple[int, int]]:
    x0, y0, x1, y1 = box
    return (round((x0 + x1) / 2), round((y0 + y1) / 2)), (round((x1 - x0) / 2), round((y1 - y0) / 2))
