"""The score from which a face is hidden is chosen by the false boxes that it lets through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blurguard.detection.registry import load_detector
from blurguard.settings import Settings
from blurguard.types import Detections
from calibration import CalibrationError
from calibration.__main__ import main
from calibration.evaluate import detect_all
from calibration.score import false_boxes, hidden_at, load_truth
from calibration.thresholds import LOWEST, SAME_SCORE, lowest_score
from tests.test_calibration_score import EASY, found, picture

RIGHT = (10, 10, 30, 30)


def false(*scores: float) -> Detections:
    return found((*RIGHT, 0.9), *((100 + 5 * i, 60, 110 + 5 * i, 70, score) for i, score in enumerate(scores)))


@pytest.mark.parametrize(("budget", "expected"), [(0, 0.801), (1, 0.601), (2, 0.401), (3, 0.201), (4, LOWEST)])
def test_the_lowest_score_within_the_budget(budget: float, expected: float) -> None:
    truth, seen = [picture((10, 10, 20, 20, EASY))], [false(0.8, 0.6, 0.4, 0.2)]
    chosen = lowest_score(truth, seen, budget)
    assert chosen == pytest.approx(expected)
    assert hidden_at(truth, seen, chosen, 0.3).false_per_picture <= budget
    assert chosen == LOWEST or hidden_at(truth, seen, chosen - 0.002, 0.3).false_per_picture > budget


def test_the_budget_is_one_of_all_pictures_together() -> None:
    truth = [picture((10, 10, 20, 20, EASY))] * 2
    assert lowest_score(truth, [false(0.8, 0.6, 0.5), false()], 1) == pytest.approx(0.501)
    with pytest.raises(CalibrationError, match="no picture"):
        lowest_score([], [], 1)


def test_what_touches_an_annotated_face_is_not_false() -> None:
    seen = found((*RIGHT, 0.5), (25, 10, 45, 30, 0.5), (29, 10, 49, 30, 0.5))
    assert false_boxes(picture((10, 10, 20, 20, EASY)), seen).tolist() == [False, False, True]
    assert false_boxes(picture(), seen).tolist() == [True, True, True]


def test_the_step_writes_a_score_per_mode(
    labeled_crowd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.json"
    given = ["--model", "stock", "--mode", "fast", "--budget", "2", "--out", str(out)]
    assert main(["thresholds", str(labeled_crowd), *given]) == 0
    assert list(json.loads(out.read_text("utf-8"))) == ["fast"]
    told = capsys.readouterr().out
    assert "at most 2 false boxes a picture" in told
    assert float(told.splitlines()[-1].split("|")[-4]) <= 2


def test_the_score_of_the_accurate_mode_is_the_one_that_it_was_run_with(labeled_crowd: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    given = ["--model", "stock", "--mode", "accurate", "--budget", "5", "--out", str(out)]
    assert main(["thresholds", str(labeled_crowd), *given]) == 0
    (score,) = json.loads(out.read_text("utf-8")).values()
    detector = load_detector(Settings(model="stock"))
    assert abs(score - detector.threshold) > SAME_SCORE, "it had to be chosen anew"
    detector.threshold = score
    found, _ = detect_all(detector, truth := load_truth(labeled_crowd))
    assert lowest_score(truth, found, 5) == pytest.approx(score, abs=SAME_SCORE)


def test_each_part_of_the_accurate_mode_has_its_row(labeled_crowd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parts", str(labeled_crowd)]) == 0
    rows = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines()[-3:]]
    names, strict, loose, *_ = zip(*rows, strict=True)
    assert [name.strip() for name in names] == ["own size, octaves", "+ closer looks", "+ turned passes"]
    of_all = [[float(aps.split("/")[-1]) for aps in column] for column in (strict, loose)]
    assert all(20 < half <= less < 100 for half, less in zip(*of_all, strict=True))
