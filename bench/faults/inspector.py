"""Who looks at a drop folder all the time while its daemon is tried."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections import Counter
from pathlib import Path
from threading import Event

from bench.faults.dropping import Yard

LOOK_EVERY = 0.01  # seconds, and no more than half of the time


class Lookout:
    """Looks at all folders again and again, and is the consumer as well, if there is one."""

    def __init__(self, yard: Yard) -> None:
        self.out: Counter[Path] = Counter()  # how often each name has come out
        self.faults: dict[str, None] = {}
        self.looks = 0
        self.started = 0  # how many names had come out when the daemon was last started
        self._yard = yard
        self._wholes = set(yard.expected.values())
        self.stamps: dict[Path, tuple[int, int]] = {}  # size and mtime of each result
        self._known: dict[Path, tuple[int, ...]] = {}  # results that stand -> what they were when they were read
        self._gone: set[Path] = set()

    def run(self, stop: Event) -> None:
        """Look until asked to stop."""
        took = 0.0
        while not stop.wait(max(LOOK_EVERY, took)):
            began = time.monotonic()
            self.look()
            took = time.monotonic() - began

    def look(self) -> None:
        """Look once: at originals first, for their results were there before they went."""
        self.looks += 1
        inbox = os.fspath(self._yard.inbox)
        complete = set(self._yard.dropped.copy()) - self._gone
        gone = [name for name in complete if not os.path.lexists(f"{inbox}/{name}")]
        self._look_at_results()
        for name in gone:
            self._look_for(name)
        self._look_at_our_own()

    def _fault(self, name: Path | str, text: str) -> None:
        self.faults[f"{os.fspath(name)!r}: {text}"] = None

    def _look_for(self, name: Path) -> None:
        """An original is gone: that must be what was asked for, and it must have left something."""
        yard, policy = self._yard, self._yard.plan.policy
        self._gone.add(name)
        if name not in yard.expected:
            left = yard.plan.has_failed and os.path.lexists(yard.failed / name) and yard.note_on(name).exists()
        else:
            left = name in self.out and (policy == "delete" or (policy == "move" and (yard.moved / name).exists()))
        if not left:
            self._fault(name, "an original was gone before it might")

    def _look_at_results(self) -> None:
        stand = set()
        for parent, folders, names in os.walk(self._yard.outbox):
            if ".blurguard" in folders and parent == os.fspath(self._yard.outbox):
                folders.remove(".blurguard")
            for name in names:
                stand.add(path := Path(parent, name))
                self._look_at_result(path, path.relative_to(self._yard.outbox))
        for path in () if self._yard.plan.consumer else self._known.keys() - stand:
            self._fault(path, "a result came out and was gone again")

    def _look_at_result(self, path: Path, name: Path) -> None:
        if self._yard.plan.consumer:
            path = path.rename(self._yard.taken / f"{self.looks}-{sum(self.out.values())}")
        info = path.lstat()
        stands, known = (info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns), self._known.get(path)
        if stands == known:
            return
        self._known[path], self.stamps[name] = stands, (info.st_size, info.st_mtime_ns)
        data = path.read_bytes()
        if data != self._yard.expected.get(name):
            self._fault(name, f"neither whole and hidden nor absent ({len(data)} bytes)")
        if known is None or known[0] != info.st_ino:  # else a link of it went, no more
            self.out[name] += 1

    def _look_at_our_own(self) -> None:
        state = self._yard.outbox / ".blurguard"
        for parent, _, names in os.walk(state):
            with contextlib.suppress(FileNotFoundError):  # scratch comes and goes
                if stat.S_IMODE(Path(parent).lstat().st_mode) != 0o700:
                    self._fault(parent, "not private")
            kind = Path(parent).relative_to(state).parts[:1]
            for name in names:
                if kind == ("scratch",):
                    self._look_at_draft(Path(parent, name))
                elif kind != ("failed",) and not name.startswith(("journal.", "health.json", ".health.json")):
                    self._fault(Path(parent, name), "not ours")

    def _look_at_draft(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            private, data = stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600, file.read()
            if not any(whole.startswith(data) for whole in self._wholes):
                self._fault(path, f"is not of a hidden picture ({len(data)} bytes)")
            if not private and data and data not in self._wholes:
                self._fault(path, "others may read it")
