"""Faces that only the thorough detector sees stay hidden between its frames, whatever their number and times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from av import VideoFrame
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blurguard.anonymize import frame_detection
from blurguard.anonymize.media import FaceLog, MediaJob
from blurguard.anonymize.video import detect_video
from blurguard.boxes import NO_DETECTIONS, intersections
from blurguard.detection.detector import Detector, TwoSpeedDetector
from blurguard.detection.registry import load_detector
from blurguard.settings import Mode, Settings
from blurguard.tracking.carrying import Carried, carry, doubtful_frame, nothing_carried
from blurguard.tracking.schedule import THOROUGH_SECONDS, Planned, plan_frames, split_frames
from blurguard.types import Detections, Face
from tests.films import MISSED, OTHER_SCENE, SEEN, ColorDetector, Square, write_film

MIN_SCORE = 0.5
Frame = tuple[int, float, bool]  # number, seconds, cut

# ---- the schedule ------------------------------------------------------------------------------


def thorough(frames: Sequence[Frame], interval: float = 0.5, max_frames: int = 100) -> list[int]:
    return [plan.item for plan in plan_frames(frames, interval, max_frames) if plan.is_thorough]


def at_rate(count: int, fps: float, cuts: Sequence[int] = ()) -> list[Frame]:
    return [(number, number / fps, number in cuts) for number in range(count)]


def test_first_and_last_frame_of_each_scene_are_thorough() -> None:
    assert thorough(at_rate(30, 25, cuts=[4, 5])) == [0, 3, 4, 5, 17, 29]


def test_a_face_of_one_thorough_frame_is_hidden_up_to_the_next() -> None:
    assert Settings().hold >= THOROUGH_SECONDS


def test_a_step_back_in_time_starts_a_scene() -> None:
    frames = [(number, number / 25 - 10 * (number >= 5), False) for number in range(10)]
    assert thorough(frames) == [0, 4, 5, 9]


def test_one_frame_a_second_is_thorough_throughout() -> None:
    assert thorough(at_rate(9, 1)) == list(range(9))


def test_slow_motion_is_seen_by_time_and_within_the_memory() -> None:
    assert thorough(at_rate(481, 240), max_frames=500) == [0, 120, 240, 360, 480]
    assert thorough(at_rate(100, 240), max_frames=40) == [0, 40, 80, 99]


def test_frames_without_times_are_seen_by_number() -> None:
    assert thorough([(number, 0.0, False) for number in range(10)], max_frames=4) == [0, 4, 8, 9]


times = st.lists(st.tuples(st.sampled_from([0.0, 0.01, 0.04, 0.3, 2.0, -1.0]), st.booleans()), max_size=40)


@given(times, st.sampled_from([0.1, 0.5]), st.sampled_from([2, 5, 100]))
def test_no_interval_is_longer_than_it_may_be(steps: list[tuple[float, bool]], interval: float, longest: int) -> None:
    seconds = np.cumsum([step for step, _ in steps])
    frames = [(n, float(seconds[n]), cut and n % 7 == 0) for n, (_, cut) in enumerate(steps)]
    plans = list(plan_frames(frames, interval, longest))
    assert [(plan.item, plan.seconds, plan.is_cut) for plan in plans] == frames
    parts = list(split_frames(plans, lambda plan: plan))
    shown = [plan.item for part, goes_on in parts for plan in (part[:-1] if goes_on else part)]
    assert shown == list(range(len(frames)))
    for part, goes_on in parts:
        assert part[0].is_thorough and part[-1].is_thorough and len(part) - 1 <= longest
        assert goes_on or len(part) == 1
        assert len(part) <= 2 or part[-1].seconds - part[0].seconds <= interval + 1e-5
        assert not any(plan.is_cut for plan in part[1:])


# ---- carrying ----------------------------------------------------------------------------------


def textured(shift: int, covered: bool = False) -> NDArray[np.uint8]:
    noise = np.random.default_rng(5).integers(0, 256, (120, 400)).astype(np.uint8)
    picture = np.asarray(cv2.GaussianBlur(noise, (0, 0), 2), np.uint8)[:, shift : shift + 160]
    picture = np.asarray(cv2.normalize(picture, np.zeros_like(picture), 0, 255, cv2.NORM_MINMAX), np.uint8)
    if covered:
        other = np.random.default_rng(6).integers(0, 256, picture.shape).astype(np.uint8)
        picture[:, 40:] = cv2.GaussianBlur(other, (0, 0), 2)[:, 40:]
    return np.ascontiguousarray(picture)


def found_at(*boxes: tuple[float, float, float, float], score: float = 0.9) -> Detections:
    return Detections(np.array(boxes, np.float32).reshape(-1, 4), np.full(len(boxes), score, np.float32))


def test_faces_move_with_the_picture() -> None:
    """Boxes are px of the frames, flow is found in copies of half their size."""
    carried = carry(found_at((200, 100, 224, 124)), [textured(6 * n) for n in range(6)], (320, 240))
    for number, (faces, lost) in enumerate(carried, start=1):
        expected = np.array([[200, 100, 224, 124]]) - np.array([12 * number, 0] * 2)
        assert np.abs(faces.boxes - expected).max() < 1 and not len(lost)


def test_a_face_that_leaves_ends_and_one_that_is_covered_is_lost() -> None:
    leaving = carry(found_at((10, 50, 22, 62)), [textured(8 * n) for n in range(4)], (160, 120))
    assert [len(faces) for faces, _ in leaving][-1] == 0 and not any(len(lost) for _, lost in leaving)
    grays = [textured(0), textured(0), textured(0, covered=True)]
    kept, gone = carry(found_at((100, 50, 112, 62)), grays, (160, 120))
    assert (len(kept.faces), len(kept.lost), len(gone.faces), len(gone.lost)) == (1, 0, 0, 1)


def test_nothing_is_carried_as_nothing() -> None:
    assert [len(faces) for faces, _ in carry(found_at(), [textured(0), textured(1)], (160, 120))] == [0]


HERE, THERE = (10, 10, 20, 20), (50, 50, 60, 60)


def doubt(own: Sequence[Detections], forwards: Sequence[Carried] = (), backwards: Sequence[Carried] = ()) -> int | None:
    nothing = [nothing_carried()] * len(own)
    return doubtful_frame(own, forwards or nothing, backwards or nothing, MIN_SCORE)


def test_doubt_is_where_a_face_appears_or_ends() -> None:
    """A face that was carried there, a weak one, and a trace that something else takes up are in no doubt."""
    none, here = nothing_carried(), Carried(found_at(HERE), found_at())
    ended = Carried(found_at(), found_at(HERE))
    assert doubt([found_at()] * 4) is None
    assert doubt([found_at(HERE), found_at(), found_at(HERE), found_at(HERE)]) == 2
    assert doubt([found_at(), found_at(), found_at(HERE, score=0.4), found_at()]) is None
    assert doubt([found_at(HERE)] * 4, backwards=[none, here, here, none]) is None
    assert doubt([found_at(), found_at(HERE, THERE), found_at(THERE), found_at()], [none, here, here, none]) == 1
    assert doubt([found_at()] * 4, [none, here, ended, none]) == 2
    assert doubt([found_at()] * 4, [none, here, ended, none], [none, here, here, none]) is None
    assert doubt([found_at(HERE), found_at(), found_at(), found_at(HERE)]) is None, "the ends were seen thoroughly"


# ---- videos ------------------------------------------------------------------------------------


@dataclass
class SeesMore:
    """A thorough detector: it sees yellow squares as well as magenta ones, and remembers the widths of its images."""

    quick: Detector | None = None
    identity: str = "sees more"
    threshold: float = MIN_SCORE
    widths: list[int] = field(default_factory=list)

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        self.widths.append(rgb.shape[1])
        recolored = rgb.copy()
        recolored[np.abs(rgb.astype(np.int16) - MISSED).max(axis=2) < 70] = SEEN
        return ColorDetector().detect(recolored, min_score)


@dataclass
class Blind:
    """A thorough detector that sees nothing, and counts how often it is asked."""

    quick: Detector
    identity: str = "blind"
    threshold: float = MIN_SCORE
    calls: int = 0

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        self.calls += 1
        return NO_DETECTIONS


class Unused(ColorDetector):
    """A quick detector that must not run."""

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        raise AssertionError("fast mode has one detector")


def faces_of(
    film: Path, detectors: Sequence[Detector], mode: Mode = Mode.ACCURATE, thorough_seconds: float = 0.5
) -> tuple[Face, ...]:
    log = FaceLog(with_paths=True)
    settings = Settings(mode=mode, margin=0.2)
    job = MediaJob(detectors, MIN_SCORE, settings, hide=False, thorough_seconds=thorough_seconds)
    detect_video(film, job, log)
    return log.faces()


def bare_frames(faces: Sequence[Face], squares: Sequence[Square | None]) -> list[int]:
    """Return the frames in which less than 80 % of a square lies in the box of any face."""
    return [number for number, square in enumerate(squares) if square and not is_covered(faces, square, number)]


def is_covered(faces: Sequence[Face], square: Square, frame: int) -> bool:
    for face in faces:
        if face.path is None or face.span is None or not face.span[0] <= frame <= face.span[1]:
            continue
        shared = intersections(np.array([square.box], np.float32), face.path[None, frame - face.span[0]])
        if shared[0, 0] >= 0.8 * square.side**2:
            return True
    return False


def walking(count: int, first: int = 0, color: tuple[int, int, int] = MISSED) -> list[Square | None]:
    """Return a face that walks and turns back, so that none of its places can be guessed from two others."""
    places = [int(60 + 30 * np.sin(2 * np.pi * number / 26)) for number in range(count)]
    return [Square(x, 36, color=color) if number >= first else None for number, x in enumerate(places)]


def film_of(path: Path, squares: Sequence[Square | None], seeds: Sequence[int] = ()) -> Path:
    return write_film(path, [[square] if square else [] for square in squares], seeds=seeds)


def test_a_face_that_only_the_thorough_detector_sees_is_hidden_in_every_frame(tmp_path: Path) -> None:
    squares = walking(40)
    detector = SeesMore(ColorDetector())
    assert bare_frames(faces_of(film_of(tmp_path / "a.mp4", squares), [detector]), squares) == []
    assert len(detector.widths) < 10


@pytest.mark.parametrize("broken", ["never thorough", "nothing is carried"])
def test_a_broken_schedule_leaves_that_face_bare(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test before would fail."""
    squares, whole = walking(40), plan_frames

    def never(frames: Iterable[tuple[VideoFrame, float, bool]], _: float, most: int) -> Iterator[Planned[VideoFrame]]:
        return (replace(plan, is_thorough=False) for plan in whole(frames, 0.5, most))

    def nothing(_: Detections, grays: Sequence[object], __: tuple[int, int]) -> list[Carried]:
        return [nothing_carried() for _ in grays[1:]]

    if broken == "never thorough":
        monkeypatch.setattr(frame_detection, "plan_frames", never)
    else:
        monkeypatch.setattr(frame_detection, "carry", nothing)
    faces = faces_of(film_of(tmp_path / "a.mp4", squares), [SeesMore(ColorDetector())])
    assert len(bare_frames(faces, squares)) > 10


