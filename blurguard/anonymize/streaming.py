"""Stages that overlap: each runs in threads of its own, and their order is that of the source.

What goes wrong in a stage surfaces where its results are taken, as it was raised. Closing the last stage stops
all of them: no thread is left behind, and every source is closed in the thread that ran it. Stages that share a
``stop`` need not wait until something reaches the last of them: each ends after what it has in hand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import Queue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _End:
    """The last thing in a queue; ``error`` is why, unless the source simply ended."""

    error: BaseException | None


class Stopped(Exception):  # noqa: N818 - it is no error, and nobody gets to see it
    """Ends a stage whose results nobody waits for any more."""


def prefetch(source: Iterable[T], depth: int, stop: Event | None = None) -> Generator[T, None, None]:
    """Yield the items of a source that runs in another thread, at most ``depth`` items ahead."""
    queue: Queue[T | _End] = Queue(depth)
    stop = stop or Event()
    thread = Thread(target=_fill, args=(source, queue, stop), daemon=True)
    thread.start()
    item: T | _End | None = None
    try:
        while not isinstance(item := queue.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        if not isinstance(item, _End):  # given up; at its natural end the other stages still have work
            stop.set()
        while not isinstance(item, _End):  # it may be waiting for room in the queue
            item = queue.get()
        thread.join()


def _fill(source: Iterable[T], queue: Queue[T | _End], stop: Event) -> None:
    error: BaseException | None = None
    try:
        for item in source:
            queue.put(item)
            if stop.is_set():
                break
        _close(source)
    except BaseException as raised:
        error = raised
    queue.put(_End(error))


def parallel_map(
    function: Callable[[T], R], source: Iterable[T], workers: int, depth: int, stop: Event | None = None
) -> Generator[R, None, None]:
    """Yield ``function`` of each item, in order, worked out by several threads; at most ``depth`` are held."""
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in source:
                if stop is not None and stop.is_set():
                    raise Stopped
                pending.append(pool.submit(function, item))
                if len(pending) >= depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            _close(source)


def _close(source: object) -> None:
    """Close a generator, so that what it holds is given back now and not when somebody collects it."""
    close = getattr(source, "close", None)
    if close is not None:
        close()
