"""File stamps: size and times, enough to see that a file has not changed without reading it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What the file system tells of a file: enough to see that it has not changed without reading it."""

    size: int = -1
    mtime_ns: int = -1
    ctime_ns: int = -1

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Return the stamp of an existing file."""
        return cls.from_stat(path.stat())

    @classmethod
    def from_stat(cls, info: os.stat_result) -> FileStamp:
        """Return the stamp of a file that has been looked at."""
        return cls(info.st_size, info.st_mtime_ns, info.st_ctime_ns)
