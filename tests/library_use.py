"""Code as users of the library write it. A type checker reads it; nothing runs it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import blurguard
from blurguard import Anonymizer, Detections, Detector, Image, Layout, Mode, Outcome, Settings, hide_faces


class Blind:
    identity = "blind"
    threshold = 0.5

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


class Property:
    @property
    def identity(self) -> str:
        return "blind"

    @property
    def threshold(self) -> float:
        return 0.5

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        return Blind().detect(rgb, min_score)


grey: NDArray[np.uint8] = hide_faces(np.zeros((8, 8), np.uint8))
image: Image = blurguard.hide_faces(Image(np.zeros((8, 8, 3), np.uint8), Layout.RGB), Settings(mode=Mode.FAST))
detectors: list[Detector] = [Blind(), Property()]
outcome: Outcome = Anonymizer(Settings(), Blind()).process(Path("a"), Path("b"), replace_existing=True)
sixteen_bit: NDArray[np.uint16] = np.zeros((8, 8), np.uint16)
still_sixteen: NDArray[np.uint16] = hide_faces(sixteen_bit)
