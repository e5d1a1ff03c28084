"""A daemon's files are fresh, whole and true, and its status is told from what is known."""

import json
import os
import re
import stat
import subprocess
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blurguard.batch.journal import FileRecord, FileState, open_journal
from blurguard.errors import InputError, OutputError
from blurguard.watch.health import (
    METRICS_STEP_SECONDS,
    DaemonState,
    Health,
    HealthWriter,
    Status,
    health_file,
    is_in_use,
    prometheus_text,
    read_status,
)
from tests.children import hold_journal, look_always, pretend_to_be_daemon
from tests.commands import names, small_disk, snapshot
from tests.conftest import Starter

NOW = 1_800_000_000.0
CALM = Health(DaemonState.RUNNING, "", 3, 2, 10, 1, 25, NOW - 100, NOW - 5, 4711, "0.1.0")
SHORT = replace(CALM, state=DaemonState.PAUSED, why="less than 500 MB are free in out")


class Time:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.passed = 0.0

    def clock(self) -> float:
        return 1e5 + self.passed

    def now(self) -> float:
        return NOW + self.passed


def pulse(path: Path, time: Time, metrics: Path | None = None) -> HealthWriter:
    return HealthWriter(path, metrics, time.clock, time.now)


def told(path: Path) -> Health:
    values = json.loads(path.read_text("ascii"))
    return Health(**values | {"state": DaemonState(values["state"])})


def test_a_beat_writes_all_there_is(tmp_path: Path) -> None:
    path = tmp_path / "health.json"
    odd = replace(SHORT, why="less than 1 MB is free in " + os.fsdecode(b'out\n"\xff'))
    pulse(path, Time()).write(odd)
    assert told(path) == odd
    assert names(tmp_path) == ["health.json"]
    assert path.stat().st_mtime == NOW


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            pulse(tmp_path / f"{mask}.json", Time(), tmp_path / f"{mask}.prom").write(CALM)
        finally:
            os.umask(before)
        assert {stat.S_IMODE((tmp_path / f"{mask}.{end}").stat().st_mode) for end in ("json", "prom")} == {mode}


def test_nothing_happens_twice_in_a_second(tmp_path: Path) -> None:
    time, path = Time(), tmp_path / "health.json"
    daemon = pulse(path, time)
    daemon.write(CALM)
    time.passed = 0.75
    daemon.write(replace(CALM, done=11))
    assert (told(path), path.stat().st_mtime) == (CALM, NOW)
    time.passed = 1.0
    daemon.write(replace(CALM, done=12))
    assert (told(path), path.stat().st_mtime) == (replace(CALM, done=12), NOW + 1)


def test_what_has_not_changed_is_touched_only(tmp_path: Path) -> None:
    time, path = Time(), tmp_path / "health.json"
    daemon = pulse(path, time)
    daemon.write(CALM)
    path.write_text("not written again")
    time.passed = 1.0
    daemon.write(CALM)
    assert (path.read_text(), path.stat().st_mtime) == ("not written again", NOW + 1)


@pytest.mark.parametrize(
    "change", [{"state": DaemonState.STOPPING}, {"state": DaemonState.PAUSED, "why": "x"}, {"why": "y"}]
)
def test_a_change_of_state_is_told_at_once(tmp_path: Path, change: dict[str, DaemonState | str]) -> None:
    path = tmp_path / "health.json"
    daemon = pulse(path, Time())
    daemon.write(CALM)
    changed = Health(**asdict(CALM) | change)
    daemon.write(changed)
    assert told(path) == changed


def test_closing_says_stopped_at_once(tmp_path: Path) -> None:
    daemon = pulse(tmp_path / "health.json", Time(), tmp_path / "a.prom")
    daemon.write(SHORT)
    stopped = replace(SHORT, state=DaemonState.STOPPED, why="")
    daemon.write(stopped)
    assert told(tmp_path / "health.json") == stopped
    assert values_of((tmp_path / "a.prom").read_text())["blurguard_watch_up"] == 0


