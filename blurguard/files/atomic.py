"""Files that are whole at their final name, or absent; and the private scratch where they wait until then.

A result is written in two halves, because one process may do the work and another decide: ``stage_bytes``
puts it, already hidden and encoded, into scratch and on disk; ``publish`` gives it its name. Scratch lies in
``FOLDER/.blurguard/scratch/``, on the file system of the results, 0700, its files 0600. It is locked while its
owner lives, so what ``kill -9`` leaves is told from what is in use, and swept at the next start.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import itertools
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from blurguard.files.errors import output_errors

STATE_FOLDER = ".blurguard"
SCRATCH_FOLDER = "scratch"
_NOT_SUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # fcntl.h, linux/fs.h
_MAX_ATTEMPTS = 20  # another process may remove the empty folder between two of our calls


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A finished result that waits in scratch for its name.

    Attributes:
        path: in scratch.
        digest: BLAKE2b of the content, hex.
        size: bytes.
        mtime_ns: as the file system tells it; a rename keeps it.
    """

    path: Path
    digest: str
    size: int
    mtime_ns: int


def digest_bytes(data: bytes | memoryview) -> str:
    """Return the BLAKE2b-256 of some bytes, hex."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Open a file for reading; one that was exchanged for a pipe blocks nobody.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", os.fspath(path))
        yield file


def digest_file(path: Path) -> str:
    """Return the BLAKE2b-256 of a file's content, hex."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


