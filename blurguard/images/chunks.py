"""Walking the containers that pictures come in: is the file whole, and where are its parts.

Decoders forgive much: a GIF that ends early has fewer frames to them, a cut JPEG 2000 is only less sharp.
Here a file that ends before its structure does is an error.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from blurguard.files.filetypes import FileType

# Boxes without whose end there is no picture.
_NEEDED_BOXES = frozenset({b"ftyp", b"meta", b"moov", b"mdat", b"jP  ", b"jp2h", b"jp2c"})


class Chunk(NamedTuple):
    """One chunk, box or block: its type and where its payload starts and stops in the data."""

    type: bytes
    start: int
    stop: int


def check_complete(data: bytes, kind: FileType) -> None:
    """Raise ``ValueError`` when a file of this kind ends before its structure does."""
    if kind is FileType.PNG and b"IEND" not in {part.type for part in png_chunks(data)}:
        raise ValueError("truncated: no IEND chunk")
    if kind is FileType.GIF and not any(part.type == b";" for part in gif_blocks(data)):
        raise ValueError("truncated: no trailer")
    if kind is FileType.WEBP:
        list(riff_chunks(data))
    if kind is FileType.TIFF:
        _check_tiff(data)
    if kind is FileType.JPEG2000:
        _check_jpeg2000(data)
    if kind in (FileType.HEIC, FileType.AVIF):
        list(isobmff_boxes(data))


def png_chunks(data: bytes) -> Iterator[Chunk]:
    """Yield the chunks of a PNG up to IEND (PNG 3rd edition, 5.3)."""
    at = 8
    while at < len(data):
        size = int.from_bytes(_slice(data, at, 4), "big")
        part = Chunk(_slice(data, at + 4, 4), at + 8, at + 8 + size)
        _slice(data, at + 8, size + 4)
        yield part
        if part.type == b"IEND":
            return
        at = part.stop + 4


def png_chunk(name: bytes, body: bytes) -> bytes:
    """Return a PNG chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def riff_chunks(data: bytes, start: int = 12, stop: int | None = None) -> Iterator[Chunk]:
    """Yield the chunks of a WebP file, or those inside one of them when ``start`` and ``stop`` are given."""
    at, end = start, 8 + int.from_bytes(data[4:8], "little") if stop is None else stop
    if end > len(data):
        raise ValueError(f"truncated: {len(data)} of {end} bytes")
    while at + 8 <= end:
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + size > end:
            raise ValueError("truncated: a chunk ends after its file")
        yield Chunk(data[at : at + 4], at + 8, at + 8 + size)
        at += 8 + size + size % 2


def gif_blocks(data: bytes) -> Iterator[Chunk]:
    """Yield the blocks of a GIF: ``b"!"`` extensions, ``b","`` images, ``b";"`` the trailer (GIF89a, 15 to 27).

    ``start`` is the byte after the block's introducer.
    """
    at = 13 + _color_table_bytes(_slice(data, 10, 1)[0])
    while True:
        introducer = _slice(data, at, 1)
        if introducer == b";":
            yield Chunk(introducer, at, at + 1)
            return
        if introducer == b"!":
            stop = _end_of_sub_blocks(data, at + 2)
        elif introducer == b",":
            table = _color_table_bytes(_slice(data, at + 9, 1)[0])
            stop = _end_of_sub_blocks(data, at + 10 + table + 1)
        else:
            raise ValueError(f"no GIF block at byte {at}")
        yield Chunk(introducer, at + 1, stop)
        at = stop


def isobmff_boxes(data: bytes, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
    """Yield the boxes of an ISO base media or JPEG 2000 file, or those inside one (ISO/IEC 14496-12, 4.2).

    Appended bytes that are no box of a picture end the walk: whatever they are, they are not copied.
    """
    at, end = start, len(data) if stop is None else stop
    while at + 8 <= end:
        size, header = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(_slice(data, at + 8, 8), "big"), 16
        elif size == 0:
            size = end - at
        name = data[at + 4 : at + 8]
        if size < header or not name.isascii():
            return
        if at + size > end:
            if name not in _NEEDED_BOXES:
                return
            raise ValueError(f"truncated: box {name.decode()} ends {at + size - end} bytes after its file")
        yield Chunk(name, at + header, at + size)
        at += size


def _check_tiff(data: bytes) -> None:
    """Every directory lies in the file, and tells where the next one is (TIFF 6.0, section 2; BigTIFF)."""
    order = "<" if data.startswith(b"II") else ">"
    big = 43 in data[2:4]
    first, count, pointer, entry = (8, "Q", "Q", 20) if big else (4, "H", "I", 12)
    seen: set[int] = set()
    (at,) = struct.unpack_from(order + pointer, data, first)
    while at and at not in seen:
        seen.add(at)
        (entries,) = struct.unpack_from(order + count, data, at)
        (at,) = struct.unpack_from(order + pointer, data, at + struct.calcsize(count) + entries * entry)


def webp_is_lossless(data: bytes) -> bool:
    """Tell by the first picture in the file, which may lie in an animation's frame."""
    for part in riff_chunks(data):
        if part.type == b"ANMF":
            return any(inner.type == b"VP8L" for inner in riff_chunks(data, part.start + 16, part.stop))
        if part.type in (b"VP8 ", b"VP8L"):
            return part.type == b"VP8L"
    return False


def gif_has_transparency(data: bytes) -> bool:
    """Tell whether any frame has a transparent colour."""
    return any(part.type == b"!" and data[part.start] == 0xF9 and data[part.start + 2] & 1 for part in gif_blocks(data))


def _check_jpeg2000(data: bytes) -> None:
    """A codestream ends with its EOC marker (ISO/IEC 15444-1, A.4.4)."""
    stream = data
    if data.startswith(b"\0\0\0\x0cjP"):
        streams = [part for part in isobmff_boxes(data) if part.type == b"jp2c"]
        if not streams:
            raise ValueError("truncated: no codestream")
        stream = data[streams[0].start : streams[0].stop]
    if b"\xff\xd9" not in stream[-64:]:
        raise ValueError("truncated: no end of codestream")


def _slice(data: bytes, at: int, size: int) -> bytes:
    part = data[at : at + size]
    if len(part) < size:
        raise ValueError(f"truncated at byte {len(data)}")
    return part


def _color_table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _end_of_sub_blocks(data: bytes, at: int) -> int:
    while size := _slice(data, at, 1)[0]:
        at += 1 + size
    return at + 1
