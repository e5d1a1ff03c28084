"""Which detections of one scene are the same face: joined into tracks, frame by frame, forwards and backwards.

Boxes are (N, 4) x0 y0 x1 y1 px. In here positions are steadied: the motion that most faces share, the camera's,
is taken out of them (``Frame.camera_motion``), so that what is left is slow and easily foreseen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blurguard.boxes import iou

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]
Tracks = NDArray[Any]  # of type END

UNASSIGNED = -1  # the track of a weak detection that none supports

# How far from where it is expected a detection may be, in face sizes (root of the area), and how much further
# for each second since the face was last seen. More, and a face takes the detections of its neighbour.
REACH, REACH_PER_SECOND, MAX_REACH = 0.6, 6.0, 1.0
# Likewise, for a face that was seen once, of whose speed nothing is known: a small one may leap by its own size.
LEAP, LEAP_PER_SECOND, MAX_LEAP = 0.6, 35.0, 2.0
WEAK_REACH = 0.5  # share of that for weak detections: most of them are no faces
MAX_SIZE_RATIO = 2.0
# What a deviation from the expected place adds to the velocity, from the second detection on: first it is all
# that is known, later most of it is the detector's jitter.
VELOCITY_GAINS = np.array([0.8, 0.5, 0.35, 0.25])
MIN_STEP_SECONDS = 0.004  # steps of time are taken to be no shorter where a velocity is computed
COAST_SECONDS = 0.5  # nothing is expected to go on moving for longer
MIN_TRACKS_FOR_MOTION = 4  # faces that must move alike before it is taken for the camera's motion
VELOCITY_DECAY = 0.8  # of the camera's speed, in each frame that cannot tell it
SAME_IOU, SAME_FRAMES = 0.5, 3  # a track whose face another one had in so many frames ends


@dataclass(slots=True, eq=False)
class Frame:
    """One frame of the window."""

    number: int  # counts up by one from frame to frame
    seconds: float
    was_detected: bool
    boxes: Floats  # (N, 4) as detected
    scores: NDArray[np.float32]  # (N,)
    track_ids: Indices  # (N,) which track each detection belongs to, or ``UNASSIGNED``
    camera_motion: Floats  # (4,) px: how far the camera has moved the edges of boxes since the scene began


# Where a track looks for its next detection. Looking into the past, only the distance in time counts.
TRACK_DTYPE = np.dtype([
    ("track", np.intp),
    ("center", float, 2),  # px, steadied
    ("size", float, 2),  # width and height, px
    ("velocity", float, 2),  # px a second, away from the track
    ("seconds", float),  # of the last detection
    ("number", np.intp),  # of its frame
    ("previous", np.intp),  # of the frame of the detection before
    ("count", np.intp),  # detections so far
    ("beside", np.intp),  # frames in which another track had this one's face, since the two met
])  # fmt: skip


class Tracker:
    """Joins the detections of one scene into tracks."""

    def __init__(self, min_score: float, hold_seconds: float, names: Iterator[int]) -> None:
        """Take the score from which a detection starts a track, half the longest gap, and the tracks' names."""
        self._min_score = min_score
        self._longest_gap = 2 * hold_seconds
        self._names = names
        self._ends = np.zeros(0, TRACK_DTYPE)
        self._speed = np.zeros(4)  # of the camera, px a second, for each edge of a box
        self._last: Frame | None = None  # that was looked at

    def update(self, held: Sequence[Frame]) -> None:
        """Find the tracks' faces in the last of the held frames; new tracks look back through the others."""
        frame = held[-1]
        strong = np.flatnonzero(frame.scores >= self._min_score)
        self._set_camera_motion(held, strong)
        if not frame.was_detected:
            return
        ends = self._ends[self._in_reach(self._ends, frame)]
        ends = _assign(ends, np.arange(len(ends)), frame, strong, 1.0)
        ends = _assign(ends, np.flatnonzero(ends["number"] < frame.number), frame, _unassigned(frame), WEAK_REACH)
        born = strong[frame.track_ids[strong] == UNASSIGNED]
        frame.track_ids[born] = [next(self._names) for _ in born]
        ends = np.concatenate([ends, _with_leaps(_new_tracks(frame, born), ends, frame, born)])
        fresh = (ends["number"] == frame.number) & (ends["previous"] < frame.number - 1)
        if fresh.any():
            ends[fresh] = self._revisit(ends[fresh], held)
        self._ends = ends[~_duplicates(ends, frame)]
        self._last = frame

    def _in_reach(self, ends: Tracks, frame: Frame) -> Mask:
        """Tell which tracks can go on in the frame; the next one is in reach however late it is."""
        near = np.abs(frame.seconds - ends["seconds"]) <= self._longest_gap
        return np.asarray(near | (np.abs(frame.number - ends["number"]) == 1), np.bool_)

    def _revisit(self, ends: Tracks, held: Sequence[Frame]) -> Tracks:
        """Give weak detections in held frames to tracks that are new in the last one, or were found again."""
        back = ends.copy()
        back["velocity"] *= -1
        for frame in itertools.islice(reversed(held), 1, None):
            waiting = np.flatnonzero((ends["previous"] < frame.number) & self._in_reach(back, frame))
            back = _assign(back, waiting, frame, _unassigned(frame), WEAK_REACH)
        ends["velocity"], ends["count"] = -back["velocity"], back["count"]
        return ends

    def _set_camera_motion(self, held: Sequence[Frame], strong: Indices) -> None:
        """Tell how far the camera has gone in the last of the held frames, and in those not looked at before it.

        It goes on as before or has stopped, whichever more faces speak for; then most of them correct that.
        """
        frame, last = held[-1], self._last
        if last is None:
            return
        step = frame.seconds - last.seconds
        # What most tracks have learnt of the camera's motion is no motion of theirs.
        learnt = _median_motion(
            self._ends["velocity"][(self._ends["number"] == last.number) & (self._ends["count"] > 1)]
        )
        self._ends["velocity"] -= learnt
        self._speed = self._speed + np.tile(learnt, 2)
        ends = self._ends[self._ends["number"] == last.number]
        drifts = [last.camera_motion + self._speed * min(step, COAST_SECONDS), last.camera_motion]
        if not frame.was_detected or len(ends) < MIN_TRACKS_FOR_MOTION or len(strong) < MIN_TRACKS_FOR_MOTION:
            frame.camera_motion = drifts[0]
            self._speed = self._speed * (VELOCITY_DECAY if frame.was_detected else 1.0)
            return
        offsets = [_offsets(ends, frame, strong, drift) for drift in drifts]
        best = 0 if len(offsets[0]) >= len(offsets[1]) else 1
        frame.camera_motion = drifts[best]
        frame.camera_motion = frame.camera_motion + np.tile(_median_motion(offsets[best]), 2)
        if step > 0:
            kept = 1.0 if len(offsets[best]) >= MIN_TRACKS_FOR_MOTION else VELOCITY_DECAY
            self._speed = (frame.camera_motion - last.camera_motion) / step * kept
        for between in held:
            if last.number < between.number < frame.number:
                between.camera_motion = last.camera_motion + self._speed * (between.seconds - last.seconds)


