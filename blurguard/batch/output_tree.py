"""The results of a folder: which are up to date, which may be replaced, and how they are published."""

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
from blurguard.files.walk import files_below
from blurguard.types import Outcome, Status


@dataclass(frozen=True, slots=True)
class FolderTask:
    """The arguments of ``anonymize_folder``.

    Attributes:
        folder: searched with everything below it.
        out: root of the results, which mirrors ``folder``. If both are the same, the originals are replaced.
        worker_config: see ``WorkerConfig``.
        overwrite: replace files in ``out`` even if blurguard did not make them.
        dry_run: only find faces, write nothing.
    """

    folder: Path
    out: Path
    worker_config: WorkerConfig
    overwrite: bool = False
    dry_run: bool = False

    def discover(self) -> Discovery:
        """Return the files to process.

        Raises:
            InputError: the folder does not exist.
            ConfigError: ``out`` is a file, or overlaps with the originals.
        """
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"{self.out}: is a file; choose a folder for --out")
        folder, out = self.folder.resolve(), self.out.resolve()
        if out in folder.parents:
            raise ConfigError(f"{self.out}: holds the originals in {self.folder}; choose another --out")
        # Every file below the folder that is left alone as a result must be one.
        unrecorded = folder in out.parents and out.is_dir() and not (out / STATE_FOLDER / FILE_NAME).exists()
        if unrecorded and discover(out).media:
            raise ConfigError(f"{self.out}: holds pictures that blurguard did not make; choose another --out")
        return discover(self.folder)

    @property
    def in_place(self) -> bool:
        """Whether the originals themselves are replaced."""
        return self.folder.resolve() == self.out.resolve()


class OutputPolicy:
    """Decides on files and publishes their results. This one writes nothing, so that files are only searched."""

    def decide(self, source: Path) -> Job | Outcome:
        """Return the job for a file, or its outcome without one.

        Raises:
            BlurguardError: the file fails.
            OSError: the file cannot be read, and fails.
        """
        return Job(source)

    def publish(self, job: Job, result: StagedResult) -> None:
        """Give a result its final name.

        Raises:
            BlurguardError: the file fails.
            OSError: the file fails.
        """

    def record_failure(self, job: Job, outcome: Outcome) -> None:
        """Record that a job has failed.

        Raises:
            OutputError: it cannot be recorded.
        """


def recover(out: Path, journal: Journal) -> None:
    """Complete the journal after the end of the last process, and remove the scratch that it left.

    Raises:
        StorageError: nothing can be recorded.
    """
    if not reconcile(out, journal):
        raise StorageError(f"{out}: its progress cannot be recorded; free some space and run again")
    remove_stale(out, recorded=True)


def reconcile(out: Path, journal: Journal) -> bool:
    """Settle the files whose publishing was interrupted. False if that cannot be recorded.

    A result is recorded, renamed and recorded again. If the second record is missing, and the result neither has its
    name nor waits in scratch, then it was renamed and its recipient has taken it. A drop folder must not deliver it
    twice. So staged files may be removed only after this call.
    """
    staged = set(_staged_files(out / STATE_FOLDER / SCRATCH_FOLDER))
    with contextlib.suppress(StorageError):
        for name, record in journal.all_in(FileState.PUBLISHING):
            target = out / name
            taken = not os.path.lexists(target) and (record.output_size, record.output_mtime_ns) not in staged
            if taken or (target.is_file() and record.result_at(target) == record.output_digest):
                journal.put(name, replace(record, state=FileState.DONE))
            else:
                journal.mark([name], FileState.QUEUED)
        return True
    return False


def _staged_files(scratch: Path) -> Iterator[tuple[int, int]]:
    """Yield size and mtime (ns) of the staged files without a final name: a second link is such a name already."""
    for path in files_below(scratch):
        with contextlib.suppress(FileNotFoundError):  # a worker is still writing there
            info = path.lstat()
            if info.st_nlink == 1:
                yield info.st_size, info.st_mtime_ns


