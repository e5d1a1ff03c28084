"""What Pillow would cut: colour of more than 8 bits, the alpha of BMP, the colour profile of JPEG 2000.

OpenCV decodes PNG and TIFF; it writes PNG with its colour profile, tifffile writes TIFF. pillow-heif does both
for HEIC. The only BGR in the project is here.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import pillow_heif
import tifffile
from numpy.typing import NDArray

from blurguard.containers import Part, boxes, png_chunk, png_chunks
from blurguard.types import Image, Layout

_TO_RGB = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}
_TO_BGR = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
_LAYOUTS = {3: Layout.RGB, 4: Layout.RGBA}


def read_png(data: bytes) -> Image:
    """Return a 16-bit RGB or RGBA PNG.

    Raises:
        ValueError: damaged, or of another kind.
    """
    return _from_bgr(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))


def read_tiff(data: bytes) -> list[Image]:
    """Return the pages of a TIFF of 16-bit RGB or RGBA.

    Raises:
        ValueError: damaged, or of another kind.
    """
    good, pages = cv2.imdecodemulti(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if not good:
        raise ValueError("damaged data")
    return [_from_bgr(page) for page in pages]


def write_png(image: Image, icc: bytes | None, dpi: tuple[float, float] | None, exif: bytes) -> bytes:
    """Return a 16-bit PNG."""
    bgr = cv2.cvtColor(image.pixels, _TO_BGR[image.layout.channels])
    good, data = cv2.imencode(".png", bgr)
    if not good:
        raise ValueError("OpenCV could not encode it")
    chunks = []
    if icc:
        chunks.append(png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(icc)))
    if dpi:
        per_meter = [round(v / 0.0254) for v in dpi]
        chunks.append(png_chunk(b"pHYs", struct.pack(">2IB", *per_meter, 1)))
    if exif:
        chunks.append(png_chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
    encoded = bytes(data)
    end_of_ihdr = next(png_chunks(encoded)).stop + 4
    return encoded[:end_of_ihdr] + b"".join(chunks) + encoded[end_of_ihdr:]


def write_tiff(
    pages: Iterable[tuple[Image, dict[str, Any]]], icc: bytes | None, dpi: tuple[float, float] | None
) -> bytes:
    """Return a deflate-compressed TIFF; ``extrasamples`` of a page tell what its fourth channel is."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for page, told in pages:
            options: dict[str, Any] = {"iccprofile": icc} if icc else {}
            if dpi:
                options |= {"resolution": dpi, "resolutionunit": "INCH"}
            if page.layout.has_alpha:
                options["extrasamples"] = told.get("extrasamples") or ["UNASSALPHA"]
            writer.write(
                page.pixels, photometric="rgb", compression="zlib", metadata=None, software=False, **options
            )  # fmt: skip
    return buffer.getvalue()


def write_bmp(image: Image, dpi: tuple[float, float] | None) -> bytes:
    """Return an RGBA picture as BMP of 32 bits with a version 4 header, which tells where the alpha is."""
    pixels = np.ascontiguousarray(image.pixels[::-1, :, [2, 1, 0, 3]]).tobytes()
    per_meter = [round(v / 0.0254) for v in dpi or (0, 0)]
    head = struct.pack("<I2i2H2I2i2I", 108, image.width, image.height, 1, 32, 3, len(pixels), *per_meter, 0, 0)
    masks = struct.pack("<4I4s48x", 0xFF0000, 0xFF00, 0xFF, 0xFF000000, b"BGRs")
    return struct.pack("<2s3I", b"BM", 14 + 108 + len(pixels), 0, 14 + 108) + head + masks + pixels


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


def _jp2_header(data: bytes) -> tuple[Part | None, list[Part]]:
    if data.startswith(b"\xff\x4f"):
        return None, []
    header = next(part for part in boxes(data) if part.type == b"jp2h")
    return header, list(boxes(data, header.start, header.stop))


def _box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + name + body


def read_heic(picture: pillow_heif.HeifImage) -> Image:
    """Return one picture of a HEIC file, 8 bits or what there is beyond them stretched to 16."""
    pixels = np.array(picture)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    layout = {1: Layout.GREY, 2: Layout.GREY_ALPHA, 3: Layout.RGB, 4: Layout.RGBA}[pixels.shape[2]]
    return Image(pixels, layout)


def write_heic(pages: Iterable[tuple[Image, dict[str, Any]]], primary: int, quality: int, exif: bytes) -> bytes:
    """Return a HEIC file: 8 bits per channel for uint8, 10 for uint16; each page with its own colour options."""
    file = pillow_heif.HeifFile()  # type: ignore[no-untyped-call]
    chroma = 420
    for image, options in pages:
        chroma = max(chroma, options.get("chroma", 420))  # pillow-heif knows one for all
        mode = {Layout.GREY: "L", Layout.GREY_ALPHA: "LA", Layout.RGB: "RGB", Layout.RGBA: "RGBA"}[image.layout]
        mode += ";16" if image.pixels.dtype == np.uint16 else ""
        added = file.add_frombytes(mode, (image.width, image.height), np.ascontiguousarray(image.pixels).tobytes())
        added.info.update(options)
    buffer = io.BytesIO()
    file.save(buffer, quality=quality, primary_index=primary, exif=exif or None, xmp=None, chroma=chroma)
    return buffer.getvalue()


def _from_bgr(bgr: NDArray[Any] | None) -> Image:
    if bgr is None:
        raise ValueError("damaged data")
    channels = bgr.shape[2] if bgr.ndim == 3 else 1
    if bgr.dtype != np.uint16 or channels not in _TO_RGB:
        raise ValueError(f"{bgr.dtype} pixels of {channels} channels are not supported")
    return Image(np.asarray(cv2.cvtColor(bgr, _TO_RGB[channels]), np.uint16), _LAYOUTS[channels])
