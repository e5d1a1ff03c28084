"""Decides on each inbox file, and records and publishes its result."""

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from blurguard.anonymize.anonymizer import StagedResult
from blurguard.batch.journal import FileRecord, FileState, Journal
from blurguard.batch.output_tree import FolderTask, OutputTree, recover
from blurguard.batch.workers import Job, failed_outcome
from blurguard.errors import BlurguardError, OutputError, StorageError
from blurguard.files.atomic import STATE_FOLDER, make_folders, remove_stale_parts
from blurguard.files.errors import os_errors, read_errors
from blurguard.files.filetypes import FileType, type_from_suffix, type_of_file
from blurguard.files.move import delete, move, verify
from blurguard.files.stamp import FileStamp, stamp_at
from blurguard.settings import Originals, WatchSettings
from blurguard.types import Outcome
from blurguard.watch import retry
from blurguard.watch.folders import Folders, dev_inode
from blurguard.watch.inbox import is_being_written
from blurguard.watch.quarantine import Quarantine
from blurguard.watch.settling import MAX_WAIT_FACTOR, MIN_SETTLE_SECONDS

ERROR_REPORTS_FOLDER = "failed"  # in the outbox's state folder, for originals that stay in the inbox
Say = Callable[[str], None]  # reports a line to the user


class JobResult(StrEnum):
    """Result of a job, as the coordinator recorded it."""

    DONE = "done"
    FAILED = "failed"
    CHANGED = "changed"  # the original changed meanwhile
    GONE = "gone"  # the original was deleted meanwhile
    UNAVAILABLE = "unavailable"  # nothing can be written at present, or the workers have ended


@dataclass(slots=True)
class _PendingReport:
    """A failure whose error report is not written yet.

    Attributes:
        until: time on the coordinator's clock from which the original may be moved in any case.
        warned: whether an error was reported.
    """

    outcome: Outcome
    stamp: FileStamp
    until: float
    warned: bool = False


