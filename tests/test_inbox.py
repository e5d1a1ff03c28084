"""What is seen and heard of an inbox: names, walking, writers, and events of real file systems."""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from bench.faults.commands import put
from bench.faults.kills import LONGEST_WAIT_SECONDS, ticks
from blurguard.files.stamp import FileStamp, stamp_at
from blurguard.watch.inbox import ChangeType, InboxObserver, has_final_name, is_being_written, scan_folder
from tests.children import look_at_inbox, watch_without_handles, write_at_once, write_slowly
from tests.conftest import Starter

ODD = ["é ü.jpg", "two\nlines.jpg", os.fsdecode(b"latin \xe9\xff.jpg"), " .jpg", "-rf.jpg", "n" * 251 + ".jpg"]
HANDLES = Path("/proc/self/fd")
leases = pytest.mark.skipif(not hasattr(fcntl, "F_SETLEASE"), reason="the system does not tell of writers")


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "inbox"
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)  # Python's own removal gives in before so deep trees do


@pytest.fixture
def sigio_ignored() -> Iterator[None]:
    """What the daemon does: the system tells of writers that come while we have a lease."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGIO, before)


# Names.


@pytest.mark.parametrize("name", [*ODD, "a.jpg", "a", "sub/a.jpg", "part.jpg", "a.part.jpg", "tmp/a.jpg", "a~b.jpg"])
def test_final_names(name: str) -> None:
    assert has_final_name(Path(name))


@pytest.mark.parametrize(
    "name",
    [
        ".a.jpg", "~a.jpg", "a.jpg~", "a.jpg.part", "a.PART", "a.jpg.crdownload", "a.tmp", "a.TMP", "a.temp",
        "a.partial", "a.filepart", "a.upload", "a.opdownload", "a.download", ".hidden/a.jpg", "sub/.hidden/a.jpg",
        "a.part/b.jpg", "~sub/a.jpg", "sub~/a.jpg",
    ],
)  # fmt: skip
def test_names_of_what_is_not_complete_or_not_ours(name: str) -> None:
    assert not has_final_name(Path(name))


# Walking.


def found(folder: Path) -> dict[str, FileStamp | None]:
    pairs = [(str(path.relative_to(folder)), stamp) for path, stamp in scan_folder(folder)]
    assert len(pairs) == len(dict(pairs)), "told twice"
    return dict(pairs)


def test_every_file_is_found_with_its_stamp(inbox: Path) -> None:
    files = [put(inbox / name, name.encode("utf-8", "surrogateescape")) for name in [*ODD, "sub/a.jpg", "sub/b/a.jpg"]]
    assert found(inbox) == {str(path.relative_to(inbox)): FileStamp.of(path) for path in files}


def test_what_is_hidden_or_unfinished_is_not_found_nor_looked_into(inbox: Path) -> None:
    for name in (".a.jpg", ".git/a.jpg", "sub/.b/c/a.jpg", "a.part", "~a.jpg", "up.tmp/a.jpg"):
        put(inbox / name, b"")
    assert found(inbox) == {}


def test_links_are_not_followed_and_no_loop_is_endless(inbox: Path, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere/secret.jpg", b"")
    put(inbox / "sub/a.jpg", b"")
    (inbox / "file.jpg").symlink_to(tmp_path / "elsewhere/secret.jpg")
    (inbox / "folder").symlink_to(tmp_path / "elsewhere")
    (inbox / "sub/loop").symlink_to(inbox)
    (inbox / "circle.jpg").symlink_to("circle.jpg")
    (inbox / "broken.jpg").symlink_to("nowhere")
    assert list(found(inbox)) == ["sub/a.jpg"]


def test_a_folder_that_is_a_link_is_not_walked(inbox: Path, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere/secret.jpg", b"")
    (inbox / "folder").symlink_to(tmp_path / "elsewhere")
    assert list(scan_folder(inbox / "folder")) == []


@pytest.mark.parametrize("levels", [500, 1500])
def test_deep_trees_are_walked_to_their_end(inbox: Path, levels: int) -> None:
    folder = inbox
    for _ in range(levels):
        folder /= "d"
        folder.mkdir()
    put(folder / "a.jpg", b"")
    assert [path for path, _ in scan_folder(inbox)] == [folder / "a.jpg"]


def test_a_folder_that_cannot_be_listed_is_told(inbox: Path) -> None:
    put(inbox / "a.jpg", b"")
    name, levels = "n" * 250, 17  # a longer path than the system takes, even from root
    handle = os.open(inbox, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=handle)
        below = os.open(name, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(handle)
    walked = list(scan_folder(inbox))
    assert walked[0] == (inbox / "a.jpg", FileStamp.of(inbox / "a.jpg"))
    (folder, stamp), *more = walked[1:]
    assert folder.name == name and stamp is None and not more


def test_what_is_gone_or_is_no_folder_has_no_files(inbox: Path) -> None:
    assert list(scan_folder(inbox / "nowhere")) == []
    assert list(scan_folder(put(inbox / "a.jpg", b""))) == []


def test_what_goes_while_we_walk_is_left_out(inbox: Path) -> None:
    for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
        put(inbox / name, b"")
    walk = scan_folder(inbox)
    assert next(walk)[0] == inbox / "a.jpg"
    (inbox / "b.jpg").unlink()
    shutil.rmtree(inbox / "sub")
    assert list(walk) == []


def test_the_stamp_is_of_now_and_not_of_when_the_walk_began(inbox: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        put(inbox / name, b"")
    walk = scan_folder(inbox)
    next(walk)
    put(inbox / "b.jpg", b"more")
    assert list(walk) == [(inbox / "b.jpg", FileStamp.of(inbox / "b.jpg"))]


def test_only_regular_files_have_stamps(inbox: Path) -> None:
    file = put(inbox / "a.jpg", b"abc")
    assert stamp_at(file, file.parent) == FileStamp.of(file)
    (inbox / "link.jpg").symlink_to(file)
    os.mkfifo(inbox / "pipe.jpg")
    (inbox / "folder.jpg").mkdir()
    for name in ("link.jpg", "pipe.jpg", "folder.jpg", "nothing.jpg", "a.jpg/b.jpg", "nul\0.jpg", "n" * 300):
        assert stamp_at(inbox / name, inbox) is None
    assert found(inbox) == {"a.jpg": FileStamp.of(file)}


# Writers.


@leases
@pytest.mark.parametrize("mode", ["a", "r+", "w"])
@pytest.mark.usefixtures("sigio_ignored")
def test_a_writer_in_another_process_is_seen_until_it_closes(inbox: Path, start_python: Starter, mode: str) -> None:
    path = put(inbox / ODD[2], b"abc")
    assert is_being_written(path) is False
    writer = start_python(write_slowly, path, mode)
    assert writer.stdout and writer.stdin
    assert writer.stdout.readline() == "open\n"
    assert is_being_written(path) and is_being_written(path)
    writer.stdin.write("\n")
    writer.stdin.flush()
    assert writer.stdout.readline() == "closed\n"
    assert is_being_written(path) is False


@leases
@pytest.mark.usefixtures("sigio_ignored")
def test_a_writer_that_was_killed_is_none(inbox: Path, start_python: Starter) -> None:
    path = put(inbox / "a.jpg", b"abc")
    writer = start_python(write_slowly, path, "a")
    assert writer.stdout and writer.stdout.readline() == "open\n"
    assert is_being_written(path)
    writer.kill()
    writer.wait()
    assert is_being_written(path) is False


@leases
@pytest.mark.usefixtures("sigio_ignored")
def test_a_writer_in_this_process_is_seen_and_readers_are_not(inbox: Path) -> None:
    path = put(inbox / "a.jpg", b"abc")
    with path.open("ab"):
        assert is_being_written(path)
    with path.open("rb"):
        assert is_being_written(path) is False
    path.chmod(0o400)
    assert is_being_written(path) is False


@leases
@pytest.mark.usefixtures("sigio_ignored")
def test_nothing_is_held_afterwards(inbox: Path, start_python: Starter) -> None:
    path = put(inbox / "a.jpg", b"abc")
    handles = sorted(HANDLES.iterdir())
    with path.open("ab"):
        is_being_written(path)
    for _ in range(2000):
        assert is_being_written(path) is False
    is_being_written(inbox / "nothing")
    assert sorted(HANDLES.iterdir()) == handles
    # Against a lease, who does not want to wait would be refused.
    told, trouble = start_python(write_at_once, path).communicate(timeout=LONGEST_WAIT_SECONDS)
    assert told == "open\n", trouble


@leases
@pytest.mark.usefixtures("sigio_ignored")
def test_writers_come_while_we_look_and_neither_is_disturbed(inbox: Path) -> None:
    path, stop = put(inbox / "a.jpg", b""), threading.Event()
    trouble: list[OSError] = []

    def write() -> None:
        try:
            for _ in range(500):
                with path.open("ab") as file:
                    file.write(b"x")
        except OSError as error:
            trouble.append(error)
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not stop.is_set():
        is_being_written(path)
    writer.join()
    assert not trouble and path.stat().st_size == 500
    assert is_being_written(path) is False


def test_pipes_sockets_and_devices_hold_nobody_up(inbox: Path, start_python: Starter) -> None:
    os.mkfifo(inbox / "a.jpg")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as plug, contextlib.chdir(inbox):
        plug.bind("b.jpg")
        with contextlib.suppress(PermissionError):
            os.mknod("c.jpg", 0o600 | 0o020000, os.makedev(5, 0))  # the terminal: stat.S_IFCHR
        (inbox / "d.jpg").symlink_to("/dev/zero")
        told, trouble = start_python(look_at_inbox, inbox).communicate(timeout=LONGEST_WAIT_SECONDS)
    *looks, walked = told.splitlines()
    assert len(looks) == len(list(inbox.iterdir())) >= 3 and walked == "[]", trouble
    assert all(line.endswith(".jpg None None") for line in looks), looks


# Events.

Heard = list[tuple[ChangeType, str]]
POLLS = pytest.mark.parametrize("poll", [False, True], ids=["inotify", "polling"])


class Ear:
    """Hears of what is done in a folder."""

    def __init__(self, folder: Path, poll: bool) -> None:
        self._folder, self._poll, self._count = folder, poll, 0
        self._told: SimpleQueue[tuple[ChangeType, Path]] = SimpleQueue()
        self._events = InboxObserver(folder, lambda sign, path: self._told.put((sign, path)), poll)

    def __enter__(self) -> "Ear":
        assert self._events.start() == ""
        return self

    def __exit__(self, *_: object) -> None:
        self._events.stop()

    def heard(self) -> Heard:
        """Return what has been told since, up to now: until a file is told of that comes after all else.

        A poll may see that file and not, a moment before, what was done earlier elsewhere: the next one does.
        """
        signs: Heard = []
        for _ in range(1 + self._poll):
            self._count += 1
            mark = put(self._folder / f"mark-{self._count}", b"x")
            last = ChangeType.CHANGED if self._poll else ChangeType.COMPLETE
            while (told := self._told.get(timeout=LONGEST_WAIT_SECONDS)) != (last, mark):
                if not told[1].name.startswith("mark-"):
                    signs.append((told[0], str(told[1].relative_to(self._folder))))
        return signs


def of(action: Callable[[], object], inbox: Path) -> Heard:
    """Return what is heard, without polling, of an action."""
    with Ear(inbox, poll=False) as ear:
        ear.heard()
        action()
        return ear.heard()


def test_a_new_file_has_changed_until_it_is_closed(inbox: Path) -> None:
    with Ear(inbox, poll=False) as ear, (inbox / "a.jpg").open("wb") as file:
        assert set(ear.heard()) == {(ChangeType.CHANGED, "a.jpg")}
        for _ in range(3):
            file.write(b"x" * 10_000)
            file.flush()
            assert set(ear.heard()) == {(ChangeType.CHANGED, "a.jpg")}
        file.close()
        assert ear.heard() == [(ChangeType.COMPLETE, "a.jpg")]


@pytest.mark.parametrize("name", ODD)
def test_the_last_that_is_heard_of_a_written_file_is_that_it_is_complete(inbox: Path, name: str) -> None:
    heard = of(lambda: put(inbox / name, b"abc"), inbox)
    assert heard[-1] == (ChangeType.COMPLETE, name)
    assert set(heard[:-1]) == {(ChangeType.CHANGED, name)}


def test_a_file_that_is_renamed_into_the_inbox_is_complete_at_once(inbox: Path, tmp_path: Path) -> None:
    file = put(tmp_path / "a.jpg", b"abc")
    assert of(lambda: file.rename(inbox / "a.jpg"), inbox) == [(ChangeType.COMPLETE, "a.jpg")]


def test_a_file_that_gets_its_final_name_is_complete_and_the_old_name_gone(inbox: Path) -> None:
    file = put(inbox / "a.part", b"abc")
    renamed = [(ChangeType.GONE, "a.part"), (ChangeType.COMPLETE, "a.jpg")]
    assert of(lambda: file.rename(inbox / "a.jpg"), inbox) == renamed


def test_a_file_that_replaces_another_is_complete(inbox: Path, tmp_path: Path) -> None:
    put(inbox / "a.jpg", b"old")
    file = put(tmp_path / "a.jpg", b"abc")
    assert of(lambda: file.replace(inbox / "a.jpg"), inbox) == [(ChangeType.COMPLETE, "a.jpg")]


def test_a_file_that_is_taken_away_is_gone(inbox: Path, tmp_path: Path) -> None:
    first, second = put(inbox / "a.jpg", b"abc"), put(inbox / "b.jpg", b"abc")
    assert of(first.unlink, inbox) == [(ChangeType.GONE, "a.jpg")]
    assert of(lambda: second.rename(tmp_path / "b.jpg"), inbox) == [(ChangeType.GONE, "b.jpg")]


def test_a_second_name_for_a_file_is_a_change(inbox: Path, tmp_path: Path) -> None:
    file = put(tmp_path / "a.jpg", b"abc")
    assert of(lambda: os.link(file, inbox / "a.jpg"), inbox) == [(ChangeType.CHANGED, "a.jpg")]


def test_a_folder_is_told_of_before_what_is_in_it(inbox: Path) -> None:
    heard = of(lambda: put(inbox / "sub/b/a.jpg", b"abc"), inbox)
    assert heard[0] == (ChangeType.FOLDER, "sub")
    assert {path for _, path in heard} <= {"sub", "sub/b", "sub/b/a.jpg"}


def test_new_folders_are_listened_to_as_well(inbox: Path) -> None:
    with Ear(inbox, poll=False) as ear:
        (inbox / "sub/b").mkdir(parents=True)
        ear.heard()
        put(inbox / "sub/b/a.jpg", b"abc")
        assert ear.heard()[-1] == (ChangeType.COMPLETE, "sub/b/a.jpg")


def test_a_tree_that_is_moved_into_the_inbox_is_a_folder_and_is_listened_to(inbox: Path, tmp_path: Path) -> None:
    put(tmp_path / "tree/sub/a.jpg", b"abc")
    with Ear(inbox, poll=False) as ear:
        (tmp_path / "tree").rename(inbox / "tree")
        heard = ear.heard()
        assert heard[0] == (ChangeType.FOLDER, "tree")
        put(inbox / "tree/sub/b.jpg", b"abc")
        assert ear.heard()[-1] == (ChangeType.COMPLETE, "tree/sub/b.jpg")


def test_a_tree_that_is_renamed_is_gone_and_a_folder_and_is_listened_to(inbox: Path) -> None:
    put(inbox / "tree/sub/a.jpg", b"abc")
    with Ear(inbox, poll=False) as ear:
        (inbox / "tree").rename(inbox / "other")
        assert ear.heard()[:2] == [(ChangeType.GONE, "tree"), (ChangeType.FOLDER, "other")]
        put(inbox / "other/sub/b.jpg", b"abc")
        assert ear.heard()[-1] == (ChangeType.COMPLETE, "other/sub/b.jpg")


def test_a_tree_that_is_moved_out_is_gone_and_so_is_all_that_is_still_heard_of_it(inbox: Path, tmp_path: Path) -> None:
    put(inbox / "tree/a.jpg", b"abc")
    with Ear(inbox, poll=False) as ear:
        (inbox / "tree").rename(tmp_path / "tree")
        assert ear.heard() == [(ChangeType.GONE, "tree")]
        put(tmp_path / "tree/b.jpg", b"abc")  # watchdog goes on listening there, under the old name
        assert all(stamp_at(inbox / path, inbox) is None for _, path in ear.heard())


@POLLS
def test_reading_makes_no_sign(inbox: Path, poll: bool) -> None:
    file = put(inbox / "sub/a.jpg", b"abc")
    with Ear(inbox, poll) as ear:
        file.read_bytes()
        list(scan_folder(inbox))
        is_being_written(file)
        assert ear.heard() == []


@POLLS
def test_what_links_lead_to_is_not_listened_to(inbox: Path, tmp_path: Path, poll: bool) -> None:
    put(tmp_path / "elsewhere/old.jpg", b"abc")
    (inbox / "before").symlink_to(tmp_path / "elsewhere")
    for name in ("loop", "loop2"):
        (inbox / name).symlink_to(inbox)
    with Ear(inbox, poll) as ear:
        (inbox / "later").symlink_to(tmp_path / "elsewhere")
        ear.heard()
        put(tmp_path / "elsewhere/new.jpg", b"abc")
        assert ear.heard() == []


def test_polling_tells_of_all_that_happens_and_calls_nothing_complete(inbox: Path, tmp_path: Path) -> None:
    changed, renamed, goes, leaves = (put(inbox / f"{name}.jpg", b"abc") for name in ("ch", "re", "go", "le"))
    put(tmp_path / "tree/sub/a.jpg", b"abc")
    with Ear(inbox, poll=True) as ear:
        put(changed, b"more")
        put(inbox / ODD[2], b"abc")
        put(inbox / "sub/b/a.jpg", b"abc")
        renamed.rename(inbox / "final.jpg")
        (tmp_path / "tree").rename(inbox / "tree")
        heard = set(ear.heard())
        assert {(ChangeType.CHANGED, "ch.jpg"), (ChangeType.CHANGED, ODD[2])} <= heard
        assert {(ChangeType.FOLDER, "sub"), (ChangeType.CHANGED, "sub/b/a.jpg"), (ChangeType.FOLDER, "tree")} <= heard
        assert {(ChangeType.GONE, "re.jpg"), (ChangeType.CHANGED, "final.jpg")} <= heard
        goes.unlink()
        leaves.rename(tmp_path / "le.jpg")
        heard |= (gone := set(ear.heard()))
        assert {(ChangeType.GONE, "go.jpg"), (ChangeType.GONE, "le.jpg")} <= gone
        assert {path for _, path in gone} == {"go.jpg", "le.jpg"}
        # What seems renamed may be a new file that got the inode of one just deleted.
        assert ChangeType.COMPLETE not in {sign for sign, _ in heard}


@POLLS
def test_where_nothing_can_be_watched_the_reason_is_told_and_nothing_runs_on(inbox: Path, poll: bool) -> None:
    threads, handles = threading.active_count(), len(list(HANDLES.iterdir()))
    events = InboxObserver(inbox / "nowhere", lambda *_: None, poll)
    for _ in range(3):
        assert "nowhere: cannot be watched: No such file" in events.start()
    events.stop()
    for _ in ticks():
        if (threading.active_count(), len(list(HANDLES.iterdir()))) == (threads, handles):
            break


def test_a_system_without_handles_is_a_reason_as_well(inbox: Path, start_python: Starter) -> None:
    told, trouble = start_python(watch_without_handles, inbox).communicate(timeout=LONGEST_WAIT_SECONDS)
    assert ": cannot be watched: " in told, trouble


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # watchdog leaves its listings open
@POLLS
def test_folders_nested_too_deeply_to_be_watched_are_a_reason_as_well(inbox: Path, poll: bool) -> None:
    folder = inbox
    for _ in range(1500):
        folder /= "d"
        folder.mkdir()
    events = InboxObserver(inbox, lambda *_: None, poll)
    why = events.start()
    events.stop()
    assert why == "" or "cannot be watched" in why


@POLLS
def test_nothing_is_told_once_it_has_ended(inbox: Path, poll: bool) -> None:
    ear = Ear(inbox, poll)
    with ear:
        ear.heard()
    threads = threading.active_count()
    put(inbox / "a.jpg", b"abc")
    assert ear._told.empty()
    InboxObserver(inbox, lambda *_: None, poll).stop()
    assert threading.active_count() == threads
