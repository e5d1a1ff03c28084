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

from blurguard.anonymize.streaming import parallel_map, prefetch
from blurguard.anonymize.surfaces import is_supported, planes_of
from blurguard.anonymize.tracked import WEAK_SCORE_RATIO, FaceLog, redact_tracks
from blurguard.boxes import NO_DETECTIONS, rescale_boxes
from blurguard.detection.detector import Detector
from blurguard.detection.multiscale import FAST_SIDE_PX
from blurguard.errors import InputError
from blurguard.redaction.mosaic import Plane
from blurguard.settings import Audio, Mode, Settings
from blurguard.tracking.lookahead import FrameDetections, TrackingConfig
from blurguard.tracking.scene_cuts import SceneCutDetector
from blurguard.types import Detections, Face
from blurguard.video.info import VideoInfo
from blurguard.video.reader import VideoReader, open_video
from blurguard.video.rgb import RgbConverter
from blurguard.video.writer import VideoWriter

if TYPE_CHECKING:
    from av import VideoFrame

FrameProgress = Callable[[int, int | None], None]

WINDOW_BYTES = 640 << 20  # of frames in the window in which faces are followed, unless `hold` needs more
_READ_AHEAD = 2
_FASTEST_RATE = 240  # frames per second of what cameras call slow motion
_THUMB_WH = (64, 36)  # enough to see that a scene ends


@dataclass(frozen=True, slots=True)
class VideoResult:
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
    damage: str = ""


@dataclass(frozen=True, slots=True)
class VideoJob:
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
    progress: FrameProgress
    detect_every: int = 1

    @property
    def threads(self) -> int:
        """As many as the detectors, for decoder and encoder too: at the end of it they wait for one another."""
        return len(self.detectors)


def hide_video(source: Path, target: Path, look: VideoJob) -> VideoResult:
    """Write a video to ``target`` with every face hidden, and everything else as it was.

    Raises:
        InputError: it cannot be read, or not to its end.
        OutputError: ``target`` cannot be written.
    """
    settings, roll = look.settings, FaceLog()
    with _opened(source, look) as video:
        if not is_supported(video.info.pixel_format):
            raise InputError(f"{source}: pixels of {video.info.pixel_format} are not supported; convert it to yuv420p")
        recorder = VideoWriter(video, target, keep_audio=settings.audio is Audio.KEEP, quick=settings.mode is Mode.FAST,
                            keep_metadata=settings.keep_metadata, threads=look.threads)  # fmt: skip
        with recorder, closing(_hidden(video, look, roll, paint=True)) as frames:
            count = 0
            for count, frame in enumerate(frames, start=1):
                recorder.write(frame)
                look.progress(count, video.info.frames_expected)
        return _result(video, count, roll, recorder.left_out)


def detect_video(source: Path, look: VideoJob, roll: FaceLog | None = None) -> VideoResult:
    """Find the faces in a video, and write them on the roll; writes nothing else.

    Raises:
        InputError: it cannot be read, or not to its end.
    """
    roll = FaceLog(with_paths=True) if roll is None else roll
    with _opened(source, look) as video:
        count = 0
        with closing(_hidden(video, look, roll, paint=False)) as frames:
            for count, _ in enumerate(frames, start=1):
                look.progress(count, video.info.frames_expected)
        return _result(video, count, roll)


def _opened(source: Path, look: VideoJob) -> VideoReader:
    settings = look.settings
    return open_video(source, max_pixels=settings.max_pixels, threads=look.threads, salvage=settings.salvage)


def _result(video: VideoReader, frames: int, roll: FaceLog, left_out: Sequence[str] = ()) -> VideoResult:
    width, height = video.info.upright_size
    damage = video.damage.summary()
    lost = [damage] if damage else []
    if left_out:
        lost.append(f"could not be copied: {', '.join(left_out)}")
    return VideoResult(video.info.kind, width, height, frames, roll.faces(), "; ".join(lost))


def _hidden(video: VideoReader, look: VideoJob, roll: FaceLog, paint: bool) -> Generator[VideoFrame, None, None]:
    """Yield the frames of a video with their faces hidden, while those to come are read and looked at."""
    rotation, box_rgb = video.info.rotation, look.settings.box_rgb

    def planes(frame: VideoFrame) -> list[Plane]:
        return planes_of(frame, rotation, box_rgb)

    stop = Event()
    frames = prefetch(video.frames(), _READ_AHEAD, stop)
    seen = FrameDetector(video.info, look, stop).detect_all(frames)
    rules = TrackingConfig(look.min_score, look.settings.hold, _max_frames(video.info, look.settings.hold))
    painter = planes if paint else None
    return prefetch(
        redact_tracks(seen, painter, video.info.upright_size, look.settings, rules, roll), _READ_AHEAD, stop
    )


def _max_frames(video: VideoInfo, hold: float) -> int:
    """Return how many frames the window may hold: what its bytes allow, but never less than ``hold`` needs.

    Not by the video's rate, which is an average: the part where a face appears may be a slow-motion burst.
    """
    return max(math.ceil(hold * _FASTEST_RATE) + 2, WINDOW_BYTES // max(1, video.frame_bytes))


@dataclass(frozen=True, slots=True, eq=False)
class _DetectedFrame:
    """A frame after it was looked at; ``detections`` is None when that was left out."""

    frame: VideoFrame
    found: Detections | None
    thumb: NDArray[np.uint8]


class FrameDetector:
    """Looks at frames in several threads, each with its own detector."""

    def __init__(self, video: VideoInfo, look: VideoJob, stop: Event) -> None:
        self._time_base = video.time_base
        self._size = video.upright_size
        self._weakest = look.min_score * WEAK_SCORE_RATIO
        self._stride = look.detect_every
        longest = FAST_SIDE_PX if look.settings.mode is Mode.FAST else None
        aspect = video.pixel_aspect or Fraction(1)
        self._free: SimpleQueue[tuple[Detector, RgbConverter, RgbConverter]] = SimpleQueue()
        for detector in look.detectors:
            thumbs = RgbConverter(video.rotation, aspect, max(_THUMB_WH))
            self._free.put((detector, RgbConverter(video.rotation, aspect, longest), thumbs))
        self._workers = len(look.detectors)
        self._stop = stop

    def detect_all(self, frames: Generator[VideoFrame, None, None]) -> Iterator[tuple[VideoFrame, FrameDetections]]:
        """Yield every frame with what was found in it."""
        cuts = SceneCutDetector()
        looked = parallel_map(self._detect, enumerate(frames), self._workers, self._workers + 1, self._stop)
        with closing(frames), closing(looked):
            for seen in looked:
                seconds = float((seen.frame.pts or 0) * self._time_base)
                found, cut = seen.found, cuts.is_cut(seen.thumb)
                yield seen.frame, FrameDetections(seconds, found or NO_DETECTIONS, cut, was_detected=found is not None)

    def _detect(self, numbered: tuple[int, VideoFrame]) -> _DetectedFrame:
        number, frame = numbered
        tools = detector, viewer, thumbs = self._free.get()
        try:
            if number % self._stride:
                return _DetectedFrame(frame, None, _thumb(thumbs.convert(frame)))
            rgb = viewer.convert(frame)
            found = detector.detect(rgb, self._weakest)
        finally:
            self._free.put(tools)
        boxes = rescale_boxes(found.boxes, (rgb.shape[1], rgb.shape[0]), self._size)
        return _DetectedFrame(frame, Detections(boxes, found.scores), _thumb(rgb))


def _thumb(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(rgb, _THUMB_WH, interpolation=cv2.INTER_AREA), np.uint8)
