"""A drop folder with a real daemon in a process of its own, for tests.

It hides with black boxes, in fast mode: so what must come out is known byte for byte (``hidden``).
"""

import contextlib
import functools
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.faults.commands import environment
from bench.faults.kills import LONGEST_WAIT_SECONDS, OPTIONS, SETTINGS, Case, ended, marked, ticks
from blurguard import Anonymizer
from blurguard.batch.journal import FileState
from blurguard.batch.process import cpu_count
from blurguard.files.filetypes import FileType, type_from_suffix
from blurguard.files.stamp import FileStamp
from blurguard.watch.health import Status, read_status
from blurguard.watch.inbox import has_final_name
from tests.conftest import ROOT

HIDING = tuple(option for option in OPTIONS if option != "--quiet")
# --jobs 1, and --rescan so long that what is found is found by events; options given to ``Drop`` come later and win.
USUAL = ("--log-json", "--settle", "0.2", "--rescan", "3600", "--jobs", "1", "--min-free", "0", *HIDING)
PROGRAM = (sys.executable, "-P", "-m", "blurguard")
BROKEN_PROGRAM = (sys.executable, "-P", "-m", "tests.broken")
TICKS_PER_LOOK = 20


@dataclass(frozen=True, slots=True)
class Row:
    """What the journal says of one name."""

    state: FileState
    source: FileStamp
    output_digest: str
    error: str


