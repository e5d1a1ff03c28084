"""Pictures and videos of every format and kind for ``bench.unchanged``, made from the example photos."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pillow_heif
import tifffile
from PIL import ExifTags, Image, ImageCms, ImageEnhance, ImageFilter, PngImagePlugin

PHOTOS = Path(__file__).resolve().parents[1] / "examples" / "photos"
RATE = 12  # frames a second
FRAMES = 10
TURNED = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)  # a display matrix: by 90 degrees
SETTINGS = """\
mode = "fast"
style = "solid"
shape = "box"
margin = 0.4
min_score = 0.35
hold = 0.2
keep_metadata = true
jobs = 1
[watch]
settle = 0.3
"""
Pixels = np.ndarray[Any, Any]


def make_inputs(folder: Path) -> None:
    """Fill a new folder: ``pictures``, ``films``, ``few`` of both for short runs, and two files of settings."""
    for name in ("pictures/deep er", "films", "few"):
        (folder / name).mkdir(parents=True)
    _pictures(folder / "pictures")
    _broken(folder / "pictures")
    _film(folder / "films" / "turned.mp4", "libx264", "aac", TURNED)
    _film(folder / "films" / "two tongues.mkv", "libx264", "libopus", None, tracks=2, texts=True)
    _film(folder / "films" / "small.webm", "libvpx-vp9", "libopus", None)
    (folder / "films" / "cut.mp4").write_bytes((folder / "films" / "turned.mp4").read_bytes()[:-3000])
    whole = (folder / "films" / "two tongues.mkv").read_bytes()
    (folder / "films" / "cut.mkv").write_bytes(whole[: len(whole) * 3 // 5])
    (folder / "films" / "none.mp4").write_bytes(b"")
    (folder / "settings.toml").write_text(SETTINGS, "utf-8")
    (folder / "unknown.toml").write_text("colour = 1\n", "utf-8")
    for name in ("q90.jpg", "rgba.png", "moves.gif", "deep er/pages.tif", "x.heic", "../films/small.webm"):
        (folder / "few" / Path(name).name).write_bytes((folder / "pictures" / name).read_bytes())


def _photo(name: str, width: int) -> Image.Image:
    with Image.open(PHOTOS / f"{name}.jpg") as picture:
        return picture.convert("RGB").resize((width, round(width * picture.height / picture.width)))


def _exif(orientation: int = 1) -> Image.Exif:
    """Return what cameras write, with a place and a picture of the face."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Maker", "Camera 1"
    exif[ExifTags.Base.DateTime], exif[ExifTags.Base.ImageDescription] = "2024:05:06 07:08:09", "who this is"
    details = exif.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.ExposureTime], details[ExifTags.Base.LensModel] = 0.01, "Lens 2"
    details[ExifTags.Base.BodySerialNumber] = "123456"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (52.0, 31.0, 12.0)
    return exif


def _thumbnailed(exif: Image.Exif, picture: Image.Image) -> bytes:
    """Append a second directory with a thumbnail, as ``exif.tobytes`` cannot."""
    block, thumb = bytearray(exif.tobytes()), io.BytesIO()
    picture.resize((64, 64)).save(thumb, "JPEG")
    order = "<" if block[6:8] == b"II" else ">"
    start = 6 + struct.unpack_from(order + "I", block, 10)[0]
    link = start + 2 + 12 * struct.unpack_from(order + "H", block, start)[0]
    struct.pack_into(order + "I", block, link, len(block) - 6)
    at = len(block) - 6 + 2 + 2 * 12 + 4
    block += struct.pack(order + "HHHIIHHIII", 2, 513, 4, 1, at, 514, 4, 1, len(thumb.getvalue()), 0)
    return bytes(block) + thumb.getvalue()


