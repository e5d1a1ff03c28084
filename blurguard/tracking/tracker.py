"""Joins the detections of one scene into tracks, frame by frame, forwards and backwards.

Boxes are (N, 4) x0 y0 x1 y1 px. Positions of tracks are stabilized: the camera motion that most faces share is
subtracted (``Frame.camera_motion``). The remaining motion is slow and easy to predict.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blurguard.boxes import centers, iou

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]
Tracks = NDArray[Any]  # of TRACK_DTYPE

UNASSIGNED = -1  # track of a weak detection that no track supports

# Gate of a track: the distance of a detection from its predicted position, in face sizes (root of the area). It grows
# for each second since the last detection, up to a limit. In a wider gate a track takes the detections of its neighbor.
GATE = 0.6, 6.0, 1.0
# The same for a track with one detection, whose velocity is unknown. A small face may jump by its own size.
JUMP_GATE = 0.6, 35.0, 2.0
WEAK_GATE = 0.5  # share of the gate for weak detections, most of which are not faces
MAX_SIZE_RATIO = 2.0
# Share of the prediction error that corrects the velocity, from the second detection on. The first error is the only
# evidence, later ones are mostly jitter of the detector.
VELOCITY_GAINS = np.array([0.8, 0.5, 0.35, 0.25])
MIN_STEP_SECONDS = 0.004  # lower bound of the time steps in velocities
COAST_SECONDS = 0.5  # no motion is extrapolated for longer
MIN_TRACKS_FOR_MOTION = 4  # faces that must move alike before their motion is the camera's
VELOCITY_DECAY = 0.8  # of the camera velocity, in each frame that does not show it
SAME_IOU, SAME_FRAMES = 0.5, 3  # a track whose face another one had in this many frames ends


@dataclass(slots=True, eq=False)
class Frame:
    """One frame of the window."""

    number: int  # increases by one from frame to frame
    seconds: float
    was_detected: bool
    boxes: Floats  # (N, 4) as detected
    scores: NDArray[np.float32]  # (N,)
    track_ids: Indices  # (N,) the track of each detection, or ``UNASSIGNED``
    camera_motion: Floats  # (4,) px: shift of the edges of boxes by the camera since the scene began

    @property
    def stabilized(self) -> Floats:
        """Boxes (N, 4) without the camera motion."""
        return self.boxes - self.camera_motion

    @property
    def unassigned(self) -> Indices:
        """Detections without a track."""
        return np.flatnonzero(self.track_ids == UNASSIGNED)


# The state of a track. Towards the past, only the distance in time counts.
TRACK_DTYPE = np.dtype([
    ("track_id", np.intp),
    ("center", float, 2),  # px, stabilized
    ("size", float, 2),  # width and height, px
    ("velocity", float, 2),  # px a second, away from the track
    ("seconds", float),  # of the last detection
    ("number", np.intp),  # of its frame
    ("previous", np.intp),  # number of the frame with the detection before
    ("count", np.intp),  # detections so far
    ("duplicated", np.intp),  # frames in which another track had the face of this one, since they met
])  # fmt: skip


class Tracker:
    """Joins the detections of one scene into tracks."""

    def __init__(self, min_score: float, hold_seconds: float, track_ids: Iterator[int]) -> None:
        """Take the lowest score that starts a track, half the longest gap, and the ids for new tracks."""
        self._min_score, self._max_gap, self._track_ids = min_score, 2 * hold_seconds, track_ids
        self._tracks = np.zeros(0, TRACK_DTYPE)
        self._camera_velocity = np.zeros(4)  # px a second, for each edge of a box
        self._last: Frame | None = None  # with detections

    def update(self, held: Sequence[Frame]) -> None:
        """Assign the detections of the last held frame. New tracks take weak detections of the others."""
        frame = held[-1]
        strong = np.flatnonzero(frame.scores >= self._min_score)
        self._set_camera_motion(held, strong)
        if not frame.was_detected:
            return
        tracks = self._tracks[self._in_reach(self._tracks, frame)]
        tracks = _assign(tracks, np.arange(len(tracks)), frame, strong, 1.0)
        missing = np.flatnonzero(tracks["number"] < frame.number)
        tracks = _assign(tracks, missing, frame, frame.unassigned, WEAK_GATE)
        first = strong[frame.track_ids[strong] == UNASSIGNED]
        frame.track_ids[first] = [next(self._track_ids) for _ in first]
        tracks = np.concatenate([tracks, _jumped(_start_tracks(frame, first), tracks, frame, first)])
        resumed = (tracks["number"] == frame.number) & (tracks["previous"] < frame.number - 1)
        if resumed.any():
            tracks[resumed] = self._track_backwards(tracks[resumed], held)
        self._tracks = tracks[~_duplicates(tracks, frame)]
        self._last = frame

    def _in_reach(self, tracks: Tracks, frame: Frame) -> Mask:
        """Mark the tracks that can continue in the frame. An adjacent frame is in reach at any distance in time."""
        adjacent = np.abs(frame.number - tracks["number"]) == 1
        return np.asarray((_gaps(tracks, frame) <= self._max_gap) | adjacent, np.bool_)

    def _track_backwards(self, tracks: Tracks, held: Sequence[Frame]) -> Tracks:
        """Give weak detections in earlier held frames to tracks that start or resume in the last one."""
        back = tracks.copy()
        back["velocity"] *= -1
        for frame in itertools.islice(reversed(held), 1, None):
            missing = np.flatnonzero((tracks["previous"] < frame.number) & self._in_reach(back, frame))
            back = _assign(back, missing, frame, frame.unassigned, WEAK_GATE)
        tracks["velocity"], tracks["count"] = -back["velocity"], back["count"]
        return tracks

    def _set_camera_motion(self, held: Sequence[Frame], strong: Indices) -> None:
        """Estimate the camera motion of the last held frame, and of frames without detection before it.

        The camera goes on as before or has stopped, whichever more faces support. If most faces agree, their
        motion then corrects the estimate.
        """
        frame, last = held[-1], self._last
        if last is None:
            return
        step = frame.seconds - last.seconds
        current = self._tracks["number"] == last.number
        # A velocity that most tracks have learned is the camera's, not theirs.
        learned = _median_motion(self._tracks["velocity"][current & (self._tracks["count"] > 1)])
        self._tracks["velocity"] -= learned
        velocity = self._camera_velocity = self._camera_velocity + np.tile(learned, 2)
        tracks = self._tracks[current]
        moving, stopped = last.camera_motion + velocity * min(step, COAST_SECONDS), last.camera_motion
        if not frame.was_detected or min(len(tracks), len(strong)) < MIN_TRACKS_FOR_MOTION:
            frame.camera_motion = moving
            self._camera_velocity = velocity * (VELOCITY_DECAY if frame.was_detected else 1.0)
            return
        estimates = [(_offsets(tracks, frame, strong, motion), motion) for motion in (moving, stopped)]
        offsets, motion = max(estimates, key=lambda estimate: len(estimate[0]))
        frame.camera_motion = motion + np.tile(_median_motion(offsets), 2)
        if step > 0:
            share = 1.0 if len(offsets) >= MIN_TRACKS_FOR_MOTION else VELOCITY_DECAY
            self._camera_velocity = (frame.camera_motion - last.camera_motion) / step * share
        for between in held:
            if last.number < between.number < frame.number:
                between.camera_motion = last.camera_motion + self._camera_velocity * (between.seconds - last.seconds)


def _offsets(tracks: Tracks, frame: Frame, rows: Indices, camera_motion: Floats) -> Floats:
    """Return the prediction errors (M, 2), px, of the tracks whose next detection is certain."""
    frame.camera_motion = camera_motion
    costs = _costs(tracks, frame, rows)
    nearest = np.argmin(costs, axis=1)
    mutual = (np.argmin(costs, axis=0)[nearest] == np.arange(len(tracks))) & (costs.min(axis=1) <= 1)
    return centers(frame.stabilized[rows[nearest[mutual]]]) - _predict(tracks[mutual], frame)


def _median_motion(offsets: Floats) -> Floats:
    """Return the median of offsets (M, 2) if most agree with it and it exceeds jitter, else 0."""
    shift = np.median(offsets, axis=0) if len(offsets) else np.zeros(2)
    deviations = np.hypot(*(offsets - shift).T)
    agreeing = (deviations <= 0.25 * np.hypot(*shift) + 1).sum() >= max(MIN_TRACKS_FOR_MOTION, len(offsets) / 2)
    # The standard error of a median is 1.25 / sqrt(n) deviations, each 1.5 times the median one.
    error = 1.25 * 1.5 * np.median(deviations) / np.sqrt(len(offsets)) if agreeing else math.inf
    return np.asarray(np.where(np.hypot(*shift) > 2 * error, shift, 0.0), float)


def _start_tracks(frame: Frame, rows: Indices) -> Tracks:
    tracks, boxes = np.zeros(len(rows), TRACK_DTYPE), frame.stabilized[rows]
    tracks["track_id"], tracks["center"], tracks["size"] = frame.track_ids[rows], centers(boxes), sizes(boxes)
    tracks["seconds"], tracks["number"] = frame.seconds, frame.number
    tracks["previous"], tracks["count"] = UNASSIGNED, 1
    return tracks


def _gaps(tracks: Tracks, frame: Frame) -> Floats:
    """Return the time between the last detections and the frame, (K,) s."""
    return np.asarray(np.abs(frame.seconds - tracks["seconds"]), float)


def _predict(tracks: Tracks, frame: Frame) -> Floats:
    """Return the predicted centers in the frame, (K, 2) px, stabilized."""
    coasting = np.minimum(_gaps(tracks, frame), COAST_SECONDS)
    return np.asarray(tracks["center"] + tracks["velocity"] * coasting[:, None], float)


def _jumped(started: Tracks, tracks: Tracks, frame: Frame, rows: Indices) -> Tracks:
    """Return started tracks with the velocities of faces that may have jumped there from their only detection.

    They may be other faces as well. So they are tracks of their own, and the old tracks stay.
    """
    once = tracks[(tracks["count"] == 1) & (tracks["number"] < frame.number)]
    if len(started) and len(once):
        costs = _costs(once, frame, rows, JUMP_GATE)
        jumped, old = costs.min(axis=0) <= 1, once[costs.argmin(axis=0)]
        steps = np.maximum(frame.seconds - old["seconds"], MIN_STEP_SECONDS)
        velocity = (started["center"] - old["center"]) / steps[:, None]
        started["velocity"][jumped], started["count"][jumped] = velocity[jumped], 2
    return started


def _costs(tracks: Tracks, frame: Frame, rows: Indices, gate: tuple[float, float, float] = GATE) -> NDArray[np.float32]:
    """Return (K, N) assignment costs of these detections: 0 is as predicted, more than 1 outside the gate."""
    start, growth, limit = gate
    reach = np.minimum(start + growth * _gaps(tracks, frame), limit)
    boxes = frame.stabilized[rows]
    track_side, side = _log_sides(tracks["size"]), _log_sides(sizes(boxes))
    # float32 and one axis at a time: in a crowd this is most of the work.
    predicted, detected = _predict(tracks, frame).astype(np.float32), centers(boxes).astype(np.float32)
    costs = np.square(predicted[:, None, 0] - detected[:, 0]) + np.square(predicted[:, None, 1] - detected[:, 1])
    costs *= (np.exp(-track_side) / reach**2).astype(np.float32)[:, None] * np.exp(-side).astype(np.float32)
    costs += np.square((track_side[:, None] - side).astype(np.float32) / np.float32(np.log(MAX_SIZE_RATIO)))
    return np.asarray(np.sqrt(costs), np.float32)


def _assign(tracks: Tracks, missing: Indices, frame: Frame, rows: Indices, max_cost: float) -> Tracks:
    """Return all tracks after a greedy assignment of these detections to the missing tracks, best fit first."""
    costs = _costs(tracks[missing], frame, rows)
    fits = np.argwhere(costs <= max_cost)
    row_of, track_of = dict[int, int](), dict[int, int]()
    for track, row in fits[np.argsort(costs[fits[:, 0], fits[:, 1]], kind="stable")].tolist():
        if track not in row_of and row not in track_of:
            row_of[track], track_of[row] = row, track
    assigned, rows = missing[list(row_of)], rows[list(track_of)]
    frame.track_ids[rows] = tracks["track_id"][assigned]
    old, new = tracks[assigned], _start_tracks(frame, rows)
    steps = _gaps(old, frame)
    errors = (new["center"] - _predict(old, frame)) / np.maximum(steps, MIN_STEP_SECONDS)[:, None]
    gains = VELOCITY_GAINS[np.minimum(old["count"], len(VELOCITY_GAINS)) - 1] * (steps > 0)
    new["velocity"] = old["velocity"] + errors * gains[:, None]
    new["previous"], new["count"], new["duplicated"] = old["number"], old["count"] + 1, old["duplicated"]
    extended = tracks.copy()
    extended[assigned] = new
    return extended


def _duplicates(tracks: Tracks, frame: Frame) -> Mask:
    """Mark tracks that too often had no detection while another track had the face they predicted."""
    middle, half, detected = _predict(tracks, frame), tracks["size"] / 2, tracks["number"] == frame.number
    boxes = np.concatenate([middle - half, middle + half], axis=1).astype(np.float32)
    rows = np.flatnonzero(~detected | (tracks["duplicated"] > 0))
    same = iou(boxes[rows], boxes) > SAME_IOU
    same[np.arange(len(rows)), rows] = False
    robbed = ~detected[rows] & same[:, detected].any(axis=1)
    tracks["duplicated"][rows] = np.where(same.any(axis=1), tracks["duplicated"][rows] + robbed, 0)
    return np.asarray(tracks["duplicated"] >= SAME_FRAMES, np.bool_)


def sizes(boxes: Floats) -> Floats:
    """Return width and height, (N, 2), px. Never 0, so that division is safe."""
    return np.asarray(np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3), float)


def _log_sides(sizes: Floats) -> Floats:
    """Return the logarithms of the face sizes, roots of the areas, of widths and heights (N, 2)."""
    return np.asarray(np.log(sizes).mean(axis=1), float)
