"""What has been done to which file, so that it is done once: a small interface over SQLite.

The journal of an output folder lies in ``FOLDER/.blurguard/journal.sqlite``. A row is written before a result
gets its name (state ``publishing``, with the result's hash) and again after it (``done``): whatever moment a
process dies at, the next one can tell its own results from anybody else's file. A drop folder also tells there
what waits and what is being worked on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from blurguard.errors import OutputError, StorageError
from blurguard.files.atomic import STATE_FOLDER, digest_file
from blurguard.files.errors import output_errors
from blurguard.files.stamp import FileStamp

FILE_NAME = "journal.sqlite"
IN_PLACE_NAME = "in-place.sqlite"  # of a folder that holds originals as well, and is no output folder
LOCK_NAME = "journal.lock"
SCHEMA_VERSION = 2
SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    name BLOB PRIMARY KEY,
    state TEXT NOT NULL,
    source_size INTEGER NOT NULL, source_mtime INTEGER NOT NULL, source_ctime INTEGER NOT NULL,
    source_digest TEXT NOT NULL,
    recipe TEXT NOT NULL,
    output_size INTEGER NOT NULL, output_mtime INTEGER NOT NULL, output_digest TEXT NOT NULL,
    replaced_digest TEXT NOT NULL,
    error TEXT NOT NULL,
    root TEXT NOT NULL,
    changed REAL NOT NULL DEFAULT 0
) WITHOUT ROWID
"""
_LOCK_ATTEMPTS, _PAUSE_SECONDS = 100, 0.01  # for those who only look whether a folder is in use to be gone
MAX_IN_PROGRESS = 20  # files of ``JournalStats``
FROM_VERSION_1 = "ALTER TABLE files ADD COLUMN changed REAL NOT NULL DEFAULT 0"
INDEX = "CREATE INDEX IF NOT EXISTS files_by_state ON files (state, changed)"


