"""What a labeled video tells of tracking: by hand, and the whole step on a composed clip."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from blurguard.redaction.regions import regions_from
from blurguard.settings import Mode, Settings
from blurguard.tracking.lookahead import TrackedBox
from blurguard.types import Detections, Region
from calibration import CalibrationError
from calibration.__main__ import main
from calibration.film import (
    Labels,
    Watched,
    bare_stretches,
    check,
    covered_share,
    detail_left,
    figures,
    load_labels,
    mask_of,
    unfollowed,
    watch,
)
from calibration.score import IGNORE, SIZES, Labeled
from examples.compose_clip import Plan, write

WIDTH, HEIGHT = 200, 100
BOX = (50.0, 20.0, 80.0, 60.0)
Covers = list[tuple[TrackedBox, Region]]


def labels(*boxes: tuple[float, float, float, float], flags: int = 0) -> Labels:
    picture = Labeled(
        Path("a.mp4"), WIDTH, HEIGHT, np.array(boxes, np.float32).reshape(-1, 4), np.full(len(boxes), flags)
    )
    return Labels(picture, np.arange(len(boxes)))


def cover(
    box: tuple[float, float, float, float] = BOX, track: int = 0, *, seen: bool = True
) -> tuple[TrackedBox, Region]:
    boxes = np.array([box], np.float32)
    (region,) = regions_from(Detections(boxes, np.ones(1, np.float32)), 0.3, WIDTH, HEIGHT)
    return TrackedBox(track, boxes[0], 1.0, seen), region


def watched(*frames: Covers) -> Watched:
    return Watched(list(frames), [[region for _, region in covers] for covers in frames])


def test_faces_are_counted_once_for_each_frame() -> None:
    got = figures([labels(BOX)] * 4, watched([cover()], [], [], [cover()]))
    assert (got.hidden, got.longest_bare, got.never, got.faces) == (50, 2, 0, 1)
    assert list(got.by_height) == [None, None, None, 50, None]
    assert got.outside == 0


def test_a_face_that_is_bare_inside_its_track_is_told() -> None:
    faces = [labels(BOX)] * 4
    same, other = watched([cover()], [], [], [cover()]), watched([cover()], [], [], [cover(track=1)])
    assert (figures(faces, same).in_tracks, figures(faces, same).between_finds) == (1, 1)
    assert (figures(faces, other).in_tracks, figures(faces, other).between_finds) == (0, 1)
    filled = watched([cover()], [cover(seen=False)], [cover(seen=False)], [cover()])
    assert (figures(faces, filled).in_tracks, figures(faces, filled).hidden) == (0, 100)


def test_frames_before_the_first_find_lie_in_no_track() -> None:
    got = figures([labels(BOX)] * 4, watched([], [], [cover()], [cover()]))
    assert (got.in_tracks, got.between_finds, got.longest_bare) == (0, 0, 2)


def test_faces_never_found_and_faces_to_ignore() -> None:
    away = (150.0, 20.0, 180.0, 60.0)
    got = figures([labels(BOX, away)] * 2, watched([cover()], [cover()]))
    assert (got.hidden, got.never, got.faces, got.longest_bare) == (50, 1, 2, 0)
    got = figures([labels(BOX, flags=IGNORE)] * 2, watched([], [cover(away)]))
    assert (got.hidden, got.faces) == (0, 0) and got.outside > 0


def test_labels_of_another_video_are_refused() -> None:
    with pytest.raises(CalibrationError, match="2 frames, the labels are of 1"):
        figures([labels(BOX)], watched([], []))


def test_without_following_there_are_only_detections() -> None:
    got = unfollowed(Watched([[cover(seen=False)], [cover()]], [[], [cover()[1]]]))
    assert [len(covers) for covers in got.hidden] == [0, 1]


def test_stretches_end_where_a_face_is_hidden_or_gone() -> None:
    assert bare_stretches({0: False, 1: False, 2: True, 3: False, 7: False, 8: False}) == [(0, 1), (3, 3), (7, 8)]


def test_what_is_hidden_is_the_ellipse_without_its_feather() -> None:
    _, region = cover()
    mask = mask_of([region], labels(BOX).picture)
    x0, y0, x1, y1 = region.box
    assert mask[(y0 + y1) // 2, x0] and not mask[y0, x0] and not mask[(y0 + y1) // 2, x0 - 1]
    assert mask.sum() == pytest.approx(np.pi / 4 * (x1 - x0) * (y1 - y0), rel=0.02)
    assert covered_share(np.array(BOX, np.float32), mask) == 1


def test_detail_is_left_where_a_face_is_bare() -> None:
    rng = np.random.default_rng(1)
    before = np.asarray(cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8), (0, 0), 1), np.uint8)
    noisy = np.clip(before.astype(int) + rng.integers(-3, 4, before.shape), 0, 255).astype(np.uint8)
    assert detail_left(before, noisy, np.array(BOX, np.float32)) > 0.9
    gone = np.asarray(cv2.GaussianBlur(before, (0, 0), 12), np.uint8)
    assert detail_left(before, gone, np.array(BOX, np.float32)) < 0.3
    assert detail_left(before, np.full_like(before, 7), np.array(BOX, np.float32)) == 0


def test_a_file_that_is_no_truth_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"faces": []}')
    with pytest.raises(CalibrationError, match="does not hold the faces of a video"):
        load_labels(tmp_path / "a.json")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "clip.mp4"
    write(Plan(size_wh=(480, 270), seconds=1.2, seed=4, faces=14, walkers=1), path)
    return path


def test_following_hides_more_and_leaves_no_gap_in_a_track(clip: Path) -> None:
    truth = load_labels(clip.with_suffix(".json"))
    seen = watch(clip, Settings(mode=Mode.FAST), 2)
    followed, alone = figures(truth, seen), figures(truth, unfollowed(seen))
    assert followed.in_tracks == 0 and followed.hidden > alone.hidden + 20
    assert followed.longest_bare <= alone.longest_bare


def test_what_was_planned_is_hidden_in_the_file(clip: Path) -> None:
    truth = load_labels(clip.with_suffix(".json"))
    planned = figures(truth, watch(clip, Settings(mode=Mode.FAST), 1)).hidden
    total, gone, broken, _ = check(clip, Settings(mode=Mode.FAST), truth)
    assert broken == 0 and 100 * gone / total == pytest.approx(planned, abs=5)


def test_the_step_prints_its_tables(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["film", str(clip), str(clip.with_suffix(".json")), "--mode", "fast"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("clip.mp4: 30 frames")
    assert [line.split("|")[1:3] for line in told[-3:]] == [
        [" fast, every second frame ", " yes "],
        [" fast, every frame ", " yes "],
        [" fast, every frame ", " no "],
    ]


def test_accurate_mode_has_a_row_for_each_interval(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = str(clip.with_suffix(".json"))
    assert main(["film", str(clip), truth, "--mode", "accurate", "--seconds", "0.5"]) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[-3:]]
    assert [row[:2] for row in rows] == [
        ["accurate, thorough every 0.5 s", "yes"],
        ["accurate, thorough on every frame", "yes"],
        ["accurate, thorough on every frame", "no"],
    ]
    by_time, everywhere = (int(row[-2].split()[0]) for row in rows[:2])
    assert 4 <= by_time <= 7 and everywhere == 30
    shares = [float(row[2 + len(SIZES)].split()[0]) for row in rows]
    assert shares[0] >= shares[1] - 1 and shares[0] >= shares[2]


def test_shares_on_the_annotated_clip(test_data: Path) -> None:
    clip = test_data / "video" / "pan_small_gt.mp4"
    truth = load_labels(clip.with_suffix(".json"))
    got = figures(truth, watch(clip, Settings(mode=Mode.FAST), 1))
    assert got.hidden >= 98 and got.in_tracks == 0
    assert json.loads(clip.with_suffix(".json").read_text())["width"] == truth[0].picture.width
