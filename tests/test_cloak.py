"""What covers a face stays the same all along its track, and the roll tells who was hidden."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import pytest

from blurguard.anonymize.media import FaceLog, MediaJob
from blurguard.anonymize.surfaces import surface_of
from blurguard.anonymize.tracked import TrackRedactor, redact_tracks
from blurguard.redaction.mosaic import Surface
from blurguard.redaction.regions import regions_from
from blurguard.settings import Settings
from blurguard.tracking.lookahead import FrameDetections
from blurguard.types import Detections, Image, Layout, Region

SIZE = (120, 90)
NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


def image(seed: int) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8), Layout.RGB)


def surfaces(picture: Image) -> list[Surface]:
    return [surface_of(picture, (0, 255, 0))]


def found(*boxes: tuple[float, ...], score: float = 0.9) -> Detections:
    return Detections(np.array(boxes, np.float32), np.full(len(boxes), score, np.float32))


def region(box: tuple[float, ...]) -> Region:
    return regions_from(found(box), 0.0, *SIZE)[0]


def middle(picture: Image, where: Region) -> Any:
    """Return the quarter round the region's middle: hidden whatever its shape."""
    width, height = (where.x1 - where.x0) // 4, (where.y1 - where.y0) // 4
    x, y = (where.x0 + where.x1) // 2, (where.y0 + where.y1) // 2
    return picture.pixels[y - height : y + height, x - width : x + width]


@pytest.mark.parametrize("side", [16, 60])
def test_many_frames_tell_no_more_than_one(side: int) -> None:
    cloak, results = TrackRedactor(Settings(style="pixelate")), []  # type: ignore[arg-type]
    for number in range(4):
        picture, where = image(number), region((10 + number, 12, 10 + number + side, 12 + side))
        cloak.redact(surfaces(picture), [(7, where)])
        results.append(middle(picture, where))
    assert all(np.array_equal(result, results[0]) for result in results)


def test_two_faces_and_two_films_have_noise_of_their_own() -> None:
    one, other = region((10, 10, 50, 50)), region((60, 10, 100, 50))
    picture = Image(np.full((SIZE[1], SIZE[0], 3), 128, np.uint8), Layout.RGB)
    again = Image(picture.pixels.copy(), Layout.RGB)
    TrackRedactor(Settings()).redact(surfaces(picture), [(0, one), (1, other)])
    TrackRedactor(Settings()).redact(surfaces(again), [(0, one)])
    assert not np.array_equal(middle(picture, one), middle(picture, other))
    assert not np.array_equal(middle(picture, one), middle(again, one))


def test_a_face_that_comes_nearer_keeps_its_cells() -> None:
    """It gets finer ones once, when it is large enough for them."""
    cloak, seen = TrackRedactor(Settings(style="pixelate")), set()  # type: ignore[arg-type]
    for number, side in enumerate(range(12, 80, 4)):
        picture, where = image(number), region((5, 5, 5 + side, 5 + side))
        cloak.redact(surfaces(picture), [(0, where)])
        seen |= {tuple(color) for color in middle(picture, where).reshape(-1, 3)}
    assert len(seen) <= 1 + 9


def test_veils_of_those_who_left_are_forgotten() -> None:
    cloak = TrackRedactor(Settings())
    for track in range(600):
        cloak.redact(surfaces(image(track)), [(track, region((10, 10, 40, 40)))])
    assert len(cloak._mosaics) <= 251


def frames(*sightings: Detections) -> Generator[tuple[Image, FrameDetections], None, None]:
    for number, sighting in enumerate(sightings):
        yield image(number), FrameDetections(number / 25, sighting)


def test_a_face_that_left_the_picture_comes_back_behind_the_same_veil() -> None:
    cloak, where, results = TrackRedactor(Settings(style="pixelate")), region((10, 10, 50, 50)), []  # type: ignore[arg-type]
    for number in range(6):
        picture = image(number)
        cloak.redact(surfaces(picture), [(0, where)] if number in (0, 5) else [(1, region((60, 10, 90, 40)))])
        results.append(middle(picture, where))
    assert np.array_equal(results[0], results[5])


@pytest.mark.parametrize("with_paths", [False, True])
def test_roll_tells_who_was_hidden_and_when(with_paths: bool) -> None:
    seen = [found((20, 20, 40, 40))] * 3 + [NOTHING] * 2 + [found((22, 20, 42, 40), score=0.95)] * 3
    roll, job = FaceLog(with_paths), MediaJob([], 0.5, Settings(hold=0.4), hide=True)
    count = sum(1 for _ in redact_tracks(frames(*seen), surfaces, SIZE, job, 240, roll))
    (face,) = roll.faces()
    assert count == len(seen)
    assert face.span == (0, 7)
    assert face.frame in (5, 6, 7)
    assert face.score == pytest.approx(0.95)
    assert face.region[0] <= face.box[0] and face.box[2] <= face.region[2]
    assert (face.path is not None) == with_paths
    if face.path is not None:
        assert face.path.shape == (8, 4)
    told = face.as_json()
    assert told["frames"] == [0, 7]
    assert ("boxes" in told) == with_paths


def test_only_looking_changes_nothing() -> None:
    seen, job = frames(*[found((20, 20, 60, 60))] * 3), MediaJob([], 0.5, Settings(), hide=False)
    pictures = list(redact_tracks(seen, surfaces, SIZE, job, 240, FaceLog()))
    assert all(np.array_equal(picture.pixels, image(number).pixels) for number, picture in enumerate(pictures))


def test_missed_face_is_hidden_all_the_same() -> None:
    seen = [found((20, 20, 60, 60)), NOTHING, NOTHING, found((20, 20, 60, 60)), NOTHING]
    where = region((24, 24, 56, 56))
    job = MediaJob([], 0.5, Settings(), hide=True)
    for number, picture in enumerate(redact_tracks(frames(*seen), surfaces, SIZE, job, 240, FaceLog())):
        assert not np.array_equal(middle(picture, where), middle(image(number), where)), number
