"""Videos: frames are read, detected, tracked, hidden and encoded at the same time, by a chain of generators.

Only the result itself is on disk. Memory holds the frames of the tracking window, however long the video is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Event

from av import VideoFrame

from blurguard.anonymize.frame_detection import FrameDetector
from blurguard.anonymize.media import WINDOW_BYTES, FaceLog, MediaInfo, MediaJob
from blurguard.anonymize.streaming import prefetch
from blurguard.anonymize.surfaces import is_supported, surfaces_of
from blurguard.anonymize.tracked import redact_tracks
from blurguard.errors import InputError
from blurguard.settings import Audio, Mode
from blurguard.video.info import VideoInfo
from blurguard.video.reader import VideoReader, open_video
from blurguard.video.writer import VideoWriter

_READ_AHEAD = 2  # frames, between two stages
_MAX_RATE = 240  # frames per second of slow motion from cameras


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
    detected = FrameDetector(info, job, stop).detect_all(prefetch(video.frames(), _READ_AHEAD, stop))
    max_frames = _max_frames(info, job.settings.hold)
    surfaces = partial(surfaces_of, rotation=info.rotation, box_rgb=job.settings.box_rgb)
    redacted = redact_tracks(detected, surfaces, info.upright_size, job, max_frames, log)
    return prefetch(redacted, _READ_AHEAD, stop)


def _max_frames(video: VideoInfo, hold: float) -> int:
    """Return the largest window, frames: as many as its bytes allow, but never fewer than ``hold`` needs.

    The video's rate is only an average, and a face may appear in a slow-motion part. So it does not count.
    """
    return max(math.ceil(hold * _MAX_RATE) + 2, WINDOW_BYTES // max(1, video.frame_bytes))
