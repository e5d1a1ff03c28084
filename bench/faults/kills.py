"""Killing a batch at a random moment, and what must hold afterwards.

``kill_once`` is one experiment. It hides with black boxes: nothing in them is left to chance, so what a kill
may leave is known byte for byte. A finished file equals its reference, a draft in scratch is the beginning of
one, and an original that is to be replaced is the original or the reference.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import random
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from bench.measure import ROOT
from blurguard import Anonymizer, Mode, Settings, Shape, Style

# Photo and square round its face, px.
FACES = {
    "astronaut": (150, 40, 310, 200),
    "biden_blue_room": (140, 50, 400, 310),
    "grace_hopper": (115, 80, 415, 380),
    "obama_blue_room": (250, 100, 490, 340),
    "obama_portrait": (250, 30, 730, 510),
}
SUFFIXES = (".jpg", ".png", ".webp")
OPTIONS = ("--quiet", "--style", "solid", "--shape", "box", "--mode", "fast", "--min-score", "0.5")
SETTINGS = Settings(style=Style.SOLID, shape=Shape.BOX, mode=Mode.FAST, min_score=0.5)
BLACK_AT_MOST = 24  # of 255: JPEG and WebP are lossy
LONGEST_WAIT_SECONDS = 120.0  # for the impossible to be told from the slow
TICK_SECONDS = 0.001
FILM_PART_BYTES = 48  # so many bytes of compressed pictures are in no two videos by chance


@dataclass(frozen=True, slots=True)
class KillResult:
    """One experiment.

    Attributes:
        seed: decided everything that is random in it.
        whom: ``group`` when all processes were killed at once, ``parent`` when only the first one.
        in_place: whether the originals were being replaced.
        finished: files that had their final name at the moment.
        drafts: files in scratch at the moment.
        photos: files in all.
        faults: what did not hold; empty when all is well.
    """

    seed: int
    whom: str
    in_place: bool
    finished: int
    drafts: int
    photos: int
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """Where it happens, and what is right there."""

    photos: Path
    out: Path
    expected: dict[Path, bytes]
    marker: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def in_place(self) -> bool:
        return self.photos == self.out

    @property
    def originals(self) -> dict[Path, bytes]:
        return {name: (self.photos / name).read_bytes() for name in self.expected}

    def start(self, *more: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start a batch."""
        where = ("--in-place",) if self.in_place else ("--out", str(self.out))
        arguments = "dir", str(self.photos), *where, "--jobs", "2", *OPTIONS, *more
        return start(arguments, self.marker, before=before)


class Marked(Protocol):
    """Who has started processes that are told by a variable in their environment."""

    @property
    def marker(self) -> str: ...


