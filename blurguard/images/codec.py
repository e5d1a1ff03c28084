"""The base of the codecs that use Pillow, and the codec of BMP.

Each codec keeps the format, depth and compression of its source. Only pixels and the metadata that `metadata` allows
reach the result.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import PIL.Image

from blurguard.images.convert import apply_orientation, from_pillow, to_bgr, to_pillow
from blurguard.images.metadata import allowed_exif, allowed_profile, allowed_resolution, orientation_of
from blurguard.types import Image

# For formats that do not record their quality, on Pillow's scales. No loss is visible at this value.
QUALITY = 92


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """One upright picture of a file: its only one, one of several pages, or a frame of an animation.

    ``options`` are encoder settings that reproduce the compression of the source.
    """

    image: Image
    duration_ms: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)


class PillowCodec:
    """An opened file of one format, read and written through Pillow. Here a file has one picture.

    Attributes:
        pillow_name: Pillow's name of the format.
        animated_codec: class for animated files of the format, if they need another one.
        is_animation: whether several pages are the frames of one scene.
        largest_wh: size of the largest page as stored, px.
        page_count: pages or frames.
    """

    pillow_name: ClassVar[str]
    animated_codec: ClassVar[type[PillowCodec] | None] = None
    is_animation: ClassVar[bool] = False
    _first = 0  # index of the first page to read

    def __init__(self, data: bytes, picture: Any, keep_metadata: bool) -> None:
        self._data, self._picture = data, picture
        self._size: tuple[int, int] = picture.size
        self.largest_wh = self._size
        exif = picture.getexif()
        self._orientation = orientation_of(exif)
        self._exif = allowed_exif(exif) if keep_metadata else b""
        self._icc = allowed_profile(picture.info.get("icc_profile"))
        self._dpi = allowed_resolution(picture.info.get("dpi"))
        self.page_count = int(picture.n_frames) if self.is_animation else 1

    @classmethod
    def open(cls, data: bytes, keep_metadata: bool) -> PillowCodec:
        """Read the header of a file, and check that the file is complete where decoders do not.

        Raises:
            InputError: a kind of picture that could not be written again.
            Exception: whatever the decoder raises on a damaged file.
        """
        cls.check_complete(data)
        picture: Any = PIL.Image.open(io.BytesIO(data), formats=[cls.pillow_name])
        codec = cls.animated_codec if cls.animated_codec and picture.is_animated else cls
        return codec(data, picture, keep_metadata)

    @staticmethod
    def check_complete(data: bytes) -> None:
        """Raise ``ValueError`` if the data end before their structure does. Here the decoder does so."""

    @classmethod
    def blank(cls) -> bytes:
        """Return a file of this format with one small picture."""
        return encode(PIL.Image.new("RGB", (8, 8)), cls.pillow_name)

    @property
    def upright_wh(self) -> tuple[int, int]:
        """Width and height of the first page upright, px."""
        width, height = self._size
        return (height, width) if self._orientation >= 5 else (width, height)

    def read(self) -> Iterator[Page]:
        """Decode one page after the other. Raises the same errors as `open`."""
        for index in range(self._first, self._first + self.page_count):
            self._picture.seek(index)
            image = apply_orientation(self._decode(), self._orientation)
            yield Page(image, float(self._picture.info.get("duration") or 0), self._page_options())

    def write(self, pages: Iterable[Page]) -> bytes:
        """Return a file of the same format with one page."""
        (page,) = pages
        return encode(to_pillow(page.image), self.pillow_name, **self._metadata_options(), **page.options)

    def _decode(self) -> Image:
        """Return the current page as it is stored."""
        self._picture.load()
        return from_pillow(self._picture)

    def _page_options(self) -> dict[str, Any]:
        """Return the compression of the current page, as options of Pillow's encoder."""
        return {}

    def _metadata_options(self) -> dict[str, Any]:
        """Return the metadata to keep, as options of Pillow's encoders."""
        options = {"icc_profile": self._icc, "dpi": self._dpi, "exif": self._exif}
        return {key: value for key, value in options.items() if value}


def encode(picture: PIL.Image.Image, pillow_name: str, **options: Any) -> bytes:
    """Return a picture as a file of the format with this name."""
    buffer = io.BytesIO()
    picture.save(buffer, pillow_name, **options)
    return buffer.getvalue()


class BmpCodec(PillowCodec):
    """BMP. Pillow writes alpha without declaring it, so readers ignore it."""

    pillow_name = "BMP"

    def write(self, pages: Iterable[Page]) -> bytes:
        """Return a BMP. With alpha, it has 32 bits and a version 4 header, which declares the alpha mask."""
        (page,) = pages
        image = page.image
        if not image.layout.has_alpha:
            return super().write([page])
        pixels = to_bgr(image)[::-1].tobytes()
        per_meter = [round(v / 0.0254) for v in self._dpi or (0, 0)]
        # One plane, 32 bits a pixel, and 3 for channels by masks (BI_BITFIELDS).
        head = struct.pack("<I2i2H2I2i2I", 108, image.width, image.height, 1, 32, 3, len(pixels), *per_meter, 0, 0)
        masks = struct.pack("<4I4s48x", 0xFF0000, 0xFF00, 0xFF, 0xFF000000, b"BGRs")
        return struct.pack("<2s3I", b"BM", 14 + 108 + len(pixels), 0, 14 + 108) + head + masks + pixels
