"""blurguard hides every face in pictures and videos, for good, on this computer.

>>> import blurguard
>>> hidden = blurguard.hide_faces(pixels)                       # an RGB array -> an RGB array
>>> anonymizer = blurguard.Anonymizer(blurguard.Settings(mode=blurguard.Mode.FAST))
>>> outcome = anonymizer.process(Path("a.jpg"), Path("a_blurred.jpg"))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blurguard.anonymize.anonymizer import Anonymizer, hide_faces
    from blurguard.detection.detector import Detector
    from blurguard.errors import BlurguardError, ConfigError, InputError, ModelError, OutputError
    from blurguard.settings import Mode, Settings, Shape, Style
    from blurguard.types import Detections, Face, Image, Layout, Outcome, Region, Status

__version__ = "0.1.0"

# Loaded on first use: `blurguard --help` shall not wait for OpenCV.
_HOMES = {
    "Anonymizer": "anonymize.anonymizer",
    "BlurguardError": "errors",
    "ConfigError": "errors",
    "Detections": "types",
    "Detector": "detection.detector",
    "Face": "types",
    "Image": "types",
    "InputError": "errors",
    "Layout": "types",
    "Mode": "settings",
    "ModelError": "errors",
    "Outcome": "types",
    "OutputError": "errors",
    "Region": "types",
    "Settings": "settings",
    "Shape": "settings",
    "Status": "types",
    "Style": "settings",
    "hide_faces": "anonymize.anonymizer",
}
__all__ = [
    "Anonymizer",
    "BlurguardError",
    "ConfigError",
    "Detections",
    "Detector",
    "Face",
    "Image",
    "InputError",
    "Layout",
    "Mode",
    "ModelError",
    "Outcome",
    "OutputError",
    "Region",
    "Settings",
    "Shape",
    "Status",
    "Style",
    "hide_faces",
]


def __getattr__(name: str) -> object:
    """Import what is asked for from where it lives."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
