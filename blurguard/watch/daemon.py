"""Drop folder daemon: redacts every file that appears in the inbox and writes the result to the outbox."""

import contextlib
import os
import signal
import stat
import time
from pathlib import Path
from typing import Any

from blurguard.batch.journal import open_journal
from blurguard.batch.output_tree import FolderTask, reconcile
from blurguard.files.atomic import scratch_in
from blurguard.watch.coordinator import Coordinator
from blurguard.watch.event_loop import EventLoop, ReadConfig, RuntimeConfig
from blurguard.watch.folders import Folders
from blurguard.watch.health import DaemonState, HealthWriter, health_file
from blurguard.watch.reporting import HealthReporter, StatusReporter


def watch(
    folders: Folders, config: RuntimeConfig, reload: ReadConfig, reporter: StatusReporter, overwrite: bool = False
) -> None:
    """Watch an inbox until SIGTERM or Ctrl-C. Call it in the main thread, which receives signals.

    Args:
        folders: checked, see ``Folders.prepared``.
        config: for the start.
        reload: reads the settings again. Raises ``ConfigError`` if they are invalid.
        reporter: shows progress and messages.
        overwrite: replace files in the outbox that blurguard did not make.

    Raises:
        OutputError: the outbox cannot be used, or another blurguard is working in it.
        ModelError: the detector cannot run.
        KeyboardInterrupt: a second Ctrl-C arrived while the daemon was stopping.
    """
    settings = config.settings
    metrics = Path(settings.metrics) if settings.metrics else None
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(open_journal(folders.outbox))
        writer = HealthWriter(Path(settings.health) if settings.health else health_file(folders.outbox), metrics)
        health = HealthReporter(reporter, writer)
        # Runs after all other cleanup, while the journal still locks the outbox.
        stack.callback(health.heartbeat, DaemonState.STOPPED)
        health.heartbeat(DaemonState.STARTING)
        folder_task = FolderTask(folders.inbox, folders.outbox, config.worker_config, overwrite)
        scratch = stack.enter_context(scratch_in(folders.outbox, lambda: not reconcile(folders.outbox, journal)))
        coordinator = Coordinator(folders, settings, folder_task, scratch, journal, reporter.say)
        coordinator.recover()
        if settings.retry_failed:
            coordinator.retry_failed()
        loop = stack.enter_context(contextlib.closing(EventLoop(coordinator, health, config, reload, time.monotonic)))
        _handle_signals(loop, stack)
        loop.run()


def _handle_signals(loop: EventLoop, stack: contextlib.ExitStack) -> None:
    """Turn signals into requests to the event loop, until the stack is closed."""
    on_terminal = _has_terminal() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN  # nohup ignores it

    def stop(number: int, _: object) -> None:
        if loop.stop_requested and number == signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)  # a third Ctrl-C must not interrupt the cleanup
            raise KeyboardInterrupt
        loop.stop_requested = True
        loop.wake()

    def hang_up(*_: object) -> None:
        if on_terminal and not _has_terminal():  # sent by the closing terminal, not by the user
            _detach_terminal()
            loop.stop_requested = True
        else:
            loop.reload_requested = True
        loop.wake()

    handlers: dict[int, Any] = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGHUP: hang_up}
    handlers[signal.SIGIO] = signal.SIG_IGN  # see inbox.is_being_written
    for number, handler in handlers.items():
        stack.callback(signal.signal, number, signal.signal(number, handler))


def _has_terminal() -> bool:
    """Whether a standard stream is an open terminal."""
    return any(os.isatty(stream) for stream in (0, 1, 2))


def _detach_terminal() -> None:
    """Redirect standard streams from a closed terminal, where writing fails, to the null device."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for stream in (0, 1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                os.dup2(null, stream)
    os.close(null)
