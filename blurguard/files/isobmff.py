"""Boxes of ISO base media files (MP4, QuickTime, HEIC, AVIF) and of JPEG 2000 (ISO/IEC 14496-12, 4.2)."""

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

# Types of the boxes without which a picture cannot be decoded.
_NEEDED = frozenset({b"ftyp", b"meta", b"moov", b"mdat", b"jP  ", b"jp2h", b"jp2c"})


class Box(NamedTuple):
    """A box by its byte offsets in the file. ``stop`` is as declared, and may lie after the file's end."""

    type: bytes
    start: int
    payload: int
    stop: int


def read_boxes(file: BinaryIO, start: int, stop: int) -> Iterator[Box]:
    """Yield the boxes between two offsets as their headers declare them. Callers check types and ends.

    The walk ends after a box that declares less than its 8 bytes of header.
    """
    at = start
    while at + 8 <= stop:
        file.seek(at)
        head = file.read(16)
        size, header = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(head[8:], "big"), 16
        elif size == 0:
            size = stop - at
        yield Box(head[4:8], at, at + header, at + size)
        if size < 8:
            return
        at += size


def picture_boxes(data: bytes, start: int = 0, stop: int | None = None) -> Iterator[Box]:
    """Yield the boxes of a picture, or those between two offsets.

    Bytes appended after the picture end the walk. They are not copied, so they need not be valid.

    Raises:
        ValueError: truncated inside a header or inside a box that a picture needs.
    """
    end = len(data) if stop is None else stop
    for box in read_boxes(io.BytesIO(data), start, end):
        if box.payload > len(data):
            raise ValueError(f"truncated at byte {len(data)}")
        if box.stop < box.payload or not box.type.isascii():
            return
        if box.stop > end:
            if box.type not in _NEEDED:
                return
            raise ValueError(f"truncated: box {box.type.decode()} ends {box.stop - end} bytes after its file")
        yield box


def make_box(box_type: bytes, payload: bytes) -> bytes:
    """Return a box with its header."""
    return struct.pack(">I", len(payload) + 8) + box_type + payload


def brands_of(head: bytes) -> list[bytes]:
    """Return the major brand and the compatible ones by the first bytes of a file, [] if it has no ``ftyp`` box."""
    if head[4:8] != b"ftyp":
        return []
    stop = min(int.from_bytes(head[:4], "big"), len(head))
    return [head[8:12], *(head[at : at + 4] for at in range(16, stop, 4))]
