"""No bare frame: a face that was found is hidden before, between and after, within its scene."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blurguard.tracking.lookahead import FrameDetections, TrackedBox, TrackingConfig, track_faces
from blurguard.types import Detections

Box = tuple[float, float, float, float]
Covered = list[tuple[TrackedBox, ...]]

RULES = TrackingConfig(min_score=0.5)
STRONG, WEAK = 0.9, 0.3
FPS = 25


def faces(*found: tuple[Box, float]) -> Detections:
    boxes, scores = [box for box, _ in found], [score for _, score in found]
    return Detections(np.array(boxes, np.float32), np.array(scores, np.float32))


def face_at(x: float, y: float = 100.0, size: float = 20.0) -> Box:
    """Return a square box round a center."""
    return x - size / 2, y - size / 2, x + size / 2, y + size / 2


def at_rate(found: Iterable[Detections], fps: float = FPS) -> list[FrameDetections]:
    return [FrameDetections(number / fps, one) for number, one in enumerate(found)]


def seen_in(numbers: Iterable[int], count: int) -> list[FrameDetections]:
    """Return frames in some of which the same face is found, at (100, 100)."""
    chosen = set(numbers)
    return at_rate(faces((face_at(100), STRONG)) if number in chosen else faces() for number in range(count))


def covered(sightings: Iterable[FrameDetections], rules: TrackingConfig = RULES) -> Covered:
    return [covers for _, covers in track_faces(enumerate(sightings), rules)]


def holds(cover: TrackedBox, box: Box) -> bool:
    """Tell whether a box lies inside a cover, to float32."""
    own = np.array(box, np.float32)
    return bool((cover.box[:2] <= own[:2]).all() and (cover.box[2:] >= own[2:]).all())


def hidden(covers: Iterable[TrackedBox], box: Box) -> bool:
    return any(holds(cover, box) for cover in covers)


def hidden_frames(result: Covered, box: Box) -> list[int]:
    return [number for number, covers in enumerate(result) if hidden(covers, box)]


def size_of(cover: TrackedBox) -> float:
    return float(cover.box[2] - cover.box[0])


# ---- whatever comes in -------------------------------------------------------------------------

places = st.floats(-50, 400, width=32)
boxes = st.builds(face_at, places, places, st.sampled_from([0.0, 3.0, 20.0, 24.0, 200.0]))
detections = st.lists(st.tuples(boxes, st.sampled_from([0.2, 0.4, 0.5, 0.9])), max_size=5).map(lambda f: faces(*f))
steps = st.sampled_from([0.0, 0.001, 0.02, 0.04, 0.04, 0.04, 0.3, 2.0, -1.0])
kinds = st.sampled_from(["looked", "looked", "looked", "looked", "passed over", "cut"])


@st.composite
def videos(draw: st.DrawFn) -> list[FrameDetections]:
    seconds, video = 0.0, []
    for step, kind, found in draw(st.lists(st.tuples(steps, kinds, detections), max_size=30)):
        seconds += step
        looked = kind != "passed over"
        video.append(FrameDetections(seconds, found if looked else faces(), is_cut=kind == "cut", was_detected=looked))
    return video


rules = st.builds(TrackingConfig, st.just(0.5), st.sampled_from([0.0, 0.1, 0.4]), st.sampled_from([1, 2, 5, 240]))


@given(videos(), rules)
def test_every_frame_comes_out_once_in_order_with_all_that_was_found_in_it(
    video: list[FrameDetections], rule: TrackingConfig
) -> None:
    result = list(track_faces(enumerate(video), rule))
    assert [number for number, _ in result] == list(range(len(video)))
    for sighting, (_, covers) in zip(video, result, strict=True):
        for box, score in zip(sighting.detections.boxes.tolist(), sighting.detections.scores.tolist(), strict=True):
            if score >= rule.min_score:
                own = [cover for cover in covers if cover.is_detected and cover.score == np.float32(score)]
                assert hidden(own, tuple(box))
        assert all(np.isfinite(cover.box).all() for cover in covers)
        assert len({cover.track_id for cover in covers}) == len(covers)


def scenes_of(video: list[FrameDetections]) -> list[int]:
    """Return the number of each frame's scene."""
    scene, numbers = 0, []
    for before, now in pairwise([*video[:1], *video]):
        scene += now.is_cut or now.seconds < before.seconds
        numbers.append(scene)
    return numbers


