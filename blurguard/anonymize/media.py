"""Shared by photos, animations and videos: the job, the facts about a file, and the log of its faces."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from blurguard.detection.detector import Detector
from blurguard.settings import Settings
from blurguard.tracking.lookahead import Detected, TrackedBox
from blurguard.tracking.schedule import THOROUGH_SECONDS
from blurguard.types import Face, Region

T = TypeVar("T")

# Below the threshold, a detection from this share of it on counts if earlier or later ones form a track with it.
WEAK_SCORE_RATIO = 0.2
WINDOW_BYTES = 640 << 20  # of the frames that wait until the tracks through them are known


@dataclass(frozen=True, slots=True)
class MediaJob:
    """How the faces of one file are detected, and whether they are hidden.

    Attributes:
        detectors: one per thread. Only the first works on image files.
        min_score: score from which a face is hidden.
        settings: all other choices of the user.
        hide: whether faces are hidden. Without it they are only detected, and no pixel changes.
        progress: called after each frame of a video, with the frames done and the number of all if known.
        detect_every: n limits detection to every n-th frame of a video. The program uses 1: with 2, fast mode
            takes a quarter less time, but leaves more small faces bare (docs/accuracy.md).
        thorough_seconds: between two frames of a video that a detector with a quick form sees itself, at most. With 0
            it sees every frame.
    """

    detectors: Sequence[Detector]
    min_score: float
    settings: Settings
    hide: bool
    progress: Callable[[int, int | None], None] = lambda *_: None
    detect_every: int = 1
    thorough_seconds: float = THOROUGH_SECONDS

    @property
    def threads(self) -> int:
        """Number of threads, for decoder and encoder as well: in the end all of them wait for one another."""
        return len(self.detectors)

    @property
    def weak_score(self) -> float:
        """Lowest score of a detection that can count in a track."""
        return self.min_score * WEAK_SCORE_RATIO


class MediaInfo(NamedTuple):
    """Facts about a file, named as in its ``Outcome``.

    Attributes:
        kind: format, for a video container and codec.
        width: upright, px.
        height: upright, px.
        frames: pages or frames.
        reason: lost parts of a damaged video, and tracks that could not be copied, or ``""``.
    """

    kind: str = ""
    width: int = 0
    height: int = 0
    frames: int = 0
    reason: str = ""


@dataclass(slots=True)
class _Track:
    """One face of a video or animation: its best detection, and its box in every frame if paths are logged."""

    first: int
    last: int
    best: Face
    path: array[float] = field(default_factory=lambda: array("f"))


class FaceLog:
    """Hidden faces of one file, collected while it is processed. Without paths its size depends on them alone.

    Attributes:
        info: facts about the file.
        defects: exposure defects for which frames had a second pass.
    """

    def __init__(self, with_paths: bool = False) -> None:
        """Start an empty log.

        Args:
            with_paths: log the box of a tracked face in every frame, 16 bytes each.
        """
        self.info, self.defects, self._with_paths = MediaInfo(), set[str](), with_paths
        self._faces, self._tracks = list[Face](), dict[int, _Track]()

    def add_defect(self, frame: Detected[T]) -> Detected[T]:
        """Log the exposure defect of a frame with its detections, if any, and return this pair."""
        if defect := frame[1].detections.flaw:
            self.defects.add(defect)
        return frame

    def add_faces(self, faces: Iterable[Face]) -> None:
        """Log the hidden faces of a page that stands alone."""
        self._faces.extend(faces)

    def add(self, frame: int, tracked: TrackedBox, region: Region) -> None:
        """Log that a tracked face is hidden in a frame."""
        track = self._tracks.get(tracked.track_id)
        if track is None or (tracked.is_detected and tracked.score > track.best.score):
            face = make_face(tracked.box, tracked.score if tracked.is_detected else 0.0, region, frame)
            if track is None:
                track = self._tracks[tracked.track_id] = _Track(frame, frame - 1, face)
            track.best = face
        if self._with_paths:  # frames in which the face was outside the image get this box too
            track.path.extend(tracked.box.tolist() * (frame - track.last))
        track.last = frame

    def faces(self) -> tuple[Face, ...]:
        """Return all faces, those of tracks in the order of their first frames."""
        faces = [*self._faces]
        for track in self._tracks.values():
            path = np.array(track.path, np.float32).reshape(-1, 4) if self._with_paths else None
            faces.append(replace(track.best, span=(track.first, track.last), path=path))
        return tuple(faces)


def make_face(box: NDArray[np.float32], score: float, region: Region, frame: int) -> Face:
    """Return a face for the report.

    Args:
        box: (4,) as detected, px of the upright image.
        score: 0 to 1.
        region: hidden for this face.
        frame: number of the page or frame.
    """
    x0, y0, x1, y1 = box.tolist()
    return Face((x0, y0, x1, y1), float(score), region.box, frame)
