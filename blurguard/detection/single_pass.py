"""One run of a network: image in, boxes and scores out."""

import math

import numpy as np
from numpy.typing import NDArray

from blurguard.boxes import Boxes
from blurguard.detection.interpreter import Network
from blurguard.detection.model_zoo import NetworkSpec
from blurguard.detection.views import bucket
from blurguard.types import Detections

SCORE_CLIP = 100.0  # MediaPipe, face_detection.pbtxt: score_clipping_thresh
MAX_LOG_SIZE = 10.0  # keeps wild predictions finite
MAX_PER_PASS = 3000  # keeps merging fast on noise at --min-score 0.01


def detect_once(network: Network, rgb: NDArray[np.uint8], min_score: float) -> Detections:
    """Return the faces in one image at its own size, before any merging.

    Args:
        network: the weights.
        rgb: (h, w, 3) uint8; padded with black to a size at which the network runs.
        min_score: lowest score of a cell that counts, 0 to 1.

    Returns:
        Tight boxes in px of ``rgb``, best first.
    """
    boxes, logits = network.run(_pad_to_bucket(rgb, network.spec.size_multiple))
    rows, columns = np.nonzero(logits >= math.log(min_score / (1 - min_score)))
    best = logits[rows, columns]
    order = np.argsort(-best, kind="stable")[:MAX_PER_PASS]
    rows, columns, best = rows[order], columns[order], best[order]
    scores = 1 / (1 + np.exp(-np.clip(best, -SCORE_CLIP, SCORE_CLIP)))
    cells = np.stack([columns, rows], axis=1)
    return Detections(_decode(network.spec, boxes[rows, columns], cells), scores.astype(np.float32))


def _decode(spec: NetworkSpec, raw: Boxes, cells: NDArray[np.intp]) -> Boxes:
    """Decode (N, 4) raw x, y, width, height to (N, 4) x0 y0 x1 y1, corrected to the edges of the face."""
    anchors = (cells + 0.5) * spec.stride  # centers of the cells, px
    raw_size = np.exp(np.minimum(raw[:, 2:], MAX_LOG_SIZE)) if spec.log_sizes else np.clip(raw[:, 2:], 0, None)
    size = raw_size * spec.size_unit * np.array(spec.box_scale)
    center = anchors + raw[:, :2] * spec.offset_unit + size * np.array(spec.box_shift)
    return np.concatenate([center - size / 2, center + size / 2], axis=1).astype(np.float32)


def _pad_to_bucket(rgb: NDArray[np.uint8], multiple: int) -> NDArray[np.uint8]:
    """Return the image in the top left corner of a black canvas, whose sides are rounded up to one of a few lengths."""
    bottom, right = (bucket(side, multiple) - side for side in rgb.shape[:2])
    return np.pad(rgb, ((0, bottom), (0, right), (0, 0))) if bottom or right else rgb
