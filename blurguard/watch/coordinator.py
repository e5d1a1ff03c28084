"""The one place of a drop folder that decides what is to be done with a file, and settles what was done with it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from blurguard.anonymize.anonymizer import StagedResult
from blurguard.batch.journal import FileRecord, FileState, Journal
from blurguard.batch.output_tree import FolderTask, OutputTree, recover
from blurguard.batch.workers import Job, failed_outcome
from blurguard.errors import BlurguardError, InputError, OutputError, StorageError
from blurguard.files.atomic import STATE_FOLDER, make_folders, remove_stale_parts
from blurguard.files.errors import os_errors
from blurguard.files.filetypes import FileType, type_from_suffix, type_of_file
from blurguard.files.move import delete, move, verify
from blurguard.files.stamp import FileStamp, stamp_at
from blurguard.settings import Originals
from blurguard.types import Outcome
from blurguard.watch.folders import Folders, dev_inode
from blurguard.watch.inbox import is_being_written
from blurguard.watch.quarantine import Quarantine

ERROR_REPORTS_FOLDER = "failed"  # in the outbox's own folder: notes on failures whose originals stay in the inbox


class JobResult(StrEnum):
    """How a file's turn ended."""

    DONE = "done"
    FAILED = "failed"
    AGAIN = "again"  # it changed while it was worked on
    GONE = "gone"  # it was taken away while it was worked on
    LATER = "later"  # nothing can be written at present


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to become of a complete file: a job, an outcome to tell, or neither when it is none of our business."""

    job: Job | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class WatchPaths:
    """Where everything lies, and what becomes of originals.

    Attributes:
        folders: as they were checked.
        scratch: on the file system of the outbox.
        policy: for originals whose results stand.
        poll: who writes to a file cannot be told.
        patience: seconds for a writer that cannot be seen, before its file is taken away for having failed.
    """

    folders: Folders
    scratch: Path
    policy: Originals
    poll: bool = False
    patience: float = 0.0


@dataclass(frozen=True, slots=True)
class _PendingReport:
    """A failure without a note, and until when a writer may take its time."""

    outcome: Outcome
    stamp: FileStamp
    until: float
    warned: bool = False


class Coordinator:
    """Decides, publishes, keeps the journal, and does with originals what was asked for."""

    def __init__(self, site: WatchPaths, task: FolderTask, journal: Journal, say: Callable[[str], None]) -> None:
        """Take what does not change while the daemon runs; ``recover`` and ``open`` come before all else.

        Args:
            site: where everything lies.
            task: inbox and outbox.
            journal: of the outbox.
            say: tells a person.
        """
        self.inbox, self.outbox = site.folders.inbox, site.folders.outbox
        self._site, self._task, self._journal, self._say = site, task, journal, say
        self._failures = Quarantine(site.folders.failed, self.inbox, self.outbox / STATE_FOLDER / ERROR_REPORTS_FOLDER)
        self._handled: dict[Path, FileStamp] = {}  # what is no picture or video: looked into once
        self._warned: set[Path] = set()  # originals that could not be moved or deleted: told once
        self._jobs: dict[Path, tuple[FileStamp | None, OutputTree]] = {}  # what is worked on was this, and goes by that
        self._pending_reports: dict[Path, _PendingReport] = {}
        self._published: dict[
            Path, FileStamp
        ] = {}  # whose results have their names, though that could not be recorded yet
        self._clock = time.monotonic
        self._record = dev_inode(self.outbox / STATE_FOLDER)
        self._mirror: OutputTree

    def recover(self) -> None:
        """Make the journal true after whatever has happened to the last daemon, and remove what it left."""
        recover(self.outbox, self._journal)
        self._journal.mark([name for name, _ in self._journal.all_in(FileState.WORKING)], FileState.QUEUED)
        for name, entry in self._journal.all_in(FileState.QUEUED, FileState.FAILED):
            if not self._is_there(name) and (entry.state is FileState.QUEUED or not self._failures.has_original(name)):
                self._forget_failure(self.inbox / name)
                self._journal.forget(name)
        half = [
            name for name, _ in self._journal.all_in(FileState.FAILED) if self._is_there(name) and self._is_half(name)
        ]
        self._journal.mark(half, FileState.QUEUED)
        for folder in (self.inbox, self._site.folders.failed, self._site.folders.moved):
            if folder is not None:
                remove_stale_parts(folder)

    def _is_half(self, name: Path) -> bool:
        """Whether a failure is recorded, but has no note, or the original is not where those that failed go."""
        return self._site.folders.failed is not None or not self._failures.has_report(name)

    def retry_failed(self) -> None:
        """Have what failed tried again."""
        self._failures.put_back()
        self._journal.mark(
            [name for name, _ in self._journal.all_in(FileState.FAILED) if self._is_there(name)], FileState.QUEUED
        )

    def open(self, recipe: str) -> None:
        """Work from now on with these settings and model, as their digest tells."""
        self._mirror = OutputTree(self._task, self._journal, recipe, self._site.scratch)

    def is_handled(self, source: Path, stamp: FileStamp) -> bool:
        """Whether nothing is to be done with a file that is found in the inbox."""
        if stamp in (self._handled.get(source), self._published.get(source)):
            return True
        entry = self._entry(source)
        if entry is None or entry.source != stamp:
            return False
        return entry.state is FileState.FAILED or (
            entry.state is FileState.DONE and (self._site.policy is Originals.KEEP or source in self._warned)
        )

    def decide(self, source: Path, stamp: FileStamp) -> Decision:
        """Rule on a complete file."""
        if self._handled.get(source) == stamp:
            return Decision()
        if self._published.get(source) == stamp:
            self._refresh(source, stamp)
        entry = self._entry(source)
        try:
            if entry is not None and entry.source == stamp and entry.state is FileState.FAILED:
                return Decision()
            if self._published.get(source) == stamp or (entry is not None and self._is_done(entry, source, stamp)):
                self._refresh(source, stamp)
                self._dispose_original(source, stamp)
                return Decision()
            if type_from_suffix(source) is FileType.UNKNOWN and type_of_file(source) is FileType.UNKNOWN:
                self._handled[source] = stamp
                return Decision()
            found = self._mirror.decide(source)
        except FileNotFoundError:
            return Decision()
        except BlurguardError as error:
            return Decision(outcome=self._failed(Job(source), failed_outcome(Job(source), error), stamp))
        except OSError as error:
            unreadable = InputError(f"{source}: cannot be read: {error.strerror}")
            return Decision(outcome=self._failed(Job(source), failed_outcome(Job(source), unreadable), stamp))
        if isinstance(found, Job):
            return Decision(replace(found, scratch=self._site.scratch / secrets.token_hex(8)))
        self._refresh(source, stamp)
        self._dispose_original(source, stamp)
        return Decision()

    def stamp_at(self, source: Path) -> FileStamp | None:
        """Return the stamp of a file of the inbox, None when there is none or a link leads to it."""
        return stamp_at(source, self.inbox)

    def check_record(self) -> None:
        """Make sure that the journal is still the one that others find.

        Raises:
            OutputError: it was taken away or replaced: whatever was recorded now would be lost.
        """
        if dev_inode(self.outbox / STATE_FOLDER) != self._record:
            raise OutputError(f"{self.outbox}: its {STATE_FOLDER} was removed or replaced; start again")

    def queue(self, sources: list[Path]) -> None:
        """Record that files wait."""
        if sources:
            self._journal.mark([self._name(source) for source in sources], FileState.QUEUED)

    def start(self, job: Job) -> None:
        """Make the scratch that is this job's alone, before it is handed over.

        Raises:
            StorageError: it cannot be made.
        """
        assert job.scratch is not None  # noqa: S101 - decide() made it so
        self._jobs[job.source] = self.stamp_at(job.source), self._mirror
        with os_errors(job.scratch, kind=StorageError):
            make_folders(job.scratch)

    def mark_started(self, source: Path) -> None:
        """Record that somebody works on a file, if that can be recorded."""
        with contextlib.suppress(StorageError):
            self._journal.mark([self._name(source)], FileState.WORKING)

    def finish(self, job: Job, result: StagedResult | Outcome) -> tuple[JobResult, Outcome]:
        """Settle what became of a file; whatever a worker that died has left of it is gone afterwards."""
        verdict, outcome = self._finish(job, result)
        del self._jobs[job.source]
        entry = self._entry(job.source)
        # A draft whose row says `publishing`, and that cannot be told otherwise, shows that it never got its name.
        half = verdict is not JobResult.DONE and entry is not None and entry.state is FileState.PUBLISHING
        if (not half or self.requeue([job.source])) and job.scratch is not None:
            shutil.rmtree(job.scratch, ignore_errors=True)
        return verdict, outcome

    def forget(self, source: Path) -> None:
        """Hear that a file was taken away before it was done, or after it failed."""
        self._handled.pop(source, None)
        self._published.pop(source, None)
        self._warned.discard(source)
        entry = self._entry(source)
        if entry is None or (self._site.folders.failed and entry.state is FileState.FAILED):  # it was us who moved it
            return
        self._forget_failure(source)
        with contextlib.suppress(StorageError):  # the next start sees that it is gone
            self._journal.forget(self._name(source))

    def requeue(self, sources: list[Path]) -> bool:
        """Record that files which somebody worked on wait again; tells whether that could be recorded."""
        with contextlib.suppress(StorageError):
            self.queue([source for source in sources if self.stamp_at(source) is not None])
            return True
        return False

    def _finish(self, job: Job, result: StagedResult | Outcome) -> tuple[JobResult, Outcome]:
        now = self.stamp_at(job.source)
        outcome = result if isinstance(result, Outcome) else result.outcome
        if now is None:
            self.forget(job.source)
            return JobResult.GONE, outcome
        if isinstance(result, Outcome):
            if _is_storage_failure(result, job) or result.error == BrokenProcessPool.__name__:
                return JobResult.LATER, outcome
            if now != self._jobs[job.source][0]:
                return JobResult.AGAIN, outcome
            return JobResult.FAILED, self._failed(job, result, now)
        if now != result.source_stamp:
            return JobResult.AGAIN, outcome
        try:
            self._publish(job, result)
        except StorageError as error:
            return JobResult.LATER, failed_outcome(job, error)
        except (BlurguardError, OSError) as error:
            return JobResult.FAILED, self._failed(job, failed_outcome(job, error), now)
        self._forget_failure(job.source)
        return JobResult.DONE, replace(outcome, target=job.target)

    def _publish(self, job: Job, work: StagedResult) -> None:
        assert work.staged is not None  # noqa: S101 - decide() asks for one
        if self._site.policy is Originals.DELETE:
            verify(work.staged)

        def named() -> None:
            self._published[job.source] = work.source_stamp
            self._dispose_original(job.source, work.source_stamp, proven=True)

        self._jobs[job.source][1].publish(job, work, named)
        entry = self._entry(job.source)
        if entry is not None and entry.state is FileState.DONE:
            del self._published[job.source]

    def _failed(self, job: Job, outcome: Outcome, stamp: FileStamp) -> Outcome:
        """Record a failure, write its note, and put the original where failed ones go."""
        with contextlib.suppress(StorageError):  # then it fails once more after the next start
            self._journal.fail(self._name(job.source), outcome.reason, stamp)
        self._pending_reports[job.source] = _PendingReport(outcome, stamp, self._clock() + self._site.patience)
        self.write_error_reports()
        return outcome

    def write_error_reports(self) -> None:
        """Write the notes that wait, and put the originals where failed ones go.

        An original that somebody has open for writing, or may have, is left alone for a while: it may be an upload
        that has come to a halt, and what is moved away is not seen to change.
        """
        for source, waiting in list(self._pending_reports.items()):
            if self.stamp_at(source) != waiting.stamp:  # it is gone, or will be done again
                del self._pending_reports[source]
            elif self._site.folders.failed is None or self._clock() >= waiting.until or self._is_closed(source):
                self._write_error_report(source, waiting)

    def _write_error_report(self, source: Path, waiting: _PendingReport) -> None:
        try:
            self._failures.add(self._name(source), waiting.outcome, waiting.stamp)
            del self._pending_reports[source]
        except BlurguardError as error:
            if not waiting.warned:
                self._say(f"no note could be written yet: {error}")
            self._pending_reports[source] = replace(waiting, warned=True)

    def _is_closed(self, source: Path) -> bool:
        """Whether it is certain that nobody has a file open for writing."""
        return not self._site.poll and is_being_written(source) is False

    def _forget_failure(self, source: Path) -> None:
        try:
            self._failures.forget(self._name(source))
        except BlurguardError as error:
            self._say(f"an old note stays: {error}")

    def _dispose_original(self, source: Path, stamp: FileStamp, *, proven: bool = False) -> None:
        """Do with the original of a result what was asked for; it stays, and that is told, where that fails.

        ``proven`` says that the result has been read back and got its name just now, even if it was taken since.
        Nothing is done while somebody has the original open for writing: that will be heard of.
        """
        if self.stamp_at(source) != stamp or (self._site.policy is not Originals.KEEP and is_being_written(source)):
            return
        try:
            if self._site.policy is Originals.MOVE and self._site.folders.moved is not None:
                move(source, self._site.folders.moved / self._name(source), stamp)
            elif self._site.policy is Originals.DELETE:
                if proven or self._has_result(source):
                    delete(source, stamp)
                else:
                    self._say_once(source, f"{source}: stays, for its result is not there any more; delete it yourself")
        except BlurguardError as error:
            self._say_once(source, f"the result stands, but {error}")

    def _say_once(self, source: Path, text: str) -> None:
        if source not in self._warned:
            self._warned.add(source)
            self._say(text)

    def _has_result(self, source: Path) -> bool:
        """Whether the result of a file still stands whole: without it the original may be the last there is."""
        target, entry = self._task.out / self._name(source), self._entry(source)
        try:
            return entry is not None and target.is_file() and entry.result_at(target) == entry.output_digest
        except OSError:
            return False

    def _refresh(self, source: Path, stamp: FileStamp) -> None:
        """Record other times of a file whose content is done, so that it need not be read again."""
        entry = self._entry(source)
        if entry is not None and (entry.source != stamp or entry.state is not FileState.DONE):
            with contextlib.suppress(OutputError):
                self._journal.put(self._name(source), replace(entry, source=stamp, state=FileState.DONE))

    def _is_done(self, entry: FileRecord, source: Path, stamp: FileStamp) -> bool:
        """Whether a file is what was done: untouched, or touched only.

        One with another time whose result was taken away was dropped again, and is to be done again.
        """
        if entry.state is not FileState.DONE:
            return False
        if entry.source == stamp:
            return True
        dropped_again = entry.source.mtime_ns != stamp.mtime_ns and not os.path.lexists(
            self.outbox / self._name(source)
        )
        return not dropped_again and entry.is_unchanged(source)

    def _is_there(self, name: Path) -> bool:
        return self.stamp_at(self.inbox / name) is not None

    def _entry(self, source: Path) -> FileRecord | None:
        return self._journal.get(self._name(source))

    def _name(self, source: Path) -> Path:
        return source.relative_to(self.inbox)


def _is_storage_failure(outcome: Outcome, job: Job) -> bool:
    """Whether a failure is none of the file, but of where results are written."""
    if outcome.error == StorageError.__name__:
        return True
    writable = job.scratch is not None and os.access(job.scratch, os.W_OK | os.X_OK)
    return outcome.error == OutputError.__name__ and not writable
