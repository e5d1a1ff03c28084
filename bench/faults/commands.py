"""Runs the command line as a user does."""

import os
import subprocess
import sys
from pathlib import Path

from bench.measure import ROOT

Finished = subprocess.CompletedProcess[str]


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without settings of ours, but with ``variables``."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("BLURGUARD_")}
    return kept | {"COLUMNS": "100", "PYTHONPATH": str(ROOT)} | variables


def blurguard(
    *arguments: object, code: int = 0, cwd: Path = ROOT, env: dict[str, str] | None = None, program: str = "blurguard"
) -> Finished:
    """Run a command to its end, with these variables in its environment, and check its exit code."""
    command = [sys.executable, "-P", "-m", program, *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(**(env or {})),
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
    )
    assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def put(path: Path, data: bytes) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
