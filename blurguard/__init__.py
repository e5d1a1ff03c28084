"""Hides every face in pictures and videos, irreversibly and offline.

>>> import blurguard
>>> hidden = blurguard.hide_faces(pixels)                       # RGB array -> RGB array
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
__all__ = [
    "Anonymizer", "BlurguardError", "ConfigError", "Detections", "Detector", "Face", "Image", "InputError", "Layout",
    "Mode", "ModelError", "Outcome", "OutputError", "Region", "Settings", "Shape", "Status", "Style", "hide_faces",
]  # fmt: skip
_MODULES = ("errors", "settings", "types", "detection.detector", "anonymize.anonymizer")  # the quickest import first


def __getattr__(name: str) -> object:
    """Import a public name on first use: ``blurguard --help`` does not wait for OpenCV."""
    for module in _MODULES if name in __all__ else ():
        public = vars(import_module(f"{__name__}.{module}"))
        if name in public:
            return public[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
