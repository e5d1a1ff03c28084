"""How fast: against OpenCV on one file after the other, and two workers against one."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import socket
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from bench.measure import Cost, Section, Target, cost_of, median, ms, now, ratio, times
from bench.photos import QUALITY, Photo
from blurguard import Anonymizer, Mode, Settings, Status
from blurguard.anonymize.pages import hide_into
from blurguard.batch.output_tree import FolderTask
from blurguard.batch.runner import anonymize_folder
from blurguard.batch.workers import WorkerConfig
from blurguard.files.atomic import digest_bytes, publish, scratch_in, stage_bytes
from blurguard.files.filetypes import type_of_file
from blurguard.images.formats import open_image
from blurguard.types import Image

OPENCV_AT_MOST = 2.0
TWO_JOBS_AT_LEAST = 1.8
WARM_UP_FILES = 10  # of a batch, until every worker has built its interpreters
BURNT_PER_PROCESS = 25

_PINNED = {False: "", True: ", each kept on a processor of its own"}

_claims: list[socket.socket] = []  # of this process

Stages = dict[str, Cost]


@dataclass(frozen=True, slots=True)
class Plan:
    """How two workers are compared with one.

    Attributes:
        rounds: of all three measurements, in turns.
        burn: a JPEG for the machine's own limit.
        pin: keep every worker on a processor of its own; some systems put two busy processes on one.
    """

    rounds: int
    burn: bytes
    pin: bool


def opencv_round_trip(data: bytes) -> None:
    """Decode and encode a JPEG in memory, as OpenCV does it."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None  # noqa: S101 - our own file
    cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


def fast_against_opencv(photos: list[Photo], rounds: int) -> Section:
    """Measure fast mode, file to file, against OpenCV's decode and encode of the same bytes, in turns."""
    cv2.setNumThreads(1)
    anonymizer = Anonymizer(Settings(mode=Mode.FAST))
    ours, theirs, stages = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.jpg"
        work = functools.partial(anonymizer.process, target=target, replace_existing=True)
        for photo in photos:  # builds the interpreters
            work(photo.path)
        for photo in photos * rounds:
            data = photo.path.read_bytes()
            theirs.append(cost_of(functools.partial(opencv_round_trip, data)))
            ours.append(cost_of(functools.partial(work, photo.path)))
            stages.append(staged(anonymizer, photo.path, target))
    return _opencv_section(median(ours), median(theirs), ratio(ours, theirs), stages)


def _opencv_section(ours: Cost, theirs: Cost, times_theirs: Cost, stages: list[Stages]) -> Section:
    rows = [_cost_row("OpenCV: decode, encode, in memory", theirs, theirs)]
    rows.append(_cost_row("fast mode, file to file, on disk", ours, theirs))
    rows += [_cost_row(f"– {name}", median(s[name] for s in stages), theirs) for name in stages[0]]
    return Section(
        "Fast mode on 12-Mpx JPEGs",
        "One process, one thread, everything warm. Medians; the stages are measured on runs of their own. "
        f"Pair by pair fast mode takes {times(times_theirs.wall)} of OpenCV's wall and {times(times_theirs.cpu)} of "
        "its CPU time.",
        ("", "wall, ms", "CPU, ms", "CPU, share of OpenCV"),
        rows,
        [
            Target(
                "fast mode, 12-Mpx JPEG, against OpenCV's decode and encode (wall / CPU)",
                f"≤ {OPENCV_AT_MOST:g}×",
                f"{times(times_theirs.wall)} / {times(times_theirs.cpu)}",
                max(times_theirs.wall, times_theirs.cpu) <= OPENCV_AT_MOST,
            )
        ],
    )


def _cost_row(name: str, cost: Cost, whole: Cost) -> tuple[str, str, str, str]:
    return name, ms(cost.wall), ms(cost.cpu), times(cost.cpu / whole.cpu)


def staged(anonymizer: Anonymizer, source: Path, target: Path) -> Stages:
    """Handle one picture step by step, as ``Anonymizer.work`` and ``publish`` do; what each step takes."""
    stages: Stages = {}
    clock = now()

    def lap(name: str) -> None:
        nonlocal clock
        stages[name], clock = now() - clock, now()

    settings = anonymizer.settings
    data = source.read_bytes()
    still = open_image(data, type_of_file(source), source.name, settings.max_pixels)
    (page,) = still.pages()
    lap("read, decode")
    found = anonymizer.faces(page.image)
    lap("detect")
    pixels = page.image.pixels if page.image.pixels.flags.writeable else page.image.pixels.copy()
    image = Image(pixels, page.image.layout)
    hide_into(image, [region for _, region in found], settings)
    lap("hide")
    encoded = still.encode([type(page)(image, options=page.options)])
    lap("encode")
    digest_bytes(data)
    with scratch_in(target.parent) as scratch:
        publish(stage_bytes(scratch, encoded), target, replace=True)
    lap("digests, write, fsync, rename")
    return stages


