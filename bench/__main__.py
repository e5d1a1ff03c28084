"""``python -m bench [speed|peers|memory|startup|video|drop ...] [--photos N] [--rounds N] ...``: markdown.

Every promise about speed and memory stands beside what was measured. The exit code is 0 also where one is not
met: a machine that is busy or slow is no fault of the program's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import drop, likeness, memory, peers, speed, stages, startup, video
from bench.measure import Section, machine, targets_table
from bench.photos import common_photos, examples, large_photos, repeated, small_photos
from blurguard import Mode

FLAT_PHOTOS = 1000
DEFACE_SHARE = 5  # deface is slow: it gets this part of the photos
LARGE_FOR_DEFACE = 16
# Photos/s without start-up, times those of deface.
COMMON_AIMS = {Mode.FAST: 8.0, Mode.ACCURATE: 1.5}
LARGE_AIMS = {Mode.FAST: 30.0, Mode.ACCURATE: 2.0}


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line chose.

    Attributes:
        photos: in a batch.
        rounds: of each comparison.
        pin: whether each worker of a batch stays on a processor of its own.
        minutes: length of the long video.
        clips: folder of videos that are compared with their results; None for composed ones.
    """

    photos: int
    rounds: int
    pin: bool
    minutes: float
    clips: Path | None


def run_speed(work: Path, options: Options) -> Iterator[Section]:
    """Fast mode against OpenCV; two workers against one, on both kinds of libraries."""
    large = large_photos(work / "large")
    yield speed.fast_against_opencv(large, 3 * options.rounds)
    plan = speed.Plan(options.rounds, large[0].path.read_bytes(), options.pin)
    common = [photo.path for photo in common_photos(work / "common")]
    repeated([*examples(), *common], work / "mixed", options.photos)
    yield speed.two_workers("examples and photos of 1 to 2 Mpx, accurate", work / "mixed", Mode.ACCURATE, plan)
    repeated([photo.path for photo in large], work / "many_large", options.photos)
    yield speed.two_workers("12-Mpx photos, fast", work / "many_large", Mode.FAST, plan)


def run_peers(work: Path, options: Options) -> Iterator[Section]:
    """Photos per second against deface, small and large ones."""
    count = max(options.photos // DEFACE_SHARE, 2 * peers.FEW)
    common = common_photos(work / "peer_common")
    yield peers.against_deface(peers.Folder("photos of 1 to 2 Mpx", common, count, COMMON_AIMS), options.rounds)
    large = large_photos(work / "peer_large")
    yield peers.against_deface(peers.Folder("12-Mpx photos", large, LARGE_FOR_DEFACE, LARGE_AIMS), options.rounds)


def run_memory(work: Path, options: Options) -> Iterator[Section]:
    """Peaks, and memory over a thousand photos, whatever the number asked for."""
    named = {"12-Mpx": large_photos(work / "peak", 1)[0], "2-Mpx": common_photos(work / "peak", 1)[0]}
    yield memory.peaks(named)
    small = [photo.path for photo in small_photos(work / "small")]
    repeated(small, work / "thousand", FLAT_PHOTOS)
    for mode in Mode:
        yield memory.flatness(work / "thousand", mode)


def run_startup(work: Path, options: Options) -> Iterator[Section]:
    """The command's help."""
    yield startup.help_time()


def run_video(work: Path, options: Options) -> Iterator[Section]:
    """Frames per second against deface, stages, memory over length, size and likeness of the results."""
    folder = work / "video"
    folder.mkdir()
    yield video.against_deface(folder, options.rounds)
    yield stages.by_stage(folder)
    yield likeness.against_sources(folder, options.clips)
    yield video.memory(folder, options.minutes)


def run_drop(work: Path, options: Options) -> Iterator[Section]:
    """The drop folder: memory over thousands of photos, latency, files per second."""
    folder = work / "drop"
    folder.mkdir()
    yield drop.flatness(folder / "flatness")
    yield drop.latency(folder / "latency")
    yield drop.throughput(folder / "throughput", options.rounds)


RUNS: dict[str, Callable[[Path, Options], Iterator[Section]]] = {
    "speed": run_speed,
    "peers": run_peers,
    "memory": run_memory,
    "startup": run_startup,
    "video": run_video,
    "drop": run_drop,
}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure speed and memory.")
    parser.add_argument("what", nargs="*", help=f"any of {', '.join(RUNS)} (default: all)")
    parser.add_argument("--photos", type=int, default=200, help="in a batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each comparison (default: %(default)s)")
    parser.add_argument("--pin", action="store_true", help="keep each worker of a batch on a processor of its own")
    parser.add_argument("--minutes", type=float, default=20.0, help="of the long video (default: %(default)s)")
    parser.add_argument("--clips", type=Path, help="folder of videos to compare with their results")
    parser.add_argument("--out", type=Path, help="write the tables to this file as well")
    args = parser.parse_args()
    if unknown := set(args.what) - set(RUNS):
        parser.error(f"cannot measure {', '.join(sorted(unknown))}")
    options, about = Options(args.photos, args.rounds, args.pin, args.minutes, args.clips), machine()
    sections = []
    with tempfile.TemporaryDirectory(prefix="blurguard-bench-") as folder:
        for name in args.what or RUNS:
            for section in RUNS[name](Path(folder), options):
                sections.append(section)
                print(section.markdown(), flush=True)
    summary = f"## Promises\n\n{about}\n\n{targets_table(t for s in sections for t in s.targets)}\n"
    print(summary)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join([summary, *(s.markdown() for s in sections)]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
