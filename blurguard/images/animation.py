"""Animations: the base of their codecs, the changed parts of frames, and GIF.

Pillow's writers join equal neighbors and choose the disposal themselves. Here eight frames stay eight frames:
Pillow encodes each frame as a still picture, and its parts are put into the container of the animation. A frame
that differs from the one before only in part is stored as that part.
"""

import itertools
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from blurguard.images.codec import Page, PillowCodec, encode
from blurguard.images.convert import from_pillow, to_pillow, with_palette
from blurguard.types import Image, Palette


@dataclass(frozen=True, slots=True, eq=False)
class SubFrame:
    """The changed part of a frame: its pixels, its place in px, and the duration of the frame."""

    image: Image
    x: int
    y: int
    duration_ms: float


def sub_frames(pages: Iterable[Page], grid: int = 1, crop_alpha: bool = True) -> Iterator[SubFrame]:
    """Crop every frame but the first to its changed part.

    Args:
        pages: whole frames, all of one size.
        grid: offsets are multiples of it, px.
        crop_alpha: whether frames with alpha are cropped too.
    """
    last: Image | None = None
    for image, duration_ms in ((page.image, page.duration_ms) for page in pages):
        if last is None or (image.layout.has_alpha and not crop_alpha):
            x0, y0, x1, y1 = 0, 0, image.width, image.height
        else:
            x0, y0, x1, y1 = _changed_box(last.pixels, image.pixels)
            x0, y0 = x0 // grid * grid, y0 // grid * grid
        palette = image.palette and Palette(image.palette.colors, image.palette.indices[y0:y1, x0:x1])
        yield SubFrame(Image(image.pixels[y0:y1, x0:x1], image.layout, palette), x0, y0, duration_ms)
        last = image


def _changed_box(before: NDArray[Any], after: NDArray[Any]) -> tuple[int, int, int, int]:
    """Return x0 y0 x1 y1 of the pixels that differ, in px, or the first pixel if none does."""
    differs = (before != after).any(axis=2)
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    if not len(rows):
        return 0, 0, 1, 1
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


class AnimationCodec(PillowCodec):
    """Base of GIF, animated PNG and animated WebP. Frames are read whole, in RGB or RGBA."""

    is_animation = True

    def __init__(self, data: bytes, picture: Any, keep_metadata: bool) -> None:
        super().__init__(data, picture, keep_metadata)
        # An animated PNG may have a picture for programs without animation. It may show other faces: it is left out.
        self._first = int(bool(picture.info.get("default_image")))
        self.page_count -= self._first
        self._loop = picture.info.get("loop")  # 0 repeats without end, None plays once
        self._has_alpha = picture.mode in ("LA", "PA", "RGBA", "P")  # all frames are read with alpha then

    def _decode(self) -> Image:
        self._picture.load()
        alpha = self._has_alpha or "transparency" in self._picture.info or self._picture.mode == "RGBA"
        picture = self._picture.convert("RGBA" if alpha else "RGB")
        return from_pillow(picture if picture.size == self._size else picture.crop((0, 0, *self._size)))


class GifCodec(AnimationCodec):
    """GIF, still or animated."""

    pillow_name = "GIF"

    def __init__(self, data: bytes, picture: Any, keep_metadata: bool) -> None:
        super().__init__(data, picture, keep_metadata)
        # Pillow enlarges the canvas for a frame that extends beyond it: to the frame's right and bottom edge.
        places = [struct.unpack_from("<4H", body) for block, body in gif_blocks(data) if block == b","]
        self.largest_wh = max([self._size, *((x + width, y + height) for x, y, width, height in places)], key=math.prod)
        # If any frame has a transparent color, all are read with alpha.
        self._has_alpha = any(_clear_index(block, body) is not None for block, body in gif_blocks(data))

    @staticmethod
    def check_complete(data: bytes) -> None:
        """Raise ``ValueError`` if the trailer is missing: decoders accept a GIF without its last frames."""
        list(gif_blocks(data))

    def _decode(self) -> Image:
        """Return the current frame with its own palette. All clear pixels have one color."""
        image = super()._decode()
        if image.layout.has_alpha:
            image.pixels[image.pixels[:, :, -1] == 0] = 0
        return with_palette(image)

    def write(self, pages: Iterable[Page]) -> bytes:
        """Return a GIF with these frames. Frames with alpha are stored whole, and cleared before the next one."""
        frames = sub_frames(pages, crop_alpha=False)
        first = next(frames)
        disposal = 2 if first.image.layout.has_alpha else 1
        head = struct.pack("<6s2H3B", b"GIF89a", first.image.width, first.image.height, 0x70, 0, 0)  # no global colors
        if self._loop is not None:
            head += struct.pack("<3s11s2BHB", b"!\xff\x0b", b"NETSCAPE2.0", 3, 1, self._loop, 0)
        return b"".join([head, *(_gif_frame(frame, disposal) for frame in itertools.chain([first], frames)), b";"])


