"""Hides tracked faces frame by frame, in videos and animations. The mosaic is computed once per track."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import TypeVar

import numpy as np

from blurguard.anonymize.media import FaceLog, MediaJob
from blurguard.redaction.mosaic import Mosaic, Surface, draw_outline, redact_region
from blurguard.redaction.regions import paired_regions
from blurguard.settings import Settings
from blurguard.tracking.lookahead import Detected, TrackedBox, TrackingConfig, track_faces
from blurguard.types import Detections, Region

T = TypeVar("T")
Frames = Generator[Detected[T], None, None]  # each with its detections
Surfaces = Callable[[T], list[Surface]]
_Hidden = tuple[TrackedBox, Region]
_MOSAIC_TTL_FRAMES = 250  # for a face that leaves the image and comes back


class TrackRedactor:
    """Hides faces in the frames of one video or animation, in their order."""

    def __init__(self, settings: Settings) -> None:
        """Take style, shape and drawn boxes from the settings."""
        self._settings, self._calls = settings, 0
        self._mosaics: dict[int, tuple[int, list[Mosaic]]] = {}  # by track: the last call with it, one per surface

    def redact(self, surfaces: Sequence[Surface], hidden: Sequence[tuple[int, Region]]) -> None:
        """Hide regions in the next frame.

        Args:
            surfaces: all planes of the frame, changed in place.
            hidden: track and region of each face, px of the upright frame.
        """
        self._calls += 1
        oldest = self._calls - _MOSAIC_TTL_FRAMES
        self._mosaics = {track: entry for track, entry in self._mosaics.items() if entry[0] >= oldest}
        for track, region in hidden:
            _, mosaics = self._mosaics.get(track) or (0, [Mosaic() for _ in surfaces])
            self._mosaics[track] = self._calls, mosaics
            for mosaic, surface in zip(mosaics, surfaces, strict=True):
                redact_region(surface, region, mosaic, self._settings.style, self._settings.shape)
        if self._settings.boxes:
            for _, region in hidden:
                for surface in surfaces:
                    draw_outline(surface, region)


def redact_tracks(
    frames: Frames[T], surfaces: Surfaces[T], size_wh: tuple[int, int], job: MediaJob, max_frames: int, log: FaceLog
) -> Generator[T, None, None]:
    """Yield every frame with its faces tracked, and hidden if the job says so.

    Args:
        frames: with their detections, closed at the end.
        surfaces: returns the surfaces of a frame.
        size_wh: of the upright frames, px.
        job: how faces are tracked and hidden.
        max_frames: in the tracking window.
        log: gets all faces.
    """
    redactor = TrackRedactor(job.settings)
    config = TrackingConfig(job.min_score, job.settings.hold, max_frames)
    with closing(frames), closing(track_faces(map(log.add_defect, frames), config)) as tracked_frames:
        for number, (frame, boxes) in enumerate(tracked_frames):
            hidden = _with_regions(boxes, job.settings.margin, size_wh)
            for tracked, region in hidden:
                log.add(number, tracked, region)
            if hidden and job.hide:
                redactor.redact(surfaces(frame), [(tracked.track_id, region) for tracked, region in hidden])
            yield frame


def _with_regions(boxes: Sequence[TrackedBox], margin: float, size_wh: tuple[int, int]) -> list[_Hidden]:
    """Return the tracked boxes that reach into the image, each with its region."""
    corners, scores = [tracked.box for tracked in boxes], [tracked.score for tracked in boxes]
    regions = paired_regions(Detections(np.array(corners), np.array(scores)), margin, *size_wh)
    return [(tracked, region) for tracked, region in zip(boxes, regions, strict=True) if region is not None]
