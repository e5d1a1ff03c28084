"""How each picture format is read and written, page by page, keeping its kind, depth and compression.

Nothing of the source but pixels, and what ``metadata`` allows, reaches the result. ``images`` is the door.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import pillow_heif
import simplejpeg
from PIL import Image as Pillow
from PIL import JpegImagePlugin, TiffImagePlugin

from blurguard import animation, deep, jpeg
from blurguard.containers import boxes, gif_blocks, gif_has_transparency, png_chunks, webp_is_lossless
from blurguard.convert import from_pillow, to_pillow, upright, with_palette
from blurguard.errors import InputError
from blurguard.media import Kind
from blurguard.metadata import allowed_exif, allowed_profile, allowed_resolution, orientation_of
from blurguard.types import Image, Layout

# For formats that do not tell how they were compressed; on Pillow's scales, visually the same.
QUALITY = 92
PILLOW_NAMES = {
    Kind.JPEG: "JPEG", Kind.PNG: "PNG", Kind.WEBP: "WEBP", Kind.TIFF: "TIFF", Kind.BMP: "BMP", Kind.GIF: "GIF",
    Kind.AVIF: "AVIF", Kind.JPEG2000: "JPEG2000",
}  # fmt: skip
_WITH_EXIF = frozenset({Kind.JPEG, Kind.PNG, Kind.WEBP, Kind.TIFF, Kind.AVIF})


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """One picture of a file, upright: a page, an animation's frame, or all there is.

    ``options`` are the encoder's, to write it as it was.
    """

    image: Image
    duration_ms: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """An opened file, as its format's class knows it."""

    largest: tuple[int, int]  # size of the largest page as stored, px
    count: int

    @property
    def displayed(self) -> tuple[int, int]:
        """Width and height of the first page upright, px."""

    def read(self) -> Iterator[Page]:
        """Decode one page after the other; raises whatever the decoder raises."""

    def write(self, pages: Iterable[Page]) -> bytes:
        """Return a file of the same kind with these pages."""


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


class _PillowSource:
    """A file that Pillow reads and writes, page by page. Subclasses know what their format needs besides."""

    def __init__(self, data: bytes, kind: Kind, picture: Any, keep_metadata: bool) -> None:
        self._data = data
        self._kind = kind
        self._picture = picture
        self.size: tuple[int, int] = picture.size
        self.largest = self.size
        self.count = int(getattr(picture, "n_frames", 1)) if kind in (Kind.TIFF, Kind.AVIF) else 1
        exif = picture.getexif()
        self._orientation = 1 if kind is Kind.TIFF else orientation_of(exif)  # Pillow turns TIFF
        self._exif = allowed_exif(exif) if keep_metadata and kind in _WITH_EXIF else b""
        profile = deep.jp2_profile(data) if kind is Kind.JPEG2000 else picture.info.get("icc_profile")
        self._icc = allowed_profile(profile)
        self._dpi = allowed_resolution(picture.info.get("dpi"))

    @property
    def displayed(self) -> tuple[int, int]:
        """Width and height of the first page upright, px."""
        width, height = self.size
        return (height, width) if self._orientation >= 5 else (width, height)

    def read(self) -> Iterator[Page]:
        for index in range(self.count):
            self._picture.seek(index)
            self._picture.load()
            duration = float(self._picture.info.get("duration") or 0)
            image = upright(from_pillow(self._picture), self._orientation)
            if self._kind is Kind.JPEG2000 and image.palette:  # Pillow reads palettes there, but writes none
                image = Image(image.pixels, image.layout)
            yield Page(image, duration, self._options(self._picture))

    def write(self, pages: Iterable[Page]) -> bytes:
        first, *rest = pages
        buffer = io.BytesIO()
        more = {"save_all": True, "append_images": [to_pillow(page.image) for page in rest]} if rest else {}
        if rest:
            more["duration"] = [round(page.duration_ms) for page in (first, *rest)]
        if self._kind is Kind.BMP and first.image.layout.has_alpha:
            return deep.write_bmp(first.image, self._dpi)
        to_pillow(first.image).save(buffer, PILLOW_NAMES[self._kind], **self._kept(), **first.options, **more)
        data = buffer.getvalue()
        return deep.with_jp2_profile(data, self._icc) if self._kind is Kind.JPEG2000 and self._icc else data

    def _kept(self) -> dict[str, Any]:
        """What travels with the picture, as options of Pillow's encoders."""
        kept = {"icc_profile": self._icc, "dpi": self._dpi, "exif": self._exif}
        return {key: value for key, value in kept.items() if value}

    def _options(self, picture: Any) -> dict[str, Any]:
        """How the page was compressed, as options of Pillow's encoders."""
        if self._kind is Kind.WEBP:
            lossless = webp_is_lossless(self._data)
            return {"lossless": lossless, "quality": 80 if lossless else QUALITY, "exact": True}
        if self._kind is Kind.AVIF:
            return _avif_options(self._data, grey=picture.mode in ("L", "LA"))
        if self._kind is Kind.JPEG2000:
            return _jpeg2000_options(self._data)
        return {}


