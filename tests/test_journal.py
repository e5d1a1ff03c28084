"""The record of a folder survives, and tells our results from anybody else's files."""

import os
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from blurguard.errors import OutputError
from blurguard.journal import Entry, Stamp, State, open_journal
from blurguard.output import digest_of
from tests.conftest import Starter

HOLD = """
import sys
from pathlib import Path
from blurguard.journal import open_journal
with open_journal(Path(sys.argv[1])):
    print("open", flush=True)
    sys.stdin.read()
"""
WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from blurguard.journal import Entry, State, open_journal
with open_journal(Path(sys.argv[1])) as journal:
    journal.put(Path("a.jpg"), Entry(State.PUBLISHING, output_digest="abc"))
    os.kill(os.getpid(), signal.SIGKILL)
"""
FULL = Entry(State.DONE, Stamp(1, 2**62, 3), "source", "recipe", 4, 5, "output", "replaced", "why")
NAMES = [
    b"a.jpg",
    b"two\nlines.jpg",
    b"latin \xe9\xff.jpg",
    "é".encode(),
    b"folder/a.jpg",
    b"'; DROP TABLE files; --",
]


def database(folder: Path) -> Path:
    return folder / ".blurguard" / "journal.sqlite"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_put_is_got_even_by_the_next_process(tmp_path: Path, name: bytes) -> None:
    path = Path(os.fsdecode(name))
    with open_journal(tmp_path / "out") as journal:
        assert journal.get(path) is None
        journal.put(path, FULL)
        assert journal.get(path) == FULL
    with open_journal(tmp_path / "out") as journal:
        assert journal.get(path) == FULL
        journal.put(path, Entry(State.PUBLISHING))
        assert journal.get(path) == Entry(State.PUBLISHING)
        assert journal.get(Path("A.JPG")) is None


def test_what_was_put_before_a_kill_is_there_after_it(tmp_path: Path, start_python: Starter) -> None:
    assert start_python(WRITE_AND_DIE, tmp_path).wait() == -9
    with open_journal(tmp_path) as journal:
        assert journal.get(Path("a.jpg")) == Entry(State.PUBLISHING, output_digest="abc")


def test_a_failure_keeps_what_is_known_of_an_earlier_result(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.put(Path("a.jpg"), FULL)
        journal.fail(Path("a.jpg"), "disk full")
        assert journal.get(Path("a.jpg")) == replace(FULL, state=State.FAILED, error="disk full")
        journal.fail(Path("b.jpg"), "truncated")
        assert journal.get(Path("b.jpg")) == Entry(State.FAILED, error="truncated")


def test_the_record_is_private(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.put(Path("a.jpg"), FULL)
        for path in (tmp_path / ".blurguard").iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((tmp_path / ".blurguard").stat().st_mode) == 0o700


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path, start_python: Starter) -> None:
    process = start_python(HOLD, tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "open\n"
    with pytest.raises(OutputError, match="another blurguard is working"), open_journal(tmp_path):
        pass
    process.kill()
    process.wait()
    with open_journal(tmp_path) as journal:
        assert journal.get(Path("a.jpg")) is None


def test_two_folders_have_two_records(tmp_path: Path) -> None:
    with open_journal(tmp_path / "a") as first, open_journal(tmp_path / "b") as second:
        first.put(Path("a.jpg"), FULL)
        assert second.get(Path("a.jpg")) is None


def test_a_record_that_is_no_database_is_an_error_that_names_it(tmp_path: Path) -> None:
    with open_journal(tmp_path):
        pass
    database(tmp_path).write_bytes(b"no database at all" * 500)
    told = r"journal\.sqlite: the record of this folder cannot be used"
    with pytest.raises(OutputError, match=told), open_journal(tmp_path):
        pass


def test_damage_in_the_middle_of_the_record_is_an_error_when_it_is_met(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        for number in range(300):
            journal.put(Path(f"{number}.jpg"), FULL)
    data = database(tmp_path).read_bytes()
    database(tmp_path).write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))
    with pytest.raises(OutputError, match="cannot be used"), open_journal(tmp_path) as journal:
        journal.get(Path("150.jpg"))


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    with open_journal(tmp_path):
        pass
    connection = sqlite3.connect(database(tmp_path))
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(OutputError, match="schema 99"), open_journal(tmp_path):
        pass


def test_a_record_below_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError), open_journal(tmp_path / "file" / "out"):
        pass


@pytest.fixture
def result(tmp_path: Path) -> Path:
    path = tmp_path / "result.png"
    path.write_bytes(b"hidden")
    return path


def entry_for(result: Path) -> Entry:
    info = result.stat()
    return Entry(
        State.DONE,
        output_size=info.st_size,
        output_mtime_ns=info.st_mtime_ns,
        output_digest=digest_of(result.read_bytes()),
    )


def test_a_result_is_ours_after_its_rename(result: Path) -> None:
    entry = entry_for(result)
    assert entry.made(result.rename(result.with_name("final.png")))


def test_a_result_that_was_copied_back_is_still_ours(result: Path) -> None:
    entry = entry_for(result)
    os.utime(result, ns=(0, 0))
    assert entry.made(result)


def test_an_edited_result_is_not_ours(result: Path) -> None:
    entry = entry_for(result)
    result.write_bytes(b"edited")
    os.utime(result, ns=(0, 0))
    assert not entry.made(result)
    result.write_bytes(b"hidden and more")
    os.utime(result, ns=(0, entry.output_mtime_ns))
    assert not entry.made(result)


def test_the_result_about_to_be_replaced_is_ours(result: Path) -> None:
    entry = Entry(State.PUBLISHING, output_digest=digest_of(b"next"), replaced_digest=digest_of(b"hidden"))
    assert entry.made(result)
    result.write_bytes(b"next")
    assert entry.made(result)
    result.write_bytes(b"somebody's")
    assert not entry.made(result)


def test_nothing_was_made_where_no_result_is_known(result: Path) -> None:
    assert not Entry(State.FAILED).made(result)
    info = result.stat()
    assert not Entry(State.FAILED, output_size=info.st_size, output_mtime_ns=info.st_mtime_ns).made(result)


def source_entry(source: Path) -> Entry:
    return Entry(State.DONE, Stamp.of(source), digest_of(source.read_bytes()))


def test_a_source_that_was_only_touched_is_the_same(result: Path) -> None:
    entry = source_entry(result)
    assert entry.came_from(result)
    os.utime(result, ns=(0, 0))
    assert Stamp.of(result) != entry.source
    assert entry.came_from(result)


def test_a_source_with_the_same_stamp_is_not_read(result: Path) -> None:
    assert replace(source_entry(result), source_digest="unknown").came_from(result)


def test_a_source_edited_to_the_same_size_and_time_has_changed(result: Path) -> None:
    entry = source_entry(result)
    changed = result.stat().st_ctime_ns
    while result.stat().st_ctime_ns == changed:  # the file system's clock is coarse
        result.write_bytes(b"edited")
        os.utime(result, ns=(0, entry.source.mtime_ns))
    assert (Stamp.of(result).size, Stamp.of(result).mtime_ns) == (entry.source.size, entry.source.mtime_ns)
    assert not entry.came_from(result)
