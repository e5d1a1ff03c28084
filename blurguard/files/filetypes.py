"""What a file is, by its content; which files of a folder are ours to handle; what results are called."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from blurguard.errors import InputError
from blurguard.files.atomic import open_regular
from blurguard.files.errors import read_errors

HEAD_BYTES = 600  # three packets of an MPEG transport stream are the longest signature


class FileType(StrEnum):
    """Formats that are told apart; the first ones can be read and written."""

    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WebP"
    TIFF = "TIFF"
    BMP = "BMP"
    GIF = "GIF"
    HEIC = "HEIC"
    AVIF = "AVIF"
    JPEG2000 = "JPEG 2000"
    VIDEO = "video"
    RAW = "camera raw"
    UNKNOWN = "unknown"

    @property
    def is_still(self) -> bool:
        """Whether ``images`` reads and writes it."""
        return self not in (FileType.VIDEO, FileType.RAW, FileType.UNKNOWN)


_PREFIXES = (
    (b"\xff\xd8\xff", FileType.JPEG),
    (b"\x89PNG\r\n\x1a\n", FileType.PNG),
    (b"GIF87a", FileType.GIF),
    (b"GIF89a", FileType.GIF),
    (b"II*\0", FileType.TIFF),
    (b"MM\0*", FileType.TIFF),
    (b"II+\0", FileType.TIFF),
    (b"MM\0+", FileType.TIFF),
    (b"\0\0\0\x0cjP  \r\n\x87\n", FileType.JPEG2000),
    (b"\xff\x4f\xff\x51", FileType.JPEG2000),
    # Videos that can be handled are known to `families`; these are told apart to be refused by name.
    (b"\0\0\x01\xba", FileType.VIDEO),  # MPEG program stream
    (b"\0\0\x01\xb3", FileType.VIDEO),  # MPEG video
    (b"0&\xb2u\x8ef\xcf\x11", FileType.VIDEO),  # ASF, WMV
    (b"OggS", FileType.VIDEO),
)
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF_BRANDS = {b"avif", b"avis"}
_RAW_BRANDS = {b"crx "}
_BMP_HEADERS = {size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124)}

_SUFFIXES = {
    FileType.JPEG: "jpg jpeg jpe jfif jif mpo",
    FileType.PNG: "png apng",
    FileType.WEBP: "webp",
    FileType.TIFF: "tif tiff",
    FileType.BMP: "bmp dib",
    FileType.GIF: "gif",
    FileType.HEIC: "heic heif hif heics",
    FileType.AVIF: "avif avifs",
    FileType.JPEG2000: "jp2 j2k jpf jpx j2c jpc",
    FileType.VIDEO: "mp4 m4v mov mkv webm avi mpg mpeg ts mts m2ts wmv flv 3gp 3g2 ogv insv lrv 360",
    FileType.RAW: "dng cr2 cr3 crw nef nrw arw srf sr2 raf orf rw2 pef srw x3f 3fr iiq erf kdc mos mrw rwl gpr",
}
TYPE_BY_SUFFIX = {f".{suffix}": kind for kind, names in _SUFFIXES.items() for suffix in names.split()}


def sniff_type(head: bytes) -> FileType:
    """Return what the first ``HEAD_BYTES`` of a file say that it is."""
    for prefix, kind in _PREFIXES:
        if head.startswith(prefix):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return FileType.WEBP
    if head[4:8] == b"ftyp":
        return _type_of_brands(head)
    if head[:2] == b"BM" and head[14:18] in _BMP_HEADERS:
        return FileType.BMP
    return FileType.VIDEO if sniff_container(head) else FileType.UNKNOWN


def _type_of_brands(head: bytes) -> FileType:
    """Tell pictures from videos among the ISO base media files."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[i : i + 4] for i in range(16, end, 4))}
    if brands & _RAW_BRANDS:
        return FileType.RAW
    if brands & _AVIF_BRANDS:
        return FileType.AVIF
    if brands & _HEIC_BRANDS or head[8:12] in (b"mif1", b"msf1"):
        return FileType.HEIC
    return FileType.VIDEO


def type_of_file(path: Path) -> FileType:
    """Return the kind of a file by content; raw files, which look like TIFF, by suffix as well.

    Raises:
        InputError: when it cannot be read.
    """
    if path.is_dir():
        raise InputError(f"{path}: this folder cannot be listed, so its pictures were not handled")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is no regular file")  # reading a pipe would wait for ever
    with read_errors(path), open_regular(path) as file:
        kind = sniff_type(file.read(HEAD_BYTES))
    if kind is FileType.TIFF and type_from_suffix(path) is FileType.RAW:
        return FileType.RAW
    return kind


def type_from_suffix(path: Path) -> FileType:
    """Return what the suffix says that a file is."""
    return TYPE_BY_SUFFIX.get(path.suffix.lower(), FileType.UNKNOWN)


PROBE_BYTES = 4096  # M2TS needs three packets


@dataclass(frozen=True, slots=True)
class ContainerFormat:
    """A kind of container: FFmpeg's names for reading and writing it, and whether it can tell a rotation."""

    label: str
    demuxer: str
    muxer: str
    stores_rotation: bool = False


MP4, MOV = (
    ContainerFormat("MP4", "mov", "mp4", stores_rotation=True),
    ContainerFormat("QuickTime", "mov", "mov", stores_rotation=True),
)
THREE_GP, THREE_G2 = (
    ContainerFormat("3GP", "mov", "3gp", stores_rotation=True),
    ContainerFormat("3G2", "mov", "3g2", stores_rotation=True),
)
MATROSKA = ContainerFormat("Matroska", "matroska", "matroska", stores_rotation=True)
WEBM = ContainerFormat("WebM", "matroska", "webm", stores_rotation=True)
MPEG_TS, M2TS = ContainerFormat("MPEG-TS", "mpegts", "mpegts"), ContainerFormat("M2TS", "mpegts", "mpegts")
AVI, FLV = ContainerFormat("AVI", "avi", "avi"), ContainerFormat("FLV", "flv", "flv")


def sniff_container(head: bytes) -> ContainerFormat | None:
    """Tell the container by its first bytes; None when it is not one of ours."""
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return {b"qt  ": MOV}.get(brand) or {b"3gp": THREE_GP, b"3g2": THREE_G2}.get(brand[:3], MP4)
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip"):
        return MOV
    if head.startswith(b"\x1aE\xdf\xa3"):
        return WEBM if b"\x42\x82\x84webm" in head else MATROSKA
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return AVI
    if head.startswith(b"FLV\x01"):
        return FLV
    for family, start, step in ((MPEG_TS, 0, 188), (M2TS, 4, 192)):
        if len(head) > 2 * step + start and {head[start], head[start + step], head[start + 2 * step]} == {0x47}:
            return family
    return None