class FileState(StrEnum):
    """How far a file has come. Drop folders have the first two as well, with or without an earlier result."""

    QUEUED = "queued"
    WORKING = "working"
    PUBLISHING = "publishing"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One source file: what it was, what it was made into, and how.

    Attributes:
        state: see ``FileState``.
        source: stamp of the source when it was read.
        source_digest: BLAKE2b of the content that was read.
        recipe: digest of settings and model.
        output_size: of our result, bytes.
        output_mtime_ns: of our result.
        output_digest: BLAKE2b of our result, "" when there is none.
        replaced_digest: that of our earlier result, while a new one may not have got its name yet.
        error: message of the failure.
        root: digest of the name of the input folder.
        changed: when this was recorded, seconds since 1970, 0 when that is not known.
    """

    state: FileState
    source: FileStamp = FileStamp()
    source_digest: str = ""
    config_digest: str = ""
    output_size: int = -1
    output_mtime_ns: int = -1
    output_digest: str = ""
    replaced_digest: str = ""
    error: str = ""
    root: str = ""
    changed: float = field(default=0.0, compare=False)

    def result_at(self, target: Path) -> str:
        """Return the digest of the result of ours that lies at ``target`` as we left it, "" if none does.

        Until a new result has got its name, that is the one before: ours, but not what this entry tells of.
        """
        stamp = FileStamp.of(target)
        if (stamp.size, stamp.mtime_ns) == (self.output_size, self.output_mtime_ns):
            return self.output_digest
        digest = digest_file(target)
        return digest if digest in {self.output_digest, self.replaced_digest} else ""

    def made(self, target: Path) -> bool:
        """Whether the file at ``target`` is a result of ours, as we left it."""
        return bool(self.output_digest) and bool(self.result_at(target))

    def is_unchanged(self, source: Path) -> bool:
        """Whether ``source`` still is what was read; reads it only when its times have changed and its size has not."""
        stamp = FileStamp.of(source)
        return stamp == self.source or (stamp.size == self.source.size and digest_file(source) == self.source_digest)


@dataclass(frozen=True, slots=True)
class JournalStats:
    """What a journal tells in numbers.

    Attributes:
        counts: files by state.
        done_lately: files done since the time that was asked for.
        error: message of the last failure that still stands, "" for none.
        failed_at: when that was, seconds since 1970.
        at_work: what is being worked on or published and since when, longest first, at most ``MAX_IN_PROGRESS``.
    """

    counts: dict[FileState, int]
    done_recently: int
    error: str
    failed_at: float
    in_progress: tuple[tuple[Path, float], ...] = ()


class Journal:
    """The record of one output folder; one process at a time. Use ``open_journal``."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Take an open connection to a database with our schema."""
        self._db = connection

    def get(self, name: Path) -> FileRecord | None:
        """Return what is known of the source file of that name, relative to the input folder."""
        row = self._db.execute("SELECT * FROM files WHERE name = ?", (os.fsencode(name),)).fetchone()
        return None if row is None else _entry(row)

    def put(self, name: Path, entry: FileRecord) -> None:
        """Record it durably before anything else happens, with the present time.

        Raises:
            OutputError: the disk is full, or the like.
        """
        self._write(name, entry, time.time())

    def _write(self, name: Path, entry: FileRecord, changed: float) -> None:
        stamp = entry.source
        values = (
            os.fsencode(name), entry.state, stamp.size, stamp.mtime_ns, stamp.ctime_ns, entry.source_digest,
            entry.config_digest, entry.output_size, entry.output_mtime_ns, entry.output_digest, entry.replaced_digest,
            entry.error, entry.root, changed,
        )  # fmt: skip
        with _record_errors(name):
            self._db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def fail(self, name: Path, message: str, source: FileStamp | None = None) -> None:
        """Record a failure, and of which file if that is known; what is known of an earlier result stays known.

        That result is of another version than ``source``: without a recipe nobody takes it for this one's.
        """
        entry = self.get(name) or FileRecord(FileState.FAILED)
        if source is not None:
            entry = replace(entry, source=source, source_digest="", config_digest="")
        told = message.encode("utf-8", "backslashreplace").decode()  # names may be no text, which SQLite refuses
        self.put(name, replace(entry, state=FileState.FAILED, error=told))

    def mark(self, names: Iterable[Path], state: FileState) -> None:
        """Set the state of files, whether known or not, and nothing else.

        Losing this in a power cut does no harm, so nobody waits until it is on disk.

        Raises:
            OutputError: the disk is full, or the like.
        """
        with _record_errors(Path(state)), self._without_fsync():
            for name in names:
                self.put(name, replace(self.get(name) or FileRecord(state), state=state))

    def forget(self, name: Path) -> None:
        """Take back that a file waits or has failed: it is gone. What is known of an earlier result stays known."""
        entry = self.get(name)
        if entry is None or entry.state in (FileState.PUBLISHING, FileState.DONE):
            return
        if entry.output_digest:  # of another version, whose times are not known any more; nor is it done just now
            self._write(name, replace(entry, state=FileState.DONE, source=FileStamp(), error=""), 0.0)
            return
        with _record_errors(name):
            self._db.execute("DELETE FROM files WHERE name = ?", (os.fsencode(name),))

    def all_in(self, *states: FileState) -> list[tuple[Path, FileRecord]]:
        """Return the files in these states, by name."""
        marks = ", ".join("?" * len(states))
        rows = self._db.execute(f"SELECT * FROM files WHERE state IN ({marks}) ORDER BY name", states)  # noqa: S608 - only question marks
        return [(Path(os.fsdecode(row[0])), _entry(row)) for row in rows]

    @contextlib.contextmanager
    def _without_fsync(self) -> Iterator[None]:
        """Do all or nothing, and do not wait for the disk."""
        self._db.execute("PRAGMA synchronous = NORMAL")
        try:
            with self._db:
                self._db.execute("BEGIN")
                yield
        finally:
            self._db.execute("PRAGMA synchronous = FULL")


def _entry(row: tuple[Any, ...]) -> FileRecord:
    _, state, size, mtime, ctime, *rest = row
    return FileRecord(FileState(state), FileStamp(size, mtime, ctime), *rest)


