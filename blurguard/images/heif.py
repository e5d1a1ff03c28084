"""HEIC by pillow-heif, and AVIF by Pillow: pictures in ISO base media files (ISO/IEC 23008-12)."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import pillow_heif

from blurguard.errors import InputError
from blurguard.files.isobmff import picture_boxes
from blurguard.images.codec import QUALITY, Page, PillowCodec, encode
from blurguard.images.convert import MODES, to_pillow
from blurguard.images.metadata import allowed_exif, allowed_profile
from blurguard.types import Image, Layout

_LAYOUTS = {1: Layout.GREY, 2: Layout.GREY_ALPHA, 3: Layout.RGB, 4: Layout.RGBA}


class HeicCodec:
    """HEIC: all top-level pictures. Depth maps, thumbnails and other auxiliary pictures are left out."""

    is_animation: ClassVar[bool] = False

    def __init__(self, data: bytes, keep_metadata: bool) -> None:
        self._file = pillow_heif.open_heif(data, convert_hdr_to_8bit=False)
        self.upright_wh: tuple[int, int] = self._file.size
        self.largest_wh = max((picture.size for picture in self._file), key=math.prod)
        self.page_count = len(self._file)
        self._exif = b""
        if keep_metadata and (block := self._file.info.get("exif")):
            exif = PIL.Image.Exif()
            exif.load(block)
            self._exif = allowed_exif(exif)

    @classmethod
    def open(cls, data: bytes, keep_metadata: bool) -> HeicCodec:
        """Read the header of a file. Raises ``ValueError`` if a box ends after the file."""
        list(picture_boxes(data))
        return cls(data, keep_metadata)

    @classmethod
    def blank(cls) -> bytes:
        """Return a file with one small picture."""
        return _encode_heic([Page(Image(np.zeros((8, 8, 3), np.uint8), Layout.RGB))], 0, b"")

    def read(self) -> Iterator[Page]:
        """Decode one picture after the other: 8 bits, or more bits stretched to 16."""
        for picture in self._file:
            pixels = np.array(picture)
            pixels = pixels.reshape(*pixels.shape[:2], -1)
            yield Page(Image(pixels, _LAYOUTS[pixels.shape[2]]), options=_color_options(picture.info))

    def write(self, pages: Iterable[Page]) -> bytes:
        """Return a HEIC with the same primary picture."""
        return _encode_heic(pages, self._file.primary_index, self._exif)


def _color_options(info: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"chroma": info.get("chroma") or 420}
    if profile := allowed_profile(info.get("icc_profile")):
        options |= {"icc_profile": profile, "icc_profile_type": info.get("icc_profile_type", "prof")}
    if nclx := info.get("nclx_profile"):
        options["nclx_profile"] = nclx
    return options


def _encode_heic(pages: Iterable[Page], primary: int, exif: bytes) -> bytes:
    """Return a HEIC of 8 bits per channel for uint8, 10 for uint16. Each page has its own color options."""
    file = pillow_heif.HeifFile()  # type: ignore[no-untyped-call]
    chroma = 420
    for image, options in ((page.image, page.options) for page in pages):
        chroma = max(chroma, options.get("chroma", 420))  # pillow-heif writes all pages with one chroma format
        mode = MODES[image.layout] + (";16" if image.pixels.dtype == np.uint16 else "")
        added = file.add_frombytes(mode, (image.width, image.height), np.ascontiguousarray(image.pixels).tobytes())
        added.info.update(options)
    buffer = io.BytesIO()
    file.save(buffer, quality=QUALITY, primary_index=primary, exif=exif or None, xmp=None, chroma=chroma)
    return buffer.getvalue()


class AvifCodec(PillowCodec):
    """AVIF, still or animated."""

    pillow_name = "AVIF"
    is_animation = True

    @staticmethod
    def check_complete(data: bytes) -> None:
        """Raise ``ValueError`` if a box ends after the file."""
        list(picture_boxes(data))

    def write(self, pages: Iterable[Page]) -> bytes:
        """Return an AVIF with these frames."""
        first, *rest = pages
        options = self._metadata_options() | first.options
        if rest:
            options |= {"save_all": True, "append_images": [to_pillow(page.image) for page in rest]}
            options["duration"] = [round(page.duration_ms) for page in (first, *rest)]
        return encode(to_pillow(first.image), "AVIF", **options)

    def _page_options(self) -> dict[str, Any]:
        """Return the subsampling in AV1's configuration record (AV1-ISOBMFF, 2.3).

        Raises:
            InputError: more than 8 bits per channel, which Pillow would cut.
        """
        at = self._data.find(b"av1C")
        flags = self._data[at + 6] if at >= 0 else 0b0000_1100
        if flags & 0b0110_0000:
            raise InputError("AVIF of more than 8 bits per channel is not supported; convert it to HEIC or 16-bit PNG")
        subsampling = {0b0000_1100: "4:2:0", 0b0000_1000: "4:2:2"}.get(flags & 0b0000_1100, "4:4:4")
        return {"quality": QUALITY, "subsampling": "4:0:0" if self._picture.mode in ("L", "LA") else subsampling}
