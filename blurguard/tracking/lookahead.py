"""Tracks the faces of a video with look-ahead, and returns the boxes to hide in each frame.

A face must not be bare in a frame in which detection misses it. So a track fills its gaps and reaches beyond its ends.
Weak detections count if a track supports them. No detection waits for confirmation: each one from
``TrackingConfig.min_score`` on is hidden in its own frame, whatever the tracks do.
"""

import itertools
import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from blurguard.boxes import centers
from blurguard.tracking.tracker import UNASSIGNED, Floats, Frame, Indices, Tracker, sizes
from blurguard.types import Detections

T = TypeVar("T")

OUTWARDS = np.array([-1.0, -1.0, 1.0, 1.0])  # for each edge of a box

SMOOTHING_SECONDS = 0.2  # half the width of the window in which the boxes of a track are smoothed
SLOPE_RIDGE = 0.0004  # s^2, so that two detections 40 ms apart decide little over a velocity
MAX_SLACK = 0.3  # of the face size: limit of the outward move of an edge by smoothing
# Growth of a box away from detections, for each second: shares of the speed and of the face size. Its limit is a
# share of the face size.
GROWTH_OF_SPEED, GROWTH_OF_SIZE, MAX_GROWTH = 0.3, 0.4, 0.5
OVERSHOOT = 1.1  # factor on an extrapolated shift, since the velocity is a cautious one
MAX_SWEEP = 0.5  # in face sizes: from where the face may have stopped to where it may be now


@dataclass(frozen=True, slots=True)
class TrackingConfig:
    """Limits for hiding faces in a video."""

    min_score: float  # a detection from this score on is hidden by itself, and starts a track
    # How long a face stays hidden before its first and after its last detection. Adjacent frames are always in
    # reach, however long they are shown.
    hold_seconds: float = 0.4
    max_frames: int = 240  # held at a time. If 2 * hold_seconds contain more, protection suffers.


@dataclass(frozen=True, slots=True)
class FrameDetections:
    """The detections in one frame."""

    seconds: float  # presentation time, finite, in steps of any size. A step backwards starts a new scene.
    detections: Detections  # down to weak scores, below ``TrackingConfig.min_score``
    is_cut: bool = False  # a new scene starts with this frame, and no track crosses it
    was_detected: bool = True  # False without a detector run: then missing detections prove nothing


@dataclass(frozen=True, slots=True, eq=False)
class TrackedBox:
    """One hidden face in one frame."""

    track_id: int  # the same for one face through a scene, and not used again
    # (4,) px: holds the face as detected, or as it may have moved. May lie outside the image.
    box: NDArray[np.float32]
    score: float  # of the detection in this frame, or else the track's best nearby
    is_detected: bool  # whether the face was detected in this frame


Detected = tuple[T, FrameDetections]  # an item and the detections in it
Tracked = tuple[T, tuple[TrackedBox, ...]]  # an item and its hidden faces


def track_faces(frames: Iterable[Detected[T]], config: TrackingConfig) -> Generator[Tracked[T], None, None]:
    """Yield every frame once, in order, with its hidden faces.

    A frame comes as soon as a later one is shown ``2 * hold_seconds`` after it, the scene ends, or
    ``max_frames`` are held. Closing the iterator early closes ``frames``.
    """
    source, track_ids = iter(frames), itertools.count()
    window: _Window[T] = _Window(config, track_ids)
    try:
        for item, detected in source:
            if detected.is_cut or detected.seconds < window.newest:
                yield from window.drain()
                window = _Window(config, track_ids)
            window.add(item, detected)
            while window.is_full():
                yield window.pop()
        yield from window.drain()
    finally:
        if close := getattr(source, "close", None):
            close()