def _pictures(folder: Path) -> None:  # noqa: PLR0915 - a list of pictures
    face, other = _photo("grace_hopper", 240), _photo("astronaut", 256)
    grey, alpha = face.convert("L"), face.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(face.size))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "somebody")
    text.add_itxt("Title", "elsewhere")

    def save(name: str, picture: Image.Image, **options: Any) -> None:
        picture.copy().save(folder / name, **options)  # Pillow leaves a JPEG's options on what it has saved

    for quality, subsampling in ((90, "4:2:0"), (95, "4:4:4"), (80, "4:2:2")):
        save(f"q{quality}.jpg", face, quality=quality, subsampling=subsampling)
    save("progressive.jpeg", other, progressive=True)
    save("crowd.jpg", _photo("crowd", 960), quality=88, dpi=(300, 300))
    save("grey.jpg", grey)
    save("cmyk.jpg", face.convert("CMYK"))
    save("rgb kept.jpg", face, keep_rgb=True)
    turn = Image.Transpose
    for orientation, undone in {3: turn.ROTATE_180, 5: turn.TRANSPOSE, 6: turn.ROTATE_90, 8: turn.ROTATE_270}.items():
        save(f"turned {orientation}.jpg", face.transpose(undone), exif=_exif(orientation))
    save("thumb.jpg", face, exif=_thumbnailed(_exif(), face))
    save("profile.jpg", face, icc_profile=srgb, exif=_exif(), comment=b"hello")
    save("dark.jpg", ImageEnhance.Brightness(face).enhance(0.15))
    save("pale.jpg", Image.blend(face, Image.new("RGB", face.size, "#c0c0c0"), 0.8))
    save("soft.jpg", other.filter(ImageFilter.GaussianBlur(4)))
    save("nobody.jpg", _photo("coffee", 300))
    save("two.mpo", face, save_all=True, append_images=[other])
    save("rgb.png", face, pnginfo=text, dpi=(72, 72), icc_profile=srgb)
    save("rgba.png", alpha, exif=_exif())
    save("grey.png", grey)
    save("la.png", alpha.convert("LA"))
    save("palette.png", face.quantize(64))
    save("palette clear.png", face.quantize(64), transparency=3)
    save("one bit.png", face.convert("1"))
    save("colour key.png", face, transparency=(0, 0, 0))
    save("lossy.webp", face, quality=80, exif=_exif(), icc_profile=srgb)
    save("lossless.webp", other, lossless=True)
    save("alpha.webp", alpha)
    save("x.avif", face, subsampling="4:2:0", exif=_exif())
    save("444.avif", other, subsampling="4:4:4")
    save("plain.bmp", face)
    save("palette.bmp", face.quantize(128))
    save("x.jp2", face)
    save("lossy.j2k", other, irreversible=True, quality_mode="dB", quality_layers=[45])
    save("grey.jp2", grey)
    save("deep er/lzw.tif", face, compression="tiff_lzw")
    save("cmyk.tiff", face.convert("CMYK"), compression="tiff_adobe_deflate")
    save("packed.tif", face, compression="packbits")
    save(
        "deep er/pages.tif",
        face,
        save_all=True,
        append_images=[_photo("astronaut", 200), face.convert("L")],
        compression="tiff_lzw",
    )
    save("jpeg.tif", face, compression="jpeg")
    pillow_heif.from_pillow(face).save(folder / "x.heic", quality=85, exif=_exif().tobytes())
    pillow_heif.from_pillow(alpha).save(folder / "alpha.heic", quality=85, chroma=444)
    _deep(folder, np.asarray(face), np.asarray(grey))
    moves = [_view(_photo("grace_hopper", 280), number, (240, 200)) for number in range(6)]
    options: dict[str, Any] = {"save_all": True, "append_images": moves[1:], "duration": [80, 40, 200, 80, 80, 120]}
    save("moves.gif", moves[0].quantize(64), loop=0, **options)
    save("moves.png", moves[0], loop=2, **options)
    save("moves.webp", moves[0], loop=3, quality=70, **options)
    save("moves lossless.webp", moves[0], lossless=True, **options)
    save("still.gif", face.quantize(32))
    for name, source in {
        "ünï çode 😀 [1].JPG": "q90.jpg",
        "really a png.jpg": "rgb.png",
        "-dash.jpg": "q95.jpg",
    }.items():
        (folder / name).write_bytes((folder / source).read_bytes())
    for name, source in {"trailing.png": "rgb.png", "trailing.jpg": "q90.jpg"}.items():
        (folder / name).write_bytes((folder / source).read_bytes() + (folder / "q80.jpg").read_bytes())
    (folder / ".hidden.jpg").write_bytes((folder / "q90.jpg").read_bytes())
    (folder / "notes.txt").write_text("no picture\n", "utf-8")
    (folder / "link.jpg").symlink_to("q90.jpg")


