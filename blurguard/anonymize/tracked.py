"""Hides followed faces frame by frame, in videos and animations, and keeps the roll of who was hidden.

What covers a face is the same from its first frame to its last.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from blurguard.redaction.mosaic import Mosaic, Plane, draw_outline, redact_region
from blurguard.redaction.regions import paired_regions, scale_to_plane
from blurguard.settings import Settings
from blurguard.tracking.lookahead import FrameDetections, TrackedBox, TrackingConfig, track_faces
from blurguard.types import Detections, Face, Region

T = TypeVar("T")
# A detection that scores this share of the threshold counts where a face was seen before or is seen later.
WEAK_SCORE_RATIO = 0.5
_MOSAIC_TTL_FRAMES = 250  # frames, for a face that leaves the picture and comes back


class TrackRedactor:
    """Hides faces in the frames of one film, in their order."""

    def __init__(self, settings: Settings) -> None:
        """Take how faces are hidden."""
        self._settings = settings
        self._veils: dict[int, tuple[int, list[Mosaic]]] = {}  # by track, with the call that used them last
        self._calls = 0

    def redact(self, planes: Sequence[Plane], hidden: Sequence[tuple[int, Region]]) -> None:
        """Hide the regions, each with the track that it belongs to, in the planes themselves."""
        self._calls += 1
        self._veils = {
            track: kept for track, kept in self._veils.items() if self._calls - kept[0] <= _MOSAIC_TTL_FRAMES
        }
        for track, region in hidden:
            _, veils = self._veils.get(track) or (0, [Mosaic() for _ in planes])
            self._veils[track] = self._calls, veils
            for veil, plane in zip(veils, planes, strict=True):
                inside = scale_to_plane(region, (plane.step_x, plane.step_y))
                redact_region(plane.canvas, inside, veil, self._settings.style, self._settings.shape)
        for _, region in hidden if self._settings.boxes else ():
            for plane in planes:
                border = scale_to_plane(region, (plane.step_x, plane.step_y), beyond=0)
                draw_outline(plane.canvas, border, plane.box_color)


@dataclass(slots=True)
class _LoggedFace:
    """One face on the roll: where it was seen best, and where it was all the time if that is wanted."""

    first: int
    last: int
    best: Face
    path: array[float] = field(default_factory=lambda: array("f"))


class FaceLog:
    """Who was hidden, when and where; grows with the faces of a film and not with its length."""

    def __init__(self, with_paths: bool = False) -> None:
        """Say whether the place in every frame is wanted: 16 bytes for each face in each frame."""
        self._entries: dict[int, _LoggedFace] = {}
        self._with_paths = with_paths

    def add(self, frame: int, cover: TrackedBox, region: Region) -> None:
        """Write down that a face is hidden in a frame."""
        entry = self._entries.get(cover.track_id)
        if entry is None or (cover.is_detected and cover.score > entry.best.score):
            x0, y0, x1, y1 = cover.box.tolist()
            face = Face((x0, y0, x1, y1), cover.score if cover.is_detected else 0.0, region.box, frame)
            if entry is None:
                entry = self._entries[cover.track_id] = _LoggedFace(frame, frame - 1, face)
            entry.best = face
        if self._with_paths:  # where it was outside the picture for a while, it is as good a guess as any
            entry.path.extend(cover.box.tolist() * (frame - entry.last))
        entry.last = frame

    def faces(self) -> tuple[Face, ...]:
        """Return the faces in the order of their first frames."""
        return tuple(map(self._face, self._entries.values()))

    def _face(self, entry: _LoggedFace) -> Face:
        path = np.array(entry.path, np.float32).reshape(-1, 4) if self._with_paths else None
        best, span = entry.best, (entry.first, entry.last)
        return Face(best.box, best.score, best.region, best.frame, span, path)


def redact_tracks(
    frames: Iterable[tuple[T, FrameDetections]],
    planes: Callable[[T], list[Plane]] | None,
    size_wh: tuple[int, int],
    settings: Settings,
    rules: TrackingConfig,
    roll: FaceLog,
) -> Generator[T, None, None]:
    """Yield every frame with its faces hidden; they are written on the roll.

    Args:
        frames: with what was found in each.
        planes: gives what is painted on; None only looks.
        size_wh: of the frames, upright, px.
        settings: how faces are hidden.
        rules: how they are followed.
        roll: gets them all.
    """
    cloak = TrackRedactor(settings)
    with closing(track_faces(frames, rules)) as followed:
        for number, (frame, covers) in enumerate(followed):
            hidden = _regions(covers, settings.margin, size_wh)
            for cover, region in hidden:
                roll.add(number, cover, region)
            if hidden and planes is not None:
                cloak.redact(planes(frame), [(cover.track_id, region) for cover, region in hidden])
            yield frame


def _regions(covers: Sequence[TrackedBox], margin: float, size_wh: tuple[int, int]) -> list[tuple[TrackedBox, Region]]:
    if not covers:
        return []
    boxes, scores = np.array([cover.box for cover in covers]), np.array([cover.score for cover in covers])
    paired = zip(covers, paired_regions(Detections(boxes, scores), margin, *size_wh), strict=True)
    return [(cover, region) for cover, region in paired if region is not None]
