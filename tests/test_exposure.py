"""Dark, pale and blurred pictures are told apart from others, evened out, and named in the report."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bench.faults.stubs import anonymizer
from blurguard.anonymize.anonymizer import Anonymizer
from blurguard.cli.report import detection_json, outcome_json
from blurguard.detection.lighting import correct_tone, exposure_defect
from blurguard.settings import Mode, Settings
from blurguard.types import Image as Picture
from blurguard.types import Layout
from tests.conftest import EXAMPLES, Crowd

RGB = NDArray[np.uint8]
PHOTOS = sorted((EXAMPLES / "photos").glob("*.jpg"))


def dark(rgb: RGB) -> RGB:
    return (rgb * 0.15).astype(np.uint8)


def pale(rgb: RGB) -> RGB:
    return (rgb * 0.2 + 180).astype(np.uint8)


def blurred(rgb: RGB) -> RGB:
    return np.asarray(cv2.GaussianBlur(rgb, (0, 0), 0.008 * max(rgb.shape)), np.uint8)


SPOILT = {"dark": dark, "washed out": pale, "blurred": blurred}


@pytest.mark.parametrize("path", PHOTOS, ids=[path.name for path in PHOTOS])
def test_good_photos_have_no_flaw(path: Path) -> None:
    with Image.open(path) as photo:
        assert exposure_defect(np.array(photo.convert("RGB"))) == ""


@pytest.mark.parametrize("told", SPOILT)
@pytest.mark.parametrize("scale", [0.2, 1.0, 2.0])
def test_a_flaw_is_told_whatever_the_size(crowd: Crowd, told: str, scale: float) -> None:
    rgb = np.asarray(cv2.resize(crowd[0], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    assert exposure_defect(SPOILT[told](rgb)) == told
    assert exposure_defect(rgb) == ""


@pytest.mark.parametrize("tone", [0, 3, 128, 255])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5000), (200, 300)])
def test_a_picture_of_one_tone_holds_nothing_to_see(tone: int, shape: tuple[int, int]) -> None:
    rgb = np.full((*shape, 3), tone, np.uint8)
    assert exposure_defect(rgb) == ""
    assert correct_tone(rgb).shape == rgb.shape


@pytest.mark.parametrize("told", ["dark", "washed out"])
def test_what_is_evened_out_has_the_flaw_no_more_and_is_another_array(crowd: Crowd, told: str) -> None:
    spoilt = SPOILT[told](crowd[0])
    before = spoilt.copy()
    better = correct_tone(spoilt)
    assert exposure_defect(better) == ""
    assert 90 <= better.mean() <= 140
    assert np.percentile(better, 99) - np.percentile(better, 1) > 200
    assert np.array_equal(spoilt, before)


def test_a_dark_room_with_a_lamp_is_brightened() -> None:
    room = np.random.default_rng(0).integers(5, 25, (300, 400, 3), dtype=np.uint8)
    room[:40, :60] = 255
    assert exposure_defect(room) == "dark"
    better = correct_tone(room)
    assert better[100:].mean() > 60
    assert (better[:40, :60] == 255).all()


def saved(path: Path, *pages: RGB) -> Path:
    first, *others = map(Image.fromarray, pages)
    if others:
        first.save(path, save_all=True, append_images=others)
    else:
        first.save(path)
    return path


def test_the_report_names_the_flaw_of_this_file_and_no_other(crowd: Crowd, tmp_path: Path) -> None:
    good = np.ascontiguousarray(crowd[0][:400, :600])
    tool = Anonymizer(Settings(mode=Mode.FAST))
    tool.hide(Picture(dark(good), Layout.RGB))  # not of a file: nothing is reported of it
    for name, pages, told in (
        ("good.png", [good], ""),
        ("dark.png", [dark(good)], "dark"),
        ("again.png", [good], ""),
        ("pages.tiff", [good, dark(good), pale(good)], "dark, washed out"),
        ("moving.gif", [good, dark(good)], "dark"),
    ):
        path = saved(tmp_path / name, *pages)
        for outcome in (tool.look(path), tool.process(path, tmp_path / "out" / name)):
            assert outcome.second_pass == told, name
            for record in (outcome_json(outcome, Settings()), detection_json(outcome)):
                assert record.get("second_pass", "") == told
                assert ("second_pass" in record) == bool(told)


def test_a_detector_that_looks_once_is_not_said_to_have_looked_twice(crowd: Crowd, tmp_path: Path) -> None:
    path = saved(tmp_path / "dark.png", dark(np.ascontiguousarray(crowd[0][:400, :600])))
    tool = anonymizer([(10, 10, 60, 60)])
    assert tool.look(path).second_pass == tool.process(path, tmp_path / "out.png").second_pass == ""
