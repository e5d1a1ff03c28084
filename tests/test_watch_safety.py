"""What nobody may be harmed by: links that appear, interrupts at the worst moment, machines that sleep, workers that
cannot start. Most of it is played with a desk or a loop whose clock stands still until it is told to go on.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench.faults.commands import put
from bench.faults.kills import LONGEST_WAIT_SECONDS, ticks
from blurguard.anonymize.anonymizer import Anonymizer
from blurguard.batch.journal import FileState
from blurguard.batch.output_tree import FolderTask
from blurguard.batch.runner import anonymize_folder
from blurguard.batch.workers import Factory, WorkerConfig
from blurguard.errors import ModelError
from blurguard.files.stamp import FileStamp
from blurguard.files.walk import files_below
from blurguard.settings import Originals, WatchSettings
from blurguard.types import Outcome
from blurguard.watch.coordinator import JobResult
from blurguard.watch.event_loop import EventLoop, RuntimeConfig
from blurguard.watch.health import DaemonState, Health, HealthWriter, health_file
from blurguard.watch.inbox import ChangeType
from blurguard.watch.reporting import HealthReporter
from tests.children import look_at_exchanged, run_interrupted
from tests.commands import face, names, snapshot
from tests.conftest import Starter
from tests.drop import Drop
from tests.test_desk import Office, office, picture
from tests.workers import TROUBLE, steady, waiting

POLICIES = pytest.mark.parametrize("policy", list(Originals))
SETTLE = 10.0


def barred(gate: Path) -> Anonymizer:
    """Make an anonymizer; in a process that works for another one, only once a file is there."""
    if multiprocessing.parent_process() is not None and not gate.exists():
        raise ModelError(f"{gate}: is not there")
    return steady()


@dataclass
class Told:
    """Hears what a loop tells."""

    said: list[str]
    outcomes: list[Outcome] = field(default_factory=list)
    state: DaemonState = DaemonState.STARTING
    why: str = ""
    working: int = 0

    def advance(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def clear_progress(self, source: Path) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)

    def show_health(self, health: Health) -> None:
        self.state, self.why, self.working = health.state, health.why, health.working


@dataclass
class Shift:
    """A loop that takes its turns one by one, by a clock of our own."""

    at: Office
    loop: EventLoop
    told: Told
    now: float = 0.0

    def turn(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.loop._turn(self.now)

    def until(self, condition: Callable[[], object]) -> None:
        """Have turn after turn, at one moment of our clock."""
        for _ in ticks():
            self.turn()
            if condition():
                return

    def until_begun(self, source: Path) -> None:
        """Wait until a worker has a file in its hands."""
        jobs = self.loop._dispatcher.jobs
        self.until(lambda: source in jobs and jobs[source].last_heartbeat is not None)

    def drop(self, source: Path) -> Path:
        """Tell of a file, so that it settles."""
        self.loop._process_event(ChangeType.CHANGED, source, self.now)
        return source


@contextlib.contextmanager
def shift(at: Office, factory: Factory, **settings: Any) -> Iterator[Shift]:
    chosen = WatchSettings().changed({"settle": SETTLE, "rescan": 3600, "min_free": 0} | settings, "test")
    orders, told = RuntimeConfig(WorkerConfig(factory), chosen), Told(at.said)
    played: list[Shift] = []
    health = HealthReporter(told, HealthWriter(health_file(at.outbox)))
    loop = EventLoop(at.desk, health, orders, lambda: orders, lambda: played[0].now)
    played.append(Shift(at, loop, told))
    try:
        yield played[0]
    finally:
        loop.close()


# Folders that become links.


def exchange(folder: Path, away: Path, outside: Path) -> None:
    """Take a folder of the inbox away, and have a link to another one in its place."""
    away.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(away)
    folder.symlink_to(outside)


def other_folder(tmp_path: Path, source: Path, same: bool) -> Path:
    """Exchange a file's folder for a link to a folder of the same content, or itself; return where that lies."""
    outside = tmp_path / "outside" / source.parent.name
    if not same:
        put(outside / source.name, source.read_bytes())
    exchange(source.parent, outside if same else tmp_path / "away" / source.parent.name, outside)
    return outside


