"""Ctrl-C and a polite kill: exit code 130, what was finished stands, nothing else is left."""

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.faults.kills import (
    Case,
    ended,
    make_photos,
    marked,
    references,
    ticks,
    wrong_after_kill,
    wrong_after_next_run,
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return enough pictures that a batch is still at work when its first result is there."""
    return make_photos(tmp_path_factory.mktemp("interrupt") / "photos", 24)


@pytest.fixture
def case(photos: Path, tmp_path: Path) -> Iterator[Case]:
    yield Case(photos, tmp_path / "out", dict(references(photos)))


def wait_for_first_result(case: Case, process: "subprocess.Popen[str]") -> None:
    for _ in ticks():
        if process.poll() is not None or any((case.out / name).exists() for name in case.expected):
            return


def is_importing(pid: int) -> bool:
    """Tell whether a worker has come as far as to load numpy: it is Python by then, but not yet ours."""
    with contextlib.suppress(OSError):
        return "_multiarray_umath" in Path(f"/proc/{pid}/maps").read_text("utf-8")
    return False


def check_end(case: Case, process: "subprocess.Popen[str]", report: Path) -> None:
    told, _ = process.communicate()
    assert process.returncode == 130, told
    assert "interrupted" in told and "Traceback" not in told
    assert marked(case) == []
    assert not (case.out / ".blurguard" / "scratch").exists()
    assert list(wrong_after_kill(case, case.originals)) == []
    finished = sum((case.out / name).exists() for name in case.expected)
    assert finished < len(case.expected)
    assert list(wrong_after_next_run(case, case.originals, finished, report)) == []


@pytest.mark.parametrize(
    ("number", "jobs"), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 2), (signal.SIGHUP, 1)]
)
def test_an_interrupted_batch_is_130_and_leaves_nothing_half_done(
    case: Case, tmp_path: Path, number: signal.Signals, jobs: int
) -> None:
    process = case.start("--jobs", str(jobs))
    with ended(process, case):
        wait_for_first_result(case, process)
        process.send_signal(number)
        check_end(case, process, tmp_path / "report.jsonl")


def test_ctrl_c_reaches_all_processes_at_any_moment_and_twice(case: Case, tmp_path: Path) -> None:
    """A terminal sends it to the whole group; workers that are only starting must not chatter either."""
    process = case.start("--jobs", "2")
    with ended(process, case):
        for _ in ticks():
            if process.poll() is not None or any(is_importing(pid) for pid in marked(case) if pid != process.pid):
                break
        os.killpg(process.pid, signal.SIGINT)
        select.select([], [], [], 0.01)
        os.killpg(process.pid, signal.SIGINT)
        check_end(case, process, tmp_path / "report.jsonl")


def test_what_is_started_to_survive_the_terminal_does(case: Case) -> None:
    process = case.start(before=("nohup",))
    with ended(process, case):
        wait_for_first_result(case, process)
        process.send_signal(signal.SIGHUP)
        process.communicate()
    assert process.returncode == 0
