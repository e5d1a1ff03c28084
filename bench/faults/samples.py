"""Small pictures of every format and kind, made by other encoders than ours where there is one."""

import functools
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pillow_heif
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import AppendingTiffWriter

Array = NDArray[Any]
Builder = Callable[[], bytes]
SIZE = WIDTH, HEIGHT = 64, 48
FACE = (14.0, 12.0, 34.0, 34.0)  # inside the picture, and inside it turned by 90 degrees
SRGB = bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())


def texture(channels: int, dtype: Any = np.uint8, seed: int = 1, size: tuple[int, int] = SIZE) -> Array:
    """Return (H, W, C) of a slope with noise on it: nothing that two mistakes could make look right."""
    rng = np.random.default_rng(seed)
    y, x, c = np.mgrid[: size[1], : size[0], :channels]
    white = np.iinfo(dtype).max
    slope = (x / size[0] * (c != 1) + y / size[1] * (c != 0)) / 2
    return np.asarray((0.8 * slope + 0.2 * rng.random(slope.shape)) * white, dtype)


def picture(mode: str, seed: int = 1, size: tuple[int, int] = SIZE) -> Image.Image:
    """Return the texture as a Pillow picture of that mode."""
    if mode == "1":
        return Image.fromarray(texture(1, seed=seed, size=size)[:, :, 0]).convert("1")
    if mode == "P":
        return Image.fromarray(texture(3, seed=seed, size=size)).quantize(200)
    if mode == "I;16":
        grey = texture(1, np.uint16, seed, size)
        return Image.frombytes("I;16", size, grey.tobytes())
    pixels = texture(len(mode), seed=seed, size=size)
    return Image.frombytes(mode, size, pixels.tobytes())


