"""Chooses the detector for given settings. A new detector is returned from here."""

from blurguard.detection import model_zoo
from blurguard.detection.interpreter import Network
from blurguard.detection.multiscale import BlazeFaceDetector
from blurguard.settings import Settings


def load_detector(settings: Settings) -> BlazeFaceDetector:
    """Return the detector that the settings select.

    Raises:
        ModelError: unknown model, damaged file, or runtime not installed.
    """
    spec = model_zoo.get_spec(settings.model)
    return BlazeFaceDetector(Network(spec, model_zoo.load_weights(spec)), settings.mode)
