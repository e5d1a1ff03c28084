"""One picture at one scale -> boxes: what goes into the network and what its maps mean."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from blurguard.detection.interpreter import Network
from blurguard.types import Detections

SCORE_CLIP = 100.0  # MediaPipe, face_detection.pbtxt: score_clipping_thresh
MAX_LOG_SIZE = 10.0  # a wild guess stays a finite box
MAX_PER_PASS = 3000  # keeps merging quick on noise at --min-score 0.01


def detect_once(network: Network, rgb: NDArray[np.uint8], min_score: float, logit_shift: float = 0.0) -> Detections:
    """Return the faces in one picture at the size it has, before any merging.

    Args:
        network: the weights.
        rgb: (h, w, 3) uint8; padded with black to a size the network is run at.
        min_score: cells under it are left out, 0 to 1.
        logit_shift: added to every logit first.

    Returns:
        Tight boxes in px of ``rgb``, best first.
    """
    boxes, logits = network.run(_pad_to_bucket(rgb, network.spec.size_multiple))
    lowest = math.log(min_score / (1 - min_score)) - logit_shift
    rows, columns = np.nonzero(logits >= lowest)
    raw = logits[rows, columns] + np.float32(logit_shift)
    order = np.argsort(-raw, kind="stable")[:MAX_PER_PASS]
    rows, columns, raw = rows[order], columns[order], raw[order]
    scores = 1 / (1 + np.exp(-np.clip(raw, -SCORE_CLIP, SCORE_CLIP)))
    return Detections(_decode(network, boxes[rows, columns], rows, columns), scores.astype(np.float32))


def _decode(
    network: Network, raw: NDArray[np.float32], rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> NDArray[np.float32]:
    """(N, 4) x y, width, height as the network codes them -> (N, 4) x0 y0 x1 y1, corrected to the face's edges."""
    spec = network.spec
    anchors = (np.stack([columns, rows], axis=1) + 0.5) * spec.stride  # centres of the cells, px
    sizes = np.exp(np.minimum(raw[:, 2:], MAX_LOG_SIZE)) if spec.log_sizes else np.clip(raw[:, 2:], 0, None)
    size = sizes * spec.size_unit * np.array(spec.box_scale)
    center = anchors + raw[:, :2] * spec.offset_unit + size * np.array(spec.box_shift)
    return np.concatenate([center - size / 2, center + size / 2], axis=1).astype(np.float32)


def _pad_to_bucket(rgb: NDArray[np.uint8], multiple: int) -> NDArray[np.uint8]:
    """Return the picture in the corner of a black canvas of a size that is run."""
    height, width = (padded_side(side, multiple) for side in rgb.shape[:2])
    if (height, width) == rgb.shape[:2]:
        return rgb
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[: rgb.shape[0], : rgb.shape[1]] = rgb
    return canvas


def padded_side(side: int, multiple: int) -> int:
    """Return the side, px, that a picture of this side is run at: few enough that interpreters are reused.

    Steps are an eighth of the side, rounded to the network's multiple: at most one part in eight is padding.
    """
    step = max(multiple, 1 << max((side - 1).bit_length() - 4, 0))
    step = -(-step // multiple) * multiple
    return -(-side // step) * step
