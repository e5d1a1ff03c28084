"""The record of a folder survives, and tells our results from anybody else's files."""

import contextlib
import fcntl
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from blurguard.batch.journal import SCHEMA_VERSION, FileRecord, FileState, Journal, open_journal
from blurguard.batch.journal_reader import JournalStats, read_stats
from blurguard.errors import OutputError
from blurguard.files.atomic import digest_bytes
from blurguard.files.stamp import FileStamp
from tests.children import hold_journal, write_always, write_and_die
from tests.commands import small_disk, snapshot
from tests.conftest import Starter

SCHEMA_1 = """
CREATE TABLE IF NOT EXISTS files (
    name BLOB PRIMARY KEY,
    state TEXT NOT NULL,
    source_size INTEGER NOT NULL, source_mtime INTEGER NOT NULL, source_ctime INTEGER NOT NULL,
    source_digest TEXT NOT NULL,
    recipe TEXT NOT NULL,
    output_size INTEGER NOT NULL, output_mtime INTEGER NOT NULL, output_digest TEXT NOT NULL,
    replaced_digest TEXT NOT NULL,
    error TEXT NOT NULL,
    root TEXT NOT NULL
) WITHOUT ROWID
"""
FULL = FileRecord(FileState.DONE, FileStamp(1, 2**62, 3), "source", "recipe", 4, 5, "output", "replaced", "why")
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
        journal.put(path, FileRecord(FileState.PUBLISHING))
        assert journal.get(path) == FileRecord(FileState.PUBLISHING)
        assert journal.get(Path("A.JPG")) is None


def test_what_was_put_before_a_kill_is_there_after_it(tmp_path: Path, start_python: Starter) -> None:
    assert start_python(write_and_die, tmp_path).wait() == -9
    with open_journal(tmp_path) as journal:
        assert journal.get(Path("a.jpg")) == FileRecord(FileState.PUBLISHING, output_digest="abc")