@given(
    st.lists(
        st.tuples(st.sampled_from((0.0, 0.125, 0.5, 1.0, 30.0)), st.integers(0, 2), st.sampled_from((CALM, SHORT)))
    )
)
def test_whatever_the_turns_what_is_told_is_a_second_old_at_most(turns: list[tuple[float, int, Health]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        time, path = Time(), Path(folder) / "health.json"
        daemon, written, last = pulse(path, time), -9.0, CALM
        for pause, done, health in turns:
            time.passed += pause
            daemon.write(replace(health, done=done))
            if time.passed - written >= 1 or health.state is not last.state:
                written, last = time.passed, replace(health, done=done)
            assert (told(path), path.stat().st_mtime) == (last, NOW + written)


def test_a_folder_that_is_not_there_stops_nothing_and_is_told_once(tmp_path: Path) -> None:
    time, path = Time(), tmp_path / "later" / "health.json"
    daemon = pulse(path, time, tmp_path / "a.prom")
    assert daemon.problem == ""
    daemon.write(CALM)
    first = daemon.problem
    assert first.startswith(f"{path}: cannot be kept up to date: No such file") and "choose another file" in first
    assert (tmp_path / "a.prom").exists()
    (tmp_path / "later").touch()  # another reason now
    time.passed = 1
    daemon.write(CALM)
    assert daemon.problem == first
    (tmp_path / "later").unlink()
    (tmp_path / "later").mkdir()
    time.passed = 2
    daemon.write(CALM)
    assert (daemon.problem, told(path)) == ("", CALM)


def test_metrics_that_cannot_be_written_leave_the_other_file_alone(tmp_path: Path) -> None:
    daemon = pulse(tmp_path / "health.json", Time(), tmp_path / "none" / "a.prom")
    daemon.write(CALM)
    assert str(tmp_path / "none" / "a.prom") in daemon.problem
    assert told(tmp_path / "health.json") == CALM


def test_files_that_were_removed_come_back(tmp_path: Path) -> None:
    time, path = Time(), tmp_path / "health.json"
    daemon = pulse(path, time)
    daemon.write(CALM)
    path.unlink()
    time.passed = 1
    daemon.write(CALM)
    assert (told(path), daemon.problem) == (CALM, "")


def test_after_trouble_a_file_is_written_anew_not_touched(tmp_path: Path) -> None:
    time, path = Time(), tmp_path / "folder" / "health.json"
    path.parent.mkdir()
    daemon = pulse(path, time)
    daemon.write(CALM)
    path.write_text("somebody's")
    path.parent.rename(tmp_path / "away")
    (tmp_path / "folder").touch()
    time.passed = 1
    daemon.write(CALM)
    assert "Not a directory" in daemon.problem
    (tmp_path / "folder").unlink()
    (tmp_path / "away").rename(path.parent)
    time.passed = 2
    daemon.write(CALM)
    assert (daemon.problem, told(path)) == ("", CALM)


def test_a_folder_in_its_place_is_trouble_and_leaves_no_draft(tmp_path: Path) -> None:
    time, path = Time(), tmp_path / "health.json"
    path.mkdir()
    daemon = pulse(path, time)
    daemon.write(CALM)
    assert "Is a directory" in daemon.problem
    assert list(tmp_path.iterdir()) == [path]
    path.rmdir()
    time.passed = 1
    daemon.write(CALM)
    assert (told(path), daemon.problem) == (CALM, "")


def test_drafts_of_the_killed_and_links_are_cleared_not_followed(tmp_path: Path) -> None:
    path, precious = tmp_path / "health.json", tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / ".health.json.tmp").symlink_to(precious)
    path.symlink_to(precious)
    pulse(path, Time()).write(CALM)
    assert (precious.read_text(), told(path), path.is_symlink()) == ("precious", CALM, False)
    assert names(tmp_path) == ["health.json", "precious"]


def test_a_full_disk_keeps_the_old_file_whole_and_passes(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=64k") as disk:
        time, path = Time(), disk / "health.json"
        daemon = pulse(path, time)
        daemon.write(CALM)
        with pytest.raises(OSError, match="No space"), (disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(b"x" * 4096):
                pass
        time.passed = 1
        daemon.write(SHORT)
        assert "No space left" in daemon.problem and "free some space" in daemon.problem
        assert (told(path), path.stat().st_mtime) == (CALM, NOW)  # untouched: it grows stale, as it should
        (disk / "filler").unlink()
        time.passed = 2
        daemon.write(SHORT)
        assert (daemon.problem, told(path)) == ("", SHORT)


def values_of(text: str) -> dict[str, float]:
    """Parse the text format strictly: each sample after its own HELP and TYPE, each metric once."""
    values: dict[str, float] = {}
    rows = text.split("\n")
    assert rows.pop() == ""
    for help_row, type_row, sample in zip(*[iter(rows)] * 3, strict=True):
        meaning = re.fullmatch(r"# HELP ([a-z_]+) [^\\\n]+", help_row)
        kind = re.fullmatch(r"# TYPE ([a-z_]+) (gauge|counter)", type_row)
        label = r'\{[a-z]+="(?:[^"\\\n]|\\\\|\\"|\\n)*"\}'
        found = re.fullmatch(rf"([a-z_]+)({label})? (-?[0-9.]+(?:e[+-]?[0-9]+)?)", sample)
        assert meaning and kind and found, (help_row, type_row, sample)
        assert meaning[1] == kind[1] == found[1] and found[1] not in values
        assert (kind[2] == "counter") == found[1].endswith("_total")
        values[found[1]] = float(found[3])
    return values


def test_metrics_say_what_the_health_says() -> None:
    assert values_of(prometheus_text(CALM, NOW + 7.5)) == {
        "blurguard_watch_up": 1,
        "blurguard_watch_paused": 0,
        "blurguard_watch_queued": 3,
        "blurguard_watch_working": 2,
        "blurguard_watch_done_total": 10,
        "blurguard_watch_failed_total": 1,
        "blurguard_watch_faces_total": 25,
        "blurguard_watch_start_time_seconds": NOW - 100,
        "blurguard_watch_last_done_timestamp_seconds": NOW - 5,
        "blurguard_watch_heartbeat_timestamp_seconds": NOW,
        "blurguard_watch_info": 1,
    }
    assert values_of(prometheus_text(SHORT, NOW))["blurguard_watch_paused"] == 1
    assert (
        values_of(prometheus_text(replace(CALM, started=NOW + 0.123), NOW))["blurguard_watch_start_time_seconds"] > NOW
    )


@given(st.text())
def test_any_version_is_a_label_that_reads_back(version: str) -> None:
    text = prometheus_text(replace(CALM, version=version), NOW)
    values_of(text)
    row = next(row for row in text.split("\n") if row.startswith("blurguard_watch_info"))
    label = row.removeprefix('blurguard_watch_info{version="').removesuffix('"} 1')
    assert re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], label) == version


def test_the_heartbeat_of_metrics_goes_on_without_a_write_each_second(tmp_path: Path) -> None:
    time, path = Time(), tmp_path / "a.prom"
    daemon = pulse(tmp_path / "health.json", time, path)
    beats, written = set(), set()
    for _ in range(3 * METRICS_STEP_SECONDS):
        daemon.write(CALM)
        beats.add(values_of(path.read_text())["blurguard_watch_heartbeat_timestamp_seconds"])
        written.add(path.read_bytes())
        time.passed += 1
    assert len(written) == len(beats) == 3


def status(outbox: Path, now: float = NOW) -> Status:
    return read_status(outbox, None, now)


def start_daemon(
    start_python: Starter, outbox: Path, state: DaemonState = DaemonState.RUNNING
) -> "subprocess.Popen[str]":
    return ready(start_python(pretend_to_be_daemon, outbox, state, NOW))


def ready(process: "subprocess.Popen[str]") -> "subprocess.Popen[str]":
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "open\n", process.stderr.read()
    return process


def test_a_living_daemon_is_alive_until_its_beat_is_stale(tmp_path: Path, start_python: Starter) -> None:
    process = start_daemon(start_python, tmp_path)
    found = status(tmp_path, NOW + 59)
    assert (found.alive, found.healthy, found.state, found.age, found.pid) == (True, True, "running", 59, process.pid)
    assert (found.queued, found.working, found.done, found.failed) == (2, 1, 0, 0)
    assert [name for name, _ in found.at_work] == [Path("c.jpg")]
    assert found.lines()[0] == f"running (process {process.pid}, last heartbeat 59 s ago)"
    stale = status(tmp_path, NOW + 61)
    assert (stale.alive, stale.healthy, stale.in_use) == (False, False, True)
    assert stale.lines()[0].startswith("not responding")


def test_a_clock_that_was_set_back_does_not_keep_a_hung_daemon_alive(tmp_path: Path, start_python: Starter) -> None:
    start_daemon(start_python, tmp_path)
    assert status(tmp_path, NOW - 5).alive
    assert not status(tmp_path, NOW - 3600).alive


def test_a_killed_daemon_is_dead_however_fresh_its_beat(tmp_path: Path, start_python: Starter) -> None:
    process = start_daemon(start_python, tmp_path)
    process.kill()
    process.wait()
    found = status(tmp_path)
    assert (found.alive, found.in_use, found.healthy, found.state, found.age) == (False, False, False, "running", 0)
    assert found.lines()[0].startswith("ended unexpectedly while running")
    assert "interrupted: c.jpg" in found.lines()


def test_a_pause_is_alive_but_not_healthy(tmp_path: Path, start_python: Starter) -> None:
    start_daemon(start_python, tmp_path, DaemonState.PAUSED)
    found = status(tmp_path)
    assert (found.alive, found.healthy) == (True, False)


@pytest.mark.parametrize("stopped", [False, True])
def test_another_command_in_the_outbox_is_no_daemon(tmp_path: Path, start_python: Starter, stopped: bool) -> None:
    ready(start_python(hold_journal, tmp_path))
    if stopped:
        pulse(health_file(tmp_path), Time()).write(replace(CALM, state=DaemonState.STOPPED))
    found = status(tmp_path)
    assert (found.alive, found.in_use) == (False, True)
    assert "another blurguard" in found.lines()[0]


def test_status_changes_nothing(tmp_path: Path, start_python: Starter) -> None:
    process = start_daemon(start_python, tmp_path)
    index = health_file(tmp_path).with_name("journal.sqlite-shm")  # shared memory, where SQLite's readers say so
    before = snapshot(tmp_path)
    status(tmp_path)
    assert snapshot(tmp_path).keys() == before.keys()
    assert snapshot(tmp_path) | {index: ()} == before | {index: ()}
    process.communicate()
    before = snapshot(tmp_path)
    assert not status(tmp_path).in_use
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"state": "running"}', b"\xff", b'{"state": 1}'])
def test_a_damaged_health_file_says_nothing(tmp_path: Path, content: bytes) -> None:
    with open_journal(tmp_path):
        health_file(tmp_path).write_bytes(content)
        found = status(tmp_path)
    assert (found.alive, found.state, found.age, found.pid) == (False, None, None, 0)


