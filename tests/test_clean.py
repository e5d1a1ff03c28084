"""Nothing travels with the picture that shows or tells what its pixels no longer do."""

import io
import json
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from bench.faults import samples
from bench.faults.samples import DURATIONS, FACE, SRGB, box, chunk, picture, png, riff, sample, saved, texture, tiff
from bench.faults.stubs import anonymizer
from tests.needs import missing

SECRET = b"Secret7391"  # stands in every place where something can hide
TEXT = SECRET.decode()
XMP = (
    '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
    ' xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:mwg-rs="http://www.metadataworkinggroup.com/schemas/regions/"'
    f' xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" photoshop:City="{TEXT}"><mwg-rs:Regions'
    ' rdf:parseType="Resource"><mwg-rs:RegionList><rdf:Bag><rdf:li rdf:parseType="Resource"><mwg-rs:Name>'
    f"{TEXT}</mwg-rs:Name><mwg-rs:Type>Face</mwg-rs:Type></rdf:li></rdf:Bag></mwg-rs:RegionList></mwg-rs:Regions>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
).encode()
UUID_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
MOTION_PHOTO = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom\0\0\0\x20mdat" + SECRET.ljust(24)
# What --keep-metadata keeps, as exiftool calls it.
KEPT = {
    "Make": "Maker", "Model": "Camera 1", "DateTimeOriginal": "2024:05:06 07:08:09", "LensModel": "Lens 50mm",
    "ExposureTime": "1/125", "FNumber": 2.8, "ISO": 200,
}  # fmt: skip


def thumbnail() -> bytes:
    return saved(picture("RGB", size=(32, 24)), "JPEG", comment=SECRET)


def telling_exif() -> bytes:
    """Return an EXIF block that says when and how, which may be kept, and where, who and what, which may not."""
    exif, base = Image.Exif(), ExifTags.Base
    exif[base.Make], exif[base.Model] = "Maker", "Camera 1"
    for tag in (base.Artist, base.Copyright, base.ImageDescription, base.HostComputer, base.Software):
        exif[tag] = TEXT
    exif[base.XPAuthor] = TEXT.encode("utf-16le")
    exif[0xC62F] = TEXT  # CameraSerialNumber
    exif.get_ifd(ExifTags.IFD.Exif).update(
        {
            base.DateTimeOriginal: "2024:05:06 07:08:09", base.ExposureTime: IFDRational(1, 125),
            base.FNumber: IFDRational(28, 10), base.ISOSpeedRatings: 200, base.LensModel: "Lens 50mm",
            base.MakerNote: SECRET * 20, base.UserComment: b"ASCII\0\0\0" + SECRET, base.CameraOwnerName: TEXT,
            base.BodySerialNumber: TEXT, base.LensSerialNumber: TEXT, base.ImageUniqueID: TEXT,
        }
    )  # fmt: skip
    gps = ExifTags.GPS
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(
        {gps.GPSLatitudeRef: "N", gps.GPSLatitude: (48.0, 51.0, 30.0), gps.GPSAreaInformation: SECRET}
    )
    return exif.tobytes()


def with_thumbnail(exif: bytes) -> bytes:
    """Return the EXIF block with a second directory that holds a thumbnail (EXIF 2.32, 4.5.8)."""
    body = bytearray(exif.removeprefix(b"Exif\0\0"))
    order = "<" if body[:2] == b"II" else ">"
    (first,) = struct.unpack_from(order + "I", body, 4)
    (count,) = struct.unpack_from(order + "H", body, first)
    struct.pack_into(order + "I", body, first + 2 + 12 * count, len(body))
    start, small = len(body) + 2 + 3 * 12 + 4, thumbnail()
    for tag, kind, value in ((0x0103, 3, 6), (0x0201, 4, start), (0x0202, 4, len(small))):
        if tag == 0x0103:
            body += struct.pack(order + "H", 3)
        body += struct.pack(order + "HHI", tag, kind, 1) + struct.pack(
            order + ("HH" if kind == 3 else "I"), *([value, 0] if kind == 3 else [value])
        )
    return b"Exif\0\0" + bytes(body) + bytes(4) + small


