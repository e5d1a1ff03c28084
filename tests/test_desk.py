"""The desk's verdicts, with a real journal and a real anonymizer: what is done, done again, left, and told."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from PIL import Image

from bench.faults.commands import put
from bench.faults.stubs import anonymizer
from blurguard.anonymize.anonymizer import Anonymizer, StagedResult
from blurguard.batch.journal import FileRecord, FileState, Journal, open_journal
from blurguard.batch.output_tree import FolderTask, reconcile
from blurguard.batch.workers import Job, WorkerConfig, failed_outcome
from blurguard.files.atomic import StagedFile, scratch_in
from blurguard.files.stamp import FileStamp, stamp_at
from blurguard.settings import Originals, WatchSettings
from blurguard.types import Outcome
from blurguard.watch.coordinator import Coordinator, JobResult
from blurguard.watch.folders import Folders
from tests.commands import names, pixels, small_disk, snapshot

BOX = (4.0, 4.0, 28.0, 28.0)
RECIPE = "recipe"


def worker() -> Anonymizer:
    return anonymizer([BOX], style="solid", shape="box")


def picture(path: Path, red: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (red, 120, 150)).save(path)
    return path


@dataclass
class Office:
    """A desk with all that it needs, in a folder."""

    desk: Coordinator
    journal: Journal
    root: Path
    said: list[str] = field(default_factory=list)

    @property
    def inbox(self) -> Path:
        return self.desk.inbox

    @property
    def outbox(self) -> Path:
        return self.desk.outbox

    def ruling(self, source: Path) -> Job | Outcome | None:
        stamp = stamp_at(source, self.inbox)
        assert stamp is not None
        return self.desk.decide(source, stamp)

    def knows(self, source: Path) -> bool:
        stamp = stamp_at(source, self.inbox)
        assert stamp is not None
        return self.desk.is_handled(source, stamp)

    def started(self, source: Path) -> Job:
        """Decide on a file that is to be worked on, and have somebody begin."""
        job = self.ruling(source)
        assert isinstance(job, Job)
        self.desk.queue([source])
        assert self.state(source) is FileState.QUEUED
        self.desk.start(job)
        self.desk.mark_started(source)
        assert self.state(source) is FileState.WORKING
        return job

    def result(self, job: Job) -> StagedResult | Outcome:
        """Do what a worker does."""
        assert job.scratch is not None
        try:
            return worker().work(job.source, job.scratch)
        except Exception as error:
            return failed_outcome(job, error)

    def turn(self, source: Path) -> JobResult:
        job = self.started(source)
        verdict, _ = self.desk.finish(job, self.result(job))
        assert job.scratch is not None and not job.scratch.exists()
        return verdict

    def entry(self, source: Path) -> FileRecord | None:
        return self.journal.get(source.relative_to(self.inbox))

    def state(self, source: Path) -> FileState | None:
        entry = self.entry(source)
        return None if entry is None else entry.state

    def notes(self) -> list[str]:
        folder = self.outbox / ".blurguard" / "failed"
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.json"))


@contextlib.contextmanager
def office(
    root: Path,
    policy: Originals = Originals.KEEP,
    *,
    failed: bool = False,
    outbox: Path | None = None,
    overwrite: bool = False,
    poll: bool = False,
    patience: float = 0.0,
) -> Iterator[Office]:
    """Open one as the daemon does; a second one there is the next start."""
    (root / "in").mkdir(exist_ok=True)
    out = outbox or root / "out"
    folders = Folders(root / "in", out, root / "failed" if failed else None, root / "moved")
    said: list[str] = []
    with open_journal(out) as journal, scratch_in(out, lambda: not reconcile(out, journal)) as scratch:
        task = FolderTask(folders.inbox, out, WorkerConfig(worker), overwrite)
        settings = WatchSettings(originals=policy, poll=poll)
        desk = Coordinator(folders, settings, task, scratch, journal, said.append)
        desk.patience = patience
        desk.recover()
        desk.open(RECIPE)
        yield Office(desk, journal, root, said)


# How a turn ends.


def test_done(tmp_path: Path) -> None:
    with office(tmp_path) as at:
        source = picture(tmp_path / "in/sub/a.png")
        assert not at.knows(source)
        assert at.turn(source) is JobResult.DONE
        assert (pixels(tmp_path / "out/sub/a.png")[4:28, 4:28] == 0).all()
        assert at.state(source) is FileState.DONE and at.knows(source)
        assert at.ruling(source) is None
        assert source.exists() and not at.said


def test_what_changed_while_it_was_worked_on_is_done_again(tmp_path: Path) -> None:
    with office(tmp_path) as at:
        source = picture(tmp_path / "in/a.png")
        job = at.started(source)
        result = at.result(job)
        picture(source, red=10)
        verdict, _ = at.desk.finish(job, result)
        assert verdict is JobResult.CHANGED and names(at.outbox) == []
        assert not at.knows(source)
        assert at.turn(source) is JobResult.DONE
        assert pixels(tmp_path / "out/a.png")[50, 50, 0] == 10


def test_what_changed_while_it_failed_is_tried_again(tmp_path: Path) -> None:
    with office(tmp_path) as at:
        source = put(tmp_path / "in/a.png", picture(tmp_path / "b.png").read_bytes()[:60])
        job = at.started(source)
        result = at.result(job)
        picture(source)
        assert isinstance(result, Outcome)
        assert at.desk.finish(job, result)[0] is JobResult.CHANGED
        assert at.notes() == [] and at.turn(source) is JobResult.DONE


def test_what_changed_after_it_was_done_is_done_again_and_its_result_replaced(tmp_path: Path) -> None:
    with office(tmp_path) as at:
        source = picture(tmp_path / "in/a.png")
        at.turn(source)
        picture(source, red=10)
        assert not at.knows(source)
        assert at.turn(source) is JobResult.DONE
        assert pixels(tmp_path / "out/a.png")[50, 50, 0] == 10


@pytest.mark.parametrize("before", [False, True])
def test_what_is_gone_leaves_no_result(tmp_path: Path, before: bool) -> None:
    with office(tmp_path) as at:
        source = picture(tmp_path / "in/a.png")
        job = at.started(source)
        if before:
            source.unlink()
        result = at.result(job)
        source.unlink(missing_ok=True)
        assert at.desk.finish(job, result)[0] is JobResult.GONE
        assert names(at.outbox) == at.notes() == [] and at.entry(source) is None


def test_what_fails_is_noted_and_known_until_it_changes(tmp_path: Path) -> None:
    with office(tmp_path) as at:
        source = put(tmp_path / "in/a.png", picture(tmp_path / "b.png").read_bytes()[:60])
        assert at.turn(source) is JobResult.FAILED
        assert at.state(source) is FileState.FAILED and at.knows(source) and source.exists()
        assert at.notes() == ["a.png.json"] and names(at.outbox) == []
        assert at.ruling(source) is None
        picture(source)
        assert not at.knows(source)
        assert at.turn(source) is JobResult.DONE
        assert at.notes() == []


def test_what_fails_goes_where_failed_ones_go_and_stays_known_as_failed(tmp_path: Path) -> None:
    with office(tmp_path, failed=True) as at:
        source = put(tmp_path / "in/a.png", picture(tmp_path / "b.png").read_bytes()[:60])
        assert at.turn(source) is JobResult.FAILED
        assert names(tmp_path / "failed") == ["a.png", "a.png.json"] and not source.exists()
        at.desk.forget(source)
        assert at.state(source) is FileState.FAILED


def test_a_failure_that_is_taken_away_is_forgotten(tmp_path: Path) -> None:
    with office(tmp_path) as at:
        source = put(tmp_path / "in/a.png", picture(tmp_path / "b.png").read_bytes()[:60])
        at.turn(source)
        source.unlink()
        at.desk.forget(source)
        assert at.entry(source) is None and at.notes() == []


def test_what_is_no_picture_is_looked_into_once(tmp_path: Path) -> None:
    with office(tmp_path) as at:
        source = put(tmp_path / "in/readme.txt", b"text")
        assert not at.knows(source)
        assert at.ruling(source) is None
        assert at.knows(source) and at.entry(source) is None
        put(source, picture(tmp_path / "b.png").read_bytes())
        assert not at.knows(source) and at.turn(source) is JobResult.DONE


def test_a_file_of_somebody_else_in_the_outbox_is_a_failure_and_stays(tmp_path: Path) -> None:
    with office(tmp_path) as at:
        source, other = picture(tmp_path / "in/a.png"), put(tmp_path / "out/a.png", b"not ours")
        ruling = at.ruling(source)
        assert isinstance(ruling, Outcome) and "did not make it" in ruling.reason
        assert at.state(source) is FileState.FAILED and other.read_bytes() == b"not ours"


def test_a_full_disk_is_no_failure_of_the_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=1m") as disk, office(tmp_path, outbox=disk / "out") as at:
        source = picture(tmp_path / "in/a.png")
        job = at.started(source)
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        verdict, outcome = at.desk.finish(job, at.result(job))
        assert verdict is JobResult.UNAVAILABLE and "full" in outcome.reason
        assert at.state(source) is not FileState.FAILED and at.notes() == [] and names(at.outbox) == []
        filler.unlink()
        assert at.turn(source) is JobResult.DONE and names(at.outbox) == ["a.png"]


@contextlib.contextmanager
def without_room_for_names(disk: Path) -> Iterator[None]:
    """Use up what a file system has for new files; what exists can still be written to."""
    fillers: list[Path] = []
    with contextlib.suppress(OSError):
        while True:
            (disk / f"filler-{len(fillers)}").touch()
            fillers.append(disk / f"filler-{len(fillers)}")
    yield
    for filler in fillers:
        filler.unlink()


@pytest.mark.parametrize("policy", list(Originals))
def test_a_result_that_could_not_get_its_name_is_not_lost_in_a_crash(tmp_path: Path, policy: Originals) -> None:
    with small_disk(tmp_path / "disk", "nr_inodes=60") as disk:
        with office(tmp_path, policy, outbox=disk / "out") as at:
            source = picture(tmp_path / "in/sub/a.png")
            job = at.started(source)
            result = at.result(job)
            with without_room_for_names(disk):
                assert at.desk.finish(job, result)[0] is JobResult.UNAVAILABLE
            assert source.exists() and names(at.outbox) == []
        with office(tmp_path, policy, outbox=disk / "out") as at:  # killed before the file's next turn
            assert at.turn(source) is JobResult.DONE
            assert names(at.outbox) == ["sub/a.png"]


# Times.


@pytest.mark.parametrize("policy", [Originals.KEEP, Originals.MOVE])
def test_other_times_of_the_same_content_are_recorded_and_nothing_comes_out_again(
    tmp_path: Path, policy: Originals
) -> None:
    with office(tmp_path) as at:
        source = picture(tmp_path / "in/a.png")
        at.turn(source)
    result = FileStamp.of(tmp_path / "out/a.png")
    with office(tmp_path, policy) as at:
        os.utime(source, (1, 1))
        stamp = FileStamp.of(source)
        assert not at.knows(source)
        assert at.ruling(source) is None
        assert FileStamp.of(tmp_path / "out/a.png") == result
        entry = at.entry(source)
        assert entry is not None and (entry.source, entry.state) == (stamp, FileState.DONE)
        assert source.exists() == (policy is Originals.KEEP)


@pytest.mark.parametrize("taken", [False, True])
def test_what_is_only_touched_is_not_redone_under_other_settings_while_its_result_stands(
    tmp_path: Path, taken: bool
) -> None:
    with office(tmp_path) as at:
        source, result = picture(tmp_path / "in/a.png"), tmp_path / "out/a.png"
        at.turn(source)
        before = FileStamp.of(result)
        if taken:
            result.unlink()
        at.desk.open("another recipe")
        os.utime(source, (1, 1))
        assert not at.knows(source)
        if taken:  # it was dropped again
            assert at.turn(source) is JobResult.DONE and names(at.outbox) == ["a.png"]
        else:
            assert at.ruling(source) is None and FileStamp.of(result) == before
        assert at.knows(source)


def test_the_same_content_under_another_name_has_a_result_of_its_own(tmp_path: Path) -> None:
    with office(tmp_path) as at:
        first = picture(tmp_path / "in/a.png")
        at.turn(first)
        second = first.rename(tmp_path / "in/b.png")
        at.desk.forget(first)
        assert at.turn(second) is JobResult.DONE
        assert names(at.outbox) == ["a.png", "b.png"]


# Originals.


def test_an_original_is_moved_once_its_result_stands(tmp_path: Path) -> None:
    with office(tmp_path, Originals.MOVE) as at:
        source = picture(tmp_path / "in/sub/a.png")
        content = source.read_bytes()
        assert at.turn(source) is JobResult.DONE
        assert not source.exists() and (tmp_path / "moved/sub/a.png").read_bytes() == content
        assert names(at.outbox) == ["sub/a.png"] and not at.said


def test_an_original_is_deleted_once_its_result_stands(tmp_path: Path) -> None:
    with office(tmp_path, Originals.DELETE) as at:
        source = picture(tmp_path / "in/a.png")
        assert at.turn(source) is JobResult.DONE
        assert not source.exists() and names(at.outbox) == ["a.png"] and not at.said


def test_nothing_is_deleted_on_the_strength_of_a_result_that_cannot_be_read_back(tmp_path: Path) -> None:
    with office(tmp_path, Originals.DELETE) as at:
        source = picture(tmp_path / "in/a.png")
        job = at.started(source)
        result = at.result(job)
        assert isinstance(result, StagedResult) and isinstance(result.staged, StagedFile)
        result.staged.path.write_bytes(b"what a broken disk has made of it")
        verdict, outcome = at.desk.finish(job, result)
        assert verdict is JobResult.FAILED and "returns other content than was written" in outcome.reason
        assert source.exists() and names(at.outbox) == []


@pytest.mark.parametrize("policy", [Originals.MOVE, Originals.DELETE])
@pytest.mark.parametrize("taken", [False, True])
def test_an_original_of_a_result_from_before_goes_only_where_nothing_is_lost(
    tmp_path: Path, policy: Originals, taken: bool
) -> None:
    with office(tmp_path) as at:
        source = picture(tmp_path / "in/a.png")
        at.turn(source)
        if taken:
            (tmp_path / "out/a.png").unlink()
    with office(tmp_path, policy) as at:
        assert not at.knows(source)
        assert at.ruling(source) is None
        assert source.exists() == (policy is Originals.DELETE and taken)
        assert names(at.outbox) == ([] if taken else ["a.png"]), "it does not come out twice"


def test_an_original_that_cannot_be_moved_stays_and_is_told_of_once(tmp_path: Path) -> None:
    with office(tmp_path, Originals.MOVE) as at:
        source = picture(tmp_path / "in/sub/a.png")
        obstacle = put(tmp_path / "moved/sub", b"a file where a folder should be")
        assert at.turn(source) is JobResult.DONE
        assert source.exists() and len(at.said) == 1 and "the result is published, but" in at.said[0]
        assert at.knows(source), "it is not tried over and over"
        assert at.ruling(source) is None and len(at.said) == 1
        obstacle.unlink()
    with office(tmp_path, Originals.MOVE) as at:
        assert not at.knows(source)
        assert at.ruling(source) is None
        assert not source.exists() and (tmp_path / "moved/sub/a.png").exists()
        assert names(at.outbox) == ["sub/a.png"]


@pytest.mark.parametrize("policy", [Originals.MOVE, Originals.DELETE])
def test_an_original_that_somebody_still_writes_stays_and_is_done_again(tmp_path: Path, policy: Originals) -> None:
    with office(tmp_path, policy) as at:
        source = picture(tmp_path / "in/a.png")
        with source.open("r+b") as file:
            assert at.turn(source) is JobResult.DONE and source.exists()
            assert at.ruling(source) is None and source.exists()
            file.write(picture(tmp_path / "b.png", red=10).read_bytes())
            file.truncate()
        assert not at.knows(source)
        assert at.turn(source) is JobResult.DONE and not source.exists()
        assert pixels(tmp_path / "out/a.png")[50, 50, 0] == 10 and not at.said
        assert names(tmp_path / "moved") == (["a.png"] if policy is Originals.MOVE else [])


@pytest.mark.parametrize("policy", [Originals.MOVE, Originals.DELETE])
def test_an_original_that_was_only_held_open_goes_at_the_next_look(tmp_path: Path, policy: Originals) -> None:
    with office(tmp_path, policy) as at:
        source = picture(tmp_path / "in/a.png")
        with source.open("r+b"):
            assert at.turn(source) is JobResult.DONE and source.exists()
        assert not at.knows(source)
        assert at.ruling(source) is None and not source.exists()


# After a crash.


@dataclass(frozen=True)
class Wreck:
    """What a daemon that died while it published has left: the row, and a result that may have got its name."""

    root: Path
    source: Path
    target: Path
    draft: Path

    def state(self) -> FileState | None:
        """Start the next daemon; return what it takes the file for."""
        with office(self.root) as at:
            assert not self.draft.parent.exists(), "what the dead left in scratch is swept"
            return at.state(self.source)


@pytest.fixture
def wreck(tmp_path: Path) -> Wreck:
    with office(tmp_path) as at:
        source, target = picture(tmp_path / "in/a.png"), tmp_path / "out/a.png"
        at.turn(source)
        entry = at.entry(source)
        assert entry is not None
    with open_journal(tmp_path / "out") as journal:  # later: at its end, a daemon makes the journal true
        journal.put(Path("a.png"), replace(entry, state=FileState.PUBLISHING))
    draft = tmp_path / "out/.blurguard/scratch/0123456789abcdef/0123456789abcdef/draft"
    draft.parent.mkdir(parents=True)
    return Wreck(tmp_path, source, target, draft)


def test_a_result_that_got_its_name_is_done(wreck: Wreck) -> None:
    assert wreck.state() is FileState.DONE


def test_a_result_that_got_its_name_is_done_whatever_its_times(wreck: Wreck) -> None:
    os.utime(wreck.target, (1, 1))
    assert wreck.state() is FileState.DONE


def test_a_result_that_waits_in_scratch_did_not_come_out(wreck: Wreck) -> None:
    wreck.target.rename(wreck.draft)
    assert wreck.state() is FileState.QUEUED
    with office(wreck.root) as at:
        assert at.turn(wreck.source) is JobResult.DONE
    assert names(wreck.root / "out") == ["a.png"]


def test_a_result_that_waits_in_scratch_beside_an_earlier_one_did_not_come_out(wreck: Wreck) -> None:
    wreck.target.rename(wreck.draft)
    put(wreck.target, b"the one before")
    assert wreck.state() is FileState.QUEUED


def test_a_result_that_is_nowhere_was_taken_and_does_not_come_out_twice(wreck: Wreck) -> None:
    wreck.target.unlink()
    assert wreck.state() is FileState.DONE
    with office(wreck.root) as at:
        assert at.knows(wreck.source)


def test_another_file_at_the_name_of_a_result_is_not_taken_for_it(wreck: Wreck) -> None:
    put(wreck.target, b"somebody else's")
    assert wreck.state() is FileState.QUEUED
    with office(wreck.root) as at:
        ruling = at.ruling(wreck.source)
        assert isinstance(ruling, Outcome) and "changed after blurguard made it" in ruling.reason
    assert wreck.target.read_bytes() == b"somebody else's"


@pytest.mark.parametrize("state", [FileState.QUEUED, FileState.WORKING])
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("earlier", [False, True])
def test_what_waited_waits_again_if_it_is_still_there(
    tmp_path: Path, state: FileState, there: bool, earlier: bool
) -> None:
    with office(tmp_path) as at:
        source = picture(tmp_path / "in/a.png")
        if earlier:
            at.turn(source)
            picture(source, red=10)
        if state is FileState.WORKING:
            at.started(source)
        else:
            at.desk.queue([source])
    if not there:
        source.unlink()
    with office(tmp_path) as at:
        if there:
            assert at.state(source) is FileState.QUEUED and not at.knows(source)
            assert at.turn(source) is JobResult.DONE and names(at.outbox) == ["a.png"]
        else:
            assert at.state(source) is (FileState.DONE if earlier else None)
            assert names(at.outbox) == (["a.png"] if earlier else [])


def test_what_is_being_worked_on_at_the_end_waits_for_the_next_start(tmp_path: Path) -> None:
    with office(tmp_path) as at:
        first, second = picture(tmp_path / "in/a.png"), picture(tmp_path / "in/b.png")
        at.started(first)
        at.started(second)
        second.unlink()
        at.desk.requeue([first, second])
        assert at.state(first) is FileState.QUEUED
    with office(tmp_path) as at:
        assert at.entry(second) is None
        assert at.turn(first) is JobResult.DONE


@pytest.mark.parametrize("failed", [False, True])
def test_what_failed_is_tried_again_when_that_is_asked_for(tmp_path: Path, failed: bool) -> None:
    with office(tmp_path, failed=failed) as at:
        source = put(tmp_path / "in/a.png", picture(tmp_path / "b.png").read_bytes()[:60])
        at.turn(source)
    with office(tmp_path, failed=failed) as at:
        at.desk.retry_failed()
        assert source.exists() and not at.knows(source)
        assert at.state(source) is FileState.QUEUED
        assert at.turn(source) is JobResult.FAILED


@pytest.mark.parametrize("failed", [False, True])
def test_a_failure_whose_original_went_while_nobody_looked_is_forgotten(tmp_path: Path, failed: bool) -> None:
    with office(tmp_path, failed=failed) as at:
        source = put(tmp_path / "in/a.png", picture(tmp_path / "b.png").read_bytes()[:60])
        assert at.turn(source) is JobResult.FAILED
    with office(tmp_path, failed=failed) as at:
        assert at.entry(source) is not None
        assert at.notes() == ([] if failed else ["a.png.json"])
    for path in [*tmp_path.glob("failed/a.*"), *tmp_path.glob("in/a.*")]:
        path.unlink()
    with office(tmp_path, failed=failed) as at:
        assert at.entry(source) is None and at.notes() == names(tmp_path / "in") == []


# Failures that cannot be settled at once.


@pytest.mark.parametrize("poll", [False, True])
@pytest.mark.parametrize("changed", [False, True])
def test_what_fails_while_it_may_be_written_is_moved_only_after_a_while(
    tmp_path: Path, poll: bool, changed: bool
) -> None:
    with office(tmp_path, failed=True, poll=poll, patience=60.0) as at, contextlib.ExitStack() as stack:
        now = 0.0
        at.desk._clock = lambda: now
        source = put(tmp_path / "in/a.png", picture(tmp_path / "b.png").read_bytes()[:60])
        file = stack.enter_context(source.open("r+b") if not poll else source.open("rb"))
        assert at.turn(source) is JobResult.FAILED
        now = 59.0
        at.desk.write_error_reports()
        assert source.exists() and names(tmp_path / "failed") == []
        if changed:
            file.close()
            picture(source)
        now = 60.0
        at.desk.write_error_reports()
        assert source.exists() == changed
        assert names(tmp_path / "failed") == ([] if changed else ["a.png", "a.png.json"])
        if changed:
            assert not at.knows(source) and at.turn(source) is JobResult.DONE


def test_what_fails_while_it_is_written_is_moved_as_soon_as_it_is_closed(tmp_path: Path) -> None:
    with office(tmp_path, failed=True, patience=60.0) as at:
        source = put(tmp_path / "in/a.png", picture(tmp_path / "b.png").read_bytes()[:60])
        with source.open("r+b"):
            assert at.turn(source) is JobResult.FAILED and source.exists()
        at.desk.write_error_reports()
        assert not source.exists() and names(tmp_path / "failed") == ["a.png", "a.png.json"]


@pytest.mark.parametrize("failed", [False, True])
def test_a_note_that_cannot_be_written_is_tried_again_and_told_of_once(tmp_path: Path, failed: bool) -> None:
    with office(tmp_path, failed=failed) as at:
        folder = tmp_path / "failed" if failed else at.outbox / ".blurguard" / "failed"
        obstacle = put(folder / "sub", b"a file where a folder should be")
        source = put(tmp_path / "in/sub/a.png", picture(tmp_path / "b.png").read_bytes()[:60])
        assert at.turn(source) is JobResult.FAILED and at.knows(source)
        at.desk.write_error_reports()
        assert source.exists() and len(at.said) == 1 and "no error report could be written yet" in at.said[0]
        obstacle.unlink()
        at.desk.write_error_reports()
        assert (folder / "sub/a.png.json").exists() and source.exists() != failed
        at.desk.write_error_reports()
        assert len(at.said) == 1


def test_a_note_that_waits_is_not_written_on_what_was_done_meanwhile(tmp_path: Path) -> None:
    with office(tmp_path) as at:
        obstacle = put(at.outbox / ".blurguard/failed", b"a file where a folder should be")
        source = put(tmp_path / "in/a.png", picture(tmp_path / "b.png").read_bytes()[:60])
        assert at.turn(source) is JobResult.FAILED
        picture(source)
        assert at.turn(source) is JobResult.DONE
        obstacle.unlink()
        at.desk.write_error_reports()
        assert at.notes() == [] and at.state(source) is FileState.DONE


# What the outbox has become while a file waited.


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_result_that_its_user_edits_while_a_new_version_waits_is_not_replaced_unasked(
    tmp_path: Path, overwrite: bool
) -> None:
    with office(tmp_path, overwrite=overwrite) as at:
        source, result = picture(tmp_path / "in/a.png"), tmp_path / "out/a.png"
        at.turn(source)
        picture(source, red=10)
        job = at.started(source)
        work = at.result(job)
        put(result, b"edited")
        verdict, outcome = at.desk.finish(job, work)
        assert verdict is (JobResult.DONE if overwrite else JobResult.FAILED)
        assert (result.read_bytes() == b"edited") != overwrite
        assert overwrite or "changed after blurguard made it" in outcome.reason


@pytest.mark.parametrize("earlier", [False, True])
def test_a_folder_of_the_outbox_that_becomes_a_way_out_is_not_taken(tmp_path: Path, earlier: bool) -> None:
    outside = tmp_path / "outside"
    with office(tmp_path) as at:
        source = picture(tmp_path / "in/sub/a.png")
        (tmp_path / "out/sub").mkdir()
        if earlier:
            at.turn(source)
            picture(source, red=10)
        job = at.started(source)
        work = at.result(job)
        (tmp_path / "out/sub").rename(outside)
        (tmp_path / "out/sub").symlink_to(outside)
        before = snapshot(outside)
        verdict, outcome = at.desk.finish(job, work)
        assert verdict is JobResult.FAILED and "leads out of" in outcome.reason
        assert snapshot(outside) == before
