"""Many files: what is to be done with each, by one process or several, and one place that gives results names.

Workers read, detect, hide and leave drafts in scratch; only the caller's process decides, publishes and keeps
the journal. A worker that dies costs its own file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from blurguard.anonymize.anonymizer import StagedResult
from blurguard.batch.journal import FILE_NAME, IN_PLACE_NAME, open_journal
from blurguard.batch.output_tree import FolderTask, OutputTree, reconcile, recover
from blurguard.batch.workers import Job, WorkerConfig, failed_outcome, run_jobs
from blurguard.errors import BlurguardError, InputError, OutputError
from blurguard.files.atomic import publish, remove_stale, scratch_in
from blurguard.files.filetypes import FileType, type_from_suffix, type_of_file
from blurguard.types import Outcome, Status


def anonymize_folder(task: FolderTask, files: Iterable[Path]) -> Iterator[Outcome]:
    """Hide the faces in files of a folder and yield what became of each, in their order.

    Videos come last, for a long one holds up what comes after it.

    Raises:
        ModelError: the detector cannot run.
        OutputError: the output folder as a whole cannot be used.
    """
    files = sorted(files, key=lambda file: type_from_suffix(file) is FileType.VIDEO)
    crew = task.worker_config.sized_for(len(files))
    if task.dry_run or not files:
        yield from _dry_run(files, crew)
        return
    anonymizer = crew.factory()
    name = IN_PLACE_NAME if task.in_place else FILE_NAME
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(open_journal(task.out, name))
        recover(task.out, journal)
        scratch = stack.enter_context(scratch_in(task.out, lambda: not reconcile(task.out, journal)))
        mirror = OutputTree(task, journal, anonymizer.recipe, scratch)
        yield from run_and_publish(crew, files, mirror.decide, mirror.publish, mirror.record_failure)


def anonymize_files(
    pairs: Iterable[tuple[Path, Path]], crew: WorkerConfig, *, overwrite: bool = False, dry_run: bool = False
) -> Iterator[Outcome]:
    """Hide the faces in single files, given with the names of their results; yields what became of each."""
    targets = dict(pairs)
    crew = crew.sized_for(len(targets))
    if dry_run:
        yield from _dry_run(targets, crew)
        return
    crew.factory()  # a detector that cannot run is no file's failure
    with contextlib.ExitStack() as stack:
        scratches: dict[Path, Path] = {}

        def decide(source: Path) -> Job:
            target, folder = targets[source], targets[source].parent
            if not overwrite and os.path.lexists(target):
                raise OutputError(f"{target}: exists already; give --overwrite to replace it")
            type_of_file(source)  # a source that is not there leaves no folder behind
            if folder not in scratches:
                remove_stale(folder)
                scratches[folder] = stack.enter_context(scratch_in(folder))
            return Job(source, target, scratches[folder], overwrite)

        yield from run_and_publish(crew, targets, decide, _publish_alone, lambda *_: None)


def detect_files(files: Iterable[Path], crew: WorkerConfig) -> Iterator[Outcome]:
    """Find the faces in files, hide nothing; yields what was found in each, in their order."""
    return run_and_publish(crew, files, Job, _publish_nothing, lambda *_: None)


def _publish_alone(job: Job, work: StagedResult) -> None:
    assert job.target is not None and work.staged is not None  # noqa: S101 - blur_files made it so
    publish(work.staged, job.target, job.replace)


def _publish_nothing(job: Job, work: StagedResult) -> None:
    """Files that are only looked at have no result."""


def _dry_run(files: Iterable[Path], crew: WorkerConfig) -> Iterator[Outcome]:
    for outcome in detect_files(files, crew):
        done = outcome.status is Status.DONE
        yield replace(outcome, status=Status.SKIPPED, reason="dry run") if done else outcome


def run_and_publish(
    crew: WorkerConfig,
    files: Iterable[Path],
    decide: Callable[[Path], Job | Outcome],
    publish_one: Callable[[Job, StagedResult], None],
    note: Callable[[Job, Outcome], None],
) -> Iterator[Outcome]:
    """Decide on each file, have it worked on, publish it; failures become outcomes.

    Results get their names as soon as they are there; what became of the files is told in their order.
    """

    def decided() -> Iterator[Job | Outcome]:
        for source in files:
            job = Job(source)
            try:
                yield decide(source)
            except BlurguardError as error:
                yield failed_outcome(job, error)
            except OSError as error:
                yield failed_outcome(job, InputError(f"{source}: cannot be read: {error.strerror}"))

    waiting: dict[int, Outcome] = {}
    told = 0
    for ended, job, result in run_jobs(crew, decided()):
        waiting[ended] = _settle(job, result, publish_one, note)
        while told in waiting:
            yield waiting.pop(told)
            told += 1


def _settle(
    job: Job | None,
    result: StagedResult | Outcome,
    publish_one: Callable[[Job, StagedResult], None],
    note: Callable[[Job, Outcome], None],
) -> Outcome:
    """Publish a result, or remember a failure; return what became of the file."""
    if isinstance(result, Outcome):
        if job is not None and result.status is Status.FAILED:
            _try_to_note(note, job, result)
        return result
    assert job is not None  # noqa: S101 - only a job gives work
    try:
        publish_one(job, result)
    except (BlurguardError, OSError) as error:
        outcome = failed_outcome(job, error)
        _try_to_note(note, job, outcome)
        return outcome
    return replace(result.outcome, target=job.target)


def _try_to_note(note: Callable[[Job, Outcome], None], job: Job, outcome: Outcome) -> None:
    """Remember a failure; that it cannot be remembered, on a full disk say, is no failure of the others."""
    with contextlib.suppress(OutputError):
        note(job, outcome)