@pytest.mark.parametrize("broken", [False, True])
@POLICIES
def test_links_that_appear_at_any_time_lead_nowhere(tmp_path: Path, policy: Originals, broken: bool) -> None:
    gate = tmp_path / "gate"
    factory = functools.partial(waiting, gate)
    with office(tmp_path, policy, failed=True) as at, shift(at, factory) as now:
        worked_on = picture(tmp_path / "in/1/a.png", red=TROUBLE)
        sources = [worked_on, *(picture(tmp_path / f"in/{number}/a.png") for number in (2, 3, 4))]
        if broken:
            for source in sources[1:]:
                put(source, b"no picture")
        for source in sources[:3]:
            now.drop(source)
        now.turn(SETTLE)
        now.until_begun(worked_on)
        assert len(now.loop._dispatcher.jobs) == 2 and now.loop._settling.queued == 1
        now.drop(sources[3])
        assert now.loop._settling.settling == 1
        for number, source in enumerate(sources):
            other_folder(tmp_path, source, same=number % 2 == 0)
        before = snapshot(tmp_path / "outside")
        gate.touch()
        now.turn(SETTLE)
        calm = now.drop(picture(tmp_path / "in/calm.png"))
        now.turn(SETTLE)
        now.until(lambda: at.state(calm) is FileState.DONE and not now.loop._dispatcher.jobs)
        assert snapshot(tmp_path / "outside") == before
        assert names(at.outbox) == ["calm.png"]
        assert names(tmp_path / "failed") == []
        assert names(tmp_path / "moved") == (["calm.png"] if policy is Originals.MOVE else [])
        assert at.notes() == [] and all(at.entry(source) is None for source in sources)


@pytest.mark.parametrize("same", [False, True])
@POLICIES
def test_what_a_link_brings_and_takes_away_again_is_done_again(tmp_path: Path, policy: Originals, same: bool) -> None:
    with office(tmp_path, policy) as at:
        source = picture(tmp_path / "in/sub/a.png")
        job = at.started(source)
        outside = other_folder(tmp_path, source, same)
        before = snapshot(outside)
        work = at.result(job)
        assert snapshot(outside) == before
        source.parent.unlink()
        picture(source, red=10)
        assert at.desk.finish(job, work)[0] is JobResult.CHANGED and names(at.outbox) == []
        assert source.exists() and at.turn(source) is JobResult.DONE


@pytest.mark.parametrize("policy", [Originals.MOVE, Originals.DELETE])
@pytest.mark.parametrize("same", [False, True])
def test_no_original_of_an_earlier_result_is_cleared_through_a_link(
    tmp_path: Path, policy: Originals, same: bool
) -> None:
    with office(tmp_path) as at:
        source = picture(tmp_path / "in/sub/a.png")
        at.turn(source)
        stamp = FileStamp.of(source)
    with office(tmp_path, policy) as at:
        outside = other_folder(tmp_path, source, same)
        before = snapshot(outside)
        at.desk.decide(source, stamp)  # a moment ago there was no link
        assert snapshot(outside) == before and names(tmp_path / "moved") == []


@pytest.mark.parametrize("policy", [Originals.MOVE, Originals.DELETE])
@pytest.mark.parametrize("same", [False, True])
def test_no_original_is_cleared_through_a_link_that_appears_while_its_result_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Originals, same: bool
) -> None:
    with office(tmp_path, policy) as at:
        source = picture(tmp_path / "in/sub/a.png")
        job = at.started(source)
        work = at.result(job)
        content = source.read_bytes()
        struck(monkeypatch, "chmod", lambda: other_folder(tmp_path, source, same))
        at.desk.finish(job, work)
        assert (tmp_path / "outside/sub/a.png").read_bytes() == content and names(tmp_path / "moved") == []


@pytest.mark.parametrize("same", [False, True])
def test_no_failure_is_moved_through_a_link(tmp_path: Path, same: bool) -> None:
    with office(tmp_path, failed=True, poll=True, patience=60.0) as at:
        now = 0.0
        at.desk._clock = lambda: now
        first, second = (put(tmp_path / f"in/{name}/a.png", b"no picture") for name in ("first", "second"))
        job = at.started(first)
        result = at.result(job)
        assert at.turn(second) is JobResult.FAILED
        outside = [other_folder(tmp_path, source, same) for source in (first, second)]
        before = [snapshot(folder) for folder in outside]
        assert at.desk.finish(job, result)[0] is JobResult.GONE
        now = 60.0
        at.desk.write_error_reports()
        assert [snapshot(folder) for folder in outside] == before and names(tmp_path / "failed") == []


# Interrupts and full disks between the record and the name.