EXIF = with_thumbnail(telling_exif())


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def leaky_jpeg() -> bytes:
    iptc = b"\x1c\x02\x50" + struct.pack(">H", len(SECRET)) + SECRET
    resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc + bytes(len(iptc) % 2)
    plain = saved(picture("RGB"), "JPEG", quality=90, icc_profile=SRGB, dpi=(300, 300))
    extra = [
        segment(0xE1, EXIF), segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
        segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40) + SECRET), segment(0xE2, b"MPF\0" + SECRET),
        segment(0xE2, b"FPXR\0" + thumbnail()), segment(0xED, b"Photoshop 3.0\0" + resource), segment(0xFE, SECRET),
        segment(0xEA, SECRET), segment(0xE5, thumbnail()),
    ]  # fmt: skip
    return plain[:2] + b"".join(extra) + plain[2:]


def leaky_mpo() -> bytes:
    second = picture("RGB", 2)
    second.info["comment"] = SECRET
    return saved(picture("RGB"), "MPO", save_all=True, append_images=[second], exif=EXIF, comment=SECRET)


def png_leaks() -> bytes:
    return b"".join(
        [
            chunk(b"tEXt", b"Author\0" + SECRET), chunk(b"zTXt", b"Comment\0\0" + zlib.compress(SECRET)),
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP), chunk(b"iTXt", b"Title\0\0\0\0\0" + SECRET),
            chunk(b"eXIf", EXIF[6:]), chunk(b"tIME", struct.pack(">H5B", 2024, 5, 6, 7, 8, 9)), chunk(b"prVt", SECRET),
        ]
    )  # fmt: skip


def leaky_apng() -> bytes:
    whole = samples.apng()
    return whole[:33] + png_leaks() + whole[33:] + SECRET


def leaky_webp(animated: bool) -> bytes:
    whole = samples.webp(lossless=True) if animated else saved(picture("RGBA"), "WEBP", exif=b"x", exact=True)
    at = whole.find(b"EXIF")
    frames = bytearray(whole if at < 0 else whole[:at])
    frames[20] |= 0x08 | 0x04
    body = bytes(frames[8:]) + riff(b"EXIF", EXIF[6:]) + riff(b"XMP ", XMP) + riff(b"ABCD", SECRET)
    return b"RIFF" + struct.pack("<I", len(body)) + body + SECRET


def leaky_tiff(dtype: type) -> bytes:
    tags: list[Any] = [(tag, 2, 0, TEXT, True) for tag in (270, 305, 315, 316, 33432)]  # ImageDescription to Copyright
    tags += [
        (700, 1, len(XMP), XMP, True),
        (37724, 1, len(SECRET), SECRET, True),
        (33723, 7, len(SECRET), SECRET, True),
    ]
    return tiff(texture(3, dtype), photometric="rgb", software=False, extratags=tags) + SECRET


def leaky_gif() -> bytes:
    whole = samples.gif()
    at = whole.index(b"!\xf9")
    comment = b"!\xfe" + bytes([len(SECRET)]) + SECRET + b"\0"
    xmp = b"!\xff\x0bXMP DataXMP" + XMP + b"\1" + bytes(range(255, -1, -1)) + b"\0"
    return whole[:at] + comment + xmp + whole[at:] + SECRET


def leaky_heic() -> bytes:
    file = pillow_heif.from_pillow(picture("RGB", size=(256, 192)))
    file[0].info["xmp"] = XMP
    buffer = io.BytesIO()
    file.save(buffer, quality=90, exif=EXIF, xmp=XMP, thumbnails=[128])
    return box_free(buffer.getvalue())


