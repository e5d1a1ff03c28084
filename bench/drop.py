"""The drop folder: how long a photo takes from being dropped to its result, how many it does, how much memory it has.

The daemon runs as a user runs it, in processes of its own. What it is compared with is measured in the same run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.measure import ROOT, Section, Target, ms, python_command, times
from bench.photos import Photo, common_photos, compose_photo, repeated
from blurguard import Anonymizer, Mode, Settings

DISTINCT = 6
ROUNDS = 5  # of all photos, dropped one by one: 30 of each way and mode
# Before each of them: a busy machine favors a process that has just woken up, so all are to have slept.
REST_SECONDS = 0.25
AT_ONCE = 300
LONG_RUN = 5000
AHEAD = 500  # files that lie in the inbox beyond those that are done, and files from one row of the table to the next
TINY = ((96, 96), (128, 96), (96, 128), (128, 128), (160, 120), (120, 160))
LOOKS = 10  # at memory, for each row
WARM_UP_FILES = 10
GROWTH_AT_MOST = 1.1
KIB = 1024
TICK_SECONDS, SLOW_TICK_SECONDS = 0.0005, 0.02
LONGEST_WAIT_SECONDS = 600.0  # for the broken to be told from the slow
Drop = Callable[[Path, Path], None]


@dataclass(slots=True)
class Lines:
    """The JSON lines of a running command, each with the time at which it came."""

    process: subprocess.Popen[str]
    ended: list[float] = field(default_factory=list)  # when files were done
    names: set[str] = field(default_factory=set)  # of those
    failed: list[str] = field(default_factory=list)
    _reader: threading.Thread | None = None

    def read(self) -> None:
        """Read until the command ends, in a thread of its own."""
        self._reader = threading.Thread(target=self._run, daemon=True)
        self._reader.start()

    def finish(self) -> None:
        """Wait for the end of the command and of its lines.

        Raises:
            RuntimeError: it failed.
        """
        code = self.process.wait()
        if self._reader is not None:
            self._reader.join()
        if code or self.failed:
            raise RuntimeError(f"ended with {code}: {self.failed[-3:]}")

    def rate(self) -> float:
        """Return files per second, from the tenth to the last."""
        return (len(self.ended) - WARM_UP_FILES) / (self.ended[-1] - self.ended[WARM_UP_FILES - 1])

    def _run(self) -> None:
        assert self.process.stderr is not None  # noqa: S101 - we asked for a pipe
        for line in self.process.stderr:
            told = json.loads(line)
            if told["event"] == "file" and told["status"] == "done":
                self.ended.append(time.perf_counter())
                self.names.add(Path(told["source"]).name)
            elif told["event"] == "error" or told.get("status") == "failed":
                self.failed.append(line)


def started(*arguments: str | Path) -> Lines:
    """Start a command of ours whose lines are read as they come."""
    lines = Lines(
        subprocess.Popen(
            python_command("blurguard", *arguments, "--log-json"),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    )
    lines.read()
    return lines


@dataclass(frozen=True, slots=True)
class Daemon:
    """A drop folder's daemon and its folders."""

    lines: Lines
    inbox: Path
    outbox: Path

    def wait_for(self, count: int) -> None:
        """Wait until so many files are done in all.

        Raises:
            RuntimeError: one failed, the daemon ended, or nothing comes any more.
        """
        wait_until(lambda: self.alive() and len(self.lines.ended) >= count, f"{count} files", SLOW_TICK_SECONDS)

    def alive(self) -> bool:
        """Return True.

        Raises:
            RuntimeError: a file failed or the daemon has ended.
        """
        if self.lines.failed or self.lines.process.poll() is not None:
            raise RuntimeError(f"the daemon failed: {self.lines.failed[-3:]}")
        return True

    def memory(self) -> NDArray[np.float64]:
        """Return MB, all and anonymous (2) of the first process and of all others together (2)."""
        first, *others = [proportional(pid) for pid in family(self.lines.process.pid)]
        return np.array([first, np.sum(others, axis=0)])


def wait_until(condition: Callable[[], bool], what: str, tick: float = TICK_SECONDS) -> None:
    """Look again and again, after so many seconds each time.

    Raises:
        RuntimeError: it does not come true.
    """
    until = time.perf_counter() + LONGEST_WAIT_SECONDS
    while not condition():
        if time.perf_counter() > until:
            raise RuntimeError(f"waited in vain for {what}")
        time.sleep(tick)


