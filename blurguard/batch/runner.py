"""Processes many files, in this process or several, and publishes their results in one place.

Workers read, detect, redact and leave results in scratch. Only the caller's process decides, publishes and keeps
the journal. A worker that dies fails only the file it was processing.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from blurguard.anonymize.anonymizer import StagedResult
from blurguard.batch.journal import FILE_NAME, IN_PLACE_NAME, open_journal
from blurguard.batch.output_tree import FolderTask, OutputPolicy, OutputTree, reconcile, recover
from blurguard.batch.workers import Job, WorkerConfig, failed_outcome, run_jobs
from blurguard.errors import BlurguardError, OutputError
from blurguard.files.atomic import publish, remove_stale, scratch_in
from blurguard.files.errors import read_errors
from blurguard.files.filetypes import FileType, type_from_suffix, type_of_file
from blurguard.types import Outcome, Status


def anonymize_folder(task: FolderTask, files: Iterable[Path]) -> Iterator[Outcome]:
    """Hide the faces in files of a folder and yield their outcomes, in order, with videos last.

    A long video would hold up the outcomes of the files after it.

    Raises:
        ModelError: the detector cannot run.
        OutputError: the output folder as a whole cannot be used.
    """
    files = sorted(files, key=lambda file: type_from_suffix(file) is FileType.VIDEO)
    config = task.worker_config.sized_for(len(files))
    if task.dry_run or not files:
        yield from _dry_run(files, config)
        return
    anonymizer = config.factory()
    with open_journal(task.out, IN_PLACE_NAME if task.in_place else FILE_NAME) as journal:
        recover(task.out, journal)
        with scratch_in(task.out, lambda: not reconcile(task.out, journal)) as scratch:
            yield from run_and_publish(config, files, OutputTree(task, journal, anonymizer.recipe, scratch))


def anonymize_files(
    pairs: Iterable[tuple[Path, Path]], config: WorkerConfig, *, overwrite: bool = False, dry_run: bool = False
) -> Iterator[Outcome]:
    """Hide the faces in single files, given with the names of their results, and yield their outcomes in order.

    Raises:
        ModelError: the detector cannot run.
    """
    targets = dict(pairs)
    config = config.sized_for(len(targets))
    if dry_run:
        yield from _dry_run(targets, config)
        return
    config.factory()  # raises if the detector cannot run, which is not one file's failure
    with contextlib.ExitStack() as stack:
        yield from run_and_publish(config, targets, _SingleFiles(targets, overwrite, stack))


def detect_files(files: Iterable[Path], config: WorkerConfig) -> Iterator[Outcome]:
    """Find the faces in files, without writing anything, and yield their outcomes in order."""
    return run_and_publish(config, files, OutputPolicy())


class _SingleFiles(OutputPolicy):
    """Publishes each result under its own name, without a journal."""

    def __init__(self, targets: dict[Path, Path], overwrite: bool, stack: contextlib.ExitStack) -> None:
        self._targets, self._overwrite, self._stack = targets, overwrite, stack  # the stack removes scratch folders
        self._scratch: dict[Path, Path] = {}

    def decide(self, source: Path) -> Job:
        target, folder = self._targets[source], self._targets[source].parent
        if not self._overwrite and os.path.lexists(target):
            raise OutputError(f"{target}: exists already; give --overwrite to replace it")
        type_of_file(source)  # raises before a folder is made for a missing source
        if folder not in self._scratch:
            remove_stale(folder)
            self._scratch[folder] = self._stack.enter_context(scratch_in(folder))
        return Job(source, target, self._scratch[folder], self._overwrite)

    def publish(self, job: Job, result: StagedResult) -> None:
        assert job.target is not None and result.staged is not None  # noqa: S101 - decide() made it so
        publish(result.staged, job.target, job.replace)


def _dry_run(files: Iterable[Path], config: WorkerConfig) -> Iterator[Outcome]:
    for outcome in detect_files(files, config):
        done = outcome.status is Status.DONE
        yield replace(outcome, status=Status.SKIPPED, reason="dry run") if done else outcome


def run_and_publish(config: WorkerConfig, files: Iterable[Path], policy: OutputPolicy) -> Iterator[Outcome]:
    """Process files and publish their results as they arrive. Yields one outcome per file, failed or not, in order."""
    waiting: dict[int, Outcome] = {}
    next_number = 0
    for number, job, result in run_jobs(config, (_decide(policy, source) for source in files)):
        waiting[number] = _settle(policy, job, result)
        while next_number in waiting:
            yield waiting.pop(next_number)
            next_number += 1


def _decide(policy: OutputPolicy, source: Path) -> Job | Outcome:
    try:
        with read_errors(source):
            return policy.decide(source)
    except BlurguardError as error:
        return failed_outcome(Job(source), error)


def _settle(policy: OutputPolicy, job: Job | None, result: StagedResult | Outcome) -> Outcome:
    """Publish a result, or record a failure. Return the outcome of the file."""
    if isinstance(result, StagedResult):
        assert job is not None  # noqa: S101 - only a job gives a result
        try:
            policy.publish(job, result)
            return replace(result.outcome, target=job.target)
        except (BlurguardError, OSError) as error:
            result = failed_outcome(job, error)
    if job is not None and result.status is Status.FAILED:
        with contextlib.suppress(OutputError):  # a full disk, for example, which does not fail the other files
            policy.record_failure(job, result)
    return result
