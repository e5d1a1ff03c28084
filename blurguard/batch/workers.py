"""Those who work on files: this process, or several others. A worker that dies costs its own file."""

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
# Files handed out to each worker, with the one it works on: enough that no worker waits.
_AHEAD_PER_WORKER = 3
_START_SECONDS = 5.0  # the longest wait for a worker that is still starting when the others are done
_DYING_SECONDS = 2.0  # after the workers were stopped, until nobody can tell anything any more
# How a worker tells of a video: who (digest of the path), frames done, frames in all or -1. Writes to a pipe of
# less than PIPE_BUF (POSIX: at least 512) bytes are atomic, so workers need no lock that one could die with.
_PROGRESS_MESSAGE = struct.Struct("=32sqq")
_PROGRESS_SECONDS = 0.2


def _ignore_progress(source: Path, done: int, total: int | None) -> None:
    """Keep the progress of videos to ourselves."""


@dataclass(frozen=True, slots=True)
class Job:
    """One file on its way.

    Attributes:
        source: to read.
        target: name of the result; None when files are only looked at.
        scratch: where a worker leaves the result; None when nothing is to be written.
        replace: whether ``target`` may be replaced.
    """

    source: Path
    target: Path | None = None
    scratch: Path | None = None
    replace: bool = False


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Who works.

    Attributes:
        factory: makes a worker's ``Anonymizer``; is sent to other processes.
        workers: processes; 1 works in the caller's.
        threads: of each worker, for the frames of videos.
        progress: is told how videos go; may be called from another thread.
    """

    factory: Factory
    workers: int = 1
    threads: int = 1
    progress: Progress = _ignore_progress

    def sized_for(self, files: int) -> WorkerConfig:
        """Return a crew for so many files: with fewer workers than there were to be, each gets more threads."""
        workers = max(1, min(self.workers, files))
        return replace(self, workers=workers, threads=max(1, self.workers * self.threads // workers))


Results = Iterator[tuple[int, Job | None, StagedResult | Outcome]]


def run_jobs(crew: WorkerConfig, jobs: Iterable[Job | Outcome]) -> Results:
    """Yield what became of each job, as it ends, with its number; outcomes pass as they are."""
    return (_serial if crew.workers == 1 else _parallel)(crew, jobs)


def _serial(crew: WorkerConfig, jobs: Iterable[Job | Outcome]) -> Results:
    """Work in this process."""
    anonymizer = crew.factory()
    anonymizer.threads, anonymizer.progress = crew.threads, _throttled(crew.progress)
    for number, job in enumerate(jobs):
        yield (number, None, job) if isinstance(job, Outcome) else (number, job, _attempt(anonymizer, job))


def _parallel(crew: WorkerConfig, jobs: Iterable[Job | Outcome]) -> Results:
    """Work in other processes."""
    pending: dict[Future[StagedResult | Outcome], tuple[int, Job]] = {}
    with contextlib.closing(Pool(crew)) as pool:
        for number, job in enumerate(jobs):
            if isinstance(job, Outcome):
                yield number, None, job
                continue
            pending[pool.submit(job)] = number, job
            while len(pending) >= crew.workers * _AHEAD_PER_WORKER:
                yield from _completed(pending)
        while pending:
            yield from _completed(pending)


def _completed(pending: dict[Future[StagedResult | Outcome], tuple[int, Job]]) -> Results:
    """Wait until at least one job has ended, and yield those that have."""
    wait(pending, return_when=FIRST_COMPLETED)
    for future in [future for future in pending if future.done()]:
        number, job = pending.pop(future)
        yield number, job, result_of(job, future)


class Pool:
    """Other processes, which work on jobs as they are handed over. One that dies costs its own file.

    A job that is cancelled while somebody works on it costs its worker as well: another one takes its place.
    """

    def __init__(self, crew: WorkerConfig, recycle: int = 0) -> None:
        """Get ready; the processes start with the first job.

        Args:
            crew: who works.
            recycle: files after which a worker is replaced; 0 is never.
        """
        # Forked interpreters have hung: every worker starts afresh.
        context = multiprocessing.get_context("spawn")
        self._started, self._starting = context.Semaphore(0), 0
        self._workers = crew.workers
        resource_tracker.ensure_running()  # its start would let Ctrl-C through to what starts after it
        self._reader = _ProgressReader(crew.progress)
        arguments = crew.factory, crew.threads, self._started, self._reader.send_end
        self._start = partial(
            ProcessPool,
            crew.workers,
            max_tasks=recycle,
            initializer=_start_worker,
            initargs=arguments,
            context=context,
        )
        self._pool = self._start()

    def submit(self, job: Job) -> Future[StagedResult | Outcome]:
        """Hand over a job; ``result_of`` tells what became of it."""
        self._starting = self._workers  # the pool starts all of them with its first task
        self._reader.expect(job.source)
        with defer_signals():
            if not self._pool.active:  # pebble's gives up when a worker dies while none has anything to do
                self._stop()
                self._pool = self._start()
            future: Future[StagedResult | Outcome] = self._pool.schedule(_attempt_here, args=[job])
        future.add_done_callback(lambda _: self._reader.forget(job.source))
        return future

    def close(self) -> None:
        """Stop all workers, whatever they are doing."""
        for _ in range(self._starting):  # a worker that is stopped while it starts complains on standard error
            self._started.acquire(timeout=_START_SECONDS)
        self._stop()
        self._reader.close()

    def _stop(self) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()


class _ProgressReader:
    """Reads in a thread what workers tell of their videos, and passes it on."""

    def __init__(self, progress: Progress) -> None:
        self._receive_end, self.send_end = multiprocessing.Pipe(duplex=False)
        self._progress = progress
        self._sources: dict[bytes, Path] = {}
        self._thread = Thread(target=self._run, daemon=True)
        with defer_signals():
            self._thread.start()

    def expect(self, source: Path) -> None:
        """Know a file by its digest."""
        self._sources[_key(source)] = source

    def forget(self, source: Path) -> None:
        """Know it no more."""
        self._sources.pop(_key(source), None)

    def close(self) -> None:
        """End the thread; what was told last may get lost."""
        self.send_end.close()
        self._thread.join(_DYING_SECONDS)
        if not self._thread.is_alive():  # else somebody who shall be dead still holds the other end: leave him
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
    """Return a progress that passes on a few reports a second, and the last one."""
    last = 0.0

    def told(source: Path, done: int, total: int | None) -> None:
        nonlocal last
        if (now := monotonic()) - last >= _PROGRESS_SECONDS or done == total:
            last = now
            progress(source, done, total)

    return told


def result_of(job: Job, future: Future[StagedResult | Outcome]) -> StagedResult | Outcome:
    """Return the result of a job that has ended; a worker that died or was stopped is the failure of its file."""
    try:
        return future.result()
    except ProcessExpired as error:
        return failed_outcome(job, RuntimeError(f"the process that worked on it died (exit code {error.exitcode})"))
    except BrokenProcessPool as error:
        return failed_outcome(job, error)
    except CancelledError:
        return failed_outcome(job, RuntimeError("the process that worked on it gave no sign of life and was stopped"))


def _attempt(anonymizer: Anonymizer, job: Job) -> StagedResult | Outcome:
    """Work on one file; whatever goes wrong with it is its outcome and nobody else's."""
    try:
        if job.scratch is None:
            return anonymizer.look(job.source)
        return anonymizer.work(job.source, job.scratch)
    except Exception as error:
        return failed_outcome(job, error)