def _offsets(ends: Tracks, frame: Frame, rows: Indices, drift: Floats) -> Floats:
    """Return how much further than expected faces have moved, (M, 2) px: those whose next detection is sure."""
    frame.camera_motion = drift
    costs = _costs(ends, frame, rows)
    nearest = np.argmin(costs, axis=1)
    sure = (np.argmin(costs, axis=0)[nearest] == np.arange(len(ends))) & (costs.min(axis=1) <= 1)
    return centers((frame.boxes - drift)[rows[nearest[sure]]]) - _predict(ends[sure], frame)


def _median_motion(offsets: Floats) -> Floats:
    """Return the median of offsets (M, 2) if it is that of most of them, and more than jitter; else 0."""
    shift = np.median(offsets, axis=0) if len(offsets) else np.zeros(2)
    aside = np.hypot(*(offsets - shift).T)
    agreeing = (aside <= 0.25 * np.hypot(*shift) + 1).sum() >= max(MIN_TRACKS_FOR_MOTION, len(offsets) / 2)
    # The standard error of a median is 1.25 / sqrt(n) deviations, each 1.5 times the median one.
    doubt = 1.25 * 1.5 * np.median(aside) / np.sqrt(len(offsets)) if agreeing else math.inf
    return np.asarray(np.where(np.hypot(*shift) > 2 * doubt, shift, 0.0), float)


def _unassigned(frame: Frame) -> Indices:
    return np.flatnonzero(frame.track_ids == UNASSIGNED)


def _new_tracks(frame: Frame, rows: Indices) -> Tracks:
    """Return the ends of tracks that begin with these detections."""
    ends, boxes = np.zeros(len(rows), TRACK_DTYPE), (frame.boxes - frame.camera_motion)[rows]
    ends["track"], ends["center"], ends["size"] = frame.track_ids[rows], centers(boxes), sizes(boxes)
    ends["seconds"], ends["number"], ends["previous"], ends["count"] = frame.seconds, frame.number, UNASSIGNED, 1
    return ends


def _predict(ends: Tracks, frame: Frame) -> Floats:
    """Return where the faces should be in the frame, (K, 2) px, steadied."""
    ahead = np.minimum(np.abs(frame.seconds - ends["seconds"]), COAST_SECONDS)
    return np.asarray(ends["center"] + ends["velocity"] * ahead[:, None], float)


