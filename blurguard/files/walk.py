"""Walks folders without following links."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from blurguard.files.locks import open_descriptor


def walk(
    folder: Path, enter: Callable[[Path], bool] = lambda _: True, *, follow_first: bool = False
) -> Iterator[tuple[Path, OSError | None]]:
    """Yield every file in a folder and its subfolders, each with None, in the order of their names.

    A folder that cannot be listed is yielded as well, with its error. Links count as files.

    Args:
        folder: where to start.
        enter: called with each subfolder before it is listed. Returns whether to descend into it.
        follow_first: whether ``folder`` itself may be a link.
    """
    pending = [(folder, "", True)]  # no recursion: folders may be nested deeper than Python's stack
    while pending:
        parent, name, is_folder = pending.pop()
        path = parent / name
        if not is_folder:
            yield path, None
        elif not name or enter(path):
            try:
                entries = _list(path, 0 if follow_first and not name else os.O_NOFOLLOW)
            except OSError as error:
                yield path, error
            else:
                pending += [(path, *entry) for entry in reversed(entries)]


def files_below(folder: Path) -> list[Path]:
    """Return the files in a folder and its subfolders, links included. Skips folders that cannot be listed."""
    return [path for path, error in walk(folder) if error is None]


def _list(folder: Path, flags: int) -> list[tuple[str, bool]]:
    """Return the sorted names in a folder, and whether each is a folder itself."""
    # A path could lead to another folder by now. The descriptor cannot.
    with open_descriptor(folder, os.O_DIRECTORY | flags) as descriptor, os.scandir(descriptor) as listing:
        return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in listing)