class _Jpeg(_PillowSource):
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
        yield Page(upright(Image(pixels, layout), self._orientation), options=self._options(self._picture))

    def write(self, pages: Iterable[Page]) -> bytes:
        (page,) = pages
        options = page.options
        special = self._icc or self._exif or options.get("progressive") or options.get("keep_rgb")
        tables = options.get("qtables")
        if tables and not special and page.image.layout in (Layout.GREY, Layout.RGB):
            usual = jpeg.encode_usual(page.image, tables, options["subsampling"], self._dpi)
            if usual is not None:
                return usual
        return super().write([page])

    def _options(self, picture: Any) -> dict[str, Any]:
        subsampling = JpegImagePlugin.get_sampling(picture)
        options = {
            "qtables": picture.quantization,
            "subsampling": max(subsampling, 0),  # -1 is one that Pillow cannot write: then none
            "progressive": bool(picture.info.get("progressive")),
        }
        if picture.mode == "RGB" and picture.info.get("adobe_transform") == 0:
            options["keep_rgb"] = True
        return options


class _Png(_PillowSource):
    """PNG: what Pillow would cut to 8 bits goes another way; a colour that stands for transparency is kept."""

    def __init__(self, data: bytes, kind: Kind, picture: Any, keep_metadata: bool) -> None:
        super().__init__(data, kind, picture, keep_metadata)
        depth, color_type = data[24], data[25]
        if depth == 16 and color_type == 4:
            raise InputError("16-bit grey with alpha is not supported; convert it to 16-bit RGBA")
        self._deep = depth == 16 and color_type in (2, 6)
        if self._deep and any(part.type == b"tRNS" for part in png_chunks(data)):
            raise InputError("16-bit colour with a transparent colour is not supported; convert it to 16-bit RGBA")

    def read(self) -> Iterator[Page]:
        if self._deep:
            self._picture.load()  # OpenCV does not mind damaged checksums; Pillow does
            yield Page(upright(deep.read_png(self._data), self._orientation))
        else:
            yield from super().read()

    def write(self, pages: Iterable[Page]) -> bytes:
        if not self._deep:
            return super().write(pages)
        (page,) = pages
        return deep.write_png(page.image, self._icc, self._dpi, self._exif)

    def _options(self, picture: Any) -> dict[str, Any]:
        transparency = picture.info.get("transparency")
        keyed = picture.mode in ("1", "L", "RGB", "I;16") and transparency is not None
        return {"transparency": transparency} if keyed else {}


