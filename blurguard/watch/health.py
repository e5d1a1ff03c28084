"""Health of a drop folder's daemon: written by the daemon, read by ``blurguard status``.

The daemon writes a small JSON file, and optionally one for Prometheus, every second and on each change of state.
A daemon counts as alive only if its outbox is locked and its health file is fresh.
"""

import contextlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from blurguard import __version__
from blurguard.batch.journal import LOCK_NAME, FileState
from blurguard.batch.journal_reader import read_stats
from blurguard.errors import InputError, OutputError
from blurguard.files.atomic import STATE_FOLDER, atomic_file
from blurguard.files.errors import os_errors
from blurguard.files.locks import is_locked

FILE_NAME = "health.json"
HEARTBEAT_SECONDS, STALE_SECONDS = 1.0, 60.0
METRICS_STEP_SECONDS = 10  # resolution of the heartbeat there, so that the file does not change every second
MINUTE, HOUR = 60.0, 3600.0

Clock = Callable[[], float]  # returns seconds


class DaemonState(StrEnum):
    """State of the daemon process."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Health:
    """Content of the health file. Times are in seconds since 1970.

    Attributes:
        state: of the daemon.
        why: reason of a pause, "" otherwise.
        queued: files that settle or wait for a worker.
        working: files that a worker has.
        done: files since the start.
        failed: files since the start.
        faces: hidden since the start.
        started: start of the daemon.
        latest: time of the last file that was done, 0 for none.
        pid: of the daemon, in its own PID namespace.
        version: of blurguard.
    """

    state: DaemonState
    why: str = ""
    queued: int = 0
    working: int = 0
    done: int = 0
    failed: int = 0
    faces: int = 0
    started: float = field(default_factory=time.time)
    latest: float = 0.0
    pid: int = field(default_factory=os.getpid)
    version: str = __version__


def health_file(outbox: Path) -> Path:
    """Return the default health file of an outbox."""
    return outbox / STATE_FOLDER / FILE_NAME


class HealthWriter:
    """Writes the health file and the metrics file. If that fails, ``problem`` says why, and the daemon goes on."""

    def __init__(
        self, path: Path, metrics: Path | None = None, clock: Clock = time.monotonic, now: Clock = time.time
    ) -> None:
        """Set both files. Nothing is written yet.

        Args:
            path: of the JSON file.
            metrics: text file for Prometheus, whose collector reads ``*.prom``. None for no metrics.
            clock: monotonic, in seconds.
            now: seconds since 1970.
        """
        self._files = [_StatusFile(file) for file in (path, metrics) if file is not None]
        self._clock, self._now = clock, now
        self._written_at = -math.inf
        self._written_state: tuple[DaemonState, str] | None = None

    @property
    def problem(self) -> str:
        """The first error since a file could last be written, "" if there is none."""
        return next((file.problem for file in self._files if file.problem), "")

    def write(self, health: Health) -> None:
        """Write both files, at most once a second unless the state changes."""
        state, at = (health.state, health.why), self._clock()
        if state == self._written_state and at - self._written_at < HEARTBEAT_SECONDS:
            return
        self._written_at, self._written_state = at, state
        now = self._now()
        texts = json.dumps(asdict(health), indent=1) + "\n", prometheus_text(health, now)
        for file, text in zip(self._files, texts, strict=False):  # there may be no metrics file
            file.update(text, now)


class _StatusFile:
    """A small file that is replaced as a whole. Its time is that of the last heartbeat."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text: str | None = None
        self.problem = ""

    def update(self, text: str, now: float) -> None:
        """Write a text, or only the new time if the text is the same. An error goes to ``problem``."""
        try:
            if text != self._text or not self._touched(now):
                # Replaced in one step. It need not survive a power cut.
                with atomic_file(self._path, durable=False, mode=0o644) as file:
                    file.write(text.encode("utf-8", "backslashreplace"))
                    file.flush()
                    os.utime(file.fileno(), (now, now))
                self._text = text
            self.problem = ""
        except OSError as error:
            self._text = None
            place = "free some space, make that folder writable, or choose another file"
            self.problem = self.problem or f"{self._path}: cannot be kept up to date: {error.strerror}; {place}"

    def _touched(self, now: float) -> bool:
        with contextlib.suppress(FileNotFoundError):  # it was removed
            os.utime(self._path, (now, now), follow_symlinks=False)
            return True
        return False


