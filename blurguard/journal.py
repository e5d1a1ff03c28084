"""What has been done to which file, so that it is done once: a small interface over SQLite.

The journal of an output folder lies in ``FOLDER/.blurguard/journal.sqlite``. A row is written before a result
gets its name (state ``publishing``, with the result's hash) and again after it (``done``): whatever moment a
process dies at, the next one can tell its own results from anybody else's file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from blurguard.errors import OutputError
from blurguard.output import STATE_FOLDER, digest_of_file, output_errors

FILE_NAME = "journal.sqlite"
IN_PLACE_NAME = "in-place.sqlite"  # of a folder that holds originals as well, and is no output folder
LOCK_NAME = "journal.lock"
SCHEMA_VERSION = 1
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
    root TEXT NOT NULL
) WITHOUT ROWID
"""


class State(StrEnum):
    """How far a file has come."""

    PUBLISHING = "publishing"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the file system tells of a file: enough to see that it has not changed without reading it."""

    size: int = -1
    mtime_ns: int = -1
    ctime_ns: int = -1

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Return the stamp of an existing file."""
        info = path.stat()
        return cls(info.st_size, info.st_mtime_ns, info.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class Entry:
    """One source file: what it was, what it was made into, and how.

    Attributes:
        state: see ``State``.
        source: stamp of the source when it was read.
        source_digest: BLAKE2b of the content that was read.
        recipe: digest of settings and model.
        output_size: of our result, bytes.
        output_mtime_ns: of our result.
        output_digest: BLAKE2b of our result, "" when there is none.
        replaced_digest: that of our earlier result, while a new one may not have got its name yet.
        error: message of the failure.
        root: digest of the name of the input folder.
    """

    state: State
    source: Stamp = Stamp()
    source_digest: str = ""
    recipe: str = ""
    output_size: int = -1
    output_mtime_ns: int = -1
    output_digest: str = ""
    replaced_digest: str = ""
    error: str = ""
    root: str = ""

    def result_at(self, target: Path) -> str:
        """Return the digest of the result of ours that lies at ``target`` as we left it, "" if none does.

        Until a new result has got its name, that is the one before: ours, but not what this entry tells of.
        """
        stamp = Stamp.of(target)
        if (stamp.size, stamp.mtime_ns) == (self.output_size, self.output_mtime_ns):
            return self.output_digest
        digest = digest_of_file(target)
        return digest if digest in {self.output_digest, self.replaced_digest} else ""

    def made(self, target: Path) -> bool:
        """Whether the file at ``target`` is a result of ours, as we left it."""
        return bool(self.output_digest) and bool(self.result_at(target))

    def came_from(self, source: Path) -> bool:
        """Whether ``source`` still is what was read; reads it only when its stamp has changed."""
        return Stamp.of(source) == self.source or digest_of_file(source) == self.source_digest


class Journal:
    """The record of one output folder; one process at a time. Use ``open_journal``."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Take an open connection to a database with our schema."""
        self._db = connection

    def get(self, name: Path) -> Entry | None:
        """Return what is known of the source file of that name, relative to the input folder."""
        row = self._db.execute("SELECT * FROM files WHERE name = ?", (os.fsencode(name),)).fetchone()
        if row is None:
            return None
        _, state, size, mtime, ctime, *rest = row
        return Entry(State(state), Stamp(size, mtime, ctime), *rest)

    def put(self, name: Path, entry: Entry) -> None:
        """Record it durably before anything else happens.

        Raises:
            OutputError: the disk is full, or the like.
        """
        stamp = entry.source
        values = (
            os.fsencode(name), entry.state, stamp.size, stamp.mtime_ns, stamp.ctime_ns, entry.source_digest,
            entry.recipe, entry.output_size, entry.output_mtime_ns, entry.output_digest, entry.replaced_digest,
            entry.error, entry.root,
        )  # fmt: skip
        with _record_errors(name):
            self._db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def fail(self, name: Path, message: str) -> None:
        """Record a failure; what is known of an earlier result stays known."""
        self.put(name, replace(self.get(name) or Entry(State.FAILED), state=State.FAILED, error=message))


def results_in(folder: Path) -> dict[bytes, tuple[int, int]]:
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
    """Turn SQLite's errors into ``OutputError``."""
    try:
        yield
    except sqlite3.Error as error:
        raise OutputError(f"{name}: what was done cannot be recorded: {error}") from error


class _Lock:
    """Holds a lock file's lock until closed."""

    def __init__(self, handle: int, folder: Path) -> None:
        self._handle = handle
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise OutputError(f"{folder}: another blurguard is working in this folder; wait for it") from error

    def close(self) -> None:
        os.close(self._handle)


def _connect(path: Path) -> sqlite3.Connection:
    """Open the database in write-ahead mode with every commit on disk."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, SCHEMA_VERSION):
        connection.close()
        raise OutputError(f"{path}: written by another version of blurguard (schema {version})")
    connection.execute(SCHEMA)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    return connection
