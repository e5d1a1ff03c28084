"""Scoring on labeled pictures: by hand, and the whole step on the example crowd."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from blurguard.detection import model_zoo
from blurguard.settings import Mode, Settings
from blurguard.types import Detections
from calibration import CalibrationError
from calibration.__main__ import main
from calibration.candidate import alone, candidate
from calibration.evaluate import EXAMPLES, SWEEP, detect_all, row_of
from calibration.score import (
    IGNORE,
    LOWEST_SCORE,
    Labeled,
    average_precision,
    covered_shares,
    false_boxes,
    hidden_at,
    load_truth,
    lowest_score,
    recall_at,
    subset_aps,
)

EASY, HARD = 1, 4
NETWORKS = model_zoo.load_manifest().networks


def picture(*faces: tuple[float, float, float, float, int]) -> Labeled:
    rows = np.array(faces, np.float64).reshape(-1, 5)
    boxes = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1).astype(np.float32)
    return Labeled(Path("a.jpg"), 200, 100, boxes, rows[:, 4].astype(np.int64))


def found(*boxes: tuple[float, float, float, float, float]) -> Detections:
    rows = np.array(boxes, np.float32).reshape(-1, 5)
    return Detections(rows[:, :4], rows[:, 4])


def tables(printed: str) -> list[list[list[str]]]:
    """Return the cells of each Markdown table, without its head."""
    found: list[list[list[str]]] = []
    before = ""
    for line in printed.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        before = line
    return [rows[2:] for rows in found]


def test_ap_is_one_when_all_are_found_and_nothing_else() -> None:
    truth = [picture((10, 10, 20, 20, EASY)), picture((50, 50, 20, 20, EASY))]
    right = [found((10, 10, 30, 30, 0.9)), found((50, 50, 70, 70, 0.2))]
    assert average_precision(truth, right, EASY) == pytest.approx(1)


def test_ap_counts_false_boxes_and_second_finds_but_not_faces_of_another_subset() -> None:
    truth = [picture((10, 10, 20, 20, EASY), (100, 10, 20, 20, HARD))]
    right, false, second, other = (10, 10, 30, 30), (150, 60, 170, 80), (11, 10, 31, 30), (100, 10, 120, 30)
    assert average_precision(truth, [found((*right, 0.5), (*other, 0.9))], EASY) == pytest.approx(1)
    assert average_precision(truth, [found((*false, 0.9), (*right, 0.5))], EASY) == pytest.approx(1 / 2)
    assert average_precision(truth, [found((*right, 0.9), (*second, 0.5))], EASY) == pytest.approx(1)
    assert average_precision(truth, [found()], EASY) == 0
    half = [picture((10, 10, 20, 20, EASY), (50, 50, 20, 20, EASY))]
    assert average_precision(half, [found((*right, 0.9))], EASY) == pytest.approx(1 / 2)


def test_a_face_is_hidden_when_four_fifths_of_its_ellipse_are() -> None:
    truth = [picture((50, 20, 40, 40, 0))]
    assert hidden_at(truth, [found((50, 20, 90, 60, 0.9))], 0.5, 0.2).from_10_px == 100
    assert hidden_at(truth, [found((50, 20, 90, 60, 0.4))], 0.5, 0.2).from_10_px == 0
    assert hidden_at(truth, [found((50, 20, 70, 60, 0.9))], 0.5, 0.0).from_10_px == 0


def test_a_wider_margin_covers_more_of_a_face() -> None:
    (truth,) = [picture((50, 20, 40, 40, 0), (120, 20, 40, 40, 0), (10, 10, 12, 12, 0))]
    boxes = found((54, 24, 90, 60, 0.9), (10, 10, 22, 22, 0.9))
    narrow, wide = (covered_shares(truth, boxes, margin, 20) for margin in (0.0, 0.3))
    assert narrow.shape == wide.shape == (1,) and narrow[0] < wide[0] == 1


def test_ignored_faces_count_neither_as_missed_nor_as_false() -> None:
    truth = [picture((50, 20, 40, 40, IGNORE), (120, 20, 40, 40, 0))]
    point = hidden_at(truth, [found((50, 20, 90, 60, 0.9), (0, 80, 9, 89, 0.8), (120, 20, 160, 60, 0.7))], 0.5, 0.2)
    assert (point.from_10_px, point.pictures_all_hidden, point.false_per_picture) == (100, 100, 1)
    assert point.masked_outside > 0


def test_the_step_prints_a_row_for_each_mode(labeled_crowd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(labeled_crowd), "--mode", "fast", "--mode", "accurate"]) == 0
    regions, boxes, recall = tables(capsys.readouterr().out)
    easy = [float(row[1].split("/")[0]) for row in regions]
    assert 20 < easy[0] < easy[1] < 100
    assert [row[:2] for row in regions] == [row[:2] for row in boxes]
    hidden = [[float(row[8].removesuffix(" %")) for row in table] for table in (regions, boxes)]
    assert regions != boxes and all(20 < share <= 100 for table in hidden for share in table)
    assert [row[0] for row in recall] == ["fast", "accurate"]
    assert all(0 <= float(share.removesuffix(" %")) <= 100 for row in recall for share in row[2:])


def test_another_model_stands_beside_it_at_the_same_scores(
    labeled_crowd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(labeled_crowd), "--mode", "fast", "--against", "stock"]) == 0
    for table in tables(capsys.readouterr().out):
        assert [row[0] for row in table] == ["fast", "fast, stock"]
        score = 2 if len(table[0]) > 7 else 1
        assert table[0][score] == table[1][score] and table[0][score + 1 :] != table[1][score + 1 :]


def test_boxes_are_enlarged_as_independent_scorers_do() -> None:
    truth = [picture((50, 20, 40, 40, EASY))]
    outside = found((-30, -30, -10, -10, 0.9), (900, 900, 910, 910, 0.9))
    assert hidden_at(truth, [outside], 0.5, None).from_10_px == 0
    inside = found((54, 24, 86, 56, 0.9))  # 32 px of 40: 41.6 when enlarged
    assert hidden_at(truth, [inside], 0.5, None).from_10_px == 100
    assert hidden_at(truth, [found((57, 27, 83, 53, 0.9))], 0.5, None).from_10_px == 0  # 26 px: 33.8


def test_recall_is_told_by_height() -> None:
    truth = [picture((10, 10, 8, 8, EASY), (50, 20, 40, 40, EASY), (100, 20, 30, 30, IGNORE))]
    seen = [found((10, 10, 18, 18, 0.4), (50, 20, 90, 60, 0.9))]
    assert recall_at(truth, seen, 0.5) == (0, 0, 0, 100, 0)
    assert recall_at(truth, seen, 0.4) == (100, 0, 0, 100, 0)
    assert recall_at(truth, [found((50, 20, 70, 60, 0.9))], 0.5) == (0, 0, 0, 100, 0)
    assert recall_at(truth, [found((50, 20, 69, 60, 0.9))], 0.5) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("text", ["{", '{"image": "a.jpg"}', "[1]", "", "\n"])
def test_labels_that_cannot_be_read_are_told(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path)]) == 1
    (tmp_path / "faces.jsonl").write_text(text, "utf-8")
    for step in ("evaluate", "probabilities", "combinations", "turned"):
        assert main([step, str(tmp_path)]) == 1
        assert str(tmp_path) in capsys.readouterr().err


def test_files_that_are_no_networks_of_ours_are_told(
    labeled_crowd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stock = model_zoo.models_dir() / NETWORKS["stock"].file
    damaged, checkpoint = tmp_path / "damaged.tflite", EXAMPLES.parent / "calibration/checkpoints/far.tflite"
    damaged.write_bytes(stock.read_bytes()[:1000])
    for file, told in (
        (tmp_path / "none", "cannot read"),
        (damaged, "damaged"),
        (stock, "units"),
        (checkpoint, "units"),
    ):
        assert main(["evaluate", str(labeled_crowd), "--file", str(file)]) == 1
        assert told in capsys.readouterr().err
    assert main(["evaluate", str(labeled_crowd), "--model", "nobody"]) == 1
    assert "no model named 'nobody'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["far-float", "centerface"])
def test_a_file_that_is_in_no_manifest_is_measured_like_the_same_network_in_it(
    labeled_crowd: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    spec = NETWORKS[name]
    given = ["--file", str(model_zoo.models_dir() / spec.file), "--mode", "fast", "--sweep"]
    assert main(["evaluate", str(labeled_crowd), *given]) == 0
    rows = [row[:-1] for row in tables(capsys.readouterr().out)[0]]  # all but the time
    truth = load_truth(labeled_crowd)
    seen, _ = detect_all(alone(spec, model_zoo.load_weights(spec), Mode.FAST), truth)
    points = [hidden_at(truth, seen, threshold, Settings().margin) for threshold in SWEEP]
    assert [row_of("fast", subset_aps(truth, seen), point, 0)[:-1] for point in points] == rows
    assert float(rows[0][1].split("/")[-1]) > 20


@pytest.mark.parametrize("spec", NETWORKS.values(), ids=NETWORKS)
def test_the_entry_of_a_file_is_the_one_in_the_manifest(spec: model_zoo.NetworkSpec) -> None:
    data = model_zoo.load_weights(spec)
    own = candidate(data, spec.name, spec.file, source=spec.source, license=spec.license, training_data="of it")
    if spec.name == "stock":  # boxes in other units
        assert own.layers == spec.layers and own.size_constants == spec.size_constants
    else:
        assert own == dataclasses.replace(spec, training_data="of it")


RIGHT = (10, 10, 30, 30)


def false(*scores: float) -> Detections:
    return found((*RIGHT, 0.9), *((100 + 5 * i, 60, 110 + 5 * i, 70, score) for i, score in enumerate(scores)))


@pytest.mark.parametrize(("budget", "expected"), [(0, 0.801), (1, 0.601), (2, 0.401), (3, 0.201), (4, LOWEST_SCORE)])
def test_the_lowest_score_within_the_budget(budget: float, expected: float) -> None:
    truth, seen = [picture((10, 10, 20, 20, EASY))], [false(0.8, 0.6, 0.4, 0.2)]
    chosen = lowest_score(truth, seen, budget)
    assert chosen == pytest.approx(expected)
    assert hidden_at(truth, seen, chosen, 0.3).false_per_picture <= budget
    assert chosen == LOWEST_SCORE or hidden_at(truth, seen, chosen - 0.002, 0.3).false_per_picture > budget


def test_the_budget_is_one_of_all_pictures_together() -> None:
    truth = [picture((10, 10, 20, 20, EASY))] * 2
    assert lowest_score(truth, [false(0.8, 0.6, 0.5), false()], 1) == pytest.approx(0.501)
    with pytest.raises(CalibrationError, match="no picture"):
        lowest_score([], [], 1)


def test_what_touches_an_annotated_face_is_not_false() -> None:
    seen = found((*RIGHT, 0.5), (25, 10, 45, 30, 0.5), (29, 10, 49, 30, 0.5))
    assert false_boxes(picture((10, 10, 20, 20, EASY)), seen).tolist() == [False, False, True]
    assert false_boxes(picture(), seen).tolist() == [True, True, True]


def test_heights_stand_in_for_subsets_that_labels_do_not_have(tmp_path: Path) -> None:
    faces = [[0, 0, 9, height, flags] for height, flags in ((60, 0), (59, 0), (24, 0), (8, 0), (7, 0), (90, IGNORE))]
    record = {"image": "a.jpg", "width": 100, "height": 100, "faces": faces}
    (tmp_path / "faces.jsonl").write_text(json.dumps(record), "utf-8")
    assert load_truth(tmp_path)[0].flags.tolist() == [7, 6, 6, 4, 0, IGNORE]
    record["faces"] = [*faces, [0, 0, 9, 90, HARD]]
    (tmp_path / "faces.jsonl").write_text(json.dumps(record), "utf-8")
    assert load_truth(tmp_path)[0].flags.tolist() == [0, 0, 0, 0, 0, IGNORE, HARD]
