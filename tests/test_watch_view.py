"""What a person at a terminal sees of a drop folder's daemon, and what closing that terminal does."""

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.faults.commands import environment, put
from bench.faults.kills import LONGEST_WAIT_SECONDS, ticks
from tests.commands import face, names
from tests.drop import HIDING, PROGRAM, Drop, hidden

# Whoever leads a session gets the first terminal that it opens for its own.
ON_TERMINAL = 'exec "$@" <>"$TERMINAL" >&0 2>&0'
WIDE, HIGH = 400, 50
CONTROLS = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)")


class Terminal:
    """A terminal on which a daemon runs, at work on ``tmp_path/inbox`` and ``tmp_path/outbox``."""

    def __init__(self, tmp_path: Path, *options: object, inbox: str = "inbox", before: tuple[str, ...] = ()) -> None:
        self.inbox, self.outbox = tmp_path / inbox, tmp_path / "outbox"
        self.inbox.mkdir(parents=True, exist_ok=True)
        self._near, self._far = os.openpty()
        fcntl.ioctl(self._far, termios.TIOCSWINSZ, struct.pack("HHHH", HIGH, WIDE, 0, 0))
        self._modes = termios.tcgetattr(self._far)
        self._raw = b""
        usual = ("--settle", "0.2", "--jobs", "1", "--min-free", "0", *HIDING, *map(str, options))
        command = [*before, *PROGRAM, "watch", str(self.inbox), str(self.outbox), *usual]
        variables = {"TERMINAL": os.ttyname(self._far), "TERM": "xterm", "COLUMNS": str(WIDE), "LINES": str(HIGH)}
        self.process = subprocess.Popen(
            ["sh", "-c", ON_TERMINAL, "sh", *command],
            cwd=tmp_path,
            env=environment(**variables),
            start_new_session=True,
        )

    @property
    def told(self) -> str:
        """Everything that has come so far, as it came."""
        while self._near >= 0 and select.select([self._near], [], [], 0)[0]:
            self._raw += os.read(self._near, 1 << 16)
        return self._raw.decode("utf-8")

    def screen(self) -> list[str]:
        """Return the lines that stand there, without empty ones; any control that is not known is an error."""
        rows, row, column = [""], 0, 0
        for found in CONTROLS.finditer(self.told):
            argument, control, home, down, text = found.groups()
            if home:
                column = 0
            elif down:
                row += 1
                rows += [""] * (row + 1 - len(rows))
            elif text:
                rows[row] = rows[row].ljust(column)[:column] + text + rows[row][column + len(text) :]
                column += len(text)
            elif control == "A":
                row -= int(argument or 1)
            elif (control, argument) == ("K", "2"):
                rows[row] = ""
            else:
                assert control == "m" or argument == "?25", found.group()
        return [line.rstrip() for line in rows if line.strip()]

    def until(self, told: str) -> None:
        """Wait until a line that stands there says this."""
        for _ in ticks():
            if any(told in line for line in self.screen()):
                return
            assert self.process.poll() is None, self.told

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask the daemon to stop, and check that it leaves the terminal as it was."""
        self.process.send_signal(number)
        for _ in ticks():
            self.told  # noqa: B018 - who writes to a terminal that nobody reads waits
            if self.process.poll() is not None:
                break
        assert self.process.returncode == 0, self.told
        assert termios.tcgetattr(self._far) == self._modes
        assert self.told.rfind("\x1b[?25h") > self.told.rfind("\x1b[?25l")  # the cursor is back
        assert "Traceback" not in self.told

    def press(self, key: bytes) -> None:
        """Press a key."""
        os.write(self._near, key)

    def hang_up(self) -> None:
        """Close the terminal."""
        for handle in (self._far, self._near):
            os.close(handle)
        self._far = self._near = -1

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(LONGEST_WAIT_SECONDS)
        if self._near >= 0:
            self.hang_up()


@contextlib.contextmanager
def terminal(
    tmp_path: Path, *options: object, inbox: str = "inbox", before: tuple[str, ...] = ()
) -> Iterator[Terminal]:
    with contextlib.closing(Terminal(tmp_path, *options, inbox=inbox, before=before)) as shown:
        yield shown


def test_a_line_tells_how_it_is_and_goes_at_the_end(tmp_path: Path) -> None:
    with terminal(tmp_path) as shown:
        shown.until(f"watching {shown.inbox} (running): 0 waiting, 0 working, 0 done, 0 failed, ")
        assert "\x1b[?25l" in shown.told
        put(shown.inbox / "a.jpg", face())
        shown.until("0 waiting, 0 working, 1 done, 0 failed")
        put(shown.inbox / "bad.jpg", b"no picture")
        shown.until("0 waiting, 0 working, 1 done, 1 failed")
        assert sum("watching" in line for line in shown.screen()) == 1
        shown.stop()
        note, first, second, last = shown.screen()
        assert note.startswith("min-score 0.5 is a probability")
        assert re.fullmatch(rf"done     {re.escape(str(shown.inbox))}/a\.jpg  1 face  \d+\.\d\d s", first)
        assert second.startswith("failed   ") and f"{shown.inbox}/bad.jpg" in second
        assert last == f"stopped; results are in {shown.outbox}"


def test_a_pause_is_told_with_its_reason(tmp_path: Path) -> None:
    with terminal(tmp_path, "--min-free", "1000000000") as shown:
        put(shown.inbox / "a.jpg", face())
        shown.until(f"(paused: less than 1000000000 MB are free in {shown.outbox}): 1 waiting, 0 working, 0 done")
        shown.stop()


def test_ctrl_c_on_the_keyboard_stops_it(tmp_path: Path) -> None:
    with terminal(tmp_path) as shown:
        put(shown.inbox / "a.jpg", face())
        shown.until("1 done")
        shown.press(b"\x03")
        shown.process.wait(LONGEST_WAIT_SECONDS)
        shown.stop()
        assert shown.screen()[-1].endswith(f"stopped; results are in {shown.outbox}")
    assert not (shown.outbox / ".blurguard" / "scratch").exists()


def test_nobody_writes_on_the_terminal_by_the_name_of_a_file(tmp_path: Path) -> None:
    odd = [
        "[bold]b[/bold].jpg",
        "\x1b]0;title\x07.jpg",
        "\x1b[2J\x9b2J.jpg",
        "new\nline\r.jpg",
        os.fsdecode(b"\xff.jpg"),
    ]
    told = ["[bold]b[/bold].jpg", r"\x1b]0;title\x07.jpg", r"\x1b[2J\x9b2J.jpg", r"new\nline\r.jpg", r"\xff.jpg"]
    with terminal(tmp_path, inbox="[red]in[/red]\x1b[5m") as shown:
        for index, name in enumerate(odd):
            put(shown.inbox / name, face(turn=index))
        put(shown.inbox / "[link]\x1b[7m.jpg", b"no picture")
        shown.until("5 done, 1 failed")
        assert any(r"watching " in line and r"/[red]in[/red]\x1b[5m (running)" in line for line in shown.screen())
        shown.stop()
        screen = shown.screen()
        for name in told:
            assert any(line.startswith("done ") and rf"/[red]in[/red]\x1b[5m/{name}  1 face" in line for line in screen)
        assert any(line.startswith("failed ") and r"/[link]\x1b[7m.jpg" in line for line in screen)
        assert not {"\x07", "\x9b"} & set(shown.told)
        assert not any(control in shown.told for control in ("\x1b]", "\x1b[2J", "\x1b[5m", "\x1b[7m"))


def test_sighup_on_a_terminal_that_is_still_there_reads_the_settings_again(tmp_path: Path) -> None:
    with terminal(tmp_path) as shown:
        shown.until("(running)")
        shown.process.send_signal(signal.SIGHUP)
        shown.until("the settings have been read again")
        put(shown.inbox / "a.jpg", face())
        shown.until("1 done")
        shown.stop()


def check_nothing_is_partial(tmp_path: Path) -> None:
    outbox = tmp_path / "outbox"
    assert not (outbox / ".blurguard" / "scratch").exists()
    for name in names(outbox):
        assert (outbox / name).read_bytes() == hidden((tmp_path / "inbox" / name).read_bytes())


@pytest.mark.parametrize("busy", [False, True])
def test_a_terminal_that_is_closed_stops_it(tmp_path: Path, busy: bool) -> None:
    with terminal(tmp_path) as shown:
        put(shown.inbox / "a.jpg", face())
        shown.until("1 done")
        for index in range(8 if busy else 0):
            put(shown.inbox / f"{index}.jpg", face(turn=index + 1))
        shown.hang_up()
        assert shown.process.wait(LONGEST_WAIT_SECONDS) == 0
    check_nothing_is_partial(tmp_path)
    with Drop(tmp_path) as drop:
        drop.settle()
    assert names(drop.outbox) == names(drop.inbox)
    check_nothing_is_partial(tmp_path)


def test_what_is_started_to_survive_the_terminal_does(tmp_path: Path) -> None:
    with terminal(tmp_path, before=("nohup",)) as shown:
        put(shown.inbox / "a.jpg", face())
        for _ in ticks():
            if (shown.outbox / "a.jpg").exists():
                break
        shown.hang_up()
        put(shown.inbox / "b.jpg", face(turn=1))
        for _ in ticks():
            assert shown.process.poll() is None
            if (shown.outbox / "b.jpg").exists():
                break
        shown.process.send_signal(signal.SIGTERM)
        assert shown.process.wait(LONGEST_WAIT_SECONDS) == 0
    check_nothing_is_partial(tmp_path)
    assert "the settings have been read again" in (tmp_path / "nohup.out").read_text("utf-8")
