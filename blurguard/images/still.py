"""Reading and writing still pictures: the door to every format.

``open_still`` looks at the header only and refuses what is too large; ``Still.pages`` decodes one page at a
time; ``Still.encode`` takes them back, hidden, and returns the bytes of a new file.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from blurguard.errors import InputError
from blurguard.files.filetypes import Kind
from blurguard.images.animation import _Animation
from blurguard.images.chunks import check_whole
from blurguard.images.codec import PILLOW_NAMES, QUALITY, Page, Source, _PillowSource
from blurguard.images.heif import _Heic, write_heic
from blurguard.images.jpeg import _Jpeg
from blurguard.images.png import _Png
from blurguard.images.tiff import _Tiff
from blurguard.types import Image, Layout

__all__ = ["Page", "Still", "open_still", "template"]

# What decoders raise on damaged files, as seen in fuzzing; anything else is our mistake, and surfaces as such.
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError, RuntimeError,
    AttributeError, struct.error, MemoryError, Pillow.DecompressionBombError,
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Still:
    """An opened picture file.

    Attributes:
        kind: its format.
        width: of the first page as displayed, px.
        height: of the first page as displayed, px.
        count: pages or frames.
    """

    kind: Kind
    width: int
    height: int
    count: int
    _source: Source
    _name: str

    @property
    def animated(self) -> bool:
        """Whether its pages are the frames of one scene, shown one after the other."""
        return self.count > 1 and self.kind in (Kind.GIF, Kind.PNG, Kind.WEBP, Kind.AVIF)

    def pages(self) -> Iterator[Page]:
        """Decode one page after the other.

        Raises:
            InputError: truncated, corrupt, or of a kind that cannot be kept.
        """
        pages = self._source.read()
        while True:
            with _damage(self._name, self.kind):
                page = next(pages, None)
            if page is None:
                return
            yield page

    def encode(self, pages: Iterable[Page]) -> bytes:
        """Return a file of this kind with these pages."""
        return self._source.write(pages)


def open_still(data: bytes, kind: Kind, name: str, max_pixels: int, keep_metadata: bool = False) -> Still:
    """Open a picture from the bytes of its file; decodes nothing yet.

    Args:
        data: the file's content.
        kind: what it is, by content.
        name: of the file, for messages.
        max_pixels: a page of more px is refused.
        keep_metadata: whether capture time, camera, lens and exposure are to be kept.

    Raises:
        InputError: damaged, of an unsupported kind, or too large.
    """
    if not kind.is_still:
        raise InputError(f"{name}: {_WHY_NOT[kind]}")
    with _damage(name, kind):
        check_whole(data, kind)
        source = open_source(data, kind, keep_metadata)
        width, height = source.largest
        if width * height > max_pixels:
            raise InputError(
                f"{name}: {width} x {height} is more than {max_pixels / 1e6:g} megapixels; "
                "if you trust this file, raise --max-pixels"
            )
        return Still(kind, *source.displayed, source.count, source, name)


def template(kind: Kind) -> Still:
    """Return a still of this kind without pages, to encode pages that come from nowhere."""
    buffer = io.BytesIO()
    if kind is Kind.HEIC:
        blank = Image(np.zeros((8, 8, 3), np.uint8), Layout.RGB)
        return open_still(write_heic([(blank, {})], 0, QUALITY, b""), kind, "blank", 64)
    Pillow.new("RGB", (8, 8)).save(buffer, PILLOW_NAMES[kind])
    return open_still(buffer.getvalue(), kind, "blank", 64)


_WHY_NOT = {
    Kind.VIDEO: "is a video, no picture",
    Kind.RAW: "is a camera raw file; develop it to JPEG or TIFF first",
    Kind.UNKNOWN: "is neither a picture nor a video that blurguard knows, whatever its name says",
}


@contextlib.contextmanager
def _damage(name: str, kind: Kind) -> Iterator[None]:
    """Turn what decoders raise into ``InputError`` that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what it then raises, or repairs
            yield
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(name) else f"{name}: {message}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: damaged or unsupported {kind}") from error
    except _DAMAGE as error:
        detail = str(error) or type(error).__name__
        raise InputError(f"{name}: damaged or unsupported {kind}: {detail}") from error


def open_source(data: bytes, kind: Kind, keep_metadata: bool) -> Source:
    """Open a file by its header; raises whatever the decoder raises, or ``InputError`` for what cannot be kept."""
    if kind is Kind.HEIC:
        return _Heic(data, keep_metadata)
    picture = Pillow.open(io.BytesIO(data), formats=[PILLOW_NAMES[kind]])
    animated = kind in (Kind.PNG, Kind.WEBP) and getattr(picture, "is_animated", False)
    if kind is Kind.GIF or animated:
        return _Animation(data, kind, picture, keep_metadata)
    reader = {Kind.JPEG: _Jpeg, Kind.TIFF: _Tiff, Kind.PNG: _Png}.get(kind, _PillowSource)
    return reader(data, kind, picture, keep_metadata)