@contextmanager
def daemon(folder: Path, mode: Mode, *options: str) -> Iterator[Daemon]:
    """Run a daemon on two new folders, until it is to stop."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        inbox, outbox = Path(place) / "inbox", Path(place) / "outbox"
        inbox.mkdir()
        lines = started("watch", inbox, outbox, "--mode", mode, *options)
        try:
            yield Daemon(lines, inbox, outbox)
            lines.process.send_signal(signal.SIGTERM)
            lines.finish()
        finally:
            lines.process.kill()
            lines.process.wait()


def family(pid: int) -> list[int]:
    """Return a process and all below it."""
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children += map(int, task.read_text("ascii").split())
    return [pid, *(below for child in children for below in family(child))]


def proportional(pid: int) -> tuple[float, float]:
    """Return the proportional memory of a process, MB: all, and what is of no file; 0 when it has just ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0, 0.0
    told = {line.split()[0]: int(line.split()[1]) * KIB / 1e6 for line in text.splitlines()[1:]}
    return told["Pss:"], told["Pss_Anon:"]


def write_into(photo: Path, place: Path) -> None:
    """Drop by writing and closing."""
    place.write_bytes(photo.read_bytes())


def rename_into(photo: Path, place: Path) -> None:
    """Drop by renaming from another folder; the copying before it costs no time that is measured."""
    photo.rename(place)


def latency(folder: Path) -> Section:
    """Measure the time from close or rename to the result's final name, beside the plain work on the same photo."""
    cv2.setNumThreads(1)  # as workers do
    folder.mkdir()
    photos = common_photos(folder / "photos", DISTINCT)
    rows, targets = [], []
    for mode in Mode:
        plain, written, renamed = map(np.array, _turns(folder, photos, mode))
        for name, seconds in (("`Anonymizer.process`", plain), ("written, closed", written), ("renamed", renamed)):
            share, extra = np.median(seconds / plain), np.median(seconds - plain)
            rows.append((f"{mode}: {name}", ms(float(np.median(seconds))), ms(float(np.percentile(seconds, 95))),
                         times(float(share)), ms(float(extra))))  # fmt: skip
        added = float(np.median(np.concatenate([written, renamed]) - np.concatenate([plain, plain])))
        told = f"{times(float(np.median(written / plain)))}, {added * 1000:+.0f} ms"
        targets.append(Target(f"drop folder, from close to result, {mode}, against plain work", "told", told, True))
    return Section(
        "Drop folder: from close to result",
        f"One worker that is warm and idle, `--settle` as it comes. {DISTINCT} photos of 1 to 2 Mpx, one at a time, "
        "all of them in one way and then in the next: plain work in a process of its own, written into the inbox and "
        f"closed, renamed into it; {ROUNDS} rounds, which begin with another way each. Until the result has its final "
        "name (looked for twice a millisecond). Ratio and difference are medians of pairs.",
        ("", "median, ms", "95 %, ms", "against plain", "more than plain, ms"),
        rows,
        targets,
    )


def _turns(folder: Path, photos: Sequence[Photo], mode: Mode) -> list[list[float]]:
    """Return seconds per photo: plain, written, renamed; one more round warms up and is left out.

    No way handles the same photo twice in a row, as it would when the ways took turns at each photo: that is quicker.
    """
    anonymizer = Anonymizer(Settings(mode=mode))
    with daemon(folder, mode, "--jobs", "1") as running, tempfile.TemporaryDirectory(dir=folder) as aside:

        def plainly(photo: Path, name: str) -> float:
            begun = time.perf_counter()
            anonymizer.process(photo, Path(aside) / name)
            return time.perf_counter() - begun

        def dropped(drop: Drop, photo: Path, name: str) -> float:
            copy = Path(aside) / name
            write_into(photo, copy)
            seconds = _dropped(running, drop, copy, name)
            wait_until(lambda: copy.name in running.lines.names, name)  # so that it is idle again
            return seconds

        ways = [plainly, partial(dropped, write_into), partial(dropped, rename_into)]
        spent: list[list[float]] = [[] for _ in ways]
        for number in range(1 + ROUNDS):
            for way in np.roll(range(len(ways)), number):
                for index, photo in enumerate(photos):
                    time.sleep(REST_SECONDS)
                    spent[way].append(ways[way](photo.path, f"{number}-{way}-{index}.jpg"))
    return [seconds[len(photos) :] for seconds in spent]


