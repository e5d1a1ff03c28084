"""Third-party detectors on whole pictures, for labels and comparison: CenterFace with any weights, and YuNet.

YuNet's file (Apache-2.0) is ``yunet_n_640_640.onnx`` of libfacedetection.train. It is never shipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blurguard.boxes import nms, select
from blurguard.detection.interpreter import Network
from blurguard.detection.single_pass import detect_once
from blurguard.types import Detections
from calibration import CalibrationError
from calibration.candidate import candidate
from calibration.centerface import SIZE_MULTIPLE, STRIDE, CenterFace
from calibration.convert_centerface import exported

__all__ = ["CenterFaceDetector", "Detector", "LiteRtCenterFace", "YuNet"]

CENTERFACE_OVERLAP = 0.3  # IoU from which the worse of two boxes is dropped, as its authors set it
YUNET_OVERLAP = 0.45
MOST_BOXES = 5000

Pixels = NDArray[np.uint8]


class Detector(Protocol):
    """Finds faces in (H, W, 3) RGB."""

    def detect(self, rgb: Pixels, min_score: float) -> Detections:
        """Return the faces from this score up, px."""


class CenterFaceDetector:
    """CenterFace on pictures that are scaled by ``scale`` first; ``half`` computes in bfloat16."""

    def __init__(self, network: CenterFace, scale: float = 1.0, *, half: bool = False) -> None:
        self.network, self.scale, self.half = network, scale, half

    def detect(self, rgb: Pixels, min_score: float) -> Detections:
        """Return the faces of (H, W, 3) from this score up, px."""
        height, width = rgb.shape[:2]
        wide, high = (
            max(1, int(np.ceil(side * self.scale / SIZE_MULTIPLE))) * SIZE_MULTIPLE for side in (width, height)
        )
        resized = np.asarray(cv2.resize(rgb, (wide, high)), np.float32)
        image = torch.from_numpy(resized).permute(2, 0, 1)[None]  # NHWC in memory
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            boxes, scores = _boxes_of(self.network(image), min_score)
        kept = np.asarray(cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), min_score, CENTERFACE_OVERLAP), np.intp)
        ratio = np.array([width / wide, height / high] * 2, np.float32)
        boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1) * ratio
        return Detections(boxes[kept.ravel()], scores[kept.ravel()])


class LiteRtCenterFace:
    """CenterFace in float32 on LiteRT, on pictures at their own size, padded with black to one of a few sizes."""

    def __init__(self, network: CenterFace) -> None:
        data = exported(network)
        self._network = Network(candidate(data, "CenterFace"), data)

    def detect(self, rgb: Pixels, min_score: float) -> Detections:
        """Return the faces of (H, W, 3) from this score up, px."""
        found = detect_once(self._network, rgb, min_score)
        return select(found, nms(found.boxes, found.scores, CENTERFACE_OVERLAP))


class YuNet:
    """YuNet on pictures at their own size.

    Raises:
        CalibrationError: there is no such file, or OpenCV cannot read it.
    """

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise CalibrationError(f"{file}: not found")
        try:
            self._detector = cv2.FaceDetectorYN.create(str(file), "", (320, 320), 0.5, YUNET_OVERLAP, MOST_BOXES)
        except cv2.error as error:
            raise CalibrationError(f"OpenCV cannot read the network {file}: {error.err}") from error

    def detect(self, rgb: Pixels, min_score: float) -> Detections:
        """Return the faces of (H, W, 3) from this score up, px."""
        self._detector.setInputSize((rgb.shape[1], rgb.shape[0]))
        self._detector.setScoreThreshold(min_score)
        _, found = self._detector.detect(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
        rows = np.zeros((0, 15), np.float32) if found is None else np.asarray(found, np.float32)
        return Detections(np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1), rows[:, -1])


def _boxes_of(maps: tuple[Tensor, Tensor, Tensor], min_score: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (N, 4) x y width height in px of the network's image, and scores (N,)."""
    logits, sizes, offsets = (values[0].float().numpy() for values in maps)
    heat = 1 / (1 + np.exp(-logits[0]))
    rows, columns = np.nonzero(heat >= min_score)
    height, width = np.exp(sizes[:, rows, columns]) * STRIDE
    y, x = (offsets[:, rows, columns] + np.stack([rows, columns]) + 0.5) * STRIDE
    boxes = np.stack([x - width / 2, y - height / 2, width, height], axis=1).astype(np.float32)
    return boxes, heat[rows, columns].astype(np.float32)
