"""The example photos are credited and clean, and the crowd's boxes are what the script composes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PHOTOS = sorted((EXAMPLES / "photos").glob("*"))
MAX_PHOTO_BYTES = 700_000
MAX_CROWD_BYTES = 1_000_000
MAX_FOLDER_BYTES = 3_000_000


def _load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compose_crowd", EXAMPLES / "compose_crowd.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name while it is being run.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """Return the compose script as a module."""
    return _load_script()


@pytest.fixture(scope="module")
def crowd() -> Any:
    """Return the committed boxes."""
    return json.loads((EXAMPLES / "crowd.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def composed(script: ModuleType) -> Any:
    """Return what the script composes by default."""
    return script.compose()


def _annotated_photos() -> dict[str, list[list[int]]]:
    photos: dict[str, list[list[int]]] = json.loads((EXAMPLES / "faces.json").read_text("utf-8"))["photos"]
    return photos


def test_every_photo_is_credited_and_nothing_else_is() -> None:
    """Every photo is credited and nothing else is."""
    lines = (EXAMPLES / "CREDITS.md").read_text("utf-8").splitlines()
    credited = [line.split("`")[1] for line in lines if line.startswith("| `")]
    assert sorted(credited) == [photo.name for photo in PHOTOS]


def test_every_photo_has_its_face_boxes() -> None:
    """Every photo has its face boxes."""
    assert sorted([*_annotated_photos(), "crowd.jpg"]) == [photo.name for photo in PHOTOS]


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda photo: photo.name)
def test_photo_carries_no_metadata(photo: Path) -> None:
    """Photo carries no metadata."""
    with Image.open(photo) as image:
        assert image.format == "JPEG"
        assert not image.getexif()
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi"}
    data = photo.read_bytes()
    assert b"Exif\0\0" not in data and b"http://ns.adobe.com" not in data and b"Photoshop 3.0" not in data


def test_photos_stay_small() -> None:
    """Photos stay small."""
    for photo in PHOTOS:
        limit = MAX_CROWD_BYTES if photo.name == "crowd.jpg" else MAX_PHOTO_BYTES
        assert photo.stat().st_size < limit, photo.name
    assert sum(photo.stat().st_size for photo in PHOTOS) < MAX_FOLDER_BYTES


@pytest.mark.parametrize(("name", "boxes"), _annotated_photos().items())
def test_photo_boxes_lie_inside(name: str, boxes: list[list[int]]) -> None:
    """Photo boxes lie inside."""
    with Image.open(EXAMPLES / "photos" / name) as image:
        width, height = image.size
    for x0, y0, x1, y1 in boxes:
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height


def test_some_photos_have_faces_and_some_have_none() -> None:
    """Some photos have faces and some have none."""
    counts = [len(boxes) for boxes in _annotated_photos().values()]
    assert sum(counts) >= 5
    assert counts.count(0) >= 2


def test_composing_gives_the_committed_boxes(crowd: Any, composed: Any) -> None:
    """Composing gives the committed boxes."""
    image, faces = composed
    assert image.shape == (crowd["height"], crowd["width"], 3)
    assert len(faces) == len(crowd["faces"])
    for now, kept in zip(faces, crowd["faces"], strict=True):
        assert now["box"] == pytest.approx(kept["box"], abs=0.11)
        assert (now["source"], now["clipped"]) == (kept["source"], kept["clipped"])
        # Pixels at a soft outline may fall either way with another OpenCV.
        assert now["occluded"] == pytest.approx(kept["occluded"], abs=0.03)


def test_composing_gives_the_committed_picture(composed: Any) -> None:
    """Composing gives the committed picture."""
    with Image.open(EXAMPLES / "photos" / "crowd.jpg") as kept:
        difference = np.abs(np.asarray(kept).astype(int) - composed[0])
    assert difference.mean() < 4


def test_composing_is_deterministic(script: ModuleType) -> None:
    """Composing is deterministic."""
    first, again = (script.compose(3, (640, 480), 12) for _ in range(2))
    other = script.compose(4, (640, 480), 12)
    assert np.array_equal(first[0], again[0]) and first[1] == again[1]
    assert first[1] != other[1]
    assert len(first[1]) == 12


def test_crowd_spans_the_sizes(crowd: Any) -> None:
    """Crowd spans the sizes."""
    heights = [face["box"][3] - face["box"][1] for face in crowd["faces"] if not face["clipped"]]
    assert len(crowd["faces"]) >= 60
    assert 9.5 <= min(heights) <= 10.5 and max(heights) > 200
    assert sum(height < 20 for height in heights) >= 20
    assert sum(20 <= height < 40 for height in heights) >= 20


def test_crowd_touches_all_four_edges(crowd: Any) -> None:
    """Crowd touches all four edges."""
    clipped = [face["box"] for face in crowd["faces"] if face["clipped"]]
    assert any(box[0] == 0 for box in clipped)
    assert any(box[1] == 0 for box in clipped)
    assert any(box[2] == crowd["width"] for box in clipped)
    assert any(box[3] == crowd["height"] for box in clipped)


def test_crowd_boxes_lie_inside_and_few_are_hidden(crowd: Any) -> None:
    """Crowd boxes lie inside and few are hidden."""
    for face in crowd["faces"]:
        x0, y0, x1, y1 = face["box"]
        assert 0 <= x0 < x1 <= crowd["width"] and 0 <= y0 < y1 <= crowd["height"]
        assert face["occluded"] < 0.7
    assert 1 <= sum(face["occluded"] > 0.2 for face in crowd["faces"]) <= 10