def _dropped(running: Daemon, drop: Drop, copy: Path, name: str) -> float:
    """Return the seconds from the end of a drop to the result."""
    drop(copy, running.inbox / name)
    begun = time.perf_counter()
    wait_until(lambda: running.alive() and os.path.lexists(running.outbox / name), name)
    return time.perf_counter() - begun


def throughput(folder: Path, rounds: int) -> Section:
    """Measure files per second of many photos dropped at once, beside ``blurguard dir`` on the same ones."""
    mode = Mode.FAST
    folder.mkdir()
    photos = [photo.path for photo in common_photos(folder / "photos", DISTINCT)]
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(rounds):
        source = folder / f"round{number}"
        files = repeated(photos, source, AT_ONCE)
        batch = started("dir", source, "--out", folder / f"dir{number}", "--mode", mode)
        batch.finish()
        theirs.append(batch.rate())
        with daemon(folder, mode) as running:
            for file in files:
                file.rename(running.inbox / file.name)
            running.wait_for(AT_ONCE)
            ours.append(running.lines.rate())
    share = float(np.median(np.array(ours) / np.array(theirs)))
    return Section(
        f"Drop folder: {AT_ONCE} photos at once",
        f"Photos of 1 to 2 Mpx, fast mode, one worker per processor, {rounds} rounds in turns; all are renamed into "
        f"the inbox at once. From the {WARM_UP_FILES}th file that is done to the last. Medians of the rounds, "
        "of their ratios too.",
        ("", "files/s", "against `blurguard dir`"),
        [
            ("`blurguard dir`", f"{np.median(theirs):.2f}", times(1.0)),
            ("`blurguard watch`", f"{np.median(ours):.2f}", times(share)),
        ],
        [Target(f"drop folder, {AT_ONCE} photos at once, against `blurguard dir`", "told", times(share), True)],
    )


def flatness(folder: Path, count: int = LONG_RUN) -> Section:
    """Measure memory of the daemon and its workers over thousands of small photos."""
    folder.mkdir()
    photos = [
        compose_photo(folder / "photos" / f"{number}.jpg", 400 + number, size, 1).path
        for number, size in enumerate(TINY)
    ]
    looks: list[NDArray[np.float64]] = []
    with daemon(folder, Mode.FAST) as running:
        dropped = 0
        for done in range(0, count, AHEAD // LOOKS):
            while dropped < min(count, done + AHEAD):
                copy = folder / f"{dropped}.jpg"
                write_into(photos[dropped % len(photos)], copy)
                rename_into(copy, running.inbox / copy.name)
                dropped += 1
            running.wait_for(done + AHEAD // LOOKS)
            looks.append(running.memory())
    most = np.array([np.max(looks[start : start + LOOKS], axis=0) for start in range(0, len(looks), LOOKS)])
    half = len(most) // 2
    growth = most[half:, :, 1].max(axis=0) / most[:half, :, 1].max(axis=0)
    return Section(
        f"Drop folder: memory over {count} photos",
        f"Photos of 96 to 160 px, fast mode, one worker per processor, `--recycle` as it comes (1000); {AHEAD} "
        "wait in the inbox at any time. Proportional memory (PSS: what processes share is split among all that do, "
        "others than these too), and the part of it that is of no file, which others do not change; the most of "
        f"{LOOKS} looks before each row. Workers: all processes but the first.",
        ("files done", "daemon, MB", "workers, MB", "together, MB", "daemon, of no file", "workers, of no file"),
        [_row(number * AHEAD, memory) for number, memory in enumerate(most, 1)],
        [
            Target(
                f"drop folder, memory over {count} photos: most in the second half against the first, daemon / workers",
                f"flat (≤ {GROWTH_AT_MOST:g}×)",
                f"{times(growth[0])} / {times(growth[1])}",
                bool(growth.max() <= GROWTH_AT_MOST),
            )
        ],
    )


def _row(done: int, memory: NDArray[np.float64]) -> tuple[str, ...]:
    (daemon_all, daemon_own), (workers_all, workers_own) = memory
    told = daemon_all, workers_all, daemon_all + workers_all, daemon_own, workers_own
    return str(done), *(f"{number:.0f}" for number in told)
