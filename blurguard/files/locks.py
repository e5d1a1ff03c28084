"""Advisory locks (flock). The system releases them when their owner closes the file or dies."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PROBE_ATTEMPTS, _PROBE_SECONDS = 100, 0.01  # a probe holds its shared lock for an instant only


@contextlib.contextmanager
def open_descriptor(path: Path, flags: int = 0) -> Iterator[int]:
    """Open an existing file or folder for reading, and close it at the end of the block.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> None:
    """Take the exclusive lock of an open file, and wait for it."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Take the lock of an open file if no other process holds it. Return whether that succeeded."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX))
        return True
    return False


def try_lock_past_probes(descriptor: int) -> bool:
    """Like ``try_lock``, but wait for processes that only call ``is_locked``.

    A probe shares the lock and an owner does not. A shared lock therefore shows which of them holds it.
    """
    for _ in range(_PROBE_ATTEMPTS):
        if try_lock(descriptor):
            return True
        if not try_lock(descriptor, shared=True):
            return False
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        time.sleep(_PROBE_SECONDS)
    return try_lock(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a process holds the exclusive lock of a file. False without such a file. Creates nothing.

    The probe shares the lock for an instant (see ``try_lock_past_probes``). The system's list of locks would avoid
    that. But only Linux has one, it lacks locks held in other containers, and it numbers some file systems (overlay,
    btrfs) unlike ``stat``. ``fcntl`` can query record locks only.

    Raises:
        OSError: the file cannot be opened.
    """
    with contextlib.suppress(FileNotFoundError), open_descriptor(path) as descriptor:
        return not try_lock(descriptor, shared=True)
    return False


def remove_unlocked(path: Path, remove: Callable[[Path], object]) -> bool:
    """Remove a file or folder unless a living process holds its lock. Return whether it was removed."""
    with contextlib.suppress(FileNotFoundError), open_descriptor(path, os.O_NOFOLLOW) as descriptor:
        if try_lock(descriptor):
            remove(path)
            return True
    return False
