"""TIFF, page by page."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import TiffImagePlugin

from blurguard.errors import InputError
from blurguard.files.filetypes import FileType
from blurguard.images.codec import QUALITY, Page, PillowCodec
from blurguard.images.convert import from_bgr, from_pillow, to_pillow
from blurguard.types import Image


class TiffCodec(PillowCodec):
    """TIFF: any number of pages, each with its own size, kind and compression."""

    def __init__(self, data: bytes, kind: FileType, picture: Any, keep_metadata: bool) -> None:
        super().__init__(data, kind, picture, keep_metadata)
        for index in reversed(range(self.page_count)):
            picture.seek(index)
            self.largest_wh = max(self.largest_wh, picture.size, key=math.prod)

    def read(self) -> Iterator[Page]:
        deep_pages: list[Image] | None = None
        for index in range(self.page_count):
            self._picture.seek(index)
            tags = self._picture.tag_v2
            _check_strips(tags, len(self._data))
            bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
            photometric = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)
            if len(bits) < 3 or max(bits) <= 8:
                self._picture.load()
                image = from_pillow(self._picture)
                if photometric == 0 and image.pixels.dtype.itemsize == 2:  # white is zero; Pillow turns 8 bits only
                    image = Image(~image.pixels, image.layout)
                yield Page(image, options=self._page_options(self._picture))
                continue
            if max(bits) != 16 or photometric != 2:
                raise InputError(f"{max(bits)} bits of this kind of colour are not supported; convert it to 16-bit RGB")
            if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2:  # OpenCV mistakes them for pixels
                raise InputError("16-bit planes are not supported; save it with interleaved channels")
            deep_pages = deep_pages or read_tiff(self._data)
            yield Page(deep_pages[index], options={"extrasamples": tags.get(TiffImagePlugin.EXTRASAMPLES)})

    def write(self, pages: Iterable[Page]) -> bytes:
        """Write page by page; all of them are deep, or none."""
        buffer = io.BytesIO()
        pages = iter(pages)
        first = next(pages)
        if first.image.pixels.shape[2] >= 3 and first.image.pixels.dtype.itemsize == 2:
            chain = ((page.image, page.options) for page in (first, *pages))
            return write_tiff(chain, self._icc, self._dpi)
        with TiffImagePlugin.AppendingTiffWriter(buffer, new=True) as writer:
            for page in (first, *pages):
                to_pillow(page.image).save(writer, "TIFF", **self._metadata_options(), **page.options)
                writer.newFrame()
        return buffer.getvalue()

    def _page_options(self, picture: Any) -> dict[str, Any]:
        compression = picture.info.get("compression", "raw")
        lossy = compression in ("jpeg", "tiff_jpeg", "webp")
        if picture.mode != "1" and compression in ("group3", "group4", "tiff_ccitt"):
            compression = "tiff_adobe_deflate"
        known = {"raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "group3", "group4", "jpeg", "zstd", "lzma"}
        options = {"compression": compression if compression in known else "tiff_adobe_deflate"}
        return options | ({"quality": QUALITY} if lossy and compression == "jpeg" else {})


def _check_strips(tags: Any, size: int) -> None:
    """Raise ``ValueError`` when pixels lie after the end: libtiff makes up what is missing (TIFF 6.0, page 39)."""
    for at, count in ((273, 279), (324, 325)):  # strips, tiles
        for offset, length in zip(tags.get(at, ()), tags.get(count, ()), strict=False):
            if offset + length > size:
                raise ValueError(f"truncated: pixels up to byte {offset + length} of {size}")


def read_tiff(data: bytes) -> list[Image]:
    """Return the pages of a TIFF of 16-bit RGB or RGBA.

    Raises:
        ValueError: damaged, or of another kind.
    """
    good, pages = cv2.imdecodemulti(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if not good:
        raise ValueError("damaged data")
    return [from_bgr(page) for page in pages]


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
