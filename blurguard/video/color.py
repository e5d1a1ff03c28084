"""Color space, HDR10 metadata and rotation of a video, as FFmpeg stores them."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import NamedTuple


class ColorSpace(NamedTuple):
    """FFmpeg's color codes (ITU-T H.273). A range is 1 (narrow) or 2 (full). Unknown is 0, or 2 in the others."""

    range: int
    primaries: int
    transfer: int
    matrix: int


class MasteringDisplay(NamedTuple):
    """Color volume of the mastering display (SMPTE ST 2086): CIE 1931 x and y, luminance in cd/m²."""

    red: tuple[Fraction, Fraction]
    green: tuple[Fraction, Fraction]
    blue: tuple[Fraction, Fraction]
    white: tuple[Fraction, Fraction]
    darkest: Fraction
    brightest: Fraction


def rotation_of(matrix: tuple[int, ...]) -> int:
    """Return the counter-clockwise rotation, in multiples of 90 degrees, that turns a frame upright.

    A display matrix puts point (p, q) of the frame at height b p + d q, downwards (ISO/IEC 14496-12, 6.2.2).
    """
    b, d = matrix[1], matrix[4]
    if abs(d) >= abs(b):
        return 0 if d >= 0 else 180
    return 270 if b > 0 else 90


def parse_mastering_display(data: bytes) -> MasteringDisplay | None:
    """Parse FFmpeg's AVMasteringDisplayMetadata: ten rationals, then two flags for primaries and luminance."""
    if len(data) < 88 or struct.unpack_from("=2i", data, 80) != (1, 1):
        return None
    numbers = struct.unpack_from("=20i", data)
    if not all(numbers[1::2]):
        return None
    values = [Fraction(top, bottom) for top, bottom in zip(numbers[::2], numbers[1::2], strict=True)]
    red, green, blue, white = ((values[at], values[at + 1]) for at in (0, 2, 4, 6))
    return MasteringDisplay(red, green, blue, white, values[8], values[9])
