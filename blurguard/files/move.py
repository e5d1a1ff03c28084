"""What becomes of originals that are not kept: given another place, or deleted.

An original is only touched while it still is what was handled, and its last copy is never removed: whatever moment a
process dies at, it stands at its old place, its new one, or both, and doing the same again ends it. Between the
last look at a file and its removal lies a system call; no file system offers less.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import re
import secrets
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from blurguard.errors import InputError, OutputError
from blurguard.files.atomic import StagedFile, digest_file, make_folders, rename_noreplace
from blurguard.files.errors import moving_errors
from blurguard.files.stamp import FileStamp
from blurguard.files.walk import files_below

_PART_NAME = re.compile(r"\.blurguard-[0-9a-f]{16}\.part")
MAX_NAME_BYTES = 255  # bytes
_MAX_SUFFIX_BYTES = 32  # bytes; what is longer is no suffix
_CHUNK = 1 << 20  # bytes


def move(source: Path, target: Path, stamp: FileStamp) -> Path | None:
    """Give an original another place; nothing is ever replaced.

    Where ``target`` holds the same content, the source is only removed; where it holds something else, the next of
    ``NAME~2.SUFFIX``, ``NAME~3.SUFFIX`` ... is taken. Missing folders are made for us alone.

    Args:
        source: a regular file.
        target: where it shall go.
        stamp: what the source was when it was handled.

    Returns:
        Its new place; None when it is gone or has changed, and stays as it is.

    Raises:
        InputError: it is a link or no regular file, or was changed while it was moved.
        OutputError: it cannot be moved; it is still there then.
    """
    with moving_errors(source, f"cannot be moved to {target}"):
        known = stat_regular(source)
        try:
            if known is None or not _is_unchanged(source, target, stamp):
                return None
            make_folders(target.parent)
            return _move_to_first(source, known, target)
        except FileNotFoundError:
            if os.path.lexists(source):
                raise
            return None


def delete(source: Path, stamp: FileStamp) -> bool:
    """Delete an original if it still is the file that was handled; tells whether it went.

    It is taken aside first, and looked at once more there: a newer file may have got its name at the last moment.

    Raises:
        OutputError: it cannot be deleted.
    """
    with moving_errors(source, "cannot be deleted"):
        known = _info_at(source)
        if known is None or FileStamp.from_stat(known) != stamp:
            return False
        aside = _part_name(source.parent)
        try:
            source.rename(aside)
        except FileNotFoundError:
            return False
        if _file_identity(aside.lstat()) != _file_identity(known):
            with contextlib.suppress(FileExistsError):  # an even newer one has come
                rename_noreplace(aside, source)
            aside.unlink(missing_ok=True)
            return False
        aside.unlink()
        return True


def verify(draft: StagedFile) -> None:
    """Read a finished draft back from the disk: what is deleted on the strength of it must be readable.

    Raises:
        OutputError: it cannot be read, or is not what was written.
    """
    with moving_errors(draft.path, "cannot be read back"):
        digest = _digest_on_disk(draft.path)
    if digest != draft.digest:
        raise OutputError(f"{draft.path}: is not what was written; check the disk and run again")


def remove_stale_parts(folder: Path) -> int:
    """Delete the unfinished copies below ``folder`` that no living process works on; return how many went.

    Raises:
        OutputError: one cannot be deleted.
    """
    with moving_errors(folder, "cannot be tidied"):
        return sum(_remove_part(path) for path in files_below(folder) if _PART_NAME.fullmatch(path.name))


def destination_for(source: Path, target: Path, stamp: FileStamp) -> Path | None:
    """Return where ``move`` would put an original now, None where it would leave it.

    Raises:
        InputError: it is a link or no regular file.
    """
    if stat_regular(source) is None or not _is_unchanged(source, target, stamp):
        return None
    return next(
        place for place in candidate_names(target) if not os.path.lexists(place) or has_same_content(source, place)
    )


def move_to(source: Path, known: os.stat_result, place: Path) -> None:
    """Move a file to a name that is free or holds the same.

    Args:
        source: a regular file.
        known: what it was when it was looked at; as ``stat_regular`` tells it.
        place: in a folder that exists.

    Raises:
        FileExistsError: the name holds something else.
        InputError: the file was changed meanwhile; it stays.
    """
    if os.path.lexists(place):
        if not has_same_content(source, place):
            raise FileExistsError(errno.EEXIST, "holds something else", str(place))
        fsync_path(place)
        fsync_path(place.parent)
        if not _remove(source, known):
            raise _changed_error(source)
    elif not _try_rename(source, known, place):
        _copy(source, known, place)


def has_same_content(source: Path, place: Path) -> bool:
    """Whether a name holds a second copy of a file.

    Raises:
        OutputError: it is the file itself, seen through another mount.
    """
    info, other = source.lstat(), place.lstat()
    if not stat.S_ISREG(other.st_mode) or info.st_size != other.st_size:
        return False
    if os.path.samestat(info, other):
        if info.st_nlink < 2 or (
            source.name == place.name and os.path.samestat(source.parent.stat(), place.parent.stat())
        ):
            raise OutputError(f"{place}: is the original itself, by another name; choose another folder")
        return True
    return digest_file(source) == digest_file(place)


def candidate_names(target: Path) -> Iterator[Path]:
    """Yield a name and those to take instead, ``NAME~2.SUFFIX`` and on; cut where they would get too long."""
    yield target
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= _MAX_SUFFIX_BYTES else ""
    stem = target.name.removesuffix(suffix)
    for number in itertools.count(2):
        yield target.with_name(fit_name(stem, f"~{number}{suffix}"))


def fit_name(stem: str, ending: str) -> str:
    """Return a name of at most 255 bytes: the stem is cut at its end."""
    while len(os.fsencode(stem + ending)) > MAX_NAME_BYTES:
        stem = stem[:-1]
    return stem + ending


def stat_regular(path: Path) -> os.stat_result | None:
    """Return what the file system tells of a file, None where none is.

    Raises:
        InputError: a link, or no regular file.
    """
    try:
        info = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(info.st_mode):
        raise InputError(f"{path}: is a link or no regular file, and is left alone; remove it")
    return info


@contextlib.contextmanager
def temporary_part(folder: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """Give a new private file that is locked while we live; the name is gone at the end."""
    part = _part_name(folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(part, flags, 0o600), "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield part, file
        finally:
            part.unlink(missing_ok=True)


def _part_name(folder: Path) -> Path:
    return folder / f".blurguard-{secrets.token_hex(8)}.part"


def fsync_file(file: IO[bytes]) -> None:
    """Bring what was written to an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def fsync_path(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _move_to_first(source: Path, known: os.stat_result, target: Path) -> Path:
    """Move a file to the first name that is free or holds the same."""
    for place in candidate_names(target):
        with contextlib.suppress(FileExistsError):
            move_to(source, known, place)
            return place
    raise AssertionError("numbers do not end")


def _try_rename(source: Path, known: os.stat_result, place: Path) -> bool:
    """Give a file its new name and take the old one away; False where that is on another file system."""
    try:
        rename_noreplace(source, place)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise
    fsync_path(place.parent)
    ours = os.path.samestat(place.lstat(), known)  # or it was replaced just before
    if ours and (
        _remove(source, known) or not _is_same_file(source, place)
    ):  # a file that replaced it since just stays
        return True
    _undo_rename(source, place)
    raise _changed_error(source)


def _undo_rename(source: Path, place: Path) -> None:
    """Give a file its old name again, unless a newer file has that by now: then both stay."""
    if not os.path.lexists(source):
        with contextlib.suppress(FileExistsError):
            rename_noreplace(place, source)
    if os.path.lexists(place) and _is_same_file(source, place):
        place.unlink()


def _copy(source: Path, known: os.stat_result, place: Path) -> None:
    """Copy a file to a free name on another file system: on the disk and read back before it gets the name."""
    handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as reader, temporary_part(place.parent) as (part, writer):
        info = os.fstat(handle)
        if _file_identity(info) != _file_identity(known):
            raise _changed_error(source)
        digest = hashlib.blake2b(digest_size=32)
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
            writer.write(chunk)
        fsync_file(writer)
        if _digest_on_disk(part) != digest.hexdigest():
            raise OutputError(f"{place}: is not what was written; check the disk; {source} stays")
        with contextlib.suppress(PermissionError):  # file systems without permissions
            os.fchmod(writer.fileno(), stat.S_IMODE(info.st_mode) & 0o777)
        os.utime(writer.fileno(), ns=(info.st_atime_ns, info.st_mtime_ns))
        fsync_file(writer)
        rename_noreplace(part, place)
    fsync_path(place.parent)
    if not _remove(source, known):
        place.unlink()
        raise _changed_error(source)


def _remove(source: Path, known: os.stat_result) -> bool:
    """Remove a file that has a second copy, unless another stands at its name; tells whether it is gone."""
    with contextlib.suppress(FileNotFoundError):
        if _file_identity(source.lstat()) != _file_identity(known):
            return False
        source.unlink()
    return True


def _changed_error(source: Path) -> InputError:
    return InputError(f"{source}: was changed while it was moved; it stays, and is to be handled again")


def _is_unchanged(source: Path, target: Path, stamp: FileStamp) -> bool:
    """Whether a file is what was handled."""
    now = _stamp_at(source)
    if now is None or now == stamp:
        return now is not None
    # A kill between the link to the new place and the removal of the old one leaves a newer ctime, and two names.
    taken = itertools.takewhile(os.path.lexists, candidate_names(target))
    return replace(stamp, ctime_ns=now.ctime_ns) == now and any(_is_same_file(source, place) for place in taken)


def _info_at(path: Path) -> os.stat_result | None:
    """Return what the file system tells of a regular file, None where none is."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        info = path.lstat()
        return info if stat.S_ISREG(info.st_mode) else None
    return None


def _stamp_at(path: Path) -> FileStamp | None:
    try:
        return FileStamp.of(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _file_identity(info: os.stat_result) -> tuple[int, int, int, int]:
    """Return what must be the same for a file to be the one that was moved; linking changes its ctime."""
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def _is_same_file(source: Path, place: Path) -> bool:
    """Whether two names are of one file; a single name seen through two mounts is no second one."""
    info = source.lstat()
    return info.st_nlink > 1 and os.path.samestat(info, place.lstat())


def _digest_on_disk(path: Path) -> str:
    """Return the BLAKE2b-256 of a file, hex: as the disk has it, not the memory it was written from."""
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def _remove_part(path: Path) -> int:
    """Delete an unfinished copy unless its owner lives; 1 when it went."""
    if path.is_symlink() or not path.is_file():
        return 0
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    else:
        path.unlink(missing_ok=True)
        return 1
    finally:
        os.close(handle)
