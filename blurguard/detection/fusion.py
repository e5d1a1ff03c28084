"""Makes scores of several passes one probability for each face.

A pass alone turns its score into the probability that its box is a face. Passes err independently enough that a face
is missed only if all of them miss it: p = 1 - (1 - p1)(1 - p2)... (noisy or). So no pass can lower a probability, and
a face that one pass alone is sure of is hidden. `python -m calibration probabilities` fits the coefficients of all
passes together, so that the fused numbers are probabilities.
"""

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from blurguard.boxes import NO_DETECTIONS, Boxes, best_first, iou, select
from blurguard.types import Detections

COEFFICIENTS = 5  # of the logit of a probability: 1, logit of the score, log of the height, their product, its square
SAME_FACE_IOU = 0.45  # boxes of two passes that overlap as much are one face. 0.35 to 0.5 differ by 0.2 of AP.
REFERENCE_PX = 20.0  # heights count by their ratio to this one
MIN_PX, MAX_PX = 6.0, 200.0  # beyond these the height says nothing more
MIN_SLOPE = 1e-3
SCORE_RANGE = (0.08, 0.5)  # of the lowest score of a network that counts
SCORE_LIMIT = 1e-4  # scores nearer to 0 or 1 count as this near
MIN_PROBABILITY = 0.04  # less is not worth the time

Floats = NDArray[np.float64]
Place = tuple[int, int]  # number of a pass, and of a detection in it


def terms(scores: NDArray[np.float32], boxes: Boxes) -> Floats:
    """Return what the coefficients multiply, (N, 5), for scores (N,) and boxes (N, 4) in px of the image."""
    score = np.clip(scores.astype(float), SCORE_LIMIT, 1 - SCORE_LIMIT)
    logit = np.log(score / (1 - score))
    height = np.log(np.clip((boxes[:, 3] - boxes[:, 1]).astype(float), MIN_PX, MAX_PX) / REFERENCE_PX)
    return np.stack([np.ones_like(logit), logit, height, logit * height, height * height], axis=1)


@functools.cache
def least_score(coefficients: tuple[float, ...]) -> float:
    """Return a network's score under which no box of any height reaches `MIN_PROBABILITY`, but at least 0.08."""
    height = np.log(np.geomspace(MIN_PX, MAX_PX, 50) / REFERENCE_PX)
    constant, logit, tall, product, square = coefficients
    wanted = np.log(MIN_PROBABILITY / (1 - MIN_PROBABILITY))
    slope = logit + product * height
    rising = slope > MIN_SLOPE  # where it is not, any score may be probable
    least = (wanted - constant - tall * height - square * height * height) / np.where(rising, slope, 1)
    lowest = 1 / (1 + np.exp(-least)) if rising.all() else np.zeros(1)
    return float(np.clip(lowest.min(), *SCORE_RANGE))


def probabilities(found: Detections, coefficients: Sequence[float]) -> Detections:
    """Return the detections of one pass, in their order, with probabilities for scores."""
    logits = terms(found.scores, found.boxes) @ np.asarray(coefficients)
    return Detections(found.boxes, (1 / (1 + np.exp(-logits))).astype(np.float32), found.flaw)


def fuse(passes: Sequence[Detections]) -> Detections:
    """Return the faces of several passes with probabilities, most probable first, one box per face."""
    faces = merged(passes, same_faces(passes))
    return select(faces, np.argsort(-faces.scores, kind="stable"))


def merged(passes: Sequence[Detections], groups: Sequence[Sequence[Place]]) -> Detections:
    """Return one face for each group of detections: the mean box by probability, and the noisy or."""
    boxes, scores = [], []
    for group in groups:
        own = np.array([passes[index].scores[row] for index, row in group], float)
        corners = np.array([passes[index].boxes[row] for index, row in group], float)
        boxes.append(own @ corners / own.sum())
        scores.append(1 - np.prod(1 - own))
    return Detections(np.array(boxes), np.array(scores)) if groups else NO_DETECTIONS


def same_faces(passes: Sequence[Detections]) -> list[list[Place]]:
    """Return for each face its best detection in each pass that has one.

    Greedy: the most probable box takes the best box of each other pass that overlaps it, and so on. Boxes of one pass
    are different faces: a second one stays, though it overlaps the same box of another pass.
    """
    places = [
        (index, row) for index, found in enumerate(passes) for row in np.flatnonzero(found.scores >= MIN_PROBABILITY)
    ]
    if not places:
        return []
    boxes = np.array([passes[index].boxes[row] for index, row in places])
    order = best_first(np.array([passes[index].scores[row] for index, row in places]))
    overlapping = [np.flatnonzero(row) for row in iou(boxes[order], boxes[order]) > SAME_FACE_IOU]
    taken = np.zeros(len(order), np.bool_)
    groups = []
    for leader, others in enumerate(overlapping):
        if taken[leader]:
            continue
        best = {places[order[leader]][0]: leader}
        for other in others[~taken[others]].tolist():
            best.setdefault(places[order[other]][0], other)
        taken[[*best.values()]] = True
        groups.append(sorted(places[order[one]] for one in best.values()))
    return groups
