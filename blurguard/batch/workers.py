"""Runs jobs in this process or in a pool of workers. A worker that dies fails only the job it was running."""

from __future__ import annotations

import contextlib
import multiprocessing
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from threading import Thread
from time import monotonic

from pebble import ProcessExpired, ProcessPool

from blurguard.anonymize.anonymizer import Anonymizer, Progress, StagedResult
from blurguard.batch.process import configure_worker, defer_signals
from blurguard.errors import EXIT_UNFORESEEN, BlurguardError
from blurguard.files.atomic import digest_bytes
from blurguard.types import Outcome, Status

Factory = Callable[[], Anonymizer]
# Jobs submitted per worker, with the one it is running: enough to keep every worker busy.
_AHEAD_PER_WORKER = 3
_START_SECONDS = 5.0  # longest wait for a worker that is still starting when the pool closes
_DYING_SECONDS = 2.0  # longest wait for the last messages of stopped workers
# Progress of a video: digest of its path, frames done, frames in total or -1. Writes to a pipe of up to PIPE_BUF
# bytes (POSIX: at least 512) are atomic, so workers need no lock, which a dying worker would keep.
_PROGRESS_MESSAGE = struct.Struct("=32sqq")
_PROGRESS_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    """One file to process.

    Attributes:
        source: to read.
        target: name of the result, None without one.
        scratch: folder in which a worker leaves the result, None to find faces only.
        replace: whether ``target`` may be replaced.
    """

    source: Path
    target: Path | None = None
    scratch: Path | None = None
    replace: bool = False


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Number and equipment of the workers.

    Attributes:
        factory: makes the ``Anonymizer`` of a worker. It is sent to other processes.
        workers: processes. With 1, jobs run in the caller's process.
        threads: of each worker, for the frames of videos.
        progress: called with the progress of videos, perhaps from another thread.
    """

    factory: Factory
    workers: int = 1
    threads: int = 1
    progress: Progress = lambda *_: None

    def sized_for(self, files: int) -> WorkerConfig:
        """Return a configuration for this number of files: fewer workers if there are few, with more threads each."""
        workers = max(1, min(self.workers, files))
        return replace(self, workers=workers, threads=max(1, self.workers * self.threads // workers))


Results = Iterator[tuple[int, Job | None, StagedResult | Outcome]]


def run_jobs(config: WorkerConfig, jobs: Iterable[Job | Outcome]) -> Results:
    """Run jobs and yield (number, job, result) as each ends. An ``Outcome`` among the jobs passes through."""
    return (_serial if config.workers == 1 else _parallel)(config, jobs)


def _serial(config: WorkerConfig, jobs: Iterable[Job | Outcome]) -> Results:
    anonymizer = config.factory()
    anonymizer.threads, anonymizer.progress = config.threads, _throttled(config.progress)
    for number, job in enumerate(jobs):
        yield (number, None, job) if isinstance(job, Outcome) else (number, job, _attempt(anonymizer, job))


def _parallel(config: WorkerConfig, jobs: Iterable[Job | Outcome]) -> Results:
    pending: dict[Future[StagedResult | Outcome], tuple[int, Job]] = {}
    with contextlib.closing(Pool(config)) as pool:
        for number, job in enumerate(jobs):
            if isinstance(job, Outcome):
                yield number, None, job
                continue
            pending[pool.submit(job)] = number, job
            while len(pending) >= config.workers * _AHEAD_PER_WORKER:
                yield from _completed(pending)
        while pending:
            yield from _completed(pending)


def _completed(pending: dict[Future[StagedResult | Outcome], tuple[int, Job]]) -> Results:
    """Wait until at least one job has ended, and yield all that have."""
    wait(pending, return_when=FIRST_COMPLETED)
    for future in [future for future in pending if future.done()]:
        number, job = pending.pop(future)
        yield number, job, result_of(job, future)


class Pool:
    """A pool of worker processes. A worker that dies fails only the job it was running.

    Cancelling a job that is running stops its worker, and another one takes its place.
    """

    def __init__(self, config: WorkerConfig, recycle: int = 0) -> None:
        """Create the pool. Workers start with the first job.

        Args:
            config: number and equipment of the workers.
            recycle: number of files after which a worker is replaced, 0 for never.
        """
        # Forked interpreters have hung, so every worker starts a new one.
        context = multiprocessing.get_context("spawn")
        self._workers, self._started, self._starting = config.workers, context.Semaphore(0), 0
        resource_tracker.ensure_running()  # started later, it would let Ctrl-C through to the workers after it
        self._reader = _ProgressReader(config.progress)
        arguments = config.factory, config.threads, self._started, self._reader.send_end
        self._start = partial(ProcessPool, config.workers, recycle, _start_worker, arguments, context)
        self._pool = self._start()

    def submit(self, job: Job) -> Future[StagedResult | Outcome]:
        """Submit a job. ``result_of`` returns its result from the future."""
        self._starting = self._workers  # the pool starts all workers with its first task
        self._reader.expect(job.source)
        with defer_signals():
            if not self._pool.active:  # pebble's pool stops if a worker dies while all are idle
                self._stop()
                self._pool = self._start()
            future: Future[StagedResult | Outcome] = self._pool.schedule(_attempt_here, args=[job])
        future.add_done_callback(lambda _: self._reader.forget(job.source))
        return future

    def close(self) -> None:
        """Stop all workers at once, with the jobs that they are running."""
        for _ in range(self._starting):  # a worker that is stopped while it starts prints an error
            self._started.acquire(timeout=_START_SECONDS)
        self._stop()
        self._reader.close()

    def _stop(self) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()


class _ProgressReader:
    """Receives the progress of videos from the workers, in a thread, and passes it on."""

    def __init__(self, progress: Progress) -> None:
        self._receive_end, self.send_end = multiprocessing.Pipe(duplex=False)
        self._progress = progress
        self._sources: dict[bytes, Path] = {}
        self._thread = Thread(target=self._run, daemon=True)
        with defer_signals():
            self._thread.start()

    def expect(self, source: Path) -> None:
        """Pass on the progress of a file from now on."""
        self._sources[_key(source)] = source

    def forget(self, source: Path) -> None:
        """Ignore the progress of a file from now on."""
        self._sources.pop(_key(source), None)

    def close(self) -> None:
        """End the thread. The last messages may be lost."""
        self.send_end.close()
        self._thread.join(_DYING_SECONDS)
        if not self._thread.is_alive():  # otherwise a dying process still holds the other end
            self._receive_end.close()

    def _run(self) -> None:
        with contextlib.suppress(EOFError):
            while True:
                key, done, total = _PROGRESS_MESSAGE.unpack(self._receive_end.recv_bytes())
                if source := self._sources.get(key):
                    self._progress(source, done, None if total < 0 else total)


def _key(source: Path) -> bytes:
    return bytes.fromhex(digest_bytes(bytes(source)))


def _throttled(progress: Progress) -> Progress:
    """Return a progress function that passes on a few calls a second, and the last one."""
    last = 0.0

    def report(source: Path, done: int, total: int | None) -> None:
        nonlocal last
        if (now := monotonic()) - last >= _PROGRESS_SECONDS or done == total:
            last = now
            progress(source, done, total)

    return report


def result_of(job: Job, future: Future[StagedResult | Outcome]) -> StagedResult | Outcome:
    """Return the result of a job that has ended. If its worker died or was stopped, that is a failure of the file."""
    try:
        return future.result()
    except ProcessExpired as error:
        return failed_outcome(job, RuntimeError(f"the process that worked on it died (exit code {error.exitcode})"))
    except BrokenProcessPool as error:
        return failed_outcome(job, error)
    except CancelledError:
        return failed_outcome(job, RuntimeError("the process that worked on it gave no sign of life and was stopped"))


def _attempt(anonymizer: Anonymizer, job: Job) -> StagedResult | Outcome:
    """Run one job. Every error becomes the outcome of its file."""
    try:
        return anonymizer.work(job.source, job.scratch) if job.scratch else anonymizer.look(job.source)
    except Exception as error:
        return failed_outcome(job, error)


def failed_outcome(job: Job, error: Exception) -> Outcome:
    """Return the outcome of a job that has failed, with a message that names the file."""
    reason, name = str(error), type(error).__name__
    if not isinstance(error, BlurguardError):
        reason = f"{job.source}: unforeseen failure: {name}: {error}"
    elif str(job.source) not in reason:
        reason = f"{job.source}: {error}"
    exit_code = error.exit_code if isinstance(error, BlurguardError) else EXIT_UNFORESEEN
    return Outcome(job.source, Status.FAILED, job.target, reason=reason, error=name, exit_code=exit_code)


_anonymizer: Anonymizer | None = None  # of this worker process


def _start_worker(factory: Factory, threads: int, started: Semaphore, send_end: Connection) -> None:
    """Set up a worker process, and report that it has started."""
    global _anonymizer  # noqa: PLW0603 - pebble offers no other place for the state of a worker
    configure_worker()
    started.release()
    _anonymizer = factory()
    _anonymizer.threads = threads

    def report(source: Path, done: int, total: int | None) -> None:
        send_end.send_bytes(_PROGRESS_MESSAGE.pack(_key(source), done, -1 if total is None else total))

    _anonymizer.progress = _throttled(report)


def _attempt_here(job: Job) -> StagedResult | Outcome:
    assert _anonymizer is not None  # noqa: S101 - _start_worker has run
    return _attempt(_anonymizer, job)
