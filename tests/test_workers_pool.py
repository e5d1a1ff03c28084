"""A pool of worker processes: what is handed over comes back, and what goes wrong with one file is no other's loss."""

import contextlib
import functools
import gc
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path, PosixPath

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bench.faults.kills import LONGEST_WAIT_SECONDS, make_films, ticks
from bench.faults.stubs import StubDetector
from blurguard.anonymize.anonymizer import Anonymizer, StagedResult
from blurguard.batch import workers
from blurguard.batch.process import defer_signals
from blurguard.batch.workers import Job, Pool, WorkerConfig, result_of
from blurguard.types import Detections, Outcome, Status
from tests.workers import BOX, TROUBLE, dying, raising, steady

Results = Future[StagedResult | Outcome]


@dataclass(frozen=True)
class SignallingDetector(StubDetector):
    """Leaves its process's number in a folder; stays at a picture that is trouble until there is a ``go``."""

    folder: Path = Path()
    number: int = TROUBLE

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        (self.folder / f"worker-{os.getpid()}").touch()
        if self.number in (rgb[0, 0, 0], -1):
            (self.folder / f"stays-{os.getpid()}").touch()
            for _ in ticks():
                if (self.folder / "go").exists():
                    break
        return super().detect(rgb, min_score)


def signalling(folder: Path, number: int = TROUBLE) -> Anonymizer:
    """Return one whose detector stays at pictures with so much red; -1 is at all of them."""
    return Anonymizer(steady().settings, SignallingDetector((BOX,), folder=folder, number=number))


class Named(PosixPath):
    """A name that tells whether anybody still has it."""

    __slots__ = ("__weakref__",)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@contextlib.contextmanager
def pool_of(crew: WorkerConfig, recycle: int = 0) -> Iterator[Pool]:
    with contextlib.closing(Pool(crew, recycle)) as pool:
        yield pool


def job(folder: Path, name: str = "a", red: int = 100) -> Job:
    """Return a job on a new picture."""
    source = folder / f"{name}.png"
    Image.new("RGB", (64, 64), (red, 120, 150)).save(source)
    return Job(source, folder / "out" / source.name, folder / "scratch")


def done(job: Job, future: Results) -> StagedResult:
    wait([future], LONGEST_WAIT_SECONDS)
    result = result_of(job, future)
    assert isinstance(result, StagedResult), result
    return result


def failed(job: Job, future: Results) -> Outcome:
    if not future.cancelled():  # else the pool may never tell those who wait
        wait([future], LONGEST_WAIT_SECONDS)
    result = result_of(job, future)
    assert isinstance(result, Outcome)
    assert (result.status, result.source, result.target) == (Status.FAILED, job.source, job.target)
    return result


def staying(folder: Path, count: int = 1) -> list[int]:
    """Wait for workers that stay at a picture; return their process numbers."""
    for _ in ticks():
        if len(found := sorted(folder.glob("stays-*"))) == count:
            return [int(path.name.partition("-")[2]) for path in found]
    raise AssertionError("ticks do not end")


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_is_handed_over_comes_back_and_belongs_to_its_file(tmp_path: Path, scratch: Path) -> None:
    jobs = [job(tmp_path, f"{number}", 100 + number) for number in range(5)]
    with pool_of(WorkerConfig(steady, 2)) as pool:
        pairs = [(job, pool.submit(job)) for job in jobs]
        works = [done(job, future) for job, future in pairs]
    assert [work.outcome.source for work in works] == [job.source for job in jobs]
    drafts = [work.staged.path for work in works if work.staged is not None]
    assert sorted(scratch.iterdir()) == sorted(drafts) and len(drafts) == 5
    assert not (tmp_path / "out").exists(), "workers give no names"


def test_looking_leaves_no_draft(tmp_path: Path, scratch: Path) -> None:
    with pool_of(WorkerConfig(steady)) as pool:
        only_look = Job(job(tmp_path).source)
        outcome = result_of(only_look, pool.submit(only_look))
    assert isinstance(outcome, Outcome) and outcome.status is Status.DONE and len(outcome.faces) == 1
    assert not list(scratch.iterdir())


