"""Where a drop folder's daemon is tried: its folders, what is dropped there, and how people drop files."""

from __future__ import annotations

import random
import shutil
import subprocess
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from bench.faults.commands import put
from bench.faults.kills import LONGEST_WAIT_SECONDS, OPTIONS, references, start

POLICIES = ("keep", "move", "delete")
SHARE_CORRUPT, CORRUPT_AT_LEAST = 0.01, 2
CONSUMERS_ONE_IN = 3
BRANCHES = ("", "a", "deep/er", "späth ü", "new\nline")
MARKS = ("", " -ü", "\n", "~2", "\udcff")  # the last is a byte that is no UTF-8
SETTLE_SECONDS = 0.2
PAUSES = (0.0, 0.0, 0.01)  # seconds between the chunks of a writer
LONG_PAUSE, SLOW_WRITERS = 5 * SETTLE_SECONDS, 0.4  # after the first chunk; and the share of those that rest so
PAUSE_AT_MOST = 0.02  # seconds between two drops
SLOWEST = 0.3  # seconds for one file on a busy machine


@dataclass(frozen=True, slots=True)
class Plan:
    """What is tried.

    Attributes:
        seed: decides everything that is random.
        photos: files in all.
        kills: of the daemon, each followed by a new start.
        standing: all files are there before the daemon is.
    """

    seed: int
    photos: int = 60
    kills: int = 3
    standing: bool = False

    @property
    def policy(self) -> str:
        """What becomes of originals."""
        return POLICIES[self.seed % len(POLICIES)]

    @property
    def consumer(self) -> bool:
        """Whether somebody takes outputs away as soon as they are there."""
        return self.seed // len(POLICIES) % CONSUMERS_ONE_IN == 0

    @property
    def has_failed(self) -> bool:
        """Whether there is a folder for originals that fail."""
        return self.seed % 2 == 1

    @property
    def corrupt(self) -> int:
        """How many files are damaged."""
        return max(CORRUPT_AT_LEAST, int(self.photos * SHARE_CORRUPT))

    @property
    def longest_wait(self) -> float:
        """Seconds for the impossible to be told from the slow."""
        return LONGEST_WAIT_SECONDS + self.photos * SLOWEST


