"""Finds media files in folders, and names their results."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from blurguard.batch.journal import recorded_results
from blurguard.errors import ConfigError, InputError
from blurguard.files.atomic import STATE_FOLDER
from blurguard.files.filetypes import FileType, type_from_suffix, type_of_file


@dataclass(frozen=True, slots=True)
class Discovery:
    """What a folder holds: ``media`` to handle, and how many files were left alone, by reason."""

    media: tuple[Path, ...]
    left_alone: Counter[str] = field(default_factory=Counter)


HIDDEN, OWN, LINKS, NOT_MEDIA, SPECIAL = "hidden", "own output", "links", "not media", "special"
_UNLISTED = "cannot be listed"


def discover(folder: Path) -> Discovery:
    """Search a folder and everything under it, in a stable order.

    A file is media when its content or its suffix says so: what claims to be media and is not shall fail
    loudly. Links are not followed: they may lead out of the folder, or round in it. Results of ours in
    folders below, as their journals tell, are left alone; what else lies there is not.

    Raises:
        InputError: when ``folder`` is none or cannot be listed.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder" if folder.exists() else f"{folder}: no such folder")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise InputError(f"{folder}: cannot be listed; its permissions forbid it")
    media, left_alone = [], Counter[str]()
    for path, reason in _walk(folder, _RecordedResults(folder, {})):
        if reason == _UNLISTED:
            media.append(path)  # nobody knows what is in there: it fails by name, and the others are done
        elif reason := reason or _reason_to_leave(path):
            left_alone[reason] += 1
        else:
            media.append(path)
    return Discovery(tuple(media), left_alone)


@dataclass(frozen=True, slots=True)
class _RecordedResults:
    """Which files below a folder are ours, as its journal tells; one that has changed since is not."""

    folder: Path
    stamps: dict[bytes, tuple[int, int]]

    def have(self, path: Path) -> bool:
        stamp = self.stamps.get(os.fsencode(path.relative_to(self.folder))) if self.stamps else None
        if stamp is None or path.is_symlink():
            return False
        info = path.stat()
        return stamp == (info.st_size, info.st_mtime_ns)


def _walk(folder: Path, results: _RecordedResults, within: str = "") -> Iterator[tuple[Path, str]]:
    """Yield every file below with the reason why it is left alone, ``""`` when that is not known yet."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        yield folder, within or _UNLISTED
        return
    for entry in entries:
        path = Path(entry.path)
        reason = within or (HIDDEN if entry.name.startswith(".") else "")
        if not entry.is_dir(follow_symlinks=False):
            yield path, reason or (OWN if results.have(path) else "")
        elif entry.name != STATE_FOLDER:  # our own record is nobody's pictures
            stamps = recorded_results(path)
            yield from _walk(path, _RecordedResults(path, stamps) if stamps else results, reason)


def _reason_to_leave(path: Path) -> str:
    if path.is_symlink():
        return LINKS
    if not path.is_file():
        return SPECIAL
    if type_from_suffix(path) is FileType.UNKNOWN:
        # An unreadable file without a media suffix claims nothing; one with it fails later, by name.
        try:
            return NOT_MEDIA if type_of_file(path) is FileType.UNKNOWN else ""
        except InputError:
            return NOT_MEDIA
    return ""


def blurred_name(path: Path) -> Path:
    """Return the default name of a result: ``a.jpg`` -> ``a_blurred.jpg``."""
    return path.with_name(f"{path.stem}_blurred{path.suffix}")


def targets_for(files: list[Path], out: Path | None) -> list[tuple[Path, Path]]:
    """Return each file with the name of its result.

    Without ``out`` that is ``NAME_blurred.SUFFIX`` beside it. ``out`` is a folder when it is one, when there
    are several files, or when it has no suffix of a picture; else it is the name of the one result.

    Raises:
        ConfigError: two results of one name, a result that is a source, or a suffix of another format.
    """
    folder = out is not None and (len(files) > 1 or out.is_dir() or not out.suffix)
    if folder and out is not None and out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; choose a folder for --out")
    pairs = [(file, _target(file, out, folder)) for file in files]
    sources, taken = {file.resolve() for file in files}, dict[Path, Path]()
    for source, target in pairs:
        if (other := taken.setdefault(target.resolve(), source)) != source:
            raise ConfigError(f"{other} and {source} would both become {target}; handle them one at a time")
        if target.resolve() in sources:
            raise ConfigError(f"{source}: the result would replace {target}; choose another --out")
    return pairs


def _target(file: Path, out: Path | None, folder: bool) -> Path:
    if out is None:
        return blurred_name(file)
    if folder:
        return out / file.name
    if type_from_suffix(out) is not type_from_suffix(file):
        raise ConfigError(f"{out}: the result has the format of {file}; give it the same suffix, {file.suffix}")
    return out


def folder_beside(photos: Path) -> Path:
    """Return the default folder of results: ``photos`` -> ``photos_blurred``, also for ``.`` and names like it.

    Raises:
        ConfigError: the root of the file system has nothing beside it.
    """
    named = photos.resolve() if photos.name in ("", "..") else photos
    if not named.name:
        raise ConfigError(f"{photos}: has no folder beside it; say where the results go with --out")
    return named.with_name(f"{named.name}_blurred")
