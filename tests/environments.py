"""Scratch virtual environments, made from wheels that pip has or gets."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from bench.faults.commands import environment

Finished = subprocess.CompletedProcess[str]


def run(*command: object, cwd: Path, code: int = 0) -> Finished:
    """Run a program without our checkout on its path; checks its exit code."""
    variables = environment(PYTHONPATH="", PYTHONNOUSERSITE="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
    done = subprocess.run(
        [os.fspath(str(word)) for word in command], cwd=cwd, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def build(source: Path, folder: Path, *what: str) -> Path:
    """Build with what this environment has; returns the one wheel in ``folder``."""
    run(sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", folder, source, cwd=folder.parent)
    (wheel,) = folder.glob("*.whl")
    return wheel


def make(folder: Path) -> Path:
    """Make an empty environment; returns its Python."""
    run(sys.executable, "-m", "venv", folder, "--without-pip", cwd=folder.parent)
    return folder / "bin" / "python"


def lend_ours(python: Path) -> None:
    """Let an environment use what is installed in this one, but not the editable blurguard.

    A line in a ``.pth`` adds our packages behind its own; the ``.pth`` files among ours are not read there.
    """
    packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    theirs = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=python.parent)
    Path(theirs.stdout.strip(), "lent.pth").write_text("\n".join(sorted(packages)) + "\n", "utf-8")


def pip_install(python: Path, *arguments: object, index: bool = True) -> Finished:
    """Install into an environment with the pip of this one; returns pip's result, whatever it is."""
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    command += [*([] if index else ["--no-index", "--no-deps"]), *arguments]
    variables = environment(PYTHONPATH="")
    return subprocess.run([str(word) for word in command], env=variables, capture_output=True, text=True, check=False)
