"""The detector protocol, and the factory that loads the detector for given settings."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from blurguard.detection import model_zoo
from blurguard.detection.interpreter import Network
from blurguard.detection.multiscale import BlazeFaceDetector
from blurguard.settings import Settings
from blurguard.types import Detections


class Detector(Protocol):
    """The seam between pictures and networks; tests and other detectors stand in here."""

    @property
    def identity(self) -> str:
        """What looked: it stands in reports, and decides whether a result is up to date."""

    @property
    def threshold(self) -> float:
        """Score from which a face is hidden when the user sets none."""

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        """Return the faces in an upright (H, W, 3) uint8 RGB picture that score at least ``min_score``.

        A detector that looks a second time at what `exposure.exposure_defect` tells something of says so in their ``exposure_defect``.
        """


def load_detector(settings: Settings, threads: int = 1) -> BlazeFaceDetector:
    """Return the detector that the settings ask for.

    Raises:
        ModelError: no such model, file damaged, or no runtime.
    """
    spec = model_zoo.get_spec(settings.model)
    return BlazeFaceDetector(Network(spec, model_zoo.load_weights(spec), threads), settings.mode)
