"""The scales of each pass: rules from the size of an image to factors on it.

Costs follow the number of pixels that a network sees, so most rules bound that number. The side of a face that a
network detects best is bounded too, so each rule goes down to a small copy for faces that fill the image.
"""

import math
from collections.abc import Callable
from typing import Final

Rule = Callable[[int, int], list[float]]
"""Maps width and height, px, to scales, finest first."""

MAX_SCALE = 2.0  # more adds no detail
FAST_SIDE_PX = 640  # longer side of the finest copy of the fast mode
FAST_SHORT_SIDE_PX = 360  # its least shorter side, so that long images are not shrunk to nothing
FAST_RATIOS = (0.3, 0.15)  # coarser copies. The last one takes 1 ms and shows faces that fill the image.
# Px up to which images are enlarged for CenterFace, at most 1.5 times. That scale shows the most faces of WIDER FACE
# images, of about 0.7 million px, for its cost (`python -m calibration combinations`).
FINE_PX, MAX_FINE_SCALE = 1_600_000, 1.5
COARSE_RATIO = 1 / 3  # from one copy to the next coarser one
COARSE_SIDE_PX = 640  # no coarser copy is made of one with this longer side
MEDIUM_PX = 3_000_000  # more would cost more than it shows: faces of few px of so large images are seldom legible
ROTATED_SIDE_PX = 416


def fast(width: int, height: int) -> list[float]:
    """Return a bounded size, and coarser ones for large faces."""
    longer, shorter = max(width, height), min(width, height)
    finest = min(MAX_SCALE, max(FAST_SIDE_PX / longer, FAST_SHORT_SIDE_PX / shorter))
    return [finest, *(finest * ratio for ratio in FAST_RATIOS)]


def fine(width: int, height: int) -> list[float]:
    """Return the own size, or more for small images."""
    return [min(MAX_FINE_SCALE, max(1.0, math.sqrt(FINE_PX / (width * height))))]


def coarse(width: int, height: int) -> list[float]:
    """Return scales below the fine one, down to a small copy."""
    scales = fine(width, height)
    while scales[-1] * max(width, height) > COARSE_SIDE_PX or len(scales) == 1:
        scales.append(scales[-1] * COARSE_RATIO)
    return scales[1:]


def medium(width: int, height: int) -> list[float]:
    """Return the own size, or more for small and less for large images."""
    return [min(own(width, height)[0], math.sqrt(MEDIUM_PX / (width * height)))]


def octaves(width: int, height: int) -> list[float]:
    """Return the halves of the own size, or of more for small images, down to a small copy."""
    scales = [own(width, height)[0] / 2]
    while max(width, height) * scales[-1] / 2 >= SMALLEST_OCTAVE_PX:
        scales.append(scales[-1] / 2)
    return scales


def own(width: int, height: int) -> list[float]:
    """Return the own size, or more for images under the size of the fast mode."""
    return [min(MAX_SCALE, max(1.0, FAST_SIDE_PX / max(width, height)))]


def pyramid(width: int, height: int) -> list[float]:
    """Return the own size and its octaves."""
    return [*own(width, height), *octaves(width, height)]


def rotated(width: int, height: int) -> list[float]:
    """Return a bounded size for the rotated passes."""
    return [min(1.0, ROTATED_SIDE_PX / max(width, height))]


SMALLEST_OCTAVE_PX = 100  # longer side: at 112 px faces that fill the image are detected
RULES: Final[dict[str, Rule]] = {
    rule.__name__: rule for rule in (fast, fine, coarse, medium, own, octaves, pyramid, rotated)
}
