"""Video end to end: no face is bare in any frame, a failure anywhere leaves nothing, and all stages end."""

from __future__ import annotations

import gc
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from blurguard.anonymize.anonymizer import Anonymizer
from blurguard.errors import BlurguardError, InputError, OutputError
from blurguard.settings import Mode, Settings
from blurguard.types import Detections, Outcome, Status
from tests.films import (
    FPS,
    MISSED,
    OTHER_SCENE,
    SEEN,
    SIZE,
    WEAK,
    ColorDetector,
    Square,
    bare_share,
    pictures_of,
    sees_colors,
    write_film,
)

STYLES = ("blur", "pixelate", "solid")


def walk(colors: Sequence[tuple[int, int, int]], start: int = 10, step: int = 2) -> list[list[Square]]:
    """Return a face that walks to the right, seen or not as its color says."""
    return [[Square(start + step * number, 30, color=color)] for number, color in enumerate(colors)]


def hidden(folder: Path, frames: list[list[Square]], **settings: object) -> tuple[Outcome, list[NDArray[np.uint8]]]:
    source, target = write_film(folder / "film.mp4", frames), folder / "out.mp4"
    outcome = sees_colors(**settings).process(source, target)
    return outcome, pictures_of(target)


def bare_frames(pictures: list[NDArray[np.uint8]], frames: list[list[Square]]) -> list[int]:
    assert len(pictures) == len(frames)
    return [
        number
        for number, (rgb, squares) in enumerate(zip(pictures, frames, strict=True))
        if any(bare_share(rgb, square) > 0.05 for square in squares)
    ]


@pytest.mark.parametrize("style", STYLES)
def test_a_face_that_is_always_seen_is_always_hidden(tmp_path: Path, style: str) -> None:
    frames = walk([SEEN] * 20)
    outcome, pictures = hidden(tmp_path, frames, style=style)
    assert bare_frames(pictures, frames) == []
    assert (outcome.status, outcome.frames, len(outcome.faces)) == (Status.DONE, 20, 1)
    assert (outcome.width, outcome.height) == SIZE
    assert outcome.kind == "MP4 H.264"
    assert outcome.faces[0].span == (0, 19)


@pytest.mark.parametrize("mode", list(Mode))
def test_gaps_are_filled(tmp_path: Path, mode: Mode) -> None:
    """The classic leak: found in one frame, missed in the next ones, found again."""
    colors = [SEEN] * 6 + [MISSED] * 5 + [SEEN] * 4 + [MISSED] + [SEEN] * 6
    frames = walk(colors)
    _, pictures = hidden(tmp_path, frames, mode=mode)
    assert bare_frames(pictures, frames) == []


def test_first_and_last_frames_are_hidden(tmp_path: Path) -> None:
    """Ten frames are 0.4 s: what is 0.4 s before the first detection and after the last is hidden too."""
    colors = [MISSED] * 9 + [SEEN] * 8 + [MISSED] * 9
    frames = walk(colors, step=1)
    _, pictures = hidden(tmp_path, frames)
    assert bare_frames(pictures, frames) == []


def test_hold_is_what_was_asked_for(tmp_path: Path) -> None:
    frames = walk([MISSED] * 15 + [SEEN] * 6 + [MISSED] * 15, step=0)
    _, pictures = hidden(tmp_path, frames, hold=0.2)
    assert bare_frames(pictures, frames) == [*range(10), *range(26, 36)]


def test_weak_detections_count_where_a_track_supports_them(tmp_path: Path) -> None:
    colors = [WEAK] * 20 + [SEEN] * 3 + [WEAK] * 20
    frames = walk(colors, step=1)
    _, pictures = hidden(tmp_path, frames)
    # 0.8 s of look-ahead before the first strong one; none of them is too late after the last.
    assert [number for number in bare_frames(pictures, frames) if number >= 2] == []


def test_weak_detections_alone_are_no_face(tmp_path: Path) -> None:
    outcome, _ = hidden(tmp_path, walk([WEAK] * 10))
    assert outcome.faces == ()


def test_nothing_is_carried_into_another_scene(tmp_path: Path) -> None:
    frames: list[list[Square]] = [[Square(60, 40, 30)]] * 12 + [[]] * 12 + [[Square(20, 20, 30)]] * 12
    source, target = tmp_path / "film.mp4", tmp_path / "out.mp4"
    write_film(source, frames, seeds=[0] * 12 + [OTHER_SCENE] * 12 + [1] * 12)
    outcome = sees_colors().process(source, target)
    assert [face.span for face in outcome.faces] == [(0, 11), (24, 35)]
    for before, after in zip(pictures_of(source)[12:24], pictures_of(target)[12:24], strict=True):
        assert np.abs(before.astype(int) - after).mean() < 4