def test_a_failure_keeps_what_is_known_of_an_earlier_result(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.put(Path("a.jpg"), FULL)
        journal.fail(Path("a.jpg"), "disk full")
        assert journal.get(Path("a.jpg")) == replace(FULL, state=FileState.FAILED, error="disk full")
        journal.fail(Path("b.jpg"), "truncated")
        assert journal.get(Path("b.jpg")) == FileRecord(FileState.FAILED, error="truncated")


def test_the_record_is_private(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.put(Path("a.jpg"), FULL)
        for path in (tmp_path / ".blurguard").iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((tmp_path / ".blurguard").stat().st_mode) == 0o700


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path, start_python: Starter) -> None:
    process = start_python(hold_journal, tmp_path)
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


def entry_for(result: Path) -> FileRecord:
    info = result.stat()
    return FileRecord(
        FileState.DONE,
        output_size=info.st_size,
        output_mtime_ns=info.st_mtime_ns,
        output_digest=digest_bytes(result.read_bytes()),
    )


def test_a_result_is_ours_after_its_rename(result: Path) -> None:
    entry = entry_for(result)
    assert entry.result_at(result.rename(result.with_name("final.png")))


def test_a_result_that_was_copied_back_is_still_ours(result: Path) -> None:
    entry = entry_for(result)
    os.utime(result, ns=(0, 0))
    assert entry.result_at(result)


def test_an_edited_result_is_not_ours(result: Path) -> None:
    entry = entry_for(result)
    result.write_bytes(b"edited")
    os.utime(result, ns=(0, 0))
    assert not entry.result_at(result)
    result.write_bytes(b"hidden and more")
    os.utime(result, ns=(0, entry.output_mtime_ns))
    assert not entry.result_at(result)


def test_the_result_about_to_be_replaced_is_ours(result: Path) -> None:
    entry = FileRecord(
        FileState.PUBLISHING, output_digest=digest_bytes(b"next"), replaced_digest=digest_bytes(b"hidden")
    )
    assert entry.result_at(result)
    result.write_bytes(b"next")
    assert entry.result_at(result)
    result.write_bytes(b"somebody's")
    assert not entry.result_at(result)


def test_nothing_was_made_where_no_result_is_known(result: Path) -> None:
    assert not FileRecord(FileState.FAILED).result_at(result)
    info = result.stat()
    assert not FileRecord(FileState.FAILED, output_size=info.st_size, output_mtime_ns=info.st_mtime_ns).result_at(
        result
    )


def source_entry(source: Path) -> FileRecord:
    return FileRecord(FileState.DONE, FileStamp.of(source), digest_bytes(source.read_bytes()))


def test_a_source_that_was_only_touched_is_the_same(result: Path) -> None:
    entry = source_entry(result)
    assert entry.is_unchanged(result)
    os.utime(result, ns=(0, 0))
    assert FileStamp.of(result) != entry.source
    assert entry.is_unchanged(result)


def test_a_source_with_the_same_stamp_is_not_read(result: Path) -> None:
    assert replace(source_entry(result), source_digest="unknown").is_unchanged(result)


def test_a_source_edited_to_the_same_size_and_time_has_changed(result: Path) -> None:
    entry = source_entry(result)
    changed = result.stat().st_ctime_ns
    while result.stat().st_ctime_ns == changed:  # the file system's clock is coarse
        result.write_bytes(b"edited")
        os.utime(result, ns=(0, entry.source.mtime_ns))
    assert (FileStamp.of(result).size, FileStamp.of(result).mtime_ns) == (entry.source.size, entry.source.mtime_ns)
    assert not entry.is_unchanged(result)


ODD_NAMES = [Path(os.fsdecode(name)) for name in NAMES]


def write_version_1(folder: Path, version: int = 1) -> None:
    """Leave a record as the first version left it; ``version`` 0 when it was killed while it began one."""
    database(folder).parent.mkdir(mode=0o700, parents=True)
    with contextlib.closing(sqlite3.connect(database(folder), isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(SCHEMA_1)
        connection.execute(f"PRAGMA user_version = {version}")
        if version:
            values = "1, 4611686018427387904, 3, 'source', 'recipe', 4, 5, 'output', 'replaced', 'why', 'r'"
            connection.execute(f"INSERT INTO files VALUES (?, 'done', {values})", (b"two\nlines \xff.jpg",))  # noqa: S608 - ours


def version_of(folder: Path) -> int:
    with contextlib.closing(sqlite3.connect(database(folder))) as connection:
        found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return found


def test_a_record_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    name = Path(os.fsdecode(b"two\nlines \xff.jpg"))
    write_version_1(tmp_path)
    for _ in range(2):
        with open_journal(tmp_path) as journal:
            entry = journal.get(name)
            assert entry == replace(FULL, root="r")
            assert entry is not None and entry.changed == 0
    assert version_of(tmp_path) == SCHEMA_VERSION
    figures = read_stats(tmp_path, 1.0)
    assert figures == JournalStats(
        {FileState.DONE: 1}, 0, "", 0.0
    )  # what was done before nobody knows when is not of late
    with open_journal(tmp_path) as journal:
        journal.put(name, FULL)
        assert journal.get(name) == FULL


def test_a_record_that_the_first_version_only_began_is_taken_over(tmp_path: Path) -> None:
    write_version_1(tmp_path, 0)
    assert read_stats(tmp_path, 0) is None
    with open_journal(tmp_path) as journal:
        journal.put(Path("a.jpg"), FULL)
        assert journal.get(Path("a.jpg")) == FULL
    assert version_of(tmp_path) == SCHEMA_VERSION


def test_a_record_of_another_version_gives_no_figures(tmp_path: Path) -> None:
    write_version_1(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match="schema 1"):
        read_stats(tmp_path, 0)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("state", [FileState.QUEUED, FileState.WORKING])
def test_marks_change_the_state_and_nothing_else(tmp_path: Path, state: FileState) -> None:
    with open_journal(tmp_path) as journal:
        journal.put(ODD_NAMES[1], FULL)
        journal.mark(ODD_NAMES, state)
        assert journal.get(ODD_NAMES[1]) == replace(FULL, state=state)
        assert journal.get(ODD_NAMES[2]) == FileRecord(state)
        journal.mark([], FileState.DONE)
    with open_journal(tmp_path) as journal:
        assert [name for name, _ in journal.all_in(state)] == sorted(ODD_NAMES, key=os.fsencode)


def test_a_mark_tells_when(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        before = time.time()
        journal.mark([Path("a.jpg")], FileState.QUEUED)
        entry = journal.get(Path("a.jpg"))
        assert entry is not None and before <= entry.changed <= time.time()


def test_marks_are_all_made_or_none(tmp_path: Path) -> None:
    def names() -> Iterator[Path]:
        yield Path("a.jpg")
        raise KeyboardInterrupt

    with open_journal(tmp_path) as journal:
        with pytest.raises(KeyboardInterrupt):
            journal.mark(names(), FileState.QUEUED)
        assert journal.get(Path("a.jpg")) is None
        journal.mark([Path("b.jpg")], FileState.QUEUED)
        journal.put(Path("c.jpg"), FULL)
    with open_journal(tmp_path) as journal:
        assert [name for name, _ in journal.all_in(*FileState)] == [Path("b.jpg"), Path("c.jpg")]


def is_durable(journal: Journal) -> bool:
    return bool(journal._db.execute("PRAGMA synchronous").fetchone()[0] == 2)


def test_marks_on_a_full_disk_are_an_error_and_leave_what_was(tmp_path: Path) -> None:
    many = [Path(f"{number:05d} {'x' * 100}.jpg") for number in range(5000)]
    with small_disk(tmp_path / "disk", "size=512k") as disk, open_journal(disk) as journal:
        journal.put(Path("a.jpg"), FULL)
        with pytest.raises(OutputError, match=r"cannot be recorded: .* is full"):
            journal.mark([Path("a.jpg"), *many], FileState.QUEUED)
        assert is_durable(journal)
        assert journal.get(Path("a.jpg")) == FULL
        assert journal.all_in(FileState.QUEUED) == []
        journal.mark([Path("b.jpg")], FileState.QUEUED)  # there is room for few
        assert read_stats(disk, 0) == JournalStats({FileState.DONE: 1, FileState.QUEUED: 1}, 1, "", 0.0)


def test_what_waits_is_withdrawn_without_a_trace(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        for name, state in zip(ODD_NAMES, (FileState.QUEUED, FileState.WORKING, FileState.FAILED), strict=False):
            journal.mark([name], state)
            journal.forget(name)
            assert journal.get(name) is None
        journal.forget(Path("unknown.jpg"))
        assert journal.all_in(*FileState) == []


@pytest.mark.parametrize("state", [FileState.DONE, FileState.PUBLISHING])
def test_results_are_not_withdrawn(tmp_path: Path, state: FileState) -> None:
    with open_journal(tmp_path) as journal:
        journal.put(Path("a.jpg"), replace(FULL, state=state))
        journal.forget(Path("a.jpg"))
        assert journal.get(Path("a.jpg")) == replace(FULL, state=state)


@pytest.mark.parametrize("state", [FileState.QUEUED, FileState.WORKING, FileState.FAILED])
def test_withdrawing_leaves_an_earlier_result_known_but_of_no_source(
    tmp_path: Path, result: Path, state: FileState
) -> None:
    before = replace(entry_for(result), source=FileStamp.of(result), source_digest="same", error="why")
    with open_journal(tmp_path) as journal:
        journal.put(Path("a.jpg"), before)
        journal.mark([Path("a.jpg")], state)
        journal.forget(Path("a.jpg"))
        entry = journal.get(Path("a.jpg"))
    assert entry == replace(before, source=FileStamp(), error="")
    assert entry is not None and entry.result_at(result) and not entry.is_unchanged(result)
    figures = read_stats(tmp_path, 1.0)
    assert figures is not None and figures.done_recently == 0


def test_an_earlier_result_is_never_taken_for_that_of_a_file_that_failed(tmp_path: Path, result: Path) -> None:
    failed = FileStamp(7, 8, 9)
    with open_journal(tmp_path) as journal:
        journal.put(Path("a.jpg"), FULL)
        journal.fail(Path("a.jpg"), "cut off", failed)
        assert journal.get(Path("a.jpg")) == replace(
            FULL, state=FileState.FAILED, error="cut off", source=failed, source_digest="", config_digest=""
        )
        journal.mark([Path("a.jpg")], FileState.QUEUED)
        entry = journal.get(Path("a.jpg"))
        assert entry is not None and entry.config_digest != FULL.config_digest
        assert (entry.output_digest, entry.replaced_digest) == (FULL.output_digest, FULL.replaced_digest)


def test_all_in_tells_those_in_any_of_the_states(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        for name, state in zip(ODD_NAMES, FileState, strict=False):
            journal.put(name, replace(FULL, state=state))
        assert dict(journal.all_in(FileState.QUEUED, FileState.DONE)) == {
            ODD_NAMES[0]: replace(FULL, state=FileState.QUEUED),
            ODD_NAMES[3]: replace(FULL, state=FileState.DONE),
        }
        assert journal.all_in() == []


@pytest.mark.parametrize("folder", [b"plain", b"50% off?#&mode=rwc", b"two\nlines \xff"])
def test_figures_write_nothing_open_or_closed(tmp_path: Path, folder: bytes) -> None:
    out = tmp_path / os.fsdecode(folder)
    with open_journal(out) as journal:
        journal.mark(ODD_NAMES[:2], FileState.WORKING)
        journal.put(ODD_NAMES[2], FULL)
        for name in ODD_NAMES[3:5]:
            journal.fail(name, f"why {os.fsencode(name)!r}")
        expected = read_stats(out, 1.0)
        assert expected is not None
        assert [name for name, _ in expected.in_progress] == ODD_NAMES[:2]
    before = snapshot(tmp_path)
    assert read_stats(out, 1.0) == expected
    assert snapshot(tmp_path) == before
    assert (expected.counts, expected.done_recently) == (
        {FileState.WORKING: 2, FileState.DONE: 1, FileState.FAILED: 2},
        1,
    )
    assert expected.error == "why b'folder/a.jpg'"


def test_there_are_no_figures_of_a_record_that_is_not_there_or_just_begun(tmp_path: Path) -> None:
    assert read_stats(tmp_path, 0) is None
    assert list(tmp_path.iterdir()) == []
    database(tmp_path).parent.mkdir()
    database(tmp_path).touch()
    assert read_stats(tmp_path, 0) is None


def test_figures_of_a_damaged_record_are_an_error_that_names_it(tmp_path: Path) -> None:
    with open_journal(tmp_path):
        pass
    database(tmp_path).write_bytes(b"no database at all" * 500)
    with pytest.raises(OutputError, match=r"journal\.sqlite: the record of this folder cannot be read"):
        read_stats(tmp_path, 0)


def test_figures_are_those_of_one_moment_while_another_process_writes(tmp_path: Path, start_python: Starter) -> None:
    process = start_python(write_always, tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    for _ in range(300):
        figures = read_stats(tmp_path, 0)
        assert figures is not None
        assert figures.counts in ({FileState.QUEUED: 50}, {FileState.WORKING: 50})
        assert len(figures.in_progress) == (20 if FileState.WORKING in figures.counts else 0)
    assert process.poll() is None
    process.kill()
    process.wait()
    figures = read_stats(tmp_path, 0)  # with the log that a kill leaves
    assert figures is not None and sum(figures.counts.values()) == 50


def test_one_who_only_looks_is_waited_for_but_not_for_ever(tmp_path: Path) -> None:
    with open_journal(tmp_path):
        pass
    with (tmp_path / ".blurguard" / "journal.lock").open("rb") as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        with pytest.raises(OutputError, match="another blurguard"), open_journal(tmp_path):
            pass
    with open_journal(tmp_path):
        pass
