"""Every hostile picture is handled as its ground truth says; ``BG_TEST_DATA`` names the folder that holds them."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import Image

from bench.faults.samples import Array
from bench.faults.stubs import StubDetector
from blurguard import Anonymizer, InputError, Settings
from blurguard.redaction.regions import regions_from
from blurguard.types import Detections, Outcome
from tests.test_clean import leaks

COVERED = 0.8  # of a face's ellipse
# Truncated pictures and bombs must fail although the ground truth leaves it open.
MUST_FAIL = frozenset({"truncated_60.jpg", "bomb_30000x30000_1bit.png"})


def truths() -> dict[str, dict[str, Any]]:
    """Return the ground truth of each file; one that says so when there is none."""
    if "BG_TEST_DATA" not in os.environ:
        return {"no data": {}}
    told = json.loads((Path(os.environ["BG_TEST_DATA"]) / "hostile_images" / "ground_truth.json").read_text("utf-8"))
    return dict(told["files"])


TRUTHS = truths()
GOOD = [name for name, truth in TRUTHS.items() if truth.get("should_decode") is not False and name not in MUST_FAIL]
BAD = [name for name in TRUTHS if name not in GOOD] or ["no data"]


def hostile(test_data: Path, name: str) -> Path:
    path = test_data / "hostile_images" / name
    if not path.exists():
        pytest.skip(f"{name}: the ground truth tells of it, the folder does not have it")
    return path


class Frames:
    """A detector that knows the truth of each frame in turn; x y w h as the ground truth has it."""

    identity, threshold = "truth", 0.5

    def __init__(self, frames: list[list[list[float]]]) -> None:
        self._frames = iter(frames)

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        boxes = tuple((x, y, x + w, y + h) for x, y, w, h in next(self._frames))
        return StubDetector(boxes).detect(rgb, min_score)


def frames_of(truth: dict[str, Any]) -> list[list[list[float]]]:
    return truth.get("frame_boxes") or [truth.get("boxes") or []]


def ellipse(box: tuple[float, ...], width: int, height: int) -> Array:
    x0, y0, x1, y1 = box
    y, x = np.ogrid[:height, :width]
    across = (x + 0.5 - (x0 + x1) / 2) / ((x1 - x0) / 2)
    down = (y + 0.5 - (y0 + y1) / 2) / ((y1 - y0) / 2)
    return np.asarray(across**2 + down**2 <= 1)


def hidden_faces(outcome: Outcome, truth: dict[str, Any]) -> tuple[int, int]:
    """Return how many of the true faces the reported regions cover, and how many there are."""
    covered = total = 0
    for index, boxes in enumerate(frames_of(truth)):
        union = np.zeros((outcome.height, outcome.width), bool)
        for face in outcome.faces:
            if face.path is not None and face.span is not None and face.span[0] <= index <= face.span[1]:
                place = Detections(face.path[index - face.span[0]][None], np.ones(1, np.float32))
                (region,) = regions_from(place, Settings().margin, outcome.width, outcome.height)
                union |= ellipse(region.box, outcome.width, outcome.height)
            elif face.span is None and face.frame == index:
                union |= ellipse(face.region, outcome.width, outcome.height)
        for x, y, w, h in boxes:
            face_area = ellipse((x, y, x + w, y + h), outcome.width, outcome.height)
            covered += bool((union & face_area).sum() >= COVERED * face_area.sum())
            total += 1
    return covered, total


def decoded(data: bytes) -> list[Array]:
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return [np.array(page) for page in pillow_heif.open_heif(data)]
    with Image.open(io.BytesIO(data)) as image:
        found = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            found.append(np.array(image.convert("RGB")))
        return found


def roughness(pixels: Array) -> float:
    """Return how much neighbors differ: much in a face, hardly in its veil."""
    return float(np.abs(np.diff(pixels.reshape(*pixels.shape[:2], -1).astype(float), axis=1)).mean())


@pytest.mark.parametrize("name", GOOD)
def test_its_faces_are_hidden_in_a_whole_picture(name: str, test_data: Path, tmp_path: Path) -> None:
    truth, source, target = TRUTHS[name], hostile(test_data, name), tmp_path / name
    try:
        outcome = Anonymizer(Settings(), Frames(frames_of(truth))).process(source, target)
    except InputError:
        assert truth["should_decode"] is None
        assert not any(tmp_path.iterdir())
        return
    before, after = decoded(source.read_bytes()), decoded(target.read_bytes())
    width, height = truth["displayed_size"] or (outcome.width, outcome.height)
    assert (outcome.width, outcome.height, outcome.frames) == (width, height, len(after))
    assert {frame.shape[:2] for frame in after} == {(height, width)}
    told = Anonymizer(Settings(), Frames(frames_of(truth))).look(source)
    covered, total = hidden_faces(told, truth)
    assert covered == total
    assert leaks(target.read_bytes()) == []
    for index, boxes in enumerate(frames_of(truth)):
        for x0, y0, w, h in boxes:
            core = np.s_[round(y0 + h / 4) : round(y0 + h * 3 / 4), round(x0 + w / 4) : round(x0 + w * 3 / 4)]
            veiled = after[index][core]
            if before[0].shape == after[0].shape and not name.startswith("exif_orientation"):
                assert roughness(veiled) < 0.6 * roughness(before[index][core])
            assert roughness(veiled) < 12


@pytest.mark.parametrize("name", BAD)
def test_it_fails_cleanly(name: str, test_data: Path, tmp_path: Path) -> None:
    source = hostile(test_data, name)
    with pytest.raises(InputError) as caught:
        Anonymizer(Settings(), StubDetector()).process(source, tmp_path / name)
    assert name in str(caught.value)
    assert not any(tmp_path.iterdir())


DISTANT = "12mp_distant.jpg"  # its 24 faces are 5 px high at the size that the fast mode looks at


# Measured: 176 and 158 of 176 with the default, 170 with the stock model at its twice as many false boxes. Floors, so
# that a better one need not change them.
@pytest.mark.parametrize(
    ("model", "mode", "left_out", "floor"),
    [
        ("far", "accurate", "", 0.97),
        ("far", "fast", DISTANT, 0.97),
        ("far", "fast", "", 0.88),
        ("stock", "fast", "", 0.9),
    ],
)
def test_the_detector_finds_as_many_faces_as_it_did(
    model: str, mode: str, left_out: str, floor: float, test_data: Path
) -> None:
    hider, covered, total = Anonymizer(Settings(model=model, mode=mode)), 0, 0  # type: ignore[arg-type]
    for name in GOOD:
        path = test_data / "hostile_images" / name
        if name != left_out and TRUTHS[name].get("boxes") and TRUTHS[name]["should_decode"] and path.exists():
            outcome = hider.look(path)
            here, there = hidden_faces(outcome, TRUTHS[name])
            covered, total = covered + here, total + there
    print(f"{model}, {mode}: {covered} of {total} faces")  # noqa: T201 - shown with -s
    assert covered >= floor * total
