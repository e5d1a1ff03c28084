"""Scans an inbox for files, and observes changes in it with watchdog."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from watchdog import events
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver
from watchdog.observers.polling import PollingObserverVFS

from blurguard.files.locks import open_descriptor
from blurguard.files.stamp import FileStamp, stamp_at
from blurguard.files.walk import walk
from blurguard.watch.folders import dev_inode

# Browsers, rsync, WinSCP and similar tools append one of these to a name until the file is complete.
UNFINISHED_SUFFIXES = frozenset(
    {".crdownload", ".download", ".filepart", ".opdownload", ".part", ".partial", ".temp", ".tmp", ".upload"}
)
POLL_SECONDS = 1.0  # between two scans of watchdog's polling observer
# Opening a file, and closing it after reading, are left out: our own reads would wake the event loop each time.
_EVENT_FILTER: list[type[FileSystemEvent]] = [
    events.FileCreatedEvent, events.FileModifiedEvent, events.FileMovedEvent, events.FileClosedEvent,
    events.FileDeletedEvent, events.DirCreatedEvent, events.DirMovedEvent, events.DirDeletedEvent,
    *([events.FileAttribEvent] if hasattr(events, "FileAttribEvent") else []),  # since watchdog 7
]  # fmt: skip


class ChangeType(StrEnum):
    """A change of a file or folder."""

    CHANGED = "changed"
    COMPLETE = "complete"  # closed after writing, or renamed into place
    GONE = "gone"
    FOLDER = "folder"  # a new one. It may have been filled before it was watched


def has_final_name(name: Path) -> bool:
    """Whether a name relative to the inbox is neither hidden nor that of an unfinished file."""
    return not any(
        part.startswith((".", "~")) or part.endswith("~") or Path(part).suffix.lower() in UNFINISHED_SUFFIXES
        for part in name.parts
    )


def scan_folder(folder: Path) -> Iterator[tuple[Path, FileStamp | None]]:
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
    """Scans folders one after another, a few files at a time."""

    def __init__(self) -> None:
        """Create a scanner without folders."""
        self._folders: dict[Path, None] = {}
        self._files: Iterator[tuple[Path, FileStamp | None]] = iter(())

    def add(self, folder: Path) -> None:
        """Schedule a folder. One that is scheduled already is scanned once."""
        self._folders[folder] = None

    def next(self) -> tuple[Path, FileStamp | None] | None:
        """Return the next item of ``scan_folder``, None when all folders are scanned."""
        while (file := next(self._files, None)) is None and self._folders:
            folder = next(iter(self._folders))
            del self._folders[folder]
            self._files = scan_folder(folder)
        return file


def is_being_written(path: Path) -> bool | None:
    """Whether a process has a file open for writing, None if the system cannot say.

    Linux grants a read lease only on a file without writers. The caller must ignore SIGIO: the kernel sends it when
    a writer appears during the lease.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return None
    with contextlib.suppress(OSError), open_descriptor(path, os.O_NOFOLLOW | os.O_NONBLOCK) as handle:
        try:
            fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError as error:
            return True if error.errno == errno.EAGAIN else None  # no lease on files of another user
        return False
    return None


@dataclass(slots=True, eq=False)  # watchdog keeps event handlers in a set
class InboxObserver(FileSystemEventHandler):
    """Watches a folder and reports every change from a thread of its own, until ``stop``.

    Attributes:
        folder: to observe.
        on_change: called with every change, in that thread.
        poll: scan the folder regularly instead of using the system's events.
        identity: of the folder when watching last started, see ``dev_inode``.
    """

    folder: Path
    on_change: Callable[[ChangeType, Path], None]
    poll: bool = False
    identity: tuple[int, int] | None = None
    _observer: BaseObserver | None = None

    def start(self) -> str:
        """Start, and return "" or the reason why there are no events, such as a lack of inotify watches."""
        self.identity = dev_inode(self.folder)
        observer: BaseObserver | None = None
        try:
            observer = _new_observer(self.poll)
            observer.schedule(self, os.fspath(self.folder), recursive=True, event_filter=_EVENT_FILTER)
            observer.start()
        except (OSError, RecursionError) as error:  # RecursionError: watchdog walks nested folders recursively
            if observer is not None:
                observer.stop()
            return f"{self.folder}: cannot be watched: {getattr(error, 'strerror', None) or error}"
        self._observer = observer
        return ""

    def dispatch(self, event: FileSystemEvent) -> None:
        """Report one of watchdog's events. Called in the observer's thread.

        A polling observer takes a new file with the inode of a deleted one for a renamed file. There, a rename is
        only a change.
        """
        source, target = (Path(os.fsdecode(name)) if name else None for name in (event.src_path, event.dest_path))
        renamed = event.event_type == events.EVENT_TYPE_MOVED
        gone, changed = (source, target) if renamed or event.event_type == events.EVENT_TYPE_DELETED else (None, source)
        if gone:
            self.on_change(ChangeType.GONE, gone)
        if changed:
            complete = event.event_type == events.EVENT_TYPE_CLOSED or (renamed and not self.poll)
            file_change = ChangeType.COMPLETE if complete else ChangeType.CHANGED
            self.on_change(ChangeType.FOLDER if event.is_directory else file_change, changed)

    @property
    def died(self) -> bool:
        """Whether one of its threads has ended before ``stop``."""
        if self._observer is None:
            return False
        threads = [self._observer, getattr(self._observer, "_inotify_fd", None), *self._observer.emitters]
        return not all(thread.is_alive() for thread in threads if thread is not None)

    def stop(self) -> None:
        """Stop, and wait for the thread."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None


def _new_observer(poll: bool) -> BaseObserver:
    if poll:  # watchdog's default polling observer follows links, out of the inbox and in circles
        return PollingObserverVFS(os.lstat, os.scandir, polling_interval=POLL_SECONDS)
    try:
        # On Linux this distinguishes a rename from outside from a new, empty file. Other observers lack the option.
        return Observer(generate_full_events=True)  # type: ignore[call-arg]
    except TypeError:
        return Observer()
