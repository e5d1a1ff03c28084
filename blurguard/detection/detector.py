"""The protocol that every face detector implements. The rest of blurguard knows detectors only through it."""

from typing import Protocol, runtime_checkable

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

        A score is the probability that the box is a face, 0 to 1.

        A detector may set `Detections.flaw` if a second pass corrected a badly exposed image.
        """


@runtime_checkable
class TwoSpeedDetector(Detector, Protocol):
    """A detector that may have a quicker one for the frames of a video between those that it sees itself."""

    @property
    def quick(self) -> Detector | None:
        """The quicker detector, or None. It runs in the same thread, and its scores are probabilities too."""
