"""Turns errors of the operating system into messages that name the file and what to do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from blurguard.errors import OutputError, StorageError

STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE}


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into ``OutputError`` that names the file and what to do."""
    try:
        yield
    except FileExistsError as error:
        if error.filename is not None and Path(error.filename) in path.parents:
            raise OutputError(f"{path}: a file stands where its folder should be; remove it") from error
        raise OutputError(f"{path}: exists already; give --overwrite to replace it") from error
    except OSError as error:
        hints = {
            errno.ENOSPC: "the disk is full; free some space and run again",
            errno.EDQUOT: "your disk quota is used up; free some space and run again",
            errno.EROFS: "the file system is read-only; choose another --out",
            errno.EACCES: "no permission to write here; choose another --out",
            errno.EXDEV: "lies on another file system than the output folder; choose --out inside one file system",
        }
        hint = hints.get(error.errno or 0, error.strerror or str(error))
        kind = StorageError if error.errno in STORAGE_ERRNOS else OutputError
        raise kind(f"{path}: cannot write: {hint}") from error


@contextlib.contextmanager
def moving_errors(path: Path, what: str) -> Iterator[None]:
    """Turn the operating system's errors into ``OutputError`` that names the file and what to do."""
    try:
        yield
    except OSError as error:
        hints = {
            errno.ENOSPC: "the disk is full; free some space",
            errno.EDQUOT: "your disk quota is used up; free some space",
            errno.EROFS: "the file system is read-only; choose another folder",
            errno.EACCES: "no permission; allow writing to both folders",
            errno.EPERM: "no permission; allow writing to both folders",
            errno.EEXIST: "a file stands where a folder should be; remove it",
            errno.ENOTDIR: "a file stands where a folder should be; remove it",
        }
        hint = hints.get(error.errno or 0, error.strerror or str(error))
        kind = StorageError if error.errno in STORAGE_ERRNOS else OutputError
        raise kind(f"{path}: {what}: {hint}") from error
