"""Animated GIF, PNG and WebP, frame for frame.

Pillow's writers join equal neighbours and choose disposal for themselves; here what was eight frames stays
eight frames. Pillow encodes each frame as a still picture, and the parts are put into the animation's
container. A frame that differs from the last one only in part is stored as that part.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from blurguard.errors import InputError
from blurguard.files.filetypes import FileType
from blurguard.images.chunks import (
    gif_blocks,
    gif_has_transparency,
    png_chunk,
    png_chunks,
    riff_chunks,
    webp_is_lossless,
)
from blurguard.images.codec import QUALITY, Page, PillowCodec
from blurguard.images.convert import apply_orientation, from_pillow, to_pillow, with_palette
from blurguard.types import Image, Palette


@dataclass(frozen=True, slots=True, eq=False)
class SubFrame:
    """The part of a frame that is new: its pixels, where they go, and for how long the frame stands."""

    image: Image
    x: int
    y: int
    duration_ms: float


Timed = Iterable[tuple[Image, float]]


def encode_gif(frames: Timed, loop: int | None) -> bytes:
    """Return a GIF of frames and their durations in ms; ``loop`` 0 is for ever, None plays once."""
    out, size = [], (0, 0)
    transparent = False
    for index, cel in enumerate(_sub_frames(frames, grid=1, whole=lambda image: image.layout.has_alpha)):
        if not index:
            size = cel.image.width, cel.image.height
            transparent = cel.image.layout.has_alpha
        out.append(_gif_frame(cel, disposal=2 if transparent else 1))
    head = struct.pack("<6s2H3B", b"GIF89a", *size, 0x70, 0, 0)
    again = b"" if loop is None else struct.pack("<3s11s2BHB", b"!\xff\x0b", b"NETSCAPE2.0", 3, 1, loop, 0)
    return b"".join([head, again, *out, b";"])


def encode_apng(frames: Timed, loop: int, **options: Any) -> bytes:
    """Return an animated PNG; ``loop`` 0 is for ever, ``options`` are Pillow's for each still."""
    out: list[bytes] = []
    head: dict[bytes, bytes] = {}
    sequence, count = 0, 0
    for count, cel in enumerate(_sub_frames(frames, grid=1), start=1):
        still = _encode_still(to_pillow(cel.image), "PNG", **options)
        chunks = [(part.type, still[part.start : part.stop]) for part in png_chunks(still)]
        if not head:
            head = {name: body for name, body in chunks if name not in (b"IDAT", b"IEND")}
        out.append(png_chunk(b"fcTL", struct.pack(">I", sequence) + _frame_control(cel)))
        sequence += 1
        for body in (body for name, body in chunks if name == b"IDAT"):
            if count == 1:
                out.append(png_chunk(b"IDAT", body))
            else:
                out.append(png_chunk(b"fdAT", struct.pack(">I", sequence) + body))
                sequence += 1
    control = png_chunk(b"acTL", struct.pack(">2I", count, loop))
    first = [png_chunk(name, body) for name, body in head.items()]
    return b"".join([b"\x89PNG\r\n\x1a\n", first[0], control, *first[1:], *out, png_chunk(b"IEND", b"")])


def encode_webp(frames: Timed, loop: int, icc: bytes | None, exif: bytes, **options: Any) -> bytes:
    """Return an animated WebP; ``loop`` 0 is for ever, ``options`` are Pillow's for each still."""
    out, size, alpha = [], (0, 0), False
    for index, cel in enumerate(_sub_frames(frames, grid=2)):
        if not index:
            size, alpha = (cel.image.width, cel.image.height), cel.image.layout.has_alpha
        still = _encode_still(to_pillow(cel.image), "WEBP", **options)
        kept = [part for part in riff_chunks(still) if part.type in (b"ALPH", b"VP8 ", b"VP8L")]
        body = b"".join(_riff_chunk(part.type, still[part.start : part.stop]) for part in kept)
        place = _u24(cel.x // 2, cel.y // 2, cel.image.width - 1, cel.image.height - 1, round(cel.duration_ms))
        out.append(_riff_chunk(b"ANMF", place + b"\x02" + body))  # 2: replace, do not blend
    flags = 0x02 | (0x20 if icc else 0) | (0x10 if alpha else 0) | (0x08 if exif else 0)
    head = _riff_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + _u24(size[0] - 1, size[1] - 1))
    profile = _riff_chunk(b"ICCP", icc) if icc else b""
    tags = _riff_chunk(b"EXIF", exif.removeprefix(b"Exif\0\0")) if exif else b""
    anim = _riff_chunk(b"ANIM", struct.pack("<IH", 0, loop))
    body = b"".join([b"WEBP", head, profile, anim, *out, tags])
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _sub_frames(frames: Timed, grid: int, whole: Callable[[Image], bool] = lambda _: False) -> Iterator[SubFrame]:
    """Cut every frame but the first to what has changed; offsets are multiples of ``grid``."""
    last: Image | None = None
    for image, duration in frames:
        if last is None or whole(image):
            x0, y0, x1, y1 = 0, 0, image.width, image.height
        else:
            x0, y0, x1, y1 = _changed_box(last.pixels, image.pixels)
            x0, y0 = x0 // grid * grid, y0 // grid * grid
        palette = image.palette
        if palette is not None:
            palette = Palette(palette.colors, palette.indices[y0:y1, x0:x1])
        yield SubFrame(Image(image.pixels[y0:y1, x0:x1], image.layout, palette), x0, y0, duration)
        last = image


