"""HEIC."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image as Pillow

from blurguard.images.codec import QUALITY, Page
from blurguard.images.metadata import allowed_exif, allowed_profile
from blurguard.types import Image, Layout


class HeicCodec:
    """HEIC: all top-level pictures; depth maps, thumbnails and other auxiliaries stay behind."""

    def __init__(self, data: bytes, keep_metadata: bool) -> None:
        self._file = pillow_heif.open_heif(data, convert_hdr_to_8bit=False)
        width, height = self._file.size
        self.upright_wh = (int(width), int(height))
        self.largest_wh = max((picture.size for picture in self._file), key=math.prod)
        self.page_count = len(self._file)
        self._exif = b""
        if keep_metadata and (block := self._file.info.get("exif")):
            exif = Pillow.Exif()
            exif.load(block)
            self._exif = allowed_exif(exif)

    def read(self) -> Iterator[Page]:
        for picture in self._file:
            yield Page(read_heic(picture), options=_heic_options(picture.info))

    def write(self, pages: Iterable[Page]) -> bytes:
        options = ((page.image, page.options) for page in pages)
        return write_heic(options, self._file.primary_index, QUALITY, self._exif)


def _heic_options(info: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"chroma": info.get("chroma") or 420}
    if profile := allowed_profile(info.get("icc_profile")):
        options |= {"icc_profile": profile, "icc_profile_type": info.get("icc_profile_type", "prof")}
    if nclx := info.get("nclx_profile"):
        options["nclx_profile"] = nclx
    return options


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
