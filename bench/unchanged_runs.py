"""The runs that ``bench.unchanged`` compares, and those that open what the baseline has left."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.unchanged_facts import Facts, digest, facts_below, lines_of, steady

Record = dict[str, Facts]  # of one run: facts by file

# Each run is a list of commands in a folder of its own; {few} and {films} are copies of those inputs in that folder.
DIR = "dir {in}/pictures --out out --report report.jsonl --log-json"
FEW = "dir {few} --report report.jsonl --log-json --mode fast --style solid"
RUNS: dict[str, list[str]] = {
    "fast": [f"{DIR} --mode fast --style solid"],
    "accurate": [f"{DIR} --style solid"],
    "blur": [f"{DIR} --mode fast --margin 0.1"],
    "pixelate": [
        f"{DIR} --mode fast --style pixelate --shape box --boxes --box-color #ff8000 --keep-metadata --min-score 0.6",
    ],
    "detect": ["detect {in}/pictures {in}/films", "detect {in}/few --json found.jsonl --mode fast --min-score 0.1"],
    "films": ["dir {in}/films --out out --report report.jsonl --log-json --style solid"],
    "films otherwise": [
        "dir {in}/films --out out --report report.jsonl --log-json --mode fast --audio drop --salvage --boxes --hold 0",
    ],
    "file": [
        "file {few}/q90.jpg --mode fast --style solid --report one.jsonl",
        "file {few}/q90.jpg --mode fast --style solid --report again.jsonl",
        "file {few}/q90.jpg --mode fast --style solid --overwrite --report over.jsonl",
        "file {few}/rgba.png {few}/x.heic {few}/none.jpg --out many --mode fast --style solid --report many.jsonl",
        "file {few}/pages.tif --out named.tif --style solid --model stock",
        "file {few}/moves.gif --out moves.gif --style solid --model far-float",
        "file {films}/turned.mp4 --style solid --mode fast --report film.jsonl",
    ],
    "again": [FEW, FEW, f"{FEW} --margin 0.5", f"{FEW} --jobs 1", f"{FEW} --dry-run"],
    "within": [f"{FEW} --out {{few}}/hidden", f"{FEW} --out {{few}}/hidden"],
    "in place": [f"{FEW} --in-place", f"{FEW} --in-place"],
    "settings": [
        "dir {few} --out toml --config {in}/settings.toml --report toml.jsonl --log-json",
        "BLURGUARD_MARGIN=0.7 BLURGUARD_STYLE=blur dir {few} --out both --config {in}/settings.toml --report b.jsonl"
        " --style solid",
    ],
    "models": ["--version", "models", "doctor", "doctor {in}/none", "status {in}/few"],
    "mistakes": [
        "dir", "dir {in}/none", "dir {in}/few --out {in}/few", "dir {in}/few --out o --margin 9",
        "dir {in}/few --out o --config {in}/unknown.toml", "dir {in}/few --out o --config {in}/none.toml",
        "BLURGUARD_COLOUR=1 dir {in}/few --out o", "dir {in}/few --out o --model none",
        "dir {in}/few --out o --in-place", "file {in}/few/q90.jpg -x",
        "file {in}/few/q90.jpg --out a.png", "detect {in}/none.jpg", "file {in}/pictures/text.jpg --out b.jpg",
        "file {in}/few/q90.jpg --out c.jpg --max-pixels 100", "watch {in}/few {in}/few", "watch {in}/none out --poll",
    ],
}  # fmt: skip
DATA_RUNS: dict[str, list[str]] = {
    "hostile": ["dir {data}/hostile_images --out out --report report.jsonl --log-json --mode fast --style solid"],
    "data films": [
        "file {data}/video/two_audio_subs.mkv {data}/video/hevc10.mp4 {data}/video/noface.mp4 {data}/video/empty.mp4"
        " {data}/video/audio_only.mp4 {data}/video/truncated_no_moov.mp4 {data}/video/faces.gif --out out"
        " --report report.jsonl --log-json --mode fast --style solid",
    ],
}
WATCH = "watch in out --mode fast --style solid --settle 0.2 --health health.json --metrics numbers.prom --log-json"
WATCH_SECONDS = 90.0
# Noise comes from the system's random source. This takes its place: every draw is the same.
STILL = """
import random

class Still(random.SystemRandom):
    def gauss(self, mu=0.0, sigma=1.0):
        return mu + sigma / 2

