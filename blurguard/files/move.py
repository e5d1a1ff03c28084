"""Moves and deletes originals that are not kept.

An original is only touched while it is still the file that was processed, and its last copy is never removed.
Whenever a process dies, the file is at its old place, its new one, or both. Repeating the move completes it.
One system call lies between the last check of a file and its removal. File systems offer nothing tighter.
"""

import contextlib
import errno
import hashlib
import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from io import BufferedRandom, BufferedReader
from pathlib import Path

from blurguard.errors import InputError, OutputError
from blurguard.files.atomic import StagedFile, atomic_file, digest_file, fsync_path, make_folders, new_digest, part_path
from blurguard.files.errors import os_errors
from blurguard.files.rename import rename_noreplace
from blurguard.files.stamp import FileStamp

MAX_NAME_BYTES = 255
_MAX_SUFFIX_BYTES = 32  # a longer ending is part of the stem
_CHUNK_BYTES = 1 << 20
_DAMAGED = "the disk returns other content than was written; check the disk"


def move(source: Path, target: Path, stamp: FileStamp) -> Path | None:
    """Move an original, without ever replacing a file.

    If ``target`` holds the same content, the source is only removed. If it holds other content, the next free name
    of ``NAME~2.SUFFIX``, ``NAME~3.SUFFIX`` ... is taken. Missing folders are created, 0700.

    Args:
        source: a regular file.
        target: its new place.
        stamp: of the source when it was processed.

    Returns:
        Its new place, or None if it is gone or has changed. A changed file stays.

    Raises:
        InputError: it is a link, not a regular file, or was changed while it was moved.
        OutputError: it cannot be moved, and is still there.
    """
    with os_errors(source, f"cannot be moved to {target}"):
        known = stat_regular(source)
        try:
            if known is not None and _is_unchanged(source, known, target, stamp):
                make_folders(target.parent)
                for place in candidate_names(target):  # the numbers do not end
                    with contextlib.suppress(FileExistsError):
                        move_to(source, known, place)
                        return place
        except FileNotFoundError:
            if os.path.lexists(source):
                raise
    return None


def delete(source: Path, stamp: FileStamp) -> bool:
    """Delete an original if it is still the file that was processed. Return whether it was deleted.

    It is renamed first and checked again, because a newer file may have taken its name at the last moment.

    Raises:
        OutputError: it cannot be deleted.
    """
    with os_errors(source, "cannot be deleted"):
        known = _lstat(source)
        if known is None or not stat.S_ISREG(known.st_mode) or FileStamp.from_stat(known) != stamp:
            return False
        aside = part_path(source.parent)
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
    """Check that a staged file is on the disk as written. Called before its original is deleted.

    Raises:
        OutputError: it cannot be read, or has other content than was written.
    """
    with os_errors(draft.path, "cannot be read back"), draft.path.open("rb") as file:
        if _digest_on_disk(file) != draft.digest:
            raise OutputError(f"{draft.path}: {_DAMAGED}")


def destination_for(source: Path, target: Path, stamp: FileStamp) -> Path | None:
    """Return the place to which ``move`` would move an original now, None if it is gone or has changed.

    Raises:
        InputError: it is a link or not a regular file.
    """
    known = stat_regular(source)
    if known is None or not _is_unchanged(source, known, target, stamp):
        return None
    return next(name for name in candidate_names(target) if not os.path.lexists(name) or has_same_content(source, name))


def move_to(source: Path, known: os.stat_result, place: Path) -> None:
    """Move a file to a name that is free or holds the same content.

    Args:
        source: a regular file.
        known: its status when it was checked, as ``stat_regular`` returns it.
        place: in a folder that exists.

    Raises:
        FileExistsError: the name holds other content.
        InputError: the file was changed meanwhile, and stays.
    """
    if os.path.lexists(place):
        if not has_same_content(source, place):
            raise FileExistsError(errno.EEXIST, "holds other content", str(place))
        fsync_path(place)
        fsync_path(place.parent)
        if not _remove(source, known):
            raise _changed_error(source)
    elif not _try_rename(source, known, place):
        _copy(source, known, place)


def has_same_content(source: Path, place: Path) -> bool:
    """Whether a name holds a second copy of a file.

    Raises:
        OutputError: it is the file itself, reached through another mount.
    """
    info, other = source.lstat(), place.lstat()
    if not stat.S_ISREG(other.st_mode) or info.st_size != other.st_size:
        return False
    same_file = os.path.samestat(info, other)
    same_folder = os.path.samestat(source.parent.stat(), place.parent.stat())
    if same_file and (info.st_nlink < 2 or (same_folder and source.name == place.name)):
        raise OutputError(f"{place}: is the original itself, by another name; choose another folder")
    return same_file or digest_file(source) == digest_file(place)


