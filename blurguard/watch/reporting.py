"""Reports the progress of a drop folder's daemon to the console and to its health file."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from blurguard import __version__
from blurguard.types import Outcome, Status
from blurguard.watch.health import DaemonState, Health, HealthWriter


class StatusReporter(Protocol):
    """Shows progress to the user; implemented by the console."""

    def advance(self, outcome: Outcome) -> None:
        """Report one file that is done or has failed."""

    def clear_progress(self, source: Path) -> None:
        """Remove the progress of a video."""

    def say(self, text: str) -> None:
        """Report an event in one line."""

    def show_health(self, health: Health) -> None:
        """Show the daemon's health; called several times a second."""


@dataclass(slots=True)
class HealthReporter:
    """Counts the daemon's files, and reports its health to a file and to the console."""

    console: StatusReporter
    writer: HealthWriter
    done: int = 0
    failed: int = 0
    faces: int = 0
    latest: float = 0.0
    started: float = field(default_factory=time.time)
    problem: str = ""

    def file_done(self, outcome: Outcome) -> None:
        """Count and report a file that is done or has failed."""
        if outcome.status is Status.FAILED:
            self.failed += 1
        else:
            self.done, self.faces, self.latest = self.done + 1, self.faces + len(outcome.faces), time.time()
        self.console.advance(outcome)

    def heartbeat(self, state: DaemonState, why: str = "", queued: int = 0, working: int = 0) -> None:
        """Report the daemon's health, and a health file that cannot be written."""
        health = Health(
            state, why, queued, working, self.done, self.failed, self.faces, self.started, self.latest,
            os.getpid(), __version__,
        )  # fmt: skip
        (self.writer.close if state is DaemonState.STOPPED else self.writer.write)(health)
        if self.writer.problem != self.problem:
            self.problem = self.writer.problem
            if self.problem:
                self.console.say(self.problem)
        self.console.show_health(health)
