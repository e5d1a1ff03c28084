"""Types of files by their first bytes and by their suffixes: pictures, camera raw and video containers."""

from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Self

from blurguard.errors import InputError
from blurguard.files.atomic import open_regular
from blurguard.files.errors import read_errors
from blurguard.files.isobmff import brands_of
from blurguard.files.riff import form_type

HEAD_BYTES = 600  # the longest signature: three packets of an MPEG transport stream
PROBE_BYTES = 4096  # for `sniff_container`: three packets of M2TS, or the type in the header of a WebM
# Containers that are not supported, recognized for a precise error: MPEG-PS, MPEG video, ASF and Ogg.
_NOT_SUPPORTED = b"\0\0\x01\xba", b"\0\0\x01\xb3", b"0&\xb2u\x8ef\xcf\x11", b"OggS"


class FileType(StrEnum):
    """A file type: its name in reports, its usual suffixes, and the prefixes that identify it.

    All but VIDEO, RAW and UNKNOWN are pictures, each with a codec in `images`.
    """

    JPEG = "JPEG", "jpg jpeg jpe jfif jif mpo", b"\xff\xd8\xff"
    PNG = "PNG", "png apng", b"\x89PNG\r\n\x1a\n"
    WEBP = "WebP", "webp"
    TIFF = "TIFF", "tif tiff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"  # the last two are BigTIFF
    BMP = "BMP", "bmp dib"
    GIF = "GIF", "gif", b"GIF87a", b"GIF89a"
    HEIC = "HEIC", "heic heif hif heics"
    AVIF = "AVIF", "avif avifs"
    JPEG2000 = "JPEG 2000", "jp2 j2k jpf jpx j2c jpc", b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"
    VIDEO = "video", "mp4 m4v mov mkv webm avi mpg mpeg ts mts m2ts wmv flv 3gp 3g2 ogv insv lrv 360", *_NOT_SUPPORTED
    RAW = "camera raw", "dng cr2 cr3 crw nef nrw arw srf sr2 raf orf rw2 pef srw x3f 3fr iiq erf kdc mos mrw rwl gpr"
    UNKNOWN = "unknown", ""

    suffixes: tuple[str, ...]  # without dots, lower case
    prefixes: tuple[bytes, ...]  # none where `sniff_type` needs more than a prefix

    def __new__(cls, label: str, suffixes: str, *prefixes: bytes) -> Self:
        """Make a member. Suffixes are separated by spaces."""
        member = str.__new__(cls, label)
        member._value_, member.suffixes, member.prefixes = label, tuple(suffixes.split()), prefixes
        return member

    @property
    def is_still(self) -> bool:
        """Whether it is a picture format that `images` reads and writes."""
        return self not in (FileType.VIDEO, FileType.RAW, FileType.UNKNOWN)


_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_BMP_HEADERS = {size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124)}

TYPE_BY_SUFFIX = {f".{suffix}": file_type for file_type in FileType for suffix in file_type.suffixes}


def sniff_type(head: bytes) -> FileType:
    """Return the type of a file by its first ``HEAD_BYTES``."""
    for file_type in FileType:
        if head.startswith(file_type.prefixes):
            return file_type
    if form_type(head) == b"WEBP":
        return FileType.WEBP
    brands = brands_of(head)  # of an ISO base media file: a picture, camera raw or a video
    if b"crx " in brands:
        return FileType.RAW
    if {b"avif", b"avis"} & set(brands):
        return FileType.AVIF
    if _HEIC_BRANDS & set(brands) or (brands and brands[0] in (b"mif1", b"msf1")):
        return FileType.HEIC
    if not brands and head[:2] == b"BM" and head[14:18] in _BMP_HEADERS:
        return FileType.BMP
    return FileType.VIDEO if sniff_container(head) else FileType.UNKNOWN


def type_of_file(path: Path) -> FileType:
    """Return the type of a file by its content. A TIFF with a raw suffix is camera raw: many raw formats are TIFF.

    Raises:
        InputError: it cannot be read, or is not a regular file.
    """
    if path.is_dir():
        raise InputError(f"{path}: this folder cannot be listed, so its pictures were not handled")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is not a regular file")  # reading a pipe would never return
    with read_errors(path), open_regular(path) as file:
        file_type = sniff_type(file.read(HEAD_BYTES))
    is_raw = file_type is FileType.TIFF and type_from_suffix(path) is FileType.RAW
    return FileType.RAW if is_raw else file_type


def type_from_suffix(path: Path) -> FileType:
    """Return the type that the suffix of a file claims."""
    return TYPE_BY_SUFFIX.get(path.suffix.lower(), FileType.UNKNOWN)


class ContainerFormat(NamedTuple):
    """A video container: FFmpeg's names for reading and writing it, and whether it stores a rotation."""

    label: str
    demuxer: str
    muxer: str
    stores_rotation: bool = False


MP4 = ContainerFormat("MP4", "mov", "mp4", stores_rotation=True)
MOV = ContainerFormat("QuickTime", "mov", "mov", stores_rotation=True)
THREE_GP = ContainerFormat("3GP", "mov", "3gp", stores_rotation=True)
THREE_G2 = ContainerFormat("3G2", "mov", "3g2", stores_rotation=True)
MATROSKA = ContainerFormat("Matroska", "matroska", "matroska", stores_rotation=True)
WEBM = ContainerFormat("WebM", "matroska", "webm", stores_rotation=True)
MPEG_TS = ContainerFormat("MPEG-TS", "mpegts", "mpegts")
M2TS = ContainerFormat("M2TS", "mpegts", "mpegts")
AVI = ContainerFormat("AVI", "avi", "avi")
FLV = ContainerFormat("FLV", "flv", "flv")


def sniff_container(head: bytes) -> ContainerFormat | None:
    """Return the video container by the first bytes of a file, None if it is not a supported one."""
    if brands := brands_of(head):
        brand = brands[0]
        return {b"qt  ": MOV}.get(brand) or {b"3gp": THREE_GP, b"3g2": THREE_G2}.get(brand[:3], MP4)
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip"):
        return MOV
    if head.startswith(b"\x1aE\xdf\xa3"):
        return WEBM if b"\x42\x82\x84webm" in head else MATROSKA
    if form_type(head) == b"AVI ":
        return AVI
    if head.startswith(b"FLV\x01"):
        return FLV
    for container, start, step in ((MPEG_TS, 0, 188), (M2TS, 4, 192)):
        if len(head) > 2 * step + start and {head[start], head[start + step], head[start + 2 * step]} == {0x47}:
            return container
    return None
