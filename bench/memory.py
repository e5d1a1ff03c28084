"""How much memory: the peak of one photo, and whether it grows over a thousand."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.measure import ROOT, Section, Target, python_command, times
from bench.photos import Photo
from bench.probe import SAMPLE_EVERY
from blurguard import Mode

PEAK_MB_BELOW = 400.0
GROWTH_AT_MOST = 1.1  # a leak of a tenth of each small picture would double the memory
KIB = 1024


def probe(kind: str, mode: Mode, source: Path) -> Any:
    """Run ``bench.probe`` in a fresh process and return what it measured."""
    command = python_command("bench.probe", kind, mode, source)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"probe {kind} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peaks(photos: dict[str, Photo]) -> Section:
    """Measure VmHWM of fresh processes that handle one photo, MB (10^6 bytes)."""
    rows, targets = [], []
    for name, photo in photos.items():
        for mode in Mode:
            told, command = probe("peak", mode, photo.path), probe("command", mode, photo.path)
            before, peak, whole = (kib * KIB / 1e6 for kib in (told["before"], told["peak"], command["peak"]))
            rows.append((f"{name}, {mode}", f"{before:.0f}", f"{peak:.0f}", f"{whole:.0f}"))
            targets.append(
                Target(
                    f"peak memory of one {name} photo, {mode} (library / command)",
                    f"< {PEAK_MB_BELOW:g} MB",
                    f"{peak:.0f} / {whole:.0f} MB",
                    max(peak, whole) < PEAK_MB_BELOW,
                )
            )
    return Section(
        "Peak memory of one photo",
        "VmHWM of a fresh process that handles one photo, once through the library (`Anonymizer.process`) and once "
        "through the command (`blurguard file`). Before: resident when the detector is loaded and no picture was seen.",
        ("", "before, MB", "peak, library, MB", "peak, command, MB"),
        rows,
        targets,
    )


def flatness(folder: Path, mode: Mode) -> Section:
    """Measure resident memory of one process over a folder, MB: its course, its slope, and its growth.

    Interpreters of several sizes come and go, so single samples scatter. What counts is whether the second
    half of the run needs more than the first.
    """
    samples = np.array(probe("flat", mode, folder)["samples"]) * KIB / 1e6
    counts = SAMPLE_EVERY * np.arange(1, len(samples) + 1)
    slope, error = _slope(counts[len(counts) // 5 :], samples[len(counts) // 5 :])
    half = len(samples) // 2
    growth = float(samples[half:].max() / samples[:half].max())
    shown = counts % 100 == 0
    return Section(
        f"Memory over {counts[-1]} photos, {mode}",
        "Resident memory of the one process that works (`anonymize_folder`, one worker, photos of several sizes), "
        f"after every hundredth photo. Sampled every {SAMPLE_EVERY}: from the first fifth on the slope is "
        f"{slope:+.0f} kB per photo, standard error {error:.0f}; the most in the first half was "
        f"{samples[:half].max():.0f} MB, in the second {samples[half:].max():.0f} MB.",
        ("photos", *map(str, counts[shown])),
        [("MB", *(f"{sample:.0f}" for sample in samples[shown]))],
        [
            Target(
                f"memory over {counts[-1]} photos, {mode}: 100th, last; most in the second half against the first",
                f"flat (≤ {GROWTH_AT_MOST:g}×)",
                f"{samples[shown][0]:.0f} MB, {samples[-1]:.0f} MB; {times(growth)}",
                growth <= GROWTH_AT_MOST,
            )
        ],
    )


def _slope(counts: NDArray[np.int_], samples: NDArray[np.float64]) -> tuple[float, float]:
    """Return the least-squares slope and its standard error, kB per photo."""
    (slope, _), covariance = np.polyfit(counts, samples, 1, cov=True)
    return float(slope) * 1000, float(covariance[0, 0] ** 0.5) * 1000
