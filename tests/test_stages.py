"""Stages overlap, keep the order, pass errors on, and leave no thread behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from blurguard.anonymize.streaming import parallel_map, prefetch


class _Source:
    """Counts, and knows whether it was closed, and in which thread it ran."""

    def __init__(self, count: int, fail_at: int = -1) -> None:
        self.taken = 0
        self.closed = False
        self.threads: set[int] = set()
        self._count = count
        self._fail_at = fail_at

    def __iter__(self) -> Iterator[int]:
        try:
            for index in range(self._count):
                self.threads.add(threading.get_ident())
                if index == self._fail_at:
                    raise OSError(f"no item {index}")
                self.taken += 1
                yield index
        finally:
            self.closed = True


def test_order_is_kept() -> None:
    before = threading.active_count()
    assert list(prefetch(parallel_map(lambda n: n * n, prefetch(range(100), 3), 4, 8), 2)) == [
        n * n for n in range(100)
    ]
    assert threading.active_count() == before


def test_source_runs_in_its_own_thread() -> None:
    source = _Source(3)
    assert list(prefetch(iter(source), 1)) == [0, 1, 2]
    assert source.threads and threading.get_ident() not in source.threads


@pytest.mark.parametrize("depth", [1, 4])
def test_no_more_than_depth_ahead(depth: int) -> None:
    source = _Source(100)
    stage = prefetch(iter(source), depth)
    assert next(stage) == 0
    stage.close()
    assert source.taken <= depth + 3  # one taken, one in hand, one more that it looks at before it sees the stop
    assert source.closed


def test_mapped_holds_no_more_than_depth() -> None:
    source = _Source(100)
    stage = parallel_map(lambda n: n, iter(source), 2, 5)
    assert next(stage) == 0
    assert source.taken == 5
    stage.close()
    assert source.closed


@pytest.mark.parametrize("fail_at", [0, 7])
def test_failure_of_source_surfaces_after_what_came_before(fail_at: int) -> None:
    before, seen = threading.active_count(), []
    with pytest.raises(OSError, match=f"no item {fail_at}"):
        for item in prefetch(parallel_map(lambda n: n, prefetch(iter(_Source(20, fail_at)), 2), 2, 3), 2):
            seen.append(item)
    assert seen == list(range(fail_at))[: len(seen)]
    assert threading.active_count() == before


def test_failure_of_function_stops_the_source() -> None:
    def inverse(n: int) -> float:
        return 1 / (n - 5)

    before, source = threading.active_count(), _Source(1000)
    with pytest.raises(ZeroDivisionError):
        list(prefetch(parallel_map(inverse, prefetch(iter(source), 2), 2, 4), 2))
    assert source.closed
    assert source.taken < 50
    assert threading.active_count() == before


def test_stages_that_share_a_stop_do_not_wait_for_one_another() -> None:
    """The last stage would take a thousand items before it gives one: closing it must not wait for them."""
    stop, begun, gate, source = threading.Event(), threading.Event(), threading.Event(), _Source(1000)

    def open_gate() -> None:
        stop.wait()
        gate.set()

    opener = threading.Thread(target=open_gate)
    opener.start()

    def slowly(n: int) -> int:
        begun.set()
        gate.wait()  # until the stages are being closed
        return n

    def hoard(items: Iterator[int]) -> Iterator[int]:
        yield -1
        yield sum(1 for _ in items)

    stages = prefetch(hoard(parallel_map(slowly, prefetch(iter(source), 1, stop), 1, 2, stop)), 1, stop)
    assert next(stages) == -1
    begun.wait()
    stages.close()
    opener.join()
    assert source.taken < 20
    assert source.closed


def test_a_stage_that_ends_by_itself_stops_no_other() -> None:
    stop = threading.Event()
    stages = prefetch(parallel_map(lambda n: n, prefetch(range(50), 60, stop), 2, 4, stop), 1, stop)
    assert list(stages) == list(range(50))
    assert not stop.is_set()


def test_failure_of_consumer_stops_everything() -> None:
    before, source = threading.active_count(), _Source(1000)
    stages = prefetch(parallel_map(lambda n: n, prefetch(iter(source), 2), 2, 4), 2)
    assert next(stages) == 0
    stages.close()
    assert source.closed
    assert threading.active_count() == before
