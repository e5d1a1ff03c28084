"""What folders a drop folder may have: apart from each other, not anybody's to write to, and there.

All of it is found out before anything is done. What is checked here keeps bare faces from where results are looked
for, and results from being taken for new originals.
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
        inbox: where originals land.
        outbox: where results go.
        failed: where originals go that failed; None leaves them in the inbox.
        moved: where originals go that are done; None leaves them in the inbox.
    """

    inbox: Path
    outbox: Path
    failed: Path | None = None
    moved: Path | None = None

    def prepared(self, *, allow_shared: bool, deletes: bool = False) -> Folders:
        """Check the folders, make those for originals if need be, and return them absolute and resolved.

        Args:
            allow_shared: whether folders may be such that everybody can write to them.
            deletes: whether originals that are done will be deleted.

        Raises:
            ConfigError: one is missing, no folder, not usable, open to others, or inside another.
        """
        _check_inbox(self.inbox)
        given = {"inbox": self.inbox, "outbox": self.outbox, "failed folder": self.failed, "originals": self.moved}
        paths = {role: _resolved(path) for role, path in given.items() if path is not None}
        for (role, path), (other_role, other) in itertools.permutations(paths.items(), 2):
            _check_apart(f"{path}: the {role}", path, f"the {other_role} {other}", other)
        for path in paths.values():
            _check_kind(path, allow_shared)
        taking = [path for path in paths.values() if path not in (paths["inbox"], paths["outbox"])]
        if (taking or deletes) and not os.access(paths["inbox"], os.W_OK | os.X_OK):
            raise ConfigError(
                f"{self.inbox}: originals cannot be taken out of it; allow writing to it, or leave them where they are"
            )
        for path in taking:
            _make(path)
        return Folders(paths["inbox"], paths["outbox"], paths.get("failed folder"), paths.get("originals"))


def folders_for(inbox: Path, outbox: Path, settings: WatchSettings) -> Folders:
    """Return the folders that settings ask for, checked.

    Raises:
        ConfigError: one cannot be used.
    """
    failed, moved = (Path(name) if name else None for name in (settings.failed, settings.move_to))
    deletes = settings.originals is Originals.DELETE
    return Folders(inbox, outbox, failed, moved).prepared(allow_shared=settings.allow_shared, deletes=deletes)


def dev_inode(folder: Path) -> tuple[int, int] | None:
    """Return what tells a folder from any other that may stand at its name later, None where no folder is.

    A folder that another one is mounted over, or whose mount is gone, is another; so is a link to it.
    """
    with contextlib.suppress(OSError):
        info = folder.lstat()
        if stat.S_ISDIR(info.st_mode):
            return info.st_dev, info.st_ino
    return None


def low_disk_reason(folder: Path, least: int) -> str:
    """Return "", or why nothing should be written there: less than so many MB are free, or nobody can tell."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"{folder}: cannot be looked at: {error.strerror}"
    return f"less than {least} MB are free in {folder}" if free < least * MEGABYTE else ""


def _check_inbox(inbox: Path) -> None:
    if inbox.is_symlink():
        raise ConfigError(f"{inbox}: is a link, which could be turned elsewhere; name the folder it points to")
    with os_errors(inbox, "the inbox cannot be listed", ConfigError, "allow reading it"):
        try:
            with os.scandir(inbox) as entries:
                next(entries, None)
        except FileNotFoundError as error:
            raise ConfigError(f"{inbox}: there is no such inbox; make it first") from error
        except NotADirectoryError as error:
            raise ConfigError(f"{inbox}: is no folder; name the folder that originals land in") from error


def _resolved(path: Path) -> Path:
    """Follow all links of what exists; what does not exist yet stays as it is named."""
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a circle of links
        raise ConfigError(f"{path}: cannot be followed to a folder: {error}; name another one") from error


def _check_apart(told: str, path: Path, other_told: str, other: Path) -> None:
    """Refuse a folder that is another one or lies in it, be it by another name, as mounts give."""
    if path == other:
        raise ConfigError(f"{told} is also {other_told}; choose another folder")
    above, known = [path, *path.parents], dev_inode(other)
    if other in above or (known is not None and known in map(dev_inode, above)):
        raise ConfigError(f"{told} lies inside {other_told}; choose a folder outside it")


def _check_kind(path: Path, allow_shared: bool) -> None:
    with os_errors(path, "cannot be inspected", ConfigError, _REMEDY):
        if not os.path.lexists(path):
            return
        mode = path.stat().st_mode
    if not stat.S_ISDIR(mode):
        raise ConfigError(f"{path}: is no folder; remove it or name another one")
    if mode & stat.S_IWOTH and not allow_shared:
        raise ConfigError(f"{path}: everybody can write to it; run chmod o-w on it, or give --allow-shared")


def _make(path: Path) -> None:
    """Have a folder for originals: what lies there is bare, so a new one is for us alone."""
    with os_errors(path, "cannot be made", ConfigError, _REMEDY):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: cannot be written to; allow writing to it or name another folder")
