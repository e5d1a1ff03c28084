"""File stamps: size and times, which show without reading that a file has not changed."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

# O_PATH (Linux) opens a folder without permission to read it.
_FOLDER_FLAGS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class FileStamp:
    """Size (bytes) and times (ns since 1970) of a file, -1 if unknown."""

    size: int = -1
    mtime_ns: int = -1
    ctime_ns: int = -1

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Return the stamp of an existing file.

        Raises:
            OSError: it does not exist or cannot be reached.
        """
        return cls.from_stat(path.stat())

    @classmethod
    def from_stat(cls, info: os.stat_result) -> FileStamp:
        """Return the stamp that the result of a ``stat`` holds."""
        return cls(info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def stamp_at(path: Path, folder: Path) -> FileStamp | None:
    """Return the stamp of a regular file below a folder, None without one. Follows no link on the way."""
    *parents, name = path.relative_to(folder).parts
    handle = -1
    try:
        handle = os.open(folder, _FOLDER_FLAGS)
        for parent in parents:
            above, handle = handle, os.open(parent, _FOLDER_FLAGS, dir_fd=handle)
            os.close(above)
        info = os.stat(name, dir_fd=handle, follow_symlinks=False)
    except (OSError, ValueError):
        return None
    finally:
        if handle >= 0:
            os.close(handle)
    return FileStamp.from_stat(info) if stat.S_ISREG(info.st_mode) else None
