"""What a file is, by its content; which files of a folder are ours to handle; what results are called."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from blurguard.errors import ConfigError, InputError
from blurguard.families import family_of
from blurguard.journal import results_in
from blurguard.output import STATE_FOLDER, open_regular

HEAD_BYTES = 600  # three packets of an MPEG transport stream are the longest signature


class Kind(StrEnum):
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
        return self not in (Kind.VIDEO, Kind.RAW, Kind.UNKNOWN)


_PREFIXES = (
    (b"\xff\xd8\xff", Kind.JPEG),
    (b"\x89PNG\r\n\x1a\n", Kind.PNG),
    (b"GIF87a", Kind.GIF),
    (b"GIF89a", Kind.GIF),
    (b"II*\0", Kind.TIFF),
    (b"MM\0*", Kind.TIFF),
    (b"II+\0", Kind.TIFF),
    (b"MM\0+", Kind.TIFF),
    (b"\0\0\0\x0cjP  \r\n\x87\n", Kind.JPEG2000),
    (b"\xff\x4f\xff\x51", Kind.JPEG2000),
    # Videos that can be handled are known to `families`; these are told apart to be refused by name.
    (b"\0\0\x01\xba", Kind.VIDEO),  # MPEG program stream
    (b"\0\0\x01\xb3", Kind.VIDEO),  # MPEG video
    (b"0&\xb2u\x8ef\xcf\x11", Kind.VIDEO),  # ASF, WMV
    (b"OggS", Kind.VIDEO),
)
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF_BRANDS = {b"avif", b"avis"}
_RAW_BRANDS = {b"crx "}
_BMP_HEADERS = {size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124)}

_SUFFIXES = {
    Kind.JPEG: "jpg jpeg jpe jfif jif mpo",
    Kind.PNG: "png apng",
    Kind.WEBP: "webp",
    Kind.TIFF: "tif tiff",
    Kind.BMP: "bmp dib",
    Kind.GIF: "gif",
    Kind.HEIC: "heic heif hif heics",
    Kind.AVIF: "avif avifs",
    Kind.JPEG2000: "jp2 j2k jpf jpx j2c jpc",
    Kind.VIDEO: "mp4 m4v mov mkv webm avi mpg mpeg ts mts m2ts wmv flv 3gp 3g2 ogv insv lrv 360",
    Kind.RAW: "dng cr2 cr3 crw nef nrw arw srf sr2 raf orf rw2 pef srw x3f 3fr iiq erf kdc mos mrw rwl gpr",
}
KIND_BY_SUFFIX = {f".{suffix}": kind for kind, names in _SUFFIXES.items() for suffix in names.split()}


def kind_of(head: bytes) -> Kind:
    """Return what the first ``HEAD_BYTES`` of a file say that it is."""
    for prefix, kind in _PREFIXES:
        if head.startswith(prefix):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return Kind.WEBP
    if head[4:8] == b"ftyp":
        return _kind_of_brands(head)
    if head[:2] == b"BM" and head[14:18] in _BMP_HEADERS:
        return Kind.BMP
    return Kind.VIDEO if family_of(head) else Kind.UNKNOWN


def _kind_of_brands(head: bytes) -> Kind:
    """Tell pictures from videos among the ISO base media files."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[i : i + 4] for i in range(16, end, 4))}
    if brands & _RAW_BRANDS:
        return Kind.RAW
    if brands & _AVIF_BRANDS:
        return Kind.AVIF
    if brands & _HEIC_BRANDS or head[8:12] in (b"mif1", b"msf1"):
        return Kind.HEIC
    return Kind.VIDEO


def kind_of_file(path: Path) -> Kind:
    """Return the kind of a file by content; raw files, which look like TIFF, by suffix as well.

    Raises:
        InputError: when it cannot be read.
    """
    if path.is_dir():
        raise InputError(f"{path}: this folder cannot be listed, so its pictures were not handled")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is no regular file")  # reading a pipe would wait for ever
    try:
        with open_regular(path) as file:
            kind = kind_of(file.read(HEAD_BYTES))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if kind is Kind.TIFF and claimed_kind(path) is Kind.RAW:
        return Kind.RAW
    return kind