def leaky_avif() -> bytes:
    return box_free(saved(picture("RGB"), "AVIF", exif=EXIF, xmp=XMP))


def box_free(data: bytes) -> bytes:
    """Append boxes that no picture needs."""
    return data + box(b"free", SECRET) + box(b"uuid", UUID_XMP + XMP) + MOTION_PHOTO


def leaky_jp2() -> bytes:
    return sample("jp2-RGB") + box(b"xml ", b"<a>" + SECRET + b"</a>") + box(b"uuid", UUID_XMP + XMP) + SECRET


LEAKY: dict[str, Callable[[], bytes]] = {
    "jpeg": leaky_jpeg,
    "jpeg-motion-photo": lambda: leaky_jpeg() + MOTION_PHOTO,
    "jpeg-second-jpeg": lambda: leaky_jpeg() + thumbnail(),
    "jpeg-mpo": leaky_mpo,
    "jpeg-cmyk": lambda: saved(picture("CMYK"), "JPEG", exif=EXIF, comment=SECRET) + SECRET,
    "png": lambda: png(texture(3), png_leaks()) + SECRET,
    "png-16": lambda: png(texture(3, np.uint16), png_leaks()) + SECRET,
    "apng": leaky_apng,
    "webp": lambda: leaky_webp(animated=False),
    "webp-animated": lambda: leaky_webp(animated=True),
    "tiff": lambda: leaky_tiff(np.uint8),
    "tiff-16": lambda: leaky_tiff(np.uint16),
    "tiff-exif": lambda: saved(picture("RGB"), "TIFF", exif=telling_exif(), software=TEXT) + SECRET,
    "bmp": lambda: sample("bmp-RGB") + SECRET,
    "gif": leaky_gif,
    "heic": leaky_heic,
    "avif": leaky_avif,
    "jp2": leaky_jp2,
    "jp2-raw": lambda: sample("jp2-raw") + SECRET,
}
# The suffix tells exiftool nothing, but people.
CASES = pytest.mark.parametrize("name", LEAKY)


# --- the first oracle: exiftool ---------------------------------------------------------------------------------

ALLOWED_GROUPS = {
    "ExifTool",
    "File",
    "System",
    "Composite",
    "JFIF",
    "ICC_Profile",
    "ICC-header",
    "ICC-view",
    "ICC-meas",
}
ALLOWED_TAGS = {
    # what the pixels are and how they are packed
    "ImageWidth", "ImageHeight", "BitDepth", "ColorType", "Compression", "Filter", "Interlace", "Palette",
    "Transparency", "PixelsPerUnitX", "PixelsPerUnitY", "PixelUnits", "XResolution", "YResolution", "ResolutionUnit",
    "BitsPerSample", "PhotometricInterpretation", "SamplesPerPixel", "RowsPerStrip", "StripOffsets",
    "StripByteCounts", "PlanarConfiguration", "SubfileType", "Predictor", "SampleFormat", "ExtraSamples", "JPEGTables",
    "GIFVersion", "HasColorMap", "ColorResolutionDepth", "BitsPerPixel", "BackgroundColor", "AnimationIterations",
    "FrameCount", "Duration", "TransparentColor", "AnimationFrames", "AnimationPlays", "WebP_Flags", "VP8Version",
    "HorizontalScale", "VerticalScale", "AlphaIsUsed", "AlphaPreprocessing", "AlphaFiltering", "AlphaCompression",
    "DCTEncodeVersion", "APP14Flags0", "APP14Flags1", "ColorTransform", "ProfileName", "ProfileConnectionSpace",
    "SRGBRendering", "MajorBrand", "MinorVersion", "CompatibleBrands", "HandlerType", "PrimaryItemReference",
    "MetaImageSize", "ColorProfiles", "ColorPrimaries", "TransferCharacteristics", "MatrixCoefficients",
    "VideoFullRangeFlag", "ColorSpecMethod", "ColorSpecPrecedence", "ColorSpecApproximation", "ColorSpace",
    "ImageSpatialExtent", "ImagePixelDepth", "MediaDataSize", "MediaDataOffset", "ExifByteOrder", "ExifOffset",
    "AnimationLoopCount",
    "BitsPerComponent", "NumberOfComponents", "BMPVersion", "Planes", "ImageLength", "NumColors",
    "NumImportantColors", "RedMask", "GreenMask", "BlueMask",
    "AlphaMask", "PixelsPerMeterX", "PixelsPerMeterY", "Rotation",
}  # fmt: skip
# The decoder's configuration in HEIC and AVIF.
CODEC_TAGS = (
    "(HEVC|AV1).*|.*(Tier|Level|Profile|Compatibility|Constraint|Indicator).*|Chroma.*|BitDepth.*|.*Segmentation.*"
    "|Parallelism.*|.*FrameRate|NumTemporalLayers|TemporalIDNested|HighBitDepth|TwelveBit|Monochrome|ImagePyramid.*"
)


