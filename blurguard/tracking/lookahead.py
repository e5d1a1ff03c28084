"""Which faces are hidden in each frame of a video: detections, joined into tracks, forwards and backwards.

A face that is found in one frame and missed in the next must not be bare there. So a track fills its gaps and
reaches beyond its ends, weak detections count where a track supports them, and nothing waits to be confirmed:
every detection from ``Rules.min_score`` on is hidden in its own frame, whatever else is made of it.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from blurguard.tracking.tracker import UNASSIGNED, Floats, Frame, Indices, Tracker, centers, sizes
from blurguard.types import Detections

T = TypeVar("T")

OUTWARDS = np.array([-1.0, -1.0, 1.0, 1.0])  # for each edge of a box

SMOOTHING_SECONDS = 0.2  # half the width of the window over which a track's boxes are smoothed
SLOPE_RIDGE = 0.0004  # s^2; keeps two detections, 40 ms apart, from telling too much of a velocity
MAX_SLACK = 0.3  # of the face's size: how far smoothing may move an edge outwards
# How fast what is known of a face's place decays away from its detections, in each second, and the most of it.
GROWTH_OF_SPEED, GROWTH_OF_SIZE, MAX_GROWTH = 0.3, 0.4, 0.5
OVERSHOOT = 1.1  # of the way that it should have gone: the velocity is a cautious one
MAX_SWEEP = 0.5  # in face sizes: from where the face may have stopped to where it may have got to


@dataclass(frozen=True, slots=True)
class TrackingConfig:
    """What decides over hiding."""

    min_score: float  # a detection from this score on is hidden by itself, and starts a track
    # How long a face stays hidden before its first and after its last detection; the frames next to one are
    # always in reach, however long they are shown.
    hold_seconds: float = 0.4
    max_frames: int = 240  # held at a time; fewer than there are in 2 * hold_seconds cost protection


@dataclass(frozen=True, slots=True)
class FrameDetections:
    """What is known of one frame."""

    seconds: float  # when it is shown, finite; steps may vary, and a step backwards begins a new scene
    detections: Detections  # down to weak scores, below ``Rules.min_score``
    is_cut: bool = False  # a new scene begins with this frame: nothing is carried across
    was_detected: bool = True  # False where no detector looked: that nothing was found then says nothing


@dataclass(frozen=True, slots=True, eq=False)
class TrackedBox:
    """One hidden face in one frame."""

    track_id: int  # the same for one face through a scene; never used again
    box: NDArray[
        np.float32
    ]  # (4,) px: holds the face as detected, or as it may have moved; may lie outside the picture
    score: float  # of this frame's detection; elsewhere the track's best nearby
    is_detected: bool  # whether the face was detected in this frame


def track_faces(
    frames: Iterable[tuple[T, FrameDetections]], rules: TrackingConfig
) -> Generator[tuple[T, tuple[TrackedBox, ...]], None, None]:
    """Yield every frame once, in order, with what is to be hidden in it.

    A frame comes as soon as a later one is shown ``2 * hold_seconds`` after it, the scene ends, or
    ``max_frames`` are held. Closing the iterator early closes ``frames``.
    """
    source = iter(frames)
    names = itertools.count()
    window: _Window[T] = _Window(rules, names)
    try:
        for item, sighting in source:
            if sighting.is_cut or window.is_ahead_of(sighting.seconds):
                yield from window.drain()
                window = _Window(rules, names)
            window.add(item, sighting)
            while window.is_full():
                yield window.pop()
        yield from window.drain()
    finally:
        if close := getattr(source, "close", None):
            close()


class _Window(Generic[T]):
    """The frames of one scene that still matter: those held, and the last ones that left, without their items."""

    def __init__(self, rules: TrackingConfig, names: Iterator[int]) -> None:
        self._rules = rules
        self._tracker = Tracker(rules.min_score, rules.hold_seconds, names)
        self._items: deque[T] = deque()
        self._held: deque[Frame] = deque()
        self._gone: deque[Frame] = deque(maxlen=max(rules.max_frames, 1))
        self._count = 0
        self._newest = -math.inf  # seconds

    def is_ahead_of(self, seconds: float) -> bool:
        """Tell whether a frame shown at ``seconds`` would run backwards."""
        return seconds < self._newest

    def add(self, item: T, sighting: FrameDetections) -> None:
        """Take the next frame in and find its faces in the tracks."""
        boxes, scores = sighting.detections.boxes.astype(float), sighting.detections.scores
        nobody, still = np.full(len(scores), UNASSIGNED, np.intp), np.zeros(4)
        self._held.append(Frame(self._count, sighting.seconds, sighting.was_detected, boxes, scores, nobody, still))
        self._items.append(item)
        self._count, self._newest = self._count + 1, sighting.seconds
        self._tracker.update(self._held)

    def is_full(self) -> bool:
        """Tell whether all that decides over the oldest held frame is known, or the room used up."""
        count = len(self._held)
        known = count > 1 and self._newest - self._held[0].seconds >= 2 * self._rules.hold_seconds
        return known or count >= max(self._rules.max_frames, 1)

    def pop(self) -> tuple[T, tuple[TrackedBox, ...]]:
        """Return the oldest frame that is held and what is hidden in it."""
        covers = _boxes_at([*self._gone, *self._held], len(self._gone), self._rules)
        frame = self._held.popleft()
        self._gone.append(frame)
        while frame.seconds - self._gone[0].seconds > 2 * self._rules.hold_seconds + SMOOTHING_SECONDS:
            self._gone.popleft()
        return self._items.popleft(), covers

    def drain(self) -> Iterator[tuple[T, tuple[TrackedBox, ...]]]:
        while self._held:
            yield self.pop()


class _History:
    """The detections of F frames by K tracks.

    Attributes:
        tracks: (K,) their names, rising.
        seconds: (F,) of the frames.
        found: (F, K) where there is a detection; ``scores`` (F, K) and ``boxes`` (F, K, 4), steadied, of these.
    """

    def __init__(self, frames: Sequence[Frame]) -> None:
        names = np.concatenate([frame.track_ids for frame in frames])
        owned = names != UNASSIGNED
        rows = np.repeat(np.arange(len(frames)), [len(frame.track_ids) for frame in frames])[owned]
        self.tracks, columns = np.unique(names[owned], return_inverse=True)
        self.seconds = np.array([frame.seconds for frame in frames])
        shape = len(frames), len(self.tracks)
        self.boxes, self.scores, self.found = np.zeros((*shape, 4)), np.zeros(shape), np.zeros(shape, np.bool_)
        drifts = np.array([frame.camera_motion for frame in frames])[rows]
        self.boxes[rows, columns] = np.concatenate([frame.boxes for frame in frames])[owned] - drifts
        self.scores[rows, columns] = np.concatenate([frame.scores for frame in frames])[owned]
        self.found[rows, columns] = True

    def smooth(self, columns: Indices, at: Indices) -> tuple[Floats, Floats]:
        """Return the boxes (M, 4) of tracks in frames ``at`` (M,), and the velocities of their edges, px a second.

        A line is laid through each edge over time. Then it is moved outwards by what the detections near
        ``at`` lie outside of it, the less the further away they are: edges do not follow the jitter, but no
        detection is cut.
        """
        dt = self.seconds[:, None] - self.seconds[at][None]  # (F, M)
        near = np.clip(1 - (dt / SMOOTHING_SECONDS) ** 2, 0, None) ** 2 * self.found[:, columns]
        few = near.any(axis=1)
        near, dt, boxes = near[few, :, None], dt[few, :, None], self.boxes[few][:, columns]  # (F, M, 1), (F, M, 4)
        weight = near.sum(axis=0)
        middle, box = (near * dt).sum(axis=0) / weight, (near * boxes).sum(axis=0) / weight
        aside = near * (dt - middle)
        slope = (aside * boxes).sum(axis=0) / ((aside * (dt - middle)).sum(axis=0) + weight * SLOPE_RIDGE)
        line = box - slope * middle
        outside = np.clip((boxes - line - slope * dt) * OUTWARDS, 0, None)
        own, slack = self.boxes[at, columns], MAX_SLACK * np.tile(sizes(line), 2)
        line += OUTWARDS * np.minimum((near * outside).max(axis=0, initial=0), slack)
        return own + OUTWARDS * np.clip((line - own) * OUTWARDS, 0, slack), slope


def _boxes_at(frames: Sequence[Frame], now: int, rules: TrackingConfig) -> tuple[TrackedBox, ...]:
    """Return what is hidden in frame ``now`` of these, in the order of the tracks."""
    frame, history = frames[now], _History(frames)
    if not len(history.tracks):
        return ()
    past, future, seen = history.found[now::-1], history.found[now:], history.found[now]
    # The nearest detections of each track on either side; frame ``now`` itself where there is none.
    before, after = now - np.argmax(past, axis=0), now + np.argmax(future, axis=0)
    begun, lasting = past.any(axis=0), future.any(axis=0)
    nearest = np.where(begun, before, after)
    away = frame.seconds - history.seconds[nearest]
    in_reach = (np.abs(away) <= rules.hold_seconds) | (np.abs(nearest - now) == 1)
    inner, outer = np.flatnonzero(begun & lasting & ~seen), np.flatnonzero((begun ^ lasting) & in_reach)
    boxes = np.zeros((len(seen), 4))
    boxes[seen] = history.smooth(np.flatnonzero(seen), np.full(seen.sum(), now))[0]
    coasting = np.clip(away[outer], -rules.hold_seconds, rules.hold_seconds)
    boxes[outer] = _extrapolate(*history.smooth(outer, nearest[outer]), coasting)
    first, last = (history.smooth(inner, at[inner]) for at in (before, after))
    boxes[inner] = _interpolate(first, last, away[inner], history.seconds[after[inner]] - frame.seconds)
    shown = (boxes + frame.camera_motion).astype(np.float32)
    # Whatever was done to them: what was found in this frame lies inside.
    owned = frame.track_ids != UNASSIGNED
    mine = np.searchsorted(history.tracks, frame.track_ids[owned])
    shown[mine] = _union(shown[mine], frame.boxes[owned].astype(np.float32))
    scores = np.where(seen, history.scores[now], history.scores.max(axis=0))
    hidden = np.sort(np.concatenate([np.flatnonzero(seen), inner, outer]))
    return tuple(TrackedBox(int(history.tracks[k]), shown[k], float(scores[k]), bool(seen[k])) for k in hidden)


def _extrapolate(boxes: Floats, velocities: Floats, seconds: Floats) -> Floats:
    """Return boxes (M, 4) that hold faces which stopped on their way as well as those that moved on, (M,) later."""
    side = np.sqrt(np.prod(sizes(boxes), axis=1))[:, None]
    shift = OVERSHOOT * centers(velocities) * seconds[:, None]  # (M, 2)
    length = np.hypot(shift[:, :1], shift[:, 1:])
    rest = np.clip(1 - MAX_SWEEP * side / np.maximum(length, 1e-9), 0, None)
    near, far = boxes + np.tile(shift * rest, 2), boxes + np.tile(shift, 2)
    grow = np.minimum(GROWTH_OF_SIZE * side * np.abs(seconds)[:, None], MAX_GROWTH * side)
    return np.asarray(_union(near, far) + OUTWARDS * grow, float)


def _interpolate(first: tuple[Floats, Floats], last: tuple[Floats, Floats], since: Floats, until: Floats) -> Floats:
    """Return boxes (M, 4) of faces between two detections, enlarged by what they may have strayed."""
    (box, velocity), (other, other_velocity) = first, last
    whole = np.maximum(since + until, 1e-9)[:, None]
    between = box + (other - box) * since[:, None] / whole
    side = np.sqrt(np.prod(sizes(between), axis=1))
    speed = np.hypot(*(centers(other - box) / whole).T) + np.hypot(*centers(other_velocity - velocity).T)
    grow = np.minimum(since, until) * (GROWTH_OF_SPEED * speed + GROWTH_OF_SIZE * side)
    return np.asarray(between + OUTWARDS * np.minimum(grow, MAX_GROWTH * side)[:, None], float)


def _union(boxes: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """Return the smallest boxes that hold both."""
    return np.asarray(np.where(OUTWARDS < 0, np.minimum(boxes, others), np.maximum(boxes, others)))
