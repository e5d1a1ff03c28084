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

from blurguard.anonymize.anonymizer import StagedResult
from blurguard.batch.workers import Job, Pool, WorkerConfig, result_of
from blurguard.errors import BlurguardError, StorageError
from blurguard.files.filetypes import FileType, type_from_suffix
from blurguard.files.stamp import FileStamp
from blurguard.settings import WatchSettings
from blurguard.types import Outcome
from blurguard.watch.coordinator import Coordinator, JobResult
from blurguard.watch.folders import dev_inode, low_disk_reason
from blurguard.watch.health import DaemonState
from blurguard.watch.inbox import ChangeType, DirectoryScanner, InboxObserver, has_final_name, is_being_written
from blurguard.watch.settling import FileProbe, SettlingQueue

TURN_SECONDS = 0.5  # the longest between two turns
MAX_TURN_SECONDS = 5.0  # more, and the whole machine or container was halted, workers too
SCAN_CHUNK = 500  # files looked at in one turn
MAX_EVENTS = 20_000  # that may wait; more are dropped, and the whole inbox is looked through instead
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 1.0, 60.0  # after something could not be written
HOUSEKEEPING_SECONDS = 1.0  # between two looks at what need not be looked at in each turn
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """What can be changed while the daemon runs: who works, how faces are hidden, and how the inbox is watched."""

    worker_config: WorkerConfig
    settings: WatchSettings


class SignalFlags(Protocol):
    """What signals have asked for."""

    stop: bool
    reload: bool


class StatusReporter(Protocol):
    """Tells everybody how it goes."""

    def file_done(self, outcome: Outcome, done: bool) -> None:
        """Tell of one file."""

    def clear_progress(self, source: Path) -> None:
        """Tell nothing more of a file that was being worked on: there will be no result for now."""

    def say(self, text: str) -> None:
        """Tell something else."""

    def heartbeat(self, state: DaemonState, why: str, queued: int, working: int) -> None:
        """Tell how things stand, in each turn."""


@dataclass(slots=True)
class InFlightJob:
    """A job that was handed over: whether a worker is free for it, and when that was last heard of."""

    job: Job
    future: Future[StagedResult | Outcome]
    pool: Pool
    started: bool = False
    last_heartbeat: float | None = None