class Coordinator:
    """Decides on files, publishes results, keeps the journal, and moves or deletes originals.

    Failures are tried again by the rules of `retry`.

    Attributes:
        patience: longest wait of a failed original while a process may still be writing to it, seconds.
    """

    def __init__(
        self, folders: Folders, settings: WatchSettings, task: FolderTask, scratch: Path, journal: Journal, say: Say
    ) -> None:
        """Set all that stays the same while the daemon runs. Call ``recover`` and ``open`` first.

        Args:
            folders: checked by ``Folders.prepared``.
            settings: policy for originals that are done, and whether the inbox is polled, which hides open files.
            task: inbox and outbox.
            scratch: folder on the file system of the outbox.
            journal: of the outbox.
            say: reports a line to the user.
        """
        self.inbox, self.outbox = folders.inbox, folders.outbox
        self.patience = MAX_WAIT_FACTOR * max(settings.settle, MIN_SETTLE_SECONDS)
        self._folders, self._settings, self._task, self._scratch = folders, settings, task, scratch
        self._journal, self._say = journal, say
        state_folder = self.outbox / STATE_FOLDER
        self._state_folder, self._state_identity = state_folder, dev_inode(state_folder)
        self._quarantine = Quarantine(folders.failed, self.inbox, state_folder / ERROR_REPORTS_FOLDER)
        self._ignored: dict[Path, FileStamp] = {}  # neither images nor videos, with the version that was read
        self._warned: set[Path] = set()  # originals that could not be moved or deleted, which was reported
        # Stamp and output tree at the start of each job: a reload opens another tree meanwhile.
        self._jobs: dict[Path, tuple[FileStamp | None, OutputTree]] = {}
        self._pending_reports: dict[Path, _PendingReport] = {}
        self._published: dict[Path, FileStamp] = {}  # published, but the journal could not be written yet
        self._clock = time.monotonic
        self._tree: OutputTree

    def recover(self) -> None:
        """Repair the journal after a crash, and remove partial files of the last run."""
        recover(self.outbox, self._journal)
        self._journal.mark([name for name, _ in self._journal.all_in(FileState.WORKING)], FileState.QUEUED)
        for name, record in self._journal.all_in(FileState.QUEUED, FileState.FAILED):
            moved = record.state is FileState.FAILED and self._quarantine.has_original(name)
            if not moved and self.stamp_at(self.inbox / name) is None:
                self._forget_failure(self.inbox / name)
                self._journal.forget(name)
        self._requeue_failed(only_incomplete=True)
        for folder in (self.inbox, self._folders.failed, self._folders.moved):
            if folder is not None:
                remove_stale_parts(folder)

    def retry_failed(self) -> None:
        """Queue all failed files again."""
        self._quarantine.put_back()
        self._requeue_failed()

    def _requeue_failed(self, *, only_incomplete: bool = False) -> None:
        """Queue failed files in the inbox again: all, or those without a report or with an original to move."""
        failed = [self.inbox / name for name, _ in self._journal.all_in(FileState.FAILED)]
        if only_incomplete and self._folders.failed is None:
            failed = [source for source in failed if not self._quarantine.has_report(self._name(source))]
        self.queue([source for source in failed if self.stamp_at(source) is not None])

    def open(self, recipe: str) -> None:
        """From now on, results with this digest of settings and model count as up to date."""
        self._tree = OutputTree(self._task, self._journal, recipe, self._scratch)

    def is_handled(self, source: Path, stamp: FileStamp) -> bool:
        """Whether this version of a file needs no decision: it is done, has failed for good, or is ignored.

        A file that is done needs one as long as its original must be moved or deleted.
        """
        if stamp in (self._ignored.get(source), self._published.get(source)):
            return True
        record = self._record(source)
        is_done = record is not None and record.state is FileState.DONE and record.source == stamp
        stays = self._settings.originals is Originals.KEEP or source in self._warned
        return retry.is_final(record, stamp) or (is_done and stays)

    def decide(self, source: Path, stamp: FileStamp) -> Job | Outcome | None:
        """Decide on a complete file, and move or delete an original that is done already.

        Returns:
            A job if the file must be processed, an outcome if it failed at once, None if there is nothing to do.
        """
        try:
            with read_errors(source), contextlib.suppress(FileNotFoundError):
                job = self._job_for(source, stamp)
                return job and replace(job, scratch=self._scratch / secrets.token_hex(8))
        except BlurguardError as error:
            return self._failed(source, failed_outcome(Job(source), error), stamp)
        return None  # it is gone

    def _job_for(self, source: Path, stamp: FileStamp) -> Job | None:
        """Return the job that a complete file needs, None if it needs none."""
        if self._ignored.get(source) == stamp:
            return None
        record = self._record(source)
        if self._published.get(source) != stamp and (record is None or not self._is_done(record, source, stamp)):
            if retry.is_final(record, stamp):
                return None
            if type_from_suffix(source) is FileType.UNKNOWN and type_of_file(source) is FileType.UNKNOWN:
                self._ignored[source] = stamp
                return None
            job = self._tree.decide(source)
            if isinstance(job, Job):
                return job
        self._refresh(source, stamp)
        self._dispose_original(source, stamp)
        return None

    def stamp_at(self, source: Path) -> FileStamp | None:
        """Return the stamp of a file in the inbox, None if there is none or a link leads to it."""
        return stamp_at(source, self.inbox)

    def check_journal(self) -> None:
        """Check that the journal still lies in the outbox.

        Raises:
            OutputError: it was removed or replaced. New records would be lost.
        """
        if dev_inode(self._state_folder) != self._state_identity:
            raise OutputError(f"{self.outbox}: its {STATE_FOLDER} was removed or replaced; start again")

    def queue(self, sources: list[Path]) -> None:
        """Record that files are queued."""
        if sources:
            self._journal.mark([self._name(source) for source in sources], FileState.QUEUED)

    def start(self, job: Job) -> None:
        """Create the scratch folder of a job before it is submitted.

        Raises:
            StorageError: it cannot be created.
        """
        assert job.scratch is not None  # noqa: S101 - set by decide()
        self._jobs[job.source] = self.stamp_at(job.source), self._tree
        with os_errors(job.scratch, kind=StorageError):
            make_folders(job.scratch)

    def mark_started(self, source: Path) -> None:
        """Record that a worker has a file, unless the journal cannot be written."""
        with contextlib.suppress(StorageError):
            self._journal.mark([self._name(source)], FileState.WORKING)

    def finish(self, job: Job, worker_result: StagedResult | Outcome) -> tuple[JobResult, Outcome]:
        """Publish or record the result of a job, and remove its scratch folder."""
        result, outcome = self._finish(job, worker_result)
        del self._jobs[job.source]
        record = self._record(job.source)
        # A staged file whose record says `publishing` proves that it was not published. It stays until the record
        # says otherwise.
        unpublished = result is not JobResult.DONE and record is not None and record.state is FileState.PUBLISHING
        if (not unpublished or self.requeue([job.source])) and job.scratch is not None:
            shutil.rmtree(job.scratch, ignore_errors=True)
        return result, outcome

    def forget(self, source: Path) -> None:
        """Forget a file that was deleted before it was processed, or after it failed."""
        self._ignored.pop(source, None)
        self._published.pop(source, None)
        self._warned.discard(source)
        record = self._record(source)
        if record is None or (self._folders.failed and record.state is FileState.FAILED):  # moved by blurguard
            return
        self._forget_failure(source)
        with contextlib.suppress(StorageError):  # the next start repeats this
            self._journal.forget(self._name(source))

    def requeue(self, sources: list[Path]) -> bool:
        """Record that the jobs of files are postponed, and return whether the journal could be written."""
        with contextlib.suppress(StorageError):
            self.queue([source for source in sources if self.stamp_at(source) is not None])
            return True
        return False

    def _finish(self, job: Job, result: StagedResult | Outcome) -> tuple[JobResult, Outcome]:
        stamp = self.stamp_at(job.source)
        outcome = result if isinstance(result, Outcome) else result.outcome
        if stamp is None:
            self.forget(job.source)
            return JobResult.GONE, outcome
        if isinstance(result, Outcome):
            if retry.is_temporary(result, job):
                return JobResult.UNAVAILABLE, outcome
            if stamp != self._jobs[job.source][0]:
                return JobResult.CHANGED, outcome
            return JobResult.FAILED, self._failed(job.source, result, stamp)
        if stamp != result.source_stamp:
            return JobResult.CHANGED, outcome
        try:
            self._publish(job, result)
        except StorageError as error:
            return JobResult.UNAVAILABLE, failed_outcome(job, error)
        except (BlurguardError, OSError) as error:
            return JobResult.FAILED, self._failed(job.source, failed_outcome(job, error), stamp)
        self._forget_failure(job.source)
        return JobResult.DONE, replace(outcome, target=job.target)

    def _publish(self, job: Job, result: StagedResult) -> None:
        assert result.staged is not None  # noqa: S101 - decide() asks for one
        if self._settings.originals is Originals.DELETE:
            verify(result.staged)

        def on_published() -> None:
            self._published[job.source] = result.source_stamp
            self._dispose_original(job.source, result.source_stamp, just_published=True)

        self._jobs[job.source][1].publish(job, result, on_published)
        record = self._record(job.source)
        if record is not None and record.state is FileState.DONE:
            del self._published[job.source]

    def _failed(self, source: Path, outcome: Outcome, stamp: FileStamp) -> Outcome:
        """Record a failure, and write its error report if that is possible now."""
        with contextlib.suppress(StorageError):  # then it fails again after the next start
            self._journal.fail(self._name(source), outcome.reason, stamp)
        self._pending_reports[source] = _PendingReport(outcome, stamp, self._clock() + self.patience)
        self.write_error_reports()
        return outcome

    def write_error_reports(self) -> None:
        """Write the pending error reports, and move failed originals.

        An original that may be open for writing stays for a while: it may be an upload that has stalled, and changes
        to a moved file would go unnoticed.
        """
        for source, report in list(self._pending_reports.items()):
            if self.stamp_at(source) != report.stamp:  # it is gone, or will be processed again
                del self._pending_reports[source]
            elif self._folders.failed is None or self._clock() >= report.until or self._is_closed(source):
                try:
                    self._quarantine.add(self._name(source), report.outcome, report.stamp)
                    del self._pending_reports[source]
                except BlurguardError as error:
                    if not report.warned:
                        self._say(f"no error report could be written yet: {error}")
                    report.warned = True

    def _is_closed(self, source: Path) -> bool:
        """Whether certainly no process has a file open for writing."""
        return not self._settings.poll and is_being_written(source) is False

    def _forget_failure(self, source: Path) -> None:
        try:
            self._quarantine.forget(self._name(source))
        except BlurguardError as error:
            self._say(f"an old error report remains: {error}")

    def _dispose_original(self, source: Path, stamp: FileStamp, *, just_published: bool = False) -> None:
        """Move or delete an original that is done, as the policy says. Report once if that fails.

        Nothing happens while a process has it open for writing: closing it causes an event.

        Args:
            source: the original.
            stamp: of the version that is done.
            just_published: its result was verified and published just now, even if it has been taken since.
        """
        policy = self._settings.originals
        if policy is Originals.KEEP or self.stamp_at(source) != stamp or is_being_written(source):
            return
        try:
            if policy is Originals.MOVE and self._folders.moved is not None:
                move(source, self._folders.moved / self._name(source), stamp)
            elif policy is Originals.DELETE and (just_published or self._has_result(source)):
                delete(source, stamp)
            elif policy is Originals.DELETE:
                self._say_once(source, f"{source}: stays, because its result is gone; delete it yourself")
        except BlurguardError as error:
            self._say_once(source, f"the result is published, but {error}")

    def _say_once(self, source: Path, text: str) -> None:
        if source not in self._warned:
            self._warned.add(source)
            self._say(text)

    def _has_result(self, source: Path) -> bool:
        """Whether the result of a file is intact. Without it, the original may be the last copy."""
        target, record = self._task.out / self._name(source), self._record(source)
        with contextlib.suppress(OSError):
            return record is not None and target.is_file() and record.result_at(target) == record.output_digest
        return False

    def _refresh(self, source: Path, stamp: FileStamp) -> None:
        """Record the current stamp of a file that is done, so that it is not read again."""
        record = self._record(source)
        if record is not None and (record.source != stamp or record.state is not FileState.DONE):
            with contextlib.suppress(OutputError):
                self._journal.put(self._name(source), replace(record, source=stamp, state=FileState.DONE))

    def _is_done(self, record: FileRecord, source: Path, stamp: FileStamp) -> bool:
        """Whether a file is done and unchanged, apart from its times.

        A file with a new time whose result was taken away was dropped again, and is processed again.
        """
        if record.state is not FileState.DONE:
            return False
        if record.source == stamp:
            return True
        has_new_time, target = record.source.mtime_ns != stamp.mtime_ns, self.outbox / self._name(source)
        dropped_again = has_new_time and not os.path.lexists(target)
        return not dropped_again and record.is_unchanged(source)

    def _record(self, source: Path) -> FileRecord | None:
        return self._journal.get(self._name(source))

    def _name(self, source: Path) -> Path:
        return source.relative_to(self.inbox)
