"""Originals are moved and deleted only while they are what was handled, and never lost."""

import contextlib
import ctypes
import errno
import itertools
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.faults.commands import put
from blurguard.errors import InputError, OutputError, StorageError
from blurguard.files.atomic import remove_stale_parts, scratch_in, stage_bytes
from blurguard.files.move import candidate_names, delete, destination_for, move, verify
from blurguard.files.stamp import FileStamp
from tests.children import hold_part
from tests.commands import small_disk
from tests.conftest import Starter

BIG = bytes(range(256)) * 4097  # more than is copied at once
PART = ".blurguard-0123456789abcdef.part"
NAMES = ["a.jpg", "é ü.jpg", "two\nlines.jpg", os.fsdecode(b"latin \xe9\xff.jpg"), "n" * 251 + ".jpg", "n" * 255]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def moved(source: Path, target: Path) -> Path | None:
    return move(source, target, FileStamp.of(source))


def killed_at(line: int, work: Callable[[], object]) -> bool:
    """Run in another process that is killed before the n-th line of ours; tells whether it came so far."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)
    count = itertools.count()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if "/blurguard/" not in frame.f_code.co_filename:
            return None
        if event == "line" and next(count) == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    code = 1
    try:
        sys.settrace(trace)
        work()
        code = 0
    finally:
        os._exit(code)


def kills(work: Callable[[], object]) -> Iterator[None]:
    """Yield after each death, one line later each time, until the work has come to its end."""
    for line in itertools.count():
        died = killed_at(line, work)
        yield
        if not died:
            assert line > 10
            return


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = put(tmp_path / "in" / "a.jpg", BIG)
    path.chmod(0o640)
    os.utime(path, ns=(1, 1_600_000_000_123_456_789))
    return path


@pytest.fixture(params=["same disk", "other disk", "old system", "no links"])
def away(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder: on this file system, on another, where links take free names, and where nothing does."""
    with contextlib.ExitStack() as stack:
        if request.param == "other disk":
            yield stack.enter_context(small_disk(tmp_path / "away", "size=16m,mode=700"))
            return
        if request.param in ("old system", "no links"):
            request.getfixturevalue("old_system")
        if request.param == "no links":

            def link(*_: object) -> None:
                raise PermissionError(errno.EPERM, "Operation not permitted")

            monkeypatch.setattr(os, "link", link)
        (tmp_path / "away").mkdir()
        yield tmp_path / "away"


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "size=16m,mode=700") as disk:
        yield disk


def test_an_original_moves_with_its_time_and_permissions(source: Path, away: Path) -> None:
    before = source.stat()
    assert moved(source, away / "new" / "deep" / "a.jpg") == away / "new/deep/a.jpg"
    assert not source.exists() and files(away) == {"new/deep/a.jpg": BIG}
    after = (away / "new/deep/a.jpg").stat()
    assert (after.st_mtime_ns, after.st_mode, after.st_nlink) == (before.st_mtime_ns, before.st_mode, 1)
    assert mode_of(away / "new") == mode_of(away / "new/deep") == 0o700


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_may_be_anything_and_as_long_as_they_can_be(tmp_path: Path, away: Path, name: str) -> None:
    for content in (b"1", b"2", b"3", b"2"):
        place = moved(put(tmp_path / "in" / name, content), away / name)
        assert place is not None and place.read_bytes() == content
        assert place.suffix == Path(name).suffix
    assert sorted(files(away).values()) == [b"1", b"2", b"3"]
    assert (away / name).read_bytes() == b"1" and files(tmp_path / "in") == {}


def test_where_the_same_lies_already_the_original_only_goes(source: Path, away: Path) -> None:
    put(away / "a.jpg", BIG)
    inode = (away / "a.jpg").stat().st_ino
    assert moved(source, away / "a.jpg") == away / "a.jpg"
    assert not source.exists() and (away / "a.jpg").stat().st_ino == inode and files(away) == {"a.jpg": BIG}


