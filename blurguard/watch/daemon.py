"""The drop folder: whatever lands in the inbox comes out hidden in the outbox, for as long as this runs."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from blurguard import __version__
from blurguard.batch.journal import open_journal
from blurguard.batch.output_tree import FolderTask, reconcile
from blurguard.files.atomic import scratch_in
from blurguard.types import Outcome
from blurguard.watch.coordinator import Coordinator, WatchPaths
from blurguard.watch.event_loop import EventLoop, RuntimeConfig
from blurguard.watch.folders import Folders
from blurguard.watch.health import DaemonState, Health, HealthWriter, health_file
from blurguard.watch.settling import MAX_WAIT_FACTOR, MIN_SETTLE_SECONDS


class ConsoleReporter(Protocol):
    """Who tells a person how it goes."""

    def advance(self, outcome: Outcome) -> None:
        """Tell of one file that is done or has failed."""

    def clear_progress(self, source: Path) -> None:
        """Tell nothing more of how far a video is."""

    def say(self, text: str) -> None:
        """Tell something else."""

    def show_health(self, health: Health) -> None:
        """Tell how things stand; comes several times a second."""


@dataclass(frozen=True, slots=True)
class WatchTask:
    """What a drop folder's daemon is to do.

    Attributes:
        folders: as ``Folders.prepared`` returned them.
        orders: to begin with.
        read_orders: reads them again; raises ``ConfigError`` when they cannot be followed.
        overwrite: replace files of the outbox that are not known to be ours.
    """

    folders: Folders
    config: RuntimeConfig
    reload_config: Callable[[], RuntimeConfig]
    overwrite: bool = False


def watch(task: WatchTask, teller: ConsoleReporter, clock: Callable[[], float] = time.monotonic) -> None:
    """Watch an inbox until SIGTERM or Ctrl-C asks to stop; for the main thread, which signals come to.

    Raises:
        OutputError: the outbox cannot be used, or another blurguard works in it.
        ModelError: the detector cannot run.
        KeyboardInterrupt: a second Ctrl-C came while the first was being heeded.
    """
    folders, settings = task.folders, task.config.settings
    metrics = Path(settings.metrics) if settings.metrics else None
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(open_journal(folders.outbox))
        pulse = HealthWriter(Path(settings.health) if settings.health else health_file(folders.outbox), metrics)
        tidings = _StatusReporter(teller, pulse)
        stack.callback(tidings.heartbeat, DaemonState.STOPPED, "", 0, 0)
        tidings.heartbeat(DaemonState.STARTING, "", 0, 0)
        folder_task = FolderTask(folders.inbox, folders.outbox, task.config.worker_config, task.overwrite)
        scratch = stack.enter_context(scratch_in(folders.outbox, lambda: not reconcile(folders.outbox, journal)))
        patience = MAX_WAIT_FACTOR * max(settings.settle, MIN_SETTLE_SECONDS)
        site = WatchPaths(folders, scratch, settings.originals, settings.poll, patience)
        desk = Coordinator(site, folder_task, journal, teller.say)
        desk.recover()
        if settings.retry_failed:
            desk.retry_failed()
        loop = EventLoop(desk, tidings, task.config, task.reload_config, clock)
        stack.enter_context(contextlib.closing(loop))
        loop.run(stack.enter_context(_signals(loop.wake)))


@dataclass(slots=True)
class _StatusReporter:
    """Keeps count, and tells everybody."""

    console: ConsoleReporter
    health_writer: HealthWriter
    done: int = 0
    failed: int = 0
    faces: int = 0
    latest: float = 0.0
    started: float = field(default_factory=time.time)
    problem: str = ""

    def file_done(self, outcome: Outcome, done: bool) -> None:
        self.done, self.failed = self.done + done, self.failed + (not done)
        if done:
            self.faces, self.latest = self.faces + len(outcome.faces), time.time()
        self.console.advance(outcome)

    def clear_progress(self, source: Path) -> None:
        self.console.clear_progress(source)

    def say(self, text: str) -> None:
        self.console.say(text)

    def heartbeat(self, state: DaemonState, why: str, queued: int, working: int) -> None:
        health = Health(
            state, why, queued, working, self.done, self.failed, self.faces, self.started, self.latest,
            os.getpid(), __version__,
        )  # fmt: skip
        (self.health_writer.close if state is DaemonState.STOPPED else self.health_writer.write)(health)
        if self.health_writer.problem != self.problem:
            self.problem = self.health_writer.problem
            if self.problem:
                self.console.say(self.problem)
        self.console.show_health(health)


@dataclass(slots=True)
class _SignalFlags:
    """What signals have asked for."""

    wake: Callable[[], None]
    terminal: bool
    stop: bool = False
    reload: bool = False

    def on_stop(self, number: int, _: object) -> None:
        if self.stop and number == signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)  # a third Ctrl-C shall not cut the cleaning up short
            raise KeyboardInterrupt
        self.stop = True
        self.wake()

    def on_reload(self, *_: object) -> None:
        if self.terminal and not _on_terminal():  # it was closed: that is what the signal says then
            _detach_terminal()
            self.stop = True
        else:
            self.reload = True
        self.wake()


@contextlib.contextmanager
def _signals(wake: Callable[[], None]) -> Iterator[_SignalFlags]:
    """Have signals ask instead of interrupting."""
    asked = _SignalFlags(wake, _on_terminal() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)  # nohup means it
    wanted: dict[int, Any] = {
        signal.SIGINT: asked.on_stop,
        signal.SIGTERM: asked.on_stop,
        signal.SIGHUP: asked.on_reload,
        signal.SIGIO: signal.SIG_IGN,  # see inbox.is_being_written
    }
    before: dict[int, Any] = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_terminal() -> bool:
    """Whether any standard stream is a terminal that is still there."""
    return any(os.isatty(stream) for stream in (0, 1, 2))


def _detach_terminal() -> None:
    """Have what is told go nowhere: a terminal that was closed takes nothing, and to write there is an error."""
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for stream in (0, 1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                os.dup2(nowhere, stream)
    os.close(nowhere)
