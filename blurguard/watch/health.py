"""What a drop folder's daemon tells the world about itself, and how that is read.

The daemon writes a small JSON file, and one for Prometheus if that is wanted: at once when its state changes, once a
second otherwise. A reader believes neither alone: a daemon lives when its outbox is locked and its file is fresh.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from blurguard.batch.journal import LOCK_NAME, FileState
from blurguard.batch.journal_reader import JournalStats, read_stats
from blurguard.errors import InputError, OutputError
from blurguard.files.atomic import STATE_FOLDER, atomic_file
from blurguard.files.errors import os_errors
from blurguard.files.locks import is_locked

FILE_NAME = "health.json"
HEARTBEAT_SECONDS = 1.0
STALE_SECONDS = 60.0
METRICS_STEP_SECONDS = 10  # the time in that file is rounded down to these, so that it is not written every second
MINUTE, HOUR = 60.0, 3600.0


class DaemonState(StrEnum):
    """What a daemon is doing."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Health:
    """What a daemon knows of itself.

    Attributes:
        state: see ``FileState``.
        why: of a pause, "" otherwise.
        queued: files that settle, or are complete and wait for a worker.
        working: files that are being worked on.
        done: files since the start.
        failed: files since the start.
        faces: hidden since the start.
        started: seconds since 1970.
        latest: when the last file was done, 0 for none.
        pid: of the daemon, as it sees it.
        version: of blurguard.
    """

    state: DaemonState
    why: str
    queued: int
    working: int
    done: int
    failed: int
    faces: int
    started: float
    latest: float
    pid: int
    version: str


def health_file(outbox: Path) -> Path:
    """Return where the health file of an outbox lies unless the user has chosen another place."""
    return outbox / STATE_FOLDER / FILE_NAME


