"""Many files: what is to be done with each, by one process or several, and one place that gives results names.

Workers read, detect, hide and leave drafts in scratch; only the caller's process decides, publishes and keeps
the journal. A worker that dies costs its own file.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.synchronize import Semaphore
from pathlib import Path

from pebble import ProcessExpired, ProcessPool

from blurguard.errors import EXIT_UNFORESEEN, BlurguardError, ConfigError, InputError, OutputError
from blurguard.journal import FILE_NAME, IN_PLACE_NAME, Entry, Journal, Stamp, State, open_journal
from blurguard.media import Found, discover, kind_of_file
from blurguard.output import STATE_FOLDER, digest_of, publish, scratch_in, sweep
from blurguard.pipeline import Anonymizer, Work
from blurguard.process import worker_process
from blurguard.types import Outcome, Status

Factory = Callable[[], Anonymizer]
# Files handed out before the first of them is back: enough that no worker waits, few enough to stay in order.
_WINDOW_PER_WORKER = 3
_START_SECONDS = 5.0  # the longest wait for a worker that is still starting when the others are done


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
class FolderTask:
    """What ``blur_folder`` is to do.

    Attributes:
        folder: searched with everything below it.
        out: the mirrored tree; ``folder`` itself replaces the originals.
        factory: makes a worker's ``Anonymizer``; is sent to other processes.
        workers: processes; 1 works in the caller's.
        overwrite: replace files of ``out`` that are not known to be ours.
        dry_run: find faces and tell, write nothing.
    """

    folder: Path
    out: Path
    factory: Factory
    workers: int = 1
    overwrite: bool = False
    dry_run: bool = False

    def discover(self) -> Found:
        """Return what is to be handled.

        Raises:
            InputError: no such folder.
            ConfigError: ``out`` lies where it must not.
        """
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"{self.out}: is a file; choose a folder for --out")
        if not self.in_place:
            self._refuse_overlap()
        return discover(self.folder)

    def _refuse_overlap(self) -> None:
        """Keep results from mingling with originals: what is left alone as ours must be ours."""
        folder, out = self.folder.resolve(), self.out.resolve()
        if out in folder.parents:
            raise ConfigError(f"{self.out}: holds the originals in {self.folder}; choose another --out")
        if folder not in out.parents or not out.is_dir() or (out / STATE_FOLDER / FILE_NAME).exists():
            return
        if discover(out).media:
            raise ConfigError(f"{self.out}: holds pictures that blurguard did not make; choose another --out")

    @property
    def in_place(self) -> bool:
        """Whether the originals themselves are replaced."""
        return self.folder.resolve() == self.out.resolve()


def blur_folder(task: FolderTask, files: Iterable[Path]) -> Iterator[Outcome]:
    """Hide the faces in files of a folder and yield what became of each, in their order.

    Raises:
        ModelError: the detector cannot run.
        OutputError: the output folder as a whole cannot be used.
    """
    files = list(files)
    workers = max(1, min(task.workers, len(files)))
    if task.dry_run or not files:
        yield from _dry(task.factory, workers, files)
        return
    anonymizer = task.factory()
    sweep(task.out)
    name = IN_PLACE_NAME if task.in_place else FILE_NAME
    with open_journal(task.out, name) as journal, scratch_in(task.out) as scratch:
        folder = _Folder(task, journal, anonymizer.recipe, scratch)
        yield from _settled(workers, task.factory, files, folder.decide, folder.publish, folder.note)


def blur_files(
    pairs: Iterable[tuple[Path, Path]], factory: Factory, workers: int, overwrite: bool, dry_run: bool
) -> Iterator[Outcome]:
    """Hide the faces in single files, given with the names of their results; yields what became of each."""
    targets = dict(pairs)
    if dry_run:
        yield from _dry(factory, workers, targets)
        return
    factory()  # a detector that cannot run is no file's failure
    with contextlib.ExitStack() as stack:
        scratches: dict[Path, Path] = {}

        def decide(source: Path) -> Job:
            target, folder = targets[source], targets[source].parent
            if not overwrite and os.path.lexists(target):
                raise OutputError(f"{target}: exists already; give --overwrite to replace it")
            kind_of_file(source)  # a source that is not there leaves no folder behind
            if folder not in scratches:
                sweep(folder)
                scratches[folder] = stack.enter_context(scratch_in(folder))
            return Job(source, target, scratches[folder], overwrite)

        yield from _settled(workers, factory, targets, decide, _publish_alone, lambda *_: None)


def look_at_files(files: Iterable[Path], factory: Factory, workers: int) -> Iterator[Outcome]:
    """Find the faces in files, hide nothing; yields what was found in each, in their order."""
    return _settled(workers, factory, files, Job, _publish_nothing, lambda *_: None)


class _Folder:
    """The decisions about one output folder, which its journal informs."""

    def __init__(self, task: FolderTask, journal: Journal, recipe: str, scratch: Path) -> None:
        self._task = task
        self._journal = journal
        self._recipe = recipe
        self._scratch = scratch
        self._out = task.out.resolve()
        self._root = digest_of(os.fsencode(task.folder.resolve()))

    def decide(self, source: Path) -> Job | Outcome:
        """Return what is to be done, or that it is done already.

        Raises:
            OutputError: a file is in the way that is not ours to replace.
        """
        name = source.relative_to(self._task.folder)
        target = self._task.out / name
        if not target.parent.resolve().is_relative_to(self._out):
            raise OutputError(f"{target.parent}: leads out of {self._task.out}; remove that link")
        entry = self._journal.get(name)
        if not os.path.lexists(target):
            return Job(source, target, self._scratch)
        ours = _ours_at(target, entry)
        if ours and entry is not None and ours == entry.output_digest and self._up_to_date(entry, source):
            return Outcome(source, Status.SKIPPED, target, reason="done before and unchanged")
        if not (self._task.overwrite or self._task.in_place):
            if not ours or entry is None:
                raise OutputError(_why_refused(target, entry))
            if entry.root != self._root and not entry.came_from(source):
                raise OutputError(f"{target}: is the result of another folder's picture; choose another --out")
        return Job(source, target, self._scratch, replace=True)

    def _up_to_date(self, entry: Entry, source: Path) -> bool:
        if entry.state is State.FAILED or entry.recipe != self._recipe:
            return False
        return self._task.in_place or entry.came_from(source)

    def publish(self, job: Job, work: Work) -> None:
        """Give the result its name, and have it in the journal whatever moment we die at."""
        assert job.target is not None and work.draft is not None  # noqa: S101 - decide() made it so
        name, draft = job.source.relative_to(self._task.folder), work.draft
        if self._task.in_place and Stamp.of(job.source) != work.source:
            draft.path.unlink()
            raise InputError(f"{job.source}: was changed while it was worked on; run again")
        entry = Entry(
            State.PUBLISHING,
            work.source,
            work.source_digest,
            self._recipe,
            draft.size,
            draft.mtime_ns,
            draft.digest,
            replaced_digest=_ours_at(job.target, self._journal.get(name)),
            root=self._root,
        )
        self._journal.put(name, entry)
        publish(draft, job.target, job.replace)
        with contextlib.suppress(OutputError):  # a full disk, say; `publishing` tells as much
            self._journal.put(name, replace(entry, state=State.DONE))

    def note(self, job: Job, outcome: Outcome) -> None:
        """Remember a failure."""
        self._journal.fail(job.source.relative_to(self._task.folder), outcome.reason)


def _ours_at(target: Path, entry: Entry | None) -> str:
    """Return the digest of our result at ``target``, "" where there is none."""
    if entry is None or target.is_symlink() or not target.is_file():
        return ""
    return entry.result_at(target)


def _why_refused(target: Path, entry: Entry | None) -> str:
    if entry is None or not entry.output_digest:
        return f"{target}: exists, and blurguard did not make it; give --overwrite to replace it"
    return f"{target}: was changed after blurguard made it; give --overwrite to replace it"


def _publish_alone(job: Job, work: Work) -> None:
    assert job.target is not None and work.draft is not None  # noqa: S101 - blur_files made it so
    publish(work.draft, job.target, job.replace)


def _publish_nothing(job: Job, work: Work) -> None:
    """Files that are only looked at have no result."""


def _dry(factory: Factory, workers: int, files: Iterable[Path]) -> Iterator[Outcome]:
    for outcome in look_at_files(files, factory, workers):
        done = outcome.status is Status.DONE
        yield replace(outcome, status=Status.SKIPPED, reason="dry run") if done else outcome


def _settled(
    workers: int,
    factory: Factory,
    files: Iterable[Path],
    decide: Callable[[Path], Job | Outcome],
    publish_one: Callable[[Job, Work], None],
    note: Callable[[Job, Outcome], None],
) -> Iterator[Outcome]:
    """Decide on each file, have it worked on, publish it; failures become outcomes."""

    def decided() -> Iterator[Job | Outcome]:
        for source in files:
            job = Job(source)
            try:
                yield decide(source)
            except BlurguardError as error:
                yield _failure(job, error)
            except OSError as error:
                yield _failure(job, InputError(f"{source}: cannot be read: {error.strerror}"))

    run = _serial if workers == 1 else _parallel
    for job, result in run(workers, factory, decided()):
        if isinstance(result, Outcome):
            if job is not None and result.status is Status.FAILED:
                _try_to_note(note, job, result)
            yield result
            continue
        assert job is not None  # noqa: S101 - only a job gives work
        try:
            publish_one(job, result)
        except (BlurguardError, OSError) as error:
            outcome = _failure(job, error)
            _try_to_note(note, job, outcome)
            yield outcome
        else:
            yield replace(result.outcome, target=job.target)


def _try_to_note(note: Callable[[Job, Outcome], None], job: Job, outcome: Outcome) -> None:
    """Remember a failure; that it cannot be remembered, on a full disk say, is no failure of the others."""
    with contextlib.suppress(OutputError):
        note(job, outcome)


Results = Iterator[tuple[Job | None, Work | Outcome]]


def _serial(workers: int, factory: Factory, jobs: Iterable[Job | Outcome]) -> Results:
    """Work in this process."""
    anonymizer = factory()
    for job in jobs:
        yield (None, job) if isinstance(job, Outcome) else (job, _attempt(anonymizer, job))


def _parallel(workers: int, factory: Factory, jobs: Iterable[Job | Outcome]) -> Results:
    """Work in other processes; results come in the order of the jobs."""
    # Forked interpreters have hung: every worker starts afresh.
    context = multiprocessing.get_context("spawn")
    started, starting = context.Semaphore(0), 0
    resource_tracker.ensure_running()  # its start would let Ctrl-C through to what starts after it
    pool = ProcessPool(workers, initializer=_start_worker, initargs=(factory, started), context=context)
    pending: deque[tuple[Job | None, Callable[[], Work | Outcome]]] = deque()
    try:
        for job in jobs:
            if isinstance(job, Outcome):
                pending.append((None, lambda outcome=job: outcome))  # type: ignore[misc]
            else:
                starting = workers  # the pool starts all of them with its first task
                with _sigint_blocked():
                    pending.append((job, pool.schedule(_attempt_here, args=[job]).result))
            if len(pending) >= workers * _WINDOW_PER_WORKER:
                yield _result(*pending.popleft())
        while pending:
            yield _result(*pending.popleft())
    finally:
        for _ in range(starting):  # a worker that is stopped while it starts complains on standard error
            started.acquire(timeout=_START_SECONDS)
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Have threads and processes that start meanwhile never see Ctrl-C, which is this thread's business."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _result(job: Job | None, result: Callable[[], Work | Outcome]) -> tuple[Job | None, Work | Outcome]:
    """Wait for a result; a worker that died is the failure of its file."""
    try:
        return job, result()
    except ProcessExpired as error:
        assert job is not None  # noqa: S101 - an outcome needs no worker
        return job, _failure(job, RuntimeError(f"the process that worked on it died (exit code {error.exitcode})"))


def _attempt(anonymizer: Anonymizer, job: Job) -> Work | Outcome:
    """Work on one file; whatever goes wrong with it is its outcome and nobody else's."""
    try:
        if job.scratch is None:
            return anonymizer.look(job.source)
        return anonymizer.work(job.source, job.scratch)
    except Exception as error:
        return _failure(job, error)


def _failure(job: Job, error: Exception) -> Outcome:
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


def _start_worker(factory: Factory, started: Semaphore) -> None:
    """Set up a worker process, and tell that it has started."""
    global _anonymizer  # noqa: PLW0603 - the pool gives tasks no other place to keep a worker's state
    worker_process()
    started.release()
    _anonymizer = factory()


def _attempt_here(job: Job) -> Work | Outcome:
    assert _anonymizer is not None  # noqa: S101 - _start_worker has run
    return _attempt(_anonymizer, job)
