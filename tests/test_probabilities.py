"""Scores are fitted so that they are the shares of boxes that are faces, and combinations of passes are compared."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from blurguard.detection.fusion import MAX_PX, MIN_PX, terms
from blurguard.detection.model_zoo import MANIFEST, load_manifest
from blurguard.detection.registry import load_detector
from blurguard.settings import Mode, Settings
from blurguard.types import Detections
from calibration import CalibrationError
from calibration.__main__ import main
from calibration.evaluate import crowd_ap, pixels_of
from calibration.score import IGNORE, Labeled, hidden_at, load_truth
from tests.conftest import ROOT, Crowd
from tests.needs import has_training_packages, needs_training_packages
from tests.test_calibration_score import tables
from tests.test_manifest import entries, text_of

if has_training_packages():
    from calibration import probabilities
    from calibration.probabilities import Seen

pytestmark = needs_training_packages

# Of two passes: the second one is surer of large boxes, and its scores are too high for small ones.
TRUTH = np.array([[-0.5, 1.2, 0.3, 0.2, -0.2], [-1.0, 0.8, 0.6, 0.1, 0.1]])
PLACES, STEP_PX = 6, 500  # so many boxes in a row and in a column, as far apart
PICTURES = 250
MANY = 150  # boxes of a decile whose share of faces is known to 0.04


def drawn(random: np.random.Generator, truth: NDArray[np.float64] = TRUTH) -> tuple[Seen, NDArray[np.float64]]:
    """Return a picture, and the true probability that each place, in the order of the boxes, holds a face."""
    corners = STEP_PX * np.stack(np.meshgrid(range(PLACES), range(PLACES)), axis=-1).reshape(-1, 2).astype(float)
    heights = np.exp(random.uniform(np.log(8), np.log(200), len(corners)))
    boxes = np.concatenate([corners, corners + heights[:, None]], axis=1).astype(np.float32)
    found, missed = [], np.ones(len(boxes))
    for row in truth:
        scores = random.uniform(0.1, 0.98, len(boxes)).astype(np.float32)
        there = random.random(len(boxes)) < 0.7
        chance = 1 / (1 + np.exp(-terms(scores, boxes) @ row))
        missed *= np.where(there, 1 - chance, 1)
        found.append(Detections(boxes[there], scores[there]))
    faces = boxes[random.random(len(boxes)) < 1 - missed]
    side = PLACES * STEP_PX
    return Seen(Labeled(Path("a.png"), side, side, faces, np.zeros(len(faces), np.int64)), found), 1 - missed


@pytest.fixture(scope="module")
def seen() -> list[Seen]:
    random = np.random.default_rng(7)
    return [drawn(random)[0] for _ in range(PICTURES)]


def test_the_fit_recovers_the_probabilities_that_faces_were_drawn_with(seen: list[Seen]) -> None:
    coefficients = probabilities.fitted(seen)
    assert coefficients.shape == TRUTH.shape
    random, errors = np.random.default_rng(8), []
    for _ in range(20):
        one, chance = drawn(random)
        (found,) = probabilities.fused([one], coefficients)
        for box, score in zip(found.boxes, found.scores, strict=True):
            column, row = np.floor(box[:2] / STEP_PX).astype(int)
            errors.append(abs(float(score) - chance[row * PLACES + column]))
    assert len(errors) > 500
    assert np.mean(errors) < 0.03
    assert np.quantile(errors, 0.95) < 0.08


def test_fused_probabilities_are_reliable_in_each_decile(seen: list[Seen]) -> None:
    rows = probabilities.reliability(seen)
    assert sum(int(boxes) for _, boxes, *_ in rows) > 5000
    checked = [(float(mean), float(share)) for _, boxes, mean, share in rows if int(boxes) >= MANY]
    assert len(checked) >= 8
    for mean, share in checked:
        assert mean == pytest.approx(share, abs=0.05)


def test_one_pass_is_fitted_alone() -> None:
    random = np.random.default_rng(10)
    alone = [drawn(random, TRUTH[1:])[0] for _ in range(PICTURES)]
    rows = [
        (float(mean), float(share)) for _, boxes, mean, share in probabilities.reliability(alone) if int(boxes) >= MANY
    ]
    assert len(rows) >= 8
    for mean, share in rows:
        assert mean == pytest.approx(share, abs=0.05)


def test_a_higher_score_is_more_probable_at_every_height_whatever_the_data() -> None:
    random, falling = np.random.default_rng(11), np.array([[0.0, 0.3, 0.0, 0.5, 0.0]])  # for faces under 11 px
    (row,) = probabilities.fitted([drawn(random, falling)[0] for _ in range(60)])
    for height in (MIN_PX, 8, 20, MAX_PX):
        boxes = np.array([[0, 0, height, height]] * 2, np.float32)
        low, high = (terms(np.array([0.2, 0.9], np.float32), boxes) @ row).tolist()
        assert low < high, height


def test_the_fit_is_the_same_each_time_and_rounded(seen: list[Seen]) -> None:
    one, other = (probabilities.fitted(seen[:60]) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one, one.round(probabilities.DIGITS))


def test_boxes_on_ignored_faces_do_not_count(seen: list[Seen]) -> None:
    ignored = []
    for one in seen[20:30]:
        boxes = np.concatenate([found.boxes for found in one.passes])
        flags = np.full(len(boxes), IGNORE, np.int64)
        ignored.append(dataclasses.replace(one, picture=dataclasses.replace(one.picture, boxes=boxes, flags=flags)))
    assert probabilities.reliability([*seen[:20], *ignored]) == probabilities.reliability(seen[:20])
    with pytest.raises(CalibrationError, match="no box is a face"):
        probabilities.fitted(ignored)


# --- the steps on a tiny data set -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wider_more(crowd: Crowd, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of four pictures. Every third face has no label, so that there are false boxes."""
    folder = tmp_path_factory.mktemp("data") / "wider_more"
    folder.mkdir()
    records = []
    for number, (top, left) in enumerate(((720, 0), (0, 1200), (720, 1280), (560, 560))):
        pixels = crowd[0][top : top + 560, left : left + 640]
        cv2.imwrite(str(folder / f"{number}.png"), pixels[:, :, ::-1])
        boxes = np.array([face["box"] for face in crowd[1]]) - [left, top, left, top]
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        own = boxes[((middles > 0) & (middles < [640, 560])).all(axis=1)]
        faces = [[x0, y0, x1 - x0, y1 - y0, 0] for index, (x0, y0, x1, y1) in enumerate(own.tolist()) if index % 3]
        assert len(faces) >= 5
        records.append({"image": f"{number}.png", "width": 640, "height": 560, "faces": faces})
    (folder / "faces.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
    return folder


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(ROOT / "models", tmp_path_factory.mktemp("copied") / "models"))


