"""Detects the faces in the frames of a video: several frames at a time, and thoroughly only where it serves.

With a detector of two speeds, the quick one sees every frame. The thorough one sees those that
`tracking.schedule` chooses. Its faces are carried to the frames between, in both directions of time.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from queue import SimpleQueue
from threading import Event
from typing import NamedTuple

import cv2
import numpy as np
from av import VideoFrame
from numpy.typing import NDArray

from blurguard.anonymize.media import WINDOW_BYTES, MediaJob
from blurguard.anonymize.streaming import parallel_map
from blurguard.anonymize.tracked import Frames
from blurguard.boxes import NO_DETECTIONS, rescale_boxes, weighted_nms
from blurguard.detection.detector import Detector, TwoSpeedDetector
from blurguard.detection.multiscale import SAME_IOU, SAME_OVERLAP
from blurguard.detection.scales import fast
from blurguard.settings import Mode
from blurguard.tracking.carrying import Carried, Gray, carry, doubtful_frame, nothing_carried
from blurguard.tracking.lookahead import FrameDetections
from blurguard.tracking.scene_cuts import SceneCutDetector
from blurguard.tracking.schedule import Planned, plan_frames, split_frames
from blurguard.types import Detections
from blurguard.video.info import VideoInfo
from blurguard.video.rgb import RgbConverter

# Frames in detection at a time, so that other threads do not wait for a thorough one. It takes as long as ten others.
_READ_AHEAD = 16
# From one part of a video with an additional thorough frame to the next one. In crowds some face always appears or
# ends. There every part with one would cost 60 % more, and hide no more of the composed clips.
DOUBT_SECONDS = 1.0
_THUMBNAIL_WH = (64, 36)  # px, enough to find scene cuts
Rgb = NDArray[np.uint8]


class _Tools(NamedTuple):
    """Used by one thread at a time: the detectors, and a converter for each size of frames."""

    thorough: Detector
    quick: Detector
    full: RgbConverter
    small: RgbConverter
    thumbnails: RgbConverter


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """A frame with its own detections, px of the upright frame, and a small copy of it."""

    planned: Planned[VideoFrame]
    found: Detections
    gray: Gray


class FrameDetector:
    """Detects faces in several frames at a time: one thread per detector."""

    def __init__(self, video: VideoInfo, job: MediaJob, stop: Event) -> None:
        """Take the facts about the video, and the event that stops all stages."""
        self._video, self._job, self._stop = video, job, stop
        is_fast = job.settings.mode is Mode.FAST
        quick = [each.quick if isinstance(each, TwoSpeedDetector) else None for each in job.detectors]
        self._by_time = all(quick) and job.thorough_seconds > 0 and job.detect_every == 1 and not is_fast
        self._doubt_from = -math.inf  # s: parts from this time on may have one more thorough frame
        self._free: SimpleQueue[_Tools] = SimpleQueue()
        small = self._quick_side()
        sides = (small if is_fast else None, small, max(_THUMBNAIL_WH))
        for detector, quick_one in zip(job.detectors, quick, strict=True):
            self._free.put(_Tools(detector, quick_one or detector, *map(self._converter, sides)))

    def _quick_side(self) -> int:
        """Return the longer side of the frames that the fast mode needs, px."""
        width, height = self._video.upright_size
        longer = max(width, height)
        return math.ceil(min(1.0, fast(width, height)[0]) * longer)

    def detect_all(self, frames: Generator[VideoFrame, None, None]) -> Frames[VideoFrame]:
        """Yield every frame with its detections, px of the upright frame. Closes ``frames`` at the end."""
        with closing(frames):
            yield from self._detect_by_time(frames) if self._by_time else self._detect_each(frames)

    @contextmanager
    def _tools(self) -> Iterator[_Tools]:
        tools = self._free.get()
        try:
            yield tools
        finally:
            self._free.put(tools)

    def _converter(self, longest_px: int | None) -> RgbConverter:
        return RgbConverter(self._video.rotation, self._video.pixel_aspect or Fraction(1), longest_px)

    def _seconds(self, frame: VideoFrame) -> float:
        return float((frame.pts or 0) * self._video.time_base)

    def _run(self, detector: Detector, rgb: Rgb) -> Detections:
        found = detector.detect(rgb, self._job.weak_score)
        boxes = rescale_boxes(found.boxes, (rgb.shape[1], rgb.shape[0]), self._video.upright_size)
        return Detections(boxes, found.scores, found.flaw)

    # ---- one detector for every frame ---------------------------------------------------------------------------

    def _detect_each(self, frames: Iterator[VideoFrame]) -> Frames[VideoFrame]:
        cuts, workers = SceneCutDetector(), self._job.threads
        detected = parallel_map(self._detect, enumerate(frames), workers, workers + 1, self._stop)
        with closing(detected):
            for frame, found, thumbnail in detected:
                yield frame, replace(found, is_cut=cuts.is_cut(thumbnail))

    def _detect(self, numbered: tuple[int, VideoFrame]) -> tuple[VideoFrame, FrameDetections, Rgb]:
        """Return a frame, its detections before the search for cuts, and its RGB thumbnail (36, 64, 3)."""
        number, frame = numbered
        seconds = self._seconds(frame)
        with self._tools() as tools:
            if number % self._job.detect_every:
                skipped = FrameDetections(seconds, NO_DETECTIONS, was_detected=False)
                return frame, skipped, _thumbnail(tools.thumbnails.convert(frame))
            rgb = tools.full.convert(frame)
            return frame, FrameDetections(seconds, self._run(tools.thorough, rgb)), _thumbnail(rgb)

    # ---- two detectors, by time ---------------------------------------------------------------------------------

    def _detect_by_time(self, frames: Iterator[VideoFrame]) -> Frames[VideoFrame]:
        workers, frame_bytes = self._job.threads, max(1, self._video.frame_bytes)
        ahead = max(workers + 1, min(_READ_AHEAD, WINDOW_BYTES // 8 // frame_bytes))
        longest = max(2, WINDOW_BYTES // 4 // frame_bytes)
        planned = plan_frames(self._with_cuts(frames), self._job.thorough_seconds, longest)
        seen = parallel_map(self._see, planned, workers, ahead, self._stop)
        filled = parallel_map(self._fill, split_frames(seen, lambda frame: frame.planned), 1, 2, self._stop)
        with closing(seen), closing(filled):
            for part in filled:
                yield from part

    def _with_cuts(self, frames: Iterator[VideoFrame]) -> Iterator[tuple[VideoFrame, float, bool]]:
        """Yield each frame, its time, and whether a scene starts with it."""
        cuts, thumbnails = SceneCutDetector(), self._converter(max(_THUMBNAIL_WH))
        for frame in frames:
            yield frame, self._seconds(frame), cuts.is_cut(_thumbnail(thumbnails.convert(frame)))

    def _see(self, planned: Planned[VideoFrame]) -> _Seen:
        """Return a frame with the faces of the quick detector, and of the thorough one if that is planned."""
        with self._tools() as tools:
            small = tools.small.convert(planned.item)
            seen = _Seen(planned, self._run(tools.quick, small), np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)))
        return self._see_thoroughly(seen) if planned.is_thorough else seen

    def _see_thoroughly(self, seen: _Seen) -> _Seen:
        """Return a frame with the faces of the thorough detector too.

        Both detectors see the same pixels, with one network in common. So their probabilities do not add up: the
        higher one counts.
        """
        with self._tools() as tools:
            found = self._run(tools.thorough, tools.full.convert(seen.planned.item))
        faces = weighted_nms([found, seen.found], SAME_IOU, SAME_OVERLAP)
        return replace(seen, found=Detections(faces.boxes, faces.scores, found.flaw or seen.found.flaw))

    def _fill(self, part: tuple[list[_Seen], bool]) -> list[tuple[VideoFrame, FrameDetections]]:
        """Return the frames of one part with their faces, but not the last one if it is the next part's first."""
        frames, goes_on = part
        start = frames[0].planned.seconds
        found = self._carry(frames, may_doubt=start >= self._doubt_from) if goes_on else [seen.found for seen in frames]
        if not goes_on:  # the next scene may have any time
            self._doubt_from = -math.inf
        plans = [seen.planned for seen in frames[: -1 if goes_on else None]]
        return [
            (plan.item, FrameDetections(plan.seconds, own, is_cut=plan.is_cut))
            for plan, own in zip(plans, found, strict=False)
        ]

    def _carry(self, frames: Sequence[_Seen], may_doubt: bool) -> list[Detections]:
        """Return the faces of all frames after those of the first and the last one were carried through them.

        If faces appear or end between, the thorough detector sees one more frame, the most doubtful one.
        """
        grays, size = [seen.gray for seen in frames], self._video.upright_size
        found, nothing = [seen.found for seen in frames], nothing_carried()
        forwards = [nothing, *carry(found[0], grays, size)]
        backwards = [*carry(found[-1], grays[::-1], size)[::-1], nothing]
        doubtful = doubtful_frame(found, forwards, backwards, self._job.min_score) if may_doubt else None
        if doubtful is not None:
            self._doubt_from = frames[0].planned.seconds + DOUBT_SECONDS
            middle = self._see_thoroughly(frames[doubtful])
            before = self._carry([*frames[:doubtful], middle], may_doubt=False)
            return before[:-1] + self._carry([middle, *frames[doubtful + 1 :]], may_doubt=False)
        carried = zip(found, forwards, backwards, strict=True)
        between = [_fused(own, forward, backward) for own, forward, backward in carried][1:-1]
        return [found[0], *between, found[-1]]


def _fused(own: Detections, forward: Carried, backward: Carried) -> Detections:
    """Return the faces of a frame between thorough ones.

    A detector that errs in one frame errs in the next one too. So probabilities do not add up: the highest one counts.
    """
    faces = weighted_nms([own, forward.faces, backward.faces], SAME_IOU, SAME_OVERLAP)
    return Detections(faces.boxes, faces.scores, own.flaw)


def _thumbnail(rgb: Rgb) -> Rgb:
    return np.asarray(cv2.resize(rgb, _THUMBNAIL_WH, interpolation=cv2.INTER_AREA), np.uint8)
