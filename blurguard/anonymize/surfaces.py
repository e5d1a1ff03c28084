"""Surfaces of images and video frames: views of their own pixels, in which faces are hidden.

Faces are hidden in the file's own planes and bit depth. No pixel is converted back and forth, so everything outside
of the hidden regions reaches the encoder exactly as the decoder returned it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blurguard.redaction.mosaic import NOISE_RATIO, Surface
from blurguard.types import Image, Layout, Pixels

if TYPE_CHECKING:
    from av import VideoFrame  # photos do without FFmpeg

RGB = tuple[int, int, int]  # 8 bits each

BLACK: RGB = (0, 0, 0)
_PLANAR = re.compile(r"(yuvj?a?4\d\d|gbra?|gray)p?(9|1[0246])?(le)?|nv12|nv21")
_PACKED = re.compile(r"(rgb|bgr)(24|0|a)|rgba|bgra|rgb48le|rgba64le")
# Weights of red and blue in luma, by AVColorSpace: BT.709, BT.470BG, SMPTE 170M, BT.2020 (ITU-T H.273, table 4).
_LUMA_WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
_HD_HEIGHT = 720  # from here on players assume BT.709 where the color space is unknown
_CHROMA_NOISE = 0.3  # of that in luma: more would only make faces green and purple
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG


def surface_of(image: Image, box_rgb: RGB = BLACK) -> Surface:
    """Return the color channels of an image, without alpha.

    Args:
        image: upright, writable.
        box_rgb: color of boxes drawn on it.
    """
    pixels, noise = image.pixels[:, :, : image.layout.colors], NOISE_RATIO * image.white
    return Surface(pixels, image.white, _image_color(image, BLACK), _image_color(image, box_rgb), noise)


def surfaces_of(frame: VideoFrame, rotation: int, box_rgb: RGB) -> list[Surface]:
    """Return the planes of a frame, upright and writable, without alpha.

    Args:
        frame: in a pixel format that ``is_supported``. It becomes writable, by a copy if the decoder still needs it.
        rotation: degrees counterclockwise by which it is turned for display, a multiple of 90.
        box_rgb: color of boxes drawn on it.
    """
    frame.make_writable()
    white = (1 << frame.format.components[0].bits) - 1
    black, box_color = _frame_color(frame, BLACK), _frame_color(frame, box_rgb)
    surfaces = []
    for index, colors in _components_by_plane(frame).items():
        pixels, *steps = _plane_pixels(frame, index)
        step_x, step_y = reversed(steps) if rotation % 180 else steps
        is_chroma = not frame.format.is_rgb and 0 not in colors
        noise = NOISE_RATIO * white * (_CHROMA_NOISE if is_chroma else 1)
        upright = np.rot90(pixels, rotation // 90)[:, :, : len(colors)]
        surfaces.append(Surface(upright, white, black[colors], box_color[colors], noise, step_x, step_y))
    return surfaces


def is_supported(pixel_format: str) -> bool:
    """Whether faces can be hidden in frames of this pixel format (FFmpeg's name)."""
    return bool(_PLANAR.fullmatch(pixel_format) or _PACKED.fullmatch(pixel_format))


def _components_by_plane(frame: VideoFrame) -> dict[int, list[int]]:
    """Return the components in each plane, in their order there, without alpha."""
    components: dict[int, list[int]] = {}
    for number, component in enumerate(frame.format.components):
        if not component.is_alpha:
            components.setdefault(component.plane, []).append(number)
    if frame.format.name.startswith("bgr"):
        components = {plane: numbers[::-1] for plane, numbers in components.items()}
    if frame.format.name == "nv21":
        components[1] = components[1][::-1]
    return components


def _plane_pixels(frame: VideoFrame, index: int) -> tuple[Pixels, int, int]:
    """Return a plane as (H, W, C), a view, and the width and height of its samples, px."""
    plane, form = frame.planes[index], frame.format
    inside = [part for part in form.components if part.plane == index]
    is_deep, buffer, channels = max(part.bits for part in inside) > 8, memoryview(plane), len(inside)
    samples: Pixels = np.frombuffer(buffer, np.uint16) if is_deep else np.frombuffer(buffer, np.uint8)
    if _PACKED.fullmatch(form.name):  # the fourth channel of rgb0 is not a component
        channels = form.padded_bits_per_pixel // (8 * samples.itemsize)
    rows = samples.reshape(plane.height, -1)[:, : plane.width * channels]
    pixels = rows.reshape(plane.height, plane.width, channels)
    return pixels, _step(frame.width, plane.width), _step(frame.height, plane.height)


def _step(px: int, samples: int) -> int:
    """Return the px of a sample, a power of two. The last sample may stand for fewer."""
    return 1 << (-(-px // samples) - 1).bit_length()


def _image_color(image: Image, rgb: RGB) -> NDArray[np.float32]:
    """Return an 8-bit color in the channels and depth of an image, without alpha: float32 (C,)."""
    (red, green, blue), black = rgb, 255 - max(rgb)
    values: list[float] = [*rgb]
    if image.layout is Layout.CMYK:
        values = [*(255 * (255 - v - black) / max(255 - black, 1) for v in rgb), black]
    elif image.layout.colors == 1:  # ITU-R BT.601 luma
        values = [0.299 * red + 0.587 * green + 0.114 * blue]
    return np.array(values, np.float32) * np.float32(image.white / 255)


def _frame_color(frame: VideoFrame, rgb: RGB) -> NDArray[np.float32]:
    """Return an 8-bit color in the components and depth of a frame, in their order: float32 (3,)."""
    scale = np.float32((1 << frame.format.components[0].bits) / 256)
    red, green, blue = rgb
    if frame.format.is_rgb:
        return np.array(rgb, np.float32) * scale
    unnamed = _LUMA_WEIGHTS[1 if frame.height >= _HD_HEIGHT else 6]
    of_red, of_blue = _LUMA_WEIGHTS.get(frame.colorspace, unnamed)
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    cb, cr = (blue - luma) / (2 - 2 * of_blue), (red - luma) / (2 - 2 * of_red)
    full = frame.color_range == _FULL_RANGE or frame.format.name.startswith(("yuvj", "gray"))
    values = (luma, cb + 128, cr + 128) if full else (16 + luma * 219 / 255, 128 + cb * 224 / 255, 128 + cr * 224 / 255)
    return np.array(values, np.float32) * scale
