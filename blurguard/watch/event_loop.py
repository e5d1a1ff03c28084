"""The loop of a drop folder's daemon: messages in, files handed to workers, results settled.

Threads only leave messages; one loop takes them out and decides. What it does not hear of, because events get lost,
it finds when it looks through the inbox from time to time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Protocol

from blurguard.anonymize.anonymizer import Work
from blurguard.batch.workers import Crew, Job, Pool, result_of
from blurguard.errors import BlurguardError, StorageError
from blurguard.files.filetypes import Kind, claimed_kind
from blurguard.files.stamp import Stamp
from blurguard.settings import WatchSettings
from blurguard.types import Outcome
from blurguard.watch.coordinator import Desk, Verdict
from blurguard.watch.folders import identity, shortage
from blurguard.watch.health import State
from blurguard.watch.inbox import Events, Sign, Walk, has_final_name, is_being_written
from blurguard.watch.settling import Glance, Intake

TURN_SECONDS = 0.5  # the longest between two turns
LONGEST_TURN_SECONDS = 5.0  # more, and the whole machine or container was halted, workers too
SCAN_CHUNK = 500  # files looked at in one turn
MOST_MESSAGES = 20_000  # that may wait; more are dropped, and the whole inbox is looked through instead
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0  # after something could not be written
NOTES_SECONDS = 1.0  # between two looks at what need not be looked at in each turn
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Orders:
    """What can be changed while the daemon runs: who works, how faces are hidden, and how the inbox is watched."""

    crew: Crew
    settings: WatchSettings


class Asked(Protocol):
    """What signals have asked for."""

    stop: bool
    read_again: bool


class Tidings(Protocol):
    """Tells everybody how it goes."""

    def of(self, outcome: Outcome, done: bool) -> None:
        """Tell of one file."""

    def let_go(self, source: Path) -> None:
        """Tell nothing more of a file that was being worked on: there will be no result for now."""

    def say(self, text: str) -> None:
        """Tell something else."""

    def beat(self, state: State, why: str, queued: int, working: int) -> None:
        """Tell how things stand, in each turn."""


@dataclass(slots=True)
class _Flight:
    """A job that was handed over: whether a worker is free for it, and when that was last heard of."""

    job: Job
    future: Future[Work | Outcome]
    pool: Pool
    begun: bool = False
    heard: float | None = None


class Loop:
    """Watches an inbox."""

    def __init__(
        self, desk: Desk, tidings: Tidings, orders: Orders, read_orders: Callable[[], Orders], clock: Clock
    ) -> None:
        """Get ready to work; the inbox is not looked at yet.

        Args:
            desk: decides and settles; knows the folders.
            tidings: tells.
            orders: to begin with.
            read_orders: reads them again.
            clock: seconds that never jump.

        Raises:
            ModelError: the detector cannot run.
        """
        self._desk, self._tidings, self._read_orders, self._clock = desk, tidings, read_orders, clock
        self._inbox = inbox = desk.inbox
        self._intake = Intake(orders.settings.settle)
        self._mail: SimpleQueue[tuple[Sign, Path] | None] = SimpleQueue()
        self._lives: SimpleQueue[Path] = SimpleQueue()  # videos that go on
        self._jobs: dict[Path, tuple[Job, Stamp]] = {}  # of files that wait, and what these were
        self._flights: dict[Path, _Flight] = {}
        self._walk = Walk()
        self._scanning = True  # there may be more to look at right now; a folder that is new, in the next turn
        self._next_scan = -math.inf
        self._unlisted: set[Path] = set()
        self._events: Events | None = None
        self._watched, self._mounted = identity(inbox), os.path.ismount(inbox)
        self._last_turn = self._next_notes = -math.inf
        self._paused_until, self._pause, self._why = -math.inf, FIRST_PAUSE_SECONDS, ""
        self._retiring: list[Pool] = []  # who still work by older orders
        self._follow(orders, orders.crew.factory().recipe)

    def run(self, asked: Asked) -> None:
        """Go on until asked to stop, and then for as long as the files being worked on are granted."""
        self._listen()
        while not asked.stop:
            self._read_mail()
            if asked.read_again:
                asked.read_again = False
                self._change_orders()
            self._turn(self._clock())
        self._wind_down()

    def close(self) -> None:
        """Stop all that runs beside; files that are still being worked on wait for the next start."""
        if self._events is not None:
            self._events.stop()
        for pool in (*self._retiring, self._pool):
            pool.close()
        self._desk.leave(list(self._flights))

    def wake(self) -> None:
        """Have the next turn begin now; for any thread, and for signals."""
        self._mail.put(None)

    def _hear(self, sign: Sign, path: Path) -> None:
        """Leave a message; called by the thread that hears of events."""
        if self._mail.qsize() < MOST_MESSAGES:
            self._mail.put((sign, path))
        else:
            self._intake.missed = True

    def _listen(self) -> None:
        if self._events is not None:
            self._events.stop()
        self._events = Events(self._inbox, self._hear, self._orders.settings.poll)
        if trouble := self._events.start():
            self._tidings.say(f"{trouble}; it is looked through every {self._orders.settings.rescan:g} seconds instead")

    def _read_mail(self) -> None:
        """Wait for a message, but not long, and heed those that are there."""
        now = self._clock()
        timeout = 0.0 if self._scanning else min(TURN_SECONDS, self._intake.seconds_to_wait(now))
        try:
            message = self._mail.get(timeout=timeout) if timeout else self._mail.get_nowait()
            for _ in range(MOST_MESSAGES):
                if message is not None:
                    self._heed(*message, self._clock())
                message = self._mail.get_nowait()
        except Empty:
            return

    def _heed(self, sign: Sign, path: Path, now: float) -> None:
        if path == self._inbox or not has_final_name(path.relative_to(self._inbox)):
            return
        if sign is Sign.FOLDER:
            self._walk.ask_for(path)
            return
        stamp = self._desk.stamp_at(path)
        if stamp is None:
            self._forget(path)
        elif sign is not Sign.GONE and not self._desk.knows(path, stamp):
            self._jobs.pop(path, None)
            self._intake.changed(path, stamp, now, complete=sign is Sign.COMPLETE)

    def _forget(self, path: Path) -> None:
        self._jobs.pop(path, None)
        self._intake.gone(path)
        if path not in self._flights:
            self._desk.gone(path)

    def _turn(self, now: float) -> None:
        self._look_around(now)
        self._collect(now)
        if now >= self._next_notes:
            self._next_notes = now + NOTES_SECONDS
            self._desk.note_failures()
            self._desk.check_record()
        self._give_up_on_silent(now)
        self._rule(now)
        self._why = self._reason_to_pause(now)
        if not self._why:
            self._hand_out(now)
        self._begin()
        self._beat(State.PAUSED if self._why else State.RUNNING)

    def _look_around(self, now: float) -> None:
        """Look at the next files of the inbox, if it is time for that and there is room for what is found."""
        if now >= self._next_scan or (self._intake.missed and not self._intake.full):
            self._next_scan = now + self._orders.settings.rescan
            self._intake.missed = False
            self._walk.ask_for(self._inbox)
            self._check_inbox()
        for _ in range(SCAN_CHUNK):
            found = None if self._intake.full else self._walk.next()
            self._scanning = found is not None
            if found is None:
                return
            self._find(*found, now)

    def _find(self, path: Path, stamp: Stamp | None, now: float) -> None:
        if stamp is None:
            if path not in self._unlisted:
                self._unlisted.add(path)
                self._tidings.say(f"{path}: cannot be listed, so its files are not handled; check its permissions")
        elif path not in self._intake and not self._desk.knows(path, stamp):
            self._intake.changed(path, stamp, now)

    def _check_inbox(self) -> None:
        """Listen anew to an inbox that was replaced, by a mount say."""
        found = identity(self._inbox)
        deaf = self._events is not None and self._events.started and not self._events.alive
        if deaf:
            self._tidings.say("events of the inbox are not heard any more; trying again")
        if found is not None and (deaf or found != self._watched):
            self._watched = found
            self._listen()

    def _rule(self, now: float) -> None:
        """Decide on the files that are complete."""
        waiting = []
        for path in self._intake.due(now, self._glance):
            stamp = self._desk.stamp_at(path)
            if stamp is None:
                self._forget(path)
                continue
            ruling = self._desk.decide(path, stamp)
            if ruling.outcome is not None:
                self._tidings.of(ruling.outcome, done=False)
            elif ruling.job is not None:
                self._jobs[path] = ruling.job, stamp
                self._intake.wait(path)
                waiting.append(path)
        try:
            self._desk.queue(waiting)
        except StorageError as error:
            self._rest(now, str(error))

    def _glance(self, path: Path) -> Glance | None:
        stamp = self._desk.stamp_at(path)
        if stamp is None:
            self._forget(path)
            return None
        return Glance(stamp, not self._orders.settings.poll and bool(is_being_written(path)))

    def _hand_out(self, now: float) -> None:
        """Give each worker a file, and one to have at hand."""
        flying = sum(flight.pool is self._pool for flight in self._flights.values())
        free = self._orders.crew.workers + 1 - flying
        while free > 0 and (path := self._intake.take(self._fits)) is not None:
            job, stamp = self._jobs.pop(path)
            glance = self._glance(path)
            if glance is None or glance.stamp != stamp:  # it has changed, and nobody has told us
                self._put_off(path, now, "")
                continue
            try:
                self._desk.start(job)
            except StorageError as error:
                self._put_off(path, now, str(error))
                return
            future = self._pool.submit(job)
            self._flights[path] = _Flight(job, future, self._pool)
            free -= 1
            future.add_done_callback(lambda _: self.wake())

    def _begin(self) -> None:
        """Record which files have a worker: workers take them in their order."""
        mine = [flight for flight in self._flights.values() if flight.pool is self._pool]
        for flight in mine[: self._orders.crew.workers]:
            if not flight.begun:
                flight.begun = True
                self._desk.begun(flight.job.source)

    def _fits(self, path: Path) -> bool:
        """Whether a file may have a worker: long videos shall not keep all of them from the pictures."""
        if claimed_kind(path) is not Kind.VIDEO:
            return True
        videos = sum(claimed_kind(flying) is Kind.VIDEO for flying in self._flights)
        return videos < max(1, self._orders.crew.workers - 1)

    def _collect(self, now: float) -> None:
        """Settle what workers are done with."""
        for path, flight in [(path, flight) for path, flight in self._flights.items() if flight.future.done()]:
            del self._flights[path]
            verdict, outcome = self._desk.finish(flight.job, result_of(flight.job, flight.future))
            if verdict in (Verdict.AGAIN, Verdict.LATER):
                self._put_off(path, now, outcome.reason if verdict is Verdict.LATER else "")
                continue
            self._intake.ended(path)
            if verdict is Verdict.GONE:
                self._tidings.let_go(path)
            else:
                self._pause = FIRST_PAUSE_SECONDS
                self._tidings.of(outcome, done=verdict is Verdict.DONE)
        self._retire()

    def _put_off(self, path: Path, now: float, why: str) -> None:
        """Have a file settle once more, and rest first if there is a reason."""
        self._intake.ended(path)
        self._tidings.let_go(path)
        self._desk.leave([path])
        if (stamp := self._desk.stamp_at(path)) is not None:
            self._intake.changed(path, stamp, now)
        if why:
            self._rest(now, why)

    def _give_up_on_silent(self, now: float) -> None:
        """Stop workers that have not been heard of for too long."""
        alive = {self._lives.get() for _ in range(self._lives.qsize())}
        asleep, self._last_turn = now - self._last_turn > LONGEST_TURN_SECONDS, now  # all of us, most likely
        for path, flight in self._flights.items():
            new = flight.heard is None and flight.future.running()
            if new or path in alive or (asleep and flight.heard is not None):
                flight.heard = now
            elif flight.heard is not None and now - flight.heard > self._orders.settings.timeout:
                flight.future.cancel()

    def _rest(self, now: float, why: str) -> None:
        """Hand out nothing for a while, longer each time."""
        self._paused_until, self._why = now + self._pause, why
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        self._tidings.say(f"resting, nothing is lost: {why}")

    def _reason_to_pause(self, now: float) -> str:
        if now < self._paused_until:
            return self._why
        if identity(self._inbox) is None:
            self._watched = None  # what comes in its place is another, even by the same number
            return f"{self._inbox} is gone"
        if self._mounted and not os.path.ismount(self._inbox):
            return f"{self._inbox} is not mounted any more"
        return shortage(self._desk.outbox, self._orders.settings.min_free)

    def _change_orders(self) -> None:
        """Read the orders again; what is being worked on is finished by the old ones."""
        try:
            orders = self._read_orders()
            recipe = orders.crew.factory().recipe
        except BlurguardError as error:
            self._tidings.say(f"the settings stay as they were: {error}")
            return
        if fixed := self._orders.settings.fixed_but_changed(orders.settings):
            self._tidings.say(f"only a new start changes {', '.join(fixed)}")
        self._retiring.append(self._pool)
        self._follow(orders, recipe)
        self._tidings.say("the settings have been read again")

    def _retire(self) -> None:
        """Send those home who have finished what they were given by older orders."""
        busy = [flight.pool for flight in self._flights.values()]
        for pool in [pool for pool in self._retiring if pool not in busy]:
            self._retiring.remove(pool)
            pool.close()

    def _follow(self, orders: Orders, recipe: str) -> None:
        self._orders = orders
        self._intake.settle_after(orders.settings.settle)
        crew, tell = orders.crew, orders.crew.progress

        def progress(source: Path, done: int, total: int | None) -> None:
            self._lives.put(source)
            tell(source, done, total)

        self._pool = Pool(replace(crew, progress=progress), orders.settings.recycle)
        self._desk.open(recipe)

    def _wind_down(self) -> None:
        """Let those who work come to an end, for as long as they are granted."""
        self._scanning = False
        for path, flight in list(self._flights.items()):
            if not flight.begun:
                del self._flights[path]
                flight.future.cancel()
                self._desk.leave([path])
        until = self._clock() + self._orders.settings.grace
        while self._flights and self._clock() < until:
            self._beat(State.STOPPING)
            self._read_mail()
            self._collect(self._clock())

    def _beat(self, state: State) -> None:
        working = sum(flight.begun for flight in self._flights.values())
        queued = self._intake.settling + self._intake.waiting + len(self._flights) - working
        self._tidings.beat(state, self._why, queued, working)
