"""Detectors that go wrong, made in worker processes: what a factory there needs must be importable."""

import ctypes
import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.faults.stubs import StubDetector
from blurguard.anonymize.anonymizer import Anonymizer
from blurguard.settings import Settings
from blurguard.types import Detections

BOX = (4.0, 4.0, 28.0, 28.0)
TROUBLE = 200  # red of the first pixel of a picture at which these detectors go wrong


@dataclass(frozen=True)
class DyingDetector(StubDetector):
    """Kills its process, as a crash in foreign code or the lack of memory would."""

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        if rgb[0, 0, 0] == TROUBLE:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().detect(rgb, min_score)


@dataclass(frozen=True)
class RaisingDetector(StubDetector):
    """Raises what nobody foresaw."""

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        if rgb[0, 0, 0] == TROUBLE:
            raise ZeroDivisionError("nobody foresaw this")
        return super().detect(rgb, min_score)


@dataclass(frozen=True)
class EditingDetector(StubDetector):
    """Edits a file while it is being worked on, as its owner might."""

    edited: Path = Path()

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        if rgb[0, 0, 0] == TROUBLE:
            with self.edited.open("ab") as file:
                file.write(b"edited")
        return super().detect(rgb, min_score)


@dataclass(frozen=True)
class CrashingDetector(StubDetector):
    """Reads where nothing is, as foreign code may."""

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        if rgb[0, 0, 0] == TROUBLE:
            ctypes.string_at(0)
        return super().detect(rgb, min_score)


@dataclass(frozen=True)
class HangingDetector(StubDetector):
    """Never comes back; ``deaf`` is not even there for a polite kill."""

    deaf: bool = False

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        if rgb[0, 0, 0] == TROUBLE:
            if self.deaf:
                os.kill(os.getpid(), signal.SIGSTOP)
            select.select([], [], [])
        return super().detect(rgb, min_score)


@dataclass(frozen=True)
class WaitingDetector(StubDetector):
    """Does not come back before a file is there."""

    gate: Path = Path()

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        while rgb[0, 0, 0] == TROUBLE and not self.gate.exists():
            select.select([], [], [], 0.01)
        return super().detect(rgb, min_score)


def steady(style: str = "solid") -> Anonymizer:
    return Anonymizer(Settings().changed({"style": style, "shape": "box"}, "test"), StubDetector((BOX,)))


def dying() -> Anonymizer:
    return Anonymizer(Settings(), DyingDetector((BOX,)))


def crashing() -> Anonymizer:
    return Anonymizer(steady().settings, CrashingDetector((BOX,)))


def hanging(deaf: bool = False) -> Anonymizer:
    return Anonymizer(steady().settings, HangingDetector((BOX,), deaf=deaf))


def deaf() -> Anonymizer:
    return hanging(deaf=True)


def waiting(gate: Path) -> Anonymizer:
    return Anonymizer(steady().settings, WaitingDetector((BOX,), gate=gate))


def raising() -> Anonymizer:
    return Anonymizer(Settings(), RaisingDetector((BOX,)))


def editing(path: Path) -> Anonymizer:
    return Anonymizer(steady().settings, EditingDetector((BOX,), edited=path))
