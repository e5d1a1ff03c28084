"""Checks the folders of a drop folder before anything is written.

They must exist, lie apart from each other, and not be writable by every user. So no original can reach a folder
for results, and no result is taken for a new original.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from blurguard.errors import ConfigError
from blurguard.files.errors import os_errors
from blurguard.settings import Originals, WatchSettings

MEGABYTE = 10**6
_REMEDY = "name another folder"


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders of one drop folder.

    Attributes:
        inbox: for new originals.
        outbox: for results.
        failed: for originals that failed. None leaves them in the inbox.
        moved: for originals that are done. None leaves them in the inbox.
    """

    inbox: Path
    outbox: Path
    failed: Path | None = None
    moved: Path | None = None

    def prepared(self, *, allow_shared: bool, deletes: bool = False) -> Folders:
        """Check the folders, create missing ones for originals, and return them absolute and resolved.

        Args:
            allow_shared: whether every user may have write permission.
            deletes: whether originals are deleted once done.

        Raises:
            ConfigError: one is missing, not a folder, not usable, writable by every user, or inside another.
        """
        _check_inbox(self.inbox)
        originals = {"failed folder": self.failed, "originals folder": self.moved}
        given = {"inbox": self.inbox, "outbox": self.outbox} | {role: path for role, path in originals.items() if path}
        paths = {role: _resolved(path) for role, path in given.items()}
        for (role, path), (other_role, other) in itertools.permutations(paths.items(), 2):
            _check_apart(f"{path}: the {role}", path, f"the {other_role} {other}", other)
        for path in paths.values():
            _check_kind(path, allow_shared)
        destinations = [path for role, path in paths.items() if role in originals]
        if (destinations or deletes) and not os.access(paths["inbox"], os.W_OK | os.X_OK):
            remedy = "allow writing to it, or leave originals there"
            raise ConfigError(f"{self.inbox}: originals cannot be removed from it; {remedy}")
        for path in destinations:
            _make(path)
        return Folders(paths["inbox"], paths["outbox"], paths.get("failed folder"), paths.get("originals folder"))


def folders_for(inbox: Path, outbox: Path, settings: WatchSettings) -> Folders:
    """Return the checked folders for these settings.

    Raises:
        ConfigError: one cannot be used.
    """
    failed, moved = (Path(name) if name else None for name in (settings.failed, settings.move_to))
    deletes = settings.originals is Originals.DELETE
    return Folders(inbox, outbox, failed, moved).prepared(allow_shared=settings.allow_shared, deletes=deletes)


def dev_inode(folder: Path) -> tuple[int, int] | None:
    """Return the device and inode of a folder, None if there is no folder or only a link to one.

    They change when the folder is replaced, or when something is mounted over it or unmounted.
    """
    with contextlib.suppress(OSError):
        info = folder.lstat()
        if stat.S_ISDIR(info.st_mode):
            return info.st_dev, info.st_ino
    return None


def low_disk_reason(folder: Path, min_free: int) -> str:
    """Return the reason not to write to a folder, "" if at least ``min_free`` MB (10^6 bytes) are free."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"{folder}: cannot be inspected: {error.strerror}"
    return f"less than {min_free} MB are free in {folder}" if free < min_free * MEGABYTE else ""


def _check_inbox(inbox: Path) -> None:
    if inbox.is_symlink():
        raise ConfigError(f"{inbox}: is a link, which may be redirected; name the folder it points to")
    with os_errors(inbox, "the inbox cannot be listed", ConfigError, "allow reading it"):
        try:
            with os.scandir(inbox) as entries:
                next(entries, None)
        except FileNotFoundError as error:
            raise ConfigError(f"{inbox}: the inbox does not exist; create it first") from error
        except NotADirectoryError as error:
            raise ConfigError(f"{inbox}: is not a folder; name the folder for new originals") from error


def _resolved(path: Path) -> Path:
    """Resolve the links of all parts that exist."""
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: circular links
        raise ConfigError(f"{path}: cannot be resolved: {error}; name another folder") from error


def _check_apart(label: str, path: Path, other_label: str, other: Path) -> None:
    """Refuse a folder that is another one or lies in it, also through a second mount."""
    if path == other:
        raise ConfigError(f"{label} is also {other_label}; choose another folder")
    above, identity = [path, *path.parents], dev_inode(other)
    if other in above or (identity is not None and identity in map(dev_inode, above)):
        raise ConfigError(f"{label} lies inside {other_label}; choose a folder outside it")


def _check_kind(path: Path, allow_shared: bool) -> None:
    with os_errors(path, "cannot be inspected", ConfigError, _REMEDY):
        if not os.path.lexists(path):
            return
        mode = path.stat().st_mode
    if not stat.S_ISDIR(mode):
        raise ConfigError(f"{path}: is not a folder; remove it or name another one")
    if mode & stat.S_IWOTH and not allow_shared:
        raise ConfigError(f"{path}: every user can write to it; run chmod o-w on it, or give --allow-shared")


def _make(path: Path) -> None:
    """Create a missing folder for originals. As these show faces, other users get no access."""
    with os_errors(path, "cannot be created", ConfigError, _REMEDY):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: cannot be written to; allow writing to it or name another folder")