def _changed_box(before: NDArray[Any], after: NDArray[Any]) -> tuple[int, int, int, int]:
    """Return the box of what differs, x0 y0 x1 y1; one pixel where nothing does."""
    differs = (before != after).any(axis=2)
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    if not len(rows):
        return 0, 0, 1, 1
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _gif_frame(cel: SubFrame, disposal: int) -> bytes:
    """One graphic control extension and image with its own colour table."""
    picture = _gif_picture(cel.image)
    still = _encode_still(picture, "GIF", optimize=False, interlace=0)
    transparency, table, pixels = None, still[13 : 13 + (3 << (still[10] & 7) + 1)], b""
    size_bits = still[10] & 7
    for part in gif_blocks(still):
        if part.type == b"!" and still[part.start] == 0xF9 and still[part.start + 2] & 1:
            transparency = still[part.start + 5]
        elif part.type == b",":
            if flags := still[part.start + 8] & 0x80:
                size_bits = still[part.start + 8] & 7
                table = still[part.start + 9 : part.start + 9 + (3 << size_bits + 1)]
            pixels = still[part.start + 9 + (len(table) if flags else 0) : part.stop]
    control = struct.pack(
        "<4BHBB", 0x21, 0xF9, 4, disposal << 2 | (transparency is not None), round(cel.duration_ms / 10),
        transparency or 0, 0,
    )  # fmt: skip
    place = struct.pack("<B4HB", 0x2C, cel.x, cel.y, cel.image.width, cel.image.height, 0x80 | size_bits)
    return control + place + table + pixels


def _gif_picture(image: Image) -> Pillow.Image:
    """Return the frame in at most 256 colours: its own where it has no more. GIF knows one clear colour."""
    if image.palette is None:
        image = with_palette(image)
    if image.palette is not None:
        picture = to_pillow(image)
        clear = picture.info.pop("transparency", b"").find(0)
    else:
        picture = to_pillow(image).convert("RGB").quantize(255, Pillow.Quantize.MEDIANCUT, dither=Pillow.Dither.NONE)
        clear = 255 if image.layout.has_alpha else -1
        if clear >= 0:
            picture.putdata(np.where(image.pixels[:, :, 3] == 0, clear, np.array(picture)).ravel().tolist())
    if clear >= 0:
        picture.info["transparency"] = clear
    return picture


def _frame_control(cel: SubFrame) -> bytes:
    """The body of fcTL after its sequence number: place, delay as a fraction of seconds, replace, do not blend."""
    delay = Fraction(cel.duration_ms / 1000).limit_denominator(1000)
    if delay.numerator > 0xFFFF:
        delay = Fraction(round(delay))
    size = cel.image.width, cel.image.height
    return struct.pack(">4I2H2B", *size, cel.x, cel.y, min(delay.numerator, 0xFFFF), delay.denominator, 0, 0)


def _riff_chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _u24(*values: int) -> bytes:
    return b"".join(value.to_bytes(3, "little") for value in values)


def _encode_still(picture: Pillow.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, name, **options)
    return buffer.getvalue()


class AnimationCodec(PillowCodec):
    """GIF, still or animated; animated PNG and WebP."""

    def __init__(self, data: bytes, kind: FileType, picture: Any, keep_metadata: bool) -> None:
        super().__init__(data, kind, picture, keep_metadata)
        if kind is FileType.PNG and data[24] == 16:
            raise InputError("an animation of 16 bits per channel is not supported; convert it to 8")
        # An animated PNG may carry a picture for programs that know no animation. It may show anybody: it goes.
        self._first = int(bool(picture.info.get("default_image")))
        self.page_count = int(picture.n_frames) - self._first
        self._loop = picture.info.get("loop")
        if kind is FileType.GIF:  # Pillow enlarges the canvas for a frame that leaves it
            self.largest_wh = max([self.size, *_gif_extents(data)], key=math.prod)

    def read(self) -> Iterator[Page]:
        alpha = self._kind is not FileType.GIF and self._picture.mode in ("LA", "PA", "RGBA", "P")
        for index in range(self._first, self._first + self.page_count):
            self._picture.seek(index)
            self._picture.load()
            duration = float(self._picture.info.get("duration") or 0)
            transparent = alpha or "transparency" in self._picture.info or self._picture.mode == "RGBA"
            picture = self._picture.convert("RGBA" if transparent or self._any_alpha else "RGB")
            picture = picture if picture.size == self.size else picture.crop((0, 0, *self.size))
            image = apply_orientation(from_pillow(picture), self._orientation)
            yield Page(_indexed(image) if self._kind is FileType.GIF else image, duration)

    @property
    def _any_alpha(self) -> bool:
        """One frame with transparency makes all of them transparent: they are of one kind."""
        return bool(self._kind is FileType.GIF and gif_has_transparency(self._data))

    def write(self, pages: Iterable[Page]) -> bytes:
        frames = ((page.image, page.duration_ms) for page in pages)
        if self._kind is FileType.GIF:
            return encode_gif(frames, self._loop)
        if self._kind is FileType.PNG:
            return encode_apng(frames, self._loop or 0, **self._metadata_options())
        lossless = webp_is_lossless(self._data)
        options = {"lossless": lossless, "quality": 80 if lossless else QUALITY, "exact": True}
        return encode_webp(frames, self._loop or 0, self._icc, self._exif, **options)


def _indexed(image: Image) -> Image:
    """Return a GIF's frame with its palette; clear pixels are of one colour, which is none."""
    if image.layout.has_alpha:
        image.pixels[image.pixels[:, :, -1] == 0] = 0
    return with_palette(image)


def _gif_extents(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield how far right and down each frame reaches, px."""
    for part in gif_blocks(data):
        if part.type == b",":
            x, y, width, height = struct.unpack_from("<4H", data, part.start)
            yield x + width, y + height
