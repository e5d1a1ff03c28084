"""The protocol that every face detector implements. The rest of blurguard knows detectors only through it."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from blurguard.types import Detections


class Detector(Protocol):
    """A face detector. Not thread-safe unless its class says so."""

    @property
    def identity(self) -> str:
        """Name and version for reports. If it changes, earlier results count as out of date and are redone."""

    @property
    def threshold(self) -> float:
        """Default score threshold."""

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        """Return the faces in an upright (H, W, 3) uint8 RGB image that score at least ``min_score``.

        A detector may set `Detections.flaw` if a second pass corrected a badly exposed image.
        """