def saved(image: Image.Image, name: str, **options: Any) -> bytes:
    """Return the picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def by_pillow(mode: str, name: str, **options: Any) -> Builder:
    return lambda: saved(picture(mode), name, **options)


def png(pixels: Array, chunks: bytes = b"") -> bytes:
    """Return (H, W, C) of 8 or 16 bits as PNG, ``chunks`` between the header and the pixels."""
    height, width, channels = pixels.shape
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    head = struct.pack(">2I5B", width, height, pixels.dtype.itemsize * 8, color_type, 0, 0, 0)
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    stride = len(rows) // height
    body = zlib.compress(b"".join(b"\0" + rows[i : i + stride] for i in range(0, len(rows), stride)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunks + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def chunk(name: bytes, body: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def tiff(pixels: Array, **options: Any) -> bytes:
    """Return (H, W, C) as a TIFF by tifffile."""
    buffer = io.BytesIO()
    byteorder = options.pop("byteorder", "<")
    bigtiff = options.pop("bigtiff", False)
    with tifffile.TiffWriter(buffer, byteorder=byteorder, bigtiff=bigtiff) as writer:
        writer.write(pixels, metadata=None, **options)
    return buffer.getvalue()


def pages(*files: bytes) -> bytes:
    """Return one TIFF of the pages of several."""
    buffer = io.BytesIO()
    with AppendingTiffWriter(buffer, new=True) as writer:
        for file in files:
            with Image.open(io.BytesIO(file)) as page:
                compression = page.info["compression"]
                page.save(writer, "TIFF", compression=compression)
            writer.newFrame()
    return buffer.getvalue()


def heic(*arrays: Array, **options: Any) -> bytes:
    """Return a HEIC file of (H, W, C) pictures; 16 bits become 10."""
    file = pillow_heif.HeifFile()  # type: ignore[no-untyped-call]
    for pixels in arrays:
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[pixels.shape[2]] + (";16" if pixels.dtype == np.uint16 else "")
        file.add_frombytes(mode, (pixels.shape[1], pixels.shape[0]), pixels.tobytes())
    buffer = io.BytesIO()
    file.save(buffer, **{"quality": 90, **options})
    return buffer.getvalue()


DURATIONS = [80, 120, 40, 200, 80, 60]


def moving(mode: str) -> list[Image.Image]:
    """Return six frames in which a square moves, clear where there is alpha; the third and fourth are the same."""
    pictures = []
    for step in (0, 1, 2, 2, 3, 4):
        frame = picture("RGB").convert(mode)
        frame.paste((255, 0, 0, 0)[: len(mode)], (4 + 4 * step, 36, 12 + 4 * step, 44))
        pictures.append(frame)
    return pictures


def gif(mode: str = "RGB", loop: int | None = 0, frames: int = 6) -> bytes:
    """Return an animated GIF; each frame is whole, with its own colors."""
    again = b"" if loop is None else b"!\xff\x0bNETSCAPE2.0\3\1" + struct.pack("<HB", loop, 0)
    out = [b"GIF89a" + struct.pack("<2H3B", *SIZE, 0, 0, 0), again]
    for frame, duration in list(zip(moving(mode), DURATIONS, strict=True))[:frames]:
        indices = frame.convert("RGB").quantize(128)
        if mode == "RGBA":
            indices.paste(200, (0, 0), frame.getchannel("A").point(lambda alpha: 255 - alpha))
        colors = bytes(indices.getpalette() or b"").ljust(768, b"\0")
        still = saved(indices, "GIF", optimize=False, interlace=0)
        start = 13 + (3 << (still[10] & 7) + 1)
        pixels = still[still.index(struct.pack("<B4H", 0x2C, 0, 0, *SIZE), start) + 10 : -1]
        flags = 2 << 2 | 1 if mode == "RGBA" else 1 << 2
        out.append(struct.pack("<4BHBB", 0x21, 0xF9, 4, flags, duration // 10, 200, 0))
        out.append(struct.pack("<B4HB", 0x2C, 0, 0, *SIZE, 0x87) + colors + pixels)
    return b"".join([*out, b";"])


def apng(mode: str = "RGB", loop: int = 0) -> bytes:
    """Return an animated PNG of whole frames."""
    stills = [png(np.array(frame)) for frame in moving(mode)]
    out, sequence = [stills[0][:33], chunk(b"acTL", struct.pack(">2I", len(stills), loop))], 0
    for index, (still, duration) in enumerate(zip(stills, DURATIONS, strict=True)):
        out.append(chunk(b"fcTL", struct.pack(">5I2H2B", sequence, *SIZE, 0, 0, duration, 1000, 0, 0)))
        body = still[41:-16]  # after the signature, IHDR and IDAT's head, before its checksum and IEND
        out.append(chunk(b"fdAT", struct.pack(">I", sequence + 1) + body) if index else chunk(b"IDAT", body))
        sequence += 2 if index else 1
    return b"".join([*out, chunk(b"IEND", b"")])


def webp(mode: str = "RGB", loop: int = 0, **options: Any) -> bytes:
    """Return an animated WebP of whole frames."""
    frames = []
    for frame, duration in zip(moving(mode), DURATIONS, strict=True):
        still = saved(frame, "WEBP", **options)
        body = still[12:] if still[12:16] != b"VP8X" else still[30:]
        place = bytes(6) + b"".join(v.to_bytes(3, "little") for v in (WIDTH - 1, HEIGHT - 1, duration))
        frames.append(riff(b"ANMF", place + b"\2" + body))
    size = b"".join(v.to_bytes(3, "little") for v in (WIDTH - 1, HEIGHT - 1))
    head = riff(b"VP8X", bytes([0x12 if mode == "RGBA" else 2, 0, 0, 0]) + size)
    return riff(b"RIFF", b"".join([b"WEBP", head, riff(b"ANIM", struct.pack("<IH", 0, loop)), *frames]))


def riff(name: bytes, body: bytes) -> bytes:
    """Return a RIFF chunk."""
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def avif_sequence() -> bytes:
    """Return an animated AVIF."""
    first, *rest = moving("RGB")
    return saved(first, "AVIF", save_all=True, append_images=rest, duration=DURATIONS, quality=90)


def bmp_with_alpha() -> bytes:
    """Return a BMP of 32 bits with masks, alpha included."""
    pixels = texture(4)[::-1].tobytes()
    head = struct.pack("<IiiHHIIiiII", 108, *SIZE, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    masks = struct.pack("<4I4s48x", 0xFF0000, 0xFF00, 0xFF, 0xFF000000, b"BGRs")
    return b"BM" + struct.pack("<3I", 122 + len(pixels), 0, 122) + head + masks + pixels


def jp2_with(mode: str, change: Callable[[bytes], bytes]) -> bytes:
    """Return a JPEG 2000 file whose header box has another body."""
    data = sample(f"jp2-{mode}")
    at = data.index(b"jp2h") - 4
    end = at + int.from_bytes(data[at : at + 4], "big")
    return data[:at] + box(b"jp2h", change(data[at + 8 : end])) + data[end:]


def jp2_palette() -> bytes:
    """Return a JPEG 2000 file of indices into a palette (ISO/IEC 15444-1, I.5.3.4 and I.5.3.5)."""
    colors = bytes(value for index in range(256) for value in (index, 255 - index, index // 2))
    palette = box(b"pclr", struct.pack(">HB3B", 256, 3, 7, 7, 7) + colors)
    mapping = box(b"cmap", b"".join(struct.pack(">HBB", 0, 1, channel) for channel in range(3)))
    return jp2_with("L", lambda body: body.replace(b"\0\0\0\x11", b"\0\0\0\x10") + palette + mapping)


def box(name: bytes, body: bytes) -> bytes:
    """Return an ISO base media or JPEG 2000 box."""
    return struct.pack(">I", len(body) + 8) + name + body


_LZW, _DEFLATE = "tiff_lzw", "tiff_adobe_deflate"
# What comes back bit for bit outside the hidden area.
LOSSLESS: dict[str, Builder] = {
    "png-1": by_pillow("1", "PNG"),
    "png-1-trns": by_pillow("1", "PNG", transparency=1),
    "png-L": by_pillow("L", "PNG"),
    "png-L-trns": by_pillow("L", "PNG", transparency=77),
    "png-L-trns-0": by_pillow("L", "PNG", transparency=0),
    "png-LA": by_pillow("LA", "PNG"),
    "png-P": by_pillow("P", "PNG"),
    "png-P-16": lambda: saved(picture("RGB").quantize(16), "PNG"),
    "png-P-trns": by_pillow("P", "PNG", transparency=bytes(range(200))),
    "png-RGB": by_pillow("RGB", "PNG"),
    "png-RGB-trns": by_pillow("RGB", "PNG", transparency=(10, 20, 30)),
    "png-RGBA": by_pillow("RGBA", "PNG"),
    "png-I;16": by_pillow("I;16", "PNG"),
    "bmp-1": by_pillow("1", "BMP"),
    "bmp-L": by_pillow("L", "BMP"),
    "bmp-P": by_pillow("P", "BMP"),
    "bmp-RGB": by_pillow("RGB", "BMP"),
    "bmp-RGBA": bmp_with_alpha,
    "tiff-1": by_pillow("1", "TIFF"),
    "tiff-1-group3": by_pillow("1", "TIFF", compression="group3"),
    "tiff-1-group4": by_pillow("1", "TIFF", compression="group4"),
    "tiff-L": by_pillow("L", "TIFF"),
    "tiff-L-packbits": by_pillow("L", "TIFF", compression="packbits"),
    "tiff-L-miniswhite": lambda: tiff(texture(1)[:, :, 0], photometric="miniswhite"),
    "tiff-LA": by_pillow("LA", "TIFF"),
    "tiff-P": by_pillow("P", "TIFF"),
    "tiff-RGB": by_pillow("RGB", "TIFF"),
    "tiff-RGB-lzw": by_pillow("RGB", "TIFF", compression=_LZW),
    "tiff-RGB-deflate": by_pillow("RGB", "TIFF", compression=_DEFLATE),
    "tiff-RGB-packbits": by_pillow("RGB", "TIFF", compression="packbits"),
    "tiff-RGB-bigendian": lambda: tiff(texture(3), byteorder=">", photometric="rgb"),
    "tiff-RGB-planar": lambda: tiff(texture(3).transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
    "tiff-RGB-tiled": lambda: tiff(texture(3), photometric="rgb", tile=(16, 16)),
    "tiff-RGB-big": lambda: tiff(texture(3), photometric="rgb", bigtiff=True),
    "tiff-RGBA": by_pillow("RGBA", "TIFF"),
    "tiff-RGBA-lzw": by_pillow("RGBA", "TIFF", compression=_LZW),
    "tiff-CMYK": by_pillow("CMYK", "TIFF"),
    "tiff-I;16": by_pillow("I;16", "TIFF"),
    "tiff-I;16-bigendian": lambda: tiff(texture(1, np.uint16)[:, :, 0], byteorder=">"),
    "webp-RGB": by_pillow("RGB", "WEBP", lossless=True),
    "webp-RGBA": by_pillow("RGBA", "WEBP", lossless=True, exact=True),
    "jp2-L": by_pillow("L", "JPEG2000"),
    "jp2-LA": by_pillow("LA", "JPEG2000"),
    "jp2-I;16": by_pillow("I;16", "JPEG2000"),
    "jp2-RGB": by_pillow("RGB", "JPEG2000"),
    "jp2-RGBA": by_pillow("RGBA", "JPEG2000"),
    "jp2-CMYK": by_pillow("CMYK", "JPEG2000"),
    "jp2-raw": by_pillow("RGB", "JPEG2000", no_jp2=True),
    "gif-L": by_pillow("L", "GIF"),
    "gif-P": by_pillow("P", "GIF"),
    "gif-P-transparent": by_pillow("P", "GIF", transparency=3),
}
DEEP: dict[str, Builder] = {
    "png-RGB16": lambda: png(texture(3, np.uint16)),
    "png-RGBA16": lambda: png(texture(4, np.uint16)),
    "tiff-RGB16": lambda: tiff(texture(3, np.uint16), photometric="rgb"),
    "tiff-RGB16-deflate": lambda: tiff(texture(3, np.uint16), photometric="rgb", compression="zlib"),
    "tiff-RGB16-bigendian": lambda: tiff(texture(3, np.uint16), photometric="rgb", byteorder=">"),
    "tiff-RGB16-tiled": lambda: tiff(texture(3, np.uint16), photometric="rgb", tile=(16, 16)),
    "tiff-RGBA16-premultiplied": lambda: tiff(texture(4, np.uint16), photometric="rgb", extrasamples=["ASSOCALPHA"]),
    "tiff-RGBA16": lambda: tiff(texture(4, np.uint16), photometric="rgb", extrasamples=["UNASSALPHA"]),
}
LOSSY: dict[str, Builder] = {
    "jpeg-L": by_pillow("L", "JPEG", quality=90),
    "jpeg-RGB-444": by_pillow("RGB", "JPEG", quality=90, subsampling=0),
    "jpeg-RGB-422": by_pillow("RGB", "JPEG", quality=90, subsampling=1),
    "jpeg-RGB-420": by_pillow("RGB", "JPEG", quality=90, subsampling=2),
    "jpeg-RGB-progressive": by_pillow("RGB", "JPEG", quality=90, progressive=True),
    "jpeg-RGB-keep": by_pillow("RGB", "JPEG", quality=90, keep_rgb=True),
    "jpeg-CMYK": by_pillow("CMYK", "JPEG", quality=90),
    "tiff-RGB-jpeg": by_pillow("RGB", "TIFF", compression="jpeg", quality=90),
    "tiff-L-jpeg": by_pillow("L", "TIFF", compression="jpeg", quality=90),
    "webp-RGB-lossy": by_pillow("RGB", "WEBP", quality=90),
    "webp-RGBA-lossy": by_pillow("RGBA", "WEBP", quality=90),
    "jp2-RGB-irreversible": by_pillow("RGB", "JPEG2000", irreversible=True, quality_mode="dB", quality_layers=[48]),
    "avif-RGB": by_pillow("RGB", "AVIF", quality=90, subsampling="4:4:4"),
    "avif-RGB-420": by_pillow("RGB", "AVIF", quality=90, subsampling="4:2:0"),
    "avif-L": by_pillow("L", "AVIF", quality=90),
    "avif-RGBA": by_pillow("RGBA", "AVIF", quality=90),
    "heic-RGB": lambda: heic(texture(3)),
    "heic-RGB-444": lambda: heic(texture(3), chroma=444),
    "heic-RGBA": lambda: heic(texture(4)),
    "heic-RGB-422": lambda: heic(texture(3), chroma=422),
    "heic-L": lambda: heic(texture(1)),
    "heic-RGB10": lambda: heic(texture(3, np.uint16)),
}
ANIMATED: dict[str, Builder] = {
    "gif": gif,
    "gif-thrice": lambda: gif(loop=3),
    "gif-once": lambda: gif(loop=None),
    "gif-clear": lambda: gif("RGBA"),
    "apng": apng,
    "apng-twice": lambda: apng(loop=2),
    "apng-clear": lambda: apng("RGBA"),
    "webp": lambda: webp(lossless=True, exact=True),
    "webp-5-times": lambda: webp(loop=5, lossless=True, exact=True),
    "webp-clear": lambda: webp("RGBA", lossless=True, exact=True),
    "webp-lossy": lambda: webp(quality=90),
    "avif": avif_sequence,
}
ALL: dict[str, Builder] = {
    **LOSSLESS, **DEEP, **LOSSY, **{f"animated-{name}": builder for name, builder in ANIMATED.items()},
}  # fmt: skip


@functools.cache
def sample(name: str) -> bytes:
    """Return the file of that name in ``ALL``."""
    return ALL[name]()
