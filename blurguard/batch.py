"""Many files: what is to be done with each, by one process or several, and one place that gives results names.

Workers read, detect, hide and leave drafts in scratch; only the caller's process decides, publishes and keeps
the journal. A worker that dies costs its own file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from blurguard.errors import BlurguardError, ConfigError, InputError, OutputError, StorageError
from blurguard.journal import FILE_NAME, IN_PLACE_NAME, Entry, Journal, Stamp, State, open_journal
from blurguard.media import Found, Kind, claimed_kind, discover, kind_of_file
from blurguard.output import SCRATCH_FOLDER, STATE_FOLDER, digest_of, publish, scratch_in, sweep
from blurguard.pipeline import Work
from blurguard.types import Outcome, Status
from blurguard.workers import Crew, Job, failure, worked


@dataclass(frozen=True, slots=True)
class FolderTask:
    """What ``blur_folder`` is to do.

    Attributes:
        folder: searched with everything below it.
        out: the mirrored tree; ``folder`` itself replaces the originals.
        crew: who works.
        overwrite: replace files of ``out`` that are not known to be ours.
        dry_run: find faces and tell, write nothing.
    """

    folder: Path
    out: Path
    crew: Crew
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


def recover(out: Path, journal: Journal) -> None:
    """Make the journal true after whatever has happened to the last process, and remove what that left in scratch.

    Raises:
        StorageError: nothing can be recorded.
    """
    if not put_right(out, journal):
        raise StorageError(f"{out}: what was done cannot be recorded; free some space and run again")
    sweep(out, recorded=True)


def put_right(out: Path, journal: Journal) -> bool:
    """Settle the files whose results were to get their names when something came in between; False if that fails.

    A result is recorded, renamed and recorded again. If it was not recorded again, and neither has its name nor
    waits in scratch, it was renamed and somebody has taken it: with a drop folder, it must not come out twice. So
    nobody may remove a draft from scratch before this has been called.
    """
    drafts = set(_drafts(out / STATE_FOLDER / SCRATCH_FOLDER))
    with contextlib.suppress(StorageError):
        for name, entry in journal.all_in(State.PUBLISHING):
            target = out / name
            taken = not os.path.lexists(target) and (entry.output_size, entry.output_mtime_ns) not in drafts
            if taken or (target.is_file() and entry.result_at(target) == entry.output_digest):
                journal.put(name, replace(entry, state=State.DONE))
            else:
                journal.mark([name], State.QUEUED)
        return True
    return False


def _drafts(scratch: Path) -> Iterator[tuple[int, int]]:
    """Yield size and time of the drafts that never got a name; one that has two is linked to its name already."""
    for parent, _, names in os.walk(scratch):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # somebody works there
                info = Path(parent, name).lstat()
                if info.st_nlink == 1:
                    yield info.st_size, info.st_mtime_ns


class Mirror:
    """The decisions about one output folder, which its journal informs."""

    def __init__(self, task: FolderTask, journal: Journal, recipe: str, scratch: Path) -> None:
        self._task = task
        self._journal = journal
        self._recipe = recipe
        self._scratch = scratch
        self._out = task.out.resolve()
        self._root = digest_of(os.fsencode(task.folder.resolve()))
        self._may_replace = task.overwrite or task.in_place

    def decide(self, source: Path) -> Job | Outcome:
        """Return what is to be done, or that it is done already.

        Raises:
            OutputError: a file is in the way that is not ours to replace.
        """
        name = source.relative_to(self._task.folder)
        target = self._task.out / name
        self._refuse_way_out(target)
        entry = self._journal.get(name)
        if not os.path.lexists(target):
            return Job(source, target, self._scratch)
        ours = _ours_at(target, entry)
        if ours and entry is not None and ours == entry.output_digest and self._up_to_date(entry, source):
            return Outcome(source, Status.SKIPPED, target, reason="done before and unchanged")
        if not self._may_replace:
            if not ours or entry is None:
                raise OutputError(_why_refused(target, entry))
            if entry.root != self._root and not entry.came_from(source):
                raise OutputError(f"{target}: is the result of another folder's picture; choose another --out")
        return Job(source, target, self._scratch, replace=True)

    def _refuse_way_out(self, target: Path) -> None:
        if not target.parent.resolve().is_relative_to(self._out):
            raise OutputError(f"{target.parent}: leads out of {self._task.out}; remove that link")

    def _up_to_date(self, entry: Entry, source: Path) -> bool:
        if entry.state not in (State.PUBLISHING, State.DONE) or entry.recipe != self._recipe:
            return False
        return self._task.in_place or entry.came_from(source)

    def publish(self, job: Job, work: Work, then: Callable[[], None] = lambda: None) -> None:
        """Give the result its name, and have it in the journal whatever moment we die at.

        Args:
            job: as ``decide`` made it; what was so then is looked at again.
            work: with the draft.
            then: called between name and last record.

        Raises:
            InputError: the original is to be replaced, and has changed.
            OutputError: the result cannot get its name; the draft is still there then.
        """
        assert job.target is not None and work.draft is not None  # noqa: S101 - decide() made it so
        name, draft = job.source.relative_to(self._task.folder), work.draft
        if self._task.in_place and Stamp.of(job.source) != work.source:
            raise InputError(f"{job.source}: was changed while it was worked on; run again")
        self._refuse_way_out(job.target)
        known = self._journal.get(name)
        ours = _ours_at(job.target, known)
        if job.replace and not (ours or self._may_replace) and os.path.lexists(job.target):
            raise OutputError(_why_refused(job.target, known))
        entry = Entry(
            State.PUBLISHING,
            work.source,
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
                    self._journal.mark([name], State.QUEUED)
            raise
        then()
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
