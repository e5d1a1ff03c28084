"""Chooses the detector for given settings. A new detector is returned from here."""

from pathlib import Path

from blurguard.detection.interpreter import Network
from blurguard.detection.model_zoo import load_manifest, load_weights
from blurguard.detection.multiscale import FusedDetector
from blurguard.settings import Mode, Settings


def load_detector(settings: Settings, models: Path | None = None) -> FusedDetector:
    """Return the detector that the settings select. Only the networks of its mode are read.

    Args:
        settings: model and mode count.
        models: folder of the manifest, by default that of the released models.

    Raises:
        ModelError: unknown model, damaged file, or runtime not installed.
    """
    manifest = load_manifest(models)
    model = manifest.model(settings.model)
    specs = [manifest.networks[name] for name in model.networks_of(settings.mode)]
    networks = {spec.name: Network(spec, load_weights(spec, models)) for spec in specs}
    detector = FusedDetector(manifest.identity(model, settings.mode), model.plans[settings.mode], networks)
    if settings.mode is Mode.ACCURATE:
        detector.quick = FusedDetector(detector.identity, model.plans[Mode.FAST], networks)
    return detector
