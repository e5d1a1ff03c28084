"""Keeps failed originals, each with an error report in JSON.

Reports are read again to move originals back. They are not trusted: only names below the inbox are accepted.
"""

import contextlib
import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blurguard import __version__
from blurguard.errors import InputError, OutputError
from blurguard.files.atomic import atomic_file, digest_bytes, make_folders
from blurguard.files.errors import os_errors
from blurguard.files.move import MAX_NAME_BYTES, destination_for, fit_name, move, move_to, stat_regular
from blurguard.files.stamp import FileStamp
from blurguard.files.walk import files_below
from blurguard.types import Outcome

REPORT_SUFFIX = ".json"
REPORT_KEYS = frozenset({"name", "error", "reason", "exit_code", "time", "size", "mtime_ns", "version"})
_NO_PLACE = {errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG}


class Quarantine:
    """Failed originals and their error reports.

    With a folder, originals are moved there and each report lies beside its original. Without one, originals stay
    in the inbox and reports lie in a folder of their own. A report is written before its original is moved.
    """

    def __init__(self, folder: Path | None, inbox: Path, reports: Path) -> None:
        """Set the folders.

        Args:
            folder: for failed originals. None leaves them in the inbox.
            inbox: they come from here.
            reports: for the reports on originals that stay in the inbox.
        """
        self._folder, self._inbox, self._reports = folder, inbox, reports

    def add(self, name: Path, outcome: Outcome, stamp: FileStamp) -> None:
        """Write an error report, and move the original if there is a folder for it.

        With a folder, an original that is gone or has changed is neither moved nor reported.

        Args:
            name: of the original, relative to the inbox.
            outcome: of the failure.
            stamp: of the original when it was processed.

        Raises:
            InputError: the name leads out of the inbox.
            OutputError: the report cannot be written, or the original cannot be moved.
        """
        if not _stays_below(name):
            raise InputError(f"{name}: leads out of the inbox; rename it")
        record = _record(name, outcome, stamp)
        if self._folder is None:
            _write_report(self._reports / name, record)
        else:
            _move_with_report(self._inbox / name, _kept_at(self._folder, name), stamp, record)

    def has_report(self, name: Path) -> bool:
        """Whether there is a report on an original that stays in the inbox."""
        return any(map(os.path.lexists, _report_paths(self._reports / name)))

    def has_original(self, name: Path) -> bool:
        """Whether the folder for failed originals holds this one, or at least its report."""
        kept = self._folder and _kept_at(self._folder, name)
        return kept is not None and any(map(os.path.lexists, (kept, *_report_paths(kept))))

    def forget(self, name: Path) -> None:
        """Remove the report on a file that is done now. A report beside a failed original stays.

        Raises:
            OutputError: it cannot be removed.
        """
        base, kept = self._reports, self._reports / name
        if self._folder is not None:
            base, kept = self._folder, _kept_at(self._folder, name)
            if os.path.lexists(kept):
                return
        with os_errors(kept, "its error report cannot be removed"):
            _remove_reports(kept, base)

    def put_back(self) -> int:
        """Move every original that has a report back into the inbox, and return their number.

        An original stays if its name there is taken by another file, or leads out of the inbox.

        Raises:
            InputError: one was changed during its move.
            OutputError: one cannot be moved.
        """
        if self._folder is None:
            return 0
        with os_errors(self._folder, "cannot be listed"):
            originals = [path for path in files_below(self._folder) if not path.name.endswith(REPORT_SUFFIX)]
        return sum(self._put_back(path, self._folder) for path in originals)

    def _put_back(self, kept: Path, folder: Path) -> bool:
        with os_errors(kept, f"cannot be moved back to {self._inbox}"):
            target = self._place_of(kept)
            known = None if target is None or kept.is_symlink() else stat_regular(kept)
            if target is None or known is None:
                return False
            try:
                with contextlib.suppress(FileNotFoundError):
                    target.lstat()  # fails for a path that is too long, before folders are created for it
                make_folders(target.parent, 0o777)
                move_to(kept, known, target)
            except OSError as error:
                if error.errno in _NO_PLACE:
                    return False
                raise
            _remove_reports(kept, folder)
            return True

    def _place_of(self, kept: Path) -> Path | None:
        """Return the former path of an original in the inbox, None without a valid report."""
        name = next((_name_in(report) for report in map(_read_report, _report_paths(kept)) if report), None)
        if name is None:
            return None
        try:
            parent = (self._inbox / name).parent.resolve()
        except (OSError, RuntimeError):  # RuntimeError: circular links
            return None
        return self._inbox / name if parent.is_relative_to(self._inbox.resolve()) else None


