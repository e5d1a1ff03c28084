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

from blurguard.anonymize.anonymizer import Work
from blurguard.batch.journal import FILE_NAME, IN_PLACE_NAME, open_journal
from blurguard.batch.output_tree import FolderTask, Mirror, put_right, recover
from blurguard.batch.workers import Crew, Job, failure, worked
from blurguard.errors import BlurguardError, InputError, OutputError
from blurguard.files.atomic import publish, scratch_in, sweep
from blurguard.files.filetypes import Kind, claimed_kind, kind_of_file
from blurguard.types import Outcome, Status


def blur_folder(task: FolderTask, files: Iterable[Path]) -> Iterator[Outcome]:
    """Hide the faces in files of a folder and yield what became of each, in their order.

    Videos come last, for a long one holds up what comes after it.

    Raises:
        ModelError: the detector cannot run.
        OutputError: the output folder as a whole cannot be used.
    """
    files = sorted(files, key=lambda file: claimed_kind(file) is Kind.VIDEO)
    crew = task.crew.sized(len(files))
    if task.dry_run or not files:
        yield from _dry(files, crew)
        return
    anonymizer = crew.factory()
    name = IN_PLACE_NAME if task.in_place else FILE_NAME
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(open_journal(task.out, name))
        recover(task.out, journal)
        scratch = stack.enter_context(scratch_in(task.out, lambda: not put_right(task.out, journal)))
        mirror = Mirror(task, journal, anonymizer.recipe, scratch)
        yield from _settled(crew, files, mirror.decide, mirror.publish, mirror.note)


def blur_files(
    pairs: Iterable[tuple[Path, Path]], crew: Crew, *, overwrite: bool = False, dry_run: bool = False
) -> Iterator[Outcome]:
    """Hide the faces in single files, given with the names of their results; yields what became of each."""
    targets = dict(pairs)
    crew = crew.sized(len(targets))
    if dry_run:
        yield from _dry(targets, crew)
        return
    crew.factory()  # a detector that cannot run is no file's failure
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

        yield from _settled(crew, targets, decide, _publish_alone, lambda *_: None)


def look_at_files(files: Iterable[Path], crew: Crew) -> Iterator[Outcome]:
    """Find the faces in files, hide nothing; yields what was found in each, in their order."""
    return _settled(crew, files, Job, _publish_nothing, lambda *_: None)


def _publish_alone(job: Job, work: Work) -> None:
    assert job.target is not None and work.draft is not None  # noqa: S101 - blur_files made it so
    publish(work.draft, job.target, job.replace)


def _publish_nothing(job: Job, work: Work) -> None:
    """Files that are only looked at have no result."""


def _dry(files: Iterable[Path], crew: Crew) -> Iterator[Outcome]:
    for outcome in look_at_files(files, crew):
        done = outcome.status is Status.DONE
        yield replace(outcome, status=Status.SKIPPED, reason="dry run") if done else outcome


def _settled(
    crew: Crew,
    files: Iterable[Path],
    decide: Callable[[Path], Job | Outcome],
    publish_one: Callable[[Job, Work], None],
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
                yield failure(job, error)
            except OSError as error:
                yield failure(job, InputError(f"{source}: cannot be read: {error.strerror}"))

    waiting: dict[int, Outcome] = {}
    told = 0
    for ended, job, result in worked(crew, decided()):
        waiting[ended] = _settle(job, result, publish_one, note)
        while told in waiting:
            yield waiting.pop(told)
            told += 1


def _settle(
    job: Job | None,
    result: Work | Outcome,
    publish_one: Callable[[Job, Work], None],
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
        outcome = failure(job, error)
        _try_to_note(note, job, outcome)
        return outcome
    return replace(result.outcome, target=job.target)


def _try_to_note(note: Callable[[Job, Outcome], None], job: Job, outcome: Outcome) -> None:
    """Remember a failure; that it cannot be remembered, on a full disk say, is no failure of the others."""
    with contextlib.suppress(OutputError):
        note(job, outcome)
