"""PNG, still and animated (APNG). OpenCV decodes and encodes 16-bit color, which Pillow would cut to 8 bits."""

import itertools
import struct
import zlib
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import cv2
import numpy as np

from blurguard.errors import InputError
from blurguard.images.animation import AnimationCodec, SubFrame, sub_frames
from blurguard.images.codec import Page, PillowCodec, encode
from blurguard.images.convert import from_bgr, to_bgr, to_pillow
from blurguard.types import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IHDR_STOP = 33  # signature and the first chunk, which is always IHDR


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and body of the chunks of a PNG up to IEND (PNG 3rd edition, 5.3).

    Raises:
        ValueError: truncated inside a chunk.
    """
    at, name = len(_SIGNATURE), b""
    while at < len(data) and name != b"IEND":
        name, stop = data[at + 4 : at + 8], at + 8 + int.from_bytes(data[at : at + 4], "big")
        if stop + 4 > len(data) or len(name) < 4:
            raise ValueError(f"truncated at byte {len(data)}")
        yield name, data[at + 8 : stop]
        at = stop + 4


def _make_chunk(name: bytes, body: bytes) -> bytes:
    """Return a chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


class AnimatedPngCodec(AnimationCodec):
    """Animated PNG of 8 bits per channel."""

    pillow_name = "PNG"

    def __init__(self, data: bytes, picture: Any, keep_metadata: bool) -> None:
        super().__init__(data, picture, keep_metadata)
        if data[24] == 16:
            raise InputError("an animation of 16 bits per channel is not supported; convert it to 8")

    def write(self, pages: Iterable[Page]) -> bytes:
        """Return an animated PNG: Pillow encodes each frame, and their chunks are numbered and joined."""
        out, head = list[bytes](), list[bytes]()
        count, numbers = 0, (struct.pack(">I", number) for number in itertools.count())  # shared by fcTL and fdAT
        for count, frame in enumerate(sub_frames(pages), start=1):
            chunks = list(png_chunks(encode(to_pillow(frame.image), "PNG", **self._metadata_options())))
            head = head or [_make_chunk(name, body) for name, body in chunks if name not in (b"IDAT", b"IEND")]
            out.append(_make_chunk(b"fcTL", next(numbers) + _frame_control(frame)))
            for body in (body for name, body in chunks if name == b"IDAT"):
                out.append(_make_chunk(b"IDAT", body) if count == 1 else _make_chunk(b"fdAT", next(numbers) + body))
        control = _make_chunk(b"acTL", struct.pack(">2I", count, self._loop or 0))
        return b"".join([_SIGNATURE, head[0], control, *head[1:], *out, _make_chunk(b"IEND", b"")])


def _frame_control(frame: SubFrame) -> bytes:
    """Return the body of fcTL after its sequence number: place, delay in seconds as a fraction, replace, no blend."""
    delay = Fraction(frame.duration_ms / 1000).limit_denominator(1000)
    if delay.numerator > 0xFFFF:
        delay = Fraction(round(delay))
    size = frame.image.width, frame.image.height
    return struct.pack(">4I2H2B", *size, frame.x, frame.y, min(delay.numerator, 0xFFFF), delay.denominator, 0, 0)


class PngCodec(PillowCodec):
    """PNG of one picture. A color that stands for transparency is kept."""

    pillow_name = "PNG"
    animated_codec = AnimatedPngCodec

    def __init__(self, data: bytes, picture: Any, keep_metadata: bool) -> None:
        super().__init__(data, picture, keep_metadata)
        depth, color_type = data[24], data[25]
        if depth == 16 and color_type == 4:
            raise InputError("16-bit gray with alpha is not supported; convert it to 16-bit RGBA")
        self._is_16_bit_color = depth == 16 and color_type in (2, 6)
        if self._is_16_bit_color and any(name == b"tRNS" for name, _ in png_chunks(data)):
            raise InputError("16-bit color with a transparent color is not supported; convert it to 16-bit RGBA")

    @staticmethod
    def check_complete(data: bytes) -> None:
        """Raise ``ValueError`` if there is no IEND chunk: Pillow reads an animation without its last frames."""
        if b"IEND" not in {name for name, _ in png_chunks(data)}:
            raise ValueError("truncated: no IEND chunk")

    def _decode(self) -> Image:
        if not self._is_16_bit_color:
            return super()._decode()
        self._picture.load()  # Pillow reports damaged checksums, OpenCV does not
        return from_bgr(cv2.imdecode(np.frombuffer(self._data, np.uint8), cv2.IMREAD_UNCHANGED))

    def write(self, pages: Iterable[Page]) -> bytes:
        """Return a PNG. OpenCV writes no metadata, so chunks for it are added."""
        if not self._is_16_bit_color:
            return super().write(pages)
        (page,) = pages
        encoded, buffer = cv2.imencode(".png", to_bgr(page.image))
        if not encoded:
            raise ValueError("OpenCV could not encode it")
        data = bytes(buffer)
        return data[:_IHDR_STOP] + b"".join(self._metadata_chunks()) + data[_IHDR_STOP:]

    def _metadata_chunks(self) -> Iterator[bytes]:
        if self._icc:
            yield _make_chunk(b"iCCP", b"icc\0\0" + zlib.compress(self._icc))
        if self._dpi:
            yield _make_chunk(b"pHYs", struct.pack(">2IB", *(round(v / 0.0254) for v in self._dpi), 1))
        if self._exif:
            yield _make_chunk(b"eXIf", self._exif.removeprefix(b"Exif\0\0"))

    def _page_options(self) -> dict[str, Any]:
        transparency = self._picture.info.get("transparency")
        has_key = self._picture.mode in ("1", "L", "RGB", "I;16") and transparency is not None
        return {"transparency": transparency} if has_key else {}
