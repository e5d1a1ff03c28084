"""Reports the progress of a drop folder's daemon to the console and to its health file."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from blurguard.types import Outcome, Status
from blurguard.watch.health import DaemonState, Health, HealthWriter


class StatusReporter(Protocol):
    """Shows progress to the user. Implemented by the console."""

    def advance(self, outcome: Outcome) -> None:
        """Report one file that is done or has failed."""

    def clear_progress(self, source: Path) -> None:
        """Remove the progress of a video."""

    def say(self, text: str) -> None:
        """Report an event in one line."""

    def show_health(self, health: Health) -> None:
        """Show the daemon's health. Called several times a second."""


@dataclass(slots=True)
class HealthReporter:
    """Counts the daemon's files, and reports its health to a file and to the console."""

    console: StatusReporter
    writer: HealthWriter
    health: Health = field(default_factory=lambda: Health(DaemonState.STARTING))
    problem: str = ""

    def file_done(self, outcome: Outcome) -> None:
        """Count and report a file that is done or has failed."""
        if outcome.status is Status.FAILED:
            self.health = replace(self.health, failed=self.health.failed + 1)
        else:
            faces = self.health.faces + len(outcome.faces)
            self.health = replace(self.health, done=self.health.done + 1, faces=faces, latest=time.time())
        self.console.advance(outcome)

    def heartbeat(self, state: DaemonState, why: str = "", queued: int = 0, working: int = 0) -> None:
        """Report the daemon's health, and a health file that cannot be written."""
        self.health = replace(self.health, state=state, why=why, queued=queued, working=working)
        self.writer.write(self.health)
        if self.writer.problem not in ("", self.problem):  # each one is reported once, not with every heartbeat
            self.console.say(self.writer.problem)
        self.problem = self.writer.problem
        self.console.show_health(self.health)