def test_a_face_that_comes_between_thorough_frames_is_hidden_from_its_first_frame(tmp_path: Path) -> None:
    """In the second scene too. It does not reach back across the cut."""
    still, moving = [Square(60, 36, color=MISSED)] * 20, [Square(20 + 2 * n, 36, color=MISSED) for n in range(20)]
    squares = [*[None] * 3, *still[3:], *[None] * 5, *moving[5:]]
    frames = [[Square(124, 4), square] if square else [Square(124, 4)] for square in squares]
    film = write_film(tmp_path / "a.mp4", frames, seeds=[OTHER_SCENE] * 20 + [0] * 20)
    faces = faces_of(film, [SeesMore(ColorDetector())])
    assert bare_frames(faces, squares) == []
    assert [face.span for face in faces if face.span and face.span[0] < 20 <= face.span[1]] == []


def test_what_the_quick_detector_alone_sees_is_not_lost(tmp_path: Path) -> None:
    squares = walking(20, color=SEEN)
    assert bare_frames(faces_of(film_of(tmp_path / "a.mp4", squares), [Blind(ColorDetector())]), squares) == []


def test_the_thorough_detector_is_asked_where_a_face_appears_in_between(tmp_path: Path) -> None:
    squares: list[Square | None] = [Square(60, 36) if 4 <= number <= 7 else None for number in range(26)]
    detector = Blind(ColorDetector())
    assert bare_frames(faces_of(film_of(tmp_path / "a.mp4", squares), [detector]), squares) == []
    assert detector.calls == 5, "the frames 0, 12, 24 and 25, and one of 4 to 7"


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads: int, tmp_path: Path) -> None:
    film = film_of(tmp_path / "a.mp4", walking(40, first=3))
    one, more = (faces_of(film, [SeesMore(ColorDetector()) for _ in range(count)]) for count in (1, threads))
    assert one == more and one
    for before, now in zip(one, more, strict=True):
        assert np.array_equal(np.asarray(before.path), np.asarray(now.path))


def test_without_a_quick_one_the_detector_sees_every_frame(tmp_path: Path) -> None:
    film = film_of(tmp_path / "a.mp4", walking(20))
    for detector, seconds in ((SeesMore(), 0.5), (SeesMore(ColorDetector()), 0.0)):
        faces_of(film, [detector], thorough_seconds=seconds)
        assert len(detector.widths) == 20


def test_fast_mode_sees_every_frame_with_its_one_detector(tmp_path: Path) -> None:
    detector = SeesMore(Unused())
    faces_of(film_of(tmp_path / "a.mp4", walking(20)), [detector], mode=Mode.FAST)
    assert len(detector.widths) == 20


def test_the_accurate_detector_has_two_speeds_and_the_fast_one_has_not() -> None:
    accurate, fast = load_detector(Settings(mode=Mode.ACCURATE)), load_detector(Settings(mode=Mode.FAST))
    assert isinstance(accurate, TwoSpeedDetector) and accurate.quick is not None and fast.quick is None
