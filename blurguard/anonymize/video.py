"""Videos: frames are read, detected, tracked, hidden and encoded at the same time, by a chain of generators.

Only the result itself is on disk. Memory holds the frames of the tracking window, however long the video is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from blurguard.anonymize.media import WINDOW_BYTES, FaceLog, MediaInfo, MediaJob
from blurguard.anonymize.streaming import parallel_map, prefetch
from blurguard.anonymize.surfaces import is_supported, surfaces_of
from blurguard.anonymize.tracked import redact_tracks
from blurguard.boxes import NO_DETECTIONS, rescale_boxes
from blurguard.detection.detector import Detector
from blurguard.detection.multiscale import FAST_SIDE_PX
from blurguard.errors import InputError
from blurguard.redaction.mosaic import Surface
from blurguard.settings import Audio, Mode
from blurguard.tracking.lookahead import FrameDetections
from blurguard.tracking.scene_cuts import SceneCutDetector
from blurguard.types import Detections
from blurguard.video.reader import VideoReader, open_video
from blurguard.video.rgb import RgbConverter
from blurguard.video.writer import VideoWriter

if TYPE_CHECKING:
    from av import VideoFrame

_READ_AHEAD = 2  # frames, between two stages
_MAX_RATE = 240  # frames per second of slow motion from cameras
_THUMBNAIL_WH = (64, 36)  # px, enough to find scene cuts


def detect_video(source: Path, job: MediaJob, log: FaceLog) -> None:
    """Detect and track the faces of a video. Writes nothing.

    Raises:
        InputError: it cannot be read to its end.
    """
    with _open(source, job) as video:
        log.info = _info_of(video, _process(video, job, log, lambda _: None))


def hide_video(source: Path, target: Path, job: MediaJob, log: FaceLog) -> None:
    """Write a video with every face hidden and all else unchanged to ``target``.

    Raises:
        InputError: it cannot be read to its end.
        OutputError: ``target`` cannot be written.
    """
    settings = job.settings
    with _open(source, job) as video:
        if not is_supported(video.info.pixel_format):
            raise InputError(f"{source}: pixels of {video.info.pixel_format} are not supported; convert it to yuv420p")
        writer = VideoWriter(video, target, keep_audio=settings.audio is Audio.KEEP, quick=settings.mode is Mode.FAST,
                             keep_metadata=settings.keep_metadata, threads=job.threads)  # fmt: skip
        with writer:
            count = _process(video, job, log, writer.write)
        log.info = _info_of(video, count, writer.left_out)


def _open(source: Path, job: MediaJob) -> VideoReader:
    settings = job.settings
    return open_video(source, max_pixels=settings.max_pixels, threads=job.threads, salvage=settings.salvage)


def _info_of(video: VideoReader, frames: int, left_out: Sequence[str] = ()) -> MediaInfo:
    losses = [damage] if (damage := video.damage.summary()) else []
    if left_out:
        losses.append(f"could not be copied: {', '.join(left_out)}")
    return MediaInfo(video.info.kind, *video.info.upright_size, frames, "; ".join(losses))


def _process(video: VideoReader, job: MediaJob, log: FaceLog, write: Callable[[VideoFrame], None]) -> int:
    """Pass every processed frame to ``write``, and return their number."""
    count = 0
    with closing(_process_frames(video, job, log)) as frames:
        for count, frame in enumerate(frames, start=1):
            write(frame)
            job.progress(count, video.info.frames_expected)
    return count


def _process_frames(video: VideoReader, job: MediaJob, log: FaceLog) -> Generator[VideoFrame, None, None]:
    """Yield every frame, with its faces hidden if the job says so. Other threads are ahead with the next frames."""
    rotation, box_rgb = video.info.rotation, job.settings.box_rgb

    def surfaces(frame: VideoFrame) -> list[Surface]:
        return surfaces_of(frame, rotation, box_rgb)

    stop = Event()
    detected = _FrameDetector(video, job, stop).detect_all(prefetch(video.frames(), _READ_AHEAD, stop))
    max_frames = _max_frames(video, job.settings.hold)
    return prefetch(redact_tracks(detected, surfaces, video.info.upright_size, job, max_frames, log), _READ_AHEAD, stop)


def _max_frames(video: VideoReader, hold: float) -> int:
    """Return the largest window, frames: as many as its bytes allow, but never fewer than ``hold`` needs.

    The video's rate is only an average, and a face may appear in a slow-motion part. So it does not count.
    """
    return max(math.ceil(hold * _MAX_RATE) + 2, WINDOW_BYTES // max(1, video.info.frame_bytes))


class _DetectedFrame(NamedTuple):
    """A frame with its detections, None if detection skipped it, and its RGB thumbnail (36, 64, 3)."""

    frame: VideoFrame
    detections: Detections | None
    thumbnail: NDArray[np.uint8]


class _FrameDetector:
    """Detects faces in several frames at a time: one thread per detector."""

    def __init__(self, video: VideoReader, job: MediaJob, stop: Event) -> None:
        self._time_base = video.info.time_base
        self._size_wh = video.info.upright_size
        self._job = job
        self._stop = stop
        longest = FAST_SIDE_PX if job.settings.mode is Mode.FAST else None
        aspect = video.info.pixel_aspect or Fraction(1)
        self._free: SimpleQueue[tuple[Detector, RgbConverter, RgbConverter]] = SimpleQueue()
        for detector in job.detectors:
            thumbnails = RgbConverter(video.info.rotation, aspect, max(_THUMBNAIL_WH))
            self._free.put((detector, RgbConverter(video.info.rotation, aspect, longest), thumbnails))

    def detect_all(
        self, frames: Generator[VideoFrame, None, None]
    ) -> Generator[tuple[VideoFrame, FrameDetections], None, None]:
        """Yield every frame with its detections, px of the upright frame. Closes ``frames`` at the end."""
        cuts, workers = SceneCutDetector(), self._job.threads
        detected = parallel_map(self._detect, enumerate(frames), workers, workers + 1, self._stop)
        with closing(frames), closing(detected):
            for frame, detections, thumbnail in detected:
                seconds, is_cut = float((frame.pts or 0) * self._time_base), cuts.is_cut(thumbnail)
                if detections is None:
                    yield frame, FrameDetections(seconds, NO_DETECTIONS, is_cut, was_detected=False)
                else:
                    yield frame, FrameDetections(seconds, detections, is_cut)

    def _detect(self, numbered: tuple[int, VideoFrame]) -> _DetectedFrame:
        number, frame = numbered
        tools = detector, converter, thumbnails = self._free.get()
        try:
            if number % self._job.detect_every:
                return _DetectedFrame(frame, None, _thumbnail(thumbnails.convert(frame)))
            rgb = converter.convert(frame)
            found = detector.detect(rgb, self._job.weak_score)
        finally:
            self._free.put(tools)
        boxes = rescale_boxes(found.boxes, (rgb.shape[1], rgb.shape[0]), self._size_wh)
        return _DetectedFrame(frame, Detections(boxes, found.scores, found.flaw), _thumbnail(rgb))


def _thumbnail(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(rgb, _THUMBNAIL_WH, interpolation=cv2.INTER_AREA), np.uint8)
