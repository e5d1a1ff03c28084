"""How long work tells of itself without knowing who listens."""

from __future__ import annotations

from typing import Protocol

from blurguard.types import Outcome


class Progress(Protocol):
    """What a batch calls as it goes; ``console`` draws it, libraries may pass their own."""

    def start(self, total: int) -> None:
        """``total`` files are about to be handled."""

    def advance(self, outcome: Outcome) -> None:
        """One file has ended."""

    def finish(self) -> None:
        """Nothing more will come, whether all went well or not."""


class NoProgress:
    """Tells nobody."""

    def start(self, total: int) -> None:
        """Ignore it."""

    def advance(self, outcome: Outcome) -> None:
        """Ignore it."""

    def finish(self) -> None:
        """Ignore it."""
