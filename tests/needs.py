"""Tests that lack a tool skip, but in CI (the variable CI is set) they fail.

In CI a test may only skip as ``expected_skips.txt`` says; any other skip fails the run.
"""

import importlib.util
import os
from pathlib import Path
from typing import NoReturn

import pytest

EXPECTED = Path(__file__).with_name("expected_skips.txt")
WITHOUT_TRAINING = "torch or ai-edge-quantizer is not installed: only developers who retrain need them"
_HAS_TRAINING = all(importlib.util.find_spec(name) for name in ("torch", "ai_edge_quantizer"))

needs_training_packages = pytest.mark.skipif(not _HAS_TRAINING, reason=WITHOUT_TRAINING)


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def missing(reason: str) -> NoReturn:
    """Skip a test for lack of a tool; in CI fail it."""
    if in_ci():
        pytest.fail(f"in CI: {reason}", pytrace=False)
    pytest.skip(reason)


def has_training_packages() -> bool:
    """Tell whether the dependency group ``calibration`` is installed; in CI fail if it is not."""
    if not _HAS_TRAINING and in_ci():
        pytest.fail(f"in CI: {WITHOUT_TRAINING}", pytrace=False)
    return _HAS_TRAINING


class SkipCheck:
    """A pytest plugin that fails a run in which a test was skipped unexpectedly; for the controller of pytest-xdist."""

    def __init__(self, expected: Path = EXPECTED) -> None:
        lines = [line for line in expected.read_text("utf-8").splitlines() if line and not line.startswith("#")]
        self._expected = [tuple(map(str.strip, line.split(":", 1))) for line in lines]
        self._unexpected: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            name, reason = report.location[2], str(report.longrepr)
            if not any(name.startswith(start) and words in reason for start, words in self._expected):
                self._unexpected.append(f"{report.nodeid}: {reason}")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self._unexpected and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._unexpected:
            terminalreporter.section(f"skips that {EXPECTED.name} does not list", red=True)
            for line in self._unexpected:
                terminalreporter.line(line)