def told_by_exiftool(path: Path) -> dict[str, Any]:
    """Return everything that exiftool sees, ``Group:Tag``."""
    if shutil.which("exiftool") is None:
        missing("exiftool is not installed (Debian: libimage-exiftool-perl); only the parser of this file looked")
    run = subprocess.run(["exiftool", "-a", "-G1", "-s", "-j", "-ee", str(path)], capture_output=True, check=False)
    (tags,) = json.loads(run.stdout)
    return dict(tags)


def forbidden_tags(path: Path, kept: bool = False) -> set[str]:
    """Return the tags that no result may have."""
    allowed = ALLOWED_TAGS | ({*KEPT, "ExifVersion", "ShutterSpeed", "Aperture"} if kept else set())
    forbidden = set()
    for name, value in told_by_exiftool(path).items():
        if name in ("File:Comment", "Jpeg2000:Comment") and str(value).startswith("Created by OpenJPEG"):
            continue  # the encoder, not the photo
        group, _, tag = name.rpartition(":")
        harmless = group.removesuffix("2") in ALLOWED_GROUPS and tag not in ("Comment", "Warning")
        codec = group == "QuickTime" and re.fullmatch(CODEC_TAGS, tag)
        if not (harmless or codec or tag in allowed or name == "SourceFile" or group.startswith("ICC")):
            forbidden.add(name)
    return forbidden


# --- the second oracle: a parser of our own ---------------------------------------------------------------------


def leaks(data: bytes, kept: bool = False) -> list[str]:
    """Return what a file holds besides its picture, by its structure."""
    if data[:2] == b"\xff\xd8":
        return list(_leaks_of_jpeg(data, kept))
    if data[:4] == b"\x89PNG":
        allowed = {"IHDR", "PLTE", "tRNS", "IDAT", "IEND", "iCCP", "pHYs", "acTL", "fcTL", "fdAT"} | (
            {"eXIf"} if kept else set()
        )
        return _unknown(_png_parts(data), allowed)
    if data[:4] == b"RIFF":
        allowed = {"VP8X", "VP8 ", "VP8L", "ALPH", "ANIM", "ANMF", "ICCP"} | ({"EXIF"} if kept else set())
        return _unknown(_riff_parts(data), allowed)
    if data[:3] == b"GIF":
        return _unknown(_gif_parts(data), {"!f9", "!ff NETSCAPE2.0", ",", ";"})
    if data[:2] == b"BM":
        return [f"{len(data) - int.from_bytes(data[2:6], 'little')} bytes after the end"] * (
            len(data) != int.from_bytes(data[2:6], "little")
        )
    if data[:4] == b"\xff\x4f\xff\x51":
        return [] if data.endswith(b"\xff\xd9") else ["bytes after the end of the codestream"]
    if data[:2] in (b"II", b"MM"):
        return list(_leaks_of_tiff(data, kept))
    if data[4:8] == b"jP  ":
        return _unknown(_boxes(data), {"jP  ", "ftyp", "jp2h", "jp2c"})
    return [*_unknown(_boxes(data), {"ftyp", "meta", "mdat", "moov"}), *_leaks_of_meta(data, kept)]