class _Window(Generic[T]):
    """The held frames of one scene, and the last ones before them, without their items.

    Attributes:
        newest: time of the last frame, s.
    """

    def __init__(self, config: TrackingConfig, track_ids: Iterator[int]) -> None:
        self._config = config
        self._tracker = Tracker(config.min_score, config.hold_seconds, track_ids)
        self._items: deque[T] = deque()
        self._held: deque[Frame] = deque()
        self._past: deque[Frame] = deque(maxlen=max(config.max_frames, 1))
        self._count, self.newest = 0, -math.inf

    def add(self, item: T, detected: FrameDetections) -> None:
        """Hold the next frame, and assign its detections to tracks."""
        boxes, scores = detected.detections.boxes.astype(float), detected.detections.scores
        track_ids, still = np.full(len(scores), UNASSIGNED, np.intp), np.zeros(4)
        frame = Frame(self._count, detected.seconds, detected.was_detected, boxes, scores, track_ids, still)
        self._held.append(frame)
        self._items.append(item)
        self._count, self.newest = self._count + 1, detected.seconds
        self._tracker.update(self._held)

    def is_full(self) -> bool:
        """Whether no later frame can change the oldest held one, or the maximum is reached."""
        count = len(self._held)
        final = count > 1 and self.newest - self._held[0].seconds >= 2 * self._config.hold_seconds
        return final or count >= max(self._config.max_frames, 1)

    def pop(self) -> Tracked[T]:
        """Return the oldest held frame and its hidden faces."""
        boxes = _boxes_at([*self._past, *self._held], len(self._past), self._config.hold_seconds)
        frame = self._held.popleft()
        self._past.append(frame)
        while frame.seconds - self._past[0].seconds > 2 * self._config.hold_seconds + SMOOTHING_SECONDS:
            self._past.popleft()
        return self._items.popleft(), boxes

    def drain(self) -> Iterator[Tracked[T]]:
        """Yield all held frames."""
        while self._held:
            yield self.pop()


class _History:
    """The detections of F frames by K tracks.

    Attributes:
        track_ids: (K,) in rising order.
        seconds: (F,) of the frames.
        detected: (F, K) whether the track has a detection.
        boxes: (F, K, 4) of the detections, stabilized.
        scores: (F, K) of the detections.
    """

    def __init__(self, frames: Sequence[Frame]) -> None:
        owners = np.concatenate([frame.track_ids for frame in frames])
        owned = owners != UNASSIGNED
        rows = np.repeat(np.arange(len(frames)), [len(frame.track_ids) for frame in frames])[owned]
        self.track_ids, columns = np.unique(owners[owned], return_inverse=True)
        self.seconds = np.array([frame.seconds for frame in frames])
        shape = len(frames), len(self.track_ids)
        self.boxes, self.scores, self.detected = np.zeros((*shape, 4)), np.zeros(shape), np.zeros(shape, np.bool_)
        self.boxes[rows, columns] = np.concatenate([frame.stabilized for frame in frames])[owned]
        self.scores[rows, columns] = np.concatenate([frame.scores for frame in frames])[owned]
        self.detected[rows, columns] = True

    def smooth(self, columns: Indices, at: Indices) -> tuple[Floats, Floats]:
        """Return the boxes (M, 4) of tracks in frames ``at`` (M,), and the velocities of their edges, px a second.

        A line is fitted to each edge over time. It is then moved outwards until it holds the detections near
        ``at``, less so for distant ones. Edges do not follow the jitter, but no detection is cut.
        """
        dt = self.seconds[:, None] - self.seconds[at][None]  # (F, M)
        near = np.clip(1 - (dt / SMOOTHING_SECONDS) ** 2, 0, None) ** 2 * self.detected[:, columns]
        used = near.any(axis=1)
        near, dt, boxes = near[used, :, None], dt[used, :, None], self.boxes[used][:, columns]  # (F, M, 1), (F, M, 4)
        weight = near.sum(axis=0)
        middle, box = (near * dt).sum(axis=0) / weight, (near * boxes).sum(axis=0) / weight
        lever = near * (dt - middle)
        slope = (lever * boxes).sum(axis=0) / ((lever * (dt - middle)).sum(axis=0) + weight * SLOPE_RIDGE)
        line = box - slope * middle
        outside = np.clip((boxes - line - slope * dt) * OUTWARDS, 0, None)
        own, slack = self.boxes[at, columns], MAX_SLACK * np.tile(sizes(line), 2)
        line += OUTWARDS * np.minimum((near * outside).max(axis=0, initial=0), slack)
        return own + OUTWARDS * np.clip((line - own) * OUTWARDS, 0, slack), slope


