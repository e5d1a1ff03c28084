"""Checks that a video file is as long as its container declares.

FFmpeg takes the end of the file for the end of the video, without an error. Live recordings declare no length:
a cut between two of their parts cannot be detected here.
"""

import math
import struct
from pathlib import Path
from typing import BinaryIO

from blurguard.errors import InputError
from blurguard.files.filetypes import M2TS, PROBE_BYTES, ContainerFormat
from blurguard.files.isobmff import Box, read_boxes
from blurguard.files.riff import read_chunks

# Outermost boxes of MP4 and QuickTime files. Others after the video are data that another program appended.
_TOP_LEVEL_BOXES = frozenset(
    b"ftyp moov mdat moof mfra sidx ssix styp emsg prft pdin meta meco uuid udta free skip wide junk pnot PICT imda"
    .split()
)  # fmt: skip


def check_complete(path: Path, container: ContainerFormat) -> tuple[str, bool]:
    """Compare the declared length of a video with the size of its file.

    Returns:
        A description of missing data, "" if the file is complete, and whether its index precedes the frames.

    Raises:
        InputError: an MP4 or QuickTime file has no index, so no frame can be read.
    """
    size, index_first = path.stat().st_size, False
    with path.open("rb") as file:
        if container.demuxer == "mov":
            boxes = _mp4_boxes(file, size)
            types = [box.type for box in boxes]
            if b"moov" not in types:
                raise InputError(f"{path}: ends before its index (moov), so it cannot be read; get a complete copy")
            end = max(box.stop for box in boxes)
            index_first = b"mdat" in types and types.index(b"moov") < types.index(b"mdat")
        elif container.demuxer == "mpegts":
            step = 192 if container is M2TS else 188  # bytes of a packet
            end = math.ceil(size / step) * step
        else:
            end = {"matroska": _matroska_end, "avi": _avi_end, "flv": _flv_end}[container.demuxer](file, size)
    missing = f"ends early: {end - size} bytes are missing" if end > size + 1 else "ends early"
    return (missing if end > size else ""), index_first


def _mp4_boxes(file: BinaryIO, size: int) -> list[Box]:
    """Return the outermost boxes without those that another program appended. The last may end after the file."""
    boxes: list[Box] = []
    for box in read_boxes(file, 0, size):
        if box.stop < box.start + 8 or not (box.type.isascii() and box.type.decode("ascii").isprintable()):
            break
        if box.stop > size and box.type not in _TOP_LEVEL_BOXES and {b"moov", b"mdat"} <= {box.type for box in boxes}:
            break
        boxes.append(box)
    return boxes


_SEGMENT, _CLUSTER, _SIZE_UNKNOWN = 0x18538067, 0x1F43B675, -1


def _matroska_end(file: BinaryIO, size: int) -> int:
    """Return the declared end of a Matroska file, by its segments and the elements in them (RFC 8794, 6).

    A segment or cluster of unknown length is entered. Any other element of unknown length ends the walk.
    """
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
    """Return an EBML number and the offset after it, 0 if there is none. All bits set mean unknown (RFC 8794, 4)."""
    width = 9 - int.from_bytes(head[at : at + 1]).bit_length()
    if width > 8 or at + width > len(head):
        return 0, 0
    value = int.from_bytes(head[at : at + width], "big")
    bits = (1 << 7 * width) - 1
    if keep_marker:
        return value, at + width
    return (_SIZE_UNKNOWN if value & bits == bits else value & bits), at + width


def _avi_end(file: BinaryIO, size: int) -> int:
    """Return the end of the last RIFF chunk of an AVI. A chunk of length 0 was never finished."""
    end = 0
    for chunk in read_chunks(file, 0, size - 4):  # the first 4 bytes of the payload are its form type
        if chunk.type != b"RIFF":
            break
        length = chunk.stop - chunk.start
        if not length:
            return size + 1
        end = chunk.stop + length % 2
    return end - (end == size + 1)  # writers often omit the padding of the last chunk


def _flv_end(file: BinaryIO, size: int) -> int:
    """Return the end of an FLV: the file size in its script, else the size of its last tag (FLV 10.1, E.3)."""
    file.seek(0)
    script = file.read(PROBE_BYTES)
    at = script.find(b"\0\x08filesize\0")  # a number of eight bytes follows
    declared = script[at + 11 : at + 19] if at >= 0 else b""
    if len(declared) == 8 and math.isfinite(value := struct.unpack(">d", declared)[0]) and value > size:
        return int(value)
    file.seek(max(0, size - 4))
    last = int.from_bytes(file.read(4), "big")
    file.seek(max(0, size - 4 - last))
    tag = file.read(4)
    return size if last > 11 and int.from_bytes(tag[1:4], "big") == last - 11 else size + 1
