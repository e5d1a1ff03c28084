"""The containers that videos come in: which one a file is, and whether it is as long as it says.

FFmpeg takes the end of the file for the end of the video, and says nothing. Where a cut falls between two parts of
a file that tells no length, as live recordings do not, nothing shows it here either.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from blurguard.errors import InputError
from blurguard.files.filetypes import M2TS, PROBE_BYTES, ContainerFormat

# What a box at the outermost level of an MP4 or QuickTime file can be, unlike bytes that someone has put after it.
_BOXES = frozenset(
    {
        b"ftyp", b"moov", b"mdat", b"moof", b"mfra", b"sidx", b"ssix", b"styp", b"emsg", b"prft", b"pdin", b"meta",
        b"meco", b"uuid", b"udta", b"free", b"skip", b"wide", b"junk", b"pnot", b"PICT", b"imda",
    }
)  # fmt: skip


def check_complete(path: Path, family: ContainerFormat) -> tuple[str, bool]:
    """Compare what a file says of its length with what there is; (what is missing or "", index precedes data).

    Raises:
        InputError: there is no index, so nothing can be salvaged either.
    """
    size, index_first, end = path.stat().st_size, False, 0
    with path.open("rb") as file:
        if family.demuxer == "mov":
            boxes = list(_boxes(file, size))
            kinds = [kind for kind, _ in boxes]
            end = max(stop for _, stop in boxes)
            if b"moov" not in kinds:
                raise InputError(f"{path}: ends before its index (moov), so it cannot be read; get a complete copy")
            index_first = b"mdat" in kinds and kinds.index(b"moov") < kinds.index(b"mdat")
        elif family.demuxer == "matroska":
            end = _matroska_end(file, size)
        elif family.demuxer == "mpegts":
            step = 192 if family is M2TS else 188
            end = math.ceil(size / step) * step
        elif family.demuxer == "avi":
            end = _avi_end(file, size)
        elif family.demuxer == "flv":
            end = _flv_end(file, size)
    missing = f"ends early: {end - size} bytes are missing" if end > size + 1 else "ends early"
    return (missing if end > size else ""), index_first


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """Yield type and end of the boxes of an MP4 (ISO/IEC 14496-12, 4.2); bytes after them that are none end it."""
    at = 0
    seen: set[bytes] = set()
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        length = int.from_bytes(head[8:], "big") if length == 1 else size - at if length == 0 else length
        if length < 8 or not (kind.isascii() and kind.decode("ascii").isprintable()):
            break
        if at + length > size and kind not in _BOXES and {b"moov", b"mdat"} <= seen:
            break
        seen.add(kind)
        yield kind, at + length
        at += length
    yield b"", min(at, size)


_SEGMENT, _CLUSTER, _SIZE_UNKNOWN = 0x18538067, 0x1F43B675, -1


def _matroska_end(file: BinaryIO, size: int) -> int:
    """Return where a Matroska file ends by its own word; elements of unknown length are searched (RFC 8794, 6)."""
    at = end = 0
    while at < size:
        file.seek(at)
        head = file.read(12)
        name, after_name = _ebml_number(head, 0, keep_marker=True)
        length, start = _ebml_number(head, after_name)
        if not after_name or not start:
            return max(end, at + 12 if len(head) < 12 else 0)
        if name == _SEGMENT or (name == _CLUSTER and length == _SIZE_UNKNOWN):
            end = max(end, at + start + length)
            at += start
        elif length == _SIZE_UNKNOWN:
            return end
        else:
            at += start + length
            end = max(end, at)
    return end


def _ebml_number(head: bytes, at: int, keep_marker: bool = False) -> tuple[int, int]:
    """Return an EBML number and where it ends, 0 when there is none; all ones mean unknown (RFC 8794, 4)."""
    if at >= len(head) or not head[at]:
        return 0, 0
    width = 9 - head[at].bit_length()
    value = int.from_bytes(head[at : at + width], "big")
    if at + width > len(head):
        return 0, 0
    bits = (1 << 7 * width) - 1
    if keep_marker:
        return value, at + width
    return (_SIZE_UNKNOWN if value & bits == bits else value & bits), at + width


def _avi_end(file: BinaryIO, size: int) -> int:
    """Return where the last RIFF chunk of an AVI ends; one of length 0 was never finished."""
    at = 0
    while at + 12 <= size:
        file.seek(at)
        head = file.read(12)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF":
            break
        at += 8 + length + length % 2
        if not length:
            return size + 1
    return at - (at == size + 1)  # the last chunk's padding is often left out


def _flv_end(file: BinaryIO, size: int) -> int:
    """Return the end of an FLV: its script may tell it, and the last four bytes the last tag's size (FLV 10.1, E.3)."""
    file.seek(0)
    script = file.read(PROBE_BYTES)
    at = script.find(b"\0\x08filesize\0")  # a number, which has eight bytes
    told = script[at + 11 : at + 19] if at >= 0 else b""
    if len(told) == 8 and math.isfinite(value := struct.unpack(">d", told)[0]) and value > size:
        return int(value)
    file.seek(max(0, size - 4))
    last = int.from_bytes(file.read(4), "big")
    file.seek(max(0, size - 4 - last))
    tag = file.read(4)
    return size if last > 11 and int.from_bytes(tag[1:4], "big") == last - 11 else size + 1
