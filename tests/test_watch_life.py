"""A drop folder's daemon in good days and bad: signals, settings, workers that fail, disks that fill."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from bench.faults.commands import blurguard, environment, put
from bench.faults.kills import LONGEST_WAIT_SECONDS
from blurguard import Anonymizer, Settings
from blurguard.batch.journal import FileState
from blurguard.watch.health import DaemonState, health_file
from blurguard.watch.settling import MAX_FILES
from tests.children import program, run_daemon_with, run_without_options
from tests.commands import encoded, face, names, small_disk
from tests.drop import PROGRAM, USUAL, Drop, hidden
from tests.test_offline import GUARD, without_network
from tests.workers import TROUBLE, crashing, deaf, dying, hanging, raising, waiting

CALM = encoded(Image.new("RGB", (32, 32), (90, 120, 150)), ".png")
TROUBLING = encoded(Image.new("RGB", (32, 32), (TROUBLE, 120, 150)), ".png")
NOISE = encoded(Image.effect_noise((256, 256), 100).convert("RGB"), ".png")  # does not compress


def other(detector: Callable[..., Anonymizer]) -> tuple[str, ...]:
    return program(run_daemon_with, detector.__name__)


def is_done(drop: Drop, name: str) -> bool:
    row = drop.rows().get(Path(name))
    return row is not None and row.state is FileState.DONE


def is_at_work(drop: Drop, name: str) -> bool:
    row = drop.rows().get(Path(name))
    return row is not None and row.state is FileState.WORKING


class Gated(Drop):
    """A daemon that ends no picture that is ``TROUBLING`` before its gate is open."""

    def __init__(self, tmp_path: Path, *options: object) -> None:
        self.gate = tmp_path / "gate"
        super().__init__(tmp_path, *options, program=other(waiting), env={"GATE": str(self.gate)})

    def busy(self) -> None:
        """Drop two pictures, and have one of them worked on."""
        put(self.inbox / "a.png", TROUBLING)
        self.until(lambda: is_at_work(self, "a.png"))
        put(self.inbox / "b.png", TROUBLING)
        self.until(lambda: Path("b.png") in self.rows())

    def ask_to_stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.until(lambda: self.status().state is DaemonState.STOPPING)

    def check_abandoned(self) -> None:
        """Check that nothing came out and the next start does everything; to be called after the end."""
        assert names(self.outbox) == []
        assert {row.state for row in self.rows().values()} == {FileState.QUEUED}
        self.gate.touch()
        self.start()
        self.settle()
        assert names(self.outbox) == ["a.png", "b.png"]
        assert {row.state for row in self.rows().values()} == {FileState.DONE}


# Signals.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_daemon_stops_when_asked_to(tmp_path: Path, number: signal.Signals) -> None:
    with Drop(tmp_path) as drop:
        drop.stop(number)  # before its first file
        drop.start()
        put(drop.inbox / "a.jpg", face())
        drop.settle()
        drop.stop(number)
        assert drop.lines("state")[-1] == {"event": "state", "state": "stopped", "why": ""}
        assert drop.notes()[-1] == f"stopped; results are in {drop.outbox}"
    assert names(drop.outbox) == ["a.jpg"]
    assert (drop.outbox / "a.jpg").read_bytes() == hidden(face())
    assert not drop.status().alive and not drop.status().in_use


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_without_grace_what_is_being_worked_on_waits_for_the_next_start(tmp_path: Path, number: signal.Signals) -> None:
    with Gated(tmp_path, "--grace", "0") as drop:
        drop.busy()
        drop.stop(number)
        drop.check_abandoned()


def test_with_grace_what_is_being_worked_on_is_finished_and_nothing_else_begun(tmp_path: Path) -> None:
    with Gated(tmp_path, "--grace", "3600") as drop:
        drop.busy()
        for index in range(3):
            put(drop.inbox / f"c{index}.png", CALM)
        drop.until(lambda: len(drop.rows()) == 5)
        drop.ask_to_stop()
        begun = {name for name, row in drop.rows().items() if row.state is FileState.WORKING}
        drop.gate.touch()
        drop.stop()
        assert begun == {Path("a.png")}  # one was at hand, which nobody had begun
        assert {Path(name) for name in names(drop.outbox)} == begun
        assert {name for name, row in drop.rows().items() if row.state is FileState.DONE} == begun
        assert {row.state for row in drop.rows().values()} == {FileState.DONE, FileState.QUEUED}
        drop.start()
        drop.settle()
    assert len(names(drop.outbox)) == 5


def test_grace_comes_to_an_end(tmp_path: Path) -> None:
    with Gated(tmp_path, "--grace", "0.3") as drop:
        drop.busy()
        drop.stop()
        drop.check_abandoned()


def test_sigterm_for_a_second_time_does_not_cut_the_grace_short(tmp_path: Path) -> None:
    with Gated(tmp_path, "--grace", "3600") as drop:
        drop.busy()
        drop.ask_to_stop()
        drop.process.send_signal(signal.SIGTERM)
        drop.gate.touch()
        drop.stop()
    assert names(drop.outbox) == ["a.png"]


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, first: signal.Signals) -> None:
    with Gated(tmp_path, "--grace", "3600") as drop:
        drop.busy()
        drop.ask_to_stop(first)
        drop.process.send_signal(signal.SIGINT)
        assert drop.process.wait(LONGEST_WAIT_SECONDS) != 0
        assert not (drop.outbox / ".blurguard" / "scratch").exists() and drop.workers() == []
        drop.check_abandoned()


def test_a_second_ctrl_c_is_an_interruption_to_the_command_line(tmp_path: Path) -> None:
    with Drop(tmp_path, "--grace", "3600") as drop:
        put(drop.inbox / "a.jpg", face())
        drop.settle()
        with drop.frozen():
            put(drop.inbox / "b.jpg", face(turn=1))
            drop.until(lambda: is_at_work(drop, "b.jpg"))
            drop.process.send_signal(signal.SIGINT)
            drop.until(lambda: drop.status().state is DaemonState.STOPPING)
            drop.stop(signal.SIGINT, code=130)
        assert "interrupted" in drop.lines("error")[-1]["text"]
        assert names(drop.outbox) == ["a.jpg"]
        drop.start()
        drop.settle()
    assert (drop.outbox / "b.jpg").read_bytes() == hidden(face(turn=1))


# Settings, read again.


def configured(tmp_path: Path, text: str, *options: object) -> Drop:
    config = tmp_path / "blurguard.toml"
    config.write_text(text, "utf-8")
    return Drop(tmp_path, "--config", config, *options, program=program(run_without_options, len(USUAL)))


def reload(drop: Drop, tmp_path: Path, text: str, note: str) -> None:
    """Change the settings file, say so, and wait until the daemon answers with this note once more."""
    before = sum(note in told for told in drop.notes())
    (tmp_path / "blurguard.toml").write_text(text, "utf-8")
    drop.process.send_signal(signal.SIGHUP)
    drop.until(lambda: sum(note in told for told in drop.notes()) > before)


def expected(tmp_path: Path, source: Path, **settings: object) -> bytes:
    target = tmp_path / "expected" / source.name
    target.parent.mkdir(exist_ok=True)
    Anonymizer(Settings().changed(settings, "test")).process(source, target)
    return target.read_bytes()


ROUND, SQUARE = {"style": "solid", "mode": "fast"}, {"style": "solid", "shape": "box", "margin": 0.5}
FIRST = 'style = "solid"\nmode = "fast"\njobs = 1\n[watch]\nsettle = 3600\nmin_free = 0\nrescan = 0.2\n'
SECOND = 'style = "solid"\nshape = "box"\nmargin = 0.5\njobs = 3\n[watch]\nsettle = 0.2\nmin_free = 0\nrescan = 0.2\n'
AGAIN = "the settings have been read again"


def test_settings_that_are_read_again_hold_for_what_comes_next(tmp_path: Path) -> None:
    outside = put(tmp_path / "outside.jpg", face(turn=2))
    with configured(tmp_path, FIRST) as drop:
        os.link(outside, drop.inbox / "settles.jpg")  # nobody closes it: it has to settle
        put(drop.inbox / "a.jpg", face())
        drop.until(lambda: is_done(drop, "a.jpg"))
        first = (drop.outbox / "a.jpg").stat()
        assert (drop.outbox / "a.jpg").read_bytes() == expected(tmp_path, drop.inbox / "a.jpg", **ROUND)
        assert len(drop.workers()) == 1
        drop.until(lambda: json.loads(health_file(drop.outbox).read_bytes())["queued"] == 1)
        assert not (drop.outbox / "settles.jpg").exists()
        reload(drop, tmp_path, SECOND, AGAIN)
        put(drop.inbox / "b.jpg", face(turn=1))
        drop.settle()
        assert len(drop.workers()) == 3
        for name in ("b.jpg", "settles.jpg"):
            assert (drop.outbox / name).read_bytes() == expected(tmp_path, drop.inbox / name, **SQUARE)
        drop.restart()
        put(drop.inbox / "c.jpg", face(turn=3))
        drop.settle()
        drop.stop()
        assert [line["source"] for line in drop.lines("file")] == [str(drop.inbox / "c.jpg")]
        last = (drop.outbox / "a.jpg").stat()
    assert (last.st_ino, last.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)  # done under the old ones, stays done


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("this is = = no TOML", "not valid TOML"),
        ('style = "sparkle"', "style must be one of"),
        ('model = "nobody"', "nobody"),
        ("[watch]\nsetle = 1", "unknown setting setle"),
        ('[watch]\noriginals = "move"', "move_to names no folder"),
    ],
)
def test_settings_that_cannot_be_followed_change_nothing(tmp_path: Path, text: str, told: str) -> None:
    with configured(tmp_path, FIRST) as drop:
        reload(drop, tmp_path, text, "the settings stay as they were: ")
        assert told in drop.notes()[-1] and AGAIN not in drop.notes()
        put(drop.inbox / "a.jpg", face())
        drop.until(lambda: is_done(drop, "a.jpg"))
        assert (drop.outbox / "a.jpg").read_bytes() == expected(tmp_path, drop.inbox / "a.jpg", **ROUND)
        reload(drop, tmp_path, SECOND, AGAIN)  # as soon as they are mended, they are followed


def test_a_settings_file_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    with configured(tmp_path, FIRST) as drop:
        (tmp_path / "blurguard.toml").unlink()
        drop.process.send_signal(signal.SIGHUP)
        drop.until(lambda: any("the settings stay as they were: " in note for note in drop.notes()))
        put(drop.inbox / "a.jpg", face())
        drop.until(lambda: is_done(drop, "a.jpg"))


def test_what_only_a_new_start_changes_is_told(tmp_path: Path) -> None:
    quick = FIRST.replace("3600", "0.2")
    with configured(tmp_path, quick) as drop:
        more = f'originals = "move"\nmove_to = "{tmp_path / "moved"}"\nfailed = "{tmp_path / "failed"}"\n'
        reload(drop, tmp_path, quick + more, "only a restart changes originals, move_to, failed")
        put(drop.inbox / "a.jpg", face())
        put(drop.inbox / "bad.jpg", b"no picture")
        drop.until(lambda: is_done(drop, "a.jpg") and len(drop.lines("file")) == 2)
        assert names(drop.inbox) == ["a.jpg", "bad.jpg"] and not (tmp_path / "moved").exists()
        drop.restart()
        drop.until(lambda: names(drop.inbox) == ["bad.jpg"])
    assert names(tmp_path / "moved") == ["a.jpg"]


def test_what_is_being_worked_on_is_finished_by_the_old_settings(tmp_path: Path) -> None:
    with configured(tmp_path, FIRST) as drop:
        put(drop.inbox / "a.jpg", face())
        drop.until(lambda: is_done(drop, "a.jpg"))
        with drop.frozen():
            put(drop.inbox / "b.jpg", face(turn=1))
            drop.until(lambda: is_at_work(drop, "b.jpg"))
            (tmp_path / "blurguard.toml").write_text(SECOND, "utf-8")
            drop.process.send_signal(signal.SIGHUP)
            drop.until(lambda: AGAIN in drop.notes())
            put(drop.inbox / "c.jpg", face(turn=2))
            drop.until(lambda: is_done(drop, "c.jpg"))  # by others: who is slow keeps nobody waiting
            assert is_at_work(drop, "b.jpg") and len(drop.workers()) == 4
        drop.until(lambda: is_done(drop, "b.jpg"))
        drop.until(lambda: len(drop.workers()) == 3)
        for name, settings in (("b.jpg", ROUND), ("c.jpg", SQUARE)):
            assert (drop.outbox / name).read_bytes() == expected(tmp_path, drop.inbox / name, **settings)


# Workers.


def note_on(drop: Drop, name: str) -> str:
    """Return why a file failed, as its note says."""
    note = json.loads((drop.outbox / ".blurguard" / "failed" / f"{name}.json").read_bytes())
    assert (note["name"], note["exit_code"]) == (name, 1)
    return str(note["reason"])


@pytest.mark.parametrize(
    ("detector", "told"),
    [
        (crashing, "the process that worked on it died (exit code -11)"),
        (dying, "the process that worked on it died (exit code -9)"),
        (raising, "unforeseen failure: ZeroDivisionError: nobody foresaw this"),
        (hanging, "gave no sign of life and was stopped"),
        (deaf, "gave no sign of life and was stopped"),
    ],
)
def test_a_worker_that_goes_wrong_costs_its_own_file_only(
    tmp_path: Path, detector: Callable[..., Anonymizer], told: str
) -> None:
    with Drop(tmp_path, "--timeout", "1", program=other(detector)) as drop:
        put(drop.inbox / "a.png", CALM)
        drop.settle()
        before = drop.workers()
        put(drop.inbox / "bad.png", TROUBLING)
        for index in range(4):
            put(drop.inbox / f"b{index}.png", CALM)
        drop.settle()
        assert told in note_on(drop, "bad.png")
        assert names(drop.outbox) == ["a.png", "b0.png", "b1.png", "b2.png", "b3.png"]
        assert [row.state for name, row in drop.rows().items() if name == Path("bad.png")] == [FileState.FAILED]
        assert len(drop.workers()) == 1
        assert (drop.workers() != before) == (detector is not raising)
        (scratch,) = (drop.outbox / ".blurguard" / "scratch").iterdir()
        assert list(scratch.iterdir()) == []
        drop.restart()
        put(drop.inbox / "c.png", CALM)
        drop.settle()
        drop.stop()
        assert [line["source"] for line in drop.lines("file")] == [str(drop.inbox / "c.png")]  # what failed stays so


def test_two_workers_that_hang_at_once_do_not_stop_the_others(tmp_path: Path) -> None:
    with Drop(tmp_path, "--timeout", "1", "--jobs", "2", program=other(deaf)) as drop:
        for index in range(3):
            put(drop.inbox / f"bad{index}.png", TROUBLING)
        for index in range(3):
            put(drop.inbox / f"good{index}.png", CALM)
        drop.settle()
    assert names(drop.outbox) == ["good0.png", "good1.png", "good2.png"]


def test_workers_that_are_killed_while_they_wait_are_replaced(tmp_path: Path) -> None:
    with Drop(tmp_path, "--jobs", "2") as drop:
        put(drop.inbox / "a.jpg", face())
        drop.settle()
        before = drop.workers()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        put(drop.inbox / "b.jpg", face(turn=1))
        put(drop.inbox / "c.jpg", face(turn=2))
        drop.settle()
        assert names(drop.outbox) == ["a.jpg", "b.jpg", "c.jpg"]
        drop.until(lambda: len(drop.workers()) == 2 and not set(drop.workers()) & set(before))


def test_workers_are_recycled(tmp_path: Path) -> None:
    seen: list[int] = []
    with Drop(tmp_path, "--recycle", "3") as drop:
        for index in range(10):
            put(drop.inbox / f"{index}.jpg", face(turn=index))
            drop.until(lambda index=index: is_done(drop, f"{index}.jpg"))  # type: ignore[misc]  # mypy knows no such lambda
            seen += [pid for pid in drop.workers() if pid not in seen]
        drop.settle()
        drop.stop()
        assert len(drop.lines("file")) == 10 == len(names(drop.outbox))
    assert len(seen) >= 3


# Disks.


def pauses(drop: Drop, told: str) -> bool:
    """Whether the daemon says by all means that it pauses, and why."""
    status = drop.status()
    return status.state is DaemonState.PAUSED and told in status.why and not status.healthy


def test_a_full_disk_is_waited_for_and_nothing_is_lost(tmp_path: Path) -> None:
    health, result = tmp_path / "health.json", hidden(NOISE, ".png")
    with small_disk(tmp_path / "outbox", "size=1200k,mode=755"), Drop(tmp_path, "--health", health) as drop:
        put(drop.inbox / "a.png", NOISE)
        drop.settle()
        ballast = drop.outbox / "ballast"
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(1 << 12))
        for name in ("b.png", "c.png"):
            put(drop.inbox / name, NOISE)
        drop.until(lambda: any(line["why"] for line in drop.lines("state")))
        (told,) = {line["why"] for line in drop.lines("state") if line["why"]}
        assert "No space left" in told or "disk" in told
        told = blurguard("status", drop.outbox, "--check", "--health", health, code=1).stdout
        assert told.startswith("paused: ")
        assert names(drop.outbox) == ["a.png", "ballast"]
        ballast.unlink()
        drop.settle()
        assert names(drop.outbox) == ["a.png", "b.png", "c.png"]
        assert {(drop.outbox / name).read_bytes() for name in names(drop.outbox)} == {result}
        assert not any(line["status"] == "failed" for line in drop.lines("file"))
        drop.until(lambda: drop.lines("state")[-1]["state"] == "running")
        blurguard("status", drop.outbox, "--check", "--health", health)
        drop.stop()


def test_an_outbox_that_becomes_read_only_is_waited_for(tmp_path: Path) -> None:
    with small_disk(tmp_path / "outbox", "size=8m,mode=755"), Drop(tmp_path, "--health", tmp_path / "health") as drop:
        put(drop.inbox / "a.jpg", face())
        drop.settle()
        outbox = str(drop.outbox)
        # A file system on which a file is open for writing cannot be made read-only; what is put over it can.
        subprocess.run(["mount", "--bind", outbox, outbox], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", outbox], check=True)
            put(drop.inbox / "b.jpg", face(turn=1))
            drop.until(lambda: any("file system is read-only" in line["why"] for line in drop.lines("state")))
            blurguard("status", outbox, "--check", "--health", tmp_path / "health", code=1)
        finally:
            subprocess.run(["umount", outbox], check=True)
        drop.settle()
        assert (drop.outbox / "b.jpg").read_bytes() == hidden(face(turn=1))
        assert not any(line["status"] == "failed" for line in drop.lines("file"))
        drop.stop()


def test_less_free_space_than_asked_for_is_a_pause_until_less_is_asked_for(tmp_path: Path) -> None:
    greedy = FIRST.replace("min_free = 0", "min_free = 1000000000")
    with configured(tmp_path, greedy) as drop:
        put(drop.inbox / "a.jpg", face())
        drop.until(lambda: pauses(drop, f"less than 1000000000 MB are free in {drop.outbox}"))
        drop.until(lambda: drop.status().queued == 1)
        blurguard("status", drop.outbox, "--check", code=1)
        assert names(drop.outbox) == []
        reload(drop, tmp_path, FIRST, AGAIN)
        drop.until(lambda: is_done(drop, "a.jpg"))
        blurguard("status", drop.outbox, "--check")


def test_a_pause_can_be_stopped(tmp_path: Path) -> None:
    with Drop(tmp_path, "--min-free", "1000000000") as drop:
        put(drop.inbox / "a.jpg", face())
        drop.until(lambda: pauses(drop, "MB are free"))
        drop.stop()
        drop.start("--min-free", "0")
        drop.settle()
    assert names(drop.outbox) == ["a.jpg"]


# Many files, and what is told of them.


def test_more_files_than_are_taken_at_once_are_all_done(tmp_path: Path) -> None:
    count = MAX_FILES + 60
    with Gated(tmp_path, "--jobs", "2") as drop:
        put(drop.inbox / "0.png", TROUBLING)
        put(drop.inbox / "1.png", TROUBLING)
        drop.until(lambda: is_at_work(drop, "0.png") and is_at_work(drop, "1.png"))
        for index in range(2, count):
            put(drop.inbox / f"{index}.png", CALM)
        drop.until(lambda: drop.status().queued >= MAX_FILES)
        assert drop.status().queued + drop.status().working <= MAX_FILES + 3  # in hands, and one at hand
        drop.gate.touch()
        drop.until(lambda: drop.settled() and drop.status().done == count)
        drop.stop()
        assert len(drop.lines("file")) == count == len(names(drop.outbox))


def test_everything_is_told_in_whole_lines_of_json(tmp_path: Path) -> None:
    odd = [
        f"{'long name ' * 20}.jpg",
        "new\nline.jpg",
        "[bold]markup[/bold].jpg",
        "\x1b[31mred.jpg",
        os.fsdecode(b"\xff.jpg"),
    ]
    with Drop(tmp_path) as drop:
        for index, name in enumerate(odd):
            put(drop.inbox / name, face(turn=index))
        put(drop.inbox / "bad.jpg", b"no picture")
        drop.settle()
        drop.stop()
        told = [json.loads(line) for line in drop.told.splitlines()]
    assert [line["state"] for line in told if line["event"] == "state"] == ["starting", "running", "stopped"]
    files = {line["source"]: line for line in told if line["event"] == "file"}
    assert files.keys() == {str(drop.inbox / name) for name in (*odd, "bad.jpg")}
    assert [files[str(drop.inbox / name)]["status"] for name in odd] == ["done"] * len(odd)
    assert all(files[str(drop.inbox / name)]["faces"] == 1 for name in odd)
    bad = files[str(drop.inbox / "bad.jpg")]
    assert bad["status"] == "failed" and str(drop.inbox / "bad.jpg") in bad["reason"]


def test_status_tells_how_it_is(tmp_path: Path) -> None:
    with Gated(tmp_path) as drop:
        put(drop.inbox / "0.png", CALM)
        put(drop.inbox / "bad.png", b"no picture")
        drop.settle()
        drop.busy()
        text = blurguard("status", drop.outbox, "--check").stdout.splitlines()
        assert text[0].startswith(f"running (process {drop.process.pid}, last heartbeat ")
        assert any(line.startswith("working on a.png, for ") for line in text)
        assert any(line.startswith("last error, ") and "bad.png" in line for line in text)
        told = json.loads(blurguard("status", drop.outbox, "--json", "--check").stdout)
        assert (told["alive"], told["healthy"], told["state"]) == (True, True, "running")
        assert told["queued"] + told["working"] == 2 and (told["done"], told["failed"]) == (1, 1)
        assert "a.png" in [entry["name"] for entry in told["at_work"]]
        drop.kill()
        ended = blurguard("status", drop.outbox, "--check", code=1).stdout.splitlines()
        assert ended[0].startswith("ended unexpectedly while running") and "interrupted: a.png" in ended
        drop.gate.touch()
        drop.start()
        drop.settle()
        drop.stop()
        told = json.loads(blurguard("status", drop.outbox, "--json", "--check", code=1).stdout)
        assert (told["alive"], told["state"], told["done"], told["at_work"]) == (False, "stopped", 3, [])
    blurguard("status", tmp_path, code=5)


def test_metrics_count(tmp_path: Path) -> None:
    metrics = tmp_path / "blurguard.prom"

    def value(name: str) -> float:
        rows = [line.split() for line in metrics.read_text("utf-8").splitlines() if not line.startswith("#")]
        return next(float(number) for key, number in rows if key == f"blurguard_watch_{name}")

    with Drop(tmp_path, "--metrics", metrics) as drop:
        drop.until(lambda: metrics.exists() and value("up") == 1)
        assert (value("done_total"), value("failed_total"), value("faces_total")) == (0, 0, 0)
        put(drop.inbox / "a.jpg", face())
        drop.until(lambda: value("done_total") == 1)
        put(drop.inbox / "b.jpg", face(turn=1))
        put(drop.inbox / "bad.jpg", b"no picture")
        drop.until(lambda: (value("done_total"), value("failed_total"), value("faces_total")) == (2, 1, 2))
        drop.stop()
        assert value("up") == 0 and value("done_total") == 2


# No network.


def test_a_daemon_works_without_a_network(tmp_path: Path) -> None:
    if not (unshare := without_network()):
        pytest.skip("unshare -n is not allowed here; the guard of the sockets is tested instead")
    with Drop(tmp_path, program=(*unshare, *PROGRAM)) as drop:
        put(drop.inbox / "a.jpg", face())
        drop.settle()
    assert (drop.outbox / "a.jpg").read_bytes() == hidden(face())


def test_a_daemon_tries_no_network(tmp_path: Path) -> None:
    guard = put(tmp_path / "guard" / "sitecustomize.py", GUARD.encode()).parent
    path = os.pathsep.join((str(guard), environment()["PYTHONPATH"]))
    with Drop(tmp_path, env={"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}) as drop:
        put(drop.inbox / "a.jpg", face())
        put(drop.inbox / "bad.jpg", b"no picture")
        drop.settle()
        drop.process.send_signal(signal.SIGHUP)
        drop.until(lambda: AGAIN in drop.notes())
        drop.stop()
        assert "the network was tried" not in drop.told
    assert (drop.outbox / "a.jpg").read_bytes() == hidden(face())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["guard", "inbox", "logs", "outbox"]