@contextlib.contextmanager
def scratch_in(folder: Path, needed: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """Give a private folder on the file system of ``folder``, which is made if need be; gone at the end.

    Args:
        folder: holds results.
        needed: asked at the end whether what is left must stay for the next process to look at.

    Raises:
        OutputError: when ``folder`` cannot be written to.
    """
    with output_errors(folder):
        path, lock = _make_scratch(folder)
    try:
        yield path
    finally:
        if not needed():
            shutil.rmtree(path, ignore_errors=True)
        os.close(lock)
        _remove_if_empty(path.parent)


def remove_stale(folder: Path, *, recorded: bool = False) -> int:
    """Delete the scratch in ``folder`` that no living process holds; return how many folders went.

    Args:
        folder: holds results.
        recorded: the caller keeps the folder's journal, and has no need of drafts any more. Where there is a
            journal nobody else may sweep: a draft tells that a result never got its name.

    Raises:
        OutputError: when the scratch cannot be looked into.
    """
    parent = folder / STATE_FOLDER / SCRATCH_FOLDER
    if not recorded and any(parent.parent.glob("*.sqlite")):
        return 0
    swept = 0
    with output_errors(parent), contextlib.suppress(FileNotFoundError):
        with _locked_folder(parent):
            swept = sum(_remove_one(path) for path in parent.iterdir())
        _remove_if_empty(parent)
    return swept


def stage_bytes(scratch: Path, data: bytes | memoryview) -> StagedFile:
    """Write a result into scratch, 0600, through to the disk.

    Raises:
        OutputError: disk full or not writable; nothing is left then.
    """

    def write(path: Path) -> str:
        path.write_bytes(data)
        return digest_bytes(data)

    return stage_file(scratch, write)


def stage_file(scratch: Path, write: Callable[[Path], str | None]) -> StagedFile:
    """Have a new file in scratch, 0600, written by ``write``, and bring it through to the disk.

    ``write`` may return the digest of what it wrote, which is else read back.

    Raises:
        OutputError: disk full or not writable; nothing is left then, nor after any other error.
    """
    path = scratch / secrets.token_hex(12)
    try:
        with output_errors(path):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with output_errors(path):
                digest = write(path) or digest_file(path)
                os.fsync(handle)
                info = os.fstat(handle)
        finally:
            os.close(handle)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return StagedFile(path, digest, info.st_size, info.st_mtime_ns)


def publish(draft: StagedFile, target: Path, replace: bool) -> None:
    """Give a draft its final name, in one step; where that fails the draft stays in scratch.

    The file gets the permissions that any new file would have got there, or those of the file it replaces.

    Args:
        draft: the result.
        target: its name; missing folders are made.
        replace: whether a file of that name may be replaced. When not, one that has appeared in the
            meantime is an error and stays as it is.

    Raises:
        OutputError: the name is taken, the folder not writable, or on another file system.
        StorageError: nothing at all can be written at present.
    """
    with output_errors(target):
        new = list(itertools.takewhile(lambda folder: not folder.exists(), target.parents))
        make_folders(target.parent, 0o777)
        _copy_ownership(draft.path, target if replace else None)
        if replace:
            draft.path.replace(target)
        else:
            rename_noreplace(draft.path, target)
            draft.path.unlink(missing_ok=True)
        for folder in (target.parent, *(folder.parent for folder in new)):
            fsync_folder(folder)


def _make_scratch(folder: Path) -> tuple[Path, int]:
    """Make a scratch folder and lock it before any sweeper can see it unlocked; (path, lock)."""
    parent = folder / STATE_FOLDER / SCRATCH_FOLDER
    name = secrets.token_hex(8)
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(_MAX_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            parent.parent.mkdir(mode=0o700, exist_ok=True)
            parent.mkdir(mode=0o700, exist_ok=True)
            with _locked_folder(parent) as handle:
                os.mkdir(name, 0o700, dir_fd=handle)
                lock = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=handle)
                fcntl.flock(lock, fcntl.LOCK_EX)
            return parent / name, lock
    raise OSError(errno.EBUSY, "the scratch folder keeps vanishing", str(parent))


@contextlib.contextmanager
def _locked_folder(folder: Path) -> Iterator[int]:
    """Hold the folder's lock; gives its descriptor."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _remove_one(path: Path) -> int:
    """Delete one scratch folder unless its owner still holds the lock; 1 when it went."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return 1
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:  # its owner has ended just now
        return 0
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    else:
        shutil.rmtree(path, ignore_errors=True)
        return 1
    finally:
        os.close(handle)


def _remove_if_empty(scratch: Path) -> None:
    """Leave no empty folder of ours behind."""
    for path in (scratch, scratch.parent):
        try:
            path.rmdir()
        except OSError:
            return


def _copy_ownership(draft: Path, replaced: Path | None) -> None:
    """Give a draft owner and permissions of the file it replaces, or the permissions that any new file gets."""
    if replaced is None or not replaced.exists():
        draft.chmod(_default_mode(draft))
        return
    info = replaced.stat()
    with contextlib.suppress(PermissionError):  # only root may give files away
        os.chown(draft, info.st_uid, info.st_gid)
    draft.chmod(stat.S_IMODE(info.st_mode))


def _default_mode(draft: Path) -> int:
    """Return the permission bits that the umask gives a new file in this place."""
    # The umask itself can only be read by setting it, for the whole process. A probe tells as much.
    probe = draft.with_suffix(".mode")
    handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
        probe.unlink()


def make_folders(folder: Path, mode: int = 0o700) -> None:
    """Make a folder and those above it that are missing, each with these permissions; ``mkdir`` heeds the last only."""
    for path in reversed([folder, *folder.parents]):
        if not path.is_dir():
            path.mkdir(mode, exist_ok=True)


def rename_noreplace(draft: Path, target: Path) -> None:
    """Rename without ever replacing.

    Where the system has no such call the draft may still have its own name as well.

    Raises:
        FileExistsError: the name is taken.
        OSError: it cannot be renamed.
    """
    if _renameat2_noreplace(draft, target):
        return
    try:
        os.link(draft, target)  # fails where the name is taken
    except OSError as error:
        # File systems without hard links (FAT, some network shares): check, then rename.
        if error.errno not in (errno.EPERM, *_NOT_SUPPORTED, errno.EMLINK):
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "exists", str(target)) from error
        draft.rename(target)


def _renameat2_noreplace(draft: Path, target: Path) -> bool:
    """Rename in one step if the name is free; False where kernel or file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux, glibc 2.28 and later
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(draft), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, *_NOT_SUPPORTED):
        return False
    raise OSError(number, os.strerror(number), os.fspath(draft), None, os.fspath(target))


def fsync_folder(folder: Path) -> None:
    """Bring the new name itself to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