def _unknown(parts: Iterator[str], allowed: set[str]) -> list[str]:
    return [part for part in parts if part not in allowed]


def _leaks_of_jpeg(data: bytes, kept: bool) -> Iterator[str]:
    at = 2
    while data[at + 1] != 0xD9:
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + size]
        fine = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe", **({0xE1: b"Exif\0\0"} if kept else {})}
        if (0xE0 <= marker <= 0xEF or marker == 0xFE) and not (marker in fine and body.startswith(fine[marker])):
            yield f"segment {marker:02x} {body[:12]!r}"
        if 0xE0 <= marker <= 0xEF and b"\xff\xd8\xff" in body:
            yield f"a picture inside segment {marker:02x}"
        at += 2 + size
        while marker == 0xDA and (data[at] != 0xFF or data[at + 1] == 0 or 0xD0 <= data[at + 1] <= 0xD7):
            at += 1  # the scan itself
    if at + 2 != len(data):
        yield f"{len(data) - at - 2} bytes after the end"


def _png_parts(data: bytes) -> Iterator[str]:
    at, name = 8, ""
    while at < len(data) and name != "IEND":
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8].decode("latin-1")
        yield name
        at += size + 12
    if at != len(data):
        yield f"{len(data) - at} bytes after the end"


def _riff_parts(data: bytes) -> Iterator[str]:
    at, end = 12, 8 + int.from_bytes(data[4:8], "little")
    while at < end:
        yield data[at : at + 4].decode("latin-1")
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    if at != len(data):
        yield f"{len(data) - at} bytes after the end"


def _gif_parts(data: bytes) -> Iterator[str]:
    def table(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    at = 13 + table(data[10])
    while data[at] != 0x3B:
        if data[at] == 0x21:
            name = f"!{data[at + 1]:02x}"
            yield f"{name} {data[at + 3 : at + 14].decode('latin-1')}" if data[at + 1] == 0xFF else name
            at += 2
        else:
            yield ","
            at += 11 + table(data[at + 9])
        while data[at]:
            at += 1 + data[at]
        at += 1
    yield ";"
    if at + 1 != len(data):
        yield f"{len(data) - at - 1} bytes after the end"


def _boxes(data: bytes, at: int = 0) -> Iterator[str]:
    while at + 8 <= len(data):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8].decode("latin-1")
        if not 8 <= size <= len(data) - at:
            break
        yield name
        at += size
    if at != len(data):
        yield f"{len(data) - at} bytes after the end"


def _leaks_of_meta(data: bytes, kept: bool) -> Iterator[str]:
    """Items of an ISO base media picture (ISO/IEC 23008-12): coded pictures, grids, alpha; nothing else."""
    at = 0
    while (at := data.find(b"infe", at + 1)) >= 0:
        kind = data[at + 12 : at + 16].decode("latin-1")
        if kind not in {"hvc1", "av01", "grid", "iden"} | ({"Exif"} if kept else set()):
            yield f"item {kind}"
    for reference in (b"thmb", b"cdsc"):
        if reference in data and not (kept and reference == b"cdsc"):
            yield f"reference {reference.decode()}"


TIFF_TAGS = {
    254, 256, 257, 258, 259, 262, 273, 277, 278, 279, 282, 283, 284, 296, 317, 320, 322, 323, 324, 325, 338, 339, 347,
    530, 532, 34675,
}  # fmt: skip
TIFF_TAGS_KEPT = {271, 272, 306, 34665, 33434, 33437, 34855, 36864, 36867, 42036}
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}


