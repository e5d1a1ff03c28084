"""Pipeline stages that run at the same time, each in threads of its own. All keep the order of the source.

An error in a stage is raised again where its results are taken. Closing the last stage stops all of them: no thread
is left behind, and every source is closed in the thread that ran it. Stages that share a ``stop`` event end after
their current item, without waiting for an item to reach the last stage.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Queue
from threading import Event, Thread
from typing import NamedTuple, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _End(NamedTuple):
    """Last item of a queue, with the error that ended the source, if any."""

    error: BaseException | None


class Stopped(Exception):  # noqa: N818 - not an error, and never visible outside
    """Ends a stage whose results are not wanted any more."""


def prefetch(source: Iterable[T], depth: int, stop: Event | None = None) -> Generator[T, None, None]:
    """Yield the items of a source that runs in another thread.

    Args:
        source: closed in that thread at the end, if it is a generator.
        depth: items that wait in the queue, at most.
        stop: shared with other stages, set when this one is closed early.
    """
    queue: Queue[T | _End] = Queue(depth)
    stop, item = stop or Event(), None
    thread = Thread(target=_fill, args=(source, queue, stop), daemon=True)
    thread.start()
    try:
        while not isinstance(item := queue.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        if not isinstance(item, _End):  # closed early: after a natural end the other stages still have work
            stop.set()
        while not isinstance(item, _End):  # the thread may be waiting for room in the queue
            item = queue.get()
        thread.join()


def _fill(source: Iterable[T], queue: Queue[T | _End], stop: Event) -> None:
    end = _End(None)
    try:
        for item in source:
            queue.put(item)
            if stop.is_set():
                break
        _close(source)
    except BaseException as error:
        end = _End(error)
    queue.put(end)


def parallel_map(
    function: Callable[[T], R], source: Iterable[T], workers: int, depth: int, stop: Event | None = None
) -> Generator[R, None, None]:
    """Yield ``function(item)`` for each item, in order, computed by several threads.

    Args:
        function: called in the threads.
        source: iterated by the caller's thread, and closed at the end if it is a generator.
        workers: number of threads.
        depth: items in progress or finished, at most.
        stop: shared with other stages.

    Raises:
        Stopped: ``stop`` was set.
    """
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
    """Close a generator now rather than at garbage collection, to free its memory and files."""
    if close := getattr(source, "close", None):
        close()