@given(videos(), rules)
def test_nothing_crosses_a_cut(video: list[FrameDetections], rule: TrackingConfig) -> None:
    """Each scene is treated as if it were alone, and shares no track with another."""
    numbers = scenes_of(video)
    together = covered(video, rule)
    owners: dict[int, int] = {}
    for number, covers in zip(numbers, together, strict=True):
        assert all(owners.setdefault(cover.track_id, number) == number for cover in covers)
    for scene in set(numbers):
        alone = covered([one for one, number in zip(video, numbers, strict=True) if number == scene], rule)
        same = [covers for covers, number in zip(together, numbers, strict=True) if number == scene]
        assert [[c.box.tolist() for c in covers] for covers in alone] == [
            [c.box.tolist() for c in covers] for covers in same
        ]


@given(videos(), rules)
def test_the_same_video_gives_the_same_covers(video: list[FrameDetections], rule: TrackingConfig) -> None:
    first, second = (
        [[(c.track_id, c.box.tolist(), c.score, c.is_detected) for c in covers] for covers in covered(video, rule)]
        for _ in range(2)
    )
    assert first == second


@given(videos(), rules)
def test_no_more_is_held_than_is_needed(video: list[FrameDetections], rule: TrackingConfig) -> None:
    """A frame comes as soon as a frame was read that is shown two holds later, and ``max_frames`` are a limit."""
    read: list[int] = []

    def source() -> Iterator[tuple[int, FrameDetections]]:
        for number, sighting in enumerate(video):
            read.append(number)
            yield number, sighting

    numbers = scenes_of(video)
    for number, _ in track_faces(source(), rule):
        ahead = [later for later in read if later > number and numbers[later] == numbers[number]]
        assert len(ahead) < rule.max_frames
        assert all(video[later].seconds - video[number].seconds < 2 * rule.hold_seconds for later in ahead[:-1])


@given(videos())
def test_a_track_has_no_gaps(video: list[FrameDetections]) -> None:
    frames: dict[int, list[int]] = {}
    for number, covers in enumerate(covered(video)):
        for cover in covers:
            frames.setdefault(cover.track_id, []).append(number)
    assert all(numbers == list(range(numbers[0], numbers[-1] + 1)) for numbers in frames.values())


@given(st.lists(st.floats(0.005, 0.15), min_size=20, max_size=30), st.integers(0, 19))
def test_the_hold_is_counted_in_seconds_not_in_frames(gaps: list[float], found: int) -> None:
    times = np.cumsum(gaps)
    box = face_at(100)
    video = [FrameDetections(float(t), faces((box, STRONG)) if i == found else faces()) for i, t in enumerate(times)]
    away = np.abs(times - times[found])
    expected = (away <= RULES.hold_seconds) | (np.abs(np.arange(len(times)) - found) <= 1)
    assert hidden_frames(covered(video), box) == np.flatnonzero(expected).tolist()


# ---- before, between and after -----------------------------------------------------------------


def test_a_face_is_hidden_before_it_is_found_and_after_it_is_lost() -> None:
    result = covered(seen_in([20, 21, 22], 45))
    assert hidden_frames(result, face_at(100)) == list(range(10, 33))
    assert [number for number, covers in enumerate(result) if covers and covers[0].is_detected] == [20, 21, 22]


@pytest.mark.parametrize("speed", [0.0, 1.5, 4.0])
def test_a_face_is_hidden_where_it_stood_and_where_it_went(speed: float) -> None:
    """After the last detection it may have stopped or gone on; half a second later that is far apart."""
    video = at_rate(faces((face_at(100 + speed * i), STRONG)) if 12 <= i < 22 else faces() for i in range(34))
    result = covered(video)
    for number in range(3, 12):
        assert hidden(result[number], face_at(100 + speed * number, size=18))
    for number in range(22, 31):
        assert hidden(result[number], face_at(100 + speed * number, size=18))
        if speed < 2:
            assert hidden(result[number], face_at(100 + speed * 21, size=18))


