"""The few things about a picture that may travel with it; everything else stays behind.

An allow-list, because the things that show a face (thumbnails, previews, appended videos, maker notes) or a
place (GPS, serial numbers, names) have too many hiding places for a block-list.
"""

from __future__ import annotations

import math
import re
from numbers import Real
from typing import Any

from PIL import ExifTags
from PIL import Image as Pillow

ORIENTATION = ExifTags.Base.Orientation
_MAX_TEXT = 128
_MAX_NUMBERS = 4
_MAX_PROFILE_BYTES = 8 << 20  # bytes; printing profiles reach some 3 MB

_B = ExifTags.Base
# What --keep-metadata keeps: when, with which camera and lens, how exposed.
KEPT_BASE = frozenset({_B.Make, _B.Model, _B.DateTime})
KEPT_EXIF = frozenset(
    {
        _B.DateTimeOriginal, _B.DateTimeDigitized, _B.OffsetTime, _B.OffsetTimeOriginal, _B.OffsetTimeDigitized,
        _B.SubsecTime, _B.SubsecTimeOriginal, _B.SubsecTimeDigitized,
        _B.ExposureTime, _B.FNumber, _B.ExposureProgram, _B.ISOSpeedRatings, _B.SensitivityType,
        _B.ShutterSpeedValue, _B.ApertureValue, _B.BrightnessValue, _B.ExposureBiasValue, _B.MaxApertureValue,
        _B.MeteringMode, _B.LightSource, _B.Flash, _B.FocalLength, _B.FocalLengthIn35mmFilm, _B.WhiteBalance,
        _B.ExposureMode, _B.DigitalZoomRatio, _B.SceneCaptureType,
        _B.LensSpecification, _B.LensMake, _B.LensModel,
    }
)  # fmt: skip
# Only these may hold words; the times hold figures and the rest numbers.
_NAMES = frozenset({_B.Make, _B.Model, _B.LensMake, _B.LensModel})
_TIMES = frozenset(
    {
        _B.DateTime, _B.DateTimeOriginal, _B.DateTimeDigitized, _B.OffsetTime, _B.OffsetTimeOriginal,
        _B.OffsetTimeDigitized, _B.SubsecTime, _B.SubsecTimeOriginal, _B.SubsecTimeDigitized,
    }
)  # fmt: skip
_TIME = re.compile(r"[0-9:.+\- ]{1,32}", re.ASCII)


def allowed_exif(exif: Pillow.Exif) -> bytes:
    """Return an EXIF block with the kept tags of ``exif`` and nothing else; ``b""`` when none is there."""
    kept = Pillow.Exif()
    for tag in KEPT_BASE & set(exif):
        if _is_harmless(tag, exif[tag]):
            kept[tag] = exif[tag]
    camera = exif.get_ifd(ExifTags.IFD.Exif)
    details: dict[int, Any] = {
        int(tag): camera[tag] for tag in KEPT_EXIF & set(camera) if _is_harmless(tag, camera[tag])
    }
    if details:
        kept[ExifTags.IFD.Exif] = details
    return kept.tobytes() if len(kept) else b""


def orientation_of(exif: Pillow.Exif) -> int:
    """Return the EXIF orientation, 1 to 8; 1, as viewers take it, for anything else that stands there."""
    value = exif.get(ORIENTATION)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def allowed_profile(profile: Any) -> bytes | None:
    """Return an ICC colour profile cut to its declared length, or None when it is not one (ICC.1:2022, 7.2)."""
    if not isinstance(profile, bytes) or len(profile) < 132 or profile[36:40] != b"acsp":
        return None
    size = int.from_bytes(profile[:4], "big")
    return profile[:size] if 132 <= size <= min(len(profile), _MAX_PROFILE_BYTES) else None


def allowed_resolution(dpi: Any) -> tuple[float, float] | None:
    """Return x and y in dots per inch when they are plausible numbers."""
    try:
        x, y = float(dpi[0]), float(dpi[1])
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return None
    return (x, y) if all(math.isfinite(v) and 1 <= v <= 100_000 for v in (x, y)) else None


def _is_harmless(tag: int, value: Any) -> bool:
    """Names, times and a few numbers, each where it belongs: nothing that could hold a picture or a letter."""
    if tag in _NAMES:
        return isinstance(value, str) and len(value) <= _MAX_TEXT and value.isprintable()
    if tag in _TIMES:
        return isinstance(value, str) and _TIME.fullmatch(value) is not None
    numbers = value if isinstance(value, tuple) else (value,)
    return len(numbers) <= _MAX_NUMBERS and all(map(_is_number, numbers))


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, Real) and math.isfinite(float(value))
    except (ValueError, ZeroDivisionError, OverflowError):
        return False