def test_what_is_in_the_way_stays_and_numbers_count_up(source: Path, away: Path) -> None:
    put(away / "a.jpg", b"\0" * len(BIG))
    (away / "a~2.jpg").symlink_to(source)
    (away / "a~3.jpg").mkdir()
    (away / "a~4.jpg").symlink_to("nowhere")
    assert moved(source, away / "a.jpg") == away / "a~5.jpg"
    assert (away / "a~5.jpg").read_bytes() == BIG and (away / "a.jpg").read_bytes() == b"\0" * len(BIG)
    assert not source.exists() and (away / "a~2.jpg").is_symlink() and (away / "a~4.jpg").is_symlink()


def test_an_original_that_changed_stays(source: Path, away: Path) -> None:
    stamp = FileStamp.of(source)
    source.write_bytes(b"newer")
    assert move(source, away / "x" / "a.jpg", stamp) is None
    assert destination_for(source, away / "a.jpg", stamp) is None
    assert source.read_bytes() == b"newer" and list(away.iterdir()) == []


def test_an_original_of_the_same_size_and_time_but_touched_stays(source: Path, away: Path) -> None:
    stamp = replace(FileStamp.of(source), ctime_ns=1)
    assert move(source, away / "a.jpg", stamp) is None
    assert source.exists() and list(away.iterdir()) == []


def test_an_original_that_is_gone_is_no_error(source: Path, away: Path) -> None:
    stamp = FileStamp.of(source)
    source.unlink()
    assert move(source, away / "a.jpg", stamp) is None
    assert move(source / "below", away / "a.jpg", stamp) is None
    assert list(away.iterdir()) == []


def test_links_and_what_is_no_file_are_refused(source: Path, away: Path) -> None:
    link, fifo, folder = (source.with_name(name) for name in ("link", "fifo", "folder"))
    link.symlink_to(source)
    os.mkfifo(fifo)
    folder.mkdir()
    for path in (link, fifo, folder):
        with pytest.raises(InputError, match=r"is a link or not a regular file"):
            move(path, away / "x", FileStamp.of(path))
        assert os.path.lexists(path)
    assert source.exists() and list(away.iterdir()) == []


def test_an_original_is_not_taken_for_its_own_copy(source: Path, tmp_path: Path) -> None:
    (tmp_path / "view").symlink_to("in")
    for place in (source, tmp_path / "view" / "a.jpg"):
        with pytest.raises(OutputError, match="is the original itself"):
            moved(source, place)
    os.link(source, tmp_path / "third")
    with pytest.raises(OutputError, match="is the original itself"):
        moved(source, tmp_path / "view" / "a.jpg")
    assert source.read_bytes() == BIG


def test_a_target_below_a_file_is_an_error_and_the_original_stays(source: Path, away: Path) -> None:
    put(away / "file", b"")
    for target in (away / "file" / "a.jpg", away / "file" / "x" / "a.jpg"):
        with pytest.raises(OutputError, match=r"in/a\.jpg: cannot be moved to .*: a file stands where a folder should"):
            moved(source, target)
    assert source.read_bytes() == BIG


def test_whenever_it_is_killed_nothing_is_lost_and_the_next_call_ends_it(
    source: Path, away: Path, tmp_path: Path
) -> None:
    put(away / "a.jpg", b"other")
    source = source.rename(tmp_path / "original")
    place = tmp_path / "in" / "a.jpg"
    data, stamp = source.read_bytes(), FileStamp()

    def work() -> None:
        move(place, away / "a.jpg", stamp)

    steps = 0
    put(place, data)
    stamp = FileStamp.of(place)
    for _ in kills(work):
        steps += 1
        here, there = files(tmp_path / "in"), files(away)
        whole = {name: content for name, content in there.items() if not name.startswith(".")}
        assert here.get("a.jpg") == data or whole.get("a~2.jpg") == data
        assert whole in ({"a.jpg": b"other"}, {"a.jpg": b"other", "a~2.jpg": data})
        remove_stale_parts(away)
        move(place, away / "a.jpg", stamp)
        assert files(tmp_path / "in") == {} and files(away) == {"a.jpg": b"other", "a~2.jpg": data}
        (away / "a~2.jpg").unlink()
        put(place, data)
        stamp = FileStamp.of(place)
    assert steps > 20


