"""In CI a test skips only as ``expected_skips.txt`` says, and a missing tool is a failure."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.faults.commands import environment, put
from tests.conftest import pytest_configure
from tests.needs import EXPECTED, SkipCheck, missing

TESTS = f"""
import pytest
from {missing.__module__} import {missing.__name__}

def test_passes():
    pass

@pytest.mark.xfail
def test_fails_as_expected():
    assert False

def test_a_folder_without_permission_is_an_error():
    pytest.skip("root may write anywhere")

@pytest.mark.skipif(True, reason="nobody expects this")
def test_other():
    pass

def test_tool():
    missing("no such tool")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    put(tmp_path / "conftest.py", f"from {pytest_configure.__module__} import {pytest_configure.__name__}\n".encode())
    return put(tmp_path / "test_skips.py", TESTS.encode())


def run(project: Path, *arguments: str, ci: str) -> "subprocess.CompletedProcess[str]":
    command: list[str | Path] = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        project,
        *arguments,
    ]
    variables = environment(CI=ci)
    return subprocess.run(command, cwd=project.parent, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_skip_that_nobody_expects_fails_a_run_in_ci(project: Path, workers: str) -> None:
    done = run(project, "-n", workers, "-k", "not tool", ci="true")
    assert done.returncode == 1, done.stdout
    told = done.stdout.partition("does not list")[2]
    assert "nobody expects this" in told and "root may write anywhere" not in told
    assert run(project, "-n", workers, "-k", "not tool and not other", ci="true").returncode == 0
    assert run(project, "-n", workers, ci="").returncode == 0


def test_a_missing_tool_fails_in_ci(project: Path) -> None:
    done = run(project, "-k", "tool", ci="true")
    assert done.returncode == 1 and "in CI: no such tool" in done.stdout
    assert run(project, "-k", "tool", ci="").returncode == 0


def test_the_list_can_be_read() -> None:
    assert all(len(line) == 2 and all(line) for line in SkipCheck(EXPECTED)._expected)
