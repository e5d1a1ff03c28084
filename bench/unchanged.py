"""``python -m bench.unchanged --baseline REV``: does this checkout do the same as that commit?

The commit's own results on this machine are what is expected: detection in whole numbers differs between
processors, so nothing that was made elsewhere would do. They are made twice, once for all, and kept beside the
inputs; fields in which the two differ cannot be compared, and are listed. Then this checkout does the same, and
opens folders that the commit has just made. blurguard is run as a command and used as a library; nothing of its
insides is known here. Exit code 1: something has changed.

    --current FOLDER   another checkout than the one that this file lies in
    --data FOLDER      test data, with hostile_images/ and video/; $BG_TEST_DATA by default
    --only NAME        only the runs with this in their name
    --work FOLDER      where all of it is kept; ~/.cache/blurguard-unchanged by default
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from bench.unchanged_inputs import make_inputs
from bench.unchanged_runs import Record, Side, recorded, reopened

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(Path(__file__).parent.glob("unchanged*.py"))
LONGEST = 110  # characters of a value that are printed
REOPENED = "reopened"
Flat = dict[tuple[str, ...], Any]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One run beside what was expected of it: counts, and each difference as a line."""

    run: str
    files: int
    frames: int
    fields: int
    differences: list[str]
    unsteady: list[str]


def flat(value: Any, *above: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each leaf with the keys that lead to it."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(inner, *above, str(key))
    else:
        yield above, value


def compared(run: str, expected: list[Record], there: Record) -> Comparison:
    """Compare a run with those of the baseline; what is not the same in all of these is no difference."""
    first, *others = (dict(flat(json.loads(json.dumps(record)))) for record in expected)
    now: Flat = dict(flat(json.loads(json.dumps(there))))
    absent = "(absent)"
    unsteady = {key for other in others for key in first.keys() | other.keys() if first.get(key) != other.get(key)}
    differences = [
        f"{run} | {' / '.join(key)}: {_short(first.get(key, absent))} -> {_short(now.get(key, absent))}"
        for key in sorted((first.keys() | now.keys()) - unsteady)
        if first.get(key, absent) != now.get(key, absent)
    ]
    frames = sum(key[-1] == "pixels" for key in now)
    lines = [f"{run} | {' / '.join(key)}" for key in sorted(unsteady)]
    return Comparison(run, len(there), frames, len(first.keys() - unsteady), differences, lines)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def baseline(revision: str, work: Path, data: Path | None) -> tuple[Side, list[dict[str, Record]]]:
    """Return the commit's checkout and both its results, which are made unless they are there."""
    commit = _git("rev-parse", "--verify", f"{revision}^{{commit}}").decode().strip()
    installed = sorted(f"{found.name} {found.version}" for found in distributions())
    what = [commit, str(data), sys.version, *installed, *(path.read_text("utf-8") for path in SCRIPTS)]
    home = work / f"{commit[:12]}-{hashlib.blake2b(json.dumps(what).encode(), digest_size=6).hexdigest()}"
    side = Side(home / "checkout", home / "inputs", home, data)
    if not (home / "expected.json").exists():
        print(f"making the expected results in {home}", flush=True)
        shutil.rmtree(home, ignore_errors=True)
        with tarfile.open(fileobj=io.BytesIO(_git("archive", commit))) as archive:
            archive.extractall(side.checkout, filter="data")
        make_inputs(side.inputs)
        made = []
        for _ in range(2):
            with tempfile.TemporaryDirectory(dir=home) as scratch:
                made.append(dict(recorded(replace(side, scratch=Path(scratch)))))
        (home / "expected.json").write_text(json.dumps(made), "utf-8")
    return side, json.loads((home / "expected.json").read_text("utf-8"))


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, stdout=subprocess.PIPE).stdout


def compare(checkout: Path, base: Side, expected: list[dict[str, Record]], only: str) -> Iterator[Comparison]:
    """Run the checkout and yield each run's comparison."""
    with tempfile.TemporaryDirectory(dir=base.scratch) as scratch:
        current = replace(base, checkout=checkout, scratch=Path(scratch, "current"))
        for run, record in recorded(current, only):
            yield compared(run, [made[run] for made in expected], record)
        if only in REOPENED:
            for run, wanted, there in reopened(replace(base, scratch=Path(scratch, "base")), current):
                yield compared(f"{REOPENED}: {run}", [wanted], there)


def main() -> int:
    """Compare, print a table and the differences."""
    parser = argparse.ArgumentParser(prog="python -m bench.unchanged", description=__doc__.splitlines()[0])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blurguard-unchanged"
    test_data = os.environ.get("BG_TEST_DATA")
    parser.add_argument("--baseline", required=True, metavar="REV")
    parser.add_argument("--current", type=Path, default=ROOT, metavar="FOLDER")
    parser.add_argument("--data", type=Path, default=Path(test_data) if test_data else None, metavar="FOLDER")
    parser.add_argument("--only", default="", metavar="NAME")
    parser.add_argument("--work", type=Path, default=cache, metavar="FOLDER")
    options = parser.parse_args()
    data = options.data.resolve() if options.data else None
    base, expected = baseline(options.baseline, options.work.resolve(), data)
    started = time.monotonic()
    print(f"{'run':<26} {'files':>6} {'frames':>7} {'fields':>7} {'differences':>12} {'seconds':>8}")
    done, lap = [], started
    for one in compare(options.current.resolve(), base, expected, options.only):
        row = f"{one.run:<26} {one.files:>6} {one.frames:>7} {one.fields:>7} {len(one.differences):>12}"
        print(f"{row} {time.monotonic() - lap:>8.1f}", flush=True)
        done.append(one)
        lap = time.monotonic()
    for line in (line for one in done for line in one.unsteady):
        print(f"not compared, as the baseline differs from itself: {line}")
    different = [line for one in done for line in one.differences]
    print("\n".join(different))
    print(f"{len(done)} runs, {len(different)} differences, {time.monotonic() - started:.0f} s")
    return 1 if different or not done else 0


if __name__ == "__main__":
    sys.exit(main())
