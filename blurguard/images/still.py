"""Reading and writing still pictures: the door to every format.

``open_image`` looks at the header only and refuses what is too large; ``Still.pages`` decodes one page at a
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
from blurguard.files.filetypes import FileType
from blurguard.images.animation import AnimationCodec
from blurguard.images.chunks import check_complete
from blurguard.images.codec import PILLOW_NAMES, QUALITY, Codec, Page, PillowCodec
from blurguard.images.heif import HeicCodec, write_heic
from blurguard.images.jpeg import JpegCodec
from blurguard.images.png import PngCodec
from blurguard.images.tiff import TiffCodec
from blurguard.types import Image, Layout

__all__ = ["ImageFile", "Page", "blank_image_file", "open_image"]

# What decoders raise on damaged files, as seen in fuzzing; anything else is our mistake, and surfaces as such.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError, RuntimeError,
    AttributeError, struct.error, MemoryError, Pillow.DecompressionBombError,
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class ImageFile:
    """An opened picture file.

    Attributes:
        kind: its format.
        width: of the first page as displayed, px.
        height: of the first page as displayed, px.
        count: pages or frames.
    """

    file_type: FileType
    width: int
    height: int
    page_count: int
    _codec: Codec
    _name: str

    @property
    def is_animated(self) -> bool:
        """Whether its pages are the frames of one scene, shown one after the other."""
        return self.page_count > 1 and self.file_type in (FileType.GIF, FileType.PNG, FileType.WEBP, FileType.AVIF)

    def pages(self) -> Iterator[Page]:
        """Decode one page after the other.

        Raises:
            InputError: truncated, corrupt, or of a kind that cannot be kept.
        """
        pages = self._codec.read()
        while True:
            with _decoder_errors(self._name, self.file_type):
                page = next(pages, None)
            if page is None:
                return
            yield page

    def encode(self, pages: Iterable[Page]) -> bytes:
        """Return a file of this kind with these pages."""
        return self._codec.write(pages)


def open_image(data: bytes, kind: FileType, name: str, max_pixels: int, keep_metadata: bool = False) -> ImageFile:
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
        raise InputError(f"{name}: {_UNSUPPORTED_REASONS[kind]}")
    with _decoder_errors(name, kind):
        check_complete(data, kind)
        source = open_codec(data, kind, keep_metadata)
        width, height = source.largest_wh
        if width * height > max_pixels:
            raise InputError(
                f"{name}: {width} x {height} is more than {max_pixels / 1e6:g} megapixels; "
                "if you trust this file, raise --max-pixels"
            )
        return ImageFile(kind, *source.upright_wh, source.page_count, source, name)


def blank_image_file(kind: FileType) -> ImageFile:
    """Return a still of this kind without pages, to encode pages that come from nowhere."""
    buffer = io.BytesIO()
    if kind is FileType.HEIC:
        blank = Image(np.zeros((8, 8, 3), np.uint8), Layout.RGB)
        return open_image(write_heic([(blank, {})], 0, QUALITY, b""), kind, "blank", 64)
    Pillow.new("RGB", (8, 8)).save(buffer, PILLOW_NAMES[kind])
    return open_image(buffer.getvalue(), kind, "blank", 64)


_UNSUPPORTED_REASONS = {
    FileType.VIDEO: "is a video, no picture",
    FileType.RAW: "is a camera raw file; develop it to JPEG or TIFF first",
    FileType.UNKNOWN: "is neither a picture nor a video that blurguard knows, whatever its name says",
}


@contextlib.contextmanager
def _decoder_errors(name: str, kind: FileType) -> Iterator[None]:
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
    except _DECODER_ERRORS as error:
        detail = str(error) or type(error).__name__
        raise InputError(f"{name}: damaged or unsupported {kind}: {detail}") from error


def open_codec(data: bytes, kind: FileType, keep_metadata: bool) -> Codec:
    """Open a file by its header; raises whatever the decoder raises, or ``InputError`` for what cannot be kept."""
    if kind is FileType.HEIC:
        return HeicCodec(data, keep_metadata)
    picture = Pillow.open(io.BytesIO(data), formats=[PILLOW_NAMES[kind]])
    animated = kind in (FileType.PNG, FileType.WEBP) and getattr(picture, "is_animated", False)
    if kind is FileType.GIF or animated:
        return AnimationCodec(data, kind, picture, keep_metadata)
    reader = {FileType.JPEG: JpegCodec, FileType.TIFF: TiffCodec, FileType.PNG: PngCodec}.get(kind, PillowCodec)
    return reader(data, kind, picture, keep_metadata)
