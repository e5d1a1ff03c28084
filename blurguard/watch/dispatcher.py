"""Runs jobs in worker pools, and keeps track of those in flight."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

from blurguard.anonymize.anonymizer import StagedResult
from blurguard.batch.workers import Job, Pool, WorkerConfig, result_of
from blurguard.files.filetypes import FileType, type_from_suffix
from blurguard.types import Outcome

SUSPENDED_SECONDS = 5.0  # a longer gap between two checks means that the computer or container was suspended


@dataclass(slots=True)
class InFlightJob:
    """A job that was submitted to a pool.

    Attributes:
        started: whether a worker has it.
        last_heartbeat: time of the last progress, None before the job starts.
    """

    job: Job
    future: Future[StagedResult | Outcome]
    pool: Pool
    started: bool = False
    last_heartbeat: float | None = None


class Dispatcher:
    """Submits jobs to a pool of workers. A pool with older settings finishes its jobs before it is closed."""

    def __init__(self, config: WorkerConfig, recycle: int, on_done: Callable[[], None]) -> None:
        """Create the first pool, see ``configure``; ``on_done`` is called in another thread when a job ends."""
        self.jobs: dict[Path, InFlightJob] = {}
        self._on_done = on_done
        self._heartbeats: SimpleQueue[Path] = SimpleQueue()  # sources of videos that made progress
        self._last_check = -math.inf
        self._pools: list[Pool] = []  # the current one is the last
        self.configure(config, recycle)

    def configure(self, config: WorkerConfig, recycle: int) -> None:
        """Submit jobs to a new pool from now on.

        Args:
            config: of its workers.
            recycle: files after which a worker process is replaced.
        """

        def progress(source: Path, done: int, total: int | None) -> None:
            self._heartbeats.put(source)
            config.progress(source, done, total)

        self._pools.append(Pool(replace(config, progress=progress), recycle))
        self._workers = config.workers

    @property
    def free(self) -> int:
        """Number of jobs to submit: one per worker, plus one spare."""
        return self._workers + 1 - len(self._in_current_pool())

    @property
    def working(self) -> int:
        """Number of jobs that a worker has."""
        return sum(entry.started for entry in self.jobs.values())

    def accepts(self, source: Path) -> bool:
        """Whether a file may be submitted: long videos leave one worker to the images."""
        videos = sum(type_from_suffix(path) is FileType.VIDEO for path in self.jobs)
        return type_from_suffix(source) is not FileType.VIDEO or videos < max(1, self._workers - 1)

    def submit(self, job: Job) -> None:
        """Submit a job to the current pool."""
        future = self._pools[-1].submit(job)
        self.jobs[job.source] = InFlightJob(job, future, self._pools[-1])
        future.add_done_callback(lambda _: self._on_done())

    def mark_started(self) -> Iterator[Path]:
        """Yield the sources whose jobs have started since: workers take jobs in the order of submission."""
        for entry in self._in_current_pool()[: self._workers]:
            if not entry.started:
                entry.started = True
                yield entry.job.source

    def pop_done(self) -> Iterator[tuple[Job, StagedResult | Outcome]]:
        """Yield and forget the jobs that have ended."""
        for entry in [entry for entry in self.jobs.values() if entry.future.done()]:
            del self.jobs[entry.job.source]
            yield entry.job, result_of(entry.job, entry.future)

    def cancel_waiting(self) -> Iterator[Path]:
        """Cancel the jobs that have not started, and yield their sources."""
        for entry in [entry for entry in self.jobs.values() if not entry.started]:
            del self.jobs[entry.job.source]
            entry.future.cancel()
            yield entry.job.source

    def cancel_stalled(self, now: float, timeout: float) -> None:
        """Stop the workers that made no progress for ``timeout`` seconds."""
        active = {self._heartbeats.get() for _ in range(self._heartbeats.qsize())}
        suspended, self._last_check = now - self._last_check > SUSPENDED_SECONDS, now  # workers too, most likely
        for source, entry in self.jobs.items():
            new = entry.last_heartbeat is None and entry.future.running()
            if new or source in active or (suspended and entry.last_heartbeat is not None):
                entry.last_heartbeat = now
            elif entry.last_heartbeat is not None and now - entry.last_heartbeat > timeout:
                entry.future.cancel()

    def close_retired(self) -> None:
        """Close the older pools that have finished their jobs."""
        busy = [entry.pool for entry in self.jobs.values()]
        for pool in [pool for pool in self._pools[:-1] if pool not in busy]:
            self._pools.remove(pool)
            pool.close()

    def close(self) -> None:
        """Stop all workers. Jobs in flight stay in ``jobs``."""
        for pool in self._pools:
            pool.close()

    def _in_current_pool(self) -> list[InFlightJob]:
        return [entry for entry in self.jobs.values() if entry.pool is self._pools[-1]]
