"""Records the state of every source file in an output folder's journal, an SQLite database.

The journal is ``FOLDER/.blurguard/journal.sqlite``. A row is written before a result gets its name (state
``publishing``, with the result's hash) and again after it (``done``). Whenever a process dies, the next one can
distinguish its own results from other files. A drop folder also records there which files wait or are in work.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path

from blurguard.errors import OutputError, StorageError
from blurguard.files.atomic import STATE_FOLDER, digest_file
from blurguard.files.errors import os_errors
from blurguard.files.locks import try_lock_past_probes
from blurguard.files.stamp import FileStamp

FILE_NAME, LOCK_NAME = "journal.sqlite", "journal.lock"
IN_PLACE_NAME = "in-place.sqlite"  # of a folder whose originals are replaced, so that it is not an output folder
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
FROM_VERSION_1 = "ALTER TABLE files ADD COLUMN changed REAL NOT NULL DEFAULT 0"
INDEX = "CREATE INDEX IF NOT EXISTS files_by_state ON files (state, changed)"


class FileState(StrEnum):
    """Progress of a file. Only drop folders have the first two, with or without an earlier result."""

    QUEUED = "queued"
    WORKING = "working"
    PUBLISHING = "publishing"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One source file and its result.

    Attributes:
        state: see ``FileState``.
        source: stamp of the source when it was read.
        source_digest: BLAKE2b of the content that was read.
        config_digest: digest of settings and model.
        output_size: of the result, bytes.
        output_mtime_ns: of the result.
        output_digest: BLAKE2b of the result, "" without one.
        replaced_digest: of the earlier result, as long as the new one may not have its name yet.
        error: message of the failure.
        root: digest of the name of the input folder.
        changed: time of this record, seconds since 1970, 0 if unknown.
    """

    state: FileState
    source: FileStamp = field(default_factory=FileStamp)
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
        """Return the digest of the file at ``target`` if it is an unchanged result of this source, "" otherwise.

        Until a new result has its name, that is the digest of the earlier one, which this record does not describe.

        Raises:
            OSError: the file cannot be read.
        """
        if not target.is_file():
            return ""
        stamp = FileStamp.of(target)
        if (stamp.size, stamp.mtime_ns) == (self.output_size, self.output_mtime_ns):
            return self.output_digest
        digest = digest_file(target)
        return digest if digest in {self.output_digest, self.replaced_digest} else ""

    def is_unchanged(self, source: Path) -> bool:
        """Whether ``source`` is still the file that was read. It is read again only if just its times differ."""
        stamp = FileStamp.of(source)
        return stamp == self.source or (stamp.size == self.source.size and digest_file(source) == self.source_digest)


# The schema is older than the names of these fields. ``source`` has three columns.
_COLUMNS = {"config_digest": "recipe", "output_mtime_ns": "output_mtime"}
_FIELD_BY_COLUMN = {_COLUMNS.get(one.name, one.name): one.name for one in fields(FileRecord) if one.name != "source"}


