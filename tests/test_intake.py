"""A file is taken when it is complete, whatever order things are heard in; time and file system are arguments."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from blurguard.files.stamp import FileStamp
from blurguard.watch.inbox import ChangeType, has_final_name
from blurguard.watch.settling import MAX_WAIT_FACTOR, FileProbe, SettlingQueue

A, B, C = (Path("/in", name) for name in ("a.jpg", "b.jpg", "c.jpg"))
SETTLE = 2.0


def stamp(number: int) -> FileStamp:
    return FileStamp(number, number, number)


@dataclass
class Disk:
    """What a look at files tells, and who was looked at."""

    files: dict[Path, FileProbe] = field(default_factory=dict)
    looked: list[Path] = field(default_factory=list)

    def put(self, path: Path, number: int, *, being_written: bool = False) -> FileStamp:
        self.files[path] = FileProbe(stamp(number), being_written)
        return stamp(number)

    def look(self, path: Path) -> FileProbe | None:
        self.looked.append(path)
        return self.files.get(path)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def intake() -> SettlingQueue:
    return SettlingQueue(SETTLE)


def all_wait(intake: SettlingQueue, paths: Iterable[Path]) -> None:
    for path in paths:
        intake.enqueue(path)


def test_a_file_is_complete_after_so_much_silence_and_is_not_looked_at_before(
    intake: SettlingQueue, disk: Disk
) -> None:
    intake.update(A, disk.put(A, 1), 10.0)
    assert intake.seconds_to_wait(10.5) == 1.5
    assert intake.pop_settled(11.9, disk.look) == [] and not disk.looked
    assert A in intake and (intake.settling, intake.queued) == (1, 0)
    assert intake.pop_settled(12.0, disk.look) == [A]
    assert A not in intake and intake.settling == 0
    assert intake.pop_settled(99.0, disk.look) == [] and disk.looked == [A]


def test_what_is_heard_begins_the_silence_anew(intake: SettlingQueue, disk: Disk) -> None:
    for now in range(10):
        intake.update(A, disk.put(A, now), float(now))
        assert intake.pop_settled(float(now), disk.look) == []
    assert intake.pop_settled(10.9, disk.look) == []
    assert intake.pop_settled(11.0, disk.look) == [A]


def test_a_file_that_is_said_to_be_complete_is_complete_at_once(intake: SettlingQueue, disk: Disk) -> None:
    intake.update(B, disk.put(B, 1), 10.0)
    intake.update(A, disk.put(A, 1), 10.0, complete=True)
    assert intake.seconds_to_wait(10.0) == 0
    assert intake.pop_settled(10.0, disk.look) == [A]
    assert intake.seconds_to_wait(10.0) == SETTLE


def test_a_file_that_changed_unheard_settles_once_more(intake: SettlingQueue, disk: Disk) -> None:
    intake.update(A, disk.put(A, 1), 10.0)
    disk.put(A, 2)
    assert intake.pop_settled(12.0, disk.look) == []
    assert intake.seconds_to_wait(12.0) == SETTLE
    assert intake.pop_settled(13.9, disk.look) == []
    assert intake.pop_settled(14.0, disk.look) == [A]


def test_what_is_said_to_be_complete_settles_if_it_has_changed_since(intake: SettlingQueue, disk: Disk) -> None:
    intake.update(A, disk.put(A, 1), 10.0, complete=True)
    disk.put(A, 2)
    assert intake.pop_settled(10.0, disk.look) == []
    assert intake.pop_settled(11.9, disk.look) == []
    assert intake.pop_settled(12.0, disk.look) == [A]


def test_a_file_that_is_being_written_is_not_complete_however_quiet_it_is(intake: SettlingQueue, disk: Disk) -> None:
    intake.update(A, disk.put(A, 1, being_written=True), 0.0, complete=True)
    for now in range(100):
        assert intake.pop_settled(float(now), disk.look) == []
    assert len(disk.looked) == 100 / SETTLE, "it is looked at from time to time only"
    disk.put(A, 1)
    assert intake.pop_settled(101.0, disk.look) == [A]


def test_nobody_waits_for_ever_for_a_writer(intake: SettlingQueue, disk: Disk) -> None:
    intake.update(A, disk.put(A, 1, being_written=True), 0.0)
    longest = MAX_WAIT_FACTOR * SETTLE
    assert intake.pop_settled(longest - 0.1, disk.look) == []
    assert intake.pop_settled(longest + SETTLE, disk.look) == [A]


def test_a_slow_writer_that_is_heard_of_uses_no_patience_up(intake: SettlingQueue, disk: Disk) -> None:
    for now in range(0, 600, 5):
        intake.update(A, disk.put(A, now, being_written=True), float(now))
        assert intake.pop_settled(now + 4.9, disk.look) == []
    intake.update(A, disk.put(A, 600), 600.0, complete=True)
    assert intake.pop_settled(600.0, disk.look) == [A]


def test_a_file_that_vanished_is_forgotten(intake: SettlingQueue, disk: Disk) -> None:
    intake.update(A, stamp(1), 10.0)
    assert intake.pop_settled(12.0, disk.look) == []
    assert A not in intake and intake.seconds_to_wait(12.0) == math.inf


def test_who_looks_may_tell_that_a_file_is_gone(intake: SettlingQueue, disk: Disk) -> None:
    intake.update(A, stamp(1), 10.0)
    intake.update(B, disk.put(B, 1), 10.0)

    def look(path: Path) -> FileProbe | None:
        if path == A:
            intake.remove(A)
        return disk.look(path)

    assert intake.pop_settled(12.0, look) == [B]
    assert A not in intake


def test_a_file_that_is_gone_is_not_waited_for(intake: SettlingQueue, disk: Disk) -> None:
    intake.remove(A)
    intake.update(A, disk.put(A, 1), 10.0)
    intake.remove(A)
    assert A not in intake
    intake.update(A, disk.put(A, 1), 10.0, complete=True)
    all_wait(intake, intake.pop_settled(10.0, disk.look))
    intake.remove(A)
    assert intake.assign() is None


def test_a_file_that_is_worked_on_stays_so_when_it_is_gone(intake: SettlingQueue) -> None:
    intake.enqueue(A)
    assert intake.assign() == A
    intake.remove(A)
    assert A in intake
    intake.release(A)
    assert A not in intake


def test_files_are_taken_in_their_order_and_once(intake: SettlingQueue) -> None:
    all_wait(intake, [B, A, C])
    assert [intake.assign() for _ in range(4)] == [B, A, C, None]
    assert all(path in intake for path in (A, B, C)) and intake.queued == 0


def test_the_first_that_fits_is_taken_and_the_others_keep_their_places(intake: SettlingQueue) -> None:
    all_wait(intake, [B, A, C])
    assert intake.assign(lambda path: path == C) == C
    assert intake.assign(lambda path: path == C) is None
    assert intake.queued == 2
    assert [intake.assign(), intake.assign()] == [B, A]


def test_a_file_that_changes_while_it_waits_settles_again(intake: SettlingQueue, disk: Disk) -> None:
    intake.update(A, disk.put(A, 1), 10.0, complete=True)
    all_wait(intake, intake.pop_settled(10.0, disk.look))
    intake.update(A, disk.put(A, 2), 11.0)
    assert (intake.settling, intake.queued) == (1, 0) and intake.assign() is None
    assert intake.pop_settled(13.0, disk.look) == [A]


def test_a_file_that_changes_while_it_is_worked_on_is_due_when_that_has_ended(
    intake: SettlingQueue, disk: Disk
) -> None:
    intake.enqueue(A)
    intake.assign()
    intake.update(A, disk.put(A, 2), 10.0)
    assert intake.pop_settled(15.0, disk.look) == [] and not disk.looked
    assert intake.seconds_to_wait(15.0) == math.inf, "nobody needs to look before the work has ended"
    intake.release(A)
    assert intake.seconds_to_wait(15.0) == 0
    assert intake.pop_settled(15.0, disk.look) == [A]


def test_what_settles_while_worked_on_does_not_hold_up_others(intake: SettlingQueue, disk: Disk) -> None:
    intake.enqueue(A)
    intake.assign()
    intake.update(A, disk.put(A, 2), 10.0)
    intake.update(B, disk.put(B, 1), 11.0)
    assert intake.pop_settled(13.0, disk.look) == [B]


def test_there_is_room_for_so_many_files(disk: Disk) -> None:
    intake, room = SettlingQueue(SETTLE, max_files=2), []
    intake.update(A, disk.put(A, 1), 10.0, complete=True)
    all_wait(intake, intake.pop_settled(10.0, disk.look))
    room.append(intake.full)
    intake.update(B, disk.put(B, 1), 10.0)
    room.append(intake.full)
    assert not intake.overflowed
    intake.update(C, disk.put(C, 1), 10.0, complete=True)
    intake.assign()
    room.append(intake.full)
    assert room == [False, True, False], "what is worked on takes no room"
    assert C not in intake


def test_that_a_file_found_no_room_is_remembered_until_somebody_has_looked(disk: Disk) -> None:
    intake = SettlingQueue(SETTLE, max_files=1)
    intake.update(A, disk.put(A, 1), 10.0)
    intake.update(B, disk.put(B, 1), 10.0)
    intake.remove(A)
    assert intake.overflowed and not intake.full


def test_a_full_intake_still_hears_of_the_files_it_has(disk: Disk) -> None:
    intake = SettlingQueue(SETTLE, max_files=2)
    intake.update(A, disk.put(A, 1), 10.0, complete=True)
    all_wait(intake, intake.pop_settled(10.0, disk.look))
    intake.update(B, disk.put(B, 1), 10.0)
    intake.update(A, disk.put(A, 2), 11.0)
    intake.update(B, disk.put(B, 2), 11.0)
    assert not intake.overflowed and (intake.settling, intake.queued) == (2, 0)
    assert intake.pop_settled(13.0, disk.look) == [B, A]


@pytest.mark.parametrize("back", [0.5, 1e6])
def test_a_clock_that_jumps_back_makes_files_settle_anew(intake: SettlingQueue, disk: Disk, back: float) -> None:
    intake.update(A, disk.put(A, 1), 1e6)
    now = 1e6 - back
    assert intake.pop_settled(now, disk.look) == []
    assert intake.seconds_to_wait(now) == SETTLE
    assert intake.pop_settled(now + 1.9, disk.look) == []
    assert intake.pop_settled(now + 2.0, disk.look) == [A]


def test_a_clock_that_jumps_far_ahead_leaves_out_what_has_changed(intake: SettlingQueue, disk: Disk) -> None:
    for path in (A, B):
        intake.update(path, disk.put(path, 1), 10.0)
    disk.put(B, 2)
    assert intake.pop_settled(1e9, disk.look) == [A]
    assert intake.pop_settled(1e9 + 2, disk.look) == [B]


def test_without_settling_a_file_is_complete_at_once_unless_it_has_changed(disk: Disk) -> None:
    intake = SettlingQueue(0.0)
    intake.update(A, disk.put(A, 1), 10.0)
    assert intake.pop_settled(10.0, disk.look) == [A]
    intake.update(A, disk.put(A, 1), 10.0)
    disk.put(A, 2)
    assert intake.pop_settled(10.0, disk.look) == []
    assert intake.pop_settled(10.0, disk.look) == [A]


def test_another_settle_time_holds_for_what_is_heard_from_then_on(intake: SettlingQueue, disk: Disk) -> None:
    intake.settle_after(5.0)
    intake.update(A, disk.put(A, 1), 10.0)
    assert intake.pop_settled(14.9, disk.look) == []
    assert intake.pop_settled(15.0, disk.look) == [A]


def test_a_shorter_settle_time_holds_for_what_settles_already(intake: SettlingQueue, disk: Disk) -> None:
    intake.settle_after(3600.0)
    intake.update(A, disk.put(A, 1), 10.0)
    assert intake.pop_settled(20.0, disk.look) == []
    intake.settle_after(5.0)
    assert intake.seconds_to_wait(20.0) == 0
    assert intake.pop_settled(20.0, disk.look) == [A]


# A world of files, and a daemon that hears of it whatever it may.

WORKERS, MOST = 2, 2
NAMES = [A, B, C, Path("/in/a.part")]
paths = st.sampled_from(NAMES)
SIGNS = (ChangeType.CHANGED, ChangeType.COMPLETE, ChangeType.GONE)


@dataclass
class File:
    """A file: its present version, and whether it has a writer."""

    stamp: FileStamp
    open: bool = False


@dataclass
class Heard:
    """What the intake was last told of a file, and when."""

    stamp: FileStamp
    since: int
    complete: bool


class World(RuleBasedStateMachine):
    """Files come, change and go; a daemon does with the intake what the drop folder's loop does.

    Versions are partial from their first chunk until their writer closes. ``excused`` are those that may come out
    all the same: their writer was silent for longer than anybody waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.intake = SettlingQueue(SETTLE, MOST)
        self.now, self.serial = 1000, itertools.count()
        self.files: dict[Path, File] = {}
        self.mail: list[tuple[ChangeType, Path]] = []
        self.heard: dict[Path, Heard] = {}
        self.ready: dict[Path, FileStamp] = {}  # complete files, as they were judged
        self.flights: dict[Path, FileStamp | None] = {}
        self.outputs: dict[Path, list[FileStamp]] = {name: [] for name in NAMES}
        self.partial: set[FileStamp] = set()
        self.excused: set[FileStamp] = set()

    # What others do to files.

    def version(self) -> FileStamp:
        return stamp(next(self.serial))

    @rule(path=paths)
    def open(self, path: Path) -> None:
        self.files[path] = File(self.version(), open=True)
        self.partial.add(self.files[path].stamp)
        self.mail.append((ChangeType.CHANGED, path))

    @rule(path=paths)
    def chunk(self, path: Path) -> None:
        if path in self.files and self.files[path].open:
            self.files[path].stamp = self.version()
            self.partial.add(self.files[path].stamp)
            self.mail.append((ChangeType.CHANGED, path))

    @rule(path=paths)
    def close(self, path: Path) -> None:
        if path in self.files and self.files[path].open:
            self.files[path].open = False
            self.partial.discard(self.files[path].stamp)
            self.mail.append((ChangeType.COMPLETE, path))

    @rule(path=paths)
    def write_at_once(self, path: Path) -> None:
        self.open(path)
        self.chunk(path)
        self.close(path)

    @rule(path=paths, to=paths)
    def rename(self, path: Path, to: Path) -> None:
        if path != to and path in self.files:
            file = self.files[to] = self.files.pop(path)
            file.stamp = self.version()  # its ctime has changed
            if file.open:
                self.partial.add(file.stamp)
            self.mail += [(ChangeType.GONE, path), (ChangeType.COMPLETE, to)]

    @rule(path=paths)
    def delete(self, path: Path) -> None:
        if self.files.pop(path, None):
            self.mail.append((ChangeType.GONE, path))

    # What becomes of the news, and of time.

    @precondition(lambda self: self.mail)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        del self.mail[data.draw(st.integers(0, len(self.mail) - 1))]

    @precondition(lambda self: self.mail)
    @rule(data=st.data())
    def repeat_or_reorder(self, data: st.DataObject) -> None:
        places = st.integers(0, len(self.mail) - 1)
        message = self.mail[data.draw(places)]
        self.mail.insert(data.draw(places), message)

    @rule(sign=st.sampled_from(SIGNS), path=paths)
    def invent(self, sign: ChangeType, path: Path) -> None:
        self.mail.append((sign, path))

    @rule(seconds=st.integers(1, 5))
    def tick(self, seconds: int) -> None:
        self.now += seconds

    @rule(seconds=st.sampled_from([-1000, -10, -1, 10, 100, 1000]))
    def jump(self, seconds: int) -> None:
        self.now += seconds

    # What the daemon does.

    def knows(self, path: Path, version: FileStamp) -> bool:
        return self.outputs[path][-1:] == [version]

    def changed(self, path: Path, *, complete: bool = False) -> None:
        version = self.files[path].stamp
        before, self.intake.overflowed = self.intake.overflowed, False
        self.intake.update(path, version, self.now, complete=complete)
        if self.intake.overflowed:
            assert self.intake.full
        else:
            self.heard[path] = Heard(version, self.now, complete)
        self.intake.overflowed |= before

    @rule(count=st.integers(1, 5))
    def read_mail(self, count: int) -> None:
        messages, self.mail = self.mail[:count], self.mail[count:]
        for sign, path in messages:
            if not has_final_name(Path(path.name)):
                continue
            if path not in self.files:
                self.intake.remove(path)
            elif sign is not ChangeType.GONE and not self.knows(path, self.files[path].stamp):
                self.changed(path, complete=sign is ChangeType.COMPLETE)

    @rule()
    def scan(self) -> None:
        self.intake.overflowed = False
        for path, file in sorted(self.files.items()):
            if self.intake.full:
                return
            if has_final_name(Path(path.name)) and path not in self.intake and not self.knows(path, file.stamp):
                self.changed(path)

    def look(self, path: Path) -> FileProbe | None:
        if path not in self.files:
            self.intake.remove(path)
            return None
        assert path not in self.flights, "somebody works on it"
        file, heard = self.files[path], self.heard[path]
        if heard.stamp != file.stamp:
            self.heard[path] = Heard(file.stamp, self.now, complete=False)
        return FileProbe(file.stamp, file.open)

    @rule()
    def rule_on_complete_files(self) -> None:
        for heard in self.heard.values():
            if self.now < heard.since:
                heard.since, heard.complete = self.now, False
        before = {path: heard.stamp for path, heard in self.heard.items()}
        for path in self.intake.pop_settled(self.now, self.look):
            file, heard = self.files[path], self.heard[path]
            assert before[path] == file.stamp, "it has changed since it was heard of"
            silence = self.now - heard.since
            assert heard.complete or silence >= SETTLE, "it has not settled"
            if file.open:
                assert silence >= MAX_WAIT_FACTOR * SETTLE, "it is being written"
                self.excused.add(file.stamp)
            if not self.knows(path, file.stamp):
                self.ready[path] = file.stamp
                self.intake.enqueue(path)

    @rule()
    def hand_out(self) -> None:
        while len(self.flights) < WORKERS and (path := self.intake.assign()) is not None:
            assert path not in self.flights, "two work on it at once"
            file = self.files.get(path)
            if file is None or file.stamp != self.ready[path]:
                self.intake.release(path)
                if file is not None:
                    self.changed(path)
                continue
            self.flights[path] = file.stamp

    @rule()
    def turn(self) -> None:
        """Do what the loop does without anything between."""
        self.read_mail(len(self.mail))
        self.rule_on_complete_files()
        self.hand_out()

    @precondition(lambda self: self.flights)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.land(data.draw(st.sampled_from(sorted(self.flights))))

    def land(self, path: Path) -> None:
        read, file = self.flights.pop(path), self.files.get(path)
        self.intake.release(path)
        if file is None:
            return
        if file.stamp != read:
            self.changed(path)
            return
        assert read not in self.outputs[path], "came out twice"
        assert read not in self.partial or read in self.excused, "came out before it was whole"
        self.outputs[path].append(read)

    @invariant()
    def holds_no_more_than_it_may(self) -> None:
        assert self.intake.settling + self.intake.queued <= MOST
        assert all(path in self.intake for path in self.flights)

    def teardown(self) -> None:
        """Quiet comes: writers close unheard, and the inbox is looked through from time to time."""
        for path in self.files:
            self.close(path)
        self.mail.clear()
        for _ in range(2 * len(NAMES) + 2):
            self.scan()
            self.now += int(MAX_WAIT_FACTOR * SETTLE)
            self.rule_on_complete_files()
            self.hand_out()
            for path in list(self.flights):
                self.land(path)
        for path, file in self.files.items():
            if has_final_name(Path(path.name)):
                assert self.outputs[path].count(file.stamp) == 1, f"{path} was lost"
                assert self.outputs[path][-1] == file.stamp, "an older version came out last"
        assert self.intake.settling == self.intake.queued == 0
        assert not any(path in self.intake for path in NAMES)


World.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestWorld = World.TestCase