def _boxes_at(frames: Sequence[Frame], now: int, hold_seconds: float) -> tuple[TrackedBox, ...]:
    """Return the hidden faces in frame ``now`` of these, in the order of their tracks."""
    frame, history = frames[now], _History(frames)
    if not len(history.track_ids):
        return ()
    past, future, detected = history.detected[now::-1], history.detected[now:], history.detected[now]
    # The nearest detections of each track on either side, or frame ``now`` itself without one.
    before, after = now - np.argmax(past, axis=0), now + np.argmax(future, axis=0)
    has_past, has_future = past.any(axis=0), future.any(axis=0)
    nearest = np.where(has_past, before, after)
    away = frame.seconds - history.seconds[nearest]
    in_reach = (np.abs(away) <= hold_seconds) | (np.abs(nearest - now) == 1)
    inner, outer = np.flatnonzero(has_past & has_future & ~detected), np.flatnonzero((has_past ^ has_future) & in_reach)
    boxes = np.zeros((len(detected), 4))
    boxes[detected] = history.smooth(np.flatnonzero(detected), np.full(detected.sum(), now))[0]
    coasting = np.clip(away[outer], -hold_seconds, hold_seconds)
    boxes[outer] = _extrapolate(*history.smooth(outer, nearest[outer]), coasting)
    first, last = (history.smooth(inner, at[inner]) for at in (before, after))
    boxes[inner] = _interpolate(first, last, away[inner], history.seconds[after[inner]] - frame.seconds)
    shown = (boxes + frame.camera_motion).astype(np.float32)
    # The detections of this frame lie inside, whatever smoothing did.
    owned = frame.track_ids != UNASSIGNED
    columns = np.searchsorted(history.track_ids, frame.track_ids[owned])
    shown[columns] = _union(shown[columns], frame.boxes[owned].astype(np.float32))
    scores = np.where(detected, history.scores[now], history.scores.max(axis=0))
    hidden = np.sort(np.concatenate([np.flatnonzero(detected), inner, outer]))
    return tuple(TrackedBox(int(history.track_ids[k]), shown[k], float(scores[k]), bool(detected[k])) for k in hidden)


def _extrapolate(boxes: Floats, velocities: Floats, seconds: Floats) -> Floats:
    """Return boxes (M, 4) that hold the faces ``seconds`` (M,) later, whether they stopped on the way or moved on."""
    side = np.sqrt(np.prod(sizes(boxes), axis=1))[:, None]
    shift = OVERSHOOT * centers(velocities) * seconds[:, None]  # (M, 2)
    length = np.hypot(shift[:, :1], shift[:, 1:])
    rest = np.clip(1 - MAX_SWEEP * side / np.maximum(length, 1e-9), 0, None)
    near, far = boxes + np.tile(shift * rest, 2), boxes + np.tile(shift, 2)
    growth = np.minimum(GROWTH_OF_SIZE * side * np.abs(seconds)[:, None], MAX_GROWTH * side)
    return np.asarray(_union(near, far) + OUTWARDS * growth, float)


def _interpolate(first: tuple[Floats, Floats], last: tuple[Floats, Floats], since: Floats, until: Floats) -> Floats:
    """Return boxes (M, 4) between two detections, enlarged by how far the faces may have strayed."""
    (box, velocity), (other, other_velocity) = first, last
    gap = np.maximum(since + until, 1e-9)[:, None]
    between = box + (other - box) * since[:, None] / gap
    side = np.sqrt(np.prod(sizes(between), axis=1))
    speed = np.hypot(*(centers(other - box) / gap).T) + np.hypot(*centers(other_velocity - velocity).T)
    growth = np.minimum(since, until) * (GROWTH_OF_SPEED * speed + GROWTH_OF_SIZE * side)
    return np.asarray(between + OUTWARDS * np.minimum(growth, MAX_GROWTH * side)[:, None], float)


def _union(boxes: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """Return the smallest boxes that hold both."""
    return np.asarray(np.where(OUTWARDS < 0, np.minimum(boxes, others), np.maximum(boxes, others)))
