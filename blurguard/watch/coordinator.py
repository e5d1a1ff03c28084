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

from blurguard.anonymize.anonymizer import Work
from blurguard.batch.journal import Entry, Journal, State
from blurguard.batch.output_tree import FolderTask, Mirror, recover
from blurguard.batch.workers import Job, failure
from blurguard.errors import BlurguardError, InputError, OutputError, StorageError
from blurguard.files.atomic import STATE_FOLDER, make_folders
from blurguard.files.filetypes import Kind, claimed_kind, kind_of_file
from blurguard.files.move import delete, move, sweep_parts, verify
from blurguard.files.stamp import Stamp
from blurguard.settings import Originals
from blurguard.types import Outcome
from blurguard.watch.folders import Folders, identity
from blurguard.watch.inbox import is_being_written, stamp_at
from blurguard.watch.quarantine import Failures

NOTES_FOLDER = "failed"  # in the outbox's own folder: notes on failures whose originals stay in the inbox


class Verdict(StrEnum):
    """How a file's turn ended."""

    DONE = "done"
    FAILED = "failed"
    AGAIN = "again"  # it changed while it was worked on
    GONE = "gone"  # it was taken away while it was worked on
    LATER = "later"  # nothing can be written at present


@dataclass(frozen=True, slots=True)
class Ruling:
    """What is to become of a complete file: a job, an outcome to tell, or neither when it is none of our business."""

    job: Job | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Site:
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
class _Unnoted:
    """A failure without a note, and until when a writer may take its time."""

    outcome: Outcome
    stamp: Stamp
    until: float
    told: bool = False


