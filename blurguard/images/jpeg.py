"""JPEG, with the quantization tables and subsampling of its source.

Pillow writes any tables, but copies the picture first. simplejpeg (libjpeg-turbo) takes half the time, but only a
quality. It is used if the tables of the source are the standard ones at some quality.
"""

import functools
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import PIL.Image
import simplejpeg
from PIL import JpegImagePlugin

from blurguard.images.codec import Page, PillowCodec
from blurguard.types import Image, Layout

Tables = dict[int, list[int]]
_SUBSAMPLING = {0: "444", 1: "422", 2: "420"}  # keys are Pillow's numbers
_DENSITY = 13  # offset of unit, x and y in the JFIF header (ITU-T T.871, 10.1)


class JpegCodec(PillowCodec):
    """JPEG. simplejpeg's strict mode reports truncated data."""

    pillow_name = "JPEG"

    def _decode(self) -> Image:
        """Return the picture, the first one of an MPO."""
        layout = {"L": Layout.GREY, "RGB": Layout.RGB}.get(self._picture.mode)
        if layout is None:
            return super()._decode()
        try:
            pixels = simplejpeg.decode_jpeg(self._data, "GRAY" if layout is Layout.GREY else "RGB", strict=True)
        except ValueError as error:
            if "extraneous bytes" not in str(error):
                raise
            # Some cameras write filler between the segments, and every decoder skips it. Pillow finds real damage.
            return super()._decode()
        return Image(pixels, layout)

    def write(self, pages: Iterable[Page]) -> bytes:
        """Return a JPEG with the tables, subsampling and scan order in the page's options."""
        (page,) = pages
        options, tables = page.options, page.options.get("qtables", {})
        special = self._icc or self._exif or options.get("progressive") or options.get("keep_rgb")
        is_plain = tables and not special and page.image.layout in (Layout.GREY, Layout.RGB)
        data = _encode_standard(page.image, tables, options["subsampling"], self._dpi) if is_plain else None
        return data or super().write([page])

    def _page_options(self) -> dict[str, Any]:
        subsampling, info = JpegImagePlugin.get_sampling(self._picture), self._picture.info
        return {
            "subsampling": max(subsampling, 0),  # -1 stands for any that Pillow cannot write: 4:4:4 then
            "qtables": self._picture.quantization, "progressive": bool(info.get("progressive")),
            "keep_rgb": self._picture.mode == "RGB" and info.get("adobe_transform") == 0,
        }  # fmt: skip


def _encode_standard(image: Image, tables: Tables, subsampling: int, dpi: tuple[float, float] | None) -> bytes | None:
    """Return a baseline JPEG, or None if the quantization tables are not the standard ones at any quality.

    Args:
        image: 8 bits, gray or RGB.
        tables: as Pillow reports them.
        subsampling: 0 for 4:4:4, 1 for 4:2:2, 2 for 4:2:0.
        dpi: resolution for the header.
    """
    gray = image.layout is Layout.GREY
    quality = _quality_by_tables(gray).get(_key(tables))
    if quality is None:
        return None
    space, chroma = ("GRAY", "Gray") if gray else ("RGB", _SUBSAMPLING[subsampling])
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(image.pixels), quality, space, chroma, fastdct=False)
    if dpi is None:
        return data
    x, y = (min(round(v), 0xFFFF).to_bytes(2, "big") for v in dpi)
    return data[:_DENSITY] + b"\x01" + x + y + data[_DENSITY + 5 :]


def _key(tables: Tables) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tables[index]) for index in sorted(tables))


@functools.cache
def _quality_by_tables(gray: bool) -> dict[tuple[tuple[int, ...], ...], int]:
    """Map the standard tables to their quality, 1 to 100: the encoder itself writes them into tiny pictures."""
    pixels = np.zeros((8, 8, 1 if gray else 3), np.uint8)
    space, chroma = ("GRAY", "Gray") if gray else ("RGB", "444")
    quality_by_tables = {}
    for quality in range(1, 101):
        data = simplejpeg.encode_jpeg(pixels, quality, space, chroma)
        with PIL.Image.open(io.BytesIO(data), formats=["JPEG"]) as picture:
            quality_by_tables[_key(picture.quantization)] = quality  # type: ignore[attr-defined]
    return quality_by_tables
