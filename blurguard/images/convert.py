"""Converts between `Image`, Pillow's pictures and OpenCV's BGR arrays. Channels, depth and palettes are kept.

BGR exists only here and in the arguments of OpenCV's decoders and encoders.
"""

from typing import Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from blurguard.errors import InputError
from blurguard.types import Image, Layout, Palette, Pixels

_LAYOUTS = {"L": Layout.GREY, "LA": Layout.GREY_ALPHA, "RGB": Layout.RGB, "RGBA": Layout.RGBA, "CMYK": Layout.CMYK}
MODES = {layout: mode for mode, layout in _LAYOUTS.items()}
# Modes that differ only in storage from a supported one.
_EQUIVALENT_MODES = {"La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "PA": "RGBA", "YCbCr": "RGB"}
_BATCH = 4096  # colors compared with a palette at once


def from_pillow(picture: PIL.Image.Image) -> Image:
    """Return a loaded Pillow picture as it is stored, without applying its orientation.

    Raises:
        InputError: a mode that no supported format keeps (32-bit, Lab).
    """
    if picture.mode in ("1", "P"):
        return _from_indices(picture)
    if picture.mode.startswith("I;16"):  # in either byte order
        return Image(np.array(picture).astype(np.uint16)[:, :, None], Layout.GREY)
    if picture.mode in _EQUIVALENT_MODES:
        picture = picture.convert(_EQUIVALENT_MODES[picture.mode])
    if picture.mode not in _LAYOUTS:
        raise InputError(f"pixels of kind {picture.mode} are not supported; convert it to 8 or 16 bits per channel")
    layout = _LAYOUTS[picture.mode]
    return Image(np.array(picture).reshape(picture.height, picture.width, layout.channels), layout)


def to_pillow(image: Image) -> PIL.Image.Image:
    """Return the picture for Pillow to encode, with palette indices if the image has a palette."""
    if image.palette is not None:
        return _to_indices(image, image.palette)
    mode, pixels = MODES[image.layout], np.ascontiguousarray(image.pixels)
    if pixels.dtype == np.uint16:
        if image.layout is not Layout.GREY:
            raise ValueError(f"Pillow has no 16-bit {image.layout}")
        mode = "I;16"
    return PIL.Image.frombuffer(mode, (image.width, image.height), pixels, "raw", mode, 0, 1)


def from_bgr(bgr: NDArray[Any] | None) -> Image:
    """Return a 16-bit picture that OpenCV has decoded.

    Args:
        bgr: (H, W, 3 or 4) uint16, or None if OpenCV could not decode it.

    Raises:
        ValueError: damaged, or of another kind.
    """
    if bgr is None:
        raise ValueError("damaged data")
    channels = bgr.shape[2] if bgr.ndim == 3 else 1
    if bgr.dtype != np.uint16 or channels not in (3, 4):
        raise ValueError(f"{bgr.dtype} pixels of {channels} channels are not supported")
    code, layout = (cv2.COLOR_BGR2RGB, Layout.RGB) if channels == 3 else (cv2.COLOR_BGRA2RGBA, Layout.RGBA)
    return Image(np.asarray(cv2.cvtColor(bgr, code), np.uint16), layout)


def to_bgr(image: Image) -> NDArray[Any]:
    """Return the pixels of an RGB or RGBA image in OpenCV's order, (H, W, 3 or 4)."""
    return cv2.cvtColor(image.pixels, cv2.COLOR_RGBA2BGRA if image.layout.has_alpha else cv2.COLOR_RGB2BGR)


def apply_orientation(image: Image, orientation: int) -> Image:
    """Return the image upright. ``orientation`` is an EXIF value from 1 to 8, others change nothing."""
    palette = image.palette and Palette(image.palette.colors, _transpose(image.palette.indices, orientation))
    pixels = _transpose(image.pixels, orientation)
    return Image(pixels.reshape(*pixels.shape[:2], image.layout.channels), image.layout, palette)


def _transpose(pixels: Any, orientation: int) -> Any:
    """EXIF 2.32, tag 0x0112: 2 mirrored, 3 half turn, 4 flipped, 5 to 8 the same with x and y exchanged."""
    if orientation in (5, 6, 7, 8):
        pixels = cv2.transpose(pixels)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return pixels if flip is None else cv2.flip(pixels, flip)


def with_palette(image: Image) -> Image:
    """Return an 8-bit image with a palette of its own colors, or the same image if they are more than 256."""
    packed = _packed(image.pixels)
    values, indices = np.unique(packed, return_inverse=True)
    if len(values) > 256:
        return image
    colors = _unpacked(values, image.layout).copy()
    return Image(image.pixels, image.layout, Palette(colors, indices.reshape(packed.shape).astype(np.uint8)))


def remap_palette(image: Image, palette: Palette) -> NDArray[np.uint8]:
    """Return the (H, W) palette indices of an image whose pixels have changed: the nearest color for those.

    An unchanged pixel keeps its index, even if two indices have the same color. Clear pixels stay clear, but a
    pixel may get a color of another opacity.
    """
    indices = palette.indices.copy()
    changed = (image.pixels != palette.colors[palette.indices]).any(axis=2)
    values, inverse = np.unique(_packed(image.pixels[changed][None]), return_inverse=True)
    wanted = _as_numbers(_unpacked(values, image.layout), image.layout)
    offered = _as_numbers(palette.colors, image.layout)
    nearest = np.empty(len(wanted), np.uint8)
    for start in range(0, len(wanted), _BATCH):
        distance = wanted[start : start + _BATCH, None] - offered[None]
        nearest[start : start + _BATCH] = (distance**2).sum(axis=2).argmin(axis=1)
    indices[changed] = nearest[inverse.reshape(-1)]
    return indices


def _from_indices(picture: PIL.Image.Image) -> Image:
    """Return a picture of mode 1 or P with its palette."""
    indices = np.array(picture, np.uint8)
    if picture.mode == "1":
        colors = np.array([[0], [255]], np.uint8)
        return Image(colors[indices], Layout.GREY, Palette(colors, indices))
    opaque = np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(opaque)] = opaque[:256]
    transparency = picture.info.get("transparency")
    if transparency is None:
        return Image(colors[indices], Layout.RGB, Palette(colors, indices))
    alpha = np.full(256, 255, np.uint8)
    if isinstance(transparency, bytes):
        alpha[: len(transparency)] = np.frombuffer(transparency, np.uint8)[:256]
    else:
        alpha[int(transparency)] = 0
    colors = np.concatenate([colors, alpha[:, None]], axis=1)
    return Image(colors[indices], Layout.RGBA, Palette(colors, indices))


