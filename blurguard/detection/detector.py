"""The detector protocol, and the function that loads the detector for given settings."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from blurguard.detection import model_zoo
from blurguard.detection.interpreter import Network
from blurguard.detection.multiscale import BlazeFaceDetector
from blurguard.settings import Settings
from blurguard.types import Detections


class Detector(Protocol):
    """Interface between images and networks. Tests and other detectors implement it too."""

    @property
    def identity(self) -> str:
        """Name and version for reports. Results of another detector are out of date."""

    @property
    def threshold(self) -> float:
        """Default score threshold."""

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        """Return the faces in an upright (H, W, 3) uint8 RGB image that score at least ``min_score``.

        A detector that adds a second pass for an exposure defect names the defect in `Detections.flaw`.
        """


def load_detector(settings: Settings) -> BlazeFaceDetector:
    """Return the detector that the settings select.

    Raises:
        ModelError: unknown model, damaged file, or runtime not installed.
    """
    spec = model_zoo.get_spec(settings.model)
    return BlazeFaceDetector(Network(spec, model_zoo.load_weights(spec)), settings.mode)