def _deep(folder: Path, rgb: Pixels, grey: Pixels) -> None:
    """Write pictures of 16 and 10 bits."""
    fine = rgb.astype(np.uint16) * 257 + 13
    cv2.imwrite(str(folder / "rgb16.png"), fine[:, :, ::-1])
    cv2.imwrite(str(folder / "grey16.png"), grey.astype(np.uint16) * 257 + 7)
    cv2.imwrite(str(folder / "rgba16.png"), np.dstack([fine[:, :, ::-1], fine[:, :, 0]]))
    tifffile.imwrite(folder / "rgb16.tif", fine, photometric="rgb")
    tifffile.imwrite(folder / "grey16.tif", grey.astype(np.uint16) * 257 + 7, photometric="minisblack")
    heif = pillow_heif.from_bytes("RGB;16", (rgb.shape[1], rgb.shape[0]), fine.tobytes())
    heif.save(folder / "deep.heic", quality=85)


def _broken(folder: Path) -> None:
    """Write files that fail."""
    for name in ("q90.jpg", "rgb.png", "lossy.webp", "moves.gif", "x.heic", "deep er/lzw.tif"):
        data = (folder / name).read_bytes()
        (folder / f"cut {Path(name).name}").write_bytes(data[: len(data) * 3 // 5])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture\n", "utf-8")
    (folder / "raw.dng").write_bytes(b"II*\0" + bytes(100))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = 30_000
    pixels = zlib.compress(bytes(size // 8 + 1) * size, 1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 1, 0, 0, 0, 0))
    end = chunk(b"IEND", b"")
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + end)


def _view(picture: Image.Image, number: int, size: tuple[int, int]) -> Image.Image:
    """Return a part of a picture that moves with the number of the frame."""
    left, top = 3 * number, 2 * number
    return picture.crop((left, top, left + size[0], top + size[1]))


def _film(path: Path, codec: str, sound: str, matrix: Any, tracks: int = 1, texts: bool = False) -> None:
    """Write a short video of a face, with a tone for each track and subtitles if wanted."""
    photo, size = _photo("grace_hopper", 320), (288, 240)
    with av.open(str(path), "w") as output:
        output.metadata["title"] = "who this is"
        video: Any = output.add_stream(codec, rate=RATE)
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.codec_context.thread_count = 1
        if matrix:
            video.set_display_matrix(matrix)
        sounds: list[Any] = [output.add_stream(sound, rate=48_000) for _ in range(tracks)]
        for number, track in enumerate(sounds):
            track.codec_context.layout = "mono"
            track.metadata["language"] = ("deu", "fra")[number]
        words: Any = output.add_mux_stream("subrip") if texts else None
        views = [np.asarray(_view(photo, number, size)) for number in range(FRAMES)]
        frames = [av.VideoFrame.from_ndarray(view, "rgb24") for view in views]
        packets = _encoded(video, frames, Fraction(1, RATE), lambda frame: 1)
        for number, track in enumerate(sounds):
            packets += _encoded(track, _tone(track, 300 + 200 * number), Fraction(1, 48_000), lambda f: f.samples)
        if words:
            words.time_base = Fraction(1, 1000)
            words.metadata["language"] = "eng"
            packets += [_words(words, at, text) for at, text in ((20, b"Hello"), (400, b"Good bye"))]
        packets.sort(key=lambda packet: float((packet.dts or 0) * packet.time_base))
        output.mux(packets)


def _encoded(stream: Any, frames: list[Any], base: Fraction, length: Callable[[Any], int]) -> list[Any]:
    """Return the packets of frames that follow each other."""
    packets, at = [], 0
    for frame in frames:
        frame.pts, frame.time_base = at, base
        at += length(frame)
        packets += stream.encode(frame)
    return [*packets, *stream.encode(None)]


def _tone(stream: Any, hertz: int) -> list[Any]:
    stream.codec_context.open()
    size, kind = stream.codec_context.frame_size or 960, stream.codec_context.format.name
    frames = []
    for at in range(0, 48_000 * FRAMES // RATE, size):
        wave = 0.3 * np.sin(np.arange(at, at + size) * 2 * math.pi * hertz / 48_000)
        samples = wave.astype(np.float32) if kind.startswith("flt") else (wave * 32_767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[np.newaxis], kind, "mono")
        frame.sample_rate = 48_000
        frames.append(frame)
    return frames


def _words(stream: Any, at: int, text: bytes) -> Any:
    packet: Any = av.Packet(text)
    packet.stream, packet.time_base = stream, Fraction(1, 1000)
    packet.pts = packet.dts = at
    packet.duration, packet.is_keyframe = 300, True
    return packet
