"""Allow-list of metadata that may be kept: some EXIF tags, color profile and resolution.

A block-list would not do. Faces (thumbnails, previews, appended videos, maker notes), places and persons (GPS,
serial numbers, names) can be stored in too many ways.
"""

import math
import re
from numbers import Real
from typing import Any

import PIL.Image
from PIL import ExifTags

_MAX_TEXT, _MAX_NUMBERS = 128, 4  # characters of a name, values of a tag
_MAX_PROFILE_BYTES = 8 << 20  # profiles of printers reach some 3 MB

_B = ExifTags.Base
# With --keep-metadata: time, camera, lens and exposure. Only names may hold words. Times hold digits, others numbers.
_NAMES = frozenset({_B.Make, _B.Model, _B.LensMake, _B.LensModel})
_EXIF_TIMES = frozenset({
    _B.DateTimeOriginal, _B.DateTimeDigitized, _B.OffsetTime, _B.OffsetTimeOriginal, _B.OffsetTimeDigitized,
    _B.SubsecTime, _B.SubsecTimeOriginal, _B.SubsecTimeDigitized,
})  # fmt: skip
KEPT_BASE = frozenset({_B.Make, _B.Model, _B.DateTime})
KEPT_EXIF = _EXIF_TIMES | {
    _B.ExposureTime, _B.FNumber, _B.ExposureProgram, _B.ISOSpeedRatings, _B.SensitivityType, _B.ShutterSpeedValue,
    _B.ApertureValue, _B.BrightnessValue, _B.ExposureBiasValue, _B.MaxApertureValue, _B.MeteringMode, _B.LightSource,
    _B.Flash, _B.FocalLength, _B.FocalLengthIn35mmFilm, _B.WhiteBalance, _B.ExposureMode, _B.DigitalZoomRatio,
    _B.SceneCaptureType, _B.LensSpecification, _B.LensMake, _B.LensModel,
}  # fmt: skip
_TIME = re.compile(r"[0-9:.+\- ]{1,32}", re.ASCII)


def allowed_exif(exif: PIL.Image.Exif) -> bytes:
    """Return an EXIF block with only the allowed tags of ``exif``, ``b""`` if it has none of them."""
    allowed = PIL.Image.Exif()
    allowed.update({int(tag): exif[tag] for tag in KEPT_BASE & set(exif) if _is_harmless(tag, exif[tag])})
    camera = exif.get_ifd(ExifTags.IFD.Exif)
    if details := {int(tag): camera[tag] for tag in KEPT_EXIF & set(camera) if _is_harmless(tag, camera[tag])}:
        allowed[ExifTags.IFD.Exif] = details
    return allowed.tobytes() if len(allowed) else b""


def orientation_of(exif: PIL.Image.Exif) -> int:
    """Return the EXIF orientation, 1 to 8. Any other value counts as 1, as in viewers."""
    value = exif.get(_B.Orientation)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def allowed_profile(profile: Any) -> bytes | None:
    """Return an ICC color profile cut to its declared length, or None if it is not one (ICC.1:2022, 7.2)."""
    if not isinstance(profile, bytes) or len(profile) < 132 or profile[36:40] != b"acsp":
        return None
    size = int.from_bytes(profile[:4], "big")
    return profile[:size] if 132 <= size <= min(len(profile), _MAX_PROFILE_BYTES) else None


def allowed_resolution(dpi: Any) -> tuple[float, float] | None:
    """Return x and y in dots per inch, or None if they are not plausible numbers."""
    try:
        x, y = float(dpi[0]), float(dpi[1])
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return None
    return (x, y) if all(math.isfinite(v) and 1 <= v <= 100_000 for v in (x, y)) else None


def _is_harmless(tag: int, value: Any) -> bool:
    """Whether a value has the form of its tag: a short name, a time, or a few numbers."""
    if tag in _NAMES:
        return isinstance(value, str) and len(value) <= _MAX_TEXT and value.isprintable()
    if tag == _B.DateTime or tag in _EXIF_TIMES:
        return isinstance(value, str) and _TIME.fullmatch(value) is not None
    numbers = value if isinstance(value, tuple) else (value,)
    return len(numbers) <= _MAX_NUMBERS and all(map(_is_number, numbers))


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, Real) and math.isfinite(float(value))
    except (ValueError, ZeroDivisionError, OverflowError):
        return False