def test_a_file_that_was_being_written_to_while_it_was_copied_stays(
    source: Path, other_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def fsync(handle: int) -> None:
        with source.open("ab") as file:
            file.write(b"more")
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match="was changed while it was moved"):
        moved(source, other_disk / "a.jpg")
    assert source.read_bytes().startswith(BIG + b"more") and files(other_disk) == {}


@pytest.mark.usefixtures("old_system")
@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_was_replaced_before_it_was_linked_or_renamed_stays(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    newer, real = put(tmp_path / "newer", b"newer"), os.link

    def link(old: Path, new: Path) -> None:
        if newer.exists():
            newer.replace(source)
        if not links:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        real(old, new)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(InputError, match="was changed while it was moved"):
        moved(source, tmp_path / "away" / "a.jpg")
    assert source.read_bytes() == b"newer" and files(tmp_path / "away") == {}


@pytest.mark.parametrize("before", [True, False])
def test_a_file_that_takes_the_name_around_a_rename_stays(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    newer, libc = put(tmp_path / "newer", b"newer"), ctypes.CDLL(None, use_errno=True)

    class Libc:
        @staticmethod
        def renameat2(*arguments: object) -> int:
            if before and newer.exists():
                newer.replace(source)
            done: int = libc.renameat2(*arguments)
            if newer.exists():
                newer.replace(source)
            return done

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc)
    if before:
        with pytest.raises(InputError, match="was changed while it was moved"):
            moved(source, tmp_path / "away" / "a.jpg")
    else:
        assert moved(source, tmp_path / "away" / "a.jpg") == tmp_path / "away" / "a.jpg"
    assert source.read_bytes() == b"newer" and files(tmp_path / "away") == ({} if before else {"a.jpg": BIG})


@pytest.mark.usefixtures("old_system")
def test_a_file_that_takes_the_name_right_after_the_move_stays(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer, real = put(tmp_path / "newer", b"newer"), os.link

    def link(old: Path, new: Path) -> None:
        real(old, new)
        newer.replace(source)

    monkeypatch.setattr(os, "link", link)
    assert moved(source, tmp_path / "away" / "a.jpg") == tmp_path / "away" / "a.jpg"
    assert source.read_bytes() == b"newer" and files(tmp_path / "away") == {"a.jpg": BIG}


def test_a_copy_that_cannot_be_read_back_is_no_copy(
    source: Path, other_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def fsync(handle: int) -> None:
        os.pwrite(handle, b"\xff\xff", 100)  # a disk that damages what it is given
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match="returns other content than was written; check the disk"):
        moved(source, other_disk / "a.jpg")
    assert source.read_bytes() == BIG and files(other_disk) == {}


def test_a_copy_is_private_until_it_is_whole(source: Path, other_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, seen = os.fsync, list[tuple[str, int]]()

    def fsync(handle: int) -> None:
        seen.extend((path.name, mode_of(path)) for path in other_disk.iterdir())
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    moved(source, other_disk / "a.jpg")
    assert seen[0][0].startswith(".blurguard-") and seen[0][1] == 0o600


def test_a_full_disk_is_an_error_that_says_so_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "size=64k,mode=700") as disk:
        with pytest.raises(StorageError, match=r"a\.jpg: cannot be moved to .*: the disk is full; free some space"):
            moved(source, disk / "a.jpg")
        assert files(disk) == {}
    assert source.read_bytes() == BIG


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=255))
def test_other_names_are_names_and_are_all_different(text: str) -> None:
    name = text.encode()[:255].decode(errors="ignore")
    if name in {"", ".", ".."}:
        return
    found = list(itertools.islice(candidate_names(Path("folder") / name), 12))
    assert len(set(found)) == 12
    assert all(path.parent == Path("folder") and len(os.fsencode(path.name)) <= 255 for path in found)


