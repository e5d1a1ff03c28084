"""The long fault runs: ``python -m bench.campaign [--kills N] [--films N] [--drops N] [--mutations N] [--out FILE]``.

Kills: a batch is ended with SIGKILL at a seeded moment, its remains are inspected, and it is run again
(`bench.faults.kills.kill_once`). Drops: the same is done to a drop folder's daemon, again and again, while files come
in and everything is inspected all the time (`bench.faults.drop_kills.kill_again`). Mutations: files of every kind with
seeded damage go through ``Anonymizer.process`` in processes that may crash or hang. Prints the tables of
``docs/reliability.md``. The exit code is 1 when there is a fault of any sort.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as OutOfTime
from multiprocessing import get_context
from pathlib import Path

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from bench.faults.drop_kills import WatchResult, kill_again
from bench.faults.dropping import Plan
from bench.faults.kills import KillResult, kill_once, make_films, make_photos
from bench.faults.samples import ALL, FACE, sample
from bench.faults.stubs import StubDetector
from bench.measure import machine
from blurguard import Anonymizer, BlurguardError, Settings
from blurguard.batch.process import configure_process
from blurguard.files.filetypes import type_of_file
from blurguard.images.formats import open_image
from calibration.tables import table

LIMIT_SECONDS = 30.0  # for one damaged file of 64 x 48 px; whole ones take 10 ms
WORKERS = 2
AHEAD = 200  # files handed out before the first of them is back
MOST_BYTES_CHANGED = 24
DROPPED_KINDS = 6  # pictures that differ, dropped under many names
HEAD_BYTES = 300  # damage to structure says more than damage to pixels: half of it goes here

# Words in the faults that ``kill_once`` tells -> row of the table.
FAULT_KINDS = {
    "neither whole and hidden nor absent": "partial or foreign outputs",
    "is not of a hidden picture": "unhidden pixels in scratch",
    "others may read it": "scratch that others may read",
    "not private": "scratch that others may read",
    "an original was touched": "originals touched",
    "left scratch behind": "scratch left after the next run",
    "processes live on": "orphan processes",
    "the next run": "next runs that did not complete",
    "were finished, but": "next runs that did not complete",
}
# The same for those that ``kill_again`` tells.
DROP_FAULT_KINDS = {
    "neither whole and hidden nor absent": "partial or foreign outputs",
    "is not of a hidden picture": "unhidden pixels in scratch",
    "others may read it": "scratch that others may read",
    "not private": "scratch that others may read",
    "came out": "outputs that came out twice, or not at all",
    "an original": "originals lost, changed or in the wrong place",
    "its note": "failures without a note",
    "has no note": "failures without a note",
    "journal:": "rows of the journal that are not true",
    "a stray file": "files left behind",
    "missing from": "files left behind",
    "not ours": "files left behind",
    "left scratch behind": "files left behind",
    "processes live on": "orphan processes",
    "ended by itself": "daemons that ended by themselves or found no rest",
    "did not come to rest": "daemons that ended by themselves or found no rest",
}
OTHER = "other faults"
WHOLE, CLEAN = "whole", "failed cleanly"
VERDICTS = (WHOLE, CLEAN, "crashed", "hung", "unforeseen error", "output not whole", "left something behind")


def kills(count: int, first_seed: int, make: Callable[[Path], Path]) -> tuple[list[KillResult], str]:
    """Kill ``count`` batches of the files that ``make`` writes; return what was found, and the markdown of it."""
    results = []
    with tempfile.TemporaryDirectory(prefix="blurguard-kills-") as folder:
        photos = make(Path(folder) / "photos")
        for seed in range(first_seed, first_seed + count):
            with tempfile.TemporaryDirectory(dir=folder) as work:
                results.append(kill_once(seed, photos, Path(work)))
            for fault in results[-1].faults:
                print(f"seed {seed}: {fault}", file=sys.stderr, flush=True)
    return results, kills_table(results)


def kills_table(results: list[KillResult]) -> str:
    """Return the counts as markdown; every row under the third must be 0."""
    faults = Counter(kind_of_fault(fault) for result in results for fault in result.faults)
    whom = Counter(result.whom for result in results)
    rows = [
        ("batches killed", f"{len(results)} ({whom['group']} whole groups, {whom['parent']} parents alone)"),
        ("– of these replacing originals in place", str(sum(result.in_place for result in results))),
        ("files looked at", str(sum(result.photos for result in results))),
        ("– finished when the kill came", str(sum(result.finished for result in results))),
        ("– drafts in scratch when the kill came", str(sum(result.drafts for result in results))),
        *((kind, str(faults[kind])) for kind in dict.fromkeys([*FAULT_KINDS.values(), OTHER])),
    ]
    return table(("", "count"), rows)


def kind_of_fault(fault: str, kinds: dict[str, str] = FAULT_KINDS) -> str:
    """Return the row in which a fault is counted."""
    return next((kind for words, kind in kinds.items() if words in fault), OTHER)


def drops(plans: Iterable[Plan]) -> tuple[list[WatchResult], str]:
    """Drop files into watched folders, one after another; return what was found, and the markdown of it."""
    results = []
    with tempfile.TemporaryDirectory(prefix="blurguard-drops-") as folder:
        photos = make_photos(Path(folder) / "photos", DROPPED_KINDS)
        for plan in plans:
            with tempfile.TemporaryDirectory(dir=folder) as work:
                results.append(kill_again(plan, photos, Path(work) / "work"))
            for fault in results[-1].faults:
                print(f"seed {plan.seed}: {fault}", file=sys.stderr, flush=True)
    return results, drops_table(results)


def drops_table(results: list[WatchResult]) -> str:
    """Return one column for each run as markdown; every row under the results must be 0."""
    plans = [result.plan for result in results]
    faults = [Counter(kind_of_fault(fault, DROP_FAULT_KINDS) for fault in result.faults) for result in results]
    rows: list[tuple[str, Iterable[object]]] = [
        ("originals", (plan.policy for plan in plans)),
        ("those that fail", ("moved" if plan.has_failed else "left" for plan in plans)),
        ("outputs are taken away at once", ("yes" if plan.consumer else "no" for plan in plans)),
        ("dropped", ("before the start" if plan.standing else "all the while" for plan in plans)),
        ("files", (plan.photos for plan in plans)),
        ("– of these damaged", (plan.corrupt for plan in plans)),
        ("kills (of all processes at once)", (f"{len(r.standing)} ({r.groups})" for r in results)),
        ("outputs when the kills came", (", ".join(map(str, r.standing)) for r in results)),
        ("looks at everything", (result.looks for result in results)),
        ("minutes", (f"{result.seconds / 60:.1f}" for result in results)),
        ("files with a result", (result.results for result in results)),
        *((kind, (c[kind] for c in faults)) for kind in dict.fromkeys([*DROP_FAULT_KINDS.values(), OTHER])),
    ]
    heads = ("", *(f"seed {plan.seed}" for plan in plans))
    return table(heads, [(what, *map(str, values)) for what, values in rows])


def damaged(data: bytes, seed: str) -> bytes:
    """Return the file with seeded damage: some bytes changed, or its end missing, or a piece taken out."""
    chance = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    broken = bytearray(data)
    what = chance.random()
    if what < 0.1:
        return bytes(broken[: chance.randrange(len(broken))])
    if what < 0.2:
        start = chance.randrange(len(broken))
        del broken[start : start + chance.randint(1, 64)]
        return bytes(broken)
    reach = min(HEAD_BYTES, len(broken)) if chance.random() < 0.5 else len(broken)
    for _ in range(chance.randint(1, MOST_BYTES_CHANGED)):
        broken[chance.randrange(reach)] = chance.choice((0, 255, chance.randrange(256)))
    return bytes(broken)


_anonymizer: Anonymizer


def _start() -> None:
    """Set up a worker: no network, one face in every picture, and a bound on what a broken header may ask for."""
    global _anonymizer  # noqa: PLW0603 - the pool gives tasks no other place to keep a worker's state
    configure_process()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders have much to say on damaged files
    _anonymizer = Anonymizer(Settings(max_pixels=1_000_000), StubDetector((FACE,)))


def process_damaged(data: bytes) -> str:
    """Put one damaged file through ``Anonymizer.process`` and return the verdict."""
    with tempfile.TemporaryDirectory(prefix="blurguard-mutation-") as folder:
        source, target = Path(folder) / "in" / "picture", Path(folder) / "out" / "picture"
        source.parent.mkdir()
        source.write_bytes(data)
        try:
            outcome = _anonymizer.process(source, target)
        except BlurguardError:
            left = [path for path in target.parent.rglob("*") if path.is_file()]
            return "left something behind" if left else CLEAN
        except Exception as error:
            return f"unforeseen error: {type(error).__name__}: {error}"
        size = outcome.width, outcome.height, outcome.frames
        only = [path for path in target.parent.rglob("*") if path.is_file()] == [target]
        return WHOLE if only and _read_back(target) == size else "output not whole"


def _read_back(path: Path) -> tuple[int, int, int] | None:
    """Decode an output in full: width, height and count of its pages; None when it is damaged."""
    try:
        still = open_image(path.read_bytes(), type_of_file(path), path.name, 1_000_000)
        return still.width, still.height, sum(1 for _ in still.pages())
    except BlurguardError:
        return None


def mutations(count: int, seed: int) -> tuple[dict[str, Counter[str]], int]:
    """Damage every sample ``count`` times; return the verdicts by format, and how many were not clean."""
    verdicts: dict[str, Counter[str]] = {}
    cases = ((name, f"{seed}/{name}/{index}") for name in ALL for index in range(count))
    bad = 0
    for name, case, verdict in _tried(cases):
        short = verdict.partition(":")[0]
        verdicts.setdefault(name.removeprefix("animated-").partition("-")[0], Counter())[short] += 1
        if short not in (WHOLE, CLEAN):
            bad += 1
            print(f"{case}: {verdict}", file=sys.stderr, flush=True)
    return verdicts, bad


def _tried(cases: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """Yield the verdict on each case, worked on by processes that are replaced when they crash or hang."""
    pending: deque[tuple[str, str, ProcessFuture[str]]] = deque()
    with ProcessPool(WORKERS, initializer=_start, context=get_context("spawn")) as pool:
        for name, case in cases:
            data = damaged(sample(name), case)
            pending.append((name, case, pool.schedule(process_damaged, args=[data], timeout=LIMIT_SECONDS)))
            if len(pending) >= AHEAD:
                yield _settled(*pending.popleft())
        while pending:
            yield _settled(*pending.popleft())


def _settled(name: str, case: str, future: ProcessFuture[str]) -> tuple[str, str, str]:
    return name, case, _verdict(future.result)


def _verdict(result: Callable[[], str]) -> str:
    try:
        return result()
    except OutOfTime:
        return "hung"
    except ProcessExpired as error:
        code = error.exitcode or 0
        return f"crashed: {signal.Signals(-code).name if code < 0 else code}"


def mutations_table(verdicts: dict[str, Counter[str]]) -> str:
    """Return the counts as markdown; every column but the first two must be 0."""
    total = sum(verdicts.values(), Counter())
    rows = [(name, *(str(counts[v]) for v in VERDICTS)) for name, counts in [*verdicts.items(), ("all", total)]]
    return table(("format", *VERDICTS), rows)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.campaign", description="The long fault runs.")
    parser.add_argument("--kills", type=int, default=100, help="batches to kill (default: %(default)s)")
    parser.add_argument("--films", type=int, default=50, help="batches of videos to kill (default: %(default)s)")
    parser.add_argument("--drops", type=int, default=2000, help="files for each drop folder (default: %(default)s)")
    parser.add_argument(
        "--drop-kills", type=int, default=20, help="of each drop folder's daemon (default: %(default)s)"
    )
    parser.add_argument("--drop-runs", type=int, default=3, help="drop folders (default: %(default)s)")
    parser.add_argument("--standing", type=int, default=10_000, help="files before the start (default: %(default)s)")
    parser.add_argument("--mutations", type=int, default=200, help="damaged files per kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the first kill and drop folder, and of all mutations")
    parser.add_argument("--out", type=Path, help="write the tables to this file as well")
    args = parser.parse_args()
    parts, faults, started = [f"{machine()}\n"], 0, time.monotonic()
    for count, make, what in ((args.kills, make_photos, "Batches"), (args.films, make_films, "Batches of videos")):
        if count:
            results, told = kills(count, args.seed, make)
            faults += sum(len(result.faults) for result in results)
            parts.append(f"## {what} killed at random moments\n\nSeeds {args.seed} and following.\n\n{told}\n")
    plans = [Plan(args.seed + run, args.drops, args.drop_kills) for run in range(args.drop_runs if args.drops else 0)]
    plans += [Plan(args.seed - 1, args.standing, 1, standing=True)] if args.standing else []
    if plans:
        dropped, told = drops(plans)
        faults += sum(len(result.faults) for result in dropped)
        parts.append(f"## Drop folders whose daemon is killed\n\n{told}\n")
    if args.mutations:
        verdicts, bad = mutations(args.mutations, args.seed)
        faults += bad
        about = f"Seed {args.seed}, {args.mutations} damaged files of each of {len(ALL)} kinds of picture."
        parts.append(f"## Damaged files\n\n{about}\n\n{mutations_table(verdicts)}\n")
    parts.append(f"{faults} faults in {(time.monotonic() - started) / 60:.0f} minutes.\n")
    print("\n".join(parts))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(parts), encoding="utf-8")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
