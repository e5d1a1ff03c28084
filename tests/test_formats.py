"""Every format and kind comes back as it was but for the faces; what is damaged comes back as an error."""

import io
import random
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image, ImageOps, JpegImagePlugin

from bench.faults import samples
from bench.faults.commands import environment
from bench.faults.samples import (
    ALL,
    ANIMATED,
    DEEP,
    DURATIONS,
    FACE,
    HEIGHT,
    LOSSLESS,
    LOSSY,
    SIZE,
    SRGB,
    WIDTH,
    Array,
    by_pillow,
    chunk,
    heic,
    picture,
    png,
    sample,
    saved,
    texture,
    tiff,
)
from bench.faults.stubs import anonymizer
from blurguard.errors import InputError
from blurguard.types import Outcome
from tests.children import process_bomb, program

HIDDEN = (slice(7, 39), slice(10, 38))  # rows, columns of what is hidden of FACE
FEATHERED = (slice(5, 41), slice(8, 40))
EXIF_ORIENTATION = 0x0112


class Seen(NamedTuple):
    """One picture of a file as another program sees it."""

    mode: str
    pixels: Array
    info: dict[str, Any]

    @property
    def rgba(self) -> Array:
        """What is seen: a clear pixel has no color."""
        pixels = np.array(self.picture.convert("RGBA"))
        pixels[pixels[:, :, 3] == 0] = 0
        return pixels

    @property
    def picture(self) -> Image.Image:
        image: Image.Image = self.info["picture"]
        return image


def seen(data: bytes) -> list[Seen]:
    """Return the pictures of a file by Pillow, or pillow-heif."""
    if data[4:8] == b"ftyp" and data[8:12] != b"avif" and data[8:12] != b"avis":
        file = pillow_heif.open_heif(data, convert_hdr_to_8bit=False)
        return [Seen(page.mode, np.array(page), dict(page.info)) for page in file]
    found = []
    with Image.open(io.BytesIO(data)) as image:
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            image.load()
            copy = image.copy()
            info = {str(k): v for k, v in image.info.items()} | {"picture": copy, "format": image.format}
            found.append(Seen(image.mode, np.array(copy), info))
    return found


def processed(tmp_path: Path, data: bytes, name: str = "photo", **settings: Any) -> tuple[bytes, Outcome]:
    """Return what becomes of a file with ``FACE`` in it, and what is told of it."""
    source, target = tmp_path / name, tmp_path / "out" / name
    source.write_bytes(data)
    target.unlink(missing_ok=True)
    outcome = anonymizer([FACE], **settings).process(source, target)
    assert source.read_bytes() == data
    return target.read_bytes(), outcome


def refused(tmp_path: Path, data: bytes, name: str = "photo", **settings: Any) -> str:
    """Return the message of the error that names the file and leaves nothing."""
    with pytest.raises(InputError) as caught:
        processed(tmp_path, data, name, **settings)
    assert str(tmp_path / name) in str(caught.value)
    assert not list((tmp_path / "out").iterdir())
    return str(caught.value)


def outside(pixels: Array) -> Array:
    """Return the pixels that nothing may touch, as one list."""
    keep = np.ones(pixels.shape[:2], bool)
    keep[FEATHERED] = False
    return pixels[keep]


def changed(before: Array, after: Array) -> float:
    """Return the share of the pixels of the hidden ellipse that differ."""
    y, x = np.mgrid[-1:1:32j, -1:1:28j]
    differs: Array = np.any(np.reshape(before != after, (*before.shape[:2], -1)), axis=2)[HIDDEN]
    return float(differs[x**2 + y**2 < 1].mean())


def test_every_sample_has_the_hidden_area_that_these_tests_assume(tmp_path: Path) -> None:
    _, outcome = processed(tmp_path, sample("png-RGB"))
    assert [face.region for face in outcome.faces] == [(10, 7, 38, 39)]


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_kinds_are_bit_equal_outside_the_hidden_area(name: str, tmp_path: Path) -> None:
    data, outcome = processed(tmp_path, sample(name))
    (before,), (after,) = seen(sample(name)), seen(data)
    assert (outcome.width, outcome.height, outcome.frames) == (*SIZE, 1)
    assert after.info["format"] == before.info["format"]
    assert after.mode.removesuffix("B") == before.mode.removesuffix("B")  # byte order is no kind
    assert after.pixels.shape == before.pixels.shape
    colored = before.mode == "P"  # the order of a palette is nobody's business
    a, b = (before.rgba, after.rgba) if colored else (before.pixels, after.pixels)
    assert np.array_equal(outside(a), outside(b))
    assert changed(a, b) > {"1": 0.2, "P": 0.5}.get(before.mode, 0.9)  # few colors are often right by chance
    if before.mode in ("LA", "RGBA"):
        assert np.array_equal(a[:, :, -1], b[:, :, -1])
    if before.mode in ("1", "L", "RGB"):
        assert after.info.get("transparency") == before.info.get("transparency")


