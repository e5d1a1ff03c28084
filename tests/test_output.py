"""A result is whole at its final name or absent, and scratch is private and swept."""

import contextlib
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from blurguard.errors import OutputError
from blurguard.files.atomic import (
    StagedFile,
    atomic_file,
    digest_bytes,
    digest_file,
    publish,
    remove_stale,
    scratch_in,
    stage_bytes,
)
from tests.children import hold_draft, publish_under_umask, write_too_much
from tests.conftest import Starter


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["this system", "old system"])
def draft(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StagedFile]:
    if request.param == "old system":
        request.getfixturevalue("old_system")
    with scratch_in(tmp_path) as scratch:
        yield stage_bytes(scratch, b"new")


def test_a_draft_tells_what_was_written(draft: StagedFile) -> None:
    assert draft.path.read_bytes() == b"new"
    assert draft.digest == digest_bytes(b"new") == digest_file(draft.path)
    assert (draft.size, draft.mtime_ns) == (3, draft.path.stat().st_mtime_ns)


def test_drafts_and_scratch_are_private(draft: StagedFile, tmp_path: Path) -> None:
    assert mode_of(draft.path) == 0o600
    for folder in (draft.path.parent, draft.path.parent.parent, tmp_path / ".blurguard"):
        assert mode_of(folder) == 0o700


def test_publishing_moves_the_draft_to_its_name(draft: StagedFile, tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "a.png"
    publish(draft, target, replace=False)
    assert target.read_bytes() == b"new"
    assert target.stat().st_mtime_ns == draft.mtime_ns and target.stat().st_nlink == 1
    assert names_in(draft.path.parent) == []


def test_publishing_never_replaces_a_file_that_appeared_in_the_meantime(draft: StagedFile, tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"somebody's")
    with pytest.raises(OutputError, match=r"a\.png: exists already; give --overwrite"):
        publish(draft, target, replace=False)
    assert target.read_bytes() == b"somebody's"
    assert names_in(draft.path.parent) == [draft.path.name]


def test_a_dangling_link_is_a_name_that_is_taken(draft: StagedFile, tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    target.symlink_to("nowhere")
    with pytest.raises(OutputError, match="exists already"):
        publish(draft, target, replace=False)
    assert target.is_symlink() and not (tmp_path / "nowhere").exists()


def test_replacing_keeps_the_permissions_of_what_is_replaced(draft: StagedFile, tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"old")
    target.chmod(0o640)
    publish(draft, target, replace=True)
    assert target.read_bytes() == b"new"
    assert mode_of(target) == 0o640


def test_replacing_a_link_leaves_alone_what_it_points_to(draft: StagedFile, tmp_path: Path) -> None:
    target, other = tmp_path / "a.png", tmp_path / "other.png"
    other.write_bytes(b"other")
    target.symlink_to(other)
    publish(draft, target, replace=True)
    assert not target.is_symlink() and target.read_bytes() == b"new"
    assert other.read_bytes() == b"other"


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_of_that_name_is_an_error(draft: StagedFile, tmp_path: Path, replace: bool) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OutputError, match=r"a\.png"):
        publish(draft, tmp_path / "a.png", replace)
    assert names_in(draft.path.parent) == [draft.path.name]


@pytest.mark.parametrize("replace", [False, True])
def test_a_name_below_a_file_is_an_error(draft: StagedFile, tmp_path: Path, replace: bool) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="a file stands where a folder should be"):
        publish(draft, tmp_path / "file" / "folder" / "a.png", replace)
    assert names_in(draft.path.parent) == [draft.path.name]


@pytest.mark.parametrize(("umask", "mode"), [("022", 0o644), ("077", 0o600), ("002", 0o664)])
def test_results_get_the_permissions_of_any_new_file(
    tmp_path: Path, umask: str, mode: int, start_python: Starter
) -> None:
    assert start_python(publish_under_umask, tmp_path, umask).wait() == 0
    assert [mode_of(tmp_path / name) for name in ("ordinary", "ours", "ours too")] == [mode] * 3
    assert names_in(tmp_path) == ["ordinary", "ours", "ours too"]


def test_scratch_is_gone_afterwards(tmp_path: Path) -> None:
    with scratch_in(tmp_path / "out") as scratch:
        stage_bytes(scratch, b"x")
        assert (tmp_path / "out") in scratch.parents
    assert names_in(tmp_path / "out") == []


def test_scratch_is_gone_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), scratch_in(tmp_path) as scratch:
        stage_bytes(scratch, b"x")
        raise ZeroDivisionError
    assert names_in(tmp_path) == []


def test_scratch_of_others_and_the_record_stay(tmp_path: Path) -> None:
    with scratch_in(tmp_path) as mine:
        with scratch_in(tmp_path) as other:
            assert mine != other
        assert mine.is_dir() and not other.exists()
        (tmp_path / ".blurguard" / "journal.sqlite").touch()
    assert names_in(tmp_path / ".blurguard") == ["journal.sqlite"]