@pytest.mark.usefixtures("scratch")
def test_one_that_is_cancelled_costs_its_worker_and_another_takes_its_place(tmp_path: Path) -> None:
    stuck, other = job(tmp_path, "stuck", TROUBLE), job(tmp_path, "other")
    with pool_of(WorkerConfig(functools.partial(signalling, tmp_path))) as pool:
        future = pool.submit(stuck)
        (process,) = staying(tmp_path)
        waiting = pool.submit(other)
        assert future.cancel()
        assert "no sign of life" in failed(stuck, future).reason
        done(other, waiting)
        for _ in ticks():
            if not lives(process):
                break


@pytest.mark.usefixtures("scratch")
def test_cancelling_one_leaves_the_others_alone(tmp_path: Path) -> None:
    pictures = [job(tmp_path, name, TROUBLE) for name in "ab"]
    with pool_of(WorkerConfig(functools.partial(signalling, tmp_path), 2)) as pool:
        first, second = [pool.submit(picture) for picture in pictures]
        staying(tmp_path, 2)
        first.cancel()
        failed(pictures[0], first)
        (tmp_path / "go").touch()
        done(pictures[1], second)


@pytest.mark.usefixtures("scratch")
def test_what_is_cancelled_before_anybody_worked_on_it_holds_nobody_up(tmp_path: Path) -> None:
    stuck, other = job(tmp_path, "stuck", TROUBLE), job(tmp_path, "other")
    with pool_of(WorkerConfig(functools.partial(signalling, tmp_path))) as pool:
        first, second = pool.submit(stuck), pool.submit(other)
        staying(tmp_path)
        assert second.cancel()
        (tmp_path / "go").touch()
        done(stuck, first)
        failed(other, second)
        done(other, pool.submit(other))


@pytest.mark.usefixtures("scratch")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_costs_its_own_file(tmp_path: Path, workers: int) -> None:
    jobs = [job(tmp_path, f"{number}", TROUBLE if number in (0, 2) else 100) for number in range(5)]
    with pool_of(WorkerConfig(dying, workers)) as pool:
        pairs = [(job, pool.submit(job)) for job in jobs]
        for number, (each, future) in enumerate(pairs):
            if number in (0, 2):
                assert "died (exit code -9)" in failed(each, future).reason
            else:
                done(each, future)


@pytest.mark.usefixtures("scratch")
def test_a_worker_that_is_killed_from_outside_costs_its_own_file(tmp_path: Path) -> None:
    stuck, other = job(tmp_path, "stuck", TROUBLE), job(tmp_path, "other")
    with pool_of(WorkerConfig(functools.partial(signalling, tmp_path))) as pool:
        future = pool.submit(stuck)
        os.kill(staying(tmp_path)[0], signal.SIGKILL)
        assert "died" in failed(stuck, future).reason
        done(other, pool.submit(other))


@pytest.mark.usefixtures("scratch")
def test_an_error_nobody_foresaw_keeps_the_worker(tmp_path: Path) -> None:
    bad, good = job(tmp_path, "bad", TROUBLE), job(tmp_path, "good")
    with pool_of(WorkerConfig(raising)) as pool:
        assert "ZeroDivisionError" in failed(bad, pool.submit(bad)).reason
        done(good, pool.submit(good))


@pytest.mark.usefixtures("scratch")
@pytest.mark.parametrize(("recycle", "processes"), [(0, 1), (2, 3), (1, 5)])
def test_workers_are_replaced_after_so_many_files(tmp_path: Path, recycle: int, processes: int) -> None:
    with pool_of(WorkerConfig(functools.partial(signalling, tmp_path)), recycle) as pool:
        for number in range(5):
            each = job(tmp_path, f"{number}")
            done(each, pool.submit(each))
    assert len(list(tmp_path.glob("worker-*"))) == processes


@pytest.mark.usefixtures("scratch")
def test_closing_stops_those_who_work_and_leaves_no_process_and_no_thread(tmp_path: Path) -> None:
    threads = threading.active_count()
    pictures = [job(tmp_path, name, TROUBLE) for name in "abcd"]
    with pool_of(WorkerConfig(functools.partial(signalling, tmp_path), 2)) as pool:
        for picture in pictures:
            pool.submit(picture)
        processes = staying(tmp_path, 2)
    assert not any(map(lives, processes))
    assert threading.active_count() == threads


