"""TIFF. OpenCV decodes and tifffile writes 16-bit color, which Pillow would cut to 8 bits."""

import io
import itertools
import math
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import TiffImagePlugin

from blurguard.errors import InputError
from blurguard.images.codec import QUALITY, Page, PillowCodec
from blurguard.images.convert import from_bgr, to_pillow
from blurguard.types import Image

# Compressions that are kept, of those that Pillow both reads and writes.
_COMPRESSIONS = {"raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "group3", "group4", "jpeg", "zstd", "lzma"}


class TiffCodec(PillowCodec):
    """TIFF of any number of pages, each with its own size, kind and compression."""

    pillow_name = "TIFF"

    def __init__(self, data: bytes, picture: Any, keep_metadata: bool) -> None:
        super().__init__(data, picture, keep_metadata)
        self._orientation = 1  # Pillow and OpenCV apply it
        self.page_count = int(picture.n_frames)
        for index in reversed(range(self.page_count)):
            picture.seek(index)
            self.largest_wh = max(self.largest_wh, picture.size, key=math.prod)

    @staticmethod
    def check_complete(data: bytes) -> None:
        """Raise an error if a directory lies after the end of the file (TIFF 6.0, section 2, and BigTIFF)."""
        order = "<" if data.startswith(b"II") else ">"
        # 43 stands for BigTIFF.
        first, count, pointer, entry_bytes = (8, "Q", "Q", 20) if 43 in data[2:4] else (4, "H", "I", 12)
        offsets: set[int] = set()
        (at,) = struct.unpack_from(order + pointer, data, first)
        while at and at not in offsets:
            offsets.add(at)
            (entries,) = struct.unpack_from(order + count, data, at)
            (at,) = struct.unpack_from(order + pointer, data, at + struct.calcsize(count) + entries * entry_bytes)

    def read(self) -> Iterator[Page]:
        """Decode one page after the other. OpenCV decodes all pages at once."""
        pages_16_bit: list[Image] = []
        for index in range(self.page_count):
            self._picture.seek(index)
            tags = self._picture.tag_v2
            _check_pixels(tags, len(self._data))
            if _is_16_bit_color(tags):
                pages_16_bit = pages_16_bit or _decode_16_bit(self._data)
                yield Page(pages_16_bit[index], options={"extrasamples": tags.get(TiffImagePlugin.EXTRASAMPLES)})
                continue
            image = self._decode()
            white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
            if white_is_zero and image.pixels.dtype.itemsize == 2:  # Pillow inverts 8 bits only
                image = Image(~image.pixels, image.layout)
            yield Page(image, options=self._page_options())

    def write(self, pages: Iterable[Page]) -> bytes:
        """Return a TIFF. Either all pages have 16-bit color, or none."""
        pages = iter(pages)
        first = next(pages)
        pages = itertools.chain([first], pages)
        buffer = io.BytesIO()
        if first.image.pixels.shape[2] >= 3 and first.image.pixels.dtype.itemsize == 2:
            self._write_16_bit(pages, buffer)
            return buffer.getvalue()
        with TiffImagePlugin.AppendingTiffWriter(buffer, new=True) as writer:
            for page in pages:
                to_pillow(page.image).save(writer, "TIFF", **self._metadata_options(), **page.options)
                writer.newFrame()
        return buffer.getvalue()

    def _write_16_bit(self, pages: Iterable[Page], buffer: io.BytesIO) -> None:
        """Write pages with deflate compression. ``extrasamples`` of a page is the kind of its alpha."""
        options: dict[str, Any] = {"photometric": "rgb", "compression": "zlib", "metadata": None, "software": False}
        options["iccprofile"] = self._icc
        if self._dpi:
            options |= {"resolution": self._dpi, "resolutionunit": "INCH"}
        with tifffile.TiffWriter(buffer) as writer:
            for page in pages:
                extra = page.options.get("extrasamples") or ["UNASSALPHA"] if page.image.layout.has_alpha else None
                writer.write(page.image.pixels, extrasamples=extra, **options)

    def _page_options(self) -> dict[str, Any]:
        compression = self._picture.info.get("compression", "raw")
        if compression not in _COMPRESSIONS or (compression in ("group3", "group4") and self._picture.mode != "1"):
            compression = "tiff_adobe_deflate"
        return {"compression": compression} | ({"quality": QUALITY} if compression == "jpeg" else {})


def _check_pixels(tags: Any, size: int) -> None:
    """Raise ``ValueError`` if pixels lie after the end of the file: libtiff fills in others (TIFF 6.0, page 39)."""
    for offsets, lengths in ((273, 279), (324, 325)):  # tags of strips and of tiles
        for offset, length in zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=False):
            if offset + length > size:
                raise ValueError(f"truncated: pixels up to byte {offset + length} of {size}")


def _is_16_bit_color(tags: Any) -> bool:
    """Whether a page is RGB or RGBA of 16 bits per channel, which Pillow would cut.

    Raises:
        InputError: color of more than 8 bits per channel that OpenCV does not decode.
    """
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    if len(bits) < 3 or max(bits) <= 8:
        return False
    if max(bits) != 16 or tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) != 2:
        raise InputError(f"{max(bits)} bits of this kind of color are not supported; convert it to 16-bit RGB")
    if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2:  # OpenCV would read planes as pixels
        raise InputError("16-bit planes are not supported; save it with interleaved channels")
    return True


def _decode_16_bit(data: bytes) -> list[Image]:
    """Return all pages of a TIFF of 16-bit RGB or RGBA.

    Raises:
        ValueError: damaged, or of another kind.
    """
    decoded, pages = cv2.imdecodemulti(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if not decoded:
        raise ValueError("damaged data")
    return [from_bgr(page) for page in pages]