@pytest.mark.parametrize("name", DEEP)
def test_16_bit_color_is_bit_equal_outside_the_hidden_area(name: str, tmp_path: Path) -> None:
    data, outcome = processed(tmp_path, sample(name))
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert bgr is not None
    after = np.asarray(bgr)[:, :, [2, 1, 0, 3] if "A" in name else [2, 1, 0]]
    before = texture(4 if "A" in name else 3, np.uint16)
    assert after.dtype == np.uint16
    assert (outcome.width, outcome.height) == SIZE
    assert np.array_equal(outside(before), outside(after))
    assert changed(before[:, :, :3], after[:, :, :3]) > 0.9
    assert np.array_equal(before[:, :, 3:], after[:, :, 3:])
    if "premultiplied" in name:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            assert file.series[0].keyframe.extrasamples == (1,)


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_kinds_keep_kind_depth_and_looks(name: str, tmp_path: Path) -> None:
    data, outcome = processed(tmp_path, sample(name))
    (before,), (after,) = seen(sample(name)), seen(data)
    assert (outcome.width, outcome.height, outcome.frames) == (*SIZE, 1)
    assert (after.mode, after.pixels.shape) == (before.mode, before.pixels.shape)
    for key in ("bit_depth", "chroma", "compression", "progressive", "adobe", "adobe_transform"):
        assert after.info.get(key) == before.info.get(key)
    apart = outside(before.pixels).astype(float) - outside(after.pixels)
    white = 65535 if ";16" in before.mode else 255
    assert np.abs(apart).mean() < white * (0.035 if "heic" in name else 0.02)
    assert changed(before.pixels, after.pixels) > 0.9


@pytest.mark.parametrize("name", [name for name in LOSSY if name.startswith("jpeg")])
def test_jpeg_keeps_its_quantization_tables_and_subsampling(name: str, tmp_path: Path) -> None:
    data, _ = processed(tmp_path, sample(name))
    with Image.open(io.BytesIO(sample(name))) as before, Image.open(io.BytesIO(data)) as after:
        assert isinstance(before, JpegImagePlugin.JpegImageFile)
        assert isinstance(after, JpegImagePlugin.JpegImageFile)
        assert after.quantization == before.quantization
        assert JpegImagePlugin.get_sampling(after) == JpegImagePlugin.get_sampling(before)


@pytest.mark.parametrize(
    ("name", "marker", "at"),
    [
        ("webp-RGB", b"VP8L", 0),
        ("webp-RGB-lossy", b"VP8 ", 0),
        ("jp2-RGB", b"\xff\x52", 13),  # COD: which wavelet
        ("jp2-RGB-irreversible", b"\xff\x52", 13),
        ("jp2-raw", b"\xff\x4f\xff\x51", 0),
        ("avif-RGB", b"av1C", 6),  # subsampling
        ("avif-RGB-420", b"av1C", 6),
    ],
)
def test_how_it_was_compressed_is_how_it_is_compressed(name: str, marker: bytes, at: int, tmp_path: Path) -> None:
    before, after = sample(name), processed(tmp_path, sample(name))[0]
    assert after[:4] == before[:4]
    assert marker in before
    assert after[after.index(marker) + at] == before[before.index(marker) + at]


@pytest.mark.parametrize("name", ANIMATED)
def test_animations_keep_frames_durations_loop_and_looks(name: str, tmp_path: Path) -> None:
    source = sample(f"animated-{name}")
    data, outcome = processed(tmp_path, source)
    before, after = seen(source), seen(data)
    assert outcome.frames == len(before) == len(after) == len(DURATIONS)
    assert {face.span for face in outcome.faces} == {(0, len(DURATIONS) - 1)}
    assert [frame.info.get("duration") for frame in after] == DURATIONS
    assert [frame.info.get("loop") for frame in after] == [frame.info.get("loop") for frame in before]
    for a, b in zip(before, after, strict=True):
        apart = np.abs(outside(a.rgba).astype(int) - outside(b.rgba))
        assert apart.mean() < 5 if name in ("webp-lossy", "avif") else not apart.any()
        assert changed(a.rgba[:, :, :3], b.rgba[:, :, :3]) > 0.9
        assert np.array_equal(a.rgba[:, :, 3], b.rgba[:, :, 3])


