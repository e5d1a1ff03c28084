"""Clocks, medians and markdown: what all measurements share.

Other programs may use the same processors meanwhile. So a time never stands alone: it is compared with one of
the same run, taken in turns with it, and CPU time stands beside wall time.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from calibration.tables import table

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ai-edge-litert", "tflite-runtime", "numpy", "opencv-python-headless", "pillow", "simplejpeg")


@dataclass(frozen=True, slots=True)
class Cost:
    """What something took: seconds of wall time, and of CPU time of all threads and waited-for children."""

    wall: float
    cpu: float

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.wall - other.wall, self.cpu - other.cpu)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.cpu + other.cpu)

    def per(self, count: int) -> Cost:
        """Return the cost of one of ``count``."""
        return Cost(self.wall / count, self.cpu / count)


def now() -> Cost:
    """Return the clocks of this process; differences of two are costs."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(time.perf_counter(), time.process_time() + children.ru_utime + children.ru_stime)


def cost_of(action: Callable[[], object]) -> Cost:
    """Return what one call takes."""
    before = now()
    action()
    return now() - before


def median(costs: Iterable[Cost]) -> Cost:
    """Return the median wall time and the median CPU time."""
    many = list(costs)
    return Cost(statistics.median(c.wall for c in many), statistics.median(c.cpu for c in many))


def ratio(ours: Iterable[Cost], theirs: Iterable[Cost]) -> Cost:
    """Return the medians of ours / theirs, pair by pair: each pair was measured in one moment."""
    return median(Cost(a.wall / b.wall, a.cpu / b.cpu) for a, b in zip(ours, theirs, strict=True))


def command_cost(command: Sequence[str | Path], cwd: Path | None = None) -> Cost:
    """Return what a whole command takes, start-up included.

    Raises:
        RuntimeError: it failed; tells the end of what it said.
    """
    before = now()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} ended with {done.returncode}: {done.stderr[-2000:]}")
    return now() - before


@dataclass(frozen=True, slots=True)
class Target:
    """One promise about speed or memory beside what was measured."""

    name: str
    wanted: str
    measured: str
    met: bool


@dataclass(frozen=True, slots=True)
class Section:
    """One measurement as it stands in the report."""

    title: str
    method: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    targets: Sequence[Target] = field(default_factory=tuple)

    def markdown(self) -> str:
        """Return title, method and table."""
        return f"## {self.title}\n\n{self.method}\n\n{table(self.headers, self.rows)}\n"


def targets_table(targets: Iterable[Target]) -> str:
    """Return all promises, met or not, as markdown."""
    rows = [(t.name, t.wanted, t.measured, "met" if t.met else "**NOT met**") for t in targets]
    return table(("promise", "target", "measured", ""), rows)


def machine() -> str:
    """Name the machine by what matters for speed, and the software by version."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    software = ", ".join(filter(None, map(_versioned, PACKAGES)))
    return (
        f"{_processor()}, {cores} cores, {memory:.0f} GiB; {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}; {software}. Load before the run: {os.getloadavg()[0]:.1f}."
    )


def _versioned(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def python_command(module: str, *arguments: str | Path) -> list[str]:
    """Return the command that runs a module with this Python."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def ms(seconds: float) -> str:
    """Return milliseconds as a cell."""
    return f"{seconds * 1000:.1f}"


def times(number: float) -> str:
    """Return a ratio as a cell."""
    return f"{number:.2f}×"
