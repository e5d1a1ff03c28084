"""JPEG 2000."""

from __future__ import annotations

import struct
from typing import Any

from blurguard.errors import InputError
from blurguard.images.chunks import Chunk, isobmff_boxes


def jpeg2000_options(data: bytes) -> dict[str, Any]:
    """Return what the codestream's SIZ and COD markers tell (ISO/IEC 15444-1, A.5.1 and A.6.1).

    Raises:
        InputError: colour of more than 8 bits per channel, which Pillow would cut.
    """
    no_box = data.startswith(b"\xff\x4f")
    stream = 0 if no_box else next(part.start for part in isobmff_boxes(data) if part.type == b"jp2c")
    components = int.from_bytes(data[stream + 40 : stream + 42], "big")
    depth = (data[stream + 42] & 0x7F) + 1
    if depth > 8 and (components > 1 or depth != 16):
        raise InputError(f"JPEG 2000 with {depth} bits per channel is not supported; convert it to 16-bit TIFF")
    cod = data.find(b"\xff\x52", stream)
    reversible = data[cod + 13] == 1
    lossy = {"irreversible": True, "quality_mode": "dB", "quality_layers": [50]}
    return ({"irreversible": False} if reversible else lossy) | {"no_jp2": no_box}


def jp2_profile(data: bytes) -> bytes | None:
    """Return the colour profile of a JPEG 2000 file (ISO/IEC 15444-1, I.5.3.3)."""
    for part in _jp2_header(data)[1]:
        if part.type == b"colr" and data[part.start] in (2, 3):
            return data[part.start + 3 : part.stop]
    return None


def with_jp2_profile(data: bytes, icc: bytes) -> bytes:
    """Return the JPEG 2000 file with this colour profile; a bare codestream has no place for one."""
    header, parts = _jp2_header(data)
    if header is None:
        return data
    kept = [_box(part.type, data[part.start : part.stop]) for part in parts if part.type != b"colr"]
    body = b"".join([*kept, _box(b"colr", b"\2\0\0" + icc)])
    return data[: header.start - 8] + _box(b"jp2h", body) + data[header.stop :]


def _jp2_header(data: bytes) -> tuple[Chunk | None, list[Chunk]]:
    if data.startswith(b"\xff\x4f"):
        return None, []
    header = next(part for part in isobmff_boxes(data) if part.type == b"jp2h")
    return header, list(isobmff_boxes(data, header.start, header.stop))


def _box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + name + body