def test_an_animated_png_loses_the_picture_that_only_old_programs_show(tmp_path: Path) -> None:
    first, *rest = samples.moving("RGB")
    source = saved(first, "PNG", save_all=True, append_images=rest[:2], default_image=True, duration=50)
    data, outcome = processed(tmp_path, source)
    assert outcome.frames == 2
    assert [frame.info.get("default_image", False) for frame in seen(data)] == [False, False]


def test_a_clear_background_stays_clear_where_a_face_is_hidden(tmp_path: Path) -> None:
    frame = picture("RGB").convert("RGBA")
    frame.paste((255, 255, 255, 0), (0, 0, 24, HEIGHT))
    for name in ("GIF", "PNG"):
        source = saved(frame.quantize(100), name)
        (before,), (after,) = seen(source), seen(processed(tmp_path, source)[0])
        assert np.array_equal(before.rgba[:, :, 3], after.rgba[:, :, 3]), name


def test_a_gif_frame_that_leaves_the_canvas_is_cut_to_it(tmp_path: Path) -> None:
    source = bytearray(samples.gif())
    at = source.index(struct.pack("<B4H", 0x2C, 0, 0, *SIZE), 3000)
    source[at + 1 : at + 3] = struct.pack("<H", 500)
    data, outcome = processed(tmp_path, bytes(source))
    assert {frame.pixels.shape[:2] for frame in seen(data)} == {(HEIGHT, WIDTH)}
    assert (outcome.width, outcome.height) == SIZE
    assert "max-pixels" in refused(tmp_path, bytes(source), max_pixels=WIDTH * HEIGHT)


def test_tiff_pages_keep_their_own_size_kind_and_compression(tmp_path: Path) -> None:
    names = ["tiff-RGB", "tiff-1-group4", "tiff-L-packbits", "tiff-CMYK", "tiff-I;16", "tiff-P", "tiff-RGB-jpeg"]
    source = samples.pages(*map(sample, names), tiff(texture(3, size=(120, 70)), photometric="rgb"))
    data, outcome = processed(tmp_path, source)
    before, after = seen(source), seen(data)
    assert outcome.frames == 8
    assert {face.frame for face in outcome.faces} == set(range(8))
    assert [(a.mode, a.pixels.shape, a.info["compression"]) for a in after] == [
        (b.mode, b.pixels.shape, b.info["compression"]) for b in before
    ]
    for a, b in zip(before[:5], after[:5], strict=True):
        assert np.array_equal(outside(a.pixels), outside(b.pixels))