def failed_outcome(job: Job, error: Exception) -> Outcome:
    """Return what became of a file with which something went wrong."""
    known = isinstance(error, BlurguardError)
    told = str(error) if str(job.source) in str(error) else f"{job.source}: {error}"
    return Outcome(
        job.source,
        Status.FAILED,
        job.target,
        reason=told if known else f"{job.source}: unforeseen failure: {type(error).__name__}: {error}",
        error=type(error).__name__,
        exit_code=error.exit_code if isinstance(error, BlurguardError) else EXIT_UNFORESEEN,
    )


_anonymizer: Anonymizer | None = None  # of this worker process


def _start_worker(factory: Factory, threads: int, started: Semaphore, mouth: Connection) -> None:
    """Set up a worker process, and tell that it has started."""
    global _anonymizer  # noqa: PLW0603 - the pool gives tasks no other place to keep a worker's state
    configure_worker()
    started.release()
    _anonymizer = factory()
    _anonymizer.threads = threads

    def told(source: Path, done: int, total: int | None) -> None:
        mouth.send_bytes(_PROGRESS_MESSAGE.pack(_key(source), done, -1 if total is None else total))

    _anonymizer.progress = _throttled(told)


def _attempt_here(job: Job) -> StagedResult | Outcome:
    assert _anonymizer is not None  # noqa: S101 - _start_worker has run
    return _attempt(_anonymizer, job)
