"""Encoding JPEG with libjpeg-turbo itself where the source's tables are the usual ones.

Pillow writes any tables, but copies the picture first; simplejpeg takes a quality only, and half the time.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image as Pillow
from PIL import JpegImagePlugin

from blurguard.images.codec import Page, PillowCodec
from blurguard.images.convert import apply_orientation
from blurguard.types import Image, Layout

Tables = dict[int, list[int]]
_SUBSAMPLING = {0: "444", 1: "422", 2: "420"}  # Pillow's numbers
_DENSITY = 13  # byte of the JFIF header (ITU-T T.871, 10.1) where unit, x and y begin


def encode_standard_tables(
    image: Image, tables: Tables, subsampling: int, dpi: tuple[float, float] | None
) -> bytes | None:
    """Return a baseline JPEG with these quantisation tables, or None when they are of no quality from 1 to 100.

    Args:
        image: 8 bits, grey or RGB.
        tables: as Pillow tells them.
        subsampling: 0 for 4:4:4, 1 for 4:2:2, 2 for 4:2:0.
        dpi: resolution to note.
    """
    quality = _quality_by_tables(image.layout is Layout.GREY).get(_key(tables))
    if quality is None:
        return None
    space = "GRAY" if image.layout is Layout.GREY else "RGB"
    pixels = np.ascontiguousarray(image.pixels)
    chroma = "Gray" if image.layout is Layout.GREY else _SUBSAMPLING[subsampling]
    data: bytes = simplejpeg.encode_jpeg(pixels, quality, space, chroma, fastdct=False)
    if dpi is None:
        return data
    x, y = (min(round(v), 0xFFFF).to_bytes(2, "big") for v in dpi)
    return data[:_DENSITY] + b"\x01" + x + y + data[_DENSITY + 5 :]


def _key(tables: Tables) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tables[index]) for index in sorted(tables))


@functools.cache
def _quality_by_tables(grey: bool) -> dict[tuple[tuple[int, ...], ...], int]:
    """Return the quality for the tables of each: what the encoder itself writes into a tiny picture."""
    pixels = np.zeros((8, 8, 1 if grey else 3), np.uint8)
    found = {}
    for quality in range(1, 101):
        data = simplejpeg.encode_jpeg(pixels, quality, "GRAY" if grey else "RGB", "Gray" if grey else "444")
        with Pillow.open(io.BytesIO(data), formats=["JPEG"]) as picture:
            found[_key(picture.quantization)] = quality  # type: ignore[attr-defined]
    return found


class JpegCodec(PillowCodec):
    """JPEG keeps its quantisation tables and subsampling; libjpeg-turbo tells truncated data from whole."""

    def read(self) -> Iterator[Page]:
        layout = {"L": Layout.GREY, "RGB": Layout.RGB}.get(self._picture.mode)
        if layout is None:
            yield from super().read()
            return
        space = "GRAY" if layout is Layout.GREY else "RGB"
        try:
            pixels = simplejpeg.decode_jpeg(self._data, space, strict=True)
        except ValueError as error:
            if "extraneous bytes" not in str(error):
                raise
            # Some cameras write filler between the segments; every decoder skips it. Pillow finds real damage.
            yield from super().read()
            return
        yield Page(apply_orientation(Image(pixels, layout), self._orientation), options=self._page_options(self._picture))

    def write(self, pages: Iterable[Page]) -> bytes:
        (page,) = pages
        options = page.options
        special = self._icc or self._exif or options.get("progressive") or options.get("keep_rgb")
        tables = options.get("qtables")
        if tables and not special and page.image.layout in (Layout.GREY, Layout.RGB):
            usual = encode_standard_tables(page.image, tables, options["subsampling"], self._dpi)
            if usual is not None:
                return usual
        return super().write([page])

    def _page_options(self, picture: Any) -> dict[str, Any]:
        subsampling = JpegImagePlugin.get_sampling(picture)
        options = {
            "qtables": picture.quantization,
            "subsampling": max(subsampling, 0),  # -1 is one that Pillow cannot write: then none
            "progressive": bool(picture.info.get("progressive")),
        }
        if picture.mode == "RGB" and picture.info.get("adobe_transform") == 0:
            options["keep_rgb"] = True
        return options