class Desk:
    """Decides, publishes, keeps the journal, and does with originals what was asked for."""

    def __init__(self, site: Site, task: FolderTask, journal: Journal, say: Callable[[str], None]) -> None:
        """Take what does not change while the daemon runs; ``recover`` and ``open`` come before all else.

        Args:
            site: where everything lies.
            task: inbox and outbox.
            journal: of the outbox.
            say: tells a person.
        """
        self.inbox, self.outbox = site.folders.inbox, site.folders.outbox
        self._site, self._task, self._journal, self._say = site, task, journal, say
        self._failures = Failures(site.folders.failed, self.inbox, self.outbox / STATE_FOLDER / NOTES_FOLDER)
        self._left: dict[Path, Stamp] = {}  # what is no picture or video: looked into once
        self._stuck: set[Path] = set()  # originals that could not be moved or deleted: told once
        self._taken: dict[Path, tuple[Stamp | None, Mirror]] = {}  # what is worked on was this, and goes by that
        self._to_note: dict[Path, _Unnoted] = {}
        self._named: dict[Path, Stamp] = {}  # whose results have their names, though that could not be recorded yet
        self._clock = time.monotonic
        self._record = identity(self.outbox / STATE_FOLDER)
        self._mirror: Mirror

    def recover(self) -> None:
        """Make the journal true after whatever has happened to the last daemon, and remove what it left."""
        recover(self.outbox, self._journal)
        self._journal.mark([name for name, _ in self._journal.all_in(State.WORKING)], State.QUEUED)
        for name, entry in self._journal.all_in(State.QUEUED, State.FAILED):
            if not self._is_there(name) and (entry.state is State.QUEUED or not self._failures.keeps(name)):
                self._forget_failure(self.inbox / name)
                self._journal.withdraw(name)
        half = [name for name, _ in self._journal.all_in(State.FAILED) if self._is_there(name) and self._is_half(name)]
        self._journal.mark(half, State.QUEUED)
        for folder in (self.inbox, self._site.folders.failed, self._site.folders.moved):
            if folder is not None:
                sweep_parts(folder)

    def _is_half(self, name: Path) -> bool:
        """Whether a failure is recorded, but has no note, or the original is not where those that failed go."""
        return self._site.folders.failed is not None or not self._failures.noted(name)

    def retry_failed(self) -> None:
        """Have what failed tried again."""
        self._failures.put_back()
        self._journal.mark(
            [name for name, _ in self._journal.all_in(State.FAILED) if self._is_there(name)], State.QUEUED
        )

    def open(self, recipe: str) -> None:
        """Work from now on with these settings and model, as their digest tells."""
        self._mirror = Mirror(self._task, self._journal, recipe, self._site.scratch)

    def knows(self, source: Path, stamp: Stamp) -> bool:
        """Whether nothing is to be done with a file that is found in the inbox."""
        if stamp in (self._left.get(source), self._named.get(source)):
            return True
        entry = self._entry(source)
        if entry is None or entry.source != stamp:
            return False
        return entry.state is State.FAILED or (
            entry.state is State.DONE and (self._site.policy is Originals.KEEP or source in self._stuck)
        )

    def decide(self, source: Path, stamp: Stamp) -> Ruling:
        """Rule on a complete file."""
        if self._left.get(source) == stamp:
            return Ruling()
        if self._named.get(source) == stamp:
            self._refresh(source, stamp)
        entry = self._entry(source)
        try:
            if entry is not None and entry.source == stamp and entry.state is State.FAILED:
                return Ruling()
            if self._named.get(source) == stamp or (entry is not None and self._is_done(entry, source, stamp)):
                self._refresh(source, stamp)
                self._clear(source, stamp)
                return Ruling()
            if claimed_kind(source) is Kind.UNKNOWN and kind_of_file(source) is Kind.UNKNOWN:
                self._left[source] = stamp
                return Ruling()
            found = self._mirror.decide(source)
        except FileNotFoundError:
            return Ruling()
        except BlurguardError as error:
            return Ruling(outcome=self._failed(Job(source), failure(Job(source), error), stamp))
        except OSError as error:
            unreadable = InputError(f"{source}: cannot be read: {error.strerror}")
            return Ruling(outcome=self._failed(Job(source), failure(Job(source), unreadable), stamp))
        if isinstance(found, Job):
            return Ruling(replace(found, scratch=self._site.scratch / secrets.token_hex(8)))
        self._refresh(source, stamp)
        self._clear(source, stamp)
        return Ruling()

    def stamp_at(self, source: Path) -> Stamp | None:
        """Return the stamp of a file of the inbox, None when there is none or a link leads to it."""
        return stamp_at(source, self.inbox)

    def check_record(self) -> None:
        """Make sure that the journal is still the one that others find.

        Raises:
            OutputError: it was taken away or replaced: whatever was recorded now would be lost.
        """
        if identity(self.outbox / STATE_FOLDER) != self._record:
            raise OutputError(f"{self.outbox}: its {STATE_FOLDER} was removed or replaced; start again")

    def queue(self, sources: list[Path]) -> None:
        """Record that files wait."""
        if sources:
            self._journal.mark([self._name(source) for source in sources], State.QUEUED)

    def start(self, job: Job) -> None:
        """Make the scratch that is this job's alone, before it is handed over.

        Raises:
            StorageError: it cannot be made.
        """
        assert job.scratch is not None  # noqa: S101 - decide() made it so
        self._taken[job.source] = self.stamp_at(job.source), self._mirror
        try:
            make_folders(job.scratch)
        except OSError as error:
            raise StorageError(f"{job.scratch}: cannot write: {error.strerror}") from error

    def begun(self, source: Path) -> None:
        """Record that somebody works on a file, if that can be recorded."""
        with contextlib.suppress(StorageError):
            self._journal.mark([self._name(source)], State.WORKING)

    def finish(self, job: Job, result: Work | Outcome) -> tuple[Verdict, Outcome]:
        """Settle what became of a file; whatever a worker that died has left of it is gone afterwards."""
        verdict, outcome = self._finish(job, result)
        del self._taken[job.source]
        entry = self._entry(job.source)
        # A draft whose row says `publishing`, and that cannot be told otherwise, shows that it never got its name.
        half = verdict is not Verdict.DONE and entry is not None and entry.state is State.PUBLISHING
        if (not half or self.leave([job.source])) and job.scratch is not None:
            shutil.rmtree(job.scratch, ignore_errors=True)
        return verdict, outcome

    def gone(self, source: Path) -> None:
        """Hear that a file was taken away before it was done, or after it failed."""
        self._left.pop(source, None)
        self._named.pop(source, None)
        self._stuck.discard(source)
        entry = self._entry(source)
        if entry is None or (self._site.folders.failed and entry.state is State.FAILED):  # it was us who moved it
            return
        self._forget_failure(source)
        with contextlib.suppress(StorageError):  # the next start sees that it is gone
            self._journal.withdraw(self._name(source))

    def leave(self, sources: list[Path]) -> bool:
        """Record that files which somebody worked on wait again; tells whether that could be recorded."""
        with contextlib.suppress(StorageError):
            self.queue([source for source in sources if self.stamp_at(source) is not None])
            return True
        return False

    def _finish(self, job: Job, result: Work | Outcome) -> tuple[Verdict, Outcome]:
        now = self.stamp_at(job.source)
        outcome = result if isinstance(result, Outcome) else result.outcome
        if now is None:
            self.gone(job.source)
            return Verdict.GONE, outcome
        if isinstance(result, Outcome):
            if _is_of_the_disk(result, job) or result.error == BrokenProcessPool.__name__:
                return Verdict.LATER, outcome
            if now != self._taken[job.source][0]:
                return Verdict.AGAIN, outcome
            return Verdict.FAILED, self._failed(job, result, now)
        if now != result.source:
            return Verdict.AGAIN, outcome
        try:
            self._publish(job, result)
        except StorageError as error:
            return Verdict.LATER, failure(job, error)
        except (BlurguardError, OSError) as error:
            return Verdict.FAILED, self._failed(job, failure(job, error), now)
        self._forget_failure(job.source)
        return Verdict.DONE, replace(outcome, target=job.target)

    def _publish(self, job: Job, work: Work) -> None:
        assert work.draft is not None  # noqa: S101 - decide() asks for one
        if self._site.policy is Originals.DELETE:
            verify(work.draft)

        def named() -> None:
            self._named[job.source] = work.source
            self._clear(job.source, work.source, proven=True)

        self._taken[job.source][1].publish(job, work, named)
        entry = self._entry(job.source)
        if entry is not None and entry.state is State.DONE:
            del self._named[job.source]

    def _failed(self, job: Job, outcome: Outcome, stamp: Stamp) -> Outcome:
        """Record a failure, write its note, and put the original where failed ones go."""
        with contextlib.suppress(StorageError):  # then it fails once more after the next start
            self._journal.fail(self._name(job.source), outcome.reason, stamp)
        self._to_note[job.source] = _Unnoted(outcome, stamp, self._clock() + self._site.patience)
        self.note_failures()
        return outcome

    def note_failures(self) -> None:
        """Write the notes that wait, and put the originals where failed ones go.

        An original that somebody has open for writing, or may have, is left alone for a while: it may be an upload
        that has come to a halt, and what is moved away is not seen to change.
        """
        for source, waiting in list(self._to_note.items()):
            if self.stamp_at(source) != waiting.stamp:  # it is gone, or will be done again
                del self._to_note[source]
            elif self._site.folders.failed is None or self._clock() >= waiting.until or self._is_closed(source):
                self._note(source, waiting)

    def _note(self, source: Path, waiting: _Unnoted) -> None:
        try:
            self._failures.note(self._name(source), waiting.outcome, waiting.stamp)
            del self._to_note[source]
        except BlurguardError as error:
            if not waiting.told:
                self._say(f"no note could be written yet: {error}")
            self._to_note[source] = replace(waiting, told=True)

    def _is_closed(self, source: Path) -> bool:
        """Whether it is certain that nobody has a file open for writing."""
        return not self._site.poll and is_being_written(source) is False

    def _forget_failure(self, source: Path) -> None:
        try:
            self._failures.forget(self._name(source))
        except BlurguardError as error:
            self._say(f"an old note stays: {error}")

    def _clear(self, source: Path, stamp: Stamp, *, proven: bool = False) -> None:
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
                    self._tell_once(
                        source, f"{source}: stays, for its result is not there any more; delete it yourself"
                    )
        except BlurguardError as error:
            self._tell_once(source, f"the result stands, but {error}")

    def _tell_once(self, source: Path, text: str) -> None:
        if source not in self._stuck:
            self._stuck.add(source)
            self._say(text)

    def _has_result(self, source: Path) -> bool:
        """Whether the result of a file still stands whole: without it the original may be the last there is."""
        target, entry = self._task.out / self._name(source), self._entry(source)
        try:
            return entry is not None and target.is_file() and entry.result_at(target) == entry.output_digest
        except OSError:
            return False

    def _refresh(self, source: Path, stamp: Stamp) -> None:
        """Record other times of a file whose content is done, so that it need not be read again."""
        entry = self._entry(source)
        if entry is not None and (entry.source != stamp or entry.state is not State.DONE):
            with contextlib.suppress(OutputError):
                self._journal.put(self._name(source), replace(entry, source=stamp, state=State.DONE))

    def _is_done(self, entry: Entry, source: Path, stamp: Stamp) -> bool:
        """Whether a file is what was done: untouched, or touched only.

        One with another time whose result was taken away was dropped again, and is to be done again.
        """
        if entry.state is not State.DONE:
            return False
        if entry.source == stamp:
            return True
        dropped_again = entry.source.mtime_ns != stamp.mtime_ns and not os.path.lexists(
            self.outbox / self._name(source)
        )
        return not dropped_again and entry.came_from(source)

    def _is_there(self, name: Path) -> bool:
        return self.stamp_at(self.inbox / name) is not None

    def _entry(self, source: Path) -> Entry | None:
        return self._journal.get(self._name(source))

    def _name(self, source: Path) -> Path:
        return source.relative_to(self.inbox)


def _is_of_the_disk(outcome: Outcome, job: Job) -> bool:
    """Whether a failure is none of the file, but of where results are written."""
    if outcome.error == StorageError.__name__:
        return True
    writable = job.scratch is not None and os.access(job.scratch, os.W_OK | os.X_OK)
    return outcome.error == OutputError.__name__ and not writable
