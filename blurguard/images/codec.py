"""How each picture format is read and written, page by page, keeping its kind, depth and compression.

Nothing of the source but pixels, and what ``metadata`` allows, reaches the result. ``images`` is the door.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from blurguard.errors import InputError
from blurguard.files.filetypes import FileType
from blurguard.images.chunks import (
    webp_is_lossless,
)
from blurguard.images.convert import apply_orientation, from_pillow, to_pillow
from blurguard.images.jpeg2000 import jp2_profile, jpeg2000_options, with_jp2_profile
from blurguard.images.metadata import allowed_exif, allowed_profile, allowed_resolution, orientation_of
from blurguard.types import Image

# For formats that do not tell how they were compressed; on Pillow's scales, visually the same.
QUALITY = 92
PILLOW_NAMES = {
    FileType.JPEG: "JPEG", FileType.PNG: "PNG", FileType.WEBP: "WEBP", FileType.TIFF: "TIFF", FileType.BMP: "BMP", FileType.GIF: "GIF",
    FileType.AVIF: "AVIF", FileType.JPEG2000: "JPEG2000",
}  # fmt: skip
_WITH_EXIF = frozenset({FileType.JPEG, FileType.PNG, FileType.WEBP, FileType.TIFF, FileType.AVIF})


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """One picture of a file, upright: a page, an animation's frame, or all there is.

    ``options`` are the encoder's, to write it as it was.
    """

    image: Image
    duration_ms: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)


class Codec(Protocol):
    """An opened file, as its format's class knows it."""

    largest_wh: tuple[int, int]  # size of the largest page as stored, px
    page_count: int

    @property
    def upright_wh(self) -> tuple[int, int]:
        """Width and height of the first page upright, px."""

    def read(self) -> Iterator[Page]:
        """Decode one page after the other; raises whatever the decoder raises."""

    def write(self, pages: Iterable[Page]) -> bytes:
        """Return a file of the same kind with these pages."""


class PillowCodec:
    """A file that Pillow reads and writes, page by page. Subclasses know what their format needs besides."""

    def __init__(self, data: bytes, kind: FileType, picture: Any, keep_metadata: bool) -> None:
        self._data = data
        self._kind = kind
        self._picture = picture
        self.size: tuple[int, int] = picture.size
        self.largest_wh = self.size
        self.page_count = int(getattr(picture, "n_frames", 1)) if kind in (FileType.TIFF, FileType.AVIF) else 1
        exif = picture.getexif()
        self._orientation = 1 if kind is FileType.TIFF else orientation_of(exif)  # Pillow turns TIFF
        self._exif = allowed_exif(exif) if keep_metadata and kind in _WITH_EXIF else b""
        profile = jp2_profile(data) if kind is FileType.JPEG2000 else picture.info.get("icc_profile")
        self._icc = allowed_profile(profile)
        self._dpi = allowed_resolution(picture.info.get("dpi"))

    @property
    def upright_wh(self) -> tuple[int, int]:
        """Width and height of the first page upright, px."""
        width, height = self.size
        return (height, width) if self._orientation >= 5 else (width, height)

    def read(self) -> Iterator[Page]:
        for index in range(self.page_count):
            self._picture.seek(index)
            self._picture.load()
            duration = float(self._picture.info.get("duration") or 0)
            image = apply_orientation(from_pillow(self._picture), self._orientation)
            if self._kind is FileType.JPEG2000 and image.palette:  # Pillow reads palettes there, but writes none
                image = Image(image.pixels, image.layout)
            yield Page(image, duration, self._page_options(self._picture))

    def write(self, pages: Iterable[Page]) -> bytes:
        first, *rest = pages
        buffer = io.BytesIO()
        more = {"save_all": True, "append_images": [to_pillow(page.image) for page in rest]} if rest else {}
        if rest:
            more["duration"] = [round(page.duration_ms) for page in (first, *rest)]
        if self._kind is FileType.BMP and first.image.layout.has_alpha:
            return write_bmp(first.image, self._dpi)
        to_pillow(first.image).save(
            buffer, PILLOW_NAMES[self._kind], **self._metadata_options(), **first.options, **more
        )
        data = buffer.getvalue()
        return with_jp2_profile(data, self._icc) if self._kind is FileType.JPEG2000 and self._icc else data

    def _metadata_options(self) -> dict[str, Any]:
        """What travels with the picture, as options of Pillow's encoders."""
        kept = {"icc_profile": self._icc, "dpi": self._dpi, "exif": self._exif}
        return {key: value for key, value in kept.items() if value}

    def _page_options(self, picture: Any) -> dict[str, Any]:
        """How the page was compressed, as options of Pillow's encoders."""
        if self._kind is FileType.WEBP:
            lossless = webp_is_lossless(self._data)
            return {"lossless": lossless, "quality": 80 if lossless else QUALITY, "exact": True}
        if self._kind is FileType.AVIF:
            return _avif_options(self._data, grey=picture.mode in ("L", "LA"))
        if self._kind is FileType.JPEG2000:
            return jpeg2000_options(self._data)
        return {}


def _avif_options(data: bytes, grey: bool) -> dict[str, Any]:
    """Return the subsampling that AV1's configuration record tells (AV1-ISOBMFF, 2.3).

    Raises:
        InputError: more than 8 bits per channel, which Pillow would cut.
    """
    at = data.find(b"av1C")
    flags = data[at + 6] if at >= 0 else 0b0000_1100
    if flags & 0b0110_0000:
        raise InputError("AVIF of more than 8 bits per channel is not supported; convert it to HEIC or 16-bit PNG")
    subsampling = {0b0000_1100: "4:2:0", 0b0000_1000: "4:2:2"}.get(flags & 0b0000_1100, "4:4:4")
    return {"quality": QUALITY, "subsampling": "4:0:0" if grey else subsampling}


def write_bmp(image: Image, dpi: tuple[float, float] | None) -> bytes:
    """Return an RGBA picture as BMP of 32 bits with a version 4 header, which tells where the alpha is."""
    pixels = np.ascontiguousarray(image.pixels[::-1, :, [2, 1, 0, 3]]).tobytes()
    per_meter = [round(v / 0.0254) for v in dpi or (0, 0)]
    head = struct.pack("<I2i2H2I2i2I", 108, image.width, image.height, 1, 32, 3, len(pixels), *per_meter, 0, 0)
    masks = struct.pack("<4I4s48x", 0xFF0000, 0xFF00, 0xFF, 0xFF000000, b"BGRs")
    return struct.pack("<2s3I", b"BM", 14 + 108 + len(pixels), 0, 14 + 108) + head + masks + pixels
