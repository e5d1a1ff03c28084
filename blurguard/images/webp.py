"""WebP, still and animated."""

import itertools
import struct
from collections.abc import Iterable
from typing import Any

from blurguard.files.riff import make_chunk, picture_chunks
from blurguard.images.animation import AnimationCodec, SubFrame, sub_frames
from blurguard.images.codec import QUALITY, Page, PillowCodec, encode
from blurguard.images.convert import to_pillow


class AnimatedWebpCodec(AnimationCodec):
    """Animated WebP. All frames are compressed like the first one."""

    pillow_name = "WEBP"

    def write(self, pages: Iterable[Page]) -> bytes:
        """Return an animated WebP: Pillow encodes each frame, and their chunks are put into ANMF chunks."""
        options = _compression(self._data)
        frames = sub_frames(pages, grid=2)
        first = next(frames)
        body = [_frame_chunk(frame, options) for frame in itertools.chain([first], frames)]
        alpha = first.image.layout.has_alpha
        # Animation, and if present: color profile, alpha, EXIF.
        flags = 0x02 | (0x20 if self._icc else 0) | (0x10 if alpha else 0) | (0x08 if self._exif else 0)
        head = make_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + _uint24(first.image.width - 1, first.image.height - 1))
        icc = make_chunk(b"ICCP", self._icc) if self._icc else b""
        animation = make_chunk(b"ANIM", struct.pack("<IH", 0, self._loop or 0))
        exif = make_chunk(b"EXIF", self._exif.removeprefix(b"Exif\0\0")) if self._exif else b""
        return make_chunk(b"RIFF", b"".join([b"WEBP", head, icc, animation, *body, exif]))


def _frame_chunk(frame: SubFrame, options: dict[str, Any]) -> bytes:
    """Return a frame as an ANMF chunk, which holds the chunks of a still picture."""
    still = encode(to_pillow(frame.image), "WEBP", **options)
    chunks = [chunk for chunk in picture_chunks(still) if chunk.type in (b"ALPH", b"VP8 ", b"VP8L")]
    image = b"".join(make_chunk(chunk.type, still[chunk.start : chunk.stop]) for chunk in chunks)
    place = _uint24(frame.x // 2, frame.y // 2, frame.image.width - 1, frame.image.height - 1, round(frame.duration_ms))
    return make_chunk(b"ANMF", place + b"\x02" + image)  # 2: replace, do not blend


def _uint24(*values: int) -> bytes:
    return b"".join(value.to_bytes(3, "little") for value in values)


def _compression(data: bytes) -> dict[str, Any]:
    """Return the compression of the first picture in a file, as options of Pillow's encoder."""
    lossless = _is_lossless(data)
    return {"lossless": lossless, "quality": 80 if lossless else QUALITY, "exact": True}


def _is_lossless(data: bytes) -> bool:
    for chunk in picture_chunks(data):
        if chunk.type == b"ANMF":
            return any(inner.type == b"VP8L" for inner in picture_chunks(data, chunk.start + 16, chunk.stop))
        if chunk.type in (b"VP8 ", b"VP8L"):
            return chunk.type == b"VP8L"
    return False


class WebpCodec(PillowCodec):
    """WebP of one picture."""

    pillow_name = "WEBP"
    animated_codec = AnimatedWebpCodec

    @staticmethod
    def check_complete(data: bytes) -> None:
        """Raise ``ValueError`` if a chunk ends after the file."""
        list(picture_chunks(data))

    def _page_options(self) -> dict[str, Any]:
        return _compression(self._data)
