"""Finds media files in folders, and names their results."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from blurguard.batch.journal_reader import recorded_results
from blurguard.errors import ConfigError, InputError
from blurguard.files.atomic import STATE_FOLDER
from blurguard.files.filetypes import FileType, type_from_suffix, type_of_file
from blurguard.files.walk import walk


class Discovery(NamedTuple):
    """The files of a folder.

    Attributes:
        media: to process, in a stable order.
        left_alone: number of other files, by reason.
    """

    media: tuple[Path, ...]
    left_alone: Counter[str]


_Stamps = dict[bytes, tuple[int, int]]  # results by name: size and mtime in ns
HIDDEN, OWN, LINKS, NOT_MEDIA, SPECIAL = "hidden", "own output", "links", "not media", "special"


def discover(folder: Path) -> Discovery:
    """Search a folder and everything under it, in a stable order.

    A file is media if its content or its suffix says so: a damaged image must fail by name. Links are not followed,
    since they may lead out of the folder or in circles. Results of blurguard in subfolders are left alone if the
    journals there record them. A subfolder that cannot be listed counts as media, so that it fails by name.

    Raises:
        InputError: ``folder`` does not exist, is not a folder, or cannot be listed.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder" if folder.exists() else f"{folder}: no such folder")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise InputError(f"{folder}: cannot be listed; its permissions forbid it")
    files = list(_files_and_reasons(folder))
    return Discovery(tuple(path for path, why in files if not why), Counter(why for _, why in files if why))


def _files_and_reasons(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield every file below a folder with the reason to leave it alone, "" for media."""
    hidden = {folder: False}
    results: dict[Path, tuple[Path, _Stamps]] = {folder: (folder, {})}  # by the nearest folder that has a journal

    def enter(subfolder: Path) -> bool:
        if subfolder.name == STATE_FOLDER:
            return False
        parent, stamps = subfolder.parent, recorded_results(subfolder)
        hidden[subfolder] = hidden[parent] or subfolder.name.startswith(".")
        results[subfolder] = (subfolder, stamps) if stamps else results[parent]
        return True

    for path, error in walk(folder, enter, follow_first=True):
        if error is not None:
            yield path, HIDDEN if hidden[path] else ""
        elif hidden[path.parent] or path.name.startswith("."):
            yield path, HIDDEN
        else:
            yield path, OWN if _is_result(path, *results[path.parent]) else _reason_to_leave(path)


def _is_result(path: Path, folder: Path, stamps: _Stamps) -> bool:
    """Whether a file is an unchanged result of blurguard, by the journal of a folder around it."""
    stamp = stamps.get(os.fsencode(path.relative_to(folder))) if stamps else None
    if stamp is None or path.is_symlink():
        return False
    info = path.stat()
    return stamp == (info.st_size, info.st_mtime_ns)


def _reason_to_leave(path: Path) -> str:
    if path.is_symlink():
        return LINKS
    if not path.is_file():
        return SPECIAL
    # An unreadable file without a media suffix claims nothing. One with it fails later, by name.
    with contextlib.suppress(InputError):
        if type_from_suffix(path) is not FileType.UNKNOWN or type_of_file(path) is not FileType.UNKNOWN:
            return ""
    return NOT_MEDIA


def blurred_name(path: Path) -> Path:
    """Return the default name of a result: ``a.jpg`` -> ``a_blurred.jpg``."""
    return path.with_name(f"{path.stem}_blurred{path.suffix}")


def targets_for(files: list[Path], out: Path | None) -> list[tuple[Path, Path]]:
    """Return each file with the name of its result.

    Without ``out`` the name is ``NAME_blurred.SUFFIX`` beside the file. ``out`` is the folder of the results if it
    is one, has no suffix, or there are several files. Otherwise it is the name of the only result.

    Raises:
        ConfigError: two results have the same name, a result is also a source, or a suffix is of another format.
    """
    folder = out is not None and (len(files) > 1 or out.is_dir() or not out.suffix)
    if folder and out is not None and out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; choose a folder for --out")
    pairs = [(file, _target(file, out, folder)) for file in files]
    sources, taken = {file.resolve() for file in files}, dict[Path, Path]()
    for source, target in pairs:
        if (other := taken.setdefault(target.resolve(), source)) != source:
            raise ConfigError(f"{other} and {source}: both results would be {target}; process them one at a time")
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
    """Return the default folder of results: ``photos`` -> ``photos_blurred``, for ``.`` and ``..`` as well.

    Raises:
        ConfigError: the root of the file system has no folder beside it.
    """
    named = photos.resolve() if photos.name in ("", "..") else photos
    if not named.name:
        raise ConfigError(f"{photos}: has no folder beside it; choose one for the results with --out")
    return named.with_name(f"{named.name}_blurred")
