"""Between ``Image`` and Pillow's pictures: every kind keeps its kind."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from blurguard.errors import InputError
from blurguard.types import Image, Layout, Palette, Pixels

_LAYOUTS = {"L": Layout.GREY, "LA": Layout.GREY_ALPHA, "RGB": Layout.RGB, "RGBA": Layout.RGBA, "CMYK": Layout.CMYK}
_MODES = {layout: mode for mode, layout in _LAYOUTS.items()}
# Kinds that only differ in how they are stored from one that we have.
_SAME_AS = {"La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "PA": "RGBA", "YCbCr": "RGB"}
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N")
_CHUNK = 4096


def from_pillow(picture: Pillow.Image) -> Image:
    """Return a loaded Pillow picture as it is stored; orientation is not applied.

    Raises:
        InputError: for kinds that no file of ours keeps (32-bit, Lab).
    """
    if picture.mode in ("1", "P"):
        return _from_indices(picture)
    if picture.mode in _DEEP_GREY:
        grey = np.array(picture).astype(np.uint16)
        return Image(grey[:, :, None], Layout.GREY)
    if picture.mode in _SAME_AS:
        picture = picture.convert(_SAME_AS[picture.mode])
    if picture.mode not in _LAYOUTS:
        raise InputError(f"pixels of kind {picture.mode} are not supported; convert it to 8 or 16 bits per channel")
    layout = _LAYOUTS[picture.mode]
    return Image(np.array(picture).reshape(picture.height, picture.width, layout.channels), layout)


def to_pillow(image: Image) -> Pillow.Image:
    """Return the picture for Pillow to encode: indices where the file had indices."""
    if image.palette is not None:
        return _to_indices(image)
    size = image.width, image.height
    pixels = np.ascontiguousarray(image.pixels)
    if pixels.dtype == np.uint16:
        if image.layout is not Layout.GREY:
            raise ValueError(f"Pillow has no 16-bit {image.layout}")
        return Pillow.frombuffer("I;16", size, pixels.tobytes(), "raw", "I;16", 0, 1)
    mode = _MODES[image.layout]
    return Pillow.frombuffer(mode, size, pixels, "raw", mode, 0, 1)


def with_palette(image: Image) -> Image:
    """Return an 8-bit image with the palette of its own colours, or as it is when there are over 256."""
    packed = _packed(image.pixels)
    values, indices = np.unique(packed, return_inverse=True)
    if len(values) > 256:
        return image
    colors = values.view(np.uint8).reshape(-1, 4)[:, : image.layout.channels]
    return Image(image.pixels, image.layout, Palette(colors.copy(), indices.reshape(packed.shape).astype(np.uint8)))


def remap_palette(image: Image, palette: Palette) -> NDArray[np.uint8]:
    """Return the (H, W) indices of an image whose pixels have changed: the nearest colour where they have.

    Where a pixel is still the colour that its index says, the index stays, even when two are of one colour.
    What is clear stays clear, but degrees of opacity do not hold a pixel to the colour that had them.
    """
    indices = palette.indices.copy()
    changed = (image.pixels != palette.colors[palette.indices]).any(axis=2)
    values, where = np.unique(_packed(image.pixels[changed][None]), return_inverse=True)
    wanted = _comparable(values.view(np.uint8).reshape(-1, 4)[:, : image.layout.channels], image.layout)
    offered = _comparable(palette.colors, image.layout)
    nearest = np.empty(len(wanted), np.uint8)
    for start in range(0, len(wanted), _CHUNK):
        apart = wanted[start : start + _CHUNK, None] - offered[None]
        nearest[start : start + _CHUNK] = (apart**2).sum(axis=2).argmin(axis=1)
    indices[changed] = nearest[where.reshape(-1)]
    return indices


def apply_orientation(image: Image, orientation: int) -> Image:
    """Return the image as it is to be looked at; ``orientation`` is EXIF's, 1 to 8, others change nothing."""
    palette = image.palette
    if palette is not None:
        palette = Palette(palette.colors, _transpose(palette.indices, orientation))
    pixels = _transpose(image.pixels, orientation)
    return Image(pixels.reshape(*pixels.shape[:2], image.layout.channels), image.layout, palette)


def _transpose(pixels: Any, orientation: int) -> Any:
    """EXIF 2.32, tag 0x0112: 2 mirrored, 3 half turn, 4 flipped, 5 to 8 the same with x and y exchanged."""
    if orientation in (5, 6, 7, 8):
        pixels = cv2.transpose(pixels)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return pixels if flip is None else cv2.flip(pixels, flip)


def _from_indices(picture: Pillow.Image) -> Image:
    """Mode 1 and P: pixels in colour, and the palette that gives them back."""
    if picture.mode == "1":
        indices = np.array(picture).astype(np.uint8)
        colors = np.array([[0], [255]], np.uint8)
        return Image(colors[indices], Layout.GREY, Palette(colors, indices))
    indices = np.array(picture)
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


def _to_indices(image: Image) -> Pillow.Image:
    palette = image.palette
    assert palette is not None  # noqa: S101 - the one caller has asked
    indices = remap_palette(image, palette)
    if image.layout is Layout.GREY and palette.colors.tolist() == [[0], [255]]:  # black and white
        return Pillow.fromarray(indices * np.uint8(255)).convert("1", dither=Pillow.Dither.NONE)
    picture = Pillow.fromarray(indices)
    colors = palette.colors if image.layout.colors == 3 else np.repeat(palette.colors[:, :1], 3, axis=1)
    picture.putpalette(np.ascontiguousarray(colors[:, :3]).tobytes(), "RGB")
    if image.layout.has_alpha:
        picture.info["transparency"] = palette.colors[:, -1].tobytes()
    return picture


def _comparable(colors: NDArray[np.uint8], layout: Layout) -> NDArray[np.int32]:
    """(N, C) colours -> the same as numbers; alpha becomes "clear or not", which outweighs every colour."""
    numbers = colors.astype(np.int32)
    if layout.has_alpha:
        numbers[:, -1] = (numbers[:, -1] > 0) * 1024
    return numbers


def _packed(pixels: Pixels) -> NDArray[np.uint32]:
    """(H, W, C <= 4) uint8 -> (H, W) uint32, one number per colour."""
    padded = np.zeros((*pixels.shape[:2], 4), np.uint8)
    padded[:, :, : pixels.shape[2]] = pixels
    return padded.view(np.uint32)[:, :, 0]


BGR_TO_RGB = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}
RGB_TO_BGR = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
_BGR_LAYOUTS = {3: Layout.RGB, 4: Layout.RGBA}


def from_bgr(bgr: NDArray[Any] | None) -> Image:
    if bgr is None:
        raise ValueError("damaged data")
    channels = bgr.shape[2] if bgr.ndim == 3 else 1
    if bgr.dtype != np.uint16 or channels not in BGR_TO_RGB:
        raise ValueError(f"{bgr.dtype} pixels of {channels} channels are not supported")
    return Image(np.asarray(cv2.cvtColor(bgr, BGR_TO_RGB[channels]), np.uint16), _BGR_LAYOUTS[channels])