def prometheus_text(health: Health, now: float) -> str:
    """Return the metrics in Prometheus' text format, for the textfile collector of node_exporter."""
    state, step = health.state, METRICS_STEP_SECONDS
    version = health.version.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    rows: list[tuple[str, str, float]] = [
        ("up", "1 until the daemon has stopped; after a kill only the heartbeat tells.", state != DaemonState.STOPPED),
        ("paused", "1 while nothing new is taken because disk space is short.", state is DaemonState.PAUSED),
        ("queued", "Files that wait.", health.queued),
        ("working", "Files that are being worked on.", health.working),
        ("done_total", "Files done since the start.", health.done),
        ("failed_total", "Files failed since the start.", health.failed),
        ("faces_total", "Faces hidden since the start.", health.faces),
        ("start_time_seconds", "When the daemon started, seconds since 1970.", health.started),
        ("last_done_timestamp_seconds", "When a file was last done, seconds since 1970, 0 for never.", health.latest),
        ("heartbeat_timestamp_seconds",
         f"When the daemon last lived, seconds since 1970, in steps of {step}.", now // step * step),
    ]  # fmt: skip
    lines = [line for row in rows for line in _metric(*row)]
    lines += _metric("info", "Which blurguard this is.", 1, f'{{version="{version}"}}')
    return "\n".join(lines) + "\n"


def _metric(name: str, meaning: str, value: float, labels: str = "") -> Iterator[str]:
    name = f"blurguard_watch_{name}"
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}"
    yield f"{name}{labels} {int(value) if value == int(value) else value!r}"


@dataclass(frozen=True, slots=True)
class Status:
    """Status of a drop folder, from its journal and health file. Times are in seconds since 1970.

    Attributes:
        alive: whether a daemon holds the outbox and its last heartbeat is younger than ``STALE_SECONDS``.
        in_use: whether a blurguard process holds the outbox.
        state: of the daemon at its last heartbeat, None if unknown.
        why: reason of a pause.
        age: seconds since the last heartbeat, None if there was none.
        pid: of the daemon, in its own PID namespace, 0 if unknown.
        queued, working, done, failed: files in the journal.
        last_minute: files done in it.
        last_hour: files done in it.
        error: message of the latest failure in the journal, "" for none.
        failed_at: time of that failure.
        at_work: files that a worker has, each with its start. The oldest come first, at most 20. Without a daemon,
            the files that its end interrupted.
        now: time of this status.
    """

    alive: bool
    in_use: bool
    state: DaemonState | None
    why: str
    age: float | None
    pid: int
    queued: int
    working: int
    done: int
    failed: int
    last_minute: int
    last_hour: int
    error: str
    failed_at: float
    at_work: tuple[tuple[Path, float], ...]
    now: float

    @property
    def healthy(self) -> bool:
        """Whether the daemon is alive and not paused."""
        return self.alive and self.state is not DaemonState.PAUSED

    def as_json(self) -> dict[str, Any]:
        """Return JSON types. Undecodable bytes in names are surrogates, which ``json`` escapes."""
        return asdict(self) | {
            "healthy": self.healthy,
            "per_minute": {"last_minute": float(self.last_minute), "last_hour": self._hourly},
            "at_work": [{"name": str(name), "since": since} for name, since in self.at_work],
        }

    def lines(self) -> list[str]:
        """Return lines for the terminal. Names are raw: escape each line before printing it."""
        lines = [
            self._summary(),
            f"queued {self.queued}, working {self.working}, done {self.done}, failed {self.failed}",
            f"files per minute: {self.last_minute} in the last minute, {self._hourly:.1f} in the last hour",
        ]
        for name, since in self.at_work:
            lines.append(f"working on {name}, for {_ago(self.now - since)}" if self.in_use else f"interrupted: {name}")
        if self.error:
            lines.append(f"last error, {_ago(self.now - self.failed_at)} ago: {self.error}")
        return lines

    @property
    def _hourly(self) -> float:
        return self.last_hour * MINUTE / HOUR

    def _summary(self) -> str:
        heartbeat = f"last heartbeat {_ago(self.age)} ago" if self.age is not None else "no heartbeat"
        if self.alive:
            return f"{self.state}{f': {self.why}' if self.why else ''} (process {self.pid}, {heartbeat})"
        if self.state in (None, DaemonState.STOPPED):
            return "no daemon is running, but another blurguard is working in this folder" if self.in_use else "stopped"
        if self.in_use:
            return f"not responding (process {self.pid}, {heartbeat})"
        return f"ended unexpectedly while {self.state} (process {self.pid}, {heartbeat}); start it again"