class _Tiff(_PillowSource):
    """TIFF: any number of pages, each with its own size, kind and compression."""

    def __init__(self, data: bytes, kind: Kind, picture: Any, keep_metadata: bool) -> None:
        super().__init__(data, kind, picture, keep_metadata)
        for index in reversed(range(self.count)):
            picture.seek(index)
            self.largest = max(self.largest, picture.size, key=math.prod)

    def read(self) -> Iterator[Page]:
        deep_pages: list[Image] | None = None
        for index in range(self.count):
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
                yield Page(image, options=self._options(self._picture))
                continue
            if max(bits) != 16 or photometric != 2:
                raise InputError(f"{max(bits)} bits of this kind of colour are not supported; convert it to 16-bit RGB")
            if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2:  # OpenCV mistakes them for pixels
                raise InputError("16-bit planes are not supported; save it with interleaved channels")
            deep_pages = deep_pages or deep.read_tiff(self._data)
            yield Page(deep_pages[index], options={"extrasamples": tags.get(TiffImagePlugin.EXTRASAMPLES)})

    def write(self, pages: Iterable[Page]) -> bytes:
        """Write page by page; all of them are deep, or none."""
        buffer = io.BytesIO()
        pages = iter(pages)
        first = next(pages)
        if first.image.pixels.shape[2] >= 3 and first.image.pixels.dtype.itemsize == 2:
            chain = ((page.image, page.options) for page in (first, *pages))
            return deep.write_tiff(chain, self._icc, self._dpi)
        with TiffImagePlugin.AppendingTiffWriter(buffer, new=True) as writer:
            for page in (first, *pages):
                to_pillow(page.image).save(writer, "TIFF", **self._kept(), **page.options)
                writer.newFrame()
        return buffer.getvalue()

    def _options(self, picture: Any) -> dict[str, Any]:
        compression = picture.info.get("compression", "raw")
        lossy = compression in ("jpeg", "tiff_jpeg", "webp")
        if picture.mode != "1" and compression in ("group3", "group4", "tiff_ccitt"):
            compression = "tiff_adobe_deflate"
        known = {"raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "group3", "group4", "jpeg", "zstd", "lzma"}
        options = {"compression": compression if compression in known else "tiff_adobe_deflate"}
        return options | ({"quality": QUALITY} if lossy and compression == "jpeg" else {})


class _Animation(_PillowSource):
    """GIF, still or animated; animated PNG and WebP."""

    def __init__(self, data: bytes, kind: Kind, picture: Any, keep_metadata: bool) -> None:
        super().__init__(data, kind, picture, keep_metadata)
        if kind is Kind.PNG and data[24] == 16:
            raise InputError("an animation of 16 bits per channel is not supported; convert it to 8")
        # An animated PNG may carry a picture for programs that know no animation. It may show anybody: it goes.
        self._first = int(bool(picture.info.get("default_image")))
        self.count = int(picture.n_frames) - self._first
        self._loop = picture.info.get("loop")
        if kind is Kind.GIF:  # Pillow enlarges the canvas for a frame that leaves it
            self.largest = max([self.size, *_gif_extents(data)], key=math.prod)

    def read(self) -> Iterator[Page]:
        alpha = self._kind is not Kind.GIF and self._picture.mode in ("LA", "PA", "RGBA", "P")
        for index in range(self._first, self._first + self.count):
            self._picture.seek(index)
            self._picture.load()
            duration = float(self._picture.info.get("duration") or 0)
            transparent = alpha or "transparency" in self._picture.info or self._picture.mode == "RGBA"
            picture = self._picture.convert("RGBA" if transparent or self._any_alpha else "RGB")
            picture = picture if picture.size == self.size else picture.crop((0, 0, *self.size))
            image = upright(from_pillow(picture), self._orientation)
            yield Page(_indexed(image) if self._kind is Kind.GIF else image, duration)

    @property
    def _any_alpha(self) -> bool:
        """One frame with transparency makes all of them transparent: they are of one kind."""
        return bool(self._kind is Kind.GIF and gif_has_transparency(self._data))

    def write(self, pages: Iterable[Page]) -> bytes:
        frames = ((page.image, page.duration_ms) for page in pages)
        if self._kind is Kind.GIF:
            return animation.gif(frames, self._loop)
        if self._kind is Kind.PNG:
            return animation.png(frames, self._loop or 0, **self._kept())
        lossless = webp_is_lossless(self._data)
        options = {"lossless": lossless, "quality": 80 if lossless else QUALITY, "exact": True}
        return animation.webp(frames, self._loop or 0, self._icc, self._exif, **options)


def _indexed(image: Image) -> Image:
    """Return a GIF's frame with its palette; clear pixels are of one colour, which is none."""
    if image.layout.has_alpha:
        image.pixels[image.pixels[:, :, -1] == 0] = 0
    return with_palette(image)


class _Heic:
    """HEIC: all top-level pictures; depth maps, thumbnails and other auxiliaries stay behind."""

    def __init__(self, data: bytes, keep_metadata: bool) -> None:
        self._file = pillow_heif.open_heif(data, convert_hdr_to_8bit=False)
        width, height = self._file.size
        self.displayed = (int(width), int(height))
        self.largest = max((picture.size for picture in self._file), key=math.prod)
        self.count = len(self._file)
        self._exif = b""
        if keep_metadata and (block := self._file.info.get("exif")):
            exif = Pillow.Exif()
            exif.load(block)
            self._exif = allowed_exif(exif)

    def read(self) -> Iterator[Page]:
        for picture in self._file:
            yield Page(deep.read_heic(picture), options=_heic_options(picture.info))

    def write(self, pages: Iterable[Page]) -> bytes:
        options = ((page.image, page.options) for page in pages)
        return deep.write_heic(options, self._file.primary_index, QUALITY, self._exif)


def _heic_options(info: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"chroma": info.get("chroma") or 420}
    if profile := allowed_profile(info.get("icc_profile")):
        options |= {"icc_profile": profile, "icc_profile_type": info.get("icc_profile_type", "prof")}
    if nclx := info.get("nclx_profile"):
        options["nclx_profile"] = nclx
    return options


def _gif_extents(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield how far right and down each frame reaches, px."""
    for part in gif_blocks(data):
        if part.type == b",":
            x, y, width, height = struct.unpack_from("<4H", data, part.start)
            yield x + width, y + height


def _check_strips(tags: Any, size: int) -> None:
    """Raise ``ValueError`` when pixels lie after the end: libtiff makes up what is missing (TIFF 6.0, page 39)."""
    for at, count in ((273, 279), (324, 325)):  # strips, tiles
        for offset, length in zip(tags.get(at, ()), tags.get(count, ()), strict=False):
            if offset + length > size:
                raise ValueError(f"truncated: pixels up to byte {offset + length} of {size}")


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


def _jpeg2000_options(data: bytes) -> dict[str, Any]:
    """Return what the codestream's SIZ and COD markers tell (ISO/IEC 15444-1, A.5.1 and A.6.1).

    Raises:
        InputError: colour of more than 8 bits per channel, which Pillow would cut.
    """
    no_box = data.startswith(b"\xff\x4f")
    stream = 0 if no_box else next(part.start for part in boxes(data) if part.type == b"jp2c")
    components = int.from_bytes(data[stream + 40 : stream + 42], "big")
    depth = (data[stream + 42] & 0x7F) + 1
    if depth > 8 and (components > 1 or depth != 16):
        raise InputError(f"JPEG 2000 with {depth} bits per channel is not supported; convert it to 16-bit TIFF")
    cod = data.find(b"\xff\x52", stream)
    reversible = data[cod + 13] == 1
    lossy = {"irreversible": True, "quality_mode": "dB", "quality_layers": [50]}
    return ({"irreversible": False} if reversible else lossy) | {"no_jp2": no_box}
