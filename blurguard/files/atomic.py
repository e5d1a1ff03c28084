"""Files that are complete at their final name, or absent.

A result is written in two steps, since a worker produces it and another process decides on it. ``stage_bytes`` and
``stage_file`` write it, already redacted, into scratch and to the disk. ``publish`` gives it its name.
Scratch is ``FOLDER/.blurguard/scratch/``, on the file system of the results: folders 0700, files 0600. Its owner
holds a lock on it, so the next start removes only the scratch that killed processes have left.
``atomic_file`` takes both steps at once, for files other than results.
"""

import contextlib
import errno
import hashlib
import itertools
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from functools import partial
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import NamedTuple

from blurguard.errors import OutputError
from blurguard.files.errors import os_errors
from blurguard.files.locks import lock, open_descriptor, remove_unlocked
from blurguard.files.rename import rename_noreplace
from blurguard.files.walk import files_below

STATE_FOLDER = ".blurguard"
SCRATCH_FOLDER = "scratch"
_PART_NAME = re.compile(r"\.blurguard-[0-9a-f]{16}\.part")
_MAX_ATTEMPTS = 20  # another process may remove the empty folder between two of our calls

new_digest = partial(hashlib.blake2b, digest_size=32)


class StagedFile(NamedTuple):
    """A finished result in scratch, without its final name.

    Attributes:
        path: in scratch.
        digest: BLAKE2b of the content, hex.
        size: bytes.
        mtime_ns: modification time. A rename keeps it.
    """

    path: Path
    digest: str
    size: int
    mtime_ns: int


def digest_bytes(data: bytes | memoryview) -> str:
    """Return the BLAKE2b-256 of some bytes, hex."""
    return new_digest(data).hexdigest()