def test_a_newer_one_with_more_in_it_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.json"
    path.write_text(json.dumps(asdict(CALM) | {"mood": "good"}))
    os.utime(path, (NOW, NOW))
    with open_journal(tmp_path / "out"):
        assert read_status(tmp_path / "out", path, NOW).alive


def test_where_there_is_no_record_there_is_no_status(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for outbox in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(InputError, match="not the outbox of a drop folder: it has no journal"):
            status(outbox)
        assert not is_in_use(tmp_path)
    assert names(tmp_path) == ["file"]


def test_a_health_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with open_journal(tmp_path), pytest.raises(InputError, match="cannot be read"):
        read_status(tmp_path, tmp_path, NOW)


def test_figures_names_and_rates(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(b"two\nlines \xff.jpg"))
    with open_journal(tmp_path) as journal:
        journal.mark([odd, *(Path(f"{number:02d}.jpg") for number in range(30))], FileState.WORKING)
        journal.mark([Path("published.jpg")], FileState.PUBLISHING)
        for number in range(5):
            journal.put(Path(f"done {number}.jpg"), FileRecord(FileState.DONE))
        journal.fail(Path("bad.jpg"), "bad.jpg: cut off")
        last = journal.all_in(FileState.FAILED)[0][1].changed
        found = status(tmp_path, last + 120)
        assert (found.working, found.done, found.failed) == (32, 5, 1)
        assert (found.last_minute, found.last_hour) == (0, 5)
        assert status(tmp_path, last + 30).last_minute == 5
        assert (found.error, found.failed_at) == ("bad.jpg: cut off", last)
        assert len(found.at_work) == 20
        journal.mark([Path(f"{number:02d}.jpg") for number in range(30)], FileState.QUEUED)
        found = status(tmp_path, last + 120)
        assert [name for name, _ in found.at_work] == [odd, Path("published.jpg")]
    as_json = json.loads(json.dumps(found.as_json()))
    assert as_json["at_work"][0]["name"] == str(odd)
    assert (as_json["per_minute"], as_json["state"]) == ({"last_minute": 0, "last_hour": 5 / 60}, None)
    lines = "|".join(found.lines())
    assert f"working on {odd}, for 2 min" in lines
    assert "last error, 2 min ago: bad.jpg: cut off" in lines
    assert "0 in the last minute, 0.1 in the last hour" in lines


def test_looking_never_refuses_a_daemon_that_starts(tmp_path: Path, start_python: Starter) -> None:
    with open_journal(tmp_path):
        pass
    lookers = [start_python(look_always, tmp_path) for _ in range(2)]
    for looker in lookers:
        assert looker.stdout is not None and looker.stdout.readline() == "looking\n"
    for _ in range(200):
        with open_journal(tmp_path):
            assert is_in_use(tmp_path)
    assert [looker.poll() for looker in lookers] == [None, None]


def test_a_record_that_others_may_not_look_at_is_an_error(tmp_path: Path) -> None:
    with open_journal(tmp_path):
        pass
    if os.geteuid() == 0:
        pytest.skip("root may look at everything")
    (tmp_path / ".blurguard").chmod(0)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            status(tmp_path)
    finally:
        (tmp_path / ".blurguard").chmod(0o700)