def _record(name: Path, outcome: Outcome, stamp: FileStamp) -> dict[str, Any]:
    """Return the content of a report. A name that is not valid text is escaped, and also given in bytes."""
    record = {
        "name": _text(str(name)),
        "error": outcome.error, "reason": _text(outcome.reason), "exit_code": outcome.exit_code,
        "time": datetime.now(UTC).isoformat(timespec="seconds"), "size": stamp.size, "mtime_ns": stamp.mtime_ns,
        "version": __version__,
    }  # fmt: skip
    return record if record["name"] == str(name) else record | {"name_bytes": os.fsencode(name).hex()}


def _text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _name_in(record: dict[str, Any]) -> Path | None:
    """Return the name in a report, None if it cannot be that of an original below the inbox."""
    try:
        digits = record.get("name_bytes")
        raw = os.fsencode(record["name"]) if digits is None else bytes.fromhex(digits)
        name = Path(os.fsdecode(raw))
    except (TypeError, ValueError):
        return None
    return name if b"\0" not in raw and _stays_below(name) else None


def _stays_below(name: Path) -> bool:
    """Whether a relative name cannot lead out of its folder, apart from links."""
    return bool(name.parts) and not name.is_absolute() and ".." not in name.parts


def _kept_at(folder: Path, name: Path) -> Path:
    """Return the path of a failed original. It never ends like that of a report."""
    ends_like_report = name.name.lower().endswith(REPORT_SUFFIX)
    return folder / (name.with_name(fit_name(name.name, ".original")) if ends_like_report else name)


def _report_paths(kept: Path) -> list[Path]:
    """Return the possible paths of a report, best first. The last one is never too long."""
    names = kept.name + REPORT_SUFFIX, digest_bytes(os.fsencode(kept.name)) + REPORT_SUFFIX
    return [kept.with_name(name) for name in names if len(os.fsencode(name)) <= MAX_NAME_BYTES]


def _move_with_report(source: Path, target: Path, stamp: FileStamp, record: dict[str, Any]) -> None:
    """Write a report, then move the original beside it, if it is still the version that failed."""
    place = None
    with os_errors(source, f"cannot be moved to {target}"), contextlib.suppress(InputError):  # it is a link now
        place = destination_for(source, target, stamp)
    if place is None:
        return
    _write_report(place, record)
    moved = None
    try:
        with contextlib.suppress(InputError):  # it has just changed, and will be processed again
            moved = move(source, place, stamp)
    finally:
        if not os.path.lexists(place):
            with os_errors(place, "its error report cannot be removed"):
                _remove_reports(place, place.parent)
    if moved is not None and moved != place:
        _write_report(moved, record)


def _write_report(kept: Path, record: dict[str, Any]) -> None:
    """Write a report in one step. Only an earlier report on the same file is replaced."""
    with os_errors(kept, "its error report cannot be written"):
        make_folders(kept.parent)
        paths = _report_paths(kept)
        path = next((each for each in paths if not os.path.lexists(each) or _read_report(each) is not None), None)
        if path is None:
            raise OutputError(f"{kept}: no free name for its error report; remove {paths[-1]}")
        with atomic_file(path) as file:
            file.write(json.dumps(record, ensure_ascii=False, indent=1).encode() + b"\n")


def _read_report(path: Path) -> dict[str, Any] | None:
    """Return the content of an error report, None if the file is something else."""
    try:
        record = json.loads(path.read_bytes()) if path.is_file() and not path.is_symlink() else None
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and record.keys() >= REPORT_KEYS else None


def _remove_reports(kept: Path, base: Path) -> None:
    """Remove the reports on a file, and the empty folders above it up to ``base``, which stays."""
    for path in _report_paths(kept):
        if _read_report(path) is not None:
            path.unlink(missing_ok=True)
    folder = kept.parent
    with contextlib.suppress(OSError):
        while folder != base:
            folder.rmdir()
            folder = folder.parent