def _with_leaps(born: Tracks, ends: Tracks, frame: Frame, rows: Indices) -> Tracks:
    """Return new ends with the velocities of faces that may have leapt there since they were seen once.

    Or they are other faces: so these are tracks of their own, and the old ones stay where they are.
    """
    once = ends[(ends["count"] == 1) & (ends["number"] < frame.number)]
    if len(born) and len(once):
        costs = _costs(once, frame, rows, leaping=True)
        leapt = costs.min(axis=0) <= 1
        old, step = once[costs.argmin(axis=0)], frame.seconds - once["seconds"][costs.argmin(axis=0)]
        velocity = (born["center"] - old["center"]) / np.maximum(step, MIN_STEP_SECONDS)[:, None]
        born["velocity"][leapt], born["count"][leapt] = velocity[leapt], 2
    return born


def _costs(ends: Tracks, frame: Frame, rows: Indices, leaping: bool = False) -> NDArray[np.float32]:
    """Return (K, N) how badly these detections fit the tracks: 0 is as expected, more than 1 another face."""
    boxes = (frame.boxes - frame.camera_motion)[rows]
    start, growth, most = (LEAP, LEAP_PER_SECOND, MAX_LEAP) if leaping else (REACH, REACH_PER_SECOND, MAX_REACH)
    step = np.abs(frame.seconds - ends["seconds"])
    reach = np.minimum(start + growth * step, most)
    size, other = _log_sides(ends["size"]), _log_sides(sizes(boxes))
    # float32 and one axis at a time: in a crowd this is most of the work.
    here, there = _predict(ends, frame).astype(np.float32), centers(boxes).astype(np.float32)
    costs = np.square(here[:, None, 0] - there[None, :, 0]) + np.square(here[:, None, 1] - there[None, :, 1])
    costs *= (np.exp(-size) / reach**2).astype(np.float32)[:, None] * np.exp(-other).astype(np.float32)[None]
    costs += np.square((size[:, None] - other[None]).astype(np.float32) / np.float32(np.log(MAX_SIZE_RATIO)))
    return np.asarray(np.sqrt(costs), np.float32)


def _assign(ends: Tracks, waiting: Indices, frame: Frame, rows: Indices, most_cost: float) -> Tracks:
    """Return the ends after those that wait took the detections that fit them, one each, the best fit first."""
    costs = _costs(ends[waiting], frame, rows)
    fits = np.argwhere(costs <= most_cost)
    rows_of: dict[int, int] = {}
    taken: set[int] = set()
    for end, row in fits[np.argsort(costs[fits[:, 0], fits[:, 1]], kind="stable")].tolist():
        if end not in rows_of and row not in taken:
            rows_of[end] = row
            taken.add(row)
    mine, found = waiting[list(rows_of)], rows[list(rows_of.values())]
    frame.track_ids[found] = ends["track"][mine]
    old, new = ends[mine], _new_tracks(frame, found)
    step = np.abs(frame.seconds - old["seconds"])
    off = (new["center"] - _predict(old, frame)) / np.maximum(step, MIN_STEP_SECONDS)[:, None]
    gain = VELOCITY_GAINS[np.minimum(old["count"], len(VELOCITY_GAINS)) - 1] * (step > 0)
    new["velocity"] = old["velocity"] + off * gain[:, None]
    new["previous"], new["count"], new["beside"] = old["number"], old["count"] + 1, old["beside"]
    extended = ends.copy()
    extended[mine] = new
    return extended


def _duplicates(ends: Tracks, frame: Frame) -> Mask:
    """Tell which tracks have gone without a detection too often while another one had the face that they expect."""
    centers, half, seen = _predict(ends, frame), ends["size"] / 2, ends["number"] == frame.number
    boxes = np.concatenate([centers - half, centers + half], axis=1).astype(np.float32)
    rows = np.flatnonzero(~seen | (ends["beside"] > 0))
    same = iou(boxes[rows], boxes) > SAME_IOU
    same[np.arange(len(rows)), rows] = False
    robbed = ~seen[rows] & same[:, seen].any(axis=1)
    ends["beside"][rows] = np.where(same.any(axis=1), ends["beside"][rows] + robbed, 0)
    return np.asarray(ends["beside"] >= SAME_FRAMES, np.bool_)


def centers(boxes: Floats) -> Floats:
    """Return the centres of boxes, (N, 2) px."""
    return np.asarray((boxes[:, :2] + boxes[:, 2:]) / 2, float)


def sizes(boxes: Floats) -> Floats:
    """Return width and height, (N, 2), px; never 0, so that they can be divided by."""
    return np.asarray(np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3), float)


def _log_sides(sizes: Floats) -> Floats:
    """Return the logarithms of the face sizes, the roots of the areas, of widths and heights (N, 2)."""
    return np.asarray(np.log(sizes).mean(axis=1), float)
