"""Videos: frames are read, detected, tracked, hidden and encoded at the same time, by a chain of generators.

Only the result itself is on disk. Memory holds the frames of the tracking window, however long the video is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event

import cv2
import numpy as np
from av import VideoFrame
from numpy.typing import NDArray

from blurguard.anonymize.media import WINDOW_BYTES, FaceLog, MediaInfo, MediaJob
from blurguard.anonymize.streaming import parallel_map, prefetch
from blurguard.anonymize.surfaces import is_supported, surfaces_of
from blurguard.anonymize.tracked import Frames, redact_tracks
from blurguard.boxes import NO_DETECTIONS, rescale_boxes
from blurguard.detection.detector import Detector
from blurguard.detection.scales import FAST_SIDE_PX
from blurguard.errors import InputError
from blurguard.settings import Audio, Mode
from blurguard.tracking.lookahead import FrameDetections
from blurguard.tracking.scene_cuts import SceneCutDetector
from blurguard.types import Detections
from blurguard.video.info import VideoInfo
from blurguard.video.reader import VideoReader, open_video
from blurguard.video.rgb import RgbConverter
from blurguard.video.writer import VideoWriter

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
    return open_video(source, max_pixels=job.settings.max_pixels, threads=job.threads, salvage=job.settings.salvage)


def _info_of(video: VideoReader, frames: int, left_out: Sequence[str] = ()) -> MediaInfo:
    not_copied = f"could not be copied: {', '.join(left_out)}" if left_out else ""
    damage = "; ".join(filter(None, (video.damage.summary(), not_copied)))
    return MediaInfo(video.info.kind, *video.info.upright_size, frames, damage)


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
    info, stop = video.info, Event()
    detected = _FrameDetector(info, job, stop).detect_all(prefetch(video.frames(), _READ_AHEAD, stop))
    max_frames = _max_frames(info, job.settings.hold)
    surfaces = partial(surfaces_of, rotation=info.rotation, box_rgb=job.settings.box_rgb)
    redacted = redact_tracks(detected, surfaces, info.upright_size, job, max_frames, log)
    return prefetch(redacted, _READ_AHEAD, stop)


def _max_frames(video: VideoInfo, hold: float) -> int:
    """Return the largest window, frames: as many as its bytes allow, but never fewer than ``hold`` needs.

    The video's rate is only an average, and a face may appear in a slow-motion part. So it does not count.
    """
    return max(math.ceil(hold * _MAX_RATE) + 2, WINDOW_BYTES // max(1, video.frame_bytes))


class _FrameDetector:
    """Detects faces in several frames at a time: one thread per detector."""

    def __init__(self, video: VideoInfo, job: MediaJob, stop: Event) -> None:
        self._video, self._job, self._stop = video, job, stop
        longest = FAST_SIDE_PX if job.settings.mode is Mode.FAST else None
        aspect = video.pixel_aspect or Fraction(1)
        self._free: SimpleQueue[tuple[Detector, RgbConverter, RgbConverter]] = SimpleQueue()
        for detector in job.detectors:
            thumbnails = RgbConverter(video.rotation, aspect, max(_THUMBNAIL_WH))
            self._free.put((detector, RgbConverter(video.rotation, aspect, longest), thumbnails))

    def detect_all(self, frames: Generator[VideoFrame, None, None]) -> Frames[VideoFrame]:
        """Yield every frame with its detections, px of the upright frame. Closes ``frames`` at the end."""
        cuts, workers = SceneCutDetector(), self._job.threads
        detected = parallel_map(self._detect, enumerate(frames), workers, workers + 1, self._stop)
        with closing(frames), closing(detected):
            for frame, found, thumbnail in detected:
                yield frame, replace(found, is_cut=cuts.is_cut(thumbnail))

    def _detect(self, numbered: tuple[int, VideoFrame]) -> tuple[VideoFrame, FrameDetections, NDArray[np.uint8]]:
        """Return a frame, its detections before the search for cuts, and its RGB thumbnail (36, 64, 3)."""
        number, frame = numbered
        seconds = float((frame.pts or 0) * self._video.time_base)
        tools = detector, converter, thumbnails = self._free.get()
        try:
            if number % self._job.detect_every:
                skipped = FrameDetections(seconds, NO_DETECTIONS, was_detected=False)
                return frame, skipped, _thumbnail(thumbnails.convert(frame))
            rgb = converter.convert(frame)
            found = detector.detect(rgb, self._job.weak_score)
        finally:
            self._free.put(tools)
        boxes = rescale_boxes(found.boxes, (rgb.shape[1], rgb.shape[0]), self._video.upright_size)
        return frame, FrameDetections(seconds, Detections(boxes, found.scores, found.flaw)), _thumbnail(rgb)


def _thumbnail(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(rgb, _THUMBNAIL_WH, interpolation=cv2.INTER_AREA), np.uint8)