class HealthWriter:
    """Keeps the files fresh that tell how a daemon is; that they cannot be written stops nobody."""

    def __init__(
        self,
        path: Path,
        metrics: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Take the names of both files; nothing is written yet.

        Args:
            path: of the JSON file.
            metrics: of the text file for Prometheus, whose collector wants ``*.prom``; None for none.
            clock: seconds, never backwards.
            now: seconds since 1970.
        """
        self._health = _StatusFile(path)
        self._metrics = None if metrics is None else _StatusFile(metrics)
        self._clock = clock
        self._now = now
        self._beaten: float | None = None
        self._told: tuple[DaemonState, str] | None = None

    @property
    def problem(self) -> str:
        """Why a file cannot be written: the first reason since it could, "" while all is well."""
        return self._health.problem or (self._metrics.problem if self._metrics else "")

    def write(self, health: Health) -> None:
        """Tell how things are; may be called as often as one likes."""
        told, at = (health.state, health.why), self._clock()
        if told == self._told and self._beaten is not None and at - self._beaten < HEARTBEAT_SECONDS:
            return
        self._beaten, self._told = at, told
        now = self._now()
        self._health.update(json.dumps(asdict(health), indent=1) + "\n", now)
        if self._metrics is not None:
            self._metrics.update(prometheus_text(health, now), now)

    def close(self, health: Health) -> None:
        """Tell that the daemon has stopped."""
        self._told = None
        self.write(replace(health, state=DaemonState.STOPPED, why=""))


class _StatusFile:
    """A small file that always is whole, and whose time tells when it was last confirmed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text: str | None = None
        self.problem = ""

    def update(self, text: str, now: float) -> None:
        """Have the file say ``text`` as of ``now``; failing to is noted in ``problem``."""
        try:
            if not (text == self._text and self._touched(now)):
                self._write(text, now)
                self._text = text
            self.problem = ""
        except OSError as error:
            self._text = None
            place = "free some space, make that folder writable, or choose another file"
            self.problem = self.problem or f"{self._path}: cannot be kept up to date: {error.strerror}; {place}"

    def _touched(self, now: float) -> bool:
        with contextlib.suppress(FileNotFoundError):  # somebody has removed it
            os.utime(self._path, (now, now), follow_symlinks=False)
            return True
        return False

    def _write(self, text: str, now: float) -> None:
        """Replace the file in one step. It need not survive a power cut."""
        with atomic_file(self._path, durable=False, mode=0o644) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
            os.utime(file.fileno(), (now, now))


def prometheus_text(health: Health, now: float) -> str:
    """Return what Prometheus' text format makes of it, for the textfile collector of node_exporter."""
    heartbeat = now // METRICS_STEP_SECONDS * METRICS_STEP_SECONDS
    told: tuple[tuple[str, str, str, float], ...] = (
        ("up", "gauge", "1 until the daemon has stopped; after a kill only the heartbeat tells.",
         health.state is not DaemonState.STOPPED),
        ("paused", "gauge", "1 while nothing new is taken because disk space is short.", health.state is DaemonState.PAUSED),
        ("queued", "gauge", "Files that wait.", health.queued),
        ("working", "gauge", "Files that are being worked on.", health.working),
        ("done_total", "counter", "Files done since the start.", health.done),
        ("failed_total", "counter", "Files failed since the start.", health.failed),
        ("faces_total", "counter", "Faces hidden since the start.", health.faces),
        ("start_time_seconds", "gauge", "When the daemon started, seconds since 1970.", health.started),
        ("last_done_timestamp_seconds", "gauge", "When a file was last done, seconds since 1970, 0 for never.",
         health.latest),
        ("heartbeat_timestamp_seconds", "gauge",
         f"When the daemon last lived, seconds since 1970, in steps of {METRICS_STEP_SECONDS}.", heartbeat),
    )  # fmt: skip
    lines = [line for row in told for line in _metric(*row)]
    version = health.version.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    lines += _metric("info", "gauge", "Which blurguard this is.", 1, f'{{version="{version}"}}')
    return "\n".join(lines) + "\n"


def _metric(name: str, kind: str, meaning: str, value: float, labels: str = "") -> Iterator[str]:
    name = f"blurguard_watch_{name}"
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"
    yield f"{name}{labels} {int(value) if value == int(value) else value!r}"


@dataclass(frozen=True, slots=True)
class Status:
    """How a drop folder is, from its record and its daemon's health file.

    Attributes:
        alive: a daemon holds the outbox and its last beat is younger than ``STALE_SECONDS``.
        in_use: some blurguard holds the outbox.
        state: what the daemon last said it was doing, None when it has said nothing.
        why: of a pause.
        age: seconds since its last beat, None when there was none.
        pid: as the daemon sees it, 0 when not known.
        queued, working, done, failed: files, of all that the record knows.
        last_minute: files done in it.
        last_hour: files done in it.
        error: message of the last failure that still stands, "" for none.
        failed_at: when that was, seconds since 1970.
        at_work: what is being worked on and since when (seconds since 1970), longest first, at most 20; when there is
            no daemon, what its end has interrupted.
        now: when this was found, seconds since 1970.
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
        """Whether nobody needs to look: it is alive, and does not lack space."""
        return self.alive and self.state is not DaemonState.PAUSED

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON types; bytes of names that are no text are surrogates, which ``json`` escapes."""
        return asdict(self) | {
            "healthy": self.healthy,
            "per_minute": {"last_minute": float(self.last_minute), "last_hour": self._hourly},
            "at_work": [{"name": str(name), "since": since} for name, since in self.at_work],
        }

    def lines(self) -> list[str]:
        """Return it for people; names are raw, so each line must be escaped before it is printed."""
        told = [
            self._summary(),
            f"queued {self.queued}, working {self.working}, done {self.done}, failed {self.failed}",
            f"files per minute: {self.last_minute} in the last minute, {self._hourly:.1f} in the last hour",
        ]
        verb = "working on" if self.in_use else "interrupted:"
        told += [f"{verb} {name}, for {_ago(self.now - since)}" for name, since in self.at_work if self.in_use]
        told += [f"{verb} {name}" for name, _ in self.at_work if not self.in_use]
        if self.error:
            told.append(f"last error, {_ago(self.now - self.failed_at)} ago: {self.error}")
        return told

    @property
    def _hourly(self) -> float:
        return self.last_hour * MINUTE / HOUR

    def _summary(self) -> str:
        said = f"last heard of {_ago(self.age)} ago" if self.age is not None else "never heard of"
        if self.alive:
            return f"{self.state}{f': {self.why}' if self.why else ''} (process {self.pid}, {said})"
        if self.in_use and self.state in (None, DaemonState.STOPPED):
            return "no drop folder's daemon, but another blurguard is working in this folder"
        if self.in_use:
            return f"not responding (process {self.pid}, {said})"
        if self.state in (None, DaemonState.STOPPED):
            return "stopped"
        return f"ended without a word while {self.state} (process {self.pid}, {said}); start it again"


def _ago(seconds: float) -> str:
    """Return a duration for people; a clock that was set back makes none negative."""
    seconds = max(0.0, seconds)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def read_status(outbox: Path, health: Path | None, now: float) -> Status:
    """Return how a drop folder is; writes nothing.

    Args:
        outbox: where the results go.
        health: the daemon's health file, None for the usual place.
        now: seconds since 1970.

    Raises:
        InputError: this is no outbox, or the health file may not be read.
        OutputError: the record may not be read, or is damaged.
    """
    hourly = read_stats(outbox, now - HOUR)
    minutely = read_stats(outbox, now - MINUTE)
    if hourly is None or minutely is None:
        raise InputError(f"{outbox}: no drop folder's outbox: there is no record in it")
    held = is_in_use(outbox)
    told, beaten = _read(health_file(outbox) if health is None else health)
    age = None if told is None else now - beaten
    # A clock that was set back leaves a beat in the future: the next one puts it right, if there is one.
    fresh = age is not None and abs(age) < STALE_SECONDS
    return Status(
        alive=held and fresh and told is not None and told.state is not DaemonState.STOPPED,
        in_use=held,
        state=told.state if told else None,
        why=told.why if told else "",
        age=age,
        pid=told.pid if told else 0,
        queued=_counted(minutely, FileState.QUEUED),
        working=_counted(minutely, FileState.WORKING, FileState.PUBLISHING),
        done=_counted(minutely, FileState.DONE),
        failed=_counted(minutely, FileState.FAILED),
        last_minute=minutely.done_recently,
        last_hour=hourly.done_recently,
        error=minutely.error,
        failed_at=minutely.failed_at,
        at_work=minutely.in_progress,
        now=now,
    )


def _counted(figures: JournalStats, *states: FileState) -> int:
    return sum(figures.counts.get(state, 0) for state in states)


def _read(path: Path) -> tuple[Health | None, float]:
    """Return what a health file says and the time of its last beat; a damaged one says nothing."""
    with os_errors(path, "the health file cannot be read", InputError):
        try:
            with path.open("rb") as file:
                beaten, data = os.fstat(file.fileno()).st_mtime, file.read()
        except FileNotFoundError:
            return None, 0.0
    try:
        values = json.loads(data)
        known = {field.name: values[field.name] for field in fields(Health)}
        return Health(**known | {"state": DaemonState(known["state"])}), beaten
    except (ValueError, KeyError, TypeError):  # a power cut, say; the next beat writes it afresh
        return None, 0.0


def is_in_use(outbox: Path) -> bool:
    """Whether a process is working in an output folder at this moment. Creates nothing there.

    Raises:
        OutputError: the lock may not be read.
    """
    path = outbox / STATE_FOLDER / LOCK_NAME
    with os_errors(path, "it is unknown whether this folder is in use", OutputError, "allow reading it"):
        in_use = is_locked(path)
    return in_use