def gif_blocks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield introducer and body of the blocks of a GIF, up to its trailer (GIF89a, 15 to 27).

    Introducers are ``b"!"`` of extensions and ``b","`` of images.

    Raises:
        ValueError: the trailer is missing, or bytes are not a block.
    """
    at = 13 + _color_table_bytes(_byte(data, 10))
    while (introducer := _byte(data, at)) != ord(";"):
        if introducer == ord("!"):
            stop = _sub_blocks_stop(data, at + 2)
        elif introducer == ord(","):
            stop = _sub_blocks_stop(data, at + 11 + _color_table_bytes(_byte(data, at + 9)))
        else:
            raise ValueError(f"no GIF block at byte {at}")
        yield data[at : at + 1], data[at + 1 : stop]
        at = stop


def _clear_index(block: bytes, body: bytes) -> int | None:
    """Return the index of the clear color that a graphic control extension declares, if it is one and does."""
    return body[5] if block == b"!" and body[0] == 0xF9 and len(body) > 5 and body[2] & 1 else None


def _byte(data: bytes, at: int) -> int:
    if at >= len(data):
        raise ValueError(f"truncated at byte {len(data)}")
    return data[at]


def _color_table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _sub_blocks_stop(data: bytes, at: int) -> int:
    while size := _byte(data, at):
        at += 1 + size
    return at + 1


def _gif_frame(frame: SubFrame, disposal: int) -> bytes:
    """Return the graphic control extension and the image of a frame, with its own color table."""
    still = encode(_gif_picture(frame.image), "GIF", optimize=False, interlace=0)
    size_bits, clear, pixels = still[10] & 7, None, b""
    table = still[13 : 13 + (3 << size_bits + 1)]
    for block, body in gif_blocks(still):
        if block == b",":
            table_stop = 9 + _color_table_bytes(body[8])
            if table_stop > 9:
                size_bits, table = body[8] & 7, body[9:table_stop]
            pixels = body[table_stop:]
        elif (index := _clear_index(block, body)) is not None:
            clear = index
    flags, delay = disposal << 2 | (clear is not None), round(frame.duration_ms / 10)
    control = struct.pack("<4BHBB", 0x21, 0xF9, 4, flags, delay, clear or 0, 0)
    place = struct.pack("<B4HB", 0x2C, frame.x, frame.y, frame.image.width, frame.image.height, 0x80 | size_bits)
    return control + place + table + pixels


def _gif_picture(image: Image) -> PIL.Image.Image:
    """Return a frame in at most 256 colors: its own if there are no more. GIF has one clear color."""
    image = image if image.palette else with_palette(image)
    if image.palette:
        picture = to_pillow(image)
        clear = picture.info.pop("transparency", b"").find(0)
    else:
        rgb, clear = to_pillow(image).convert("RGB"), 255 if image.layout.has_alpha else -1
        picture = rgb.quantize(255, PIL.Image.Quantize.MEDIANCUT, dither=PIL.Image.Dither.NONE)
        if clear >= 0:
            picture.putdata(np.where(image.pixels[:, :, 3] == 0, clear, np.array(picture)).ravel().tolist())
    if clear >= 0:
        picture.info["transparency"] = clear
    return picture