def test_tiff_pages_of_16_bits_are_all_kept(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    first, second = texture(3, np.uint16), texture(4, np.uint16, size=(90, 60))
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(first, photometric="rgb", metadata=None)
        writer.write(second, photometric="rgb", extrasamples=["UNASSALPHA"], metadata=None)
    data, outcome = processed(tmp_path, buffer.getvalue())
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        after = [page.asarray() for page in file.pages]
    assert outcome.frames == 2
    assert np.array_equal(outside(first), outside(after[0]))
    assert np.array_equal(outside(second), outside(after[1]))


def test_white_may_be_zero(tmp_path: Path) -> None:
    for pixels in (texture(1)[:, :, 0], texture(1, np.uint16)[:, :, 0]):
        white = int(np.iinfo(pixels.dtype).max)
        (after,) = seen(processed(tmp_path, tiff(pixels, photometric="miniswhite"))[0])
        assert np.array_equal(outside(white - pixels.astype(int)), outside(after.pixels.astype(int)))


def test_all_pictures_of_a_heic_file_are_kept(tmp_path: Path) -> None:
    source = heic(texture(3), texture(4, seed=2, size=(96, 80)), texture(3, seed=3), primary_index=1)
    data, outcome = processed(tmp_path, source)
    before, after = seen(source), seen(data)
    assert (outcome.frames, len(after)) == (3, 3)
    assert [(a.mode, a.pixels.shape) for a in after] == [(b.mode, b.pixels.shape) for b in before]
    assert [a.info["primary"] for a in after] == [b.info["primary"] for b in before]


def test_only_the_first_picture_of_an_mpo_survives(tmp_path: Path) -> None:
    source = saved(picture("RGB"), "MPO", save_all=True, append_images=[picture("RGB", 2)])
    assert len(seen(source)) == 2
    data, outcome = processed(tmp_path, source)
    (after,) = seen(data)
    assert (outcome.frames, outcome.kind, after.info["format"]) == (1, "JPEG", "JPEG")


def test_cmyk_keeps_its_inks(tmp_path: Path) -> None:
    (after,) = seen(processed(tmp_path, sample("jpeg-CMYK"))[0])
    assert after.mode == "CMYK"
    assert np.abs(outside(after.pixels).astype(int) - outside(texture(4))).mean() < 10


def test_filler_before_the_end_of_a_jpeg_is_no_damage(tmp_path: Path) -> None:
    source = sample("jpeg-RGB-420")
    for filler in (bytes(5), b"\xff" * 5):
        (after,) = seen(processed(tmp_path, source[:-2] + filler + b"\xff\xd9")[0])
        assert after.mode == "RGB"


def test_a_jpeg_of_red_green_blue_is_not_turned_into_luma_and_chroma(tmp_path: Path) -> None:
    with Image.open(io.BytesIO(processed(tmp_path, sample("jpeg-RGB-keep"))[0])) as after:
        assert [layer[0] for layer in after.layer] == [82, 71, 66]  # type: ignore[attr-defined]


def rotated_heic(orientation: bytes) -> bytes:
    file = pillow_heif.from_pillow(picture("RGB"))
    buffer = io.BytesIO()
    file.save(buffer, quality=95, chroma=444, exif=orientation)
    return buffer.getvalue()


Rotated = Callable[[Image.Exif], bytes]
ROTATED: dict[str, Rotated] = {
    "jpeg": lambda exif: saved(picture("RGB"), "JPEG", exif=exif, quality=95, subsampling=0),
    "png": lambda exif: saved(picture("RGB"), "PNG", exif=exif),
    "png-P": lambda exif: saved(picture("P"), "PNG", exif=exif),
    "png-16": lambda exif: png(texture(3, np.uint16), chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))),
    "tiff": lambda exif: saved(picture("RGB"), "TIFF", exif=exif),
    "tiff-lzw": lambda exif: saved(picture("RGB"), "TIFF", exif=exif, compression="tiff_lzw"),
    "tiff-16": lambda exif: tiff(
        texture(3, np.uint16), photometric="rgb", extratags=[(EXIF_ORIENTATION, 3, 1, exif[EXIF_ORIENTATION], True)]
    ),
    "webp": lambda exif: saved(picture("RGB"), "WEBP", exif=exif, lossless=True),
    "avif": lambda exif: saved(picture("RGB"), "AVIF", exif=exif, quality=95, subsampling="4:4:4"),
    "heic": lambda exif: rotated_heic(exif.tobytes()),
    "apng": lambda exif: saved(picture("RGB"), "PNG", exif=exif, save_all=True, append_images=[picture("RGB", 2)]),
    "webp-animated": lambda exif: saved(
        picture("RGB"), "WEBP", exif=exif, lossless=True, save_all=True, append_images=[picture("RGB", 2)]
    ),
}


@pytest.mark.parametrize("name", ROTATED)
@pytest.mark.parametrize("keep_metadata", [False, True])
def test_orientation_is_applied_to_the_pixels(name: str, keep_metadata: bool, tmp_path: Path) -> None:
    pixels = (
        texture(3, np.uint16) >> 8
        if name.endswith("16")
        else np.array(picture("P" if "P" in name else "RGB").convert("RGB"))
    )
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        plain = Image.fromarray(pixels.astype(np.uint8))
        upright = np.array(ImageOps.exif_transpose(seen(saved(plain, "PNG", exif=exif))[0].picture))
        data, outcome = processed(tmp_path, ROTATED[name](exif), keep_metadata=keep_metadata)
        (after, *_) = seen(data)
        got = after.pixels if name == "heic" else np.array(after.picture.convert("RGB"))
        assert got.shape == upright.shape
        assert (outcome.height, outcome.width) == upright.shape[:2]
        assert np.abs(outside(got).astype(int) - outside(upright)).mean() < (12 if name == "heic" else 4)
        if name != "heic":
            assert after.picture.getexif().get(EXIF_ORIENTATION, 1) == 1


