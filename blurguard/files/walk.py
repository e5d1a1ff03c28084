"""Walks folders without following links."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def files_below(folder: Path) -> list[Path]:
    """Return the files in a folder and its folders, links to anything but folders among them; follows none."""
    files: list[Path] = []
    folders = [folder]  # no recursion: folders may be nested deeper than Python's stack
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as listing:
            for entry in sorted(listing, key=lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif not entry.is_dir():
                    files.append(Path(entry.path))
    return files
