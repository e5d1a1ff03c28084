"""A video's frame as numpy sees it: planes that can be painted on, and the RGB picture that a detector looks at.

Faces are hidden in the frame's own planes and depth. Nothing is converted there and back, so what is not
hidden reaches the encoder as the decoder gave it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from av import VideoFrame
from numpy.typing import NDArray

from blurguard.redaction.mosaic import NOISE_RATIO, Canvas, Mosaic, Plane, draw_outline, redact_region
from blurguard.settings import Shape, Style
from blurguard.types import Image, Layout, Pixels, Region

_PLANAR = re.compile(r"(yuvj?a?4\d\d|gbra?|gray)p?(9|1[0246])?(le)?|nv12|nv21")
_PACKED = re.compile(r"(rgb|bgr)(24|0|a)|rgba|bgra|rgb48le|rgba64le")
# Weights of red and blue in luma, by AVColorSpace: BT.709, BT.470BG, SMPTE 170M, BT.2020 (ITU-T H.273, table 4).
_LUMA_WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
_HD_HEIGHT = 720  # what does not say its colour space is taken for BT.709 from here on, as players do
_CHROMA_NOISE = 0.3  # of that in luma: more would only make faces green and purple
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG


def is_supported(pixel_format: str) -> bool:
    """Tell whether faces can be hidden in frames of this pixel format."""
    return bool(_PLANAR.fullmatch(pixel_format) or _PACKED.fullmatch(pixel_format))


def planes_of(frame: VideoFrame, rotation: int, box_rgb: tuple[int, int, int]) -> list[Plane]:
    """Return the planes of a frame, upright and writable, without alpha.

    Args:
        frame: of a format that ``is_supported`` knows; becomes writable, which copies it where others read it.
        rotation: degrees counter-clockwise by which it is turned for display, a multiple of 90.
        box_rgb: the colour of boxes drawn on it.
    """
    frame.make_writable()
    planes = []
    for index, colors in _colors_by_plane(frame).items():
        pixels, step_x, step_y = _pixels(frame, index)
        if rotation % 180:
            step_x, step_y = step_y, step_x
        white = (1 << frame.format.components[0].bits) - 1
        black, color = _in_frame(frame, (0, 0, 0)), _in_frame(frame, box_rgb)
        is_chroma = not frame.format.is_rgb and 0 not in colors
        noise = NOISE_RATIO * white * (_CHROMA_NOISE if is_chroma else 1)
        canvas = Canvas(np.rot90(pixels, rotation // 90)[:, :, : len(colors)], white, black[colors], noise)
        planes.append(Plane(canvas, step_x, step_y, color[colors]))
    return planes


def _colors_by_plane(frame: VideoFrame) -> dict[int, list[int]]:
    """Return which components lie in each plane, in their order there; alpha is left out."""
    colors: dict[int, list[int]] = {}
    for number, component in enumerate(frame.format.components):
        if not component.is_alpha:
            colors.setdefault(component.plane, []).append(number)
    if frame.format.name.startswith("bgr"):
        colors = {plane: numbers[::-1] for plane, numbers in colors.items()}
    if frame.format.name == "nv21":
        colors[1] = colors[1][::-1]
    return colors


def _pixels(frame: VideoFrame, index: int) -> tuple[Pixels, int, int]:
    """Return a plane as (H, W, C), a view, and how many px wide and high its samples are."""
    plane, form = frame.planes[index], frame.format
    inside = [part for part in form.components if part.plane == index]
    bits = max(part.bits for part in inside)
    buffer = memoryview(plane)
    samples: Pixels = np.frombuffer(buffer, np.uint8) if bits <= 8 else np.frombuffer(buffer, np.uint16)
    channels = len(inside)
    if _PACKED.fullmatch(form.name):  # rgb0 has a fourth that is no component
        channels = form.padded_bits_per_pixel // (8 * samples.itemsize)
    rows = samples.reshape(plane.height, -1)[:, : plane.width * channels]
    pixels = rows.reshape(plane.height, plane.width, channels)
    return pixels, _step(frame.width, plane.width), _step(frame.height, plane.height)


def _step(px: int, samples: int) -> int:
    """Return how many px a sample stands for: a power of two, also where the last one stands for fewer."""
    return 1 << (-(-px // samples) - 1).bit_length()


def _in_frame(frame: VideoFrame, rgb: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return an 8-bit RGB colour in the components of a frame, in their order: float32 (3,)."""
    scale = (1 << frame.format.components[0].bits) / 256
    red, green, blue = rgb
    if frame.format.is_rgb:
        return np.array(rgb, np.float32) * np.float32(scale)
    weights = _LUMA_WEIGHTS[1 if frame.height >= _HD_HEIGHT else 6]
    of_red, of_blue = _LUMA_WEIGHTS.get(frame.colorspace, weights)
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    cb, cr = (blue - luma) / (2 - 2 * of_blue), (red - luma) / (2 - 2 * of_red)
    full = frame.color_range == _FULL_RANGE or frame.format.name.startswith(("yuvj", "gray"))
    values = (luma, cb + 128, cr + 128) if full else (16 + luma * 219 / 255, 128 + cb * 224 / 255, 128 + cr * 224 / 255)
    return np.array(values, np.float32) * np.float32(scale)


def canvas_of(image: Image) -> Canvas:
    """Return what of an image can be painted on."""
    pixels = image.pixels[:, :, : image.layout.colors]
    return Canvas(pixels, image.white, color_in(image, (0, 0, 0)), NOISE_RATIO * image.white)


def hide(image: Image, regions: Iterable[Region], style: Style = Style.BLUR, shape: Shape = Shape.ELLIPSE) -> Image:
    """Return a copy of the image with every region hidden; alpha stays as it is."""
    hidden = Image(image.pixels.copy(), image.layout, image.palette)
    hide_into(hidden, regions, style, shape)
    return hidden


def hide_into(image: Image, regions: Iterable[Region], style: Style, shape: Shape) -> None:
    """Hide every region in ``image.pixels`` itself."""
    canvas = canvas_of(image)
    for region in regions:
        redact_region(canvas, region, Mosaic(), style, shape)


def draw_boxes_into(image: Image, regions: Iterable[Region], rgb: tuple[int, int, int]) -> None:
    """Draw an antialiased 2-px rectangle of that colour round every region, into ``image.pixels`` itself."""
    canvas, color = canvas_of(image), color_in(image, rgb)
    for region in regions:
        draw_outline(canvas, region, color)


def color_in(image: Image, rgb: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return an 8-bit RGB colour in the channels and depth of the image, without alpha: float32 (C,)."""
    red, green, blue = rgb
    if image.layout is Layout.CMYK:
        black = 255 - max(rgb)
        ink = [255 * (255 - v - black) / max(255 - black, 1) for v in rgb]
        return np.array([*ink, black], np.float32) * np.float32(image.white / 255)
    if image.layout.colors == 1:  # ITU-R BT.601 luma
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        return np.array([luma], np.float32) * np.float32(image.white / 255)
    return np.array(rgb, np.float32) * np.float32(image.white / 255)
