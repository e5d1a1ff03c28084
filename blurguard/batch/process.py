"""What belongs to a whole process: set it in processes that are blurguard's alone, never from a library."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

import cv2
from PIL import Image as Pillow

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def cpu_count() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def configure_process() -> None:
    """Set what belongs to a whole process; for processes that are blurguard's alone, not for libraries."""
    cv2.setNumThreads(1)  # one thread per worker: workers are what uses the processors
    Pillow.MAX_IMAGE_PIXELS = None  # --max-pixels decides, and says so
    if hasattr(cv2.utils, "logging"):  # not before OpenCV 4.12
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # our errors name the file, its do not


def configure_worker() -> None:
    """Set up a worker, which does not outlive its parent, and leaves to it what a terminal says to all of them."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    configure_process()


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Put off what signals do in the main thread: a process that is half started can be neither used nor stopped.

    Blocking them keeps them from threads and processes that start meanwhile, but not from this thread: libraries
    have threads of their own, one of those takes the signal, and Python runs its handler here all the same.
    """
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        wanted = [number for number in _INTERRUPTS if callable(signal.getsignal(number))]
        before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in wanted}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def _exit_with_parent(parent: multiprocessing.process.BaseProcess) -> None:
    """End this process as soon as its parent has: nobody is left to publish what it does."""
    parent.join()
    os._exit(1)
