"""Which files of an inbox are complete, and which is next: pure, the time and the looking come in as arguments.

A file settles while it changes. It is complete when for some seconds nothing was heard of it and it is as large
and as old as when it was last heard of, or at once after it was closed by its writer or renamed into its place.
Then it waits for a worker, and while one works on it, it may settle again: what has changed is done again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from blurguard.files.stamp import FileStamp

MAX_FILES = 1000  # files that settle or wait; more are left to a later look at the inbox
# A file that its writer keeps open is not taken after the usual silence: an upload may stall. After so many times
# that silence it is, for some writers never close; if it changes yet, it is done again.
MAX_WAIT_FACTOR = 60
MIN_SETTLE_SECONDS = 0.1  # seconds between two looks at such a file, however quickly files are to be taken


@dataclass(frozen=True, slots=True)
class FileProbe:
    """What a look at a file tells: its stamp, and whether somebody has it open for writing."""

    stamp: FileStamp
    being_written: bool = False


@dataclass(slots=True)
class _SettlingFile:
    """A file that may not be complete.

    Attributes:
        stamp: when it was last heard of.
        since: when that was.
        look_at: when to look whether it is complete.
    """

    stamp: FileStamp
    since: float
    look_at: float


class SettlingQueue:
    """The files on their way from the inbox to a worker; each is settling, waiting or being worked on."""

    def __init__(self, settle: float, most: int = MAX_FILES) -> None:
        """Take the seconds of silence after which a file is complete, and how many files may settle or wait."""
        self._settle = settle
        self.overflowed = False  # whether there was no room for a file since somebody last set this to False
        self._most = most
        self._settling: dict[Path, _SettlingFile] = {}
        self._queued: dict[Path, None] = {}
        self._working: set[Path] = set()
        self._next = math.inf  # no file has to be looked at before

    def settle_after(self, seconds: float) -> None:
        """Take files after so many seconds of silence from now on, also those that settle already."""
        self._settle = seconds
        for file in self._settling.values():
            file.look_at = min(file.look_at, file.since + seconds)
        self._next = -math.inf

    @property
    def full(self) -> bool:
        """Whether there is no room for another file."""
        return len(self._settling) + len(self._queued) >= self._most

    @property
    def settling(self) -> int:
        """How many files may not be complete."""
        return len(self._settling)

    @property
    def queued(self) -> int:
        """How many complete files wait for a worker."""
        return len(self._queued)

    def __contains__(self, path: Path) -> bool:
        """Whether a file is settling, waiting or being worked on."""
        return path in self._settling or path in self._queued or path in self._working

    def update(self, path: Path, stamp: FileStamp, now: float, *, complete: bool = False) -> None:
        """Hear of a file: it has changed, has been found or, when ``complete``, is said to be whole."""
        self._queued.pop(path, None)
        if self.full and path not in self._settling:
            self.overflowed = True
            return
        look_at = now if complete else now + self._settle
        self._settling[path] = _SettlingFile(stamp, now, look_at)
        self._next = min(self._next, look_at)

    def remove(self, path: Path) -> bool:
        """Hear that a file is not there any more; return whether it was waited for."""
        known = path in self._settling or path in self._queued
        self._settling.pop(path, None)
        self._queued.pop(path, None)
        return known

    def pop_settled(self, now: float, look: Callable[[Path], FileProbe | None]) -> list[Path]:
        """Return the files that have become complete, and know them no more: ``enqueue`` or forget them.

        Args:
            now: seconds, by a clock that does not jump; one that does only makes files settle longer.
            look: returns what is seen of a file, or None when there is none.
        """
        complete: list[Path] = []
        if now < self._next and not self._jumped(now):
            return complete
        for path, file in list(self._settling.items()):
            if now < file.since:
                file.since, file.look_at = now, now + self._settle
            if now < file.look_at or path in self._working:
                continue
            glance = look(path)
            if glance is None:
                self._settling.pop(path, None)  # who looked may have told that it is gone
            elif glance.stamp != file.stamp:
                self._settling[path] = _SettlingFile(glance.stamp, now, now + self._settle)
            elif glance.being_written and now - file.since < MAX_WAIT_FACTOR * max(self._settle, MIN_SETTLE_SECONDS):
                file.look_at = now + max(self._settle, MIN_SETTLE_SECONDS)
            else:
                del self._settling[path]
                complete.append(path)
        self._next = min((f.look_at for p, f in self._settling.items() if p not in self._working), default=math.inf)
        return complete

    def enqueue(self, path: Path) -> None:
        """Have a complete file wait for a worker."""
        self._queued[path] = None

    def assign(self, fits: Callable[[Path], bool] = lambda _: True) -> Path | None:
        """Return the file that has waited longest of those that fit; it is being worked on from now on."""
        path = next(filter(fits, self._queued), None)
        if path is not None:
            del self._queued[path]
            self._working.add(path)
        return path

    def release(self, path: Path) -> None:
        """Hear that nobody works on a file any more."""
        self._working.discard(path)
        self._next = -math.inf  # it may have settled meanwhile

    def seconds_to_wait(self, now: float) -> float:
        """Return how long it is until a file must be looked at; infinite when none settles."""
        return max(0.0, self._next - now)

    def _jumped(self, now: float) -> bool:
        return any(now < file.since for file in self._settling.values())