WITH_PROFILE: dict[str, Callable[[], bytes]] = {
    **{
        f"{name} {mode}": by_pillow(mode, name, icc_profile=SRGB, dpi=(300, 300))
        for name, mode in [("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "P"),
                           ("TIFF", "RGB"), ("TIFF", "CMYK"), ("WEBP", "RGB"), ("AVIF", "RGB")]
    },
    "PNG 16": lambda: png(
        texture(3, np.uint16),
        chunk(b"iCCP", b"x\0\0" + zlib.compress(SRGB)) + chunk(b"pHYs", struct.pack(">2IB", 11811, 11811, 1)),
    ),
    "TIFF 16": lambda: tiff(
        texture(3, np.uint16), photometric="rgb", iccprofile=SRGB, resolution=(300, 300), resolutionunit="INCH"
    ),
    "HEIC": lambda: heic(texture(3), icc_profile=SRGB, icc_profile_type="prof"),
    "APNG": lambda: saved(picture("RGB"), "PNG", save_all=True, append_images=[picture("RGB", 2)], icc_profile=SRGB),
    "animated WEBP": lambda: saved(
        picture("RGB"), "WEBP", save_all=True, append_images=[picture("RGB", 2)], icc_profile=SRGB
    ),
    "BMP": by_pillow("RGB", "BMP", dpi=(300, 300)),
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_PROFILE)
def test_color_profile_and_resolution_are_kept(name: str, tmp_path: Path) -> None:
    source = WITH_PROFILE[name]()
    (before, *_), (after, *_) = seen(source), seen(processed(tmp_path, source)[0])
    if name != "BMP":
        assert before.info["icc_profile"] == SRGB
    assert after.info.get("icc_profile") == before.info.get("icc_profile")
    assert after.info.get("dpi") == pytest.approx(before.info.get("dpi"), abs=0.1)
    assert ("dpi" in before.info) == (name.split(maxsplit=1)[0] in ("JPEG", "PNG", "TIFF", "BMP"))


def test_jpeg_2000_keeps_its_profile(tmp_path: Path) -> None:
    source = samples.jp2_with("RGB", lambda body: body[:22] + samples.box(b"colr", b"\2\0\0" + SRGB))
    data, _ = processed(tmp_path, source)
    assert SRGB in data
    assert np.array_equal(outside(seen(source)[0].pixels), outside(seen(data)[0].pixels))


def test_a_jpeg_2000_palette_becomes_its_colors(tmp_path: Path) -> None:
    source = samples.jp2_palette()
    (before,), (after,) = seen(source), seen(processed(tmp_path, source)[0])
    assert (before.mode, after.mode) == ("P", "RGB")
    assert np.array_equal(outside(before.rgba), outside(after.rgba))


@pytest.mark.parametrize("name", ALL)
def test_a_truncated_file_is_an_error_that_names_it(name: str, tmp_path: Path) -> None:
    whole = sample(name)
    for cut in (0, 1, 30, len(whole) // 5, len(whole) * 3 // 5, len(whole) * 19 // 20, len(whole) - 2, len(whole) - 1):
        refused(tmp_path, whole[:cut], f"{cut}.jpg")


def test_an_animation_cut_between_frames_is_truncated(tmp_path: Path) -> None:
    data = sample("animated-gif")
    for end in (data.index(b"!\xf9", len(data) // 2), len(data) - 1):
        assert "truncated" in refused(tmp_path, data[:end])
    data = sample("animated-apng")
    for end in (data.index(b"fcTL", len(data) // 2) - 4, data.index(b"IEND") - 4):
        assert "truncated" in refused(tmp_path, data[:end])
    assert "truncated" in refused(tmp_path, sample("animated-webp")[: sample("animated-webp").rindex(b"ANMF")])


FLIPPED = [
    "png-1", "png-L", "png-P-trns", "png-RGB", "png-RGBA16", "bmp-1", "bmp-RGB", "tiff-1-group4", "tiff-P",
    "tiff-RGB-lzw", "tiff-RGB-tiled", "tiff-RGB16-deflate", "tiff-RGB-jpeg", "jpeg-RGB-420", "jpeg-RGB-progressive",
    "jpeg-CMYK", "webp-RGB", "webp-RGBA-lossy", "jp2-RGBA", "jp2-raw", "avif-RGBA", "heic-RGB10", "gif-P-transparent",
    "animated-gif", "animated-gif-clear", "animated-apng-clear", "animated-webp-clear", "animated-avif",
]  # fmt: skip


@pytest.mark.parametrize("name", FLIPPED)
def test_flipped_bytes_end_in_an_error_or_a_whole_picture(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    for round_ in range(40):
        data = bytearray(sample(name))
        reach = len(data) if round_ % 2 else min(len(data), 300)  # half of them in the headers
        for _ in range(rng.choice((1, 1, 3, 8))):
            data[rng.randrange(reach)] ^= rng.randrange(1, 256)
        try:
            result, outcome = processed(tmp_path, bytes(data), keep_metadata=round_ % 4 == 0)
        except InputError as error:
            assert str(tmp_path) in str(error)
            assert not (tmp_path / "out" / "photo").exists()
        else:
            found = seen(result)
            assert found[0].pixels.shape[:2] == (outcome.height, outcome.width)
            assert len(found) == outcome.frames


@pytest.mark.parametrize(
    ("sample_name", "file_name", "kind"),
    [("png-RGB", "really_a_png.jpg", "PNG"), ("jpeg-RGB-420", "photo.heic", "JPEG"), ("heic-RGB", "IMG.JPG", "HEIC"),
     ("webp-RGB", "a.gif", "WebP"), ("gif-P", "no_suffix", "GIF"), ("jp2-raw", "x.tif", "JPEG 2000"),
     ("tiff-L", "ünï çode 家族 😀.JPG", "TIFF")],
)  # fmt: skip
def test_kind_is_told_by_content_and_names_are_kept(
    sample_name: str, file_name: str, kind: str, tmp_path: Path
) -> None:
    data, outcome = processed(tmp_path, sample(sample_name), file_name)
    assert outcome.kind == kind
    assert data[:3] == sample(sample_name)[:3]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "neither a picture nor a video"),
        (b"not a picture", "neither a picture nor a video"),
        (b"\xff\xd8\xff", "damaged"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "ends before its index"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "camera raw"),
        (png(texture(2, np.uint16)), "16-bit RGBA"),
        (png(texture(3, np.uint16), chunk(b"tRNS", bytes(6))), "16-bit RGBA"),
        (tiff(texture(4, np.uint16), photometric="separated"), "16-bit RGB"),
        (
            tiff(texture(3, np.uint16).transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"),
            "planes",
        ),
        (tiff(texture(1).astype(np.float32)[:, :, 0]), "8 or 16 bits"),
        (tiff(texture(1).astype(np.uint32)[:, :, 0]), "8 or 16 bits"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_a_reason(data: bytes, says: str, tmp_path: Path) -> None:
    assert says in refused(tmp_path, data, "photo.jpg")


@pytest.mark.parametrize("name", ALL)
def test_a_picture_of_more_than_max_pixels_is_refused(name: str, tmp_path: Path) -> None:
    assert "--max-pixels" in refused(tmp_path, sample(name), max_pixels=WIDTH * HEIGHT - 1)


@pytest.mark.parametrize(
    "data",
    [
        samples.pages(sample("tiff-RGB"), tiff(texture(3, size=(100, 100)), photometric="rgb")),
        heic(texture(3), texture(3, size=(100, 100))),
    ],
    ids=["tiff", "heic"],
)
def test_no_later_page_may_be_larger_either(data: bytes, tmp_path: Path) -> None:
    assert "--max-pixels" in refused(tmp_path, data, max_pixels=9_999)
    assert processed(tmp_path, data, max_pixels=10_000)[1].frames == 2


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    side = 30_000
    squeeze = zlib.compressobj()
    rows = b"".join([*(squeeze.compress(bytes(side // 8 + 1)) for _ in range(side)), squeeze.flush()])
    head = struct.pack(">2I5B", side, side, 1, 0, 0, 0, 0)
    bomb, target = tmp_path / "bomb.png", tmp_path / "out.png"
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    run = subprocess.run(
        program(process_bomb, bomb, target), capture_output=True, text=True, check=True, env=environment()
    )
    grown, message = run.stdout.split(maxsplit=1)
    assert int(grown) * 1024 < 60e6  # decoded it would take 900 MB
    assert "bomb.png" in message
    assert not target.exists()