class EventLoop:
    """Watches an inbox."""

    def __init__(
        self,
        desk: Coordinator,
        tidings: StatusReporter,
        orders: RuntimeConfig,
        read_orders: Callable[[], RuntimeConfig],
        clock: Clock,
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
        self._coordinator, self._reporter, self._read_orders, self._clock = desk, tidings, read_orders, clock
        self._inbox = inbox = desk.inbox
        self._settling = SettlingQueue(orders.settings.settle)
        self._events: SimpleQueue[tuple[ChangeType, Path] | None] = SimpleQueue()
        self._heartbeats: SimpleQueue[Path] = SimpleQueue()  # videos that go on
        self._queued_jobs: dict[Path, tuple[Job, FileStamp]] = {}  # of files that wait, and what these were
        self._in_flight: dict[Path, InFlightJob] = {}
        self._scanner = DirectoryScanner()
        self._scanning = True  # there may be more to look at right now; a folder that is new, in the next turn
        self._next_scan = -math.inf
        self._unlisted: set[Path] = set()
        self._observer: InboxObserver | None = None
        self._watched, self._mounted = dev_inode(inbox), os.path.ismount(inbox)
        self._last_turn = self._next_housekeeping = -math.inf
        self._paused_until, self._pause, self._why = -math.inf, MIN_PAUSE_SECONDS, ""
        self._retiring: list[Pool] = []  # who still work by older orders
        self._apply_config(orders, orders.worker_config.factory().recipe)

    def run(self, asked: SignalFlags) -> None:
        """Go on until asked to stop, and then for as long as the files being worked on are granted."""
        self._start_observer()
        while not asked.stop:
            self._process_events()
            if asked.reload:
                asked.reload = False
                self._reload_config()
            self._turn(self._clock())
        self._wind_down()

    def close(self) -> None:
        """Stop all that runs beside; files that are still being worked on wait for the next start."""
        if self._observer is not None:
            self._observer.stop()
        for pool in (*self._retiring, self._pool):
            pool.close()
        self._coordinator.requeue(list(self._in_flight))

    def wake(self) -> None:
        """Have the next turn begin now; for any thread, and for signals."""
        self._events.put(None)

    def _post_event(self, sign: ChangeType, path: Path) -> None:
        """Leave a message; called by the thread that hears of events."""
        if self._events.qsize() < MAX_EVENTS:
            self._events.put((sign, path))
        else:
            self._settling.overflowed = True

    def _start_observer(self) -> None:
        if self._observer is not None:
            self._observer.stop()
        self._observer = InboxObserver(self._inbox, self._post_event, self._orders.settings.poll)
        if trouble := self._observer.start():
            self._reporter.say(
                f"{trouble}; it is looked through every {self._orders.settings.rescan:g} seconds instead"
            )

    def _process_events(self) -> None:
        """Wait for a message, but not long, and heed those that are there."""
        now = self._clock()
        timeout = 0.0 if self._scanning else min(TURN_SECONDS, self._settling.seconds_to_wait(now))
        try:
            message = self._events.get(timeout=timeout) if timeout else self._events.get_nowait()
            for _ in range(MAX_EVENTS):
                if message is not None:
                    self._process_event(*message, self._clock())
                message = self._events.get_nowait()
        except Empty:
            return

    def _process_event(self, sign: ChangeType, path: Path, now: float) -> None:
        if path == self._inbox or not has_final_name(path.relative_to(self._inbox)):
            return
        if sign is ChangeType.FOLDER:
            self._scanner.add(path)
            return
        stamp = self._coordinator.stamp_at(path)
        if stamp is None:
            self._forget(path)
        elif sign is not ChangeType.GONE and not self._coordinator.is_handled(path, stamp):
            self._queued_jobs.pop(path, None)
            self._settling.update(path, stamp, now, complete=sign is ChangeType.COMPLETE)

    def _forget(self, path: Path) -> None:
        self._queued_jobs.pop(path, None)
        self._settling.remove(path)
        if path not in self._in_flight:
            self._coordinator.forget(path)

    def _turn(self, now: float) -> None:
        self._scan(now)
        self._collect(now)
        if now >= self._next_housekeeping:
            self._next_housekeeping = now + HOUSEKEEPING_SECONDS
            self._coordinator.write_error_reports()
            self._coordinator.check_record()
        self._cancel_stalled(now)
        self._decide_settled(now)
        self._why = self._reason_to_pause(now)
        if not self._why:
            self._submit_jobs(now)
        self._mark_started()
        self._heartbeat(DaemonState.PAUSED if self._why else DaemonState.RUNNING)

    def _scan(self, now: float) -> None:
        """Look at the next files of the inbox, if it is time for that and there is room for what is found."""
        if now >= self._next_scan or (self._settling.overflowed and not self._settling.full):
            self._next_scan = now + self._orders.settings.rescan
            self._settling.overflowed = False
            self._scanner.add(self._inbox)
            self._check_inbox()
        for _ in range(SCAN_CHUNK):
            found = None if self._settling.full else self._scanner.next()
            self._scanning = found is not None
            if found is None:
                return
            self._find(*found, now)

    def _find(self, path: Path, stamp: FileStamp | None, now: float) -> None:
        if stamp is None:
            if path not in self._unlisted:
                self._unlisted.add(path)
                self._reporter.say(f"{path}: cannot be listed, so its files are not handled; check its permissions")
        elif path not in self._settling and not self._coordinator.is_handled(path, stamp):
            self._settling.update(path, stamp, now)

    def _check_inbox(self) -> None:
        """Listen anew to an inbox that was replaced, by a mount say."""
        found = dev_inode(self._inbox)
        deaf = self._observer is not None and self._observer.started and not self._observer.alive
        if deaf:
            self._reporter.say("events of the inbox are not heard any more; trying again")
        if found is not None and (deaf or found != self._watched):
            self._watched = found
            self._start_observer()

    def _decide_settled(self, now: float) -> None:
        """Decide on the files that are complete."""
        waiting = []
        for path in self._settling.pop_settled(now, self._probe):
            stamp = self._coordinator.stamp_at(path)
            if stamp is None:
                self._forget(path)
                continue
            ruling = self._coordinator.decide(path, stamp)
            if ruling.outcome is not None:
                self._reporter.file_done(ruling.outcome, done=False)
            elif ruling.job is not None:
                self._queued_jobs[path] = ruling.job, stamp
                self._settling.enqueue(path)
                waiting.append(path)
        try:
            self._coordinator.queue(waiting)
        except StorageError as error:
            self._pause_after_error(now, str(error))

    def _probe(self, path: Path) -> FileProbe | None:
        stamp = self._coordinator.stamp_at(path)
        if stamp is None:
            self._forget(path)
            return None
        return FileProbe(stamp, not self._orders.settings.poll and bool(is_being_written(path)))

    def _submit_jobs(self, now: float) -> None:
        """Give each worker a file, and one to have at hand."""
        flying = sum(flight.pool is self._pool for flight in self._in_flight.values())
        free = self._orders.worker_config.workers + 1 - flying
        while free > 0 and (path := self._settling.assign(self._fits)) is not None:
            job, stamp = self._queued_jobs.pop(path)
            glance = self._probe(path)
            if glance is None or glance.stamp != stamp:  # it has changed, and nobody has told us
                self._postpone(path, now, "")
                continue
            try:
                self._coordinator.start(job)
            except StorageError as error:
                self._postpone(path, now, str(error))
                return
            future = self._pool.submit(job)
            self._in_flight[path] = InFlightJob(job, future, self._pool)
            free -= 1
            future.add_done_callback(lambda _: self.wake())

    def _mark_started(self) -> None:
        """Record which files have a worker: workers take them in their order."""
        mine = [flight for flight in self._in_flight.values() if flight.pool is self._pool]
        for flight in mine[: self._orders.worker_config.workers]:
            if not flight.started:
                flight.started = True
                self._coordinator.mark_started(flight.job.source)

    def _fits(self, path: Path) -> bool:
        """Whether a file may have a worker: long videos shall not keep all of them from the pictures."""
        if type_from_suffix(path) is not FileType.VIDEO:
            return True
        videos = sum(type_from_suffix(flying) is FileType.VIDEO for flying in self._in_flight)
        return videos < max(1, self._orders.worker_config.workers - 1)

    def _collect(self, now: float) -> None:
        """Settle what workers are done with."""
        for path, flight in [(path, flight) for path, flight in self._in_flight.items() if flight.future.done()]:
            del self._in_flight[path]
            verdict, outcome = self._coordinator.finish(flight.job, result_of(flight.job, flight.future))
            if verdict in (JobResult.AGAIN, JobResult.LATER):
                self._postpone(path, now, outcome.reason if verdict is JobResult.LATER else "")
                continue
            self._settling.release(path)
            if verdict is JobResult.GONE:
                self._reporter.clear_progress(path)
            else:
                self._pause = MIN_PAUSE_SECONDS
                self._reporter.file_done(outcome, done=verdict is JobResult.DONE)
        self._retire()

    def _postpone(self, path: Path, now: float, why: str) -> None:
        """Have a file settle once more, and rest first if there is a reason."""
        self._settling.release(path)
        self._reporter.clear_progress(path)
        self._coordinator.requeue([path])
        if (stamp := self._coordinator.stamp_at(path)) is not None:
            self._settling.update(path, stamp, now)
        if why:
            self._pause_after_error(now, why)

    def _cancel_stalled(self, now: float) -> None:
        """Stop workers that have not been heard of for too long."""
        alive = {self._heartbeats.get() for _ in range(self._heartbeats.qsize())}
        asleep, self._last_turn = now - self._last_turn > MAX_TURN_SECONDS, now  # all of us, most likely
        for path, flight in self._in_flight.items():
            new = flight.last_heartbeat is None and flight.future.running()
            if new or path in alive or (asleep and flight.last_heartbeat is not None):
                flight.last_heartbeat = now
            elif flight.last_heartbeat is not None and now - flight.last_heartbeat > self._orders.settings.timeout:
                flight.future.cancel()

    def _pause_after_error(self, now: float, why: str) -> None:
        """Hand out nothing for a while, longer each time."""
        self._paused_until, self._why = now + self._pause, why
        self._pause = min(2 * self._pause, MAX_PAUSE_SECONDS)
        self._reporter.say(f"resting, nothing is lost: {why}")

    def _reason_to_pause(self, now: float) -> str:
        if now < self._paused_until:
            return self._why
        if dev_inode(self._inbox) is None:
            self._watched = None  # what comes in its place is another, even by the same number
            return f"{self._inbox} is gone"
        if self._mounted and not os.path.ismount(self._inbox):
            return f"{self._inbox} is not mounted any more"
        return low_disk_reason(self._coordinator.outbox, self._orders.settings.min_free)

    def _reload_config(self) -> None:
        """Read the orders again; what is being worked on is finished by the old ones."""
        try:
            orders = self._read_orders()
            recipe = orders.worker_config.factory().recipe
        except BlurguardError as error:
            self._reporter.say(f"the settings stay as they were: {error}")
            return
        if fixed := self._orders.settings.fixed_but_changed(orders.settings):
            self._reporter.say(f"only a new start changes {', '.join(fixed)}")
        self._retiring.append(self._pool)
        self._apply_config(orders, recipe)
        self._reporter.say("the settings have been read again")

    def _retire(self) -> None:
        """Send those home who have finished what they were given by older orders."""
        busy = [flight.pool for flight in self._in_flight.values()]
        for pool in [pool for pool in self._retiring if pool not in busy]:
            self._retiring.remove(pool)
            pool.close()

    def _apply_config(self, orders: RuntimeConfig, recipe: str) -> None:
        self._orders = orders
        self._settling.settle_after(orders.settings.settle)
        crew, tell = orders.worker_config, orders.worker_config.progress

        def progress(source: Path, done: int, total: int | None) -> None:
            self._heartbeats.put(source)
            tell(source, done, total)

        self._pool = Pool(replace(crew, progress=progress), orders.settings.recycle)
        self._coordinator.open(recipe)

    def _wind_down(self) -> None:
        """Let those who work come to an end, for as long as they are granted."""
        self._scanning = False
        for path, flight in list(self._in_flight.items()):
            if not flight.started:
                del self._in_flight[path]
                flight.future.cancel()
                self._coordinator.requeue([path])
        until = self._clock() + self._orders.settings.grace
        while self._in_flight and self._clock() < until:
            self._heartbeat(DaemonState.STOPPING)
            self._process_events()
            self._collect(self._clock())

    def _heartbeat(self, state: DaemonState) -> None:
        working = sum(flight.started for flight in self._in_flight.values())
        queued = self._settling.settling + self._settling.queued + len(self._in_flight) - working
        self._reporter.heartbeat(state, self._why, queued, working)