def start(
    arguments: Iterable[str], marker: str, *, before: tuple[str, ...] = (), output: int | IO[str] = subprocess.PIPE
) -> subprocess.Popen[str]:
    """Start blurguard in a process group of its own, told by a variable in its environment."""
    return subprocess.Popen(
        [*before, sys.executable, "-P", "-m", "blurguard", *arguments],
        env=os.environ | {"FAULT_MARKER": marker, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def make_photos(folder: Path, count: int = 12) -> Path:
    """Write small pictures with one face each, in a tree, in several formats; returns the folder."""
    for index in range(count):
        name, box = list(FACES.items())[index % len(FACES)]
        side = 160 + 16 * index
        target = folder / ("" if index % 3 else "below") / f"{index:02d}{SUFFIXES[index % len(SUFFIXES)]}"
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(ROOT / "examples" / "photos" / f"{name}.jpg") as photo:
            photo.crop(box).resize((side, side)).save(target, quality=90)
    return folder


def make_films(folder: Path, count: int = 4) -> Path:
    """Write short videos without sound, a face in each frame of them; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        name, box = list(FACES.items())[index % len(FACES)]
        suffix, codec = ((".mp4", "libx264"), (".mkv", "libx264"), (".webm", "libvpx"))[index % 3]
        with Image.open(ROOT / "examples" / "photos" / f"{name}.jpg") as photo:
            face = np.array(photo.convert("RGB").crop(box).resize((176, 176)))
        with av.open(str(folder / f"{index:02d}{suffix}"), "w") as out:
            stream = out.add_stream(codec, 25)
            assert isinstance(stream, VideoStream)
            stream.width, stream.height, stream.pix_fmt = 160, 160, "yuv420p"
            for step in range(40):
                shown = np.ascontiguousarray(face[step % 16 :][:160, step % 10 :][:, :160])
                out.mux(stream.encode(av.VideoFrame.from_ndarray(shown, "rgb24")))
            out.mux(stream.encode())
    return folder


def kill_once(seed: int, photos: Path, work: Path) -> KillResult:
    """Kill a batch over ``photos`` at the moment that ``seed`` says, look at what is left, and run it again.

    Args:
        seed: of the moment, of who is killed, and of whether originals are being replaced.
        photos: pictures with faces, as ``make_photos`` writes them.
        work: an empty or absent folder; its content is left for whoever wants to look at a fault.
    """
    chance = random.Random(seed)
    whom = chance.choice(("group", "parent"))
    in_place = chance.random() < 0.3
    expected = dict(references(photos))
    work.mkdir(parents=True, exist_ok=True)
    if in_place:
        shutil.copytree(photos, work / "photos")
    case = Case(work / "photos" if in_place else photos, work / ("photos" if in_place else "out"), expected)
    originals = case.originals
    process = case.start()
    with ended(process, case):
        _wait_for_moment(case, originals, process, chance)
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            (os.killpg if whom == "group" else os.kill)(process.pid, signal.SIGKILL)
        process.wait(LONGEST_WAIT_SECONDS)
        faults = list(survivors(case))
    finished, drafts = len(_finished(case, originals)), len(_drafts(case.out))
    faults += wrong_after_kill(case, originals)
    faults += wrong_after_next_run(case, originals, finished, work / "report.jsonl")
    return KillResult(seed, whom, in_place, finished, drafts, len(expected), tuple(faults))


@functools.lru_cache(maxsize=4)
def references(photos: Path) -> tuple[tuple[Path, bytes], ...]:
    """Return each picture's name and the bytes that it must become; checks that its face is black there."""
    anonymizer = Anonymizer(SETTINGS)
    folder = photos.with_name(f"{photos.name}_reference_{uuid.uuid4().hex}")
    found = []
    try:
        for source in sorted(path for path in photos.rglob("*") if path.is_file()):
            name = source.relative_to(photos)
            outcome = anonymizer.process(source, folder / name)
            assert outcome.faces, f"{source}: no face"
            pixels = _frame_of(folder / name, outcome.faces[0].frame)
            x0, y0, x1, y1 = outcome.faces[0].region
            assert pixels[y0:y1, x0:x1].max() <= BLACK_AT_MOST, f"{source}: not hidden"
            found.append((name, (folder / name).read_bytes()))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return tuple(found)


def _frame_of(path: Path, number: int) -> NDArray[np.uint8]:
    """Return a picture, or a frame of a video, RGB."""
    if path.suffix in SUFFIXES:
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB"))
    with av.open(str(path)) as film:
        frame = next(itertools.islice(film.decode(video=0), number, None))
        return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


def _wait_for_moment(
    case: Case, originals: dict[Path, bytes], process: subprocess.Popen[str], chance: random.Random
) -> None:
    """Wait until so many files are there, finished or as drafts, and then a little longer."""
    wanted, little = chance.randrange(len(case.expected)), chance.uniform(0, 0.05)
    for _ in ticks():
        if process.poll() is not None:
            return
        if _scratch(case.out).is_dir() and len(_finished(case, originals)) + len(_drafts(case.out)) >= wanted:
            break
    select.select([], [], [], little)


def ticks(at_most: float = LONGEST_WAIT_SECONDS) -> Iterator[None]:
    """Yield again and again, with pauses, but not for ever: for so many seconds."""
    until = time.monotonic() + at_most
    while time.monotonic() < until:
        yield
        select.select([], [], [], TICK_SECONDS)
    raise TimeoutError("what was waited for did not happen")


@contextlib.contextmanager
def ended(process: subprocess.Popen[str], case: Marked) -> Iterator[None]:
    """Whatever happens, leave no process of the case behind."""
    try:
        yield
    finally:
        process.kill()
        end_all(case)
        process.communicate(timeout=LONGEST_WAIT_SECONDS)


def end_all(case: Marked) -> None:
    """Kill whatever the case has started."""
    for pid in marked(case):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def marked(case: Marked) -> list[int]:
    """Return the living processes that the case has started."""
    marker, found = f"FAULT_MARKER={case.marker}".encode(), []
    for entry in Path("/proc").iterdir():
        # A process that has ended, or is another user's, cannot be read; a zombie reads empty.
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and marker in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def survivors(case: Marked) -> Iterator[str]:
    """Yield a fault unless all processes of the case end by themselves."""
    try:
        for _ in ticks():
            if not marked(case):
                return
    except TimeoutError:
        yield f"processes live on: {marked(case)}"


def _scratch(out: Path) -> Path:
    return out / ".blurguard" / "scratch"


def _drafts(out: Path) -> list[Path]:
    return [path for path in _scratch(out).rglob("*") if path.is_file()]


def _finished(case: Case, originals: dict[Path, bytes]) -> list[Path]:
    """Return the names that hold something else than the original."""
    found = []
    for name in case.expected:
        with contextlib.suppress(FileNotFoundError):
            if not case.in_place or (case.out / name).read_bytes() != originals[name]:
                (case.out / name).stat()
                found.append(name)
    return found


def wrong_after_kill(case: Case, originals: dict[Path, bytes]) -> Iterator[str]:
    """Yield what a kill must not leave."""
    if case.originals != originals and not case.in_place:
        yield "an original was touched"
    for path in sorted(path for path in case.out.rglob("*") if path.is_file()):
        name, data = path.relative_to(case.out), path.read_bytes()
        if name.parts[:2] == (".blurguard", "scratch"):
            yield from _wrong_draft(case, path, data)
        elif name.parts[0] == ".blurguard":
            if path.name.partition(".")[0] not in ("journal", "in-place") or stat.S_IMODE(path.stat().st_mode) != 0o600:
                yield f"{name}: not ours, or not private"
        elif data != case.expected.get(name) and not (case.in_place and data == originals[name]):
            yield f"{name}: neither whole and hidden nor absent ({len(data)} bytes)"
    # What is given its name at the moment already has the permissions that it will have there.
    if len([path for path in _drafts(case.out) if _is_public(path) and path.stat().st_size]) > 1:
        yield "scratch: several drafts, and others may read it"
    for folder in (case.out / ".blurguard", *(case.out / ".blurguard").rglob("*")):
        if folder.is_dir() and stat.S_IMODE(folder.stat().st_mode) != 0o700:
            yield f"{folder}: not private"


def _wrong_draft(case: Case, path: Path, data: bytes) -> Iterator[str]:
    """A draft holds nothing but the beginning of a hidden picture, and is private until it is published."""
    if not any(whole.startswith(data) for whole in case.expected.values()) and not _is_part_of_film(case, data):
        yield f"scratch/{path.name}: is not of a hidden picture ({len(data)} bytes)"
    if _is_public(path) and data and data not in case.expected.values():
        yield f"scratch/{path.name}: others may read it"


def _is_part_of_film(case: Case, data: bytes) -> bool:
    """Tell whether this is a video that is being written, and has nothing of the source's own pictures in it."""
    if data[4:8] != b"ftyp" and data[:4] != b"\x1aE\xdf\xa3":
        return False
    for name in case.expected:
        if name.suffix not in SUFFIXES:
            source = (case.photos / name).read_bytes()
            with av.open(str(case.photos / name)) as film:
                packets = [packet for packet in film.demux(video=0) if packet.size > FILM_PART_BYTES]
            if any(bytes(packet)[-FILM_PART_BYTES:] in data for packet in packets):
                return False
            assert packets and bytes(packets[0])[-FILM_PART_BYTES:] in source
    return True


def _is_public(path: Path) -> bool:
    return stat.S_IMODE(path.stat().st_mode) != 0o600


def wrong_after_next_run(case: Case, originals: dict[Path, bytes], finished: int, report: Path) -> Iterator[str]:
    """Run again; yield what was not completed, was done twice, or was left behind."""
    process = case.start("--report", str(report))
    with ended(process, case):
        told, _ = process.communicate(timeout=LONGEST_WAIT_SECONDS)
    if process.returncode:
        yield f"the next run ended with {process.returncode}: {told}"
        return
    statuses = [json.loads(line)["status"] for line in report.read_text("utf-8").splitlines()]
    if (statuses.count("skipped"), statuses.count("done")) != (finished, len(originals) - finished):
        yield f"{finished} of {len(originals)} were finished, but the next run says {statuses}"
    if {name: (case.out / name).read_bytes() for name in case.expected} != case.expected:
        yield "the next run left other files than an undisturbed one"
    if _scratch(case.out).exists():
        yield "the next run left scratch behind"