class OutputTree(OutputPolicy):
    """Mirrors a folder in an output folder, whose journal records the results."""

    def __init__(self, task: FolderTask, journal: Journal, config_digest: str, scratch: Path) -> None:
        """Take the digest of settings and model, by which results are up to date, and a scratch in ``task.out``."""
        self._task, self._journal, self._config_digest, self._scratch = task, journal, config_digest, scratch
        self._out = task.out.resolve()
        self._root = digest_bytes(os.fsencode(task.folder.resolve()))
        self._may_replace = task.overwrite or task.in_place

    def decide(self, source: Path) -> Job | Outcome:
        """Return the job for a file, or its outcome if its result is up to date.

        Raises:
            OutputError: the name of the result holds a file that may not be replaced.
            OSError: the source or that file cannot be read.
        """
        name = source.relative_to(self._task.folder)
        target = self._task.out / name
        self._check_inside(target)
        record = self._journal.get(name)
        if not os.path.lexists(target):
            return Job(source, target, self._scratch)
        own_digest = _own_digest(target, record)
        if record and own_digest and own_digest == record.output_digest and self._up_to_date(record, source):
            return Outcome(source, Status.SKIPPED, target, reason="done before and unchanged")
        if not self._may_replace:
            if not own_digest or record is None:
                raise _not_replaceable(target, record)
            if record.root != self._root and not record.is_unchanged(source):
                raise OutputError(f"{target}: is the result of another folder's picture; choose another --out")
        return Job(source, target, self._scratch, replace=True)

    def _check_inside(self, target: Path) -> None:
        if not target.parent.resolve().is_relative_to(self._out):
            raise OutputError(f"{target.parent}: leads out of {self._task.out}; remove that link")

    def _up_to_date(self, record: FileRecord, source: Path) -> bool:
        if record.state not in (FileState.PUBLISHING, FileState.DONE) or record.config_digest != self._config_digest:
            return False
        return self._task.in_place or record.is_unchanged(source)

    def publish(self, job: Job, result: StagedResult, then: Callable[[], None] = lambda: None) -> None:
        """Give a result its name, and record it so that every moment of death leaves the journal right.

        Args:
            job: from ``decide``. The state of the files is checked once more.
            result: with the staged file.
            then: called after the rename and before the last record.

        Raises:
            InputError: the original is to be replaced, and has changed.
            OutputError: the result cannot get its name. The staged file is still there.
        """
        assert job.target is not None and result.staged is not None  # noqa: S101 - decide() made it so
        name, staged = job.source.relative_to(self._task.folder), result.staged
        if self._task.in_place and FileStamp.of(job.source) != result.source_stamp:
            raise InputError(f"{job.source}: was changed while it was processed; run again")
        self._check_inside(job.target)
        known = self._journal.get(name)
        own_digest = _own_digest(job.target, known)
        if job.replace and not (own_digest or self._may_replace) and os.path.lexists(job.target):
            raise _not_replaceable(job.target, known)
        record = FileRecord(FileState.PUBLISHING, result.source_stamp, result.source_digest, self._config_digest)
        record = replace(record, output_size=staged.size, output_mtime_ns=staged.mtime_ns, output_digest=staged.digest)
        record = replace(record, replaced_digest=own_digest, root=self._root)
        try:
            self._journal.put(name, record)
            publish(staged, job.target, job.replace)
        except BaseException:  # Ctrl-C as well: a result without its name must not count as taken
            if staged.path.exists():
                with contextlib.suppress(StorageError):  # then the staged file must stay: see reconcile()
                    self._journal.mark([name], FileState.QUEUED)
            raise
        then()
        with contextlib.suppress(OutputError):  # a full disk, for example. `publishing` is enough for reconcile()
            self._journal.put(name, replace(record, state=FileState.DONE))

    def record_failure(self, job: Job, outcome: Outcome) -> None:
        """Record that a job has failed.

        Raises:
            StorageError: it cannot be recorded.
        """
        self._journal.fail(job.source.relative_to(self._task.folder), outcome.reason)


def _own_digest(target: Path, record: FileRecord | None) -> str:
    """Return the digest of blurguard's result at ``target``, "" if there is none."""
    return "" if record is None or target.is_symlink() else record.result_at(target)


def _not_replaceable(target: Path, record: FileRecord | None) -> OutputError:
    if record is None or not record.output_digest:
        return OutputError(f"{target}: exists, and blurguard did not make it; give --overwrite to replace it")
    return OutputError(f"{target}: was changed after blurguard made it; give --overwrite to replace it")