def test_sweeping_leaves_what_a_living_process_holds_and_takes_what_a_killed_one_left(
    tmp_path: Path, start_python: Starter
) -> None:
    process = start_python(hold_draft, tmp_path)
    assert process.stdout is not None
    draft = Path(process.stdout.readline().rstrip("\n"))
    assert remove_stale(tmp_path) == 0
    assert draft.read_bytes() == b"hidden already"
    process.kill()
    process.wait()
    assert mode_of(draft) == 0o600 and mode_of(draft.parent) == 0o700
    assert remove_stale(tmp_path) == 1
    assert names_in(tmp_path) == []


def test_sweeping_takes_stray_files_and_links_but_not_what_they_point_to(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "photo.jpg").touch()
    parent = tmp_path / "out" / ".blurguard" / "scratch"
    parent.mkdir(parents=True)
    (parent / "file").touch()
    (parent / "link").symlink_to(keep)
    assert remove_stale(tmp_path / "out") == 2
    assert names_in(keep) == ["photo.jpg"] and names_in(tmp_path / "out") == []


def test_sweeping_where_nothing_is_does_nothing(tmp_path: Path) -> None:
    assert remove_stale(tmp_path / "absent") == 0
    assert remove_stale(tmp_path) == 0


def test_sweeping_does_not_follow_a_link_in_place_of_the_scratch(tmp_path: Path) -> None:
    (tmp_path / "keep" / "folder").mkdir(parents=True)
    (tmp_path / ".blurguard").mkdir()
    (tmp_path / ".blurguard" / "scratch").symlink_to(tmp_path / "keep")
    with pytest.raises(OutputError):
        remove_stale(tmp_path)
    assert names_in(tmp_path / "keep") == ["folder"]


def test_a_write_that_fails_half_way_is_an_error_and_leaves_nothing(tmp_path: Path, start_python: Starter) -> None:
    told, wrong = start_python(write_too_much, tmp_path).communicate()
    assert told.startswith("0 ") and "cannot write: File too large" in told, wrong
    assert names_in(tmp_path) == []


def test_a_full_disk_is_an_error_that_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    with contextlib.ExitStack() as stack:
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("only root can mount a small disk")
        stack.callback(subprocess.run, ["umount", str(disk)], check=True)
        with scratch_in(disk) as scratch:
            with pytest.raises(OutputError, match="the disk is full"):
                stage_bytes(scratch, bytes(1_000_000))
            assert names_in(scratch) == []
        assert names_in(disk) == []


def test_scratch_below_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputError), scratch_in(folder):
            pass
    (tmp_path / ".blurguard").touch()
    with pytest.raises(OutputError), scratch_in(tmp_path):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="no permission; allow writing here"), scratch_in(tmp_path):
        pass


@pytest.mark.parametrize("durable", [True, False])
def test_atomic_file_replaces(tmp_path: Path, durable: bool) -> None:
    """The old content stays at the name until the block ends."""
    (tmp_path / "a").write_bytes(b"old")
    with atomic_file(tmp_path / "a", durable=durable, mode=0o640) as file:
        file.write(b"new")
        file.flush()
        assert (tmp_path / "a").read_bytes() == b"old" and mode_of(Path(file.name)) == 0o640
    assert (tmp_path / "a").read_bytes() == b"new" and names_in(tmp_path) == ["a"]


@pytest.mark.parametrize("durable", [True, False])
def test_atomic_file_after_error(tmp_path: Path, durable: bool) -> None:
    """An error in the block leaves the old content and nothing else."""
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "a", durable=durable) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert (tmp_path / "a").read_bytes() == b"old" and names_in(tmp_path) == ["a"]


@pytest.mark.parametrize("system", ["this system", "old system"])
def test_atomic_file_keeps_a_taken_name(tmp_path: Path, system: str, request: pytest.FixtureRequest) -> None:
    """Without ``replace``, a file that appears meanwhile stays."""
    if system == "old system":
        request.getfixturevalue("old_system")
    with pytest.raises(FileExistsError), atomic_file(tmp_path / "a", replace=False):
        (tmp_path / "a").write_bytes(b"other")
    assert (tmp_path / "a").read_bytes() == b"other" and names_in(tmp_path) == ["a"]
    with atomic_file(tmp_path / "b", replace=False) as file:
        file.write(b"new")
    assert (tmp_path / "b").read_bytes() == b"new" and names_in(tmp_path) == ["a", "b"]


def test_atomic_file_clears_remains(tmp_path: Path) -> None:
    """A file that need not be durable has one temporary name, so a kill never leaves more than one."""
    (tmp_path / ".a.tmp").write_bytes(b"half")
    with atomic_file(tmp_path / "a", durable=False) as file:
        file.write(b"new")
    assert names_in(tmp_path) == ["a"]