def claimed_kind(path: Path) -> Kind:
    """Return what the suffix says that a file is."""
    return KIND_BY_SUFFIX.get(path.suffix.lower(), Kind.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder holds: ``media`` to handle, and how many files were left alone, by reason."""

    media: tuple[Path, ...]
    left_alone: Counter[str] = field(default_factory=Counter)


HIDDEN, OWN, LINKS, NOT_MEDIA, SPECIAL = "hidden", "own output", "links", "not media", "special"
_UNLISTED = "cannot be listed"


def discover(folder: Path) -> Found:
    """Search a folder and everything under it, in a stable order.

    A file is media when its content or its suffix says so: what claims to be media and is not shall fail
    loudly. Links are not followed: they may lead out of the folder, or round in it. Results of ours in
    folders below, as their journals tell, are left alone; what else lies there is not.

    Raises:
        InputError: when ``folder`` is none or cannot be listed.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder" if folder.exists() else f"{folder}: no such folder")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise InputError(f"{folder}: cannot be listed; its permissions forbid it")
    media, left_alone = [], Counter[str]()
    for path, reason in _walk(folder, _Results(folder, {})):
        if reason == _UNLISTED:
            media.append(path)  # nobody knows what is in there: it fails by name, and the others are done
        elif reason := reason or _reason_to_leave(path):
            left_alone[reason] += 1
        else:
            media.append(path)
    return Found(tuple(media), left_alone)


@dataclass(frozen=True, slots=True)
class _Results:
    """Which files below a folder are ours, as its journal tells; one that has changed since is not."""

    folder: Path
    stamps: dict[bytes, tuple[int, int]]

    def have(self, path: Path) -> bool:
        stamp = self.stamps.get(os.fsencode(path.relative_to(self.folder))) if self.stamps else None
        if stamp is None or path.is_symlink():
            return False
        info = path.stat()
        return stamp == (info.st_size, info.st_mtime_ns)


def _walk(folder: Path, results: _Results, within: str = "") -> Iterator[tuple[Path, str]]:
    """Yield every file below with the reason why it is left alone, ``""`` when that is not known yet."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        yield folder, within or _UNLISTED
        return
    for entry in entries:
        path = Path(entry.path)
        reason = within or (HIDDEN if entry.name.startswith(".") else "")
        if not entry.is_dir(follow_symlinks=False):
            yield path, reason or (OWN if results.have(path) else "")
        elif entry.name != STATE_FOLDER:  # our own record is nobody's pictures
            stamps = results_in(path)
            yield from _walk(path, _Results(path, stamps) if stamps else results, reason)


def _reason_to_leave(path: Path) -> str:
    if path.is_symlink():
        return LINKS
    if not path.is_file():
        return SPECIAL
    if claimed_kind(path) is Kind.UNKNOWN:
        # An unreadable file without a media suffix claims nothing; one with it fails later, by name.
        try:
            return NOT_MEDIA if kind_of_file(path) is Kind.UNKNOWN else ""
        except InputError:
            return NOT_MEDIA
    return ""


def blurred_name(path: Path) -> Path:
    """Return the default name of a result: ``a.jpg`` -> ``a_blurred.jpg``."""
    return path.with_name(f"{path.stem}_blurred{path.suffix}")


def targets_for(files: list[Path], out: Path | None) -> list[tuple[Path, Path]]:
    """Return each file with the name of its result.

    Without ``out`` that is ``NAME_blurred.SUFFIX`` beside it. ``out`` is a folder when it is one, when there
    are several files, or when it has no suffix of a picture; else it is the name of the one result.

    Raises:
        ConfigError: two results of one name, a result that is a source, or a suffix of another format.
    """
    folder = out is not None and (len(files) > 1 or out.is_dir() or not out.suffix)
    if folder and out is not None and out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; choose a folder for --out")
    pairs = [(file, _target(file, out, folder)) for file in files]
    sources, taken = {file.resolve() for file in files}, dict[Path, Path]()
    for source, target in pairs:
        if (other := taken.setdefault(target.resolve(), source)) != source:
            raise ConfigError(f"{other} and {source} would both become {target}; handle them one at a time")
        if target.resolve() in sources:
            raise ConfigError(f"{source}: the result would replace {target}; choose another --out")
    return pairs


def _target(file: Path, out: Path | None, folder: bool) -> Path:
    if out is None:
        return blurred_name(file)
    if folder:
        return out / file.name
    if claimed_kind(out) is not claimed_kind(file):
        raise ConfigError(f"{out}: the result has the format of {file}; give it the same suffix, {file.suffix}")
    return out


def folder_beside(photos: Path) -> Path:
    """Return the default folder of results: ``photos`` -> ``photos_blurred``, also for ``.`` and names like it.

    Raises:
        ConfigError: the root of the file system has nothing beside it.
    """
    named = photos.resolve() if photos.name in ("", "..") else photos
    if not named.name:
        raise ConfigError(f"{photos}: has no folder beside it; say where the results go with --out")
    return named.with_name(f"{named.name}_blurred")
