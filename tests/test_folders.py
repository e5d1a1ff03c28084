"""A drop folder's folders are apart, there, and not for everybody to write to."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from blurguard.errors import ConfigError
from blurguard.watch.folders import Folders, dev_inode
from tests.commands import small_disk

NOT_ROOT = pytest.mark.skipif(os.geteuid() == 0, reason="root may do anything")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir(mode=0o755)
    monkeypatch.chdir(tmp_path)


def folders(outbox: str = "out", failed: str | None = None, moved: str | None = None, inbox: str = "in") -> Folders:
    return Folders(Path(inbox), Path(outbox), failed and Path(failed), moved and Path(moved))  # type: ignore[arg-type]  # "" is not given


def refused(given: Folders, told: str, allow_shared: bool = False) -> None:
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(ConfigError, match=told):
        given.prepared(allow_shared=allow_shared)
    assert sorted(Path.cwd().rglob("*")) == before


def test_folders_come_back_absolute_and_those_for_originals_are_made_private(tmp_path: Path) -> None:
    ready = folders("out", "bad/failed", "done").prepared(allow_shared=False)
    assert ready == Folders(tmp_path / "in", tmp_path / "out", tmp_path / "bad/failed", tmp_path / "done")
    assert not (tmp_path / "out").exists()
    for path in (ready.failed, ready.moved):
        assert path is not None and stat.S_IMODE(path.stat().st_mode) == 0o700
    assert ready.prepared(allow_shared=False) == ready


def test_what_is_not_given_stays_so(tmp_path: Path) -> None:
    assert folders().prepared(allow_shared=False) == Folders(tmp_path / "in", tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "in"]


def test_links_above_a_folder_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real/in").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    assert folders(inbox="link/in").prepared(allow_shared=False).inbox == tmp_path / "real/in"


def test_an_outbox_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("elsewhere")
    assert folders().prepared(allow_shared=False).outbox == tmp_path / "elsewhere"


def test_an_inbox_that_is_missing_or_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(folders(inbox="absent"), r"absent: the inbox does not exist; create it first")
    refused(folders(inbox="file"), r"file: is not a folder")
    refused(folders(inbox="file/below"), r"file/below: is not a folder")


def test_an_inbox_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("in")
    refused(folders(inbox="link"), r"link: is a link")
    refused(folders(inbox="link/"), r"link: is a link")


@NOT_ROOT
def test_an_inbox_that_cannot_be_listed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").chmod(0o300)
    refused(folders(), r"in: the inbox cannot be listed")


def test_an_inbox_that_cannot_be_listed_is_refused_whoever_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(_path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ConfigError, match="in: the inbox cannot be listed: Permission denied"):
        folders().prepared(allow_shared=False)


@pytest.mark.parametrize(
    "given",
    [
        folders("in"),
        folders("in/out"),
        folders("."),
        folders("absent/../in/out"),
        folders("out", "out"),
        folders("out", "out/failed"),
        folders("out/a", "out"),
        folders("out", "in/failed"),
        folders("out", None, "in/moved"),
        folders("out", None, "out"),
        folders("out", "bad", "bad"),
        folders("out", "bad", "bad/moved"),
        folders("out", "bad/failed", "bad"),
    ],
)
def test_folders_that_are_not_apart_are_refused(given: Folders) -> None:
    refused(given, r"(is also the|lies inside the) .*; choose (another folder|a folder outside it)")


@pytest.mark.parametrize("name", ["link", "link/absent/deeper", "up/in/absent"])
def test_links_into_another_folder_are_seen_through(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "up").symlink_to(".")
    for given in (folders(name), folders("out", name), folders("out", None, name)):
        refused(given, "the inbox")


def test_a_dangling_link_into_the_inbox_is_seen_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("in/absent")
    refused(folders("link"), "lies inside the inbox")


def test_names_that_only_begin_alike_are_apart(tmp_path: Path) -> None:
    assert folders("in.out", "in-failed").prepared(allow_shared=False).outbox == tmp_path / "in.out"


def test_a_circle_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    refused(folders("circle"), "circle: cannot be resolved")


@pytest.mark.parametrize("name", ["view", "view/below"])
def test_a_second_mount_of_a_folder_is_seen_through(tmp_path: Path, name: str) -> None:
    (tmp_path / "view").mkdir()
    done = subprocess.run(["mount", "--bind", tmp_path / "in", tmp_path / "view"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("only root can mount")
    try:
        with pytest.raises(ConfigError, match="inbox"):
            folders(name).prepared(allow_shared=False)
    finally:
        subprocess.run(["umount", tmp_path / "view"], check=True)


@pytest.mark.parametrize("name", ["in", "out", "bad", "done"])
def test_folders_that_everybody_can_write_to_are_refused_unless_allowed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir(exist_ok=True)
    given = folders("out", "bad", "done")
    (tmp_path / name).chmod(0o775)
    given.prepared(allow_shared=False)
    for mode in (0o777, 0o1777, 0o702):
        (tmp_path / name).chmod(mode)
        refused(given, rf"/{name}: every user can write to it; run chmod o-w on it, or give --allow-shared")
        given.prepared(allow_shared=True)


def test_what_everybody_may_do_above_a_folder_does_not_matter(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    folders("out", "bad", "done").prepared(allow_shared=False)


@pytest.mark.parametrize("given", [folders("file"), folders("out", "file"), folders("out", None, "file")])
def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path, given: Folders) -> None:
    (tmp_path / "file").touch()
    refused(given, r"/file: is not a folder; remove it or name another one")


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(folders("out", "file/failed"), r"file/failed: cannot be .*: Not a directory")


@NOT_ROOT
def test_folders_that_originals_cannot_be_moved_between_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir(mode=0o500)
    refused(folders("out", "bad"), r"bad: cannot be written to")
    (tmp_path / "in").chmod(0o500)
    refused(folders("out", "done"), r"in: originals cannot be removed from it")
    folders().prepared(allow_shared=False)


def test_what_lies_on_a_disk_that_cannot_be_written_to(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=64k,mode=755") as disk:
        (disk / "in").mkdir()
        (disk / "bad").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(ConfigError, match=r"disk/in: originals cannot be removed from it; allow writing to it"):
            folders("out", "bad", inbox="disk/in").prepared(allow_shared=False)
        with pytest.raises(ConfigError, match=r"disk/bad: cannot be written to"):
            folders("out", "disk/bad").prepared(allow_shared=False)
        with pytest.raises(ConfigError, match=r"disk/new: cannot be created: Read-only file system"):
            folders("out", None, "disk/new").prepared(allow_shared=False)
        assert folders(inbox="disk/in").prepared(allow_shared=False).inbox == disk / "in"


def test_names_may_hold_any_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"two\nlines \xff")
    ready = folders("out", name).prepared(allow_shared=False)
    assert ready.failed == tmp_path / name and ready.failed.is_dir()


def test_a_folder_that_vanishes_or_is_another_one_is_told(tmp_path: Path) -> None:
    inbox, other = tmp_path / "in", tmp_path / "other"
    known = dev_inode(inbox)
    assert known is not None
    (inbox / "file").touch()
    assert dev_inode(inbox) == known
    inbox.rename(other)
    assert dev_inode(inbox) is None and dev_inode(other) == known
    inbox.symlink_to(other)
    assert dev_inode(inbox) is None
    inbox.unlink()
    inbox.mkdir()
    assert dev_inode(inbox) not in (None, known)
    assert dev_inode(other / "file") is None and dev_inode(other / "file/below") is None