def test_detectors_see_px_that_are_square(tmp_path: Path) -> None:
    """What is stored half as wide as it is shown is shown to the detector as wide as it is."""
    seen: list[tuple[int, ...]] = []

    @dataclass(frozen=True)
    class Notes(ColorDetector):
        def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
            seen.append(rgb.shape)
            return super().detect(rgb, min_score)

    frames = walk([SEEN] * 4)
    source, target = write_film(tmp_path / "film.mp4", frames, aspect=Fraction(2)), tmp_path / "out.mp4"
    Anonymizer(Settings(), Notes()).process(source, target)
    assert set(seen) == {(SIZE[1], 2 * SIZE[0], 3)}
    assert bare_frames(pictures_of(target), frames) == []


def test_faces_at_the_edge_are_hidden_to_the_last_row(tmp_path: Path) -> None:
    frames = [[Square(SIZE[0] - 14, SIZE[1] - 12), Square(-10, -10)] for _ in range(8)]
    _, pictures = hidden(tmp_path, frames, style="solid", shape="box")
    assert bare_frames(pictures, frames) == []
    assert max(picture[-1, -1].max() for picture in pictures) < 60


def test_outside_everything_looks_as_before(tmp_path: Path) -> None:
    frames = walk([SEEN] * 10)
    source = write_film(tmp_path / "film.mp4", frames)
    sees_colors().process(source, tmp_path / "out.mp4")
    for before, after, squares in zip(pictures_of(source), pictures_of(tmp_path / "out.mp4"), frames, strict=True):
        x0, y0, x1, y1 = squares[0].box
        far = np.ones(before.shape[:2], np.bool_)
        far[y0 - 20 : y1 + 20, max(x0 - 20, 0) : x1 + 20] = False
        assert np.abs(before[far].astype(int) - after[far]).mean() < 3


def test_boxes_are_drawn_on_request(tmp_path: Path) -> None:
    frames = walk([SEEN] * 6)
    _, pictures = hidden(tmp_path, frames, boxes=True, box_color="#0000ff")
    for rgb in pictures:
        assert (np.abs(rgb.astype(int) - (0, 0, 255)).max(axis=2) < 90).sum() > 40


def test_looking_tells_where_faces_are_and_writes_nothing(tmp_path: Path) -> None:
    frames = walk([SEEN] * 10)
    source = write_film(tmp_path / "film.mp4", frames)
    outcome = sees_colors().look(source)
    (face,) = outcome.faces
    assert face.path is not None
    for box, squares in zip(face.path, frames, strict=True):
        assert np.abs(box - squares[0].box).max() <= 4
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_progress_counts_frames(tmp_path: Path) -> None:
    told: list[tuple[Path, int, int | None]] = []
    source = write_film(tmp_path / "film.mp4", walk([SEEN] * 10))
    anonymizer = sees_colors()
    anonymizer.progress = lambda *values: told.append(values)
    anonymizer.process(source, tmp_path / "out.mp4")
    assert told == [(source, number, 10) for number in range(1, 11)]


def test_several_threads_give_the_same_film(tmp_path: Path) -> None:
    settings = Settings(style="solid", mode=Mode.FAST, min_score=0.2)  # type: ignore[arg-type]
    source = write_film(tmp_path / "film.mp4", walk([SEEN] * 30))
    spans = []
    for threads in (1, 3):
        anonymizer = Anonymizer(settings)
        anonymizer.threads = threads
        spans.append([(face.span, face.box) for face in anonymizer.look(source).faces])
    assert spans[0] == spans[1]


@dataclass(frozen=True)
class DarkAndEmpty:
    """Finds no face anywhere, and gives light frames a second pass."""

    identity: str = "dark"
    threshold: float = 0.5

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), "dark" if rgb.mean() > 100 else "")


def test_a_second_pass_is_reported_also_without_faces(tmp_path: Path) -> None:
    source = write_film(tmp_path / "film.mp4", [[], [Square(30, 30, 60, (0, 0, 0))]] * 3)
    anonymizer = Anonymizer(Settings(), DarkAndEmpty())
    for outcome in (anonymizer.look(source), anonymizer.process(source, tmp_path / "out.mp4")):
        assert (outcome.second_pass, outcome.faces) == ("dark", ())


@dataclass(frozen=True)
class FailsAt:
    """Fails at its n-th frame, by error or by telling nonsense."""

    frame: int
    nonsense: bool
    seen: list[int]
    identity: str = "fails"
    threshold: float = 0.5

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        self.seen.append(1)
        if len(self.seen) <= self.frame:
            return ColorDetector().detect(rgb, min_score)
        if self.nonsense:  # what cannot be placed cannot be hidden: fails in the stage that hides
            return Detections(np.full((1, 4), np.nan, np.float32), np.ones(1, np.float32))
        raise RuntimeError("the network broke")