def _ago(seconds: float) -> str:
    """Format a duration. It is not negative, even if the clock was set back."""
    seconds = max(0.0, seconds)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def read_status(outbox: Path, health: Path | None, now: float) -> Status:
    """Return the status of a drop folder. Nothing is written.

    Args:
        outbox: holds the results and the journal.
        health: health file of the daemon, None for the default.
        now: seconds since 1970.

    Raises:
        InputError: this is not an outbox, or the health file cannot be read.
        OutputError: the journal cannot be read.
    """
    hourly = read_stats(outbox, now - HOUR)
    minutely = read_stats(outbox, now - MINUTE)
    if hourly is None or minutely is None:
        raise InputError(f"{outbox}: not the outbox of a drop folder: it has no journal; name another folder")
    counts = Counter(minutely.counts)
    held = is_in_use(outbox)
    content, written_at = _read(health_file(outbox) if health is None else health)
    age = None if content is None else now - written_at
    # A clock that was set back leaves a heartbeat in the future. The next one of a living daemon corrects it.
    fresh = age is not None and abs(age) < STALE_SECONDS
    return Status(
        alive=held and fresh and content is not None and content.state is not DaemonState.STOPPED, in_use=held,
        state=content.state if content else None, why=content.why if content else "",
        age=age, pid=content.pid if content else 0,
        queued=counts[FileState.QUEUED], working=counts[FileState.WORKING] + counts[FileState.PUBLISHING],
        done=counts[FileState.DONE], failed=counts[FileState.FAILED],
        last_minute=minutely.done_recently, last_hour=hourly.done_recently,
        error=minutely.error, failed_at=minutely.failed_at, at_work=minutely.in_progress, now=now,
    )  # fmt: skip


def _read(path: Path) -> tuple[Health | None, float]:
    """Return the content of a health file and the time of its last heartbeat, None and 0 if it is damaged."""
    with os_errors(path, "the health file cannot be read", InputError):
        try:
            with path.open("rb") as file:
                written_at, data = os.fstat(file.fileno()).st_mtime, file.read()
        except FileNotFoundError:
            return None, 0.0
    try:
        values = json.loads(data)
        known = {item.name: values[item.name] for item in fields(Health)}
        return Health(**known | {"state": DaemonState(known["state"])}), written_at
    except (ValueError, KeyError, TypeError):  # after a power cut, for instance. The next heartbeat repairs it
        return None, 0.0


def is_in_use(outbox: Path) -> bool:
    """Whether a process is working in an output folder at this moment. Creates nothing there.

    Raises:
        OutputError: the lock may not be read.
    """
    path = outbox / STATE_FOLDER / LOCK_NAME
    with os_errors(path, "it is unknown whether this folder is in use", OutputError, "allow reading it"):
        return is_locked(path)