def candidate_names(target: Path) -> Iterator[Path]:
    """Yield a name and its alternatives, ``NAME~2.SUFFIX`` and on, cut to the longest possible name."""
    yield target
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= _MAX_SUFFIX_BYTES else ""
    stem = target.name.removesuffix(suffix)
    for number in itertools.count(2):
        yield target.with_name(fit_name(stem, f"~{number}{suffix}"))


def fit_name(stem: str, ending: str) -> str:
    """Return stem and ending as a name of at most 255 bytes, with the stem cut at its end."""
    while len(os.fsencode(stem + ending)) > MAX_NAME_BYTES:
        stem = stem[:-1]
    return stem + ending


def stat_regular(path: Path) -> os.stat_result | None:
    """Return the status of a regular file, None without one.

    Raises:
        InputError: it is a link or not a regular file.
    """
    info = _lstat(path)
    if info is not None and not stat.S_ISREG(info.st_mode):
        raise InputError(f"{path}: is a link or not a regular file, and stays; remove it")
    return info


def _try_rename(source: Path, known: os.stat_result, place: Path) -> bool:
    """Rename a file and remove its old name. False if the new one is on another file system."""
    try:
        rename_noreplace(source, place)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise
    fsync_path(place.parent)
    moved = os.path.samestat(place.lstat(), known)  # otherwise the source was replaced just before
    # A file that has replaced the source since then just stays.
    if moved and (_remove(source, known) or not _is_same_file(source, place)):
        return True
    # The file gets its old name back, unless a newer file has that name: then both stay.
    if not os.path.lexists(source):
        with contextlib.suppress(FileExistsError):
            rename_noreplace(place, source)
    if os.path.lexists(place) and _is_same_file(source, place):
        place.unlink()
    raise _changed_error(source)


def _copy(source: Path, known: os.stat_result, place: Path) -> None:
    """Copy a file to a free name on another file system, and read it back before it gets the name."""
    handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as reader, atomic_file(place, replace=False) as writer:
        info = os.fstat(handle)
        if _file_identity(info) != _file_identity(known):
            raise _changed_error(source)
        digest = new_digest()
        while chunk := reader.read(_CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
        if _digest_on_disk(writer) != digest.hexdigest():
            raise OutputError(f"{place}: {_DAMAGED}; {source} stays")
        with contextlib.suppress(PermissionError):  # file systems without permissions
            os.fchmod(writer.fileno(), stat.S_IMODE(info.st_mode) & 0o777)
        os.utime(writer.fileno(), ns=(info.st_atime_ns, info.st_mtime_ns))
    if not _remove(source, known):
        place.unlink()
        raise _changed_error(source)


def _remove(source: Path, known: os.stat_result) -> bool:
    """Remove a file that has a second copy, unless another file has its name. Return whether it is gone."""
    with contextlib.suppress(FileNotFoundError):
        if _file_identity(source.lstat()) != _file_identity(known):
            return False
        source.unlink()
    return True


def _changed_error(source: Path) -> InputError:
    return InputError(f"{source}: was changed while it was moved; it stays and is processed again")


def _is_unchanged(source: Path, known: os.stat_result, target: Path, stamp: FileStamp) -> bool:
    """Whether a file is still the one that was processed."""
    now = FileStamp.from_stat(known)
    if now == stamp:
        return True
    # A kill between the link to the new place and the removal of the old name leaves a newer ctime and two names.
    taken = itertools.takewhile(os.path.lexists, candidate_names(target))
    return replace(stamp, ctime_ns=now.ctime_ns) == now and any(_is_same_file(source, place) for place in taken)


def _lstat(path: Path) -> os.stat_result | None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return path.lstat()
    return None


def _file_identity(info: os.stat_result) -> tuple[int, int, int, int]:
    """Return the values that identify an unchanged file. Its ctime is not among them: a link changes it."""
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def _is_same_file(source: Path, place: Path) -> bool:
    """Whether two names are links to one file. A single name reached through two mounts does not count."""
    info = source.lstat()
    return info.st_nlink > 1 and os.path.samestat(info, place.lstat())


def _digest_on_disk(file: BufferedReader | BufferedRandom) -> str:
    """Return the BLAKE2b-256 of a file, hex: from the disk, not from the memory it was written from."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    file.seek(0)
    return hashlib.file_digest(file, new_digest).hexdigest()