def two_workers(name: str, folder: Path, mode: Mode, plan: Plan) -> Section:
    """Measure ``anonymize_folder`` with two workers against one, and OpenCV in two processes against one, in turns."""
    rounds, burn, pin = plan.rounds, plan.burn, plan.pin
    one, two, limit = [], [], []
    for _ in range(rounds):
        limit.append(machine_limit(burn, pin))
        one.append(batch_cost(folder, mode, 1, pin))
        two.append(batch_cost(folder, mode, 2, pin))
    gain = statistics.median(a.wall / b.wall for a, b in zip(one, two, strict=True))
    bound = statistics.median(limit)
    a, b = median(one), median(two)
    rows = [
        ("`--jobs 1`", f"{1 / a.wall:.2f}", ms(a.wall), ms(a.cpu)),
        ("`--jobs 2`", f"{1 / b.wall:.2f}", ms(b.wall), ms(b.cpu)),
        ("gain", times(gain), "", ""),
        ("OpenCV alone, two processes against one", times(bound), "", ""),
    ]
    count = sum(1 for _ in folder.iterdir())
    return Section(
        f"Two workers against one: {name}",
        f"`anonymize_folder`, {count} photos, one thread per worker{_PINNED[pin]}, {rounds} rounds in turns. Start-up "
        f"excluded: the wall time runs from the {WARM_UP_FILES}th outcome to the last. CPU time is per photo of the "
        "whole run, workers' start-up included. The last row shows what this machine gave at the same time to two "
        "processes that share nothing but its memory.",
        ("", "photos/s", "wall per photo, ms", "CPU per photo, ms"),
        rows,
        [
            Target(
                f"`--jobs 2` against `--jobs 1`, {name} (the machine's limit in that run)",
                f"≥ {TWO_JOBS_AT_LEAST:g}×",
                f"{times(gain)} ({times(bound)})",
                gain >= TWO_JOBS_AT_LEAST,
            )
        ],
    )


def batch_cost(folder: Path, mode: Mode, workers: int, pin: bool) -> Cost:
    """Return what one photo of a folder takes in a batch; wall without start-up, CPU with it.

    Raises:
        RuntimeError: a photo was not done.
    """
    cv2.setNumThreads(1)
    files = sorted(folder.iterdir())
    before, ticks = now(), []
    with tempfile.TemporaryDirectory() as out:
        task = FolderTask(
            folder, Path(out), WorkerConfig(functools.partial(_pinned, pin, Settings(mode=mode)), workers)
        )
        for outcome in anonymize_folder(task, files):
            if outcome.status is not Status.DONE:
                raise RuntimeError(f"{outcome.source.name}: {outcome.reason}")
            ticks.append(now().wall)
        spent = now() - before
    warm = min(WARM_UP_FILES, len(files) // 2)
    return Cost((ticks[-1] - ticks[warm - 1]) / (len(files) - warm), spent.cpu / len(files))


def _pinned(pin: bool, settings: Settings) -> Anonymizer:
    """Make a worker's ``Anonymizer``; optionally keep the worker on a processor of its own."""
    if pin:
        pin_worker()
    return Anonymizer(settings)


def pin_worker() -> None:
    """Keep this process on a processor that none of its siblings has taken; does nothing in the main process."""
    if multiprocessing.parent_process() is None:
        return
    for core in sorted(os.sched_getaffinity(0)):
        claim = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            claim.bind(f"\0blurguard-bench-{os.getppid()}-{core}")  # a name without a file, ours while we live
            _claims.append(claim)
            os.sched_setaffinity(0, {core})
            return


def machine_limit(data: bytes, pin: bool) -> float:
    """Return how many times as much two processes get done as one, on work that shares nothing."""
    with multiprocessing.get_context("spawn").Pool(2, pin_worker if pin else None) as pool:
        run: Callable[[int], object] = lambda count: pool.map(_burn, [data] * count, chunksize=1)  # noqa: E731
        run(4)
        return 2 * cost_of(lambda: run(1)).wall / cost_of(lambda: run(2)).wall


def _burn(data: bytes) -> None:
    cv2.setNumThreads(1)
    for _ in range(BURNT_PER_PROCESS):
        opencv_round_trip(data)