def test_a_gap_is_filled_on_the_way_and_enlarged_by_time_and_speed() -> None:
    def middle_size(missed: int, speed: float) -> float:
        video = at_rate(faces((face_at(100 + speed * i), STRONG)) for i in range(20 + missed))
        for number in range(10, 10 + missed):
            video[number] = replace(video[number], detections=faces())
        result = covered(video)
        for number in range(20 + missed):
            assert [cover.track_id for cover in result[number]] == [0]
            assert hidden(result[number], face_at(100 + speed * number, size=19))
        return size_of(result[10 + missed // 2][0])

    assert 20 < middle_size(2, 0.0) < middle_size(12, 0.0)
    assert middle_size(12, 0.0) < middle_size(12, 4.0)


def test_a_face_lost_for_longer_than_two_holds_is_a_new_track() -> None:
    short, long = covered(seen_in([0, 20], 30)), covered(seen_in([0, 24], 30))
    assert {cover.track_id for covers in short for cover in covers} == {0}
    assert {cover.track_id for covers in long for cover in covers} == {0, 1}
    assert [bool(covers) for covers in long].index(False) == 11


def test_weak_detections_count_where_a_track_supports_them() -> None:
    video = at_rate(faces((face_at(100), STRONG if i == 30 else WEAK)) for i in range(70))
    result = covered(video)
    assert all(covers and covers[0].is_detected for covers in result[10:])  # backwards as far as the window reaches
    assert {cover.track_id for covers in result for cover in covers} == {0}
    assert result[40][0].score == pytest.approx(WEAK)
    assert covered(at_rate(faces((face_at(100), WEAK)) for _ in range(20))) == [()] * 20


def test_a_weak_detection_backwards_moves_the_cover_to_where_the_face_was() -> None:
    """The face comes from afar: standing where it was first seen would not hide it."""
    video = at_rate(faces((face_at(100 + 5 * i), WEAK if i < 15 else STRONG)) for i in range(30))
    assert all(hidden(covers, face_at(100 + 5 * i)) for i, covers in enumerate(covered(video)))


def test_a_weak_detection_inside_a_gap_is_used() -> None:
    """The face steps aside while no strong detection shows it."""
    video = at_rate(faces((face_at(100 + 8 * (i == 15)), STRONG)) for i in range(30))
    for number in range(11, 20):
        weak = faces((face_at(108), WEAK)) if number == 15 else faces()
        video[number] = replace(video[number], detections=weak)
    covers = covered(video)[15]
    assert covers[0].is_detected and hidden(covers, face_at(108))


def test_a_small_fast_face_keeps_its_track() -> None:
    """10 px, 12 px a frame: its boxes never overlap."""
    video = at_rate(faces((face_at(50 + 12 * i, size=10), STRONG)) for i in range(30))
    for number in (14, 15):
        video[number] = replace(video[number], detections=faces())
    result = covered(video)
    assert all(hidden(covers, face_at(50 + 12 * i, size=9)) for i, covers in enumerate(result))
    assert len({cover.track_id for covers in result[12:18] for cover in covers}) == 1


def test_faces_that_cross_are_both_hidden_all_along() -> None:
    """One is behind the other for a while, and not found."""

    def frame(i: int) -> Detections:
        left, right = 100 + 4 * i, 340 - 4 * i
        return (
            faces((face_at(left), STRONG))
            if abs(left - right) < 20
            else faces((face_at(left), STRONG), (face_at(right), STRONG))
        )

    result = covered(at_rate(frame(i) for i in range(60)))
    for number, covers in enumerate(result):
        assert hidden(covers, face_at(100 + 4 * number)) and hidden(covers, face_at(340 - 4 * number, size=18))
    assert len({cover.track_id for covers in result for cover in covers}) == 2


def test_neighbors_that_are_found_in_turn_are_both_hidden() -> None:
    """A track that hopped between the two would leave the other one bare."""
    video = at_rate(faces((face_at(100 + 26 * (i % 2)), STRONG)) for i in range(30))
    for covers in covered(video):
        assert hidden(covers, face_at(100)) and hidden(covers, face_at(126))


def test_missed_faces_follow_the_camera_by_what_the_others_do() -> None:
    """The camera turns back while one of eight faces is not found."""

    def camera(i: int) -> float:
        return 5.0 * (i if i < 20 else 40 - i)

    def frame(i: int) -> Detections:
        rows = range(8) if i not in range(17, 24) else range(1, 8)
        return faces(*((face_at(100 + camera(i), 50 + 60 * row), STRONG) for row in rows))

    result = covered(at_rate(frame(i) for i in range(40)))
    assert all(hidden(covers, face_at(100 + camera(i), 50)) for i, covers in enumerate(result))
    assert len({cover.track_id for covers in result for cover in covers}) == 8


def test_two_detections_of_one_face_do_not_stay_two_tracks() -> None:
    """Afterwards the one detection is now nearer to the one track, now to the other."""

    def frame(i: int) -> Detections:
        return faces(*((face_at(x), STRONG) for x in ((100, 102) if i < 5 else (100 + 2 * (i % 2),))))

    result = covered(at_rate(frame(i) for i in range(60)))
    assert [len(covers) for covers in result[:5]] == [2] * 5
    assert all(len(covers) == 1 for covers in result[25:])


def test_a_detection_that_jumps_out_of_its_track_is_hidden_whole() -> None:
    video = at_rate(faces((face_at(100 + 12 * (i == 10), size=20 + 8 * (i == 15)), STRONG)) for i in range(20))
    result = covered(video)
    assert hidden(result[10], face_at(112)) and hidden(result[15], face_at(100, size=28))
    assert {cover.track_id for covers in result for cover in covers} == {0}


def test_what_a_fast_face_leaves_behind_is_bounded() -> None:
    video = at_rate(faces((face_at(50 + 12 * i, size=10), STRONG)) if i < 10 else faces() for i in range(20))
    assert all(size_of(cover) < 32 for covers in covered(video) for cover in covers)


def test_the_hidden_area_is_steadier_than_the_detections() -> None:
    random = np.random.default_rng(1)
    found = [face_at(100 + dx, 100 + dy, 20 + ds) for dx, dy, ds in random.normal(0, 0.8, (100, 3))]
    result = covered(at_rate(faces((box, STRONG)) for box in found))
    raw, shown = np.array(found), np.array([covers[0].box for covers in result])
    assert np.abs(np.diff(shown, axis=0)).mean() < 0.6 * np.abs(np.diff(raw, axis=0)).mean()
    assert all(size_of(covers[0]) < 26 for covers in result)


# ---- time --------------------------------------------------------------------------------------


def test_frames_that_were_not_looked_at_are_gaps() -> None:
    every, second = seen_in(range(40), 40), seen_in(range(0, 40, 2), 40)
    second = [replace(one, was_detected=i % 2 == 0) for i, one in enumerate(second)]
    for video in (every, second):
        result = covered(video)
        assert hidden_frames(result, face_at(100)) == list(range(40))
        assert {cover.track_id for covers in result for cover in covers} == {0}
    assert [covers[0].is_detected for covers in covered(second)] == [i % 2 == 0 for i in range(40)]


def test_time_that_runs_backwards_begins_a_scene() -> None:
    video = [replace(one, seconds=one.seconds - 10 * (i >= 10)) for i, one in enumerate(seen_in([9, 12], 20))]
    result = covered(video)
    assert hidden_frames(result, face_at(100)) == list(range(20))
    assert {cover.track_id for covers in result[:10] for cover in covers} == {0}
    assert {cover.track_id for covers in result[10:] for cover in covers} == {1}


def test_a_cut_ends_what_reaches_forwards_and_backwards() -> None:
    video = [replace(one, is_cut=i in (10, 20)) for i, one in enumerate(seen_in([15], 30))]
    assert hidden_frames(covered(video), face_at(100)) == list(range(10, 20))


def test_the_next_frame_is_in_reach_however_late_it_comes() -> None:
    video = [FrameDetections(3.0 * i, faces((face_at(100), STRONG)) if i == 3 else faces()) for i in range(8)]
    assert hidden_frames(covered(video), face_at(100)) == [2, 3, 4]


def test_frames_without_time_of_their_own_are_held_up_to_the_limit() -> None:
    video = [replace(one, seconds=1.0) for one in seen_in([25], 50)]
    assert hidden_frames(covered(video, replace(RULES, max_frames=10)), face_at(100))[0] == 16


# ---- the stream --------------------------------------------------------------------------------


def test_closing_early_closes_the_source() -> None:
    ended = []

    def source() -> Iterator[tuple[int, FrameDetections]]:
        try:
            yield from enumerate(seen_in(range(100), 100))
        finally:
            ended.append(True)

    frames = source()
    stream = track_faces(frames, RULES)
    next(stream)
    assert not ended
    stream.close()
    assert ended


def test_an_error_of_the_source_comes_through_at_once() -> None:
    def source() -> Iterator[tuple[int, FrameDetections]]:
        yield from enumerate(seen_in(range(10), 10))
        raise OSError("torn tape")

    with pytest.raises(OSError, match="torn tape"):
        list(track_faces(source(), RULES))


def test_frames_are_let_go_once_they_are_out() -> None:
    class Item:
        alive = 0

        def __init__(self) -> None:
            Item.alive += 1

        def __del__(self) -> None:
            Item.alive -= 1

    most = 0
    for _ in track_faces(((Item(), one) for one in seen_in(range(0, 300, 3), 300)), RULES):
        most = max(most, Item.alive)
    assert most <= 2 * RULES.hold_seconds * FPS + 3
