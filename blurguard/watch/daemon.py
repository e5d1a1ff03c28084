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
from blurguard.batch.output_tree import FolderTask, put_right
from blurguard.files.atomic import scratch_in
from blurguard.types import Outcome
from blurguard.watch.coordinator import Desk, Site
from blurguard.watch.event_loop import Loop, Orders
from blurguard.watch.folders import Folders
from blurguard.watch.health import Health, Pulse, State, health_file
from blurguard.watch.settling import PATIENCE, SHORTEST_SILENCE


class Teller(Protocol):
    """Who tells a person how it goes."""

    def advance(self, outcome: Outcome) -> None:
        """Tell of one file that is done or has failed."""

    def let_go(self, source: Path) -> None:
        """Tell nothing more of how far a video is."""

    def say(self, text: str) -> None:
        """Tell something else."""

    def watching(self, health: Health) -> None:
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
    orders: Orders
    read_orders: Callable[[], Orders]
    overwrite: bool = False


def watch(task: WatchTask, teller: Teller, clock: Callable[[], float] = time.monotonic) -> None:
    """Watch an inbox until SIGTERM or Ctrl-C asks to stop; for the main thread, which signals come to.

    Raises:
        OutputError: the outbox cannot be used, or another blurguard works in it.
        ModelError: the detector cannot run.
        KeyboardInterrupt: a second Ctrl-C came while the first was being heeded.
    """
    folders, settings = task.folders, task.orders.settings
    metrics = Path(settings.metrics) if settings.metrics else None
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(open_journal(folders.outbox))
        pulse = Pulse(Path(settings.health) if settings.health else health_file(folders.outbox), metrics)
        tidings = _Tidings(teller, pulse)
        stack.callback(tidings.beat, State.STOPPED, "", 0, 0)
        tidings.beat(State.STARTING, "", 0, 0)
        folder_task = FolderTask(folders.inbox, folders.outbox, task.orders.crew, task.overwrite)
        scratch = stack.enter_context(scratch_in(folders.outbox, lambda: not put_right(folders.outbox, journal)))
        patience = PATIENCE * max(settings.settle, SHORTEST_SILENCE)
        site = Site(folders, scratch, settings.originals, settings.poll, patience)
        desk = Desk(site, folder_task, journal, teller.say)
        desk.recover()
        if settings.retry_failed:
            desk.retry_failed()
        loop = Loop(desk, tidings, task.orders, task.read_orders, clock)
        stack.enter_context(contextlib.closing(loop))
        loop.run(stack.enter_context(_signals(loop.wake)))


@dataclass(slots=True)
class _Tidings:
    """Keeps count, and tells everybody."""

    teller: Teller
    pulse: Pulse
    done: int = 0
    failed: int = 0
    faces: int = 0
    latest: float = 0.0
    started: float = field(default_factory=time.time)
    trouble: str = ""

    def of(self, outcome: Outcome, done: bool) -> None:
        self.done, self.failed = self.done + done, self.failed + (not done)
        if done:
            self.faces, self.latest = self.faces + len(outcome.faces), time.time()
        self.teller.advance(outcome)

    def let_go(self, source: Path) -> None:
        self.teller.let_go(source)

    def say(self, text: str) -> None:
        self.teller.say(text)

    def beat(self, state: State, why: str, queued: int, working: int) -> None:
        health = Health(
            state, why, queued, working, self.done, self.failed, self.faces, self.started, self.latest,
            os.getpid(), __version__,
        )  # fmt: skip
        (self.pulse.close if state is State.STOPPED else self.pulse.beat)(health)
        if self.pulse.trouble != self.trouble:
            self.trouble = self.pulse.trouble
            if self.trouble:
                self.teller.say(self.trouble)
        self.teller.watching(health)


@dataclass(slots=True)
class _Asked:
    """What signals have asked for."""

    wake: Callable[[], None]
    terminal: bool
    stop: bool = False
    read_again: bool = False

    def to_stop(self, number: int, _: object) -> None:
        if self.stop and number == signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)  # a third Ctrl-C shall not cut the cleaning up short
            raise KeyboardInterrupt
        self.stop = True
        self.wake()

    def to_read_again(self, *_: object) -> None:
        if self.terminal and not _on_terminal():  # it was closed: that is what the signal says then
            _leave_terminal()
            self.stop = True
        else:
            self.read_again = True
        self.wake()


@contextlib.contextmanager
def _signals(wake: Callable[[], None]) -> Iterator[_Asked]:
    """Have signals ask instead of interrupting."""
    asked = _Asked(wake, _on_terminal() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)  # nohup means it
    wanted: dict[int, Any] = {
        signal.SIGINT: asked.to_stop,
        signal.SIGTERM: asked.to_stop,
        signal.SIGHUP: asked.to_read_again,
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


def _leave_terminal() -> None:
    """Have what is told go nowhere: a terminal that was closed takes nothing, and to write there is an error."""
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for stream in (0, 1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                os.dup2(nowhere, stream)
    os.close(nowhere)