def struck(monkeypatch: pytest.MonkeyPatch, call: str, blow: Callable[[], object]) -> None:
    """Have something happen at the next call of the system: ``chmod`` comes before the name, ``fsync`` after it."""
    real = getattr(os, call)

    def stricken(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(os, call, real)
        blow()
        return real(*args, **options)

    monkeypatch.setattr(os, call, stricken)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    signal.sigtimedwait([], 0)  # Python heeds it by now


def fill() -> None:
    raise OSError(28, os.strerror(28))


@pytest.fixture
def journals(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Return what forbids or allows writing to the journals that are opened from now on."""
    real, opened = sqlite3.connect, list[sqlite3.Connection]()

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        opened.append(real(*args, **options))
        return opened[-1]

    def allow(writing: bool) -> None:
        for connection in opened:
            with contextlib.suppress(sqlite3.ProgrammingError):  # closed
                connection.execute(f"PRAGMA query_only = {not writing}")

    monkeypatch.setattr(sqlite3, "connect", connect)
    return allow


@pytest.mark.parametrize("recordable", [False, True])
@pytest.mark.parametrize("blow", [interrupt, fill])
@pytest.mark.parametrize("by", ["watch", "dir"])
@POLICIES
def test_what_did_not_get_its_name_is_done_at_the_next_start(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    journals: Callable[[bool], None],
    by: str,
    blow: Callable[[], None],
    recordable: bool,
    policy: Originals,
) -> None:
    source = picture(tmp_path / "in/sub/a.png")

    def strike() -> None:
        journals(recordable)
        blow()

    with pytest.raises(KeyboardInterrupt) if blow is interrupt else contextlib.nullcontext():
        if by == "dir":
            task = FolderTask(tmp_path / "in", tmp_path / "out", WorkerConfig(steady))
            struck(monkeypatch, "chmod", strike)
            assert [outcome.status for outcome in anonymize_folder(task, [source])] == ["failed"]
        else:
            with office(tmp_path, policy) as at:
                job = at.started(source)
                work = at.result(job)
                struck(monkeypatch, "chmod", strike)
                assert at.desk.finish(job, work)[0] is JobResult.UNAVAILABLE
    assert source.exists() and names(tmp_path / "out") == []
    with office(tmp_path, policy) as at:
        assert at.state(source) is FileState.QUEUED and not at.knows(source)
        assert at.turn(source) is JobResult.DONE and names(tmp_path / "out") == ["sub/a.png"]
    assert not (tmp_path / "out/.blurguard/scratch").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_batch_that_is_interrupted_before_a_name_leaves_its_file_to_the_next(
    tmp_path: Path, start_python: Starter, number: signal.Signals
) -> None:
    source = picture(tmp_path / "in/a.png")
    command = ["dir", source.parent, "--out", tmp_path / "out", "--jobs", "1", "--mode", "fast"]
    process = start_python(run_interrupted, int(number), *command)
    told = process.communicate(timeout=LONGEST_WAIT_SECONDS)
    assert process.returncode == 130, told
    assert names(tmp_path / "out") == [] and not (tmp_path / "out/.blurguard/scratch").exists()
    with office(tmp_path) as at:
        assert at.state(source) is FileState.QUEUED
        assert at.turn(source) is JobResult.DONE and names(at.outbox) == ["a.png"]


@pytest.mark.parametrize("again", ["look", "start"])
@POLICIES
def test_a_result_that_is_taken_before_it_could_be_recorded_does_not_come_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journals: Callable[[bool], None], policy: Originals, again: str
) -> None:
    with office(tmp_path, policy) as at:
        source = picture(tmp_path / "in/a.png")
        content = source.read_bytes()
        job = at.started(source)
        work = at.result(job)
        struck(monkeypatch, "fsync", lambda: journals(False))
        assert at.desk.finish(job, work)[0] is JobResult.DONE
        assert at.state(source) is FileState.PUBLISHING
        journals(True)
        (tmp_path / "out/a.png").unlink()
        if policy is not Originals.KEEP:
            assert not source.exists()
            put(source, content)  # the very same comes once more: that is another file
            assert at.turn(source) is JobResult.DONE
            return
        if again == "look":
            assert at.knows(source) and at.ruling(source) is None
            assert at.state(source) is FileState.DONE
    with office(tmp_path, policy) as at:
        assert at.state(source) is FileState.DONE and at.knows(source) and names(at.outbox) == []


# Folders nested deeper than Python's stack.


LEVELS = 1500


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Path]:
    """Return a folder that is gone afterwards: pytest cannot remove what is nested so deeply."""
    yield tmp_path
    subprocess.run(["rm", "-rf", tmp_path], check=True)


def nested(folder: Path) -> Path:
    for _ in range(LEVELS):
        folder /= "d"
        folder.mkdir(parents=True)
    return folder


def test_originals_are_found_however_deep_they_lie(yard: Path) -> None:
    deep = put(nested(yard / "in") / "a.jpg", b"")
    assert files_below(yard / "in") == [deep]


@POLICIES
def test_a_deep_inbox_can_be_started_on_and_what_lies_there_is_done(yard: Path, policy: Originals) -> None:
    source = picture(nested(yard / "in") / "a.png")
    with office(yard, policy) as at:
        assert at.turn(source) is JobResult.DONE
        assert (at.outbox / source.relative_to(at.inbox)).is_file()


def test_a_daemon_starts_on_a_deep_inbox_and_does_all_that_lies_there(yard: Path) -> None:
    source = picture(nested(yard / "inbox") / "a.png")
    put(yard / "inbox/a.jpg", face())
    with Drop(yard) as drop:
        drop.until(lambda: [row.state for row in drop.rows().values()] == [FileState.DONE] * 2)
        assert (drop.outbox / source.relative_to(drop.inbox)).is_file() and (drop.outbox / "a.jpg").is_file()


# Pipes.


@pytest.mark.parametrize("look", ["kind", "digest"])
def test_a_file_that_is_exchanged_for_a_pipe_holds_nobody_up(tmp_path: Path, start_python: Starter, look: str) -> None:
    path = put(tmp_path / "a.jpg", b"abc")
    told, trouble = start_python(look_at_exchanged, path, look).communicate(timeout=LONGEST_WAIT_SECONDS / 6)
    assert "is not a regular file" in told and not trouble


# Time that passes without anybody.


@pytest.mark.parametrize("steps", [1, 40])
def test_a_machine_that_sleeps_costs_no_file_and_a_worker_that_is_silent_its_own(tmp_path: Path, steps: int) -> None:
    gate = tmp_path / "gate"
    with office(tmp_path) as at, shift(at, functools.partial(waiting, gate), timeout=30) as now:
        source = now.drop(picture(tmp_path / "in/a.png", red=TROUBLE))
        now.turn(SETTLE)
        now.until_begun(source)
        for _ in range(steps):
            now.turn(40 / steps)  # at once, or one second after the other
        gate.touch()
        now.until(lambda: not now.loop._dispatcher.jobs)
        assert at.state(source) is (FileState.DONE if steps == 1 else FileState.FAILED)


# The record.


@pytest.mark.parametrize("instead", [False, True])
def test_a_daemon_whose_record_is_taken_away_ends_and_says_so(tmp_path: Path, instead: bool) -> None:
    with Drop(tmp_path) as drop:
        put(drop.inbox / "a.jpg", face())
        drop.settle()
        (drop.outbox / ".blurguard").rename(tmp_path / "away")
        if instead:
            (drop.outbox / ".blurguard").mkdir(mode=0o700)
        put(drop.inbox / "b.jpg", face(turn=1))
        assert drop.process.wait(LONGEST_WAIT_SECONDS) == 6, drop.told
        assert "its .blurguard was removed or replaced; start again" in drop.told and "Traceback" not in drop.told


# Stopping, and workers that cannot start.


def test_what_nobody_had_begun_is_not_begun_once_it_is_to_stop(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with office(tmp_path) as at, shift(at, functools.partial(waiting, gate), grace=3600) as now:
        first, second = (picture(tmp_path / f"in/{name}.png", red=TROUBLE) for name in "ab")
        now.drop(first)
        now.drop(second)
        now.turn(SETTLE)
        now.until_begun(first)
        assert len(now.loop._dispatcher.jobs) == 2 and at.state(second) is FileState.QUEUED and now.told.working == 1
        gate.touch()
        now.loop._wind_down()
        assert (at.state(first), at.state(second)) == (FileState.DONE, FileState.QUEUED)
        assert names(at.outbox) == ["a.png"]


def test_workers_that_cannot_start_are_waited_for_longer_each_time(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with office(tmp_path) as at, shift(at, functools.partial(barred, gate)) as now:
        source = now.drop(picture(tmp_path / "in/a.png"))
        now.turn(SETTLE)
        now.until(lambda: now.told.why)
        for _ in range(100):
            now.turn(0.001)
        assert now.told.state == "paused" and len(at.said) == 1 and "no file is lost" in at.said[0]
        assert (
            at.state(source) in (FileState.QUEUED, FileState.WORKING)
            and not now.told.outcomes
            and not now.loop._dispatcher.jobs
        )
        now.turn(SETTLE)
        now.until(lambda: len(at.said) == 2)
        gate.touch()
        now.turn(SETTLE)
        now.until(lambda: at.state(source) is FileState.DONE)
        assert now.told.state == "running" and len(at.said) == 2 and names(at.outbox) == ["a.png"]