def read_stats(folder: Path, since: float) -> JournalStats | None:
    """Return what the journal of an output folder tells in numbers, None where there is none; writes nothing.

    Args:
        folder: the output folder.
        since: files done after this time, seconds since 1970, count as ``done_recently``.

    Raises:
        OutputError: it cannot be read.
    """
    path = folder / STATE_FOLDER / FILE_NAME
    with _reading(path) as database:
        version = 0 if database is None else database.execute("PRAGMA user_version").fetchone()[0]
        if database is None or version == 0:  # just being made
            return None
        if version != SCHEMA_VERSION:
            raise OutputError(f"{path}: written by another version of blurguard (schema {version})")
        counts = database.execute("SELECT state, COUNT(*) FROM files GROUP BY state").fetchall()
        lately = "SELECT COUNT(*) FROM files WHERE state = ? AND changed > ?"
        done = database.execute(lately, (FileState.DONE, since)).fetchone()[0]
        last = "SELECT error, changed FROM files WHERE state = ? ORDER BY changed DESC LIMIT 1"
        message, failed_at = database.execute(last, (FileState.FAILED,)).fetchone() or ("", 0.0)
        busy = "SELECT name, changed FROM files WHERE state IN (?, ?) ORDER BY changed, name LIMIT ?"
        rows = database.execute(busy, (FileState.WORKING, FileState.PUBLISHING, MAX_IN_PROGRESS)).fetchall()
    at_work = tuple((Path(os.fsdecode(name)), changed) for name, changed in rows)
    return JournalStats({FileState(state): count for state, count in counts}, done, message, failed_at, at_work)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection | None]:
    """Open a database, as it is at one moment, so that nothing is written; None where there is none."""
    try:
        path.stat()
        # SQLite's readers make the write-ahead log where it is absent, and leave it; without a log nobody writes.
        mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "mode=ro&immutable=1"
    except (FileNotFoundError, NotADirectoryError):
        yield None
        return
    except OSError as error:
        raise OutputError(f"{path}: the record of this folder cannot be read: {error.strerror}") from error
    try:
        uri = f"{path.absolute().as_uri()}?{mode}"
        with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as database:
            database.execute("BEGIN")
            yield database
    except sqlite3.Error as error:
        raise OutputError(f"{path}: the record of this folder cannot be read: {error}") from error


def recorded_results(folder: Path) -> dict[bytes, tuple[int, int]]:
    """Return the results that an output folder's journal tells of: name below the folder -> (size, mtime in ns).

    A journal that is not there, or cannot be read, tells of nothing: what lies there is then the user's.
    """
    path = folder / STATE_FOLDER / FILE_NAME
    if not os.access(path, os.R_OK):
        return {}
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            rows = connection.execute("SELECT name, output_size, output_mtime FROM files").fetchall()
    except sqlite3.Error:
        return {}
    return {bytes(name): (size, mtime) for name, size, mtime in rows}


@contextlib.contextmanager
def open_journal(folder: Path, name: str = FILE_NAME) -> Iterator[Journal]:
    """Open the journal of an output folder, making it if need be; ``name`` is ``IN_PLACE_NAME`` for another kind.

    Raises:
        OutputError: not writable, damaged, or another process works in the same folder.
    """
    state = folder / STATE_FOLDER
    path = state / name
    with output_errors(state):
        folder.mkdir(parents=True, exist_ok=True)
        state.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(state / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # sqlite would ask the umask
    with contextlib.closing(_Lock(lock, folder)):
        try:
            with contextlib.closing(_connect(path)) as connection:
                yield Journal(connection)
        except sqlite3.Error as error:
            raise OutputError(
                f"{path}: the record of this folder cannot be used: {error}; remove it to start afresh"
            ) from error


@contextlib.contextmanager
def _record_errors(name: Path) -> Iterator[None]:
    """Turn SQLite's errors into ``StorageError``."""
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(f"{name}: what was done cannot be recorded: {error}") from error


class _Lock:
    """Holds a lock file's lock until closed."""

    def __init__(self, handle: int, folder: Path) -> None:
        self._handle = handle
        try:
            _lock(handle)
        except BlockingIOError as error:
            os.close(handle)
            raise OutputError(f"{folder}: another blurguard is working in this folder; wait for it") from error
        except OSError as error:
            os.close(handle)
            raise OutputError(
                f"{folder}: cannot be locked: {error.strerror}; choose an output folder on another file system"
            ) from error

    def close(self) -> None:
        os.close(self._handle)


def _lock(handle: int) -> None:
    """Take the lock for good, at once or not at all; who only looks (``health.is_in_use``) is waited for.

    Such a one lets others share the lock, an owner does not: so the two are told apart.
    """
    exclusive, shared = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_SH | fcntl.LOCK_NB
    for _ in range(_LOCK_ATTEMPTS):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, exclusive)
            return
        fcntl.flock(handle, shared)
        fcntl.flock(handle, fcntl.LOCK_UN)
        time.sleep(_PAUSE_SECONDS)
    fcntl.flock(handle, exclusive)


def _connect(path: Path) -> sqlite3.Connection:
    """Open the database in write-ahead mode with every commit on disk."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, 1, SCHEMA_VERSION):
        connection.close()
        raise OutputError(f"{path}: written by another version of blurguard (schema {version})")
    with connection:
        connection.execute("BEGIN")
        # Version 1 gave a new file its table and its number in two steps: killed in between, it left 0.
        old = (
            version < SCHEMA_VERSION
            and connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table'").fetchone()
        )
        connection.execute(FROM_VERSION_1 if old else SCHEMA)
        connection.execute(INDEX)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    return connection