def _to_indices(image: Image, palette: Palette) -> PIL.Image.Image:
    indices = remap_palette(image, palette)
    if image.layout is Layout.GREY and palette.colors.tolist() == [[0], [255]]:  # black and white
        return PIL.Image.fromarray(indices * np.uint8(255)).convert("1", dither=PIL.Image.Dither.NONE)
    picture = PIL.Image.fromarray(indices)
    colors = palette.colors if image.layout.colors == 3 else np.repeat(palette.colors[:, :1], 3, axis=1)
    picture.putpalette(np.ascontiguousarray(colors[:, :3]).tobytes(), "RGB")
    if image.layout.has_alpha:
        picture.info["transparency"] = palette.colors[:, -1].tobytes()
    return picture


def _as_numbers(colors: NDArray[np.uint8], layout: Layout) -> NDArray[np.int32]:
    """(N, C) colors -> numbers to compare. Alpha counts as clear or not, and outweighs every color."""
    numbers = colors.astype(np.int32)
    if layout.has_alpha:
        numbers[:, -1] = (numbers[:, -1] > 0) * 1024
    return numbers


def _packed(pixels: Pixels) -> NDArray[np.uint32]:
    """(H, W, C <= 4) uint8 -> (H, W) uint32, one number for each color."""
    padded = np.zeros((*pixels.shape[:2], 4), np.uint8)
    padded[:, :, : pixels.shape[2]] = pixels
    return padded.view(np.uint32)[:, :, 0]


def _unpacked(values: NDArray[np.uint32], layout: Layout) -> NDArray[np.uint8]:
    """(N) uint32 -> (N, C) uint8, the reverse of `_packed`."""
    return values.view(np.uint8).reshape(-1, 4)[:, : layout.channels]
