"""Sets up whole processes: only for processes of blurguard's own, never from a library."""

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
    """Return the number of processors that this process may use."""
    # macOS reports only the processors of the whole computer.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def configure_process() -> None:
    """Set options of OpenCV and Pillow that apply to the whole process."""
    cv2.setNumThreads(1)  # the workers already use all processors
    Pillow.MAX_IMAGE_PIXELS = None  # --max-pixels is the limit, with its own message
    if hasattr(cv2.utils, "logging"):  # since OpenCV 4.12
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # our errors name the file, its errors do not


def configure_worker() -> None:
    """Set up a worker process. It ends with its parent, and leaves Ctrl-C and the end of the terminal to it."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    configure_process()


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Delay the handlers of signals until the end of the block, while a process or thread starts.

    A process that is half started can be neither used nor stopped. Blocking the signals keeps them from threads and
    processes that start meanwhile, but not from this thread: a thread of some library takes the signal, and Python
    still runs the handler here. So the handlers are replaced as well.
    """
    received: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
    wanted = [number for number in _INTERRUPTS if is_main and callable(signal.getsignal(number))]
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in wanted}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in received:
            signal.raise_signal(late)


def _exit_with_parent(parent: multiprocessing.process.BaseProcess) -> None:
    """End this process as soon as its parent has ended, since no process would publish its results."""
    parent.join()
    os._exit(1)
