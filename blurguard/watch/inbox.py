"""What lies in a drop folder's inbox, and what happens there: walking it, and watchdog's events."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from watchdog import events as happened
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver
from watchdog.observers.polling import PollingObserverVFS

from blurguard.files.stamp import FileStamp, stamp_at
from blurguard.files.walk import walk

# What browsers, rsync, WinSCP and the like append to a name until a file is complete.
UNFINISHED_SUFFIXES = frozenset(
    {".crdownload", ".download", ".filepart", ".opdownload", ".part", ".partial", ".temp", ".tmp", ".upload"}
)
POLL_SECONDS = 1.0  # between two looks of watchdog's polling observer
# Ours are opening and closing after reading, which are of no interest and would wake us up each time.
_OF_INTEREST: list[type[FileSystemEvent]] = [
    happened.FileCreatedEvent,
    happened.FileModifiedEvent,
    happened.FileMovedEvent,
    happened.FileClosedEvent,
    happened.FileDeletedEvent,
    happened.DirCreatedEvent,
    happened.DirMovedEvent,
    happened.DirDeletedEvent,
    *([happened.FileAttribEvent] if hasattr(happened, "FileAttribEvent") else []),  # since watchdog 7
]


class ChangeType(StrEnum):
    """What has happened to a file or folder."""

    CHANGED = "changed"
    COMPLETE = "complete"  # closed after writing, or renamed into its place
    GONE = "gone"
    FOLDER = "folder"  # a new one, which may have been filled before anybody watched it


OnChange = Callable[[ChangeType, Path], None]


def has_final_name(name: Path) -> bool:
    """Whether a name relative to the inbox is one that a complete file may have; hidden ones are not ours."""
    return not any(
        part.startswith((".", "~")) or part.endswith("~") or Path(part).suffix.lower() in UNFINISHED_SUFFIXES
        for part in name.parts
    )


def files_below(folder: Path) -> Iterator[tuple[Path, FileStamp | None]]:
    """Yield every regular file with a final name, and its stamp. Links are not followed.

    A folder that cannot be listed is yielded as well, with None.
    """
    for path, error in walk(folder, lambda subfolder: has_final_name(Path(subfolder.name))):
        if error is not None:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # it is gone, or not a folder now
                yield path, None
        elif has_final_name(Path(path.name)) and (stamp := stamp_at(path, path.parent)) is not None:
            yield path, stamp


class DirectoryScanner:
    """A look at folders, one after the other and a few files at a time."""

    def __init__(self) -> None:
        """Begin with nothing to look at."""
        self._folders: dict[Path, None] = {}
        self._found: Iterator[tuple[Path, FileStamp | None]] = iter(())

    def add(self, folder: Path) -> None:
        """Have a folder looked at; once, however often it is asked for until then."""
        self._folders[folder] = None

    def next(self) -> tuple[Path, FileStamp | None] | None:
        """Return the next file as ``files_below`` tells it, None when there is nothing more to look at."""
        while (found := next(self._found, None)) is None and self._folders:
            folder = next(iter(self._folders))
            del self._folders[folder]
            self._found = files_below(folder)
        return found


def is_being_written(path: Path) -> bool | None:
    """Whether some process has a file open for writing; None where the system does not tell.

    Linux gives a read lease only on files that nobody has open for writing. The caller ignores SIGIO, with which
    the system tells of a writer that comes while we have the lease.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None  # of another user's files it does not tell
    finally:
        os.close(handle)
    return False


@dataclass(slots=True)
class InboxObserver:
    """Tells what happens below a folder, from a thread of its own, until stopped."""

    folder: Path
    on_change: OnChange
    poll: bool = False
    _observer: BaseObserver | None = None

    def start(self) -> str:
        """Begin; return "" or why there are no events, on a system that has run out of watches, say."""
        observer: BaseObserver | None = None
        try:
            observer = _polling_observer() if self.poll else _native_observer()
            ear = _EventAdapter(self.on_change, ChangeType.CHANGED if self.poll else ChangeType.COMPLETE)
            observer.schedule(ear, os.fspath(self.folder), recursive=True, event_filter=_OF_INTEREST)
            observer.start()
        except (OSError, RecursionError) as error:  # RecursionError: folders nested deeper than watchdog can walk
            if observer is not None:
                observer.stop()
            return f"{self.folder}: cannot be watched: {getattr(error, 'strerror', None) or error}"
        self._observer = observer
        return ""

    @property
    def started(self) -> bool:
        """Whether there were events to be heard of."""
        return self._observer is not None

    @property
    def alive(self) -> bool:
        """Whether all threads that hear of events are still there."""
        threads = [
            self._observer,
            getattr(self._observer, "_inotify_fd", None),
            *getattr(self._observer, "emitters", ()),
        ]
        return self._observer is not None and all(thread.is_alive() for thread in threads if thread is not None)

    def stop(self) -> None:
        """End, and wait for the thread."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None


def _polling_observer() -> BaseObserver:
    # watchdog's usual one follows links, out of the inbox and in circles.
    return PollingObserverVFS(os.lstat, os.scandir, polling_interval=POLL_SECONDS)


def _native_observer() -> BaseObserver:
    try:
        # Linux: tells a rename from outside from a new, empty file. What others there are do not know the word.
        return Observer(generate_full_events=True)  # type: ignore[call-arg]
    except TypeError:
        return Observer()


class _EventAdapter(FileSystemEventHandler):
    """Turns watchdog's events into signs.

    Polling takes a new file that got the inode of one just deleted for a renamed one, so a rename it tells of
    is no more than a change.
    """

    def __init__(self, tell: OnChange, renamed: ChangeType) -> None:
        self._tell, self._renamed = tell, renamed

    def dispatch(self, event: FileSystemEvent) -> None:
        """Tell of one event."""
        source, target = (Path(os.fsdecode(name)) if name else None for name in (event.src_path, event.dest_path))
        if event.event_type == happened.EVENT_TYPE_MOVED:
            if source:
                self._tell(ChangeType.GONE, source)
            if target:
                self._tell(ChangeType.FOLDER if event.is_directory else self._renamed, target)
        elif source is not None:
            self._tell(_change_type(event), source)


def _change_type(event: FileSystemEvent) -> ChangeType:
    if event.event_type == happened.EVENT_TYPE_DELETED:
        return ChangeType.GONE
    if event.is_directory:
        return ChangeType.FOLDER
    return ChangeType.COMPLETE if event.event_type == happened.EVENT_TYPE_CLOSED else ChangeType.CHANGED