@pytest.mark.usefixtures("scratch")
def test_closing_before_a_worker_has_started_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    each = job(tmp_path)
    with pool_of(WorkerConfig(steady, 2)) as pool:
        pool.submit(each)
    assert capfd.readouterr().err == ""


def test_closing_before_anything_began_leaves_nothing() -> None:
    threads = threading.active_count()
    with pool_of(WorkerConfig(steady, 2)):
        pass
    assert threading.active_count() == threads


@pytest.mark.usefixtures("scratch")
def test_progress_of_a_video_is_told_of_that_video(tmp_path: Path) -> None:
    make_films(tmp_path / "films", 1)
    (film,) = (tmp_path / "films").iterdir()
    told: list[tuple[Path, int, int | None]] = []
    heard = threading.Event()

    def progress(source: Path, done: int, total: int | None) -> None:
        told.append((source, done, total))
        heard.set()
        (tmp_path / "go").touch()

    detector = functools.partial(late, tmp_path)
    task = Job(film, tmp_path / "out.mp4", tmp_path / "scratch")
    with pool_of(WorkerConfig(detector, progress=progress)) as pool:
        done(task, pool.submit(task))
    assert heard.is_set()
    assert {source for source, _, _ in told} == {film}
    counts = [count for _, count, _ in told]
    assert counts == sorted(counts) and 0 < counts[-1] <= 40
    assert {total for _, _, total in told} <= {None, 40}


@dataclass(frozen=True)
class LateDetector(StubDetector):
    """Stays at the last frames of a video until ``go`` is there: somebody has heard of the first ones."""

    folder: Path = Path()

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        with (self.folder / "frames").open("ab") as file:
            file.write(b"x")
            frames = file.tell()
        for _ in ticks():
            if frames < 39 or (self.folder / "go").exists():
                break
        return super().detect(rgb, min_score)


def late(folder: Path) -> Anonymizer:
    return Anonymizer(steady().settings.changed({"hold": 0.1}, "test"), LateDetector((BOX,), folder=folder))


@pytest.mark.usefixtures("scratch")
def test_nothing_is_kept_of_files_that_have_ended(tmp_path: Path) -> None:
    names = [Named(job(tmp_path, f"{number}", red).source) for number, red in enumerate((100, TROUBLE, 100, 100))]
    seen = [weakref.ref(name) for name in names]
    with pool_of(WorkerConfig(dying)) as pool:
        futures = [pool.submit(Job(name, tmp_path / "out", tmp_path / "scratch")) for name in names]
        wait(futures, LONGEST_WAIT_SECONDS)
        last = job(tmp_path, "last")
        done(last, pool.submit(last))  # the pool's threads may have the one before in their hands
        futures.clear()
        names.clear()
        for _ in ticks():
            gc.collect()
            if not any(name() for name in seen):
                break


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_what_is_being_started_stands(number: signal.Signals) -> None:
    """Also one that a thread of some library takes: Python then runs the handler in the main thread, masked or not."""
    before = signal.signal(number, signal.default_int_handler)
    started, stopped = threading.Event(), threading.Event()

    def stay() -> None:
        started.set()
        stopped.wait()

    other = threading.Thread(target=stay)
    other.start()
    started.wait()
    done = []
    try:
        with pytest.raises(KeyboardInterrupt), defer_signals():
            signal.pthread_kill(other.ident or 0, number)
            done += [sum(range(1000)) for _ in range(100)]  # enough for Python to look for signals
        assert len(done) == 100
        with defer_signals():
            pass
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
        stopped.set()
        other.join()


def test_an_end_of_the_pipe_that_somebody_still_holds_does_not_hold_up_the_end() -> None:
    reader = workers._ProgressReader(lambda *_: None)
    held = os.dup(reader.send_end.fileno())
    reader.close()
    os.close(held)
    reader._thread.join()
