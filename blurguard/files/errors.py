"""Turns errors of the operating system into errors that name the file, the problem and the remedy."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from blurguard.errors import BlurguardError, InputError, OutputError, StorageError

# With these, the whole file system cannot be written to, not one file.
_STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE}
_WRITE_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EXDEV: "it lies on another file system than the output folder; choose --out inside one file system",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "no permission; allow writing here or choose another folder"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR), "a file stands where a folder should be; remove it"),
}


@contextlib.contextmanager
def os_errors(
    path: Path, problem: str = "cannot write", kind: type[BlurguardError] = OutputError, remedy: str = ""
) -> Iterator[None]:
    """Turn an ``OSError`` inside the block into ``FILE: problem: reason; remedy``.

    Args:
        path: the file to name.
        problem: the failure, such as "cannot be read".
        kind: the class to raise. ``OutputError`` becomes ``StorageError`` if the whole file system fails.
        remedy: advice to the user. Without one, errors of writing get theirs from a table.

    Raises:
        BlurguardError: of class ``kind``.
    """
    try:
        yield
    except OSError as error:
        number, reason = error.errno or 0, error.strerror or str(error)
        if remedy:
            reason = f"{reason}; {remedy}"
        elif issubclass(kind, OutputError):
            reason = _WRITE_REMEDIES.get(number, reason)
        if kind is OutputError and number in _STORAGE_ERRNOS:
            kind = StorageError
        raise kind(f"{path}: {problem}: {reason}") from error


def read_errors(path: Path) -> contextlib.AbstractContextManager[None]:
    """Turn an ``OSError`` inside the block into an ``InputError`` about a file that cannot be read."""
    return os_errors(path, "cannot be read", InputError)