@pytest.fixture(scope="module")
def written(wider_more: Path, copied: Path) -> Path:
    """Return a folder of models with a stock model whose probabilities were fitted on the data set."""
    given = ["--model", "stock", "--budget", "2", "--models", str(copied), "--write"]
    assert main(["probabilities", str(wider_more), *given]) == 0
    return copied


def test_without_write_the_manifest_stays(wider_more: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = Path(shutil.copytree(ROOT / "models", tmp_path / "models"))
    given = ["--model", "stock", "--mode", "fast", "--models", str(models)]
    assert main(["probabilities", str(wider_more), *given]) == 0
    assert (models / MANIFEST).read_bytes() == (ROOT / "models" / MANIFEST).read_bytes()
    printed = capsys.readouterr().out
    assert "fast: 4 pictures kept out" in printed and "accurate" not in printed
    (rows,) = tables(printed)
    assert all(0 <= float(mean) <= 1 and 0 <= float(share) <= 1 for _, _, mean, share in rows)
    assert "scores with 1 false boxes a picture: {'wider_more': 0." in printed


def test_write_changes_the_entry_of_the_model_only(written: Path) -> None:
    before, after = entries(text_of()), entries(text_of(written))
    assert list(before) == list(after)
    assert {key for key in before if before[key] != after[key]} == {'[[model]]\nname = "stock"'}
    assert text_of().split("[[")[0] == text_of(written).split("[[")[0]
    old, new = load_manifest(), load_manifest(written)
    assert new.networks == old.networks
    for mode, plan in new.model("stock").plans.items():
        known = old.model("stock").plans[mode]
        assert [(each.network, each.scales) for each in plan.every_pass] == [
            (each.network, each.scales) for each in known.every_pass
        ]
        assert all(each.probability != other.probability for each, other in zip(plan.passes, known.passes, strict=True))


def test_write_stores_what_the_detector_then_does(written: Path, wider_more: Path) -> None:
    truth = load_truth(wider_more)
    for mode in Mode:
        detector = load_detector(Settings(model="stock", mode=mode), written)
        plan = load_manifest(written).model("stock").plans[mode]
        assert detector.threshold == plan.threshold
        assert crowd_ap(detector) == pytest.approx(plan.crowd_ap, abs=0.2)
        detector.quarters = ()  # thresholds are chosen without the rotated passes
        found = [detector.detect(pixels_of(one), 0.02) for one in truth]
        assert hidden_at(truth, found, plan.threshold, None).false_per_picture <= 2


def test_the_rotated_pass_gets_coefficients_of_its_own(written: Path) -> None:
    plan, known = (load_manifest(folder).model("stock").plans[Mode.ACCURATE] for folder in (written, None))
    assert plan.rotated and known.rotated
    assert plan.rotated.probability not in {known.rotated.probability, *(each.probability for each in plan.passes)}


@pytest.mark.parametrize("step", ["probabilities", "combinations"])
def test_pictures_that_networks_are_trained_on_are_an_error(
    labeled_crowd: Path, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    assert main([step, str(labeled_crowd), "--model", "stock"]) == 1
    assert "is kept out of training" in capsys.readouterr().err


def test_combinations_have_a_row_each(wider_more: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["combinations", str(wider_more), "--model", "stock"]) == 0
    printed = capsys.readouterr().out
    assert "wider_more, 4 pictures kept out" in printed
    (rows,) = tables(printed)
    assert [row[0] for row in rows] == ["stock/own", "stock/octaves", "stock/own + stock/octaves"]
    costs = [float(row[-1]) for row in rows]
    assert costs[2] == pytest.approx(costs[0] + costs[1], abs=1)
    assert all(0 <= float(ap) <= 100 for row in rows for ap in row[1].split("/"))


def test_chosen_combinations_and_fewer_pictures(wider_more: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--passes", "stock/fast", "--passes", "far/fast+stock/fast", "--limit", "2"]
    assert main(["combinations", str(wider_more), *given]) == 0
    printed = capsys.readouterr().out
    assert "2 pictures kept out" in printed
    assert [row[0] for row in tables(printed)[0]] == ["stock/fast", "far/fast + stock/fast"]


@pytest.mark.parametrize("name", ["stock/absent", "absent/own", "stock", ""])
def test_a_pass_that_does_not_exist_is_an_error(
    wider_more: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["combinations", str(wider_more), "--passes", f"stock/own+{name}"]) == 1
    told = capsys.readouterr().err
    assert f"no pass {name!r}: give NETWORK/RULE; there are networks far, " in told
    assert "rules fast, " in told
