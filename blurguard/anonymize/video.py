"""From video to hidden video: frames stream through reading, looking, following, hiding and encoding at once.

Nothing lies on disk but the result's own draft, and no more frames are in memory than the window in which
faces are followed, however long the video is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from blurguard.anonymize.streaming import ahead, mapped
from blurguard.anonymize.surfaces import can_paint, planes_of
from blurguard.anonymize.tracked import WEAK_SHARE, Roll, cloaked
from blurguard.boxes import NO_DETECTIONS, resized
from blurguard.detection.detector import Detector
from blurguard.detection.multiscale import FAST_SIDE_PX
from blurguard.errors import InputError
from blurguard.redaction.mosaic import Plane
from blurguard.settings import Audio, Mode, Settings
from blurguard.tracking.lookahead import Rules, Sighting
from blurguard.tracking.scene_cuts import CutFinder
from blurguard.types import Detections, Face
from blurguard.video.reader import Video, open_video
from blurguard.video.rgb import Viewer
from blurguard.video.writer import Recorder

if TYPE_CHECKING:
    from av import VideoFrame

Told = Callable[[int, int | None], None]

WINDOW_BYTES = 640 << 20  # of frames in the window in which faces are followed, unless `hold` needs more
_READ_AHEAD = 2
_FASTEST_RATE = 240  # frames per second of what cameras call slow motion
_THUMB_WH = (64, 36)  # enough to see that a scene ends


@dataclass(frozen=True, slots=True)
class Film:
    """What a video was, and who was hidden in it.

    Attributes:
        kind: container and codec.
        width: upright, px.
        height: upright, px.
        frames: as many as came out.
        faces: one for each track.
        lost: what of a damaged file could not be handled, and tracks that could not be copied; ``""`` when nothing.
    """

    kind: str
    width: int
    height: int
    frames: int
    faces: tuple[Face, ...]
    lost: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """How a video is looked at.

    Attributes:
        detectors: one for each thread.
        min_score: score from which a face is hidden.
        settings: the rest.
        told: is called with the frames that are done, and with how many there are if that is known.
        stride: every how many frames are looked at. The program looks at all of them: every second one saves a
            quarter of the time in fast mode, and leaves more of the small faces bare (docs/accuracy.md).
    """

    detectors: Sequence[Detector]
    min_score: float
    settings: Settings
    told: Told
    stride: int = 1

    @property
    def threads(self) -> int:
        """As many as the detectors, for decoder and encoder too: at the end of it they wait for one another."""
        return len(self.detectors)


def hide_video(source: Path, target: Path, look: Look) -> Film:
    """Write a video to ``target`` with every face hidden, and everything else as it was.

    Raises:
        InputError: it cannot be read, or not to its end.
        OutputError: ``target`` cannot be written.
    """
    settings, roll = look.settings, Roll()
    with _opened(source, look) as video:
        if not can_paint(video.pixel_format):
            raise InputError(f"{source}: pixels of {video.pixel_format} are not supported; convert it to yuv420p")
        recorder = Recorder(video, target, keep_audio=settings.audio is Audio.KEEP, quick=settings.mode is Mode.FAST,
                            keep_metadata=settings.keep_metadata, threads=look.threads)  # fmt: skip
        with recorder, closing(_hidden(video, look, roll, paint=True)) as frames:
            count = 0
            for count, frame in enumerate(frames, start=1):
                recorder.write(frame)
                look.told(count, video.frames_expected)
        return _film(video, count, roll, recorder.left_out)


def look_at_video(source: Path, look: Look, roll: Roll | None = None) -> Film:
    """Find the faces in a video, and write them on the roll; writes nothing else.

    Raises:
        InputError: it cannot be read, or not to its end.
    """
    roll = Roll(with_paths=True) if roll is None else roll
    with _opened(source, look) as video:
        count = 0
        with closing(_hidden(video, look, roll, paint=False)) as frames:
            for count, _ in enumerate(frames, start=1):
                look.told(count, video.frames_expected)
        return _film(video, count, roll)


def _opened(source: Path, look: Look) -> Video:
    settings = look.settings
    return open_video(source, max_pixels=settings.max_pixels, threads=look.threads, salvage=settings.salvage)


def _film(video: Video, frames: int, roll: Roll, left_out: Sequence[str] = ()) -> Film:
    width, height = upright_size(video)
    lost = [video.lost] if video.lost else []
    if left_out:
        lost.append(f"could not be copied: {', '.join(left_out)}")
    return Film(video.kind, width, height, frames, roll.faces(), "; ".join(lost))


def upright_size(video: Video) -> tuple[int, int]:
    """Return width and height as shown, px."""
    return (video.height, video.width) if video.rotation % 180 else (video.width, video.height)


def _hidden(video: Video, look: Look, roll: Roll, paint: bool) -> Generator[VideoFrame, None, None]:
    """Yield the frames of a video with their faces hidden, while those to come are read and looked at."""
    rotation, box_rgb = video.rotation, look.settings.box_rgb

    def planes(frame: VideoFrame) -> list[Plane]:
        return planes_of(frame, rotation, box_rgb)

    stop = Event()
    frames = ahead(video.frames(), _READ_AHEAD, stop)
    seen = _Lookout(video, look, stop).seen(frames)
    rules = Rules(look.min_score, look.settings.hold, _most_frames(video, look.settings.hold))
    painter = planes if paint else None
    return ahead(cloaked(seen, painter, upright_size(video), look.settings, rules, roll), _READ_AHEAD, stop)


def _most_frames(video: Video, hold: float) -> int:
    """Return how many frames the window may hold: what its bytes allow, but never less than ``hold`` needs.

    Not by the video's rate, which is an average: the part where a face appears may be a slow-motion burst.
    """
    return max(math.ceil(hold * _FASTEST_RATE) + 2, WINDOW_BYTES // max(1, video.frame_bytes))


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """A frame after it was looked at; ``found`` is None when that was left out."""

    frame: VideoFrame
    found: Detections | None
    thumb: NDArray[np.uint8]


class _Lookout:
    """Looks at frames in several threads, each with its own detector."""

    def __init__(self, video: Video, look: Look, stop: Event) -> None:
        self._time_base = video.time_base
        self._size = upright_size(video)
        self._weakest = look.min_score * WEAK_SHARE
        self._stride = look.stride
        longest = FAST_SIDE_PX if look.settings.mode is Mode.FAST else None
        aspect = video.pixel_aspect or Fraction(1)
        self._free: SimpleQueue[tuple[Detector, Viewer, Viewer]] = SimpleQueue()
        for detector in look.detectors:
            thumbs = Viewer(video.rotation, aspect, max(_THUMB_WH))
            self._free.put((detector, Viewer(video.rotation, aspect, longest), thumbs))
        self._workers = len(look.detectors)
        self._stop = stop

    def seen(self, frames: Generator[VideoFrame, None, None]) -> Iterator[tuple[VideoFrame, Sighting]]:
        """Yield every frame with what was found in it."""
        cuts = CutFinder()
        looked = mapped(self._look, enumerate(frames), self._workers, self._workers + 1, self._stop)
        with closing(frames), closing(looked):
            for seen in looked:
                seconds = float((seen.frame.pts or 0) * self._time_base)
                found, cut = seen.found, cuts.cut(seen.thumb)
                yield seen.frame, Sighting(seconds, found or NO_DETECTIONS, cut, looked=found is not None)

    def _look(self, numbered: tuple[int, VideoFrame]) -> _Seen:
        number, frame = numbered
        tools = detector, viewer, thumbs = self._free.get()
        try:
            if number % self._stride:
                return _Seen(frame, None, _thumb(thumbs.rgb(frame)))
            rgb = viewer.rgb(frame)
            found = detector.detect(rgb, self._weakest)
        finally:
            self._free.put(tools)
        boxes = resized(found.boxes, (rgb.shape[1], rgb.shape[0]), self._size)
        return _Seen(frame, Detections(boxes, found.scores), _thumb(rgb))


def _thumb(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(rgb, _THUMB_WH, interpolation=cv2.INTER_AREA), np.uint8)
