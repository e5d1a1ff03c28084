"""Reads the journals of output folders without locking or changing them."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from blurguard.batch.journal import FILE_NAME, SCHEMA_VERSION, FileState, schema_version
from blurguard.errors import OutputError
from blurguard.files.atomic import STATE_FOLDER
from blurguard.files.errors import os_errors

MAX_IN_PROGRESS = 20  # files of ``JournalStats``
_PROBLEM = "the record of this folder cannot be read"


class JournalStats(NamedTuple):
    """Figures of a journal.

    Attributes:
        counts: files by state.
        done_recently: files done since a given time.
        error: message of the last failure that still stands, "" for none.
        failed_at: time of that failure, seconds since 1970.
        in_progress: files in work or being published and since when, longest first, at most ``MAX_IN_PROGRESS``.
    """

    counts: dict[FileState, int]
    done_recently: int
    error: str
    failed_at: float
    in_progress: tuple[tuple[Path, float], ...] = ()


def read_stats(folder: Path, since: float) -> JournalStats | None:
    """Return figures of an output folder's journal, None without one. Writes nothing.

    Args:
        folder: the output folder.
        since: files done after this time, seconds since 1970, count as ``done_recently``.

    Raises:
        OutputError: it cannot be read.
    """
    path = folder / STATE_FOLDER / FILE_NAME
    with _reading(path) as database:
        if not schema_version(database, path, (0, SCHEMA_VERSION)):  # 0: it does not exist, or is being created
            return None
        counts = database.execute("SELECT state, COUNT(*) FROM files GROUP BY state").fetchall()
        recent = "SELECT COUNT(*) FROM files WHERE state = ? AND changed > ?"
        done = database.execute(recent, (FileState.DONE, since)).fetchone()[0]
        last = "SELECT error, changed FROM files WHERE state = ? ORDER BY changed DESC LIMIT 1"
        message, failed_at = database.execute(last, (FileState.FAILED,)).fetchone() or ("", 0.0)
        busy = "SELECT name, changed FROM files WHERE state IN (?, ?) ORDER BY changed, name LIMIT ?"
        rows = database.execute(busy, (FileState.WORKING, FileState.PUBLISHING, MAX_IN_PROGRESS)).fetchall()
    in_progress = tuple((Path(os.fsdecode(name)), changed) for name, changed in rows)
    return JournalStats({FileState(state): count for state, count in counts}, done, message, failed_at, in_progress)


def recorded_results(folder: Path) -> dict[bytes, tuple[int, int]]:
    """Return the results in an output folder's journal: name below the folder -> (size, mtime in ns).

    Without a readable journal there are none, and the files there count as the user's.
    """
    path = folder / STATE_FOLDER / FILE_NAME
    if os.path.lexists(path):  # most folders have no journal
        with contextlib.suppress(OutputError), _reading(path) as database:
            rows = database.execute("SELECT name, output_size, output_mtime FROM files").fetchall()
            return {bytes(name): (size, mtime) for name, size, mtime in rows}
    return {}


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database as of one moment, without writing anything. A missing one reads as one without tables."""
    with os_errors(path, _PROBLEM, OutputError, "allow reading it"):
        try:
            path.stat()
            # SQLite creates a missing write-ahead log even to read, and leaves it. Without a log no process writes.
            mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "mode=ro&immutable=1"
            uri = f"{path.absolute().as_uri()}?{mode}"
        except (FileNotFoundError, NotADirectoryError):
            uri = "file::memory:"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as database:
            database.execute("BEGIN")
            yield database
    except sqlite3.Error as error:
        raise OutputError(f"{path}: {_PROBLEM}: {error}") from error