def _leaks_of_tiff(data: bytes, kept: bool) -> Iterator[str]:
    """Tags of every directory, and bytes that none of them points to."""
    order = "<" if data[:2] == b"II" else ">"
    todo, end = list(struct.unpack_from(order + "I", data, 4)), 8
    while todo:
        at = todo.pop()
        (count,) = struct.unpack_from(order + "H", data, at)
        end = max(end, at + 6 + 12 * count)
        values: dict[int, tuple[int, ...]] = {}
        for tag, kind, number, start in struct.iter_unpack(order + "HHII", data[at + 2 : at + 2 + 12 * count]):
            if tag not in TIFF_TAGS | (TIFF_TAGS_KEPT if kept else set()):
                yield f"tag {tag}"
            size = TIFF_SIZES[kind] * number
            end = max(end, start + size if size > 4 else 0)
            if tag in (273, 279, 324, 325):
                form = order + str(number) + ("H" if kind == 3 else "I")
                values[tag] = struct.unpack_from(form, data, start) if size > 4 else (start,)
            todo += [start] if tag == 34665 else []
        for offsets, lengths in ((273, 279), (324, 325)):
            end = max([end, *map(sum, zip(values.get(offsets, ()), values.get(lengths, ()), strict=True))])
        todo += [after for (after,) in [struct.unpack_from(order + "I", data, at + 2 + 12 * count)] if after]
    if any(data[end:]) or len(data) - end > 15:  # writers fill up to 16
        yield f"{len(data) - end} bytes after the end"


# --- what they find ---------------------------------------------------------------------------------------------


def cleaned(tmp_path: Path, name: str, keep_metadata: bool = False) -> Path:
    source, target = tmp_path / name, tmp_path / "out" / name
    source.write_bytes(LEAKY[name]())
    anonymizer([FACE], keep_metadata=keep_metadata).process(source, target)
    return target


@CASES
def test_the_leaky_files_do_leak(name: str, tmp_path: Path) -> None:
    source = tmp_path / name
    source.write_bytes(LEAKY[name]())
    assert SECRET in source.read_bytes()
    assert leaks(source.read_bytes()), "the parser must find it"
    assert leaks(source.read_bytes(), kept=True), "and not take it for something that may be kept"
    if name not in ("bmp", "jp2-raw"):  # exiftool is blind to what follows these
        assert forbidden_tags(source), "exiftool must find it"
        assert forbidden_tags(source, kept=True)


@CASES
@pytest.mark.parametrize("keep_metadata", [False, True])
def test_nothing_of_it_reaches_the_result(name: str, keep_metadata: bool, tmp_path: Path) -> None:
    data = cleaned(tmp_path, name, keep_metadata).read_bytes()
    assert leaks(data, keep_metadata) == []
    for secret in (SECRET, TEXT.encode("utf-16le"), zlib.compress(SECRET)[2:10], b"Regions", thumbnail()[-200:]):
        assert secret not in data


@CASES
@pytest.mark.parametrize("keep_metadata", [False, True])
def test_exiftool_finds_nothing_that_is_not_allowed(name: str, keep_metadata: bool, tmp_path: Path) -> None:
    assert forbidden_tags(cleaned(tmp_path, name, keep_metadata), keep_metadata) == set()


@pytest.mark.parametrize(
    "name",
    ["jpeg", "jpeg-cmyk", "jpeg-mpo", "png", "png-16", "apng", "webp", "webp-animated", "tiff-exif", "heic", "avif"],
)
def test_time_camera_lens_and_exposure_are_kept_when_asked_for(name: str, tmp_path: Path) -> None:
    told = {key.rpartition(":")[2]: value for key, value in told_by_exiftool(cleaned(tmp_path, name, True)).items()}
    assert {key: told.get(key) for key in KEPT} == KEPT


def test_an_animation_has_no_metadata_between_its_frames(tmp_path: Path) -> None:
    data = cleaned(tmp_path, "gif").read_bytes()
    assert data.count(b"!\xf9\x04") == len(DURATIONS)
    assert b"!\xfe" not in data