def test_deleting_takes_what_was_handled_and_nothing_else(source: Path) -> None:
    stamp = FileStamp.of(source)
    link = source.with_name("link")
    link.symlink_to(source)
    assert not delete(link, stamp) and link.is_symlink()
    source.write_bytes(b"newer")
    assert not delete(source, stamp) and source.read_bytes() == b"newer"
    assert delete(source, FileStamp.of(source)) and not source.exists()
    assert not delete(source, stamp) and not delete(source / "below", stamp)


def test_what_cannot_be_deleted_is_an_error(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    stamp = FileStamp.of(source)
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OutputError, match=r"a\.jpg: cannot be deleted: no permission"):
        delete(source, stamp)
    assert source.exists() and not delete(source.parent, FileStamp.of(source.parent))


@pytest.mark.parametrize("even_newer", [False, True])
def test_a_newer_file_that_comes_at_the_last_moment_is_not_deleted(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, even_newer: bool
) -> None:
    newer, newest, real = put(tmp_path / "newer", b"newer"), put(tmp_path / "newest", b"newest"), os.rename

    def rename(old: Path, new: Path) -> None:
        newer.replace(source)
        real(old, new)
        if even_newer:
            newest.replace(source)

    stamp = FileStamp.of(source)
    monkeypatch.setattr(os, "rename", rename)
    assert not delete(source, stamp)
    assert files(source.parent) == {"a.jpg": b"newest" if even_newer else b"newer"}


def test_a_draft_is_verified_by_what_the_disk_holds(tmp_path: Path) -> None:
    with scratch_in(tmp_path) as scratch:
        draft = stage_bytes(scratch, BIG)
        verify(draft)
        with draft.path.open("r+b") as file:
            file.seek(1000)
            file.write(b"damage")
        with pytest.raises(OutputError, match="returns other content than was written"):
            verify(draft)
        draft.path.unlink()
        with pytest.raises(OutputError, match="cannot be read back: No such file"):
            verify(draft)


def test_a_draft_is_verified_where_memory_cannot_be_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise")
    with scratch_in(tmp_path) as scratch:
        verify(stage_bytes(scratch, BIG))


def test_sweeping_takes_the_parts_of_the_dead_and_nothing_else(tmp_path: Path, start_python: Starter) -> None:
    assert remove_stale_parts(tmp_path / "absent") == 0
    (tmp_path / "x" / "y").mkdir(parents=True)
    process = start_python(hold_part, tmp_path / "x")
    assert process.stdout is not None
    part = Path(process.stdout.readline().rstrip("\n"))
    assert mode_of(part) == 0o600
    put(tmp_path / "x" / "y" / PART, b"half")
    (tmp_path / PART).symlink_to(put(tmp_path / "photo.jpg", b"photo"))
    put(tmp_path / "blurguard-0123456789abcdef.part", b"")
    put(tmp_path / f"{PART}.jpg", b"")
    assert remove_stale_parts(tmp_path) == 1
    process.kill()
    process.wait()
    assert remove_stale_parts(tmp_path) == 1 and not part.exists()
    assert len(files(tmp_path)) == 4 and (tmp_path / "photo.jpg").read_bytes() == b"photo"


def test_the_pattern_of_parts_is_that_of_real_ones(source: Path, other_disk: Path) -> None:
    stamp = FileStamp.of(source)
    seen = set()
    for _ in kills(lambda: move(source, other_disk / "a.jpg", stamp)):
        seen |= {path.name for path in other_disk.iterdir()} - {"a.jpg"}
        remove_stale_parts(other_disk)
        assert set(files(other_disk)) <= {"a.jpg"}
        (other_disk / "a.jpg").unlink(missing_ok=True)
        if not source.exists():
            break
    assert seen