class Journal:
    """The record of one output folder, used by one process at a time. See ``open_journal``."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Use an open connection to a database with ``SCHEMA``."""
        connection.row_factory = sqlite3.Row
        self._db = connection

    def get(self, name: Path) -> FileRecord | None:
        """Return the record of a source file, by its name relative to the input folder."""
        row = self._db.execute("SELECT * FROM files WHERE name = ?", (os.fsencode(name),)).fetchone()
        return None if row is None else _from_row(row)

    def put(self, name: Path, record: FileRecord) -> None:
        """Write a record with the present time, and return once it is on disk.

        Raises:
            StorageError: it cannot be written.
        """
        self._write(name, replace(record, changed=time.time()))

    def _write(self, name: Path, record: FileRecord) -> None:
        source = record.source
        row = {column: getattr(record, field_name) for column, field_name in _FIELD_BY_COLUMN.items()}
        row |= {"source_size": source.size, "source_mtime": source.mtime_ns, "source_ctime": source.ctime_ns}
        row |= {"name": os.fsencode(name)}
        put = f"INSERT OR REPLACE INTO files ({', '.join(row)}) VALUES (:{', :'.join(row)})"  # noqa: S608 - our columns
        with _record_errors(name):
            self._db.execute(put, row)

    def fail(self, name: Path, message: str, source: FileStamp | None = None) -> None:
        """Record a failure, and the stamp of the file that failed if it is known. An earlier result stays recorded.

        That result is of another version than ``source``. Without a config digest it is never up to date.

        Raises:
            StorageError: it cannot be written.
        """
        record = self.get(name) or FileRecord(FileState.FAILED)
        if source is not None:
            record = replace(record, source=source, source_digest="", config_digest="")
        text = message.encode("utf-8", "backslashreplace").decode()  # SQLite refuses names that are not text
        self.put(name, replace(record, state=FileState.FAILED, error=text))

    def mark(self, names: Iterable[Path], state: FileState) -> None:
        """Set only the state of files, known or not, all or none, in one transaction.

        Does not wait for the disk. Losing this in a power cut does no harm.

        Raises:
            StorageError: it cannot be written.
        """
        with _record_errors(Path(state)):
            self._db.execute("PRAGMA synchronous = NORMAL")
            try:
                with self._db:
                    self._db.execute("BEGIN")
                    for name in names:
                        self.put(name, replace(self.get(name) or FileRecord(state), state=state))
            finally:
                self._db.execute("PRAGMA synchronous = FULL")

    def forget(self, name: Path) -> None:
        """Forget that a file waits or has failed, because it is gone. An earlier result stays recorded.

        Raises:
            StorageError: it cannot be written.
        """
        record = self.get(name)
        if record is None or record.state in (FileState.PUBLISHING, FileState.DONE):
            return
        if record.output_digest:  # of another version, whose stamp and time are not known any more
            self._write(name, replace(record, state=FileState.DONE, source=FileStamp(), error="", changed=0.0))
            return
        with _record_errors(name):
            self._db.execute("DELETE FROM files WHERE name = ?", (os.fsencode(name),))

    def all_in(self, *states: FileState) -> list[tuple[Path, FileRecord]]:
        """Return the files in these states, by name."""
        marks = ", ".join("?" * len(states))
        rows = self._db.execute(f"SELECT * FROM files WHERE state IN ({marks}) ORDER BY name", states)  # noqa: S608 - only question marks
        return [(Path(os.fsdecode(row["name"])), _from_row(row)) for row in rows]


def _from_row(row: sqlite3.Row) -> FileRecord:
    values = {name: row[column] for column, name in _FIELD_BY_COLUMN.items()}
    source = FileStamp(row["source_size"], row["source_mtime"], row["source_ctime"])
    return FileRecord(**values | {"state": FileState(row["state"]), "source": source})


@contextlib.contextmanager
def open_journal(folder: Path, name: str = FILE_NAME) -> Iterator[Journal]:
    """Open the journal of an output folder, created if missing, and hold its lock.

    Args:
        folder: the output folder.
        name: ``IN_PLACE_NAME`` for a folder whose originals are replaced.

    Raises:
        OutputError: not writable, damaged, or in use by another process.
    """
    state = folder / STATE_FOLDER
    path = state / name
    with os_errors(state):
        folder.mkdir(parents=True, exist_ok=True)
        state.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(state / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with os_errors(folder, "cannot be locked", OutputError, "choose an output folder on another file system"):
            if not try_lock_past_probes(lock):
                raise OutputError(f"{folder}: another blurguard is working in this folder; wait for it")
        with os_errors(state):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite would apply the umask
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            _prepare(connection, path)
            yield Journal(connection)
    except sqlite3.Error as error:
        problem = "the record of this folder cannot be used"
        raise OutputError(f"{path}: {problem}: {error}; remove it to start afresh") from error
    finally:
        os.close(lock)


@contextlib.contextmanager
def _record_errors(name: Path) -> Iterator[None]:
    """Turn SQLite's errors into ``StorageError``."""
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(f"{name}: its progress cannot be recorded: {error}") from error


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Set a database to write-ahead mode with every commit on disk, and bring its schema up to date."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    version = schema_version(connection, path, (0, 1, SCHEMA_VERSION))
    with connection:
        connection.execute("BEGIN")
        tables = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table'").fetchall()
        # Version 1 gave a new file its table and its number in two steps: killed in between, it left 0.
        connection.execute(FROM_VERSION_1 if tables and version < SCHEMA_VERSION else SCHEMA)
        connection.execute(INDEX)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def schema_version(database: sqlite3.Connection, path: Path, readable: tuple[int, ...]) -> int:
    """Return the version of a journal's schema.

    Raises:
        OutputError: it is not among ``readable``.
    """
    version: int = database.execute("PRAGMA user_version").fetchone()[0]
    if version not in readable:
        raise OutputError(f"{path}: written by another version of blurguard (schema {version}); use that one")
    return version