@dataclass(slots=True)
class Yard:
    """The folders of one experiment, and what is dropped there.

    Attributes:
        plan: what is tried.
        work: holds all folders.
        originals: name below the inbox -> content.
        expected: name -> content of its result, for those that are not damaged.
        dropped: names that are complete in the inbox, in their order.
        marker: tells the processes of this experiment.
    """

    plan: Plan
    work: Path
    originals: dict[Path, bytes]
    expected: dict[Path, bytes]
    dropped: dict[Path, None] = field(default_factory=dict)
    marker: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def of(cls, plan: Plan, photos: Path, work: Path) -> Yard:
        """Make the folders, and give a few pictures many names; some are damaged."""
        chance, kinds = random.Random(plan.seed), references(photos)
        corrupt = set(chance.sample(range(plan.photos), plan.corrupt))
        originals, expected = {}, {}
        for index in range(plan.photos):
            picture, result = chance.choice(kinds)
            name = Path(chance.choice(BRANCHES), f"{index:05d}{chance.choice(MARKS)}{picture.suffix}")
            data = (photos / picture).read_bytes()
            originals[name] = data[: len(data) // 2] if index in corrupt else data
            if index not in corrupt:
                expected[name] = result
        yard = cls(plan, work, originals, expected)
        for folder in (yard.inbox, yard.aside, yard.taken):
            folder.mkdir(parents=True)
        return yard

    @property
    def inbox(self) -> Path:
        return self.work / "inbox"

    @property
    def outbox(self) -> Path:
        return self.work / "outbox"

    @property
    def moved(self) -> Path:
        return self.work / "moved"

    @property
    def failed(self) -> Path:
        return self.work / "failed"

    @property
    def aside(self) -> Path:
        """Where files are made that are renamed or linked into the inbox."""
        return self.work / "aside"

    @property
    def taken(self) -> Path:
        """Where the consumer takes results to."""
        return self.work / "taken"

    @property
    def notes(self) -> Path:
        """Where the notes on failures lie."""
        return self.failed if self.plan.has_failed else self.outbox / ".blurguard" / "failed"

    @property
    def damaged(self) -> list[Path]:
        return [name for name in self.originals if name not in self.expected]

    def goes(self, name: Path) -> bool:
        """Whether an original leaves the inbox in the end."""
        return self.plan.policy != "keep" if name in self.expected else self.plan.has_failed

    def stay(self) -> set[Path]:
        """Return the originals that stay where they should be deleted: a kill and a consumer have taken the proof.

        Between a result's name and its original's end the daemon was killed, and the result was taken before the next
        daemon could look at it: without it nothing is deleted. No kill can cost more than one its end.
        """
        if self.plan.policy != "delete" or not self.plan.consumer:
            return set()
        return {name for name in self.expected if (self.inbox / name).exists()}

    def note_on(self, name: Path) -> Path:
        """Return where the note on a failure lies."""
        return (self.notes / name).with_name(f"{name.name}.json")

    def start(self, log: Path) -> subprocess.Popen[str]:
        """Start the daemon; what it says goes to a file."""
        options = ["--settle", str(SETTLE_SECONDS), "--min-free", "1", "--originals", self.plan.policy]
        options += ["--move-to", str(self.moved)] if self.plan.policy == "move" else []
        options += ["--failed", str(self.failed)] if self.plan.has_failed else []
        with log.open("w", encoding="utf-8") as output:
            arguments = "watch", str(self.inbox), str(self.outbox), "--jobs", "2", *OPTIONS, *options
            return start(arguments, self.marker, output=output)


class Dropper:
    """Drops the files of a yard, share by share, one way or another."""

    def __init__(self, yard: Yard, stop: Event) -> None:
        self.allowed = yard.plan.photos if yard.plan.standing else self.share(yard.plan) // 2
        self._yard, self._stop = yard, stop
        self._chance = random.Random(yard.plan.seed + 1)
        self.ways: tuple[Callable[[Path, bytes], None], ...] = (
            self._in_chunks, self._copied, self._renamed, self._as_part, self._linked,
        )  # fmt: skip

    @staticmethod
    def share(plan: Plan) -> int:
        """Return how many files are dropped in each life of the daemon, half of them once it is seen to work."""
        return -(-plan.photos // (plan.kills + 1))

    def run(self) -> None:
        """Drop everything, or stop when asked to."""
        for number, (name, data) in enumerate(self._yard.originals.items()):
            while number >= self.allowed and not self._stop.wait(0.01):
                pass
            if self._stop.is_set():
                return
            target = self._yard.inbox / name
            target.parent.mkdir(parents=True, exist_ok=True)
            self._chance.choice(self.ways)(target, data)
            self._yard.dropped[name] = None
            if not self._yard.plan.standing:
                self._stop.wait(self._chance.uniform(0, PAUSE_AT_MOST))

    def _in_chunks(self, target: Path, data: bytes) -> None:
        slow = LONG_PAUSE if target.suffix != ".part" and self._chance.random() < SLOW_WRITERS else 0
        with target.open("wb", buffering=0) as file:
            for begin in range(0, len(data), len(data) // 3 + 1):
                file.write(data[begin : begin + len(data) // 3 + 1])
                if not self._yard.plan.standing:
                    self._stop.wait(slow if begin == 0 else self._chance.choice(PAUSES))

    def _copied(self, target: Path, data: bytes) -> None:
        shutil.copyfile(self._made(data), target)

    def _renamed(self, target: Path, data: bytes) -> None:
        self._made(data).rename(target)

    def _as_part(self, target: Path, data: bytes) -> None:
        part = target.with_name(f"{target.name}.part")
        self._in_chunks(part, data)
        part.rename(target)

    def _linked(self, target: Path, data: bytes) -> None:
        """The other name stays, or goes at once, as those do it who must not replace anything."""
        made = self._made(data)
        target.hardlink_to(made)
        if self._chance.random() < 0.5:
            made.unlink()

    def _made(self, data: bytes) -> Path:
        return put(self._yard.aside / f"{len(self._yard.dropped)}", data)