@pytest.mark.parametrize("nonsense", [False, True], ids=["look", "hide"])
@pytest.mark.parametrize("frame", [0, 7, 29])
def test_a_failure_while_looking_or_hiding_stops_all(tmp_path: Path, frame: int, nonsense: bool) -> None:
    source = write_film(tmp_path / "film.mp4", walk([SEEN] * 30))
    before = threading.active_count()
    with pytest.raises((RuntimeError, ValueError), match=r"network broke|without a place"):
        Anonymizer(Settings(), FailsAt(frame, nonsense, [])).process(source, tmp_path / "out" / "film.mp4")
    assert threading.active_count() == before
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [source]


@pytest.mark.parametrize("share", [0.4, 0.8, 0.97])
def test_a_failure_while_reading_stops_all(tmp_path: Path, share: float) -> None:
    source = write_film(tmp_path / "film.mkv", walk([SEEN] * 60))
    data = source.read_bytes()
    source.write_bytes(data[: int(len(data) * share)])
    before = threading.active_count()
    with pytest.raises(InputError, match=r"film\.mkv"):
        sees_colors().process(source, tmp_path / "out" / "film.mkv")
    assert threading.active_count() == before
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [source]


def test_salvage_handles_what_is_there_and_says_so(tmp_path: Path) -> None:
    frames = walk([SEEN] * 60, step=1)
    source = write_film(tmp_path / "film.mkv", frames)
    data = source.read_bytes()
    source.write_bytes(data[: int(len(data) * 0.6)])
    outcome = sees_colors(salvage=True).process(source, tmp_path / "out.mkv")
    pictures = pictures_of(tmp_path / "out.mkv")
    assert outcome.status is Status.DONE
    assert outcome.reason
    assert 0 < len(pictures) < 60
    assert bare_frames(pictures, frames[: len(pictures)]) == []


def test_a_failure_while_writing_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files is what a full disk is to a writer."""
    import resource

    rng = np.random.default_rng(0)
    frames = [[Square(int(x), int(y), 20, SEEN) for x, y in rng.integers(0, 80, (6, 2))] for _ in range(60)]
    source = write_film(tmp_path / "film.mp4", frames, (640, 480), seeds=list(range(60)))
    before = threading.active_count()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write"):
            sees_colors().process(source, tmp_path / "out" / "film.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert threading.active_count() == before
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [source]


def test_the_window_bounds_what_is_held(tmp_path: Path) -> None:
    """However long the film: a detector that counts how far ahead of the writer it is."""
    source = write_film(tmp_path / "film.mp4", walk([SEEN] * 120, step=1))
    seen: list[int] = []
    furthest = 0

    def told(_: Path, done: int, __: int | None) -> None:
        nonlocal furthest
        furthest = max(furthest, len(seen) - done)

    anonymizer = Anonymizer(Settings(hold=0.2), FailsAt(10_000, False, seen))
    anonymizer.progress = told
    anonymizer.process(source, tmp_path / "out.mp4")
    assert furthest <= 2 * 0.2 * FPS + 10


def test_frames_are_given_back_as_soon_as_they_are_written(tmp_path: Path) -> None:
    """Without waiting for Python to look for circles of objects: at 4K a frame is 12 MB."""
    source = write_film(tmp_path / "film.mp4", walk([SEEN] * 100, step=1))
    alive: list[int] = []
    anonymizer = sees_colors(hold=0.2)
    anonymizer.progress = lambda *_: alive.append(sum(type(o) is av.VideoFrame for o in gc.get_objects()))
    gc.collect()
    gc.disable()
    try:
        anonymizer.process(source, tmp_path / "out.mp4")
    finally:
        gc.enable()
    assert max(alive) <= 2 * 0.2 * FPS + 20


@pytest.mark.parametrize("name", ["rot90_meta.mp4", "odd_size_444.mp4", "hevc10.mp4", "vp9_opus.webm"])
def test_real_clips(name: str, test_data: Path, tmp_path: Path) -> None:
    source = tmp_path / name
    shutil.copy(test_data / "video" / name, source)
    outcome = Anonymizer(Settings(mode=Mode.FAST)).process(source, tmp_path / f"out{source.suffix}")
    assert outcome.frames == len(pictures_of(tmp_path / f"out{source.suffix}")) == 105
    assert outcome.faces


@pytest.mark.parametrize("name", ["audio_only.mp4", "empty.mp4", "truncated_no_moov.mp4"])
def test_real_clips_that_cannot_be_done(name: str, test_data: Path, tmp_path: Path) -> None:
    with pytest.raises(BlurguardError, match=name):
        sees_colors().process(test_data / "video" / name, tmp_path / "out.mp4")
    assert list(tmp_path.iterdir()) == []
