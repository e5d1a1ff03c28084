"""Killing a drop folder's daemon again and again while files come in, and what must hold all the while.

``kill_again`` is one experiment. As in `bench.faults.kills` faces become black boxes, so each output is known to the
byte. While files are dropped in whatever way people drop files, and the daemon is killed and started again, a
``Lookout`` keeps looking: at no moment may anything else than whole, hidden results have a name in the outbox, or an
original be gone without one. At the end each has come out once, and only once.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from bench.faults.commands import blurguard
from bench.faults.dropping import Dropper, Plan, Yard
from bench.faults.inspector import Lookout
from bench.faults.kills import LONGEST_WAIT_SECONDS, end_all, ended, survivors, ticks
from blurguard.batch.journal import FileRecord, FileState, open_journal
from blurguard.batch.journal_reader import read_stats
from blurguard.errors import OutputError
from blurguard.files.atomic import digest_bytes

EARLY_SECONDS = 2.0  # a daemon that is killed so early may be starting, or putting things right
CATCHES, CATCH_EVERY = 200, 0.004  # how often such a short moment is tried for, and seconds between
ASK_EVERY = 100  # ticks
REST_SECONDS = 1.0  # in which a file that is known has settled again, and would come out twice


@dataclass(frozen=True, slots=True)
class WatchResult:
    """One experiment: its plan, how often all processes were killed at once, and what did not hold.

    Attributes:
        plan: what was tried.
        groups: kills of all processes at once; the others were of the first one alone.
        standing: for each kill, how many results were out at the moment.
        looks: at everything.
        results: names that had one at the end.
        seconds: from the first drop until all was done.
        faults: empty when all is well.
    """

    plan: Plan
    groups: int
    standing: tuple[int, ...]
    looks: int
    results: int
    seconds: float
    faults: tuple[str, ...] = ()


def kill_again(plan: Plan, photos: Path, work: Path) -> WatchResult:
    """Drop files while the daemon is killed and started again, and look at all times and at the end.

    Args:
        plan: what is tried.
        photos: pictures with faces, as ``bench.faults.kills.make_photos`` writes them.
        work: an empty or absent folder; its content is left for whoever wants to look at a fault.
    """
    yard, stop, began = Yard.of(plan, photos, work), Event(), time.monotonic()
    lookout, dropper, chance = Lookout(yard), Dropper(yard, stop), random.Random(plan.seed + 2)
    groups, standing = 0, []
    with ThreadPoolExecutor(2) as threads:
        try:
            dropping = threads.submit(dropper.run)
            if plan.standing:
                dropping.result()
            looking = threads.submit(lookout.run, stop)
            for life in range(plan.kills):
                whole_group = chance.random() < 0.5
                lookout.started = len(lookout.out)
                dropper.allowed = life * dropper.share(plan) + dropper.share(plan) // 2
                lookout.faults.update(dict.fromkeys(_one_life(yard, lookout, dropper, chance, whole_group)))
                groups += whole_group
                standing.append(len(lookout.out))
            lookout.started, dropper.allowed = len(lookout.out), plan.photos - dropper.share(plan) // 2
            faults = list(_last_life(yard, lookout, dropper, looking))
            seconds = time.monotonic() - began
        finally:
            stop.set()
            end_all(yard)
    dropping.result()
    looking.result()
    lookout.look()
    faults += [*lookout.faults, *wrong_at_rest(yard, lookout)]
    return WatchResult(plan, groups, tuple(standing), lookout.looks, len(lookout.out), seconds, tuple(faults))


def _one_life(
    yard: Yard, lookout: Lookout, dropper: Dropper, chance: random.Random, whole_group: bool
) -> Iterator[str]:
    """Start the daemon and kill it, early or when so many results have come out; yield what it did instead."""
    number, half = len(list(yard.work.glob("log-*"))), dropper.allowed
    process = yard.start(yard.work / f"log-{number}")
    wanted = lookout.started + chance.uniform(0, 0.75) * Dropper.share(yard.plan)
    early, wait_for_all = chance.random() < 0.25 and not yard.plan.standing, chance.random() < 0.5
    until = time.monotonic() + (chance.uniform(0, EARLY_SECONDS) if early else yard.plan.longest_wait)
    for _ in ticks(2 * yard.plan.longest_wait):
        if len(lookout.out) > lookout.started:
            dropper.allowed = half + dropper.share(yard.plan) // 2
        if process.poll() is not None or time.monotonic() > until or len(lookout.out) >= wanted:
            break
        if len(yard.dropped) >= min(dropper.allowed, yard.plan.photos) and len(lookout.out) >= _possible(yard):
            break
    if process.poll() is None:
        Event().wait(chance.uniform(0, 0.05))
        if chance.random() < 0.7:
            yield from _stop_at(yard, lookout, process, chance)
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
    if process.wait(LONGEST_WAIT_SECONDS) != -signal.SIGKILL:
        yield f"the daemon ended by itself: {_log(yard, number)}"
    if wait_for_all:
        yield from survivors(yard)


def _stop_at(yard: Yard, lookout: Lookout, process: subprocess.Popen[str], chance: random.Random) -> Iterator[str]:
    """Halt the daemon at one of the moments that matter most, which are so short that blind kills would miss them.

    Yields what is wrong whenever it is halted: a result has its name before that is recorded.
    """
    is_now = chance.choice((_recorded, _named) if yard.plan.policy == "keep" else (_recorded, _named, _half_cleared))
    for _ in range(CATCHES):
        Event().wait(chance.uniform(0, CATCH_EVERY))
        process.send_signal(signal.SIGSTOP)
        publishing, named = _at_work(yard, lookout)
        if named and not publishing:
            yield f"{os.fspath(named[0])!r}: journal: tells nothing of its result"
        if len(lookout.out) > lookout.started and not publishing and any(map(_is_public, _scratch_files(yard))):
            yield "scratch: others may read it before it is published"
        if is_now(yard, lookout):
            return
        process.send_signal(signal.SIGCONT)


def _scratch_files(yard: Yard) -> list[Path]:
    scratch = os.walk(yard.outbox / ".blurguard" / "scratch")  # unlike rglob() it minds nothing that goes meanwhile
    return [Path(parent, name) for parent, _, names in scratch for name in names]


def _is_public(path: Path) -> bool:
    """Whether others may read a draft; what has gone meanwhile nobody reads."""
    with contextlib.suppress(FileNotFoundError):
        info = path.lstat()
        return stat.S_ISREG(info.st_mode) and stat.S_IMODE(info.st_mode) != 0o600 and info.st_size > 0
    return False


def _recorded(yard: Yard, lookout: Lookout) -> bool:
    """A result is recorded, and has no name yet."""
    publishing, named = _at_work(yard, lookout)
    return publishing and not named


def _named(yard: Yard, lookout: Lookout) -> bool:
    """A result has its name, and that is not recorded yet."""
    publishing, named = _at_work(yard, lookout)
    return publishing and bool(named)


def _half_cleared(yard: Yard, lookout: Lookout) -> bool:
    """A result is done, and its original is still there; or it is already at its other place as well."""
    originals = [name for name in lookout.out.copy() if os.path.lexists(yard.inbox / name)]
    if yard.plan.policy == "move":
        return any(os.path.lexists(yard.moved / name) for name in originals)
    return bool(originals) and not _at_work(yard, lookout)[0]


def _at_work(yard: Yard, lookout: Lookout) -> tuple[bool, list[Path]]:
    """Ask the journal whether a result is being published; and which files at work have a named one."""
    with contextlib.suppress(OutputError):
        figures = read_stats(yard.outbox, 0.0)
        if figures is not None:
            at_work = [name for name, _ in figures.in_progress]
            named = [name for name in at_work if name in lookout.out or os.path.lexists(yard.outbox / name)]
            return bool(figures.counts.get(FileState.PUBLISHING)), named
    return False, []


def _possible(yard: Yard) -> int:
    """Return how many results there can be by now."""
    return sum(name in yard.expected for name in yard.dropped.copy()) or 1


def _log(yard: Yard, number: int) -> str:
    return (yard.work / f"log-{number}").read_text("utf-8", "backslashreplace")[-2000:]


def _last_life(yard: Yard, lookout: Lookout, dropper: Dropper, looking: Future[None]) -> Iterator[str]:
    """Start the daemon and let it come to rest, then ask it to stop; yield what it did instead."""
    number = yard.plan.kills
    process = yard.start(yard.work / f"log-{number}")
    with ended(process, yard):
        for _ in ticks(yard.plan.longest_wait):
            if process.poll() is not None or len(lookout.out) > lookout.started or len(lookout.out) >= _possible(yard):
                break
        dropper.allowed = yard.plan.photos
        if not _rested(yard, lookout, process, looking):
            yield f"did not come to rest: {_log(yard, number)}"
        process.send_signal(signal.SIGTERM)
        process.wait(LONGEST_WAIT_SECONDS)
        yield from survivors(yard)
    if process.returncode or "Traceback" in _log(yard, number):
        yield f"the daemon ended by itself ({process.returncode}): {_log(yard, number)}"


def _rested(yard: Yard, lookout: Lookout, process: subprocess.Popen[str], looking: Future[None]) -> bool:
    """Wait until everything is done and nothing happens any more; False when that does not come."""
    since = None
    with contextlib.suppress(TimeoutError):
        for number, _ in enumerate(ticks(yard.plan.longest_wait)):
            if process.poll() is not None or looking.done():
                return False
            if number % ASK_EVERY:
                continue
            if not _all_done(yard, lookout):
                since = None
            elif since is None:
                since = time.monotonic()
            elif time.monotonic() - since > REST_SECONDS:
                return True
    return False


def _all_done(yard: Yard, lookout: Lookout) -> bool:
    if len(yard.dropped.copy()) < yard.plan.photos or len(lookout.out) < len(yard.expected):
        return False
    stay = yard.stay()
    if len(stay) > yard.plan.kills:
        return False
    if any(os.path.lexists(yard.inbox / name) == yard.goes(name) for name in yard.originals.keys() - stay):
        return False
    told = json.loads(blurguard("status", yard.outbox, "--json").stdout)
    known = told["queued"], told["working"], told["done"] + told["failed"]
    return told["state"] == "running" and known == (0, 0, yard.plan.photos)


def wrong_at_rest(yard: Yard, lookout: Lookout) -> Iterator[str]:
    """Yield what must not be once all is done and the daemon has stopped."""
    if len(yard.stay()) > yard.plan.kills:
        yield "more originals stay than the daemon was killed"
    for name in yard.originals:
        yield from _wrong_original(yard, name)
        if lookout.out[name] != (name in yard.expected):
            yield f"{os.fspath(name)!r}: came out {lookout.out[name]} times"
    for name in yard.damaged:
        yield from _wrong_note(yard, name)
    for folder, names in _belongings(yard):
        for stray in sorted(_files_in(folder) ^ names):
            yield f"{os.fspath(stray)!r}: {'missing from' if stray in names else 'a stray file in'} {folder.name}"
    if (yard.outbox / ".blurguard" / "scratch").exists():
        yield "the daemon left scratch behind"
    with open_journal(yard.outbox) as journal:
        rows = dict(journal.all_in(*FileState))
    for name in yard.originals.keys() | rows.keys():
        if told := _wrong_row(yard, name, rows.get(name), lookout.stamps.get(name)):
            yield f"{os.fspath(name)!r}: journal: {told}"


def _wrong_original(yard: Yard, name: Path) -> Iterator[str]:
    """An original is where it must be, and what it was."""
    if name in yard.expected:
        kept = [yard.inbox] if name in yard.stay() else []
        places = {"keep": [yard.inbox], "move": [yard.moved], "delete": kept}[yard.plan.policy]
    else:
        places = [yard.failed if yard.plan.has_failed else yard.inbox]
    for folder in (yard.inbox, yard.moved, yard.failed):
        path = folder / name
        content = path.read_bytes() if path.is_file() else None
        if content != (yard.originals[name] if folder in places else None):
            yield f"{os.fspath(name)!r}: an original is not as it must be in {folder.name}"


def _wrong_note(yard: Yard, name: Path) -> Iterator[str]:
    try:
        note = json.loads(yard.note_on(name).read_bytes())
        told = bytes.fromhex(note["name_bytes"]) if "name_bytes" in note else os.fsencode(note["name"])
        if told != os.fsencode(name) or not note["reason"] or note["size"] != len(yard.originals[name]):
            yield f"{os.fspath(name)!r}: its note tells something else: {note}"
    except (OSError, ValueError, KeyError) as error:
        yield f"{os.fspath(name)!r}: has no note: {error}"


def _belongings(yard: Yard) -> Iterator[tuple[Path, set[Path]]]:
    """Yield each folder and the files that must be there, and no others."""
    plan = yard.plan
    notes = {yard.note_on(name).relative_to(yard.notes) for name in yard.damaged}
    yield yard.outbox, set() if plan.consumer else set(yard.expected)
    yield yard.inbox, {name for name in yard.originals if not yard.goes(name)} | yard.stay()
    yield yard.moved, set(yard.expected) if plan.policy == "move" else set()
    yield yard.failed, {*yard.damaged, *notes} if plan.has_failed else set()
    yield yard.outbox / ".blurguard" / "failed", set() if plan.has_failed else notes


def _files_in(folder: Path) -> set[Path]:
    """Return the names of all files in a folder; what is ours in an outbox has its own rules."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return {name for name in found if name.parts[0] != ".blurguard"}


def _wrong_row(yard: Yard, name: Path, entry: FileRecord | None, stamp: tuple[int, int] | None) -> str:
    """Return what is wrong with what the journal tells of a file, "" for nothing."""
    if entry is None or name not in yard.originals:
        return "has no row" if entry is None else "is of no file"
    if name not in yard.expected:
        return "" if entry.state is FileState.FAILED and entry.error else f"is {entry.state}, not failed"
    if entry.state is not FileState.DONE:
        return f"is {entry.state}, not done"
    facts = digest_bytes(yard.originals[name]), digest_bytes(yard.expected[name]), stamp
    told = entry.source_digest, entry.output_digest, (entry.output_size, entry.output_mtime_ns)
    return "" if facts == told else "tells of other files"
