"""Event loop of a drop folder's daemon: processes events, submits jobs and collects their results.

Other threads only post events. Lost events do no harm: the whole inbox is scanned regularly.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from blurguard.batch.workers import Job, WorkerConfig
from blurguard.errors import BlurguardError, StorageError
from blurguard.files.stamp import FileStamp
from blurguard.settings import WatchSettings
from blurguard.types import Outcome
from blurguard.watch.coordinator import Coordinator, JobResult
from blurguard.watch.dispatcher import Dispatcher
from blurguard.watch.folders import dev_inode, low_disk_reason
from blurguard.watch.health import Clock, DaemonState
from blurguard.watch.inbox import ChangeType, DirectoryScanner, InboxObserver, has_final_name, is_being_written
from blurguard.watch.reporting import HealthReporter
from blurguard.watch.settling import FileProbe, SettlingQueue

TURN_SECONDS = 0.5  # longest wait for an event
SCAN_CHUNK = 500  # files scanned in one turn
MAX_EVENTS = 20_000  # that may be pending. More are dropped, and the whole inbox is scanned instead
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 1.0, 60.0  # after a write error
HOUSEKEEPING_SECONDS = 1.0  # between two rounds of checks that not every turn needs


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """Settings that a reload can change: of workers, redaction and inbox."""

    worker_config: WorkerConfig
    settings: WatchSettings


ReadConfig = Callable[[], RuntimeConfig]


class EventLoop:
    """Watches an inbox."""

    def __init__(
        self, coordinator: Coordinator, health: HealthReporter, config: RuntimeConfig, reload: ReadConfig, clock: Clock
    ) -> None:
        """Prepare everything. The inbox is not read yet.

        Args:
            coordinator: decides on files and records their results.
            health: reports to the user.
            config: for the start.
            reload: reads the settings again.
            clock: monotonic, in seconds.

        Raises:
            ModelError: the detector cannot run.
        """
        coordinator.open(config.worker_config.factory().recipe)
        self._coordinator, self._health, self._console = coordinator, health, health.console
        self._config, self._reload_config, self._clock = config, reload, clock
        self.stop_requested = self.reload_requested = False
        self._inbox, self._was_mount = coordinator.inbox, os.path.ismount(coordinator.inbox)
        self._events: SimpleQueue[tuple[ChangeType, Path] | None] = SimpleQueue()
        self._observer = InboxObserver(self._inbox, self._post_event)
        self._scanner, self._next_scan, self._next_housekeeping = DirectoryScanner(), -math.inf, -math.inf
        self._scanning = True  # whether the next turn must not wait: more files may be left to scan
        self._unlisted: set[Path] = set()
        self._settling = SettlingQueue(config.settings.settle)
        self._queued_jobs: dict[Path, tuple[Job, FileStamp]] = {}  # with the stamps of their sources
        self._dispatcher = Dispatcher(config.worker_config, config.settings.recycle, self.wake)
        self._pause_reason, self._paused_until = "", -math.inf  # no job is submitted while there is a reason
        self._pause_seconds = MIN_PAUSE_SECONDS  # after a write error, longer each time

    def run(self) -> None:
        """Run until asked to stop, then give running jobs the grace period to finish."""
        self._start_observer()
        while not self.stop_requested:
            self._process_events()
            if self.reload_requested:
                self.reload_requested = False
                self._reload()
            self._turn(self._clock())
        self._wind_down()

    def close(self) -> None:
        """Stop the observer and all workers. Unfinished files are queued for the next start."""
        self._observer.stop()
        self._dispatcher.close()
        self._coordinator.requeue(list(self._dispatcher.jobs))

    def wake(self) -> None:
        """Begin the next turn now. Safe in any thread and in signal handlers."""
        self._events.put(None)

    def _post_event(self, change: ChangeType, path: Path) -> None:
        """Post an event. Called by the observer's thread."""
        if self._events.qsize() < MAX_EVENTS:
            self._events.put((change, path))
        else:
            self._settling.overflowed = True

    def _start_observer(self) -> None:
        self._observer.stop()
        self._observer.poll = self._config.settings.poll
        if error := self._observer.start():
            self._console.say(f"{error}; scanning it every {self._config.settings.rescan:g} seconds instead")

    def _process_events(self) -> None:
        """Process pending events. Wait briefly if there are none."""
        now = self._clock()
        timeout = 0.0 if self._scanning else min(TURN_SECONDS, self._settling.seconds_to_wait(now))
        try:
            event = self._events.get(timeout=timeout) if timeout else self._events.get_nowait()
            for _ in range(MAX_EVENTS):
                if event is not None:
                    self._process_event(*event, self._clock())
                event = self._events.get_nowait()
        except Empty:
            return

    def _process_event(self, change: ChangeType, path: Path, now: float) -> None:
        if path == self._inbox or not has_final_name(path.relative_to(self._inbox)):
            return
        if change is ChangeType.FOLDER:
            self._scanner.add(path)
            return
        stamp = self._stamp_at(path)
        if stamp and change is not ChangeType.GONE and not self._coordinator.is_handled(path, stamp):
            self._queued_jobs.pop(path, None)
            self._settling.update(path, stamp, now, complete=change is ChangeType.COMPLETE)

    def _stamp_at(self, path: Path) -> FileStamp | None:
        """Return the stamp of a file, None without one. Forget a file that is gone."""
        stamp = self._coordinator.stamp_at(path)
        if stamp is None:
            self._queued_jobs.pop(path, None)
            self._settling.remove(path)
            if path not in self._dispatcher.jobs:
                self._coordinator.forget(path)
        return stamp

    def _turn(self, now: float) -> None:
        self._scan(now)
        self._collect(now)
        if now >= self._next_housekeeping:
            self._next_housekeeping = now + HOUSEKEEPING_SECONDS
            self._coordinator.write_error_reports()
            self._coordinator.check_journal()
        self._dispatcher.cancel_stalled(now, self._config.settings.timeout)
        self._decide_settled(now)
        self._pause_reason = self._reason_to_pause(now)
        if not self._pause_reason:
            self._submit_jobs(now)
        for source in self._dispatcher.mark_started():
            self._coordinator.mark_started(source)
        self._heartbeat(DaemonState.PAUSED if self._pause_reason else DaemonState.RUNNING)

    def _scan(self, now: float) -> None:
        """Scan the next files of the inbox, if a scan is due and the queue has room."""
        if now >= self._next_scan or (self._settling.overflowed and not self._settling.full):
            self._next_scan = now + self._config.settings.rescan
            self._settling.overflowed = False
            self._scanner.add(self._inbox)
            self._check_observer()
        for _ in range(SCAN_CHUNK):
            file = None if self._settling.full else self._scanner.next()
            self._scanning = file is not None
            if file is None:
                return
            path, stamp = file
            if stamp is not None and path not in self._settling and not self._coordinator.is_handled(path, stamp):
                self._settling.update(path, stamp, now)
            elif stamp is None and path not in self._unlisted:
                self._unlisted.add(path)
                self._console.say(f"{path}: cannot be listed, so its files are not processed; check its permissions")

    def _check_observer(self) -> None:
        """Restart the observer if it died, or if the inbox was replaced, for instance by a mount."""
        identity, died = dev_inode(self._inbox), self._observer.died
        if died:
            self._console.say(f"{self._inbox}: events have stopped; starting to watch it again")
        if identity is not None and (died or identity != self._observer.identity):
            self._start_observer()

    def _decide_settled(self, now: float) -> None:
        """Decide on the files that are complete."""
        queued = []
        for path in self._settling.pop_settled(now, self._probe):
            if (stamp := self._stamp_at(path)) is None:
                continue
            decision = self._coordinator.decide(path, stamp)
            if isinstance(decision, Outcome):
                self._health.file_done(decision)
            elif decision is not None:
                self._queued_jobs[path] = decision, stamp
                self._settling.enqueue(path)
                queued.append(path)
        try:
            self._coordinator.queue(queued)
        except StorageError as error:
            self._pause_after_error(now, str(error))

    def _probe(self, path: Path) -> FileProbe | None:
        if (stamp := self._stamp_at(path)) is None:
            return None
        return FileProbe(stamp, not self._config.settings.poll and bool(is_being_written(path)))

    def _submit_jobs(self, now: float) -> None:
        """Submit one job per worker, plus one spare."""
        while self._dispatcher.free > 0 and (path := self._settling.assign(self._dispatcher.accepts)) is not None:
            job, stamp = self._queued_jobs.pop(path)
            if self._stamp_at(path) != stamp:  # it has changed without an event
                self._postpone(path, now)
                continue
            try:
                self._coordinator.start(job)
            except StorageError as error:
                self._postpone(path, now, str(error))
                return
            self._dispatcher.submit(job)

    def _collect(self, now: float) -> None:
        """Record the results of jobs that have ended."""
        for job, raw_result in self._dispatcher.pop_done():
            result, outcome = self._coordinator.finish(job, raw_result)
            self._settling.release(job.source)
            if result in (JobResult.CHANGED, JobResult.UNAVAILABLE):
                self._postpone(job.source, now, outcome.reason if result is JobResult.UNAVAILABLE else "")
            elif result is JobResult.GONE:
                self._console.clear_progress(job.source)
            else:
                self._pause_seconds = MIN_PAUSE_SECONDS
                self._health.file_done(outcome)
        self._dispatcher.close_retired()

    def _postpone(self, path: Path, now: float, reason_to_pause: str = "") -> None:
        """Let a file settle once more. Pause first if there is a reason."""
        self._settling.release(path)
        self._console.clear_progress(path)
        self._coordinator.requeue([path])
        if (stamp := self._coordinator.stamp_at(path)) is not None:
            self._settling.update(path, stamp, now)
        if reason_to_pause:
            self._pause_after_error(now, reason_to_pause)

    def _pause_after_error(self, now: float, reason: str) -> None:
        self._pause_reason, self._paused_until = reason, now + self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, MAX_PAUSE_SECONDS)
        self._console.say(f"paused, no file is lost: {reason}")

    def _reason_to_pause(self, now: float) -> str:
        if now < self._paused_until:
            return self._pause_reason
        if dev_inode(self._inbox) is None:
            self._observer.identity = None  # a folder that takes its place is another one, even with the same inode
            return f"{self._inbox} is gone"
        if self._was_mount and not os.path.ismount(self._inbox):
            return f"{self._inbox} is not mounted any more"
        return low_disk_reason(self._coordinator.outbox, self._config.settings.min_free)

    def _reload(self) -> None:
        """Read the settings again. Jobs in flight finish with the old ones."""
        try:
            config = self._reload_config()
            recipe = config.worker_config.factory().recipe  # raises before anything has changed
        except BlurguardError as error:
            self._console.say(f"the settings stay as they were: {error}")
            return
        if fixed := self._config.settings.fixed_but_changed(config.settings):
            self._console.say(f"only a restart changes {', '.join(fixed)}")
        self._config = config
        self._settling.settle_after(config.settings.settle)
        self._dispatcher.configure(config.worker_config, config.settings.recycle)
        self._coordinator.open(recipe)
        self._console.say("the settings have been read again")

    def _wind_down(self) -> None:
        """Cancel the jobs that have not started. Give the others the grace period to finish."""
        self._scanning = False
        self._coordinator.requeue(list(self._dispatcher.cancel_waiting()))
        deadline = self._clock() + self._config.settings.grace
        while self._dispatcher.jobs and self._clock() < deadline:
            self._heartbeat(DaemonState.STOPPING)
            self._process_events()
            self._collect(self._clock())

    def _heartbeat(self, state: DaemonState) -> None:
        working = self._dispatcher.working
        queued = self._settling.settling + self._settling.queued + len(self._dispatcher.jobs) - working
        self._health.heartbeat(state, self._pause_reason, queued, working)
