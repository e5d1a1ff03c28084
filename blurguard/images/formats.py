"""The supported picture formats, ``CODECS``, and how their files are opened: `open_image`, `ImageFile`.

``open_image`` reads the header only, and refuses pictures that are too large. ``ImageFile.pages`` then decodes one
page at a time. ``ImageFile.encode`` takes pages and returns the bytes of a new file.
"""

import contextlib
import struct
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import PIL.Image

from blurguard.errors import InputError
from blurguard.files.filetypes import FileType
from blurguard.images import animation, codec, heif, jpeg, jpeg2000, png, tiff, webp
from blurguard.images.codec import Page

__all__ = ["ImageFile", "Page", "blank_image_file", "open_image"]

Codec: TypeAlias = codec.PillowCodec | heif.HeicCodec
CODECS: dict[FileType, type[Codec]] = {
    FileType.JPEG: jpeg.JpegCodec, FileType.PNG: png.PngCodec, FileType.WEBP: webp.WebpCodec,
    FileType.TIFF: tiff.TiffCodec, FileType.BMP: codec.BmpCodec, FileType.GIF: animation.GifCodec,
    FileType.HEIC: heif.HeicCodec, FileType.AVIF: heif.AvifCodec, FileType.JPEG2000: jpeg2000.Jpeg2000Codec,
}  # fmt: skip
_UNSUPPORTED_REASONS = {
    FileType.VIDEO: "is a video, not a picture",
    FileType.RAW: "is a camera raw file; develop it to JPEG or TIFF first",
    FileType.UNKNOWN: "is neither a picture nor a video that blurguard supports, despite its name",
}
# Errors of decoders on damaged files, as seen in fuzzing. Any other error is a bug here, and is not caught.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError, RuntimeError,
    AttributeError, struct.error, MemoryError, PIL.Image.DecompressionBombError,
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class ImageFile:
    """An opened picture file.

    Attributes:
        file_type: its format.
        width: of the first page upright, px.
        height: of the first page upright, px.
        page_count: pages or frames.
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
        return self.page_count > 1 and self._codec.is_animation

    def pages(self) -> Iterator[Page]:
        """Decode one page after the other.

        Raises:
            InputError: truncated, corrupt, or of a kind that could not be written again.
        """
        pages = self._codec.read()
        while True:
            with _decoder_errors(self._name, self.file_type):
                page = next(pages, None)
            if page is None:
                return
            yield page

    def encode(self, pages: Iterable[Page]) -> bytes:
        """Return a file of this format with these pages."""
        return self._codec.write(pages)


def open_image(data: bytes, file_type: FileType, name: str, max_pixels: int, keep_metadata: bool = False) -> ImageFile:
    """Open a picture from the bytes of its file, without decoding pixels.

    Args:
        data: the file's content.
        file_type: its format by content.
        name: of the file, for messages.
        max_pixels: limit for the pixels of a page.
        keep_metadata: whether to keep capture time, camera, lens and exposure.

    Raises:
        InputError: damaged, of an unsupported kind, or too large.
    """
    if file_type not in CODECS:
        raise InputError(f"{name}: {_UNSUPPORTED_REASONS[file_type]}")
    with _decoder_errors(name, file_type):
        opened = CODECS[file_type].open(data, keep_metadata)
        width, height = opened.largest_wh
        if width * height > max_pixels:
            problem = f"{width} x {height} is more than {max_pixels / 1e6:g} megapixels"
            raise InputError(f"{name}: {problem}; if you trust this file, raise --max-pixels")
        return ImageFile(file_type, *opened.upright_wh, opened.page_count, opened, name)


def blank_image_file(file_type: FileType) -> ImageFile:
    """Return an ``ImageFile`` without a source file, whose ``encode`` writes any pages."""
    return open_image(CODECS[file_type].blank(), file_type, "blank", 64)


@contextlib.contextmanager
def _decoder_errors(name: str, file_type: FileType) -> Iterator[None]:
    """Turn errors of decoders into ``InputError`` that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damage that it then raises or repairs
            yield
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(name) else f"{name}: {message}") from error
    except PIL.UnidentifiedImageError as error:
        raise InputError(f"{name}: damaged or unsupported {file_type}") from error
    except _DECODER_ERRORS as error:
        detail = str(error) or type(error).__name__
        raise InputError(f"{name}: damaged or unsupported {file_type}: {detail}") from error
