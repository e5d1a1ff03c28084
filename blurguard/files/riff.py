"""Chunks of RIFF files (WebP, AVI): four letters, the size in four bytes, little endian, padded to even sizes."""

import io
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple


class Chunk(NamedTuple):
    """A chunk by the byte offsets of its payload. ``stop`` is as declared, and may lie after the end of the file."""

    type: bytes
    start: int
    stop: int


def form_type(head: bytes) -> bytes:
    """Return the type of a RIFF file by its first bytes, such as ``b"WEBP"``, or ``b""`` for other files."""
    return head[8:12] if head.startswith(b"RIFF") else b""


def read_chunks(file: BinaryIO, start: int, stop: int) -> Iterator[Chunk]:
    """Yield the chunks between two offsets as their headers declare them. Callers check their ends."""
    at = start
    while at + 8 <= stop:
        file.seek(at)
        head = file.read(8)
        size = int.from_bytes(head[4:], "little")
        yield Chunk(head[:4], at + 8, at + 8 + size)
        at += 8 + size + size % 2


def picture_chunks(data: bytes, start: int = 12, stop: int | None = None) -> Iterator[Chunk]:
    """Yield the chunks of a WebP file, or those inside one of its chunks between two offsets.

    Raises:
        ValueError: the data end before the file, or the file before one of its chunks.
    """
    end = 8 + int.from_bytes(data[4:8], "little") if stop is None else stop
    if end > len(data):
        raise ValueError(f"truncated: {len(data)} of {end} bytes")
    for chunk in read_chunks(io.BytesIO(data), start, end):
        if chunk.stop > end:
            raise ValueError("truncated: a chunk ends after its file")
        yield chunk


def make_chunk(chunk_type: bytes, payload: bytes) -> bytes:
    """Return a chunk with its header and padding."""
    return chunk_type + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)