import secrets  # keeps the true source: names of drafts must differ
random.SystemRandom = Still
"""


@dataclass(frozen=True, slots=True)
class Side:
    """A checkout, what it works on, and the folder where it leaves its results."""

    checkout: Path
    inputs: Path
    scratch: Path
    data: Path | None

    def folder(self, name: str) -> Path:
        """Return a new folder for a run."""
        folder = self.scratch / name
        folder.mkdir(parents=True)
        return folder

    def environment(self) -> dict[str, str]:
        """Return what a process of this checkout finds about itself."""
        still = self.scratch / ".still"
        still.mkdir(parents=True, exist_ok=True)
        (still / "sitecustomize.py").write_text(STILL, "utf-8")
        kept = {key: text for key, text in os.environ.items() if not key.startswith(("BLURGUARD_", "PYTHON"))}
        return kept | {"PYTHONPATH": f"{still}:{self.checkout}", "PYTHONSAFEPATH": "1", "COLUMNS": "120"}

    def start(self, arguments: list[str], folder: Path, told: int = subprocess.PIPE) -> subprocess.Popen[str]:
        """Start a command in a folder; assignments in front of it are variables."""
        environment = self.environment()
        while arguments and "=" in arguments[0] and not arguments[0].startswith("-"):
            key, _, text = arguments.pop(0).partition("=")
            environment[key] = text
        program = [] if arguments[0] == "-P" else ["-m", "blurguard"]
        command = [sys.executable, *program, *arguments]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=told, stderr=told, text=True, umask=0o027)

    def run(self, command: str, folder: Path) -> tuple[int, str, str]:
        """Run a command to its end; return exit code, standard output and standard error."""
        places = {"in": self.inputs, "data": self.data, "few": folder / "few", "films": folder / "films"}
        for name in ("few", "films"):
            if f"{{{name}}}" in command and not (folder / name).exists():
                shutil.copytree(self.inputs / name, folder / name)
        process = self.start([word.format_map(places) for word in shlex.split(command, comments=False)], folder)
        out, errors = process.communicate()
        return process.returncode, out, errors

    def plain(self, record: Record, folder: Path) -> Record:
        """Return a record without the absolute names of folders."""
        text = json.dumps(record)
        for place, name in ((folder, "RUN"), (self.inputs, "INPUTS"), (self.data, "DATA"), (self.checkout, "CHECKOUT")):
            text = text if place is None else text.replace(json.dumps(str(place))[1:-1], name)
        return dict(json.loads(text))


def recorded(side: Side, only: str = "") -> Iterator[tuple[str, Record]]:
    """Yield name and record of each run."""
    for name, commands in (RUNS | (DATA_RUNS if side.data else {})).items():
        if only in name:
            yield name, _recorded(side, commands, side.folder(name))
    if only in "library":
        folder = side.folder("library")
        script = Path(__file__).with_name("unchanged_library.py")
        process = side.start(["-P", str(script), str(side.inputs / "few/q90.jpg"), str(folder)], folder)
        out, errors = process.communicate()
        known = json.loads(out) if process.returncode == 0 else {"failed": {"error": errors}}
        yield "library", side.plain(known, folder)
    if only in "watch":
        folder = side.folder("watch")
        shutil.copytree(side.inputs / "few", folder / "in")
        shutil.copy(side.inputs / "pictures/cut q90.jpg", folder / "in")
        code = watched(side, folder, "--originals move --move-to moved --failed failed")
        status, out, _ = side.run("status out --json --check --health health.json", folder)
        record: Record = {
            "daemon": {"exit code": code},
            "status": {"exit code": status, "json": steady(json.loads(out))},
        }
        yield "watch", side.plain(record | dict(facts_below(folder)), folder)


def _recorded(side: Side, commands: list[str], folder: Path) -> Record:
    record: Record = {}
    for number, command in enumerate(commands, 1):
        code, out, log = side.run(command, folder)
        told: Facts = {"exit code": code, "traceback": "Traceback" in log}
        told |= {"log": lines_of(log)} if "--log-json" in command else {}
        told |= {"output": lines_of(out) if out.startswith("{") else _figures(command, out)}
        report = folder / "report.jsonl"
        if report.is_file():
            told["report"] = lines_of(report.read_text("utf-8"))
        record[f"command {number}"] = told
    return side.plain(record | dict(facts_below(folder)), folder)


def _figures(command: str, out: str) -> Any:
    """Return what stands in the output for people and will stay: names and figures, no sentences."""
    if command == "--version":
        return out
    if command == "models":
        return [line for line in out.splitlines() if not line.startswith(" ") or "SHA-256" in line or "score" in line]
    return [line.partition(":")[0] for line in out.splitlines()] if command.startswith("doctor") else ""


def watched(side: Side, folder: Path, options: str, late: Path | None = None) -> int:
    """Run a drop folder in ``folder`` until all is done; return the exit code, -1 when that takes too long.

    Args:
        side: whose.
        folder: with the inbox, ``in``.
        options: more than the usual ones.
        late: file that is dropped as soon as the daemon runs; nothing else is expected to be done then.
    """
    (folder / "health.json").unlink(missing_ok=True)
    expected = 1 if late else len(list((folder / "in").iterdir()))
    process = side.start(shlex.split(f"{WATCH} {options}"), folder, subprocess.DEVNULL)
    try:
        until = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < until and process.poll() is None:
            time.sleep(0.1)
            health = _health(folder / "health.json")
            if late and health.get("state") == "running" and not (folder / "in" / "late.jpg").exists():
                shutil.copy(late, folder / "in" / "late.jpg")
            idle = health.get("queued") == health.get("working") == 0
            if idle and health.get("done", 0) + health.get("failed", 0) >= expected:
                time.sleep(1.5)  # what would be done again gets the time for it
                process.send_signal(signal.SIGTERM)
                return process.wait(timeout=30)
        return -1
    finally:
        process.kill()
        process.wait()


def _health(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads(path.read_text("utf-8")))
    return {}


def reopened(base: Side, current: Side) -> Iterator[tuple[str, Record, Record]]:
    """Have the baseline make folders of results, open them anew; yield name, what is expected, and what is there."""
    home = base.folder("reopened")
    inputs, results = home / "few", home / "results"
    shutil.copytree(base.inputs / "few", inputs)
    command = "dir few --out results --mode fast --style solid --report report.jsonl"
    base.run(command, home)
    yield "results", *_opened(current, command, home, results)
    other = home / "elsewhere"
    for folder in (inputs, results):
        shutil.copytree(folder, other / folder.name)  # keeps times of change, but not inodes and times of status
    yield "results moved", *_opened(current, command, other, other / "results")
    command = "dir few --mode fast --style solid --in-place --report in-place.jsonl"
    base.run(command, home)
    yield "results in place", *_opened(current, command, home, inputs)

    drop = home / "drop"
    shutil.copytree(base.inputs / "few", drop / "in")
    shutil.copy(base.inputs / "pictures/cut q90.jpg", drop / "in")
    first = watched(base, drop, "")
    expected: Record = {"daemon": {"first": 0, "exit code": 0, "done": 1, "failed": 0}} | _stamps(drop)
    code = watched(current, drop, "", late=base.inputs / "pictures/grey.jpg")
    health = _health(drop / "health.json")
    there: Record = {
        "daemon": {"first": first, "exit code": code, "done": health.get("done"), "failed": health.get("failed")}
    }
    there |= {name: facts for name, facts in _stamps(drop).items() if not name.endswith("late.jpg")}
    yield "drop folder", expected, there


def _opened(current: Side, command: str, home: Path, results: Path) -> tuple[Record, Record]:
    """Repeat a command on what the baseline has made; return what is expected, and what is there."""
    before = _stamps(results)
    code, _, _ = current.run(command, home)
    report = lines_of((home / command.rpartition(" ")[2]).read_text("utf-8"))
    files = [name for name in report if name != "order"]
    expected: Record = {"command": {"exit code": 0, "files": len(before)}} | before
    there: Record = {"command": {"exit code": code, "files": len(files)}} | _stamps(results)
    for name in files:
        expected[f"report of {name}"] = {"status": "skipped"}
        there[f"report of {name}"] = {"status": report[name]["status"]}
    return expected, there


def _stamps(folder: Path) -> Record:
    """Return what changes when a file is made again, of all that the user sees below a folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix not in (".prom", ".txt")]
    return {
        str(path.relative_to(folder)): {
            "inode": path.stat().st_ino, "changed": path.stat().st_mtime_ns, "bytes": digest(path.read_bytes()),
        }
        for path in paths if ".blurguard" not in path.parts and path.name != "health.json"
    }  # fmt: skip
