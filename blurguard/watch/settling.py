"""Decides which inbox files are complete and which one is next. Time and file probes are arguments.

A file settles while it changes. It is complete after some seconds without an event, if its size and times have not
changed since the last one. A file that its writer has closed, or renamed into place, is complete at once.
Complete files wait for a worker. A file may settle again while a worker has it: then it is processed again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from blurguard.files.stamp import FileStamp

MAX_FILES = 1000  # settling and queued. A later scan of the inbox finds the others
# A file that is still open does not settle in the usual time: its upload may stall. After this many settle times it
# does, because some writers never close. If the file changes afterwards, it is processed again.
MAX_WAIT_FACTOR = 60
MIN_SETTLE_SECONDS = 0.1  # shortest time between two probes of an open file


@dataclass(frozen=True, slots=True)
class FileProbe:
    """The state of a file: its stamp, and whether a process has it open for writing."""

    stamp: FileStamp
    being_written: bool = False


@dataclass(slots=True)
class _SettlingFile:
    """A file that may not be complete.

    Attributes:
        stamp: at its last event.
        since: time of its last event.
        probe_at: time of the next check.
    """

    stamp: FileStamp
    since: float
    probe_at: float


class SettlingQueue:
    """Inbox files on their way to a worker: each is settling, queued or assigned."""

    def __init__(self, settle: float, max_files: int = MAX_FILES) -> None:
        """Create an empty queue.

        Args:
            settle: seconds without an event after which a file is complete.
            max_files: that are settling or queued.
        """
        self._settle, self._max_files = settle, max_files
        self.overflowed = False  # whether a file was rejected since the event loop last cleared this
        self._settling: dict[Path, _SettlingFile] = {}
        self._queued: dict[Path, None] = {}
        self._assigned: set[Path] = set()
        self._next_probe = math.inf

    def settle_after(self, seconds: float) -> None:
        """Change the settle time, also of files that are settling already."""
        self._settle = seconds
        for file in self._settling.values():
            file.probe_at = min(file.probe_at, file.since + seconds)
        self._next_probe = -math.inf

    @property
    def full(self) -> bool:
        """Whether another file would be rejected."""
        return len(self._settling) + len(self._queued) >= self._max_files

    @property
    def settling(self) -> int:
        """Number of files that may not be complete."""
        return len(self._settling)

    @property
    def queued(self) -> int:
        """Number of complete files that wait for a worker."""
        return len(self._queued)

    def __contains__(self, path: Path) -> bool:
        """Whether a file is settling, queued or assigned."""
        return path in self._settling or path in self._queued or path in self._assigned

    def update(self, path: Path, stamp: FileStamp, now: float, *, complete: bool = False) -> None:
        """Let a file settle that is new or has changed; ``complete`` skips the settle time."""
        self._queued.pop(path, None)
        if self.full and path not in self._settling:
            self.overflowed = True
            return
        probe_at = now if complete else now + self._settle
        self._settling[path] = _SettlingFile(stamp, now, probe_at)
        self._next_probe = min(self._next_probe, probe_at)

    def remove(self, path: Path) -> None:
        """Remove a deleted file that may be settling or queued."""
        self._settling.pop(path, None)
        self._queued.pop(path, None)

    def pop_settled(self, now: float, probe: Callable[[Path], FileProbe | None]) -> list[Path]:
        """Remove and return the files that have become complete.

        Args:
            now: seconds on a monotonic clock. If it jumps, files settle for longer.
            probe: returns the state of a file, None if it is gone. It may call ``remove``.
        """
        complete: list[Path] = []
        if now < self._next_probe and all(now >= file.since for file in self._settling.values()):
            return complete
        for path, file in list(self._settling.items()):
            if now < file.since:
                file.since, file.probe_at = now, now + self._settle
            if now < file.probe_at or path in self._assigned:
                continue
            state = probe(path)
            if state is None:
                self._settling.pop(path, None)
            elif state.stamp != file.stamp:
                self._settling[path] = _SettlingFile(state.stamp, now, now + self._settle)
            elif state.being_written and now - file.since < MAX_WAIT_FACTOR * max(self._settle, MIN_SETTLE_SECONDS):
                file.probe_at = now + max(self._settle, MIN_SETTLE_SECONDS)
            else:
                del self._settling[path]
                complete.append(path)
        due = (file.probe_at for path, file in self._settling.items() if path not in self._assigned)
        self._next_probe = min(due, default=math.inf)
        return complete

    def enqueue(self, path: Path) -> None:
        """Queue a complete file for a worker."""
        self._queued[path] = None

    def assign(self, accepts: Callable[[Path], bool] = lambda _: True) -> Path | None:
        """Assign the oldest queued file that ``accepts`` allows, and return it."""
        path = next(filter(accepts, self._queued), None)
        if path is not None:
            del self._queued[path]
            self._assigned.add(path)
        return path

    def release(self, path: Path) -> None:
        """End the assignment of a file."""
        self._assigned.discard(path)
        self._next_probe = -math.inf  # it may have settled meanwhile

    def seconds_to_wait(self, now: float) -> float:
        """Return the time until the next probe, infinite if no file settles."""
        return max(0.0, self._next_probe - now)
