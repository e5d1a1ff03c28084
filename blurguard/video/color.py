"""How a video's numbers mean light, and which side of it is up: what is carried along untouched."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import NamedTuple


class ColorSpace(NamedTuple):
    """How numbers mean light, as FFmpeg numbers it (ITU-T H.273; range: 1 narrow, 2 full); 0 or 2 is unknown."""

    range: int
    primaries: int
    transfer: int
    matrix: int


class MasteringDisplay(NamedTuple):
    """Colour volume of the mastering display (SMPTE ST 2086): CIE 1931 x and y, luminance in cd/m²."""

    red: tuple[Fraction, Fraction]
    green: tuple[Fraction, Fraction]
    blue: tuple[Fraction, Fraction]
    white: tuple[Fraction, Fraction]
    darkest: Fraction
    brightest: Fraction


def rotation_of(matrix: tuple[int, ...]) -> int:
    """Return the degrees counter-clockwise after which what is shown on top is on top, a multiple of 90.

    A point (p, q) of the frame is shown at height b p + d q, downwards (ISO/IEC 14496-12, 6.2.2).
    """
    b, d = matrix[1], matrix[4]
    if abs(d) >= abs(b):
        return 0 if d >= 0 else 180
    return 270 if b > 0 else 90


def parse_mastering_display(data: bytes) -> MasteringDisplay | None:
    """Read FFmpeg's AVMasteringDisplayMetadata: ten rationals, then whether primaries and luminance are told."""
    if len(data) < 88 or struct.unpack_from("=2i", data, 80) != (1, 1):
        return None
    numbers = struct.unpack_from("=20i", data)
    if not all(numbers[1::2]):
        return None
    values = [Fraction(top, bottom) for top, bottom in zip(numbers[::2], numbers[1::2], strict=True)]
    red, green, blue, white = ((values[at], values[at + 1]) for at in (0, 2, 4, 6))
    return MasteringDisplay(red, green, blue, white, values[8], values[9])
