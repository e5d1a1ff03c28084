"""The results of one folder: what is up to date, what may be replaced, and how results are published."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from blurguard.anonymize.anonymizer import StagedResult
from blurguard.batch.discovery import Discovery, discover
from blurguard.batch.journal import FILE_NAME, FileRecord, FileState, Journal
from blurguard.batch.workers import Job, WorkerConfig
from blurguard.errors import ConfigError, InputError, OutputError, StorageError
from blurguard.files.atomic import SCRATCH_FOLDER, STATE_FOLDER, digest_bytes, publish, remove_stale
from blurguard.files.stamp import FileStamp
from blurguard.types import Outcome, Status


@dataclass(frozen=True, slots=True)
class FolderTask:
    """What ``anonymize_folder`` is to do.

    Attributes:
        folder: searched with everything below it.
        out: the mirrored tree; ``folder`` itself replaces the originals.
        crew: who works.
        overwrite: replace files of ``out`` that are not known to be ours.
        dry_run: find faces and tell, write nothing.
    """

    folder: Path
    out: Path
    worker_config: WorkerConfig
    overwrite: bool = False
    dry_run: bool = False

    def discover(self) -> Discovery:
        """Return what is to be handled.

        Raises:
            InputError: no such folder.
            ConfigError: ``out`` lies where it must not.
        """
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"{self.out}: is a file; choose a folder for --out")
        if not self.in_place:
            self._check_overlap()
        return discover(self.folder)

    def _check_overlap(self) -> None:
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


def recover(out: Path, journal: Journal) -> None:
    """Make the journal true after whatever has happened to the last process, and remove what that left in scratch.

    Raises:
        StorageError: nothing can be recorded.
    """
    if not reconcile(out, journal):
        raise StorageError(f"{out}: what was done cannot be recorded; free some space and run again")
    remove_stale(out, recorded=True)


def reconcile(out: Path, journal: Journal) -> bool:
    """Settle the files whose results were to get their names when something came in between; False if that fails.

    A result is recorded, renamed and recorded again. If it was not recorded again, and neither has its name nor
    waits in scratch, it was renamed and somebody has taken it: with a drop folder, it must not come out twice. So
    nobody may remove a draft from scratch before this has been called.
    """
    drafts = set(_staged_files(out / STATE_FOLDER / SCRATCH_FOLDER))
    with contextlib.suppress(StorageError):
        for name, entry in journal.all_in(FileState.PUBLISHING):
            target = out / name
            taken = not os.path.lexists(target) and (entry.output_size, entry.output_mtime_ns) not in drafts
            if taken or (target.is_file() and entry.result_at(target) == entry.output_digest):
                journal.put(name, replace(entry, state=FileState.DONE))
            else:
                journal.mark([name], FileState.QUEUED)
        return True
    return False


def _staged_files(scratch: Path) -> Iterator[tuple[int, int]]:
    """Yield size and time of the drafts that never got a name; one that has two is linked to its name already."""
    for parent, _, names in os.walk(scratch):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # somebody works there
                info = Path(parent, name).lstat()
                if info.st_nlink == 1:
                    yield info.st_size, info.st_mtime_ns


class OutputTree:
    """The decisions about one output folder, which its journal informs."""

    def __init__(self, task: FolderTask, journal: Journal, recipe: str, scratch: Path) -> None:
        self._task = task
        self._journal = journal
        self._recipe = recipe
        self._scratch = scratch
        self._out = task.out.resolve()
        self._root = digest_bytes(os.fsencode(task.folder.resolve()))
        self._may_replace = task.overwrite or task.in_place

    def decide(self, source: Path) -> Job | Outcome:
        """Return what is to be done, or that it is done already.

        Raises:
            OutputError: a file is in the way that is not ours to replace.
        """
        name = source.relative_to(self._task.folder)
        target = self._task.out / name
        self._check_inside(target)
        entry = self._journal.get(name)
        if not os.path.lexists(target):
            return Job(source, target, self._scratch)
        ours = _own_digest(target, entry)
        if ours and entry is not None and ours == entry.output_digest and self._up_to_date(entry, source):
            return Outcome(source, Status.SKIPPED, target, reason="done before and unchanged")
        if not self._may_replace:
            if not ours or entry is None:
                raise OutputError(_refusal(target, entry))
            if entry.root != self._root and not entry.is_unchanged(source):
                raise OutputError(f"{target}: is the result of another folder's picture; choose another --out")
        return Job(source, target, self._scratch, replace=True)

    def _check_inside(self, target: Path) -> None:
        if not target.parent.resolve().is_relative_to(self._out):
            raise OutputError(f"{target.parent}: leads out of {self._task.out}; remove that link")

    def _up_to_date(self, entry: FileRecord, source: Path) -> bool:
        if entry.state not in (FileState.PUBLISHING, FileState.DONE) or entry.config_digest != self._recipe:
            return False
        return self._task.in_place or entry.is_unchanged(source)

    def publish(self, job: Job, work: StagedResult, then: Callable[[], None] = lambda: None) -> None:
        """Give the result its name, and have it in the journal whatever moment we die at.

        Args:
            job: as ``decide`` made it; what was so then is looked at again.
            work: with the draft.
            then: called between name and last record.

        Raises:
            InputError: the original is to be replaced, and has changed.
            OutputError: the result cannot get its name; the draft is still there then.
        """
        assert job.target is not None and work.staged is not None  # noqa: S101 - decide() made it so
        name, draft = job.source.relative_to(self._task.folder), work.staged
        if self._task.in_place and FileStamp.of(job.source) != work.source_stamp:
            raise InputError(f"{job.source}: was changed while it was worked on; run again")
        self._check_inside(job.target)
        known = self._journal.get(name)
        ours = _own_digest(job.target, known)
        if job.replace and not (ours or self._may_replace) and os.path.lexists(job.target):
            raise OutputError(_refusal(job.target, known))
        entry = FileRecord(
            FileState.PUBLISHING,
            work.source_stamp,
            work.source_digest,
            self._recipe,
            draft.size,
            draft.mtime_ns,
            draft.digest,
            replaced_digest=ours,
            root=self._root,
        )
        try:
            self._journal.put(name, entry)
            publish(draft, job.target, job.replace)
        except BaseException:  # Ctrl-C as well: what has no name must not be taken for what has lost it
            if draft.path.exists():
                with contextlib.suppress(StorageError):  # then the draft must stay: see put_right
                    self._journal.mark([name], FileState.QUEUED)
            raise
        then()
        with contextlib.suppress(OutputError):  # a full disk, say; `publishing` tells as much
            self._journal.put(name, replace(entry, state=FileState.DONE))

    def record_failure(self, job: Job, outcome: Outcome) -> None:
        """Remember a failure."""
        self._journal.fail(job.source.relative_to(self._task.folder), outcome.reason)


def _own_digest(target: Path, entry: FileRecord | None) -> str:
    """Return the digest of our result at ``target``, "" where there is none."""
    if entry is None or target.is_symlink() or not target.is_file():
        return ""
    return entry.result_at(target)


def _refusal(target: Path, entry: FileRecord | None) -> str:
    if entry is None or not entry.output_digest:
        return f"{target}: exists, and blurguard did not make it; give --overwrite to replace it"
    return f"{target}: was changed after blurguard made it; give --overwrite to replace it"