def digest_file(path: Path) -> str:
    """Return the BLAKE2b-256 of a file's content, hex."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, new_digest).hexdigest()


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Open a file for reading, without blocking if a pipe has taken its place.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", os.fspath(path))
        yield file


@contextlib.contextmanager
def atomic_file(
    path: Path, *, durable: bool = True, replace: bool = True, mode: int = 0o600
) -> Iterator[BufferedRandom]:
    """Give a new file, open for reading and writing, that gets its name at the end of the block.

    Until then it has a temporary name beside ``path``, which is its ``name``. After an error nothing is left.

    Args:
        path: the final name, in a folder that exists.
        durable: whether the file must survive a power cut. A durable file is locked while it is written, so that
            ``remove_stale_parts`` removes only the remains of a kill. Other files must have one writer. Their
            temporary name is always the same, so that the next write clears the remains.
        replace: whether a file of that name may be replaced.
        mode: permissions, restricted by the umask.

    Raises:
        FileExistsError: the name is taken and ``replace`` is False.
        OSError: the file cannot be written.
    """
    part = part_path(path.parent) if durable else path.with_name(f".{path.name}.tmp")
    part.unlink(missing_ok=True)  # the remains of a kill, unless the name is new
    with open(part, "x+b", opener=partial(os.open, mode=mode)) as file:
        try:
            if durable:
                lock(file.fileno())
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
            rename = Path.replace if replace else rename_noreplace
            rename(part, path)
        finally:
            part.unlink(missing_ok=True)
    if durable:
        fsync_path(path.parent)


def part_path(folder: Path) -> Path:
    """Return a new temporary name in a folder."""
    return folder / f".blurguard-{secrets.token_hex(8)}.part"


def remove_stale_parts(folder: Path) -> int:
    """Delete the unfinished files below ``folder`` that no living process writes, and return their number.

    Raises:
        OutputError: one cannot be deleted.
    """
    with os_errors(folder, "cannot be cleaned up"):
        parts = [path for path in files_below(folder) if _PART_NAME.fullmatch(path.name)]
        return sum(remove_unlocked(part, Path.unlink) for part in parts if part.is_file() and not part.is_symlink())


@contextlib.contextmanager
def scratch_in(folder: Path, needed: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """Give a private folder on the file system of ``folder``, and remove it at the end of the block.

    Args:
        folder: holds results. Created if missing.
        needed: called at the end. Returns whether the rest must stay for the next process.

    Raises:
        OutputError: ``folder`` cannot be written to.
    """
    with os_errors(folder):
        path, lock_descriptor = _make_scratch(folder)
    try:
        yield path
    finally:
        if not needed():
            shutil.rmtree(path, ignore_errors=True)
        os.close(lock_descriptor)
        _remove_if_empty(path.parent)


def remove_stale(folder: Path, *, recorded: bool = False) -> int:
    """Delete the scratch in ``folder`` that no living process holds, and return the number of folders deleted.

    Args:
        folder: holds results.
        recorded: the caller holds the folder's journal and has processed the staged files. In a folder with a
            journal only that process may delete: a staged file proves that a result never got its name.

    Raises:
        OutputError: the scratch cannot be listed.
    """
    parent = folder / STATE_FOLDER / SCRATCH_FOLDER
    if not recorded and any(parent.parent.glob("*.sqlite")):
        return 0
    removed = 0
    with os_errors(parent), contextlib.suppress(FileNotFoundError):
        with open_descriptor(parent, os.O_DIRECTORY | os.O_NOFOLLOW) as handle:
            lock(handle)
            removed = sum(_remove_scratch(path) for path in parent.iterdir())
        _remove_if_empty(parent)
    return removed


def stage_bytes(scratch: Path, data: bytes | memoryview) -> StagedFile:
    """Write a result into scratch, 0600, through to the disk.

    Raises:
        OutputError: the disk is full or not writable. Nothing is left then.
    """

    def write(path: Path) -> str:
        path.write_bytes(data)
        return digest_bytes(data)

    return stage_file(scratch, write)


def stage_file(scratch: Path, write: Callable[[Path], str | None]) -> StagedFile:
    """Have ``write`` fill a new file in scratch, 0600, and bring it to the disk.

    ``write`` may return the digest of the content. Otherwise the file is read back for it.

    Raises:
        OutputError: the disk is full or not writable. Nothing is left then, nor after any other error.
    """
    path = scratch / secrets.token_hex(12)
    try:
        with os_errors(path), open(path, "xb", opener=partial(os.open, mode=0o600)) as file:
            digest = write(path) or digest_file(path)
            os.fsync(file.fileno())
            info = os.fstat(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return StagedFile(path, digest, info.st_size, info.st_mtime_ns)


def publish(draft: StagedFile, target: Path, replace: bool) -> None:
    """Give a staged file its final name, in one step. If that fails it stays in scratch.

    The file gets the permissions of the file it replaces, or those of any new file there.

    Args:
        draft: the result.
        target: its name. Missing folders are created.
        replace: whether a file of that name may be replaced. Otherwise a file that has appeared meanwhile is an
            error and stays as it is.

    Raises:
        OutputError: the name is taken, the folder not writable, or on another file system.
        StorageError: the whole file system cannot be written to.
    """
    with os_errors(target):
        new = list(itertools.takewhile(lambda folder: not folder.exists(), target.parents))
        make_folders(target.parent, 0o777)
        _copy_ownership(draft.path, target if replace else None)
        try:
            rename = Path.replace if replace else rename_noreplace
            rename(draft.path, target)
        except FileExistsError as error:
            raise OutputError(f"{target}: exists already; give --overwrite to replace it") from error
        draft.path.unlink(missing_ok=True)  # where a rename keeps the old name
        for folder in (target.parent, *(folder.parent for folder in new)):
            fsync_path(folder)


def _make_scratch(folder: Path) -> tuple[Path, int]:
    """Create a scratch folder, locked before any cleanup can see it. Return it and the lock's descriptor."""
    parent = folder / STATE_FOLDER / SCRATCH_FOLDER
    name = secrets.token_hex(8)
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(_MAX_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            parent.parent.mkdir(mode=0o700, exist_ok=True)
            parent.mkdir(mode=0o700, exist_ok=True)
            with open_descriptor(parent, os.O_DIRECTORY | os.O_NOFOLLOW) as handle:
                lock(handle)
                os.mkdir(name, 0o700, dir_fd=handle)
                descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=handle)
                lock(descriptor)
            return parent / name, descriptor
    raise OSError(errno.EBUSY, "the scratch folder keeps vanishing", str(parent))


def _remove_scratch(path: Path) -> bool:
    """Delete one scratch folder unless its owner lives, or a stray file. Return whether it was deleted."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return True
    return remove_unlocked(path, partial(shutil.rmtree, ignore_errors=True))


def _remove_if_empty(scratch: Path) -> None:
    """Remove the scratch folder and the state folder if they are empty."""
    with contextlib.suppress(OSError):
        scratch.rmdir()
        scratch.parent.rmdir()


def _copy_ownership(draft: Path, replaced: Path | None) -> None:
    """Give a staged file the owner and permissions of the file it replaces, or those of any new file."""
    if replaced is None or not replaced.exists():
        # Reading the umask means setting it, for the whole process. A probe file has the same effect without that.
        probe = draft.with_suffix(".mode")
        with probe.open("xb") as file:
            info = os.fstat(file.fileno())
        probe.unlink()
    else:
        info = replaced.stat()
        with contextlib.suppress(PermissionError):  # only root may give files away
            os.chown(draft, info.st_uid, info.st_gid)
    draft.chmod(stat.S_IMODE(info.st_mode))


def make_folders(folder: Path, mode: int = 0o700) -> None:
    """Create a folder and its missing parents, all with these permissions. ``mkdir`` applies them to the last only."""
    for path in reversed([folder, *folder.parents]):
        if not path.is_dir():
            path.mkdir(mode, exist_ok=True)


def fsync_path(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    with open_descriptor(path) as descriptor:
        os.fsync(descriptor)
