"""Pictures are turned with their boxes, and what is found in them is counted."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from blurguard.boxes import NO_DETECTIONS
from blurguard.detection.multiscale import QUARTERS
from blurguard.detection.registry import load_detector
from blurguard.settings import Settings
from blurguard.types import Detections
from calibration import turned
from calibration.score import IGNORE, Labeled, load_truth
from tests.conftest import EXAMPLES, Crowd


def labeled(boxes: object, flags: object, width: int = 60, height: int = 40) -> Labeled:
    return Labeled(Path("a.png"), width, height, np.array(boxes, np.float32).reshape(-1, 4), np.array(flags, np.int64))


def marked(box: tuple[int, int, int, int], width: int = 60, height: int = 40) -> NDArray[np.uint8]:
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[box[1] : box[3], box[0] : box[2]] = 255
    return rgb


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_quarter_turn_is_exact_and_boxes_go_with_it(degrees: int) -> None:
    rgb = marked((5, 10, 17, 30))
    pixels, picture = turned.turned_by(rgb, labeled([5, 10, 16, 29], [0]), degrees)
    assert np.array_equal(pixels, np.rot90(rgb, degrees // 90))
    assert (picture.height, picture.width) == pixels.shape[:2]
    rows, columns = np.nonzero(pixels[:, :, 0])
    wanted = [columns.min(), rows.min(), columns.max(), rows.max()]
    assert picture.boxes[0].tolist() == pytest.approx(wanted, abs=1e-3)


def test_turned_aslant_no_corner_is_cut_and_boxes_turn_about_their_centers() -> None:
    rgb = marked((20, 10, 40, 30))
    pixels, picture = turned.turned_by(rgb, labeled([20, 10, 40, 30], [0]), 45)
    assert picture.width == picture.height == round(100 / 2**0.5) == len(pixels)
    assert pixels.sum() == pytest.approx(rgb.sum(), rel=0.02)
    rows, columns = np.nonzero(pixels[:, :, 0] > 127)
    box = picture.boxes[0]
    assert [columns.mean() + 0.5, rows.mean() + 0.5] == pytest.approx(((box[:2] + box[2:]) / 2).tolist(), abs=0.5)
    assert (box[2:] - box[:2]).tolist() == pytest.approx([20, 20])


def test_faces_that_are_small_or_ignored_do_not_count() -> None:
    picture = labeled([[0, 0, 30, 30], [0, 0, 30, 30], [0, 0, 9, 9], [30, 0, 60, 30]], [0, IGNORE, 0, 0])
    found = Detections(np.array([[2, 0, 32, 30]]), np.array([0.9]))
    assert turned.found_in(picture, found).tolist() == [True, False]
    assert turned.found_in(picture, NO_DETECTIONS).tolist() == [False, False]


@pytest.fixture
def folder(tmp_path: Path, crowd: Crowd) -> Path:
    """Return a labeled folder with one picture."""
    boxes = [face["box"] for face in crowd[1]]
    faces = [[x0, y0, x1 - x0, y1 - y0, 0] for x0, y0, x1, y1 in boxes]
    height, width = crowd[0].shape[:2]
    (tmp_path / "crowd.jpg").symlink_to(EXAMPLES / "photos" / "crowd.jpg")
    record = {"image": "crowd.jpg", "width": width, "height": height, "faces": faces}
    (tmp_path / "faces.jsonl").write_text(json.dumps(record) + "\n", "utf-8")
    return tmp_path


def test_turned_passes_find_more_of_a_picture_on_its_side(folder: Path) -> None:
    detector = load_detector(Settings())
    without, with_them = turned.measured(detector, load_truth(folder), 90)
    assert (without.rescue, with_them.rescue) == (False, True)
    assert without.faces == with_them.faces >= 20
    assert with_them.found > without.found
    assert min(without.milliseconds, with_them.milliseconds) > 0
    assert detector.quarters == QUARTERS


def test_the_table_has_two_lines_for_each_turn(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    turned.add_parser(parser.add_subparsers())
    args = parser.parse_args(["turned", str(folder), "--degrees", "180"])
    assert args.run(args) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 180°")]
    assert [line.split(" | ")[1] for line in lines] == ["without", "with"]
