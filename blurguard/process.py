"""What belongs to a whole process: set it in processes that are blurguard's alone, never from a library."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

import cv2
from PIL import Image as Pillow


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def own_process() -> None:
    """Set what belongs to a whole process; for processes that are blurguard's alone, not for libraries."""
    cv2.setNumThreads(1)  # one thread per worker: workers are what uses the processors
    Pillow.MAX_IMAGE_PIXELS = None  # --max-pixels decides, and says so
    if hasattr(cv2.utils, "logging"):  # not before OpenCV 4.12
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # our errors name the file, its do not


def worker_process() -> None:
    """Set up a worker, which does not outlive its parent, and leaves to it what a terminal says to all of them."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    own_process()


def _die_with(parent: multiprocessing.process.BaseProcess) -> None:
    """End this process as soon as its parent has: nobody is left to publish what it does."""
    parent.join()
    os._exit(1)