class Drop:
    """A daemon on ``tmp_path/inbox`` and ``tmp_path/outbox``; starts with the context, and ends with it as ``stop``."""

    def __init__(
        self,
        tmp_path: Path,
        *options: object,
        env: dict[str, str] | None = None,
        program: tuple[str, ...] = PROGRAM,
        usual: tuple[str, ...] = USUAL,
    ) -> None:
        """Make the inbox; nothing is started yet.

        Args:
            tmp_path: an empty folder.
            options: of ``watch``.
            env: variables besides the usual ones.
            program: what understands the command line of blurguard.
            usual: options that come before the others; where a file of settings shall rule, it must not name them.
        """
        self.inbox, self.outbox = tmp_path / "inbox", tmp_path / "outbox"
        self.inbox.mkdir(exist_ok=True)
        self.options = [str(option) for option in options]
        self.process: subprocess.Popen[bytes]
        self._env, self._program, self._usual = env or {}, program, usual
        self._case = Case(self.inbox, self.outbox, {})
        self._log_folder = tmp_path / "logs"
        self._starts = 0
        self._ends = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._ends:
            if kind is None and self.process.poll() is None:
                self.stop()

    def start(self, *more: object) -> None:
        """Start the daemon, with more options, and wait until it is at work; for a second time, after ``stop``."""
        self._starts += 1
        self._log_folder.mkdir(exist_ok=True)
        command = [
            *self._program,
            "watch",
            str(self.inbox),
            str(self.outbox),
            *self._usual,
            *self.options,
            *map(str, more),
        ]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(FAULT_MARKER=self._case.marker, **self._env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._ends.enter_context(ended(self.process, self._case))  # type: ignore[arg-type]  # it does not read
        self.until(lambda: any(line.get("state") in ("running", "paused") for line in self.lines()))

    def stop(self, number: signal.Signals = signal.SIGTERM, code: int = 0) -> None:
        """Ask the daemon to stop, wait, and check that it ends well and leaves nothing behind."""
        self.process.send_signal(number)
        assert self.process.wait(LONGEST_WAIT_SECONDS) == code, self.told
        assert "Traceback" not in self.told, self.told
        for _ in ticks():  # Python's own tracker of resources is the last to go
            if not marked(self._case):
                break
        assert not (self.outbox / ".blurguard" / "scratch").exists()
        assert all("event" in line for line in self.lines())

    def restart(self, *more: object) -> None:
        """Stop the daemon and start another one."""
        self.stop()
        self.start(*more)

    def kill(self) -> None:
        """Kill the daemon with all its processes, as a power cut would."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(LONGEST_WAIT_SECONDS)
        for _ in ticks():
            if not marked(self._case):
                return

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until something holds; the daemon must go on meanwhile."""
        try:
            for _ in itertools.islice(ticks(), 0, None, TICKS_PER_LOOK):
                if condition():
                    return
                assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.told}"
        except TimeoutError as error:
            raise AssertionError(f"did not come about; {self.rows()}\n{self.told}") from error

    def settle(self, below: Path = Path()) -> None:
        """Wait until everything in the inbox, or in a folder of it, is done or has failed."""
        self.until(lambda: self.settled(below))

    def settled(self, below: Path = Path()) -> bool:
        """Whether nothing waits or is being worked on, and every picture and video is known as it is.

        What changes without an event, a second link's times say, is never known as it is, unless there are rescans.
        """
        rows = {name: row for name, row in self.rows().items() if below in name.parents}
        if any(row.state not in (FileState.DONE, FileState.FAILED) for row in rows.values()):
            return False
        return all(name in rows and rows[name].source == stamp for name, stamp in self._media(below))

    def status(self) -> Status:
        """Return what ``blurguard status`` tells."""
        return read_status(self.outbox, None, time.time())

    def rows(self) -> dict[Path, Row]:
        """Return the journal: name below the inbox -> what is known."""
        path = self.outbox / ".blurguard" / "journal.sqlite"
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as journal:
            found = journal.execute(
                "SELECT name, state, source_size, source_mtime, source_ctime, output_digest, error FROM files"
            ).fetchall()
        return {
            Path(os.fsdecode(name)): Row(FileState(state), FileStamp(*stamp), digest, error)
            for name, state, *stamp, digest, error in found
        }

    @property
    def told(self) -> str:
        """All that the daemon has said since it was started."""
        return self._log.read_text("utf-8")

    def lines(self, event: str = "") -> list[dict[str, Any]]:
        """Return the whole lines that the daemon has said since it was started, all or those of one ``event``."""
        whole = [line for line in self.told.splitlines(keepends=True) if line.startswith("{") and line.endswith("\n")]
        return [line for line in map(json.loads, whole) if event in ("", line["event"])]

    def notes(self) -> list[str]:
        """Return what the daemon has told since it was started that is of no single file."""
        return [str(line["text"]) for line in self.lines("note")]

    def workers(self) -> list[int]:
        """Return the processes that work for the daemon."""
        return [pid for pid in marked(self._case) if b"spawn_main" in _command_of(pid)]

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Have nobody work meanwhile; needs workers, which the daemon starts with its first file."""
        workers = self.workers()
        assert workers
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    @property
    def _log(self) -> Path:
        return self._log_folder / f"{self._starts}.log"

    def _media(self, below: Path) -> Iterator[tuple[Path, FileStamp]]:
        """Yield the pictures and videos in a folder of the inbox that are of interest, with their stamps."""
        for parent, folders, names in os.walk(self.inbox / below):
            folders[:] = [name for name in folders if has_final_name(Path(name))]
            for name in names:
                path = Path(parent, name)
                if (
                    has_final_name(Path(name))
                    and type_from_suffix(path) is not FileType.UNKNOWN
                    and not path.is_symlink()
                ):
                    with contextlib.suppress(FileNotFoundError):
                        yield path.relative_to(self.inbox), FileStamp.of(path)


def _command_of(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


@functools.cache
def hidden(data: bytes, suffix: str = ".jpg") -> bytes:
    """Return the bytes that must come out for a picture or video."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, f"source{suffix}"), Path(folder, f"target{suffix}")
        source.write_bytes(data)
        _anonymizer().process(source, target)
        return target.read_bytes()


@functools.cache
def _anonymizer() -> Anonymizer:
    anonymizer = Anonymizer(SETTINGS)
    anonymizer.threads = cpu_count()  # as a daemon's workers have: what x264 makes depends on it
    return anonymizer
