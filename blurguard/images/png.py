"""What Pillow would cut: colour of more than 8 bits, the alpha of BMP, the colour profile of JPEG 2000.

OpenCV decodes PNG and TIFF; it writes PNG with its colour profile, tifffile writes TIFF. pillow-heif does both
for HEIC. The only BGR in the project is here.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np

from blurguard.errors import InputError
from blurguard.files.filetypes import FileType
from blurguard.images.chunks import png_chunk, png_chunks
from blurguard.images.codec import Page, PillowCodec
from blurguard.images.convert import RGB_TO_BGR, apply_orientation, from_bgr
from blurguard.types import Image


def read_png(data: bytes) -> Image:
    """Return a 16-bit RGB or RGBA PNG.

    Raises:
        ValueError: damaged, or of another kind.
    """
    return from_bgr(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))


def write_png(image: Image, icc: bytes | None, dpi: tuple[float, float] | None, exif: bytes) -> bytes:
    """Return a 16-bit PNG."""
    bgr = cv2.cvtColor(image.pixels, RGB_TO_BGR[image.layout.channels])
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


class PngCodec(PillowCodec):
    """PNG: what Pillow would cut to 8 bits goes another way; a colour that stands for transparency is kept."""

    def __init__(self, data: bytes, kind: FileType, picture: Any, keep_metadata: bool) -> None:
        super().__init__(data, kind, picture, keep_metadata)
        depth, color_type = data[24], data[25]
        if depth == 16 and color_type == 4:
            raise InputError("16-bit grey with alpha is not supported; convert it to 16-bit RGBA")
        self._deep = depth == 16 and color_type in (2, 6)
        if self._deep and any(part.type == b"tRNS" for part in png_chunks(data)):
            raise InputError("16-bit colour with a transparent colour is not supported; convert it to 16-bit RGBA")

    def read(self) -> Iterator[Page]:
        if self._deep:
            self._picture.load()  # OpenCV does not mind damaged checksums; Pillow does
            yield Page(apply_orientation(read_png(self._data), self._orientation))
        else:
            yield from super().read()

    def write(self, pages: Iterable[Page]) -> bytes:
        if not self._deep:
            return super().write(pages)
        (page,) = pages
        return write_png(page.image, self._icc, self._dpi, self._exif)

    def _page_options(self, picture: Any) -> dict[str, Any]:
        transparency = picture.info.get("transparency")
        keyed = picture.mode in ("1", "L", "RGB", "I;16") and transparency is not None
        return {"transparency": transparency} if keyed else {}
