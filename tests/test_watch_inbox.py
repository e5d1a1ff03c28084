"""``blurguard watch``: whatever happens in the inbox, each final version of a file comes out once, whole and hidden."""

import contextlib
import ctypes
import itertools
import json
import os
import shutil
import signal
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.faults.commands import blurguard, put
from bench.faults.kills import make_films, ticks
from blurguard.batch.journal import FileState
from blurguard.files.stamp import FileStamp
from blurguard.watch.settling import FileProbe, SettlingQueue
from tests.breakages import VARIABLE
from tests.clips import STEP, Clip, every, make
from tests.commands import blank, face, names, small_disk
from tests.drop import BROKEN_PROGRAM, HIDING, Drop, hidden

ONE, TWO, THREE = face(), face(turn=20), face(turn=40)
DAMAGED = ONE[: len(ONE) // 2]
ODD_NAMES = (
    "ünï ☃.jpg", "two\nlines.jpg", "caf\udce9.jpg", "-n.jpg", "[red]x[\x1b]é.jpg", f"{'n' * 251}.jpg",
    f"caf\udce9\n/{'é' * 127}/a.jpg",
)  # fmt: skip
QUICK_RESCAN = ("--rescan", 0.2)
COUNT = itertools.count()
IN_OPEN, HEADER = 0x20, struct.Struct("iIII")  # of Linux' inotify


@dataclass
class Spot:
    """A folder of its own in a drop folder that several tests share."""

    drop: Drop
    at: Path

    @property
    def inbox(self) -> Path:
        return self.drop.inbox / self.at

    @property
    def outbox(self) -> Path:
        return self.drop.outbox / self.at

    def state(self, name: str) -> FileState | None:
        return state_of(self.drop, self.at / name)

    def told(self, name: str) -> list[str]:
        """What the daemon has said about a file that was dropped before this."""
        self.pass_by()
        return told(self.drop, self.at / name)

    def settle(self) -> None:
        self.drop.settle(self.at)

    def pass_by(self) -> None:
        """Wait until files that were heard of before this would have been taken, had they been complete, and are done.

        Another file comes, by a link: nobody closes it, so it has to settle, and there is one worker.
        """
        name = f"passing {next(COUNT)}.png"
        (self.drop.inbox / name).hardlink_to(put(self.drop.inbox.parent / name, blank(".png")))
        self.drop.until(lambda: told(self.drop, Path(name)))


@dataclass
class Looks:
    """Counts how often a folder and the files in it are opened, as the system tells."""

    folder: Path
    opened: Counter[str] = field(default_factory=Counter)

    def __enter__(self) -> "Looks":
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._libc.inotify_add_watch(self._handle, os.fsencode(self.folder), IN_OPEN) >= 0
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def at_least(self, number: int) -> bool:
        """Whether the folder has been listed so often; not to be called by a test that lists it itself."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._handle, 1 << 16)
            while data:
                length = HEADER.unpack_from(data)[3]
                name = data[HEADER.size : HEADER.size + length].rstrip(b"\0")
                self.opened[os.fsdecode(name)] += 1
                data = data[HEADER.size + length :]
        return self.opened[""] >= number


@contextlib.contextmanager
def looked_at(target: Path) -> Iterator[list[bytes]]:
    """Look at a name all the time meanwhile; gives what was there, b"" for nothing, as often as it changed."""
    seen: list[bytes] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            data = target.read_bytes() if target.exists() else b""
            if seen[-1:] != [data]:
                seen.append(data)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def state_of(drop: Drop, name: Path) -> FileState | None:
    row = drop.rows().get(name)
    return row.state if row else None


def told(drop: Drop, name: Path) -> list[str]:
    return [str(line["status"]) for line in drop.lines("file") if line["source"] == str(drop.inbox / name)]


def rescanned(drop: Drop, folder: Path) -> Counter[str]:
    """Wait for whole looks at the inbox; returns what was opened in one of its folders."""
    with Looks(folder) as looks:
        drop.until(lambda: looks.at_least(4))
    return looks.opened


def note_on(drop: Drop, name: str) -> Path:
    return drop.outbox / ".blurguard" / "failed" / f"{name}.json"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drop]:
    """Give a daemon that looks at the inbox once only: the rest it must hear of."""
    with Drop(tmp_path_factory.mktemp("shared")) as drop:
        yield drop


@pytest.fixture
def spot(shared: Drop, request: pytest.FixtureRequest) -> Spot:
    """Return a folder that is being watched."""
    spot = Spot(shared, Path("".join(c if c.isalnum() else "_" for c in request.node.name)))
    put(spot.inbox / "first.jpg", ONE)
    spot.settle()
    (spot.inbox / "first.jpg").unlink()
    (spot.outbox / "first.jpg").unlink()
    return spot


# Writers.


def test_a_slow_writer_that_keeps_the_file_open_is_waited_for(spot: Spot) -> None:
    third = len(TWO) // 3
    with (spot.inbox / "a.jpg").open("wb", buffering=0) as file:
        for start in (0, third):
            file.write(TWO[start : start + third])
            spot.pass_by()
            assert spot.state("a.jpg") is None and not (spot.outbox / "a.jpg").exists()
        file.write(TWO[2 * third :])
    spot.settle()
    assert (spot.outbox / "a.jpg").read_bytes() == hidden(TWO)
    assert spot.told("a.jpg") == ["done"]


def test_a_writer_that_closes_the_file_between_chunks_ends_with_the_whole_of_it(spot: Spot) -> None:
    target = spot.outbox / "a.jpg"
    with looked_at(target) as seen:
        for size in (700, len(TWO) // 2, len(TWO)):
            with (spot.inbox / "a.jpg").open("ab") as file:
                file.write(TWO[file.tell() : size])
            spot.pass_by()
    assert target.read_bytes() == hidden(TWO)
    assert seen in ([b"", hidden(TWO)], [hidden(TWO)])
    assert spot.told("a.jpg")[-1] == "done" and spot.told("a.jpg").count("done") == 1
    assert not note_on(spot.drop, f"{spot.at}/a.jpg").exists()


@pytest.mark.parametrize("before", ["a.jpg.part", ".a.jpg.x", "../../outside.jpg", "~a.jpg", "a.jpg.crdownload"])
def test_a_writer_that_renames_into_place_is_heard_at_once(spot: Spot, before: str) -> None:
    put(spot.inbox / before, TWO)
    spot.pass_by()
    assert names(spot.outbox) == []
    (spot.inbox / before).rename(spot.inbox / "a.jpg")
    spot.settle()
    assert (spot.outbox / "a.jpg").read_bytes() == hidden(TWO)
    assert spot.told("a.jpg") == ["done"] and names(spot.outbox) == ["a.jpg"]


def test_a_tree_that_is_copied_or_moved_in_and_a_folder_that_is_renamed(spot: Spot, tmp_path: Path) -> None:
    tree = {"a.jpg": ONE, "b/c.jpg": TWO, "b/d/e/f.jpg": THREE, "g.jpg": ONE}
    for name, data in tree.items():
        put(tmp_path / "tree" / name, data)
    shutil.copytree(tmp_path / "tree", spot.inbox / "copied")
    (tmp_path / "tree").rename(spot.inbox / "moved")
    spot.settle()
    (spot.inbox / "moved" / "b").rename(spot.inbox / "renamed")
    spot.settle()
    wanted = {f"{root}/{name}": data for root in ("copied", "moved") for name, data in tree.items()}
    wanted |= {"renamed/c.jpg": TWO, "renamed/d/e/f.jpg": THREE}
    assert names(spot.outbox) == sorted(wanted)
    assert all((spot.outbox / name).read_bytes() == hidden(data) for name, data in wanted.items())
    assert all(spot.told(name) == ["done"] for name in wanted)


def test_files_that_events_got_lost_of_are_found(tmp_path: Path) -> None:
    """300 before the start, and 300 later, on a system that has run out of watches."""
    early, late = (["/".join((when, f"{i % 7}", f"{i}.png")) for i in range(300)] for when in ("early", "late"))
    for name in early:
        put(tmp_path / "inbox" / name, blank(".png"))
    broken = {VARIABLE: "no watches are left"}
    with Drop(tmp_path, *QUICK_RESCAN, "--jobs", 2, program=BROKEN_PROGRAM, env=broken) as drop:
        assert any("no watches are left" in note for note in drop.notes())
        drop.settle()
        for name in late:
            put(drop.inbox / name, blank(".png"))
        drop.settle()
        assert names(drop.outbox) == sorted(early + late)
        drop.until(lambda: len(drop.lines("file")) >= 600)
        assert Counter(line["source"] for line in drop.lines("file")).most_common(1)[0][1] == 1
        wanted = hidden(blank(".png"), ".png")
        assert all((drop.outbox / name).read_bytes() == wanted for name in early + late)


def test_a_folder_that_watchdog_does_not_see_into_is_looked_through(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=10m") as disk, Drop(tmp_path, *QUICK_RESCAN) as drop:
        put(drop.inbox / "sub" / "a.jpg", ONE)
        drop.settle()
        subprocess.run(["mount", "--bind", str(disk), str(drop.inbox / "sub")], check=True)
        try:
            put(drop.inbox / "sub" / "b.jpg", TWO)
            drop.settle()
        finally:
            drop.stop()
            subprocess.run(["umount", str(drop.inbox / "sub")], check=True)
        assert (drop.outbox / "sub" / "b.jpg").read_bytes() == hidden(TWO)


def test_polling_hears_of_everything_as_well(tmp_path: Path) -> None:
    with Drop(tmp_path, "--poll") as drop:
        put(drop.inbox / "a.jpg", ONE)
        put(drop.inbox / "sub" / "b.jpg", ONE)
        put(drop.inbox / "c.jpg.part", TWO)
        drop.until((drop.outbox / "a.jpg").exists)
        drop.settle()
        (drop.inbox / "c.jpg.part").rename(drop.inbox / "c.jpg")
        put(drop.inbox / "a.jpg", TWO)
        drop.settle()
        put(drop.inbox / "bad.jpg", DAMAGED)
        drop.until(note_on(drop, "bad.jpg").exists)
        (drop.inbox / "bad.jpg").unlink()
        drop.until(lambda: not note_on(drop, "bad.jpg").exists())
        assert names(drop.outbox) == ["a.jpg", "c.jpg", "sub/b.jpg"]
        assert (drop.outbox / "a.jpg").read_bytes() == hidden(TWO) == (drop.outbox / "c.jpg").read_bytes()
        drop.until(lambda: told(drop, Path("a.jpg")) == ["done", "done"])


# Changes on the way.


def test_what_is_deleted_while_it_waits_or_is_worked_on_is_forgotten(spot: Spot) -> None:
    wanted = ["a.jpg", "b.jpg", "c.jpg"]
    with spot.drop.frozen():
        for name in wanted:
            put(spot.inbox / name, ONE)
        spot.drop.until(lambda: spot.state("c.jpg") is FileState.QUEUED)  # one is worked on, and one is at hand
        assert [spot.state(name) for name in wanted] == [FileState.WORKING, FileState.QUEUED, FileState.QUEUED]
        for name in wanted:
            (spot.inbox / name).unlink()
        spot.drop.until(lambda: spot.state("c.jpg") is None)
    spot.pass_by()
    assert [spot.state(name) for name in wanted] == [None, None, None]
    assert names(spot.outbox) == [] and not any(spot.told(name) for name in wanted)
    assert not note_on(spot.drop, str(spot.at)).with_suffix("").exists()


def test_what_is_rewritten_while_it_is_worked_on_comes_out_as_it_is_in_the_end(spot: Spot) -> None:
    with looked_at(spot.outbox / "a.jpg") as seen:
        with spot.drop.frozen():
            put(spot.inbox / "a.jpg", ONE)
            spot.drop.until(lambda: spot.state("a.jpg") is FileState.WORKING)
            put(spot.inbox / "a.jpg", TWO)
            put(spot.inbox / "a.jpg.part", THREE).replace(spot.inbox / "a.jpg")
        spot.settle()
    assert seen in ([b"", hidden(THREE)], [hidden(THREE)])
    assert spot.told("a.jpg") == ["done"]


def test_what_is_rewritten_in_the_middle_of_being_read_comes_out_as_it_is_in_the_end(
    spot: Spot, tmp_path: Path
) -> None:
    long = make(Clip(size=(320, 240), times=every(STEP, 500), audio=()), tmp_path, "long").read_bytes()
    film = (make_films(tmp_path, 1) / "00.mp4").read_bytes()
    scratch = spot.drop.outbox / ".blurguard" / "scratch"
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"):  # one that was done before it could be caught proves nothing
        with looked_at(spot.outbox / name) as seen:
            put(spot.inbox / name, long)
            for _ in ticks():
                if any(path.is_file() for path in scratch.rglob("*")):
                    break
            with spot.drop.frozen():
                # One whose result stands there already was read to its end before.
                caught = spot.state(name) is FileState.WORKING and not (spot.outbox / name).exists()
                put(spot.inbox / name, film)
            spot.settle()
        assert (spot.outbox / name).read_bytes() == hidden(film, ".mp4")
        if caught:
            break
    if not caught:
        pytest.skip("each was done before it could be caught")
    assert set(seen) <= {b"", hidden(film, ".mp4")}
    assert spot.told(name) == ["done"]


def test_other_times_and_permissions_of_what_is_done_change_nothing(tmp_path: Path) -> None:
    with Drop(tmp_path, *QUICK_RESCAN) as drop:
        source, target = put(drop.inbox / "a.jpg", ONE), drop.outbox / "a.jpg"
        drop.settle()
        before = target.stat()
        source.chmod(0o600)
        drop.settle()
        source.touch()
        drop.settle()
        put(source, ONE)
        drop.settle()
        after = target.stat()
        assert (after.st_ino, after.st_mtime_ns, after.st_ctime_ns) == (
            before.st_ino, before.st_mtime_ns, before.st_ctime_ns
        )  # fmt: skip
        assert told(drop, Path("a.jpg")) == ["done"]


def test_the_same_content_by_another_name_is_another_file(spot: Spot) -> None:
    for name in ("a.jpg", "b.jpg", "sub/a.jpg"):
        put(spot.inbox / name, ONE)
        spot.settle()
    assert names(spot.outbox) == ["a.jpg", "b.jpg", "sub/a.jpg"]
    assert {(spot.outbox / name).read_bytes() for name in names(spot.outbox)} == {hidden(ONE)}


def test_a_new_version_of_what_is_done_replaces_the_result_in_one_step(spot: Spot) -> None:
    put(spot.inbox / "a.jpg", ONE)
    spot.settle()
    with looked_at(spot.outbox / "a.jpg") as seen:
        put(spot.inbox / "a.jpg.part", TWO).replace(spot.inbox / "a.jpg")
        spot.settle()
        put(spot.inbox / "a.jpg", THREE)
        spot.settle()
    assert [data for data in seen if data != hidden(ONE)] == [hidden(TWO), hidden(THREE)]
    assert spot.told("a.jpg") == ["done"] * 3


def test_what_is_dropped_again_after_its_result_was_taken_comes_out_again(spot: Spot) -> None:
    for number in range(2):
        put(spot.inbox / "a.jpg", ONE)
        spot.settle()
        spot.drop.until((spot.outbox / "a.jpg").exists)
        (spot.outbox / "a.jpg").rename(spot.drop.inbox.parent / f"taken {number}.jpg")
    assert spot.told("a.jpg") == ["done", "done"]


def test_a_result_that_was_taken_does_not_come_back(tmp_path: Path) -> None:
    with Drop(tmp_path, *QUICK_RESCAN) as drop:
        put(drop.inbox / "a.jpg", ONE)
        drop.settle()
        (drop.outbox / "a.jpg").unlink()
        rescanned(drop, drop.inbox)
        drop.restart()
        rescanned(drop, drop.inbox)
        assert names(drop.outbox) == [] and drop.lines("file") == []
        drop.kill()
        drop.start()
        rescanned(drop, drop.inbox)
        assert names(drop.outbox) == [] and drop.lines("file") == []


# What is none of our business.


def test_links_are_not_followed(spot: Spot, tmp_path: Path) -> None:
    put(tmp_path / "outside" / "a.jpg", ONE)
    put(spot.inbox / "real" / "a.jpg", TWO)
    (spot.inbox / "file.jpg").symlink_to(tmp_path / "outside" / "a.jpg")
    (spot.inbox / "beside.jpg").symlink_to("real/a.jpg")
    (spot.inbox / "folder").symlink_to(tmp_path / "outside")
    (spot.inbox / "real" / "loop").symlink_to("..")
    (spot.inbox / "broken.jpg").symlink_to("nowhere")
    os.mkfifo(spot.inbox / "pipe.jpg")
    spot.pass_by()
    put(tmp_path / "outside" / "b.jpg", ONE)
    spot.pass_by()
    assert names(spot.outbox) == ["real/a.jpg"]
    assert [name for name in spot.drop.rows() if spot.at in name.parents] == [
        spot.at / "first.jpg",
        spot.at / "real/a.jpg",
    ]


def test_a_file_that_becomes_a_link_while_it_waits_is_forgotten(spot: Spot, tmp_path: Path) -> None:
    put(tmp_path / "secret.jpg", TWO)
    with spot.drop.frozen():
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            put(spot.inbox / name, ONE)
        spot.drop.until(lambda: spot.state("c.jpg") is FileState.QUEUED)
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            (spot.inbox / f".{name}").symlink_to(tmp_path / "secret.jpg")
            (spot.inbox / f".{name}").replace(spot.inbox / name)
    spot.pass_by()
    assert names(spot.outbox) == []


def test_what_is_no_picture_is_looked_into_once(tmp_path: Path) -> None:
    with Drop(tmp_path, *QUICK_RESCAN) as drop:
        (drop.inbox / "sub").mkdir()
        with Looks(drop.inbox / "sub") as looks:
            put(tmp_path / "notes", b"no picture").rename(drop.inbox / "sub" / "notes.txt")
            drop.until(lambda: looks.at_least(1) and looks.opened["notes.txt"])
            drop.until(lambda: looks.at_least(4))
        assert rescanned(drop, drop.inbox / "sub")["notes.txt"] == 0
        assert drop.rows() == {} and names(drop.outbox) == [] and drop.lines("file") == []
        put(drop.inbox / "sub" / "notes.txt", ONE)  # a picture, whatever its name says
        drop.until((drop.outbox / "sub" / "notes.txt").exists)


# Failures.


def test_what_fails_is_tried_again_only_when_it_changes(tmp_path: Path) -> None:
    with Drop(tmp_path, *QUICK_RESCAN) as drop:
        put(drop.inbox / "sub" / "a.jpg", DAMAGED)
        drop.until(note_on(drop, "sub/a.jpg").exists)  # written once the failure is in the journal
        note = json.loads(note_on(drop, "sub/a.jpg").read_text("utf-8"))
        assert note["name"] == "sub/a.jpg" and note["error"] == "InputError" and note["size"] == len(DAMAGED)
        assert rescanned(drop, drop.inbox / "sub")["a.jpg"] == 0
        assert told(drop, Path("sub/a.jpg")) == ["failed"] and drop.status().failed == 1
        drop.restart()
        assert rescanned(drop, drop.inbox / "sub")["a.jpg"] == 0
        assert drop.lines("file") == [] and note_on(drop, "sub/a.jpg").exists()
        put(drop.inbox / "sub" / "a.jpg", TWO)
        drop.settle()
        assert (drop.outbox / "sub" / "a.jpg").read_bytes() == hidden(TWO)
        drop.until(lambda: not note_on(drop, "sub/a.jpg").exists())  # removed once the journal has it done
        assert drop.status().failed == 0


def test_a_note_goes_with_the_file_it_is_on(spot: Spot) -> None:
    put(spot.inbox / "a.jpg", DAMAGED)
    spot.settle()
    spot.drop.until(note_on(spot.drop, f"{spot.at}/a.jpg").exists)
    (spot.inbox / "a.jpg").unlink()
    spot.drop.until(lambda: spot.state("a.jpg") is None)
    assert not note_on(spot.drop, f"{spot.at}/a.jpg").exists()


def test_retry_failed_tries_once_more(tmp_path: Path) -> None:
    with Drop(tmp_path) as drop:
        put(drop.inbox / "a.jpg", DAMAGED)
        put(drop.inbox / "b.jpg", TWO)
        put(drop.outbox / "b.jpg", b"in the way")
        put(drop.inbox / "c.jpg", ONE)
        drop.settle()
        (drop.outbox / "b.jpg").unlink()
        drop.restart("--retry-failed")
        drop.settle()
        drop.until(lambda: told(drop, Path("b.jpg")) == ["done"] and told(drop, Path("a.jpg")) == ["failed"])
        assert told(drop, Path("c.jpg")) == [] and not note_on(drop, "b.jpg").exists()
        assert (drop.outbox / "b.jpg").read_bytes() == hidden(TWO)


def test_failed_originals_have_a_folder_and_come_back_from_it(tmp_path: Path) -> None:
    kept = tmp_path / "failed"
    with Drop(tmp_path, "--failed", kept) as drop:
        put(drop.inbox / "sub" / "a.jpg", DAMAGED)
        put(drop.inbox / "b.jpg", TWO)
        put(drop.outbox / "b.jpg", b"in the way")
        drop.until(lambda: drop.status().failed == 2)
        drop.until(lambda: names(kept) == ["b.jpg", "b.jpg.json", "sub/a.jpg", "sub/a.jpg.json"])
        assert (kept / "sub" / "a.jpg").read_bytes() == DAMAGED and names(drop.inbox) == []
        (drop.outbox / "b.jpg").unlink()
        drop.restart("--retry-failed")
        drop.until(lambda: (drop.outbox / "b.jpg").exists() and (kept / "sub" / "a.jpg").exists())
        drop.settle()
        assert names(kept) == ["sub/a.jpg", "sub/a.jpg.json"] and names(drop.inbox) == ["b.jpg"]
        assert (drop.status().failed, drop.status().done) == (1, 1)


# Names.


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_may_hold_anything(spot: Spot, name: str) -> None:
    put(spot.inbox / name, ONE)
    spot.settle()
    assert (spot.outbox / name).read_bytes() == hidden(ONE)
    put(spot.inbox / name, DAMAGED)
    spot.settle()
    assert spot.state(name) is FileState.FAILED and spot.told(name) == ["done", "failed"]
    (spot.inbox / name).unlink()
    spot.drop.until(lambda: spot.state(name) is not FileState.FAILED)
    assert names(spot.drop.outbox / ".blurguard" / "failed" / spot.at) == []
    assert (spot.outbox / name).read_bytes() == hidden(ONE)


def test_a_folder_that_cannot_be_listed_is_told_once(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root can list every folder")
    closed = put(tmp_path / "inbox" / "closed" / "a.jpg", ONE).parent
    closed.chmod(0)
    with Drop(tmp_path, *QUICK_RESCAN) as drop:
        rescanned(drop, drop.inbox)
        assert len([note for note in drop.notes() if "cannot be listed" in note]) == 1
        closed.chmod(0o700)
        drop.settle()
        assert (drop.outbox / "closed" / "a.jpg").read_bytes() == hidden(ONE)


# The outbox.


def test_a_folder_of_the_outbox_that_leads_out_of_it_is_refused(spot: Spot, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    spot.outbox.mkdir(exist_ok=True)
    (spot.outbox / "sub").symlink_to(tmp_path / "elsewhere")
    put(spot.inbox / "sub" / "a.jpg", ONE)
    put(spot.inbox / "sub" / "deeper" / "b.jpg", ONE)
    spot.settle()
    assert names(tmp_path / "elsewhere") == [] and not (tmp_path / "elsewhere" / "deeper").exists()
    assert spot.told("sub/a.jpg") == spot.told("sub/deeper/b.jpg") == ["failed"]
    assert "leads out of" in spot.drop.rows()[spot.at / "sub" / "a.jpg"].error


def test_files_in_the_way_are_replaced_only_when_that_is_asked_for(tmp_path: Path) -> None:
    with Drop(tmp_path) as drop:
        put(drop.outbox / "a.jpg", b"not ours")
        put(drop.inbox / "a.jpg", ONE)
        put(drop.inbox / "b.jpg", ONE)
        drop.settle()
        (drop.outbox / "b.jpg").write_bytes(b"edited")
        put(drop.inbox / "b.jpg", TWO)
        drop.settle()
        drop.until(lambda: told(drop, Path("b.jpg")) == ["done", "failed"])
        assert told(drop, Path("a.jpg")) == ["failed"]
        assert [(drop.outbox / name).read_bytes() for name in ("a.jpg", "b.jpg")] == [b"not ours", b"edited"]
        drop.restart("--overwrite", "--retry-failed")
        drop.settle()
        assert (drop.outbox / "a.jpg").read_bytes() == hidden(ONE)
        assert (drop.outbox / "b.jpg").read_bytes() == hidden(TWO)


def test_videos_come_out_beside_photos(tmp_path: Path) -> None:
    films = make_films(tmp_path / "films", 2)  # what the encoder of the third kind makes is not the same each time
    with Drop(tmp_path) as drop:
        for film in sorted(films.iterdir()):
            shutil.copy(film, drop.inbox)
        put(drop.inbox / "a.jpg", ONE)
        drop.settle()
        assert names(drop.outbox) == ["00.mp4", "01.mkv", "a.jpg"]
        for film in films.iterdir():
            assert (drop.outbox / film.name).read_bytes() == hidden(film.read_bytes(), film.suffix)


def test_a_batch_and_a_daemon_take_over_from_each_other(tmp_path: Path) -> None:
    def batch() -> list[str]:
        report = tmp_path / "report.jsonl"
        blurguard("dir", tmp_path / "inbox", "--out", tmp_path / "outbox", *HIDING, "-q", "--report", report)
        return [json.loads(line)["status"] for line in report.read_text("utf-8").splitlines()]

    with Drop(tmp_path, *QUICK_RESCAN) as drop:
        for name in ("a.jpg", "sub/b.jpg"):
            put(drop.inbox / name, ONE)
        drop.settle()
        drop.stop()
        assert batch() == ["skipped", "skipped"]
        put(drop.inbox / "c.jpg", TWO)
        assert sorted(batch()) == ["done", "skipped", "skipped"]
        drop.start()
        rescanned(drop, drop.inbox)
        assert drop.settled() and drop.lines("file") == [] and drop.status().done == 3


# Originals.


def test_originals_stay_unless_something_else_is_asked_for(spot: Spot) -> None:
    before = put(spot.inbox / "a.jpg", ONE).stat()
    spot.settle()
    after = (spot.inbox / "a.jpg").stat()
    assert (spot.inbox / "a.jpg").read_bytes() == ONE
    assert (after.st_ino, after.st_mtime_ns, after.st_mode) == (before.st_ino, before.st_mtime_ns, before.st_mode)


def test_originals_are_moved_to_the_same_names(tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    with Drop(tmp_path, "--originals", "move", "--move-to", moved) as drop:
        put(drop.inbox / "sub" / "a.jpg", ONE)
        put(drop.inbox / "bad.jpg", DAMAGED)
        drop.until((moved / "sub" / "a.jpg").exists)
        put(drop.inbox / "sub" / "a.jpg", TWO)
        drop.until((moved / "sub" / "a~2.jpg").exists)
        drop.settle()
        assert names(moved) == ["sub/a.jpg", "sub/a~2.jpg"] and names(drop.inbox) == ["bad.jpg"]
        assert [(moved / name).read_bytes() for name in names(moved)] == [ONE, TWO]
        assert (drop.outbox / "sub" / "a.jpg").read_bytes() == hidden(TWO)
        assert (moved / "sub").stat().st_mode & 0o777 == 0o700


def test_originals_are_deleted_but_not_those_that_failed(tmp_path: Path) -> None:
    with Drop(tmp_path, "--originals", "delete") as drop:
        put(drop.inbox / "sub" / "a.jpg", ONE)
        put(drop.inbox / "bad.jpg", DAMAGED)
        drop.until(lambda: names(drop.inbox) == ["bad.jpg"] and drop.settled())
        assert (drop.outbox / "sub" / "a.jpg").read_bytes() == hidden(ONE)
        (drop.outbox / "sub" / "a.jpg").unlink()
        put(drop.inbox / "sub" / "a.jpg", ONE)  # of the same content, but its result is gone
        drop.until(lambda: names(drop.inbox) == ["bad.jpg"] and drop.settled())
        assert (drop.outbox / "sub" / "a.jpg").read_bytes() == hidden(ONE)


def test_originals_that_were_done_before_are_deleted_when_that_is_asked_for_later(tmp_path: Path) -> None:
    with Drop(tmp_path) as drop:
        put(drop.inbox / "a.jpg", ONE)
        put(drop.inbox / "b.jpg", ONE)
        drop.settle()
        (drop.outbox / "b.jpg").unlink()
        drop.restart("--originals", "delete")
        drop.until(lambda: not (drop.inbox / "a.jpg").exists())
        drop.settle()
        assert names(drop.inbox) == ["b.jpg"]  # it may be the last there is


@pytest.mark.parametrize("policy", [("delete",), ("move", "--move-to", "MOVED")])
def test_a_version_that_comes_while_the_one_before_is_cleared_away_is_not_lost(
    tmp_path: Path, policy: tuple[str, ...]
) -> None:
    """Both between the result and the removal, and a little before and after, as it happens."""
    moved = tmp_path / "moved"
    with Drop(tmp_path, "--originals", *(str(moved) if word == "MOVED" else word for word in policy)) as drop:
        for number in range(10):
            name = f"{number}.jpg"
            put(drop.inbox / name, ONE)
            for _ in ticks():
                if (drop.outbox / name).exists():
                    break
            put(tmp_path / "next.jpg", TWO).replace(drop.inbox / name)
            drop.until(lambda: names(drop.inbox) == [] and drop.settled())
            assert (drop.outbox / name).read_bytes() == hidden(TWO)
        kept = [path.read_bytes() for path in moved.rglob("*.jpg")]
        assert kept.count(TWO) == (0 if policy == ("delete",) else 10) and set(kept) <= {ONE, TWO}


# The inbox itself.


def test_an_inbox_that_is_removed_and_made_again_is_heard_of_again(tmp_path: Path) -> None:
    settings = put(tmp_path / "settings.toml", b"[watch]\nrescan = 0.2\n")
    usual = ("--log-json", "--settle", "0.2", "--jobs", "1", "--min-free", "0", *HIDING)
    with Drop(tmp_path, "--config", settings, usual=usual) as drop:
        put(drop.inbox / "sub" / "a.jpg", ONE)
        drop.settle()
        shutil.rmtree(drop.inbox)
        drop.until(lambda: drop.lines("state")[-1]["state"] == "paused")
        assert drop.lines("state")[-1]["why"] == f"{drop.inbox} is gone"
        put(drop.inbox / "sub" / "b.jpg", TWO)
        drop.settle()
        assert drop.lines("state")[-1]["state"] == "running"
        settings.write_text("[watch]\nrescan = 3600\n", "utf-8")
        drop.process.send_signal(signal.SIGHUP)
        drop.until(lambda: "the settings have been read again" in drop.notes())
        for number in range(3):  # the first may still be found by the last look; the others have to be heard of
            put(drop.inbox / f"{number}.jpg", ONE)
            drop.settle()
        assert names(drop.outbox) == ["0.jpg", "1.jpg", "2.jpg", "sub/a.jpg", "sub/b.jpg"]


# The clock, which nobody can set here: the class that reads it gets any.

TIMES = st.floats(-1e9, 1e9, allow_nan=False)
FILE = Path("a.jpg")


@given(
    st.lists(st.tuples(st.sampled_from(["written", "closed", "looked", "worked"]), TIMES), max_size=30),
    TIMES,
    st.floats(0, 60),
)
def test_whatever_the_clock_does_the_final_version_is_taken_once(
    steps: list[tuple[str, float]], end: float, settle: float
) -> None:
    intake, taken, version, working = SettlingQueue(settle), [], 0, False

    def look(now: float) -> None:
        for path in intake.pop_settled(now, lambda _: FileProbe(FileStamp(version))):
            intake.enqueue(path)

    for what, now in [("written", 0.0), *steps]:
        if what in ("written", "closed"):
            version += 1
            intake.update(FILE, FileStamp(version), now, complete=what == "closed")
        look(now)
        if what == "worked":
            if working:
                intake.release(FILE)
            working = intake.assign() is not None
            taken += [version] * working
    if working:
        intake.release(FILE)
    for now in (end, end + settle, end + 3 * settle + 1):
        look(now)
        if intake.assign() is not None:
            taken.append(version)
            intake.release(FILE)
    assert taken[-1] == version and len(set(taken)) == len(taken)
    assert FILE not in intake
