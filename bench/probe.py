"""Run in a fresh process, for what can only be measured from within: ``python -m bench.probe peak|command|flat ...``.

Prints one line of JSON.
"""

from __future__ import annotations

import functools
import json
import runpy
import sys
import tempfile
from pathlib import Path

from blurguard import Anonymizer, Mode, Settings, Status
from blurguard.batch.output_tree import FolderTask
from blurguard.batch.process import configure_process
from blurguard.batch.runner import anonymize_folder
from blurguard.batch.workers import WorkerConfig

SAMPLE_EVERY = 10


def memory_kib(field: str) -> int:
    """Return ``VmHWM`` (the most that was ever resident) or ``VmRSS`` (what is now) of this process, KiB."""
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise KeyError(field)


def peak(mode: str, source: str) -> dict[str, int]:
    """Hide the faces of one file through the library; KiB before a picture is seen, and at the peak."""
    configure_process()
    anonymizer = Anonymizer(Settings(mode=Mode(mode)))
    before = memory_kib("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        outcome = anonymizer.process(Path(source), Path(folder) / Path(source).name)
    return {"before": before, "peak": memory_kib("VmHWM"), "faces": len(outcome.faces)}


def command(mode: str, source: str) -> dict[str, int]:
    """Do the same through the command line, in this process; KiB at the peak."""
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["blurguard", "file", source, "--out", folder, "--mode", mode, "--quiet"]
        try:
            runpy.run_module("blurguard", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code:
                raise
    return {"peak": memory_kib("VmHWM")}


def flat(mode: str, source: str) -> dict[str, list[int]]:
    """Hide the faces of a whole folder in this process; resident KiB after every tenth photo."""
    configure_process()
    samples = []
    with tempfile.TemporaryDirectory() as out:
        factory = functools.partial(Anonymizer, Settings(mode=Mode(mode)))
        task = FolderTask(Path(source), Path(out), WorkerConfig(factory))
        for index, outcome in enumerate(anonymize_folder(task, task.discover().media), 1):
            if outcome.status is not Status.DONE:
                raise RuntimeError(outcome.reason)
            if index % SAMPLE_EVERY == 0:
                samples.append(memory_kib("VmRSS"))
    return {"samples": samples}


if __name__ == "__main__":
    probes = {"peak": peak, "command": command, "flat": flat}
    result = probes[sys.argv[1]](*sys.argv[2:4])
    sys.stdout.write(json.dumps(result) + "\n")
